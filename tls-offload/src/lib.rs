//! TLS: who we are towards clients and real servers, how handshakes are done with whom, and the threads that do them.

mod client_certs;
mod context;
mod failure;
mod identity;
mod pem;
mod pool;
mod provider;
mod resolver;
mod server_certs;
mod sessions;
mod tickets;

pub use client_certs::{ClientCertificates, ClientTrust};
pub use context::{
    CipherPolicy, ClientContext, ClientSettings, ContextError, MinVersion, Resumption, ServerContext, ServerSettings,
};
pub use failure::HandshakeFailure;
pub use identity::{Chain, Curve, Identity, IdentityError, KeyKind, Validity};
pub use pool::{Errand, Finished, HandshakeKind, Hatch, PoolGauges, PoolSettings, TlsPool, Work, WorkOutcome};
pub use provider::Provider;
pub use resolver::{ServedIdentity, SniMatch};
pub use server_certs::{ServerVerification, Sha256};
pub use tickets::{SECRET_BYTES_MAX, SECRET_BYTES_MIN, SecretError, TicketKeys};
