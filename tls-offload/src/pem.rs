//! The sections of a PEM file, and what is told about a file that has none.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustls::pki_types::pem::{PemObject, SectionKind};

use crate::IdentityError;

/// Largest file that is read: chains and keys have a few kilobytes.
pub(crate) const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What a PEM file holds.
pub(crate) struct Sections {
    /// The known sections, in their order.
    pub(crate) known: Vec<(SectionKind, Vec<u8>)>,
    /// Whether a private key behind a passphrase is among the others (RFC 7468 §11).
    pub(crate) has_encrypted_key: bool,
}

/// The sections of `path`; there is at least one.
pub(crate) fn sections(path: &Path) -> Result<Sections, IdentityError> {
    let path_of = || path.to_path_buf();
    let unreadable = |error| IdentityError::Unreadable { path: path_of(), error };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(IdentityError::TooLarge { path: path_of() });
    }
    // The older form has header lines that the parser takes for base64 (RFC 1421 §4.6.1.1).
    if contains(&bytes, b"Proc-Type: 4,ENCRYPTED") {
        return Err(IdentityError::EncryptedKey { path: path_of() });
    }
    let known: Vec<_> = <(SectionKind, Vec<u8>)>::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| IdentityError::BrokenPem { path: path_of(), error: error.to_string() })?;
    let has_encrypted_key = contains(&bytes, b"BEGIN ENCRYPTED PRIVATE KEY");
    if !known.is_empty() || has_encrypted_key {
        return Ok(Sections { known, has_encrypted_key });
    }
    // A DER sequence with a length of two bytes: a bare certificate or key, or a PKCS#12 bundle.
    match bytes.as_slice() {
        [] => Err(IdentityError::Empty { path: path_of() }),
        [0x30, 0x82, ..] => Err(IdentityError::Binary { path: path_of() }),
        _ => Err(IdentityError::NotPem { path: path_of() }),
    }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
