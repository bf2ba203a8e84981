//! The network as the packet plane is told it, from what the kernel knows.

use towpath_core::packet::{Ip, Mac};
use towpath_core::plane::{Network, Port, PortId};
use towpath_sys::neighbour::Tables;

/// The number of a port that is none of ours: routes over it mean that no route of ours leads there.
const ELSEWHERE: PortId = PortId(u8::MAX);

/// What is known of one arm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownArm {
    /// Its name; the arm's place in the list is its [`PortId`].
    pub name: String,
    /// Its number in the namespace, as it was last seen.
    pub index: u32,
    /// Its link-layer address, likewise.
    pub mac: Mac,
    /// Its MTU in bytes, likewise.
    pub mtu_bytes: u32,
    /// Whether the device cuts super-packets.
    pub segments: bool,
    /// Whether there was such an Ethernet interface when it was last looked for.
    pub is_there: bool,
    /// Whether it is up and there is a cable.
    pub works: bool,
}

/// Looks the arms up by their names; one that is gone stays as it was, but does not work. Says which were gone and
/// are there again: since the last look, or between two looks, with another number. One that came back with its old number between two
/// looks is the workers' to notice.
pub fn refresh(arms: &mut [KnownArm], tables: &Tables) -> Vec<PortId> {
    let mut returned = Vec::new();
    for (arm, port) in arms.iter_mut().zip(0u8..) {
        let Some(link) = tables.links.iter().find(|link| link.name == arm.name) else {
            (arm.is_there, arm.works) = (false, false);
            continue;
        };
        let Ok(mac) = <[u8; 6]>::try_from(link.hardware_address.as_slice()) else {
            (arm.is_there, arm.works) = (false, false);
            continue;
        };
        if link.index != arm.index || !arm.is_there {
            returned.push(PortId(port));
        }
        arm.is_there = true;
        arm.index = link.index;
        arm.mac = Mac(mac);
        arm.mtu_bytes = link.mtu_bytes;
        arm.works = link.up && link.carrier;
    }
    returned
}

/// The network over these arms.
pub fn network(arms: &[KnownArm], tables: &Tables) -> Network {
    let port_of = |link: u32| {
        let place = arms.iter().position(|arm| arm.index == link)?;
        u8::try_from(place).ok().map(PortId)
    };
    let ports = arms
        .iter()
        .map(|arm| Port {
            name: arm.name.clone(),
            index: if arm.is_there { arm.index } else { 0 },
            mac: arm.mac,
            mtu: arm.mtu_bytes,
            addresses: tables
                .addresses
                .iter()
                .filter(|address| address.link == arm.index)
                .map(|address| (Ip::from(address.ip), address.prefix))
                .collect(),
            segments: arm.segments,
        })
        .collect();
    let routes = tables
        .routes
        .iter()
        .map(|route| {
            let (network, prefix) = route.destination;
            let port = port_of(route.link).unwrap_or(ELSEWHERE);
            (Ip::from(network), prefix, route.gateway.map(Ip::from), port, route.metric)
        })
        .collect();
    let neighbours = tables
        .neighbours
        .iter()
        .filter_map(|neighbour| Some((port_of(neighbour.link)?, Ip::from(neighbour.ip), Mac(neighbour.mac))))
        .collect();
    let elsewhere = tables.addresses.iter().filter(|address| port_of(address.link).is_none());
    Network::new(ports, routes, neighbours).with_elsewhere(elsewhere.map(|address| Ip::from(address.ip)))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use towpath_core::plane::NextHop;
    use towpath_sys::link::Link;
    use towpath_sys::neighbour::{KnownRoute, LinkAddress, Neighbour};

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            up: true,
            carrier: true,
            ethernet: true,
            hardware_address: vec![2, 0, 0, 0, 0, index as u8],
            mtu_bytes: 1500,
        }
    }

    fn tables() -> Tables {
        let route = |to: &str, prefix, gateway: Option<&str>, link| KnownRoute {
            destination: (ip(to), prefix),
            gateway: gateway.map(ip),
            link,
            metric: 0,
        };
        Tables {
            links: vec![link(2, "front"), link(3, "back"), link(4, "other")],
            addresses: vec![LinkAddress { link: 3, ip: ip("198.51.100.1"), prefix: 24 }],
            routes: vec![
                route("198.51.100.0", 24, None, 3),
                route("0.0.0.0", 0, Some("198.51.100.254"), 3),
                route("203.0.113.0", 24, None, 4),
            ],
            neighbours: vec![
                Neighbour { link: 3, ip: ip("198.51.100.254"), mac: [2, 0, 0, 0, 1, 1] },
                Neighbour { link: 4, ip: ip("203.0.113.9"), mac: [2, 0, 0, 0, 1, 2] },
            ],
        }
    }

    fn arm(name: &str, index: u32) -> KnownArm {
        let name = name.to_owned();
        KnownArm { name, index, mac: Mac::default(), mtu_bytes: 0, segments: true, is_there: true, works: false }
    }

    #[test]
    fn routes_over_other_interfaces_lead_nowhere_and_never_to_a_default_route_of_ours() {
        let mut arms = [arm("front", 2), arm("back", 3)];
        assert_eq!(refresh(&mut arms, &tables()), []);
        assert!(arms.iter().all(|arm| arm.works && arm.mtu_bytes == 1500));
        let network = network(&arms, &tables());
        assert_eq!(network.ports[1].addresses, [(Ip::from(ip("198.51.100.1")), 24)]);
        let gateway = NextHop::Ready { port: PortId(1), mac: Mac([2, 0, 0, 0, 1, 1]) };
        assert_eq!(network.next_hop(ip("192.0.2.1").into()), gateway);
        assert_eq!(network.next_hop(ip("203.0.113.9").into()), NextHop::NoRoute);
        let unknown = NextHop::Unresolved { port: PortId(1), via: ip("198.51.100.7").into() };
        assert_eq!(network.next_hop(ip("198.51.100.7").into()), unknown);
    }

    #[test]
    fn an_interface_that_vanished_keeps_its_place_and_is_told_when_it_returns() {
        let mut arms = [arm("front", 2), arm("back", 3)];
        let mut tables = tables();
        tables.links.remove(0);
        assert_eq!(refresh(&mut arms, &tables), []);
        assert!(!arms[0].works && arms[1].works);
        tables.links.push(link(9, "front"));
        assert_eq!(refresh(&mut arms, &tables), [PortId(0)]);
        assert_eq!((arms[0].index, arms[0].works), (9, true));
        assert_eq!(refresh(&mut arms, &tables), []);
        // Gone, and back with the number that it had.
        let front = tables.links.pop().unwrap();
        assert_eq!(refresh(&mut arms, &tables), []);
        tables.links.push(front);
        assert_eq!(refresh(&mut arms, &tables), [PortId(0)]);
        assert_eq!(refresh(&mut arms, &tables), []);
    }
}
