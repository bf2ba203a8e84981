//! The packet plane between links of which one carries less than the other, and in front of a router behind which a smaller one begins: connections,
//! datagrams and pings of every length.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use towpath_engine::Status;
use towpath_sys::link::{Route, default_destination};
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

/// VIPs of one [`start`].
const VIPS: usize = 5;

/// Services of one kind at every VIP: IPv4 and IPv6 with a pool, IPv4 with clients' own addresses, from IPv4 to IPv6 and from IPv6 to IPv4.
fn start(lab: &TestLab, keys: &str, servers: [&[(&str, IpAddr)]; 2]) -> (Subject, [IpAddr; VIPS]) {
    let (vip, vip6, kept) = (lab.free_vip(100), lab.free_vip6(0x100), lab.free_vip(101));
    let (upwards, downwards) = (lab.free_vip(102), lab.free_vip6(0x102));
    let (snat, snat6) = (lab.free_snat(101), lab.free_snat6(0x101));
    let pool = |address: IpAddr| format!("{keys}\nsource = {{ pool = [\"{address}\"] }}");
    let services = packet_service("old", vip, "443", &pool(snat.into()), servers[0])
        + &packet_service("new", vip6, "443", &pool(snat6.into()), servers[1])
        + &packet_service("kept", kept, "443", &format!("{keys}\nforwarding = \"half-nat\""), servers[0])
        + &packet_service("upwards", upwards, "443", &pool(snat6.into()), servers[1])
        + &packet_service("downwards", downwards, "443", &pool(snat.into()), servers[0]);
    let relay = subject!().start(lab.balancer(), &format!("[limits]\nflows = 16384\n{services}"));
    (relay, [vip.into(), vip6.into(), kept.into(), upwards.into(), downwards.into()])
}

/// The same with the servers of the lab.
fn start_near(lab: &TestLab, keys: &str) -> (Subject, [IpAddr; VIPS]) {
    start(lab, keys, [&ipv4(lab.servers()), &ipv6(lab.servers())])
}

fn counted(status: &Status, counter: &str) -> u64 {
    status.workers.iter().map(|worker| worker.packets[counter]).sum()
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
    let (relay, vips) = start_near(lab, "");
    for vip in vips {
        let client = Connection::open(lab.client(), (vip, 443)).unwrap_or_else(|error| panic!("{vip}: {error}"));
        let (server, _) = listener.accept().expect("a connection");
        server.set_read_timeout(Some(PATIENCE)).expect("not zero");
        bulk::exchange(client.stream(), &server, BYTES);
    }
    relay.until("the handshakes are counted", |status| counted(status, "mss_clamped") >= VIPS as u64);
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
    let (relay, vips) = start_near(lab, "protocol = \"udp\"");
    for vip in vips {
        for length in LENGTHS {
            ask(lab.client(), (vip, 443).into(), length);
        }
    }
    // One after the other, and many: nothing is left of any.
    for _ in 0..200 {
        ask(lab.client(), (vips[0], 443).into(), 9_000);
    }
    let status = relay.until("all is counted, and senders were told what fits", |status| {
        counted(status, "packets_reassembled") >= 400
            && counted(status, "fragments_made") > counted(status, "packets_cut")
            && counted(status, "icmp_errors_made") > 0
    });
    assert_eq!(counted(&status, "fragments_given_up"), 0);
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

/// Server 1 is behind server 2, which routes to it over a link that carries less than all others: only it can say so. Its addresses there.
fn behind_a_narrow_hop(lab: &TestLab) -> [IpAddr; 2] {
    let (server, router) = (lab.server(1), lab.server(2));
    let addresses: [[IpAddr; 2]; 2] = [
        [[10, 99, 0, 1].into(), [10, 99, 0, 2].into()],
        ["fd99::1", "fd99::2"].map(|ip| ip.parse().expect("an address")),
    ];
    let behind = File::open(server.network_file()).expect("the lab lives");
    router.links().expect("netlink").create_veth("far", "far", &behind).expect("a cable");
    server.link_down("back").expect("a plug to pull");
    for (host, at) in [(router, 0), (server, 1)] {
        let mut links = host.links().expect("netlink");
        for (address, prefix) in [(addresses[0][at], 24), (addresses[1][at], 64)] {
            links.add_address("far", address, prefix).expect("an address");
        }
        links.set_up("far").expect("a plug to put in");
    }
    router.links().expect("netlink").set_mtu("far", SMALL_MTU).expect("an MTU");
    for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        router.set_sysctl(key, "1").expect("a sysctl");
        lab.balancer().set_sysctl(key, "0").expect("a sysctl");
    }
    let route = |host: &Host, destination: (IpAddr, u8), gateway: IpAddr, link: &str| {
        let route = Route { destination, gateway: Some(gateway), link: link.into() };
        host.links().expect("netlink").add_route(&route).expect("a route");
    };
    let back = router.port("back").expect("a link to the servers' network");
    for ([at_router, _], (network, prefix, near)) in addresses.into_iter().zip([
        (IpAddr::from([10, 99, 0, 0]), 24, IpAddr::from(back.ipv4)),
        ("fd99::".parse().expect("a network"), 64, back.ipv6.into()),
    ]) {
        route(server, default_destination(at_router), at_router, "far");
        route(lab.balancer(), (network, prefix), near, "back");
    }
    addresses.map(|[_, at_server]| at_server)
}

#[test]
fn clients_hear_of_a_smaller_link_beyond_the_next_router() {
    in_lab(clients_hear_of_a_smaller_link_beyond_the_next_router, Topology::TwoArm, 2, |lab| {
        const BYTES: u64 = 16 << 20;
        let [old, new] = behind_a_narrow_hop(lab);
        let listener = lab.server(1).run(|| TcpListener::bind("[::]:443")).expect("a thread").expect("a listener");
        let (relay, vips) = start(lab, "", [&[("far", old)], &[("far", new)]]);
        for (heard, vip) in (1..).zip(vips) {
            let client = Connection::open(lab.client(), (vip, 443)).unwrap_or_else(|error| panic!("{vip}: {error}"));
            let (mut server, _) = listener.accept().expect("a connection");
            server.set_read_timeout(Some(PATIENCE)).expect("not zero");
            let sent = std::thread::scope(|scope| {
                let sender = scope.spawn(|| {
                    let sent = bulk::Bulk::steady(1).send(&mut client.stream(), BYTES).expect("everything is taken");
                    client.stream().shutdown(std::net::Shutdown::Write).expect("our FIN");
                    sent
                });
                assert_eq!(bulk::Bulk::steady(0).receive(&mut server).expect("a stream that ends").bytes, BYTES);
                sender.join().expect("the sender")
            });
            assert_eq!(sent.bytes, BYTES);
            relay.until("the router has said what fits", |status| counted(status, "icmp_errors") >= heard);
        }
        assert_eq!(counted(&relay.status(), "icmp_errors_made"), 0);
        relay.stop();
    });
}

#[test]
fn datagrams_find_the_size_that_a_link_beyond_the_next_router_carries() {
    in_lab(datagrams_find_the_size_that_a_link_beyond_the_next_router_carries, Topology::TwoArm, 2, |lab| {
        let [old, new] = behind_a_narrow_hop(lab);
        let server = lab.server(1).run(|| UdpSocket::bind("[::]:443")).expect("a thread").expect("a socket");
        server.set_read_timeout(Some(ASK_AGAIN)).expect("not zero");
        let (relay, vips) = start(lab, "protocol = \"udp\"", [&[("far", old)], &[("far", new)]]);
        for vip in vips {
            let any: SocketAddr = if vip.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
            let client = lab.client().run(|| UdpSocket::bind(any)).expect("a thread").expect("a socket");
            let mut heard = vec![0; 65_536];
            for length in LENGTHS {
                eventually(&format!("{length} octets to {vip}"), || {
                    client.send_to(&vec![length as u8; length], (vip, 443)).ok()?;
                    let (found, from) = server.recv_from(&mut heard).ok()?;
                    // Flows that nobody answers are few.
                    server.send_to(b"heard", from).ok()?;
                    (found == length && heard[..found].iter().all(|&octet| octet == length as u8)).then_some(())
                });
            }
        }
        relay.until("the router has said what fits", |status| counted(status, "icmp_errors") >= VIPS as u64);
        relay.stop();
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
        let (relay, [vip, ..]) = start_near(lab, "");
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
