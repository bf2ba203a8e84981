//! The arms of the packet plane: the interfaces that it receives from and sends through.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::Serialize;
use towpath_config::model::{Forwarding, Model, StaticRoute, VirtualService};
use towpath_core::packet::Ip;
use towpath_core::plane::PORTS_MAX;
use towpath_sys::link::Link;
use towpath_sys::neighbour::{KnownRoute, Tables};

use super::claims::{addresses, services};
use super::routes;

/// One interface, as it was when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Arm {
    /// Its name.
    pub name: String,
    /// Its number in the namespace.
    pub index: u32,
    /// The largest packet that it carries whole, in bytes.
    pub mtu_bytes: u32,
}

/// Why the packet plane finds no way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoWay {
    /// A real server of a DSR service is on no network of this host.
    BehindRouter(IpAddr),
    /// The link of a VLAN, the arm of a bridge or the interface of a service is not there, not up, or no Ethernet.
    NoLink(String),
    /// No network of this host holds the address, and there is no default route that its clients could come by.
    Nowhere(IpAddr),
    /// The kernel has no route to a real server over an Ethernet interface.
    NoRoute(IpAddr),
    /// A router without interfaces.
    NothingToRoute,
    /// The next hop of a service or of a route is on no network of an interface.
    NextHop(IpAddr),
    /// More interfaces than the packet plane has ports.
    TooMany(usize),
}

impl NoWay {
    /// Cause and next step.
    pub fn message(&self) -> String {
        match self {
            NoWay::BehindRouter(ip) => format!(
                "forwarding = \"dsr\": server {ip} is on no network of this host, but direct server return ends at the first router; \
                 use forwarding = \"full-nat\""
            ),
            NoWay::NoLink(name) => format!(
                "interface `{name}`, on which the file has a service, VLANs or a bridge, is no Ethernet interface of this host that is up; \
                 set it up (`ip link set {name} up`), or correct its name"
            ),
            NoWay::Nowhere(ip) => format!(
                "no Ethernet interface of this host that is up has a network that holds {ip}, and no default route leads over one; \
                 give one an address in the network of {ip}"
            ),
            NoWay::NoRoute(ip) => format!(
                "no route to real server {ip} over an Ethernet interface that is up; add one (`ip route add {ip} via …`)"
            ),
            NoWay::NothingToRoute => {
                "router.enabled = true: no Ethernet interface of this host that is up has an address; add them (`ip addr add …`)".to_owned()
            }
            NoWay::NextHop(ip) => format!(
                "next hop {ip} is on no network of an Ethernet interface that is up; give one an address in the network of {ip}, or name another \
                 next hop"
            ),
            NoWay::TooMany(count) => format!(
                "{count} interfaces and VLANs lead to the addresses and servers, or are routed between; the packet plane has {PORTS_MAX} at most"
            ),
        }
    }

    /// Whether it is about an address or a real server of `after` that `before` has in the same use.
    pub fn concerns(&self, before: &Model, after: &Model) -> bool {
        match *self {
            NoWay::NoLink(ref name) => named(before).contains(name.as_str()),
            NoWay::BehindRouter(ip) => uses(before, Forwarding::Dsr, ip),
            NoWay::Nowhere(ip) => addresses(before).contains(&ip),
            NoWay::NoRoute(ip) => [Forwarding::Dsr, Forwarding::FullNat, Forwarding::HalfNat]
                .into_iter()
                .all(|forwarding| uses(before, forwarding, ip) || !uses(after, forwarding, ip)),
            NoWay::NothingToRoute => before.router.enabled,
            NoWay::NextHop(ip) => {
                routes::next_hops(before).contains(&ip) || before.routes.iter().any(|route| route.via == ip)
            }
            NoWay::TooMany(_) => false,
        }
    }
}

/// The interfaces that services [need](needed), and of a router all that have an address; and whatever leads nowhere.
pub fn choose<'t>(model: &Model, tables: &'t Tables) -> (Vec<&'t Link>, Vec<NoWay>) {
    let (mut chosen, mut missing) = needed(model, tables);
    if model.router.enabled {
        let has_address = |link: &&Link| {
            let own = tables.addresses.iter().filter(|own| own.link == link.index);
            own.into_iter().any(|own| !Ip::from(own.ip).is_link_local())
        };
        chosen.extend(usable(tables).filter(has_address));
        if chosen.is_empty() {
            missing.push(NoWay::NothingToRoute);
        }
        chosen.sort_by_key(|link| tables.links.iter().position(|other| other.index == link.index));
        chosen.dedup_by_key(|link| link.index);
    }
    let ports = chosen.len() + model.vlans().count();
    if ports > PORTS_MAX {
        missing.push(NoWay::TooMany(ports));
    }
    (chosen, missing)
}

/// Ethernet interfaces that are up.
fn usable(tables: &Tables) -> impl Iterator<Item = &Link> {
    tables.links.iter().filter(|link| link.up && link.ethernet)
}

/// The interfaces whose networks hold our addresses, those that lead to real servers and next hops, and those of default routes, by which
/// other clients come; and whatever leads nowhere.
pub fn needed<'t>(model: &Model, tables: &'t Tables) -> (Vec<&'t Link>, Vec<NoWay>) {
    let usable: Vec<&Link> = usable(tables).collect();
    let routes = routes::all(model, tables);
    let is_usable = |index: u32| usable.iter().any(|link| link.index == index);
    let mut chosen: BTreeSet<u32> = BTreeSet::new();
    let mut missing = Vec::new();
    for name in named(model) {
        match usable.iter().find(|link| link.name == name) {
            Some(link) => _ = chosen.insert(link.index),
            None => missing.push(NoWay::NoLink(name.to_owned())),
        }
    }
    let vips: BTreeSet<IpAddr> = services(model).map(|service| service.vip).collect();
    let at_home: BTreeSet<IpAddr> =
        services(model).filter(|service| service.interface.is_some()).map(|service| service.vip).collect();
    for ip in addresses(model) {
        let homes: Vec<u32> = tables
            .addresses
            .iter()
            .filter(|own| is_usable(own.link) && holds(own.ip, own.prefix, ip))
            .map(|own| own.link)
            .collect();
        chosen.extend(&homes);
        if !vips.contains(&ip) {
            continue;
        }
        let defaults: Vec<u32> = routes
            .iter()
            .filter(|route| route.destination.1 == 0 && route.destination.0.is_ipv4() == ip.is_ipv4())
            .map(|route| route.link)
            .filter(|&link| is_usable(link))
            .collect();
        let is_own = own_prefix(model, ip).is_some() || at_home.contains(&ip);
        if homes.is_empty() && defaults.is_empty() && !is_own {
            missing.push(NoWay::Nowhere(ip));
        }
        chosen.extend(defaults);
    }
    let near = |ip: IpAddr| {
        own_prefix(model, ip).is_some() || tables.addresses.iter().any(|net| holds(net.ip, net.prefix, ip))
    };
    let by_dsr = services(model).filter(|service| service.forwarding == Forwarding::Dsr);
    let alone: BTreeSet<IpAddr> = by_dsr.flat_map(|service| members(model, service)).filter(|ip| !near(*ip)).collect();
    missing.extend(alone.into_iter().map(NoWay::BehindRouter));
    for ip in servers(model) {
        match (routes::best(&routes, ip), own_prefix(model, ip)) {
            // The kernel's route is not the longest one.
            (route, Some(prefix)) if route.is_none_or(|route| route.destination.1 <= prefix) => {}
            (Some(route), _) if is_usable(route.link) => {
                chosen.insert(route.link);
            }
            _ => missing.push(NoWay::NoRoute(ip)),
        }
    }
    let by_services = routes::next_hops(model).into_iter().map(|ip| (ip, routes::beside(tables, ip)));
    let by_services = by_services.filter(|&(ip, _)| !is_on_own_network(model, ip));
    let by_routes = model.routes.iter().filter(|route| !leaves_by_own_network(model, route));
    let by_routes = by_routes.map(|route| (route.via, routes::link_of(route, tables)));
    for (ip, link) in by_services.chain(by_routes) {
        match link {
            Some(link) if is_usable(link) => {
                chosen.insert(link);
            }
            _ => missing.push(NoWay::NextHop(ip)),
        }
    }
    (usable.into_iter().filter(|link| chosen.contains(&link.index)).collect(), missing)
}

/// The links that the file names: of VLANs, of bridges, of services.
fn named(model: &Model) -> BTreeSet<&str> {
    let trunks = model.vlans().map(|(link, _)| &link.name);
    let bridged = model.bridges.iter().flat_map(|bridge| &bridge.arms);
    let homes = services(model).filter_map(|service| service.interface.as_ref());
    let homes = homes.filter(|name| !is_own_name(model, name));
    trunks.chain(bridged).chain(homes).map(String::as_str).collect()
}

/// What is planned with of the chosen interfaces.
pub fn describe(links: &[&Link]) -> Vec<Arm> {
    let describe = |link: &&Link| Arm { name: link.name.clone(), index: link.index, mtu_bytes: link.mtu_bytes };
    links.iter().map(describe).collect()
}

/// The real servers of the packet plane's services.
pub fn servers(model: &Model) -> BTreeSet<IpAddr> {
    services(model).flat_map(|service| members(model, service)).collect()
}

/// Whether a service that forwards so has this real server.
fn uses(model: &Model, forwarding: Forwarding, server: IpAddr) -> bool {
    services(model)
        .filter(|service| service.forwarding == forwarding)
        .any(|service| members(model, service).any(|member| member == server))
}

fn members<'m>(model: &'m Model, service: &'m VirtualService) -> impl Iterator<Item = IpAddr> + use<'m> {
    model.servers_of(service).map(|server| server.address)
}

/// Whether a network of a VLAN or a bridge holds an address.
pub fn is_on_own_network(model: &Model, ip: IpAddr) -> bool {
    own_networks(model).any(|(net, prefix)| holds(net, prefix, ip))
}

/// Whether that is the name of a VLAN or a bridge.
fn is_own_name(model: &Model, name: &str) -> bool {
    model.vlans().any(|(_, vlan)| vlan.name == name) || model.bridges.iter().any(|bridge| bridge.name == name)
}

/// Whether a static route leads over a VLAN or a bridge.
fn leaves_by_own_network(model: &Model, route: &StaticRoute) -> bool {
    match &route.interface {
        Some(name) => is_own_name(model, name),
        None => is_on_own_network(model, route.via),
    }
}

/// The networks of VLANs and bridges.
pub fn own_networks(model: &Model) -> impl Iterator<Item = (IpAddr, u8)> + '_ {
    let bridged = model.bridges.iter().flat_map(|bridge| &bridge.addresses);
    model.vlans().flat_map(|(_, vlan)| &vlan.addresses).chain(bridged).copied()
}

/// The kernel's route to a real server; none to one that is reached over a VLAN or a bridge, of which the kernel knows nothing.
pub(crate) fn kernels_route<'t>(model: &Model, tables: &'t Tables, ip: IpAddr) -> Option<&'t KnownRoute> {
    let route = routes::best(&tables.routes, ip);
    route.filter(|route| own_prefix(model, ip).is_none_or(|prefix| prefix < route.destination.1))
}

/// Whether only the packet plane has a way to an address: over a VLAN or a bridge, of which the kernel knows nothing.
pub(crate) fn is_unknown_to_kernel(model: &Model, tables: &Tables, ip: IpAddr) -> bool {
    own_prefix(model, ip).is_some() && kernels_route(model, tables, ip).is_none()
}

/// The prefix length of the longest network that holds an address and is a VLAN's or a bridge's, or reached by a static route over one.
pub(crate) fn own_prefix(model: &Model, ip: IpAddr) -> Option<u8> {
    let behind = model.routes.iter().filter(|route| leaves_by_own_network(model, route)).map(|route| route.to);
    own_networks(model).chain(behind).filter(|&(net, prefix)| holds(net, prefix, ip)).map(|(_, prefix)| prefix).max()
}

/// Whether a network holds an address.
pub fn holds(network: IpAddr, prefix: u8, ip: IpAddr) -> bool {
    match (network, ip) {
        (IpAddr::V4(network), IpAddr::V4(ip)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            (network.to_bits() ^ ip.to_bits()) & mask == 0
        }
        (IpAddr::V6(network), IpAddr::V6(ip)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            (network.to_bits() ^ ip.to_bits()) & mask == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use towpath_sys::neighbour::LinkAddress;

    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            up: true,
            carrier: true,
            ethernet: name != "lo",
            hardware_address: vec![2, 0, 0, 0, 0, index as u8],
            mtu_bytes: 1500,
        }
    }

    fn route(network: &str, prefix: u8, link: u32) -> KnownRoute {
        KnownRoute { destination: (network.parse().unwrap(), prefix), gateway: None, link, metric: 0 }
    }

    /// Front and back, and an interface that nothing needs.
    fn tables() -> Tables {
        let address = |link, ip: &str| LinkAddress { link, ip: ip.parse().unwrap(), prefix: 24 };
        Tables {
            links: vec![link(1, "lo"), link(2, "front"), link(3, "back"), link(4, "other")],
            addresses: vec![address(2, "192.0.2.1"), address(3, "198.51.100.1"), address(4, "203.0.113.1")],
            routes: vec![route("192.0.2.0", 24, 2), route("198.51.100.0", 24, 3), route("203.0.113.0", 24, 4)],
            neighbours: Vec::new(),
        }
    }

    fn model(vip: &str, server: &str) -> Model {
        let text = format!(
            "[[service]]\nname = \"web\"\nvip = \"{vip}\"\nports = 443\nplane = \"packet\"\nsource = \"vip\"\n\
             [[service.server]]\nname = \"one\"\naddress = \"{server}\"\n"
        );
        towpath_config::check("test.toml", &text).model.expect("no errors")
    }

    fn chosen(model: &Model, tables: &Tables) -> (Vec<String>, Vec<NoWay>) {
        let (links, missing) = choose(model, tables);
        (links.iter().map(|link| link.name.clone()).collect(), missing)
    }

    #[test]
    fn only_interfaces_that_lead_somewhere_are_chosen() {
        let (names, missing) = chosen(&model("192.0.2.30", "198.51.100.31"), &tables());
        assert_eq!((names, missing), (vec!["front".to_owned(), "back".to_owned()], vec![]));
        let (names, _) = chosen(&model("192.0.2.30", "192.0.2.31"), &tables());
        assert_eq!(names, ["front"]);
    }

    #[test]
    fn a_router_has_every_interface_with_an_address() {
        let text = "[router]\nenabled = true\n";
        let model = towpath_config::check("test.toml", text).model.expect("no errors");
        let mut tables = tables();
        tables.links.push(link(5, "bare"));
        tables.addresses.push(LinkAddress { link: 5, ip: "fe80::5".parse().unwrap(), prefix: 64 });
        let (names, missing) = chosen(&model, &tables);
        assert_eq!((names, missing), (["front", "back", "other"].map(str::to_owned).to_vec(), vec![]));
        assert_eq!(needed(&model, &tables).0, Vec::<&Link>::new());
        tables.addresses.clear();
        assert_eq!(chosen(&model, &tables).1, [NoWay::NothingToRoute]);
    }

    #[test]
    fn a_default_route_leads_to_clients_and_servers() {
        let mut tables = tables();
        tables.routes.push(route("0.0.0.0", 0, 4));
        let (names, missing) = chosen(&model("100.64.0.30", "8.8.8.8"), &tables);
        assert_eq!((names, missing), (vec!["other".to_owned()], vec![]));
    }

    #[test]
    fn what_leads_nowhere_concerns_a_model_that_has_it() {
        let model = model("192.0.2.30", "198.51.100.31");
        let [vip, server, other] = ["192.0.2.30", "198.51.100.31", "198.51.100.32"].map(|ip| ip.parse().unwrap());
        assert!(NoWay::Nowhere(vip).concerns(&model, &model) && NoWay::NoRoute(server).concerns(&model, &model));
        assert!(!NoWay::Nowhere(other).concerns(&model, &model) && !NoWay::TooMany(99).concerns(&model, &model));
        let after = self::model("192.0.2.30", "198.51.100.32");
        assert!(!NoWay::NoRoute(other).concerns(&model, &after));
        // There already, but for another use.
        assert!(!NoWay::NoRoute(server).concerns(&model, &dsr("198.51.100.31")));
        assert!(!NoWay::BehindRouter(server).concerns(&model, &dsr("198.51.100.31")));
    }

    fn dsr(server: &str) -> Model {
        let text = format!(
            "[[service]]\nname = \"web\"\nvip = \"192.0.2.30\"\nports = 80\nplane = \"packet\"\nforwarding = \"dsr\"\n\
             [[service.server]]\nname = \"one\"\naddress = \"{server}\"\n"
        );
        towpath_config::check("test.toml", &text).model.expect("no errors")
    }

    #[test]
    fn direct_return_needs_servers_on_a_network_of_this_host() {
        let mut tables = tables();
        tables.routes.push(route("0.0.0.0", 0, 4));
        assert_eq!(chosen(&dsr("192.0.2.31"), &tables).1, []);
        let behind = NoWay::BehindRouter("8.8.8.8".parse().unwrap());
        assert_eq!(chosen(&dsr("8.8.8.8"), &tables).1, std::slice::from_ref(&behind));
        // What is in force already does not refuse a reload.
        assert!(behind.concerns(&dsr("8.8.8.8"), &dsr("8.8.8.8")));
        assert!(!behind.concerns(&dsr("192.0.2.31"), &dsr("8.8.8.8")));
    }

    #[test]
    fn next_hops_are_on_a_network_of_this_host() {
        let with = |next_hop: &str, via: &str| {
            let text = format!(
                "[[service]]\nname = \"web\"\nvip = \"192.0.2.30\"\nports = 443\nplane = \"packet\"\nsource = \"vip\"\n\
                 next_hop = \"{next_hop}\"\n[[service.server]]\nname = \"one\"\naddress = \"172.16.0.5\"\n\
                 [[route]]\nto = \"172.16.0.0/12\"\nvia = \"{via}\"\n"
            );
            towpath_config::check("test.toml", &text).model.expect("no errors")
        };
        let (names, missing) = chosen(&with("203.0.113.9", "198.51.100.9"), &tables());
        assert_eq!((names, missing), (["front", "back", "other"].map(str::to_owned).to_vec(), vec![]));
        let [next_hop, via] = ["100.64.0.1", "100.64.0.2"];
        let (_, missing) = chosen(&with(next_hop, via), &tables());
        let ip = |text: &str| text.parse().unwrap();
        assert_eq!(missing, [NoWay::NoRoute(ip("172.16.0.5")), NoWay::NextHop(ip(next_hop)), NoWay::NextHop(ip(via))]);
        assert!(missing[1].concerns(&with(next_hop, via), &with(next_hop, via)));
    }

    #[test]
    fn a_vlan_leads_to_what_is_on_its_network() {
        let trunk = "[[interface]]\nname = \"other\"\n[[interface.vlan]]\nid = 20\naddresses = [\"10.20.0.1/24\", \"10.30.0.1/8\"]\n";
        let text = |vip: &str, server: &str| {
            format!(
                "{trunk}[[service]]\nname = \"web\"\nvip = \"{vip}\"\nports = 443\nplane = \"packet\"\nsource = \"vip\"\n\
                 [[service.server]]\nname = \"one\"\naddress = \"{server}\"\n"
            )
        };
        let model = |text: &str| towpath_config::check("test.toml", text).model.expect("no errors");
        let mut tables = tables();
        assert_eq!(chosen(&model(&text("10.20.0.30", "10.20.0.31")), &tables), (vec!["other".to_owned()], vec![]));
        // A longer route of the kernel's, and no link.
        tables.routes.push(route("10.99.0.0", 16, 3));
        let (names, missing) = chosen(&model(&text("10.20.0.30", "10.99.0.31")), &tables);
        assert_eq!((names, missing), (vec!["back".to_owned(), "other".to_owned()], vec![]));
        tables.links[3].up = false;
        let (_, missing) = chosen(&model(&text("10.20.0.30", "10.20.0.31")), &tables);
        assert_eq!(missing, [NoWay::NoLink("other".to_owned())]);
    }

    #[test]
    fn names_of_the_file_lead_to_what_they_name() {
        let file = |lines: &str, more: &str| {
            let text = format!(
                "[[service]]\nname = \"web\"\nvip = \"192.0.2.30\"\nports = 443\nplane = \"packet\"\nsource = \"vip\"\n{lines}\
                 [[service.server]]\nname = \"one\"\naddress = \"192.0.2.31\"\n\
                 [[interface]]\nname = \"other\"\n[[interface.vlan]]\nid = 20\nname = \"edge\"\naddresses = [\"10.20.0.1/24\"]\n\
                 [[interface]]\nname = \"back\"\n{more}"
            );
            towpath_config::check("test.toml", &text).model.expect("no errors")
        };
        let mut down = tables();
        down.links[2].up = false;
        let at_back = file("interface = \"back\"\n", "");
        assert_eq!(chosen(&at_back, &down).1, [NoWay::NoLink("back".to_owned())]);
        assert_eq!(chosen(&file("interface = \"edge\"\n", ""), &down).1, []);
        // The model in force has it; one without it had no way to lose.
        assert!(NoWay::NoLink("back".to_owned()).concerns(&at_back, &at_back));
        assert!(!NoWay::NoLink("back".to_owned()).concerns(&file("", ""), &at_back));
        // Over a VLAN by its name, and by a link that is down though the VLAN holds the next hop.
        let route = |via: &str, interface: &str| {
            file("", &format!("[[route]]\nto = \"172.16.0.0/12\"\nvia = \"{via}\"\ninterface = \"{interface}\"\n"))
        };
        let [near, far] = ["10.20.0.9", "10.30.0.9"];
        assert_eq!(chosen(&route(far, "edge"), &down).1, []);
        assert_eq!(own_prefix(&route(far, "edge"), "172.16.0.1".parse().unwrap()), Some(12));
        assert_eq!(chosen(&route(near, "back"), &down).1, [NoWay::NextHop(near.parse().unwrap())]);
    }

    #[test]
    fn what_leads_nowhere_is_named() {
        let (_, missing) = chosen(&model("100.64.0.30", "8.8.8.8"), &tables());
        assert_eq!(
            missing,
            [NoWay::Nowhere("100.64.0.30".parse().unwrap()), NoWay::NoRoute("8.8.8.8".parse().unwrap())]
        );
        let mut down = tables();
        down.links[1].up = false;
        let (_, missing) = chosen(&model("192.0.2.30", "198.51.100.31"), &down);
        assert_eq!(missing, [NoWay::Nowhere("192.0.2.30".parse().unwrap())]);
    }
}
