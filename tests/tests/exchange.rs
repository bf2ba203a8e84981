//! An installation of Exchange 2016 brought up whole: `config/examples/exchange-2016.toml` as it stands, in the networks that it names, with servers
//! of OpenSSL behind each port that speaks TLS, which show the certificate that clients see (requirements.md, Extended Protection).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::{fs, thread};

use rustls::ALL_VERSIONS;
use tempfile::TempDir;
use towpath_sys::process::Child;
use towpath_tests::pki::{Authority, Issued, NAME, open_with};
use towpath_tests::wire::captured;
use towpath_tests::{
    Connection, Host, Origin, PATIENCE, Places, Segment, Site, Subject, eventually, in_site, subject, visit_from,
};

const EXAMPLE: &str = include_str!("../../config/examples/exchange-2016.toml");

/// Documentation addresses (RFC 5737), as in the example.
const NETWORKS: [(&str, Places<'_>); 1] = [(
    "lan",
    &[
        ("unit", "192.0.2.1/24"),
        ("unit", "192.0.2.10/24"),
        ("unit", "192.0.2.11/24"),
        ("EX-1", "192.0.2.21/24"),
        ("EX-2", "192.0.2.22/24"),
        ("desk", "192.0.2.100/24"),
    ],
)];

const VIP: &str = "192.0.2.10";
/// The address from which what comes by 443 goes on.
const SOURCE: &str = "192.0.2.11";
const SERVERS: [(&str, &str); 2] = [("EX-1", "192.0.2.21"), ("EX-2", "192.0.2.22")];
/// What each virtual directory is asked for.
const PAGES: [&str; 8] = [
    "owa/auth.html",
    "ecp/default.html",
    "EWS/Exchange.asmx",
    "Microsoft-Server-ActiveSync/default.eas",
    "mapi/emsmdb",
    "OAB/oab.xml",
    "Autodiscover/Autodiscover.xml",
    "PowerShell/session",
];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The site with its servers serving and the unit running the example.
struct Installation<'s> {
    site: &'s Site,
    authority: Authority,
    certificate: Issued,
    unit: Subject,
    servers: Vec<Child>,
    _origins: Vec<Origin>,
    /// The pages of the servers, and `/etc/towpath`.
    _files: Vec<TempDir>,
}

impl Installation<'_> {
    fn new(site: &Site) -> Installation<'_> {
        let authority = Authority::new("domain");
        let certificate = authority.issue(&[NAME, "autodiscover.example.org"]);
        let (mut servers, mut origins, mut files) = (Vec::new(), Vec::new(), Vec::new());
        for (name, address) in SERVERS {
            let host = site.host(name);
            let pages = tempfile::tempdir().expect("a temporary directory");
            for page in PAGES {
                let path = pages.path().join(page);
                fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
                fs::write(path, format!("{name}: {page}\n")).expect("a file");
            }
            // What says of each virtual directory that it is well.
            for directory in PAGES.map(|page| page.split('/').next().unwrap_or_default()).into_iter().chain(["rpc"]) {
                let directory = pages.path().join(directory);
                fs::create_dir_all(&directory).expect("a directory");
                fs::write(directory.join("healthcheck.htm"), "200 OK<br/>\n").expect("a file");
            }
            for (port, speaks) in [(443, "-WWW"), (993, "-rev"), (995, "-rev")] {
                servers.push(serve(host, port, &certificate, speaks, pages.path()));
                let at = SocketAddr::new(ip(address), port);
                eventually("the server listens", || Connection::open(site.host("desk"), at).ok());
            }
            origins.extend([80, 110, 143].map(|port| Origin::tcp(host, port)));
            files.push(pages);
        }
        let etc = tempfile::tempdir().expect("a temporary directory");
        for (file, from) in [
            ("domain-ca.pem", authority.certificate()),
            ("mail.pem", certificate.chain.clone()),
            ("mail.key", certificate.key.clone()),
        ] {
            fs::copy(from, etc.path().join(file)).expect("a file");
        }
        assert!(EXAMPLE.contains("/etc/towpath/mail.pem"));
        let config = EXAMPLE.replace("/etc/towpath/", &format!("{}/", etc.path().display()));
        files.push(etc);
        let unit = subject!().start(site.host("unit"), &config);
        unit.until_all_up();
        Installation { site, authority, certificate, unit, servers, _origins: origins, _files: files }
    }

    fn desk(&self) -> &Host {
        self.site.host("desk")
    }

    /// What curl gets for a page, by the name that its users know.
    fn page(&self, name: &str, page: &str) -> String {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "15", "--cacert"]).arg(self.authority.certificate());
        command.args(["--resolve", &format!("{name}:443:{VIP}"), &format!("https://{name}/{page}")]);
        self.said(command)
    }

    /// What a program on the desk says.
    fn said(&self, mut command: Command) -> String {
        let output = tempfile::NamedTempFile::new().expect("a temporary file");
        command.stdout(output.reopen().expect("a file")).stderr(Stdio::null());
        let mut child = self.desk().spawn(command).expect("the program is installed");
        child.wait_timeout(PATIENCE).expect("our child").expect("it ends");
        fs::read_to_string(output.path()).expect("text")
    }
}

/// A server of OpenSSL on a port: `-WWW` has pages, `-rev` says backwards what it is told.
fn serve(host: &Host, port: u16, certificate: &Issued, speaks: &str, pages: &Path) -> Child {
    let mut command = Command::new("openssl");
    command.args(["s_server", "-accept", &port.to_string(), speaks, "-quiet"]).current_dir(pages);
    command.arg("-cert").arg(&certificate.chain).arg("-cert_chain").arg(&certificate.chain);
    command.arg("-key").arg(&certificate.key);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    host.spawn(command).expect("openssl is installed")
}

#[test]
#[ignore = "needs the Debian packages curl, openssl"]
fn every_virtual_directory_of_the_exchange_example_is_served_by_both_servers() {
    in_site(every_virtual_directory_of_the_exchange_example_is_served_by_both_servers, &NETWORKS, |site| {
        let mut taps = SERVERS.map(|(name, _)| site.host(name).capture("lan").expect("a tap"));
        let installation = Installation::new(site);
        let mut served = BTreeSet::new();
        for name in [NAME, "autodiscover.example.org"] {
            for page in PAGES {
                let said = installation.page(name, page);
                let (server, what) = said.split_once(": ").unwrap_or_else(|| panic!("{name}/{page}: {said}"));
                assert_eq!(what, format!("{page}\n"));
                served.insert(server.to_owned());
            }
        }
        eventually("both serve", || {
            let said = installation.page(NAME, PAGES[0]);
            served.insert(said.split(':').next().unwrap_or_default().to_owned());
            SERVERS.iter().all(|(name, _)| served.contains(*name)).then_some(())
        });
        let status = eventually("all have ended", || {
            Some(installation.unit.service("exchange-https")).filter(|status| status.connections == 0)
        });
        let counted = |name: &str| status.counters[name];
        assert_eq!(counted("handshakes_full"), status.opened, "{status:?}");
        assert_eq!(counted("server_handshakes_full") + counted("server_handshakes_resumed"), status.opened);
        assert_eq!(
            (counted("server_handshakes_failed"), status.terminations["server_truncated"]),
            (0, 0),
            "{status:?}"
        );
        installation.unit.stop();
        // The servers see the one source, the unit that checks them, and this test before the unit is there.
        for (tap, (_, server)) in taps.iter_mut().zip(SERVERS) {
            let asked =
                captured(tap).into_iter().filter(|one: &Segment| one.destination == SocketAddr::new(ip(server), 443));
            let seen: BTreeSet<IpAddr> = asked.map(|one| one.source.ip()).collect();
            assert_eq!(seen, [SOURCE, "192.0.2.1", "192.0.2.100"].map(ip).into(), "{server}");
        }
    });
}

/// The certificate that a client sees by the VIP is the one that each server shows, and so what a logon is bound to is the same.
#[test]
#[ignore = "needs the Debian package openssl"]
fn clients_of_the_exchange_example_see_the_certificate_of_the_servers() {
    in_site(clients_of_the_exchange_example_see_the_certificate_of_the_servers, &NETWORKS, |site| {
        let installation = Installation::new(site);
        let config = installation.authority.client_config(ALL_VERSIONS, None);
        let seen = |address: &str, port: u16| {
            let client = open_with(&config, installation.desk(), (ip(address), port)).expect("a handshake");
            client.conn.peer_certificates().expect("a certificate")[0].clone()
        };
        let own = installation.certificate.certificates()[0].clone();
        for address in [VIP, SERVERS[0].1, SERVERS[1].1] {
            assert_eq!(seen(address, 443), own, "{address}");
        }
        // Ports on which TLS passes through.
        for port in [993, 995] {
            assert_eq!(seen(VIP, port), own, "{port}");
        }
        installation.unit.stop();
    });
}

#[test]
#[ignore = "needs the Debian packages curl, openssl"]
fn the_other_ports_of_the_exchange_example_pass_through() {
    in_site(the_other_ports_of_the_exchange_example_pass_through, &NETWORKS, |site| {
        let installation = Installation::new(site);
        // The web without TLS leads to the one with it.
        let mut command = Command::new("curl");
        command.args(["--silent", "--output", "/dev/null", "--write-out", "%{redirect_url}"]);
        command.args(["--resolve", &format!("{NAME}:80:{VIP}"), &format!("http://{NAME}/owa/auth.html")]);
        assert_eq!(installation.said(command), format!("https://{NAME}/owa/auth.html"));
        for port in [110, 143] {
            let greeting = visit_from(installation.desk(), ip("192.0.2.100"), SocketAddr::new(ip(VIP), port));
            assert!(SERVERS.iter().any(|(name, _)| *name == greeting.name), "{greeting:?}");
        }
        for port in [993, 995] {
            let mut command = Command::new("sh");
            command.arg("-c").arg(format!(
                "printf 'palindrome\\nCLOSE\\n' | openssl s_client -connect {VIP}:{port} -quiet -verify_return_error -verify_hostname {NAME} -CAfile {}",
                installation.authority.certificate().display()
            ));
            assert_eq!(installation.said(command), "emordnilap\n", "{port}");
        }
        installation.unit.stop();
    });
}

/// Users do not notice that one of the two servers has gone.
#[test]
#[ignore = "needs the Debian packages curl, openssl"]
fn the_exchange_example_lives_with_one_server() {
    in_site(the_exchange_example_lives_with_one_server, &NETWORKS, |site| {
        let mut installation = Installation::new(site);
        // Those of EX-2 were started last.
        installation.servers.truncate(3);
        thread::scope(|scope| {
            let installation = &installation;
            let asked = PAGES.map(|page| (page, scope.spawn(move || installation.page(NAME, page))));
            for (page, asked) in asked {
                assert_eq!(asked.join().expect("curl runs"), format!("EX-1: {page}\n"));
            }
        });
        installation.unit.stop();
    });
}
