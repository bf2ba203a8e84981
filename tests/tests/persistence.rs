//! What clients are known by besides their address: names and sessions of TLS, calls of SIP; and what that is worth behind one NAT address (T-28).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};

use rustls::ALL_VERSIONS;
use towpath_sys::process::Child;
use towpath_tests::pki::{Pki, open_for};
use towpath_tests::web::{WebClient, WebOrigin};
use towpath_tests::{
    Connection, Greeting, Host, Origin, PATIENCE, Subject, TestLab, Topology, eventually, in_lab, ipv4, service,
    subject,
};

const ROUND_ROBIN: &str = "balance = \"round-robin\"";

/// A ClientHello that asks for `name`.
fn hello(name: &str) -> Vec<u8> {
    let length = |more: usize| ((name.len() + more) as u16).to_be_bytes();
    let extensions = [&[0, 0][..], &length(5), &length(3), &[0], &length(0), name.as_bytes()].concat();
    let mut body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0xc0, 0x2f, 1, 0]].concat();
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let message = [&[1, 0][..], &(body.len() as u16).to_be_bytes(), &body].concat();
    [&[22, 3, 1][..], &(message.len() as u16).to_be_bytes(), &message].concat()
}

/// The server that gets what is sent to the VIP, which has sent it back.
fn led(lab: &TestLab, port: u16, parts: &[&[u8]]) -> String {
    let mut connection = Connection::open(lab.client(), (lab.free_vip(100), port)).expect("the relay listens");
    for part in parts {
        connection.stream().write_all(part).expect("the relay takes it");
    }
    let server = connection.greeting().expect("a server").name;
    assert!(connection.close().expect("an orderly end") == parts.concat(), "not what was sent to {server}");
    server
}

fn relay(lab: &TestLab, port: u16, keys: &str) -> Subject {
    let text = service("web", lab.vip(100), &port.to_string(), &format!("{ROUND_ROBIN}\n{keys}"), &ipv4(lab.servers()));
    subject!().start(lab.balancer(), &text)
}

#[test]
fn clients_of_one_name_share_a_server_where_tls_passes_through() {
    in_lab(clients_of_one_name_share_a_server_where_tls_passes_through, Topology::TwoArm, 2, |lab| {
        let mut origins = [1, 2].map(|n| Some(Origin::tcp(lab.server(n), 443)));
        let relay =
            relay(lab, 443, "persistence = { by = [\"sni\", \"source-ip\"] }\ntls.handshake_timeout = \"300ms\"");
        let homes: BTreeMap<String, String> = (0..6)
            .map(|number| format!("host-{number}.example.org"))
            .map(|name| (name.clone(), led(lab, 443, &[&hello(&name)])))
            .collect();
        assert_eq!(homes.values().collect::<BTreeSet<_>>().len(), 2, "{homes:?}");
        for (name, home) in &homes {
            for _ in 0..3 {
                let bytes = hello(&name.to_uppercase());
                assert_eq!(&led(lab, 443, &[&bytes[..40], &bytes[40..]]), home, "{name}");
            }
        }
        // Who asks for no name is known by its address, and that was seen with the first one.
        assert_eq!(led(lab, 443, &[b"no TLS at all"]), homes["host-0.example.org"]);
        // A server that has gone loses its names.
        let (name, home) = homes.first_key_value().expect("a name");
        let (gone, other) = if home == "server-1" { (0, "server-2") } else { (1, "server-1") };
        origins[gone] = None;
        assert_eq!(led(lab, 443, &[&hello(name)]), other);
        relay.stop();
    });
}

#[test]
#[ignore = "needs the Debian package openssl"]
fn clients_of_one_name_share_a_server_where_tls_is_ended() {
    in_lab(clients_of_one_name_share_a_server_where_tls_is_ended, Topology::TwoArm, 2, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let (vip, pki) = (lab.vip(100), Pki::new());
        let text = pki.service(vip, "terminate", "", &ipv4(lab.servers()));
        let text = text.replacen(
            "[service.tls]",
            &format!("{ROUND_ROBIN}\npersistence = {{ by = \"sni\" }}\n[service.tls]"),
            1,
        );
        let relay = subject!().start(lab.balancer(), &text);
        let said = |name: &str| {
            let mut command = Command::new("openssl");
            command.args(["s_client", "-connect", &format!("{vip}:443"), "-servername", name, "-quiet"]);
            let greeting = Greeting::parse(&said(lab.client(), command)).expect("a greeting");
            greeting.name
        };
        let homes: Vec<(String, String)> =
            (0..4).map(|number| format!("host-{number}.example.org")).map(|name| (name.clone(), said(&name))).collect();
        assert_eq!(homes.iter().map(|(_, home)| home).collect::<BTreeSet<_>>().len(), 2, "{homes:?}");
        for (name, home) in &homes {
            assert_eq!(&said(name), home, "{name}");
        }
        relay.stop();
    });
}

/// The first line that a command on this host says, whose input ends then.
fn said(host: &Host, mut command: Command) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = host.spawn(command).expect("a program that is installed");
    let mut line = String::new();
    BufReader::new(child.process().stdout.take().expect("a pipe")).read_line(&mut line).expect("text");
    line.trim_end().to_owned()
}

/// A server of OpenSSL that keeps its sessions, as servers of TLS 1.2 without tickets do.
fn serve_sessions(host: &Host, pki: &Pki, port: u16) -> Child {
    let mut command = Command::new("openssl");
    command.args(["s_server", "-accept", &port.to_string(), "-rev", "-quiet", "-tls1_2", "-no_ticket"]);
    command.arg("-cert").arg(pki.certificate()).arg("-key").arg(pki.key());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    host.spawn(command).expect("openssl is installed")
}

#[test]
#[ignore = "needs the Debian package openssl"]
fn sessions_of_tls_1_2_are_resumed_because_their_clients_come_back_to_who_gave_them() {
    const TEST: fn() = sessions_of_tls_1_2_are_resumed_because_their_clients_come_back_to_who_gave_them;
    in_lab(TEST, Topology::TwoArm, 2, |lab| {
        let (vip, pki) = (lab.free_vip(100), Pki::new());
        let _servers = [1, 2].map(|n| serve_sessions(lab.server(n), &pki, 443));
        for n in [1, 2] {
            let to = SocketAddr::from((lab.server(n).ipv4(), 443));
            eventually("the server listens", || Connection::open(lab.balancer(), to).ok());
        }
        let folder = tempfile::tempdir().expect("a folder");
        let mut relay = relay(lab, 443, "persistence = { by = \"tls-session-id\" }");
        // Whether the session in the file was resumed; the one that there is afterwards is in it.
        let resumes = |number: usize, first: bool| {
            let file = folder.path().join(number.to_string());
            let mut command = Command::new("openssl");
            command.args(["s_client", "-connect", &format!("{vip}:443"), "-tls1_2", "-sess_out"]).arg(&file);
            if !first {
                command.arg("-sess_in").arg(&file);
            }
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
            let mut child = lab.client().spawn(command).expect("openssl is installed");
            drop(child.process().stdin.take());
            let mut said = String::new();
            child.process().stdout.take().expect("a pipe").read_to_string(&mut said).expect("text");
            child.wait_timeout(PATIENCE).expect("our child").expect("it ends");
            assert!(said.contains("New, TLSv1.2") != said.contains("Reused, TLSv1.2"), "{said}");
            said.contains("Reused, TLSv1.2")
        };
        for number in 0..5 {
            assert!(!resumes(number, true));
        }
        for _ in 0..3 {
            for number in 0..5 {
                assert!(resumes(number, false), "client {number} has come to another server");
            }
        }
        // Without it every other client comes to a server that does not know its session.
        let text = service("web", vip, "443", ROUND_ROBIN, &ipv4(lab.servers()));
        relay.reload(&text).expect("a valid configuration");
        let resumed = (0..5).filter(|&number| resumes(number, false)).count();
        assert!(resumed < 5, "round robin leads nobody back");
        relay.stop();
    });
}

/// The beginning of a SIP message, up to and with its `Call-ID`.
fn sip(call: &str) -> String {
    format!("REGISTER sip:example.org SIP/2.0\r\nVia: SIP/2.0/TCP 10.0.0.1;branch=z9hG4bK1\r\nCall-ID: {call}\r\n\r\n")
}

#[test]
fn connections_of_one_call_share_a_server() {
    in_lab(connections_of_one_call_share_a_server, Topology::TwoArm, 2, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 5060));
        let relay = relay(lab, 5060, "persistence = { by = \"sip-call-id\" }\ntls.handshake_timeout = \"300ms\"");
        let homes: Vec<String> =
            (0..6).map(|number| led(lab, 5060, &[sip(&format!("call-{number}@a")).as_bytes()])).collect();
        assert_eq!(homes.iter().collect::<BTreeSet<_>>().len(), 2, "{homes:?}");
        for (number, home) in homes.iter().enumerate() {
            // Behind a keep-alive, in pieces, and by its short name.
            let text = format!("\r\n\r\n{}", sip(&format!("call-{number}@a")).replace("Call-ID", "i"));
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(11).collect();
            assert_eq!(&led(lab, 5060, &pieces), home);
        }
        // Whoever says nothing may be waiting for the server.
        let mut silent = Connection::open(lab.client(), (lab.free_vip(100), 5060)).expect("the relay listens");
        assert!(silent.greeting().expect("a server").name.starts_with("server-"));
        relay.stop();
    });
}

#[test]
fn connections_of_one_call_share_a_server_behind_tls_that_is_ended() {
    const TEST: fn() = connections_of_one_call_share_a_server_behind_tls_that_is_ended;
    in_lab(TEST, Topology::TwoArm, 2, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let (vip, pki) = (lab.vip(100), Pki::new());
        let text = pki.service(vip, "terminate", "", &ipv4(lab.servers()));
        let keys = format!(
            "{ROUND_ROBIN}\ndrain_timeout = \"100ms\"\npersistence = {{ by = [\"sip-call-id\", \"source-ip\"] }}\n[service.tls]"
        );
        let mut relay = subject!().start(lab.balancer(), &text.replacen("[service.tls]", &keys, 1));
        let config = pki.client_config(ALL_VERSIONS);
        let open = || open_for(&config, "mail.example.org", lab.client(), (vip, 443)).expect("a handshake");
        let led = |text: &str, at: usize| {
            let mut stream = open();
            let (first, rest) = text.split_at(at);
            for part in [first, rest] {
                stream.write_all(part.as_bytes()).expect("the relay takes it");
                stream.flush().expect("the relay takes it");
            }
            let mut reader = BufReader::new(stream);
            let mut line = String::new();
            reader.read_line(&mut line).expect("a greeting");
            let mut back = vec![0; text.len()];
            reader.read_exact(&mut back).expect("an echo");
            assert_eq!(back, text.as_bytes());
            Greeting::parse(line.trim_end()).expect("a greeting").name
        };
        let homes: Vec<String> = (0..6).map(|number| led(&sip(&format!("call-{number}")), 0)).collect();
        assert_eq!(homes.iter().collect::<BTreeSet<_>>().len(), 2, "{homes:?}");
        for (number, home) in homes.iter().enumerate() {
            // In two records.
            assert_eq!(&led(&sip(&format!("call-{number}")), 50), home);
        }
        // In so many records that nobody waits for the last: it has a server at once, that of its address.
        let mut stream = open();
        let text = sip("call-1");
        for part in text.as_bytes().chunks(3) {
            stream.write_all(part).expect("the relay takes it");
            stream.flush().expect("the relay takes it");
        }
        let mut back = vec![0; text.len()];
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).expect("a greeting");
        reader.read_exact(&mut back).expect("an echo");
        assert_eq!(back, text.as_bytes());
        drop(reader);
        // What is no SIP is known by its address.
        assert_eq!(led("hello\r\n", 2), homes[0]);
        // Who ends before a whole head, who goes away, and who waits while the process ends.
        let mut half = open();
        half.write_all(b"REGISTER sip:a SIP/2.0\r\n").expect("the relay takes it");
        half.conn.send_close_notify();
        let mut back = String::new();
        half.read_to_string(&mut back).expect("an orderly end");
        assert!(back.ends_with("REGISTER sip:a SIP/2.0\r\n"), "{back}");
        drop(open());
        let _waits = open();
        relay.until("both have come", |status| status.services[0].accepted == 17);
        relay.terminate();
        assert_eq!(relay.wait(), Some(0));
    });
}

/// A user agent: one socket.
struct Agent {
    socket: UdpSocket,
    vip: SocketAddr,
}

impl Agent {
    fn at(lab: &TestLab, from: IpAddr) -> Agent {
        let bound = lab.client().run(|| UdpSocket::bind(SocketAddr::new(from, 0))).expect("a thread");
        let socket = bound.expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("not zero");
        Agent { socket, vip: (lab.free_vip(100), 5060).into() }
    }

    /// Who answers this.
    fn ask(&self, text: &str) -> String {
        self.socket.send_to(text.as_bytes(), self.vip).expect("our own kernel takes it");
        let mut buffer = [0; 2048];
        let (length, from) = self.socket.recv_from(&mut buffer).expect("an answer");
        assert_eq!(from, self.vip);
        let answer = std::str::from_utf8(&buffer[..length]).expect("text");
        let (line, echo) = answer.split_once('\n').expect("a greeting");
        assert_eq!(echo, text);
        Greeting::parse(line).expect("a greeting").name
    }
}

#[test]
fn each_call_of_a_proxy_has_a_server_over_udp_and_whoever_takes_part_in_it_the_same() {
    const TEST: fn() = each_call_of_a_proxy_has_a_server_over_udp_and_whoever_takes_part_in_it_the_same;
    in_lab(TEST, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let _origins = [1, 2].map(|n| Origin::udp(lab.server(n), 5060));
        let keys = format!("protocol = \"udp\"\n{ROUND_ROBIN}\npersistence = {{ by = \"sip-call-id\" }}");
        let relay = subject!().start(lab.balancer(), &service("sip", vip, "5060", &keys, &ipv4(lab.servers())));
        let (proxy, other) = (Agent::at(lab, lab.client().ipv4().into()), Agent::at(lab, lab.second_client(201)));
        let homes: Vec<String> = (0..6).map(|number| proxy.ask(&sip(&format!("call-{number}")))).collect();
        assert_eq!(homes.iter().filter(|home| *home == "server-1").count(), 3, "{homes:?}");
        for (number, home) in homes.iter().enumerate() {
            for agent in [&proxy, &other] {
                assert_eq!(&agent.ask(&sip(&format!("call-{number}"))), home);
            }
        }
        // Keep-alives of the proxy have a session of their own.
        let home = proxy.ask("\r\n\r\n");
        assert_eq!(proxy.ask("\r\n\r\n"), home);
        assert_eq!(relay.service("sip").connections, 13);
        relay.stop();
    });
}

#[test]
fn a_call_that_a_server_begins_goes_by_the_session_that_it_was_begun_by() {
    in_lab(a_call_that_a_server_begins_goes_by_the_session_that_it_was_begun_by, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let at = SocketAddr::from((lab.server(1).ipv4(), 5060));
        let server = lab.server(1).run(|| UdpSocket::bind(at)).expect("a thread").expect("a socket");
        server.set_read_timeout(Some(PATIENCE)).expect("not zero");
        let keys = format!("protocol = \"udp\"\n{ROUND_ROBIN}\npersistence = {{ by = \"sip-call-id\" }}");
        let relay = subject!().start(lab.balancer(), &service("sip", vip, "5060", &keys, &ipv4(lab.servers())));
        let phone = Agent::at(lab, lab.client().ipv4().into());
        let mut buffer = [0; 2048];
        let mut hear = |said: &str| {
            phone.socket.send_to(said.as_bytes(), phone.vip).expect("our own kernel takes it");
            let (length, from) = server.recv_from(&mut buffer).expect("a datagram");
            assert_eq!(&buffer[..length], said.as_bytes());
            from
        };
        let registered = hear(&sip("registration"));
        server.send_to(sip("incoming").as_bytes(), registered).expect("the relay's port is open");
        phone.socket.recv_from(&mut [0; 2048]).expect("the call");
        let answer = "SIP/2.0 200 OK\r\nCall-ID: incoming\r\n\r\n";
        assert_eq!(hear(answer), registered, "its server would not know the answer");
        assert_ne!(hear(&sip("outgoing")), registered);
        assert_eq!(relay.service("sip").connections, 2);
        relay.stop();
    });
}

#[test]
fn one_client_does_not_take_every_session_by_its_calls() {
    in_lab(one_client_does_not_take_every_session_by_its_calls, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let _origins = [1, 2].map(|n| Origin::udp(lab.server(n), 5060));
        let keys = format!("protocol = \"udp\"\n{ROUND_ROBIN}\npersistence = {{ by = \"sip-call-id\" }}");
        let relay = subject!().start(lab.balancer(), &service("sip", vip, "5060", &keys, &ipv4(lab.servers())));
        let flood = Agent::at(lab, lab.client().ipv4().into());
        for number in 0..1_024 + 6 {
            flood.ask(&sip(&format!("call-{number}")));
        }
        let status = relay.service("sip");
        assert_eq!((status.connections, status.counters["datagrams_crowded"]), (1_025, 6));
        // Another client has room.
        Agent::at(lab, lab.client().ipv4().into()).ask(&sip("other"));
        assert_eq!(relay.service("sip").connections, 1_026);
        relay.stop();
    });
}

/// Clients behind one address, …
const CROWD: usize = 60;
/// … and how often each comes.
const VISITS: usize = 3;

/// How many of the clients each server has, and whether every client has come back to its own.
fn crowd(lab: &TestLab, mut visit: impl FnMut(usize) -> String) -> (Vec<usize>, bool) {
    let mut homes: Vec<BTreeSet<String>> = vec![BTreeSet::new(); CROWD];
    for _ in 0..VISITS {
        for (client, seen) in homes.iter_mut().enumerate() {
            seen.insert(visit(client));
        }
    }
    let of = |host: &Host| homes.iter().filter(|seen| seen.first().is_some_and(|name| name == host.name())).count();
    (lab.servers().iter().map(of).collect(), homes.iter().all(|seen| seen.len() == 1))
}

#[test]
fn t_28_many_clients_behind_one_address_are_one_to_source_ip_and_many_to_cookies_and_headers() {
    const TEST: fn() = t_28_many_clients_behind_one_address_are_one_to_source_ip_and_many_to_cookies_and_headers;
    in_lab(TEST, Topology::TwoArm, 3, |lab| {
        let vip = lab.vip(100);
        let _origins: Vec<WebOrigin> = lab.servers().iter().map(|host| WebOrigin::start(host, 80)).collect();
        let text = |persistence: &str| {
            let keys =
                format!("balance = \"weighted-least-connections\"\npersistence = {{ {persistence} }}\nhttp = {{}}");
            service("web", vip, "80", &keys, &ipv4(lab.servers()))
        };
        let mut relay = subject!().start(lab.balancer(), &text("by = \"none\""));
        println!("{CROWD} clients behind one address, {VISITS} connections each; clients of each server");
        println!("{:<12} {:>8} {:>8} {:>8}  busiest / even share", "persistence", "server-1", "server-2", "server-3");
        let mut rows = Vec::new();
        for (name, persistence) in [
            ("source-ip", "by = \"source-ip\""),
            ("cookie", "by = \"cookie\""),
            ("header", "by = \"header\", header = \"Authorization\""),
        ] {
            relay.reload(&text(persistence)).expect("a valid configuration");
            let mut cookies = vec![String::new(); CROWD];
            let (counts, steady) = crowd(lab, |client| {
                let own = format!("Authorization: Basic user-{client}\r\n{}", cookies[client]);
                let response = WebClient::open(lab.client(), (vip, 80)).get_with("/", &own);
                if let Some(set) = response.field("set-cookie") {
                    cookies[client] = format!("Cookie: {}\r\n", set.split(';').next().unwrap_or_default());
                }
                response.text().split(' ').next().unwrap_or_default().to_owned()
            });
            let busiest = *counts.iter().max().expect("servers");
            let share = busiest as f64 * counts.len() as f64 / CROWD as f64;
            println!("{name:<12} {:>8} {:>8} {:>8}  {share:.2}", counts[0], counts[1], counts[2]);
            assert!(steady, "{name}: a client has come to another server");
            rows.push((name, busiest, counts));
        }
        assert_eq!(rows[0].1, CROWD, "source-ip: all on one server: {rows:?}");
        for (name, busiest, counts) in &rows[1..] {
            assert!(*busiest <= CROWD / 3 + 3 && counts.iter().sum::<usize>() == CROWD, "{name}: {counts:?}");
        }
        relay.stop();
    });
}

/// All that a client shows is remembered: who loses its cookie is still known by its address. But it leads away nobody who shows the same.
#[test]
fn who_shows_less_than_before_is_known_by_what_is_left() {
    in_lab(who_shows_less_than_before_is_known_by_what_is_left, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let origins: Vec<WebOrigin> = lab.servers().iter().map(|host| WebOrigin::start(host, 80)).collect();
        let keys = format!(
            "{ROUND_ROBIN}\npersistence = {{ by = [\"header\", \"cookie\", \"source-ip\"], header = \"X-User\" }}\nhttp = {{}}"
        );
        let relay = subject!().start(lab.balancer(), &service("web", vip, "80", &keys, &ipv4(lab.servers())));
        let ask = |fields: &str| {
            let response = WebClient::open(lab.client(), (vip, 80)).get_with("/", fields);
            let cookie = response.field("set-cookie").and_then(|set| set.split(';').next()).map(str::to_owned);
            (response.text().split(' ').next().unwrap_or_default().to_owned(), cookie)
        };
        let (home, cookie) = ask("X-User: one\r\n");
        let cookie = cookie.expect("a cookie");
        let (second, _) = ask("X-User: two\r\n");
        assert_ne!(home, second, "each user is balanced");
        assert_eq!(ask(&format!("Cookie: {cookie}\r\n")).0, home);
        assert_eq!(ask("").0, home, "the address was seen there first");
        // Another client behind the address, which shows nothing but that, stays where it is, whatever this one does.
        for _ in 0..20 {
            assert_eq!(ask("X-User: two\r\n").0, second);
            assert_eq!(ask("").0, home);
        }
        // The header goes before a cookie that says something else, which is set right.
        let (served, set) = ask(&format!("X-User: two\r\nCookie: {cookie}\r\n"));
        assert_eq!(served, second);
        assert!(set.is_some_and(|set| set != cookie), "the cookie names the server that serves");
        // A server that has gone loses all of them.
        origins[usize::from(home != "server-1")].stop();
        for fields in ["X-User: one\r\n".to_owned(), format!("Cookie: {cookie}\r\n"), String::new()] {
            assert_eq!(ask(&fields).0, second, "{fields}");
        }
        relay.stop();
    });
}
