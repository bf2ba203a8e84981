//! The address that real servers see.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::build::{POOL_PORTS, pool_addresses};
use crate::decode::Section;
use crate::diagnostic::{Report, Span};
use crate::draft::{Draft, DraftPorts, DraftSource, Service};
use crate::model::{Forwarding, PROBE_PORTS, Plane};
use crate::rules::network::{is_kept, kept_network};

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    for service in &draft.services {
        match &service.source {
            DraftSource::Client(span) => client(service, span, report),
            DraftSource::Interface(Some(span)) if service.keeps_client() => rewritten(service, span, report),
            DraftSource::Interface(_) | DraftSource::Unknown => {}
            DraftSource::Facing(pool) => facing(service, pool, report),
            DraftSource::Pool(pool) => {
                let span = pool.entry("pool").map_or(&pool.span, |entry| &entry.at);
                rewritten(service, span, report);
                let addresses = pool_addresses(pool);
                families(draft, service, &addresses, span, report);
                match pool.port_range("ports") {
                    Some(ports) => not_empty(draft, service, &addresses, ports.value, &ports.span, report),
                    None => not_empty(draft, service, &addresses, POOL_PORTS, span, report),
                }
            }
            DraftSource::Vip(span) => {
                rewritten(service, span, report);
                if let Some(vip) = &service.vip {
                    families(draft, service, &[vip.value], span, report);
                    not_empty(draft, service, &[vip.value], POOL_PORTS, span, report);
                }
            }
        }
    }
    on_both_planes(draft, report);
    for service in &draft.services {
        of_probes(draft, service, report);
    }
}

/// At addresses that Towpath keeps, health checks need ports that no service leases.
fn of_probes(draft: &Draft<'_>, service: &Service<'_>, report: &mut Report) {
    let written = |pool: &Section| pool.port_range("ports").map(|ports| (ports.value, ports.span));
    let kept = |address: &IpAddr| is_kept(draft.root, *address);
    let leased = match &service.source {
        DraftSource::Facing(pool) => {
            let servers = draft.servers_and_sorry(service).filter_map(|server| server.address.as_ref());
            let on_kept = servers.map(|server| server.value).find(|&server| kept_network(draft.root, server).is_some());
            written(pool).zip(on_kept).map(|((ports, span), _)| (ports, span))
        }
        DraftSource::Pool(pool) if pool_addresses(pool).iter().any(kept) => {
            let whole = pool.entry("pool").map_or(&pool.span, |entry| &entry.at);
            Some(written(pool).unwrap_or((POOL_PORTS, whole.clone())))
        }
        DraftSource::Vip(span) if service.vip.as_ref().is_some_and(|vip| kept(&vip.value)) => {
            Some((POOL_PORTS, span.clone()))
        }
        _ => None,
    };
    let (first, last) = PROBE_PORTS;
    if let Some(((_, high), span)) = leased
        && high >= first
    {
        report
            .error(
                "probe-ports",
                &span,
                format!("ports {first}-{last} of Towpath's own addresses are for health checks"),
            )
            .hint(format!("add `ports = \"1024-{}\"`", first - 1));
    }
}

/// On the stream plane nobody but the kernel gives ports of its own addresses.
fn facing(service: &Service<'_>, pool: &Section, report: &mut Report) {
    let span = pool.entry("pool").map_or(&pool.span, |entry| &entry.at);
    if service.plane.value == Plane::Stream {
        report
            .error("needs-packet-plane", span, "on the stream plane the kernel picks ports at its own addresses")
            .hint("use `source = \"interface\"`, or name addresses of the host: `pool = [\"...\"]`");
    }
    rewritten(service, span, report);
}

/// What the packet plane takes at an address the kernel does not hear, so a relay would never get its answers.
fn on_both_planes(draft: &Draft<'_>, report: &mut Report) {
    let mut first: HashMap<IpAddr, (Plane, &Span)> = HashMap::new();
    for service in &draft.services {
        let (addresses, span) = match (&service.source, &service.vip) {
            (DraftSource::Pool(pool), _) => {
                (pool_addresses(pool), pool.entry("pool").map_or(&pool.span, |entry| &entry.at))
            }
            (DraftSource::Vip(span), Some(vip)) => (vec![vip.value], span),
            _ => continue,
        };
        for address in addresses {
            let (plane, other) = *first.entry(address).or_insert((service.plane.value, span));
            if plane != service.plane.value {
                report
                    .error("both-planes", span, format!("ports of {address} are leased on both planes"))
                    .label(other, "on the other plane")
                    .hint("give each plane source addresses of its own");
                break;
            }
        }
    }
}

/// Client addresses are kept by forwarding packets, not by a relay.
fn client(service: &Service<'_>, span: &Span, report: &mut Report) {
    if service.plane.value == Plane::Stream {
        report
            .error(
                "needs-packet-plane",
                span,
                "the stream plane cannot keep the client's address: it makes connections of its own",
            )
            .hint("use `plane = \"packet\"` with `forwarding = \"half-nat\"`");
    } else if !service.keeps_client() {
        let finding = report.error("conflicting-keys", span, "the client's address is kept only by half-NAT and DSR");
        if let Some(forwarding) = &service.forwarding {
            finding.label(&forwarding.span, "rewrites it");
        }
        finding.hint("use `forwarding = \"half-nat\"`");
    }
}

/// An own source address has no place where servers see the client; only half-NAT has a use for leased ones, towards clients
/// on a server's own network.
fn rewritten(service: &Service<'_>, span: &Span, report: &mut Report) {
    let for_neighbours = service.forwarding() == Forwarding::HalfNat && service.leases();
    if let (true, false, Some(forwarding)) = (service.keeps_client(), for_neighbours, &service.forwarding) {
        report
            .error(
                "conflicting-keys",
                span,
                format!("`source` has no meaning with `forwarding = \"{}\"`: servers see the client", forwarding.value),
            )
            .label(&forwarding.span, "keeps the client's address")
            .hint("remove `source`, or use `forwarding = \"full-nat\"`");
    }
}

/// Each server must be reachable from an address of its own family.
fn families(draft: &Draft<'_>, service: &Service<'_>, addresses: &[IpAddr], span: &Span, report: &mut Report) {
    if addresses.is_empty() {
        return;
    }
    for (is_ipv4, family) in [(true, "IPv4"), (false, "IPv6")] {
        if addresses.iter().any(|address| address.is_ipv4() == is_ipv4) {
            continue;
        }
        let orphan = draft
            .all_servers(service)
            .filter_map(|server| server.address.as_ref())
            .find(|address| address.value.is_ipv4() == is_ipv4);
        if let Some(orphan) = orphan {
            report
                .error(
                    "mixed-families",
                    span,
                    format!("no {family} source address for the {family} server {}", orphan.value),
                )
                .label(&orphan.span, "the server")
                .hint(format!("add an {family} address to `source = {{ pool = [...] }}`"));
        }
    }
}

/// Ports that we listen on are not leased; some others must be left.
fn not_empty(
    draft: &Draft<'_>,
    service: &Service<'_>,
    addresses: &[IpAddr],
    (low, high): (u16, u16),
    span: &Span,
    report: &mut Report,
) {
    let Some(protocol) = &service.protocol else { return };
    let wanted = protocol.value;
    let listens = |address: IpAddr| {
        let there = move |other: &Service<'_>| other.vip.as_ref().is_some_and(|vip| vip.value == address);
        draft.services.iter().filter(move |other| there(other) && other.is(wanted))
    };
    let all_taken = |address: IpAddr| listens(address).any(|other| matches!(other.ports, Some(DraftPorts::All(_))));
    let taken = addresses.iter().find(|address| all_taken(**address));
    if let Some(address) = taken {
        report
            .error("empty-pool", span, format!("no port is left at {address}: a service has all of them"))
            .hint("use an address that no `ports = \"all\"` service has");
        return;
    }
    let count = usize::from(high - low) + 1;
    // More ports than any sensible list of sockets: no need to count.
    if count > 4096 {
        return;
    }
    for address in addresses {
        let listened: HashSet<u16> = listens(*address)
            .filter_map(|other| match &other.ports {
                Some(DraftPorts::Set(ports)) => Some(ports),
                _ => None,
            })
            .flat_map(|ports| ports.value.ranges.iter())
            .filter(|range| range.low <= high && range.high >= low)
            .flat_map(|range| range.low.max(low)..=range.high.min(high))
            .collect();
        if listened.len() == count {
            report
                .error(
                    "empty-pool",
                    span,
                    format!("no port of {low}-{high} is left at {address}: services listen on all of them"),
                )
                .hint("ports that are listened on are not leased; use a wider range, or a dedicated address");
        }
    }
}
