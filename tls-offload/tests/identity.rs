//! Certificates and keys as operators bring them: right, mixed up, out of date, damaged.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize, SignatureAlgorithm,
    date_time_ymd,
};
use tempfile::TempDir;
use towpath_tls::{Chain, Curve, Identity, IdentityError, IdentityFiles, KeyKind, Provider, Validity};

/// A folder with certificates and keys.
struct Folder {
    folder: TempDir,
}

impl Folder {
    fn new() -> Folder {
        Folder { folder: tempfile::tempdir().expect("a folder for files") }
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).expect("a file in our own folder");
        path
    }
}

fn key(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).expect("a key")
}

fn params(subject: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name.push(DnType::CommonName, subject);
    params.not_before = date_time_ymd(2024, 1, 1);
    params.not_after = date_time_ymd(2025, 1, 1);
    params
}

fn authority(subject: &str) -> CertificateParams {
    let mut params = params(subject, &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn self_signed(key: &KeyPair) -> String {
    params("mail", &["mail.example.com", "*.example.com", "192.0.2.7", "2001:db8::7"])
        .self_signed(key)
        .expect("a certificate")
        .pem()
}

fn load(chain: &Path, key: &Path) -> Result<Identity, IdentityError> {
    Identity::load(chain, key, Provider::default())
}

fn refusal(chain: &Path, key: &Path) -> IdentityError {
    load(chain, key).expect_err("these files make no identity")
}

#[test]
fn a_matching_pair_shows_names_dates_and_key_kind_with_both_providers() {
    let files = Folder::new();
    let kinds = [
        (key(&PKCS_ECDSA_P256_SHA256), KeyKind::Ecdsa(Curve::P256)),
        (key(&PKCS_ECDSA_P384_SHA384), KeyKind::Ecdsa(Curve::P384)),
        (key(&PKCS_ED25519), KeyKind::Ed25519),
        (key(&PKCS_RSA_SHA256), KeyKind::Rsa { bits: 2048 }),
        (KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_3072).expect("a key"), KeyKind::Rsa { bits: 3072 }),
    ];
    for (key, kind) in kinds {
        let chain_path = files.write("chain.pem", self_signed(&key));
        let key_path = files.write("key.pem", key.serialize_pem());
        for provider in [Provider::AwsLcRs, Provider::Ring] {
            let identity = Identity::load(&chain_path, &key_path, provider).expect("a matching pair");
            assert_eq!(identity.key_kind(), kind);
            assert_eq!(identity.names(), ["mail.example.com", "*.example.com", "192.0.2.7", "2001:db8::7"]);
            assert_eq!(identity.not_before_s(), 1_704_067_200);
            assert_eq!(identity.not_after_s(), 1_735_689_600);
            assert_eq!(identity.chain(), &Chain::Rooted);
            assert_eq!(identity.certified_key().cert.len(), 1);
        }
    }
}

#[test]
fn a_p521_key_is_for_aws_lc_only_and_ring_says_so() {
    let files = Folder::new();
    let key = key(&PKCS_ECDSA_P521_SHA512);
    let chain_path = files.write("chain.pem", self_signed(&key));
    let key_path = files.write("key.pem", key.serialize_pem());

    let identity = Identity::load(&chain_path, &key_path, Provider::AwsLcRs).expect("AWS-LC knows P-521");
    assert_eq!(identity.key_kind(), KeyKind::Ecdsa(Curve::P521));

    let error = Identity::load(&chain_path, &key_path, Provider::Ring).expect_err("ring does not");
    assert!(matches!(&error, IdentityError::BadKey { path, .. } if *path == key_path), "{error}");
}

#[test]
fn chain_and_key_may_share_a_file() {
    let files = Folder::new();
    let key = key(&PKCS_ECDSA_P256_SHA256);
    let both = files.write("both.pem", format!("notes\n{}{}", key.serialize_pem(), self_signed(&key)));
    load(&both, &both).expect("both are there");
}

#[test]
fn the_key_of_another_certificate_is_refused_and_both_files_are_named() {
    let files = Folder::new();
    let chain = files.write("chain.pem", self_signed(&key(&PKCS_ECDSA_P256_SHA256)));
    for other in [key(&PKCS_ECDSA_P256_SHA256), key(&PKCS_RSA_SHA256)] {
        let key = files.write("key.pem", other.serialize_pem());
        let error = refusal(&chain, &key);
        assert!(matches!(error, IdentityError::KeyOfAnotherCertificate { .. }), "{error}");
        let text = error.to_string();
        for part in [chain.to_str(), key.to_str(), Some("mail.example.com"), Some("name the key")] {
            let part = part.expect("UTF-8");
            assert!(text.contains(part), "{part:?} is missing in {text}");
        }
    }
}

#[test]
fn a_chain_is_put_in_order_and_tells_what_is_missing() {
    let files = Folder::new();
    let root = CertifiedIssuer::self_signed(authority("Root"), key(&PKCS_ECDSA_P256_SHA256)).expect("a root");
    let middle =
        CertifiedIssuer::signed_by(authority("Middle"), key(&PKCS_ECDSA_P256_SHA256), &root).expect("an issuer");
    let other = CertifiedIssuer::self_signed(authority("Other"), key(&PKCS_ECDSA_P256_SHA256)).expect("a root");
    let stranger = CertifiedIssuer::signed_by(authority("Stranger"), key(&PKCS_ECDSA_P256_SHA256), &other);
    let stranger = stranger.expect("an issuer").pem();
    let key = key(&PKCS_ECDSA_P256_SHA256);
    let leaf = params("mail", &["mail.example.com"]).signed_by(&key, &middle).expect("a leaf").pem();
    let (root, middle) = (root.pem(), middle.pem());
    let key_path = files.write("key.pem", key.serialize_pem());
    let of = |text: String, sent: usize, spare: &[&str]| {
        let identity = load(&files.write("chain.pem", text), &key_path).expect("the leaf is there");
        assert_eq!(identity.names(), ["mail.example.com"]);
        assert_eq!(identity.certified_key().cert.len(), sent);
        assert_eq!(identity.spare(), spare);
        identity.chain().clone()
    };
    let issuer = |name: &str| Chain::EndsBelow { issuer: format!("CN={name}") };

    // Whatever the order; the root is not sent.
    for text in [format!("{leaf}{middle}{root}"), format!("{root}{middle}{leaf}"), format!("{middle}{leaf}{root}")] {
        assert_eq!(of(text, 2, &[]), Chain::Rooted);
    }
    assert_eq!(of(format!("{leaf}{middle}"), 2, &[]), issuer("Root"));
    assert_eq!(of(format!("{middle}{leaf}{middle}"), 2, &[]), issuer("Root"));
    assert_eq!(of(leaf.clone(), 1, &[]), issuer("Middle"));
    assert_eq!(of(format!("{leaf}{root}"), 1, &[]), issuer("Middle"));
    assert_eq!(of(format!("{stranger}{leaf}{middle}"), 2, &["CN=Stranger"]), issuer("Root"));

    // From a file of their own.
    let apart = IdentityFiles {
        certificate: files.write("leaf.pem", &leaf),
        key: Some(key_path.clone()),
        chain: Some(files.write("issuers.pem", format!("{root}{middle}"))),
        password: None,
    };
    let identity = Identity::open(&apart, Provider::default()).expect("all is there");
    assert_eq!((identity.chain(), identity.certified_key().cert.len()), (&Chain::Rooted, 2));
    let without = IdentityFiles { chain: Some(key_path), ..apart };
    let error = Identity::open(&without, Provider::default()).expect_err("a key is no chain");
    assert!(matches!(error, IdentityError::NoCertificate { .. }), "{error}");
}

#[test]
fn of_two_issuers_with_one_name_the_one_with_the_key_is_taken() {
    let files = Folder::new();
    let (old_key, new_key) = (key(&PKCS_ECDSA_P256_SHA256), key(&PKCS_ECDSA_P256_SHA256));
    let root = CertifiedIssuer::self_signed(authority("Root"), key(&PKCS_ECDSA_P256_SHA256)).expect("a root");
    let with_identifiers = || {
        let mut params = authority("Middle");
        params.use_authority_key_identifier_extension = true;
        params
    };
    let old = CertifiedIssuer::signed_by(with_identifiers(), old_key, &root).expect("an issuer");
    let new = CertifiedIssuer::signed_by(with_identifiers(), new_key, &root).expect("an issuer");
    let key = key(&PKCS_ECDSA_P256_SHA256);
    let mut params = params("mail", &["mail.example.com"]);
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(&key, &new).expect("a leaf").pem();
    let chain = files.write("chain.pem", format!("{leaf}{}{}", old.pem(), new.pem()));
    let identity = load(&chain, &files.write("key.pem", key.serialize_pem())).expect("the leaf is there");
    assert_eq!(identity.certified_key().cert[1].as_ref(), new.der().as_ref());
    assert_eq!(identity.spare(), ["CN=Middle"]);
}

#[test]
fn validity_is_judged_at_the_second_that_the_caller_names() {
    let files = Folder::new();
    let key = key(&PKCS_ECDSA_P256_SHA256);
    let chain = files.write("chain.pem", self_signed(&key));
    let identity = load(&chain, &files.write("key.pem", key.serialize_pem())).expect("dates are not judged on load");
    let (from, to) = (identity.not_before_s(), identity.not_after_s());

    assert_eq!(identity.validity(from - 3_600), Validity::NotYet { in_s: 3_600 });
    assert_eq!(identity.validity(from), Validity::Valid { for_s: 366 * 86_400 });
    assert_eq!(identity.validity(to), Validity::Valid { for_s: 0 });
    assert_eq!(identity.validity(to + 60), Validity::Expired { since_s: 60 });
    assert!(matches!(identity.validity(i64::MAX), Validity::Expired { .. }));
}

#[test]
fn a_file_without_the_wanted_part_is_named() {
    let files = Folder::new();
    let key = key(&PKCS_ECDSA_P256_SHA256);
    let chain_path = files.write("chain.pem", self_signed(&key));
    let key_path = files.write("key.pem", key.serialize_pem());

    let error = refusal(&chain_path, &chain_path);
    assert!(matches!(&error, IdentityError::NoKey { path } if *path == chain_path), "{error}");
    let error = refusal(&key_path, &key_path);
    assert!(matches!(&error, IdentityError::NoCertificate { path } if *path == key_path), "{error}");
    let absent = files.folder.path().join("absent.pem");
    let error = refusal(&absent, &key_path);
    assert!(matches!(&error, IdentityError::Unreadable { path, .. } if *path == absent), "{error}");
    let error = refusal(&chain_path, &absent);
    assert!(matches!(&error, IdentityError::Unreadable { path, .. } if *path == absent), "{error}");
}

#[test]
fn garbage_is_refused_by_what_it_looks_like() {
    let files = Folder::new();
    let key = key(&PKCS_ECDSA_P256_SHA256);
    let certificate = params("mail", &["mail.example.com"]).self_signed(&key).expect("a certificate");
    let pem = certificate.pem();
    let good_key = files.write("key.pem", key.serialize_pem());
    let half = &pem[..pem.len() / 2];
    let flipped = pem.replacen("MII", "AAA", 1);
    let zeros = vec![0; 1024 * 1024 + 1];

    type Check = fn(&IdentityError) -> bool;
    let cases: [(&str, &[u8], Check); 8] = [
        ("empty", b"", |error| matches!(error, IdentityError::Empty { .. })),
        ("text", b"hello", |error| matches!(error, IdentityError::NotPem { .. })),
        ("bytes", &[0xff, 0x00, 0x7f, 0x80], |error| matches!(error, IdentityError::NotPem { .. })),
        ("DER", certificate.der(), |error| matches!(error, IdentityError::Binary { .. })),
        ("cut off", half.as_bytes(), |error| matches!(error, IdentityError::BrokenPem { .. })),
        ("not base64", b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n", |error| {
            matches!(error, IdentityError::BrokenPem { .. })
        }),
        ("not X.509", flipped.as_bytes(), |error| matches!(error, IdentityError::BadCertificate { place: 1, .. })),
        ("huge", &zeros, |error| matches!(error, IdentityError::TooLarge { .. })),
    ];
    for (name, content, is_right) in cases {
        let chain = files.write("chain.pem", content);
        let error = refusal(&chain, &good_key);
        assert!(is_right(&error), "{name}: {error:?}");
        assert!(error.to_string().contains(chain.to_str().expect("UTF-8")), "{name}: {error}");
    }

    let chain = files.write("chain.pem", &pem);
    let broken_key = files.write("broken.pem", "-----BEGIN PRIVATE KEY-----\nMAAA\n-----END PRIVATE KEY-----\n");
    let error = refusal(&chain, &broken_key);
    assert!(matches!(&error, IdentityError::BadKey { path, .. } if *path == broken_key), "{error}");
}

#[test]
fn an_encrypted_key_is_refused_with_the_way_out() {
    let files = Folder::new();
    let chain = files.write("chain.pem", self_signed(&key(&PKCS_ECDSA_P256_SHA256)));
    for text in [
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMAAA\n-----END RSA PRIVATE KEY-----\n",
    ] {
        let error = refusal(&chain, &files.write("key.pem", text));
        assert!(matches!(error, IdentityError::EncryptedKey { .. }), "{error}");
        assert!(error.to_string().contains("openssl pkey"), "{error}");
    }

    // One that nobody asks for does no harm.
    let own = key(&PKCS_ECDSA_P256_SHA256);
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let chain = files.write("chain.pem", format!("{encrypted}{}", self_signed(&own)));
    load(&chain, &files.write("key.pem", own.serialize_pem())).expect("the key is in its own file");
}
