//! What the packet plane claims: which ports of which addresses are its own, so that the kernel leaves them alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use towpath_config::model::{
    Forwarding, Model, OutboundNat, PROBE_PORTS, Plane, Ports, Protocol, Source, SourcePool, VirtualService,
};
use towpath_core::packet::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP};
use towpath_sys::neighbour::LinkAddress;
use towpath_sys::silence::Claim;

use super::arms::holds;

/// The services that the packet plane carries.
pub fn services(model: &Model) -> impl Iterator<Item = &VirtualService> {
    model.services.iter().filter(|service| service.plane == Plane::Packet)
}

/// Whether packets are carried at all: those of a service, or as a router or a bridge.
pub fn carries_packets(model: &Model) -> bool {
    model.router.enabled || !model.bridges.is_empty() || services(model).next().is_some()
}

/// The addresses that the packet plane answers for: VIPs and SNAT addresses.
pub fn addresses(model: &Model) -> BTreeSet<IpAddr> {
    let of_outbound = outbound(model).flat_map(|(_, pool)| pool.addresses.iter().copied());
    let of_services = services(model).flat_map(|service| {
        pool(service).into_iter().flat_map(|pool| pool.addresses.iter().copied()).chain([service.vip])
    });
    of_services.chain(of_outbound).collect()
}

/// The addresses of the kernel that servers are asked from whether they have the VIP (direct server return).
pub fn probe_sources<'a>(model: &'a Model, kernels: &'a [LinkAddress]) -> impl Iterator<Item = IpAddr> + 'a {
    let asked = services(model).filter(|service| service.forwarding == Forwarding::Dsr);
    let groups = asked.map(|service| &model.groups[service.group]).filter(|group| group.health.is_some());
    let servers: BTreeSet<IpAddr> = groups.flat_map(|group| &group.servers).map(|server| server.address).collect();
    let faces = move |own: &&LinkAddress| servers.iter().any(|&server| holds(own.ip, own.prefix, server));
    kernels.iter().filter(faces).map(|own| own.ip)
}

/// What the kernel must not hear, of which `kernels` are the addresses: the ports of services, and those that are leased; at addresses that it does
/// not have, ICMP, too; and what answers checks that it knows nothing of. Ports that a service of the stream plane listens on stay the kernel's, also
/// in the middle of a range that is leased.
pub fn claims(model: &Model, kernels: &[LinkAddress]) -> Vec<Claim> {
    let mut taken: BTreeMap<(IpAddr, Protocol), PortSet> = BTreeMap::new();
    for service in services(model) {
        if let Some(pool) = pool(service) {
            for &address in &pool.addresses {
                let set = taken.entry((address, service.protocol)).or_default();
                set.insert(pool.port_low..=pool.port_high);
            }
        }
    }
    for source in probe_sources(model, kernels) {
        for key in [(source, Protocol::Tcp), (source, Protocol::Udp)] {
            taken.entry(key).or_default().insert(PROBE_PORTS.0..=PROBE_PORTS.1);
        }
    }
    for (_, pool) in outbound(model) {
        for key in pool.addresses.iter().flat_map(|&address| [(address, Protocol::Tcp), (address, Protocol::Udp)]) {
            taken.entry(key).or_default().insert(pool.port_low..=pool.port_high);
        }
    }
    for service in model.services.iter().filter(|service| service.plane == Plane::Stream) {
        if let Some(set) = taken.get_mut(&(service.vip, service.protocol)) {
            service.sockets().for_each(|socket| set.remove(socket.port()));
        }
    }
    for service in services(model) {
        let set = taken.entry((service.vip, service.protocol)).or_default();
        match &service.ports {
            Ports::All => set.insert(1..=u16::MAX),
            Ports::List(ports) => ports.iter().for_each(|&port| set.insert(port..=port)),
        }
    }
    let ports = taken.into_iter().flat_map(|((address, protocol), set)| {
        set.ranges().into_iter().map(move |ports| Claim::ports(address, number(protocol), ports))
    });
    // A kernel that forwards would answer that it finds nobody there.
    let ours = addresses(model).into_iter().filter(|&ip| !kernels.iter().any(|own| own.ip == ip));
    let icmp =
        ours.map(|address| Claim::protocol(address, if address.is_ipv4() { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 }));
    ports.chain(icmp).collect()
}

/// Where the ports of a service are leased, if they are.
pub fn pool(service: &VirtualService) -> Option<&SourcePool> {
    leased(&service.source)
}

/// Each `[[outbound_nat]]` with where it leases.
pub fn outbound(model: &Model) -> impl Iterator<Item = (&OutboundNat, &SourcePool)> {
    model.outbound.iter().filter_map(|nat| Some((nat, leased(&nat.source)?)))
}

fn leased(source: &Source) -> Option<&SourcePool> {
    match source {
        Source::Pool(pool) => Some(pool),
        Source::Client | Source::Facing(_) | Source::Interface => None,
    }
}

/// The protocol of a claim of ports.
pub fn protocol(claim: &Claim) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp].into_iter().find(|&protocol| number(protocol) == claim.protocol)
}

/// The IP protocol number.
fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => PROTOCOL_TCP,
        Protocol::Udp => PROTOCOL_UDP,
    }
}

/// Ports, one bit each.
struct PortSet {
    words: Box<[u64]>,
}

impl Default for PortSet {
    fn default() -> PortSet {
        PortSet { words: vec![0; 1 << 10].into() }
    }
}

impl PortSet {
    fn insert(&mut self, ports: RangeInclusive<u16>) {
        ports.for_each(|port| self.words[usize::from(port) / 64] |= 1 << (port % 64));
    }

    fn remove(&mut self, port: u16) {
        self.words[usize::from(port) / 64] &= !(1 << (port % 64));
    }

    fn ranges(&self) -> Vec<RangeInclusive<u16>> {
        let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
        for port in 0..=u16::MAX {
            if self.words[usize::from(port) / 64] >> (port % 64) & 1 == 0 {
                continue;
            }
            match ranges.last_mut() {
                Some(range) if *range.end() + 1 == port => *range = *range.start()..=port,
                _ => ranges.push(port..=port),
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(text: &str, kernels: &[&str]) -> Vec<(String, u8, u16, u16)> {
        let checked = towpath_config::check("test.toml", text);
        let errors: Vec<String> = checked.errors().map(|error| error.message.clone()).collect();
        let model = checked.model.unwrap_or_else(|| panic!("{errors:?}"));
        let kernel = |ip: &&str| LinkAddress { link: 2, ip: ip.parse().unwrap(), prefix: 24 };
        let kernels: Vec<LinkAddress> = kernels.iter().map(kernel).collect();
        claims(&model, &kernels).into_iter().map(|c| (c.ip.to_string(), c.protocol, c.ports.0, c.ports.1)).collect()
    }

    fn service(name: &str, lines: &str) -> String {
        format!(
            "[[service]]\nname = \"{name}\"\nvip = \"192.0.2.30\"\n{lines}\n\
             [[service.server]]\nname = \"one\"\naddress = \"192.0.2.31\"\n"
        )
    }

    #[test]
    fn ports_of_services_and_leased_ones_are_claimed_and_nothing_else() {
        let text = service(
            "web",
            "ports = [80, 81, 443]\nplane = \"packet\"\nsource = { pool = [\"192.0.2.32\"], ports = \"2000-3000\" }",
        ) + &service(
            "stun",
            "ports = 3478\nprotocol = \"udp\"\nplane = \"packet\"\nforwarding = \"half-nat\"",
        ) + &service("relayed", "ports = 22");
        let expected = [
            ("192.0.2.30", 6, 80, 81),
            ("192.0.2.30", 6, 443, 443),
            ("192.0.2.30", 17, 3478, 3478),
            ("192.0.2.32", 6, 2000, 3000),
            ("192.0.2.32", 1, 0, 65535),
        ];
        assert_eq!(
            claimed(&text, &["192.0.2.30"]),
            expected.map(|(ip, protocol, low, high)| (ip.to_owned(), protocol, low, high))
        );
    }

    #[test]
    fn the_kernel_keeps_what_the_stream_plane_listens_on() {
        let text = service("web", "ports = [80, 1500]\nplane = \"packet\"\nsource = \"vip\"")
            + &service("relayed", "ports = 8443");
        let expected = [("192.0.2.30", 6, 80, 80), ("192.0.2.30", 6, 1024, 8442), ("192.0.2.30", 6, 8444, 65535)];
        assert_eq!(
            claimed(&text, &["192.0.2.30"]),
            expected.map(|(ip, protocol, low, high)| (ip.to_owned(), protocol, low, high))
        );
    }

    #[test]
    fn a_bridge_alone_is_a_use_of_the_packet_plane() {
        let arms = "[[interface]]\nname = \"one\"\n[[interface]]\nname = \"other\"\n";
        let bridge = "[[bridge]]\nname = \"cable\"\ninterfaces = [\"one\", \"other\"]\n";
        for text in [format!("{arms}{bridge}"), format!("{}{arms}{bridge}", service("relayed", "ports = 22"))] {
            let model = towpath_config::check("test.toml", &text).model.expect("no errors");
            assert!(carries_packets(&model), "{text}");
        }
        let model = towpath_config::check("test.toml", &service("relayed", "ports = 22")).model.expect("no errors");
        assert!(!carries_packets(&model));
    }

    #[test]
    fn answers_to_checks_by_the_vip_are_claimed_where_they_are_asked_from() {
        let health = "health = { check = \"tcp\", ports = [443] }";
        let dsr = format!("ports = 443\nplane = \"packet\"\nforwarding = \"dsr\"\n{health}");
        let expected = [
            ("192.0.2.2", 6, 61_000, 65_535),
            ("192.0.2.2", 17, 61_000, 65_535),
            ("192.0.2.30", 6, 443, 443),
            ("192.0.2.30", 1, 0, 65_535),
        ];
        assert_eq!(
            claimed(&service("web", &dsr), &["192.0.2.2", "198.51.100.2"]),
            expected.map(|(ip, protocol, low, high)| (ip.to_owned(), protocol, low, high))
        );
        assert_eq!(claimed(&service("web", &dsr.replace(health, "")), &["192.0.2.2"]).len(), 2);
    }

    #[test]
    fn all_ports_are_one_claim() {
        let text = service(
            "all",
            "ports = \"all\"\nplane = \"packet\"\nforwarding = \"dsr\"\npersistence = { by = \"source-ip\" }",
        );
        assert_eq!(claimed(&text, &["192.0.2.30"]), [("192.0.2.30".to_owned(), 6, 1, 65535)]);
    }
}
