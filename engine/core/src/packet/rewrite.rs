//! Rewriting frames in place: addresses, ports, MACs, hop limits, MSS; every checksum follows without a look at the payload.
//!
//! The caller has parsed the frame and says with a [`Layout`] where its headers are; what does not fit the frame is refused and
//! changes nothing. Where a routing header or a source route names another final destination than the IP header does, the
//! checksum's pseudo-header is not the one assumed here: such packets are not to be rewritten.

use std::fmt;
use std::net::Ipv4Addr;

use super::checksum::{self, Delta};
use super::{
    ETHERNET_LEN as ETHERNET, Family, Ip, Mac, PROTOCOL_ICMP as ICMP, PROTOCOL_ICMPV6 as ICMPV6, PROTOCOL_TCP as TCP,
    PROTOCOL_UDP as UDP, Parsed, Tuple,
};

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
/// Bytes of an ICMP or ICMPv6 error in front of the packet that it quotes.
const ICMP_ERROR_HEADER: usize = 8;
/// The SYN flag in byte 13 of a TCP header.
const SYN: u8 = 0x02;

/// Where the headers of a packet are, in bytes from the start of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The IP header.
    pub l3: usize,
    /// The transport header: behind the IPv4 options or the IPv6 extension headers.
    pub l4: usize,
    /// Which IP header.
    pub family: Family,
    /// IP protocol number of the transport header. TCP and UDP have ports; others only have their addresses rewritten.
    pub protocol: u8,
}

/// What the transport checksum field of a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The frame has no transport header: it is a later fragment. The first fragment is `Complete`.
    Absent,
    /// The checksum of the whole segment.
    Complete,
    /// The sum of the pseudo-header, not complemented; the kernel or the device does the rest (virtio_net_hdr NEEDS_CSUM, with
    /// `csum_start` at [`Layout::l4`]; `skb_checksum_help` in `net/core/dev.c`).
    Partial,
}

impl From<&Parsed> for Layout {
    #[inline]
    fn from(parsed: &Parsed) -> Layout {
        Layout { l3: parsed.l3.into(), l4: parsed.l4.into(), family: parsed.family, protocol: parsed.tuple.protocol }
    }
}

/// The layout does not fit the frame: the caller's mistake, or a frame that was cut after it was parsed. The frame is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutMismatch;

impl fmt::Display for LayoutMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the headers are not where the layout says")
    }
}

impl std::error::Error for LayoutMismatch {}

/// Why a hop limit was not decremented. The frame is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopError {
    /// It came with 0 or 1 and may not be forwarded. The sender is owed an ICMP time exceeded (RFC 1812 §5.3.1, RFC 8200 §3).
    Expired,
    /// See [`LayoutMismatch`].
    LayoutMismatch,
}

/// Why an echo request was not answered. The frame is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EchoError {
    /// The checksum is wrong: the sender or the network bent the packet.
    BadChecksum,
    /// See [`LayoutMismatch`].
    LayoutMismatch,
    /// It is no echo request.
    NotEcho,
}

/// Both MACs of an Ethernet frame as they stand in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Macs([u8; 12]);

impl Macs {
    /// Those of nobody.
    pub const NONE: Macs = Macs([0; 12]);

    /// From `source` to `destination`.
    pub fn new(destination: Mac, source: Mac) -> Macs {
        let mut macs = [0; 12];
        macs[..6].copy_from_slice(&destination.0);
        macs[6..].copy_from_slice(&source.0);
        Macs(macs)
    }

    /// From words as they stand in memory that is shared with the kernel: eight octets, then four, the first lowest.
    pub(crate) fn of_words(first: u64, last: u32) -> Macs {
        let mut macs = [0; 12];
        macs[..8].copy_from_slice(&first.to_le_bytes());
        macs[8..].copy_from_slice(&last.to_le_bytes());
        Macs(macs)
    }

    #[inline]
    pub(crate) fn octets(&self) -> &[u8; 12] {
        &self.0
    }
}

/// Writes the MACs of an Ethernet frame.
///
/// # Errors
/// The frame is shorter than an Ethernet header.
#[inline]
pub fn set_macs(frame: &mut [u8], macs: &Macs) -> Result<(), LayoutMismatch> {
    let header: &mut [u8; ETHERNET] = frame.first_chunk_mut().ok_or(LayoutMismatch)?;
    header[..12].copy_from_slice(&macs.0);
    Ok(())
}

/// Addresses and ports that the frame carries at `layout`.
///
/// # Errors
/// The headers are not where the layout says.
pub fn endpoints(frame: &[u8], layout: &Layout) -> Result<Tuple, LayoutMismatch> {
    read_endpoints(frame, layout).ok_or(LayoutMismatch)
}

/// Makes the packet one from and to `to`: both addresses and, where there are any, both ports; the IPv4 header checksum and the
/// transport checksum follow (RFC 1624). What is to stay is given as it is; the protocol of `to` is not looked at.
///
/// A complete checksum that was wrong stays wrong, so damage is still noticed where the packet arrives. ICMPv6 checksums follow
/// their pseudo-header; an ICMP error that quotes a translated packet goes through [`translate_error`] instead.
///
/// # Errors
/// The headers are not where the layout says.
#[inline]
pub fn translate(frame: &mut [u8], layout: &Layout, checksum: Checksum, to: &Tuple) -> Result<(), LayoutMismatch> {
    apply(frame, layout, checksum, Extent::Whole, to, 0).ok_or(LayoutMismatch)
}

/// Sends a packet on: [`translate`], [`decrement_hop_limit`] and [`set_macs`] in one pass.
///
/// # Errors
/// As theirs; the frame is unchanged.
#[inline]
pub fn redirect(
    frame: &mut [u8],
    layout: &Layout,
    checksum: Checksum,
    to: &Tuple,
    macs: &Macs,
) -> Result<(), LayoutMismatch> {
    apply(frame, layout, checksum, Extent::Whole, to, 1).ok_or(LayoutMismatch)?;
    set_macs(frame, macs)
}

/// The same for an echo request or reply: a request leaves with the source port of `to` as its identifier, a reply with the destination port. A wrong
/// checksum stays wrong.
///
/// # Errors
/// As those of [`redirect`]; or it is no ICMP of its family, or shorter than an echo. The frame is unchanged.
pub fn redirect_echo(frame: &mut [u8], layout: &Layout, to: &Tuple, macs: &Macs) -> Result<(), LayoutMismatch> {
    let is_icmp = is_icmp(layout) && frame.len() >= layout.l4 + ICMP_ERROR_HEADER;
    Some(()).filter(|()| is_icmp).ok_or(LayoutMismatch)?;
    redirect(frame, layout, Checksum::Complete, to, macs)?;
    set_identifier(frame, layout, to).ok_or(LayoutMismatch)
}

/// Translates an ICMP or ICMPv6 error and the packet that it quotes (RFC 5508 §4.2).
///
/// The error becomes one from and to `outer_to` (ports are not looked at), the quoted packet one from and to `inner_to`. A quoted
/// packet went the other way, so its source is usually where the error goes. It may be cut: what is there of it is corrected, its
/// ports must be, or of an echo its identifier. The quoted checksum is taken as complete and left alone where it is cut; the outer one is right if it was right
/// before.
///
/// # Errors
/// The headers are not where the layouts say, the IP header promises more than the frame has, or `outer` is no ICMP of its family.
pub fn translate_error(
    frame: &mut [u8],
    outer: &Layout,
    outer_to: &Tuple,
    inner: &Layout,
    inner_to: &Tuple,
) -> Result<(), LayoutMismatch> {
    apply_to_error(frame, outer, outer_to, inner, inner_to).ok_or(LayoutMismatch)
}

/// Takes 1 from the TTL or hop limit; the IPv4 header checksum follows.
///
/// # Errors
/// It was 0 or 1, or the header is not where `layout` says.
#[inline]
pub fn decrement_hop_limit(frame: &mut [u8], layout: &Layout) -> Result<(), HopError> {
    let header = frame.get_mut(layout.l3..).ok_or(HopError::LayoutMismatch)?;
    match layout.family {
        Family::V4 => {
            let header: &mut [u8; IPV4_HEADER] = header.first_chunk_mut().ok_or(HopError::LayoutMismatch)?;
            if header[8] <= 1 {
                return Err(HopError::Expired);
            }
            set_ttl(header, header[8] - 1);
        }
        Family::V6 => {
            let header: &mut [u8; IPV6_HEADER] = header.first_chunk_mut().ok_or(HopError::LayoutMismatch)?;
            if header[7] <= 1 {
                return Err(HopError::Expired);
            }
            header[7] -= 1;
        }
    }
    Ok(())
}

/// Gives an IPv4 packet another identification; the header checksum follows. Other packets are left alone.
pub fn set_identification(frame: &mut [u8], layout: &Layout, id: u16) {
    let header = frame.get_mut(layout.l3..).and_then(|header| header.first_chunk_mut::<IPV4_HEADER>());
    if let Some(header) = header
        && layout.family == Family::V4
    {
        let old = u16::from_be_bytes([header[4], header[5]]);
        header[4..6].copy_from_slice(&id.to_be_bytes());
        let sum = Delta::of_u16(old, id).complete(u16::from_be_bytes([header[10], header[11]]));
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Lowers the maximum segment size that a SYN or SYN-ACK offers to `mss_max` (RFC 9293 §3.7.1) and returns what it was.
///
/// `None`, and the frame is unchanged, when it is not above that, when the segment has no SYN or no such option (which then
/// means 536 bytes over IPv4 and 1220 over IPv6), or when the options are malformed.
pub fn clamp_mss(frame: &mut [u8], layout: &Layout, checksum: Checksum, mss_max: u16) -> Option<u16> {
    if layout.protocol != TCP || checksum == Checksum::Absent {
        return None;
    }
    let (header, rest) = frame.get_mut(layout.l4..)?.split_first_chunk_mut::<TCP_HEADER>()?;
    if header[13] & SYN == 0 {
        return None;
    }
    let options_bytes = (usize::from(header[12] >> 4) * 4).checked_sub(TCP_HEADER)?;
    let options = rest.get_mut(..options_bytes)?;
    let at = mss_offset(options)?;
    let mss = field::<2>(options, at)?;
    let old = u16::from_be_bytes(*mss);
    if old <= mss_max {
        return None;
    }
    *mss = mss_max.to_be_bytes();
    if checksum == Checksum::Complete {
        // At an odd offset the high byte is the low half of one word and the low byte the high half of the next.
        let delta = if at.is_multiple_of(2) {
            Delta::of_u16(old, mss_max)
        } else {
            Delta::of_u16(old.swap_bytes(), mss_max.swap_bytes())
        };
        let field = field::<2>(header, 16)?;
        *field = delta.complete(u16::from_be_bytes(*field)).to_be_bytes();
    }
    Some(old)
}

/// Turns an ICMP or ICMPv6 echo request for an address of ours into its reply (RFC 792, RFC 4443 §4.2), back to the MAC it came
/// from, with `hop_limit`. It must be no fragment, and its destination no group address.
///
/// # Errors
/// It is no intact echo request, or the headers are not where `layout` says.
pub fn answer_echo(frame: &mut [u8], layout: &Layout, hop_limit: u8) -> Result<(), EchoError> {
    let request = read_endpoints(frame, layout).ok_or(EchoError::LayoutMismatch)?;
    let end = packet_end(frame, layout).ok_or(EchoError::LayoutMismatch)?;
    let packet = frame.get_mut(..end).ok_or(EchoError::LayoutMismatch)?;
    let (head, message) = packet.split_at_mut_checked(layout.l4).ok_or(EchoError::LayoutMismatch)?;
    let (ethernet, network) = head.split_at_mut_checked(layout.l3).ok_or(EchoError::LayoutMismatch)?;
    let macs = ethernet.get_mut(..ETHERNET).ok_or(EchoError::LayoutMismatch)?;

    let (reply_kind, pseudo_header) = match (layout.family, layout.protocol, message.get(..2)) {
        (Family::V4, ICMP, Some([8, 0])) => (0, 0),
        (Family::V6, ICMPV6, Some([128, 0])) => {
            let length_bytes = u32::try_from(message.len()).map_err(|_| EchoError::LayoutMismatch)?;
            (129, checksum::pseudo_header(&request.src.0, &request.dst.0, ICMPV6, length_bytes))
        }
        _ => return Err(EchoError::NotEcho),
    };
    if !checksum::is_valid(pseudo_header, message) {
        return Err(EchoError::BadChecksum);
    }

    let Some([kind, _, check @ ..]) = message.first_chunk_mut::<4>() else { return Err(EchoError::LayoutMismatch) };
    *kind = reply_kind;
    *check = [0, 0];
    // Anew rather than by its change: the reply to a request that is 0 all over is 0 all over, where RFC 1624 is one off.
    // Swapping the addresses leaves the pseudo-header's sum as it is.
    let anew = checksum::transport(pseudo_header, message);
    if let Some(check) = field::<2>(message, 2) {
        *check = anew.to_be_bytes();
    }
    set_addresses(network, layout.family, &request.reversed(), 0).ok_or(EchoError::LayoutMismatch)?;
    match layout.family {
        Family::V4 => {
            let header: &mut [u8; IPV4_HEADER] = network.first_chunk_mut().ok_or(EchoError::LayoutMismatch)?;
            set_ttl(header, hop_limit);
        }
        Family::V6 => {
            let header: &mut [u8; IPV6_HEADER] = network.first_chunk_mut().ok_or(EchoError::LayoutMismatch)?;
            header[7] = hop_limit;
        }
    }
    macs[..12].rotate_left(6);
    Ok(())
}

/// Makes a partial checksum complete, for a frame that leaves where nobody else does.
///
/// # Errors
/// The headers are not where the layout says, the IP header promises more than the frame has, or the protocol has no checksum
/// with a pseudo-header.
pub fn complete_checksum(frame: &mut [u8], layout: &Layout) -> Result<(), LayoutMismatch> {
    let end = packet_end(frame, layout).ok_or(LayoutMismatch)?;
    let segment = frame.get_mut(layout.l4..end).ok_or(LayoutMismatch)?;
    // The field holds the pseudo-header's sum and is summed along.
    let anew = checksum::of(segment);
    let transport = Transport::split(segment, layout, Extent::Whole).ok_or(LayoutMismatch)?;
    let field = transport.checksum.ok_or(LayoutMismatch)?;
    *field = if layout.protocol == UDP { checksum::udp_field(anew) } else { anew }.to_be_bytes();
    Ok(())
}

/// How much of a packet must be there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// An ICMP error quotes it: at least up to the ports.
    Quoted,
    /// All of it.
    Whole,
}

/// The fields of a transport header that follow a translation.
struct Transport<'a> {
    ports: Option<&'a mut [u8; 4]>,
    checksum: Option<&'a mut [u8; 2]>,
}

impl<'a> Transport<'a> {
    const NONE: Transport<'static> = Transport { ports: None, checksum: None };

    #[inline]
    fn split(bytes: &'a mut [u8], layout: &Layout, extent: Extent) -> Option<Transport<'a>> {
        let (ports, rest, checksum_at) = match (layout.family, layout.protocol) {
            (_, TCP) => {
                let (ports, rest) = bytes.split_first_chunk_mut::<4>()?;
                (Some(ports), rest, 12)
            }
            (_, UDP) => {
                let (ports, rest) = bytes.split_first_chunk_mut::<4>()?;
                (Some(ports), rest, 2)
            }
            (Family::V6, ICMPV6) => (None, bytes, 2),
            _ => return Some(Transport::NONE),
        };
        let checksum = field::<2>(rest, checksum_at);
        if extent == Extent::Whole && checksum.is_none() {
            return None;
        }
        Some(Transport { ports, checksum })
    }
}

/// `hops` are taken from the TTL or hop limit.
#[inline(always)]
fn apply(packet: &mut [u8], layout: &Layout, checksum: Checksum, extent: Extent, to: &Tuple, hops: u8) -> Option<()> {
    let (head, transport) = packet.split_at_mut_checked(layout.l4)?;
    let network = head.get_mut(layout.l3..)?;
    let transport = match checksum {
        Checksum::Absent => Transport::NONE,
        Checksum::Complete | Checksum::Partial => Transport::split(transport, layout, extent)?,
    };
    // The last step that can fail, and it does so before it writes.
    let addresses = set_addresses(network, layout.family, to, hops)?;
    let mut ports = Delta::NONE;
    if let Some(field) = transport.ports {
        let new = ((u32::from(to.src_port) << 16) | u32::from(to.dst_port)).to_be_bytes();
        ports = Delta::of_u32(u32::from_ne_bytes(*field), u32::from_ne_bytes(new));
        *field = new;
    }
    if let Some(field) = transport.checksum {
        let old = u16::from_ne_bytes(*field);
        let new = if checksum == Checksum::Partial {
            addresses.partial(old)
        } else if layout.protocol == UDP {
            addresses.and(ports).udp(old)
        } else {
            addresses.and(ports).complete(old)
        };
        *field = new.to_ne_bytes();
    }
    Some(())
}

fn apply_to_error(frame: &mut [u8], outer: &Layout, outer_to: &Tuple, inner: &Layout, inner_to: &Tuple) -> Option<()> {
    let before_inner = inner.l3.checked_sub(outer.l4)?;
    // Headers come in words, so a quoted packet at an odd offset is a mistake; its sum would be off.
    if !is_icmp(outer)
        || inner.family != outer.family
        || before_inner < ICMP_ERROR_HEADER
        || !before_inner.is_multiple_of(2)
    {
        return None;
    }
    let end = packet_end(frame, outer)?;
    let packet = frame.get_mut(..end)?;
    // Both are there: nothing below fails, so the frame is never left half translated.
    read_endpoints(packet, outer)?;
    read_endpoints(packet, inner)?;

    let before = checksum::sum(packet.get(inner.l3..)?);
    apply(packet, inner, Checksum::Complete, Extent::Quoted, inner_to, 0)?;
    if is_icmp(inner) {
        set_identifier(packet, inner, inner_to);
    }
    let quoted = Delta::of_u16(before, checksum::sum(packet.get(inner.l3..)?));
    apply(packet, outer, Checksum::Complete, Extent::Whole, outer_to, 0)?;
    let field = field::<2>(packet.get_mut(outer.l4..)?, 2)?;
    *field = quoted.complete(u16::from_be_bytes(*field)).to_be_bytes();
    Some(())
}

fn is_icmp(layout: &Layout) -> bool {
    matches!((layout.family, layout.protocol), (Family::V4, ICMP) | (Family::V6, ICMPV6))
}

/// Gives an echo request or reply the identifier that `to` has for it; other messages are left alone. `None` where it is cut before that.
fn set_identifier(frame: &mut [u8], layout: &Layout, to: &Tuple) -> Option<()> {
    let message: &mut [u8; ICMP_ERROR_HEADER] = frame.get_mut(layout.l4..)?.first_chunk_mut()?;
    let identifier = match (layout.family, message[0]) {
        (Family::V4, 8) | (Family::V6, 128) => to.src_port,
        (Family::V4, 0) | (Family::V6, 129) => to.dst_port,
        _ => return Some(()),
    };
    let delta = Delta::of_u16(u16::from_be_bytes([message[4], message[5]]), identifier);
    let checksum = delta.complete(u16::from_be_bytes([message[2], message[3]]));
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    message[4..6].copy_from_slice(&identifier.to_be_bytes());
    Some(())
}

/// Writes both addresses, takes `hops` from the hop limit and corrects the IPv4 header checksum; returns the change of the addresses. `None`
/// before anything is written.
#[inline(always)]
fn set_addresses(network: &mut [u8], family: Family, to: &Tuple, hops: u8) -> Option<Delta> {
    match family {
        Family::V4 => {
            let header: &mut [u8; IPV4_HEADER] = network.first_chunk_mut()?;
            let ttl = header[8].checked_sub(hops)?;
            let addresses = field::<8>(header, 12)?;
            let mut new = [0; 8];
            new[..4].copy_from_slice(&to.src.v4_octets());
            new[4..].copy_from_slice(&to.dst.v4_octets());
            let delta = Delta::of_u64(u64::from_ne_bytes(*addresses), u64::from_ne_bytes(new));
            *addresses = new;
            // TTL and protocol are one word.
            let word = [header[8], header[9]];
            header[8] = ttl;
            let hop = Delta::of_u16(u16::from_ne_bytes(word), u16::from_ne_bytes([ttl, word[1]]));
            let field = field::<2>(header, 10)?;
            *field = delta.and(hop).complete(u16::from_ne_bytes(*field)).to_ne_bytes();
            Some(delta)
        }
        Family::V6 => {
            let header: &mut [u8; IPV6_HEADER] = network.first_chunk_mut()?;
            header[7] = header[7].checked_sub(hops)?;
            let mut delta = Delta::NONE;
            for (at, new) in [(8, to.src.0), (24, to.dst.0)] {
                let address = field::<16>(header, at)?;
                delta = delta.and(Delta::of_u128(u128::from_ne_bytes(*address), u128::from_ne_bytes(new)));
                *address = new;
            }
            Some(delta)
        }
    }
}

#[inline]
fn set_ttl(header: &mut [u8; IPV4_HEADER], ttl: u8) {
    // TTL and protocol are one word.
    let old = u16::from_be_bytes([header[8], header[9]]);
    header[8] = ttl;
    let delta = Delta::of_u16(old, u16::from_be_bytes([ttl, header[9]]));
    let checksum = delta.complete(u16::from_be_bytes([header[10], header[11]]));
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

fn read_endpoints(frame: &[u8], layout: &Layout) -> Option<Tuple> {
    let (head, transport) = frame.split_at_checked(layout.l4)?;
    let network = head.get(layout.l3..)?;
    let (src, dst) = match layout.family {
        Family::V4 => {
            let header: &[u8; IPV4_HEADER] = network.first_chunk()?;
            (
                Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
                Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            )
        }
        Family::V6 => {
            let header: &[u8; IPV6_HEADER] = network.first_chunk()?;
            (Ip(*header[8..].first_chunk()?), Ip(*header[24..].first_chunk()?))
        }
    };
    let (src_port, dst_port) = match layout.protocol {
        TCP | UDP => {
            let &[a, b, c, d] = transport.first_chunk()?;
            (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
        }
        _ => (0, 0),
    };
    Some(Tuple { src, dst, src_port, dst_port, protocol: layout.protocol })
}

/// Where the packet ends by its own account; padding may follow in the frame. `None` when the frame is shorter.
fn packet_end(frame: &[u8], layout: &Layout) -> Option<usize> {
    let header = frame.get(layout.l3..)?;
    let length_bytes = match layout.family {
        Family::V4 => usize::from(u16::from_be_bytes(*header.get(2..)?.first_chunk()?)),
        Family::V6 => IPV6_HEADER + usize::from(u16::from_be_bytes(*header.get(4..)?.first_chunk()?)),
    };
    (length_bytes <= header.len()).then_some(layout.l3 + length_bytes)
}

/// Where the value of the maximum segment size option is (RFC 9293 §3.2).
fn mss_offset(options: &[u8]) -> Option<usize> {
    let mut at = 0;
    // At most 40 bytes of options, and each turn passes at least one.
    loop {
        match options.get(at..)? {
            [] | [0, ..] => return None,
            [1, ..] => at += 1,
            [2, 4, _, _, ..] => return Some(at + 2),
            [_, length, ..] if *length >= 2 => at += usize::from(*length),
            _ => return None,
        }
    }
}

#[inline]
fn field<const N: usize>(bytes: &mut [u8], at: usize) -> Option<&mut [u8; N]> {
    bytes.get_mut(at..)?.first_chunk_mut()
}

#[cfg(test)]
mod tests;
