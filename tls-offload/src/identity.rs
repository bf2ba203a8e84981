//! An identity: the certificate chain that clients see and the private key behind it, loaded and judged as one.

mod chain;
mod error;
mod material;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use ::aws_lc_rs::digest::{SHA256, digest};
use rustls::crypto::{aws_lc_rs, ring};
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use rustls::{Error as TlsError, InconsistentKeys};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::{Dates, Provider, Sha256, Validity};
use chain::Sorted;

pub use chain::Chain;
pub use error::IdentityError;
pub use material::{IdentityFiles, IdentityMaterial};

/// A certificate chain and the private key of its first certificate.
#[derive(Clone, Debug)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    names: Vec<String>,
    dates: Dates,
    key_kind: KeyKind,
    chain: Chain,
    spare: Vec<String>,
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

impl Identity {
    /// Loads an identity from PEM files without passwords, which may be one and the same; see [`Identity::open`].
    pub fn load(chain_path: &Path, key_path: &Path, provider: Provider) -> Result<Identity, IdentityError> {
        let key = (chain_path != key_path).then(|| key_path.to_path_buf());
        let certificate = chain_path.to_path_buf();
        Identity::open(&IdentityFiles { certificate, key, ..IdentityFiles::default() }, provider)
    }

    /// Loads an identity from its files. The server's own certificate is the one that the key belongs to; its issuers are put behind it.
    ///
    /// Dates and completeness are not judged here: see [`Identity::validity`] and [`Identity::chain`].
    pub fn open(files: &IdentityFiles, provider: Provider) -> Result<Identity, IdentityError> {
        Identity::of(&files.read()?, files, provider)
    }

    /// The identity that `material`, read from `files`, makes.
    pub fn of(
        material: &IdentityMaterial,
        files: &IdentityFiles,
        provider: Provider,
    ) -> Result<Identity, IdentityError> {
        let path = &files.certificate;
        let bad_key =
            |error: TlsError| IdentityError::BadKey { path: files.key().to_path_buf(), error: error.to_string() };
        let parsed = parse(path, &material.certificates)?;
        let key = match provider {
            Provider::AwsLcRs => aws_lc_rs::sign::any_supported_type(material.key()),
            Provider::Ring => ring::sign::any_supported_type(material.key()),
        };
        let key = key.map_err(bad_key)?;
        let public = key.public_key().ok_or_else(|| bad_key(TlsError::InconsistentKeys(InconsistentKeys::Unknown)))?;
        let belongs =
            |certificate: &X509Certificate<'_>| certificate.tbs_certificate.subject_pki.raw == public.as_ref();
        let Some(place) = parsed.iter().position(belongs) else {
            let own = parsed.iter().find(|certificate| !certificate.is_ca()).or(parsed.first());
            return Err(IdentityError::KeyOfAnotherCertificate {
                key_path: files.key().to_path_buf(),
                chain_path: path.clone(),
                names: own.map(whose).unwrap_or_default(),
            });
        };
        let leaf = &parsed[place];
        let Sorted { certificates, chain, spare } = chain::sorted(&material.certificates, &parsed, place);
        let identity = Identity {
            names: names(leaf),
            dates: Dates {
                begin_s: leaf.validity().not_before.timestamp(),
                end_s: leaf.validity().not_after.timestamp(),
            },
            key_kind: key_kind(path, leaf)?,
            chain,
            spare,
            certified: Arc::new(CertifiedKey::new(certificates, key)),
        };
        identity.certified.keys_match().map_err(bad_key)?;
        Ok(identity)
    }

    /// The names and addresses that the certificate is for (subjectAltName); clients ignore the common name.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// First moment at which the certificate is valid, in Unix seconds.
    pub fn not_before_s(&self) -> i64 {
        self.dates.begin_s
    }

    /// Last moment at which the certificate is valid, in Unix seconds.
    pub fn not_after_s(&self) -> i64 {
        self.dates.end_s
    }

    /// Where `now_s` (Unix seconds) lies relative to the certificate's dates.
    pub fn validity(&self, now_s: i64) -> Validity {
        self.dates.validity(now_s)
    }

    /// Kind and size of the key.
    pub fn key_kind(&self) -> KeyKind {
        self.key_kind
    }

    /// Whether all issuers are there.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Subjects of certificates that the files hold and that nobody is sent: they belong to no part of the chain.
    pub fn spare(&self) -> &[String] {
        &self.spare
    }

    /// SHA-256 of the server's own certificate, as it is pinned.
    pub fn fingerprint(&self) -> Sha256 {
        fingerprint(&self.certified.cert[0])
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

/// SHA-256 of a certificate, as it is pinned.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> Sha256 {
    digest(&SHA256, certificate).as_ref().try_into().unwrap_or_default()
}

/// What a peer says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presented {
    /// Names and addresses that its certificate is for.
    pub names: Vec<String>,
    /// The common name of its subject, if there is exactly one.
    pub common_name: Option<String>,
    /// Its distinguished name.
    pub subject: String,
    /// That of who has signed it.
    pub issuer: String,
    /// From when until when it is good.
    pub dates: Dates,
}

/// Reads a certificate of a peer; `None` if it cannot be read.
pub fn presented(certificate: &CertificateDer<'_>) -> Option<Presented> {
    let (_, read) = X509Certificate::from_der(certificate).ok()?;
    let validity = read.validity();
    let mut common_names = read.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let common_name = common_names.next().map(str::to_owned).filter(|_| common_names.next().is_none());
    Some(Presented {
        names: names(&read),
        common_name,
        subject: read.subject().to_string(),
        issuer: read.issuer().to_string(),
        dates: Dates { begin_s: validity.not_before.timestamp(), end_s: validity.not_after.timestamp() },
    })
}

/// Whom a certificate is for.
fn whose(certificate: &X509Certificate<'_>) -> String {
    let names = names(certificate);
    if names.is_empty() { certificate.subject().to_string() } else { names.join(", ") }
}

fn parse<'der>(
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
