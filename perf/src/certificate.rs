//! Certificates that are made for a run: nobody else trusts them, and nobody checks them.

use std::io;
use std::sync::OnceLock;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize};

/// Whom they are for.
pub const NAME: &str = "mail.towpath.example";

/// What a private key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA with NIST P-256.
    P256,
    /// RSA of 2,048 bits.
    Rsa2048,
}

/// A certificate with its private key.
pub struct Certificate {
    /// Of the certificate, as DER.
    pub der: Vec<u8>,
    /// The private key, PKCS #8 in DER.
    pub key_der: Vec<u8>,
    /// The certificate as PEM.
    pub pem: String,
    /// The private key as PEM.
    pub key_pem: String,
}

impl Certificate {
    /// Makes a key and has it sign its own certificate. The search for a large prime takes part of a second with RSA.
    pub fn create(kind: KeyKind) -> io::Result<Certificate> {
        let key = match kind {
            KeyKind::P256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
            KeyKind::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
        };
        let key = key.map_err(io::Error::other)?;
        let signed = CertificateParams::new([NAME.to_owned()]).and_then(|params| params.self_signed(&key));
        let signed = signed.map_err(io::Error::other)?;
        Ok(Certificate {
            der: signed.der().to_vec(),
            key_der: key.serialize_der(),
            pem: signed.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// The one of this run, so that every subject has the same.
    pub fn of_run(kind: KeyKind) -> io::Result<&'static Certificate> {
        static OF_RUN: [OnceLock<Certificate>; 2] = [const { OnceLock::new() }; 2];
        let place = match kind {
            KeyKind::P256 => &OF_RUN[0],
            KeyKind::Rsa2048 => &OF_RUN[1],
        };
        if let Some(made) = place.get() {
            return Ok(made);
        }
        let made = Certificate::create(kind)?;
        Ok(place.get_or_init(|| made))
    }
}
