//! `[[interface]]`, `[[route]]`, `[[bridge]]`, `[router]` and the names that refer to them.

use std::collections::HashMap;

use crate::decode::{At, Section, Value};
use crate::diagnostic::{Report, Span};
use crate::draft::Draft;

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    let links = links(draft.root, report);
    addresses(draft.root, report);
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
    for section in refer {
        if let Some(interface) = section.text("interface") {
            known(interface.value, &interface.span, &links, report);
        }
    }
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

/// An address belongs to one interface.
fn addresses(root: &Section, report: &mut Report) {
    let mut seen: HashMap<std::net::IpAddr, Span> = HashMap::new();
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
