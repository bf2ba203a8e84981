//! Static routes of the configuration beside those of the kernel, and next hops of services: by which link they leave.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::IpAddr;

use towpath_config::model::{Model, StaticRoute};
use towpath_sys::neighbour::{KnownRoute, Tables};

use super::arms::holds;
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
}
