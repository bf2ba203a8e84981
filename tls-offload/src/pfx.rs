//! PFX files (PKCS #12, RFC 7292) and private keys behind a password (PKCS #8, RFC 5958).

use p12_keystore::Pkcs12Archive;
use p12_keystore::error::Error as Pkcs12Error;
use pkcs8::EncryptedPrivateKeyInfoRef;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// What a PFX file holds.
pub(crate) struct Bundle {
    /// In the order of the file.
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    /// The first one.
    pub(crate) key: Option<PrivateKeyDer<'static>>,
}

/// Why something does not open.
#[derive(Debug)]
pub(crate) enum PfxError {
    /// It takes another password.
    Locked,
    /// It is damaged, or of a form that nobody reads here.
    Other(String),
}

/// Whether this begins as a PFX file does: a sequence with the version 3 (RFC 7292 §4).
pub(crate) fn is_pfx(bytes: &[u8]) -> bool {
    const VERSION: [u8; 3] = [2, 1, 3];
    match bytes {
        // The length is one byte, or so many, or unknown.
        [0x30, length, rest @ ..] => {
            let more = if *length & 0x80 == 0 { 0 } else { usize::from(*length & 0x7f) };
            more <= 4 && rest.get(more..).is_some_and(|content| content.starts_with(&VERSION))
        }
        _ => false,
    }
}

/// Opens a PFX file: PBES2, and 3DES and 40-bit RC2 of old Windows exports.
pub(crate) fn open(bytes: &[u8], password: &str) -> Result<Bundle, PfxError> {
    let archive = Pkcs12Archive::from_pkcs12(bytes, password).map_err(|error| match error {
        Pkcs12Error::MacError(_) | Pkcs12Error::UnpadError => PfxError::Locked,
        error => PfxError::Other(error.to_string()),
    })?;
    let key = archive.keys.first().map(|bag| PrivatePkcs8KeyDer::from(bag.key.as_der().to_vec()).into());
    let certificates = archive.certs.iter().map(|bag| CertificateDer::from(bag.cert.as_der().to_vec())).collect();
    Ok(Bundle { certificates, key })
}

/// The private key of an `EncryptedPrivateKeyInfo` (PBES2).
pub(crate) fn decrypted_key(der: &[u8], password: &str) -> Result<PrivateKeyDer<'static>, PfxError> {
    let encrypted = EncryptedPrivateKeyInfoRef::try_from(der).map_err(|error| PfxError::Other(error.to_string()))?;
    let key = encrypted.decrypt(password).map_err(|error| match error {
        // Padding that is none, or content that is no key: the bytes were deciphered with another password.
        pkcs8::Error::EncryptedPrivateKey(pkcs8::pkcs5::Error::DecryptFailed) | pkcs8::Error::Asn1(_) => {
            PfxError::Locked
        }
        error => PfxError::Other(error.to_string()),
    })?;
    Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into())
}
