//! TLS of the services: from the model and its files to the contexts that workers shake hands with, and the pool that signs.

mod contexts;
mod pool;

pub use contexts::{ServiceTls, TlsContexts, TlsError, TlsErrors, TlsMaterial};
pub use pool::PooledHandshake;

pub(crate) use contexts::{ciphers, identity_files, min_version, provider};
