//! The addresses of our interfaces as SNAT addresses: which one faces each real server, only the kernel can say.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use towpath_config::model::{FacingPorts, Model, OutboundNat, Source, SourcePool, VirtualService};
use towpath_core::outbound::towards_anyone;
use towpath_sys::neighbour::{Neighbours, Tables};
use towpath_sys::{host, socket};

use super::routes::{self, Towards};

/// `model` with [`Source::Facing`] made a pool of the addresses that the kernel has towards each real server, or a VLAN or a bridge of ours where
/// that is the way. What leads nowhere just now keeps the address that `before` has for it, and so does what leads elsewhere while the interface of
/// that address is down; without one it is left out, and [`preflight`](crate::preflight()) says so.
///
/// Nothing is sent.
pub fn resolve(model: Model, before: Option<&Model>) -> Model {
    // Who cannot be asked says that nothing is down.
    let own = host::addresses().unwrap_or_default();
    let is_down = |ip: IpAddr| own.iter().any(|address| address.ip == ip && !address.up);
    // Only where the file has ways of its own do the kernel's matter.
    let has_ways = model.vlans().next().is_some() || !model.bridges.is_empty() || !model.routes.is_empty();
    let tables = if has_ways { tables().unwrap_or_default() } else { Tables::default() };
    let file = model.clone();
    let on_interface = |name: &str| -> Vec<IpAddr> {
        match file.vlans().find(|(_, vlan)| vlan.name == name) {
            Some((_, vlan)) => vlan.addresses.iter().map(|&(ip, _)| ip).collect(),
            None => own.iter().filter(|address| address.interface == name).map(|address| address.ip).collect(),
        }
    };
    let model = resolve_outbound(model, before, on_interface);
    resolve_by(model, before, is_down, |server| match routes::towards(&file, &tables, server) {
        Towards::Own(own) => own,
        Towards::Kernels(hop) => {
            // A link-local router is on a link, and nobody says here on which.
            let by_hop = hop.and_then(|hop| socket::kernel_source_towards(hop).ok());
            by_hop.or_else(|| socket::kernel_source_towards(server).ok())
        }
    })
}

fn tables() -> io::Result<Tables> {
    Neighbours::open()?.tables()
}

fn resolve_by(
    mut model: Model,
    before: Option<&Model>,
    is_down: impl Fn(IpAddr) -> bool,
    source_towards: impl Fn(IpAddr) -> Option<IpAddr>,
) -> Model {
    let Model { groups, services, .. } = &mut model;
    for service in services {
        let Source::Facing(FacingPorts { port_low, port_high, rest_ms }) = service.source else { continue };
        let known = before.and_then(|before| pool(before, &service.name));
        let servers = groups[service.group].servers.iter().chain(&service.sorry);
        let server_address = servers.map(|server| server.address);
        let towards: BTreeMap<IpAddr, IpAddr> = server_address
            .filter_map(|server| {
                let known = known.and_then(|known| known.towards.get(&server).copied());
                let kept = known.filter(|&known| is_down(known));
                Some((server, kept.or_else(|| source_towards(server)).or(known)?))
            })
            .collect();
        let mut addresses: Vec<IpAddr> = towards.values().copied().collect();
        // What is claimed stays so: a server that was taken out may come back.
        addresses.extend(known.iter().flat_map(|known| &known.addresses));
        addresses.sort_unstable();
        addresses.dedup();
        service.source = Source::Pool(SourcePool { addresses, port_low, port_high, rest_ms, towards });
    }
    model
}

/// `model` with the first address of each family that the interface of an `[[outbound_nat]]` has, as `on_interface` says. One without any keeps
/// what `before` has.
fn resolve_outbound(mut model: Model, before: Option<&Model>, on_interface: impl Fn(&str) -> Vec<IpAddr>) -> Model {
    for nat in &mut model.outbound {
        let Source::Facing(FacingPorts { port_low, port_high, rest_ms }) = nat.source else { continue };
        let found = nat.interface.as_deref().map(&on_interface).unwrap_or_default();
        let is_global = |ip: &IpAddr| match ip {
            IpAddr::V4(v4) => !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        };
        let first = |is_v4: bool| found.iter().copied().filter(is_global).find(|ip| ip.is_ipv4() == is_v4);
        let addresses: Vec<IpAddr> = [true, false].into_iter().filter_map(first).collect();
        let known = before.and_then(|before| before.outbound.iter().find(|other| other.name == nat.name));
        nat.source = match known {
            Some(OutboundNat { source: Source::Pool(pool), .. }) if addresses.is_empty() => Source::Pool(pool.clone()),
            _ if addresses.is_empty() => continue,
            _ => {
                let towards = addresses.iter().map(|&own| (towards_anyone(own).ip(), own)).collect();
                Source::Pool(SourcePool { addresses, port_low, port_high, rest_ms, towards })
            }
        };
    }
    model
}

/// Families, IPv4 first, that what an `[[outbound_nat]]` is for needs an address of and has none.
pub fn lacks_families(nat: &OutboundNat) -> impl Iterator<Item = bool> {
    let pool = match &nat.source {
        Source::Pool(pool) => pool.addresses.as_slice(),
        Source::Client | Source::Facing(_) | Source::Interface => &[],
    };
    let needs = |is_v4: bool| nat.from.iter().any(|(ip, _)| ip.is_ipv4() == is_v4);
    let has = |is_v4: bool| pool.iter().any(|ip| ip.is_ipv4() == is_v4);
    [true, false].into_iter().filter(move |&is_v4| needs(is_v4) && !has(is_v4))
}

/// What was found out for a service before.
fn pool<'m>(model: &'m Model, service: &str) -> Option<&'m SourcePool> {
    match &model.services.iter().find(|other| other.name == service)?.source {
        Source::Pool(pool) => Some(pool),
        Source::Client | Source::Facing(_) | Source::Interface => None,
    }
}

/// Whether a service leases from addresses that only the machine knows.
pub fn faces(service: &VirtualService) -> bool {
    matches!(&service.source, Source::Pool(pool) if !pool.towards.is_empty())
}

/// Whether it has none towards this server.
pub fn lacks_source(service: &VirtualService, server: IpAddr) -> bool {
    // A pool in the file is not empty.
    matches!(&service.source, Source::Pool(pool)
        if (faces(service) || pool.addresses.is_empty()) && !pool.towards.contains_key(&server))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn model() -> Model {
        let text = "[[service]]\nname = \"web\"\nvip = \"192.0.2.30\"\nports = 80\nplane = \"packet\"\n\
                    source = { pool = \"interface\", ports = \"2000-2999\" }\n\
                    [[service.server]]\nname = \"one\"\naddress = \"198.51.100.31\"\n\
                    [[service.server]]\nname = \"two\"\naddress = \"203.0.113.31\"\n";
        towpath_config::check("test.toml", text).model.expect("no errors")
    }

    fn pool(model: &Model) -> SourcePool {
        super::pool(model, "web").expect("it leases").clone()
    }

    fn near(server: IpAddr) -> Option<IpAddr> {
        Some(ip(if server == ip("198.51.100.31") { "198.51.100.1" } else { "203.0.113.1" }))
    }

    fn no_link(_: IpAddr) -> bool {
        false
    }

    #[test]
    fn each_server_gets_the_address_of_the_interface_that_leads_to_it() {
        let resolved = resolve_by(model(), None, no_link, near);
        let found = pool(&resolved);
        assert_eq!((found.port_low, found.port_high), (2000, 2999));
        assert_eq!(found.addresses, [ip("198.51.100.1"), ip("203.0.113.1")]);
        assert_eq!(found.towards[&ip("203.0.113.31")], ip("203.0.113.1"));
        // An interface is down when the file is read again.
        assert_eq!(pool(&resolve_by(model(), Some(&resolved), no_link, |_| None)), found);
        let without = resolve_by(model(), None, no_link, |_| None);
        assert!(pool(&without).addresses.is_empty() && lacks_source(&without.services[0], ip("203.0.113.31")));
        assert!(!lacks_source(&resolved.services[0], ip("203.0.113.31")));
        assert!(lacks_source(&resolved.services[0], ip("203.0.113.32")));
        // Meanwhile the default route takes over.
        let is_down = |address: IpAddr| address == ip("203.0.113.1");
        let by_default = |_: IpAddr| Some(ip("198.51.100.1"));
        assert_eq!(pool(&resolve_by(model(), Some(&resolved), is_down, by_default)), found);
        let moved = pool(&resolve_by(model(), Some(&resolved), no_link, by_default));
        assert_eq!(moved.towards[&ip("203.0.113.31")], ip("198.51.100.1"));
    }

    #[test]
    fn what_leaves_by_an_interface_leaves_from_its_first_addresses() {
        let text = "[router]\nenabled = true\n[[interface]]\nname = \"eth0\"\n[[outbound_nat]]\nname = \"out\"\n\
                    from = [\"10.0.0.0/8\", \"fd00::/8\"]\ninterface = \"eth0\"\n";
        let model = towpath_config::check("test.toml", text).model.expect("no errors");
        let found = |_: &str| ["fe80::1", "2001:db8::1", "192.0.2.1", "192.0.2.9"].map(ip).to_vec();
        let resolved = resolve_outbound(model.clone(), None, found);
        let Source::Pool(pool) = &resolved.outbound[0].source else { panic!("no pool") };
        assert_eq!(pool.addresses, [ip("192.0.2.1"), ip("2001:db8::1")]);
        assert_eq!(pool.towards[&ip("0.0.0.0")], ip("192.0.2.1"));
        assert_eq!((pool.port_low, pool.port_high), (16_384, 32_767));
        assert_eq!(lacks_families(&resolved.outbound[0]).count(), 0);
        // It is down when the file is read again.
        assert_eq!(resolve_outbound(model.clone(), Some(&resolved), |_| Vec::new()), resolved);
        let without = resolve_outbound(model.clone(), None, |_| Vec::new());
        assert_eq!(lacks_families(&without.outbound[0]).collect::<Vec<_>>(), [true, false]);
        let half = resolve_outbound(model, None, |_| vec![ip("192.0.2.1")]);
        assert_eq!(lacks_families(&half.outbound[0]).collect::<Vec<_>>(), [false]);
    }

    #[test]
    fn a_server_that_a_reload_took_out_can_come_back() {
        let both = resolve_by(model(), None, no_link, near);
        let mut fewer = model();
        fewer.groups[0].servers.pop();
        let fewer = resolve_by(fewer, Some(&both), no_link, near);
        assert_eq!(pool(&fewer).addresses, pool(&both).addresses);
        assert_eq!(pool(&fewer).towards.len(), 1);
        let back = resolve_by(model(), Some(&fewer), no_link, near);
        assert_eq!(pool(&back), pool(&both));
        assert_eq!(crate::reload::needs_restart(&fewer, &back, &[0], &[0]), Vec::<String>::new());
    }
}
