//! What comes in, of services whose clients and servers are of different IP versions.

use crate::frames::{
    bare, data, end, extended, fragments, ping, tcp, tcp_with_options, udp, uncut, with_header_checksum, with_ttl,
};
use crate::ip::{ROUTERS_V4, ROUTERS_V6, V4_KINDS, V6_KINDS, errors_about_tcp, errors_about_udp};
use crate::scenes::{Ends, Scene, Script, datagrams, super_packets, whole_connection};

/// All of them.
pub(crate) const SCENES: &[Scene] = &[
    ("v4-to-v6-fragments", v4_to_v6_fragments),
    ("v4-to-v6-icmp-errors-tcp", v4_to_v6_icmp_errors_tcp),
    ("v4-to-v6-icmp-errors-udp", v4_to_v6_icmp_errors_udp),
    ("v4-to-v6-super-packets", v4_to_v6_super_packets),
    ("v4-to-v6-tcp", v4_to_v6_tcp),
    ("v4-to-v6-too-large", v4_to_v6_too_large),
    ("v4-to-v6-udp", v4_to_v6_udp),
    ("v6-to-v4-fragments", v6_to_v4_fragments),
    ("v6-to-v4-icmp-errors-tcp", v6_to_v4_icmp_errors_tcp),
    ("v6-to-v4-icmp-errors-udp", v6_to_v4_icmp_errors_udp),
    ("v6-to-v4-super-packets", v6_to_v4_super_packets),
    ("v6-to-v4-tcp", v6_to_v4_tcp),
    ("v6-to-v4-too-large", v6_to_v4_too_large),
    ("v6-to-v4-udp", v6_to_v4_udp),
];

const LONG: [u8; 3_500] = [b'l'; 3_500];

/// Clients of IPv4, servers of IPv6.
fn v4_to_v6() -> Ends {
    let (v4, v6) = (Ends::v4(), Ends::v6());
    Ends { source: v6.source, server: v6.server, ..v4 }
}

fn v6_to_v4() -> Ends {
    let (v4, v6) = (Ends::v4(), Ends::v6());
    Ends { source: v4.source, server: v4.server, ..v6 }
}

/// Options and extension headers: none of them crosses.
const ROUTER_ALERT: [u8; 4] = [148, 4, 0, 0];
const RECORD_ROUTE: [u8; 8] = [7, 7, 4, 0, 0, 0, 0, 0];
const TCP: u8 = 6;
const DESTINATION_OPTIONS: u8 = 60;
const OPTIONS: [u8; 8] = [TCP, 0, 1, 4, 0, 0, 0, 0];

/// The same packet, to be treated by this traffic class or type of service.
fn with_class(mut packet: Vec<u8>, class: u8) -> Vec<u8> {
    if packet[0] >> 4 == 6 {
        packet[0] = 0x60 | class >> 4;
        packet[1] = class << 4 | packet[1] & 15;
        return packet;
    }
    packet[1] = class;
    with_header_checksum(packet)
}

/// A connection, what else is in headers, and a reset by us when it was silent for too long; a ping of the VIP, which nobody else answers.
fn v4_to_v6_tcp(script: &mut Script) {
    let ends = v4_to_v6();
    whole_connection(ends, script);
    let again = Ends { client: end("198.51.100.8:40000"), ..ends };
    script.outside(with_class(tcp(again.client, ends.vip, bare("S", 100, 0)), 0xb9));
    script.inside(80, extended(&tcp(ends.server, ends.source, bare("S.", 900, 101)), DESTINATION_OPTIONS, &OPTIONS));
    script.outside(tcp_with_options(again.client, ends.vip, &ROUTER_ALERT, bare(".", 101, 901)));
    script.outside(tcp_with_options(again.client, ends.vip, &RECORD_ROUTE, data(101, 901, b"hello")));
    script.inside(80, with_class(tcp(ends.server, ends.source, data(901, 106, b"world!")), 0x2e));
    script.outside(with_ttl(tcp(again.client, ends.vip, data(106, 907, b"on its last hop")), 1));
    script.outside(ping("198.51.100.7", "192.0.2.250", b"abcdefgh"));
    script.wait(3_600_000);
    script.outside(tcp(again.client, ends.vip, data(106, 907, b"too late")));
}

fn v6_to_v4_tcp(script: &mut Script) {
    let ends = v6_to_v4();
    whole_connection(ends, script);
    let again = Ends { client: end("[2001:db8:c::8]:40000"), ..ends };
    script.outside(with_class(tcp(again.client, ends.vip, bare("S", 100, 0)), 0xb9));
    script.inside(80, tcp_with_options(ends.server, ends.source, &RECORD_ROUTE, bare("S.", 900, 101)));
    script.outside(extended(&tcp(again.client, ends.vip, bare(".", 101, 901)), DESTINATION_OPTIONS, &OPTIONS));
    let one_fragment = [TCP, 0, 0, 0, 0, 0, 0, 9];
    script.outside(extended(&tcp(again.client, ends.vip, data(101, 901, b"hello")), 44, &one_fragment));
    script.inside(80, with_class(tcp(ends.server, ends.source, data(901, 106, b"world!")), 0x2e));
    script.outside(with_ttl(tcp(again.client, ends.vip, data(106, 907, b"on its last hop")), 1));
    script.outside(ping("2001:db8:c::7", "2001:db8::250", b"abcdefgh"));
    script.wait(3_600_000);
    script.outside(tcp(again.client, ends.vip, data(106, 907, b"too late")));
}

/// One way or the other, IPv4 has datagrams without a checksum, which gets computed.
fn v4_to_v6_udp(script: &mut Script) {
    let ends = v4_to_v6();
    datagrams(ends, script);
    script.outside(unsummed(udp(ends.client, ends.vip, b"unsummed")));
    script.outside(uncut(udp(ends.client, ends.vip, b"may be cut"), 0x1234));
}

fn v6_to_v4_udp(script: &mut Script) {
    let ends = v6_to_v4();
    datagrams(ends, script);
    script.inside(80, unsummed(udp(ends.server, ends.source, b"unsummed")));
    // The largest that routers may cut, and the first that they may not.
    script.outside(udp(ends.client, ends.vip, &[b'x'; 1_232]));
    script.outside(udp(ends.client, ends.vip, &[b'x'; 1_233]));
}

fn unsummed(mut packet: Vec<u8>) -> Vec<u8> {
    packet[26..28].fill(0);
    packet
}

fn v4_to_v6_super_packets(script: &mut Script) {
    super_packets(v4_to_v6(), 1_440, script);
}

fn v6_to_v4_super_packets(script: &mut Script) {
    super_packets(v6_to_v4(), 1_440, script);
}

/// A question and its answer in fragments that are put together and cut anew, each way in another order; and of IPv4 one without a checksum.
fn in_fragments(ends: Ends, script: &mut Script) {
    fragments(&udp(ends.client, ends.vip, &LONG), 0x1234, 1_400).into_iter().for_each(|part| script.outside(part));
    let answer = fragments(&udp(ends.server, ends.source, &LONG), 0x1234, 1_240);
    answer.into_iter().rev().for_each(|part| script.inside(80, part));
    fragments(&udp(ends.client, ends.vip, &LONG), 0x1235, 600).into_iter().rev().for_each(|part| script.outside(part));
}

fn v4_to_v6_fragments(script: &mut Script) {
    let ends = v4_to_v6();
    in_fragments(ends, script);
    let unsummed = unsummed(udp(ends.client, ends.vip, &LONG));
    fragments(&unsummed, 0x1236, 1_400).into_iter().for_each(|part| script.outside(part));
}

fn v6_to_v4_fragments(script: &mut Script) {
    in_fragments(v6_to_v4(), script);
}

/// What fits the link that it comes from, and with the longer header not the one ahead: told, or cut, as its sender allows it.
fn v4_to_v6_too_large(script: &mut Script) {
    let ends = v4_to_v6();
    ends.open(script);
    script.outside(tcp(ends.client, ends.vip, data(101, 901, &[b'x'; 1_440])));
    script.outside(tcp(ends.client, ends.vip, data(1_541, 901, &[b'x'; 1_441])));
    script.outside(uncut(tcp(ends.client, ends.vip, data(1_541, 901, &[b'x'; 1_441])), 0x1234));
    // The other way it gets shorter.
    script.inside(80, tcp(ends.server, ends.source, data(901, 2_982, &[b'x'; 1_440])));
}

fn v6_to_v4_too_large(script: &mut Script) {
    let ends = v6_to_v4();
    ends.open(script);
    script.outside(tcp(ends.client, ends.vip, data(101, 901, &[b'x'; 1_460])));
    script.outside(tcp(ends.client, ends.vip, data(1_561, 901, &[b'x'; 1_461])));
    script.inside(80, tcp(ends.server, ends.source, data(901, 1_561, &[b'x'; 1_441])));
    script.inside(80, uncut(tcp(ends.server, ends.source, data(901, 1_561, &[b'x'; 1_441])), 0x1234));
}

fn v4_to_v6_icmp_errors_udp(script: &mut Script) {
    errors_about_udp(v4_to_v6(), [V6_KINDS, V4_KINDS], [ROUTERS_V6[0], ROUTERS_V4[1]], script);
}

fn v6_to_v4_icmp_errors_udp(script: &mut Script) {
    errors_about_udp(v6_to_v4(), [V4_KINDS, V6_KINDS], [ROUTERS_V4[0], ROUTERS_V6[1]], script);
}

fn v4_to_v6_icmp_errors_tcp(script: &mut Script) {
    errors_about_tcp(v4_to_v6(), [V6_KINDS, V4_KINDS], [ROUTERS_V6[0], ROUTERS_V4[1]], script);
}

fn v6_to_v4_icmp_errors_tcp(script: &mut Script) {
    errors_about_tcp(v6_to_v4(), [V4_KINDS, V6_KINDS], [ROUTERS_V4[0], ROUTERS_V6[1]], script);
}
