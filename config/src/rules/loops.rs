//! Services whose servers are services: a circle would open connections until nothing is left.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::diagnostic::{Report, Span};
use crate::draft::{Draft, DraftPorts, Server, Service};
use crate::model::Protocol;

/// Sockets that are searched. A file with more is an error already.
const SOCKETS_MAX: usize = 1 << 16;

/// Ports of one service that are followed.
const PORTS_MAX: usize = 1024;

/// Which service listens on an address and port.
type Sockets = HashMap<(IpAddr, u16, Protocol), usize>;

/// From each service to those that its servers are, with the place that says so.
type Edges<'d> = Vec<Vec<(usize, &'d Span)>>;

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    let vips: HashSet<IpAddr> = draft.services.iter().filter_map(|service| Some(service.vip.as_ref()?.value)).collect();
    let behind_vips = || {
        let servers = draft.services.iter().flat_map(|service| draft.all_servers(service));
        servers.filter_map(|server| server.address.as_ref()).any(|address| vips.contains(&address.value))
    };
    // The usual file: no server is a VIP, and there is nothing to search.
    if !behind_vips() {
        return;
    }
    let sockets = sockets(draft);
    let edges: Edges<'_> = draft.services.iter().map(|service| edges(draft, service, &vips, &sockets)).collect();
    circles(draft, &edges, report);
}

fn sockets(draft: &Draft<'_>) -> Sockets {
    let mut sockets = HashMap::new();
    for (index, service) in draft.services.iter().enumerate() {
        let (Some(vip), Some(protocol), Some(DraftPorts::Set(ports))) =
            (&service.vip, &service.protocol, &service.ports)
        else {
            continue;
        };
        if sockets.len() + ports.value.count() > SOCKETS_MAX {
            break;
        }
        for port in ports.value.ranges.iter().flat_map(|range| range.low..=range.high) {
            sockets.entry((vip.value, port, protocol.value)).or_insert(index);
        }
    }
    sockets
}

fn edges<'d>(
    draft: &'d Draft<'_>,
    service: &'d Service<'_>,
    vips: &HashSet<IpAddr>,
    sockets: &Sockets,
) -> Vec<(usize, &'d Span)> {
    let mut edges: Vec<(usize, &Span)> = Vec::new();
    let Some(protocol) = &service.protocol else { return edges };
    for server in draft.all_servers(service) {
        let Some(address) = server.address.as_ref().filter(|address| vips.contains(&address.value)) else { continue };
        for port in ports_of(service, server) {
            if let Some(&to) = sockets.get(&(address.value, port, protocol.value))
                && !edges.iter().any(|(known, _)| *known == to)
            {
                edges.push((to, &address.span));
            }
        }
    }
    edges
}

/// The ports that a server is reached at; the first of many, which finds a circle of equal ranges as well.
fn ports_of(service: &Service<'_>, server: &Server<'_>) -> Vec<u16> {
    match (&server.port, &service.ports) {
        (Some(port), _) => vec![port.value],
        (None, Some(DraftPorts::Set(ports))) => {
            ports.value.ranges.iter().flat_map(|range| range.low..=range.high).take(PORTS_MAX).collect()
        }
        (None, _) => Vec::new(),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    Done,
    Never,
    OnPath,
}

/// Depth first, without recursion; each edge that closes a circle is told.
fn circles(draft: &Draft<'_>, edges: &Edges<'_>, report: &mut Report) {
    let mut seen = vec![Seen::Never; edges.len()];
    for start in 0..edges.len() {
        if seen[start] != Seen::Never {
            continue;
        }
        let mut path = vec![(start, 0)];
        seen[start] = Seen::OnPath;
        while let Some((node, next)) = path.last_mut() {
            let Some(&(to, span)) = edges[*node].get(*next) else {
                seen[*node] = Seen::Done;
                path.pop();
                continue;
            };
            *next += 1;
            match seen[to] {
                Seen::Done => {}
                Seen::Never => {
                    seen[to] = Seen::OnPath;
                    path.push((to, 0));
                }
                Seen::OnPath => {
                    let from = path.iter().position(|(node, _)| *node == to).unwrap_or(0);
                    let circle: Vec<usize> = path[from..].iter().map(|(node, _)| *node).collect();
                    tell(draft, &circle, span, report);
                }
            }
        }
    }
}

fn tell(draft: &Draft<'_>, circle: &[usize], span: &Span, report: &mut Report) {
    let message = match circle {
        [one] => format!(
            "a server of service {} is the service itself: connections would run in a circle",
            draft.services[*one].title()
        ),
        several => {
            let names: Vec<String> = several.iter().take(4).map(|index| draft.services[*index].title()).collect();
            format!("connections would run in a circle through services {}", names.join(", "))
        }
    };
    let finding = report.error("loop", span, message);
    for vip in circle.iter().take(4).filter_map(|index| draft.services[*index].vip.as_ref()) {
        finding.label(&vip.span, "on the way");
    }
    finding.hint("name the real server's address, or another `port`");
}
