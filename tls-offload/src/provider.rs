//! Whose cryptography does the work.

use rustls::crypto::{CryptoProvider, aws_lc_rs, ring};

/// A library of cryptography that rustls can use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Provider {
    /// AWS-LC: more than twice as many RSA signatures per second.
    #[default]
    AwsLcRs,
    /// ring.
    Ring,
}

impl Provider {
    /// The provider with its default cipher suites and key exchange groups.
    pub fn crypto(self) -> CryptoProvider {
        match self {
            Provider::AwsLcRs => aws_lc_rs::default_provider(),
            Provider::Ring => ring::default_provider(),
        }
    }
}
