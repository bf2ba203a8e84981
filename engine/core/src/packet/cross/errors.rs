//! ICMP errors of one IP version made into those of the other, with the packets that they quote (RFC 7915 sections 4.2, 4.3, 5.2 and 5.3).

use super::super::rewrite::{Checksum, Extent, Macs};
use super::super::{ETHERNET_LEN, Family, IcmpError, PROTOCOL_ICMP, PROTOCOL_ICMPV6, Tuple, checksum};
use super::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, LOWEST_V6_MTU, follow, traffic_class, v4_header, v6_header};

/// Octets of the longest frame that is made here.
const ERROR_LEN_MAX: usize = ETHERNET_LEN + V6_ERROR_MAX;

/// Octets of an ICMPv6 error with its IPv6 header (RFC 4443 section 2.4 (c)).
const V6_ERROR_MAX: usize = 1_280;
/// The same for IPv4 (RFC 1812 section 4.3.2.3).
const V4_ERROR_MAX: usize = 576;
const ICMP_LEN: usize = 8;

/// MTUs that routers are likely to mean which do not say any (RFC 1191 section 7.1), down to what every IPv6 link carries.
const PLATEAUS: [u32; 8] = [65_535, 32_000, 17_914, 8_166, 4_352, 2_002, 1_492, 1_280];

/// What the links here carry, in octets of IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Links {
    /// The one that the error came by, where the packet was to go.
    pub came_by: u32,
    /// The one that it leaves by, where the packet had come from.
    pub leaves_by: u32,
}

/// An ICMP error in the other IP version.
#[derive(Clone, Debug)]
pub struct CrossedError {
    octets: [u8; ERROR_LEN_MAX],
    len: usize,
}

impl CrossedError {
    /// Its frame.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.octets.get_mut(..self.len).unwrap_or_default()
    }

    fn push(&mut self, octets: &[u8]) {
        if let Some(room) = self.octets.get_mut(self.len..).and_then(|room| room.get_mut(..octets.len())) {
            room.copy_from_slice(octets);
            self.len += octets.len();
        }
    }

    fn set_half(&mut self, at: usize, value: u16) {
        if let Some(field) = self.octets.get_mut(at..).and_then(|octets| octets.first_chunk_mut()) {
            *field = value.to_be_bytes();
        }
    }
}

/// Makes `error`, which lies in `frame`, one of the other IP version for the sender of the packet that it quotes: `sent` is that packet as its sender
/// sent it, and the error comes from the far end of that. A hop further on, with these MACs.
///
/// What the quoted packet lacks, such as its options, stays out, and so do extensions behind it (RFC 4884). `None` when the other version has no such
/// error, or the headers are not where they were read.
pub fn cross_error(frame: &[u8], error: &IcmpError, sent: &Tuple, macs: &Macs, links: Links) -> Option<CrossedError> {
    let IcmpError { parsed, embedded, .. } = error;
    let (inner, inner_l4) = (usize::from(parsed.payload), usize::from(error.embedded_l4));
    let packet = frame.get(..usize::try_from(parsed.end).ok()?)?;
    let message: &[u8; ICMP_LEN] = packet.get(usize::from(parsed.l4)..)?.first_chunk()?;
    let quoted = packet.get(..inner + quoted_max(parsed.family, message)).unwrap_or(packet);
    let header = quoted.get(inner..inner_l4)?;
    let Quoted { class, hop_limit, segment_len, total_len } = Quoted::read(header, parsed.family)?;
    let (kind, code, word) = counterpart(parsed.family, message, total_len, links)?;

    let outer_class = traffic_class(parsed.family, *frame.get(usize::from(parsed.l3)..)?.first_chunk()?);
    let family = parsed.family.other();
    let hop = parsed.ttl.checked_sub(1)?;
    let (protocol, outer_len, inner_len, len_max) = match family {
        Family::V4 => (PROTOCOL_ICMP, 20, 20, V4_ERROR_MAX),
        Family::V6 => (PROTOCOL_ICMPV6, 40, 40, V6_ERROR_MAX),
    };
    let segment = quoted.get(inner_l4..)?;
    let segment = segment.get(..len_max - outer_len - ICMP_LEN - inner_len).unwrap_or(segment);
    let message_len = ICMP_LEN + inner_len + segment.len();
    let to = Tuple { src: sent.dst, dst: sent.src, src_port: 0, dst_port: 0, protocol };
    if Family::of(to.src) != family || Family::of(to.dst) != family {
        return None;
    }
    let mut made = CrossedError { octets: [0; ERROR_LEN_MAX], len: 0 };
    made.push(macs.octets());
    // Neither is longer than `len_max`.
    match family {
        Family::V4 => {
            made.push(&ETHERTYPE_IPV4);
            made.push(&v4_header(outer_class, (outer_len + message_len) as u16, &to, hop, None));
        }
        Family::V6 => {
            made.push(&ETHERTYPE_IPV6);
            made.push(&v6_header(outer_class, message_len as u16, &to, hop));
        }
    }
    let l4 = made.len;
    made.push(&[kind, code, 0, 0]);
    made.push(&word);
    match family {
        Family::V4 => made.push(&v4_header(class, segment_len.saturating_add(20), sent, hop_limit, None)),
        Family::V6 => made.push(&v6_header(class, segment_len, sent, hop_limit)),
    }
    let quoted_l4 = made.len;
    made.push(segment);
    follow(made.octets.get_mut(quoted_l4..made.len)?, embedded, Extent::Quoted, Checksum::Complete, sent)?;
    let message = made.octets.get(l4..made.len)?;
    let pseudo_header = match family {
        Family::V4 => 0,
        Family::V6 => checksum::pseudo_header(to.src.octets(), to.dst.octets(), protocol, message.len() as u32),
    };
    let check = checksum::transport(pseudo_header, message);
    made.set_half(l4 + 2, check);
    Some(made)
}

/// What the header of a quoted packet says.
struct Quoted {
    class: u8,
    hop_limit: u8,
    /// Octets behind the header as the packet had them, not as they are quoted.
    segment_len: u16,
    /// Octets of the packet.
    total_len: u32,
}

impl Quoted {
    /// `header` is that of IP with everything up to the transport header.
    fn read(header: &[u8], family: Family) -> Option<Quoted> {
        let class = traffic_class(family, *header.first_chunk()?);
        let half = |at: usize| header.get(at..)?.first_chunk().map(|half| u16::from_be_bytes(*half));
        // Two headers of IPv6 and its extensions: see Parsed::l4. Routers have changed lengths, so they may be short.
        let (total_len, hop_limit) = match family {
            Family::V4 => (u32::from(half(2)?), *header.get(8)?),
            Family::V6 => (u32::from(half(4)?) + 40, *header.get(7)?),
        };
        let segment_len = total_len.saturating_sub(header.len() as u32);
        Some(Quoted { class, hop_limit, segment_len: u16::try_from(segment_len).unwrap_or(u16::MAX), total_len })
    }
}

/// Octets that are quoted of a packet at most: what lies behind them are extensions where the message says how long the quote is (RFC 4884 section 5).
fn quoted_max(family: Family, message: &[u8; ICMP_LEN]) -> usize {
    let [kind, _, _, _, b4, b5, _, _] = *message;
    let octets = match (family, kind) {
        (Family::V4, 3 | 11 | 12) => usize::from(b5) * 4,
        (Family::V6, 1 | 3) => usize::from(b4) * 8,
        _ => 0,
    };
    if octets == 0 { usize::from(u16::MAX) } else { octets }
}

/// Type, code and the four octets behind the checksum of the error in the other version that says the same as this one about a packet of `total_len`.
fn counterpart(family: Family, message: &[u8; ICMP_LEN], total_len: u32, links: Links) -> Option<(u8, u8, [u8; 4])> {
    const NOTHING: [u8; 4] = [0; 4];
    let [kind, code, _, _, word @ ..] = *message;
    let number = u32::from_be_bytes(word);
    Some(match (family, kind, code) {
        // No route to the destination; the next header is not known; the port is not open; it is too big; it is prohibited.
        (Family::V4, 3, 0 | 1 | 5..=8 | 11 | 12) => (1, 0, NOTHING),
        (Family::V4, 3, 2) => (4, 1, [0, 0, 0, 6]),
        (Family::V4, 3, 3) => (1, 4, NOTHING),
        (Family::V4, 3, 4) => (2, 0, v6_mtu(number & 0xffff, total_len, links).to_be_bytes()),
        (Family::V4, 3, 9 | 10 | 13 | 15) => (1, 1, NOTHING),
        (Family::V4, 11, 0 | 1) => (3, code, NOTHING),
        (Family::V4, 12, 0 | 2) => (4, 0, [0, 0, 0, v6_pointer(word[0])?]),
        (Family::V6, 1, 0 | 2 | 3) => (3, 1, NOTHING),
        (Family::V6, 1, 1) => (3, 10, NOTHING),
        (Family::V6, 1, 4) => (3, 3, NOTHING),
        (Family::V6, 2, _) => (3, 4, v4_mtu(number, links).to_be_bytes()),
        (Family::V6, 3, 0 | 1) => (11, code, NOTHING),
        (Family::V6, 4, 0) => (12, 0, [v4_pointer(number)?, 0, 0, 0]),
        (Family::V6, 4, 1) => (3, 2, NOTHING),
        _ => return None,
    })
}

/// What an IPv6 sender is told instead of an MTU of IPv4: never less than each link there carries (RFC 8200 section 5).
fn v6_mtu(mtu: u32, total_len: u32, links: Links) -> u32 {
    let mtu = match mtu {
        0 => PLATEAUS.into_iter().find(|&plateau| plateau < total_len).unwrap_or(LOWEST_V6_MTU),
        _ => mtu,
    };
    (mtu + 20).min(links.leaves_by).min(links.came_by.saturating_add(20)).max(LOWEST_V6_MTU)
}

/// The other way round; the next router's MTU is of at least what each IPv6 link carries.
fn v4_mtu(mtu: u32, links: Links) -> u32 {
    let over_v6 = mtu.min(links.came_by).max(LOWEST_V6_MTU) - 20;
    over_v6.min(links.leaves_by).min(u16::MAX.into())
}

/// Which octet of an IPv6 header is what this octet of an IPv4 header is (RFC 7915 figure 3).
fn v6_pointer(octet: u8) -> Option<u8> {
    Some(match octet {
        0 => 0,
        1 => 1,
        2 | 3 => 4,
        8 => 7,
        9 => 6,
        12..=15 => 8,
        16..=19 => 24,
        _ => return None,
    })
}

/// The other way round (RFC 7915 figure 6).
fn v4_pointer(octet: u32) -> Option<u8> {
    Some(match octet {
        0 => 0,
        1 => 1,
        4 | 5 => 2,
        6 => 9,
        7 => 8,
        8..=23 => 12,
        24..=39 => 16,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINKS: Links = Links { came_by: 1_500, leaves_by: 1_500 };

    fn told(family: Family, kind: u8, code: u8, word: u32) -> Option<(u8, u8, u32)> {
        let mut message = [kind, code, 0, 0, 0, 0, 0, 0];
        message[4..].copy_from_slice(&word.to_be_bytes());
        counterpart(family, &message, 1_500, LINKS).map(|(kind, code, word)| (kind, code, u32::from_be_bytes(word)))
    }

    #[test]
    fn what_ipv4_says_is_said_in_ipv6() {
        let v4 = |kind, code, word| told(Family::V4, kind, code, word);
        for code in [0, 1, 5, 6, 7, 8, 11, 12] {
            assert_eq!(v4(3, code, 0), Some((1, 0, 0)), "code {code}");
        }
        for code in [9, 10, 13, 15] {
            assert_eq!(v4(3, code, 0), Some((1, 1, 0)), "code {code}");
        }
        assert_eq!(v4(3, 2, 0), Some((4, 1, 6)));
        assert_eq!(v4(3, 3, 0), Some((1, 4, 0)));
        assert_eq!([v4(3, 14, 0), v4(3, 16, 0)], [None; 2]);
        assert_eq!([v4(11, 0, 0), v4(11, 1, 0), v4(11, 2, 0)], [Some((3, 0, 0)), Some((3, 1, 0)), None]);
        assert_eq!([v4(4, 0, 0), v4(5, 0, 0), v4(12, 1, 0)], [None; 3]);
        let pointers = [
            Some(0),
            Some(1),
            Some(4),
            Some(4),
            None,
            None,
            None,
            None,
            Some(7),
            Some(6),
            None,
            None,
            Some(8),
            Some(8),
            Some(8),
            Some(8),
            Some(24),
            Some(24),
            Some(24),
            Some(24),
            None,
        ];
        for (octet, pointer) in (0..).zip(pointers) {
            assert_eq!(v4(12, 0, octet << 24), pointer.map(|pointer| (4, 0, pointer)), "octet {octet}");
            assert_eq!(v4(12, 2, octet << 24), pointer.map(|pointer| (4, 0, pointer)), "octet {octet}");
        }
    }

    #[test]
    fn what_ipv6_says_is_said_in_ipv4() {
        let v6 = |kind, code, word| told(Family::V6, kind, code, word);
        let unreachable = [1, 10, 1, 1, 3].map(|code| Some((3, code, 0)));
        for (code, expected) in (0..).zip(unreachable.into_iter().chain([None, None, None])) {
            assert_eq!(v6(1, code, 0), expected, "code {code}");
        }
        assert_eq!([v6(3, 0, 0), v6(3, 1, 0), v6(3, 2, 0)], [Some((11, 0, 0)), Some((11, 1, 0)), None]);
        assert_eq!([v6(4, 1, 6), v6(4, 2, 0), v6(100, 0, 0)], [Some((3, 2, 0)), None, None]);
        for octet in 0..42_u32 {
            let pointer = match octet {
                0 | 1 => Some(octet),
                4 | 5 => Some(2),
                6 => Some(9),
                7 => Some(8),
                8..=23 => Some(12),
                24..=39 => Some(16),
                _ => None,
            };
            assert_eq!(v6(4, 0, octet), pointer.map(|pointer| (12, 0, pointer << 24)), "octet {octet}");
        }
    }

    #[test]
    fn an_mtu_is_that_of_the_other_version_and_of_the_links_here() {
        let to_v6 = |mtu, total_len, came_by, leaves_by| v6_mtu(mtu, total_len, Links { came_by, leaves_by });
        assert_eq!(to_v6(1_400, 1_500, 1_500, 1_500), 1_420);
        assert_eq!(to_v6(1_500, 9_000, 1_500, 9_000), 1_520);
        assert_eq!(to_v6(9_000, 9_100, 1_500, 9_000), 1_520);
        assert_eq!(to_v6(1_490, 1_500, 1_500, 1_400), 1_400);
        assert_eq!(to_v6(576, 1_500, 1_500, 1_500), 1_280);
        // Who does not say means the plateau below what was sent.
        assert_eq!(to_v6(0, 1_500, 1_500, 1_600), 1_512);
        assert_eq!(to_v6(0, 1_492, 1_500, 1_600), 1_300);
        assert_eq!(to_v6(0, 600, 1_500, 1_600), 1_300);
        let to_v4 = |mtu, came_by, leaves_by| v4_mtu(mtu, Links { came_by, leaves_by });
        assert_eq!(to_v4(1_400, 1_500, 1_500), 1_380);
        assert_eq!(to_v4(9_000, 1_500, 9_000), 1_480);
        assert_eq!(to_v4(9_000, 9_000, 1_500), 1_500);
        assert_eq!(to_v4(68, 1_500, 1_500), 1_260);
        assert_eq!(to_v4(u32::MAX, u32::MAX, u32::MAX), 65_535);
    }

    #[test]
    fn extensions_are_no_part_of_the_quote() {
        let message = |kind, b4, b5| [kind, 0, 0, 0, b4, b5, 0, 0];
        assert_eq!(quoted_max(Family::V4, &message(11, 0, 32)), 128);
        assert_eq!(quoted_max(Family::V4, &message(3, 9, 0)), 65_535);
        assert_eq!(quoted_max(Family::V6, &message(1, 16, 0)), 128);
        assert_eq!(quoted_max(Family::V6, &message(2, 16, 16)), 65_535, "that is its MTU");
    }
}
