//! `persistence`: what it needs, and keys that do nothing.

use super::http::{is_cookie, is_header};
use crate::decode::{At, Section};
use crate::diagnostic::Report;
use crate::draft::{Draft, DraftPorts, Persists, Service, kinds};
use crate::model::{Plane, Protocol};

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    for service in &draft.services {
        needs_http(service, report);
        rule(service.section, service, report);
        for route in service.http.map_or(&[][..], |http| http.tables("route")) {
            rule(route, service, report);
        }
        all_ports(service, report);
    }
}

/// Whether requests must be read for it.
pub(super) fn reads_requests(by: &str) -> bool {
    matches!(by, "cookie" | "header" | "super-http" | "super-http-and-source-ip")
}

/// A relay that does not read requests sees no cookie (requirements.md E-08, trap 18).
fn needs_http(service: &Service<'_>, report: &mut Report) {
    let Some(by) = service.persistence.kind(reads_requests) else { return };
    if service.http.is_none() {
        report
            .error(
                "needs-http",
                &by.span,
                format!("persistence by \"{}\" needs HTTP mode: a relay of TCP or UDP does not see requests", by.value),
            )
            .hint("add `http = {}` (and end TLS here if clients speak it), or use `by = \"source-ip\"`");
    } else if service.tls_mode.value == "pass-through"
        && let Some((port, span)) = service.first_of([443, 4443])
    {
        report
            .error(
                "needs-http",
                &by.span,
                format!("persistence by \"{}\" needs readable requests, but TLS passes through", by.value),
            )
            .label(span, format!("port {port} carries TLS"))
            .hint("use `tls.mode = \"terminate\"` or \"re-encrypt\"");
    }
}

/// What one `persistence` says, of a service or a route.
fn rule(owner: &Section, service: &Service<'_>, report: &mut Report) {
    let Some(section) = owner.table("persistence") else { return };
    let kinds = kinds(section);
    if kinds.is_empty() {
        return;
    }
    order(&kinds, report);
    for kind in &kinds {
        match kind.value {
            "sip-call-id" => needs_sip(kind, &kinds, service, report),
            "sni" | "tls-session-id" => needs_tls(kind, service, report),
            _ => {}
        }
    }
    without_effect(section, &kinds, report);
    let by = |kind: &str| kinds.iter().any(|by| by.value == kind);
    if let Some(name) = section.text("header").filter(|_| by("header")) {
        is_header(&name, report);
    }
    let Some(name) = section.text("cookie").filter(|_| by("cookie")) else { return };
    is_cookie(&name, report);
    let secure = section.bool("cookie_secure").filter(|secure| secure.value);
    if let Some(secure) = secure.filter(|_| service.tls_mode.value == "pass-through") {
        report
            .warning(
                "lost-cookie",
                &secure.span,
                "browsers do not send back a `Secure` cookie here: the service does not end TLS",
            )
            .hint("remove it, or end TLS here");
    }
}

/// Every client has an address, so nothing behind it is ever asked; and who is not to be known is not known by something else.
fn order(kinds: &[At<&'static str>], report: &mut Report) {
    let place = |kind: &str| kinds.iter().position(|by| by.value == kind);
    if let Some(none) = place("none").map(|place| &kinds[place]).filter(|_| kinds.len() > 1) {
        report
            .error("conflicting-keys", &none.span, "persistence by \"none\" and by something else")
            .hint("remove \"none\": a client that shows nothing of the others is balanced");
    }
    if let Some(next) = place("source-ip").and_then(|place| kinds.get(place + 1)) {
        report
            .warning(
                "no-effect",
                &next.span,
                format!("no client is known by \"{}\" here: each has an address", next.value),
            )
            .hint("put \"source-ip\" last");
    }
}

/// The stream plane reads the first bytes of connections, and datagrams.
fn needs_stream(kind: &At<&'static str>, service: &Service<'_>, report: &mut Report) -> bool {
    if service.plane.value == Plane::Packet {
        report
            .error(
                "needs-stream-plane",
                &kind.span,
                format!("persistence by \"{}\" needs the stream plane", kind.value),
            )
            .label(&service.plane.span, "the packet plane chooses before it sees such bytes")
            .hint("use `plane = \"stream\"`, or `by = \"source-ip\"`");
    }
    service.plane.value == Plane::Stream
}

/// `sni` and `tls-session-id`: what a ClientHello says.
fn needs_tls(kind: &At<&'static str>, service: &Service<'_>, report: &mut Report) {
    let by = kind.value;
    if let Some(protocol) = service.protocol.as_ref().filter(|protocol| protocol.value == Protocol::Udp) {
        report
            .error("conflicting-keys", &kind.span, format!("persistence by \"{by}\" is for TLS, over TCP"))
            .label(&protocol.span, "a UDP service")
            .hint("use `by = \"source-ip\"`");
        return;
    }
    if !needs_stream(kind, service, report) {
        return;
    }
    let ended = service.tls_mode.value != "pass-through";
    if let Some(http) = service.http.filter(|_| !ended) {
        report
            .error("needs-tls", &kind.span, format!("persistence by \"{by}\" is for TLS, and there is none"))
            .label(&http.span, "requests are read as they come")
            .hint("end TLS here, or use `by = \"cookie\"`");
        return;
    }
    if by != "tls-session-id" {
        return;
    }
    if ended {
        report
            .error("conflicting-keys", &kind.span, "the sessions of clients are Towpath's own here, not a server's")
            .label(&service.tls_mode.span, "TLS is ended here")
            .hint("use `by = \"cookie\"` in HTTP mode, or \"sni\" or \"source-ip\"");
        return;
    }
    // RFC 8446 §4.1.2: `legacy_session_id`; RFC 5077 §3.4: with a ticket the client makes one up.
    report
        .warning(
            "weak-persistence",
            &kind.span,
            "clients of TLS 1.3 have no session id, and those with tickets send one that says nothing: they are not found by it",
        )
        .hint("name what else they are known by, like `by = [\"tls-session-id\", \"source-ip\"]`; or end TLS here and use \"cookie\"");
}

/// `sip-call-id`: SIP that can be read.
fn needs_sip(kind: &At<&'static str>, kinds: &[At<&'static str>], service: &Service<'_>, report: &mut Report) {
    if !needs_stream(kind, service, report) {
        return;
    }
    if let Some(http) = service.http {
        report
            .error("conflicting-keys", &kind.span, "persistence by \"sip-call-id\" is for SIP")
            .label(&http.span, "HTTP mode")
            .hint("remove `http`, or use `by = \"cookie\"`");
        return;
    }
    if service.tls_mode.value != "pass-through" {
        return;
    }
    let of_tls = kinds.iter().find(|other| matches!(other.value, "sni" | "tls-session-id"));
    let route = service.section.table("tls").and_then(|tls| tls.written("route"));
    if let Some(span) = of_tls.map(|other| &other.span).or(route) {
        report
            .error("conflicting-keys", &kind.span, "persistence by \"sip-call-id\" reads SIP, but TLS passes through")
            .label(span, "this reads TLS")
            .hint("use `tls.mode = \"terminate\"` or \"re-encrypt\", or remove one of them");
    } else if let Some((port, span)) = service.first_of([5061]).filter(|_| !service.is(Protocol::Udp)) {
        report
            .error(
                "unreadable-requests",
                &kind.span,
                "persistence by \"sip-call-id\" reads SIP, but TLS passes through",
            )
            .label(span, format!("port {port} carries TLS"))
            .hint("use `tls.mode = \"terminate\"` or \"re-encrypt\", or `by = \"source-ip\"`");
    }
}

fn without_effect(section: &Section, kinds: &[At<&'static str>], report: &mut Report) {
    let by = |fits: &[&str]| kinds.iter().any(|kind| fits.contains(&kind.value));
    let inserted = by(&["cookie"]) && section.word("cookie_mode").is_none_or(|mode| mode.value == "insert");
    let has_entries = kinds.iter().any(|kind| kind.value != "none" && (kind.value != "cookie" || !inserted));
    let has_addresses = by(&["source-ip", "super-http-and-source-ip"]);
    let needs = [
        ("timeout", has_entries),
        ("ipv4_prefix", has_addresses),
        ("ipv6_prefix", has_addresses),
        ("enter_draining", !by(&["none"])),
        ("cookie", by(&["cookie"])),
        ("cookie_mode", by(&["cookie"])),
        ("cookie_set", inserted),
        ("cookie_http_only", inserted),
        ("cookie_secure", inserted),
        ("header", by(&["header"])),
    ];
    for (key, _) in needs.into_iter().filter(|(_, fits)| !fits) {
        let Some(span) = section.written(key) else { continue };
        let with = match kinds {
            _ if by(&["cookie"]) && key == "timeout" => "a cookie of ours: it ends with the browser".to_owned(),
            _ if by(&["cookie"]) && key.starts_with("cookie_") => "`cookie_mode = \"find\"`".to_owned(),
            [kind] => format!("`by = \"{}\"`", kind.value),
            _ => "what `by` names".to_owned(),
        };
        report.warning("no-effect", span, format!("`persistence.{key}` has no effect with {with}")).hint("remove it");
    }
}

/// Second connections of FTP, RPC and the like must find the same server (requirements.md trap 19).
fn all_ports(service: &Service<'_>, report: &mut Report) {
    if let (Some(DraftPorts::All(span)), Persists::None) = (&service.ports, &service.persistence) {
        report
            .warning(
                "no-persistence",
                span,
                "all ports without persistence: connections that belong together reach different servers",
            )
            .hint("add `persistence = { by = \"source-ip\" }`");
    }
}
