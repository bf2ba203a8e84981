//! Clients that no kernel carries: more addresses than a host has, each with a number from which everything about it follows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use towpath_core::flow::Direction;
use towpath_core::packet::{Family, Ip};

/// The IPv4 clients' network, all of it theirs.
pub const NETWORK_V4: (IpAddr, u8) = (IpAddr::V4(Ipv4Addr::from_bits(NETWORK_V4_BITS)), 12);

/// The IPv6 clients' network.
pub const NETWORK_V6: (IpAddr, u8) = (IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 0)), 32);

/// 172.16.0.0.
const NETWORK_V4_BITS: u32 = 0xac10_0000;

/// Clients with one port; when their addresses are used up, the next port follows.
const ADDRESS_BITS: u32 = 20;
const PORT_FIRST: u16 = 1024;

/// Client `number`: of 16 million, no two are the same.
pub fn client(family: Family, number: usize) -> SocketAddr {
    let low = (number & ((1 << ADDRESS_BITS) - 1)) as u32;
    let ip = match family {
        Family::V4 => IpAddr::from(Ipv4Addr::from_bits(NETWORK_V4_BITS | low)),
        // A network each: caps per source count these.
        Family::V6 => Ipv6Addr::new(0xfd99, 0, (low >> 16) as u16, low as u16, 0, 0, 0, 1).into(),
    };
    SocketAddr::new(ip, PORT_FIRST + (number >> ADDRESS_BITS) as u16)
}

/// The number of an IPv4 client; `None` when it is none of them.
pub fn number_v4(ip: Ip, port: u16) -> Option<usize> {
    let bits = u32::from_be_bytes(ip.v4_octets());
    let high = usize::from(port.checked_sub(PORT_FIRST)?);
    let is_client = ip.is_v4() && bits >> ADDRESS_BITS == NETWORK_V4_BITS >> ADDRESS_BITS;
    is_client.then_some(high << ADDRESS_BITS | (bits & ((1 << ADDRESS_BITS) - 1)) as usize)
}

/// The sequence number of the SYN that goes in `direction` between client `number` and its server.
pub fn first_number(number: usize, direction: Direction) -> u32 {
    let forward = (number as u32).wrapping_mul(0x9e37_79b1);
    match direction {
        Direction::Forward => forward,
        Direction::Reverse => !forward,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_its_number_and_nobody_elses() {
        for number in [0, 1, (1 << ADDRESS_BITS) - 1, 1 << ADDRESS_BITS, 15_999_999] {
            let v4 = client(Family::V4, number);
            assert_eq!(number_v4(v4.ip().into(), v4.port()), Some(number), "{v4}");
            assert_ne!(client(Family::V6, number), client(Family::V6, number + 1));
        }
        let stranger = |ip: [u8; 4], port| number_v4(IpAddr::from(ip).into(), port);
        assert_eq!(stranger([172, 15, 255, 255], 2000), None);
        assert_eq!(stranger([172, 32, 0, 0], 2000), None);
        assert_eq!(stranger([172, 16, 0, 1], 80), None);
    }
}
