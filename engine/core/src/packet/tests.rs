use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 7);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const VIP6_SOLICITED: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 1);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const ACK: u8 = TcpFlags::ACK.0;
const SYN: u8 = TcpFlags::SYN.0;

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut bytes = parts.concat();
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    (!(sum as u16)).to_be_bytes()
}

fn ethernet(ethertype: u16, body: &[u8]) -> Vec<u8> {
    [&OUR_MAC, &PEER_MAC, &ethertype.to_be_bytes()[..], body].concat()
}

#[derive(Clone)]
struct V4 {
    protocol: u8,
    src: Ipv4Addr,
    dst: Ipv4Addr,
    flags_and_offset: u16,
    options: Vec<u8>,
}

impl V4 {
    fn new(protocol: u8) -> V4 {
        V4 { protocol, src: CLIENT, dst: VIP, flags_and_offset: 0x4000, options: Vec::new() }
    }

    fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let words = 5 + self.options.len() / 4;
        let total_len = (words * 4 + payload.len()) as u16;
        let mut header = vec![0x40 | words as u8, 0];
        header.extend(total_len.to_be_bytes());
        header.extend([0x12, 0x34]);
        header.extend(self.flags_and_offset.to_be_bytes());
        header.extend([64, self.protocol, 0, 0]);
        header.extend(self.src.octets());
        header.extend(self.dst.octets());
        header.extend(&self.options);
        let sum = checksum(&[&header]);
        header[10..12].copy_from_slice(&sum);
        header.extend(payload);
        header
    }

    fn frame(&self, payload: &[u8]) -> Vec<u8> {
        ethernet(0x0800, &self.packet(payload))
    }
}

#[derive(Clone)]
struct V6 {
    next: u8,
    hop_limit: u8,
    src: Ipv6Addr,
    dst: Ipv6Addr,
}

impl V6 {
    fn new(next: u8) -> V6 {
        V6 { next, hop_limit: 63, src: CLIENT6, dst: VIP6 }
    }

    fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((payload.len() as u16).to_be_bytes());
        packet.extend([self.next, self.hop_limit]);
        packet.extend(self.src.octets());
        packet.extend(self.dst.octets());
        packet.extend(payload);
        packet
    }

    fn frame(&self, payload: &[u8]) -> Vec<u8> {
        ethernet(0x86dd, &self.packet(payload))
    }

    /// A frame with an ICMPv6 message whose checksum is right.
    fn icmp(&self, message: &[u8]) -> Vec<u8> {
        self.frame(&self.icmp_message(message))
    }

    fn icmp_message(&self, message: &[u8]) -> Vec<u8> {
        let mut message = message.to_vec();
        let length = (message.len() as u32).to_be_bytes();
        let sum = checksum(&[&self.src.octets(), &self.dst.octets(), &length, &[0, 0, 0, 58], &message]);
        message[2..4].copy_from_slice(&sum);
        message
    }
}

/// From port 40000 to 443.
fn tcp(flags: u8, options: &[u8], data: &[u8]) -> Vec<u8> {
    let mut segment = vec![0x9c, 0x40, 0x01, 0xbb, 1, 2, 3, 4, 10, 11, 12, 13];
    segment.extend([((5 + options.len() / 4) << 4) as u8, flags, 0x12, 0x34, 0xbe, 0xef, 0, 0]);
    segment.extend(options);
    segment.extend(data);
    segment
}

/// From port 40000 to 443.
fn udp(data: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0x9c, 0x40, 0x01, 0xbb];
    datagram.extend((8 + data.len() as u16).to_be_bytes());
    datagram.extend([0xbe, 0xef]);
    datagram.extend(data);
    datagram
}

fn icmp4(kind: u8, code: u8, rest: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0], &rest[..], body].concat();
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum);
    message
}

/// An extension header of 8 octets.
fn extension(next: u8) -> [u8; 8] {
    [next, 0, 0, 0, 1, 2, 0, 0]
}

fn fragment_header(next: u8, offset: u16, more: bool) -> [u8; 8] {
    let [high, low] = (offset | u16::from(more)).to_be_bytes();
    [next, 0xff, high, low, 0xca, 0xfe, 0xba, 0xbe]
}

fn neighbour(kind: u8, flags: u8, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, flags, 0, 0, 0], &target.octets()[..], options].concat()
}

fn solicitation() -> V6 {
    V6 { hop_limit: 255, dst: VIP6_SOLICITED, ..V6::new(PROTOCOL_ICMPV6) }
}

fn advertisement() -> V6 {
    V6 { hop_limit: 255, ..V6::new(PROTOCOL_ICMPV6) }
}

const SOURCE_LINK_LAYER: [u8; 8] = [1, 1, 2, 0, 0, 0, 0, 1];
const TARGET_LINK_LAYER: [u8; 8] = [2, 1, 2, 0, 0, 0, 0, 1];

fn arp(operation: u8) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, operation];
    body.extend(PEER_MAC);
    body.extend(CLIENT.octets());
    body.extend([0; 6]);
    body.extend(VIP.octets());
    ethernet(0x0806, &body)
}

fn edited(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// As [`edited`], with the checksum of an IPv4 header without options made right again.
fn edited4(frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    let frame = edited(edited(frame, at, bytes), 24, &[0, 0]);
    let sum = checksum(&[&frame[14..34]]);
    edited(frame, 24, &sum)
}

fn cut(mut frame: Vec<u8>, len: usize) -> Vec<u8> {
    frame.truncate(len);
    frame
}

fn tuple(protocol: u8, family: Family) -> Tuple {
    let (src, dst) = match family {
        Family::V4 => (CLIENT.into(), VIP.into()),
        Family::V6 => (CLIENT6.into(), VIP6.into()),
    };
    Tuple { src, dst, src_port: 40_000, dst_port: 443, protocol }
}

fn without_ports(tuple: Tuple) -> Tuple {
    Tuple { src_port: 0, dst_port: 0, ..tuple }
}

fn transport(frame: &[u8]) -> Parsed {
    match parse(frame) {
        Ok(Packet::Transport(parsed)) => parsed,
        other => panic!("{other:?}"),
    }
}

/// The packet of a VIP that an ICMP error to the VIP is about.
fn embedded4(payload: &[u8]) -> Vec<u8> {
    V4 { src: VIP, dst: CLIENT, ..V4::new(PROTOCOL_TCP) }.packet(payload)
}

fn embedded6(next: u8, payload: &[u8]) -> Vec<u8> {
    V6 { src: VIP6, dst: CLIENT6, ..V6::new(next) }.packet(payload)
}

fn error4(kind: u8, code: u8, embedded: &[u8]) -> Vec<u8> {
    V4::new(PROTOCOL_ICMP).frame(&icmp4(kind, code, [0, 0, 0x05, 0xdc], embedded))
}

fn error6(kind: u8, embedded: &[u8]) -> Vec<u8> {
    V6::new(PROTOCOL_ICMPV6).icmp(&[&[kind, 0, 0, 0, 0, 0, 0x05, 0x00], embedded].concat())
}

/// At least one frame of each malformed kind.
fn malformed() -> Vec<(DropReason, Vec<u8>)> {
    use DropReason as R;
    let tcp4 = || V4::new(PROTOCOL_TCP).frame(&tcp(ACK, &[], b"data"));
    let tcp6 = || V6::new(PROTOCOL_TCP).frame(&tcp(ACK, &[], b"data"));
    let udp4 = || V4::new(PROTOCOL_UDP).frame(&udp(b"data"));
    let udp6 = || V6::new(PROTOCOL_UDP).frame(&udp(b"data"));
    let v4_from = |src| V4 { src, ..V4::new(PROTOCOL_TCP) }.frame(&tcp(ACK, &[], b""));
    let v4_to = |dst| V4 { dst, ..V4::new(PROTOCOL_TCP) }.frame(&tcp(ACK, &[], b""));
    let v6_from = |src| V6 { src, ..V6::new(PROTOCOL_TCP) }.frame(&tcp(ACK, &[], b""));
    let v6_to = |dst| V6 { dst, ..V6::new(PROTOCOL_TCP) }.frame(&tcp(ACK, &[], b""));
    let options = |options: &[u8]| V4 { options: options.to_vec(), ..V4::new(PROTOCOL_TCP) }.frame(&tcp(ACK, &[], b""));
    let part4 = |protocol, flags_and_offset, data: &[u8]| V4 { flags_and_offset, ..V4::new(protocol) }.frame(data);
    let part6 =
        |next, offset, more, data: &[u8]| V6::new(44).frame(&[&fragment_header(next, offset, more), data].concat());
    let chain =
        |headers: &[[u8; 8]], first| V6::new(first).frame(&[&headers.concat()[..], &tcp(ACK, &[], b"")].concat());
    let flags = |flags| V4::new(PROTOCOL_TCP).frame(&tcp(flags, &[], b""));
    let ping4 = || V4::new(PROTOCOL_ICMP).frame(&icmp4(8, 0, [0, 1, 0, 1], b"ping!"));
    let solicit = |options: &[u8]| solicitation().icmp(&neighbour(135, 0, VIP6, options));
    let nameless = |packet: V6| V6 { src: Ipv6Addr::UNSPECIFIED, ..packet };
    vec![
        (R::ArpSender, edited(arp(1), 22, &[3])),
        (R::ArpSender, edited(arp(1), 28, &[255, 255, 255, 255])),
        (R::ArpSender, edited(arp(1), 28, &[224, 0, 0, 1])),
        (R::ArpTruncated, cut(arp(1), 41)),
        (R::ArpTruncated, cut(arp(1), 14)),
        (R::ArpUnsupported, edited(arp(1), 15, &[6])),
        (R::ArpUnsupported, edited(arp(1), 16, &[0x86, 0xdd])),
        (R::ArpUnsupported, edited(arp(1), 19, &[16])),
        (R::EthernetSource, edited(tcp4(), 6, &[0xff])),
        (R::EthernetTruncated, Vec::new()),
        (R::EthernetTruncated, cut(tcp4(), 13)),
        (R::ExtensionOrder, chain(&[extension(0), extension(PROTOCOL_TCP)], 60)),
        (R::ExtensionOrder, chain(&[fragment_header(44, 0, false), fragment_header(PROTOCOL_TCP, 0, false)], 44)),
        (R::ExtensionTruncated, V6::new(60).frame(&[PROTOCOL_TCP, 0, 0, 0])),
        (R::ExtensionTruncated, V6::new(60).frame(&[PROTOCOL_TCP, 1, 0, 0, 0, 0, 0, 0])),
        (R::ExtensionTruncated, V6::new(44).frame(&[PROTOCOL_TCP, 0, 0, 0, 0, 0, 0])),
        (R::ExtensionsTooMany, chain(&[[extension(60); 8].as_slice(), &[extension(PROTOCOL_TCP)]].concat(), 60)),
        (R::FragmentBeyondEnd, part4(PROTOCOL_ICMP, 0x1fff, &[0; 8])),
        (R::FragmentBeyondEnd, part4(PROTOCOL_UDP, 8189, &[0; 8])),
        (R::FragmentBeyondEnd, part6(PROTOCOL_UDP, 0xfff8, false, &[0; 8])),
        (R::FragmentLength, part4(PROTOCOL_UDP, 0x2000, &udp(b"odd"))),
        (R::FragmentLength, part4(PROTOCOL_UDP, 10, &[])),
        (R::FragmentLength, part6(PROTOCOL_UDP, 0, true, &udp(b"odd"))),
        (R::FragmentLength, part6(PROTOCOL_UDP, 80, false, &[])),
        (R::FragmentTiny, part4(PROTOCOL_TCP, 0x2000, &tcp(ACK, &[], b"")[..16])),
        (R::FragmentTiny, part4(PROTOCOL_TCP, 1, &[0; 8])),
        (R::FragmentTiny, part4(PROTOCOL_TCP, 0x2002, &[0; 8])),
        (R::FragmentTiny, part6(PROTOCOL_TCP, 0, true, &tcp(ACK, &[], b"")[..16])),
        (R::FragmentTiny, part6(PROTOCOL_TCP, 16, false, &[0; 8])),
        (R::FragmentTiny, V6::new(44).frame(&[fragment_header(60, 0, true), extension(PROTOCOL_UDP)].concat())),
        (R::IcmpChecksum, edited(ping4(), 46, &[0])),
        (R::IcmpChecksum, edited(error4(3, 1, &embedded4(&tcp(ACK, &[], b""))), 35, &[2])),
        (R::IcmpChecksum, edited(solicit(&SOURCE_LINK_LAYER), 85, &[9])),
        (R::IcmpEmbedded, error4(3, 1, &embedded4(&tcp(ACK, &[], b""))[..27])),
        (R::IcmpEmbedded, error4(3, 1, &embedded4(&tcp(ACK, &[], b""))[..19])),
        (R::IcmpEmbedded, error4(3, 1, &edited(embedded4(&tcp(ACK, &[], b"")), 0, &[0x44]))),
        (R::IcmpEmbedded, error4(3, 1, &embedded6(PROTOCOL_TCP, &tcp(ACK, &[], b"")))),
        (R::IcmpEmbedded, error6(1, &embedded6(PROTOCOL_TCP, &tcp(ACK, &[], b""))[..47])),
        (R::IcmpEmbedded, error6(1, &embedded6(60, &[PROTOCOL_TCP, 9, 0, 0, 0, 0, 0, 0]))),
        (R::IcmpEmbedded, error6(1, &embedded4(&tcp(ACK, &[], &[0; 40])))),
        (R::IcmpEmbedded, error6(1, &V6 { src: VIP.to_ipv6_mapped(), ..V6::new(6) }.packet(&tcp(ACK, &[], b"")))),
        (R::IcmpEmbeddedFragment, error4(11, 1, &edited(embedded4(&tcp(ACK, &[], b"")), 7, &[3]))),
        (
            R::IcmpEmbeddedFragment,
            error6(3, &embedded6(44, &[&fragment_header(PROTOCOL_TCP, 80, false), &[0; 16][..]].concat())),
        ),
        (R::IcmpEmbeddedSource, error4(3, 1, &V4::new(PROTOCOL_TCP).packet(&tcp(ACK, &[], b"")))),
        (R::IcmpEmbeddedSource, error6(1, &V6::new(PROTOCOL_TCP).packet(&tcp(ACK, &[], b"")))),
        (R::IcmpTruncated, V4::new(PROTOCOL_ICMP).frame(&[8, 0, 0, 0, 0, 0, 0])),
        (R::IcmpTruncated, V6::new(PROTOCOL_ICMPV6).frame(&[128, 0, 0, 0])),
        (R::IpVersion, edited4(tcp4(), 14, &[0x65])),
        (R::IpVersion, edited(tcp6(), 14, &[0x45])),
        (R::Ipv4Checksum, edited(tcp4(), 22, &[63])),
        (R::Ipv4Checksum, edited(options(&[1, 1, 1, 0]), 34, &[7])),
        (R::Ipv4HeaderLength, edited4(tcp4(), 14, &[0x44])),
        (R::Ipv4HeaderLength, edited4(tcp4(), 14, &[0x4f])),
        (R::Ipv4HeaderLength, edited4(tcp4(), 16, &[0, 19])),
        (R::Ipv4Option, options(&[7, 5, 4, 0])),
        (R::Ipv4Option, options(&[7, 1, 4, 0])),
        (R::Ipv4Option, options(&[1, 1, 1, 7])),
        (R::Ipv4SourceRoute, options(&[131, 3, 4, 0])),
        (R::Ipv4SourceRoute, options(&[1, 137, 3, 4])),
        (R::Ipv4Truncated, cut(tcp4(), 33)),
        (R::Ipv4Truncated, cut(tcp4(), 57)),
        (R::Ipv6Truncated, cut(tcp6(), 53)),
        (R::Ipv6Truncated, cut(tcp6(), 77)),
        (R::Jumbo, edited4(tcp4(), 16, &[0, 0])),
        (R::Jumbo, edited(tcp6(), 18, &[0, 0])),
        (R::MappedAddress, v6_from(CLIENT.to_ipv6_mapped())),
        (R::MappedAddress, v6_to(VIP.to_ipv6_mapped())),
        (R::MartianDestination, v4_to(Ipv4Addr::LOCALHOST)),
        (R::MartianDestination, v4_to(Ipv4Addr::UNSPECIFIED)),
        (R::MartianDestination, v6_to(Ipv6Addr::LOCALHOST)),
        (R::MartianDestination, v6_to(Ipv6Addr::UNSPECIFIED)),
        (R::MartianSource, v4_from(Ipv4Addr::new(127, 1, 2, 3))),
        (R::MartianSource, v4_from(Ipv4Addr::UNSPECIFIED)),
        (R::MartianSource, v4_from(Ipv4Addr::BROADCAST)),
        (R::MartianSource, v4_from(Ipv4Addr::new(224, 0, 0, 1))),
        (R::MartianSource, v4_from(VIP)),
        (R::MartianSource, v6_from(Ipv6Addr::LOCALHOST)),
        (R::MartianSource, v6_from(Ipv6Addr::UNSPECIFIED)),
        (R::MartianSource, v6_from(ALL_NODES)),
        (R::MartianSource, v6_from(VIP6)),
        (R::NdHopLimit, V6 { hop_limit: 254, ..solicitation() }.icmp(&neighbour(135, 0, VIP6, &[]))),
        (R::NdMalformed, solicit(&[1, 0, 2, 0, 0, 0, 0, 1])),
        (R::NdMalformed, solicit(&[1, 1, 3, 0, 0, 0, 0, 1])),
        (R::NdMalformed, solicitation().icmp(&neighbour(135, 0, ALL_NODES, &[]))),
        (R::NdMalformed, solicitation().icmp(&neighbour(135, 0, VIP.to_ipv6_mapped(), &[]))),
        (R::NdMalformed, solicitation().icmp(&edited(neighbour(135, 0, VIP6, &[]), 1, &[1]))),
        (R::NdMalformed, nameless(solicitation()).icmp(&neighbour(135, 0, VIP6, &SOURCE_LINK_LAYER))),
        (R::NdMalformed, nameless(advertisement()).icmp(&neighbour(135, 0, VIP6, &[]))),
        (R::NdMalformed, nameless(advertisement()).icmp(&neighbour(136, 0x20, VIP6, &TARGET_LINK_LAYER))),
        (
            R::NdMalformed,
            V6 { dst: ALL_NODES, ..advertisement() }.icmp(&neighbour(136, 0x40, VIP6, &TARGET_LINK_LAYER)),
        ),
        (
            R::NdMalformed,
            V6 { next: 44, ..solicitation() }.frame(
                &[
                    &fragment_header(PROTOCOL_ICMPV6, 0, false)[..],
                    &solicitation().icmp_message(&neighbour(135, 0, VIP6, &[])),
                ]
                .concat(),
            ),
        ),
        (R::NdTruncated, solicitation().icmp(&neighbour(135, 0, VIP6, &[])[..23])),
        (R::NdTruncated, solicit(&[1, 2, 2, 0, 0, 0, 0, 1])),
        (R::NdTruncated, solicit(&[1])),
        (R::PortZero, edited(tcp4(), 34, &[0, 0])),
        (R::PortZero, edited(tcp6(), 56, &[0, 0])),
        (R::PortZero, edited(udp4(), 36, &[0, 0])),
        (R::RoutingHeader, chain(&[[PROTOCOL_TCP, 0, 0, 1, 0, 0, 0, 0]], 43)),
        (R::Tagged, edited(tcp4(), 12, &[0x81, 0])),
        (R::Tagged, edited(tcp4(), 12, &[0x88, 0xa8])),
        (R::TcpFlags, flags(0)),
        (R::TcpFlags, flags(0x01)),
        (R::TcpFlags, flags(0x03)),
        (R::TcpFlags, flags(0x06)),
        (R::TcpFlags, flags(0x08)),
        (R::TcpFlags, flags(0x3f)),
        (R::TcpHeaderLength, edited(tcp4(), 46, &[0x40])),
        (R::TcpHeaderLength, edited(tcp4(), 46, &[0x70])),
        (R::TcpTruncated, V4::new(PROTOCOL_TCP).frame(&tcp(ACK, &[], b"")[..19])),
        (R::TcpTruncated, V6::new(PROTOCOL_TCP).frame(&tcp(ACK, &[], b"")[..4])),
        (R::UdpChecksumMissing, edited(udp6(), 60, &[0, 0])),
        (R::UdpLength, edited(udp4(), 38, &[0, 7])),
        (R::UdpLength, edited(udp4(), 38, &[0, 13])),
        (R::UdpLength, edited(udp6(), 58, &[0, 0])),
        (R::UdpTruncated, V4::new(PROTOCOL_UDP).frame(&[0, 1, 0, 1, 0, 8, 0])),
    ]
}

/// A frame of each kind that is understood, and more where offsets differ.
fn well_formed() -> Vec<Vec<u8>> {
    let syn_options = [2, 4, 5, 180, 1, 3, 3, 7];
    let options = V4 { options: vec![1, 7, 7, 4, 0, 0, 0, 0], ..V4::new(PROTOCOL_TCP) };
    let headers = [extension(43), extension(60), extension(PROTOCOL_UDP)].concat();
    vec![
        arp(1),
        arp(2),
        V4::new(PROTOCOL_TCP).frame(&tcp(SYN, &syn_options, b"")),
        options.frame(&tcp(ACK, &[], b"data")),
        V4::new(PROTOCOL_UDP).frame(&udp(b"data")),
        V4 { flags_and_offset: 0x2000, ..V4::new(PROTOCOL_UDP) }.frame(&udp(&[5; 16])),
        V4 { flags_and_offset: 0x0003, ..V4::new(PROTOCOL_TCP) }.frame(&[5; 13]),
        V4::new(PROTOCOL_ICMP).frame(&icmp4(8, 0, [0, 1, 0, 1], b"ping!")),
        error4(3, 4, &embedded4(&tcp(ACK, &[], b""))),
        V6::new(PROTOCOL_TCP).frame(&tcp(SYN, &syn_options, b"")),
        V6::new(0).frame(&[&headers[..], &udp(b"data")].concat()),
        V6::new(44).frame(&[&fragment_header(PROTOCOL_TCP, 0, true)[..], &tcp(ACK, &[], &[5; 12])].concat()),
        V6::new(PROTOCOL_ICMPV6).icmp(&[128, 0, 0, 0, 0, 1, 0, 1, 9]),
        error6(2, &embedded6(PROTOCOL_UDP, &udp(b""))),
        solicitation().icmp(&neighbour(135, 0, VIP6, &SOURCE_LINK_LAYER)),
        advertisement().icmp(&neighbour(136, 0xe0, VIP6, &TARGET_LINK_LAYER)),
    ]
}

#[test]
fn each_malformed_frame_is_dropped_for_its_own_reason() {
    let mut seen = HashSet::new();
    for (index, (reason, frame)) in malformed().into_iter().enumerate() {
        assert_eq!(parse(&frame), Err(reason), "frame {index}: {frame:02x?}");
        seen.insert(reason);
    }
    // The others are the plane's, which has its own tests.
    for reason in DropReason::ALL {
        let is_planes = crate::plane::DROP_REASONS.contains(reason);
        assert!(seen.contains(reason) != is_planes, "is a frame dropped for {reason:?}, and by whom?");
    }
}

#[test]
fn reasons_have_different_labels_and_a_sentence() {
    let labels: HashSet<_> = DropReason::ALL.iter().map(|reason| reason.label()).collect();
    assert_eq!(labels.len(), DropReason::ALL.len());
    for reason in DropReason::ALL {
        assert!(reason.help().ends_with('.'), "{reason:?}");
    }
}

#[test]
fn a_tcp_segment_over_ipv4_is_read_field_by_field() {
    let packet = V4 { options: vec![1, 1, 1, 0], ..V4::new(PROTOCOL_TCP) };
    let expected = Parsed {
        tuple: tuple(PROTOCOL_TCP, Family::V4),
        family: Family::V4,
        ttl: 64,
        dont_fragment: true,
        l3: 14,
        l4: 38,
        payload: 66,
        end: 70,
        tcp: Tcp { seq: 0x0102_0304, ack: 0x0a0b_0c0d, window: 0x1234, flags: TcpFlags(0x18) },
    };
    let read = transport(&packet.frame(&tcp(0x18, &[1; 8], b"data")));
    assert_eq!(read, expected);
    assert_eq!((read.payload_len(), read.total_len()), (4, 56));
}

#[test]
fn a_udp_datagram_over_ipv6_is_found_behind_every_extension_header() {
    let mut long = vec![44, 2];
    long.resize(24, 0);
    let headers = [
        &extension(60)[..],
        &extension(43),
        &[60, 0, 0, 0, 0, 0, 0, 0],
        &long,
        &fragment_header(60, 0, false),
        &extension(PROTOCOL_UDP),
    ]
    .concat();
    let expected = Parsed {
        tuple: tuple(PROTOCOL_UDP, Family::V6),
        family: Family::V6,
        ttl: 63,
        dont_fragment: true,
        l3: 14,
        l4: 54 + 64,
        payload: 54 + 72,
        end: 54 + 77,
        tcp: Tcp::default(),
    };
    assert_eq!(transport(&V6::new(0).frame(&[&headers[..], &udp(b"hello")].concat())), expected);
}

#[test]
fn eight_extension_headers_are_passed() {
    let headers = [[extension(60); 7].as_slice(), &[extension(PROTOCOL_TCP)]].concat().concat();
    let read = transport(&V6::new(60).frame(&[&headers[..], &tcp(ACK, &[], b"")].concat()));
    assert_eq!(read.l4, 54 + 64);
}

#[test]
fn padding_behind_the_packet_is_not_read() {
    for frame in well_formed() {
        let padded = [&frame[..], &[0xaa; 46]].concat();
        assert_eq!(parse(&padded), parse(&frame));
    }
}

#[test]
fn a_super_packet_is_a_packet() {
    let v4 = transport(&V4::new(PROTOCOL_TCP).frame(&tcp(ACK, &[], &vec![7; 65_535 - 40])));
    assert_eq!((v4.total_len(), v4.payload_len(), v4.end), (65_535, 65_495, 65_549));
    let v6 = transport(&V6::new(PROTOCOL_TCP).frame(&tcp(ACK, &[], &vec![7; 65_535 - 20])));
    assert_eq!((v6.total_len(), v6.payload_len(), v6.end), (65_575, 65_515, 65_589));
}

#[test]
fn a_datagram_may_be_shorter_than_its_packet_and_lack_a_checksum_over_ipv4() {
    let frame = V4::new(PROTOCOL_UDP).frame(&[&udp(b"data")[..], b"options"].concat());
    assert_eq!(transport(&edited(frame, 40, &[0, 0])).tuple, tuple(PROTOCOL_UDP, Family::V4));
}

#[test]
fn flags_that_tcp_sends_pass() {
    for flags in [0x02, 0x12, 0x52, 0xc2, 0x10, 0x18, 0x11, 0x19, 0x04, 0x14, 0x30, 0x31, 0xd8] {
        let read = transport(&V4::new(PROTOCOL_TCP).frame(&tcp(flags, &[], b"")));
        assert_eq!(read.tcp.flags, TcpFlags(flags));
    }
    assert!(TcpFlags(0x12).contains(TcpFlags::SYN) && !TcpFlags(0x12).contains(TcpFlags::FIN));
}

#[test]
fn what_is_not_for_the_packet_plane_is_named() {
    let group_mac = edited(V4::new(PROTOCOL_TCP).frame(&tcp(ACK, &[], b"")), 0, &[0xff; 6]);
    let to_group = |dst| V4 { dst, ..V4::new(PROTOCOL_UDP) }.frame(&udp(b""));
    let to_group6 = V6 { dst: ALL_NODES, ..V6::new(PROTOCOL_UDP) }.frame(&udp(b""));
    let dhcp = V4 { src: Ipv4Addr::UNSPECIFIED, dst: Ipv4Addr::BROADCAST, ..V4::new(PROTOCOL_UDP) }.frame(&udp(b""));
    let error_about_other = V4 { src: VIP, dst: CLIENT, ..V4::new(PROTOCOL_ICMP) }.packet(&icmp4(13, 0, [0; 4], b""));
    let later_looks_like_nd = [&fragment_header(PROTOCOL_ICMPV6, 8, false)[..], &[135; 24]].concat();
    let table = [
        (arp(8), Other::Arp(8)),
        (ethernet(0x88cc, &[0; 46]), Other::EtherType(0x88cc)),
        (ethernet(38, &[0; 46]), Other::EtherType(38)),
        (group_mac, Other::Group),
        (to_group(Ipv4Addr::new(224, 0, 0, 251)), Other::Group),
        (to_group(Ipv4Addr::BROADCAST), Other::Group),
        (to_group6, Other::Group),
        (dhcp, Other::Group),
        (V4::new(PROTOCOL_ICMP).frame(&icmp4(0, 1, [0; 4], b"")), Other::Icmp(0)),
        (V4::new(PROTOCOL_ICMP).frame(&icmp4(5, 0, [0; 4], b"")), Other::Icmp(5)),
        (V4::new(PROTOCOL_ICMP).frame(&icmp4(8, 1, [0; 4], b"")), Other::Icmp(8)),
        (error4(3, 1, &error_about_other), Other::Icmp(3)),
        (V6::new(PROTOCOL_ICMPV6).icmp(&[129, 1, 0, 0, 0, 0, 0, 0]), Other::Icmp(129)),
        (V6::new(PROTOCOL_ICMPV6).icmp(&[134, 0, 0, 0, 0, 0, 0, 0]), Other::Icmp(134)),
        (V4::new(47).frame(&[0; 8]), Other::Protocol(47)),
        (V4::new(PROTOCOL_ICMPV6).frame(&[0; 8]), Other::Protocol(PROTOCOL_ICMPV6)),
        (V6::new(PROTOCOL_ICMP).frame(&[0; 8]), Other::Protocol(PROTOCOL_ICMP)),
        (V6::new(59).frame(&[0; 8]), Other::Protocol(59)),
        (V6::new(51).frame(&[0; 8]), Other::Protocol(51)),
    ];
    for (frame, expected) in table {
        assert_eq!(parse(&frame), Ok(Packet::Other(expected)), "{frame:02x?}");
    }
    assert!(matches!(parse(&V6::new(44).frame(&later_looks_like_nd)), Ok(Packet::Fragment(_))));
}

#[test]
fn a_ping_is_recognised_in_both_families() {
    let v4 = parse(&V4::new(PROTOCOL_ICMP).frame(&icmp4(8, 0, [0, 1, 0, 1], b"odd")));
    let Ok(Packet::Echo(v4)) = v4 else { panic!("{v4:?}") };
    let named = |tuple| Tuple { src_port: 1, ..without_ports(tuple) };
    assert_eq!((v4.tuple, v4.l4, v4.payload), (named(tuple(PROTOCOL_ICMP, Family::V4)), 34, 42));
    let v6 = parse(&V6::new(PROTOCOL_ICMPV6).icmp(&[128, 0, 0, 0, 0, 1, 0, 1, 9]));
    let Ok(Packet::Echo(v6)) = v6 else { panic!("{v6:?}") };
    assert_eq!((v6.tuple, v6.l4, v6.payload), (named(tuple(PROTOCOL_ICMPV6, Family::V6)), 54, 62));
    // A reply shows its identifier at the end that it goes to.
    let replies = [
        V4::new(PROTOCOL_ICMP).frame(&icmp4(0, 0, [0, 1, 0, 1], b"odd")),
        V6::new(PROTOCOL_ICMPV6).icmp(&[129, 0, 0, 0, 0, 1, 0, 1, 9]),
    ];
    for reply in replies {
        let Ok(Packet::EchoReply(reply)) = parse(&reply) else { panic!("{:?}", parse(&reply)) };
        assert_eq!((reply.tuple.src_port, reply.tuple.dst_port), (0, 1));
    }
    let quoted = V4 { src: VIP, dst: CLIENT, ..V4::new(PROTOCOL_ICMP) }.packet(&icmp4(8, 0, [0, 1, 0, 1], b""));
    let error = parse(&error4(3, 1, &quoted));
    let Ok(Packet::IcmpError(error)) = error else { panic!("{error:?}") };
    assert_eq!((error.embedded.src_port, error.embedded.dst_port, error.embedded_seq), (1, 0, 0));
}

fn fragment(frame: &[u8]) -> Fragment {
    match parse(frame) {
        Ok(Packet::Fragment(fragment)) => fragment,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_fragments_of_a_packet_share_a_key_and_the_first_shows_the_ports() {
    let v4 = |flags_and_offset, data: &[u8]| fragment(&V4 { flags_and_offset, ..V4::new(PROTOCOL_UDP) }.frame(data));
    // The datagram is longer than its first fragment.
    let (first, last) = (v4(0x2000, &edited(udp(&[1; 24]), 4, &[1, 0])), v4(0x0004, &[1; 3]));
    assert_eq!(first.parsed.tuple, tuple(PROTOCOL_UDP, Family::V4));
    assert_eq!(last.parsed.tuple, without_ports(tuple(PROTOCOL_UDP, Family::V4)));
    assert_eq!((first.is_first(), first.offset, first.more), (true, 0, true));
    assert_eq!((last.is_first(), last.offset, last.more), (false, 32, false));
    assert_eq!(first.key, last.key);
    assert_eq!((first.key.id, first.key.protocol), (0x1234, PROTOCOL_UDP));
    assert_eq!((last.parsed.l4, last.parsed.payload, last.parsed.payload_len()), (34, 34, 3));

    let v6 =
        |offset, more, data: &[u8]| fragment(&V6::new(44).frame(&[&fragment_header(60, offset, more), data].concat()));
    let (first, last) =
        (v6(0, true, &[&extension(PROTOCOL_TCP)[..], &tcp(ACK, &[], &[1; 4])].concat()), v6(32, false, &[1; 3]));
    assert_eq!(first.parsed.tuple, tuple(PROTOCOL_TCP, Family::V6));
    assert_eq!(first.parsed.tcp.seq, 0x0102_0304);
    assert_eq!((last.parsed.tuple.src_port, last.parsed.l4, last.offset), (0, 62, 32));
    assert_eq!(first.key, last.key);
    assert_eq!((first.key.id, first.key.protocol), (0xcafe_babe, 60));
}

#[test]
fn a_fragment_may_end_exactly_where_the_longest_packet_ends() {
    assert_eq!(fragment(&V4 { flags_and_offset: 8188, ..V4::new(PROTOCOL_UDP) }.frame(&[0; 11])).offset, 65_504);
    let header = fragment_header(PROTOCOL_UDP, 0xfff8, false);
    assert_eq!(fragment(&V6::new(44).frame(&[&header[..], &[0; 7]].concat())).offset, 65_528);
}

#[test]
fn a_pinged_fragment_has_no_ports() {
    let first = fragment(&V4 { flags_and_offset: 0x2000, ..V4::new(PROTOCOL_ICMP) }.frame(&[8; 16]));
    assert_eq!(first.parsed.tuple, without_ports(tuple(PROTOCOL_ICMP, Family::V4)));
}

fn icmp_error(frame: &[u8]) -> IcmpError {
    match parse(frame) {
        Ok(Packet::IcmpError(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_icmp_error_names_the_flow_that_it_is_about() {
    use IcmpErrorKind::{PacketTooBig, ParameterProblem, TimeExceeded, Unreachable};
    let embedded = embedded4(&tcp(ACK, &[], b""));
    for (kind, code, expected) in [
        (3, 4, PacketTooBig { mtu: 1500 }),
        (3, 1, Unreachable),
        (3, 3, Unreachable),
        (11, 0, TimeExceeded),
        (12, 0, ParameterProblem),
    ] {
        // Eight octets of the embedded packet's transport header are all that RFC 792 promises.
        for len in [28, embedded.len()] {
            let error = icmp_error(&error4(kind, code, &embedded[..len]));
            assert_eq!(error.kind, expected);
            let flow = Tuple { src_port: 40_000, dst_port: 443, ..tuple(PROTOCOL_TCP, Family::V4).reversed() };
            assert_eq!(error.embedded, flow);
            assert_eq!((error.parsed.l4, error.parsed.payload, error.embedded_l4), (34, 42, 62));
            assert_eq!(error.embedded_seq, 0x0102_0304);
        }
    }
    let embedded = embedded6(60, &[&extension(PROTOCOL_UDP)[..], &udp(b"")].concat());
    for (kind, expected) in
        [(1, Unreachable), (2, PacketTooBig { mtu: 1280 }), (3, TimeExceeded), (4, ParameterProblem)]
    {
        let error = icmp_error(&error6(kind, &embedded));
        assert_eq!(error.kind, expected);
        let flow = Tuple { src_port: 40_000, dst_port: 443, ..tuple(PROTOCOL_UDP, Family::V6).reversed() };
        assert_eq!(error.embedded, flow);
        assert_eq!((error.parsed.payload, error.embedded_l4, error.embedded_seq), (62, 110, 0));
    }
}

#[test]
fn an_embedded_packet_may_lie_about_its_length_and_checksum() {
    let embedded = edited(edited(embedded4(&tcp(ACK, &[], b"")), 2, &[0xff, 0xff]), 10, &[0, 0]);
    assert_eq!(icmp_error(&error4(3, 1, &embedded)).embedded.dst, CLIENT.into());
}

#[test]
fn arp_is_read_field_by_field() {
    let expected = Arp {
        operation: ArpOperation::Request,
        sender_mac: Mac(PEER_MAC),
        sender: CLIENT.into(),
        target_mac: Mac([0; 6]),
        target: VIP.into(),
    };
    assert_eq!(parse(&edited(arp(1), 0, &[0xff; 6])), Ok(Packet::Arp(expected)));
    assert_eq!(parse(&arp(2)), Ok(Packet::Arp(Arp { operation: ArpOperation::Reply, ..expected })));
    // A probe (RFC 5227).
    let probe = Arp { sender: Ipv4Addr::UNSPECIFIED.into(), ..expected };
    assert_eq!(parse(&edited(arp(1), 28, &[0; 4])), Ok(Packet::Arp(probe)));
}

#[test]
fn neighbour_messages_are_read_field_by_field() {
    let question = Nd {
        kind: NdKind::Solicitation,
        src: CLIENT6.into(),
        dst: VIP6_SOLICITED.into(),
        target: VIP6.into(),
        link_layer: Some(Mac(PEER_MAC)),
    };
    // An unknown option (a nonce, RFC 3971) comes first.
    let options = [[14, 1, 1, 2, 3, 4, 5, 6], SOURCE_LINK_LAYER].concat();
    let frame = solicitation().icmp(&neighbour(135, 0, VIP6, &options));
    assert_eq!(parse(&edited(frame, 0, &[0x33, 0x33, 0xff, 0, 0, 1])), Ok(Packet::Nd(question)));

    let duplicate = V6 { src: Ipv6Addr::UNSPECIFIED, ..solicitation() }.icmp(&neighbour(135, 0, VIP6, &[]));
    let expected = Nd { src: Ipv6Addr::UNSPECIFIED.into(), link_layer: None, ..question };
    assert_eq!(parse(&duplicate), Ok(Packet::Nd(expected)));

    let answer = advertisement().icmp(&neighbour(136, 0x60, VIP6, &TARGET_LINK_LAYER));
    let kind = NdKind::Advertisement { router: false, solicited: true, overrides: true };
    assert_eq!(parse(&answer), Ok(Packet::Nd(Nd { kind, dst: VIP6.into(), ..question })));

    let announcement = V6 { dst: ALL_NODES, ..advertisement() }.icmp(&neighbour(136, 0xa0, VIP6, &TARGET_LINK_LAYER));
    let kind = NdKind::Advertisement { router: true, solicited: false, overrides: true };
    assert_eq!(parse(&announcement), Ok(Packet::Nd(Nd { kind, dst: ALL_NODES.into(), ..question })));
}

#[test]
fn syn_options_are_read_up_to_the_first_malformed_one() {
    let table: [(&[u8], Option<u16>, Option<u8>); 8] = [
        (&[], None, None),
        (&[2, 4, 5, 180], Some(1460), None),
        (&[1, 2, 4, 5, 180, 3, 3, 7], Some(1460), Some(7)),
        (&[4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 3, 15], None, Some(14)),
        (&[0, 2, 4, 5, 180, 0, 0, 0], None, None),
        (&[3, 3, 7, 9, 0, 2, 4, 5], None, Some(7)),
        (&[3, 3, 7, 2, 5, 4, 5, 180], None, Some(7)),
        (&[1, 1, 1, 2], None, None),
    ];
    for (options, mss, window_scale) in table {
        let frame = V4::new(PROTOCOL_TCP).frame(&tcp(SYN, options, b"\x02\x04\x01\x01"));
        let read = SynOptions::read(&frame, &transport(&frame));
        assert_eq!(read, SynOptions { mss, window_scale }, "{options:?}");
    }
}

#[test]
fn addresses_keep_their_family_and_text() {
    for text in ["192.0.2.1", "2001:db8::1", "::", "0.0.0.0"] {
        let address: IpAddr = text.parse().expect("an address");
        let ip = Ip::from(address);
        assert_eq!(IpAddr::from(ip), address);
        assert_eq!(ip.to_string(), text);
        assert_eq!(ip.is_v4(), address.is_ipv4());
    }
    assert_eq!(Ip::from(VIP).v4_octets(), [192, 0, 2, 1]);
    assert_eq!(Mac(PEER_MAC).to_string(), "02:00:00:00:00:01");
    assert_eq!(tuple(PROTOCOL_TCP, Family::V4).reversed().reversed(), tuple(PROTOCOL_TCP, Family::V4));
}

/// What later steps rely on without looking again.
fn offsets_hold(frame: &[u8]) {
    let (parsed, embedded_l4) = match parse(frame) {
        Ok(Packet::Transport(parsed) | Packet::Echo(parsed) | Packet::EchoReply(parsed)) => (parsed, None),
        Ok(Packet::Fragment(fragment)) => (fragment.parsed, None),
        Ok(Packet::IcmpError(error)) => (error.parsed, Some(error.embedded_l4)),
        Ok(Packet::Arp(_) | Packet::Nd(_) | Packet::Other(_)) | Err(_) => return,
    };
    let Parsed { l3, l4, payload, end, .. } = parsed;
    assert!(l3 < l4 && l4 <= payload && u32::from(payload) <= end && end as usize <= frame.len(), "{parsed:?}");
    if let Some(at) = embedded_l4 {
        assert!(at > payload && u32::from(at) + 8 <= end, "{parsed:?}, embedded header at {at}");
    }
    SynOptions::read(frame, &parsed);
}

#[test]
fn no_beginning_of_a_packet_is_taken_for_the_whole() {
    for frame in well_formed() {
        assert!(!matches!(parse(&frame), Ok(Packet::Other(_)) | Err(_)), "{frame:02x?}");
        for len in 0..frame.len() {
            assert!(parse(&frame[..len]).is_err(), "{len} octets of {frame:02x?}");
        }
    }
}

proptest! {
    #[test]
    fn random_octets_neither_panic_nor_lead_outside(
        ethertype in prop::sample::select(vec![0x0800_u16, 0x0806, 0x86dd, 0x8100]),
        body in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        offsets_hold(&body);
        offsets_hold(&ethernet(ethertype, &body));
    }

    #[test]
    fn changed_and_cut_packets_neither_panic_nor_lead_outside(
        index in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        len in any::<prop::sample::Index>(),
        cut_off in any::<bool>(),
    ) {
        let frames = well_formed();
        let mut frame = index.get(&frames).clone();
        for (at, value) in changes {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        if frame[12..14] == [8, 0] {
            // Past the checksum: the rest of the parser must hold, too.
            frame = edited4(frame, 14, &[0x45]);
        }
        if cut_off {
            frame.truncate(len.index(frame.len() + 1));
        }
        offsets_hold(&frame);
    }

    /// Also where random octets would hardly ever lead: chains of extension headers.
    #[test]
    fn random_chains_neither_panic_nor_lead_outside(
        first in prop::sample::select(vec![0_u8, 43, 44, 60]),
        headers in prop::collection::vec(
            (prop::sample::select(vec![0_u8, 6, 17, 43, 44, 58, 60]), 0_u8..3, any::<[u8; 6]>()), 1..12),
        tail in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut payload = Vec::new();
        for (next, words, rest) in headers {
            payload.extend([next, words]);
            payload.extend(rest);
            payload.resize(payload.len() + usize::from(words) * 8, 0);
        }
        payload.extend(tail);
        let packet = embedded6(first, &payload);
        offsets_hold(&ethernet(0x86dd, &packet));
        offsets_hold(&error6(1, &packet));
    }
}

#[test]
fn what_is_copied_per_packet_stays_small() {
    assert!(size_of::<Parsed>() <= 64 && size_of::<Result<Packet, DropReason>>() <= 128);
}
