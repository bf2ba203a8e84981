//! Addresses as the tables key them: one fixed size for both families.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An IP address of either family in 16 octets: IPv4 as `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2).
///
/// [`parse`](super::parse) refuses an IPv6 packet with such an address, so the families never meet under one key.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ip(pub [u8; 16]);

impl Ip {
    /// Whether this is an IPv4 address.
    #[inline]
    pub fn is_v4(self) -> bool {
        u128::from_be_bytes(self.0) >> 32 == 0xffff
    }

    /// The last four octets: the IPv4 address where [`is_v4`](Ip::is_v4) holds.
    #[inline]
    pub fn v4_octets(self) -> [u8; 4] {
        // By arithmetic: taken apart into octets, the compiler keeps an address in pieces.
        (u128::from_be_bytes(self.0) as u32).to_be_bytes()
    }

    /// The 4 or 16 octets that packets carry.
    pub(crate) fn octets(&self) -> &[u8] {
        if self.is_v4() { &self.0[12..] } else { &self.0 }
    }

    /// Whether it means something on one link only: `fe80::/10` or `169.254.0.0/16`.
    pub fn is_link_local(self) -> bool {
        match IpAddr::from(self) {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        }
    }

    /// The first and the last address, as numbers, of its network with a prefix of so many bits: at most 32 for IPv4, 128 for IPv6; more counts as
    /// that.
    pub(crate) fn network(self, prefix: u8) -> (u128, u128) {
        let bits_max: u32 = if self.is_v4() { 32 } else { 128 };
        let host_bits = bits_max.saturating_sub(prefix.into());
        let hosts = u128::MAX.checked_shr(128 - host_bits).unwrap_or(0);
        let bits = u128::from_be_bytes(self.0);
        (bits & !hosts, bits | hosts)
    }
}

impl From<Ipv4Addr> for Ip {
    #[inline]
    fn from(address: Ipv4Addr) -> Ip {
        Ip((0xffff_0000_0000 | u128::from(address.to_bits())).to_be_bytes())
    }
}

impl From<Ipv6Addr> for Ip {
    #[inline]
    fn from(address: Ipv6Addr) -> Ip {
        Ip(address.octets())
    }
}

impl From<IpAddr> for Ip {
    #[inline]
    fn from(address: IpAddr) -> Ip {
        match address {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Ip> for IpAddr {
    #[inline]
    fn from(ip: Ip) -> IpAddr {
        if ip.is_v4() { IpAddr::V4(ip.v4_octets().into()) } else { IpAddr::V6(ip.0.into()) }
    }
}

impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether an IPv4 address is certainly that of a host: of class A to C, neither this network nor loopback.
#[inline]
pub(super) fn is_host_v4(address: u32) -> bool {
    let network = address >> 24;
    (1..224).contains(&network) && network != 127
}

/// A link-layer address of Ethernet.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Every station of the link.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// Whether it names a group of stations (multicast or broadcast), not one (IEEE 802 section 8.2.2).
    #[inline]
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A [`Tuple`] of IPv4 without its protocol: 12 octets as they stand in the headers of a packet, source first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TupleV4 {
    /// Both addresses, the first octet in the lowest bits.
    pub addresses: u64,
    /// Both ports, likewise.
    pub ports: u32,
}

impl TupleV4 {
    /// That of `tuple`; `None` unless both addresses are IPv4.
    #[inline]
    pub fn of(tuple: &Tuple) -> Option<TupleV4> {
        let bits = |ip: Ip| u64::from(u32::from_le_bytes(ip.v4_octets()));
        let is_v4 = tuple.src.is_v4() && tuple.dst.is_v4();
        is_v4.then(|| TupleV4 { addresses: bits(tuple.src) | bits(tuple.dst) << 32, ports: tuple.wire_ports() })
    }

    /// The tuple that it is of.
    #[inline]
    pub fn with_protocol(self, protocol: u8) -> Tuple {
        let [a, b, c, d, e, f, g, h] = self.addresses.to_le_bytes();
        let [s0, s1, d0, d1] = self.ports.to_le_bytes();
        Tuple {
            src: Ipv4Addr::new(a, b, c, d).into(),
            dst: Ipv4Addr::new(e, f, g, h).into(),
            src_port: u16::from_be_bytes([s0, s1]),
            dst_port: u16::from_be_bytes([d0, d1]),
            protocol,
        }
    }

    /// The other direction.
    #[inline]
    #[must_use]
    pub fn reversed(self) -> TupleV4 {
        TupleV4 { addresses: self.addresses.rotate_left(32), ports: self.ports.rotate_left(16) }
    }

    /// Whether [`parse`](super::parse) takes a TCP or UDP packet with this tuple for one between two hosts, without a closer look.
    #[inline]
    pub fn is_between_hosts(self) -> bool {
        let [src, dst] = self.numbers();
        is_host_v4(src) && is_host_v4(dst) && src != dst && self.ports as u16 != 0 && self.ports >> 16 != 0
    }

    /// Source and destination as numbers.
    #[inline]
    pub fn numbers(self) -> [u32; 2] {
        [(self.addresses as u32).swap_bytes(), ((self.addresses >> 32) as u32).swap_bytes()]
    }
}

/// What names one direction of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Source port; 0 where the protocol has none, or where the packet does not show it.
    pub src_port: u16,
    /// Destination port; 0 likewise.
    pub dst_port: u16,
    /// IP protocol number, behind the extension headers of IPv6.
    pub protocol: u8,
}

impl Tuple {
    /// From `source` to `destination`, both of one family.
    pub fn new(source: SocketAddr, destination: SocketAddr, protocol: u8) -> Tuple {
        Tuple {
            src: source.ip().into(),
            dst: destination.ip().into(),
            src_port: source.port(),
            dst_port: destination.port(),
            protocol,
        }
    }

    /// Both ports as [`TupleV4`] has them.
    #[inline]
    pub fn wire_ports(&self) -> u32 {
        u32::from(self.src_port.swap_bytes()) | u32::from(self.dst_port.swap_bytes()) << 16
    }

    /// Source address and port.
    pub fn source(&self) -> SocketAddr {
        SocketAddr::new(self.src.into(), self.src_port)
    }

    /// Destination address and port.
    pub fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.dst.into(), self.dst_port)
    }

    /// The other direction.
    #[inline]
    pub fn reversed(self) -> Tuple {
        let Tuple { src, dst, src_port, dst_port, protocol } = self;
        Tuple { src: dst, dst: src, src_port: dst_port, dst_port: src_port, protocol }
    }
}
