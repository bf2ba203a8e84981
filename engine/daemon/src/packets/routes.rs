//! Static routes of the configuration beside those of the kernel, and next hops of services: by which link they leave.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::IpAddr;

use towpath_config::model::{Model, StaticRoute};
use towpath_core::packet::Ip;
use towpath_sys::neighbour::{KnownRoute, Tables};

use super::arms::{holds, is_on_own_network, own_networks};
use super::claims::services;

/// The kernel's routes, then those of the configuration whose next hop is on a link of the kernel's: of two to one network with the same metric the
/// kernel's counts.
pub fn all(model: &Model, tables: &Tables) -> Vec<KnownRoute> {
    let own = model.routes.iter().filter_map(|route| {
        let link = link_of(route, tables)?;
        Some(KnownRoute { destination: route.to, gateway: Some(route.via), link, metric: route.metric })
    });
    tables.routes.iter().copied().chain(own).collect()
}

/// The link that reaches the next hop of a route; `None` while there is none.
pub fn link_of(route: &StaticRoute, tables: &Tables) -> Option<u32> {
    match &route.interface {
        Some(name) => tables.links.iter().find(|link| link.name == *name).map(|link| link.index),
        None => beside(tables, route.via),
    }
}

/// The link of the longest network of this host that holds `ip`.
pub fn beside(tables: &Tables, ip: IpAddr) -> Option<u32> {
    let fitting = tables.addresses.iter().filter(|own| holds(own.ip, own.prefix, ip));
    fitting.max_by_key(|own| own.prefix).map(|own| own.link)
}

/// The next hops of services, beside the routes.
pub fn next_hops(model: &Model) -> BTreeSet<IpAddr> {
    services(model).filter_map(|service| service.next_hop).collect()
}

/// The route to an address: the longest prefix, then the lowest metric, then the first.
pub fn best(routes: &[KnownRoute], ip: IpAddr) -> Option<&KnownRoute> {
    let fitting = routes.iter().filter(|route| holds(route.destination.0, route.destination.1, ip));
    fitting.min_by_key(|route| (Reverse(route.destination.1), route.metric))
}

/// Who has the addresses on the way to a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Towards {
    /// We, on a VLAN or a bridge: the address to speak from, if there is one of that family.
    Own(Option<IpAddr>),
    /// The kernel; with the next hop of the static route that leads there, which it does not know.
    Kernels(Option<IpAddr>),
}

/// Whose the way to `ip` is, as the packet plane goes it: the longest prefix, then the lowest metric, then the kernel's, then networks of VLANs and
/// bridges, then static routes.
pub fn towards(model: &Model, tables: &Tables, ip: IpAddr) -> Towards {
    let kernels = tables.routes.iter().map(|route| (route.destination, route.metric, Towards::Kernels(None)));
    let near = own_networks(model).map(|(own, prefix)| ((own, prefix), 0, Towards::Own(Some(own))));
    let stated = model.routes.iter().filter_map(|route| {
        let own = own_network_of(model, route);
        let way = match own {
            Some(addresses) => Towards::Own(speaker(&addresses, route.via)),
            None => link_of(route, tables).map(|_| Towards::Kernels(Some(route.via)))?,
        };
        Some((route.to, route.metric, way))
    });
    let fitting = kernels.chain(near).chain(stated).filter(|&((net, prefix), ..)| holds(net, prefix, ip));
    let best = fitting.min_by_key(|&((_, prefix), metric, _)| (Reverse(prefix), metric));
    best.map_or(Towards::Kernels(None), |(_, _, way)| way)
}

/// Our addresses on the VLAN or bridge by which a static route leaves; `None` where it leaves by a network of the kernel's.
fn own_network_of(model: &Model, route: &StaticRoute) -> Option<Vec<(IpAddr, u8)>> {
    match &route.interface {
        Some(name) => {
            let vlans = model.vlans().map(|(_, vlan)| (&vlan.name, &vlan.addresses));
            let bridges = model.bridges.iter().map(|bridge| (&bridge.name, &bridge.addresses));
            vlans.chain(bridges).find(|(known, _)| *known == name).map(|(_, addresses)| addresses.clone())
        }
        None => is_on_own_network(model, route.via).then(|| own_networks(model).collect()),
    }
}

/// The one of these addresses to speak to a station from: that of the longest network that holds it, or else any that reaches further than its link.
fn speaker(addresses: &[(IpAddr, u8)], to: IpAddr) -> Option<IpAddr> {
    let holding = addresses.iter().filter(|&&(own, prefix)| holds(own, prefix, to)).max_by_key(|(_, prefix)| *prefix);
    let of_family = addresses.iter().filter(|(own, _)| own.is_ipv4() == to.is_ipv4());
    holding.or_else(|| of_family.min_by_key(|(own, _)| Ip::from(*own).is_link_local())).map(|&(own, _)| own)
}

#[cfg(test)]
mod tests {
    use towpath_sys::link::Link;
    use towpath_sys::neighbour::LinkAddress;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn tables() -> Tables {
        let link = |index: u32, name: &str| Link {
            index,
            name: name.to_owned(),
            up: true,
            carrier: true,
            ethernet: true,
            hardware_address: vec![2, 0, 0, 0, 0, index as u8],
            mtu_bytes: 1500,
        };
        let address = |link, text: &str, prefix| LinkAddress { link, ip: ip(text), prefix };
        Tables {
            links: vec![link(2, "front"), link(3, "back")],
            addresses: vec![address(2, "10.0.0.1", 8), address(3, "10.20.0.1", 16), address(3, "fd20::1", 64)],
            routes: vec![KnownRoute {
                destination: (ip("0.0.0.0"), 0),
                gateway: Some(ip("10.1.0.1")),
                link: 2,
                metric: 100,
            }],
            neighbours: Vec::new(),
        }
    }

    fn model(routes: &str) -> Model {
        let text = format!("[router]\nenabled = true\n{routes}[[interface]]\nname = \"front\"\n");
        towpath_config::check("test.toml", &text).model.expect("no errors")
    }

    #[test]
    fn static_routes_stand_beside_the_kernel_s() {
        let model = model(
            "[[route]]\nto = \"192.168.100.0/24\"\nvia = \"10.20.0.2\"\n\
             [[route]]\nto = \"default\"\nvia = \"10.20.0.9\"\nmetric = 100\n\
             [[route]]\nto = \"default\"\nvia = \"fd20::9\"\n\
             [[route]]\nto = \"192.168.7.0/24\"\nvia = \"192.168.8.1\"\n\
             [[route]]\nto = \"192.168.9.0/24\"\nvia = \"192.168.8.1\"\ninterface = \"front\"\n",
        );
        let tables = tables();
        let routes = all(&model, &tables);
        for (to, expected) in [
            ("192.168.100.7", Some((3, "10.20.0.2"))),
            // The kernel has one with this metric.
            ("8.8.8.8", Some((2, "10.1.0.1"))),
            ("2001:db8::8", Some((3, "fd20::9"))),
            // Nobody knows where its next hop is.
            ("192.168.7.1", Some((2, "10.1.0.1"))),
            ("192.168.9.1", Some((2, "192.168.8.1"))),
        ] {
            let found = best(&routes, ip(to)).map(|route| (route.link, route.gateway));
            assert_eq!(found, expected.map(|(link, via)| (link, Some(ip(via)))), "{to}");
        }
    }

    #[test]
    fn a_server_is_faced_from_the_network_that_the_way_to_it_leaves_by() {
        let model = model(
            "[[route]]\nto = \"192.168.1.0/24\"\nvia = \"10.30.0.2\"\n\
             [[route]]\nto = \"192.168.2.0/24\"\nvia = \"10.40.0.2\"\n\
             [[route]]\nto = \"192.168.3.0/24\"\nvia = \"172.16.0.1\"\ninterface = \"farm\"\n\
             [[route]]\nto = \"192.168.4.0/24\"\nvia = \"10.20.0.2\"\n\
             [[route]]\nto = \"192.168.5.0/24\"\nvia = \"192.168.8.1\"\n\
             [[route]]\nto = \"default\"\nvia = \"10.40.0.9\"\nmetric = 200\n\
             [[route]]\nto = \"default\"\nvia = \"fd30::9\"\n\
             [[bridge]]\nname = \"farm\"\ninterfaces = [\"left\", \"right\"]\naddresses = [\"10.40.0.1/16\"]\n\
             [[interface]]\nname = \"left\"\n[[interface]]\nname = \"right\"\n\
             [[interface]]\nname = \"trunk\"\n[[interface.vlan]]\nid = 30\naddresses = [\"10.30.0.1/16\", \"fd30::1/64\"]\n",
        );
        let own = |text| Towards::Own(Some(ip(text)));
        for (server, expected) in [
            ("10.40.0.31", own("10.40.0.1")),
            ("10.30.0.31", own("10.30.0.1")),
            ("fd30::31", own("fd30::1")),
            ("192.168.1.31", own("10.30.0.1")),
            ("192.168.2.31", own("10.40.0.1")),
            // By the name alone.
            ("192.168.3.31", own("10.40.0.1")),
            ("192.168.4.31", Towards::Kernels(Some(ip("10.20.0.2")))),
            // Nobody knows where its next hop is: by the default route of the lower metric.
            ("192.168.5.31", Towards::Kernels(None)),
            ("2001:db8::31", own("fd30::1")),
        ] {
            assert_eq!(towards(&model, &tables(), ip(server)), expected, "{server}");
        }
        // A longer one of the kernel's, inside the bridge's.
        let mut longer = tables();
        longer.routes.push(KnownRoute { destination: (ip("10.40.7.0"), 24), gateway: None, link: 3, metric: 0 });
        assert_eq!(towards(&model, &longer, ip("10.40.7.31")), Towards::Kernels(None));
        assert_eq!(towards(&model, &Tables::default(), ip("8.8.8.8")), own("10.40.0.1"));
    }
}
