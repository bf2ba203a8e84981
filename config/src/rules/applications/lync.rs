//! Lync, Skype for Business and OCS (requirements.md 3.1, 3.3, 6.2, 6.3).

use std::collections::HashSet;
use std::net::IpAddr;

use crate::diagnostic::Report;
use crate::draft::{Draft, Persists, Service};
use crate::model::{Application, Protocol};

/// Ports where TLS authenticates both ends, so that nobody between may end it (trap 22).
const MTLS: [u16; 3] = [5061, 5062, 8057];
/// STUN.
const STUN: u16 = 3478;
/// Ports that only Front Ends and Directors serve: their pools connect to themselves, so half-NAT fails (trap 1).
const POOL_ONLY: [u16; 19] =
    [80, 135, 444, 448, 4443, 5060, 5065, 5067, 5068, 5069, 5070, 5071, 5072, 5073, 5074, 5075, 5076, 5080, 8080];
/// Ports of OCS 2007 R2 that some guides list for Lync (`003_0f8a` L95).
const OCS_ONLY: [u16; 2] = [5074, 7069];

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    let pool_members = pool_members(draft);
    for service in draft.services.iter().filter(|service| product(service).is_some()) {
        half_nat(draft, service, &pool_members, report);
        ended_tls(draft, service, report);
        stun_over_udp(draft, service, report);
        if is_lync(service) {
            ocs_ports(service, report);
        }
        mobility_cookie(service, report);
    }
}

fn product(service: &Service<'_>) -> Option<&'static str> {
    match service.application.as_ref()?.value {
        Application::Lync2010 | Application::Lync2013 => Some("Lync"),
        Application::Ocs2007R2 => Some("OCS"),
        _ => None,
    }
}

fn is_lync(service: &Service<'_>) -> bool {
    product(service) == Some("Lync")
}

/// Addresses that serve a port which only pools have.
fn pool_members(draft: &Draft<'_>) -> HashSet<IpAddr> {
    draft
        .services
        .iter()
        .filter(|service| is_lync(service) && service.first_of(POOL_ONLY).is_some())
        .flat_map(|service| draft.servers(service))
        .filter_map(|server| Some(server.address.as_ref()?.value))
        .collect()
}

fn half_nat(draft: &Draft<'_>, service: &Service<'_>, pool_members: &HashSet<IpAddr>, report: &mut Report) {
    let Some(forwarding) = service.forwarding.as_ref().filter(|forwarding| forwarding.value == "half-nat") else {
        return;
    };
    let members = || draft.servers(service).iter().filter_map(|server| server.address.as_ref());
    let member = members().find(|address| pool_members.contains(&address.value));
    let (message, member) = match (product(service), member) {
        (Some("OCS"), _) => ("OCS needs source and destination rewritten; half-NAT is not supported", None),
        (_, Some(member)) => (
            "servers of a Lync pool connect to their own VIP: with half-NAT the reply bypasses the balancer",
            Some(member),
        ),
        (_, None) => return,
    };
    let finding = report.error("unsupported-forwarding", &forwarding.span, message);
    if let Some(member) = member {
        finding.label(&member.span, "serves ports of a Front End or Director");
    }
    finding.hint("use `forwarding = \"full-nat\"`");
}

fn ended_tls(draft: &Draft<'_>, service: &Service<'_>, report: &mut Report) {
    if service.tls_mode.value == "pass-through" {
        return;
    }
    let on_av_address = || {
        draft.services.iter().any(|other| {
            product(other).is_some()
                && other.vip.as_ref().map(|vip| vip.value) == service.vip.as_ref().map(|vip| vip.value)
                && other.first_of([STUN]).is_some()
        })
    };
    let found = match service.first_of(MTLS) {
        Some((port, span)) => Some((span, format!("port {port} is mutual TLS between servers"))),
        None => service
            .first_of([443])
            .filter(|_| service.vip.is_some() && on_av_address())
            .map(|(_, span)| (span, "port 443 of the A/V address carries STUN, not HTTPS".to_owned())),
    };
    if let Some((span, why)) = found {
        report
            .error("tls-must-pass", &service.tls_mode.span, format!("TLS must pass through here: {why}"))
            .label(span, "this port")
            .hint("use `tls.mode = \"pass-through\"`");
    }
}

/// Forgetting UDP is the usual mistake (trap 16).
fn stun_over_udp(draft: &Draft<'_>, service: &Service<'_>, report: &mut Report) {
    let Some((_, span)) = service.first_of([STUN]).filter(|_| service.is(Protocol::Tcp)) else { return };
    let vip = service.vip.as_ref().map(|vip| vip.value);
    let has_udp = draft.services.iter().any(|other| {
        other.is(Protocol::Udp) && other.vip.as_ref().map(|vip| vip.value) == vip && other.port(STUN).is_some()
    });
    if !has_udp {
        report
            .warning("wrong-protocol", span, "STUN on 3478 is UDP in the first place, this service is TCP only")
            .hint("use `protocol = \"udp\"`, or add a UDP service on the same address");
    }
}

fn ocs_ports(service: &Service<'_>, report: &mut Report) {
    for port in OCS_ONLY {
        if let Some((_, span)) = service.first_of([port]) {
            report
                .warning("wrong-port", span, format!("port {port} belongs to OCS 2007 R2, Lync does not use it"))
                .hint("remove it");
        }
    }
}

/// Lync 2010 mobility finds its server by this cookie (F-PER-06, F-PER-07).
fn mobility_cookie(service: &Service<'_>, report: &mut Report) {
    let lync_2010 = service.application.as_ref().is_some_and(|application| application.value == Application::Lync2010);
    let Some((_, port)) = service.first_of([4443, 8080]).filter(|_| lync_2010) else { return };
    match &service.persistence {
        Persists::By(kinds) if kinds.iter().any(|kind| kind.value == "cookie") => {
            if let Some(cookie) =
                service.section.table("persistence").and_then(|persistence| persistence.text("cookie"))
                && cookie.value != "MS-WSMAN"
            {
                report
                    .warning(
                        "wrong-cookie",
                        &cookie.span,
                        format!("Lync 2010 mobility looks for the cookie MS-WSMAN, not {}", cookie.value),
                    )
                    .hint("use `cookie = \"MS-WSMAN\"`");
            }
        }
        Persists::Unknown => {}
        Persists::By(_) | Persists::None => {
            report
                .warning("no-persistence", port, "external web services of Lync 2010 need persistence by the cookie MS-WSMAN for mobile clients")
                .hint("use `persistence = { by = \"cookie\", cookie = \"MS-WSMAN\" }` in HTTP mode; not needed when all pools are Lync 2013");
        }
    }
}
