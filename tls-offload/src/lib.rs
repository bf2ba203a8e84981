//! TLS: who we are towards clients (certificate chain and private key), and whose cryptography does the work.

mod identity;
mod pem;
mod provider;

pub use identity::{Chain, Curve, Identity, IdentityError, KeyKind, Validity};
pub use provider::Provider;
