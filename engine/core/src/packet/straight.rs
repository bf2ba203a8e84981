//! The frame that nearly all are: TCP over IPv4 without options, in one piece, of an open connection. Read as a few words, judged all at once.
//!
//! What is taken for one here is one to [`parse`](super::parse) as well, which the tests hold it to; whatever is refused is left to `parse`.

use super::checksum::{self, Delta};
use super::rewrite::{Checksum, Macs};
use super::{Family, Mac, PROTOCOL_TCP, Parsed, TcpFlags, Tuple, TupleV4};

/// Octets of the Ethernet, IPv4 and TCP headers without options.
const HEADERS_LEN: usize = 54;

/// Destination and the bit of the source that marks a group, in the first eight octets of a frame.
const STATION: u64 = 0x0001_ffff_ffff_ffff;
/// EtherType, version and header length.
const ETHERTYPE_AND_VERSION: u32 = 0x00ff_ffff;
const IPV4_WITHOUT_OPTIONS: u32 = 0x0045_0008;
/// In the eight octets from the IPv4 identification on: more fragments, fragment offset, protocol.
const WHOLE_AND_PROTOCOL: u64 = 0x0000_ff00_ff3f_0000;
const WHOLE_TCP: u64 = (PROTOCOL_TCP as u64) << 40;
/// There, a time to live of 2 or more.
const TTL_LEFT: u64 = 0x0000_00fe_0000_0000;
/// Flags that are looked at, in the two octets of the TCP header that have them second.
const FLAGS: u16 =
    ((TcpFlags::URG.0 | TcpFlags::ACK.0 | TcpFlags::RST.0 | TcpFlags::SYN.0 | TcpFlags::FIN.0) as u16) << 8;
const FIN: u16 = (TcpFlags::FIN.0 as u16) << 8;
const ONLY_ACK: u16 = (TcpFlags::ACK.0 as u16) << 8;

/// The station that frames are read for.
#[derive(Clone, Copy, Debug)]
pub struct Station(u64);

impl Station {
    /// No frame is for it.
    pub const NONE: Station = Station(u64::MAX);

    /// That at `mac`; none where it is a group's.
    pub fn new(mac: Mac) -> Station {
        let [a, b, c, d, e, f] = mac.0;
        if mac.is_group() { Station::NONE } else { Station(u64::from_le_bytes([a, b, c, d, e, f, 0, 0])) }
    }
}

/// The headers of such a frame.
pub struct Straight<'a>(&'a mut [u8; HEADERS_LEN]);

impl<'a> Straight<'a> {
    /// The headers of a frame in which [`read_straight`] found one.
    #[inline(always)]
    pub fn of(frame: &'a mut [u8]) -> Option<Straight<'a>> {
        frame.first_chunk_mut().map(Straight)
    }

    /// The headers of a frame that was parsed as TCP over IPv4 without options.
    #[inline(always)]
    pub fn at(frame: &'a mut [u8], parsed: &Parsed) -> Option<Straight<'a>> {
        let is_one =
            parsed.family == Family::V4 && parsed.tuple.protocol == PROTOCOL_TCP && (parsed.l3, parsed.l4) == (14, 34);
        if is_one { Straight::of(frame) } else { None }
    }

    /// Addresses and ports.
    #[inline(always)]
    pub fn tuple(&self) -> TupleV4 {
        tuple(self.0)
    }

    /// Octets of the IP packet.
    #[inline(always)]
    pub fn total_len(&self) -> u32 {
        u16::from_be_bytes(octets(self.0, 16)).into()
    }

    /// Octets of the IPv4 and TCP headers.
    #[inline(always)]
    pub fn headers_len(&self) -> u32 {
        20 + u32::from(self.0[46] >> 4) * 4
    }

    /// Sequence number.
    #[inline(always)]
    pub fn seq(&self) -> u32 {
        u32::from_be_bytes(octets(self.0, 38))
    }

    /// Whether its sender has no more data.
    #[inline(always)]
    pub fn has_fin(&self) -> bool {
        self.0[47] & TcpFlags::FIN.0 != 0
    }

    /// Acknowledgment number.
    #[inline(always)]
    pub fn ack(&self) -> u32 {
        u32::from_be_bytes(octets(self.0, 42))
    }

    /// The window field.
    #[inline(always)]
    pub fn window(&self) -> u16 {
        u16::from_be_bytes(octets(self.0, 48))
    }

    /// Sends the packet on as [`redirect`](super::rewrite::redirect) does; `checksum` is complete or partial.
    #[inline(always)]
    pub fn redirect(self, checksum: Checksum, to: TupleV4, macs: &Macs) {
        let header = self.0;
        let from = tuple(header);
        let addresses = Delta::of_u64(from.addresses, to.addresses);
        let ip = addresses.and(Delta::FIRST_OCTET_LESS_ONE).complete(u16::from_le_bytes(octets(header, 24)));
        let old = u16::from_le_bytes(octets(header, 50));
        let tcp = match checksum {
            Checksum::Partial => addresses.partial(old),
            Checksum::Absent | Checksum::Complete => addresses.and(Delta::of_u32(from.ports, to.ports)).complete(old),
        };
        header[..12].copy_from_slice(macs.octets());
        header[22] -= 1;
        header[24..26].copy_from_slice(&ip.to_le_bytes());
        header[26..34].copy_from_slice(&to.addresses.to_le_bytes());
        header[34..38].copy_from_slice(&to.ports.to_le_bytes());
        header[50..52].copy_from_slice(&tcp.to_le_bytes());
    }

    /// Sends the packet on as a router does: with other MACs, one hop on.
    #[inline(always)]
    pub fn route_on(self, macs: &Macs) {
        let header = self.0;
        let ip = Delta::FIRST_OCTET_LESS_ONE.complete(u16::from_le_bytes(octets(header, 24)));
        header[..12].copy_from_slice(macs.octets());
        header[22] -= 1;
        header[24..26].copy_from_slice(&ip.to_le_bytes());
    }
}

/// The tuple of a frame for `station` that goes straight on if its flow is known: a whole and well-formed TCP segment over IPv4 without options that
/// may take one more hop, with ACK and neither SYN, FIN, RST nor URG. Whether its addresses and ports are those of two hosts is not looked at.
#[inline(always)]
pub fn read_straight(frame: &[u8], station: Station) -> Option<TupleV4> {
    read(frame, station, FLAGS)
}

/// The same for one with ACK and perhaps FIN.
#[inline(always)]
pub fn read_straight_or_last(frame: &[u8], station: Station) -> Option<TupleV4> {
    read(frame, station, FLAGS & !FIN)
}

#[inline(always)]
fn read(frame: &[u8], station: Station, flags: u16) -> Option<TupleV4> {
    let header: &[u8; HEADERS_LEN] = frame.first_chunk()?;
    let version_to_length = u32::from_le_bytes(octets(header, 14));
    let id_to_checksum = u64::from_le_bytes(octets(header, 18));
    let tuple = tuple(header);
    let offset_and_flags = u16::from_le_bytes(octets(header, 46));
    let differs = (u64::from_le_bytes(octets(header, 0)) & STATION ^ station.0)
        | u64::from(u32::from_le_bytes(octets(header, 12)) & ETHERTYPE_AND_VERSION ^ IPV4_WITHOUT_OPTIONS)
        | (id_to_checksum & WHOLE_AND_PROTOCOL ^ WHOLE_TCP)
        | u64::from(offset_and_flags & flags ^ ONLY_ACK);
    if differs != 0 || id_to_checksum & TTL_LEFT == 0 {
        return None;
    }
    let total_len = u64::from(((version_to_length >> 16) as u16).swap_bytes());
    let tcp_len = u64::from(offset_and_flags & 0xf0) >> 2;
    // Each below 0 where a length lies.
    let rooms = ((frame.len() - 14) as u64).wrapping_sub(total_len)
        | tcp_len.wrapping_sub(20)
        | total_len.wrapping_sub(20 + tcp_len);
    let sum = checksum::add(checksum::add(id_to_checksum, tuple.addresses), version_to_length.into());
    ((rooms as i64) >= 0 && checksum::is_all_ones(sum)).then_some(tuple)
}

/// The tuple of a frame in which [`read_straight`] found one.
pub fn tuple_of(frame: &[u8]) -> Option<Tuple> {
    Some(tuple(frame.first_chunk()?).with_protocol(PROTOCOL_TCP))
}

#[inline(always)]
fn tuple(header: &[u8; HEADERS_LEN]) -> TupleV4 {
    TupleV4 { addresses: u64::from_le_bytes(octets(header, 26)), ports: u32::from_le_bytes(octets(header, 34)) }
}

#[inline(always)]
fn octets<const N: usize>(header: &[u8; HEADERS_LEN], at: usize) -> [u8; N] {
    header[at..].first_chunk().copied().unwrap_or([0; N])
}
