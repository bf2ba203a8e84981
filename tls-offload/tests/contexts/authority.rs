//! An authority of our own, and the identities that it vouches for.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256,
    RevocationReason, RevokedCertParams, SerialNumber, SignatureAlgorithm, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use tempfile::TempDir;
use towpath_tls::{
    CipherPolicy, ClientCertificates, ClientSettings, ClientTrust, Identity, MinVersion, Provider, Resumption,
    ServedIdentity, ServerSettings, ServerVerification,
};

/// Kinds of key that tests use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    P256,
    Rsa,
}

impl Key {
    fn algorithm(self) -> &'static SignatureAlgorithm {
        match self {
            Key::P256 => &PKCS_ECDSA_P256_SHA256,
            Key::Rsa => &PKCS_RSA_SHA256,
        }
    }
}

/// An authority with a folder for files.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// A chain and its key, in files.
pub(crate) struct Issued {
    pub(crate) identity: Arc<Identity>,
    pub(crate) chain_path: PathBuf,
    pub(crate) key_path: PathBuf,
    pub(crate) serial: u64,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        Authority {
            issuer: CertifiedIssuer::self_signed(params, key).expect("an authority"),
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate()).expect("an authority");
        roots
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).expect("a file");
        path
    }

    pub(crate) fn pem_path(&self) -> PathBuf {
        self.write("authority.pem", self.issuer.pem())
    }

    pub(crate) fn issue(&self, names: &[&str], key: Key) -> Issued {
        self.issue_until(names, key, 2100)
    }

    /// Valid from 2024 until the first day of `year`.
    pub(crate) fn issue_until(&self, names: &[&str], key: Key, year: i32) -> Issued {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, "issued");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (date_time_ymd(2024, 1, 1), date_time_ymd(year, 1, 1));
        let serial = std::fs::read_dir(self.folder.path()).expect("our folder").count() as u64 + 1;
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate_for(key.algorithm()).expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let chain_path = self.write(&format!("{serial}.pem"), certificate.pem());
        let key_path = self.write(&format!("{serial}.key"), key.serialize_pem());
        let identity = Identity::load(&chain_path, &key_path, Provider::default()).expect("an identity");
        Issued { identity: Arc::new(identity), chain_path, key_path, serial }
    }

    /// A list with these serial numbers.
    pub(crate) fn revoke(&self, serials: &[u64]) -> CertificateRevocationListDer<'static> {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2024, 2, 1),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 2, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("a list").der().clone()
    }

    pub(crate) fn trust(&self, revoked: &[u64]) -> ClientTrust {
        let revocations = if revoked.is_empty() { Vec::new() } else { vec![self.revoke(revoked)] };
        ClientTrust { authorities: vec![self.certificate()], revocations }
    }
}

/// Settings of a service with these certificates and everything else as it is by default.
pub(crate) fn server_settings(identities: &[&Issued]) -> ServerSettings {
    let served = |issued: &&Issued| ServedIdentity { identity: Arc::clone(&issued.identity), staple: None };
    ServerSettings {
        service: "owa".to_owned(),
        provider: Provider::default(),
        identities: identities.iter().map(served).collect(),
        min_version: MinVersion::default(),
        ciphers: CipherPolicy::default(),
        post_quantum: true,
        alpn: Vec::new(),
        strict_sni: false,
        resumption: Resumption::Off,
        client_certificates: ClientCertificates::None,
    }
}

/// Settings towards a real server that is not judged.
pub(crate) fn client_settings() -> ClientSettings {
    ClientSettings {
        provider: Provider::default(),
        min_version: MinVersion::default(),
        ciphers: CipherPolicy::default(),
        post_quantum: false,
        verification: ServerVerification::None,
        server_name: None,
        identity: None,
        sessions_max: 0,
    }
}
