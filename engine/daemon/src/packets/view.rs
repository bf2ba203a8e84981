//! The network as the packet plane is told it, from what the kernel knows.

use std::collections::BTreeMap;
use std::net::IpAddr;

use towpath_config::model::{Bridge, Interface, Model, StaticRoute, VirtualService, Vlan};
use towpath_core::packet::{Ip, Mac};
use towpath_core::plane::{Keeper, Network, Port, PortId};
use towpath_sys::neighbour::Tables;

use super::arms::{Arm, holds};
use super::claims::services;

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

/// A tagged network on an arm, which the kernel knows nothing about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownVlan {
    /// Its name.
    pub name: String,
    /// The place of its arm in the list.
    pub arm: u8,
    /// The number in its tag.
    pub id: u16,
    /// Our addresses there, each with its prefix length.
    pub addresses: Vec<(IpAddr, u8)>,
}

/// Two arms between which frames pass, and which the kernel is to have no addresses on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownBridge {
    /// Its name.
    pub name: String,
    /// The places of its arms in the list, the lower one first.
    pub arms: [u8; 2],
    /// Our addresses there, each with its prefix length.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Whether frames of spanning tree pass.
    pub spanning_tree: bool,
}

/// What the file says about the network, beside what the kernel knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileNetwork {
    /// Ports behind those of the arms, in this order.
    pub vlans: Vec<KnownVlan>,
    /// Pairs of arms.
    pub bridges: Vec<KnownBridge>,
    /// On which port a VIP lives, where that was named.
    pub homes: BTreeMap<Ip, PortId>,
    /// Routes beside the kernel's: of two to one network with the same metric the kernel's counts.
    pub routes: Vec<StaticRoute>,
}

impl FileNetwork {
    /// That of a model over these arms.
    pub fn new(model: &Model, arms: &[Arm]) -> FileNetwork {
        let known = |(link, vlan): (&Interface, &Vlan)| {
            let arm = u8::try_from(arms.iter().position(|arm| arm.name == link.name)?).ok()?;
            Some(KnownVlan { name: vlan.name.clone(), arm, id: vlan.id, addresses: vlan.addresses.clone() })
        };
        let vlans: Vec<KnownVlan> = model.vlans().filter_map(known).collect();
        let place_of = |name: &str| u8::try_from(arms.iter().position(|arm| arm.name == name)?).ok();
        let bridged = |bridge: &Bridge| {
            let [one, other] = [place_of(&bridge.arms[0])?, place_of(&bridge.arms[1])?];
            Some(KnownBridge {
                name: bridge.name.clone(),
                arms: [one.min(other), one.max(other)],
                addresses: bridge.addresses.clone(),
                spanning_tree: bridge.spanning_tree,
            })
        };
        let bridges: Vec<KnownBridge> = model.bridges.iter().filter_map(bridged).collect();
        let file = FileNetwork { vlans, bridges, homes: BTreeMap::new(), routes: model.routes.clone() };
        let names = || arms.iter().map(|arm| arm.name.as_str());
        let home = |service: &VirtualService| {
            Some((Ip::from(service.vip), file.port_named(service.interface.as_deref()?, names())?))
        };
        let homes = services(model).filter_map(home).collect();
        FileNetwork { homes, ..file }
    }

    /// The port that has a name of the file, where the arms have these: of a bridge the lower one, which has its addresses.
    fn port_named<'a>(&'a self, name: &str, arms: impl Iterator<Item = &'a str>) -> Option<PortId> {
        if let Some(bridge) = self.bridges.iter().find(|bridge| bridge.name == name) {
            return Some(PortId(bridge.arms[0]));
        }
        let mut names = arms.chain(self.vlans.iter().map(|vlan| vlan.name.as_str()));
        names.position(|known| known == name).and_then(|place| u8::try_from(place).ok()).map(PortId)
    }

    /// The bridge that the arm at this place is one of, and the other one.
    pub fn bridge_of(&self, arm: u8) -> Option<(&KnownBridge, u8)> {
        self.bridges.iter().find_map(|bridge| match bridge.arms {
            [lower, upper] if lower == arm => Some((bridge, upper)),
            [lower, upper] if upper == arm => Some((bridge, lower)),
            _ => None,
        })
    }

    /// Addresses that are ours and not the kernel's, of VLANs and bridges.
    pub fn own_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let vlans = self.vlans.iter().flat_map(|vlan| &vlan.addresses);
        vlans.chain(self.bridges.iter().flat_map(|bridge| &bridge.addresses)).map(|&(ip, _)| ip)
    }

    /// Whether there are neighbours that the kernel does not know.
    pub fn has_neighbours(&self) -> bool {
        !self.vlans.is_empty() || !self.bridges.is_empty()
    }
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

/// The network over these arms and VLANs: as the kernel knows it, and what we know ourselves.
pub fn network(
    arms: &[KnownArm],
    file: &FileNetwork,
    tables: &Tables,
    known: impl Iterator<Item = (PortId, Ip, Mac)>,
) -> Network {
    let port_of = |link: u32| {
        let place = arms.iter().position(|arm| arm.index == link)?;
        // What the kernel knows on the arm of a bridge, like its own link-local address, has nothing to do with the network there.
        u8::try_from(place).ok().filter(|&place| file.bridge_of(place).is_none()).map(PortId)
    };
    let untagged = arms.iter().zip(0..).map(|(arm, link)| Port {
        name: arm.name.clone(),
        link,
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
        ..Port::default()
    });
    let untagged = untagged.map(|port| match file.bridge_of(port.link) {
        None => port,
        Some((bridge, other)) => Port {
            addresses: match port.link == bridge.arms[0] {
                true => bridge.addresses.iter().map(|&(ip, prefix)| (Ip::from(ip), prefix)).collect(),
                false => Vec::new(),
            },
            keeper: Keeper::Towpath,
            peer: Some(PortId(other)),
            blocks_spanning_tree: !bridge.spanning_tree,
            ..port
        },
    });
    let tagged = file.vlans.iter().filter_map(|vlan| {
        let arm = arms.get(usize::from(vlan.arm))?;
        Some(Port {
            name: vlan.name.clone(),
            link: vlan.arm,
            vlan: Some(vlan.id),
            mac: arm.mac,
            mtu: arm.mtu_bytes,
            addresses: vlan.addresses.iter().map(|&(ip, prefix)| (Ip::from(ip), prefix)).collect(),
            keeper: Keeper::Towpath,
            segments: arm.segments,
            ..Port::default()
        })
    });
    let ports: Vec<Port> = untagged.chain(tagged).collect();
    let near = ports
        .iter()
        .zip(0..)
        .filter(|(port, _)| port.keeper == Keeper::Towpath)
        .flat_map(|(port, id)| port.addresses.iter().map(move |&(ip, prefix)| (ip, prefix, None, PortId(id), 0)));
    let beside = |via: IpAddr| {
        let numbered = ports.iter().zip(0..).flat_map(|(port, id)| port.addresses.iter().map(move |own| (id, own)));
        let fitting = numbered.filter(|(_, (own, prefix))| holds((*own).into(), *prefix, via));
        fitting.max_by_key(|(_, (_, prefix))| *prefix).map(|(id, _)| PortId(id))
    };
    let named = |name: &String| file.port_named(name, arms.iter().map(|arm| arm.name.as_str()));
    // As the kernel takes its own back when a link goes or is set down; one of a bridge leads on while either arm is there.
    let is_up = |arm: u8| {
        let arm = arms.get(usize::from(arm)).filter(|arm| arm.is_there);
        arm.is_some_and(|arm| tables.links.iter().any(|link| link.index == arm.index && link.up))
    };
    let leads_on = |port: PortId| {
        let arm = ports.get(usize::from(port.0)).map(|port| port.link);
        arm.is_some_and(|arm| is_up(arm) || file.bridge_of(arm).is_some_and(|(_, other)| is_up(other)))
    };
    let stated = file.routes.iter().filter_map(|route| {
        let port = route.interface.as_ref().map_or_else(|| beside(route.via), named).filter(|&port| leads_on(port))?;
        Some((Ip::from(route.to.0), route.to.1, Some(Ip::from(route.via)), port, route.metric))
    });
    let routes = tables
        .routes
        .iter()
        .map(|route| {
            let (network, prefix) = route.destination;
            let port = port_of(route.link).unwrap_or(ELSEWHERE);
            (Ip::from(network), prefix, route.gateway.map(Ip::from), port, route.metric)
        })
        .chain(near)
        .chain(stated)
        .collect();
    let neighbours = tables
        .neighbours
        .iter()
        .filter_map(|neighbour| Some((port_of(neighbour.link)?, Ip::from(neighbour.ip), Mac(neighbour.mac))))
        .chain(known)
        .collect();
    let elsewhere = tables.addresses.iter().filter(|address| port_of(address.link).is_none());
    let elsewhere = elsewhere.map(|address| Ip::from(address.ip));
    Network::new(ports, routes, neighbours).with_elsewhere(elsewhere).with_homes(file.homes.clone())
}

#[cfg(test)]
mod tests {
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
        let network = network(&arms, &FileNetwork::default(), &tables(), std::iter::empty());
        assert_eq!(network.ports[1].addresses, [(Ip::from(ip("198.51.100.1")), 24)]);
        let gateway = NextHop::Ready { port: PortId(1), mac: Mac([2, 0, 0, 0, 1, 1]) };
        assert_eq!(network.next_hop(ip("192.0.2.1").into()), gateway);
        assert_eq!(network.next_hop(ip("203.0.113.9").into()), NextHop::NoRoute);
        let unknown = NextHop::Unresolved { port: PortId(1), via: ip("198.51.100.7").into() };
        assert_eq!(network.next_hop(ip("198.51.100.7").into()), unknown);
    }

    #[test]
    fn a_vlan_is_a_port_behind_the_arms_with_addresses_and_neighbours_of_its_own() {
        let mut arms = [arm("front", 2), arm("back", 3)];
        refresh(&mut arms, &tables());
        let addresses = vec![(ip("10.20.0.1"), 24)];
        let edge = KnownVlan { name: "edge".into(), arm: 1, id: 20, addresses };
        let (server, station) = (Ip::from(ip("10.20.0.9")), Mac([2, 0, 0, 0, 1, 9]));
        let file = FileNetwork { vlans: vec![edge], ..FileNetwork::default() };
        let network = network(&arms, &file, &tables(), [(PortId(2), server, station)].into_iter());
        let port = &network.ports[2];
        assert_eq!((port.link, port.vlan, port.index, port.mac), (1, Some(20), 0, arms[1].mac));
        assert_eq!((network.port_of(1, Some(20)), network.port_of(1, None)), (Some(PortId(2)), Some(PortId(1))));
        assert_eq!((network.port_of(0, Some(20)), network.port_of(1, Some(21))), (None, None));
        assert_eq!(network.next_hop(server), NextHop::Ready { port: PortId(2), mac: station });
        let unknown = NextHop::Unresolved { port: PortId(2), via: ip("10.20.0.10").into() };
        assert_eq!(network.next_hop(ip("10.20.0.10").into()), unknown);
        assert!(network.is_own(ip("10.20.0.1").into()) && !network.is_kernels(ip("10.20.0.1").into()));
    }

    #[test]
    fn a_bridge_is_two_ports_of_ours_and_what_the_kernel_has_there_does_not_count() {
        let mut arms = [arm("front", 2), arm("back", 3)];
        refresh(&mut arms, &tables());
        let addresses = vec![(ip("192.0.2.1"), 24)];
        let farm = KnownBridge { name: "farm".into(), arms: [0, 1], addresses, spanning_tree: false };
        let (server, station) = (Ip::from(ip("192.0.2.9")), Mac([2, 0, 0, 0, 1, 9]));
        let file = FileNetwork { bridges: vec![farm], ..FileNetwork::default() };
        let network = network(&arms, &file, &tables(), [(PortId(1), server, station)].into_iter());
        let peers: Vec<Option<PortId>> = network.ports.iter().map(|port| port.peer).collect();
        assert_eq!(peers, [Some(PortId(1)), Some(PortId(0))]);
        assert!(network.ports.iter().all(|port| port.keeper == Keeper::Towpath && port.blocks_spanning_tree));
        assert_eq!(network.ports[0].addresses, [(Ip::from(ip("192.0.2.1")), 24)]);
        assert!(network.ports[1].addresses.is_empty());
        // At the arm that it was heard by; and whoever is not known is asked for on the link.
        assert_eq!(network.next_hop(server), NextHop::Ready { port: PortId(1), mac: station });
        let unknown = NextHop::Unresolved { port: PortId(0), via: ip("192.0.2.10").into() };
        assert_eq!(network.next_hop(ip("192.0.2.10").into()), unknown);
        assert_eq!(network.next_hop(ip("198.51.100.254").into()), NextHop::NoRoute, "the kernel's");
    }

    #[test]
    fn a_static_route_leads_by_what_it_names_while_that_is_there() {
        let mut arms = [arm("front", 2), arm("back", 3), arm("other", 4)];
        let route = |to: &str, via: &str, interface: Option<&str>| StaticRoute {
            to: (ip(to), 16),
            via: ip(via),
            interface: interface.map(str::to_owned),
            metric: 0,
        };
        let addresses = vec![(ip("192.0.2.1"), 24)];
        let farm = KnownBridge { name: "farm".into(), arms: [0, 2], addresses, spanning_tree: false };
        let edge = KnownVlan { name: "edge".into(), arm: 1, id: 20, addresses: vec![(ip("10.20.0.1"), 24)] };
        let file = FileNetwork {
            vlans: vec![edge],
            bridges: vec![farm],
            routes: vec![
                route("10.1.0.0", "192.0.2.9", Some("farm")),
                route("10.2.0.0", "10.20.0.9", Some("edge")),
                route("10.3.0.0", "198.51.100.9", None),
            ],
            ..FileNetwork::default()
        };
        let mut tables = tables();
        tables.routes.clear();
        let mut leads = |tables: &Tables| {
            refresh(&mut arms, tables);
            let network = network(&arms, &file, tables, std::iter::empty());
            ["10.1.0.1", "10.2.0.1", "10.3.0.1"].map(|to| match network.next_hop(ip(to).into()) {
                NextHop::Unresolved { port, .. } => Some(port.0),
                _ => None,
            })
        };
        assert_eq!(leads(&tables), [Some(0), Some(3), Some(1)]);
        // No cable is no reason: the kernel keeps its routes then, too.
        tables.links[1].carrier = false;
        assert_eq!(leads(&tables), [Some(0), Some(3), Some(1)]);
        tables.links[1].up = false;
        tables.links[0].up = false;
        assert_eq!(leads(&tables), [Some(0), None, None], "the bridge has another arm");
        tables.links.retain(|link| link.index != 4);
        assert_eq!(leads(&tables), [None; 3]);
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
