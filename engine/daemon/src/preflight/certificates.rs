//! Certificates and keys that services name: whether they make identities, for how long, and who else may read them (T-37). Of revocation lists and
//! OCSP responses, for how long they are good.

use std::collections::HashMap;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use towpath_config::model::{CertificateFiles, Model};
use towpath_tls::{Chain, Dates, FileError, Identity, IdentityError, Validity};

use super::{Check, Finding, Severity};
use crate::control;
use crate::tls::{DatedKind, LAST_PART, dated_files, dates_of, identity_files, provider};

/// A certificate that ends so soon is told: authorities renew a month before.
const ENDS_SOON_S: u64 = 21 * 86_400;

/// The identities that a model names, for services and for `control.listen`, each read once.
#[derive(Clone, Debug, Default)]
pub struct Certificates {
    /// Now, in Unix seconds.
    pub now_s: i64,
    /// By the files that they are in.
    pub read: HashMap<CertificateFiles, ReadIdentity>,
    /// From when until when revocation lists and OCSP responses are good, by file; `None` where they do not say.
    pub dated: HashMap<PathBuf, Result<Option<Dates>, Arc<FileError>>>,
    /// Files with tokens of users that every user of the machine may read.
    pub exposed_tokens: Vec<PathBuf>,
}

/// One identity as its files say it.
#[derive(Clone, Debug)]
pub struct ReadIdentity {
    /// The identity, or why it is none.
    pub identity: Result<Arc<Identity>, Arc<IdentityError>>,
    /// Its files with secrets that every user of the machine may read.
    pub exposed: Vec<PathBuf>,
}

impl Certificates {
    /// Reads the files.
    pub fn gather(model: &Model) -> Certificates {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut read = HashMap::new();
        for (_, files) in each(model) {
            read.entry(files.clone()).or_insert_with(|| {
                let files = identity_files(files);
                ReadIdentity {
                    identity: Identity::open(&files, provider(model.tls.provider)).map(Arc::new).map_err(Arc::new),
                    exposed: files.exposed().into_iter().map(Path::to_path_buf).collect(),
                }
            });
        }
        let mut dated = HashMap::new();
        for (_, kind, path) in each_dated(model) {
            dated.entry(path.to_path_buf()).or_insert_with(|| dates_of(kind, path).map_err(Arc::new));
        }
        let exposed_tokens = control::exposed(model).map(Path::to_path_buf).collect();
        Certificates { now_s: i64::try_from(now).unwrap_or(i64::MAX), read, dated, exposed_tokens }
    }

    /// What is wrong with them.
    pub(super) fn check(&self, model: &Model, findings: &mut Vec<Finding>) {
        self.check_hidden(model, findings);
        self.check_dated(model, findings);
        findings.extend(self.exposed_tokens.iter().map(|path| exposed(Check::Files, None, path)));
        for (service, files) in each(model) {
            let Some(read) = self.read.get(files) else { continue };
            let mut tell = |severity, path: &Path, message: String| {
                findings.push(Finding {
                    severity,
                    check: Check::Certificates,
                    service: service.map(str::to_owned),
                    message: told(service, "control.certificate", message),
                    file: Some(path.to_path_buf()),
                });
            };
            match &read.identity {
                Err(error) => tell(Severity::Error, error.path(), error.to_string()),
                Ok(identity) => self.judge(identity, &files.file, &mut tell),
            }
            findings.extend(read.exposed.iter().map(|path| exposed(Check::Certificates, service, path)));
        }
    }

    /// Revocation lists and OCSP responses that have ended, or soon will.
    fn check_dated(&self, model: &Model, findings: &mut Vec<Finding>) {
        for (service, kind, path) in each_dated(model) {
            let Some(read) = self.dated.get(path) else { continue };
            let (shown, noun) = (path.display(), kind.noun());
            let (severity, message) = match read {
                Err(error) => (Severity::Error, error.to_string()),
                Ok(None) => continue,
                Ok(Some(dates)) => match dates.validity(self.now_s) {
                    Validity::Expired { since_s } => {
                        let message = format!("{shown}: this {noun} ended {} ago; {}", days(since_s), kind.remedy());
                        (Severity::Warning, message)
                    }
                    Validity::NotYet { in_s } => {
                        let message =
                            format!("{shown}: this {noun} begins in {}; wait, or set this machine's clock", days(in_s));
                        (Severity::Warning, message)
                    }
                    Validity::Valid { for_s } if for_s < dates.length_s() / LAST_PART => {
                        (Severity::Warning, format!("{shown}: this {noun} ends in {}; {}", days(for_s), kind.remedy()))
                    }
                    Validity::Valid { .. } => continue,
                },
            };
            findings.push(Finding {
                severity,
                check: Check::Certificates,
                service: service.map(str::to_owned),
                message: told(service, "control.client_crl", message),
                file: Some(path.to_path_buf()),
            });
        }
    }

    /// Certificates that no client is ever sent: an earlier one of the service has their names, and a key of the same kind.
    fn check_hidden(&self, model: &Model, findings: &mut Vec<Finding>) {
        for service in &model.services {
            let Some(tls) = service.ended_tls() else { continue };
            let read = |files| Some((files, self.read.get(files)?.identity.as_ref().ok()?));
            let mut earlier: Vec<(&CertificateFiles, &Arc<Identity>)> = Vec::new();
            for (files, identity) in tls.certificates.iter().filter_map(read) {
                let same_kind =
                    |other: &Identity| mem::discriminant(&other.key_kind()) == mem::discriminant(&identity.key_kind());
                let has = |name: &String| {
                    earlier
                        .iter()
                        .find(|(_, other)| same_kind(other) && other.names().contains(name))
                        .map(|(files, _)| *files)
                };
                let owners: Vec<Option<&CertificateFiles>> = identity.names().iter().map(has).collect();
                if let (Some(Some(owner)), true) = (owners.first(), owners.iter().all(Option::is_some)) {
                    findings.push(Finding {
                        severity: Severity::Warning,
                        check: Check::Certificates,
                        service: Some(service.name.clone()),
                        message: format!(
                            "{}: no client is sent this certificate: {} has its names and comes first; remove one of them",
                            files.file.display(),
                            owner.file.display()
                        ),
                        file: Some(files.file.clone()),
                    });
                }
                earlier.push((files, identity));
            }
        }
    }

    fn judge(&self, identity: &Identity, path: &Path, tell: &mut impl FnMut(Severity, &Path, String)) {
        let shown = path.display();
        let names = identity.names().join(", ");
        match identity.validity(self.now_s) {
            // No reason to refuse the whole file: the others are to be served, and clocks may be wrong.
            Validity::Expired { since_s } => tell(
                Severity::Warning,
                path,
                format!("{shown}: the certificate for {names} ended {} ago; renew it", days(since_s)),
            ),
            Validity::NotYet { in_s } => tell(
                Severity::Warning,
                path,
                format!(
                    "{shown}: the certificate for {names} begins in {}; wait, or set this machine's clock",
                    days(in_s)
                ),
            ),
            Validity::Valid { for_s } if for_s < ENDS_SOON_S => tell(
                Severity::Warning,
                path,
                format!("{shown}: the certificate for {names} ends in {}; renew it", days(for_s)),
            ),
            Validity::Valid { .. } => {}
        }
        if let (Chain::EndsBelow { issuer }, 1) = (identity.chain(), identity.certified_key().cert.len()) {
            tell(
                Severity::Warning,
                path,
                format!(
                    "{shown}: the certificate of the issuer ({issuer}) is missing: clients that do not know it refuse the connection; add it to \
                     this file, or by `chain` (a root is not sent)"
                ),
            );
        }
        for subject in identity.spare() {
            tell(
                Severity::Warning,
                path,
                format!("{shown}: the certificate of {subject} is no part of the chain and is not sent; remove it"),
            );
        }
        if identity.names().is_empty() {
            tell(
                Severity::Warning,
                path,
                format!(
                    "{shown}: the certificate has no name (subjectAltName), so clients accept it for none; request one with names"
                ),
            );
        }
    }
}

/// What is no service's is told with its key.
fn told(service: Option<&str>, key: &str, message: String) -> String {
    match service {
        Some(_) => message,
        None => format!("{key}: {message}"),
    }
}

/// A file with a secret that everybody on the machine may read.
fn exposed(check: Check, service: Option<&str>, path: &Path) -> Finding {
    let shown = path.display();
    Finding {
        severity: Severity::Warning,
        check,
        service: service.map(str::to_owned),
        message: format!(
            "{shown}: every user of this machine can read the secret in it; take that away: `chmod o-rwx {shown}`"
        ),
        file: Some(path.to_path_buf()),
    }
}

/// Every certificate of a model with the name of its service, those for servers too; that of `control.listen` is no service's.
fn each(model: &Model) -> impl Iterator<Item = (Option<&str>, &CertificateFiles)> {
    let ended = model.services.iter().filter_map(|service| Some((service.name.as_str(), service.ended_tls()?)));
    let of_services = ended.flat_map(|(name, tls)| {
        tls.certificates.iter().chain(&tls.servers.identity).map(move |files| (Some(name), files))
    });
    let of_control = model.control.listen.iter().filter_map(|listen| listen.certificate.as_ref());
    of_services.chain(of_control.map(|files| (None, files)))
}

/// Every file of a model whose content ends before certificates do, with the name of its service.
fn each_dated(model: &Model) -> impl Iterator<Item = (Option<&str>, DatedKind, &Path)> {
    let ended = model.services.iter().filter_map(|service| Some((service.name.as_str(), service.ended_tls()?)));
    let of_services = ended.flat_map(|(name, tls)| dated_files(tls).map(move |(kind, path)| (Some(name), kind, path)));
    let of_control = model.control.listen.iter().filter_map(|listen| listen.client_crl.as_deref());
    of_services.chain(of_control.map(|path| (None, DatedKind::RevocationList, path)))
}

/// "3 days", "5 hours".
fn days(s: u64) -> String {
    match s / 86_400 {
        0 => format!("{} hours", s / 3600),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}
