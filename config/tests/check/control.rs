//! `[control]`: who may ask the daemon from elsewhere, and what the file must not say about it.

use towpath_config::check;
use towpath_config::model::{ControlGroup, ControlRole, Page};

use crate::{expect, service};

fn password() -> String {
    format!("\"pbkdf2-sha512:210000:{}:{}\"", "0a".repeat(16), "0b".repeat(64))
}

fn token() -> String {
    format!("\"sha256:{}\"", "0c".repeat(32))
}

/// `[control]` with these lines and one user with these.
fn with(lines: &str, user: &str) -> String {
    format!("[control]\n{lines}\n[[control.user]]\nname = \"alice\"\nrole = \"admin\"\n{user}\n{}", service("", ""))
}

const LOOPBACK: &str = "listen = \"127.0.0.1:9443\"";
const TLS: &str = "listen = \"192.0.2.1:9443\"\ncertificate = \"/a.pem\"\nprivate_key = \"/a.key\"";

#[test]
fn users_of_the_listener_are_read() {
    let text = with(
        &format!(
            "{TLS}\nclient_ca = \"/ca.pem\"\nclient_crl = \"/crl.pem\"\npage = \"full\"\ngroup = \"wheel\"\nsession_timeout = \"8h\""
        ),
        &format!("password_hash = {}\ntoken_hash = {}\ncertificate_name = \"alice\"", password(), token()),
    );
    expect(&text, &[]);
    let control = check("test.toml", &text).model.expect("no errors").control;
    assert_eq!(control.group, ControlGroup::Named("wheel".to_owned()));
    let listen = control.listen.expect("it is written");
    assert_eq!((listen.page, listen.session_ms, listen.session_idle_ms), (Page::Full, 8 * 3_600_000, 15 * 60_000));
    assert_eq!(listen.client_crl.as_deref(), Some(std::path::Path::new("/crl.pem")));
    let user = &listen.users[0];
    assert_eq!((user.name.as_str(), user.role), ("alice", ControlRole::Admin));
    assert_eq!(user.password.as_ref().map(|hash| (hash.rounds, hash.salt.len())), Some((210_000, 16)));
    assert!(user.token.is_some() && user.certificate_name.as_deref() == Some("alice"));
    let control = check("test.toml", &service("", "")).model.expect("no errors").control;
    assert_eq!((control.group, control.listen), (ControlGroup::IfThere("towpath".to_owned()), None));
    assert!(ControlRole::Viewer < ControlRole::Operator && ControlRole::Operator < ControlRole::Admin);
}

#[test]
fn a_listener_is_never_open_to_whoever_comes() {
    let password = format!("password_hash = {}", password());
    expect(&with(LOOPBACK, &password), &[]);
    expect(&with("listen = \"[::1]:9443\"", &password), &[]);
    expect(&with(TLS, &password), &[]);
    for (address, place) in
        [("192.0.2.1:9443", true), ("0.0.0.0:9443", true), ("[::]:9443", true), ("[2001:db8::1]:9443", true)]
    {
        let quoted = format!("\"{address}\"");
        let wanted: &[(&str, &str)] = if place { &[("needs-tls", &quoted)] } else { &[] };
        expect(&with(&format!("listen = {quoted}"), &password), wanted);
    }
    let nobody = format!("[control]\n{LOOPBACK}\n{}", service("", ""));
    expect(&nobody, &[("missing-key", "listen")]);
    expect(&with(LOOPBACK, ""), &[("missing-key", "[[control.user]]")]);
    expect(&with("listen = \"127.0.0.1:0\"", &password), &[("bad-address", "\"127.0.0.1:0\"")]);
    expect(
        &with("listen = \"224.0.0.1:80\"\ncertificate = \"/a\"\nprivate_key = \"/a\"", &password),
        &[("unusable-address", "\"224.0.0.1:80\"")],
    );
}

#[test]
fn credentials_stand_there_as_hashes_only() {
    let secret = "\"correct horse battery staple\"";
    expect(&with(LOOPBACK, &format!("password_hash = {secret}")), &[("bad-hash", secret)]);
    expect(&with(LOOPBACK, &format!("token_hash = {secret}")), &[("bad-hash", secret)]);
    expect(&with(LOOPBACK, &format!("password_hash = {}", token())), &[("bad-hash", &token())]);
    expect(
        &with(LOOPBACK, &format!("password = {secret}")),
        &[("missing-key", "[[control.user]]"), ("unknown-key", "password")],
    );
    expect(
        &with(LOOPBACK, &format!("token_hash = {}\ntoken_file = \"/t\"", token())),
        &[("conflicting-keys", "token_file")],
    );
    expect(&with(LOOPBACK, "certificate_name = \"alice\""), &[("missing-key", "certificate_name")]);
    expect(&with(TLS, "certificate_name = \"alice\""), &[("missing-key", "certificate_name")]);
}

#[test]
fn what_means_nothing_is_refused() {
    let password = format!("password_hash = {}", password());
    for line in [
        "certificate = \"/a\"",
        "client_ca = \"/a\"",
        "client_crl = \"/a\"",
        "from = [\"192.0.2.0/24\"]",
        "page = \"off\"",
        "private_key = \"/a\"",
        "session_idle_timeout = \"5m\"",
        "session_timeout = \"5h\"",
    ] {
        let key = line.split(' ').next().expect("a key");
        expect(&format!("[control]\n{line}\n{}", service("", "")), &[("no-effect", key)]);
    }
    expect(&with("", &password), &[("no-effect", "user")]);
    expect(
        &with("socket = \"none\"\ngroup = \"wheel\"\nlisten = \"127.0.0.1:9443\"", &password),
        &[("no-effect", "group")],
    );
    expect(&with(&format!("{LOOPBACK}\nprivate_key = \"/a\""), &password), &[("missing-key", "private_key")]);
    expect(&with(&format!("{LOOPBACK}\ncertificate = \"/a\""), &password), &[("missing-key", "certificate")]);
    expect(&with(&format!("{LOOPBACK}\nclient_ca = \"/a\""), &password), &[("missing-key", "client_ca")]);
    expect(&with(&format!("{LOOPBACK}\nclient_crl = \"/a\""), &password), &[("missing-key", "client_crl")]);
    expect(&with(&format!("{TLS}\nclient_crl = \"/a\""), &password), &[("missing-key", "client_crl")]);
    expect(&with(&format!("{TLS}\nclient_crl = 5\nclient_ca = \"/a\""), &password), &[("wrong-type", "5")]);
    expect(
        &with(&format!("{LOOPBACK}\npage = \"full\""), &format!("token_hash = {}", token())),
        &[("no-effect", "\"full\"")],
    );
    expect(&with(&format!("{LOOPBACK}\npage = \"off\""), &format!("token_hash = {}", token())), &[]);
    expect(
        &with(&format!("{LOOPBACK}\nsession_idle_timeout = \"13h\""), &password),
        &[("conflicting-keys", "\"13h\"")],
    );
    expect(
        &with(&format!("{LOOPBACK}\nsession_idle_timeout = \"900ms\""), &password),
        &[("out-of-range", "\"900ms\"")],
    );
    expect(&with(&format!("{LOOPBACK}\npage = \"on\""), &password), &[("unknown-word", "\"on\"")]);
    let twice = format!("{password}\n[[control.user]]\nname = \"alice\"\nrole = \"viewer\"\n{password}");
    expect(&with(LOOPBACK, &twice), &[("duplicate-name", "\"alice\"")]);
    expect(
        &with(LOOPBACK, &format!("{password}\n[[control.user]]\nname = \"bob\"\nrole = \"root\"\n{password}")),
        &[("unknown-word", "\"root\"")],
    );
    let same = "[control]\nlisten = \"192.0.2.10:8080\"\ncertificate = \"/a\"\nprivate_key = \"/a\"\n[[control.user]]\nname = \"a\"\nrole = \"admin\"";
    let clash =
        |ports: &str| format!("{same}\n{password}\n{}", service(&format!("vip = \"192.0.2.10\"\nports = {ports}"), ""));
    expect(&clash("[80, 8080]"), &[("duplicate-socket", "\"192.0.2.10:8080\"")]);
    expect(&clash("[80, 8081]"), &[]);
    let both = |metrics: &str| {
        let listen = format!("[metrics]\nlisten = \"{metrics}\"\n");
        listen + &with("listen = \"192.0.2.1:9443\"\ncertificate = \"/a\"\nprivate_key = \"/a\"", &password)
    };
    for (metrics, meets) in [
        ("192.0.2.1:9443", true),
        ("0.0.0.0:9443", true),
        ("[::]:9443", true),
        ("[::ffff:192.0.2.1]:9443", true),
        ("192.0.2.1:9464", false),
        ("192.0.2.2:9443", false),
        ("[2001:db8::1]:9443", false),
    ] {
        let quoted = format!("\"{metrics}\"");
        let wanted: &[(&str, &str)] = if meets { &[("duplicate-socket", &quoted)] } else { &[] };
        expect(&both(metrics), wanted);
    }
}
