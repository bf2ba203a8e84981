//! Which virtual shard a frame belongs to: the whole definition of steering for the packet plane.
//!
//! | the frame | its virtual shard |
//! |---|---|
//! | TCP or UDP to a port of ours that clients use | that of its source: the client |
//! | TCP or UDP to any other port of an address of ours | that of the port: it is a SNAT port |
//! | TCP or UDP to any other address | that of its destination: the client of a half-NAT flow |
//! | an ICMP error | that of the packet which it quotes, taken the other way |
//! | a fragment | that of what its set has in common |
//! | ARP, neighbour messages, pings, anything else, whatever is cut | 0 |
//!
//! [`fanout_program`](super::program::fanout_program) says the same to the kernel. Checksums, lengths and flags play no part: the plane judges
//! those, whichever worker gets them. What becomes of an IPv6 packet with an IPv4-mapped address, which it refuses, is left open. Virtual
//! shard 0 is always worker 0's.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use super::{finish, mix, mix_address, vshard_of_client, vshard_of_port};
use crate::VShard;
use crate::packet::{
    ETHERNET_LEN, EXTENSIONS_MAX, FragmentKey, Ip, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Tuple,
};

/// One address of ours: where on it clients arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FanoutRule {
    /// The VIP or SNAT address.
    pub address: Ip,
    /// Destination ports that clients use, ascending and apart; the others are SNAT ports.
    client_ports: Vec<RangeInclusive<u16>>,
}

impl FanoutRule {
    /// An address that only clients send to.
    pub fn vip(address: Ip) -> FanoutRule {
        FanoutRule { address, client_ports: vec![0..=u16::MAX] }
    }

    /// An address that only real servers send to.
    pub fn snat(address: Ip) -> FanoutRule {
        FanoutRule { address, client_ports: Vec::new() }
    }

    /// A VIP that is a SNAT address too: clients use `ports`, in any order, those of all its services.
    pub fn shared(address: Ip, ports: impl IntoIterator<Item = u16>) -> FanoutRule {
        let mut ports: Vec<u16> = ports.into_iter().collect();
        ports.sort_unstable();
        ports.dedup();
        let mut client_ports: Vec<RangeInclusive<u16>> = Vec::new();
        for port in ports {
            match client_ports.last_mut() {
                Some(range) if u32::from(*range.end()) + 1 == u32::from(port) => *range = *range.start()..=port,
                _ => client_ports.push(port..=port),
            }
        }
        FanoutRule { address, client_ports }
    }

    /// Destination ports that clients use, ascending and apart.
    pub fn client_ports(&self) -> &[RangeInclusive<u16>] {
        &self.client_ports
    }

    fn is_client_port(&self, port: u16) -> bool {
        self.client_ports.iter().any(|range| range.contains(&port))
    }
}

/// The virtual shard of a frame, which begins with its Ethernet header. Where `ours` has an address twice, the first one counts.
pub fn steer(frame: &[u8], seed: u32, ours: &[FanoutRule]) -> VShard {
    match read(frame) {
        Some(Seen::Fragment(key)) => vshard_of_fragment(&key, seed),
        Some(Seen::Tuple(tuple)) => vshard_of_tuple(&tuple, seed, ours),
        None => VShard(0),
    }
}

/// The virtual shard of a TCP or UDP packet with this tuple.
pub fn vshard_of_tuple(tuple: &Tuple, seed: u32, ours: &[FanoutRule]) -> VShard {
    match ours.iter().find(|rule| rule.address == tuple.dst) {
        Some(rule) if rule.is_client_port(tuple.dst_port) => vshard_of_client(tuple.src.into(), tuple.src_port, seed),
        Some(_) => vshard_of_port(tuple.dst_port),
        None => vshard_of_client(tuple.dst.into(), tuple.dst_port, seed),
    }
}

/// The virtual shard that the fragments of one packet meet in.
pub fn vshard_of_fragment(key: &FragmentKey, seed: u32) -> VShard {
    let hash = mix(mix(seed, key.protocol.into()), key.id);
    let hash = mix_address(mix_address(hash, key.src.into()), key.dst.into());
    VShard(finish(hash) as u8)
}

/// What steering sees in a frame.
enum Seen {
    Fragment(FragmentKey),
    /// Of a TCP or UDP packet, or of one that an ICMP error quotes, taken the other way.
    Tuple(Tuple),
}

fn read(frame: &[u8]) -> Option<Seen> {
    let (ethernet, packet) = frame.split_at_checked(ETHERNET_LEN)?;
    match ethernet.get(12..)? {
        [0x08, 0x00] => read_ipv4(packet),
        [0x86, 0xdd] => read_ipv6(packet),
        _ => None,
    }
}

fn read_ipv4(packet: &[u8]) -> Option<Seen> {
    let (src, dst) = ipv4_addresses(packet)?;
    let protocol = *packet.get(9)?;
    if half(packet, 6)? & 0x3fff != 0 {
        let id = half(packet, 4)?.into();
        return Some(Seen::Fragment(FragmentKey { src, dst, id, protocol }));
    }
    let l4 = header_len(packet)?;
    if protocol != PROTOCOL_ICMP {
        return ports(packet, l4, Tuple { src, dst, protocol, ..Tuple::default() });
    }
    // Unreachable, time exceeded, parameter problem.
    let (3 | 11 | 12) = *packet.get(l4)? else { return None };
    let quoted = packet.get(l4 + 8..)?;
    let (src, dst) = ipv4_addresses(quoted)?;
    let protocol = *quoted.get(9)?;
    if half(quoted, 6)? & 0x1fff != 0 {
        return None;
    }
    quoted_ports(quoted, header_len(quoted)?, Tuple { src, dst, protocol, ..Tuple::default() })
}

fn read_ipv6(packet: &[u8]) -> Option<Seen> {
    let (src, dst) = ipv6_addresses(packet)?;
    let chain = chain(packet)?;
    if let Some(id) = chain.fragment {
        return Some(Seen::Fragment(FragmentKey { src, dst, id, protocol: chain.protocol }));
    }
    let (protocol, l4) = (chain.protocol, chain.l4);
    if protocol != PROTOCOL_ICMPV6 {
        return ports(packet, l4, Tuple { src, dst, protocol, ..Tuple::default() });
    }
    // Unreachable, packet too big, time exceeded, parameter problem.
    let 1..=4 = *packet.get(l4)? else { return None };
    let quoted = packet.get(l4 + 8..)?;
    let (src, dst) = ipv6_addresses(quoted)?;
    let chain = self::chain(quoted)?;
    if chain.fragment.is_some() {
        return None;
    }
    quoted_ports(quoted, chain.l4, Tuple { src, dst, protocol: chain.protocol, ..Tuple::default() })
}

struct Chain {
    protocol: u8,
    l4: usize,
    /// The identification of a packet in more than one fragment; `protocol` is then what its fragment header names.
    fragment: Option<u32>,
}

/// Passes over extension headers: hop-by-hop, routing, destination options, and the fragment header of a packet in one fragment. As many as
/// the plane reads: whoever sends one more cannot have the packet handed from worker to worker.
fn chain(packet: &[u8]) -> Option<Chain> {
    let (mut protocol, mut l4) = (*packet.get(6)?, 40);
    for _ in 0..EXTENSIONS_MAX {
        let next = match protocol {
            0 | 43 | 60 => {
                let length = usize::from(*packet.get(l4 + 1)?);
                let next = *packet.get(l4)?;
                l4 += 8 * (length + 1);
                next
            }
            44 => {
                let next = *packet.get(l4)?;
                if half(packet, l4 + 2)? & 0xfff9 != 0 {
                    let id = u32::from_be_bytes(*packet.get(l4 + 4..)?.first_chunk()?);
                    return Some(Chain { protocol: next, l4, fragment: Some(id) });
                }
                l4 += 8;
                next
            }
            _ => break,
        };
        protocol = next;
    }
    Some(Chain { protocol, l4, fragment: None })
}

/// `tuple` with the ports at `l4`, if it is one of TCP or UDP.
fn ports(packet: &[u8], l4: usize, tuple: Tuple) -> Option<Seen> {
    if !matches!(tuple.protocol, PROTOCOL_TCP | PROTOCOL_UDP) {
        return None;
    }
    let (src_port, dst_port) = (half(packet, l4)?, half(packet, l4 + 2)?);
    Some(Seen::Tuple(Tuple { src_port, dst_port, ..tuple }))
}

/// As [`ports`], of a packet that went the other way.
fn quoted_ports(packet: &[u8], l4: usize, tuple: Tuple) -> Option<Seen> {
    match ports(packet, l4, tuple)? {
        Seen::Tuple(tuple) => Some(Seen::Tuple(tuple.reversed())),
        fragment => Some(fragment),
    }
}

fn header_len(packet: &[u8]) -> Option<usize> {
    Some(usize::from(*packet.first()? & 0x0f) * 4)
}

fn half(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*packet.get(at..)?.first_chunk()?))
}

fn ipv4_addresses(packet: &[u8]) -> Option<(Ip, Ip)> {
    let (addresses, _) = packet.get(12..)?.first_chunk::<8>()?.as_chunks::<4>();
    let [src, dst] = *addresses else { return None };
    Some((Ipv4Addr::from(src).into(), Ipv4Addr::from(dst).into()))
}

fn ipv6_addresses(packet: &[u8]) -> Option<(Ip, Ip)> {
    let (addresses, _) = packet.get(8..)?.first_chunk::<32>()?.as_chunks::<16>();
    let [src, dst] = *addresses else { return None };
    Some((Ip(src), Ip(dst)))
}
