//! The PROXY protocol: what proxies in front say of their clients, and what nginx and HAProxy behind hear of ours.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use towpath_perf::lab::Child;
use towpath_tests::pki::{NAME, Pki};
use towpath_tests::web::{WebClient, WebOrigin};
use towpath_tests::{
    Connection, Host, Origin, PATIENCE, TestLab, Topology, eventually, in_lab, ipv4, service, service_to, subject,
};

/// A client that a proxy speaks for, and where that has come to.
const SAID: &str = "PROXY TCP4 203.0.113.9 198.51.100.7 12345 443\r\n";
/// The same in version 2, with an entry that means nothing.
const SAID_V2: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x11\xcb\0\x71\x09\xc6\x33\x64\x07\x30\x39\x01\xbb\x04\0\x02\0\0";

/// Keys of a service that trusts the lab's client.
fn trusted(lab: &TestLab) -> String {
    format!("proxy_protocol_from = [\"{}/32\"]\n", lab.client().ipv4())
}

/// A program on a host of the lab, and the folder of its files; killed when dropped.
struct Peer {
    _child: Child,
    _folder: TempDir,
}

impl Peer {
    /// Starts it with a file of this text and waits until it listens.
    #[track_caller]
    fn start(host: &Host, program: &str, arguments: &[&str], config: impl FnOnce(&str) -> String, port: u16) -> Peer {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let place = folder.path().to_str().expect("text").to_owned();
        let file = folder.path().join("config");
        fs::write(&file, config(&place)).expect("a file");
        let said = fs::File::create(folder.path().join("said")).expect("a file");
        let path = ["/usr/sbin", "/usr/bin", "/usr/local/sbin"].iter().map(|folder| format!("{folder}/{program}"));
        let path = path.into_iter().find(|path| fs::exists(path).unwrap_or(false));
        let mut command = Command::new(path.unwrap_or_else(|| panic!("{program} is not installed")));
        command.args(arguments).arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
        let mut child = host.spawn(command).expect("a program");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        eventually(&format!("{program} listens"), || {
            let ended = child.try_wait().expect("it is our child");
            let said = || fs::read_to_string(folder.path().join("said")).unwrap_or_default();
            assert!(ended.is_none(), "{program} has ended: {}", said());
            host.run(|| TcpStream::connect(address).is_ok()).expect("a thread").then_some(())
        });
        Peer { _child: child, _folder: folder }
    }

    /// nginx that answers with the client that it has heard of, on port 80 and with TLS on 443.
    #[track_caller]
    fn nginx(host: &Host, pki: &Pki) -> Peer {
        let (certificate, key) = (pki.certificate(), pki.key());
        Peer::start(
            host,
            "nginx",
            &["-e", "/dev/null", "-c"],
            |folder| {
                let bodies: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|what| format!("{what}_temp_path {folder}/{what};\n"))
                    .concat();
                format!(
                    "daemon off; master_process off; error_log {folder}/error.log info; pid {folder}/pid;\n\
                     events {{ worker_connections 128; }}\n\
                     http {{ access_log {folder}/access.log;\n{bodies}\
                     server {{ listen 80 proxy_protocol; listen 443 ssl proxy_protocol;\n\
                     ssl_certificate {}; ssl_certificate_key {};\n\
                     location / {{ return 200 \"nginx $proxy_protocol_addr $proxy_protocol_server_port $http_x_forwarded_for\\n\"; }} }} }}\n",
                    certificate.display(),
                    key.display()
                )
            },
            80,
        )
    }

    /// HAProxy that does the same on port 81, and says whom the client has asked for by TLS.
    #[track_caller]
    fn haproxy(host: &Host, text: &str, port: u16) -> Peer {
        let text = format!(
            "global\n  maxconn 200\ndefaults\n  mode http\n  timeout connect 10s\n  timeout client 30s\n  timeout server 30s\n{text}"
        );
        Peer::start(host, "haproxy", &["-db", "-q", "-f"], |_| text, port)
    }
}

const HAPROXY_BEHIND: &str = "frontend behind\n  bind :81 accept-proxy\n  \
    http-request return status 200 content-type text/plain lf-string \"haproxy %[src] %[fc_pp_authority] %[req.hdr(x-forwarded-for)]\\n\"\n";

#[track_caller]
fn curl(host: &Host, arguments: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "60"]).args(arguments);
    let output = host.run(|| command.output()).expect("a thread").expect("curl");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
#[ignore = "needs the Debian package curl"]
fn the_client_that_a_proxy_names_counts_for_everything() {
    in_lab(the_client_that_a_proxy_names_counts_for_everything, Topology::TwoArm, 2, |lab| {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let log = folder.path().join("access.log");
        let origins: Vec<WebOrigin> = lab.servers().iter().map(|host| WebOrigin::start(host, 80)).collect();
        let vip = lab.vip(100);
        let keys = trusted(lab)
            + "persistence = { by = \"source-ip\" }\nbalance = \"round-robin\"\n[service.http]\n\
               [[service.http.route]]\npath = [\"/own\"]\nfrom = [\"203.0.113.0/24\"]\nstatus = 418\n";
        let config = format!(
            "[log]\nconnections = \"all\"\nconnections_format = \"json\"\nconnections_to = \"{}\"\n{}",
            log.display(),
            service("web", vip, "[80]", &keys, &ipv4(lab.servers()))
        );
        let relay = subject!().start(lab.balancer(), &config);
        let ask = |header: &[u8], path: &str| {
            let mut client = WebClient::open(lab.client(), (vip, 80));
            client.send([header, format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()].concat());
            client.response("GET").expect("a response")
        };
        for header in [SAID.as_bytes(), SAID_V2] {
            assert_eq!(ask(header, "/own").status, 418, "the route of its network");
            assert_eq!(ask(header, "/").status, 200);
        }
        // Persistence goes by the address that is said: each comes back, and one after the other they take turns.
        let server_of = |last: u8| {
            let header = format!("PROXY TCP4 192.0.2.{last} 198.51.100.7 1 443\r\n");
            ask(header.as_bytes(), "/").field("x-server").expect("a server").to_owned()
        };
        let first: Vec<String> = (1..5).map(server_of).collect();
        let again: Vec<String> = (1..5).map(server_of).collect();
        assert_eq!(first, again);
        assert!(first.contains(&"server-1".to_owned()) && first.contains(&"server-2".to_owned()), "{first:?}");
        // Headers of HTTP, and the log.
        let forwarded: Vec<String> = origins
            .iter()
            .flat_map(WebOrigin::requests)
            .map(|request| request.field("x-forwarded-for").unwrap_or_default().to_owned())
            .collect();
        assert_eq!(forwarded.iter().filter(|client| *client == "203.0.113.9").count(), 2, "{forwarded:?}");
        assert_eq!(forwarded.iter().filter(|client| *client == "192.0.2.3").count(), 2, "{forwarded:?}");
        // Of a check of the proxy's its own address counts.
        for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
            assert_eq!(ask(header, "/own").status, 200, "another network");
        }
        let url = format!("http://{vip}/");
        let own = curl(lab.client(), &["--haproxy-protocol", &url]);
        assert!(own.starts_with("server-"), "{own}");
        let line: Value = eventually("lines", || {
            let text = fs::read_to_string(&log).ok()?;
            serde_json::from_str(text.lines().next()?).ok()
        });
        assert_eq!((&line["client"], &line["client_port"]), (&"203.0.113.9".into(), &12345.into()), "{line}");
        assert_eq!((&line["vip"], &line["vip_port"]), (&"198.51.100.7".into(), &443.into()), "{line}");
        assert_eq!(line["proxy"], lab.client().ipv4().to_string(), "{line}");
        relay.stop();
    });
}

#[test]
fn headers_come_in_any_pieces_and_what_follows_goes_on() {
    in_lab(headers_come_in_any_pieces_and_what_follows_goes_on, Topology::TwoArm, 1, |lab| {
        const BULK: usize = 30_000_000;
        let _origin = Origin::tcp(lab.server(1), 443);
        let vip = lab.vip(100);
        let relay =
            subject!().start(lab.balancer(), &service("web", vip, "[443]", &trusted(lab), &ipv4(lab.servers())));
        for header in [SAID.as_bytes(), SAID_V2] {
            // With what the client says right behind it.
            let mut client = Connection::open(lab.client(), (vip, 443)).expect("a connection");
            client.stream().write_all(&[header, b"hello"].concat()).expect("an open connection");
            client.greeting().expect("a greeting");
            let mut back = [0; 5];
            client.stream().read_exact(&mut back).expect("an echo");
            assert_eq!(&back, b"hello");
            client.echo(&[7; 100_000]).expect("an echo");
            client.close().expect("an orderly end");
            // Byte by byte, each a packet of its own, with the first one of the client behind it.
            let mut client = Connection::open(lab.client(), (vip, 443)).expect("a connection");
            for byte in [header, b"x"].concat() {
                client.stream().write_all(&[byte]).expect("an open connection");
                thread::yield_now();
            }
            client.greeting().expect("a greeting");
            client.stream().read_exact(&mut back[..1]).expect("an echo");
            assert_eq!(&back[..1], b"x");
            client.close().expect("an orderly end");
            // Bulk, which never enters the process.
            let mut client = Connection::open(lab.client(), (vip, 443)).expect("a connection");
            client.stream().write_all(header).expect("an open connection");
            client.greeting().expect("a greeting");
            let mut writer = client.stream().try_clone().expect("a descriptor");
            let sender = thread::spawn(move || {
                let block: Vec<u8> = (0..250u8).cycle().take(1_000_000).collect();
                (0..BULK / block.len()).for_each(|_| writer.write_all(&block).expect("an open connection"));
                writer.shutdown(Shutdown::Write).expect("an open connection");
            });
            let all = client.end().expect("an orderly end");
            sender.join().expect("no panic");
            assert_eq!(all.len(), BULK);
            assert!(all.iter().zip((0..250u8).cycle()).all(|(byte, expected)| *byte == expected));
        }
        assert!(relay.service("web").counters["bulk"] > 0);
        relay.stop();
    });
}

#[test]
fn what_is_no_header_is_refused_and_counted() {
    in_lab(what_is_no_header_is_refused_and_counted, Topology::TwoArm, 1, |lab| {
        let _origin = Origin::tcp(lab.server(1), 443);
        let (vip, second) = (lab.vip(100), lab.second_client(150));
        let keys = trusted(lab) + "proxy_protocol_timeout = \"300ms\"\n";
        let config = service("web", vip, "[443]", &keys, &ipv4(lab.servers()));
        let mut relay = subject!().start(lab.balancer(), &config);
        let mut count = 0;
        for header in [
            "GET / HTTP/1.1\r\n\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 1\n",
            "\r\n\r\n\0\r\nQUIT\n\x22\x11\0\0",
            &"PROXY UNKNOWN ".repeat(20),
        ] {
            let mut client = Connection::open(lab.client(), (vip, 443)).expect("a connection");
            client.stream().write_all(header.as_bytes()).expect("an open connection");
            assert!(client.is_ended(), "{header:?}");
            count += 1;
        }
        let since = Instant::now();
        let mut silent = Connection::open(lab.client(), (vip, 443)).expect("a connection");
        let mut slow = Connection::open(lab.client(), (vip, 443)).expect("a connection");
        slow.stream().write_all(&SAID.as_bytes()[..SAID.len() - 1]).expect("an open connection");
        assert!(silent.is_ended() && slow.is_ended());
        assert!(since.elapsed() >= Duration::from_millis(250), "{:?}", since.elapsed());
        drop(Connection::open(lab.client(), (vip, 443)).expect("a connection"));
        let half = Connection::open(lab.client(), (vip, 443)).expect("a connection");
        half.stream().write_all(b"PROXY TCP4 ").expect("an open connection");
        half.stream().shutdown(Shutdown::Write).expect("an open connection");
        // From elsewhere nobody may say anything, a header or not.
        assert!(towpath_tests::is_refused_from(lab.client(), second, (vip, 443)));
        eventually("all have ended", || {
            let ends = relay.service("web").terminations;
            let counted =
                ["proxy_invalid", "proxy_timed_out", "proxy_left", "proxy_untrusted"].map(|reason| ends[reason]);
            (counted == [count, 2, 2, 1]).then_some(())
        });
        let status = relay.status();
        assert_eq!((status.limits.connections.used, relay.service("web").connections), (0, 0));
        assert!(relay.service("web").opened == 0, "no server has seen any of it");
        // Where others are served, they are clients as any; what they send is theirs.
        let served =
            config.replace("proxy_protocol_timeout", "proxy_protocol_others = \"serve\"\nproxy_protocol_timeout");
        relay.reload(&served).expect("a good file");
        let mut client = Connection::open_from(lab.client(), second, (vip, 443)).expect("a connection");
        client.greeting().expect("a greeting");
        client.echo(SAID.as_bytes()).expect("an echo");
        client.close().expect("an orderly end");
        relay.stop();
    });
}

#[test]
#[ignore = "needs the Debian packages curl, haproxy, nginx-light"]
fn nginx_and_haproxy_hear_who_the_client_is() {
    in_lab(nginx_and_haproxy_hear_who_the_client_is, Topology::TwoArm, 1, |lab| {
        let pki = Pki::new();
        let _nginx = Peer::nginx(lab.server(1), &pki);
        let _haproxy = Peer::haproxy(lab.server(1), HAPROXY_BEHIND, 81);
        let (vip, server, client) = (lab.vip(100), lab.server(1).ipv4(), lab.client().ipv4());
        // Relayed unread, and in HTTP mode, in both versions; each server by a check that needs a header, too.
        let mut config = String::new();
        for (port, keys) in [
            (8001, "proxy_protocol = \"v1\""),
            (8002, "proxy_protocol = \"v2\""),
            (8003, "proxy_protocol = \"v1\"\nhttp = {}"),
            (8004, "proxy_protocol = \"v2\"\nhttp = {}"),
        ] {
            for (behind, name) in [(80, "nginx"), (81, "haproxy")] {
                let port = if behind == 80 { port } else { port + 100 };
                let keys = format!("health = {{ check = \"http\", interval = \"200ms\" }}\n{keys}");
                let socket = SocketAddr::from((server, behind));
                config += &service_to(&format!("{name}-{port}"), vip, &port.to_string(), &keys, &[("one", socket)]);
            }
        }
        let relay = subject!().start(lab.balancer(), &config);
        relay.until_all_up();
        for port in 8001..=8004 {
            let forwarded = if port > 8002 { client.to_string() } else { String::new() };
            let said = curl(lab.client(), &[&format!("http://{vip}:{port}/"), &format!("http://{vip}:{port}/")]);
            let expected = format!("nginx {client} {port} {forwarded}\n");
            assert_eq!(said, expected.repeat(2), "{port}");
            let said = curl(lab.client(), &[&format!("http://{vip}:{}/", port + 100)]);
            assert_eq!(said.trim_end(), format!("haproxy {client}  {forwarded}").trim_end(), "{port}");
        }
        // Without a header nginx serves nobody: the checks have told it one.
        let mut bare = Connection::open(lab.balancer(), (server, 80)).expect("a connection");
        bare.stream().write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("an open connection");
        assert!(bare.end().is_ok_and(|said| !said.starts_with(b"HTTP/1.1 200")));
        relay.stop();
    });
}

#[test]
#[ignore = "needs the Debian packages curl, haproxy, nginx-light"]
fn servers_hear_of_tls_that_is_ended_here_and_before_their_own() {
    in_lab(servers_hear_of_tls_that_is_ended_here_and_before_their_own, Topology::TwoArm, 1, |lab| {
        let pki = Pki::new();
        let _nginx = Peer::nginx(lab.server(1), &pki);
        let _haproxy = Peer::haproxy(lab.server(1), HAPROXY_BEHIND, 81);
        let (vip, server) = (lab.vip(100), lab.server(1).ipv4());
        let (certificate, key) = (pki.certificate(), pki.key());
        let tls = |mode: &str, more: &str| {
            format!(
                "[service.tls]\nmode = \"{mode}\"\n{more}[[service.tls.certificate]]\nfile = \"{}\"\nkey = \"{}\"\n",
                certificate.display(),
                key.display()
            )
        };
        let own = "proxy_protocol = \"v2\"\n".to_owned() + &trusted(lab);
        let mut config = String::new();
        for (port, behind, http) in [
            (8001, 80, ""),
            (8002, 81, ""),
            (8003, 443, ""),
            (8011, 80, "http = {}\n"),
            (8012, 81, "http = {}\n"),
            (8013, 443, "http = {}\n"),
        ] {
            let re_encrypts = behind == 443;
            let health = if re_encrypts { "tls" } else { "http" };
            let keys = format!("{own}health = {{ check = \"{health}\", interval = \"200ms\" }}\n{http}");
            let tls = if re_encrypts { tls("re-encrypt", "verify_server = \"none\"\n") } else { tls("terminate", "") };
            let socket = SocketAddr::from((server, behind));
            config += &service_to(&format!("web-{port}"), vip, &port.to_string(), &(keys + &tls), &[("one", socket)]);
        }
        // And TLS that passes through, to who ends it behind the header.
        let keys = format!("{own}health = {{ check = \"tls\", interval = \"200ms\" }}");
        config += &service_to("through", vip, "8023", &keys, &[("one", SocketAddr::from((server, 443)))]);
        let relay = subject!().start(lab.balancer(), &config);
        relay.until_all_up();
        let client = lab.client().ipv4();
        let ca = certificate.to_str().expect("text");
        for (port, start) in [
            (8001, format!("nginx {client} 8001")),
            (8002, format!("haproxy {client} {NAME}")),
            (8003, format!("nginx {client} 8003")),
            (8011, format!("nginx {client} 8011 {client}")),
            (8012, format!("haproxy {client} {NAME} {client}")),
            (8013, format!("nginx {client} 8013 {client}")),
            (8023, format!("nginx {client} 8023")),
        ] {
            let (url, to) = (format!("https://{NAME}:{port}/"), format!("{NAME}:{port}:{vip}"));
            // A header of the client's own in front of its handshake: curl is a proxy, too.
            let said = curl(lab.client(), &["--haproxy-protocol", "--cacert", ca, "--resolve", &to, &url, &url]);
            assert!(said.lines().count() == 2 && said.lines().all(|line| line.starts_with(&start)), "{port}: {said}");
        }
        relay.stop();
    });
}

#[test]
#[ignore = "needs the Debian packages curl, haproxy, nginx-light"]
fn a_client_behind_haproxy_is_known_behind_us() {
    in_lab(a_client_behind_haproxy_is_known_behind_us, Topology::TwoArm, 1, |lab| {
        let pki = Pki::new();
        let _nginx = Peer::nginx(lab.server(1), &pki);
        let (vip, server) = (lab.vip(100), lab.server(1).ipv4());
        let keys = trusted(lab) + "proxy_protocol = \"v2\"";
        let config = service_to("web", vip, "[80]", &keys, &[("one", SocketAddr::from((server, 80)))]);
        let relay = subject!().start(lab.balancer(), &config);
        // HAProxy stands beside the client, which it sees at the loopback.
        let listen = |port: u16, more: &str| {
            format!("listen front-{port}\n  mode tcp\n  bind 127.0.0.1:{port}\n  server relay {vip}:80 {more}\n")
        };
        let text = listen(9001, "send-proxy")
            + &listen(9002, "send-proxy-v2")
            + &listen(9003, "send-proxy-v2 proxy-v2-options crc32c");
        let _front = Peer::haproxy(lab.client(), &text, 9001);
        for port in 9001..=9003 {
            let said = curl(lab.client(), &[&format!("http://127.0.0.1:{port}/")]);
            assert!(said.starts_with(&format!("nginx 127.0.0.1 {port}")), "{port}: {said}");
        }
        relay.stop();
    });
}

#[test]
fn the_header_is_the_first_of_each_connection_and_nothing_of_it_is_the_clients() {
    in_lab(the_header_is_the_first_of_each_connection_and_nothing_of_it_is_the_clients, Topology::TwoArm, 1, |lab| {
        let listener = lab.server(1).run(|| TcpListener::bind("0.0.0.0:80")).expect("a thread").expect("a listener");
        let vip = lab.vip(100);
        let relay = subject!()
            .start(lab.balancer(), &service("web", vip, "[80]", "proxy_protocol = \"v1\"", &ipv4(lab.servers())));
        // Whoever speaks first: the server has its header, without waiting for the client.
        let client = Connection::open(lab.client(), (vip, 80)).expect("a connection");
        let (mut server, _) = listener.accept().expect("the relay connects");
        server.set_read_timeout(Some(PATIENCE)).expect("not zero");
        let port = client.stream().local_addr().expect("an address").port();
        let expected = format!("PROXY TCP4 {} {vip} {port} 80\r\n", lab.client().ipv4());
        let mut header = vec![0; expected.len()];
        server.read_exact(&mut header).expect("a header");
        assert_eq!(String::from_utf8_lossy(&header), expected);
        server.write_all(b"220 hello\r\n").expect("an open connection");
        let mut said = [0; 11];
        client.stream().read_exact(&mut said).expect("the server's word");
        // A header of the client's own is payload behind ours.
        client.stream().write_all(SAID.as_bytes()).expect("an open connection");
        client.stream().shutdown(Shutdown::Write).expect("an open connection");
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).expect("an orderly end");
        assert_eq!(rest, SAID.as_bytes());
        drop(server);
        eventually("it is counted without its header", || {
            let web = relay.service("web");
            (web.bytes_from_client == SAID.len() as u64 && web.connections == 0).then_some(())
        });
        relay.stop();
    });
}
