//! Plane and forwarding: which of them go together.

use std::net::IpAddr;

use crate::decode::{Section, Value};
use crate::diagnostic::{Report, Span};
use crate::draft::{Draft, Service};
use crate::model::{Balance, Forwarding, Plane, Protocol};

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    for service in &draft.services {
        match service.plane.value {
            Plane::Stream => stream(service, report),
            Plane::Packet => packet(draft, service, report),
        }
        failure(draft, service, report);
        panic(draft, service, report);
        slow_start(draft, service, report);
    }
}

fn stream(service: &Service<'_>, report: &mut Report) {
    if let Some(forwarding) = &service.forwarding {
        report
            .error(
                "needs-packet-plane",
                &forwarding.span,
                format!("`forwarding = \"{}\"` is for packets, this service is on the stream plane", forwarding.value),
            )
            .hint("use `plane = \"packet\"`, or remove `forwarding`");
    }
    if let Some(span) = service.section.written("client_networks") {
        report
            .warning(
                "no-effect",
                span,
                "`client_networks` has no effect: only half-NAT depends on where clients come from",
            )
            .hint("remove it");
    }
    for key in ["next_hop", "interface"] {
        if let Some(span) = service.section.written(key) {
            report
                .error(
                    "needs-packet-plane",
                    span,
                    format!("`{key}` is for packets: on the stream plane the kernel routes"),
                )
                .hint(format!("use `plane = \"packet\"`, or remove `{key}` and set the kernel's routes"));
        }
    }
}

fn packet(draft: &Draft<'_>, service: &Service<'_>, report: &mut Report) {
    if let Some(span) = service.section.written("redispatch") {
        report
            .warning("no-effect", span, "`redispatch` has no effect: connects are tried again only on the stream plane")
            .hint("remove it");
    }
    if let Some(vip) = &service.vip
        && let Some(next_hop) = service.section.address("next_hop")
        && vip.value.is_ipv4() != next_hop.value.is_ipv4()
    {
        report
            .error("mixed-families", &next_hop.span, "VIP and next hop are of different families")
            .label(&vip.span, "the VIP")
            .hint("name a next hop of the VIP's family");
    }
    for server in draft.servers_and_sorry(service) {
        let (Some(vip), Some(address)) = (&service.vip, &server.address) else { continue };
        if vip.value.is_ipv4() == address.value.is_ipv4() {
            continue;
        }
        let Some(forwarding) = service.forwarding.as_ref().filter(|_| service.keeps_client()) else { continue };
        let told = format!("`forwarding = \"{}\"` cannot turn IPv4 into IPv6 or back", forwarding.value);
        report
            .error("mixed-families", &address.span, told)
            .label(&vip.span, "the VIP")
            .hint("use `forwarding = \"full-nat\"` with a source address of the server's family");
    }
    let Some(forwarding) = service.forwarding.as_ref().filter(|_| service.keeps_client()) else { return };
    if let (Forwarding::Dsr, Some(span)) = (service.forwarding(), service.section.written("next_hop")) {
        report
            .warning(
                "no-effect",
                span,
                "`next_hop` has no effect: with direct server return replies bypass the balancer",
            )
            .hint("remove it");
    }
    for server in draft.servers_and_sorry(service) {
        if let ("dsr", Some(port)) = (forwarding.value, &server.port) {
            report
                .error("conflicting-keys", &port.span, "direct server return cannot translate ports")
                .label(&forwarding.span, "replies bypass the balancer")
                .hint("remove `port`, or use `forwarding = \"full-nat\"`");
        }
    }
    // With a pool those clients get a source address of ours.
    if forwarding.value == "half-nat" && !service.leases() {
        on_link_clients(draft, service, &forwarding.span, report);
    }
}

/// A client on the servers' network gets its reply straight from the server, and resets it
/// (requirements.md traps 1 and 2, T-29).
fn on_link_clients(draft: &Draft<'_>, service: &Service<'_>, forwarding: &Span, report: &mut Report) {
    let hint = "add `source = { pool = [...] }` for them, use `forwarding = \"full-nat\"`, or put the servers into a network without clients";
    let servers = || draft.servers_and_sorry(service).filter_map(|server| server.address.as_ref());
    if let Some(networks) = service.section.list("client_networks") {
        for item in networks.value {
            let Value::Network(network) = item.value else { continue };
            if network.prefix < if network.address.is_ipv4() { 8 } else { 32 } {
                continue;
            }
            if let Some(server) = servers().find(|server| network.holds(server.value)) {
                report
                    .error(
                        "half-nat-on-link",
                        &item.span,
                        format!(
                            "clients of {network} share a network with server {}: its replies bypass the balancer",
                            server.value
                        ),
                    )
                    .label(&server.span, "the server")
                    .label(forwarding, "keeps the client's address")
                    .hint(hint);
            }
        }
        return;
    }
    let Some(vip) = &service.vip else { return };
    if let Some(server) = servers().find(|server| shares_network(draft.root, vip.value, server.value)) {
        report
            .error(
                "half-nat-on-link",
                forwarding,
                format!("the VIP and server {} share a network: clients of that network will not work, replies to them bypass the balancer", server.value),
            )
            .label(&server.span, "the server")
            .hint("add `source = { pool = [...] }` for them, use `forwarding = \"full-nat\"`, or say where clients come from: `client_networks = [...]`");
    }
}

/// By the networks of `[[interface]]`.
fn shares_network(root: &Section, one: IpAddr, other: IpAddr) -> bool {
    let vlans = root.tables("interface").iter().flat_map(|interface| interface.tables("vlan"));
    let owners = root.tables("interface").iter().chain(vlans).chain(root.tables("bridge"));
    owners
        .filter_map(|owner| owner.list("addresses"))
        .flat_map(|list| list.value)
        .any(|item| matches!(item.value, Value::Network(network) if network.holds(one) && network.holds(other)))
}

/// Whether nobody says when a server goes down.
fn is_unchecked(draft: &Draft<'_>, service: &Service<'_>) -> bool {
    draft.health(service).is_none_or(|health| health.word("check").is_some_and(|check| check.value == "none"))
}

fn panic(draft: &Draft<'_>, service: &Service<'_>, report: &mut Report) {
    if let Some(span) = service.section.written("panic_threshold")
        && service.section.integer("panic_threshold").is_some_and(|percent| percent.value > 0)
        && is_unchecked(draft, service)
    {
        report
            .warning("no-effect", span, "`panic_threshold` has no effect: without a check every server counts as up")
            .hint("add `health = { check = \"tcp\" }`, or remove it");
    }
}

/// A hash gives by clients, not by shares: one that grew would move clients with each step.
fn slow_start(draft: &Draft<'_>, service: &Service<'_>, report: &mut Report) {
    let Some(slow_start) = service.section.duration("slow_start").filter(|slow_start| slow_start.value > 0) else {
        return;
    };
    let method = match service.balance(&draft.groups) {
        Balance::Maglev => "maglev",
        Balance::SourceHash => "source-hash",
        _ => return,
    };
    report
        .error(
            "conflicting-keys",
            &slow_start.span,
            format!("`slow_start` does not go with `balance = \"{method}\"`: clients would move with each step"),
        )
        .hint("remove it, or use `balance = \"weighted-least-connections\"`");
}

fn failure(draft: &Draft<'_>, service: &Service<'_>, report: &mut Report) {
    let Some(span) = service.section.written("drop_on_failure") else { return };
    if service.section.bool("drop_on_failure").is_none_or(|drops| !drops.value) {
        return;
    }
    if is_unchecked(draft, service) {
        report
            .warning("no-effect", span, "`drop_on_failure` has no effect: nothing tells when a server goes down")
            .hint("add `health = { check = \"tcp\" }`");
    } else if service.forwarding() == Forwarding::Dsr && service.is(Protocol::Tcp) {
        report
            .warning(
                "no-effect",
                span,
                "`drop_on_failure` has no effect on clients: what servers send passes Towpath by, so only the server can be reset",
            )
            .hint("use `forwarding = \"full-nat\"`, or remove it");
    }
}
