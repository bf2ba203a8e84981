//! `towpath cert`, and what `check --host` says about certificates, with the real program and files of the real OpenSSL (T-37).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A folder where files are made.
struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).expect("our own folder");
        self.path(name)
    }

    fn towpath(&self, arguments: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_towpath"));
        command.current_dir(self.0.path()).args(arguments.split_whitespace()).output().expect("the program runs")
    }

    fn openssl(&self, arguments: &str) -> Output {
        let mut command = Command::new("openssl");
        let done = command.current_dir(self.0.path()).args(arguments.split_whitespace()).output();
        let done = done.expect("openssl is there");
        assert!(done.status.success(), "{arguments}: {}", text(&done.stderr));
        done
    }

    /// A self-signed certificate NAME.pem with NAME.key.
    fn certificate(&self, name: &str, host: &str, days: i32) {
        self.openssl(&format!(
            "req -x509 -newkey rsa:2048 -nodes -subj /CN={host} -addext subjectAltName=DNS:{host} -days {days} \
             -keyout {name}.key -out {name}.pem"
        ));
        self.mode(&format!("{name}.key"), 0o600);
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).expect("our own file");
    }

    /// A file with a service for each of these tables of TLS.
    fn config(&self, certificates: &[&str]) -> PathBuf {
        let service = |(place, certificate): (usize, &&str)| {
            let port = 4430 + place;
            format!(
                "[[service]]\nname = \"s{place}\"\nvip = \"127.0.0.1\"\nports = [{port}]\ntls.mode = \"terminate\"\n\
                 [[service.tls.certificate]]\n{certificate}\n\
                 [[service.server]]\nname = \"one\"\naddress = \"127.0.0.2\"\nport = 8081\n"
            )
        };
        self.write("towpath.toml", &certificates.iter().enumerate().map(service).collect::<String>())
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it was written").permissions().mode() & 0o777
}

#[test]
fn keys_are_for_the_group_that_a_folder_hands_on() {
    let folder = Folder::new();
    // Who is not root has a group of its own, and may give its folder no other.
    let _is_root = std::os::unix::fs::chown(folder.0.path(), None, Some(65_534));
    for (of_folder, of_key) in [(0o755, 0o600), (0o2755, 0o640)] {
        fs::set_permissions(folder.0.path(), fs::Permissions::from_mode(of_folder)).expect("our own folder");
        let done = folder.towpath("cert csr --name mail.example.org --key ecdsa-p256 --out mail --force");
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
        assert_eq!((mode(&folder.path("mail.key")), mode(&folder.path("mail.csr"))), (of_key, 0o644));
    }
}

#[test]
#[ignore = "needs the Debian package openssl"]
fn t_37_a_pfx_of_an_old_windows_becomes_pem_that_the_configuration_names() {
    let folder = Folder::new();
    folder.certificate("mail", "mail.example.org", 100);
    folder.write("secret.txt", "geheim\n");
    folder.openssl("pkcs12 -export -legacy -in mail.pem -inkey mail.key -passout file:secret.txt -out mail.pfx");
    let done = folder.towpath("cert import mail.pfx --password-file secret.txt --out taken");
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let said = text(&done.stdout);
    assert!(said.contains("file = \"taken.pem\"") && said.contains("mail.example.org, RSA 2048"), "{said}");
    assert_eq!((mode(&folder.path("taken.key")), mode(&folder.path("taken.pem"))), (0o600, 0o644));
    assert_eq!(fs::read(folder.path("taken.pem")).unwrap(), fs::read(folder.path("mail.pem")).unwrap());
    let modulus = |arguments: &str| folder.openssl(arguments).stdout;
    assert_eq!(modulus("rsa -noout -modulus -in taken.key"), modulus("x509 -noout -modulus -in mail.pem"));

    // Nothing is replaced unasked, and nothing is half written.
    let again = folder.towpath("cert import mail.pfx --password-file secret.txt --out taken");
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("taken.pem is there already"), "{}", text(&again.stderr));
    let json = folder.towpath("cert import mail.pfx --password-file secret.txt --out taken --force --json");
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!((&json["certificate"], &json["certificates"]), (&"taken.pem".into(), &1.into()));

    folder.openssl("pkcs12 -export -in mail.pem -nokeys -passout file:secret.txt -out bare.pfx");
    let refused = folder.towpath("cert import bare.pfx --password-file secret.txt --out bare");
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("no private key"), "{}", text(&refused.stderr));
    assert!(!folder.path("bare.pem").exists() && !folder.path("bare.key").exists());
}

#[test]
#[ignore = "needs the Debian package openssl"]
fn a_request_is_what_an_authority_takes() {
    let folder = Folder::new();
    for kind in ["rsa-2048", "ecdsa-p256"] {
        let names = "--name mail.example.org --name autodiscover.example.org --organisation Example";
        let done = folder.towpath(&format!("cert csr {names} --key {kind} --out {kind}"));
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
        assert_eq!(mode(&folder.path(&format!("{kind}.key"))), 0o600);
        let shown = folder.openssl(&format!("req -in {kind}.csr -verify -noout -text"));
        let shown = text(&shown.stdout);
        for part in ["CN = mail.example.org", "DNS:mail.example.org, DNS:autodiscover.example.org", "O = Example"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
}

#[test]
#[ignore = "needs the Debian package openssl"]
fn certificates_of_a_configuration_are_listed_with_their_days() {
    let folder = Folder::new();
    folder.certificate("one", "one.example.org", 100);
    folder.certificate("two", "two.example.org", 10);
    let two = "file = \"two.pem\"\nkey = \"two.key\"";
    folder.config(&["file = \"one.pem\"\nkey = \"one.key\"", two, two, "file = \"absent.pem\""]);
    let shown = folder.towpath("cert list -c towpath.toml --json");
    assert_eq!(shown.status.code(), Some(3), "one is missing");
    let listed: serde_json::Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    let listed = listed.as_array().expect("a list");
    assert_eq!(listed.len(), 3);
    assert_eq!((&listed[0]["names"][0], &listed[0]["key"]), (&"one.example.org".into(), &"RSA 2048".into()));
    assert!(matches!(listed[0]["days_left"].as_i64(), Some(99 | 100)), "{listed:?}");
    assert_eq!(listed[1]["services"], serde_json::json!(["s1", "s2"]));
    assert!(listed[2]["error"].as_str().is_some_and(|error| error.contains("absent.pem")), "{listed:?}");
    let table = text(&folder.towpath("cert list -c towpath.toml").stdout);
    assert!(table.contains("two.pem") && table.contains("s1, s2"), "{table}");
}

#[test]
#[ignore = "needs the Debian package openssl"]
fn t_37_check_host_shows_what_is_wrong_with_certificates_at_the_key_that_names_them() {
    let folder = Folder::new();
    folder.certificate("good", "good.example.org", 100);
    folder.certificate("soon", "soon.example.org", 5);
    folder.certificate("other", "other.example.org", 100);
    folder.mode("soon.key", 0o644);
    let config = folder.config(&[
        "file = \"good.pem\"\nkey = \"good.key\"",
        "file = \"soon.pem\"\nkey = \"soon.key\"",
        "file = \"good.pem\"\nkey = \"other.key\"",
        "file = \"good.pem\"\nkey = \"good.key\"\n[[service.tls.certificate]]\nfile = \"copy.pem\"\nkey = \"copy.key\"",
    ]);
    for ending in ["pem", "key"] {
        fs::copy(folder.path(&format!("good.{ending}")), folder.path(&format!("copy.{ending}")))
            .expect("our own folder");
    }
    let done = folder.towpath("check --host towpath.toml");
    let said = text(&done.stdout);
    assert_eq!(done.status.code(), Some(3), "{said}");
    let written = fs::read_to_string(config).expect("written before");
    let line = |part: &str| 1 + written.lines().position(|line| line.contains(part)).expect("it is there");
    let expected = [
        (line("soon.pem"), "warning[certificates]: soon.pem: the certificate for soon.example.org ends in"),
        (line("soon.key"), "warning[certificates]: soon.key: every user of this machine can read the secret in it"),
        (line("other.key"), "error[certificates]: other.key: this private key belongs to no certificate of good.pem"),
        (line("copy.pem"), "warning[certificates]: copy.pem: no client is sent this certificate"),
    ];
    for (line, message) in expected {
        let place = said.find(message).unwrap_or_else(|| panic!("{message} is missing in\n{said}"));
        let shown = said[place..].lines().nth(1).unwrap_or_default();
        assert!(shown.contains(&format!("towpath.toml:{line}:")), "{message} at {line}: {shown}");
    }
    let json = folder.towpath("check --host --json towpath.toml");
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let host = json["host"].as_array().expect("findings");
    assert!(
        host.iter().any(|finding| finding["check"] == "certificates" && finding["file"] == "other.key"),
        "{host:?}"
    );
}
