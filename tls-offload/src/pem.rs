//! PEM files: their sections, how they are written, and what is told about a file that is none.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::{Zeroize, Zeroizing};

use crate::IdentityError;

/// Largest file that is read: chains and keys have a few kilobytes.
pub(crate) const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Longest password.
pub(crate) const PASSWORD_BYTES_MAX: usize = 1024;

/// What a PEM file holds; wiped when it is dropped.
pub(crate) struct Sections {
    /// The known sections, in their order.
    known: Vec<(SectionKind, Vec<u8>)>,
    /// The first private key behind a password.
    pub(crate) encrypted_key: Option<EncryptedKey>,
}

/// A private key behind a password.
pub(crate) enum EncryptedKey {
    /// As OpenSSL did it before PKCS #8 (RFC 1421 §4.6.1.1).
    Old,
    /// RFC 7468 §11, as DER.
    Pkcs8(Vec<u8>),
}

impl Sections {
    /// The certificates in their order.
    pub(crate) fn certificates(&self) -> Vec<CertificateDer<'static>> {
        let certificates = self.known.iter().filter(|(kind, _)| *kind == SectionKind::Certificate);
        certificates.map(|(_, der)| CertificateDer::from(der.clone())).collect()
    }

    /// The first private key in clear.
    pub(crate) fn key(&self) -> Option<PrivateKeyDer<'static>> {
        self.known.iter().find_map(|(kind, der)| match kind {
            SectionKind::EcPrivateKey => Some(PrivateKeyDer::Sec1(der.clone().into())),
            SectionKind::PrivateKey => Some(PrivateKeyDer::Pkcs8(der.clone().into())),
            SectionKind::RsaPrivateKey => Some(PrivateKeyDer::Pkcs1(der.clone().into())),
            _ => None,
        })
    }
}

impl Drop for Sections {
    fn drop(&mut self) {
        self.known.iter_mut().for_each(|(_, der)| der.zeroize());
    }
}

/// The bytes of a file, which may hold a key.
pub(crate) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let path_of = || path.to_path_buf();
    let unreadable = |error| IdentityError::Unreadable { path: path_of(), error };
    let file = File::open(path).map_err(unreadable)?;
    // Its room is taken at once: a vector that grows leaves copies behind.
    let length = file.metadata().map_err(unreadable)?.len().min(FILE_BYTES_MAX) as usize;
    let mut bytes = Zeroizing::new(Vec::with_capacity(length + 32));
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(IdentityError::TooLarge { path: path_of() });
    }
    if bytes.is_empty() {
        return Err(IdentityError::Empty { path: path_of() });
    }
    Ok(bytes)
}

/// The password in the first line of a file.
pub(crate) fn password(path: &Path) -> Result<Zeroizing<String>, IdentityError> {
    let bytes = read(path)?;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match std::str::from_utf8(line) {
        Ok(text) if text.len() <= PASSWORD_BYTES_MAX => Ok(Zeroizing::new(text.to_owned())),
        _ => Err(IdentityError::PasswordNotText { path: path.to_path_buf() }),
    }
}

/// The sections of a file; there is at least one.
pub(crate) fn sections(path: &Path, bytes: &[u8]) -> Result<Sections, IdentityError> {
    let path_of = || path.to_path_buf();
    let broken = |error: String| IdentityError::BrokenPem { path: path_of(), error };
    // The old form has header lines, which are no base64: its section is left out.
    let (old, rest) = without_old_keys(bytes);
    let known: Vec<_> = <(SectionKind, Vec<u8>)>::pem_slice_iter(&rest)
        .collect::<Result<_, _>>()
        .map_err(|error| broken(error.to_string()))?;
    let encrypted_key = match section(&rest, ENCRYPTED) {
        Some(section) => Some(EncryptedKey::Pkcs8(encrypted(section).map_err(broken)?)),
        None => old.then_some(EncryptedKey::Old),
    };
    if !known.is_empty() || encrypted_key.is_some() {
        return Ok(Sections { known, encrypted_key });
    }
    // A DER sequence with a length of two bytes: a bare certificate or key.
    match bytes {
        [0x30, 0x82, ..] => Err(IdentityError::Binary { path: path_of() }),
        _ => Err(IdentityError::NotPem { path: path_of() }),
    }
}

/// One section as PEM (RFC 7468 §2).
pub(crate) fn written(label: &str, der: &[u8]) -> Zeroizing<String> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = Zeroizing::new(String::with_capacity(der.len() / 3 * 4 + der.len() / 48 + 2 * label.len() + 64));
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    for line in der.chunks(48) {
        for three in line.chunks(3) {
            let bits = three.iter().fold(0, |bits, byte| bits << 8 | usize::from(*byte)) << (8 * (3 - three.len()));
            for letter in 0..4 {
                let shown = letter <= three.len();
                text.push(if shown { char::from(LETTERS[bits >> (18 - 6 * letter) & 63]) } else { '=' });
            }
        }
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

const ENCRYPTED: &str = "ENCRYPTED PRIVATE KEY";

/// The first section with this label, from its first to its last line.
fn section<'b>(bytes: &'b [u8], label: &str) -> Option<&'b [u8]> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let start = find(bytes, begin.as_bytes())?;
    let length = find(&bytes[start..], end.as_bytes())? + end.len();
    Some(&bytes[start..start + length])
}

/// What an encrypted key is: the parser knows the section by the name that it has in clear only.
fn encrypted(section: &[u8]) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(section).map_err(|error| error.to_string())?;
    let renamed = text.replace(ENCRYPTED, "PRIVATE KEY");
    let (_, der) = <(SectionKind, Vec<u8>)>::from_pem_slice(renamed.as_bytes()).map_err(|error| error.to_string())?;
    Ok(der)
}

/// The file without keys that are encrypted in the old way, and whether there were any.
fn without_old_keys(bytes: &[u8]) -> (bool, Zeroizing<Vec<u8>>) {
    let mut rest = Zeroizing::new(bytes.to_vec());
    let mut found = false;
    while let Some(header) = find(&rest, b"Proc-Type: 4,ENCRYPTED") {
        found = true;
        let start = rest[..header].windows(10).rposition(|window| window == b"-----BEGIN").unwrap_or(header);
        let end = find(&rest[header..], b"-----END").map_or(rest.len(), |end| header + end);
        let after = rest[end..].iter().position(|byte| *byte == b'\n').map_or(rest.len(), |line| end + line + 1);
        rest.drain(start..after);
    }
    (found, rest)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
