//! What servers open themselves, and that leaves from an address of ours.

use std::net::{IpAddr, SocketAddr};

use crate::frames::{bare, data, end, fragments, icmp_error, ping, pong, tcp, udp, with_ttl};
use crate::scenes::{Scene, Script};

/// All of them.
pub(crate) const SCENES: &[Scene] = &[
    ("outbound-ping-v4", outbound_ping_v4),
    ("outbound-ping-v6", outbound_ping_v6),
    ("outbound-refused", outbound_refused),
    ("outbound-v4-tcp", outbound_v4_tcp),
    ("outbound-v4-udp", outbound_v4_udp),
    ("outbound-v6-tcp", outbound_v6_tcp),
    ("outbound-v6-udp", outbound_v6_udp),
];

/// Octets that no link of the corpus carries in one packet.
const LONG: [u8; 3_500] = [b'l'; 3_500];
/// The identifier that the first ping leases.
const IDENTIFIER: u16 = 256;

/// A server inside, somebody outside, and the address and port that they see of it; a router on the way, and another server.
#[derive(Clone, Copy)]
struct Way {
    inside: SocketAddr,
    outside: SocketAddr,
    source: SocketAddr,
    router: &'static str,
    other: SocketAddr,
}

impl Way {
    fn v4() -> Way {
        Way {
            inside: end("10.0.0.80:50000"),
            outside: end("198.51.100.7:8080"),
            source: end("192.0.2.25:5000"),
            router: "203.0.113.1",
            other: end("10.0.0.81:8443"),
        }
    }

    fn v6() -> Way {
        Way {
            inside: end("[fd00::80]:50000"),
            outside: end("[2001:db8:c::7]:8080"),
            source: end("[2001:db8::25]:5000"),
            router: "2001:db8:f::1",
            other: end("[fd00::81]:8443"),
        }
    }

    fn is_v4(&self) -> bool {
        self.inside.is_ipv4()
    }

    /// Type and code of an error: the time to live ran out.
    fn time_exceeded(&self) -> (u8, u8) {
        if self.is_v4() { (11, 0) } else { (3, 0) }
    }

    /// Nobody listens there.
    fn port_unreachable(&self) -> (u8, u8) {
        if self.is_v4() { (3, 3) } else { (1, 4) }
    }
}

fn text(ip: IpAddr) -> String {
    ip.to_string()
}

/// A connection from its opening to its end; what goes to another server, and what answers a direct access, beside it.
fn connection(way: Way, script: &mut Script) {
    let Way { inside, outside, source, other, .. } = way;
    script.inside(80, tcp(inside, outside, bare("S", 100, 0)));
    script.outside(tcp(outside, source, bare("S.", 900, 101)));
    script.inside(80, tcp(inside, outside, bare(".", 101, 901)));
    script.inside(80, tcp(inside, outside, data(101, 901, b"hello")));
    script.outside(tcp(outside, source, data(901, 106, b"welcome")));
    script.inside(80, tcp(inside, other, bare("S", 100, 0)));
    let direct = SocketAddr::new(inside.ip(), 8443);
    script.outside(tcp(outside, direct, bare("S", 500, 0)));
    script.inside(80, tcp(direct, outside, bare("S.", 700, 501)));
    script.inside(80, tcp(inside, outside, bare("F.", 106, 908)));
    script.outside(tcp(outside, source, bare("F.", 908, 107)));
    script.inside(80, tcp(inside, outside, bare(".", 107, 909)));
    // The port is free again: another connection may have it.
    let next = SocketAddr::new(inside.ip(), 50_001);
    script.inside(80, tcp(next, outside, bare("S", 100, 0)));
}

fn outbound_v4_tcp(script: &mut Script) {
    connection(Way::v4(), script);
}

fn outbound_v6_tcp(script: &mut Script) {
    connection(Way::v6(), script);
}

/// A question and its answer, both in fragments too; then errors about both, from everybody who may complain.
fn datagrams(way: Way, script: &mut Script) {
    let Way { inside, outside, source, router, other } = way;
    script.inside(80, udp(inside, outside, b"question"));
    script.outside(udp(outside, source, b"answer"));
    fragments(&udp(inside, outside, &LONG), 0x1234, 1_400).into_iter().for_each(|part| script.inside(80, part));
    fragments(&udp(outside, source, &LONG), 0x77, 1_240).into_iter().rev().for_each(|part| script.outside(part));
    let (kind, code) = way.time_exceeded();
    script.outside(icmp_error(router, kind, code, [0; 4], &udp(source, outside, b"question")));
    let (kind, code) = way.port_unreachable();
    script.outside(icmp_error(&text(outside.ip()), kind, code, [0; 4], &udp(source, outside, b"question")));
    script.inside(80, icmp_error(&text(inside.ip()), kind, code, [0; 4], &udp(outside, inside, b"answer")));
    script.inside(80, with_ttl(udp(inside, outside, b"how far?"), 1));
    // Of no flow, and to none.
    script.outside(udp(SocketAddr::new(outside.ip(), 9), source, b"stray"));
    script.inside(80, udp(inside, other, b"between servers"));
    // Forgotten after five minutes.
    script.wait(300_100);
    script.outside(udp(outside, source, b"late"));
}

fn outbound_v4_udp(script: &mut Script) {
    datagrams(Way::v4(), script);
}

fn outbound_v6_udp(script: &mut Script) {
    datagrams(Way::v6(), script);
}

/// A ping and its reply, a long one, one that goes too far; the pings that others send here, and their replies.
fn pings(way: Way, script: &mut Script) {
    let [inside, outside, source] = [way.inside, way.outside, way.source].map(|end| text(end.ip()));
    script.inside(80, ping(&inside, &outside, b"abcdefgh"));
    script.outside(pong(&outside, &source, IDENTIFIER, b"abcdefgh"));
    script.outside(pong(&outside, &source, IDENTIFIER + 1, b"stray"));
    fragments(&ping(&inside, &outside, &LONG), 0x1234, 1_400).into_iter().for_each(|part| script.inside(80, part));
    let reply = pong(&outside, &source, IDENTIFIER, &LONG);
    fragments(&reply, 0x77, 1_240).into_iter().for_each(|part| script.outside(part));
    let (kind, code) = way.time_exceeded();
    // As it left: with the identifier that others see.
    let mut seen = ping(&source, &outside, b"abcdefgh");
    let l4 = if way.is_v4() { 20 } else { 40 };
    let check = u16::from_be_bytes([seen[l4 + 2], seen[l4 + 3]]);
    // From 7 to 256 (RFC 1624).
    let sum = u32::from(!check) + u32::from(!7_u16) + u32::from(IDENTIFIER);
    let sum = (sum & 0xffff) + (sum >> 16);
    seen[l4 + 2..l4 + 4].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    seen[l4 + 4..l4 + 6].copy_from_slice(&IDENTIFIER.to_be_bytes());
    script.outside(icmp_error(way.router, kind, code, [0; 4], &seen));
    // Somebody pings the server directly, and the address that it leaves from.
    script.outside(ping(&outside, &inside, b"abcdefgh"));
    script.inside(80, pong(&inside, &outside, 7, b"abcdefgh"));
    script.outside(ping(&outside, &source, b"abcdefgh"));
    script.wait(60_100);
    script.outside(pong(&outside, &source, IDENTIFIER, b"late"));
}

fn outbound_ping_v4(script: &mut Script) {
    pings(Way::v4(), script);
}

fn outbound_ping_v6(script: &mut Script) {
    pings(Way::v6(), script);
}

/// There is one port of each protocol: who asks for another is told. What answers a question that a rule lets in needs none.
fn outbound_refused(script: &mut Script) {
    for way in [Way::v4(), Way::v6()] {
        let Way { inside, outside, .. } = way;
        let next = SocketAddr::new(inside.ip(), 50_001);
        for from in [inside, next] {
            script.inside(80, tcp(from, outside, bare("S", 100, 0)));
            script.inside(80, udp(from, outside, b"question"));
        }
        let stun = SocketAddr::new(inside.ip(), 3478);
        script.outside(udp(outside, stun, b"question"));
        script.inside(80, udp(stun, outside, b"answer"));
    }
}
