//! TLS: who we are towards clients and real servers, how handshakes are done with whom, the threads that do them, and connections without I/O.

mod client_certs;
mod connection;
mod context;
mod dates;
mod fault;
mod files;
mod identity;
mod pem;
mod pfx;
mod pool;
mod provider;
mod resolver;
mod sealing;
mod server_certs;
mod sessions;
mod tickets;

pub use client_certs::{ClientCertificates, ClientTrust};
pub use connection::{CLOSE_BYTES_MAX, Connection, Handshake, Opened, RECORD_BYTES_MAX, Step, sealed_bytes_max};
pub use context::{
    CipherPolicy, ClientContext, ClientSettings, ContextError, MinVersion, Resumption, ServerContext, ServerSettings,
};
pub use dates::{Dates, Validity, revocation_dates, staple_dates};
pub use fault::{Fault, INTERNAL_ERROR_ALERT, UNKNOWN_NAME_ALERT};
pub use files::{FileError, FileProblem, load_authorities, load_revocations, load_secret, load_staple};
pub use identity::{
    Chain, Curve, Identity, IdentityError, IdentityFiles, IdentityMaterial, KeyKind, Presented, fingerprint, presented,
};
pub use pool::{
    Errand, Finished, HandshakeKind, Hatch, PoolGauges, PoolSettings, Reclaimed, TlsPool, Work, WorkOutcome,
};
pub use provider::Provider;
pub use resolver::{ServedIdentity, SniMatch};
pub use server_certs::{ServerVerification, Sha256};
pub use tickets::{SECRET_BYTES_MAX, SECRET_BYTES_MIN, SecretError, TicketKeys};
