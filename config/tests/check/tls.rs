//! `[tls]` and `service.tls`: what they mean, and what is told.

use std::path::PathBuf;

use towpath_config::check;
use towpath_config::model::*;

use crate::{expect, service};

const CERTIFICATE: &str = "certificate = [{ file = \"a.pem\", key = \"a.key\" }]";

/// A service that ends TLS, with these further keys in `tls` and lines of the server.
fn ended(mode: &str, keys: &str, server: &str) -> String {
    service(&format!("tls = {{ mode = \"{mode}\", {CERTIFICATE}, {keys} }}"), server)
}

/// The model of a file that has no errors, whatever is told beside.
fn model(text: &str) -> Model {
    let checked = check("test.toml", text);
    checked.model.unwrap_or_else(|| panic!("{:?}", checked.diagnostics))
}

fn ended_tls(text: &str) -> EndedTls {
    model(text).services[0].ended_tls().expect("TLS is ended").clone()
}

fn file(path: &str) -> PathBuf {
    PathBuf::from(path)
}

/// What is told beside [`NOT_AVAILABLE`](towpath_config::NOT_AVAILABLE).
fn told(text: &str, expected: &[(&str, &str)]) {
    let checked = check("test.toml", text);
    let told = checked.diagnostics.iter().filter(|diagnostic| diagnostic.code != towpath_config::NOT_AVAILABLE);
    let told: Vec<_> =
        told.map(|told| (told.code, text.get(told.primary.start..told.primary.end).unwrap_or(""))).collect();
    assert_eq!(told, expected, "{text}");
}

#[test]
fn the_process_has_its_own_table() {
    let with = |lines: &str| format!("[tls]\n{lines}\n{}", ended("terminate", "", ""));
    let all = "provider = \"ring\"\nthreads = [1, 3]\nqueue_deadline = \"500ms\"\npost_quantum = false\n\
               ticket_lifetime = \"1h\"\nticket_key_file = \"/etc/towpath/tickets\"";
    let expected = TlsPool {
        provider: TlsProvider::Ring,
        threads: HandshakeThreads::Cpus(vec![1, 3]),
        queue_deadline_ms: 500,
        post_quantum: false,
        ticket_lifetime_ms: 3_600_000,
        ticket_key_file: Some(file("/etc/towpath/tickets")),
    };
    assert_eq!(model(&with(all)).tls, expected);
    let threads = |written: &str| model(&with(&format!("threads = {written}"))).tls.threads;
    assert_eq!(threads("\"auto\""), HandshakeThreads::Auto);
    assert_eq!(threads("0"), HandshakeThreads::Count(0));
    assert_eq!(threads("2"), HandshakeThreads::Count(2));
    told(&with("threads = [1, 1]"), &[("duplicate-entry", "1")]);
    told(&with("threads = \"all\""), &[("unknown-word", "\"all\"")]);
    told(&with("ticket_lifetime = \"8d\""), &[("out-of-range", "\"8d\"")]);
    expect(&format!("[tls]\nthreads = 0\n{}", service("", "")), &[("no-effect", "tls")]);
}

#[test]
fn what_is_not_written_has_a_default() {
    let expected = EndedTls {
        certificates: vec![CertificateFiles {
            file: file("a.pem"),
            key: Some(file("a.key")),
            chain: None,
            password_file: None,
            staple: None,
        }],
        strict_sni: false,
        min_version: TlsVersion::V1_2,
        ciphers: CipherPolicy::Intermediate,
        alpn: Vec::new(),
        resumption: Resumption::Tickets,
        handshake_timeout_ms: 10_000,
        client_certificate: ClientCertificate::None,
        re_encrypt: false,
        servers: ServerTls {
            verify: VerifyServer::Ca(file("/etc/ssl/certs/ca-certificates.crt")),
            name: None,
            identity: None,
        },
    };
    assert_eq!(ended_tls(&ended("terminate", "", "")), expected);
    assert_eq!(ended_tls(&ended("re-encrypt", "", "")), EndedTls { re_encrypt: true, ..expected });
    assert_eq!(model(&service("", "")).services[0].ended_tls(), None);
}

#[test]
fn every_key_reaches_the_model() {
    let text = r#"
[[service]]
name = "web"
vip = "192.0.2.10"
ports = [443]

[service.tls]
mode = "re-encrypt"
strict_sni = true
min_version = "1.3"
ciphers = "modern"
alpn = ["h2", "http/1.1"]
resumption = "cache"
handshake_timeout = "5s"
client_certificate = "request"
client_ca = "clients.pem"
client_crl = "revoked.pem"
verify_server = "pinned"
server_pin = ["00:01:02:03:04:05:06:07:08:09:0A:0b:0C:0D:0E:0F:10:11:12:13:14:15:16:17:18:19:1A:1B:1C:1D:1E:1F"]
server_name = "Inner.example.org"
identity = { file = "us.pfx", password_file = "us.txt" }

[[service.tls.certificate]]
file = "rsa.pem"
key = "rsa.key"
chain = "chain.pem"
password_file = "password"
staple = "rsa.ocsp"

[[service.tls.certificate]]
file = "ecdsa.pem"

[[service.server]]
name = "one"
address = "192.0.2.21"

[[service.server]]
name = "two"
address = "192.0.2.22"
re_encrypt = false
server_name = "two.example.org"
"#;
    told(text, &[]);
    let tls = ended_tls(text);
    let certificates = [
        CertificateFiles {
            file: file("rsa.pem"),
            key: Some(file("rsa.key")),
            chain: Some(file("chain.pem")),
            password_file: Some(file("password")),
            staple: Some(file("rsa.ocsp")),
        },
        CertificateFiles { file: file("ecdsa.pem"), key: None, chain: None, password_file: None, staple: None },
    ];
    assert_eq!(tls.certificates, certificates);
    assert_eq!((tls.strict_sni, tls.min_version, tls.ciphers), (true, TlsVersion::V1_3, CipherPolicy::Modern));
    assert_eq!(
        (tls.alpn.as_slice(), tls.resumption),
        (&["h2".to_owned(), "http/1.1".to_owned()][..], Resumption::Cache)
    );
    assert_eq!(tls.handshake_timeout_ms, 5000);
    let authorities = ClientAuthorities { ca: file("clients.pem"), crl: Some(file("revoked.pem")) };
    assert_eq!(tls.client_certificate, ClientCertificate::Request(authorities));
    let sum: [u8; 32] = std::array::from_fn(|index| index as u8);
    assert_eq!(tls.servers.verify, VerifyServer::Pinned(vec![sum]));
    let identity = tls.servers.identity.as_ref().expect("written");
    assert_eq!((&identity.file, &identity.password_file), (&file("us.pfx"), &Some(file("us.txt"))));

    let model = model(text);
    let servers = &model.groups[0].servers;
    assert_eq!(servers.iter().map(|server| tls.re_encrypts(server)).collect::<Vec<_>>(), [true, false]);
    let names = servers.iter().map(|server| tls.server_name(server)).collect::<Vec<_>>();
    assert_eq!(names, [Some("inner.example.org"), Some("two.example.org")]);
}

#[test]
fn modern_is_tls_1_3() {
    assert_eq!(ended_tls(&ended("terminate", "ciphers = \"modern\"", "")).min_version, TlsVersion::V1_3);
    let old = "ciphers = \"modern\", min_version = \"1.2\"";
    told(&ended("terminate", old, ""), &[("conflicting-keys", "\"1.2\"")]);
    told(&ended("terminate", "min_version = \"1.1\"", ""), &[("unknown-word", "\"1.1\"")]);
}

#[test]
fn keys_that_do_not_go_with_the_mode_are_told() {
    let packet = "plane = \"packet\"\nsource = \"vip\"\n";
    let tls = |keys: &str| format!("tls = {{ {keys} }}");
    told(&service(&tls("mode = \"terminate\""), ""), &[("missing-key", "\"terminate\"")]);
    told(&service(&tls(CERTIFICATE), ""), &[("no-effect", "certificate")]);
    told(&service(&tls("handshake_timeout = \"3s\""), ""), &[("no-effect", "handshake_timeout")]);
    told(&service(&tls("mode = \"pass-through\", verify_server = \"none\""), ""), &[("no-effect", "verify_server")]);
    let ends = tls(&format!("mode = \"terminate\", {CERTIFICATE}"));
    told(&service(&format!("{packet}{ends}"), ""), &[("needs-stream-plane", "\"terminate\"")]);
    told(&service(&format!("protocol = \"udp\"\n{ends}"), ""), &[("conflicting-keys", "\"terminate\"")]);
    // Servers.
    told(&service("", "re_encrypt = true"), &[("no-effect", "re_encrypt")]);
    told(&service("", "server_name = \"a.example\""), &[("no-effect", "server_name")]);
    told(&ended("terminate", "", "re_encrypt = true\nserver_name = \"a.example\""), &[]);
    told(&ended("terminate", "server_name = \"a.example\"", ""), &[("no-effect", "server_name")]);
    told(&ended("terminate", "server_name = \"a.example\"", "re_encrypt = true"), &[]);
    told(&ended("re-encrypt", "", "re_encrypt = false"), &[("no-effect", "\"re-encrypt\"")]);
    told(&ended("re-encrypt", "server_name = \"not a name\"", ""), &[("bad-name", "\"not a name\"")]);
    told(&ended("re-encrypt", "server_name = \"192.0.2.21\"", ""), &[]);
    told(&ended("re-encrypt", "server_name = \"*.example\"", ""), &[("bad-name", "\"*.example\"")]);
    told(&ended("re-encrypt", "verify_server = true", ""), &[("wrong-type", "true")]);
    told(&ended("re-encrypt", "verify_server = \"none\", server_ca = \"ca.pem\"", ""), &[("no-effect", "server_ca")]);
    let sum = "ab".repeat(32);
    let pins = |pins: &str| ended("re-encrypt", &format!("verify_server = \"pinned\", server_pin = [{pins}]"), "");
    told(&pins(&format!("\"{sum}\"")), &[]);
    told(&pins("\"abcd\""), &[("bad-pin", "\"abcd\"")]);
    told(&ended("re-encrypt", "verify_server = \"pinned\"", ""), &[("missing-key", "\"pinned\"")]);
    told(&ended("re-encrypt", &format!("server_pin = [\"{sum}\"]"), ""), &[("no-effect", "server_pin")]);
    // Clients.
    told(&ended("terminate", "client_certificate = \"require\"", ""), &[("missing-key", "\"require\"")]);
    told(&ended("terminate", "client_certificate = \"require\", client_ca = \"ca.pem\"", ""), &[]);
    told(&ended("terminate", "client_ca = \"ca.pem\"", ""), &[("no-effect", "client_ca")]);
    told(&ended("terminate", "client_crl = \"crl.pem\"", ""), &[("no-effect", "client_crl")]);
    // Protocols.
    told(&ended("terminate", "alpn = [\"h2\", \"http/1.1\"]", ""), &[]);
    let exchange = service(
        &format!("application = \"exchange-2013\"\ntls = {{ mode = \"terminate\", {CERTIFICATE}, alpn = [\"h2\"] }}"),
        "",
    );
    told(&exchange, &[("wrong-protocol", "\"h2\"")]);
    let long = "x".repeat(256);
    told(&ended("terminate", &format!("alpn = [\"{long}\"]"), ""), &[("too-long", &format!("\"{long}\""))]);
    told(&ended("terminate", "ciphers = \"high-security\"", ""), &[("unknown-word", "\"high-security\"")]);
}

/// Two groups, and a service of the first with these routes.
fn routed(lines: &str, routes: &str) -> String {
    let group = |name: &str, address: &str| {
        format!("[[group]]\nname = \"{name}\"\n[[group.server]]\nname = \"one\"\naddress = \"{address}\"\n")
    };
    format!(
        "{}{}[[service]]\nname = \"edge\"\nvip = \"192.0.2.10\"\nports = 443\ngroup = \"av\"\n{lines}\n{routes}",
        group("av", "192.0.2.21"),
        group("web", "192.0.2.31"),
    )
}

#[test]
fn names_lead_to_groups_where_tls_passes_through() {
    let route = |names: &str, group: &str| format!("[[service.tls.route]]\nnames = [{names}]\ngroup = \"{group}\"\n");
    let text = routed("tls.handshake_timeout = \"2s\"", &route("\"Meet.Example.org\", \"*.example.org\"", "web"));
    told(&text, &[]);
    let names = vec!["meet.example.org".to_owned(), "*.example.org".to_owned()];
    let expected = PassThrough { routes: vec![TlsRoute { names, group: 1 }], handshake_timeout_ms: 2000 };
    assert_eq!(model(&text).services[0].tls, ServiceTls::PassThrough(expected));

    let bad = |names: &str| routed("", &route(names, "web"));
    for name in ["192.0.2.1", "a..b", "*", "*.*.example.org", "exa mple.org", "example.org."] {
        let name = format!("\"{name}\"");
        told(&bad(&name), &[("bad-name", &name)]);
    }
    told(&bad("\"a.example\", \"A.example\""), &[("duplicate-entry", "\"A.example\"")]);
    let twice = route("\"a.example\"", "web") + &route("\"b.example\", \"a.example\"", "av");
    told(&routed("", &twice), &[("duplicate-entry", "\"a.example\"")]);
    told(&routed("", &route("\"a.example\"", "wep")), &[("unused-group", "\"web\""), ("unknown-group", "\"wep\"")]);
    told(
        &routed("plane = \"packet\"\nsource = \"vip\"", &route("\"a.example\"", "web")),
        &[("needs-stream-plane", "route")],
    );
    // What holds of servers holds of those behind a route.
    let circle = routed("", &route("\"a.example\"", "web")).replace("192.0.2.31", "192.0.2.10");
    assert!(check("test.toml", &circle).errors().next().is_some(), "{circle}");
    told(
        &routed("source = { pool = [\"2001:db8::5\"] }", &route("\"a.example\"", "web"))
            .replace("192.0.2.21", "2001:db8::21"),
        &[("mixed-families", "[\"2001:db8::5\"]")],
    );
    let ends = format!("tls.mode = \"terminate\"\ntls.{CERTIFICATE}");
    let told_of = check("test.toml", &routed(&ends, &route("\"a.example\"", "web"))).diagnostics;
    assert!(told_of.iter().any(|told| told.code == "conflicting-keys"), "{told_of:?}");
}
