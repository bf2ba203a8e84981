//! Frames that the doctor asks with, and what it reads out of those that come back. Every checksum is complete.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use towpath_core::packet::{
    ETHERNET_LEN, Mac, NdKind, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, Packet, Parsed, Tcp, TcpFlags, Tuple,
    checksum, parse,
};
use towpath_sys::packet::{Instruction, PartialChecksum};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const TCP_LEN: usize = 20;
const TCP_CHECKSUM: usize = 16;
const ECHO_LEN: usize = 8;

const ECHO_V4: u8 = 8;
const ECHO_V6: u8 = 128;
const SOLICITATION: u8 = 135;
const OPTION_SOURCE: u8 = 1;

const HOP_LIMIT: u8 = 64;
/// What shows that a neighbour message comes from the link (RFC 4861 section 7.1).
const ND_HOP_LIMIT: u8 = 255;
/// The window and the MSS of a connection that is never used.
const WINDOW: u16 = 1024;

/// Something that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Seen {
    /// A station says that it has an address.
    Station {
        /// The address.
        ip: IpAddr,
        /// The station.
        mac: [u8; 6],
    },
    /// An answer to an echo request.
    Echo {
        /// Who answers.
        from: IpAddr,
        /// To whom.
        to: IpAddr,
        /// Identifier of the request.
        id: u16,
        /// Octets of the IP packet.
        octets: u32,
    },
    /// A TCP segment.
    Segment {
        /// Whence.
        from: SocketAddr,
        /// Where to.
        to: SocketAddr,
        /// The acknowledgement number, where it opens a connection that nobody wants; `None` where it resets.
        accepts: Option<u32>,
    },
}

impl Seen {
    /// What a frame that came in says; `None` where it is no answer to the doctor.
    pub(super) fn of(frame: &[u8]) -> Option<Seen> {
        match parse(frame).ok()? {
            // Who has an address says so in answers, in announcements, and when it asks for others (RFC 5227 section 2.1.1).
            Packet::Arp(arp) => {
                let ip = IpAddr::from(arp.sender);
                (!ip.is_unspecified()).then_some(Seen::Station { ip, mac: arp.sender_mac.0 })
            }
            Packet::Nd(nd) if matches!(nd.kind, NdKind::Advertisement { .. }) => {
                let mac = nd.link_layer.map_or(frame.get(6..12)?.try_into().ok()?, |mac: Mac| mac.0);
                Some(Seen::Station { ip: nd.target.into(), mac })
            }
            Packet::EchoReply(parsed) => {
                let Tuple { src, dst, dst_port, .. } = parsed.tuple;
                Some(Seen::Echo { from: src.into(), to: dst.into(), id: dst_port, octets: parsed.total_len() })
            }
            Packet::Transport(parsed) if parsed.tuple.protocol == PROTOCOL_TCP => Some(segment(&parsed)),
            _ => None,
        }
    }
}

fn segment(parsed: &Parsed) -> Seen {
    let Tcp { ack, flags, .. } = parsed.tcp;
    let opens = flags.contains(TcpFlags::SYN) && flags.contains(TcpFlags::ACK);
    Seen::Segment { from: parsed.tuple.source(), to: parsed.tuple.destination(), accepts: opens.then_some(ack) }
}

/// Asks who has `target`. With an unspecified `source` it is a probe that nobody learns from (RFC 5227 section 2.1.1, RFC 4862 section 5.4.2).
/// Both addresses are of one family.
pub(super) fn question(mac: [u8; 6], source: IpAddr, target: IpAddr) -> Vec<u8> {
    match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => arp_request(mac, source, target),
        (IpAddr::V6(source), IpAddr::V6(target)) => solicitation(mac, source, target),
        _ => Vec::new(),
    }
}

fn arp_request(mac: [u8; 6], source: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet([0xff; 6], mac, ETHERTYPE_ARP);
    // Ethernet, IPv4, addresses of 6 and 4 octets, request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(source.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

fn solicitation(mac: [u8; 6], source: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    // The solicited-node group (RFC 4291 section 2.7.1), and its hardware address (RFC 2464 section 7).
    let [.., x, y, z] = target.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(x), u16::from_be_bytes([y, z]));
    let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    // A probe must not have the option (RFC 4861 section 4.3).
    if !source.is_unspecified() {
        message.extend([OPTION_SOURCE, 1]);
        message.extend(mac);
    }
    let to = [0x33, 0x33, 0xff, x, y, z];
    packet(to, mac, (source.into(), group.into()), PROTOCOL_ICMPV6, ND_HOP_LIMIT, message)
}

/// The ends of a question that goes beyond the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// Our station.
    pub(super) mac: [u8; 6],
    /// That of the next hop.
    pub(super) via: [u8; 6],
}

/// An echo request in an IP packet of so many octets (at least 64, at most 65,535), which may not be fragmented.
pub(super) fn echo(way: Way, from: IpAddr, to: IpAddr, id: u16, octets: u32) -> Vec<u8> {
    let (kind, protocol, header) = match to {
        IpAddr::V4(_) => (ECHO_V4, PROTOCOL_ICMP, IPV4_LEN),
        IpAddr::V6(_) => (ECHO_V6, PROTOCOL_ICMPV6, IPV6_LEN),
    };
    let mut message = vec![kind, 0, 0, 0];
    message.extend(id.to_be_bytes());
    message.extend([0, 1]);
    message.resize((octets as usize).saturating_sub(header).max(ECHO_LEN), b't');
    packet(way.via, way.mac, (from, to), protocol, HOP_LIMIT, message)
}

/// Asks for a connection.
pub(super) fn syn(way: Way, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    tcp(way, from, to, 1, TcpFlags::SYN)
}

/// The same with only the pseudo-header summed, and where the rest of the checksum belongs.
pub(super) fn unfinished_syn(way: Way, from: SocketAddr, to: SocketAddr) -> (Vec<u8>, PartialChecksum) {
    let mut frame = syn(way, from, to);
    let start = frame.len() - TCP_LEN;
    let pseudo = pseudo_header(from.ip(), to.ip(), PROTOCOL_TCP, TCP_LEN as u32);
    frame[start + TCP_CHECKSUM..start + TCP_CHECKSUM + 2].copy_from_slice(&pseudo.to_be_bytes());
    (frame, PartialChecksum { start: start as u16, field: TCP_CHECKSUM as u16 })
}

/// Ends a connection that was accepted with this acknowledgement number.
pub(super) fn reset(way: Way, from: SocketAddr, to: SocketAddr, seq: u32) -> Vec<u8> {
    tcp(way, from, to, seq, TcpFlags::RST)
}

fn tcp(way: Way, from: SocketAddr, to: SocketAddr, seq: u32, flags: TcpFlags) -> Vec<u8> {
    let mut segment = Vec::with_capacity(TCP_LEN);
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(seq.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend([(TCP_LEN as u8 / 4) << 4, flags.0]);
    segment.extend(WINDOW.to_be_bytes());
    segment.extend([0; 4]);
    packet(way.via, way.mac, (from.ip(), to.ip()), PROTOCOL_TCP, HOP_LIMIT, segment)
}

fn ethernet(to: [u8; 6], from: [u8; 6], ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(64);
    frame.extend(to);
    frame.extend(from);
    frame.extend(ethertype.to_be_bytes());
    frame
}

/// An IP packet that may not be fragmented around `payload`, whose checksum field is 0 and is filled in.
fn packet(
    to: [u8; 6],
    from: [u8; 6],
    ends: (IpAddr, IpAddr),
    protocol: u8,
    hop_limit: u8,
    mut payload: Vec<u8>,
) -> Vec<u8> {
    let length = payload.len() as u16;
    let field = if protocol == PROTOCOL_TCP { TCP_CHECKSUM } else { 2 };
    let mut frame = match ends {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut frame = ethernet(to, from, ETHERTYPE_IPV4);
            frame.extend([0x45, 0]);
            frame.extend((length + IPV4_LEN as u16).to_be_bytes());
            // Identification 0: it is never fragmented (RFC 6864 section 4.1).
            frame.extend([0, 0, 0x40, 0, hop_limit, protocol, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
            let check = checksum::of(&frame[ETHERNET_LEN..]);
            frame[ETHERNET_LEN + 10..ETHERNET_LEN + 12].copy_from_slice(&check.to_be_bytes());
            frame
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut frame = ethernet(to, from, ETHERTYPE_IPV6);
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([protocol, hop_limit]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
            frame
        }
        // Nobody speaks from one family to the other.
        _ => return Vec::new(),
    };
    // That of ICMP for IPv4 has no pseudo-header.
    let pseudo = if protocol == PROTOCOL_ICMP { 0 } else { pseudo_header(ends.0, ends.1, protocol, length.into()) };
    let check = checksum::transport(pseudo, &payload);
    payload[field..field + 2].copy_from_slice(&check.to_be_bytes());
    frame.append(&mut payload);
    frame
}

fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, octets: u32) -> u16 {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            checksum::pseudo_header(&source.octets(), &destination.octets(), protocol, octets)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            checksum::pseudo_header(&source.octets(), &destination.octets(), protocol, octets)
        }
        _ => 0,
    }
}

/// Lets pass what may be an answer: untagged frames that came in, and of those ARP, ICMP, ICMPv6, and TCP to `port` or the port after it.
pub(super) fn answers_only(port: u16) -> [Instruction; 25] {
    const LOAD_WORD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_HALF_AT_X: u16 = 0x48;
    const LOAD_X_HEADER: u16 = 0xb1;
    const IF_EQUAL: u16 = 0x15;
    const IF_SET: u16 = 0x45;
    const IF_LARGER: u16 = 0x25;
    const IF_NOT_SMALLER: u16 = 0x35;
    const RETURN: u16 = 0x06;
    /// Of what the kernel knows beside the bytes (linux/filter.h).
    const PACKET_TYPE: u32 = 0xffff_f000 + 4;
    const TAG_PRESENT: u32 = 0xffff_f000 + 48;
    const OUTGOING: u32 = 4;
    // Jumps count from the next instruction.
    let to = |at: u8, target: u8| target - at - 1;
    let (v6, yes, no) = (17, 23, 24);
    let last = u32::from(port) + 1;
    [
        (LOAD_WORD, 0, 0, PACKET_TYPE),
        (IF_EQUAL, to(1, no), 0, OUTGOING),
        (LOAD_WORD, 0, 0, TAG_PRESENT),
        (IF_EQUAL, 0, to(3, no), 0),
        (LOAD_HALF, 0, 0, 12),
        (IF_EQUAL, to(5, yes), 0, ETHERTYPE_ARP as u32),
        (IF_EQUAL, to(6, 8), 0, ETHERTYPE_IPV4 as u32),
        (IF_EQUAL, to(7, v6), to(7, no), ETHERTYPE_IPV6 as u32),
        (LOAD_BYTE, 0, 0, 23),
        (IF_EQUAL, to(9, yes), 0, PROTOCOL_ICMP as u32),
        (IF_EQUAL, 0, to(10, no), PROTOCOL_TCP as u32),
        (LOAD_HALF, 0, 0, 20),
        (IF_SET, to(12, no), 0, 0x1fff),
        (LOAD_X_HEADER, 0, 0, 14),
        (LOAD_HALF_AT_X, 0, 0, 16),
        (IF_NOT_SMALLER, 0, to(15, no), port as u32),
        (IF_LARGER, to(16, no), to(16, yes), last),
        (LOAD_BYTE, 0, 0, 20),
        (IF_EQUAL, to(18, yes), 0, PROTOCOL_ICMPV6 as u32),
        (IF_EQUAL, 0, to(19, no), PROTOCOL_TCP as u32),
        (LOAD_HALF, 0, 0, 56),
        (IF_NOT_SMALLER, 0, to(21, no), port as u32),
        (IF_LARGER, to(22, no), to(22, yes), last),
        (RETURN, 0, 0, u32::MAX),
        (RETURN, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use towpath_core::packet::{ArpOperation, PROTOCOL_UDP};

    use super::*;

    const WAY: Way = Way { mac: [2, 0, 0, 0, 0, 1], via: [2, 0, 0, 0, 0, 2] };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn questions_are_read_as_what_they_ask() {
        for (source, target) in [("192.0.2.1", "192.0.2.7"), ("0.0.0.0", "192.0.2.7")] {
            let Ok(Packet::Arp(arp)) = parse(&question(WAY.mac, ip(source), ip(target))) else { panic!("no ARP") };
            assert_eq!((arp.operation, IpAddr::from(arp.sender)), (ArpOperation::Request, ip(source)));
            assert_eq!((IpAddr::from(arp.target), arp.sender_mac.0), (ip(target), WAY.mac));
        }
        for source in ["2001:db8::1", "::"] {
            // `parse` refuses a wrong checksum, hop limit or option.
            let Ok(Packet::Nd(nd)) = parse(&question(WAY.mac, ip(source), ip("2001:db8::7"))) else { panic!("no ND") };
            assert_eq!((nd.kind, IpAddr::from(nd.target)), (NdKind::Solicitation, ip("2001:db8::7")));
            assert_eq!(nd.link_layer.is_some(), source != "::");
        }
        assert_eq!(question(WAY.mac, ip("192.0.2.1"), ip("2001:db8::7")), Vec::<u8>::new());
    }

    #[test]
    fn echoes_have_the_size_that_is_asked_for_and_answers_are_known_by_it() {
        for (from, to) in [("192.0.2.1", "192.0.2.7"), ("2001:db8::1", "2001:db8::7")] {
            for octets in [64, 1500, 9000] {
                let mut frame = echo(WAY, ip(from), ip(to), 7, octets);
                assert_eq!(frame.len() as u32, octets + 14);
                let Ok(Packet::Echo(parsed)) = parse(&frame) else { panic!("no echo: {:?}", parse(&frame)) };
                assert!(parsed.dont_fragment && parsed.total_len() == octets);
                // The answer is the same with another type; nobody verifies a checksum of what is only looked at.
                frame[if to.contains('.') { 34 } else { 54 }] = if to.contains('.') { 0 } else { 129 };
                assert_eq!(Seen::of(&frame), Some(Seen::Echo { from: ip(from), to: ip(to), id: 7, octets }));
            }
        }
    }

    #[test]
    fn segments_are_told_apart() {
        for (from, to) in [("192.0.2.1:7", "192.0.2.7:443"), ("[2001:db8::1]:7", "[2001:db8::7]:443")] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let frame = syn(WAY, from, to);
            let Ok(Packet::Transport(parsed)) = parse(&frame) else { panic!("no TCP") };
            let segment = &frame[usize::from(parsed.l4)..];
            let pseudo = pseudo_header(from.ip(), to.ip(), PROTOCOL_TCP, segment.len() as u32);
            assert!(checksum::is_valid(pseudo, segment));
            assert_eq!(Seen::of(&frame), Some(Seen::Segment { from, to, accepts: None }));
            // Finished as a device does it, the other one is the same.
            let (mut unfinished, PartialChecksum { start, field }) = unfinished_syn(WAY, from, to);
            let check = checksum::of(&unfinished[start.into()..]);
            let place = usize::from(start + field);
            unfinished[place..place + 2].copy_from_slice(&check.to_be_bytes());
            assert_eq!(unfinished, frame);
            let mut accepted = frame;
            accepted[usize::from(parsed.l4) + 13] = TcpFlags::SYN.0 | TcpFlags::ACK.0;
            accepted[usize::from(parsed.l4) + 11] = 9;
            assert_eq!(Seen::of(&accepted), Some(Seen::Segment { from, to, accepts: Some(9) }));
        }
    }

    /// Carries out the few instructions that the program is made of; what the kernel knows is `(packet type, tag)`.
    fn passes(program: &[Instruction], frame: &[u8], known: (u32, u32)) -> bool {
        let (mut at, mut a, mut x) = (0, 0u32, 0usize);
        loop {
            let (code, yes, no, k) = program[at];
            at += 1;
            let byte = |place: usize| frame.get(place).copied().map(u32::from);
            let half = |place: usize| Some(byte(place)? << 8 | byte(place + 1)?);
            let loaded = match code {
                0x20 if k == 0xffff_f004 => Some(known.0),
                0x20 if k == 0xffff_f030 => Some(known.1),
                0x28 => half(k as usize),
                0x30 => byte(k as usize),
                0x48 => half(k as usize + x),
                0xb1 => {
                    x = byte(k as usize).map_or(0, |byte| byte as usize & 15) * 4;
                    Some(a)
                }
                0x15 | 0x25 | 0x35 | 0x45 => {
                    let holds = match code {
                        0x15 => a == k,
                        0x25 => a > k,
                        0x35 => a >= k,
                        _ => a & k != 0,
                    };
                    at += usize::from(if holds { yes } else { no });
                    Some(a)
                }
                0x06 => return k != 0,
                other => panic!("instruction {other:#x}"),
            };
            // A load beyond the end drops the frame.
            let Some(loaded) = loaded else { return false };
            a = loaded;
        }
    }

    #[test]
    fn the_filter_lets_answers_pass_and_nothing_else() {
        let program = answers_only(7);
        let socket = |text: &str| text.parse::<SocketAddr>().unwrap();
        let answers = [
            question(WAY.mac, ip("0.0.0.0"), ip("192.0.2.7")),
            question(WAY.mac, ip("::"), ip("2001:db8::7")),
            echo(WAY, ip("192.0.2.1"), ip("192.0.2.7"), 7, 64),
            echo(WAY, ip("2001:db8::1"), ip("2001:db8::7"), 7, 64),
            syn(WAY, socket("192.0.2.1:443"), socket("192.0.2.7:7")),
            syn(WAY, socket("[2001:db8::1]:443"), socket("[2001:db8::7]:7")),
            syn(WAY, socket("192.0.2.1:443"), socket("192.0.2.7:8")),
            syn(WAY, socket("[2001:db8::1]:443"), socket("[2001:db8::7]:8")),
        ];
        for frame in &answers {
            assert!(passes(&program, frame, (0, 0)), "{frame:02x?}");
            assert!(!passes(&program, frame, (4, 0)), "what we send");
            assert!(!passes(&program, frame, (0, 1)), "of another network");
        }
        let mut datagram = answers[4].clone();
        datagram[23] = PROTOCOL_UDP;
        let mut fragment = answers[4].clone();
        fragment[21] = 1;
        let others = [
            syn(WAY, socket("192.0.2.1:443"), socket("192.0.2.7:6")),
            syn(WAY, socket("192.0.2.1:443"), socket("192.0.2.7:9")),
            syn(WAY, socket("[2001:db8::1]:443"), socket("[2001:db8::7]:6")),
            syn(WAY, socket("[2001:db8::1]:443"), socket("[2001:db8::7]:9")),
            datagram,
            fragment,
            ethernet([0xff; 6], WAY.mac, 0x88cc),
            vec![0; 13],
        ];
        for frame in &others {
            assert!(!passes(&program, frame, (0, 0)), "{frame:02x?}");
        }
    }

    #[test]
    fn what_is_no_answer_says_nothing() {
        assert_eq!(Seen::of(&question(WAY.mac, ip("0.0.0.0"), ip("192.0.2.7"))), None);
        let asks = Seen::Station { ip: ip("192.0.2.1"), mac: WAY.mac };
        assert_eq!(Seen::of(&question(WAY.mac, ip("192.0.2.1"), ip("192.0.2.7"))), Some(asks));
        assert_eq!(Seen::of(&[]), None);
    }
}
