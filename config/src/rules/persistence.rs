//! `persistence`: what it needs, and keys that do nothing.

use crate::diagnostic::Report;
use crate::draft::{Draft, DraftPorts, Persists, Service};

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    for service in &draft.services {
        needs_http(service, report);
        without_effect(service, report);
        all_ports(service, report);
    }
}

/// A relay that does not read requests sees no cookie (requirements.md E-08, trap 18).
fn needs_http(service: &Service<'_>, report: &mut Report) {
    let Persists::By(by) = &service.persistence else { return };
    let reads = matches!(by.value, "cookie" | "header" | "super-http" | "super-http-and-source-ip");
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

fn without_effect(service: &Service<'_>, report: &mut Report) {
    let Some(section) = service.section.table("persistence") else { return };
    let Some(by) = section.word("by") else { return };
    let needs: [(&str, &[&str]); 7] = [
        ("timeout", &["cookie", "header", "source-ip", "super-http", "super-http-and-source-ip", "tls-session-id"]),
        ("ipv4_prefix", &["source-ip", "super-http-and-source-ip"]),
        ("ipv6_prefix", &["source-ip", "super-http-and-source-ip"]),
        (
            "enter_draining",
            &["cookie", "header", "source-ip", "super-http", "super-http-and-source-ip", "tls-session-id"],
        ),
        ("cookie", &["cookie"]),
        ("cookie_mode", &["cookie"]),
        ("header", &["header"]),
    ];
    for (key, fitting) in needs {
        if let Some(span) = section.written(key)
            && !fitting.contains(&by.value)
        {
            report
                .warning("no-effect", span, format!("`persistence.{key}` has no effect with `by = \"{}\"`", by.value))
                .hint("remove it");
        }
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
