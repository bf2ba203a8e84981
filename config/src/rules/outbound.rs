//! What leaves from an address of ours though no service has it.

use std::collections::HashMap;

use crate::build::pool_addresses;
use crate::decode::{At, Section, Value};
use crate::diagnostic::{Report, Span};
use crate::draft::{Draft, DraftPorts, DraftSource};
use crate::model::{PROBE_PORTS, Plane};
use crate::rules::network::{is_kept, routes};

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    let nats = draft.root.tables("outbound_nat");
    if let Some(nat) = nats.first()
        && !routes(draft.root)
        && !draft.root.broken.contains(&"router")
        && !report.incomplete
    {
        report
            .error("needs-router", &nat.span, "`outbound_nat` is for what is routed, and nothing is")
            .hint("add `[router]` with `enabled = true`");
    }
    let mut names: HashMap<&str, Span> = HashMap::new();
    for nat in nats {
        if let Some(name) = nat.text("name") {
            match names.get(name.value) {
                Some(first) => {
                    let message = format!("two outbound_nat are named \"{}\"", name.value);
                    report
                        .error("duplicate-name", &name.span, message)
                        .label(first, "first here")
                        .hint("rename one of them");
                }
                None => {
                    names.insert(name.value, name.span.clone());
                }
            }
        }
        from_somewhere(nat, report);
        match nat.table("source").filter(|source| source.word("pool").is_none()) {
            Some(pool) => judge_pool(draft, nat, pool, report),
            None => facing(draft, nat, report),
        }
    }
}

/// Outside is where `from` is not.
fn from_somewhere(nat: &Section, report: &mut Report) {
    let from = nat.list("from").map_or(&[][..], |list| list.value);
    for At { value, span, .. } in from {
        if matches!(value, Value::Network(network) if network.prefix == 0) {
            report
                .error("no-outside", span, "whoever opens a flow would be inside, and nobody outside")
                .hint("name the networks of the servers");
        }
    }
}

/// The address of an interface is known once it is said which.
fn facing(draft: &Draft<'_>, nat: &Section, report: &mut Report) {
    if nat.broken.contains(&"source") || nat.broken.contains(&"interface") {
        return;
    }
    let source = nat.table("source");
    let span = source.and_then(|source| source.entry("pool")).map_or(&nat.span, |entry| &entry.at);
    let Some(name) = nat.text("interface") else {
        report
            .error("missing-key", span, "it is not said the address of which interface is meant")
            .hint("add `interface = \"...\"`, or name addresses: `source = { pool = [\"...\"] }`");
        return;
    };
    let is_it = |bridge: &&Section| bridge.text("name").is_some_and(|own| own.value == name.value);
    if draft.root.tables("bridge").iter().any(|bridge| is_it(&bridge)) {
        report
            .error(
                "not-routed",
                &name.span,
                format!("\"{}\" is a bridge: what leaves there does so by an arm", name.value),
            )
            .hint("name an arm of it, and addresses: `source = { pool = [\"...\"] }`");
    }
    let is_vlan = draft.root.tables("interface").iter().any(|interface| {
        interface.tables("vlan").iter().any(|vlan| {
            match (vlan.text("name"), vlan.integer("id"), interface.text("name")) {
                (Some(own), ..) => own.value == name.value,
                (None, Some(id), Some(link)) => format!("{}.{}", link.value, id.value) == name.value,
                _ => false,
            }
        })
    });
    if let Some(ports) = source.and_then(|source| source.port_range("ports")).filter(|_| is_vlan) {
        of_probes(ports.value, &ports.span, report);
    }
}

fn judge_pool(draft: &Draft<'_>, nat: &Section, pool: &Section, report: &mut Report) {
    let addresses = pool_addresses(pool);
    let span = pool.entry("pool").map_or(&pool.span, |entry| &entry.at);
    if addresses.is_empty() {
        return;
    }
    for (is_ipv4, family) in [(true, "IPv4"), (false, "IPv6")] {
        let is_family =
            |item: &&At<Value>| matches!(&item.value, Value::Network(network) if network.address.is_ipv4() == is_ipv4);
        let from = nat.list("from").map_or(&[][..], |list| list.value);
        if let Some(orphan) = from.iter().find(is_family)
            && addresses.iter().all(|address| address.is_ipv4() != is_ipv4)
        {
            report
                .error("mixed-families", span, format!("no {family} address for what comes from this {family} network"))
                .label(&orphan.span, "the network")
                .hint(format!("add an {family} address to `source = {{ pool = [...] }}`"));
        }
    }
    for service in &draft.services {
        let Some(vip) = service.vip.as_ref().filter(|vip| addresses.contains(&vip.value)) else { continue };
        if let Some(DraftPorts::All(all)) = &service.ports {
            report
                .error("empty-pool", span, format!("no port is left at {}: a service has all of them", vip.value))
                .label(all, "all of them")
                .hint("use an address that no `ports = \"all\"` service has");
        }
    }
    for service in draft.services.iter().filter(|service| service.plane.value == Plane::Stream) {
        let (theirs, other) = match (&service.source, &service.vip) {
            (DraftSource::Pool(pool), _) => (pool_addresses(pool), &pool.span),
            (DraftSource::Vip(span), Some(vip)) => (vec![vip.value], span),
            _ => continue,
        };
        if let Some(address) = theirs.iter().find(|address| addresses.contains(address)) {
            report
                .error("both-planes", span, format!("ports of {address} are leased on both planes"))
                .label(other, "on the stream plane")
                .hint("give each plane source addresses of its own");
        }
    }
    if addresses.iter().any(|&address| is_kept(draft.root, address)) {
        match pool.port_range("ports") {
            Some(ports) => of_probes(ports.value, &ports.span, report),
            None => of_probes((1, u16::MAX), span, report),
        }
    }
}

/// At addresses that Towpath keeps, health checks need ports that nothing else leases.
fn of_probes((_, high): (u16, u16), span: &Span, report: &mut Report) {
    let (first, last) = PROBE_PORTS;
    if high >= first {
        let message = format!("ports {first}-{last} of Towpath's own addresses are for health checks");
        report.error("probe-ports", span, message).hint(format!("add `ports = \"1024-{}\"`", first - 1));
    }
}
