//! The web services of Lync: `config/examples/lync-2010.toml` as it stands (T-23), and the addresses that users of Lync 2013 browse, from inside and
//! outside, through a unit that translates ports, ends TLS and goes on with it (T-15).

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tempfile::TempDir;
use towpath_engine::status::HealthStatus;
use towpath_tests::pki::{Authority, Issued, ServerStream};
use towpath_tests::web::{Reply, WebOrigin, field};
use towpath_tests::{Host, PATIENCE, Places, Site, Subject, in_site, subject};

const EXAMPLE: &str = include_str!("../../config/examples/lync-2010.toml");

/// What curl says on this host, whose trust is this authority's; `more` are its further words.
fn curl(host: &Host, authority: &Authority, more: &[&str]) -> String {
    let output = tempfile::NamedTempFile::new().expect("a temporary file");
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "15", "--cacert"]).arg(authority.certificate()).args(more);
    command.stdout(output.reopen().expect("a file")).stderr(Stdio::null());
    let mut child = host.spawn(command).expect("curl is installed");
    child.wait_timeout(PATIENCE).expect("our child").expect("it ends");
    fs::read_to_string(output.path()).expect("text")
}

/// How a server of IIS takes connections: with TLS, by this certificate.
fn entrance(issued: &Issued) -> impl Fn(TcpStream) -> std::io::Result<ServerStream> + Clone + Send + 'static {
    let key = PrivateKeyDer::from_pem_file(&issued.key).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(issued.certificates(), key)
        .expect("a key that fits");
    let config = Arc::new(config);
    move |mut socket| {
        let mut server = ServerConnection::new(Arc::clone(&config)).map_err(std::io::Error::other)?;
        while server.is_handshaking() {
            server.complete_io(&mut socket)?;
        }
        Ok(StreamOwned::new(server, socket))
    }
}

/// A file that nobody else may read.
fn write_secret(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("a file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("our file");
}

/// `/etc/towpath` as the examples name it.
fn etc(authority: &Authority, pool: &Issued) -> TempDir {
    let etc = tempfile::tempdir().expect("a temporary directory");
    let chain = fs::read_to_string(&pool.chain).expect("a file");
    const END: &str = "-----END CERTIFICATE-----\n";
    let (leaf, issuer) = chain.split_once(END).expect("a certificate");
    fs::copy(authority.certificate(), etc.path().join("domain-ca.pem")).expect("a file");
    fs::write(etc.path().join("pool1.pem"), format!("{leaf}{END}")).expect("a file");
    fs::write(etc.path().join("intermediate.pem"), issuer).expect("a file");
    write_secret(&etc.path().join("pool1.key"), &fs::read(&pool.key).expect("a file"));
    write_secret(&etc.path().join("cookies"), &[5; 32]);
    etc
}

fn at(etc: &TempDir, text: &str) -> String {
    text.replace("/etc/towpath/", &format!("{}/", etc.path().display()))
}

/// The reference topology of document 004, as far as the example goes: `firewall` is where the reverse proxy comes in from.
const NETWORKS_2010: [(&str, Places<'_>); 2] = [
    ("lan", &[("unit", "192.168.10.1/24"), ("FE-1", "192.168.10.31/24"), ("FE-2", "192.168.10.34/24")]),
    ("second-arm", &[("unit", "192.168.20.1/24"), ("unit", "192.168.20.30/24"), ("firewall", "192.168.20.2/24")]),
];

const POOL: &str = "pool1.example.org";

/// A client of the web services: its cookie, by what it was told last.
struct Mobile<'i> {
    installation: &'i Pool2010<'i>,
    port: u16,
    cookie: Option<String>,
}

/// The site with its Front Ends, and the unit running the example.
struct Pool2010<'s> {
    site: &'s Site,
    authority: Authority,
    unit: Subject,
    _etc: TempDir,
}

impl Pool2010<'_> {
    fn start<'s>(site: &'s Site, authority: Authority, pool: &Issued) -> Pool2010<'s> {
        let etc = etc(&authority, pool);
        assert!(EXAMPLE.contains("/etc/towpath/pool1.pem"));
        // The checks come more often, so that nobody has to wait for them.
        let config = EXAMPLE.replace("interval = \"5s\"", "interval = \"200ms\", timeout = \"200ms\"");
        assert!(config != EXAMPLE);
        let unit = subject!().start(site.host("unit"), &at(&etc, &config));
        unit.until_all_up();
        Pool2010 { site, authority, unit, _etc: etc }
    }

    fn mobile(&self, port: u16) -> Mobile<'_> {
        Mobile { installation: self, port, cookie: None }
    }
}

impl Mobile<'_> {
    /// Asks once, on a connection of its own: the Front End that has answered, and the `Set-Cookie` that came.
    fn asks(&mut self) -> (String, String) {
        let scheme = if self.port == 4443 { "https" } else { "http" };
        let url = format!("{scheme}://{POOL}:{}/ucwa/v1/applications", self.port);
        let resolve = format!("{POOL}:{}:192.168.20.30", self.port);
        let mut words = vec!["--include", "--resolve", &resolve, &url];
        let cookie = self.cookie.clone().unwrap_or_default();
        if self.cookie.is_some() {
            words.extend(["--cookie", &cookie]);
        }
        let said = curl(self.installation.site.host("firewall"), &self.installation.authority, &words);
        let (head, body) = said.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {said}"));
        let set = field(head, "set-cookie").unwrap_or_else(|| panic!("no cookie: {head}")).to_owned();
        self.cookie = set.split(';').next().map(str::to_owned);
        (body.split(' ').next().unwrap_or_default().to_owned(), set)
    }
}

#[test]
#[ignore = "needs the Debian package curl"]
fn t_23_clients_of_lync_2010_see_the_cookie_and_servers_see_tls() {
    in_site(t_23_clients_of_lync_2010_see_the_cookie_and_servers_see_tls, &NETWORKS_2010, |site| {
        let authority = Authority::new("domain");
        let pool = authority.issue(&[POOL, "lyncweb.example.org"]);
        let names = ["FE-1", "FE-2"];
        let origins = names.map(|name| {
            let host = site.host(name);
            [WebOrigin::start_over(host, 4443, entrance(&pool)), WebOrigin::start(host, 8080)]
        });
        let installation = Pool2010::start(site, authority, &pool);
        for port in [4443, 8080] {
            // Clients of mobility keep the cookie, whatever else they come with, and it is on every response: it names nobody and never ends.
            let mut homes = BTreeSet::new();
            for _ in 0..4 {
                let mut mobile = installation.mobile(port);
                let (home, set) = mobile.asks();
                assert!(set.starts_with("MS-WSMAN="), "{set}");
                let lower = set.to_ascii_lowercase();
                for other in ["expires", "max-age", "httponly", "secure", "domain", "192.168", "fe-"] {
                    assert!(!lower.contains(other), "{set}");
                }
                for _ in 0..3 {
                    assert_eq!(mobile.asks(), (home.clone(), set.clone()), "port {port}");
                }
                homes.insert(home);
            }
            assert_eq!(homes, names.map(str::to_owned).into(), "port {port}");
        }
        // On 4443 a Front End reads requests behind a handshake only.
        for (origin, port) in origins.iter().flat_map(|[secured, plain]| [(secured, 4443), (plain, 8080)]) {
            let requests = origin.requests();
            assert!(!requests.is_empty(), "port {port}");
            let proto = if port == 4443 { "https" } else { "http" };
            assert!(requests.iter().all(|request| request.field("x-forwarded-proto") == Some(proto)), "{requests:?}");
        }
        installation.unit.stop();
    });
}

#[test]
#[ignore = "needs the Debian package curl"]
fn t_23_clients_of_a_dead_front_end_of_lync_2010_are_pinned_to_another_by_their_replays() {
    const TEST: fn() = t_23_clients_of_a_dead_front_end_of_lync_2010_are_pinned_to_another_by_their_replays;
    in_site(TEST, &NETWORKS_2010, |site| {
        let authority = Authority::new("domain");
        let pool = authority.issue(&[POOL]);
        let start = |name: &str| WebOrigin::start_over(site.host(name), 4443, entrance(&pool));
        let _plain = ["FE-1", "FE-2"].map(|name| WebOrigin::start(site.host(name), 8080));
        let mut origins = ["FE-1", "FE-2"].map(|name| Some(start(name)));
        let installation = Pool2010::start(site, authority, &pool);
        let mut mobile = installation.mobile(4443);
        let (home, before) = mobile.asks();
        let (dead, other) = if home == "FE-1" { (0, "FE-2") } else { (1, "FE-1") };
        let replayed = mobile.cookie.clone();
        if let Some(origin) = origins[dead].take() {
            origin.stop();
        }
        // At once, by another connect; the cookie says so.
        let (served, set) = mobile.asks();
        assert_eq!(served, other);
        assert_ne!(set, before);
        let until = |health: HealthStatus| {
            installation
                .unit
                .until(&format!("{home} is {health:?}"), |status| status.services[0].servers[dead].health == health)
        };
        until(HealthStatus::Down);
        // Others of the dead one's clients come with the old cookie, and are moved, too.
        for _ in 0..3 {
            let mut replay = Mobile { cookie: replayed.clone(), ..installation.mobile(4443) };
            assert_eq!(replay.asks(), (other.to_owned(), set.clone()));
        }
        origins[dead] = Some(start(&home));
        until(HealthStatus::Up);
        // Back again: who has moved stays, who still has the old cookie is where it was.
        for _ in 0..3 {
            assert_eq!(mobile.asks(), (other.to_owned(), set.clone()));
        }
        assert_eq!(Mobile { cookie: replayed, ..installation.mobile(4443) }.asks(), (home, before));
        installation.unit.stop();
    });
}

/// Lync 2013 with Office Web Apps: `outside` is a client in the Internet, `desk` one of the company.
const NETWORKS_2013: [(&str, Places<'_>); 2] = [
    (
        "lan",
        &[
            ("unit", "192.168.10.1/24"),
            ("unit", "192.168.10.30/24"),
            ("FE-1", "192.168.10.31/24"),
            ("FE-2", "192.168.10.34/24"),
            ("WAC-1", "192.168.10.41/24"),
            ("WAC-2", "192.168.10.42/24"),
            ("desk", "192.168.10.100/24"),
        ],
    ),
    ("dmz", &[("unit", "10.12.1.1/24"), ("unit", "10.12.1.150/24"), ("outside", "10.12.1.200/24")]),
];

/// The nine URLs of document 002 (L203-213): name, path, and whose they are.
const URLS: [(&str, &str, Kind); 9] = [
    ("dialin", "/", Kind::External),
    ("lyncweb", "/PersistentChat/RM/", Kind::External),
    ("lyncwebint", "/PersistentChat/RM/", Kind::Internal),
    ("lyncweb", "/Scheduler", Kind::External),
    ("lyncwebint", "/Scheduler", Kind::Internal),
    ("wac", "/hosting/discovery/", Kind::Wac),
    ("lyncweb", "/WebTicket/WebTicketService.svc", Kind::External),
    ("meet", "/", Kind::External),
    ("lyncwebint", "/WebTicket/WebTicketService.svc", Kind::Internal),
];

/// A site of IIS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Of the Front Ends, on 4443 and 8080.
    External,
    /// Of the Front Ends, on 443 and 80.
    Internal,
    /// Of Office Web Apps, on 443.
    Wac,
}

impl Kind {
    fn label(self) -> &'static str {
        match self {
            Kind::External => "external",
            Kind::Internal => "internal",
            Kind::Wac => "wac",
        }
    }

    /// What the site says: a page of each path that it has under that name, and that there is none for anything else.
    fn answers(self, server: &str, head: &str) -> Reply {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let host = field(head, "host").unwrap_or_default();
        let name = host.split('.').next().unwrap_or_default();
        let is_there = URLS.iter().any(|(own, page, kind)| *kind == self && *own == name && *page == path);
        let status = if is_there { "200 OK" } else { "404 Not Found" };
        Reply { status, fields: String::new(), body: format!("{server} {} {host} {path}\n", self.label()) }
    }
}

const PUBLISHED: &str = r#"
[[group]]
name = "external"
[[group.server]]
name = "FE-1"
address = "192.168.10.31"
port = 4443
[[group.server]]
name = "FE-2"
address = "192.168.10.34"
port = 4443

[[group]]
name = "external-plain"
[[group.server]]
name = "FE-1"
address = "192.168.10.31"
port = 8080
[[group.server]]
name = "FE-2"
address = "192.168.10.34"
port = 8080

[[group]]
name = "internal"
[[group.server]]
name = "FE-1"
address = "192.168.10.31"
port = 443
[[group.server]]
name = "FE-2"
address = "192.168.10.34"
port = 443

[[group]]
name = "wac"
[[group.server]]
name = "WAC-1"
address = "192.168.10.41"
port = 443
[[group.server]]
name = "WAC-2"
address = "192.168.10.42"
port = 443

[[service]]
name = "outside"
vip = "10.12.1.150"
ports = [443]
group = "external"
balance = "least-connections"
persistence = { by = ["super-http-and-source-ip", "source-ip"] }
TLS
[[service.http.route]]
name = "wac"
host = ["wac.example.org"]
path = ["/hosting", "/wv", "/p", "/op"]
group = "wac"
[[service.http.route]]
name = "web"
host = ["dialin.example.org", "meet.example.org", "lyncweb.example.org"]
group = "external"
[[service.http.route]]
name = "rest"
status = 404

[[service]]
name = "outside-plain"
vip = "10.12.1.150"
ports = [80]
group = "external-plain"
http = {}

[[service]]
name = "inside"
vip = "192.168.10.30"
ports = [443]
group = "external"
TLS
[[service.http.route]]
name = "internal"
host = ["lyncwebint.example.org"]
group = "internal"
[[service.http.route]]
name = "wac"
host = ["wac.example.org"]
group = "wac"
"#;

const TLS: &str = r#"[service.tls]
mode = "re-encrypt"
alpn = ["http/1.1"]
verify_server = "ca"
server_ca = "/etc/towpath/domain-ca.pem"
[[service.tls.certificate]]
file = "/etc/towpath/pool1.pem"
key = "/etc/towpath/pool1.key"
chain = "/etc/towpath/intermediate.pem"
"#;

#[test]
#[ignore = "needs the Debian package curl"]
fn t_15_nine_urls_are_reachable_from_inside_and_outside() {
    in_site(t_15_nine_urls_are_reachable_from_inside_and_outside, &NETWORKS_2013, |site| {
        let authority = Authority::new("domain");
        let names: BTreeSet<String> = URLS.iter().map(|(name, ..)| format!("{name}.example.org")).collect();
        let pool = authority.issue(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let like = |name: &'static str, kind: Kind| move |head: &str| Some(kind.answers(name, head));
        let mut origins = Vec::new();
        for name in ["FE-1", "FE-2"] {
            let host = site.host(name);
            origins.push(WebOrigin::start_like(host, 4443, entrance(&pool), like(name, Kind::External)));
            origins.push(WebOrigin::start_like(host, 8080, Ok, like(name, Kind::External)));
            origins.push(WebOrigin::start_like(host, 443, entrance(&pool), like(name, Kind::Internal)));
        }
        for name in ["WAC-1", "WAC-2"] {
            origins.push(WebOrigin::start_like(site.host(name), 443, entrance(&pool), like(name, Kind::Wac)));
        }
        let etc = etc(&authority, &pool);
        let unit = subject!().start(site.host("unit"), &at(&etc, &PUBLISHED.replace("TLS\n", TLS)));
        unit.until_all_up();
        let browse = |from: &str, vip: &str, url: (&str, &str)| {
            let (name, path) = (format!("{}.example.org", url.0), url.1);
            let resolve = format!("{name}:443:{vip}");
            let url = format!("https://{name}{path}");
            let words = ["--write-out", "%{http_code}", "--resolve", &resolve, &url];
            curl(site.host(from), &authority, &words)
        };
        for (from, vip) in [("desk", "192.168.10.30"), ("outside", "10.12.1.150")] {
            for (name, path, kind) in URLS {
                let said = browse(from, vip, (name, path));
                if from == "outside" && kind == Kind::Internal {
                    // The internal sites are not published.
                    assert!(said.ends_with("404") && !said.contains("FE-"), "{from} {name}{path}: {said}");
                    continue;
                }
                let (server, rest) = said.split_once(' ').unwrap_or_else(|| panic!("{from} {name}{path}: {said}"));
                assert_eq!(rest, format!("{} {name}.example.org {path}\n200", kind.label()), "{from}");
                assert!(server.starts_with(if kind == Kind::Wac { "WAC-" } else { "FE-" }), "{from}: {said}");
            }
        }
        // Another application of a published name, and a name that nobody has.
        assert!(browse("outside", "10.12.1.150", ("wac", "/admin")).ends_with("404"));
        assert!(browse("desk", "192.168.10.30", ("lyncweb", "/nowhere")).contains(" external "));
        // PAT of the port without TLS: 80 is 8080 of the external site.
        let words = ["--resolve", "meet.example.org:80:10.12.1.150", "http://meet.example.org/"];
        let said = curl(site.host("outside"), &authority, &words);
        assert!(said.starts_with("FE-") && said.ends_with(" external meet.example.org /\n"), "{said}");
        // Servers are told who asks, and by what.
        let told: BTreeSet<(String, String)> = origins
            .iter()
            .flat_map(WebOrigin::requests)
            .map(|request| {
                let field = |name| request.field(name).unwrap_or_default().to_owned();
                (field("x-forwarded-for"), field("x-forwarded-proto"))
            })
            .collect();
        let expected = [("10.12.1.200", "http"), ("10.12.1.200", "https"), ("192.168.10.100", "https")];
        assert_eq!(told, expected.map(|(client, proto)| (client.to_owned(), proto.to_owned())).into());
        unit.stop();
    });
}
