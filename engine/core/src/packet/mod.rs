//! Packets: from the bytes of a frame to what the packet plane decides on.
//!
//! [`parse`] reads a frame once, front to back. Every length in it is checked against the frame before anything behind it is
//! read, and what it says is copied out, so that the steps after it (flow table, TCP state, rewriting) need not check again.
//! Bytes behind the end of the IP packet (Ethernet padding) are allowed and never read. A super-packet (GSO, GRO) is a packet
//! like any other as long as its length fits its header.
//!
//! Checksums: that of the IPv4 header, and that of each ICMP message which is acted on, are verified; the kernel completes both
//! before a frame leaves it. Those of TCP and UDP are not: on virtual devices they are mostly partial, and rewriting keeps
//! a wrong one wrong.

mod addr;
pub mod checksum;
pub mod cross;
pub mod cut;
mod icmp;
pub mod rewrite;
pub mod straight;
#[cfg(test)]
mod tests;
mod transport;
mod view;

use crate::counters::counters;

pub use addr::{Ip, Mac, Tuple, TupleV4};
pub use transport::SynOptions;
pub use view::{Ethernet, parse, parse_ip, parse_to};

/// Octets of an Ethernet header without tag.
pub const ETHERNET_LEN: usize = 14;

/// Most extension headers of one IPv6 packet; those behind it would be work for nothing.
pub const EXTENSIONS_MAX: usize = 8;

/// IP protocol number of ICMP for IPv4.
pub const PROTOCOL_ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// IP protocol number of ICMP for IPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;

counters!(
    /// Why a frame goes no further: who sent it is to blame, it asks for what no balancer should do, or there is no place for it.
    DropReason {
        ArpSender = "arp_sender", "An ARP packet whose sender has a group's address.";
        ArpTruncated = "arp_truncated", "An ARP packet that is shorter than its fields.";
        ArpUnsupported = "arp_unsupported", "An ARP packet that is not about IPv4 over Ethernet.";
        BridgeReturned = "bridge_returned", "A frame of our own that came in again by an arm of a bridge: a loop, or somebody else with that MAC.";
        BridgeStorm = "bridge_storm", "A frame to a group or an unknown station on a bridge that leads back to itself: more of them than may cross.";
        CutFull = "cut_full", "A packet to be cut into fragments for which there was no room among what is sent.";
        DsrBehindRouter = "dsr_behind_router", "DSR: the real server is not on a link of ours, and its router would send the packet back.";
        EthernetSource = "ethernet_source", "A frame whose source is a group's address.";
        EthernetTruncated = "ethernet_truncated", "A frame that is shorter than an Ethernet header.";
        ExtensionOrder = "extension_order", "An IPv6 hop-by-hop header that is not the first, or a second fragment header.";
        ExtensionTruncated = "extension_truncated", "An IPv6 extension header that is longer than its packet.";
        ExtensionsTooMany = "extensions_too_many", "An IPv6 packet with more than 8 extension headers.";
        FlowsFull = "flows_full", "The flow table was full; the client of a TCP connection is reset.";
        Fragment = "fragment", "A fragment that cannot be put together with others: its checksum was left to the device.";
        FragmentBeyondEnd = "fragment_beyond_end", "A fragment of a packet that would be longer than 65,535 octets.";
        FragmentCongestion = "fragment_congestion", "A fragment that may not be marked for congestion while others of its packet may (RFC 3168 section 5.3).";
        FragmentHeaders = "fragment_headers", "A first fragment with headers of more than 512 octets in front of its data.";
        FragmentLength = "fragment_length", "A fragment without data, or one before the last whose data is no multiple of 8 octets.";
        FragmentOverlap = "fragment_overlap", "A fragment that overlaps or contradicts another one of its packet, and those of it that came later (RFC 5722).";
        FragmentTiny = "fragment_tiny", "A first fragment without the whole TCP or UDP header, or a later one that lies over it.";
        FragmentsTooMany = "fragments_too_many", "A fragment of a packet in more than 128 fragments.";
        FrameChanged = "frame_changed", "A frame whose headers were no longer where they had been read.";
        HairpinUnserved = "hairpin_unserved", "Half-NAT: a client on a real server's network, and no source pool to answer it through.";
        HandOffFull = "hand_off_full", "A frame for another worker that had no room for it.";
        HalfOpenFull = "half_open_full", "The table of half-open flows was full, or the half of it that UDP may have.";
        HalfOpenSource = "half_open_source", "The source had as many half-open flows as one may.";
        HopLimit = "hop_limit", "A packet whose time to live or hop limit ran out here; its sender is told.";
        IcmpChecksum = "icmp_checksum", "An ICMP message whose checksum is wrong.";
        IcmpEmbedded = "icmp_embedded", "An ICMP error whose embedded packet is truncated or malformed.";
        IcmpEmbeddedFragment = "icmp_embedded_fragment", "An ICMP error about a fragment that does not show its ports.";
        IcmpEmbeddedSource = "icmp_embedded_source", "An ICMP error to someone else than the sender of the embedded packet.";
        IcmpErrorStray = "icmp_error_stray", "An ICMP error to an address of ours about no flow of ours.";
        IcmpErrorUntranslated = "icmp_error_untranslated", "An ICMP error about a flow between IPv4 and IPv6 that says nothing in the other one (RFC 7915 sections 4.2 and 5.2).";
        IcmpErrorWindow = "icmp_error_window", "An ICMP error about a TCP segment that is not on its way (RFC 5927).";
        IcmpTruncated = "icmp_truncated", "An ICMP message that is shorter than its header.";
        IpVersion = "ip_version", "An IP packet whose version is not the one that its frame announces.";
        Ipv4Checksum = "ipv4_checksum", "An IPv4 packet whose header checksum is wrong.";
        Ipv4HeaderLength = "ipv4_header_length", "An IPv4 header shorter than 20 octets or longer than its packet.";
        Ipv4Option = "ipv4_option", "An IPv4 option that is longer than the header.";
        Ipv4SourceRoute = "ipv4_source_route", "An IPv4 packet with a source route.";
        Ipv4Truncated = "ipv4_truncated", "An IPv4 packet that is longer than its frame.";
        Ipv6Truncated = "ipv6_truncated", "An IPv6 packet that is longer than its frame.";
        Jumbo = "jumbo", "An IP packet that gives its length as 0: a jumbogram, BIG TCP, or nothing.";
        MappedAddress = "mapped_address", "An IPv6 packet with an IPv4-mapped address.";
        MartianDestination = "martian_destination", "An IP packet to a loopback address or to none.";
        MartianSource = "martian_source", "An IP packet from a loopback address, a group, nobody, or its own destination.";
        NdHopLimit = "nd_hop_limit", "A neighbour message that comes from another link: its hop limit is not 255.";
        NdMalformed = "nd_malformed", "A neighbour message that breaks RFC 4861 section 7.1, or is a fragment (RFC 6980).";
        NdTruncated = "nd_truncated", "A neighbour message that is shorter than its fields or options.";
        NextHopUnknown = "next_hop_unknown", "The next hop did not answer yet and no room was left to wait for it.";
        NoRoute = "no_route", "No route leads to where the packet was to go.";
        NoServer = "no_server", "No real server was up and ready; the client of a TCP connection is reset.";
        PacketTooBig = "packet_too_big", "A packet larger than the MTU of the link ahead; its sender is told, unless it may be fragmented.";
        PortClosed = "port_closed", "A packet to an address of ours that fits no service and no flow.";
        PortsExhausted = "ports_exhausted", "Every (source address, port) towards the real server was leased; a TCP client is reset.";
        PortZero = "port_zero", "A TCP or UDP packet from or to port 0.";
        ReturnPort = "return_port", "An answer of a real server that came in on an interface from which no route leads to that server.";
        ReversePath = "reverse_path", "A packet to be forwarded as it is that came in on an interface from which no route leads to its source.";
        RoutingHeader = "routing_header", "An IPv6 packet that has not reached its last destination.";
        RuleDenied = "rule_denied", "A packet to be forwarded as it is that a rule of the router denies, or none allows.";
        ServersFull = "servers_full", "Every real server that is up was at max_connections; the client of a TCP connection is reset if `overload` says so.";
        ServiceFull = "service_full", "The service was at its max_connections; the client of a TCP connection is reset if `overload` says so.";
        SourceOurs = "source_ours", "A packet of no flow whose source is a VIP or SNAT address of ours; where packets are forwarded as they are, or any address of this host.";
        SpanningTree = "spanning_tree", "A frame of spanning tree on a bridge that does not let them pass.";
        Standby = "standby", "A packet to a VIP or SNAT address while this machine stands by for another one (`towpath role`).";
        Tagged = "tagged", "A frame with a VLAN tag that the kernel has left in it.";
        TcpFlags = "tcp_flags", "A TCP segment with flags that no state of TCP sends together.";
        TcpHeaderLength = "tcp_header_length", "A TCP header shorter than 20 octets or longer than its packet.";
        TcpStray = "tcp_stray", "A TCP segment to a service that belongs to no flow and opens none.";
        TcpTruncated = "tcp_truncated", "A TCP segment that is shorter than its header.";
        TooLongForV4 = "too_long_for_v4", "A packet of a flow between IPv6 and IPv4 that would be longer than 65,535 octets in the latter.";
        UdpChecksumMissing = "udp_checksum_missing", "A UDP datagram over IPv6 without checksum.";
        UdpLength = "udp_length", "A UDP datagram that gives its length as less than 8 or more than its packet has.";
        UdpTruncated = "udp_truncated", "A UDP datagram that is shorter than its header.";
        Unroutable = "unroutable", "A packet to be forwarded as it is from or to an address that no router forwards: link-local, reserved, or the broadcast of a network here.";
    }
);

/// What a frame is to the packet plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// A question for an IPv4 neighbour, or an answer.
    Arp(Arp),
    /// An ICMP or ICMPv6 echo request; its identifier is the source port, and 0 the other one.
    Echo(Parsed),
    /// The reply to one; its identifier is the destination port. Its checksum was not verified.
    EchoReply(Parsed),
    /// Part of a TCP, UDP or other packet. An IPv6 packet in a single fragment (RFC 6946) is not one.
    Fragment(Fragment),
    /// An ICMP or ICMPv6 error about a TCP or UDP packet, or an echo.
    IcmpError(IcmpError),
    /// An ICMPv6 neighbour solicitation or advertisement.
    Nd(Nd),
    /// Well formed as far as it was read, and nothing that the packet plane handles.
    Other(Other),
    /// A whole TCP segment or UDP datagram between two hosts.
    Transport(Parsed),
}

/// What else there is on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// ARP with this operation.
    Arp(u16),
    /// A frame of this EtherType, or an IEEE 802.3 frame of this length.
    EtherType(u16),
    /// An IP packet to a group: by its address, or in a frame to one.
    Group,
    /// An ICMP or ICMPv6 message of this type, or an error of this type about something else than TCP, UDP and echoes.
    Icmp(u8),
    /// An IP packet of this protocol.
    Protocol(u8),
}

/// IP version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    #[default]
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// That of an address.
    #[inline]
    pub fn of(ip: Ip) -> Family {
        if ip.is_v4() { Family::V4 } else { Family::V6 }
    }

    /// The other one.
    #[inline]
    #[must_use]
    pub fn other(self) -> Family {
        match self {
            Family::V4 => Family::V6,
            Family::V6 => Family::V4,
        }
    }
}

/// Where the parts of an IP packet lie and what its headers say.
///
/// Offsets count octets from the start of the frame, and `l3` < `l4` ≤ `payload` ≤ `end` ≤ the length of the frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Addresses, ports and protocol.
    pub tuple: Tuple,
    /// IP version.
    pub family: Family,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Whether a router must not fragment the packet: always so for IPv6.
    pub dont_fragment: bool,
    /// Start of the IP header.
    pub l3: u16,
    /// Start of the TCP, UDP or ICMP header, behind IP options and extension headers; in a later fragment, of its data.
    pub l4: u16,
    /// Start of what that header carries; equal to `l4` where no such header was read.
    pub payload: u16,
    /// End of the IP packet; Ethernet padding lies behind it.
    pub end: u32,
    /// What the TCP header says; all 0 for other protocols.
    pub tcp: Tcp,
}

impl Parsed {
    /// Octets that TCP, UDP or ICMP carries, at most 65,535.
    #[inline]
    pub fn payload_len(&self) -> u32 {
        self.end.saturating_sub(self.payload.into())
    }

    /// Octets of the IP packet with its header, at most 65,575.
    #[inline]
    pub fn total_len(&self) -> u32 {
        self.end.saturating_sub(self.l3.into())
    }
}

/// The fields of a TCP header that connection tracking reads (RFC 9293 section 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    /// Sequence number of the first octet, or of the SYN.
    pub seq: u32,
    /// Next sequence number expected; means nothing without the ACK flag.
    pub ack: u32,
    /// Receive window, not yet scaled.
    pub window: u16,
    /// Control bits.
    pub flags: TcpFlags,
}

/// The control bits of a TCP header without the reserved ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: TcpFlags = TcpFlags(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: TcpFlags = TcpFlags(0x02);
    /// Reset the connection.
    pub const RST: TcpFlags = TcpFlags(0x04);
    /// Push.
    pub const PSH: TcpFlags = TcpFlags(0x08);
    /// The acknowledgement number counts.
    pub const ACK: TcpFlags = TcpFlags(0x10);
    /// The urgent pointer counts.
    pub const URG: TcpFlags = TcpFlags(0x20);
    /// Congestion was experienced (RFC 3168).
    pub const ECE: TcpFlags = TcpFlags(0x40);
    /// Congestion window reduced (RFC 3168).
    pub const CWR: TcpFlags = TcpFlags(0x80);

    /// Whether all of `flags` are set.
    #[inline]
    pub fn contains(self, flags: TcpFlags) -> bool {
        self.0 & flags.0 == flags.0
    }
}

/// A fragment: what is known without the others of its set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Addresses and offsets. Ports and TCP header only in the first fragment, whose transport header is whole.
    pub parsed: Parsed,
    /// What all fragments of one packet share.
    pub key: FragmentKey,
    /// Octets of the packet's fragmentable part that lie before this fragment's data; a multiple of 8.
    pub offset: u16,
    /// Whether others follow.
    pub more: bool,
    /// Where its data starts, in octets from the start of the frame: behind the headers that each fragment repeats, and the fragment header.
    pub data: u16,
}

impl Fragment {
    /// Whether this is the one with the transport header.
    #[inline]
    pub fn is_first(&self) -> bool {
        self.offset == 0
    }
}

/// What the fragments of one packet share (RFC 791 section 3.2; RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FragmentKey {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Identification.
    pub id: u32,
    /// Protocol; for IPv6 the next header that the fragment header names, which may be an extension header.
    pub protocol: u8,
}

/// An ICMP error about a TCP or UDP packet, or an echo, that its receiver had sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// The packet that carries the error; `payload` is where the embedded packet starts.
    pub parsed: Parsed,
    /// What went wrong.
    pub kind: IcmpErrorKind,
    /// The embedded packet as its sender sent it: the flow's other direction is the one that the error belongs to. Of an echo, with the identifier as
    /// in [`Packet::Echo`] and [`Packet::EchoReply`].
    pub embedded: Tuple,
    /// Start of the embedded TCP, UDP or ICMP header, of which at least 8 octets are there.
    pub embedded_l4: u16,
    /// Sequence number of the embedded TCP segment, for the check of RFC 5927 section 4.1; 0 for others.
    pub embedded_seq: u32,
}

/// What an ICMP error says (RFC 792, RFC 4443 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpErrorKind {
    /// The packet is larger than the next link's MTU and must not be fragmented.
    PacketTooBig {
        /// Octets of IP packet that fit, as the message says; 0 from routers older than RFC 1191.
        mtu: u32,
    },
    /// A header field is not understood.
    ParameterProblem,
    /// The time to live ran out, or reassembly took too long.
    TimeExceeded,
    /// There is no way to the destination, or nobody listens there.
    Unreachable,
}

/// An ARP packet for IPv4 over Ethernet (RFC 826).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Request or reply.
    pub operation: ArpOperation,
    /// Link-layer address of the sender.
    pub sender_mac: Mac,
    /// Address of the sender; `0.0.0.0` in a probe (RFC 5227).
    pub sender: Ip,
    /// Link-layer address of the target; means nothing in a request.
    pub target_mac: Mac,
    /// Address asked for, or of the one who asked; the sender's own in an announcement.
    pub target: Ip,
}

/// What an ARP packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArpOperation {
    /// An answer.
    Reply,
    /// A question.
    Request,
}

/// A neighbour message that fulfils RFC 4861 section 7.1, checksum included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nd {
    /// Solicitation or advertisement.
    pub kind: NdKind,
    /// Source address; `::` in a solicitation that looks for a duplicate (RFC 4862 section 5.4).
    pub src: Ip,
    /// Destination address; of a solicitation, often the solicited-node group.
    pub dst: Ip,
    /// The address asked for, or told about.
    pub target: Ip,
    /// Link-layer address of the source of a solicitation or of the target of an advertisement, if it is given.
    pub link_layer: Option<Mac>,
}

/// What a neighbour message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NdKind {
    /// An answer or announcement.
    Advertisement {
        /// The sender is a router.
        router: bool,
        /// It answers a solicitation.
        solicited: bool,
        /// It replaces what is known.
        overrides: bool,
    },
    /// A question.
    Solicitation,
}
