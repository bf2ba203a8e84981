//! ICMP and ICMPv6: pings, errors about our flows, and neighbours.

use std::net::Ipv6Addr;

use super::checksum;
use super::view::{Part, embedded};
use super::{
    DropReason, Family, IcmpError, IcmpErrorKind, Ip, Mac, Nd, NdKind, Other, PROTOCOL_ICMP, PROTOCOL_ICMPV6,
    PROTOCOL_TCP, PROTOCOL_UDP, Packet, Parsed, Tuple,
};

const HEADER_LEN: u16 = 8;

const V4_ECHO_REPLY: u8 = 0;
const V4_UNREACHABLE: u8 = 3;
const V4_FRAGMENTATION_NEEDED: u8 = 4;
const V4_ECHO: u8 = 8;
const V4_TIME_EXCEEDED: u8 = 11;
const V4_PARAMETER_PROBLEM: u8 = 12;

const V6_UNREACHABLE: u8 = 1;
const V6_PACKET_TOO_BIG: u8 = 2;
const V6_TIME_EXCEEDED: u8 = 3;
const V6_PARAMETER_PROBLEM: u8 = 4;
const V6_ECHO: u8 = 128;
const V6_ECHO_REPLY: u8 = 129;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// Octets of a neighbour message before its options.
const ND_LEN: usize = 24;
const ND_OPTION_SOURCE: u8 = 1;
const ND_OPTION_TARGET: u8 = 2;

/// Reads the message at `parsed.l4` of `packet`, the frame up to the end of the IP packet.
pub(super) fn icmp(packet: &[u8], parsed: &Parsed) -> Result<Packet, DropReason> {
    let mut parsed = *parsed;
    let message = packet.get(usize::from(parsed.l4)..).unwrap_or_default();
    let header: &[u8; HEADER_LEN as usize] = message.first_chunk().ok_or(DropReason::IcmpTruncated)?;
    parsed.payload = parsed.l4 + HEADER_LEN;
    let [kind, code, _, _, b4, b5, b6, b7] = *header;
    let error = match (parsed.family, kind, code) {
        (Family::V4, V4_ECHO, 0) | (Family::V6, V6_ECHO, 0) => {
            parsed.tuple.src_port = u16::from_be_bytes([b4, b5]);
            None
        }
        // What it answers was sent by somebody else, who judges it; translated, a wrong checksum stays wrong.
        (Family::V4, V4_ECHO_REPLY, 0) | (Family::V6, V6_ECHO_REPLY, 0) => {
            parsed.tuple.dst_port = u16::from_be_bytes([b4, b5]);
            return Ok(Packet::EchoReply(parsed));
        }
        // RFC 1191 section 4.
        (Family::V4, V4_UNREACHABLE, V4_FRAGMENTATION_NEEDED) => {
            Some(IcmpErrorKind::PacketTooBig { mtu: u16::from_be_bytes([b6, b7]).into() })
        }
        (Family::V6, V6_PACKET_TOO_BIG, _) => {
            Some(IcmpErrorKind::PacketTooBig { mtu: u32::from_be_bytes([b4, b5, b6, b7]) })
        }
        (Family::V4, V4_UNREACHABLE, _) | (Family::V6, V6_UNREACHABLE, _) => Some(IcmpErrorKind::Unreachable),
        (Family::V4, V4_TIME_EXCEEDED, _) | (Family::V6, V6_TIME_EXCEEDED, _) => Some(IcmpErrorKind::TimeExceeded),
        (Family::V4, V4_PARAMETER_PROBLEM, _) | (Family::V6, V6_PARAMETER_PROBLEM, _) => {
            Some(IcmpErrorKind::ParameterProblem)
        }
        _ => return Ok(Packet::Other(Other::Icmp(kind))),
    };
    if !checksum_holds(message, &parsed) {
        return Err(DropReason::IcmpChecksum);
    }
    match error {
        None => Ok(Packet::Echo(parsed)),
        Some(error) => icmp_error(packet, parsed, error, kind),
    }
}

/// An error of ICMP type `message_type`, about the packet embedded at `parsed.payload` (RFC 5508 section 4).
fn icmp_error(packet: &[u8], parsed: Parsed, kind: IcmpErrorKind, message_type: u8) -> Result<Packet, DropReason> {
    let inner = packet.get(usize::from(parsed.payload)..).unwrap_or_default();
    let (tuple, l4) = embedded(inner, parsed.family)?;
    let header = inner.get(l4..).unwrap_or_default();
    let is_ours = match (tuple.protocol, parsed.family, header.first()) {
        (PROTOCOL_TCP | PROTOCOL_UDP, ..) => true,
        (PROTOCOL_ICMP, Family::V4, Some(&kind)) => matches!(kind, V4_ECHO | V4_ECHO_REPLY),
        (PROTOCOL_ICMPV6, Family::V6, Some(&kind)) => matches!(kind, V6_ECHO | V6_ECHO_REPLY),
        _ => false,
    };
    if !is_ours {
        return Ok(Packet::Other(Other::Icmp(message_type)));
    }
    let [s0, s1, d0, d1, q0, q1, q2, q3] = *header.first_chunk::<8>().ok_or(DropReason::IcmpEmbedded)?;
    if tuple.src != parsed.tuple.dst {
        return Err(DropReason::IcmpEmbeddedSource);
    }
    let identifier = u16::from_be_bytes([q0, q1]);
    let (src_port, dst_port) = match (tuple.protocol, s0) {
        (PROTOCOL_TCP | PROTOCOL_UDP, _) => (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])),
        (_, V4_ECHO | V6_ECHO) => (identifier, 0),
        _ => (0, identifier),
    };
    Ok(Packet::IcmpError(IcmpError {
        parsed,
        kind,
        embedded: Tuple { src_port, dst_port, ..tuple },
        // Two chains of extension headers fit (see Parsed::l4).
        embedded_l4: parsed.payload + l4 as u16,
        embedded_seq: if tuple.protocol == PROTOCOL_TCP { u32::from_be_bytes([q0, q1, q2, q3]) } else { 0 },
    }))
}

/// Whether the ICMPv6 packet at `parsed.l4` of `packet` is a neighbour message.
pub(super) fn is_nd(packet: &[u8], parsed: &Parsed, part: Option<Part>) -> bool {
    part.is_none_or(|part| part.offset == 0)
        && matches!(packet.get(usize::from(parsed.l4)), Some(&(SOLICITATION | ADVERTISEMENT)))
}

/// Reads the neighbour message at `parsed.l4` of `packet`: what RFC 4861 sections 7.1.1 and 7.1.2 ask for, and nothing beyond.
pub(super) fn nd(packet: &[u8], parsed: &Parsed, part: Option<Part>) -> Result<Packet, DropReason> {
    if parsed.ttl != 255 {
        return Err(DropReason::NdHopLimit);
    }
    let message = packet.get(usize::from(parsed.l4)..).unwrap_or_default();
    let (header, options) = message.split_first_chunk::<ND_LEN>().ok_or(DropReason::NdTruncated)?;
    let [kind, code, _, _, flags, _, _, _, target @ ..] = *header;
    if !checksum_holds(message, parsed) {
        return Err(DropReason::IcmpChecksum);
    }
    let Tuple { src, dst, .. } = parsed.tuple;
    let [source, destination, target] = [src.0, dst.0, target].map(Ipv6Addr::from);
    let (kind, link_layer_option) = match kind {
        SOLICITATION => (NdKind::Solicitation, ND_OPTION_SOURCE),
        _ => (
            NdKind::Advertisement {
                router: flags & 0x80 != 0,
                solicited: flags & 0x40 != 0,
                overrides: flags & 0x20 != 0,
            },
            ND_OPTION_TARGET,
        ),
    };
    let link_layer = link_layer(options, link_layer_option)?;
    let source_fits = match kind {
        NdKind::Solicitation if source.is_unspecified() => is_solicited_node(destination) && link_layer.is_none(),
        NdKind::Advertisement { solicited: true, .. } if destination.is_multicast() => false,
        NdKind::Advertisement { .. } => !source.is_unspecified(),
        NdKind::Solicitation => true,
    };
    let senders = !source.is_multicast() && !source.is_loopback() && link_layer.is_none_or(|mac| !mac.is_group());
    let one_station = !target.is_multicast() && !target.is_unspecified() && !target.is_loopback();
    let target = Ip::from(target);
    if part.is_some() || code != 0 || !source_fits || !senders || !one_station || target.is_v4() {
        return Err(DropReason::NdMalformed);
    }
    Ok(Packet::Nd(Nd { kind, src, dst, target, link_layer }))
}

/// The link-layer address in the option of type `wanted`, if there is one.
fn link_layer(mut options: &[u8], wanted: u8) -> Result<Option<Mac>, DropReason> {
    let mut found = None;
    while !options.is_empty() {
        let [kind, length, ..] = *options else { return Err(DropReason::NdTruncated) };
        if length == 0 {
            return Err(DropReason::NdMalformed);
        }
        let (option, after) = options.split_at_checked(usize::from(length) * 8).ok_or(DropReason::NdTruncated)?;
        if let [_, _, a, b, c, d, e, f] = *option
            && kind == wanted
        {
            found = Some(Mac([a, b, c, d, e, f]));
        }
        options = after;
    }
    Ok(found)
}

/// Whether `address` is in `ff02::1:ff00:0/104` (RFC 4291 section 2.7.1).
fn is_solicited_node(address: Ipv6Addr) -> bool {
    matches!(address.octets(), [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, ..])
}

/// Whether the checksum of `message` is right: for IPv6 it includes a pseudo-header (RFC 4443 section 2.3).
fn checksum_holds(message: &[u8], parsed: &Parsed) -> bool {
    let Tuple { src, dst, .. } = &parsed.tuple;
    let pseudo_header = match parsed.family {
        Family::V4 => 0,
        Family::V6 => checksum::pseudo_header(&src.0, &dst.0, PROTOCOL_ICMPV6, message.len() as u32),
    };
    checksum::is_valid(pseudo_header, message)
}
