//! The PROXY protocol, from proxies in front and towards servers.

use crate::decode::{Section, Value};
use crate::diagnostic::{Report, Span};
use crate::draft::{Draft, Server, Service};
use crate::model::{Plane, Protocol};

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    for service in &draft.services {
        if service.protocol.is_none() {
            continue;
        }
        if service.plane.value == Plane::Stream && service.is(Protocol::Tcp) {
            from(service, report);
            shared(draft, service, report);
        } else {
            elsewhere(draft, service, report);
        }
    }
}

/// Where `section` says that servers are to be told of clients.
fn told(section: &Section) -> Option<Span> {
    section.word("proxy_protocol").filter(|to| to.value != "none").map(|to| to.span)
}

/// Every such place that counts for a service.
fn all_told(draft: &Draft<'_>, service: &Service<'_>) -> Vec<Span> {
    let groups = draft.all_groups(service).into_iter().map(|group| draft.groups[group].section);
    // Who says sorry is told nothing.
    let is_sorry = |server: &&Server<'_>| service.sorry.as_ref().is_some_and(|sorry| std::ptr::eq(*server, sorry));
    let servers = draft.all_servers(service).filter(|server| !is_sorry(server)).map(|server| server.section);
    std::iter::once(service.section).chain(groups).chain(servers).filter_map(told).collect()
}

fn elsewhere(draft: &Draft<'_>, service: &Service<'_>, report: &mut Report) {
    let hint = "use `plane = \"stream\"` with TCP, or remove it";
    for key in ["proxy_protocol_from", "proxy_protocol_timeout", "proxy_protocol_others"] {
        if let Some(span) = service.section.written(key) {
            report.error("needs-stream-plane", span, format!("`{key}` is for TCP on the stream plane")).hint(hint);
        }
    }
    for span in all_told(draft, service) {
        let cause = format!(
            "the PROXY protocol is for TCP on the stream plane; service {} sends packets on as they are",
            service.title()
        );
        report.error("needs-stream-plane", &span, cause).hint(hint);
    }
}

fn from(service: &Service<'_>, report: &mut Report) {
    let section = service.section;
    let Some(networks) = section.list("proxy_protocol_from") else {
        for key in ["proxy_protocol_timeout", "proxy_protocol_others"] {
            if let Some(span) = section.written(key) {
                report
                    .warning("no-effect", span, format!("`{key}` has no effect: no network of proxies is named"))
                    .hint("add `proxy_protocol_from = [\"192.0.2.0/24\"]`, or remove it");
            }
        }
        return;
    };
    for item in networks.value {
        if let Value::Network(network) = &item.value
            && network.prefix == 0
        {
            report
                .warning("trusts-everybody", &item.span, "whoever reaches this service may say that it is anybody")
                .hint("name the networks of the proxies");
        }
    }
}

/// A server's connection that clients share cannot say whose it is.
fn shared(draft: &Draft<'_>, service: &Service<'_>, report: &mut Report) {
    let reuse = service.http.and_then(|http| http.word("reuse")).filter(|reuse| reuse.value != "never");
    let Some(reuse) = reuse else { return };
    if let Some(span) = all_told(draft, service).first() {
        report
            .error("conflicting-keys", span, "a connection that tells the server of one client cannot serve others")
            .label(&reuse.span, "clients share connections to servers")
            .hint("use `reuse = \"never\"`, or servers without `proxy_protocol`; `http.forwarded` tells them of clients, too");
    }
}
