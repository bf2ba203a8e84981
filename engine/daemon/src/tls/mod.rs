//! TLS of the services: from the model and its files to the contexts that workers shake hands with, and the pool that signs.

mod certificates;
mod contexts;
#[cfg(test)]
pub(crate) mod fixtures;
mod pool;

pub use contexts::{ServiceTls, TlsContexts, TlsError, TlsErrors, TlsMaterial};
pub use pool::PooledHandshake;

pub(crate) use certificates::{ExpiryWatch, LAST_PART, certificate_level, certificate_status, file_level};
pub(crate) use contexts::{
    CACHED_SESSIONS_MAX, DatedFile, DatedKind, ciphers, dated_files, dates_of, identity_files, min_version, provider,
};
pub(crate) use pool::{HandshakePool, start_pool};

#[cfg(test)]
mod tests;
