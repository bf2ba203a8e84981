//! Ethernet, ARP, IPv4 and IPv6: down to where the transport header starts.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::addr::is_host_v4;
use super::checksum;
use super::icmp::{icmp, is_nd, nd};
use super::transport::{tcp, udp, udp_header};
use super::{
    Arp, ArpOperation, DropReason, ETHERNET_LEN, EXTENSIONS_MAX, Family, Fragment, FragmentKey, Ip, Mac, Other,
    PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Packet, Parsed, Tcp, Tuple,
};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

const IPV4_LEN: usize = 20;
pub(super) const IPV6_LEN: usize = 40;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
const FRAGMENT_LEN: usize = 8;

const OPTION_END: u8 = 0;
const OPTION_NO_OPERATION: u8 = 1;
const OPTION_LOOSE_SOURCE_ROUTE: u8 = 131;
const OPTION_STRICT_SOURCE_ROUTE: u8 = 137;

/// Reads `frame`, which begins with an Ethernet header.
///
/// # Errors
/// Says what is wrong with it; see [`DropReason`].
#[inline]
pub fn parse(frame: &[u8]) -> Result<Packet, DropReason> {
    let mut parsed = Parsed::default();
    Ok(parse_to(frame, &mut parsed)?.unwrap_or(Packet::Transport(parsed)))
}

/// The same for many frames: a [`Packet::Transport`] is written to where it is to stay, and `None` returned. Anything else leaves `to` as it is.
///
/// # Errors
/// As those of [`parse`].
#[inline]
pub fn parse_to(frame: &[u8], to: &mut Parsed) -> Result<Option<Packet>, DropReason> {
    let ethernet = Ethernet::read(frame)?;
    match ethernet.ethertype {
        ETHERTYPE_IPV4 => ipv4(frame, ethernet.dst, to),
        ETHERTYPE_IPV6 => ipv6(frame, ethernet.dst, to),
        ETHERTYPE_ARP => arp(frame).map(Some),
        ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN => Err(DropReason::Tagged),
        other => Ok(Some(Packet::Other(Other::EtherType(other)))),
    }
}

/// Reads the headers of a whole IP packet between two hosts that [`parse`] knows nothing more about, or refuses for what it carries: for who only
/// forwards it. The ports are those of a UDP datagram. `None`: it is no such packet.
pub fn parse_ip(frame: &[u8]) -> Option<Parsed> {
    let packet = frame.get(ETHERNET_LEN..)?;
    let octets = |at: usize| packet.get(at..)?.first_chunk().map(|octets| usize::from(u16::from_be_bytes(*octets)));
    let (family, total_len, ttl, dont_fragment) = match Ethernet::read(frame).ok()?.ethertype {
        ETHERTYPE_IPV4 => (Family::V4, octets(2)?, *packet.get(8)?, packet.get(6)? & 0x40 != 0),
        ETHERTYPE_IPV6 => (Family::V6, IPV6_LEN + octets(4)?, *packet.get(7)?, true),
        _ => return None,
    };
    let packet = packet.get(..total_len)?;
    let (mut tuple, headers_len) = embedded(packet, family).ok()?;
    if tuple.protocol == PROTOCOL_UDP {
        let [s0, s1, d0, d1] = *packet.get(headers_len..)?.first_chunk()?;
        (tuple.src_port, tuple.dst_port) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
    }
    let l4 = (ETHERNET_LEN + headers_len) as u16;
    let end = (ETHERNET_LEN + total_len) as u32;
    let l3 = ETHERNET_LEN as u16;
    Some(Parsed { tuple, family, ttl, dont_fragment, l3, l4, payload: l4, end, tcp: Tcp::default() })
}

/// An Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Who the frame is for.
    pub dst: Mac,
    /// Who sent it: one station, not a group.
    pub src: Mac,
    /// What it carries; a length where it is below 0x600 (IEEE 802.3).
    pub ethertype: u16,
}

impl Ethernet {
    /// Reads the header at the start of `frame`.
    ///
    /// # Errors
    /// [`DropReason::EthernetTruncated`] and [`DropReason::EthernetSource`].
    #[inline]
    pub fn read(frame: &[u8]) -> Result<Ethernet, DropReason> {
        let header: &[u8; ETHERNET_LEN] = frame.first_chunk().ok_or(DropReason::EthernetTruncated)?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, high, low] = *header;
        let src = Mac([s0, s1, s2, s3, s4, s5]);
        if src.is_group() {
            return Err(DropReason::EthernetSource);
        }
        Ok(Ethernet { dst: Mac([d0, d1, d2, d3, d4, d5]), src, ethertype: u16::from_be_bytes([high, low]) })
    }
}

fn arp(frame: &[u8]) -> Result<Packet, DropReason> {
    let body = frame.get(ETHERNET_LEN..).unwrap_or_default();
    let body: &[u8; 28] = body.first_chunk().ok_or(DropReason::ArpTruncated)?;
    // Hardware type Ethernet, protocol type IPv4, addresses of 6 and 4 octets.
    let [0, 1, 8, 0, 6, 4, high, low, addresses @ ..] = *body else {
        return Err(DropReason::ArpUnsupported);
    };
    let operation = match u16::from_be_bytes([high, low]) {
        1 => ArpOperation::Request,
        2 => ArpOperation::Reply,
        other => return Ok(Packet::Other(Other::Arp(other))),
    };
    let [m0, m1, m2, m3, m4, m5, a, b, c, d, t0, t1, t2, t3, t4, t5, e, f, g, h] = addresses;
    let sender_mac = Mac([m0, m1, m2, m3, m4, m5]);
    let sender = Ipv4Addr::new(a, b, c, d);
    if sender_mac.is_group() || sender.is_multicast() || sender.is_broadcast() {
        return Err(DropReason::ArpSender);
    }
    Ok(Packet::Arp(Arp {
        operation,
        sender_mac,
        sender: sender.into(),
        target_mac: Mac([t0, t1, t2, t3, t4, t5]),
        target: Ipv4Addr::new(e, f, g, h).into(),
    }))
}

/// Which part of a packet a fragment is.
#[derive(Clone, Copy)]
pub(super) struct Part {
    id: u32,
    /// Next header behind the fragment header.
    protocol: u8,
    pub(super) offset: u16,
    more: bool,
    /// Octets of headers that each fragment repeats and that count towards the length of the whole.
    repeated: usize,
    /// Where the data starts, in octets from the IP header.
    data: usize,
}

#[inline]
fn ipv4(frame: &[u8], to_mac: Mac, to: &mut Parsed) -> Result<Option<Packet>, DropReason> {
    let packet = frame.get(ETHERNET_LEN..).unwrap_or_default();
    let header: &[u8; IPV4_LEN] = packet.first_chunk().ok_or(DropReason::Ipv4Truncated)?;
    if header[0] >> 4 != 4 {
        return Err(DropReason::IpVersion);
    }
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if total_len == 0 {
        return Err(DropReason::Jumbo);
    }
    if header_len < IPV4_LEN || header_len > total_len {
        return Err(DropReason::Ipv4HeaderLength);
    }
    let end = ETHERNET_LEN + total_len;
    let packet = frame.get(..end).ok_or(DropReason::Ipv4Truncated)?;
    let l4 = ETHERNET_LEN + header_len;
    if header_len == IPV4_LEN {
        if !checksum::is_valid_ipv4(header) {
            return Err(DropReason::Ipv4Checksum);
        }
    } else {
        let header = packet.get(ETHERNET_LEN..l4).unwrap_or_default();
        if !checksum::is_valid(0, header) {
            return Err(DropReason::Ipv4Checksum);
        }
        ipv4_options(header.get(IPV4_LEN..).unwrap_or_default())?;
    }
    // As words, and judged as such: octet by octet, the compiler takes them apart.
    let (words, _) = header.as_chunks::<4>();
    let (src, dst) = (u32::from_be_bytes(words[3]), u32::from_be_bytes(words[4]));
    let is_plain = is_host_v4(src) && is_host_v4(dst) && src != dst && !to_mac.is_group();
    let (src, dst) = (Ipv4Addr::from_bits(src), Ipv4Addr::from_bits(dst));
    if !is_plain && let Some(other) = judge_v4(to_mac, src, dst)? {
        return Ok(Some(Packet::Other(other)));
    }
    let flags_and_offset = u16::from_be_bytes([header[6], header[7]]);
    let protocol = header[9];
    let parsed = Parsed {
        tuple: Tuple { src: src.into(), dst: dst.into(), src_port: 0, dst_port: 0, protocol },
        family: Family::V4,
        ttl: header[8],
        dont_fragment: flags_and_offset & 0x4000 != 0,
        l3: ETHERNET_LEN as u16,
        l4: l4 as u16,
        payload: l4 as u16,
        end: end as u32,
        tcp: Tcp::default(),
    };
    if flags_and_offset & 0x3fff != 0 {
        let part = Part {
            id: u16::from_be_bytes([header[4], header[5]]).into(),
            protocol,
            offset: (flags_and_offset & 0x1fff) << 3,
            more: flags_and_offset & 0x2000 != 0,
            repeated: header_len,
            data: header_len,
        };
        return fragment(packet, &{ parsed }, part).map(Some);
    }
    whole(packet, parsed, to)
}

/// What addresses are that may be other than those of two hosts.
#[cold]
fn judge_v4(to_mac: Mac, src: Ipv4Addr, dst: Ipv4Addr) -> Result<Option<Other>, DropReason> {
    if to_mac.is_group() || dst.is_multicast() || dst.is_broadcast() {
        return Ok(Some(Other::Group));
    }
    if dst.is_loopback() || dst.is_unspecified() {
        return Err(DropReason::MartianDestination);
    }
    if src.is_loopback() || src.is_unspecified() || src.is_multicast() || src.is_broadcast() || src == dst {
        return Err(DropReason::MartianSource);
    }
    Ok(None)
}

/// Refuses options that lie about their length, and source routes (RFC 7126 sections 4.3 and 4.4).
#[cold]
fn ipv4_options(mut options: &[u8]) -> Result<(), DropReason> {
    while let [kind, rest @ ..] = options {
        options = match *kind {
            OPTION_END => break,
            OPTION_NO_OPERATION => rest,
            OPTION_LOOSE_SOURCE_ROUTE | OPTION_STRICT_SOURCE_ROUTE => return Err(DropReason::Ipv4SourceRoute),
            _ => match rest {
                [length @ 2..=u8::MAX, ..] => options.get(usize::from(*length)..).ok_or(DropReason::Ipv4Option)?,
                _ => return Err(DropReason::Ipv4Option),
            },
        };
    }
    Ok(())
}

fn ipv6(frame: &[u8], to_mac: Mac, to: &mut Parsed) -> Result<Option<Packet>, DropReason> {
    let packet = frame.get(ETHERNET_LEN..).unwrap_or_default();
    let header: &[u8; IPV6_LEN] = packet.first_chunk().ok_or(DropReason::Ipv6Truncated)?;
    if header[0] >> 4 != 6 {
        return Err(DropReason::IpVersion);
    }
    let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    if payload_len == 0 {
        return Err(DropReason::Jumbo);
    }
    let end = ETHERNET_LEN + IPV6_LEN + payload_len;
    let packet = frame.get(..end).ok_or(DropReason::Ipv6Truncated)?;
    let (src, dst) = ipv6_addresses(header);
    if Ip::from(src).is_v4() || Ip::from(dst).is_v4() {
        return Err(DropReason::MappedAddress);
    }
    let chain = extensions(packet.get(ETHERNET_LEN..).unwrap_or_default(), header[6])?;
    let l4 = ETHERNET_LEN + chain.l4;
    let parsed = Parsed {
        tuple: Tuple { src: src.into(), dst: dst.into(), src_port: 0, dst_port: 0, protocol: chain.protocol },
        family: Family::V6,
        ttl: header[7],
        dont_fragment: true,
        l3: ETHERNET_LEN as u16,
        // At most EXTENSIONS_MAX headers of 2,048 octets each: it fits.
        l4: l4 as u16,
        payload: l4 as u16,
        end: end as u32,
        tcp: Tcp::default(),
    };
    if chain.protocol == PROTOCOL_ICMPV6 && is_nd(packet, &parsed, chain.part) {
        return nd(packet, &parsed, chain.part).map(Some);
    }
    if to_mac.is_group() || dst.is_multicast() {
        return Ok(Some(Packet::Other(Other::Group)));
    }
    if dst.is_loopback() || dst.is_unspecified() {
        return Err(DropReason::MartianDestination);
    }
    if src.is_loopback() || src.is_unspecified() || src.is_multicast() || src == dst {
        return Err(DropReason::MartianSource);
    }
    match chain.part {
        // RFC 6946: a packet in a single fragment is whole.
        Some(part) if part.offset != 0 || part.more => fragment(packet, &{ parsed }, part).map(Some),
        _ => whole(packet, parsed, to),
    }
}

/// Source and destination of an IPv6 header.
pub(super) fn ipv6_addresses(header: &[u8; IPV6_LEN]) -> (Ipv6Addr, Ipv6Addr) {
    let address = |at: &[u8]| Ipv6Addr::from(at.first_chunk().copied().unwrap_or([0; 16]));
    (address(&header[8..24]), address(&header[24..40]))
}

/// What a chain of IPv6 extension headers leads to.
pub(super) struct Chain {
    pub(super) protocol: u8,
    /// Octets from the IP header to the transport header, or to a later fragment's data.
    pub(super) l4: usize,
    pub(super) part: Option<Part>,
}

/// Walks the extension headers of `packet`, which begins with an IPv6 header whose next header is `first` (RFC 8200 section 4).
#[inline]
pub(super) fn extensions(packet: &[u8], first: u8) -> Result<Chain, DropReason> {
    let mut chain = Chain { protocol: first, l4: IPV6_LEN, part: None };
    for passed in 0..=EXTENSIONS_MAX {
        if !matches!(chain.protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) {
            return Ok(chain);
        }
        if passed == EXTENSIONS_MAX {
            break;
        }
        let rest = packet.get(chain.l4..).unwrap_or_default();
        let header: &[u8; 8] = rest.first_chunk().ok_or(DropReason::ExtensionTruncated)?;
        let [next, length, b2, b3, b4, b5, b6, b7] = *header;
        let mut header_len = (usize::from(length) + 1) * 8;
        match chain.protocol {
            HOP_BY_HOP if passed > 0 => return Err(DropReason::ExtensionOrder),
            // Segments left: the destination is not the last one, and the checksum's pseudo-header has another.
            ROUTING if b3 != 0 => return Err(DropReason::RoutingHeader),
            FRAGMENT if chain.part.is_some() => return Err(DropReason::ExtensionOrder),
            FRAGMENT => {
                header_len = FRAGMENT_LEN;
                let offset_and_more = u16::from_be_bytes([b2, b3]);
                chain.part = Some(Part {
                    id: u32::from_be_bytes([b4, b5, b6, b7]),
                    protocol: next,
                    offset: offset_and_more & 0xfff8,
                    more: offset_and_more & 1 != 0,
                    repeated: chain.l4 - IPV6_LEN,
                    data: chain.l4 + FRAGMENT_LEN,
                });
            }
            _ => {}
        }
        if header_len > rest.len() {
            return Err(DropReason::ExtensionTruncated);
        }
        chain.protocol = next;
        chain.l4 += header_len;
        if chain.part.is_some_and(|part| part.offset != 0) {
            return Ok(chain);
        }
    }
    Err(DropReason::ExtensionsTooMany)
}

/// The source, destination, protocol and length of the headers of a packet embedded in an ICMP error.
///
/// Only what rewriting relies on is checked: such a packet may be cut off, and routers have changed its length and checksum.
pub(super) fn embedded(packet: &[u8], family: Family) -> Result<(Tuple, usize), DropReason> {
    match family {
        Family::V4 => {
            let header: &[u8; IPV4_LEN] = packet.first_chunk().ok_or(DropReason::IcmpEmbedded)?;
            let header_len = usize::from(header[0] & 0x0f) * 4;
            if header[0] >> 4 != 4 || header_len < IPV4_LEN {
                return Err(DropReason::IcmpEmbedded);
            }
            if u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0 {
                return Err(DropReason::IcmpEmbeddedFragment);
            }
            let src = Ipv4Addr::new(header[12], header[13], header[14], header[15]).into();
            let dst = Ipv4Addr::new(header[16], header[17], header[18], header[19]).into();
            Ok((Tuple { src, dst, src_port: 0, dst_port: 0, protocol: header[9] }, header_len))
        }
        Family::V6 => {
            let header: &[u8; IPV6_LEN] = packet.first_chunk().ok_or(DropReason::IcmpEmbedded)?;
            let (src, dst) = ipv6_addresses(header);
            let (src, dst) = (Ip::from(src), Ip::from(dst));
            if header[0] >> 4 != 6 || src.is_v4() || dst.is_v4() {
                return Err(DropReason::IcmpEmbedded);
            }
            let chain = extensions(packet, header[6]).map_err(|_| DropReason::IcmpEmbedded)?;
            if chain.part.is_some_and(|part| part.offset != 0) {
                return Err(DropReason::IcmpEmbeddedFragment);
            }
            Ok((Tuple { src, dst, src_port: 0, dst_port: 0, protocol: chain.protocol }, chain.l4))
        }
    }
}

/// A packet that is no fragment; `packet` is the frame up to the end of it.
// Inlined, and the rarer ways out get copies: so the facts of a TCP segment stay in registers until they are written once, to
// where the caller wants them.
#[inline(always)]
fn whole(packet: &[u8], mut parsed: Parsed, to: &mut Parsed) -> Result<Option<Packet>, DropReason> {
    match (parsed.tuple.protocol, parsed.family) {
        (PROTOCOL_TCP, _) => tcp(packet, &mut parsed)?,
        (PROTOCOL_UDP, _) => udp(packet, &mut parsed)?,
        (PROTOCOL_ICMP, Family::V4) | (PROTOCOL_ICMPV6, Family::V6) => return icmp(packet, &{ parsed }).map(Some),
        (other, _) => return Ok(Some(Packet::Other(Other::Protocol(other)))),
    }
    *to = parsed;
    Ok(None)
}

/// A fragment; `packet` is the frame up to the end of it.
fn fragment(packet: &[u8], parsed: &Parsed, part: Part) -> Result<Packet, DropReason> {
    let mut parsed = *parsed;
    let data_len = packet.len().saturating_sub(ETHERNET_LEN + part.data);
    if data_len == 0 || part.more && !data_len.is_multiple_of(8) {
        return Err(DropReason::FragmentLength);
    }
    if part.repeated + usize::from(part.offset) + data_len > usize::from(u16::MAX) {
        return Err(DropReason::FragmentBeyondEnd);
    }
    // RFC 1858 and RFC 3128: what a tiny first fragment leaves open, the next one could fill in behind our back.
    match (part.offset, parsed.tuple.protocol) {
        (0, PROTOCOL_TCP) => {
            tcp(packet, &mut parsed).map_err(|reason| match reason {
                DropReason::TcpTruncated => DropReason::FragmentTiny,
                other => other,
            })?;
        }
        (0, PROTOCOL_UDP) => {
            udp_header(packet, &mut parsed).map_err(|reason| match reason {
                DropReason::UdpTruncated => DropReason::FragmentTiny,
                other => other,
            })?;
        }
        (1..20, PROTOCOL_TCP) => return Err(DropReason::FragmentTiny),
        _ => {}
    }
    let Tuple { src, dst, .. } = parsed.tuple;
    let key = FragmentKey { src, dst, id: part.id, protocol: part.protocol };
    // Headers of two octets' length at most, as in Parsed::l4.
    let data = (ETHERNET_LEN + part.data) as u16;
    Ok(Packet::Fragment(Fragment { parsed, key, offset: part.offset, more: part.more, data }))
}
