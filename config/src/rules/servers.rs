//! Real servers: listed once in a group, the same everywhere, never the service itself.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use crate::diagnostic::{Report, Span};
use crate::draft::{Draft, DraftPorts, Group, Members, Persists, Server, Service};
use crate::model::{AdminState, Protocol, SORRY_NAME};

/// Different real servers (address and port) in one file.
const REAL_SERVERS_MAX: usize = 4096;

/// The same address and port is one real server, in whatever group it stands.
type Identity = (IpAddr, Option<u16>);

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    let mut real: HashMap<Identity, &Server<'_>> = HashMap::new();
    for Group { servers, section, .. } in &draft.groups {
        group(servers, &section.span, report);
        same_everywhere(servers, &mut real, report);
    }
    for service in &draft.services {
        if let Members::Own(servers) = &service.members {
            group(servers, &service.section.span, report);
            same_everywhere(servers, &mut real, report);
        }
        sorry(draft, service, report);
        one_port_for_many(service, draft.servers(service), report);
    }
    behind_another(draft, report);
}

/// One group for itself.
fn group(servers: &[Server<'_>], header: &Span, report: &mut Report) {
    let mut seen: HashMap<Identity, &Server<'_>> = HashMap::new();
    for server in servers {
        limit(server, report);
        let Some(address) = &server.address else { continue };
        let identity = (address.value, server.port.as_ref().map(|port| port.value));
        if let Some(first) = seen.get(&identity) {
            let finding = report.error(
                "duplicate-server",
                &address.span,
                format!("{} stands twice in this group", shown(identity)),
            );
            if let Some(first) = &first.address {
                finding.label(&first.span, "first here");
            }
            finding.hint("remove one of them; a larger share is `weight`");
        } else {
            seen.insert(identity, server);
        }
    }
    let weights: u64 = servers
        .iter()
        .filter(|server| server.admin.value == AdminState::Ready)
        .map(|server| u64::from(server.weight.value))
        .sum();
    if let (0, Some(first)) = (weights, servers.first()) {
        let place = if first.weight.written { &first.weight.span } else { header };
        let what = if servers.iter().any(|server| server.admin.value == AdminState::Ready) {
            "all servers have weight 0"
        } else {
            "all servers are drained or halted"
        };
        report
            .warning("no-server", place, format!("{what}: nobody takes new connections"))
            .hint("leave at least one ready, with a weight");
    }
    let backup = servers.first().filter(|_| servers.iter().all(is_backup));
    if let Some(span) = backup.and_then(|first| first.section.written("backup")) {
        report
            .warning("no-effect", span, "all servers are backups: they serve as if none was")
            .hint("leave one without `backup`");
    }
}

fn is_backup(server: &Server<'_>) -> bool {
    server.section.bool("backup").is_some_and(|backup| backup.value)
}

/// Admin state and limit belong to the real server, so every mention of it must agree.
fn same_everywhere<'d, 's>(
    servers: &'d [Server<'s>],
    real: &mut HashMap<Identity, &'d Server<'s>>,
    report: &mut Report,
) {
    for server in servers {
        let Some(address) = &server.address else { continue };
        let identity = (address.value, server.port.as_ref().map(|port| port.value));
        let Some(first) = real.get(&identity) else {
            if real.len() == REAL_SERVERS_MAX {
                report
                    .error("too-many", &address.span, format!("more than {REAL_SERVERS_MAX} different real servers"))
                    .hint("split the file over several machines");
            }
            if real.len() <= REAL_SERVERS_MAX {
                real.insert(identity, server);
            }
            continue;
        };
        let differing = [
            ("admin", first.admin.value != server.admin.value, &first.admin.span, &server.admin.span),
            (
                "max_connections",
                first.max_connections.value != server.max_connections.value,
                &first.max_connections.span,
                &server.max_connections.span,
            ),
        ];
        for (key, differs, first_span, span) in differing {
            if differs {
                report
                    .error(
                        "different-server",
                        span,
                        format!("{} is one real server, but has two different values of `{key}`", shown(identity)),
                    )
                    .label(first_span, format!("the other, of {}", first.title()))
                    .hint("write the same in both places, or use a `[[group]]`");
            }
        }
    }
}

fn shown(identity: Identity) -> String {
    match identity {
        (address, Some(port)) => SocketAddr::new(address, port).to_string(),
        (address, None) => address.to_string(),
    }
}

fn limit(server: &Server<'_>, report: &mut Report) {
    if let Some(min) = server.section.integer("min_connections") {
        least_and_most(
            min.value,
            &min.span,
            i64::from(server.max_connections.value),
            &server.max_connections.span,
            report,
        );
    }
}

/// Who says sorry is none of those for whom it is said, and there is somebody.
fn sorry(draft: &Draft<'_>, service: &Service<'_>, report: &mut Report) {
    let Some(sorry) = &service.sorry else { return };
    let port = |server: &Server<'_>| server.port.as_ref().map(|port| port.value);
    let twin = draft.all_servers(service).filter(|other| !std::ptr::eq(*other, sorry)).find(|other| {
        let addresses = other.address.as_ref().zip(sorry.address.as_ref());
        addresses.is_some_and(|(other, own)| other.value == own.value) && port(other) == port(sorry)
    });
    if let (Some(twin), Some(address)) = (twin, &sorry.address) {
        let finding = report.error(
            "duplicate-server",
            &address.span,
            format!("{} would say sorry for itself", shown((address.value, port(sorry)))),
        );
        if let Some(first) = &twin.address {
            finding.label(&first.span, "a server of the service");
        }
        finding.hint("name another server or port; one that serves when others are down is `backup = true`");
    }
    let named = draft.all_servers(service).filter_map(|server| server.name.as_ref());
    for name in named.filter(|name| name.value == SORRY_NAME) {
        report
            .error("duplicate-name", &name.span, format!("a server is named \"{SORRY_NAME}\", as the sorry server is"))
            .label(&sorry.section.span, "the sorry server")
            .hint("rename it");
    }
    if draft.all_servers(service).all(|server| std::ptr::eq(server, sorry))
        && !service.section.broken.contains(&"server")
    {
        report
            .error("no-effect", &sorry.section.span, "`sorry` stands in for nobody: the service has no servers")
            .hint("remove it, or add `[[service.server]]`");
    }
    let page = service.http.and_then(|http| http.table("maintenance"));
    if let Some(page) = page.filter(|page| page.word("when").is_some_and(|when| when.value == "no-server")) {
        report
            .error(
                "conflicting-keys",
                &sorry.section.span,
                "while no server can serve, both a server and a page are to",
            )
            .label(&page.span, "the page")
            .hint("remove `sorry`, or `http.maintenance`; with `when = \"always\"` the page is for everybody");
    }
}

fn least_and_most(min: i64, min_span: &Span, max: i64, max_span: &Span, report: &mut Report) {
    if max > 0 && min > max {
        report
            .error("min-over-max", min_span, format!("`min_connections` is {min}, `max_connections` only {max}"))
            .label(max_span, "the limit")
            .hint("raise the limit; 0 means no limit");
    }
}

/// A port of the server takes the connections of all ports of the service.
fn one_port_for_many(service: &Service<'_>, servers: &[Server<'_>], report: &mut Report) {
    let many = match &service.ports {
        Some(DraftPorts::Set(ports)) if ports.value.count() > 1 => &ports.span,
        Some(DraftPorts::All(span)) => span,
        _ => return,
    };
    if let Some(port) = servers.iter().find_map(|server| server.port.as_ref()) {
        report
            .warning(
                "one-port",
                &port.span,
                format!("all ports of service {} go to port {} of the server", service.title(), port.value),
            )
            .label(many, "several ports")
            .hint("remove `port` to keep the client's, or make a service for each port");
    }
}

/// A service behind another one sees the balancer as its only client (requirements.md trap 13).
fn behind_another(draft: &Draft<'_>, report: &mut Report) {
    let mut pinned: HashMap<IpAddr, Vec<&Service<'_>>> = HashMap::new();
    for service in &draft.services {
        let by_address = matches!(&service.persistence, Persists::By(kinds) if kinds.first().is_some_and(|kind| kind.value == "source-ip"));
        if let (true, Some(vip)) = (by_address, &service.vip) {
            pinned.entry(vip.value).or_default().push(service);
        }
    }
    let mut told = HashSet::new();
    for front in draft.services.iter().filter(|service| !service.keeps_client()) {
        for server in draft.servers_and_sorry(front) {
            let Some(address) = &server.address else { continue };
            for inner in pinned.get(&address.value).map_or(&[][..], Vec::as_slice) {
                let meets = front.protocol == inner.protocol && reaches(front, server, inner);
                if meets && !std::ptr::eq(front, *inner) && told.insert(address.span.start) {
                    let finding = report.warning(
                        "hidden-clients",
                        &address.span,
                        format!(
                            "all clients of service {} will look like one to service {}, and stick to one server",
                            front.title(),
                            inner.title()
                        ),
                    );
                    if let Some(by) = inner.persistence.kind(|kind| kind == "source-ip") {
                        finding.label(&by.span, "persistence by source address");
                    }
                    finding.hint("name the real servers here, or do without persistence there");
                }
            }
        }
    }
}

fn reaches(front: &Service<'_>, server: &Server<'_>, inner: &Service<'_>) -> bool {
    if !front.is(Protocol::Tcp) && !front.is(Protocol::Udp) {
        return false;
    }
    match (&server.port, &front.ports) {
        (Some(port), _) => inner.port(port.value).is_some(),
        (None, Some(DraftPorts::Set(ports))) => {
            let first = ports.value.ranges.iter().map(|range| range.low);
            inner.first_of(first).is_some()
        }
        (None, _) => false,
    }
}
