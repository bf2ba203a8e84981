//! Packets of one IP version made into packets of the other (RFC 7915), for flows whose addresses and ports are chosen by us.
//!
//! The headers in front of the transport header are replaced by one of the other version, in place: IPv4 options and IPv6 extension headers go
//! (RFC 7915 sections 4.1 and 5.1). What is behind them stays where it lies, so the frame begins earlier or later than before.

mod errors;

use super::checksum::{self, Delta};
use super::rewrite::{Checksum, Extent, Macs};
use super::{ETHERNET_LEN, Family, PROTOCOL_TCP, PROTOCOL_UDP, Parsed, Tuple};

pub use errors::{CrossedError, Links, cross_error};

/// By how many octets the frame of a packet grows to the front at most.
pub const GROWTH_MAX: usize = IPV6_LEN - IPV4_LEN;

/// Octets of the largest IPv4 packet that routers may still cut: what IPv6 carries without fragments fits every link there (RFC 7915 section 5.1).
pub const CUTTABLE_V4_MAX: u32 = 1_260;

/// Octets of the largest IPv6 packet made of an IPv4 packet whose sender lets it be cut, and so is not told of smaller links on the way (the
/// lowest-ipv6-mtu of RFC 7915 section 4).
pub const LOWEST_V6_MTU: u32 = 1_280;

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const HEAD_MAX: usize = ETHERNET_LEN + IPV6_LEN;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const DONT_FRAGMENT: [u8; 2] = [0x40, 0];

/// Why a packet could not become one of the other IP version. The frame is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrossError {
    /// The headers are not where they were read, or the addresses are not of the other version.
    Mismatch,
    /// There is not enough room in front of it.
    NoRoom,
    /// As an IPv4 packet it would be longer than 65,535 octets.
    TooLong,
}

/// Octets of the packet with its header in the other version.
pub fn crossed_len(packet: &Parsed) -> u32 {
    packet.end.saturating_sub(packet.l4.into()) + header_len(packet.family.other())
}

/// The parts of the packet once it is in the other version, in its own frame. Addresses and ports are still those that it came with.
pub fn crossed(packet: &Parsed, begins: i16) -> Parsed {
    let moved = |at: u16| at.wrapping_add_signed(begins.wrapping_neg());
    Parsed {
        family: packet.family.other(),
        ttl: packet.ttl.saturating_sub(1),
        l4: moved(packet.l4),
        payload: moved(packet.payload),
        end: packet.end.saturating_add_signed(-i32::from(begins)),
        ..*packet
    }
}

/// Sends a TCP or UDP packet on as one of the other IP version, from and to `to`: header, ports, checksums, hop limit and MACs. Returns by how many
/// octets its frame begins later than `frame`; where negative it begins in `front`, the room right in front of it.
///
/// A packet of IPv4 gets `id` as its identification and may be cut on its way; without one it may not. The checksum of a UDP datagram that came
/// without is computed (RFC 7915 section 4.5). Traffic class and type of service are the same octet; the flow label is 0.
///
/// # Errors
/// See [`CrossError`]: both slices are unchanged.
pub fn cross(
    front: &mut [u8],
    frame: &mut [u8],
    packet: &Parsed,
    checksum: Checksum,
    to: &Tuple,
    macs: &Macs,
    id: Option<u16>,
) -> Result<i16, CrossError> {
    let (l3, l4) = (usize::from(packet.l3), usize::from(packet.l4));
    let end = usize::try_from(packet.end).map_err(|_| CrossError::Mismatch)?;
    let network = frame.get(l3..l4).and_then(|header| header.first_chunk::<2>()).ok_or(CrossError::Mismatch)?;
    let traffic_class = traffic_class(packet.family, *network);
    let hop_limit = packet.ttl.checked_sub(1).ok_or(CrossError::Mismatch)?;
    let is_other = to.src.is_v4() == to.dst.is_v4() && to.src.is_v4() == (packet.family == Family::V6);
    if !is_other {
        return Err(CrossError::Mismatch);
    }
    let segment_len = end.checked_sub(l4).ok_or(CrossError::Mismatch)?;
    let mut head = Head::new(macs);
    match packet.family {
        Family::V4 => head.push_v6(traffic_class, segment_len, to, hop_limit)?,
        Family::V6 => head.push_v4(traffic_class, segment_len, to, hop_limit, id)?,
    }
    let head = head.octets();
    // At most 54 - 34, or a chain of extension headers: see Parsed::l4.
    let begins = l4 as i32 - head.len() as i32;
    let begins = i16::try_from(begins).map_err(|_| CrossError::Mismatch)?;
    let grown = usize::from((-begins).max(0).cast_unsigned());
    let front = front.len().checked_sub(grown).and_then(|at| front.get_mut(at..)).ok_or(CrossError::NoRoom)?;
    let segment = frame.get_mut(l4..end).ok_or(CrossError::Mismatch)?;
    follow(segment, &packet.tuple, Extent::Whole, checksum, to).ok_or(CrossError::Mismatch)?;
    let (in_front, behind) = head.split_at_checked(grown).ok_or(CrossError::Mismatch)?;
    front.copy_from_slice(in_front);
    let place = frame.get_mut(l4 - behind.len()..l4).ok_or(CrossError::Mismatch)?;
    place.copy_from_slice(behind);
    Ok(begins)
}

/// The octet of an IP header, which begins so, that says how the packet is to be treated.
fn traffic_class(family: Family, [first, second]: [u8; 2]) -> u8 {
    match family {
        Family::V4 => second,
        Family::V6 => first << 4 | second >> 4,
    }
}

/// The sum of both addresses of a tuple, as the pseudo-headers of their IP version have them.
fn address_sum(tuple: &Tuple) -> u16 {
    checksum::pseudo_header(tuple.src.octets(), tuple.dst.octets(), 0, 0)
}

const fn header_len(family: Family) -> u32 {
    match family {
        Family::V4 => IPV4_LEN as u32,
        Family::V6 => IPV6_LEN as u32,
    }
}

/// Writes the ports of a segment or datagram, and has its checksum follow the other addresses, if that is there or has to be. `None`, before anything
/// is written: it is shorter than that.
fn follow(segment: &mut [u8], from: &Tuple, extent: Extent, checksum: Checksum, to: &Tuple) -> Option<()> {
    let field = match from.protocol {
        PROTOCOL_TCP => 16,
        PROTOCOL_UDP => 6,
        _ => return None,
    };
    let old = segment.get(field..).and_then(|rest| rest.first_chunk()).map(|check| u16::from_be_bytes(*check));
    if extent == Extent::Whole && old.is_none() {
        return None;
    }
    let ports: &mut [u8; 4] = segment.first_chunk_mut()?;
    let old_ports = u32::from_be_bytes(*ports);
    let new_ports = u32::from(to.src_port) << 16 | u32::from(to.dst_port);
    *ports = new_ports.to_be_bytes();
    let Some(old) = old else { return Some(()) };
    let addresses = Delta::of_u16(address_sum(from), address_sum(to));
    let ports = Delta::of_u32(old_ports, new_ports);
    let new = match (checksum, from.protocol) {
        (Checksum::Absent, _) => old,
        (Checksum::Partial, _) => addresses.partial(old),
        // Of a packet that is quoted not all is there to be summed.
        (Checksum::Complete, PROTOCOL_UDP) if old == 0 && extent == Extent::Whole => datagram_checksum(segment, to),
        (Checksum::Complete, PROTOCOL_UDP) => addresses.and(ports).udp(old),
        (Checksum::Complete, _) => addresses.and(ports).complete(old),
    };
    segment.get_mut(field..)?.first_chunk_mut::<2>().map(|field| *field = new.to_be_bytes())
}

/// The checksum of a UDP datagram whose field is 0; behind the datagram there may be options (RFC 9868).
fn datagram_checksum(packet: &[u8], to: &Tuple) -> u16 {
    let len =
        packet.get(4..).and_then(|rest| rest.first_chunk()).map_or(0, |len| usize::from(u16::from_be_bytes(*len)));
    let datagram = packet.get(..len).unwrap_or(packet);
    // No datagram is longer than its length says, which is 16 bits.
    let pseudo_header = checksum::pseudo_header(to.src.octets(), to.dst.octets(), PROTOCOL_UDP, datagram.len() as u32);
    checksum::udp_field(checksum::transport(pseudo_header, datagram))
}

/// An Ethernet header and an IP header.
struct Head {
    octets: [u8; HEAD_MAX],
    len: usize,
}

impl Head {
    fn new(macs: &Macs) -> Head {
        let mut head = Head { octets: [0; HEAD_MAX], len: 0 };
        head.push(macs.octets());
        head
    }

    fn push_v6(&mut self, class: u8, payload_len: usize, to: &Tuple, hop_limit: u8) -> Result<(), CrossError> {
        let payload_len = u16::try_from(payload_len).map_err(|_| CrossError::TooLong)?;
        self.push(&ETHERTYPE_IPV6);
        self.push(&v6_header(class, payload_len, to, hop_limit));
        Ok(())
    }

    fn push_v4(
        &mut self,
        class: u8,
        payload_len: usize,
        to: &Tuple,
        hop_limit: u8,
        id: Option<u16>,
    ) -> Result<(), CrossError> {
        let total_len = u16::try_from(IPV4_LEN + payload_len).map_err(|_| CrossError::TooLong)?;
        self.push(&ETHERTYPE_IPV4);
        self.push(&v4_header(class, total_len, to, hop_limit, id));
        Ok(())
    }

    fn push(&mut self, octets: &[u8]) {
        if let Some(room) = self.octets.get_mut(self.len..).and_then(|room| room.get_mut(..octets.len())) {
            room.copy_from_slice(octets);
            self.len += octets.len();
        }
    }

    fn octets(&self) -> &[u8] {
        self.octets.get(..self.len).unwrap_or_default()
    }
}

/// An IPv6 header without flow label.
fn v6_header(class: u8, payload_len: u16, to: &Tuple, hop_limit: u8) -> [u8; IPV6_LEN] {
    let mut header = [0; IPV6_LEN];
    header[0] = 0x60 | class >> 4;
    header[1] = class << 4;
    header[4..6].copy_from_slice(&payload_len.to_be_bytes());
    header[6] = to.protocol;
    header[7] = hop_limit;
    header[8..24].copy_from_slice(&to.src.0);
    header[24..].copy_from_slice(&to.dst.0);
    header
}

/// An IPv4 header without options: of a packet that may be cut and has this identification, or may not be cut.
fn v4_header(class: u8, total_len: u16, to: &Tuple, ttl: u8, id: Option<u16>) -> [u8; IPV4_LEN] {
    let mut header = [0; IPV4_LEN];
    header[..2].copy_from_slice(&[0x45, class]);
    header[2..4].copy_from_slice(&total_len.to_be_bytes());
    match id {
        Some(id) => header[4..6].copy_from_slice(&id.to_be_bytes()),
        // RFC 6864 section 4.1: with this flag, any identification will do.
        None => header[6..8].copy_from_slice(&DONT_FRAGMENT),
    }
    header[8..10].copy_from_slice(&[ttl, to.protocol]);
    header[12..16].copy_from_slice(&to.src.v4_octets());
    header[16..].copy_from_slice(&to.dst.v4_octets());
    let check = checksum::of(&header);
    header[10..12].copy_from_slice(&check.to_be_bytes());
    header
}

#[cfg(test)]
mod tests;
