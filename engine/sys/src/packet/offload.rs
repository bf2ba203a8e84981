//! What a frame leaves to the kernel or the device: an unfinished checksum, cutting into segments.

/// What is left to do for a frame when it leaves (`struct virtio_net_hdr`, linux/virtio_net.h).
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
    /// TCP segments over IPv4. With `ecn`, only the first carries CWR (RFC 3168 §6.1.2).
    TcpV4 {
        /// The frame carries CWR.
        ecn: bool,
    },
    /// TCP segments over IPv6, likewise.
    TcpV6 {
        /// The frame carries CWR.
        ecn: bool,
    },
    /// UDP datagrams (Linux 6.2).
    Udp,
}

impl Offload {
    /// Nothing: the frame is complete.
    pub const NONE: Offload = Offload { checksum: None, segments: None };
}
