//! `[[interface]]`, `[[route]]`, `[[bridge]]`, `[router]` and the names that refer to them.

use std::cmp::Reverse;
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
    bridges(draft.root, &links, report);
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
    unused(draft, report);
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

/// A bridge has two arms, and each link is an arm of one.
fn bridges(root: &Section, links: &HashMap<String, Span>, report: &mut Report) {
    let mut taken: HashMap<&str, &Span> = HashMap::new();
    for bridge in root.tables("bridge") {
        let Some(arms) = bridge.list("interfaces") else { continue };
        if arms.value.len() != 2 {
            report.error("missing-arm", &arms.span, "a bridge has two arms").hint("name two interfaces");
        }
        for arm in arms.value {
            let Value::Text(name) = &arm.value else { continue };
            known(name, &arm.span, links, report);
            match taken.get(name.as_str()) {
                Some(first) => {
                    report
                        .error("conflicting-keys", &arm.span, format!("\"{name}\" is an arm of two bridges"))
                        .label(first, "first here")
                        .hint("a link has one other end: name another one");
                }
                None => {
                    taken.insert(name, &arm.span);
                    judge_arm(root, name, &arm.span, report);
                }
            }
        }
    }
}

/// An arm is a link as it is: what else is said of it would be about frames that pass.
fn judge_arm(root: &Section, name: &str, arm: &Span, report: &mut Report) {
    let is_named = |section: &&Section| section.text("name").is_some_and(|own| own.value == name);
    let Some(interface) = root.tables("interface").iter().find(is_named) else {
        let is_bridge = root.tables("bridge").iter().any(|bridge| is_named(&bridge));
        let vlans = root.tables("interface").iter().flat_map(|interface| interface.tables("vlan"));
        let dotted = name.rsplit_once('.').is_some_and(|(link, _)| {
            root.tables("interface").iter().any(|interface| interface.text("name").is_some_and(|own| own.value == link))
        });
        if is_bridge || dotted || vlans.into_iter().any(|vlan| is_named(&vlan)) {
            report
                .error(
                    "conflicting-keys",
                    arm,
                    format!("\"{name}\" is no link of its own: an arm of a bridge is a whole link"),
                )
                .hint("name two links; frames with VLAN tags pass between them as they are");
        }
        return;
    };
    for (key, why) in [
        ("addresses", "put them into `addresses` of the bridge: both arms have them"),
        ("vlan", "remove it: frames with VLAN tags pass the bridge as they are"),
    ] {
        if let Some(span) = interface.written(key) {
            report
                .error("conflicting-keys", span, format!("\"{name}\" is an arm of a bridge and has `{key}`"))
                .label(arm, "the arm")
                .hint(why);
        }
    }
}

/// Whether packets of no service are forwarded, as far as it is known.
pub(super) fn routes(root: &Section) -> bool {
    root.table("router").is_some_and(|router| router.bool("enabled").is_none_or(|enabled| enabled.value))
}

/// VLANs and static routes belong to the packet plane, which runs if it has something to do.
fn unused(draft: &Draft<'_>, report: &mut Report) {
    let root = draft.root;
    let is_used = routes(root)
        || draft.services.iter().any(|service| service.plane.value == Plane::Packet)
        || !root.tables("bridge").is_empty()
        || ["service", "router", "bridge"].iter().any(|key| root.broken.contains(key));
    let mut servers = draft.services.iter().flat_map(|service| draft.servers_and_sorry(service));
    let is_there = |address: &At<IpAddr>| kept_network(root, address.value).is_some();
    // Without a service, or with relays to a server on a VLAN, that is an error already.
    if is_used
        || draft.services.is_empty()
        || servers.any(|server| server.address.as_ref().is_some_and(is_there))
        || report.incomplete
    {
        return;
    }
    let hint = "use `plane = \"packet\"` for a service, or `[router]` with `enabled = true`; or remove it";
    for span in root.tables("interface").iter().filter_map(|interface| interface.written("vlan")) {
        report.warning("no-effect", span, "the VLAN has no effect: nothing is done on the packet plane").hint(hint);
    }
    if let Some(span) = root.written("route") {
        let message = "static routes have no effect: nothing is done on the packet plane, and relays take the kernel's";
        report.warning("no-effect", span, message).hint(hint);
    }
}

/// Without services something else must be done; and what rules ask for must exist.
fn router(root: &Section, report: &mut Report) {
    let is_enabled = routes(root);
    if ["service", "bridge"].iter().all(|key| root.tables(key).is_empty())
        && !is_enabled
        && !["service", "router", "bridge"].iter().any(|key| root.broken.contains(key))
        && !report.incomplete
    {
        report.error("missing-key", &root.span, "the file has no `[[service]]`").hint(
            "add `[[service]]`; or route only: `[router]` with `enabled = true`; or be a cable only: `[[bridge]]`",
        );
    }
    let Some(router) = root.table("router") else { return };
    for key in ["source_check", "policy", "rule"] {
        if let Some(span) = router.written(key).filter(|_| !is_enabled) {
            report
                .warning("no-effect", span, format!("`router.{key}` has no effect: nothing is forwarded"))
                .hint("add `enabled = true` to `[router]`, or remove it");
        }
    }
    let rules = router.tables("rule");
    for rule in rules {
        for name in ["from_interface", "to_interface"].into_iter().filter_map(|key| rule.text(key)) {
            let is_it = |bridge: &&Section| bridge.text("name").is_some_and(|own| own.value == name.value);
            if let Some(bridge) = root.tables("bridge").iter().find(is_it) {
                let mut error = report.error(
                    "not-routed",
                    &name.span,
                    format!("\"{}\" is a bridge, and what crosses it is not routed", name.value),
                );
                if let Some(arms) = bridge.list("interfaces") {
                    error = error.label(&arms.span, "its arms");
                }
                error.hint("for what is routed to or from the network there name its arms, a rule for each");
            }
        }
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

/// The kernel has no part in VLANs and bridges: what it relays does not reach a server there.
fn tagged(draft: &Draft<'_>, service: &Service<'_>, report: &mut Report) {
    if service.plane.value != Plane::Stream {
        return;
    }
    for server in draft.servers_and_sorry(service).filter_map(|server| server.address.as_ref()) {
        let Some((kind, network)) = kept_network(draft.root, server.value) else { continue };
        report
            .error(
                "needs-packet-plane",
                &server.span,
                format!("server {} is on a {kind}, and the stream plane has no way there", server.value),
            )
            .label(&network.span, "its network")
            .hint(format!("use `plane = \"packet\"`, or give the kernel an interface there instead of the {kind}"));
    }
}

/// Whether an address is one that Towpath itself has on a VLAN or a bridge.
pub(super) fn is_kept(root: &Section, address: IpAddr) -> bool {
    let vlans = root.tables("interface").iter().flat_map(|interface| interface.tables("vlan"));
    let items = vlans.chain(root.tables("bridge")).filter_map(|owner| owner.list("addresses"));
    let mut networks = items.flat_map(|list| list.value);
    networks.any(|item| matches!(&item.value, Value::Network(network) if network.address == address))
}

/// The VLAN or bridge on whose network an address is, as a word and by its entry: of several networks that hold it the longest counts.
pub(super) fn kept_network(root: &Section, address: IpAddr) -> Option<(&'static str, &At<Value>)> {
    let interfaces = root.tables("interface");
    let plain = interfaces.iter().map(|interface| (interface, None));
    let vlans = interfaces.iter().flat_map(|interface| interface.tables("vlan")).map(|vlan| (vlan, Some("VLAN")));
    let bridges = root.tables("bridge").iter().map(|bridge| (bridge, Some("bridge")));
    let networks = plain.chain(vlans).chain(bridges).flat_map(|(owner, kind)| {
        let addresses = owner.list("addresses").map_or(&[][..], |list| list.value);
        addresses.iter().map(move |item| (kind, item))
    });
    let holding = networks.filter_map(|(kind, item)| match &item.value {
        Value::Network(network) if network.holds(address) => Some((network.prefix, kind, item)),
        _ => None,
    });
    // The first of the longest.
    let (_, kind, item) = holding.min_by_key(|&(prefix, ..)| Reverse(prefix))?;
    kind.map(|kind| (kind, item))
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
