//! What clients ask for, offer and show.

use std::io::{self, Read, Seek, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use rustls::crypto::SupportedKxGroup;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, NamedGroup, StreamOwned};
use towpath_tests::pki::{Authority, Issued, NAME, Stream, open_with};
use towpath_tests::{
    Connection, Origin, PATIENCE, Subject, TestLab, Topology, eventually, in_lab, ipv4, service, subject,
};

use crate::{ON_WORKERS, Stage, answer, finish, said, until_ended};

/// What the origin behind says first: its handshake is over for the relay, too.
fn greeted(mut stream: Stream) -> io::Result<Stream> {
    let mut heard = [0; 8];
    stream.read_exact(&mut heard)?;
    assert_eq!(&heard, b"server-1");
    Ok(stream)
}

/// A relay with this service in front of an origin.
fn relay(lab: &TestLab, tls: &str) -> (Subject, Origin, Ipv4Addr) {
    let vip = lab.vip(100);
    let origin = Origin::tcp(lab.server(1), 443);
    let config = format!("{ON_WORKERS}{}", service("web", vip, "443", tls, &ipv4(lab.servers())));
    (subject!().start(lab.balancer(), &config), origin, vip)
}

/// The table of a service that ends TLS with these certificates.
fn terminate(keys: &str, certificates: &[&Issued]) -> String {
    let certificates: String = certificates.iter().map(|issued| issued.table("[[service.tls.certificate]]")).collect();
    format!("[service.tls]\nmode = \"terminate\"\n{keys}\n{certificates}")
}

/// T-16: what a connectivity analyser looks at, for every name of a certificate from an issuer below the root.
#[test]
#[ignore = "needs the Debian packages curl, openssl"]
fn t_16_the_chain_is_whole_and_every_name_is_good() {
    in_lab(t_16_the_chain_is_whole_and_every_name_is_good, Topology::TwoArm, 1, |lab| {
        let authority = Authority::new("authority");
        let mail = authority.issue(&[NAME, "autodiscover.example.org"]);
        let lync = authority.issue(&["lyncdiscover.example.net", "*.meet.example.net"]);
        let vip = lab.vip(100);
        let answers = lab.server(1).run(|| TcpListener::bind("0.0.0.0:443")).expect("a thread").expect("a listener");
        thread::spawn(move || answers.incoming().flatten().for_each(answer));
        let config = service("web", vip, "443", &terminate("", &[&mail, &lync]), &ipv4(lab.servers()));
        let relay = subject!().start(lab.balancer(), &format!("{ON_WORKERS}{config}"));
        let asked = |host: &str, verified: &str| {
            let mut command = Command::new("openssl");
            command.args(["s_client", "-connect", &format!("{vip}:443"), "-servername", host, "-verify_return_error"]);
            command.args(["-verify_hostname", verified, "-CAfile"]).arg(authority.certificate());
            said(lab, command, b"").contains("Verify return code: 0 (ok)")
        };
        for host in [NAME, "autodiscover.example.org", "lyncdiscover.example.net", "a.meet.example.net"] {
            assert!(asked(host, host), "{host}");
        }
        assert!(!asked(NAME, "www.example.org"), "a name that is not in it");
        // Nobody but the first certificate is for names that none is for, and for who asks for none.
        assert!(asked("www.example.org", NAME));
        let mut unnamed = ClientConfig::clone(&authority.client_config(&[&TLS13], None));
        unnamed.enable_sni = false;
        open_with(&Arc::new(unnamed), lab.client(), (vip, 443)).expect("a handshake");
        let mut command = Command::new("curl");
        command.args(["--silent", "--connect-to", &format!("::{vip}:443"), "--cacert"]).arg(authority.certificate());
        command.arg("https://autodiscover.example.org/autodiscover.xml");
        assert_eq!(said(lab, command, b""), "hello, GET /autodiscover.xml HTTP/1.1");
        relay.stop();
    });
}

#[test]
fn application_protocols_are_agreed_on_or_refused() {
    in_lab(application_protocols_are_agreed_on_or_refused, Topology::TwoArm, 1, |lab| {
        let authority = Authority::new("authority");
        let keys = "alpn = [\"http/1.1\", \"imap\"]";
        let (relay, _origin, vip) = relay(lab, &terminate(keys, &[&authority.issue(&[NAME])]));
        for version in [&TLS12, &TLS13] {
            let offering = |protocols: &[&str]| {
                let mut config = ClientConfig::clone(&authority.client_config(&[version], None));
                config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
                open_with(&Arc::new(config), lab.client(), (vip, 443)).and_then(greeted)
            };
            let agreed = |protocols| offering(protocols).expect("a greeting").conn.alpn_protocol().map(<[u8]>::to_vec);
            assert_eq!(agreed(&["imap", "http/1.1"]), Some(b"http/1.1".to_vec()), "ours come first");
            assert_eq!(agreed(&["h2", "imap"]), Some(b"imap".to_vec()));
            assert_eq!(agreed(&[]), None);
            let error = offering(&["h2"]).expect_err("nothing in common");
            assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
        }
        let web = until_ended(&relay, 8);
        assert_eq!(web.terminations["handshake_nothing_shared"], 2, "{web:?}");
        relay.stop();
    });
}

#[test]
#[ignore = "needs the Debian package openssl"]
fn clients_with_nothing_in_common_are_told() {
    in_lab(clients_with_nothing_in_common_are_told, Topology::TwoArm, 1, |lab| {
        let authority = Authority::new("authority");
        let (relay, _origin, vip) = relay(lab, &terminate("", &[&authority.issue(&[NAME])]));
        for old in [
            &["-tls1", "-cipher", "ALL:@SECLEVEL=0"][..],
            &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
            &["-tls1_2", "-cipher", "AES128-SHA"],
            &["-tls1_3", "-groups", "secp521r1"],
        ] {
            // Its errors are what counts here.
            let mut command = Command::new("sh");
            command.arg("-c").arg(format!("openssl s_client -connect {vip}:443 {} 2>&1", old.join(" ")));
            let said = said(lab, command, b"");
            assert!(said.contains("alert handshake failure"), "{old:?}: {said}");
        }
        let web = until_ended(&relay, 4);
        assert_eq!(web.terminations["handshake_nothing_shared"], 4, "{web:?}");
        relay.stop();
    });
}

/// A warning by which the client knows (RFC 5246 §7.2.2); in TLS 1.3 there is none.
#[test]
#[ignore = "needs the Debian package openssl"]
fn renegotiation_is_refused() {
    in_lab(renegotiation_is_refused, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab);
        let mut output = tempfile::tempfile().expect("a temporary file");
        let both = |file: &std::fs::File| file.try_clone().expect("a descriptor");
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &format!("{}:443", stage.vip), "-servername", NAME, "-tls1_2"]);
        command.stdin(Stdio::piped()).stdout(both(&output)).stderr(both(&output));
        let mut client = lab.client().spawn(command).expect("openssl is installed");
        let mut server = stage.accept();
        // A line that begins so is the word for it; it waits for more behind it.
        let mut input = client.process().stdin.take().expect("a pipe");
        input.write_all(b"R\n").expect("taken");
        client.wait_timeout(PATIENCE).expect("our child").expect("it gives up");
        let mut said = String::new();
        output.rewind().expect("a file");
        output.read_to_string(&mut said).expect("text");
        assert!(said.contains("RENEGOTIATING") && said.contains("no renegotiation"), "{said}");
        let _ = server.read_to_end(&mut Vec::new());
        drop(server);
        let web = until_ended(&stage.relay, 1);
        assert_eq!(web.counters["handshakes_full"], 1, "{web:?}");
        stage.relay.stop();
    });
}

/// A client of TLS 1.3 with these groups, of which it sends a share for the first one only.
fn with_groups(authority: &Authority, groups: &[&'static dyn SupportedKxGroup]) -> Arc<ClientConfig> {
    let mut crypto = default_provider();
    crypto.kx_groups = groups.to_vec();
    let mut roots = rustls::RootCertStore::empty();
    let root = rustls::pki_types::pem::PemObject::from_pem_file(authority.certificate()).expect("PEM");
    roots.add(root).expect("a root");
    let builder = ClientConfig::builder_with_provider(Arc::new(crypto)).with_protocol_versions(&[&TLS13]);
    Arc::new(builder.expect("a version").with_root_certificates(roots).with_no_client_auth())
}

#[test]
fn keys_are_exchanged_by_a_group_that_both_know() {
    in_lab(keys_are_exchanged_by_a_group_that_both_know, Topology::TwoArm, 1, |lab| {
        let authority = Authority::new("authority");
        let keys = terminate("", &[&authority.issue(&[NAME])]);
        let (relay, _origin, vip) = relay(lab, &keys);
        let agreed = |groups: &[&'static dyn SupportedKxGroup]| {
            let stream = open_with(&with_groups(&authority, groups), lab.client(), (vip, 443)).and_then(greeted)?;
            let group = stream.conn.negotiated_key_exchange_group().expect("TLS 1.3 has one").name();
            Ok::<_, io::Error>((group, stream.conn.handshake_kind().expect("it is over")))
        };
        let quantum = kx_group::X25519MLKEM768;
        let (once, twice) = (HandshakeKind::Full, HandshakeKind::FullWithHelloRetryRequest);
        assert_eq!(agreed(&[quantum]).expect("both know it"), (NamedGroup::X25519MLKEM768, once));
        assert_eq!(agreed(&[quantum, kx_group::X25519]).expect("both"), (NamedGroup::X25519MLKEM768, once));
        assert_eq!(agreed(&[kx_group::X25519]).expect("both know it"), (NamedGroup::X25519, once));
        let config =
            format!("{ON_WORKERS}post_quantum = false\n{}", service("web", vip, "443", &keys, &ipv4(lab.servers())));
        relay.stop();
        let relay = subject!().start(lab.balancer(), &config);
        agreed(&[quantum]).expect_err("nothing in common");
        assert_eq!(agreed(&[quantum, kx_group::SECP256R1]).expect("the other"), (NamedGroup::secp256r1, twice));
        relay.stop();
    });
}

/// A socket on which each byte leaves alone, and comes alone.
struct Drops(TcpStream);

impl Read for Drops {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(&mut buffer[..1])
    }
}

impl Write for Drops {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(&bytes[..1])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn a_client_that_sends_and_reads_byte_by_byte_is_served() {
    in_lab(a_client_that_sends_and_reads_byte_by_byte_is_served, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab);
        for version in [&TLS12, &TLS13] {
            let connection = Connection::open(lab.client(), (stage.vip, 443)).expect("the relay listens");
            let socket = Drops(connection.stream().try_clone().expect("a descriptor"));
            let name = ServerName::try_from(NAME).expect("a name");
            let client = ClientConnection::new(stage.pki.client_config(&[version]), name).expect("a client");
            let mut client = StreamOwned::new(client, socket);
            let question = [7; 5_000];
            client.write_all(&question).expect("taken");
            client.flush().expect("taken");
            let mut server = stage.accept();
            let mut heard = [0; 5_000];
            server.read_exact(&mut heard).expect("the question");
            assert_eq!(heard, question);
            server.write_all(&heard).expect("taken");
            drop(server);
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).expect("an orderly end");
            assert_eq!(answer, question);
            client.conn.send_close_notify();
            client.flush().expect("our close_notify");
        }
        stage.ended(&[("server_closed", 2)]);
    });
}

#[test]
fn records_may_be_as_small_as_they_like() {
    in_lab(records_may_be_as_small_as_they_like, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab);
        for version in [&TLS12, &TLS13] {
            let mut config = ClientConfig::clone(&stage.pki.client_config(&[version]));
            // A ClientHello in many records.
            config.max_fragment_size = Some(32);
            let mut client = open_with(&Arc::new(config), lab.client(), (stage.vip, 443)).expect("a handshake");
            let mut server = stage.accept();
            let question = [7; 100_000];
            client.write_all(&question).expect("taken");
            finish(&mut client);
            let mut heard = Vec::new();
            server.read_to_end(&mut heard).expect("an orderly end");
            assert_eq!(heard, question);
            drop(server);
            client.read_to_end(&mut Vec::new()).expect("an orderly end");
        }
        stage.ended(&[("client_closed", 2)]);
    });
}

#[test]
fn certificates_of_clients_are_judged_also_when_they_come_back() {
    in_lab(certificates_of_clients_are_judged_also_when_they_come_back, Topology::TwoArm, 1, |lab| {
        let (authority, stranger) = (Authority::new("authority"), Authority::new("stranger"));
        let [valid, revoked, later] = ["valid", "revoked", "later"].map(|name| authority.issue(&[name]));
        let foreign = stranger.issue(&["foreign"]);
        let own = authority.issue(&[NAME]);
        let tls = |policy: &str, gone: &[&Issued]| {
            let (authorities, lists) = authority.policy(gone);
            let policy = format!(
                "client_certificate = \"{policy}\"\nclient_ca = \"{}\"\nclient_crl = \"{}\"",
                authorities.display(),
                lists.display()
            );
            let vip = lab.free_vip(100);
            format!("{ON_WORKERS}{}", service("web", vip, "443", &terminate(&policy, &[&own]), &ipv4(lab.servers())))
        };
        let vip = lab.vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let mut relay = subject!().start(lab.balancer(), &tls("require", &[&revoked]));
        let visit = |config: &Arc<ClientConfig>| {
            let stream = open_with(config, lab.client(), (vip, 443)).and_then(greeted)?;
            Ok::<_, io::Error>(stream.conn.handshake_kind() == Some(HandshakeKind::Resumed))
        };
        let mut returning = Vec::new();
        for version in [&TLS12, &TLS13] {
            let client = |shows| authority.client_config(&[version], shows);
            for shows in [None, Some(&revoked), Some(&foreign)] {
                let error = visit(&client(shows)).expect_err("refused");
                assert!(error.to_string().contains("received fatal alert"), "{error}");
            }
            for shows in [&valid, &later] {
                let config = client(Some(shows));
                assert!(!visit(&config).expect("let in"), "a first visit");
                assert!(visit(&config).expect("let in again"), "a session to resume");
                returning.push(config);
            }
        }
        let web = until_ended(&relay, 14);
        let counted = |name: &str| web.counters[name];
        assert_eq!((counted("handshakes_full"), counted("handshakes_resumed")), (4, 4), "{web:?}");
        assert_eq!(web.terminations["handshake_certificate"], 6, "{web:?}");

        // One of those who come back has been revoked since.
        relay.reload(&tls("require", &[&revoked, &later])).expect("a valid configuration");
        for (at, config) in returning.iter().enumerate() {
            match visit(config) {
                Ok(_) => assert_eq!(at % 2, 0, "the revoked one is let in"),
                Err(error) => assert_eq!(at % 2, 1, "{error}"),
            }
        }
        // Nor is a session from before a policy good under it.
        relay.reload(&tls("request", &[])).expect("a valid configuration");
        let nobody = authority.client_config(&[&TLS13], None);
        assert!(!visit(&nobody).expect("let in without a certificate"));
        assert!(visit(&nobody).expect("let in again"));
        relay.reload(&tls("require", &[])).expect("a valid configuration");
        visit(&nobody).expect_err("refused");
        eventually("all are over", || (relay.service("web").connections == 0).then_some(()));
        relay.stop();
    });
}

/// T-41: who authenticates by TLS does so with the real server, and nobody in between can tell what they say.
#[test]
#[ignore = "needs the Debian package openssl"]
fn t_41_mutual_tls_passes_through_as_it_is() {
    in_lab(t_41_mutual_tls_passes_through_as_it_is, Topology::TwoArm, 1, |lab| {
        const PORTS: [u16; 4] = [443, 5061, 5062, 8057];
        let authority = Authority::new("authority");
        let [server, client] = [NAME, "client.example.org"].map(|name| authority.issue(&[name]));
        let servers = PORTS.map(|port| {
            let mut command = Command::new("openssl");
            command.args(["s_server", "-accept", &port.to_string(), "-rev", "-quiet", "-Verify", "2"]);
            command.arg("-verify_return_error").arg("-CAfile").arg(authority.certificate());
            command.arg("-cert").arg(&server.chain).arg("-cert_chain").arg(&server.chain).arg("-key").arg(&server.key);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let running = lab.server(1).spawn(command).expect("openssl is installed");
            let at = (lab.server(1).ipv4(), port);
            eventually("the server listens", || Connection::open(lab.balancer(), at).ok());
            running
        });
        let vip = lab.vip(100);
        let relay =
            subject!().start(lab.balancer(), &service("sip", vip, &format!("{PORTS:?}"), "", &ipv4(lab.servers())));
        for port in PORTS {
            let at = format!("{vip}:{port}");
            for version in ["-tls1_2", "-tls1_3"] {
                let mut command = Command::new("openssl");
                command.args(["s_client", "-connect", &at, "-quiet", version, "-verify_return_error"]);
                command.args(["-verify_hostname", NAME, "-CAfile"]).arg(authority.certificate());
                command
                    .arg("-cert")
                    .arg(&client.chain)
                    .arg("-cert_chain")
                    .arg(&client.chain)
                    .arg("-key")
                    .arg(&client.key);
                assert_eq!(said(lab, command, b"palindrome\nCLOSE\n"), "emordnilap\n", "{at} {version}");
            }
            // Without a certificate it is the real server that refuses.
            let config = authority.client_config(&[&TLS12], None);
            let error = open_with(&config, lab.client(), (vip, port)).expect_err("refused");
            assert!(error.to_string().contains("HandshakeFailure"), "{error}");
        }
        let sip = relay.service("sip");
        assert_eq!((sip.counters["handshakes_full"], sip.opened), (0, 12), "{sip:?}");
        drop(servers);
        relay.stop();
    });
}
