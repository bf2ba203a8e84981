//! `persistence`: what it needs, and keys that do nothing.

use super::http::{is_cookie, is_header};
use crate::decode::Section;
use crate::diagnostic::Report;
use crate::draft::{Draft, DraftPorts, Persists, Service};

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
    let Persists::By(by) = &service.persistence else { return };
    let reads = reads_requests(by.value);
    if reads && service.http.is_none() {
        report
            .error(
                "needs-http",
                &by.span,
                format!("persistence by \"{}\" needs HTTP mode: a relay of TCP or UDP does not see requests", by.value),
            )
            .hint("add `http = {}` (and end TLS here if clients speak it), or use `by = \"source-ip\"`");
    } else if reads
        && service.tls_mode.value == "pass-through"
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
    without_effect(section, report);
    let by = section.word("by").map(|by| by.value);
    if let Some(name) = section.text("header").filter(|_| by == Some("header")) {
        is_header(&name, report);
    }
    let Some(name) = section.text("cookie").filter(|_| by == Some("cookie")) else { return };
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

fn without_effect(section: &Section, report: &mut Report) {
    let Some(by) = section.word("by") else { return };
    let by_table = ["header", "source-ip", "super-http", "super-http-and-source-ip", "tls-session-id"];
    let inserted = by.value == "cookie" && section.word("cookie_mode").is_none_or(|mode| mode.value == "insert");
    let falls_back = section.word("fallback").is_some_and(|fallback| fallback.value == "source-ip");
    let (has_entries, has_addresses) =
        (by_table.contains(&by.value) || by.value == "cookie" && (!inserted || falls_back), falls_back);
    let needs: [(&str, bool); 10] = [
        ("timeout", has_entries),
        ("ipv4_prefix", has_addresses || matches!(by.value, "source-ip" | "super-http-and-source-ip")),
        ("ipv6_prefix", has_addresses || matches!(by.value, "source-ip" | "super-http-and-source-ip")),
        ("enter_draining", by.value != "none"),
        ("fallback", reads_requests(by.value)),
        ("cookie", by.value == "cookie"),
        ("cookie_mode", by.value == "cookie"),
        ("cookie_set", inserted),
        ("cookie_http_only", inserted),
        ("cookie_secure", inserted),
    ];
    let header = ("header", by.value == "header");
    for (key, _) in needs.into_iter().chain([header]).filter(|(_, fits)| !fits) {
        let Some(span) = section.written(key) else { continue };
        let with = match by.value {
            "cookie" if key == "timeout" => "a cookie of ours: it ends with the browser".to_owned(),
            "cookie" if key.starts_with("cookie_") => "`cookie_mode = \"find\"`".to_owned(),
            by => format!("`by = \"{by}\"`"),
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
