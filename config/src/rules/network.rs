//! `[[interface]]`, `[[route]]`, `[[bridge]]`, `[router]` and the names that refer to them.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::decode::{At, Section, Value};
use crate::diagnostic::{Report, Span};
use crate::draft::{Draft, Service};
use crate::model::Plane;

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    let links = links(draft.root, report);
    addresses(draft.root, report);
    vlans(draft.root, report);
    for service in &draft.services {
        tagged(draft, service, report);
    }
    for bridge in draft.root.tables("bridge") {
        let Some(arms) = bridge.list("interfaces") else { continue };
        if arms.value.len() != 2 {
            report.error("missing-arm", &arms.span, "a bridge has two arms").hint("name two interfaces");
        }
        for arm in arms.value {
            if let Value::Text(name) = &arm.value {
                known(name, &arm.span, &links, report);
            }
        }
    }
    let refer =
        draft.root.tables("route").iter().chain(draft.root.tables("outbound_nat")).chain(draft.root.tables("service"));
    let rules = draft.root.table("router").map_or(&[][..], |router| router.tables("rule"));
    let between = ["from_interface", "to_interface"];
    let names = refer.filter_map(|section| section.text("interface"));
    let names = names.chain(rules.iter().flat_map(|rule| between.into_iter().filter_map(|key| rule.text(key))));
    for interface in names {
        known(interface.value, &interface.span, &links, report);
    }
    router(draft.root, report);
    for route in draft.root.tables("route") {
        if let (Some(via), Some(to)) = (route.address("via"), route.network("to"))
            && via.value.is_ipv4() != to.value.address.is_ipv4()
        {
            report
                .error("mixed-families", &via.span, "destination and next hop are of different families")
                .label(&to.span, "the destination")
                .hint("an IPv4 network has an IPv4 next hop, an IPv6 network an IPv6 one");
        }
    }
}

/// Without services something else must be done; and what rules ask for must exist.
fn router(root: &Section, report: &mut Report) {
    let router = root.table("router");
    let is_enabled = router.is_some_and(|router| router.bool("enabled").is_none_or(|enabled| enabled.value));
    if root.tables("service").is_empty()
        && !is_enabled
        && !["service", "router"].iter().any(|key| root.broken.contains(key))
        && !report.incomplete
    {
        report
            .error("missing-key", &root.span, "the file has no `[[service]]`")
            .hint("add `[[service]]`; or route only: `[router]` with `enabled = true`");
    }
    let Some(router) = router else { return };
    let rules = router.tables("rule");
    if let Some(span) = router.written("rule").filter(|_| !is_enabled) {
        report
            .warning("no-effect", span, "the rules have no effect: nothing is forwarded")
            .hint("add `enabled = true` to `[router]`, or remove them");
    }
    for rule in rules {
        if let (Some(ports), Some(protocol)) = (rule.written("ports"), rule.word("protocol"))
            && protocol.value == "icmp"
        {
            report
                .error("conflicting-keys", ports, "ICMP has no ports")
                .label(&protocol.span, "the protocol")
                .hint("use `protocol = \"tcp\"` or \"udp\", or remove `ports`");
        }
        if let (Some(from), Some(to)) = (rule.list("from"), rule.list("to"))
            && let (Some(from_v4), Some(to_v4)) = (are_v4(from.value), are_v4(to.value))
            && from_v4 != to_v4
        {
            report
                .error(
                    "mixed-families",
                    &to.span,
                    "sources and destinations have no family in common: the rule fits nothing",
                )
                .label(&from.span, "the sources")
                .hint("name networks of one family in both");
        }
    }
}

/// Whether these networks are of IPv4; `None` where some are and some are not.
fn are_v4(networks: &[At<Value>]) -> Option<bool> {
    let mut families = networks.iter().filter_map(|item| match item.value {
        Value::Network(network) => Some(network.address.is_ipv4()),
        _ => None,
    });
    let first = families.next()?;
    families.all(|family| family == first).then_some(first)
}

/// Names of interfaces, VLANs and bridges; each must be unique.
fn links(root: &Section, report: &mut Report) -> HashMap<String, Span> {
    let mut links: HashMap<String, Span> = HashMap::new();
    let mut add = |name: String, span: &Span, report: &mut Report| {
        if let Some(first) = links.get(&name) {
            report
                .error("duplicate-name", span, format!("two interfaces are named \"{name}\""))
                .label(first, "first here")
                .hint("rename one of them");
        } else {
            links.insert(name, span.clone());
        }
    };
    for interface in root.tables("interface") {
        let Some(name) = interface.text("name") else { continue };
        add(name.value.to_owned(), &name.span, report);
        for vlan in interface.tables("vlan") {
            match (vlan.text("name"), vlan.integer("id")) {
                (Some(own), _) => add(own.value.to_owned(), &own.span, report),
                (None, Some(id)) => add(format!("{}.{}", name.value, id.value), &id.span, report),
                (None, None) => {}
            }
        }
    }
    for bridge in root.tables("bridge") {
        if let Some(name) = bridge.text("name") {
            add(name.value.to_owned(), &name.span, report);
        }
    }
    links
}

fn known(name: &str, span: &Span, links: &HashMap<String, Span>, report: &mut Report) {
    if links.contains_key(name) || report.incomplete {
        return;
    }
    let hint = match crate::decode::nearest_name(name, links.keys().map(String::as_str), report) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => "add an `[[interface]]` of that name".to_owned(),
    };
    report.error("unknown-interface", span, format!("no interface is named \"{name}\"")).hint(hint);
}

/// A tag belongs to one VLAN of its link.
fn vlans(root: &Section, report: &mut Report) {
    for interface in root.tables("interface") {
        let mut seen: HashMap<i64, Span> = HashMap::new();
        for id in interface.tables("vlan").iter().filter_map(|vlan| vlan.integer("id")) {
            if let Some(first) = seen.get(&id.value) {
                report
                    .error("duplicate-vlan", &id.span, format!("VLAN {} is on this link twice", id.value))
                    .label(first, "first here")
                    .hint("write the addresses of both into one `[[interface.vlan]]`");
            } else {
                seen.insert(id.value, id.span);
            }
        }
    }
}

/// The kernel has no part in VLANs: what it relays does not reach a server there.
fn tagged(draft: &Draft<'_>, service: &Service<'_>, report: &mut Report) {
    if service.plane.value != Plane::Stream {
        return;
    }
    for server in draft.servers(service).iter().filter_map(|server| server.address.as_ref()) {
        let Some(vlan) = vlan_of(draft.root, server.value) else { continue };
        report
            .error(
                "needs-packet-plane",
                &server.span,
                format!("server {} is on a VLAN, and the stream plane has no way there", server.value),
            )
            .label(&vlan.span, "its network")
            .hint("use `plane = \"packet\"`, or give the kernel an interface of that VLAN and remove `[[interface.vlan]]`");
    }
}

/// Whether an address is one that Towpath itself has on a VLAN or a bridge.
pub(super) fn is_kept(root: &Section, address: IpAddr) -> bool {
    let vlans = root.tables("interface").iter().flat_map(|interface| interface.tables("vlan"));
    let items = vlans.chain(root.tables("bridge")).filter_map(|owner| owner.list("addresses"));
    let mut networks = items.flat_map(|list| list.value);
    networks.any(|item| matches!(&item.value, Value::Network(network) if network.address == address))
}

/// The VLAN on whose network an address is: of several networks that hold it the longest counts.
pub(super) fn vlan_of(root: &Section, address: IpAddr) -> Option<&At<Value>> {
    let mut best: Option<(u8, Option<&At<Value>>)> = None;
    for interface in root.tables("interface") {
        let plain = [(interface, false)];
        for (owner, is_vlan) in plain.into_iter().chain(interface.tables("vlan").iter().map(|vlan| (vlan, true))) {
            for item in owner.list("addresses").map_or(&[][..], |list| list.value) {
                if let Value::Network(network) = &item.value
                    && network.holds(address)
                    && best.is_none_or(|(prefix, _)| prefix < network.prefix)
                {
                    best = Some((network.prefix, is_vlan.then_some(item)));
                }
            }
        }
    }
    best.and_then(|(_, vlan)| vlan)
}

/// An address belongs to one interface.
fn addresses(root: &Section, report: &mut Report) {
    let mut seen: HashMap<IpAddr, Span> = HashMap::new();
    let vlans = root.tables("interface").iter().flat_map(|interface| interface.tables("vlan"));
    let owners = root.tables("interface").iter().chain(vlans).chain(root.tables("bridge"));
    for owner in owners {
        for At { value, span, .. } in owner.list("addresses").map_or(&[][..], |list| list.value) {
            let Value::Network(network) = value else { continue };
            if let Some(first) = seen.get(&network.address) {
                report
                    .error("duplicate-address", span, format!("{} is on two interfaces", network.address))
                    .label(first, "first here")
                    .hint("remove one of them");
            } else {
                seen.insert(network.address, span.clone());
            }
        }
    }
}
