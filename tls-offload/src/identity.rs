//! An identity: the certificate chain that clients see and the private key behind it, loaded and judged as one.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::SectionKind;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error as TlsError, InconsistentKeys};
use thiserror::Error;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::{Provider, pem};

/// A certificate chain and the private key of its first certificate.
#[derive(Clone, Debug)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    names: Vec<String>,
    not_before_s: i64,
    not_after_s: i64,
    key_kind: KeyKind,
    chain: Chain,
}

/// The public key of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// ECDSA.
    Ecdsa(Curve),
    /// Ed25519.
    Ed25519,
    /// RSA.
    Rsa {
        /// Bits of the modulus.
        bits: usize,
    },
}

/// A curve of NIST.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Curve {
    /// P-256.
    P256,
    /// P-384.
    P384,
    /// P-521.
    P521,
}

/// Whether each certificate of the file is followed by its issuer (RFC 8446 §4.4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chain {
    /// The certificate at this place (1 = the first) is not issued by the one after it: strict clients refuse the chain.
    Broken {
        /// Place of the certificate whose issuer is missing.
        place: usize,
        /// The issuer that should follow.
        issuer: String,
    },
    /// Up to a certificate whose issuer is not in the file: right if clients trust that issuer as a root.
    EndsBelow {
        /// The issuer of the last certificate.
        issuer: String,
    },
    /// Up to a self-signed certificate.
    Rooted,
}

/// Where a moment lies relative to the dates of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// The certificate has ended.
    Expired {
        /// Seconds since it did.
        since_s: u64,
    },
    /// The certificate is yet to begin.
    NotYet {
        /// Seconds until it does.
        in_s: u64,
    },
    /// Within the dates.
    Valid {
        /// Seconds until the certificate ends.
        for_s: u64,
    },
}

/// Why two files do not make an identity. Each is the operator's to mend; trying again without a change is useless.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// A certificate that cannot be taken apart.
    #[error("{}: certificate {place} is damaged ({error}); export the chain again", path.display())]
    BadCertificate {
        /// The file.
        path: PathBuf,
        /// Place in the file, from 1.
        place: usize,
        /// What the parser says.
        error: String,
    },
    /// A private key that the provider cannot use.
    #[error("{}: the private key cannot be used ({error}); use RSA with 2048 to 8192 bits, ECDSA P-256, P-384 or P-521, or Ed25519", path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
        /// What the provider says.
        error: String,
    },
    /// DER or PKCS#12.
    #[error(
        "{}: this is a binary file, PEM text is needed; convert it: `openssl pkcs12 -in FILE -nodes` for a .pfx, \
         `openssl x509 -inform der -in FILE` for a certificate, `openssl pkey -inform der -in FILE` for a key",
        path.display()
    )]
    Binary {
        /// The file.
        path: PathBuf,
    },
    /// Text that begins as PEM and breaks off or does not decode.
    #[error("{}: damaged PEM ({error}); copy the file again, with its BEGIN and END lines", path.display())]
    BrokenPem {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        error: String,
    },
    /// Nothing in the file.
    #[error("{}: the file is empty; export the certificate or key again", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A key behind a passphrase.
    #[error(
        "{}: the private key is encrypted and a service has nobody to ask for the passphrase; decrypt it into a file \
         that only its user can read: `openssl pkey -in FILE -out NEW`",
        path.display()
    )]
    EncryptedKey {
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key do not belong together.
    #[error(
        "{}: this private key does not belong to the first certificate of {} (for {names}); name the key that the \
         certificate was requested with, and put the server's own certificate first",
        key_path.display(),
        chain_path.display()
    )]
    KeyOfAnotherCertificate {
        /// The file of the key.
        key_path: PathBuf,
        /// The file of the chain.
        chain_path: PathBuf,
        /// Whom the certificate is for.
        names: String,
    },
    /// PEM without a certificate.
    #[error("{}: no certificate in this file; add the certificate chain as PEM (BEGIN CERTIFICATE)", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// PEM without a key.
    #[error("{}: no private key in this file; add it as PEM (BEGIN PRIVATE KEY)", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// Neither text nor a known binary form.
    #[error("{}: neither a certificate nor a key; PEM text is needed (BEGIN …)", path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
    },
    /// Larger than any chain.
    #[error("{}: larger than {} KiB, this is no certificate chain or key; name the right file", path.display(), pem::FILE_BYTES_MAX / 1024)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The operating system does not hand out the file.
    #[error("{}: {error}; check the path and that the user of the service may read it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A public key for which there are no TLS signatures.
    #[error("{}: the certificate's key ({algorithm}) is of a kind that TLS servers do not sign with; use RSA, ECDSA P-256, P-384 or P-521, or Ed25519", path.display())]
    UnknownKeyKind {
        /// The file.
        path: PathBuf,
        /// Object identifier of the algorithm or curve.
        algorithm: String,
    },
}

impl Identity {
    /// Loads a chain (the server's own certificate first) and its key from PEM files, which may be one and the same.
    ///
    /// The key must belong to the first certificate. Dates and completeness are not judged here: see [`Identity::validity`] and [`Identity::chain`].
    pub fn load(chain_path: &Path, key_path: &Path, provider: Provider) -> Result<Identity, IdentityError> {
        let chain = load_chain(chain_path)?;
        let certificates = parse_chain(chain_path, &chain)?;
        let Some(leaf) = certificates.first() else {
            return Err(IdentityError::NoCertificate { path: chain_path.to_path_buf() });
        };
        let names = names(leaf);
        let key_kind = key_kind(chain_path, leaf)?;
        let (not_before_s, not_after_s) =
            (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
        let completeness = completeness(&certificates);

        let key = load_key(key_path)?;
        let whose = if names.is_empty() { leaf.subject().to_string() } else { names.join(", ") };
        let certified = certify(chain.clone(), key, &provider.crypto()).map_err(|error| match error {
            TlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => IdentityError::KeyOfAnotherCertificate {
                key_path: key_path.to_path_buf(),
                chain_path: chain_path.to_path_buf(),
                names: whose,
            },
            error => IdentityError::BadKey { path: key_path.to_path_buf(), error: error.to_string() },
        })?;
        Ok(Identity { certified: Arc::new(certified), names, not_before_s, not_after_s, key_kind, chain: completeness })
    }

    /// The names and addresses that the certificate is for (subjectAltName); clients ignore the common name.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// First moment at which the certificate is valid, in Unix seconds.
    pub fn not_before_s(&self) -> i64 {
        self.not_before_s
    }

    /// Last moment at which the certificate is valid, in Unix seconds.
    pub fn not_after_s(&self) -> i64 {
        self.not_after_s
    }

    /// Where `now_s` (Unix seconds) lies relative to the certificate's dates.
    pub fn validity(&self, now_s: i64) -> Validity {
        if now_s < self.not_before_s {
            Validity::NotYet { in_s: self.not_before_s.abs_diff(now_s) }
        } else if now_s > self.not_after_s {
            Validity::Expired { since_s: now_s.abs_diff(self.not_after_s) }
        } else {
            Validity::Valid { for_s: self.not_after_s.abs_diff(now_s) }
        }
    }

    /// Kind and size of the key.
    pub fn key_kind(&self) -> KeyKind {
        self.key_kind
    }

    /// Whether the issuers follow.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Chain and key in the form that rustls takes.
    pub fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

impl PartialEq for Identity {
    /// The same chain. Its key is then the same, too: it belongs to the first certificate.
    fn eq(&self, other: &Identity) -> bool {
        self.certified.cert == other.certified.cert
    }
}

fn load_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    Ok(pem::sections(path)?
        .known
        .into_iter()
        .filter(|(kind, _)| *kind == SectionKind::Certificate)
        .map(|(_, der)| CertificateDer::from(der))
        .collect())
}

fn parse_chain<'der>(
    path: &Path,
    chain: &'der [CertificateDer<'static>],
) -> Result<Vec<X509Certificate<'der>>, IdentityError> {
    let parse = |(index, der): (usize, &'der CertificateDer<'static>)| match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => {
            Err(IdentityError::BadCertificate { path: path.to_path_buf(), place: index + 1, error: error.to_string() })
        }
    };
    chain.iter().enumerate().map(parse).collect()
}

/// The first private key of the file.
fn load_key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let sections = pem::sections(path)?;
    let missing = if sections.has_encrypted_key {
        IdentityError::EncryptedKey { path: path.to_path_buf() }
    } else {
        IdentityError::NoKey { path: path.to_path_buf() }
    };
    sections
        .known
        .into_iter()
        .find_map(|(kind, der)| match kind {
            SectionKind::EcPrivateKey => Some(PrivateKeyDer::Sec1(der.into())),
            SectionKind::PrivateKey => Some(PrivateKeyDer::Pkcs8(der.into())),
            SectionKind::RsaPrivateKey => Some(PrivateKeyDer::Pkcs1(der.into())),
            _ => None,
        })
        .ok_or(missing)
}

/// Unlike `CertifiedKey::from_der`, takes no key whose public half it cannot compare.
fn certify(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    crypto: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let certified = CertifiedKey::new(chain, crypto.key_provider.load_private_key(key)?);
    certified.keys_match()?;
    Ok(certified)
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_string()),
        GeneralName::IPAddress(bytes) => match **bytes {
            [a, b, c, d] => Some(Ipv4Addr::new(a, b, c, d).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|octets| Ipv6Addr::from_octets(octets).to_string()),
        },
        _ => None,
    };
    extension.value.general_names.iter().filter_map(name).collect()
}

fn key_kind(path: &Path, certificate: &X509Certificate<'_>) -> Result<KeyKind, IdentityError> {
    let spki = certificate.public_key();
    let algorithm = spki.algorithm.algorithm.to_id_string();
    let unknown = |algorithm| Err(IdentityError::UnknownKeyKind { path: path.to_path_buf(), algorithm });
    // RFC 5480 §2.1.1.1, RFC 8410 §3.
    match (spki.parsed(), algorithm.as_str()) {
        (Ok(PublicKey::RSA(rsa)), _) => Ok(KeyKind::Rsa { bits: bits(rsa.modulus) }),
        (Ok(PublicKey::EC(_)), _) => {
            let curve = spki.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
            match curve.map(|curve| curve.to_id_string()).unwrap_or_default().as_str() {
                "1.2.840.10045.3.1.7" => Ok(KeyKind::Ecdsa(Curve::P256)),
                "1.3.132.0.34" => Ok(KeyKind::Ecdsa(Curve::P384)),
                "1.3.132.0.35" => Ok(KeyKind::Ecdsa(Curve::P521)),
                curve => unknown(format!("curve {curve}")),
            }
        }
        (_, "1.3.101.112") => Ok(KeyKind::Ed25519),
        _ => unknown(algorithm),
    }
}

/// Bits of a big-endian number.
fn bits(number: &[u8]) -> usize {
    let zeros = number.iter().take_while(|&&byte| byte == 0).count();
    match &number[zeros..] {
        [] => 0,
        significant @ [first, ..] => significant.len() * 8 - first.leading_zeros() as usize,
    }
}

fn completeness(certificates: &[X509Certificate<'_>]) -> Chain {
    let follows = |pair: &[X509Certificate<'_>]| pair[0].issuer().as_raw() == pair[1].subject().as_raw();
    if let Some(place) = certificates.windows(2).position(|pair| !follows(pair)) {
        return Chain::Broken { place: place + 1, issuer: certificates[place].issuer().to_string() };
    }
    match certificates.last() {
        Some(last) if last.issuer().as_raw() != last.subject().as_raw() => {
            Chain::EndsBelow { issuer: last.issuer().to_string() }
        }
        _ => Chain::Rooted,
    }
}
