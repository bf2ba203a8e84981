//! `GET /v1/certs`: every certificate, revocation list and OCSP response that is in force, and how long each is good.

use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use towpath_tls::{Curve, Identity, KeyKind};

use super::answer::{Answer, json};
use super::credential::hexadecimal;
use super::guard::Access;
use crate::events::unix_ms;
use crate::house::House;
use crate::tls::{DatedFile, certificate_level, file_level};

/// What is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificates {
    /// What ends first stands first.
    pub certificates: Vec<CertificateRow>,
}

/// One certificate, or a file that ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRow {
    /// The service; `None` = `control.listen`.
    pub service: Option<String>,
    /// `certificate`, `revocation list` or `OCSP response`.
    pub kind: String,
    /// Names and addresses that it is for.
    pub names: Vec<String>,
    /// The file that it came from, as the configuration names it.
    pub file: String,
    /// `RSA 2048`, `ECDSA P-256`; empty for what has none.
    pub key: String,
    /// SHA-256 over the certificate in DER, in hexadecimal digits; empty for what is none.
    pub sha256: String,
    /// When it begins, in seconds since 1970.
    pub not_before_unix_seconds: i64,
    /// When it ends, in seconds since 1970.
    pub not_after_unix_seconds: i64,
    /// Until then; negative once it has.
    pub seconds_left: i64,
    /// `valid`, `ends soon`, `ends within 30 days`, `ends within 7 days`, `ends within a day`, `not valid yet` or `expired`.
    pub level: String,
}

pub(super) fn show(house: &House) -> Answer {
    json(StatusCode::OK, &certificates(house))
}

fn certificates(house: &House) -> Certificates {
    let now_s = i64::try_from(unix_ms() / 1000).unwrap_or(i64::MAX);
    let truth = house.truth();
    let material = std::sync::Arc::clone(truth.material());
    let mut certificates = Vec::new();
    for service in &truth.model().services {
        let files = service.ended_tls().map_or(&[][..], |ended| ended.certificates.as_slice());
        for (identity, files) in material.certificates_of(&service.name).iter().zip(files) {
            certificates.push(row(Some(&service.name), identity, &files.file.display().to_string(), now_s));
        }
    }
    let access = house.guard.access();
    let own_list = access.as_deref().and_then(Access::revocations).map(|file| (None, file));
    let of_services = material.dated().map(|(service, file)| (Some(service), file));
    certificates.extend(of_services.chain(own_list).map(|(service, file)| file_row(service, file, now_s)));
    let own = truth.model().control.listen.as_ref().and_then(|listen| listen.certificate.as_ref());
    if let (Some(access), Some(files)) = (&access, own)
        && let Some(identity) = access.identity()
    {
        certificates.push(row(None, identity, &files.file.display().to_string(), now_s));
    }
    drop(truth);
    certificates.sort_by(|one, other| {
        let key = |row: &CertificateRow| (row.not_after_unix_seconds, row.service.clone(), row.file.clone());
        key(one).cmp(&key(other))
    });
    Certificates { certificates }
}

/// What ends and is no certificate.
fn file_row(service: Option<&str>, DatedFile { kind, path, dates }: &DatedFile, now_s: i64) -> CertificateRow {
    CertificateRow {
        service: service.map(str::to_owned),
        kind: kind.noun().to_owned(),
        names: Vec::new(),
        file: path.display().to_string(),
        key: String::new(),
        sha256: String::new(),
        not_before_unix_seconds: dates.begin_s,
        not_after_unix_seconds: dates.end_s,
        seconds_left: dates.end_s.saturating_sub(now_s),
        level: file_level(dates, now_s).to_owned(),
    }
}

fn row(service: Option<&str>, identity: &Identity, file: &str, now_s: i64) -> CertificateRow {
    CertificateRow {
        service: service.map(str::to_owned),
        kind: "certificate".to_owned(),
        names: identity.names().to_vec(),
        file: file.to_owned(),
        key: key_word(identity.key_kind()),
        sha256: hexadecimal(&identity.fingerprint()),
        not_before_unix_seconds: identity.not_before_s(),
        not_after_unix_seconds: identity.not_after_s(),
        seconds_left: identity.not_after_s().saturating_sub(now_s),
        level: certificate_level(identity, now_s).to_owned(),
    }
}

fn key_word(kind: KeyKind) -> String {
    match kind {
        KeyKind::Ecdsa(Curve::P256) => "ECDSA P-256".to_owned(),
        KeyKind::Ecdsa(Curve::P384) => "ECDSA P-384".to_owned(),
        KeyKind::Ecdsa(Curve::P521) => "ECDSA P-521".to_owned(),
        KeyKind::Ed25519 => "Ed25519".to_owned(),
        KeyKind::Rsa { bits } => format!("RSA {bits}"),
    }
}
