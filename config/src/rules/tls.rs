//! `[tls]` and `service.tls`: what goes with the mode, and what names, pins and protocols may be.

use std::collections::{HashMap, HashSet};

use crate::decode::{At, Section, Value};
use crate::diagnostic::{Report, Span};
use crate::draft::{Draft, Members, Server, Service};
use crate::model::{Application, Plane, Protocol};

/// Longest name of a host (RFC 1035 §2.3.4), and of one label.
const HOST_NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;
/// Longest name of a protocol (RFC 7301 §3.1).
const PROTOCOL_MAX: usize = 255;

/// Keys of `service.tls` that mean nothing where TLS passes through.
const OF_ENDED: [&str; 14] = [
    "alpn",
    "certificate",
    "ciphers",
    "client_ca",
    "client_certificate",
    "client_crl",
    "identity",
    "min_version",
    "resumption",
    "server_ca",
    "server_name",
    "server_pin",
    "strict_sni",
    "verify_server",
];
/// Of these, the ones about TLS towards servers.
const OF_SERVERS: [&str; 5] = ["identity", "server_ca", "server_name", "server_pin", "verify_server"];

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    process(draft, report);
    servers(draft, report);
    for service in &draft.services {
        let Some(tls) = service.section.table("tls") else { continue };
        if service.tls_mode.value == "pass-through" {
            pass_through(draft, service, tls, report);
        } else {
            ended(draft, service, tls, report);
        }
    }
}

fn is_ended(service: &Service<'_>) -> bool {
    service.tls_mode.value != "pass-through"
}

/// Whether TLS goes on towards any server of this service.
fn re_encrypts(draft: &Draft<'_>, service: &Service<'_>) -> bool {
    let by_mode = service.tls_mode.value == "re-encrypt";
    let says = |server: &Section| server.bool("re_encrypt").map(|re_encrypt| re_encrypt.value);
    let mut servers = draft.all_servers(service).peekable();
    is_ended(service) && (servers.peek().is_none() || servers.any(|server| says(server.section).unwrap_or(by_mode)))
}

fn process(draft: &Draft<'_>, report: &mut Report) {
    if draft.root.table("tls").is_some()
        && let Some(span) = draft.root.written("tls")
        && !draft.services.iter().any(is_ended)
        && !report.incomplete
    {
        report
            .warning("no-effect", span, "`[tls]` has no effect: no service ends TLS")
            .hint("use `tls.mode = \"terminate\"` or \"re-encrypt\" in a service, or remove it");
    }
}

/// Names of servers, and keys of theirs that mean nothing to any service which has them.
fn servers(draft: &Draft<'_>, report: &mut Report) {
    let (mut used, mut ended): (HashSet<usize>, HashSet<usize>) = (HashSet::new(), HashSet::new());
    for service in &draft.services {
        if let Some(sorry) = &service.sorry {
            one_server(sorry, is_ended(service), report);
        }
        let groups = draft.all_groups(service);
        ended.extend(groups.iter().copied().filter(|_| is_ended(service)));
        used.extend(groups);
        if let Members::Own(servers) = &service.members {
            for server in servers {
                one_server(server, is_ended(service), report);
            }
        }
    }
    for (index, group) in draft.groups.iter().enumerate() {
        for server in &group.servers {
            one_server(server, ended.contains(&index) || !used.contains(&index), report);
        }
    }
}

fn one_server(server: &Server<'_>, gets_tls: bool, report: &mut Report) {
    if let Some(name) = server.section.text("server_name") {
        host_name(&name, Wildcard::Refused, "server_name", report);
    }
    if gets_tls {
        return;
    }
    for key in ["re_encrypt", "server_name"] {
        if let Some(span) = server.section.written(key) {
            report
                .warning("no-effect", span, format!("`{key}` has no effect: TLS passes through untouched"))
                .hint("use `tls.mode = \"re-encrypt\"` in the service, or remove it");
        }
    }
}

fn pass_through(draft: &Draft<'_>, service: &Service<'_>, tls: &Section, report: &mut Report) {
    let routes = tls.tables("route");
    let without_routes = routes.is_empty().then_some("handshake_timeout");
    for key in OF_ENDED.into_iter().chain(without_routes) {
        if let Some(span) = tls.written(key) {
            report
                .warning("no-effect", span, format!("`tls.{key}` has no effect: TLS passes through untouched"))
                .hint("use `tls.mode = \"terminate\"` or \"re-encrypt\", or remove it");
        }
    }
    if routes.is_empty() {
        return;
    }
    if let Some(span) = tls.written("route") {
        needs_stream_plane(service, span, "`tls.route`", report);
        needs_tcp(service, span, "names are asked for on TCP only", "remove the routes", report);
    }
    let mut seen: HashMap<String, Span> = HashMap::new();
    for route in routes {
        let names = route.list("names").map_or(&[][..], |names| names.value);
        for item in names {
            let Value::Text(text) = &item.value else { continue };
            let name = At { value: text.as_str(), span: item.span.clone(), written: true };
            if !host_name(&name, Wildcard::Allowed, "names", report) {
                continue;
            }
            let first = seen.entry(text.to_ascii_lowercase()).or_insert_with(|| item.span.clone());
            if *first != item.span {
                report
                    .error("duplicate-entry", &item.span, format!("two routes have the name {}", item.value))
                    .label(first, "first here")
                    .hint("remove one of them; case does not matter");
            }
        }
        if let Some(group) = route.text("group") {
            super::known_group(draft, &group, report);
        }
    }
}

fn ended(draft: &Draft<'_>, service: &Service<'_>, tls: &Section, report: &mut Report) {
    let mode = &service.tls_mode;
    let what = format!("`tls.mode = \"{}\"`", mode.value);
    needs_stream_plane(service, &mode.span, &what, report);
    needs_tcp(service, &mode.span, "TLS is ended on TCP only", "use `tls.mode = \"pass-through\"`", report);
    if tls.written("certificate").is_none() && !tls.broken.contains(&"certificate") && !report.incomplete {
        report
            .error("missing-key", &mode.span, format!("{what} needs a certificate"))
            .hint("add `[[service.tls.certificate]]` with `file` and `key`");
    }
    if let Some(span) = tls.written("route") {
        report
            .error("conflicting-keys", span, "routes by name are for TLS that passes through")
            .label(&mode.span, "TLS is ended here")
            .hint("use `tls.mode = \"pass-through\"`, or one service for each name");
    }
    versions(tls, report);
    protocols(service, tls, report);
    clients(tls, report);
    towards_servers(draft, service, tls, report);
}

fn versions(tls: &Section, report: &mut Report) {
    if let (Some(ciphers), Some(version)) = (tls.word("ciphers"), tls.word("min_version"))
        && ciphers.value == "modern"
        && version.value == "1.2"
    {
        report
            .error("conflicting-keys", &version.span, "TLS 1.2 has no cipher suite that is left")
            .label(&ciphers.span, "those of TLS 1.3 only")
            .hint("use `ciphers = \"intermediate\"`, or remove `min_version`");
    }
}

/// Products whose servers authenticate connections, which HTTP/2 has no place for.
pub(super) const WINDOWS_AUTHENTICATION: [Application; 5] = [
    Application::Exchange2010,
    Application::Exchange2013,
    Application::Lync2010,
    Application::Lync2013,
    Application::Sharepoint,
];

fn protocols(service: &Service<'_>, tls: &Section, report: &mut Report) {
    for item in tls.list("alpn").map_or(&[][..], |list| list.value) {
        let Value::Text(protocol) = &item.value else { continue };
        if protocol.len() > PROTOCOL_MAX {
            report
                .error("too-long", &item.span, format!("`tls.alpn` names a protocol of {} bytes", protocol.len()))
                .hint(format!("names have at most {PROTOCOL_MAX} bytes, like \"http/1.1\""));
        }
        let product = service.application.as_ref().filter(|product| WINDOWS_AUTHENTICATION.contains(&product.value));
        if let ("h2", Some(product)) = (protocol.as_str(), product) {
            report
                .warning("wrong-protocol", &item.span, "Windows authentication does not work over HTTP/2")
                .label(&product.span, "its servers ask for HTTP/1.1")
                .hint("use `alpn = [\"http/1.1\"]`, or remove it");
        }
    }
}

fn clients(tls: &Section, report: &mut Report) {
    let asks = tls.word("client_certificate").filter(|client| client.value != "none");
    match asks {
        Some(client) if tls.written("client_ca").is_none() && !tls.broken.contains(&"client_ca") => {
            report
                .error("missing-key", &client.span, "client certificates are asked for, but no authority is named")
                .hint("add `client_ca = \"...\"`");
        }
        Some(_) => {}
        None => {
            for key in ["client_ca", "client_crl"] {
                if let Some(span) = tls.written(key) {
                    report
                        .warning("no-effect", span, format!("`tls.{key}` has no effect: clients are not asked"))
                        .hint("use `client_certificate = \"require\"` or \"request\", or remove it");
                }
            }
        }
    }
}

fn towards_servers(draft: &Draft<'_>, service: &Service<'_>, tls: &Section, report: &mut Report) {
    if !re_encrypts(draft, service) && !report.incomplete {
        for key in OF_SERVERS {
            if let Some(span) = tls.written(key) {
                report
                    .warning("no-effect", span, format!("`tls.{key}` has no effect: no server of it gets TLS"))
                    .hint("use `tls.mode = \"re-encrypt\"`, or remove it");
            }
        }
        if service.tls_mode.value == "re-encrypt" {
            report
                .warning(
                    "no-effect",
                    &service.tls_mode.span,
                    "`tls.mode = \"re-encrypt\"`, but no server of it gets TLS",
                )
                .hint("use `tls.mode = \"terminate\"`, or remove `re_encrypt = false` from servers");
        }
        return;
    }
    if let Some(name) = tls.text("server_name") {
        host_name(&name, Wildcard::Refused, "tls.server_name", report);
    }
    let Some(verify) = tls.word("verify_server") else { return };
    let pins = tls.list("server_pin").map_or(&[][..], |pins| pins.value);
    if verify.value == "pinned" {
        if pins.is_empty() && !tls.broken.contains(&"server_pin") {
            report.error("missing-key", &verify.span, "no certificate is pinned").hint(
                "add `server_pin = [\"...\"]` with what `openssl x509 -in FILE -noout -fingerprint -sha256` prints",
            );
        }
    } else if let Some(span) = tls.written("server_pin") {
        report
            .warning("no-effect", span, "`tls.server_pin` has no effect: servers are not judged by it")
            .label(&verify.span, "how they are")
            .hint("use `verify_server = \"pinned\"`, or remove it");
    }
    if let Some(span) = tls.written("server_ca").filter(|_| verify.value != "ca") {
        report
            .warning("no-effect", span, "`tls.server_ca` has no effect: servers are not judged by it")
            .label(&verify.span, "how they are")
            .hint("use `verify_server = \"ca\"`, or remove it");
    }
    for item in pins {
        if let Value::Text(text) = &item.value
            && pin(text).is_none()
        {
            report
                .error("bad-pin", &item.span, format!("`tls.server_pin` is no SHA-256: {}", item.value))
                .hint("64 hexadecimal digits, with or without colons");
        }
    }
}

fn needs_stream_plane(service: &Service<'_>, span: &Span, what: &str, report: &mut Report) {
    if service.plane.value == Plane::Packet {
        report
            .error("needs-stream-plane", span, format!("{what} needs the stream plane"))
            .label(&service.plane.span, "the packet plane does not see connections")
            .hint("use `plane = \"stream\"`, or let TLS pass through");
    }
}

fn needs_tcp(service: &Service<'_>, span: &Span, why: &str, hint: &str, report: &mut Report) {
    if let Some(protocol) = service.protocol.as_ref().filter(|protocol| protocol.value == Protocol::Udp) {
        report.error("conflicting-keys", span, why).label(&protocol.span, "a UDP service").hint(hint);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wildcard {
    Allowed,
    Refused,
}

/// Whether it is a name as certificates and clients have it (RFC 6066 §3: no trailing dot); tells if not.
pub(super) fn host_name(name: &At<&str>, wildcard: Wildcard, key: &str, report: &mut Report) -> bool {
    let is_address = name.value.parse::<std::net::IpAddr>().is_ok();
    let labels = match (wildcard, name.value.strip_prefix("*.")) {
        (Wildcard::Allowed, Some(labels)) => labels,
        _ => name.value,
    };
    let label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=LABEL_MAX).contains(&label.len()) && label.bytes().all(allowed)
    };
    let hint = match wildcard {
        // A server may be known by its address alone: it is expected in the certificate, and never sent.
        Wildcard::Refused if is_address => return true,
        Wildcard::Allowed if is_address => "clients ask for names, never for addresses",
        _ if name.value.len() <= HOST_NAME_MAX && labels.split('.').all(label) => return true,
        Wildcard::Allowed => "write \"mail.example.org\", or \"*.example.org\"",
        Wildcard::Refused => "write \"mail.example.org\"",
    };
    let shown = crate::decode::shorten(name.value);
    report.error("bad-name", &name.span, format!("`{key}` is no name of a host: \"{shown}\"")).hint(hint);
    false
}

/// The sum that a pin stands for.
pub(crate) fn pin(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
    let mut sum = [0; 32];
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, pair) in sum.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(sum)
}
