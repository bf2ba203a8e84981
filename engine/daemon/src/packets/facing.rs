//! The addresses of our interfaces as SNAT addresses: which one faces each real server, only the kernel can say.

use std::collections::BTreeMap;
use std::net::IpAddr;

use towpath_config::model::{FacingPorts, Model, Source, SourcePool, VirtualService};
use towpath_sys::socket;

/// `model` with [`Source::Facing`] made a pool of the addresses that the kernel has towards each real server. What leads nowhere just now
/// keeps the address that `before` has for it; without one it is left out, and [`preflight`](crate::preflight()) says that no route leads there.
///
/// Nothing is sent.
pub fn resolve(model: Model, before: Option<&Model>) -> Model {
    resolve_by(model, before, |server| socket::kernel_source_towards(server).ok())
}

fn resolve_by(mut model: Model, before: Option<&Model>, source_towards: impl Fn(IpAddr) -> Option<IpAddr>) -> Model {
    let Model { groups, services, .. } = &mut model;
    for service in services {
        let Source::Facing(FacingPorts { port_low, port_high, rest_ms }) = service.source else { continue };
        let known = before.and_then(|before| towards(before, &service.name));
        let server_address = groups[service.group].servers.iter().map(|server| server.address);
        let towards: BTreeMap<IpAddr, IpAddr> = server_address
            .filter_map(|server| {
                let known = || known.and_then(|known| known.get(&server).copied());
                Some((server, source_towards(server).or_else(known)?))
            })
            .collect();
        let mut addresses: Vec<IpAddr> = towards.values().copied().collect();
        addresses.sort_unstable();
        addresses.dedup();
        service.source = Source::Pool(SourcePool { addresses, port_low, port_high, rest_ms, towards });
    }
    model
}

/// What was found out for a service before.
fn towards<'m>(model: &'m Model, service: &str) -> Option<&'m BTreeMap<IpAddr, IpAddr>> {
    match &model.services.iter().find(|other| other.name == service)?.source {
        Source::Pool(pool) => Some(&pool.towards),
        Source::Client | Source::Facing(_) | Source::Interface => None,
    }
}

/// Whether a service leases from addresses that only the machine knows.
pub fn faces(service: &VirtualService) -> bool {
    matches!(&service.source, Source::Pool(pool) if !pool.towards.is_empty())
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
        match &model.services[0].source {
            Source::Pool(pool) => pool.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_server_gets_the_address_of_the_interface_that_leads_to_it() {
        let near =
            |server: IpAddr| Some(ip(if server == ip("198.51.100.31") { "198.51.100.1" } else { "203.0.113.1" }));
        let resolved = resolve_by(model(), None, near);
        let found = pool(&resolved);
        assert_eq!((found.port_low, found.port_high), (2000, 2999));
        assert_eq!(found.addresses, [ip("198.51.100.1"), ip("203.0.113.1")]);
        assert_eq!(found.towards[&ip("203.0.113.31")], ip("203.0.113.1"));
        // An interface is down when the file is read again.
        assert_eq!(pool(&resolve_by(model(), Some(&resolved), |_| None)), found);
        assert!(pool(&resolve_by(model(), None, |_| None)).addresses.is_empty());
    }
}
