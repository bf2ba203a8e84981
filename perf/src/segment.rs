//! TCP segments and UDP datagrams as frames, for peers without a kernel: they are fed to the packet plane in memory, or sent over a packet socket.

use std::net::{IpAddr, SocketAddr};

use towpath_core::packet::rewrite::Checksum;
use towpath_core::packet::{ETHERNET_LEN, Mac, PROTOCOL_TCP, PROTOCOL_UDP, TcpFlags, checksum};

/// Octets of the longest frame of a segment without payload: IPv6, a SYN with its options.
pub const HEADERS_LEN_MAX: usize = ETHERNET_LEN + IPV6_LEN + TCP_LEN + SYN_OPTIONS.len();

/// The window of every segment; with [`WINDOW_SCALE`], 8 MiB.
const WINDOW: u16 = u16::MAX;

/// Both sides offer this shift.
const WINDOW_SCALE: u8 = 7;

/// On a SYN: the largest segment of Ethernet, and the window's scale.
const SYN_OPTIONS: [u8; 8] = [2, 4, (1460_u16 >> 8) as u8, 1460_u16 as u8, 1, 3, 3, WINDOW_SCALE];

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;
const TTL: u8 = 64;

/// A segment and who sends it to whom.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Station that sends the frame.
    pub from_mac: Mac,
    /// Station that it is for.
    pub to_mac: Mac,
    /// Source.
    pub from: SocketAddr,
    /// Destination, of the same family.
    pub to: SocketAddr,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Control bits. With SYN, the segment carries options.
    pub flags: TcpFlags,
    /// What it carries, as far as fits a packet.
    pub payload: &'a [u8],
}

impl Segment<'_> {
    /// Writes the frame, its checksums complete, to the start of `place` and returns its length.
    ///
    /// # Panics
    /// When `place` is shorter than [`HEADERS_LEN_MAX`] and the payload together, or the addresses are of two families.
    pub fn write(&self, place: &mut [u8]) -> usize {
        self.write_as(place, Checksum::Complete)
    }

    /// The same; where the checksum is [`Partial`](Checksum::Partial), its field holds the sum of the pseudo-header, as the kernel leaves it to
    /// a network card.
    ///
    /// # Panics
    /// As [`Segment::write`].
    pub fn write_as(&self, place: &mut [u8], checksum: Checksum) -> usize {
        let options: &[u8] = if self.flags.contains(TcpFlags::SYN) { &SYN_OPTIONS } else { &[] };
        let transport_len = TCP_LEN + options.len() + self.payload.len();
        let macs = (self.from_mac, self.to_mac);
        let (before, pseudo_header) = write_headers(place, macs, (self.from, self.to), PROTOCOL_TCP, transport_len);
        let transport = &mut place[before..before + transport_len];
        let (header, rest) = transport.split_at_mut(TCP_LEN);
        header[..2].copy_from_slice(&self.from.port().to_be_bytes());
        header[2..4].copy_from_slice(&self.to.port().to_be_bytes());
        header[4..8].copy_from_slice(&self.seq.to_be_bytes());
        header[8..12].copy_from_slice(&self.ack.to_be_bytes());
        header[12] = ((TCP_LEN + options.len()) / 4) as u8 * 16;
        header[13] = self.flags.0;
        header[14..16].copy_from_slice(&WINDOW.to_be_bytes());
        header[16..20].copy_from_slice(&[0; 4]);
        rest[..options.len()].copy_from_slice(options);
        rest[options.len()..].copy_from_slice(self.payload);
        let sum = match checksum {
            Checksum::Absent => 0,
            Checksum::Complete => checksum::transport(pseudo_header, transport),
            Checksum::Partial => pseudo_header,
        };
        transport[16..18].copy_from_slice(&sum.to_be_bytes());
        before + transport_len
    }
}

/// A UDP datagram and who sends it to whom.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Station that sends the frame.
    pub from_mac: Mac,
    /// Station that it is for.
    pub to_mac: Mac,
    /// Source.
    pub from: SocketAddr,
    /// Destination, of the same family.
    pub to: SocketAddr,
    /// What it carries, as far as fits a packet.
    pub payload: &'a [u8],
}

impl Datagram<'_> {
    /// Writes the frame, its checksums complete, to the start of `place` and returns its length.
    ///
    /// # Panics
    /// As [`Segment::write`].
    pub fn write(&self, place: &mut [u8]) -> usize {
        let transport_len = UDP_LEN + self.payload.len();
        let macs = (self.from_mac, self.to_mac);
        let (before, pseudo_header) = write_headers(place, macs, (self.from, self.to), PROTOCOL_UDP, transport_len);
        let transport = &mut place[before..before + transport_len];
        transport[..2].copy_from_slice(&self.from.port().to_be_bytes());
        transport[2..4].copy_from_slice(&self.to.port().to_be_bytes());
        transport[4..6].copy_from_slice(&(transport_len as u16).to_be_bytes());
        transport[6..8].copy_from_slice(&[0; 2]);
        transport[UDP_LEN..].copy_from_slice(self.payload);
        let sum = checksum::udp_field(checksum::transport(pseudo_header, transport));
        transport[6..8].copy_from_slice(&sum.to_be_bytes());
        before + transport_len
    }
}

/// Writes what stands before the transport header; its length, and the sum of the pseudo-header.
fn write_headers(
    place: &mut [u8],
    (from_mac, to_mac): (Mac, Mac),
    ends: (SocketAddr, SocketAddr),
    protocol: u8,
    transport_len: usize,
) -> (usize, u16) {
    place[..6].copy_from_slice(&to_mac.0);
    place[6..12].copy_from_slice(&from_mac.0);
    let (ethernet, packet) = place.split_at_mut(ETHERNET_LEN);
    let (network_len, pseudo_header) = match (ends.0.ip(), ends.1.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            ethernet[12..].copy_from_slice(&[0x08, 0x00]);
            let header = &mut packet[..IPV4_LEN];
            header[..2].copy_from_slice(&[0x45, 0]);
            header[2..4].copy_from_slice(&((IPV4_LEN + transport_len) as u16).to_be_bytes());
            // No identification, and not to be fragmented (RFC 6864 section 4.1).
            header[4..8].copy_from_slice(&[0, 0, 0x40, 0]);
            header[8..12].copy_from_slice(&[TTL, protocol, 0, 0]);
            header[12..16].copy_from_slice(&from.octets());
            header[16..20].copy_from_slice(&to.octets());
            let sum = checksum::of(header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            let pseudo = (from.octets(), to.octets());
            (IPV4_LEN, checksum::pseudo_header(&pseudo.0, &pseudo.1, protocol, transport_len as u32))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            ethernet[12..].copy_from_slice(&[0x86, 0xdd]);
            let header = &mut packet[..IPV6_LEN];
            header[..4].copy_from_slice(&[0x60, 0, 0, 0]);
            header[4..6].copy_from_slice(&(transport_len as u16).to_be_bytes());
            header[6..8].copy_from_slice(&[protocol, TTL]);
            header[8..24].copy_from_slice(&from.octets());
            header[24..40].copy_from_slice(&to.octets());
            let pseudo = (from.octets(), to.octets());
            (IPV6_LEN, checksum::pseudo_header(&pseudo.0, &pseudo.1, protocol, transport_len as u32))
        }
        (from, to) => panic!("a packet from {from} to {to}"),
    };
    (ETHERNET_LEN + network_len, pseudo_header)
}

/// All of these flags.
pub fn flags(flags: &[TcpFlags]) -> TcpFlags {
    TcpFlags(flags.iter().fold(0, |all, flag| all | flag.0))
}

/// Whether the transport checksum of a frame that [`parse`](towpath_core::packet::parse) has read is complete and right.
pub fn is_intact(frame: &[u8], parsed: &towpath_core::packet::Parsed) -> bool {
    let Some(transport) = frame.get(usize::from(parsed.l4)..parsed.end as usize) else { return false };
    let octets = |ip: towpath_core::packet::Ip| if ip.is_v4() { ip.v4_octets().to_vec() } else { ip.0.to_vec() };
    let (from, to) = (octets(parsed.tuple.src), octets(parsed.tuple.dst));
    let pseudo_header = checksum::pseudo_header(&from, &to, parsed.tuple.protocol, transport.len() as u32);
    checksum::is_valid(pseudo_header, transport)
}

#[cfg(test)]
mod tests {
    use super::*;
    use towpath_core::packet::{Packet, parse};

    #[test]
    fn a_segment_reads_as_it_was_meant() {
        for (from, to) in [("10.0.0.1:1", "10.0.0.2:2"), ("[fd00::1]:40000", "[fd00::2]:443")] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            for set in [&[TcpFlags::SYN][..], &[TcpFlags::SYN, TcpFlags::ACK], &[TcpFlags::ACK, TcpFlags::PSH]] {
                let (from_mac, to_mac) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
                let payload: &[u8] = if set.contains(&TcpFlags::SYN) { b"" } else { b"odd" };
                let segment = Segment { from_mac, to_mac, from, to, seq: 7, ack: 9, flags: flags(set), payload };
                let mut place = [0xaa; HEADERS_LEN_MAX + 3];
                let length = segment.write(&mut place);
                let Ok(Packet::Transport(parsed)) = parse(&place[..length]) else { panic!("{:?}", parse(&place)) };
                let read = (parsed.tuple.src, parsed.tuple.src_port, parsed.tuple.dst, parsed.tuple.dst_port);
                assert_eq!(read, (from.ip().into(), from.port(), to.ip().into(), to.port()));
                assert_eq!((parsed.tcp.seq, parsed.tcp.ack, parsed.tcp.flags), (7, 9, flags(set)));
                assert_eq!(parsed.payload_len() as usize, payload.len());
                assert!(is_intact(&place[..length], &parsed));
                place[length - 1] ^= 1;
                assert!(!is_intact(&place[..length], &parsed));
            }
        }
    }
}
