//! Frames that the packet plane makes itself: where its addresses are, TCP resets and ICMP errors, with every checksum complete.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Deref;

use crate::packet::{
    Arp, ETHERNET_LEN, Ethernet, Family, Ip, Mac, Nd, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, Parsed, TcpFlags,
    Tuple, checksum,
};

/// Octets of an ARP frame; the padding to 60 is the device's.
pub(super) const ARP_LEN: usize = ETHERNET_LEN + 28;
/// Octets of a neighbour advertisement with a link-layer address.
pub(super) const NEIGHBOUR_LEN: usize = ND_START + 32;
/// Octets of the longest TCP reset.
pub(super) const RESET_LEN_MAX: usize = ETHERNET_LEN + IPV6_LEN + TCP_LEN;
/// Octets of the longest ICMP error: an IPv6 packet that fits every link.
pub(super) const ERROR_LEN_MAX: usize = ETHERNET_LEN + V6_ERROR_MAX;

/// Octets of a link-layer address option (RFC 4861 section 4.6.1).
const ND_OPTION_LEN: usize = 8;
/// Where a neighbour message starts.
const ND_START: usize = ETHERNET_LEN + IPV6_LEN;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const TCP_LEN: usize = 20;
const ICMP_LEN: usize = 8;
/// Octets of an ICMP error with its IP header: RFC 1812 section 4.3.2.3.
const V4_ERROR_MAX: usize = 576;
/// The same for IPv6: RFC 4443 section 2.4 (c).
const V6_ERROR_MAX: usize = 1280;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// How far packets of ours go (RFC 1700's default TTL, which RFC 9293 leaves to us).
const HOP_LIMIT: u8 = 64;
/// The hop limit that shows that a neighbour message comes from the link (RFC 4861 section 7.1).
const ND_HOP_LIMIT: u8 = 255;

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const ND_SOLICITED: u8 = 0x40;
const ND_OVERRIDE: u8 = 0x20;
const ND_OPTION_SOURCE: u8 = 1;
const ND_OPTION_TARGET: u8 = 2;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The stations at both ends of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Macs {
    /// Who sends it: a port of ours.
    pub(super) src: Mac,
    /// Who it is for.
    pub(super) dst: Mac,
}

impl Macs {
    /// Of an answer to `frame`: from the port at `mac`, where it came in, back to the station that sent it. `None` for one without an
    /// Ethernet header or from a group.
    pub(super) fn answering(frame: &[u8], mac: Mac) -> Option<Macs> {
        Some(Macs { src: mac, dst: Ethernet::read(frame).ok()?.src })
    }
}

/// A frame of at most `N` octets.
#[derive(Clone)]
pub(super) struct Made<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Made<N> {
    fn new(macs: Macs, ethertype: u16) -> Made<N> {
        let mut frame = Made { bytes: [0; N], len: 0 };
        frame.push(&macs.dst.0);
        frame.push(&macs.src.0);
        frame.push(&ethertype.to_be_bytes());
        frame
    }

    /// Begins an IP packet from `src` to `dst` with `payload_len` octets behind its header; returns where they start.
    fn ip(macs: Macs, (src, dst): (Ip, Ip), protocol: u8, hop_limit: u8, payload_len: usize) -> (Made<N>, usize) {
        if src.is_v4() && dst.is_v4() {
            let mut frame = Made::new(macs, ETHERTYPE_IPV4);
            // Don't fragment, so identification 0 will do (RFC 6864 section 4.1).
            frame.push(&[0x45, 0]);
            frame.push(&length(IPV4_LEN + payload_len));
            frame.push(&[0, 0, 0x40, 0, hop_limit, protocol, 0, 0]);
            frame.push(&src.v4_octets());
            frame.push(&dst.v4_octets());
            let header = frame.get(ETHERNET_LEN..).unwrap_or_default();
            let check = checksum::of(header);
            frame.set(ETHERNET_LEN + 10, check);
            (frame, ETHERNET_LEN + IPV4_LEN)
        } else {
            let mut frame = Made::new(macs, ETHERTYPE_IPV6);
            frame.push(&[0x60, 0, 0, 0]);
            frame.push(&length(payload_len));
            frame.push(&[protocol, hop_limit]);
            frame.push(&src.0);
            frame.push(&dst.0);
            (frame, ETHERNET_LEN + IPV6_LEN)
        }
    }

    /// Appends; what goes beyond `N` is left out, so `N` has room for all.
    fn push(&mut self, bytes: &[u8]) {
        let free = self.bytes.get_mut(self.len..).unwrap_or_default();
        debug_assert!(bytes.len() <= free.len(), "the constants have room for every frame");
        for (to, from) in free.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.len = (self.len + bytes.len()).min(N);
    }

    fn set(&mut self, at: usize, value: u16) {
        if let Some(field) = self.bytes.get_mut(at..).and_then(|bytes| bytes.first_chunk_mut()) {
            *field = value.to_be_bytes();
        }
    }

    /// Writes the checksum at `at` over everything from `l4` on and the pseudo-header of IP packets from `src` to `dst`.
    fn complete(&mut self, l4: usize, at: usize, (src, dst): (Ip, Ip), protocol: u8) {
        let segment = self.get(l4..).unwrap_or_default();
        let pseudo_header = checksum::pseudo_header(src.octets(), dst.octets(), protocol, segment.len() as u32);
        let check = checksum::transport(pseudo_header, segment);
        self.set(l4 + at, check);
    }
}

impl<const N: usize> Deref for Made<N> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl<const N: usize> fmt::Debug for Made<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// The answer to an ARP request for an address of ours, which is at `mac` (RFC 826). A probe for a free address is answered too: this
/// one is not (RFC 5227 section 2.4).
pub(super) fn arp_reply(request: &Arp, mac: Mac) -> Made<ARP_LEN> {
    arp(Macs { src: mac, dst: request.sender_mac }, 2, request.target, (request.sender_mac, request.sender))
}

/// Tells the link that the IPv4 address `address` is at `mac`: who has talked to another station there talks to this one now (RFC
/// 5227 section 3).
pub(super) fn arp_announcement(mac: Mac, address: Ip) -> Made<ARP_LEN> {
    arp(Macs { src: mac, dst: Mac::BROADCAST }, 1, address, (Mac::default(), address))
}

/// Asks for the station of the IPv4 address `target`: the one at `macs.dst` if it has it still, or all. Without an address to speak from it is a
/// probe, which is answered as well (RFC 5227 section 2.1.1).
pub(super) fn arp_question(macs: Macs, from: Option<Ip>, target: Ip) -> Made<ARP_LEN> {
    arp(macs, 1, from.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), (Mac::default(), target))
}

fn arp(macs: Macs, operation: u8, sender: Ip, (target_mac, target): (Mac, Ip)) -> Made<ARP_LEN> {
    let mut frame = Made::new(macs, ETHERTYPE_ARP);
    frame.push(&[0, 1, 8, 0, 6, 4, 0, operation]);
    frame.push(&macs.src.0);
    frame.push(&sender.v4_octets());
    frame.push(&target_mac.0);
    frame.push(&target.v4_octets());
    frame
}

/// The answer to a solicitation for an address of ours, which is at `mac` (RFC 4861 section 7.2.4); `from` is the station that the
/// question came from. Who looks for a duplicate has no address yet: all nodes are told.
pub(super) fn advertisement(solicitation: &Nd, from: Mac, mac: Mac) -> Made<NEIGHBOUR_LEN> {
    if Ipv6Addr::from(solicitation.src.0).is_unspecified() {
        return unsolicited_advertisement(mac, solicitation.target);
    }
    let macs = Macs { src: mac, dst: solicitation.link_layer.unwrap_or(from) };
    let ends = (solicitation.target, solicitation.src);
    neighbour(macs, ends, ND_SOLICITED | ND_OVERRIDE)
}

/// Tells all nodes of the link that the IPv6 address `address` is at `mac` (RFC 4861 section 7.2.6).
pub(super) fn unsolicited_advertisement(mac: Mac, address: Ip) -> Made<NEIGHBOUR_LEN> {
    let macs = Macs { src: mac, dst: group_mac(ALL_NODES) };
    neighbour(macs, (address, ALL_NODES.into()), ND_OVERRIDE)
}

/// Asks for the station of the IPv6 address `target` from the one at `mac`: the station `to`, if that has it still, or with `None` its group
/// (RFC 4861 section 7.2.2). Without an address to speak from it is the question of who looks for a duplicate, which only goes to the group and is
/// answered to all nodes (RFC 4862 section 5.4.2).
pub(super) fn solicitation(mac: Mac, to: Option<Mac>, from: Option<Ip>, target: Ip) -> Made<NEIGHBOUR_LEN> {
    let group = solicited_node(target);
    let (dst, station) = match (from, to) {
        (Some(_), Some(station)) => (target, station),
        _ => (group.into(), group_mac(group)),
    };
    let ends = (from.unwrap_or(Ipv6Addr::UNSPECIFIED.into()), dst);
    // Who has no address has no option to be answered by.
    let length = NEIGHBOUR_LEN - ND_START - if from.is_some() { 0 } else { ND_OPTION_LEN };
    let (mut frame, l4) = Made::ip(Macs { src: mac, dst: station }, ends, PROTOCOL_ICMPV6, ND_HOP_LIMIT, length);
    frame.push(&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
    frame.push(&target.0);
    if from.is_some() {
        frame.push(&[ND_OPTION_SOURCE, 1]);
        frame.push(&mac.0);
    }
    frame.complete(l4, 2, ends, PROTOCOL_ICMPV6);
    frame
}

/// The group that solicitations for an address go to (RFC 4291 section 2.7.1).
fn solicited_node(target: Ip) -> Ipv6Addr {
    let [.., a, b, c] = target.0;
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// Tells `told` that `address` is at `macs.src`.
fn neighbour(macs: Macs, (address, told): (Ip, Ip), flags: u8) -> Made<NEIGHBOUR_LEN> {
    let (mut frame, l4) = Made::ip(macs, (address, told), PROTOCOL_ICMPV6, ND_HOP_LIMIT, NEIGHBOUR_LEN - ND_START);
    frame.push(&[ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
    frame.push(&address.0);
    frame.push(&[ND_OPTION_TARGET, 1]);
    frame.push(&macs.src.0);
    frame.complete(l4, 2, (address, told), PROTOCOL_ICMPV6);
    frame
}

/// The group of stations that an IPv6 group is mapped to (RFC 2464 section 7).
fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

/// A reset from `tuple.src` to `tuple.dst`, with the ACK flag where there is an acknowledgment number: the numbers are those of
/// [`TcpTrack::reset_towards`](crate::flow::tcp::TcpTrack::reset_towards).
pub(super) fn tcp_reset(macs: Macs, tuple: &Tuple, seq: u32, ack: Option<u32>) -> Made<RESET_LEN_MAX> {
    let ends = (tuple.src, tuple.dst);
    let (mut frame, l4) = Made::ip(macs, ends, PROTOCOL_TCP, HOP_LIMIT, TCP_LEN);
    frame.push(&tuple.src_port.to_be_bytes());
    frame.push(&tuple.dst_port.to_be_bytes());
    frame.push(&seq.to_be_bytes());
    frame.push(&ack.unwrap_or(0).to_be_bytes());
    let flags = TcpFlags::RST.0 | if ack.is_some() { TcpFlags::ACK.0 } else { 0 };
    frame.push(&[(TCP_LEN as u8 / 4) << 4, flags, 0, 0, 0, 0, 0, 0]);
    frame.complete(l4, 16, ends, PROTOCOL_TCP);
    frame
}

/// The reset that answers a segment of no connection (RFC 9293 section 3.10.7.1); `None` for a segment that is a reset itself.
pub(super) fn tcp_refusal(macs: Macs, segment: &Parsed) -> Option<Made<RESET_LEN_MAX>> {
    let tcp = &segment.tcp;
    if tcp.flags.contains(TcpFlags::RST) {
        return None;
    }
    let back = segment.tuple.reversed();
    if tcp.flags.contains(TcpFlags::ACK) {
        return Some(tcp_reset(macs, &back, tcp.ack, None));
    }
    let marks = u32::from(tcp.flags.contains(TcpFlags::SYN)) + u32::from(tcp.flags.contains(TcpFlags::FIN));
    Some(tcp_reset(macs, &back, 0, Some(tcp.seq.wrapping_add(segment.payload_len()).wrapping_add(marks))))
}

/// What an ICMP error tells the sender of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    /// It must not be fragmented, and the next link carries packets of at most `mtu` octets (RFC 1191 section 4, RFC 4443 section 3.2).
    PacketTooBig {
        /// Octets of IP packet that fit; over IPv4 at most 65,535 are said.
        mtu: u32,
    },
    /// No route leads to its destination (RFC 1812 section 5.2.7.1, RFC 4443 section 3.1).
    NoRoute,
    /// Nobody listens at its port (RFC 1122 section 4.1.3.1, RFC 4443 section 3.1).
    PortUnreachable,
    /// There is no room for what it opens (RFC 1812 section 5.2.7.1, RFC 4443 section 3.1): as administratively prohibited (RFC 5508 REQ-8).
    Prohibited,
    /// Others of its fragments did not come in time (RFC 792, RFC 4443 section 3.3).
    ReassemblyTimeExceeded,
    /// Its time to live has run out (RFC 792, RFC 4443 section 3.3).
    TimeExceeded,
}

/// Whether the sender of a packet between two hosts may be sent an ICMP error about it: not about another one, nor about an IPv4 fragment that is
/// not the first (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)).
pub(super) fn may_be_told(frame: &[u8], packet: &Parsed) -> bool {
    let kind = || frame.get(usize::from(packet.l4)).copied();
    match (packet.family, packet.tuple.protocol) {
        (Family::V4, PROTOCOL_ICMP) if kind().is_none_or(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12)) => false,
        // Redirects are none of its errors, and yet get no answer.
        (Family::V6, PROTOCOL_ICMPV6) => kind().is_some_and(|kind| kind >= 128 && kind != 137),
        (Family::V6, _) => true,
        (Family::V4, _) => {
            let offset = frame.get(usize::from(packet.l3) + 6..).and_then(|rest| rest.first_chunk());
            offset.is_some_and(|offset| u16::from_be_bytes(*offset) & 0x1fff == 0)
        }
    }
}

/// An ICMP or ICMPv6 error from `from`, an address of ours, to the sender of `frame`: the frame as it came, before anything in it is
/// rewritten. A partial checksum in it is quoted as it is, since nobody can check it in a packet that is cut.
///
/// `None` when `packet` does not fit `frame` or `from` is of the other family. Which packets may be complained about, and how often, is
/// for the caller to judge (RFC 4443 section 2.4 (e) and (f)).
pub(super) fn icmp_error(
    macs: Macs,
    frame: &[u8],
    packet: &Parsed,
    from: Ip,
    complaint: Complaint,
) -> Option<Made<ERROR_LEN_MAX>> {
    let is_v4 = packet.family == Family::V4;
    if from.is_v4() != is_v4 {
        return None;
    }
    let quote_max = if is_v4 { V4_ERROR_MAX - IPV4_LEN } else { V6_ERROR_MAX - IPV6_LEN } - ICMP_LEN;
    let quote = frame.get(usize::from(packet.l3)..usize::try_from(packet.end).ok()?)?;
    let quote = quote.get(..quote_max).unwrap_or(quote);
    let (kind, code, word) = match (complaint, is_v4) {
        (Complaint::PacketTooBig { mtu }, true) => (3, 4, mtu.min(u16::MAX.into())),
        (Complaint::PacketTooBig { mtu }, false) => (2, 0, mtu),
        (Complaint::NoRoute, true) => (3, 0, 0),
        (Complaint::NoRoute, false) => (1, 0, 0),
        (Complaint::PortUnreachable, true) => (3, 3, 0),
        (Complaint::PortUnreachable, false) => (1, 4, 0),
        (Complaint::Prohibited, true) => (3, 13, 0),
        (Complaint::Prohibited, false) => (1, 1, 0),
        (Complaint::ReassemblyTimeExceeded, true) => (11, 1, 0),
        (Complaint::ReassemblyTimeExceeded, false) => (3, 1, 0),
        (Complaint::TimeExceeded, true) => (11, 0, 0),
        (Complaint::TimeExceeded, false) => (3, 0, 0),
    };
    let ends = (from, packet.tuple.src);
    let protocol = if is_v4 { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 };
    let (mut error, l4) = Made::ip(macs, ends, protocol, HOP_LIMIT, ICMP_LEN + quote.len());
    error.push(&[kind, code, 0, 0]);
    error.push(&word.to_be_bytes());
    error.push(quote);
    if is_v4 {
        let check = checksum::of(error.get(l4..).unwrap_or_default());
        error.set(l4 + 2, check);
    } else {
        error.complete(l4, 2, ends, protocol);
    }
    Some(error)
}

/// A length field; every frame made here is far shorter than it can say.
fn length(octets: usize) -> [u8; 2] {
    (octets as u16).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::flow::Direction;
    use crate::flow::tcp::{SYN, SegmentFacts, Sight, TcpTrack};
    use crate::packet::{ArpOperation, IcmpErrorKind, NdKind, Packet, parse};

    const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const THEIRS: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const BACK: Macs = Macs { src: OURS, dst: THEIRS };

    fn ip(text: &str) -> Ip {
        text.parse::<std::net::IpAddr>().unwrap().into()
    }

    /// A client's tuple of either family.
    fn tuple(family: Family, protocol: u8) -> Tuple {
        let (src, dst) = match family {
            Family::V4 => (ip("198.51.100.7"), ip("192.0.2.80")),
            Family::V6 => (ip("2001:db8:1::7"), ip("2001:db8::80")),
        };
        Tuple { src, dst, src_port: 40_000, dst_port: 443, protocol }
    }

    /// A TCP segment of the client with so many octets of payload.
    fn segment(family: Family, seq: u32, ack: u32, flags: u8, payload: usize) -> Vec<u8> {
        let tuple = tuple(family, PROTOCOL_TCP);
        let ends = (tuple.src, tuple.dst);
        let macs = Macs { src: THEIRS, dst: OURS };
        let (mut frame, l4) = Made::<2_000>::ip(macs, ends, PROTOCOL_TCP, 64, TCP_LEN + payload);
        frame.push(&tuple.src_port.to_be_bytes());
        frame.push(&tuple.dst_port.to_be_bytes());
        frame.push(&seq.to_be_bytes());
        frame.push(&ack.to_be_bytes());
        frame.push(&[0x50, flags, 0x10, 0, 0, 0, 0, 0]);
        frame.push(&vec![0xa5; payload]);
        frame.complete(l4, 16, ends, PROTOCOL_TCP);
        frame.to_vec()
    }

    fn transport(frame: &[u8]) -> Parsed {
        match parse(frame) {
            Ok(Packet::Transport(parsed)) => parsed,
            other => panic!("{other:?}"),
        }
    }

    fn assert_tcp_checksum(frame: &[u8], parsed: &Parsed) {
        let segment = &frame[usize::from(parsed.l4)..parsed.end as usize];
        let Tuple { src, dst, .. } = &parsed.tuple;
        let pseudo_header = checksum::pseudo_header(src.octets(), dst.octets(), PROTOCOL_TCP, segment.len() as u32);
        assert!(checksum::is_valid(pseudo_header, segment));
    }

    #[test]
    fn an_arp_request_gets_its_answer() {
        let asking = Macs { src: THEIRS, dst: Mac::BROADCAST };
        let question = arp(asking, 1, ip("192.0.2.9"), (Mac::default(), ip("192.0.2.80")));
        let Ok(Packet::Arp(request)) = parse(&question) else { panic!("no ARP packet") };
        assert_eq!(
            (request.operation, request.sender, request.target),
            (ArpOperation::Request, ip("192.0.2.9"), ip("192.0.2.80"))
        );
        let answer = arp_reply(&request, OURS);
        assert_eq!(answer.len(), ARP_LEN);
        assert_eq!(Ethernet::read(&answer).unwrap().dst, THEIRS);
        assert_eq!(
            parse(&answer),
            Ok(Packet::Arp(Arp {
                operation: ArpOperation::Reply,
                sender_mac: OURS,
                sender: ip("192.0.2.80"),
                target_mac: THEIRS,
                target: ip("192.0.2.9"),
            }))
        );
    }

    #[test]
    fn a_question_asks_one_station_or_its_group() {
        let (own, target) = (ip("2001:db8::9"), ip("2001:db8::1280:3456"));
        for (to, from, dst, station) in [
            (None, Some(own), ip("ff02::1:ff80:3456"), Mac([0x33, 0x33, 0xff, 0x80, 0x34, 0x56])),
            (Some(THEIRS), Some(own), target, THEIRS),
            (Some(THEIRS), None, ip("ff02::1:ff80:3456"), Mac([0x33, 0x33, 0xff, 0x80, 0x34, 0x56])),
        ] {
            let question = solicitation(OURS, to, from, target);
            assert_eq!(Ethernet::read(&question).unwrap().dst, station);
            // The reader checks length, hop limit and checksum.
            let expected = Nd {
                kind: NdKind::Solicitation,
                src: from.unwrap_or(Ipv6Addr::UNSPECIFIED.into()),
                dst,
                target,
                link_layer: from.map(|_| OURS),
            };
            assert_eq!(parse(&question), Ok(Packet::Nd(expected)));
        }
        let probe = arp_question(Macs { src: OURS, dst: Mac::BROADCAST }, None, ip("192.0.2.80"));
        let Ok(Packet::Arp(probe)) = parse(&probe) else { panic!("no ARP packet") };
        assert_eq!(
            (probe.operation, probe.sender, probe.target),
            (ArpOperation::Request, ip("0.0.0.0"), ip("192.0.2.80"))
        );
    }

    #[test]
    fn an_arp_announcement_is_a_question_for_itself() {
        let frame = arp_announcement(OURS, ip("192.0.2.80"));
        let Ok(Packet::Arp(arp)) = parse(&frame) else { panic!("no ARP packet") };
        assert_eq!(
            (arp.operation, arp.sender, arp.target),
            (ArpOperation::Request, ip("192.0.2.80"), ip("192.0.2.80"))
        );
        assert_eq!((arp.sender_mac, Ethernet::read(&frame).unwrap().dst), (OURS, Mac::BROADCAST));
    }

    #[test]
    fn a_solicitation_gets_its_answer() {
        let asked = Nd {
            kind: NdKind::Solicitation,
            src: ip("2001:db8::9"),
            dst: ip("ff02::1:ff80:3456"),
            target: ip("2001:db8::1280:3456"),
            link_layer: Some(THEIRS),
        };
        let answer = advertisement(&asked, Mac([9; 6]), OURS);
        assert_eq!(answer.len(), NEIGHBOUR_LEN);
        assert_eq!(Ethernet::read(&answer).unwrap().dst, THEIRS);
        assert_eq!(
            parse(&answer),
            Ok(Packet::Nd(Nd {
                kind: NdKind::Advertisement { router: false, solicited: true, overrides: true },
                src: asked.target,
                dst: asked.src,
                target: asked.target,
                link_layer: Some(OURS),
            }))
        );
        let without_option = advertisement(&Nd { link_layer: None, ..asked }, THEIRS, OURS);
        assert_eq!(without_option[..], answer[..]);
    }

    #[test]
    fn who_looks_for_a_duplicate_and_who_is_told_hear_it_as_a_group() {
        let looking = Nd {
            kind: NdKind::Solicitation,
            src: ip("::"),
            dst: ip("ff02::1:ff00:80"),
            target: ip("2001:db8::80"),
            link_layer: None,
        };
        let answer = advertisement(&looking, THEIRS, OURS);
        assert_eq!(answer[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(
            parse(&answer),
            Ok(Packet::Nd(Nd {
                kind: NdKind::Advertisement { router: false, solicited: false, overrides: true },
                src: ip("2001:db8::80"),
                dst: ip("ff02::1"),
                target: ip("2001:db8::80"),
                link_layer: Some(OURS),
            }))
        );
        assert_eq!(unsolicited_advertisement(OURS, ip("2001:db8::80"))[..], answer[..]);
    }

    #[test]
    fn a_reset_ends_the_connection_that_it_was_made_for() {
        for family in [Family::V4, Family::V6] {
            let syn =
                SegmentFacts { flags: SYN, seq: 1_000, ack: 0, window: 4_096, payload_len: 0, window_scale: None };
            let track = TcpTrack::open(&syn, Sight::BothWays).unwrap();
            let numbers = track.reset_towards(Direction::Forward);
            let to_client = tuple(family, PROTOCOL_TCP).reversed();
            let frame = tcp_reset(BACK, &to_client, numbers.seq, Some(numbers.ack));
            let parsed = transport(&frame);
            assert_eq!(parsed.tuple, to_client);
            assert_eq!((parsed.tcp.seq, parsed.tcp.ack), (numbers.seq, numbers.ack));
            assert_eq!(parsed.tcp.flags.0, TcpFlags::RST.0 | TcpFlags::ACK.0);
            assert_eq!(parsed.end as usize, frame.len());
            assert_tcp_checksum(&frame, &parsed);
        }
    }

    #[test]
    fn a_segment_of_no_connection_is_refused_as_its_flags_ask() {
        for family in [Family::V4, Family::V6] {
            for (flags, payload, seq, ack, answered) in [
                (TcpFlags::SYN.0, 0, 0, 1_001, TcpFlags::RST.0 | TcpFlags::ACK.0),
                (TcpFlags::SYN.0, 10, 0, 1_011, TcpFlags::RST.0 | TcpFlags::ACK.0),
                (TcpFlags::ACK.0, 10, 77, 0, TcpFlags::RST.0),
                (TcpFlags::ACK.0 | TcpFlags::FIN.0, 0, 77, 0, TcpFlags::RST.0),
            ] {
                let asked = transport(&segment(family, 1_000, 77, flags, payload));
                let frame = tcp_refusal(BACK, &asked).unwrap();
                let parsed = transport(&frame);
                assert_eq!(parsed.tuple, asked.tuple.reversed());
                assert_eq!((parsed.tcp.seq, parsed.tcp.ack, parsed.tcp.flags.0), (seq, ack, answered));
                assert_tcp_checksum(&frame, &parsed);
            }
            assert!(tcp_refusal(BACK, &transport(&segment(family, 5, 6, TcpFlags::RST.0, 0))).is_none());
        }
    }

    #[test]
    fn an_error_names_the_flow_and_the_mtu_and_is_not_too_long() {
        for (family, from, len_max) in
            [(Family::V4, "192.0.2.80", ETHERNET_LEN + V4_ERROR_MAX), (Family::V6, "2001:db8::80", ERROR_LEN_MAX)]
        {
            for payload in [0, 100, 535, 536, 1_280, 1_460] {
                let frame = segment(family, 4_711, 5, TcpFlags::ACK.0, payload);
                let packet = transport(&frame);
                let macs = Macs::answering(&frame, OURS).unwrap();
                assert_eq!(macs, BACK);
                for (complaint, kind) in [
                    (Complaint::PacketTooBig { mtu: 1_400 }, IcmpErrorKind::PacketTooBig { mtu: 1_400 }),
                    (Complaint::TimeExceeded, IcmpErrorKind::TimeExceeded),
                ] {
                    let error = icmp_error(macs, &frame, &packet, ip(from), complaint).unwrap();
                    assert!(error.len() <= len_max);
                    // The reader checks both checksums.
                    let Ok(Packet::IcmpError(read)) = parse(&error) else { panic!("{:?}", parse(&error)) };
                    assert_eq!((read.kind, read.embedded, read.embedded_seq), (kind, packet.tuple, 4_711));
                    assert_eq!((read.parsed.tuple.src, read.parsed.tuple.dst), (ip(from), packet.tuple.src));
                    assert_eq!(read.parsed.end as usize, error.len());
                }
            }
        }
    }

    #[test]
    fn an_error_needs_an_address_of_its_family_and_a_packet_that_is_there() {
        let frame = segment(Family::V4, 1, 2, TcpFlags::ACK.0, 20);
        let packet = transport(&frame);
        let error = |frame: &[u8], from| icmp_error(BACK, frame, &packet, ip(from), Complaint::TimeExceeded);
        assert!(error(&frame, "192.0.2.80").is_some());
        assert!(error(&frame, "2001:db8::80").is_none());
        assert!(error(&frame[..40], "192.0.2.80").is_none());
        assert_eq!(Macs::answering(&frame[..13], OURS), None);
    }

    proptest! {
        #[test]
        fn every_reset_reads_back(
            v4 in any::<bool>(), addresses in any::<[[u8; 4]; 2]>(), ports in any::<[u16; 2]>(), seq in any::<u32>(),
            ack in prop::option::of(any::<u32>()),
        ) {
            let host = |[_, b, c, d]: [u8; 4]| -> Ip {
                match v4 {
                    true => Ipv4Addr::new(10, b, c, d).into(),
                    false => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, b.into(), u16::from_be_bytes([c, d])).into(),
                }
            };
            let [src_port, dst_port] = ports.map(|port| port.max(1));
            let [src, dst] = addresses.map(host);
            prop_assume!(src != dst);
            let tuple = Tuple { src, dst, src_port, dst_port, protocol: PROTOCOL_TCP };
            let frame = tcp_reset(BACK, &tuple, seq, ack);
            let parsed = transport(&frame);
            prop_assert_eq!(parsed.tuple, tuple);
            prop_assert_eq!((parsed.tcp.seq, parsed.tcp.ack), (seq, ack.unwrap_or(0)));
            assert_tcp_checksum(&frame, &parsed);
        }
    }
}
