//! The forms in which keys and certificates leave Windows and OpenSSL: PFX with and without a key, old and new ciphers, keys behind passwords (T-37).

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256,
    PKCS_RSA_SHA256,
};
use tempfile::TempDir;
use towpath_tls::{Chain, Identity, IdentityError, IdentityFiles, IdentityMaterial, Provider};

const PASSWORD: &str = "correct horse \u{fc}";

/// A leaf with its two issuers, made once per test.
struct Issued {
    folder: TempDir,
    leaf: PathBuf,
    key: PathBuf,
    issuers: PathBuf,
    password: PathBuf,
}

impl Issued {
    fn new() -> Issued {
        let folder = tempfile::tempdir().expect("a folder");
        let authority = |name: &str| {
            let mut params = CertificateParams::new(Vec::new()).expect("no names");
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
        };
        let new_key = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let root = CertifiedIssuer::self_signed(authority("Root"), new_key()).expect("a root");
        let middle = CertifiedIssuer::signed_by(authority("Middle"), new_key(), &root).expect("an issuer");
        let own = KeyPair::generate_for(&PKCS_RSA_SHA256).expect("a key");
        let params = CertificateParams::new(vec!["mail.example.com".to_owned()]).expect("a name");
        let leaf = params.signed_by(&own, &middle).expect("a leaf");
        let write = |name: &str, text: String| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("our own folder");
            path
        };
        Issued {
            leaf: write("leaf.pem", leaf.pem()),
            key: write("key.pem", own.serialize_pem()),
            issuers: write("issuers.pem", root.pem() + &middle.pem()),
            password: write("password.txt", format!("{PASSWORD}\nnot this line\n")),
            folder,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `openssl` with these arguments, which write to a file of this name.
    fn openssl(&self, arguments: &str, name: &str) -> PathBuf {
        let out = self.path(name);
        let mut command = Command::new("openssl");
        for argument in arguments.split_whitespace() {
            command.arg(match argument {
                "LEAF" => self.leaf.as_os_str(),
                "KEY" => self.key.as_os_str(),
                "ISSUERS" => self.issuers.as_os_str(),
                "PASSWORD" => std::ffi::OsStr::new(Box::leak(format!("pass:{PASSWORD}").into_boxed_str())),
                other => std::ffi::OsStr::new(other),
            });
        }
        let done = command.arg("-out").arg(&out).output().expect("openssl is there");
        assert!(done.status.success(), "{arguments}: {}", String::from_utf8_lossy(&done.stderr));
        out
    }

    fn open(&self, certificate: &Path, password: Option<&Path>) -> Result<Identity, IdentityError> {
        let files = IdentityFiles {
            certificate: certificate.to_path_buf(),
            password: password.map(Path::to_path_buf),
            ..IdentityFiles::default()
        };
        Identity::open(&files, Provider::default())
    }

    fn with_key(&self, key: &Path, password: Option<&Path>) -> Result<Identity, IdentityError> {
        let files = IdentityFiles {
            certificate: self.leaf.clone(),
            key: Some(key.to_path_buf()),
            chain: Some(self.issuers.clone()),
            password: password.map(Path::to_path_buf),
        };
        Identity::open(&files, Provider::default())
    }
}

#[test]
#[ignore = "needs the Debian package openssl"]
fn t_37_pfx_files_of_every_common_form_are_opened() {
    let issued = Issued::new();
    let export = "pkcs12 -export -in LEAF -inkey KEY -certfile ISSUERS -passout PASSWORD";
    let forms = [
        // PBES2, as Windows Server 2019 and OpenSSL 3 write it.
        "",
        "-macalg sha512 -iter 5000",
        // RC2 with 40 bits for certificates, 3DES for the key: Windows before that.
        "-legacy",
        "-legacy -descert -macalg sha1",
        "-certpbe PBE-SHA1-3DES -keypbe PBE-SHA1-3DES -macalg sha1",
        "-certpbe AES-128-CBC -keypbe AES-256-CBC",
        "-certpbe NONE",
        "-name webmail",
    ];
    for form in forms {
        let pfx = issued.openssl(&format!("{export} {form}"), "mail.pfx");
        let identity = issued.open(&pfx, Some(&issued.password)).unwrap_or_else(|error| panic!("{form}: {error}"));
        assert_eq!(identity.names(), ["mail.example.com"], "{form}");
        assert_eq!((identity.chain(), identity.certified_key().cert.len()), (&Chain::Rooted, 2), "{form}");

        let wrong = issued.path("wrong.txt");
        std::fs::write(&wrong, "wrong").expect("our own folder");
        let error = issued.open(&pfx, Some(&wrong)).expect_err("another password");
        assert!(matches!(error, IdentityError::WrongPassword { .. }), "{form}: {error}");
        assert_eq!(error.path(), wrong);
        let error = issued.open(&pfx, None).expect_err("no password");
        assert!(matches!(error, IdentityError::EncryptedKey { .. }), "{form}: {error}");
    }
    let open = issued.openssl("pkcs12 -export -in LEAF -inkey KEY -passout pass:", "open.pfx");
    let identity = issued.open(&open, None).expect("its password is empty");
    assert_eq!(identity.chain(), &Chain::EndsBelow { issuer: "CN=Middle".to_owned() });
}

#[test]
#[ignore = "needs the Debian package openssl"]
fn t_37_a_pfx_without_its_key_is_told_and_may_have_it_beside() {
    let issued = Issued::new();
    let pfx = issued.openssl("pkcs12 -export -in LEAF -certfile ISSUERS -nokeys -passout PASSWORD", "mail.pfx");
    let error = issued.open(&pfx, Some(&issued.password)).expect_err("there is no key");
    assert!(matches!(&error, IdentityError::NoKeyInPfx { path } if *path == pfx), "{error}");
    assert!(error.to_string().contains("export the private key"), "{error}");
    let files = IdentityFiles {
        certificate: pfx,
        key: Some(issued.key.clone()),
        password: Some(issued.password.clone()),
        chain: None,
    };
    Identity::open(&files, Provider::Ring).expect("the key is beside");
}

#[test]
#[ignore = "needs the Debian package openssl"]
fn damaged_pfx_files_are_told() {
    let issued = Issued::new();
    let pfx = issued.openssl("pkcs12 -export -in LEAF -inkey KEY -passout PASSWORD", "mail.pfx");
    let bytes = std::fs::read(&pfx).expect("written before");
    for end in [20, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&pfx, &bytes[..end]).expect("our own folder");
        let error = issued.open(&pfx, Some(&issued.password)).expect_err("half a file");
        assert!(matches!(error, IdentityError::BadPfx { .. }), "{end}: {error}");
    }
    // No byte makes it a surprise.
    for place in (0..bytes.len()).step_by(61) {
        let mut damaged = bytes.clone();
        damaged[place] ^= 0x55;
        std::fs::write(&pfx, damaged).expect("our own folder");
        let _ = issued.open(&pfx, Some(&issued.password));
    }
}

#[test]
#[ignore = "needs the Debian package openssl"]
fn keys_behind_a_password_are_opened() {
    let issued = Issued::new();
    for form in ["-v2 aes-256-cbc", "-v2 aes-128-cbc -v2prf hmacWithSHA1", "-v2 des3", "-scrypt -scrypt_N 1024"] {
        let key = issued.openssl(&format!("pkcs8 -topk8 -in KEY -passout PASSWORD {form}"), "encrypted.pem");
        let identity = issued.with_key(&key, Some(&issued.password)).unwrap_or_else(|error| panic!("{form}: {error}"));
        assert_eq!(identity.names(), ["mail.example.com"]);
        let error = issued.with_key(&key, None).expect_err("no password");
        assert!(matches!(&error, IdentityError::EncryptedKey { path } if *path == key), "{form}: {error}");
        assert!(error.to_string().contains("password_file"), "{error}");
        let wrong = issued.path("wrong.txt");
        std::fs::write(&wrong, "wrong\r\n").expect("our own folder");
        let error = issued.with_key(&key, Some(&wrong)).expect_err("another password");
        assert!(matches!(error, IdentityError::WrongPassword { .. }), "{form}: {error}");
    }
    let old = issued.openssl("rsa -in KEY -aes256 -traditional -passout PASSWORD", "old.pem");
    let error = issued.with_key(&old, Some(&issued.password)).expect_err("nobody reads that");
    assert!(matches!(&error, IdentityError::OldEncryption { path, .. } if *path == old), "{error}");
    std::fs::write(&issued.password, [0xff, 0xfe]).expect("our own folder");
    let error = issued.with_key(&old, Some(&issued.password)).expect_err("no text");
    assert!(matches!(error, IdentityError::PasswordNotText { .. }), "{error}");
}

#[test]
#[ignore = "needs the Debian package openssl"]
fn what_is_written_anew_is_the_same_identity() {
    let issued = Issued::new();
    let pfx =
        issued.openssl("pkcs12 -export -legacy -in LEAF -inkey KEY -certfile ISSUERS -passout PASSWORD", "mail.pfx");
    let files = IdentityFiles { certificate: pfx, password: Some(issued.password.clone()), ..IdentityFiles::default() };
    let material = files.read().expect("it opens");
    let identity = Identity::of(&material, &files, Provider::default()).expect("it is one");
    let chain = issued.path("chain.pem");
    std::fs::write(&chain, IdentityMaterial::certificates_pem(&identity.certified_key().cert)).expect("our own folder");
    let key = issued.path("written.pem");
    std::fs::write(&key, material.key_pem().as_str()).expect("our own folder");
    let again = Identity::load(&chain, &key, Provider::default()).expect("it is one");
    assert_eq!(again.certified_key().cert, identity.certified_key().cert);
    assert_eq!(again.fingerprint(), identity.fingerprint());

    let shown = Command::new("openssl")
        .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
        .arg(&issued.leaf)
        .output()
        .expect("openssl is there");
    let shown = String::from_utf8(shown.stdout).expect("text");
    let sum: Vec<String> = identity.fingerprint().iter().map(|byte| format!("{byte:02X}")).collect();
    assert!(shown.trim().ends_with(&sum.join(":")), "{shown}");
    // The key is never shown.
    assert_eq!(format!("{material:?}"), "IdentityMaterial { certificates: 3, .. }");
}

#[test]
fn files_with_secrets_that_others_may_read_are_named() {
    let issued = Issued::new();
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("our own file");
    };
    let files = IdentityFiles {
        certificate: issued.leaf.clone(),
        key: Some(issued.key.clone()),
        chain: None,
        password: Some(issued.password.clone()),
    };
    mode(&issued.leaf, 0o644);
    mode(&issued.key, 0o640);
    mode(&issued.password, 0o600);
    assert!(files.exposed().is_empty());
    mode(&issued.key, 0o644);
    mode(&issued.password, 0o604);
    assert_eq!(files.exposed(), [issued.key.as_path(), issued.password.as_path()]);
}
