//! `towpath cert`: certificates as they come, requests for new ones, and what the configuration has.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, RsaKeySize, SignatureAlgorithm};
use serde::Serialize;
use towpath_config::Model;
use towpath_config::model::CertificateFiles;
use towpath_engine::preflight::Certificates;
use towpath_tls::{Chain, Curve, Identity, IdentityFiles, IdentityMaterial, KeyKind, Provider, Validity};

use crate::cli::{CertCommand, CsrArguments, CsrKey, Exit, ImportArguments, ListArguments};
use crate::file::ConfigFile;
use crate::paint::{Paint, Tint};
use crate::table::{Cell, Table};

/// Only its user may read it.
const SECRET_MODE: u32 = 0o600;
/// Its group, too.
const GROUP_SECRET_MODE: u32 = 0o640;
const PUBLIC_MODE: u32 = 0o644;
/// As long before the end as authorities renew.
const RENEW_DAYS: i64 = 21;

pub(crate) fn cert(command: &CertCommand) -> Result<Exit> {
    match command {
        CertCommand::Import(arguments) => import(arguments),
        CertCommand::Csr(arguments) => csr(arguments),
        CertCommand::List(arguments) => list(arguments),
    }
}

/// What `import --json` prints.
#[derive(Serialize)]
struct Imported<'a> {
    certificate: &'a Path,
    key: &'a Path,
    names: &'a [String],
    certificates: usize,
    missing_issuer: Option<&'a str>,
}

/// Takes a PFX or PEM file apart into a chain and a key, as the configuration names them.
fn import(arguments: &ImportArguments) -> Result<Exit> {
    let files = IdentityFiles {
        certificate: arguments.file.clone(),
        key: arguments.key.clone(),
        chain: arguments.chain.clone(),
        password: arguments.password_file.clone(),
    };
    let material = files.read()?;
    let identity = Identity::of(&material, &files, Provider::default())?;
    let chain = &identity.certified_key().cert;
    let (certificate, key) = (with_ending(&arguments.out, "pem"), with_ending(&arguments.out, "key"));
    refuse_to_replace([&certificate, &key], arguments.force)?;
    write(&key, material.key_pem().as_bytes(), SECRET_MODE)?;
    write(&certificate, IdentityMaterial::certificates_pem(chain).as_bytes(), PUBLIC_MODE)?;

    let missing_issuer = match identity.chain() {
        Chain::EndsBelow { issuer } if chain.len() == 1 => Some(issuer.as_str()),
        Chain::EndsBelow { .. } | Chain::Rooted => None,
    };
    let mut out = io::stdout().lock();
    if arguments.json {
        let imported = Imported {
            certificate: &certificate,
            key: &key,
            names: identity.names(),
            certificates: chain.len(),
            missing_issuer,
        };
        serde_json::to_writer_pretty(&mut out, &imported)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}, {}", identity.names().join(", "), key_kind(identity.key_kind()))?;
        writeln!(out, "\n[[service.tls.certificate]]")?;
        writeln!(out, "file = {:?}", certificate.display().to_string())?;
        writeln!(out, "key = {:?}", key.display().to_string())?;
    }
    if let Some(issuer) = missing_issuer {
        eprintln!("warning: the certificate of the issuer ({issuer}) is missing; give its file by --chain");
    }
    Ok(Exit::Done)
}

/// Makes a key and the request for a certificate to it.
fn csr(arguments: &CsrArguments) -> Result<Exit> {
    let (request, key_path) = (with_ending(&arguments.out, "csr"), with_ending(&arguments.out, "key"));
    refuse_to_replace([&request, &key_path], arguments.force)?;
    let algorithm: &SignatureAlgorithm = match arguments.key {
        CsrKey::EcdsaP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        CsrKey::EcdsaP384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        CsrKey::Rsa2048 | CsrKey::Rsa3072 | CsrKey::Rsa4096 => &rcgen::PKCS_RSA_SHA256,
    };
    let key = match arguments.key {
        CsrKey::EcdsaP256 | CsrKey::EcdsaP384 => KeyPair::generate_for(algorithm),
        CsrKey::Rsa2048 => KeyPair::generate_rsa_for(algorithm, RsaKeySize::_2048),
        CsrKey::Rsa3072 => KeyPair::generate_rsa_for(algorithm, RsaKeySize::_3072),
        CsrKey::Rsa4096 => KeyPair::generate_rsa_for(algorithm, RsaKeySize::_4096),
    };
    let key = key.context("cannot make a key")?;
    let mut params = CertificateParams::new(arguments.name.clone()).context("a name is none of a host")?;
    params.distinguished_name = DistinguishedName::new();
    if let Some(first) = arguments.name.first() {
        params.distinguished_name.push(DnType::CommonName, first);
    }
    if let Some(organisation) = &arguments.organisation {
        params.distinguished_name.push(DnType::OrganizationName, organisation);
    }
    let text = params.serialize_request(&key).and_then(|request| request.pem()).context("cannot write the request")?;
    write(&key_path, zeroize::Zeroizing::new(key.serialize_pem()).as_bytes(), SECRET_MODE)?;
    write(&request, text.as_bytes(), PUBLIC_MODE)?;
    let mut out = io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &serde_json::json!({ "request": request, "key": key_path }))?;
        writeln!(out)?;
    } else {
        writeln!(out, "request  {}", request.display())?;
        writeln!(out, "key      {}   (keep it; nobody else needs it)", key_path.display())?;
    }
    Ok(Exit::Done)
}

/// One certificate of the configuration.
#[derive(Debug, Serialize)]
struct Listed {
    file: PathBuf,
    services: Vec<String>,
    names: Vec<String>,
    key: Option<String>,
    /// Whole days, below 0 when it has ended.
    days_left: Option<i64>,
    not_after_s: Option<i64>,
    sha256: Option<String>,
    error: Option<String>,
}

/// Shows the certificates that the configuration names.
fn list(arguments: &ListArguments) -> Result<Exit> {
    let file = ConfigFile::read(&arguments.config)?;
    let checked = towpath_config::check(&file.name, &file.text);
    let Some(model) = &checked.model else {
        bail!("{} has errors; see `towpath check {}`", file.name, file.name);
    };
    let listed = listed(model, &Certificates::gather(model));
    let stdout = io::stdout();
    let paint = Paint::on(&stdout);
    let mut out = stdout.lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &listed)?;
        writeln!(out)?;
    } else if listed.is_empty() {
        writeln!(out, "{}: no service ends TLS", file.name)?;
    } else {
        write!(out, "{}", render(&listed, paint))?;
    }
    let is_bad = |listed: &Listed| listed.error.is_some();
    Ok(if listed.iter().any(is_bad) { Exit::ConfigErrors } else { Exit::Done })
}

fn listed(model: &Model, certificates: &Certificates) -> Vec<Listed> {
    let mut order: Vec<(&CertificateFiles, Vec<String>)> = Vec::new();
    for service in &model.services {
        let Some(tls) = service.ended_tls() else { continue };
        for files in tls.certificates.iter().chain(&tls.servers.identity) {
            match order.iter_mut().find(|(known, _)| *known == files) {
                Some((_, services)) if services.last() == Some(&service.name) => {}
                Some((_, services)) => services.push(service.name.clone()),
                None => order.push((files, vec![service.name.clone()])),
            }
        }
    }
    let one = |(files, services): (&CertificateFiles, Vec<String>)| {
        let file = files.file.clone();
        let nothing = Listed {
            file,
            services,
            names: Vec::new(),
            key: None,
            days_left: None,
            not_after_s: None,
            sha256: None,
            error: None,
        };
        match certificates.read.get(files).map(|read| &read.identity) {
            None => nothing,
            Some(Err(error)) => Listed { error: Some(error.to_string()), ..nothing },
            Some(Ok(identity)) => Listed {
                names: identity.names().to_vec(),
                key: Some(key_kind(identity.key_kind())),
                days_left: Some(days_left(identity.validity(certificates.now_s))),
                not_after_s: Some(identity.not_after_s()),
                sha256: Some(identity.fingerprint().iter().map(|byte| format!("{byte:02x}")).collect()),
                ..nothing
            },
        }
    };
    order.into_iter().map(one).collect()
}

fn days_left(validity: Validity) -> i64 {
    let days = |s: u64| i64::try_from(s / 86_400).unwrap_or(i64::MAX);
    match validity {
        Validity::Expired { since_s } => -1 - days(since_s),
        Validity::NotYet { .. } => 0,
        Validity::Valid { for_s } => days(for_s),
    }
}

fn render(listed: &[Listed], paint: Paint) -> String {
    let mut table = Table::new([
        Cell::word("FILE"),
        Cell::word("KEY"),
        Cell::figure("DAYS LEFT"),
        Cell::word("SERVICES"),
        Cell::word("NAMES"),
    ]);
    for one in listed {
        let days = one.days_left.map_or_else(String::new, |days| days.to_string());
        let days = Cell::figure(days);
        table.row([
            Cell::word(one.file.display().to_string()),
            Cell::word(one.key.clone().unwrap_or_default()),
            match one.days_left {
                Some(left) if left < 0 => days.tinted(Tint::Red),
                Some(left) if left < RENEW_DAYS => days.tinted(Tint::Yellow),
                _ => days,
            },
            Cell::word(one.services.join(", ")),
            Cell::word(one.names.join(", ")),
        ]);
    }
    let errors = listed.iter().filter_map(|one| one.error.as_ref());
    let errors: String = errors.map(|error| format!("{}: {error}\n", paint.tint(Tint::Red, "error"))).collect();
    table.render(0, paint) + &errors
}

fn key_kind(kind: KeyKind) -> String {
    match kind {
        KeyKind::Ecdsa(Curve::P256) => "ECDSA P-256".to_owned(),
        KeyKind::Ecdsa(Curve::P384) => "ECDSA P-384".to_owned(),
        KeyKind::Ecdsa(Curve::P521) => "ECDSA P-521".to_owned(),
        KeyKind::Ed25519 => "Ed25519".to_owned(),
        KeyKind::Rsa { bits } => format!("RSA {bits}"),
    }
}

/// `mail.example` and `pem` make `mail.example.pem`.
fn with_ending(out: &Path, ending: &str) -> PathBuf {
    let mut path = out.as_os_str().to_owned();
    path.push(".");
    path.push(ending);
    PathBuf::from(path)
}

fn refuse_to_replace(paths: [&PathBuf; 2], force: bool) -> Result<()> {
    match paths.into_iter().find(|path| !force && path.exists()) {
        Some(path) => bail!("{} is there already; name another by --out, or replace it by --force", path.display()),
        None => Ok(()),
    }
}

/// Writes a file that nobody has read before it has its mode, in one step: whoever reads it has the old or the new one.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let next = with_ending(path, "new");
    let mode = if mode == SECRET_MODE && hands_its_group_on(path) { GROUP_SECRET_MODE } else { mode };
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(SECRET_MODE).open(&next)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&next, path)
    })();
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Whether files made beside this one belong to a group that the folder says, as in `/etc/towpath` of the package, whose daemon reads keys by its group.
fn hands_its_group_on(path: &Path) -> bool {
    const SET_GROUP: u32 = 0o2000;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::metadata(folder).is_ok_and(|folder| folder.mode() & SET_GROUP != 0 && folder.gid() != 0)
}
