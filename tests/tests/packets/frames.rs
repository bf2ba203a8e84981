//! Frames, written down as `tcpdump` shows them and made by a crate that shares no code with Towpath.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Icmpv4Type, Icmpv6Type, IpHeaders, IpNumber, Ipv4Header,
    Ipv4Options, Ipv6Header, NetHeaders, PacketBuilder, PacketHeaders, TcpHeader, TransportHeader, UdpHeader, icmpv4,
    icmpv6,
};

const TTL: u8 = 64;

/// Hop limit of neighbour messages (RFC 4861 section 7.1).
const ND_HOP_LIMIT: u8 = 255;

/// An address and port.
pub(crate) fn end(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}

/// A TCP segment, by the letters of `tcpdump`: `S`, `F`, `R`, `P`, and `.` for ACK. With `S`, it offers 1460 octets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tcp<'a> {
    pub(crate) flags: &'a str,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) data: &'a [u8],
}

/// A segment without data.
pub(crate) fn bare(flags: &str, seq: u32, ack: u32) -> Tcp<'_> {
    Tcp { flags, seq, ack, data: b"" }
}

/// A segment with data.
pub(crate) fn data(seq: u32, ack: u32, data: &[u8]) -> Tcp<'_> {
    Tcp { flags: "P.", seq, ack, data }
}

/// An IP packet with a TCP segment.
pub(crate) fn tcp(from: SocketAddr, to: SocketAddr, segment: Tcp<'_>) -> Vec<u8> {
    tcp_with_options(from, to, &[], segment)
}

/// The same with IPv4 options, a multiple of four octets.
pub(crate) fn tcp_with_options(from: SocketAddr, to: SocketAddr, options: &[u8], segment: Tcp<'_>) -> Vec<u8> {
    let Tcp { flags, seq, ack, data } = segment;
    let mut header = TcpHeader::new(from.port(), to.port(), seq, 65_535);
    header.acknowledgment_number = ack;
    header.syn = flags.contains('S');
    header.fin = flags.contains('F');
    header.rst = flags.contains('R');
    header.psh = flags.contains('P');
    header.ack = flags.contains('.');
    if header.syn {
        header.set_options_raw(&[2, 4, 0x05, 0xb4]).expect("four octets");
    }
    let mut packet = Vec::new();
    let builder = PacketBuilder::ip(ip_header(from.ip(), to.ip(), TTL, options));
    builder.tcp_header(header).write(&mut packet, data).expect("a packet of a segment");
    packet
}

/// An IP packet with a UDP datagram.
pub(crate) fn udp(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ip(ip_header(from.ip(), to.ip(), TTL, &[]));
    builder.udp(from.port(), to.port()).write(&mut packet, data).expect("a packet of a datagram");
    packet
}

/// A ping.
pub(crate) fn ping(from: &str, to: &str, data: &[u8]) -> Vec<u8> {
    let (from, to): (IpAddr, IpAddr) = (from.parse().expect("an address"), to.parse().expect("an address"));
    let mut packet = Vec::new();
    let builder = PacketBuilder::ip(ip_header(from, to, TTL, &[]));
    match from {
        IpAddr::V4(_) => builder.icmpv4_echo_request(7, 1).write(&mut packet, data),
        IpAddr::V6(_) => builder.icmpv6_echo_request(7, 1).write(&mut packet, data),
    }
    .expect("a packet of a ping");
    packet
}

/// The reply to a ping with this identifier.
pub(crate) fn pong(from: &str, to: &str, identifier: u16, data: &[u8]) -> Vec<u8> {
    let (from, to): (IpAddr, IpAddr) = (from.parse().expect("an address"), to.parse().expect("an address"));
    let mut packet = Vec::new();
    let builder = PacketBuilder::ip(ip_header(from, to, TTL, &[]));
    match from {
        IpAddr::V4(_) => builder.icmpv4_echo_reply(identifier, 1).write(&mut packet, data),
        IpAddr::V6(_) => builder.icmpv6_echo_reply(identifier, 1).write(&mut packet, data),
    }
    .expect("a packet of a reply");
    packet
}

/// An ICMP error about `quoted`, which its sender is told with the MTU ahead.
pub(crate) fn too_big(from: &str, mtu: u16, quoted: &[u8]) -> Vec<u8> {
    let from: IpAddr = from.parse().expect("an address");
    let mut packet = Vec::new();
    match from {
        IpAddr::V4(_) => {
            let to: [u8; 4] = quoted[12..16].try_into().expect("four octets");
            let error = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu: mtu,
            });
            let builder = PacketBuilder::ip(ip_header(from, to.into(), TTL, &[]));
            builder.icmpv4(error).write(&mut packet, quoted)
        }
        IpAddr::V6(_) => {
            let to: [u8; 16] = quoted[8..24].try_into().expect("sixteen octets");
            let builder = PacketBuilder::ip(ip_header(from, to.into(), TTL, &[]));
            builder.icmpv6(Icmpv6Type::PacketTooBig { mtu: mtu.into() }).write(&mut packet, quoted)
        }
    }
    .expect("a packet of an error");
    packet
}

/// An ICMP error of any type and code about `quoted`, whose sender is told; `rest` is the second word of its header.
pub(crate) fn icmp_error(from: &str, kind: u8, code: u8, rest: [u8; 4], quoted: &[u8]) -> Vec<u8> {
    let from: IpAddr = from.parse().expect("an address");
    let to: IpAddr = match from {
        IpAddr::V4(_) => <[u8; 4]>::try_from(&quoted[12..16]).expect("four octets").into(),
        IpAddr::V6(_) => <[u8; 16]>::try_from(&quoted[8..24]).expect("sixteen octets").into(),
    };
    let builder = PacketBuilder::ip(ip_header(from, to, TTL, &[]));
    let mut packet = Vec::new();
    match from {
        IpAddr::V4(_) => builder.icmpv4_raw(kind, code, rest).write(&mut packet, quoted),
        IpAddr::V6(_) => builder.icmpv6_raw(kind, code, rest).write(&mut packet, quoted),
    }
    .expect("a packet of an error");
    packet
}

/// The same packet with this time to live or hop limit.
pub(crate) fn with_ttl(mut packet: Vec<u8>, ttl: u8) -> Vec<u8> {
    if packet[0] >> 4 == 6 {
        packet[7] = ttl;
        return packet;
    }
    packet[8] = ttl;
    with_header_checksum(packet)
}

/// The same IPv4 packet, which routers may cut, with an identification.
pub(crate) fn uncut(mut packet: Vec<u8>, id: u16) -> Vec<u8> {
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].fill(0);
    with_header_checksum(packet)
}

/// The same IPv6 packet with extension headers, whose octets are given, `first` being the kind of the first of them. They name what follows each.
pub(crate) fn extended(packet: &[u8], first: u8, headers: &[u8]) -> Vec<u8> {
    let mut extended = [&packet[..40], headers, &packet[40..]].concat();
    extended[6] = first;
    let length = (extended.len() - 40) as u16;
    extended[4..6].copy_from_slice(&length.to_be_bytes());
    extended
}

/// The fragments of a packet without options or extension headers, with so many octets of data each, a multiple of 8.
pub(crate) fn fragments(packet: &[u8], id: u32, data_max: usize) -> Vec<Vec<u8>> {
    let headers_len = if packet[0] >> 4 == 6 { 40 } else { 20 };
    let (headers, data) = packet.split_at(headers_len);
    let count = data.len().div_ceil(data_max);
    let cut = |(number, part): (usize, &[u8])| {
        let (offset, more) = ((number * data_max) as u16, number + 1 < count);
        if headers_len == 20 {
            let mut fragment = uncut([headers, part].concat(), id as u16);
            fragment[2..4].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
            fragment[6..8].copy_from_slice(&((offset / 8) | if more { 0x2000 } else { 0 }).to_be_bytes());
            return with_header_checksum(fragment);
        }
        let place = (offset | u16::from(more)).to_be_bytes();
        let header = [&[headers[6], 0], &place[..], &id.to_be_bytes()].concat();
        extended(&[headers, part].concat(), 44, &header)
    };
    data.chunks(data_max).enumerate().map(cut).collect()
}

/// What fragments of one packet have in common, and where the one in this frame belongs: offset and whether it is the last. `None` for other frames.
pub(crate) fn place(frame: &[u8]) -> Option<(Vec<u8>, u16, bool)> {
    let packet = frame.get(14..)?;
    match frame.get(12..14)? {
        [0x08, 0x00] => {
            let field = u16::from_be_bytes([packet[6], packet[7]]);
            let common = [&packet[4..6], &packet[9..10], &packet[12..20]].concat();
            (field & 0x3fff != 0).then_some((common, (field & 0x1fff) * 8, field & 0x2000 == 0))
        }
        [0x86, 0xdd] => {
            let (header, _) = fragment_header(packet)?;
            let field = u16::from_be_bytes([packet[header + 2], packet[header + 3]]);
            let common = [&packet[8..40], &packet[header..=header], &packet[header + 4..header + 8]].concat();
            (field & 0xfff9 != 0).then_some((common, field & 0xfff8, field & 1 == 0))
        }
        _ => None,
    }
}

/// Where an IPv6 packet has its fragment header, and where it says so.
fn fragment_header(packet: &[u8]) -> Option<(usize, usize)> {
    let (mut header, mut named) = (40, 6);
    while packet[named] != 44 {
        if !matches!(packet[named], 0 | 43 | 60) {
            return None;
        }
        (header, named) = (header + 8 * (usize::from(packet[header + 1]) + 1), header);
    }
    Some((header, named))
}

/// The frame of the packet that these make, the first of its fragments first, the last one last.
///
/// # Errors
/// One is missing between two others.
pub(crate) fn joined(frames: &[&[u8]]) -> Result<Vec<u8>, String> {
    let is_v4 = frames[0][12..14] == [0x08, 0x00];
    let (header, named) = if is_v4 { (20, 0) } else { fragment_header(&frames[0][14..]).ok_or("no fragment")? };
    let headers_len = 14 + header + if is_v4 { 0 } else { 8 };
    let mut whole = frames[0][..14 + header].to_vec();
    let mut data: Vec<u8> = Vec::new();
    for frame in frames {
        let (_, offset, _) = place(frame).ok_or("no fragment")?;
        if usize::from(offset) != data.len() {
            return Err(format!("the fragment at {offset} follows {} octets", data.len()));
        }
        data.extend(&frame[headers_len..]);
    }
    if is_v4 {
        whole[16..18].copy_from_slice(&(20 + data.len() as u16).to_be_bytes());
        whole[20..22].fill(0);
        let packet = with_header_checksum(whole.split_off(14));
        whole.extend(packet);
    } else {
        whole[14 + named] = frames[0][14 + header];
        whole[18..20].copy_from_slice(&((header - 40 + data.len()) as u16).to_be_bytes());
    }
    whole.extend(data);
    Ok(whole)
}

/// A frame that asks who has `target`.
pub(crate) fn arp_request(from_mac: [u8; 6], from: &str, target: &str) -> Vec<u8> {
    let address = |text: &str| text.parse::<Ipv4Addr>().expect("an IPv4 address").octets();
    let request = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &from_mac,
        &address(from),
        &[0; 6],
        &address(target),
    );
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(from_mac, [0xff; 6]);
    builder.arp(request.expect("lengths of Ethernet and IPv4")).write(&mut frame).expect("a frame of a question");
    frame
}

/// A frame that asks who has `target`, sent to the group of those who may (RFC 4861 section 7.2.2).
pub(crate) fn nd_solicitation(from_mac: [u8; 6], from: &str, target: &str, hop_limit: u8) -> Vec<u8> {
    let from: Ipv6Addr = from.parse().expect("an IPv6 address");
    let target: [u8; 16] = target.parse::<Ipv6Addr>().expect("an IPv6 address").octets();
    let [.., x, y, z] = target;
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z]);
    let message = [&target[..], &[1, 1], &from_mac].concat();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(from_mac, [0x33, 0x33, 0xff, x, y, z])
        .ip(ip_header(from.into(), group.into(), hop_limit, &[]))
        .icmpv6_raw(icmpv6::TYPE_NEIGHBOR_SOLICITATION, 0, [0; 4])
        .write(&mut frame, &message)
        .expect("a frame of a question");
    frame
}

/// The same with the hop limit that it must have.
pub(crate) fn nd_question(from_mac: [u8; 6], from: &str, target: &str) -> Vec<u8> {
    nd_solicitation(from_mac, from, target, ND_HOP_LIMIT)
}

/// An IP packet in a frame.
pub(crate) fn framed(to_mac: [u8; 6], from_mac: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let ether_type: [u8; 2] = match packet.first().map(|first| first >> 4) {
        Some(6) => [0x86, 0xdd],
        _ => [0x08, 0x00],
    };
    [&to_mac[..], &from_mac, &ether_type, packet].concat()
}

/// Writes the checksum of an IPv4 header anew, after a lie that is to be believed so far.
pub(crate) fn with_header_checksum(mut packet: Vec<u8>) -> Vec<u8> {
    packet[10..12].fill(0);
    let sum = !sum_of_words(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn ip_header(from: IpAddr, to: IpAddr, ttl: u8, options: &[u8]) -> IpHeaders {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = Ipv4Header::new(0, ttl, IpNumber::TCP, from.octets(), to.octets()).expect("no payload");
            header.options = Ipv4Options::try_from(options).expect("options of an IPv4 header");
            IpHeaders::Ipv4(header, Default::default())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header =
                Ipv6Header { hop_limit: ttl, source: from.octets(), destination: to.octets(), ..Ipv6Header::default() };
            IpHeaders::Ipv6(header, Default::default())
        }
        (from, to) => panic!("a packet from {from} to {to}"),
    }
}

/// The same packet with its TCP or UDP checksum left to the device: the field holds the sum of the pseudo-header, not complemented
/// (`tcp_v4_send_check`, `udp4_hwcsum` in the kernel).
pub(crate) fn left_to_the_device(mut packet: Vec<u8>) -> Vec<u8> {
    let (start, protocol, sum) = pseudo_header(&packet);
    let at = start + if protocol == IpNumber::TCP.0 { 16 } else { 6 };
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Where the transport header of an IP packet without extension headers begins, its protocol, and the sum of its pseudo-header (RFC 9293 section
/// 3.1, RFC 8200 section 8.1).
fn pseudo_header(packet: &[u8]) -> (usize, u8, u16) {
    let (start, protocol, addresses) = match packet[0] >> 4 {
        4 => (usize::from(packet[0] & 15) * 4, packet[9], &packet[12..20]),
        _ => (40, packet[6], &packet[8..40]),
    };
    let length = (packet.len() - start) as u32;
    let fields = [addresses, &length.to_be_bytes(), &[0, protocol]].concat();
    (start, protocol, sum_of_words(&fields))
}

/// The sum of RFC 1071, not complemented.
fn sum_of_words(octets: &[u8]) -> u16 {
    let sum: u32 = octets.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    ((folded & 0xffff) + (folded >> 16)) as u16
}

/// Whether it is a frame by which a bridge notices that it leads back to itself (IEEE 802 local experimental EtherType 1).
pub(crate) fn is_probe(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x88, 0xb5])
}

/// Whether all checksums of a frame are right; `partial`: that of TCP or UDP is left to the device.
///
/// # Errors
/// Which is not, or that it cannot be read.
pub(crate) fn verify_checksums(frame: &[u8], partial: bool) -> Result<(), String> {
    let headers = PacketHeaders::from_ethernet_slice(frame).map_err(|error| error.to_string())?;
    let payload = headers.payload.slice();
    let expect = |what: &str, found: u16, expected: u16| match found == expected {
        true => Ok(()),
        false => Err(format!("the {what} checksum is {found:#06x} instead of {expected:#06x}")),
    };
    let too_long = |_| "it is too long".to_owned();
    let start = if frame[12..14] == [0x81, 0] { 18 } else { 14 };
    let whole = |made: u16| if partial { pseudo_header(&frame[start..]).2 } else { made };
    match (&headers.net, &headers.transport) {
        (Some(NetHeaders::Ipv4(ip, _)), transport) => {
            expect("IPv4", ip.header_checksum, ip.calc_header_checksum())?;
            match transport {
                Some(TransportHeader::Tcp(tcp)) => {
                    expect("TCP", tcp.checksum, whole(tcp.calc_checksum_ipv4(ip, payload).map_err(too_long)?))
                }
                // None was sent (RFC 768).
                Some(TransportHeader::Udp(UdpHeader { checksum: 0, .. })) => Ok(()),
                Some(TransportHeader::Udp(udp)) => {
                    let made = UdpHeader::with_ipv4_checksum(udp.source_port, udp.destination_port, ip, payload);
                    expect("UDP", udp.checksum, whole(made.map_err(too_long)?.checksum))
                }
                Some(TransportHeader::Icmpv4(icmp)) => {
                    expect("ICMP", icmp.checksum, icmp.icmp_type.calc_checksum(payload))
                }
                _ => Err("it is of no protocol that is known here".into()),
            }
        }
        (Some(NetHeaders::Ipv6(ip, _)), transport) => match transport {
            Some(TransportHeader::Tcp(tcp)) => {
                expect("TCP", tcp.checksum, whole(tcp.calc_checksum_ipv6(ip, payload).map_err(too_long)?))
            }
            Some(TransportHeader::Udp(udp)) => {
                let made = UdpHeader::with_ipv6_checksum(udp.source_port, udp.destination_port, ip, payload);
                expect("UDP", udp.checksum, whole(made.map_err(too_long)?.checksum))
            }
            Some(TransportHeader::Icmpv6(icmp)) => {
                let made = icmp.icmp_type.calc_checksum(ip.source, ip.destination, payload);
                expect("ICMPv6", icmp.checksum, made.map_err(too_long)?)
            }
            _ => Err("it is of no protocol that is known here".into()),
        },
        (Some(NetHeaders::Arp(_)), _) => Ok(()),
        (None, _) => Err("it is no packet".into()),
    }
}
