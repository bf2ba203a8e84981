//! `[notify]`.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::decode::Section;
use crate::diagnostic::Report;
use crate::draft::Draft;

/// The parts of a webhook's URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WebhookParts<'u> {
    pub(crate) has_tls: bool,
    /// A name, or an address without brackets.
    pub(crate) host: &'u str,
    pub(crate) port: u16,
    /// Host and port as written.
    pub(crate) authority: &'u str,
    /// Path and query; `/` where none is written.
    pub(crate) path: &'u str,
}

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    let Some(notify) = draft.root.table("notify") else { return };
    let is_there = |key| notify.entry(key).is_some() || notify.broken.contains(&key);
    if !is_there("command") && !is_there("webhook") {
        report
            .error("missing-key", &notify.span, "`[notify]` names nobody who could be told")
            .hint("add `command = [\"/usr/local/bin/page\"]` or `webhook = \"https://hooks.example.org/towpath\"`");
    }
    let Some(webhook) = notify.text("webhook") else {
        if !is_there("webhook") {
            without_webhook(notify, report);
        }
        return;
    };
    match webhook_parts(webhook.value) {
        Err(why) => {
            report
                .error("bad-url", &webhook.span, format!("`notify.webhook` {why}"))
                .hint("write it as in `\"https://hooks.example.org/towpath\"`");
        }
        Ok(parts) if !parts.has_tls => {
            if let Some(span) = notify.written("webhook_ca") {
                report
                    .warning("no-effect", span, "`notify.webhook_ca` has no effect: the webhook is by plain HTTP")
                    .label(&webhook.span, "no certificate is shown here")
                    .hint("write `https://`, or remove it");
            }
            if let Some(span) = notify.written("webhook_token_file") {
                report
                    .warning(
                        "plain-token",
                        span,
                        "whoever is on the way can read the token: the webhook is by plain HTTP",
                    )
                    .label(&webhook.span, "not encrypted")
                    .hint("write `https://`");
            }
        }
        Ok(_) => {}
    }
}

fn without_webhook(notify: &Section, report: &mut Report) {
    for key in ["webhook_ca", "webhook_token_file"] {
        if let Some(span) = notify.written(key) {
            report
                .warning("no-effect", span, format!("`notify.{key}` has no effect: there is no webhook"))
                .hint("add `webhook`, or remove it");
        }
    }
}

/// Takes a URL of http or https apart; an error says what is wrong with it.
pub(crate) fn webhook_parts(url: &str) -> Result<WebhookParts<'_>, &'static str> {
    if !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("has a space, or a sign that is not of ASCII");
    }
    let (has_tls, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(rest), _) => (true, rest),
        (_, Some(rest)) => (false, rest),
        (None, None) => return Err("begins with neither `https://` nor `http://`"),
    };
    if rest.contains('#') {
        return Err("has a fragment, which no server gets to see");
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if path.starts_with('?') {
        return Err("has a query, but no path before it");
    }
    if authority.contains('@') {
        return Err("has a user in it; use `webhook_token_file`");
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("opens a bracket and does not close it")?;
            host.parse::<Ipv6Addr>().map_err(|_| "has no IPv6 address in its brackets")?;
            let port = match after {
                "" => None,
                _ => Some(after.strip_prefix(':').ok_or("has something else than a port behind its address")?),
            };
            (host, port)
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if !authority.starts_with('[') && !is_name(host) {
        return Err("names no host");
    }
    let port = match port {
        None if has_tls => 443,
        None => 80,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().ok().filter(|port| *port != 0).ok_or("has no port from 1 to 65535 behind the colon")?
        }
        Some(_) => return Err("has no port from 1 to 65535 behind the colon"),
    };
    Ok(WebhookParts { has_tls, host, port, authority, path: if path.is_empty() { "/" } else { path } })
}

/// A name of hosts (RFC 1123 §2.1; `_` because it is used), or an IPv4 address.
fn is_name(host: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // What ends in a number is an address, or nothing (RFC 3986 §3.2.2, WHATWG URL).
    let ends_in_number =
        host.rsplit('.').next().is_some_and(|last| !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()));
    match ends_in_number {
        true => host.parse::<Ipv4Addr>().is_ok(),
        false => host.len() <= 253 && host.strip_suffix('.').unwrap_or(host).split('.').all(is_label),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_or_refused_with_what_is_wrong() {
        let parts =
            |url| webhook_parts(url).map(|parts| (parts.has_tls, parts.host, parts.port, parts.authority, parts.path));
        for (url, expected) in [
            ("https://hooks.example.org/towpath", (true, "hooks.example.org", 443, "hooks.example.org", "/towpath")),
            ("http://192.0.2.5:8080", (false, "192.0.2.5", 8080, "192.0.2.5:8080", "/")),
            ("http://[2001:db8::5]/a?b=c/d", (false, "2001:db8::5", 80, "[2001:db8::5]", "/a?b=c/d")),
            ("https://[2001:db8::5]:8443/", (true, "2001:db8::5", 8443, "[2001:db8::5]:8443", "/")),
            ("https://chat_1./x", (true, "chat_1.", 443, "chat_1.", "/x")),
        ] {
            assert_eq!(parts(url), Ok(expected), "{url}");
        }
        for (url, why) in [
            ("hooks.example.org/towpath", "begins with neither"),
            ("ftp://hooks.example.org/", "begins with neither"),
            ("https://", "names no host"),
            ("https:///towpath", "names no host"),
            ("https://192.0.2.256/", "names no host"),
            ("https://-a.example.org/", "names no host"),
            ("https://a..b/", "names no host"),
            ("https://a.b:/", "no port"),
            ("https://a.b:0/", "no port"),
            ("https://a.b:+80/", "no port"),
            ("https://a.b:65536/", "no port"),
            ("https://[192.0.2.1]/", "no IPv6 address"),
            ("https://[::1/", "does not close"),
            ("https://[::1]443/", "something else than a port"),
            ("https://me:secret@a.b/", "has a user"),
            ("https://a.b?x", "no path before"),
            ("https://a.b/#x", "fragment"),
            ("https://a.b/ x", "a space"),
            ("https://a.b/\r\nX: y", "a space"),
            ("https://ä.b/", "not of ASCII"),
        ] {
            let told = parts(url).expect_err(url);
            assert!(told.contains(why), "{url}: {told}");
        }
    }
}
