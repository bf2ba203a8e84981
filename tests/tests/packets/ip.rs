//! What comes in, of IP itself: fragments, packets that are too large, errors of every type, headers that few packets have.

use crate::frames::{
    bare, data, end, extended, fragments, icmp_error, ping, tcp, udp, uncut, with_header_checksum, with_ttl,
};
use crate::scenes::{Ends, Scene, Script, half_nat_v4, half_nat_v6};

/// All of them.
pub(crate) const SCENES: &[Scene] = &[
    ("fragments-half-nat-v4-udp", fragments_half_nat_v4_udp),
    ("fragments-ping-v4", fragments_ping_v4),
    ("fragments-ping-v6", fragments_ping_v6),
    ("fragments-refused", fragments_refused),
    ("fragments-routed", fragments_routed),
    ("fragments-v4-tcp", fragments_v4_tcp),
    ("fragments-v4-udp", fragments_v4_udp),
    ("fragments-v6-udp", fragments_v6_udp),
    ("icmp-errors-half-nat-v4", icmp_errors_half_nat_v4),
    ("icmp-errors-half-nat-v6", icmp_errors_half_nat_v6),
    ("icmp-errors-v4-tcp", icmp_errors_v4_tcp),
    ("icmp-errors-v4-udp", icmp_errors_v4_udp),
    ("icmp-errors-v6-tcp", icmp_errors_v6_tcp),
    ("icmp-errors-v6-udp", icmp_errors_v6_udp),
    ("ipv6-extensions", ipv6_extensions),
    ("too-large-v4-udp", too_large_v4_udp),
    ("too-large-v6-udp", too_large_v6_udp),
    ("traceroute-v4", traceroute_v4),
    ("traceroute-v6", traceroute_v6),
    ("udp-without-checksum-v4", udp_without_checksum_v4),
    ("udp-without-checksum-v6", udp_without_checksum_v6),
];

/// Octets that no link of the corpus carries in one packet.
const LONG: [u8; 3_500] = [b'l'; 3_500];

/// A question in fragments, in order, and its answer, the other way round; then a question with its fragments mixed, one of them twice.
fn in_fragments(ends: Ends, script: &mut Script) {
    let question = fragments(&udp(ends.client, ends.vip, &LONG), 0x1234, 1_400);
    question.iter().for_each(|part| script.outside(part.clone()));
    let answer = fragments(&udp(ends.server, ends.source, &LONG), 0x1234, 1_240);
    answer.iter().rev().for_each(|part| script.inside(80, part.clone()));
    let question = fragments(&udp(ends.client, ends.vip, &LONG), 0x1235, 1_400);
    [1, 2, 1, 0].iter().for_each(|&part: &usize| script.outside(question[part].clone()));
    script.inside(80, udp(ends.server, ends.source, b"answer"));
}

fn fragments_v4_udp(script: &mut Script) {
    in_fragments(Ends::v4(), script);
}

fn fragments_v6_udp(script: &mut Script) {
    in_fragments(Ends::v6(), script);
}

fn fragments_half_nat_v4_udp(script: &mut Script) {
    in_fragments(half_nat_v4(), script);
}

/// A segment in fragments. One without the whole of its header is no use, nor is what would lie over that.
fn fragments_v4_tcp(script: &mut Script) {
    let ends = Ends::v4();
    ends.open(script);
    let segment = tcp(ends.client, ends.vip, data(101, 901, &LONG));
    fragments(&segment, 1, 1_400).into_iter().rev().for_each(|part| script.outside(part));
    script.inside(80, tcp(ends.server, ends.source, bare(".", 901, 3_601)));
    let tiny = fragments(&segment, 2, 16);
    script.outside(tiny[0].clone());
    script.outside(tiny[1].clone());
}

/// One that lies over another, so that neither it nor the rest is taken; one whose number comes again later; one of which a part never comes, and
/// whose sender is told; and another such to a port that is closed.
fn fragments_refused(script: &mut Script) {
    let ends = Ends::v4();
    let question = udp(ends.client, ends.vip, &LONG);
    let (parts, others) = (fragments(&question, 1, 1_400), fragments(&question, 1, 800));
    script.outside(parts[0].clone());
    script.outside(others[1].clone());
    script.outside(parts[1].clone());
    script.outside(parts[2].clone());
    let lost = fragments(&question, 2, 1_400);
    script.outside(lost[2].clone());
    script.outside(lost[0].clone());
    script.wait(31_000);
    parts.into_iter().for_each(|part| script.outside(part));
    fragments(&udp(ends.client, end("192.0.2.250:7"), &LONG), 3, 1_400)
        .into_iter()
        .for_each(|part| script.outside(part));
}

/// Past the services, by the router: fragments one by one, those of a half-NAT server put together first, as they might have been answers; and what
/// is larger than the link ahead.
fn fragments_routed(script: &mut Script) {
    let (client, beside) = (end("198.51.100.7:5000"), end("10.0.0.81:6000"));
    fragments(&udp(client, beside, &LONG), 1, 1_400).into_iter().for_each(|part| script.outside(part));
    let own = udp(end("10.0.0.80:123"), client, &LONG);
    fragments(&own, 2, 1_400).into_iter().rev().for_each(|part| script.inside(80, part));
    script.outside(uncut(udp(client, beside, &LONG), 3));
    script.outside(udp(client, beside, &LONG));
    // One fragment that is itself too large.
    fragments(&udp(client, beside, &LONG), 4, 2_000).into_iter().for_each(|part| script.outside(part));
}

/// Longer than the link: asked and answered in fragments.
fn fragments_ping_v4(script: &mut Script) {
    fragments(&ping("198.51.100.7", "192.0.2.250", &LONG), 1, 1_480).into_iter().for_each(|part| script.outside(part));
}

fn fragments_ping_v6(script: &mut Script) {
    let asked = ping("2001:db8:c::7", "2001:db8::250", &LONG);
    fragments(&asked, 1, 1_448).into_iter().for_each(|part| script.outside(part));
}

/// From a link that carries more than the next: cut, as its sender allows it; refused where it does not, in one piece or in pieces that are too large.
fn too_large_v4_udp(script: &mut Script) {
    let ends = Ends::v4();
    let question = udp(ends.client, ends.vip, &LONG);
    script.outside(uncut(question.clone(), 0x1234));
    script.outside(question.clone());
    fragments(&question, 7, 2_000).into_iter().for_each(|part| script.outside(part));
    script.inside(80, uncut(udp(ends.server, ends.source, &LONG), 0x1234));
    for mut part in fragments(&question, 8, 2_000) {
        part[6] |= 0x40;
        script.outside(with_header_checksum(part));
    }
}

fn too_large_v6_udp(script: &mut Script) {
    let ends = Ends::v6();
    let question = udp(ends.client, ends.vip, &LONG);
    script.outside(question.clone());
    fragments(&question, 7, 2_000).into_iter().for_each(|part| script.outside(part));
    fragments(&question, 8, 1_232).into_iter().for_each(|part| script.outside(part));
}

/// Types and codes of the errors of a family, and the second word of their header.
pub(crate) type Kinds = &'static [(u8, u8, [u8; 4])];

/// Those of RFC 792 and RFC 1122 section 3.2.2.1, RFC 1191, RFC 1812 section 5.2.7.1; the last one is no longer one (RFC 6633).
pub(crate) const V4_KINDS: Kinds = &[
    (3, 0, [0; 4]),
    (3, 1, [0; 4]),
    (3, 2, [0; 4]),
    (3, 3, [0; 4]),
    (3, 4, [0, 0, 5, 0x14]),
    (3, 9, [0; 4]),
    (3, 10, [0; 4]),
    (3, 13, [0; 4]),
    (11, 0, [0; 4]),
    (11, 1, [0; 4]),
    (12, 0, [9, 0, 0, 0]),
    (12, 1, [0; 4]),
    (4, 0, [0; 4]),
];

/// Those of RFC 4443 section 3.
pub(crate) const V6_KINDS: Kinds = &[
    (1, 0, [0; 4]),
    (1, 1, [0; 4]),
    (1, 2, [0; 4]),
    (1, 3, [0; 4]),
    (1, 4, [0; 4]),
    (1, 5, [0; 4]),
    (1, 6, [0; 4]),
    (2, 0, [0, 0, 5, 0]),
    (3, 0, [0; 4]),
    (3, 1, [0; 4]),
    (4, 0, [0, 0, 0, 6]),
    (4, 1, [0, 0, 0, 6]),
    (4, 2, [0, 0, 0, 40]),
];

/// Every kind of error, those of the servers' side about what the client has sent and those of the clients' side about what the server has, from the far
/// end and from a router before it.
fn errors(ends: Ends, kinds: [Kinds; 2], routers: [&str; 2], sent: [Vec<u8>; 2], script: &mut Script) {
    let [to_server, to_client] = sent;
    let [from_inside, from_outside] = kinds;
    // Of IPv4, what the oldest routers quote (RFC 792); of IPv6, all of it.
    let quoted_len = |packet: &[u8]| if packet[0] >> 4 == 4 { 28 } else { packet.len() };
    let (server, client) = (ends.server.ip().to_string(), ends.client.ip().to_string());
    for (&(kind, code, rest), &(kind_outside, code_outside, rest_outside)) in from_inside.iter().zip(from_outside) {
        for from in [routers[0], &server] {
            script.inside(80, icmp_error(from, kind, code, rest, &to_server[..quoted_len(&to_server)]));
        }
        let (kind, code, rest) = (kind_outside, code_outside, rest_outside);
        for from in [routers[1], &client] {
            script.outside(icmp_error(from, kind, code, rest, &to_client[..quoted_len(&to_client)]));
        }
    }
}

fn errors_udp(ends: Ends, kinds: Kinds, routers: [&str; 2], script: &mut Script) {
    errors_about_udp(ends, [kinds; 2], routers, script);
}

/// The kinds, and the routers, of the servers' side and of the clients'.
pub(crate) fn errors_about_udp(ends: Ends, kinds: [Kinds; 2], routers: [&str; 2], script: &mut Script) {
    script.outside(udp(ends.client, ends.vip, b"question"));
    script.inside(80, udp(ends.server, ends.source, b"answer"));
    let sent = [udp(ends.source, ends.server, b"question"), udp(ends.vip, ends.client, b"answer")];
    errors(ends, kinds, routers, sent, script);
}

fn errors_tcp(ends: Ends, kinds: Kinds, routers: [&str; 2], script: &mut Script) {
    errors_about_tcp(ends, [kinds; 2], routers, script);
}

/// The same for a connection.
pub(crate) fn errors_about_tcp(ends: Ends, kinds: [Kinds; 2], routers: [&str; 2], script: &mut Script) {
    ends.open(script);
    script.outside(tcp(ends.client, ends.vip, data(101, 901, b"hello")));
    script.inside(80, tcp(ends.server, ends.source, data(901, 101, b"world!")));
    let sent = [
        tcp(ends.source, ends.server, data(101, 901, b"hello")),
        tcp(ends.vip, ends.client, data(901, 101, b"world!")),
    ];
    errors(ends, kinds, routers, sent, script);
}

pub(crate) const ROUTERS_V4: [&str; 2] = ["10.0.0.254", "203.0.113.1"];
pub(crate) const ROUTERS_V6: [&str; 2] = ["fd00::fe", "2001:db8:f::1"];

fn icmp_errors_v4_udp(script: &mut Script) {
    errors_udp(Ends::v4(), V4_KINDS, ROUTERS_V4, script);
}

fn icmp_errors_v6_udp(script: &mut Script) {
    errors_udp(Ends::v6(), V6_KINDS, ROUTERS_V6, script);
}

fn icmp_errors_v4_tcp(script: &mut Script) {
    errors_tcp(Ends::v4(), V4_KINDS, ROUTERS_V4, script);
}

fn icmp_errors_v6_tcp(script: &mut Script) {
    errors_tcp(Ends::v6(), V6_KINDS, ROUTERS_V6, script);
}

fn icmp_errors_half_nat_v4(script: &mut Script) {
    errors_udp(half_nat_v4(), V4_KINDS, ROUTERS_V4, script);
}

fn icmp_errors_half_nat_v6(script: &mut Script) {
    errors_tcp(half_nat_v6(), V6_KINDS, ROUTERS_V6, script);
}

/// Headers in front of TCP: hop-by-hop and destination options, a routing header that has been followed, a packet in one fragment (RFC 6946); and one
/// whose routing header names a further stop, which is dropped.
fn ipv6_extensions(script: &mut Script) {
    const TCP: u8 = 6;
    let ends = Ends::v6();
    let hop_by_hop = |next| [next, 0, 5, 2, 0, 0, 1, 0];
    let options = |next| [next, 0, 1, 4, 0, 0, 0, 0];
    let routing = |next, left| [next, 2, 0, left, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0, 0xe, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let syn = tcp(ends.client, ends.vip, bare("S", 100, 0));
    script.outside(extended(&syn, 43, &routing(TCP, 1)));
    script.outside(extended(&syn, 0, &[hop_by_hop(60), options(TCP)].concat()));
    let syn_ack = tcp(ends.server, ends.source, bare("S.", 900, 101));
    script.inside(80, extended(&syn_ack, 60, &options(TCP)));
    script.outside(extended(&tcp(ends.client, ends.vip, bare(".", 101, 901)), 43, &routing(TCP, 0)));
    let one_fragment = [TCP, 0, 0, 0, 0, 0, 0, 9];
    let hello = tcp(ends.client, ends.vip, data(101, 901, b"hello"));
    script.outside(extended(&hello, 0, &[hop_by_hop(44), one_fragment].concat()));
    // In two, behind the headers that both repeat.
    let long = tcp(ends.client, ends.vip, data(106, 901, &[b'x'; 100]));
    for part in fragments(&long, 10, 64) {
        let headers = [&hop_by_hop(44)[..], &part[40..48]].concat();
        script.outside(extended(&[&part[..40], &part[48..]].concat(), 0, &headers));
    }
}

/// Whoever looks for the way to the VIP: by datagrams to ports that nobody has, by pings, by datagrams and segments to the service itself, whose
/// server is one hop further.
fn traceroute(ends: Ends, script: &mut Script) {
    let (client, vip) = (ends.client.ip().to_string(), ends.vip.ip().to_string());
    let closed = std::net::SocketAddr::new(ends.vip.ip(), 33_434);
    for ttl in [1, 2] {
        script.outside(with_ttl(udp(ends.client, closed, b"probe"), ttl));
        script.outside(with_ttl(ping(&client, &vip, b"probe"), ttl));
        script.outside(with_ttl(udp(ends.client, ends.vip, b"probe"), ttl));
    }
    // The server answers that nobody listens there either.
    let seen = udp(ends.source, ends.server, b"probe");
    let (kind, code) = if ends.vip.is_ipv4() { (3, 3) } else { (1, 4) };
    script.inside(80, icmp_error(&ends.server.ip().to_string(), kind, code, [0; 4], &seen));
}

fn traceroute_v4(script: &mut Script) {
    traceroute(Ends::v4(), script);
}

fn traceroute_v6(script: &mut Script) {
    traceroute(Ends::v6(), script);
}

/// Over IPv4 none is needed (RFC 768), and none is made; over IPv6 there has to be one (RFC 8200 section 8.1).
fn without_checksum(ends: Ends, script: &mut Script) {
    let mut without = |mut packet: Vec<u8>, inside: bool| {
        let at = if packet[0] >> 4 == 4 { 26 } else { 46 };
        packet[at..at + 2].fill(0);
        if inside { script.inside(80, packet) } else { script.outside(packet) }
    };
    without(udp(ends.client, ends.vip, b"question"), false);
    without(udp(ends.server, ends.source, b"answer"), true);
}

fn udp_without_checksum_v4(script: &mut Script) {
    without_checksum(Ends::v4(), script);
}

fn udp_without_checksum_v6(script: &mut Script) {
    without_checksum(Ends::v6(), script);
}
