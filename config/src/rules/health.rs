//! `health`: checks that can answer, and keys that do nothing.

use std::collections::HashSet;

use crate::decode::{PortSet, Section};
use crate::diagnostic::Report;
use crate::draft::Draft;
use crate::model::Protocol;

/// Ports of one check: each is a connection per server and interval.
const PORTS_MAX: usize = 64;

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    let mut seen = HashSet::new();
    for section in
        draft.groups.iter().map(|group| group.section).chain(draft.services.iter().map(|service| service.section))
    {
        if let Some(health) = section.table("health")
            && seen.insert(health.span.start)
        {
            judge_one(health, report);
        }
    }
    for service in &draft.services {
        let Some(health) = draft.health(service) else { continue };
        let (Some(protocol), Some(check)) = (&service.protocol, health.word("check")) else { continue };
        let over_tcp = matches!(check.value, "tcp" | "tls" | "http" | "https" | "smtp" | "ldap");
        if protocol.value == Protocol::Udp
            && over_tcp
            && health.entry("ports").is_none()
            && !health.broken.contains(&"ports")
        {
            report
                .error(
                    "udp-check",
                    &check.span,
                    format!(
                        "a UDP service needs a port for its \"{}\" check: nobody answers TCP on its own",
                        check.value
                    ),
                )
                .label(&protocol.span, format!("service {} is UDP", service.title()))
                .hint("add `ports = [...]` with a TCP port of the server, or remove `health`");
        }
    }
}

fn judge_one(health: &Section, report: &mut Report) {
    if let (Some(interval), Some(timeout)) = (health.duration("interval"), health.duration("timeout"))
        && timeout.value > interval.value
    {
        let (here, there, text) = if timeout.written || !interval.written {
            (&timeout.span, &interval.span, "the time between checks")
        } else {
            (&interval.span, &timeout.span, "the longer timeout")
        };
        report
            .warning(
                "slow-check",
                here,
                "a check may take longer than the time between checks: a silent server is found late",
            )
            .label(there, text)
            .hint("keep `timeout` below `interval`");
    }
    if let Some(ports) = health.ports("ports")
        && PortSet::count(ports.value) > PORTS_MAX
    {
        report
            .error("too-many", &ports.span, format!("{} ports to check, at most {PORTS_MAX}", ports.value.count()))
            .hint("check the ports that tell most about the server");
    }
    without_effect(health, report);
}

fn without_effect(health: &Section, report: &mut Report) {
    let Some(check) = health.word("check") else { return };
    let needs: [(&str, &[&str]); 10] = [
        ("method", &["http", "https"]),
        ("path", &["http", "https"]),
        ("host", &["http", "https", "tls"]),
        ("status", &["http", "https"]),
        ("expect", &["http", "https", "smtp", "dns"]),
        ("verify", &["https", "tls"]),
        ("secret_file", &["radius", "ldap"]),
        ("user", &["radius", "ldap"]),
        ("ports", &["dns", "http", "https", "ldap", "radius", "sip", "smtp", "stun", "tcp", "tls"]),
        ("interval", &["dns", "http", "https", "ldap", "ping", "radius", "sip", "smtp", "stun", "tcp", "tls"]),
    ];
    for (key, fitting) in needs {
        if let Some(span) = health.written(key)
            && !fitting.contains(&check.value)
        {
            report
                .warning("no-effect", span, format!("`health.{key}` has no effect with `check = \"{}\"`", check.value))
                .hint("remove it");
        }
    }
}
