//! `service.http`: what it needs, what its conditions and changes may say, and keys that do nothing.

use std::collections::HashMap;
use std::net::IpAddr;

use super::tls::{WINDOWS_AUTHENTICATION, Wildcard, host_name};
use crate::decode::{At, Section, Value};
use crate::diagnostic::{Report, Span};
use crate::draft::{Draft, Server, Service, kinds};
use crate::model::{Plane, Protocol};
use crate::pattern::{Case, Extent, Pattern};

/// Headers that say where a message ends or speak of one connection only, and `Host`: ours to write.
const FRAMING: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    for service in &draft.services {
        let Some(http) = service.http else { continue };
        needs_connections(service, http, report);
        readable(service, http, report);
        of_tls(service, http, report);
        sharing(http, report);
        names(http, report);
        for route in http.tables("route") {
            conditions(route, report);
            destination(draft, route, report);
        }
        for filter in http.tables("filter") {
            conditions(filter, report);
            parameter(filter, report);
        }
        for rewrite in http.tables("rewrite") {
            conditions(rewrite, report);
            change(rewrite, report);
        }
        shadowed(http, report);
        secret(service, http, report);
        one_tls_each(draft, service, report);
    }
}

fn needs_connections(service: &Service<'_>, http: &Section, report: &mut Report) {
    if service.plane.value == Plane::Packet {
        report
            .error("needs-stream-plane", &http.span, "HTTP mode needs the stream plane")
            .label(&service.plane.span, "the packet plane does not see requests")
            .hint("use `plane = \"stream\"`");
    }
    if let Some(protocol) = service.protocol.as_ref().filter(|protocol| protocol.value == Protocol::Udp) {
        report
            .error("conflicting-keys", &http.span, "HTTP mode is for TCP")
            .label(&protocol.span, "a UDP service")
            .hint("use `protocol = \"tcp\"`, or remove `http`");
    }
}

/// Where TLS passes through nobody here reads a request.
fn readable(service: &Service<'_>, http: &Section, report: &mut Report) {
    if service.tls_mode.value != "pass-through" || service.is(Protocol::Udp) {
        return;
    }
    let routes = service.section.table("tls").and_then(|tls| tls.written("route"));
    if let Some(span) = routes {
        report
            .error(
                "conflicting-keys",
                span,
                "routes by TLS name are for TLS that passes through, HTTP mode reads requests",
            )
            .label(&http.span, "HTTP mode")
            .hint("end TLS here and use `[[service.http.route]]` with `host`, or remove `http`");
    }
    // Persistence that reads requests tells the same of these ports.
    let told = service.persistence.kind(super::persistence::reads_requests).is_some();
    if let Some((port, span)) = service.first_of([443, 4443]).filter(|_| !told && routes.is_none()) {
        report
            .error("unreadable-requests", &http.span, "HTTP mode reads requests, but TLS passes through")
            .label(span, format!("port {port} carries TLS"))
            .hint("use `tls.mode = \"terminate\"` or \"re-encrypt\", or remove `http`");
    }
}

/// What goes with TLS that is ended here, and what does not.
fn of_tls(service: &Service<'_>, http: &Section, report: &mut Report) {
    let ended = service.tls_mode.value != "pass-through";
    let redirects = http.bool("redirect_to_https").filter(|redirects| redirects.value);
    if let Some(redirects) = redirects.as_ref().filter(|_| ended) {
        report
            .error("endless-redirect", &redirects.span, "every request of this service has come by `https` already")
            .label(&service.tls_mode.span, "TLS is ended here")
            .hint("put `redirect_to_https` into a service of its own on port 80");
    }
    if let Some(span) = http.written("hsts").filter(|_| !ended) {
        report
            .warning("no-effect", span, "`http.hsts` has no effect: browsers believe it over TLS only")
            .hint("put it into the service that ends TLS, or remove it");
    }
    if let Some(span) = http.written("https_port").filter(|_| redirects.is_none()) {
        report
            .warning("no-effect", span, "`http.https_port` has no effect: nothing is redirected to `https`")
            .hint("use `redirect_to_https = true`, or remove it");
    }
    http2(service, http, report);
    let http2 = http.bool("http2").is_some_and(|http2| http2.value);
    let speaks_h2 = |item: &&At<Value>| matches!(&item.value, Value::Text(protocol) if protocol == "h2");
    let tls = service.section.table("tls").filter(|_| ended && !http2);
    if let Some(item) = tls.and_then(|tls| tls.list("alpn")).and_then(|list| list.value.iter().find(speaks_h2)) {
        report
            .error("wrong-protocol", &item.span, "HTTP/2 is not read here, and clients that may choose it do")
            .label(&http.span, "HTTP mode, without `http2`")
            .hint("use `http2 = true`; or remove \"h2\" here");
    }
}

/// Whether HTTP/2 can be chosen, and what comes of it.
fn http2(service: &Service<'_>, http: &Section, report: &mut Report) {
    let Some(http2) = http.bool("http2").filter(|http2| http2.value) else { return };
    if service.tls_mode.value == "pass-through" {
        report
            .warning("no-effect", &http2.span, "`http.http2` has no effect: clients choose HTTP/2 within TLS only")
            .hint("end TLS here (`tls.mode`), or remove it");
        return;
    }
    let product = service.application.as_ref().filter(|product| WINDOWS_AUTHENTICATION.contains(&product.value));
    if let Some(product) = product {
        report
            .warning("wrong-protocol", &http2.span, "Windows authentication does not work over HTTP/2")
            .label(&product.span, "its servers ask for HTTP/1.1, and so are clients, one connection later")
            .hint("remove `http2`");
    }
    let alpn =
        service.section.table("tls").filter(|tls| tls.written("alpn").is_some()).and_then(|tls| tls.list("alpn"));
    let Some(alpn) = alpn else { return };
    let names = |name: &str| alpn.value.iter().any(|item| matches!(&item.value, Value::Text(text) if text == name));
    if !names("h2") {
        report
            .warning("no-effect", &http2.span, "`http.http2` has no effect: clients are not offered it")
            .label(&alpn.span, "\"h2\" is missing")
            .hint("use `alpn = [\"h2\", \"http/1.1\"]`, or remove it: that is what `http2` offers by itself");
    } else if !names("http/1.1") {
        report
            .error(
                "wrong-protocol",
                &alpn.span,
                "clients that speak HTTP/1.1 only, or have to for their logon, are kept out",
            )
            .hint("use `alpn = [\"h2\", \"http/1.1\"]`, or remove it");
    }
}

/// Keys about shared connections where there are none.
fn sharing(http: &Section, report: &mut Report) {
    if http.word("reuse").is_none_or(|reuse| reuse.value == "safe") {
        return;
    }
    for key in ["reuse_idle_max", "reuse_idle_timeout"] {
        if let Some(span) = http.written(key) {
            report
                .warning("no-effect", span, format!("`{key}` has no effect: clients share no connections"))
                .hint("use `reuse = \"safe\"`, or remove it");
        }
    }
}

fn names(http: &Section, report: &mut Report) {
    let mut seen: HashMap<&str, Span> = HashMap::new();
    for name in http.tables("route").iter().filter_map(|route| route.text("name")) {
        if let Some(first) = seen.get(name.value) {
            report
                .error("duplicate-name", &name.span, format!("two routes are named \"{}\"", name.value))
                .label(first, "first here")
                .hint("rename one of them");
            continue;
        }
        if name.value.bytes().all(|byte| byte.is_ascii_digit()) {
            report
                .error("bad-name", &name.span, format!("a route is named like the place of one: \"{}\"", name.value))
                .hint("use a name with a letter");
        }
        seen.insert(name.value, name.span);
    }
}

/// The conditions that routes, filters and rewrites share.
fn conditions(section: &Section, report: &mut Report) {
    for host in texts(section, "host") {
        host_name(&host, Wildcard::Allowed, "host", report);
    }
    for path in texts(section, "path").chain(texts(section, "path_exact")) {
        is_path(&path, report);
    }
    for text in texts(section, "path_regex") {
        is_pattern(&text, "path_regex", Extent::Part, report);
    }
    for method in texts(section, "method") {
        if !is_token(method.value) || method.value.bytes().any(|byte| byte.is_ascii_lowercase()) {
            report
                .error(
                    "bad-name",
                    &method.span,
                    format!("`method` is no method: \"{}\"", crate::decode::shorten(method.value)),
                )
                .hint("methods are in capitals, like \"GET\"");
        }
    }
    if section.table.key("header_regex").is_none() {
        return;
    }
    if let Some(name) = section.text("header") {
        is_header(&name, report);
    }
    if let Some(text) = section.text("header_regex") {
        is_pattern(&text, "header_regex", Extent::Part, report);
        needs(section, "header_regex", "header", report);
    }
}

fn destination(draft: &Draft<'_>, route: &Section, report: &mut Report) {
    let written: Vec<(&str, &Span)> =
        ["group", "redirect", "status"].into_iter().filter_map(|key| Some((key, route.written(key)?))).collect();
    match written.as_slice() {
        [] if !report.incomplete && route.broken.is_empty() => {
            report
                .error("missing-key", &route.span, "a route needs a group, a redirect or a status")
                .hint("add `group = \"...\"`");
        }
        [first, second, ..] => {
            report
                .error("conflicting-keys", second.1, format!("a route has a {} or a {}", first.0, second.0))
                .label(first.1, format!("the {}", first.0))
                .hint("remove one of them");
        }
        _ => {}
    }
    if let Some(group) = route.text("group") {
        super::known_group(draft, &group, report);
    } else if !route.broken.contains(&"group") && !written.is_empty() {
        for key in ["balance", "persistence", "health", "idle_timeout", "connect_timeout", "response_timeout"] {
            no_effect(route, key, "no server sees these requests", report);
        }
    }
    if let Some(url) = route.text("redirect") {
        is_redirect(&url, report);
    } else {
        no_effect(route, "redirect_status", "the route has no `redirect`", report);
    }
}

fn parameter(filter: &Section, report: &mut Report) {
    for (key, extent) in [("pattern", Extent::Part), ("except", Extent::Whole)] {
        if let Some(text) = filter.text(key) {
            is_pattern(&text, key, extent, report);
            needs(filter, key, "parameter", report);
        }
    }
    if filter.word("action").is_some_and(|action| action.value == "allow") {
        no_effect(filter, "status", "nothing is denied", report);
    }
}

fn change(rewrite: &Section, report: &mut Report) {
    let Some(what) = rewrite.word("what") else { return };
    let (needed, other): (&[&str], &[&str]) = match what.value {
        "add-header" | "set-header" => (&["header", "with"], &["match"]),
        "remove-header" => (&["header"], &["match", "with"]),
        "host" => (&["with"], &["header", "match", "of"]),
        "path" => (&["match", "with"], &["header", "of"]),
        _ => return,
    };
    for key in needed {
        if rewrite.entry(key).is_none() && !rewrite.broken.contains(key) && !report.incomplete {
            report
                .error("missing-key", &what.span, format!("`what = \"{}\"` needs `{key}`", what.value))
                .hint(format!("add `{key} = \"...\"`"));
        }
    }
    for key in other {
        no_effect(rewrite, key, &format!("`what` is \"{}\"", what.value), report);
    }
    if let Some(name) = rewrite.text("header")
        && is_header(&name, report)
        && FRAMING.contains(&name.value.to_ascii_lowercase().as_str())
    {
        let hint = match name.value.eq_ignore_ascii_case("host") {
            true => "use `what = \"host\"`",
            false => "it says where a message ends, or speaks of one connection only",
        };
        report
            .error("reserved-header", &name.span, format!("`{}` is written by Towpath itself", name.value))
            .hint(hint);
    }
    let Some(with) = rewrite.text("with") else { return };
    match what.value {
        "host" => {
            host_name(&with, Wildcard::Refused, "with", report);
        }
        "path" => {
            if let Some(from) = rewrite.text("match") {
                is_path(&from, report);
            }
            is_path(&with, report);
        }
        _ => is_value(&with, "with", report),
    }
}

/// What no request comes to.
fn shadowed(http: &Section, report: &mut Report) {
    if http.bool("redirect_to_https").is_some_and(|redirects| redirects.value) {
        for key in ["route", "rewrite", "maintenance"] {
            no_effect(http, key, "every request is redirected to `https`", report);
        }
        return;
    }
    let conditions = ["host", "path", "path_exact", "path_regex", "method", "header", "header_regex", "from"];
    let catches_all =
        |route: &&Section| conditions.iter().all(|key| route.written(key).is_none() && !route.broken.contains(key));
    let routes = http.tables("route");
    if let Some(place) = routes.iter().position(|route| catches_all(&route))
        && let Some(next) = routes.get(place + 1)
    {
        report
            .warning("no-effect", &next.span, "no request comes to this route")
            .label(&routes[place].span, "this one has no condition, so it fits every request")
            .hint("put that one last");
    }
}

/// A secret is for cookies of ours.
fn secret(service: &Service<'_>, http: &Section, report: &mut Report) {
    let inserts = |section: &Section| {
        let persistence = section.table("persistence");
        persistence.is_some_and(|rule| {
            kinds(rule).iter().any(|by| by.value == "cookie")
                && rule.word("cookie_mode").is_none_or(|mode| mode.value == "insert")
        })
    };
    if !inserts(service.section) && !http.tables("route").iter().any(inserts) {
        no_effect(http, "cookie_secret_file", "no cookie is inserted", report);
    }
}

/// A server that several groups of a service have gets TLS, or does not, whichever route leads to it.
fn one_tls_each(draft: &Draft<'_>, service: &Service<'_>, report: &mut Report) {
    let mut seen: HashMap<(IpAddr, Option<u16>), &Server<'_>> = HashMap::new();
    if service.tls_mode.value == "pass-through" || draft.all_groups(service).len() < 2 {
        return;
    }
    for server in draft.all_servers(service) {
        let Some(address) = &server.address else { continue };
        let first = *seen.entry((address.value, server.port.as_ref().map(|port| port.value))).or_insert(server);
        let re_encrypts = |server: &Server<'_>| server.section.bool("re_encrypt").map(|says| says.value);
        let name = |server: &Server<'_>| server.section.text("server_name").map(|name| name.value.to_ascii_lowercase());
        for (key, differs) in
            [("re_encrypt", re_encrypts(first) != re_encrypts(server)), ("server_name", name(first) != name(server))]
        {
            if differs {
                report
                    .error(
                        "different-server",
                        server.section.written(key).unwrap_or(&server.section.span),
                        format!(
                            "{} is one real server of this service, but has two different values of `{key}`",
                            address.value
                        ),
                    )
                    .label(
                        first.section.written(key).unwrap_or(&first.section.span),
                        format!("the other, of {}", first.title()),
                    )
                    .hint("give it the same in every group");
            }
        }
    }
}

fn no_effect(section: &Section, key: &str, why: &str, report: &mut Report) {
    if let Some(span) = section.written(key) {
        report.warning("no-effect", span, format!("`{key}` has no effect: {why}")).hint("remove it");
    }
}

fn needs(section: &Section, key: &str, needed: &str, report: &mut Report) {
    if let Some(span) =
        section.written(key).filter(|_| section.entry(needed).is_none() && !section.broken.contains(&needed))
    {
        report
            .error("missing-key", span, format!("`{key}` needs `{needed}`"))
            .hint(format!("add `{needed} = \"...\"`"));
    }
}

/// RFC 9110 §5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Whether it is the name of a header; tells if not.
pub(super) fn is_header(name: &At<&str>, report: &mut Report) -> bool {
    let good = is_token(name.value);
    if !good {
        let shown = crate::decode::shorten(name.value);
        report
            .error("bad-name", &name.span, format!("no header is called \"{shown}\""))
            .hint("letters, digits and `-`, without the colon");
    }
    good
}

/// Whether a cookie may be called so (RFC 6265 §4.1.1); tells if not.
pub(super) fn is_cookie(name: &At<&str>, report: &mut Report) {
    if !is_token(name.value) {
        let shown = crate::decode::shorten(name.value);
        report
            .error("bad-name", &name.span, format!("no cookie is called \"{shown}\""))
            .hint("letters, digits, `-`, `_` and `.`");
    }
}

/// RFC 9110 §5.5, ASCII only.
fn is_value(text: &At<&str>, key: &str, report: &mut Report) {
    if text.value.trim() != text.value || !text.value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        report
            .error("bad-text", &text.span, format!("`{key}` is no value of a header"))
            .hint("printable ASCII, no blanks at the ends");
    }
}

/// A path as it is after decoding: what paths of requests are compared with.
fn is_path(path: &At<&str>, report: &mut Report) {
    let text = path.value;
    let cause = if !text.starts_with('/') {
        "does not begin with `/`"
    } else if text.contains(['?', '#']) {
        "has a query: only paths are compared"
    } else if text.contains('%') {
        "has `%`: paths are compared after decoding"
    } else if text.contains("//") || text.contains('\\') || text.split('/').any(|segment| matches!(segment, "." | ".."))
    {
        "is in no path after decoding: `//`, `\\`, `.` and `..` are resolved"
    } else {
        return;
    };
    let shown = crate::decode::shorten(text);
    report.error("bad-path", &path.span, format!("\"{shown}\" {cause}")).hint("write it like \"/owa\"");
}

/// Where a client is sent: a path, or a URL of `http` or `https`.
fn is_redirect(url: &At<&str>, report: &mut Report) {
    let text = url.value;
    let after_scheme = ["https://", "http://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    // A browser takes `//name` for another host, and whoever asks would write that name.
    let is_path = text.starts_with('/') && !text.starts_with("//") && !text.starts_with("/{");
    let begins = is_path || after_scheme.is_some_and(|rest| !rest.is_empty());
    let rest = text.replace("{host}", "").replace("{uri}", "");
    let allowed = rest.bytes().all(|byte| (b'!'..=b'~').contains(&byte) && !b"\"<>\\^`{|}".contains(&byte));
    if !begins || !allowed {
        let shown = crate::decode::shorten(text);
        report
            .error("bad-url", &url.span, format!("`redirect` is no URL: \"{shown}\""))
            .hint("write \"https://mail.example.org/owa\", \"/owa\" or \"https://{host}{uri}\"");
    }
}

fn is_pattern(text: &At<&str>, key: &str, extent: Extent, report: &mut Report) {
    if let Err(why) = Pattern::new(text.value, Case::Counts, extent) {
        report
            .error("bad-regex", &text.span, format!("`{key}` is no regular expression: {why}"))
            .hint("single quotes keep backslashes: '^/v[0-9]+\\.aspx$'");
    }
}

/// The texts of a list, each with its place.
fn texts<'s>(section: &'s Section, key: &str) -> impl Iterator<Item = At<&'s str>> {
    let written = section.list(key).map_or(&[][..], |list| list.value);
    written.iter().filter_map(|item| match &item.value {
        Value::Text(text) => Some(At { value: text.as_str(), span: item.span.clone(), written: true }),
        _ => None,
    })
}
