//! The packet plane between links of which one carries less than the other: connections, datagrams and pings of every length, both ways.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use towpath_tests::{
    Connection, Host, Origin, PATIENCE, Subject, TestLab, Topology, bulk, eventually, in_lab, ipv4, ipv6,
    packet_service, subject,
};

/// Octets that the smaller link carries in one packet.
const SMALL_MTU: u32 = 1_300;
/// How long an answer is waited for before the question is asked again: the first one of its length may only have told the sender how much fits.
const ASK_AGAIN: Duration = Duration::from_millis(300);
/// Of datagrams: what fits everywhere, what fits one link, what fits none, what is nearly the longest.
const LENGTHS: [usize; 7] = [100, 1_230, 1_290, 1_400, 1_473, 9_000, 60_000];

/// A lab of one server, in which this network carries less than the other.
fn narrowed(lab: &TestLab, network: &str) {
    for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        lab.balancer().set_sysctl(key, "0").expect("a sysctl");
    }
    let at_ends = if network == "front" { [lab.client(), lab.balancer()] } else { [lab.balancer(), lab.server(1)] };
    for host in at_ends {
        host.links().expect("netlink").set_mtu(network, SMALL_MTU).expect("an MTU");
    }
}

/// Services of one kind at every VIP: IPv4 and IPv6 with a pool, IPv4 with clients' own addresses.
fn start(lab: &TestLab, keys: &str) -> (Subject, [IpAddr; 3]) {
    let (vip, vip6, kept) = (lab.free_vip(100), lab.free_vip6(0x100), lab.free_vip(101));
    let (snat, snat6) = (lab.free_snat(101), lab.free_snat6(0x101));
    let services =
        packet_service("old", vip, "443", &format!("{keys}\nsource = {{ pool = [\"{snat}\"] }}"), &ipv4(lab.servers()))
            + &packet_service(
                "new",
                vip6,
                "443",
                &format!("{keys}\nsource = {{ pool = [\"{snat6}\"] }}"),
                &ipv6(lab.servers()),
            )
            + &packet_service("kept", kept, "443", &format!("{keys}\nforwarding = \"half-nat\""), &ipv4(lab.servers()));
    let relay = subject!().start(lab.balancer(), &format!("[limits]\nflows = 16384\n{services}"));
    (relay, [vip.into(), vip6.into(), kept.into()])
}

fn counted(relay: &Subject, counter: &str) -> u64 {
    relay.status().workers.iter().map(|worker| worker.packets[counter]).sum()
}

/// Asks by UDP until the answer is there, which is the question behind a greeting.
fn ask(client: &Host, to: SocketAddr, length: usize) {
    let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = client.run(|| UdpSocket::bind(any)).expect("a thread").expect("a socket");
    socket.set_read_timeout(Some(ASK_AGAIN)).expect("not zero");
    let question: Vec<u8> = (0..length).map(|at| (at * 31 % 251) as u8).collect();
    let mut answer = vec![0; 65_536];
    eventually(&format!("an answer of {length} octets from {to}"), || {
        // What the path does not carry whole is refused once the kernel knows, and cut from then on.
        socket.send_to(&question, to).ok()?;
        let (length, by) = socket.recv_from(&mut answer).ok()?;
        (by == to && answer[..length].ends_with(&question)).then_some(())
    });
}

fn carries_connections(lab: &TestLab, network: &str) {
    const BYTES: u64 = 64 << 20;
    narrowed(lab, network);
    let listener = lab.server(1).run(|| TcpListener::bind("[::]:443")).expect("a thread").expect("a listener");
    let (relay, vips) = start(lab, "");
    for vip in vips {
        let client = Connection::open(lab.client(), (vip, 443)).unwrap_or_else(|error| panic!("{vip}: {error}"));
        let (server, _) = listener.accept().expect("a connection");
        server.set_read_timeout(Some(PATIENCE)).expect("not zero");
        bulk::exchange(client.stream(), &server, BYTES);
    }
    assert!(counted(&relay, "mss_clamped") >= 3);
    relay.stop();
}

#[test]
fn connections_pass_where_servers_are_behind_the_smaller_link() {
    in_lab(connections_pass_where_servers_are_behind_the_smaller_link, Topology::TwoArm, 1, |lab| {
        carries_connections(lab, "back");
    });
}

#[test]
fn connections_pass_where_clients_are_behind_the_smaller_link() {
    in_lab(connections_pass_where_clients_are_behind_the_smaller_link, Topology::TwoArm, 1, |lab| {
        carries_connections(lab, "front");
    });
}

fn carries_datagrams(lab: &TestLab, network: &str) {
    narrowed(lab, network);
    let _origin = Origin::udp(lab.server(1), 443);
    let (relay, vips) = start(lab, "protocol = \"udp\"");
    for vip in vips {
        for length in LENGTHS {
            ask(lab.client(), (vip, 443).into(), length);
        }
    }
    // One after the other, and many: nothing is left of any.
    for _ in 0..200 {
        ask(lab.client(), (vips[0], 443).into(), 9_000);
    }
    assert!(counted(&relay, "packets_reassembled") >= 400);
    assert!(counted(&relay, "fragments_made") > counted(&relay, "packets_cut"));
    assert!(counted(&relay, "icmp_errors_made") > 0, "senders are told what fits");
    assert_eq!(counted(&relay, "fragments_given_up"), 0);
    relay.stop();
}

#[test]
fn datagrams_pass_where_servers_are_behind_the_smaller_link() {
    in_lab(datagrams_pass_where_servers_are_behind_the_smaller_link, Topology::TwoArm, 1, |lab| {
        carries_datagrams(lab, "back");
    });
}

#[test]
fn datagrams_pass_where_clients_are_behind_the_smaller_link() {
    in_lab(datagrams_pass_where_clients_are_behind_the_smaller_link, Topology::TwoArm, 1, |lab| {
        carries_datagrams(lab, "front");
    });
}

/// The sum of RFC 1071 over an echo request or reply.
fn sum(message: &[u8]) -> u16 {
    let sum: u32 = message.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    ((folded & 0xffff) + (folded >> 16)) as u16
}

#[test]
fn a_ping_longer_than_the_link_is_answered() {
    in_lab(a_ping_longer_than_the_link_is_answered, Topology::TwoArm, 1, |lab| {
        let (relay, [vip, ..]) = start(lab, "");
        // Echo request, identifier 7, sequence number 1.
        let mut request = [&[8, 0, 0, 0, 0, 7, 0, 1][..], &[b'p'; 5_000]].concat();
        let check = !sum(&request);
        request[2..4].copy_from_slice(&check.to_be_bytes());
        let ping = || {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
            socket.set_read_timeout(Some(ASK_AGAIN))?;
            socket.send_to(&request, &SocketAddr::from((vip, 0)).into())?;
            let mut answer = vec![0; 8_192];
            let length = (&socket).read(&mut answer)?;
            std::io::Result::Ok(answer[20..length].to_vec())
        };
        let answer = eventually("a long answer", || lab.client().run(ping).expect("a thread").ok());
        assert_eq!((answer[0], answer.len(), sum(&answer)), (0, request.len(), 0xffff));
        assert!(answer[4..] == request[4..]);
        relay.stop();
    });
}
