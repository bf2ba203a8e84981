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
    fn from(ip: Ip) -> IpAddr {
        Ipv6Addr::from(ip.0).to_canonical()
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
