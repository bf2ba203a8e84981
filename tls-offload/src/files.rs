//! Files beside certificates and keys: authorities, revocation lists, staples, the secret of tickets.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::tickets::SECRET_BYTES_MAX;

/// Largest file that is read: the lists of large authorities have a few megabytes.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Longest staple: TLS has three octets for its length, real ones have a few hundred to a few thousand octets.
const STAPLE_BYTES_MAX: usize = 64 * 1024;

/// Why a file is not what it should be. Each is the operator's to mend.
#[derive(Debug, Error)]
#[error("{}: {problem}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: FileProblem,
}

/// What is wrong with a file.
#[derive(Debug, Error)]
pub enum FileProblem {
    /// PEM that breaks off or does not decode.
    #[error("damaged PEM ({0}); copy the file again, with its BEGIN and END lines")]
    BrokenPem(String),
    /// PEM without a certificate.
    #[error("no certificate in this file; add those of the authorities as PEM (BEGIN CERTIFICATE)")]
    NoCertificate,
    /// PEM without a revocation list.
    #[error("no revocation list in this file; add it as PEM (BEGIN X509 CRL): `openssl crl -inform der -in FILE`")]
    NoRevocationList,
    /// No answer about a certificate.
    #[error(
        "this is no OCSP response in DER; get it with `openssl ocsp -issuer CHAIN -cert FILE -url URL -respout FILE`"
    )]
    NoStaple,
    /// Larger than anything of its kind.
    #[error("larger than {0} bytes; name the right file")]
    TooLarge(u64),
    /// The operating system does not hand out the file.
    #[error("{0}; check the path and that the user of the service may read it")]
    Unreadable(io::Error),
}

/// The certificates of a PEM file; never none.
pub fn load_authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let bytes = read(path, FILE_BYTES_MAX)?;
    match CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>() {
        Ok(found) if found.is_empty() => Err(FileError::new(path, FileProblem::NoCertificate)),
        Ok(found) => Ok(found),
        Err(error) => Err(FileError::new(path, FileProblem::BrokenPem(error.to_string()))),
    }
}

/// The revocation lists of a PEM file; never none.
pub fn load_revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, FileError> {
    let bytes = read(path, FILE_BYTES_MAX)?;
    match CertificateRevocationListDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>() {
        Ok(found) if found.is_empty() => Err(FileError::new(path, FileProblem::NoRevocationList)),
        Ok(found) => Ok(found),
        Err(error) => Err(FileError::new(path, FileProblem::BrokenPem(error.to_string()))),
    }
}

/// An OCSP response that says something: one that only says why it says nothing would make clients that need one go away.
pub fn load_staple(path: &Path) -> Result<Vec<u8>, FileError> {
    let bytes = read(path, STAPLE_BYTES_MAX as u64)?;
    // OCSPResponse ::= SEQUENCE { responseStatus ENUMERATED { successful (0) }, … } (RFC 6960 §4.2.1).
    let content = match bytes.as_slice() {
        [0x30, length, content @ ..] if *length < 0x80 && content.len() == usize::from(*length) => Some(content),
        [0x30, 0x81, length, content @ ..] if content.len() == usize::from(*length) => Some(content),
        [0x30, 0x82, high, low, content @ ..] if content.len() == usize::from(u16::from_be_bytes([*high, *low])) => {
            Some(content)
        }
        _ => None,
    };
    match content {
        Some([0x0a, 1, 0, 0xa0, ..]) => Ok(bytes.to_vec()),
        _ => Err(FileError::new(path, FileProblem::NoStaple)),
    }
}

/// The bytes of a secret for [`crate::TicketKeys::shared`], which judges their number.
pub fn load_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    read(path, SECRET_BYTES_MAX as u64)
}

fn read(path: &Path, bytes_max: u64) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let unreadable = |error| FileError::new(path, FileProblem::Unreadable(error));
    let file = File::open(path).map_err(unreadable)?;
    let capacity = file.metadata().map_or(0, |metadata| metadata.len().min(bytes_max)) as usize;
    // One more than the file has, so that a secret is not left behind where the vector grew from.
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity + 1));
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > bytes_max {
        return Err(FileError::new(path, FileProblem::TooLarge(bytes_max)));
    }
    Ok(bytes)
}

impl FileError {
    fn new(path: &Path, problem: FileProblem) -> FileError {
        FileError { path: path.to_path_buf(), problem }
    }
}
