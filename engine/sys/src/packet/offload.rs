//! What a frame leaves to the kernel or the device: an unfinished checksum, cutting into segments.

/// Bytes of a `struct virtio_net_hdr` (linux/virtio_net.h), which stands in front of each frame of a socket with PACKET_VNET_HDR.
pub(super) const HEADER_BYTES: usize = 10;

/// A `struct virtio_net_hdr`; its numbers are in the byte order of the machine.
pub(super) type Header = [u8; HEADER_BYTES];

const NEEDS_CSUM: u8 = 1;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Headers assumed where nothing says how long they are: Ethernet, IPv6 and TCP with all its options, and some extension headers.
const HEADERS_GUESS: usize = 192;
/// Where the length of a TCP header stands, in its upper 4 bits and in words of 4 bytes.
const TCP_LENGTH: usize = 12;
const UDP_HEADER: usize = 8;

/// What is left to do for a frame when it leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The transport checksum that is still to be finished; `None` when it is complete.
    pub checksum: Option<PartialChecksum>,
    /// The frame is a super-packet, to be cut; `None` when it goes as it is.
    pub segments: Option<Segments>,
}

/// A checksum of which only the pseudo-header is summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where the bytes to sum begin: the transport header, in bytes from the start of the frame.
    pub start: u16,
    /// The checksum field, in bytes from `start`.
    pub field: u16,
}

impl PartialChecksum {
    /// Whether its field lies within a frame of so many octets.
    pub(super) fn lies_within(self, len: usize) -> bool {
        usize::from(self.start) + usize::from(self.field) + size_of::<u16>() <= len
    }

    /// Sums what is left and puts the checksum into its field (RFC 1071), as `skb_checksum_help` does (net/core/dev.c).
    ///
    /// # Panics
    /// If the field does not [lie within](PartialChecksum::lies_within) the frame.
    pub(super) fn finish(self, frame: &mut [u8]) {
        let summed = &mut frame[usize::from(self.start)..];
        let (words, rest) = summed.as_chunks::<4>();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        // The sum of 32-bit words is that of 16-bit ones, in whichever order of octets.
        let words = words.iter().chain([&last]).map(|word| u64::from(u32::from_ne_bytes(*word)));
        let mut sum: u64 = words.sum();
        while sum > u64::from(u16::MAX) {
            sum = (sum & u64::from(u16::MAX)) + (sum >> 16);
        }
        // No sum is told by zero (RFC 768).
        let sum = if sum == u64::from(u16::MAX) { u16::MAX } else { !(sum as u16) };
        let field = usize::from(self.field);
        summed[field..field + size_of::<u16>()].copy_from_slice(&sum.to_ne_bytes());
    }
}

/// How a super-packet is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// What it is cut into.
    pub kind: SegmentKind,
    /// Bytes of payload of one segment (> 0); the last may have less.
    pub payload_bytes: u16,
}

/// What a super-packet is cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP segments over IPv4.
    TcpV4 {
        /// The frame carries CWR, which only its first segment may (RFC 3168 §6.1.2).
        ecn: bool,
    },
    /// TCP segments over IPv6.
    TcpV6 {
        /// As for IPv4.
        ecn: bool,
    },
    /// UDP datagrams (Linux 6.2).
    Udp,
}

impl SegmentKind {
    /// The same over the other IP version.
    fn crossed(self) -> SegmentKind {
        match self {
            SegmentKind::TcpV4 { ecn } => SegmentKind::TcpV6 { ecn },
            SegmentKind::TcpV6 { ecn } => SegmentKind::TcpV4 { ecn },
            SegmentKind::Udp => SegmentKind::Udp,
        }
    }
}

impl Offload {
    /// Nothing: the frame is complete.
    pub const NONE: Offload = Offload { checksum: None, segments: None };

    /// What a header says; `None` when it says something that is not known here.
    pub(super) fn read(header: &Header) -> Option<Offload> {
        let [flags, gso, _, _, size_0, size_1, start_0, start_1, field_0, field_1] = *header;
        let checksum = (flags & NEEDS_CSUM != 0).then(|| PartialChecksum {
            start: u16::from_ne_bytes([start_0, start_1]),
            field: u16::from_ne_bytes([field_0, field_1]),
        });
        let ecn = gso & GSO_ECN != 0;
        let kind = match gso & !GSO_ECN {
            GSO_NONE => return Some(Offload { checksum, segments: None }),
            GSO_TCPV4 => SegmentKind::TcpV4 { ecn },
            GSO_TCPV6 => SegmentKind::TcpV6 { ecn },
            GSO_UDP_L4 => SegmentKind::Udp,
            _ => return None,
        };
        let payload_bytes = u16::from_ne_bytes([size_0, size_1]);
        Some(Offload { checksum, segments: Some(Segments { kind, payload_bytes }) })
    }

    /// The same for a frame that begins so many bytes later, or earlier where negative, because its packet is one of the other IP version now.
    #[must_use]
    pub fn crossed(self, begins: i16) -> Offload {
        let checksum = self.checksum.map(|checksum| PartialChecksum {
            start: checksum.start.saturating_add_signed(begins.saturating_neg()),
            ..checksum
        });
        let segments = self.segments.map(|segments| Segments { kind: segments.kind.crossed(), ..segments });
        Offload { checksum, segments }
    }

    /// The header to send a frame with, into which so many bytes are put behind its addresses.
    pub(super) fn header(&self, frame: &[u8], inserted: u16) -> Header {
        let mut header = [0; HEADER_BYTES];
        if let Some(checksum) = self.checksum {
            header[0] = NEEDS_CSUM;
            header[6..8].copy_from_slice(&checksum.start.saturating_add(inserted).to_ne_bytes());
            header[8..10].copy_from_slice(&checksum.field.to_ne_bytes());
        }
        if let Some(segments) = self.segments {
            header[1] = match segments.kind {
                SegmentKind::TcpV4 { ecn } => GSO_TCPV4 | if ecn { GSO_ECN } else { 0 },
                SegmentKind::TcpV6 { ecn } => GSO_TCPV6 | if ecn { GSO_ECN } else { 0 },
                SegmentKind::Udp => GSO_UDP_L4,
            };
            let headers_bytes = self.headers_bytes(segments.kind, frame).saturating_add(inserted);
            header[2..4].copy_from_slice(&headers_bytes.to_ne_bytes());
            header[4..6].copy_from_slice(&segments.payload_bytes.to_ne_bytes());
        }
        header
    }

    /// How much of a super-packet is headers. The kernel puts so much into one piece and the rest into pages; told nothing, it
    /// needs one piece of up to 64 KiB (`packet_alloc_skb`, net/packet/af_packet.c), which it may not find.
    fn headers_bytes(&self, kind: SegmentKind, frame: &[u8]) -> u16 {
        let known = self.checksum.and_then(|checksum| {
            let transport = usize::from(checksum.start);
            match kind {
                SegmentKind::TcpV4 { .. } | SegmentKind::TcpV6 { .. } => {
                    frame.get(transport + TCP_LENGTH).map(|length| transport + usize::from(length >> 4) * 4)
                }
                SegmentKind::Udp => Some(transport + UDP_HEADER),
            }
        });
        let bytes = known.unwrap_or(HEADERS_GUESS).min(frame.len());
        u16::try_from(bytes).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(len: usize) -> Vec<u8> {
        let mut frame = vec![0; len];
        // A TCP header of 32 bytes behind Ethernet and IPv4.
        frame[34 + TCP_LENGTH] = 0x80;
        frame
    }

    #[test]
    fn what_is_written_is_read_again() {
        let checksum = Some(PartialChecksum { start: 34, field: 16 });
        let kinds = [
            SegmentKind::TcpV4 { ecn: false },
            SegmentKind::TcpV4 { ecn: true },
            SegmentKind::TcpV6 { ecn: false },
            SegmentKind::TcpV6 { ecn: true },
            SegmentKind::Udp,
        ];
        for kind in kinds {
            let offload = Offload { checksum, segments: Some(Segments { kind, payload_bytes: 1448 }) };
            assert_eq!(Offload::read(&offload.header(&frame(9000), 0)), Some(offload));
        }
        for checksum in [None, checksum] {
            let offload = Offload { checksum, segments: None };
            assert_eq!(Offload::read(&offload.header(&frame(60), 0)), Some(offload));
        }
    }

    #[test]
    fn a_super_packet_says_how_long_its_headers_are() {
        let headers = |offload: &Offload, frame: &[u8]| {
            let header = offload.header(frame, 0);
            u16::from_ne_bytes([header[2], header[3]])
        };
        let tcp = Segments { kind: SegmentKind::TcpV4 { ecn: false }, payload_bytes: 1448 };
        let udp = Segments { kind: SegmentKind::Udp, payload_bytes: 1200 };
        let checksum = Some(PartialChecksum { start: 34, field: 16 });
        assert_eq!(headers(&Offload { checksum, segments: Some(tcp) }, &frame(9000)), 66);
        assert_eq!(headers(&Offload { checksum, segments: Some(udp) }, &frame(9000)), 42);
        assert_eq!(headers(&Offload { checksum: None, segments: Some(tcp) }, &frame(9000)), HEADERS_GUESS as u16);
        // A lying frame: never more than there is.
        let beyond = Some(PartialChecksum { start: 60_000, field: 16 });
        assert_eq!(headers(&Offload { checksum: beyond, segments: Some(tcp) }, &frame(100)), 100);
        assert_eq!(headers(&Offload { checksum, segments: None }, &frame(9000)), 0);
    }

    #[test]
    fn a_tag_moves_what_lies_behind_it() {
        let tcp = Segments { kind: SegmentKind::TcpV4 { ecn: false }, payload_bytes: 1448 };
        let offload = |start| Offload { checksum: Some(PartialChecksum { start, field: 16 }), segments: Some(tcp) };
        let header = offload(34).header(&frame(9000), 4);
        assert_eq!(Offload::read(&header), Some(offload(38)));
        assert_eq!(u16::from_ne_bytes([header[2], header[3]]), 70);
        assert_eq!(Offload::NONE.header(&frame(60), 4), Offload::NONE.header(&frame(60), 0));
    }

    #[test]
    fn what_is_left_to_do_follows_a_packet_into_the_other_version() {
        let offload = |kind, start| Offload {
            checksum: Some(PartialChecksum { start, field: 16 }),
            segments: Some(Segments { kind, payload_bytes: 1440 }),
        };
        let v4 = offload(SegmentKind::TcpV4 { ecn: true }, 34);
        let v6 = offload(SegmentKind::TcpV6 { ecn: true }, 54);
        assert_eq!((v4.crossed(-20), v6.crossed(20)), (v6, v4));
        let with_options = offload(SegmentKind::TcpV4 { ecn: false }, 58);
        assert_eq!(with_options.crossed(4), offload(SegmentKind::TcpV6 { ecn: false }, 54));
        assert_eq!(offload(SegmentKind::Udp, 34).crossed(-20), offload(SegmentKind::Udp, 54));
        assert_eq!(Offload::NONE.crossed(-20), Offload::NONE);
    }

    #[test]
    fn an_unknown_kind_of_super_packet_is_refused() {
        let mut header = [0; HEADER_BYTES];
        header[1] = 3;
        assert_eq!(Offload::read(&header), None);
    }

    #[test]
    fn a_verified_checksum_is_a_complete_one() {
        let mut header = [0; HEADER_BYTES];
        // VIRTIO_NET_HDR_F_DATA_VALID: received and found right.
        header[0] = 2;
        assert_eq!(Offload::read(&header), Some(Offload::NONE));
    }
}
