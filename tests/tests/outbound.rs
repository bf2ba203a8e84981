//! Outbound NAT between real stacks: what servers open themselves reaches hosts that have no way back to them.

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};
use towpath_sys::link::Route;
use towpath_tests::{
    Connection, Host, Origin, PATIENCE, Subject, TestLab, Topology, ask_by_udp, in_lab, ipv4, packet_service, subject,
    visit, who,
};

/// So that a lab takes little memory.
const LIMITS: &str = "[limits]\nflows = 16384\n";

/// Starts a router that translates what servers open as `keys` say.
fn start(lab: &TestLab, keys: &str, rest: &str) -> Subject {
    for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        lab.balancer().set_sysctl(key, "0").expect("a sysctl");
    }
    let from = lab.servers().iter().flat_map(|host| addresses(host).map(|ip| format!("\"{}\"", network_of(ip))));
    let from = from.collect::<Vec<_>>().join(", ");
    subject!().start(
        lab.balancer(),
        &format!(
            "{LIMITS}[router]\nenabled = true\n[[interface]]\nname = \"front\"\n\
             [[outbound_nat]]\nname = \"out\"\nfrom = [{from}]\n{keys}\n{rest}"
        ),
    )
}

fn network_of(ip: IpAddr) -> String {
    format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })
}

/// Both addresses of a host.
fn addresses(host: &Host) -> [IpAddr; 2] {
    [host.ipv4().into(), host.ipv6().into()]
}

fn opened(relay: &Subject, protocol: &str) -> u64 {
    let status = relay.status();
    status.outbound.iter().find(|lane| lane.protocol == protocol).expect("a lane for each protocol").opened
}

/// Pings `to` with so many octets behind the header, and waits for the reply to that very ping.
fn ping(to: IpAddr, octets: usize) -> io::Result<()> {
    const IDENTIFIER: u16 = 0x1234;
    let (domain, protocol, request, reply) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let data = vec![0x5a; octets];
    let mut message = [&[request, 0, 0, 0][..], &IDENTIFIER.to_be_bytes(), &[0, 1], &data].concat();
    if to.is_ipv4() {
        // Over IPv6 it is the kernel's to compute (RFC 3542 section 3.1).
        let words = message.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
        let sum: u32 = words.sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        let check = !((sum & 0xffff) + (sum >> 16)) as u16;
        message[2..4].copy_from_slice(&check.to_be_bytes());
    }
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(&message, &SocketAddr::new(to, 0).into())?;
    loop {
        let mut received = vec![0; 16_384];
        let length = (&socket).read(&mut received)?;
        let header = if to.is_ipv4() { 20 } else { 0 };
        let Some(answer) = received[..length].get(header..) else { continue };
        // Everything of ICMP that the host gets is seen here.
        let is_it = answer.starts_with(&[reply, 0]) && answer.get(4..6) == Some(&IDENTIFIER.to_be_bytes()[..]);
        if is_it {
            assert!(answer[8..] == data, "the reply to what was sent");
            return Ok(());
        }
    }
}

#[test]
fn servers_reach_hosts_that_have_no_way_back() {
    in_lab(servers_reach_hosts_that_have_no_way_back, Topology::TwoArm, 2, |lab| {
        let ours = [IpAddr::from(lab.free_vip(100)), lab.free_vip6(100).into()];
        let _directory = Origin::tcp(lab.client(), 135);
        let _resolver = Origin::udp(lab.client(), 5353);
        let keys = format!("source = {{ pool = [\"{}\", \"{}\"] }}", ours[0], ours[1]);
        let relay = start(lab, &keys, "");
        let outside = addresses(lab.client());
        for server in lab.servers() {
            for ((own, to), seen) in addresses(server).into_iter().zip(outside).zip(ours) {
                assert_eq!(visit(server, (to, 135)).peer.ip(), seen, "TCP");
                for length in [1, 1_200, 3_000] {
                    assert_eq!(ask_by_udp(server, own, (to, 5353), &vec![7; length]).peer.ip(), seen, "UDP");
                }
                for octets in [0, 56, 5_000] {
                    let answered = server.run(|| ping(to, octets)).expect("a thread");
                    answered.unwrap_or_else(|error| panic!("a ping of {octets} octets to {to}: {error}"));
                }
                // Nobody listens there: the refusal comes through, as a reset and as an ICMP error.
                let refused = Connection::open(server, (to, 136)).expect_err("nobody listens");
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
                let refused = server.run(|| {
                    let socket = UdpSocket::bind((own, 0))?;
                    socket.connect((to, 5354))?;
                    socket.set_read_timeout(Some(PATIENCE))?;
                    socket.send(b"anybody?")?;
                    socket.recv(&mut [0; 64])
                });
                let refused = refused.expect("a thread").expect_err("nobody listens");
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
            }
        }
        // Long ones, in which the kernel may carry the connection.
        for (to, seen) in outside.into_iter().zip(ours) {
            let mut connection = Connection::open(lab.server(1), (to, 135)).expect("a connection");
            assert_eq!(connection.greeting().expect("a greeting").peer.ip(), seen);
            for _ in 0..10 {
                connection.echo(&[3; 300_000]).expect("an echo");
            }
            connection.close().expect("an end");
        }
        relay.until("everything was counted", |status| {
            let lane = |protocol: &str| status.outbound.iter().find(|lane| lane.protocol == protocol);
            let tcp = lane("tcp").is_some_and(|lane| lane.flows == 0 && lane.opened == 6 && lane.bytes_in > 6_000_000);
            let udp = lane("udp").is_some_and(|lane| lane.opened == 12);
            tcp && udp && lane("echo").is_some_and(|lane| lane.flows > 0)
        });
        relay.stop();
    });
}

#[test]
fn a_service_and_what_its_servers_open_share_an_address_and_direct_access_goes_on() {
    let test = a_service_and_what_its_servers_open_share_an_address_and_direct_access_goes_on;
    in_lab(test, Topology::TwoArm, 2, |lab| {
        let vip = lab.free_vip(100);
        let own = IpAddr::from(lab.client().ipv4());
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let _edge = Origin::udp(lab.server(1), 3478);
        let _receiver = Origin::tcp(lab.client(), 25);
        let _resolver = Origin::udp(lab.client(), 5353);
        // The client knows the way to one server, and no other.
        let gateway = lab.balancer().port("front").expect("a port").ipv4;
        let destination = (IpAddr::from(lab.server(1).ipv4()), 32);
        let route = Route { destination, gateway: Some(gateway.into()), link: "front".to_owned() };
        lab.client().links().expect("netlink").add_route(&route).expect("a route");
        let rule = format!(
            "[[router.rule]]\naction = \"allow\"\nto = [\"{}\"]\nprotocol = \"udp\"\nports = 3478\n",
            network_of(lab.server(1).ipv4().into())
        );
        let service = packet_service("web", vip, "443", "source = \"vip\"", &ipv4(lab.servers()));
        let keys = format!("source = {{ pool = [\"{vip}\", \"{}\"] }}", lab.free_vip6(100));
        let relay = start(lab, &keys, &format!("{rule}{service}"));
        let mut served = [false; 2];
        for _ in 0..6 {
            served[usize::from(who(lab.client(), (vip, 443)) == "server-2")] = true;
            for server in lab.servers() {
                assert_eq!(visit(server, (own, 25)).peer.ip(), IpAddr::from(vip), "by the service's address");
            }
            assert_eq!(visit(lab.client(), (lab.server(1).ipv4(), 443)).peer.ip(), own, "directly");
            let answer = ask_by_udp(lab.client(), own, (lab.server(1).ipv4(), 3478), b"direct");
            assert_eq!(answer.peer.ip(), own, "the answer to a direct question leaves as it is");
            let asked = ask_by_udp(lab.server(1), lab.server(1).ipv4().into(), (own, 5353), b"question");
            assert_eq!(asked.peer.ip(), IpAddr::from(vip));
        }
        assert_eq!(served, [true; 2]);
        assert!(opened(&relay, "tcp") >= 12);
        relay.stop();
    });
}

#[test]
fn what_leaves_by_an_interface_has_its_address() {
    in_lab(what_leaves_by_an_interface_has_its_address, Topology::TwoArm, 1, |lab| {
        let _directory = Origin::tcp(lab.client(), 135);
        let _resolver = Origin::udp(lab.client(), 5353);
        let port = lab.balancer().port("front").expect("a port");
        let ours = [IpAddr::from(port.ipv4), port.ipv6.into()];
        let relay = start(lab, "interface = \"front\"", "");
        let server = lab.server(1);
        for ((own, to), seen) in addresses(server).into_iter().zip(addresses(lab.client())).zip(ours) {
            for _ in 0..3 {
                assert_eq!(visit(server, (to, 135)).peer.ip(), seen);
                assert_eq!(ask_by_udp(server, own, (to, 5353), b"question").peer.ip(), seen);
                server.run(|| ping(to, 56)).expect("a thread").expect("a reply");
                // The host's own connections are its own.
                assert_eq!(visit(lab.balancer(), (to, 135)).peer.ip(), seen);
            }
        }
        assert!(opened(&relay, "tcp") >= 6);
        relay.stop();
    });
}

#[test]
fn an_interface_without_an_address_is_refused() {
    in_lab(an_interface_without_an_address_is_refused, Topology::TwoArm, 1, |lab| {
        let from = network_of(lab.server(1).ipv4().into());
        let config = format!(
            "{LIMITS}[router]\nenabled = true\n[[interface]]\nname = \"none\"\n\
             [[outbound_nat]]\nname = \"out\"\nfrom = [\"{from}\"]\ninterface = \"none\"\n"
        );
        let refusal = subject!().refuse(lab.balancer(), &config);
        assert_eq!(refusal.code, Some(1), "{}", refusal.text);
        let told = "outbound_nat `out`: interface none has no IPv4 address";
        assert!(refusal.text.contains(told), "`{told}` is missing in\n{}", refusal.text);
    });
}
