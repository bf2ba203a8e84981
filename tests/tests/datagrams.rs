//! UDP, with the port of STUN in mind: every datagram whole and to its own peer, sessions that begin and end.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use towpath_engine::status::HealthStatus;
use towpath_tests::{
    Greeting, Host, Origin, PATIENCE, Subject, TestLab, Topology, eventually, in_lab, ipv4, ipv6, service, subject,
};

const STUN: u16 = 3478;
const ROUND_ROBIN: &str = "protocol = \"udp\"\nbalance = \"round-robin\"";
/// The largest datagram over IPv4.
const LARGEST: usize = 65_507;

fn bound(host: &Host, to: SocketAddr) -> UdpSocket {
    let socket = host.run(|| UdpSocket::bind(to)).expect("a thread").expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("not zero");
    socket
}

/// A client: a socket of its own, at a port of its own.
struct Client {
    socket: UdpSocket,
    vip: SocketAddr,
}

impl Client {
    fn at(lab: &TestLab, from: IpAddr, vip: SocketAddr) -> Client {
        Client { socket: bound(lab.client(), SocketAddr::new(from, 0)), vip }
    }

    fn send(&self, datagram: &[u8]) {
        let sent = self.socket.send_to(datagram, self.vip).expect("our own kernel takes it");
        assert_eq!(sent, datagram.len());
    }

    /// The next datagram, which must come from the VIP.
    fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; LARGEST + 1];
        let (length, from) = self.socket.recv_from(&mut buffer).expect("a datagram");
        assert_eq!(from, self.vip, "an answer leaves from the VIP's address and port");
        buffer.truncate(length);
        buffer
    }

    /// The answer of an [`Origin`] to `datagram`.
    fn ask(&self, datagram: &[u8]) -> Greeting {
        self.send(datagram);
        self.answer(datagram)
    }

    fn answer(&self, to: &[u8]) -> Greeting {
        let answer = self.receive();
        let line = answer.iter().position(|&byte| byte == b'\n').expect("a greeting") + 1;
        assert_eq!(&answer[line..], to, "another client's answer");
        Greeting::parse(std::str::from_utf8(&answer[..line]).expect("text")).expect("a greeting")
    }

    /// Whether nothing has come.
    fn is_empty(&self) -> bool {
        self.socket.set_nonblocking(true).expect("a socket");
        let nothing = self.socket.recv_from(&mut [0; 1]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        self.socket.set_nonblocking(false).expect("a socket");
        nothing
    }
}

fn content(length: usize, salt: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251 + salt * 7) as u8).collect()
}

fn ended(relay: &Subject, termination: &str) -> u64 {
    relay.service("stun").terminations[termination]
}

#[test]
fn replies_find_their_way_back_from_both_servers_to_every_address_and_port() {
    in_lab(replies_find_their_way_back_from_both_servers_to_every_address_and_port, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let to = SocketAddr::from((vip, STUN));
        let _origins = [1, 2].map(|n| Origin::udp(lab.server(n), STUN));
        let relay = subject!().start(lab.balancer(), &service("stun", vip, "3478", ROUND_ROBIN, &ipv4(lab.servers())));
        let addresses = [lab.client().ipv4().into(), lab.second_client(201)];
        // Both clients use the same ports; so many that each worker has several of both.
        let clients: Vec<Client> = (0..16)
            .flat_map(|_| {
                let first = Client::at(lab, addresses[0], to);
                let port = first.socket.local_addr().expect("bound").port();
                let second = Client { socket: bound(lab.client(), SocketAddr::new(addresses[1], port)), vip: to };
                [first, second]
            })
            .collect();
        let mut before: Vec<Greeting> = Vec::new();
        for round in 0..3 {
            for (client, n) in clients.iter().zip(0..) {
                client.send(&content(100, 1_000 * round + n));
            }
            let answers: Vec<Greeting> =
                clients.iter().zip(0..).map(|(client, n)| client.answer(&content(100, 1_000 * round + n))).collect();
            let on_first = answers.iter().filter(|greeting| greeting.name == "server-1").count();
            assert_eq!(on_first, clients.len() / 2, "round robin over both");
            let sources: BTreeSet<SocketAddr> = answers.iter().map(|greeting| greeting.peer).collect();
            assert_eq!(sources.len(), clients.len(), "each client has a source port of its own");
            if round > 0 {
                assert_eq!(answers, before, "each client keeps its session");
            }
            before = answers;
        }
        let stun = relay.service("stun");
        assert_eq!((stun.accepted, stun.opened, stun.connections), (32, 32, 32));
        assert_eq!((stun.counters["datagrams_from_client"], stun.counters["datagrams_to_client"]), (96, 96));
        assert!(clients.iter().all(Client::is_empty), "an answer too many");
        relay.stop();
    });
}

/// Sends datagrams of all sizes both ways and looks at each.
fn assert_whole(client: &Client, server: &UdpSocket) {
    // One at a time: each as large as a socket's buffer is sure to take.
    for (size, salt) in [0, 1, 1_400, 9_000, LARGEST, 0, LARGEST - 1].into_iter().zip(0..) {
        let there = content(size, salt);
        client.send(&there);
        let (back_to, heard) = hear(server);
        assert!(heard == there, "{size} bytes arrived as {} or others", heard.len());
        let back = content(size, salt + 100);
        server.send_to(&back, back_to).expect("the relay's port is open");
        let answered = client.receive();
        assert!(answered == back, "{size} bytes came back as {} or others", answered.len());
    }
    // In one go: what could be merged.
    let sizes = [1, 0, 1_400, 1_400, 0, 0, 9_000, 2, 1_400];
    for (size, salt) in sizes.into_iter().zip(200..) {
        client.send(&content(size, salt));
    }
    let mut back_to = None;
    for (size, salt) in sizes.into_iter().zip(200..) {
        let (from, heard) = hear(server);
        assert!(heard == content(size, salt), "number {salt}: {} instead of {size} bytes", heard.len());
        back_to = Some(from);
    }
    for (size, salt) in sizes.into_iter().zip(300..) {
        server.send_to(&content(size, salt), back_to.expect("sizes are there")).expect("the relay's port is open");
    }
    for (size, salt) in sizes.into_iter().zip(300..) {
        let answered = client.receive();
        assert!(answered == content(size, salt), "number {salt}: {} instead of {size} bytes", answered.len());
    }
    assert!(client.is_empty(), "a datagram too many");
}

fn hear(server: &UdpSocket) -> (SocketAddr, Vec<u8>) {
    let mut buffer = vec![0; LARGEST + 1];
    let (length, from) = server.recv_from(&mut buffer).expect("a datagram at the server");
    buffer.truncate(length);
    (from, buffer)
}

#[test]
fn datagrams_of_every_size_arrive_whole_both_ways() {
    in_lab(datagrams_of_every_size_arrive_whole_both_ways, Topology::TwoArm, 1, |lab| {
        let (vip4, vip6) = (lab.vip(100), lab.vip6(100));
        let [four, six] = [ipv4(lab.servers()), ipv6(lab.servers())];
        let protocol = "protocol = \"udp\"";
        let config = service("four", vip4, "3478", protocol, &four)
            + &service("six", vip6, "3478", protocol, &six)
            + &service("six-to-four", vip6, "3479", protocol, &four);
        let relay = subject!().start(lab.balancer(), &config);
        let server = lab.server(1);
        let (client4, client6) = (lab.client().ipv4().into(), lab.client().ipv6().into());
        let cases: [(IpAddr, SocketAddr, SocketAddr); 3] = [
            (client4, (vip4, STUN).into(), (server.ipv4(), STUN).into()),
            (client6, (vip6, STUN).into(), (server.ipv6(), STUN).into()),
            (client6, (vip6, 3479).into(), (server.ipv4(), 3479).into()),
        ];
        for (client, vip, at) in cases {
            assert_whole(&Client::at(lab, client, vip), &bound(server, at));
        }
        let status = relay.status();
        for service in &status.services {
            assert_eq!((service.accepted, service.counters["datagrams_dropped"]), (1, 0), "{service:?}");
        }
        relay.stop();
    });
}

#[test]
fn a_client_address_stays_with_its_server_from_all_its_ports_on_all_workers() {
    in_lab(a_client_address_stays_with_its_server_from_all_its_ports_on_all_workers, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let to = SocketAddr::from((vip, STUN));
        let _origins = [1, 2].map(|n| Origin::udp(lab.server(n), STUN));
        let keys = format!("{ROUND_ROBIN}\npersistence = {{ by = \"source-ip\", timeout = \"30m\" }}");
        let relay = subject!().start(lab.balancer(), &service("stun", vip, "3478", &keys, &ipv4(lab.servers())));
        let addresses = [lab.client().ipv4().into(), lab.second_client(201)];
        let served = addresses.map(|from| -> BTreeSet<String> {
            (0..40).map(|n| Client::at(lab, from, to).ask(&content(20, n)).name).collect()
        });
        assert_eq!(served.each_ref().map(BTreeSet::len), [1, 1], "{served:?}");
        assert_ne!(served[0], served[1], "round robin for those who come first");
        let status = relay.status();
        assert_eq!(status.workers.len(), 2);
        assert!(status.workers.iter().all(|worker| worker.sessions > 0), "{:?}", status.workers);
        relay.stop();
    });
}

#[test]
fn silence_ends_a_session_and_the_next_datagram_opens_another() {
    in_lab(silence_ends_a_session_and_the_next_datagram_opens_another, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let _origin = Origin::udp(lab.server(1), STUN);
        let keys = "protocol = \"udp\"\nidle_timeout = \"1s\"";
        let relay = subject!().start(lab.balancer(), &service("stun", vip, "3478", keys, &ipv4(lab.servers())));
        let client = Client::at(lab, lab.client().ipv4().into(), (vip, STUN).into());
        for round in 1..=2 {
            client.ask(b"first");
            client.ask(b"second");
            let stun = relay.service("stun");
            assert_eq!((stun.accepted, stun.opened, stun.connections), (round, round, 1));
            relay.until("the session has ended", |status| {
                let stun = &status.services[0];
                stun.connections == 0 && stun.counters["closed"] == round
            });
            assert_eq!(ended(&relay, "idle_timed_out"), round);
            assert_eq!(relay.status().limits.udp_sessions.used, 0);
        }
        relay.stop();
    });
}

#[test]
fn a_session_beyond_the_limit_is_refused_and_counted_and_the_others_go_on() {
    in_lab(a_session_beyond_the_limit_is_refused_and_counted_and_the_others_go_on, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let to = SocketAddr::from((vip, STUN));
        let origin = Origin::udp(lab.server(1), STUN);
        let config = "[limits]\nudp_sessions = 4\n".to_owned()
            + &service("stun", vip, "3478", "protocol = \"udp\"\nidle_timeout = \"3s\"", &ipv4(lab.servers()));
        let relay = subject!().start(lab.balancer(), &config);
        let mut clients = (0..8).map(|_| Client::at(lab, lab.client().ipv4().into(), to));
        let first: Vec<Client> = clients.by_ref().take(4).collect();
        let late: Vec<Client> = clients.collect();
        for client in &first {
            client.ask(b"in time");
        }
        for (client, refused) in late.iter().zip(1..) {
            client.send(b"too late");
            eventually("the refusal is counted", || (ended(&relay, "out_of_connections") == refused).then_some(()));
        }
        for client in &first {
            client.ask(b"still here");
        }
        assert!(late.iter().all(Client::is_empty));
        let stun = relay.service("stun");
        assert_eq!((stun.opened, stun.connections), (4, 4));
        assert_eq!(origin.accepted().len(), 8, "the server hears nothing of those who are refused");
        // Room again.
        relay.until("the sessions have ended", |status| status.services[0].connections == 0);
        for client in &late {
            client.ask(b"once more");
        }
        relay.stop();
    });
}

#[test]
fn clients_of_a_server_that_fails_its_check_go_to_the_other() {
    in_lab(clients_of_a_server_that_fails_its_check_go_to_the_other, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let keys = format!(
            "{ROUND_ROBIN}\nhealth = {{ check = \"tcp\", ports = 443, interval = \"100ms\", timeout = \"1s\", rise = 1, fall = 2 }}"
        );
        let [first, _second] = [1, 2].map(|n| [Origin::udp(lab.server(n), STUN), Origin::tcp(lab.server(n), 443)]);
        let relay = subject!().start(lab.balancer(), &service("stun", vip, "3478", &keys, &ipv4(lab.servers())));
        relay.until_all_up();
        let clients: Vec<Client> =
            (0..4).map(|_| Client::at(lab, lab.client().ipv4().into(), (vip, STUN).into())).collect();
        let before: Vec<String> = clients.iter().map(|client| client.ask(b"before").name).collect();
        assert_eq!(before.iter().filter(|name| *name == "server-1").count(), 2);
        drop(first);
        relay.until("server-1 is down and has no session", |status| {
            let stun = &status.services[0];
            stun.servers[0].health == HealthStatus::Down && stun.connections == 2
        });
        assert_eq!(ended(&relay, "server_down"), 2);
        for client in &clients {
            assert_eq!(client.ask(b"after").name, "server-2");
        }
        assert_eq!(relay.service("stun").accepted, 6, "clients of the other server keep their session");
        relay.stop();
    });
}

#[test]
fn a_closed_port_ends_the_session_and_a_later_datagram_reaches_the_other_server() {
    in_lab(a_closed_port_ends_the_session_and_a_later_datagram_reaches_the_other_server, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let origins = [1, 2].map(|n| Origin::udp(lab.server(n), STUN));
        let relay = subject!().start(lab.balancer(), &service("stun", vip, "3478", ROUND_ROBIN, &ipv4(lab.servers())));
        let client = Client::at(lab, lab.client().ipv4().into(), (vip, STUN).into());
        let served = client.ask(b"before").name;
        let [one, two] = origins;
        let (left, _stays) = if served == "server-1" { (one, two) } else { (two, one) };
        left.stop();
        // As a STUN client does: again until somebody answers. ICMP is rate limited, so one datagram may go without an error.
        client.socket.set_read_timeout(Some(Duration::from_millis(500))).expect("not zero");
        eventually("somebody answers", || {
            client.send(b"anybody?");
            client.socket.peek_from(&mut [0; 1]).is_ok().then_some(())
        });
        assert_ne!(client.answer(b"anybody?").name, served);
        assert_eq!(ended(&relay, "server_reset"), 1);
        relay.stop();
    });
}

#[test]
fn servers_see_the_pool_and_its_ports_come_back() {
    in_lab(servers_see_the_pool_and_its_ports_come_back, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let pool = lab.snat(101);
        let keys = format!(
            "protocol = \"udp\"\nidle_timeout = \"5s\"\nsource = {{ pool = [\"{pool}\"], ports = \"20000-20003\" }}"
        );
        let _origin = Origin::udp(lab.server(1), STUN);
        let relay = subject!().start(lab.balancer(), &service("stun", vip, "3478", &keys, &ipv4(lab.servers())));
        for round in 1..=2 {
            let clients: Vec<Client> =
                (0..5).map(|_| Client::at(lab, lab.client().ipv4().into(), (vip, STUN).into())).collect();
            let seen: BTreeSet<SocketAddr> = clients[..4].iter().map(|client| client.ask(b"who am I").peer).collect();
            assert_eq!(seen, (20000..=20003).map(|port| SocketAddr::from((pool, port))).collect());
            clients[4].send(b"one too many");
            eventually("the refusal is counted", || (ended(&relay, "out_of_source_ports") == round).then_some(()));
            relay.until("the ports are free", |status| status.source_ports[0].leased == 0);
            assert!(clients[4].is_empty());
        }
        relay.stop();
    });
}
