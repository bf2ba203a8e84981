//! Mail and RADIUS servers decide by the client's address: an IP-scoped relay connector behind a rewritten source
//! address is an open relay.

use crate::diagnostic::{Report, Span};
use crate::draft::{Draft, DraftPorts, Service};
use crate::model::Application;

/// Ports whose servers trust or refuse by address, and what for.
const TRUSTING: [(u16, &str); 6] = [
    (25, "SMTP"),
    (587, "SMTP submission"),
    (1645, "RADIUS"),
    (1646, "RADIUS accounting"),
    (1812, "RADIUS"),
    (1813, "RADIUS accounting"),
];

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    for service in &draft.services {
        let accepted = service.section.bool("accept_hidden_client").is_none_or(|accepted| accepted.value);
        if service.keeps_client() || accepted {
            continue;
        }
        let Some((what, span)) = trusting(draft, service) else { continue };
        report
            .error(
                "hidden-client",
                span,
                format!("{what} servers decide by the client's address, but see only the balancer's: whoever the balancer may do, every client may"),
            )
            .hint(
                "on the packet plane `forwarding = \"half-nat\"` keeps the client's address; if the servers do not trust the balancer's address, say `accept_hidden_client = true`",
            );
    }
}

fn trusting<'d>(draft: &'d Draft<'_>, service: &'d Service<'_>) -> Option<(&'static str, &'d Span)> {
    if let Some(DraftPorts::Set(ports)) = &service.ports
        && let Some(found) = TRUSTING.iter().find_map(|(port, what)| Some((*what, ports.value.place(*port)?)))
    {
        return Some(found);
    }
    let behind = draft.servers(service).iter().filter_map(|server| server.port.as_ref());
    for port in behind {
        if let Some((_, what)) = TRUSTING.iter().find(|(known, _)| *known == port.value) {
            return Some((*what, &port.span));
        }
    }
    let application = service.application.as_ref()?;
    match application.value {
        Application::Radius => Some(("RADIUS", &application.span)),
        Application::Smtp => Some(("SMTP", &application.span)),
        _ => None,
    }
}
