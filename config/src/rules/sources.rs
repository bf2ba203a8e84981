//! The address that real servers see.

use std::collections::HashSet;
use std::net::IpAddr;

use crate::build::pool_addresses;
use crate::diagnostic::{Report, Span};
use crate::draft::{Draft, DraftPorts, DraftSource, Service};
use crate::model::Plane;

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    for service in &draft.services {
        match &service.source {
            DraftSource::Client(span) => client(service, span, report),
            DraftSource::Interface(Some(span)) => rewritten(service, span, report),
            DraftSource::Interface(None) | DraftSource::Unknown => {}
            DraftSource::Pool(pool) => {
                let span = pool.entry("pool").map_or(&pool.span, |entry| &entry.at);
                rewritten(service, span, report);
                let addresses = pool_addresses(pool);
                families(draft, service, &addresses, span, report);
                if let Some(ports) = pool.port_range("ports") {
                    let span = if ports.written { &ports.span } else { span };
                    not_empty(draft, service, &addresses, ports.value, span, report);
                }
            }
            DraftSource::Vip(span) => {
                rewritten(service, span, report);
                if let Some(vip) = &service.vip {
                    families(draft, service, &[vip.value], span, report);
                }
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

/// An own source address and half-NAT exclude each other.
fn rewritten(service: &Service<'_>, span: &Span, report: &mut Report) {
    if let (true, Some(forwarding)) = (service.keeps_client(), &service.forwarding) {
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
            .servers(service)
            .iter()
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
    let count = usize::from(high - low) + 1;
    // More ports than any sensible list of sockets: no need to count.
    if count > 4096 {
        return;
    }
    for address in addresses {
        let listened: HashSet<u16> = draft
            .services
            .iter()
            .filter(|other| other.vip.as_ref().is_some_and(|vip| vip.value == *address) && other.is(protocol.value))
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
