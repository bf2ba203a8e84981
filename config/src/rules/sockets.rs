//! What services listen on: each address, port and protocol belongs to one (requirements.md E-09, trap 17).

use std::collections::HashSet;
use std::net::IpAddr;

use crate::diagnostic::{Report, Span};
use crate::draft::{Draft, DraftPorts, Service};
use crate::model::{Plane, Protocol};

/// Ports of one service on the stream plane: each is a socket per worker.
const STREAM_PORTS_MAX: usize = 1024;
/// Sockets on the stream plane, per worker.
const STREAM_SOCKETS_MAX: usize = 8192;
/// Listed ports of the whole file.
const PORTS_MAX: usize = 1 << 20;

struct Claim<'d> {
    vip: IpAddr,
    protocol: Protocol,
    low: u16,
    high: u16,
    service: usize,
    span: &'d Span,
}

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    amounts(draft, report);
    let mut claims: Vec<Claim<'_>> =
        draft.services.iter().enumerate().flat_map(|(index, service)| claims(index, service)).collect();
    claims.sort_by_key(|claim| (claim.vip, claim.protocol, claim.low, claim.service));
    let mut told = HashSet::new();
    // The claim of the sweep that reaches furthest: ranges are sorted by their low end.
    let mut reach: Option<&Claim<'_>> = None;
    for claim in &claims {
        let Some(other) =
            reach.filter(|other| (other.vip, other.protocol) == (claim.vip, claim.protocol) && claim.low <= other.high)
        else {
            reach = Some(claim);
            continue;
        };
        let (first, second) = if other.service < claim.service { (other, claim) } else { (claim, other) };
        if first.service != second.service && told.insert((first.service, second.service)) {
            clash(draft, first, second, claim.low, report);
        }
        if claim.high > other.high {
            reach = Some(claim);
        }
    }
}

fn claims<'d>(index: usize, service: &'d Service<'_>) -> Vec<Claim<'d>> {
    let (Some(vip), Some(protocol), Some(ports)) = (&service.vip, &service.protocol, &service.ports) else {
        return Vec::new();
    };
    let claim = |low, high, span| Claim { vip: vip.value, protocol: protocol.value, low, high, service: index, span };
    match ports {
        DraftPorts::All(span) => vec![claim(1, u16::MAX, span)],
        DraftPorts::Set(ports) => {
            ports.value.ranges.iter().map(|range| claim(range.low, range.high, &range.span)).collect()
        }
    }
}

fn clash(draft: &Draft<'_>, first: &Claim<'_>, second: &Claim<'_>, port: u16, report: &mut Report) {
    let (one, other) = (draft.services[first.service].title(), draft.services[second.service].title());
    let socket = std::net::SocketAddr::new(second.vip, port);
    let protocol = match second.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    report
        .error(
            "duplicate-socket",
            second.span,
            format!("services {one} and {other} both listen on {socket}/{protocol}"),
        )
        .label(first.span, format!("first here, in service {one}"))
        .hint("give one of them another `vip` or other `ports`");
}

fn amounts(draft: &Draft<'_>, report: &mut Report) {
    let (mut sockets, mut listed) = (0, 0);
    for service in &draft.services {
        let (ports, span) = match &service.ports {
            None => continue,
            Some(DraftPorts::All(span)) => {
                if service.plane.value == Plane::Stream {
                    report
                        .error("needs-packet-plane", span, "`ports = \"all\"` needs the packet plane")
                        .hint("list the ports, or use `plane = \"packet\"`");
                }
                continue;
            }
            Some(DraftPorts::Set(ports)) => (ports.value.count(), &ports.span),
        };
        listed += ports;
        if listed > PORTS_MAX {
            report
                .error("too-many", span, format!("more than {PORTS_MAX} ports in one file"))
                .hint("use `ports = \"all\"` for services with this many ports");
            return;
        }
        if service.plane.value == Plane::Packet {
            continue;
        }
        if ports > STREAM_PORTS_MAX {
            report
                .error(
                    "too-many",
                    span,
                    format!("{ports} ports, at most {STREAM_PORTS_MAX} per service on the stream plane"),
                )
                .hint("each port is a socket per worker; use `plane = \"packet\"` for wide ranges");
            continue;
        }
        let before = sockets;
        sockets += ports;
        if before <= STREAM_SOCKETS_MAX && sockets > STREAM_SOCKETS_MAX {
            report
                .error("too-many", span, format!("more than {STREAM_SOCKETS_MAX} sockets on the stream plane"))
                .hint("use `plane = \"packet\"` for services with many ports");
        }
    }
}
