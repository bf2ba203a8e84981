//! Whose cryptography does the work.

use rustls::crypto::{CryptoProvider, aws_lc_rs, ring};

use crate::sealing::in_place_of;

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
            Provider::AwsLcRs => {
                let mut crypto = aws_lc_rs::default_provider();
                crypto.cipher_suites.iter_mut().for_each(|suite| *suite = in_place_of(*suite));
                crypto
            }
            Provider::Ring => ring::default_provider(),
        }
    }
}
