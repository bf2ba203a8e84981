//! TLS: who we are towards clients (certificate chain and private key), whose cryptography does the work, and connections without I/O.

mod connection;
mod identity;
mod pem;
mod provider;

pub use connection::{
    CLOSE_BYTES_MAX, Connection, Fault, Opened, RECORD_BYTES_MAX, REFUSAL_ALERT, Step, sealed_bytes_max,
};
pub use identity::{Chain, Curve, Identity, IdentityError, KeyKind, Validity};
pub use provider::Provider;
