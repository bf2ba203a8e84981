//! `[log]` and `service.log`.

use crate::decode::{At, Section, Value};
use crate::diagnostic::Report;
use crate::draft::{Draft, Service};
use crate::model::{Plane, Protocol};

/// `sockaddr_un.sun_path` with its closing zero.
const SOCKET_PATH_MAX: usize = 107;

/// Whether lines on its connections can be written: those of packets and of UDP sessions are not.
pub(crate) fn can_be_logged(service: &Service<'_>) -> bool {
    service.plane.value == Plane::Stream && service.is(Protocol::Tcp)
}

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    if let Some(log) = draft.root.table("log") {
        destination(log, report);
    }
    for service in &draft.services {
        service_log(draft, service, report);
    }
}

fn destination(log: &Section, report: &mut Report) {
    for key in ["to", "connections_to"] {
        if let Some(to) = log.word(key)
            && to.value == "syslog"
            && log.entry("syslog").is_none()
            && !log.broken.contains(&"syslog")
        {
            report
                .error("missing-key", &to.span, format!("`log.{key}` is \"syslog\", but no syslog server is named"))
                .hint("add `syslog = \"192.0.2.5:514\"`, or `syslog = \"/dev/log\"`");
        }
    }
    // A word that is none would become a file of that name.
    if let Some(path) = log.text("connections_to")
        && !path.value.starts_with('/')
    {
        report
            .error("relative-path", &path.span, format!("`log.connections_to` is \"{}\"", path.value))
            .hint("write \"stderr\", \"stdout\", \"syslog\", or a path from the root");
    }
    if let Some(path) = log.text("syslog")
        && path.value.len() > SOCKET_PATH_MAX
    {
        report
            .error("too-long", &path.span, format!("`log.syslog` has {} bytes", path.value.len()))
            .hint(format!("the kernel takes socket paths of at most {SOCKET_PATH_MAX} bytes"));
    }
    if let Some(transport) = log.written("syslog_transport")
        && !matches!(log.entry("syslog").map(|syslog| &syslog.value), Some(Value::Socket(_)))
        && !log.broken.contains(&"syslog")
    {
        report
            .error("no-effect", transport, "`log.syslog_transport` is for a syslog server, and none is named")
            .hint("add `syslog = \"192.0.2.5:514\"`, or remove it");
    }
    if let (Some(format), Some(to)) = (log.written("format"), log.word("to"))
        && to.value == "syslog"
    {
        report
            .error("no-effect", format, "`log.format` has no effect: lines to syslog are text")
            .hint("remove it, or use `to = \"stderr\"`");
    }
    let has_syslog =
        ["to", "connections_to"].into_iter().any(|key| log.word(key).is_some_and(|to| to.value == "syslog"));
    if let Some(span) = log.written("syslog").filter(|_| !has_syslog) {
        report
            .warning("no-effect", span, "`log.syslog` has no effect: nothing goes there")
            .hint("add `to = \"syslog\"` or `connections_to = \"syslog\"`, or remove it");
    }
}

fn service_log(draft: &Draft<'_>, service: &Service<'_>, report: &mut Report) {
    let own = service.section.word("log");
    let log = draft.root.table("log");
    let says = |word: &At<&'static str>| word.value != "none";
    if let Some(own) = own.as_ref().filter(|own| says(own))
        && !can_be_logged(service)
        && service.protocol.is_some()
    {
        report
            .error("needs-stream-plane", &own.span, "only connections of TCP on the stream plane get lines")
            .hint("remove `log`; `towpath status` has the counters of this service");
        return;
    }
    let Some(format) = log.and_then(|log| log.word("connections_format")) else { return };
    let common = log.and_then(|log| log.word("connections"));
    if format.value != "combined" || service.http.is_some() || !can_be_logged(service) {
        return;
    }
    if let Some(which) = own.or(common).filter(says) {
        report
            .error(
                "needs-http",
                &format.span,
                format!("the combined format is for requests, service {} is not in HTTP mode", service.title()),
            )
            .label(&which.span, "its connections are to be logged")
            .hint("use `connections_format = \"haproxy\"` or \"json\", or add `log = \"none\"` to the service");
    }
}
