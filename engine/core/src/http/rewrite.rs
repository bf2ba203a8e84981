//! What is changed of requests and responses on their way.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use towpath_config::model::{Change, CookieSet, Forwarded, HeaderChange, Way};

use super::condition::{Looked, begins_with, decoded, holds};
use super::cookie;
use super::head::{RequestHead, ResponseHead};
use super::route::HttpRules;
use super::write::{Edit, Edits, decimal};
use crate::ids::{RealServerId, TargetIndex};
use crate::snapshot::{Service, ServiceHttp};

/// What a client came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain TCP.
    Http,
    /// TLS, ended here.
    Https,
}

impl Scheme {
    /// As in a URI.
    pub fn label(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

/// What a response must know of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AfterRequest {
    scheme: Scheme,
    /// The server that the client named by a cookie of ours.
    named: Option<RealServerId>,
    /// Which rewrites fit, one bit each.
    rewrites: [u64; REWRITE_WORDS],
}

/// Room for the 256 rewrites that a service may have.
const REWRITE_WORDS: usize = 4;

impl HttpRules {
    /// What is changed of a request on its way to a server, and what its response must know of it; `named` is the server that a cookie of ours names.
    pub fn request_edits(
        &self,
        head: &RequestHead,
        client: SocketAddr,
        scheme: Scheme,
        named: Option<RealServerId>,
    ) -> (Edits<'_>, AfterRequest) {
        let client = client.ip().to_canonical();
        let mut edits = Edits::default();
        self.tell_of_client(head, client, scheme, &mut edits);
        let mut after = AfterRequest { scheme, named, rewrites: [0; REWRITE_WORDS] };
        let mut looked = Looked::at(head, client);
        for (place, rewrite) in self.config().rewrites.iter().enumerate() {
            // A path that cannot be read has been refused if a filter or route looked at it; no rewrite fits it.
            if looked.fits(&rewrite.when) != Ok(true) {
                continue;
            }
            match &rewrite.change {
                Change::Header { of: Way::Request, name, to } => change_header(name, to, &mut edits.fields),
                Change::Header { of: Way::Response, .. } => {
                    if let Some(word) = after.rewrites.get_mut(place / 64) {
                        *word |= 1 << (place % 64);
                    }
                }
                Change::Host(host) => edits.host = Some(Cow::Borrowed(host)),
                Change::Path { from, to } => {
                    let target = edits.target.as_deref().unwrap_or(head.target());
                    if let Some(target) = moved(target, from, to) {
                        edits.target = Some(Cow::Owned(target));
                    }
                }
            }
        }
        (edits, after)
    }

    /// Headers about the client: those of proxies that are trusted are kept and added to, anybody else's are left out.
    fn tell_of_client(&self, head: &RequestHead, client: IpAddr, scheme: Scheme, edits: &mut Edits<'_>) {
        let is_trusted = holds(&self.config().trusted, client);
        edits.untrusted = !is_trusted;
        let before = |name: &str| if is_trusted { joined(head.values(name)) } else { None };
        let host = head.host().filter(|host| !host.is_empty());
        let (x_forwarded, rfc7239) = match self.config().forwarded {
            Forwarded::Both => (true, true),
            Forwarded::None => (false, false),
            Forwarded::Rfc7239 => (false, true),
            Forwarded::XForwarded => (true, false),
        };
        if x_forwarded {
            set("X-Forwarded-For", appended(before("X-Forwarded-For"), written(client)), edits);
            if before("X-Forwarded-Proto").is_none() {
                set("X-Forwarded-Proto", Cow::Borrowed(scheme.label().as_bytes()), edits);
            }
            if let Some(host) = host.filter(|_| before("X-Forwarded-Host").is_none()) {
                set("X-Forwarded-Host", Cow::Owned(host.into()), edits);
            }
        }
        if rfc7239 {
            // An IPv6 address stands in brackets and quotes, and so does whatever has a colon (RFC 7239 §4, §6).
            let by = match client {
                IpAddr::V4(v4) => v4.to_string(),
                IpAddr::V6(v6) => format!("\"[{v6}]\""),
            };
            let host = host.filter(|host| !host.contains(['"', '\\'])).map(|host| format!(";host=\"{host}\""));
            let own = format!("for={by};proto={}{}", scheme.label(), host.unwrap_or_default());
            set("Forwarded", appended(before("Forwarded"), own.into_bytes()), edits);
        }
    }
}

impl Service {
    /// What is changed of a response of `server` on its way to the client; of a service in HTTP mode.
    pub fn response_edits(&self, head: &ResponseHead, after: &AfterRequest, server: RealServerId) -> Edits<'_> {
        let mut edits = Edits::default();
        let Some(http) = &self.http else { return edits };
        let rules = http.rules.as_ref();
        if let Some(hsts) = rules.hsts().filter(|_| after.scheme == Scheme::Https)
            && head.values("Strict-Transport-Security").next().is_none()
        {
            edits.fields.push(Edit::Add { name: "Strict-Transport-Security", value: Cow::Borrowed(hsts.as_bytes()) });
        }
        let target = self.target_of(server).map(|(target, _)| target);
        if let Some(set) = target.and_then(|target| http.cookie_for(head, after, server, target)) {
            edits.fields.push(Edit::Add { name: "Set-Cookie", value: Cow::Borrowed(set) });
            // A cache that several clients share would give one client's cookie to all.
            edits.fields.push(Edit::Add { name: "Cache-Control", value: Cow::Borrowed(b"private") });
        }
        for (place, rewrite) in rules.config().rewrites.iter().enumerate() {
            let fits = after.rewrites.get(place / 64).is_some_and(|word| word >> (place % 64) & 1 == 1);
            if let (true, Change::Header { of: Way::Response, name, to }) = (fits, &rewrite.change) {
                change_header(name, to, &mut edits.fields);
            }
        }
        edits
    }
}

impl Service {
    /// Where a redirect of `server` leads as the client has to follow it: to what it came to, where the server means itself or has not seen by what
    /// the client came; `None` = where it says.
    pub fn location_for(
        &self,
        request: &RequestHead,
        response: &ResponseHead,
        after: &AfterRequest,
        server: RealServerId,
    ) -> Option<String> {
        self.http.as_ref().filter(|http| http.rules.config().rewrite_location)?;
        let (host, target) = (request.host().filter(|host| !host.is_empty())?, self.target_of(server)?.1);
        let written = std::str::from_utf8(response.values("Location").next()?).ok()?;
        let (is_plain, rest) = match (strip(written, "http://"), strip(written, "https://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            (None, None) => return None,
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (name, port) = parted(authority);
        let of_server = |port: Option<u16>| match target.port {
            Some(own) => port.unwrap_or(if is_plain { 80 } else { 443 }) == own,
            None => true,
        };
        let is_itself = name.trim_matches(['[', ']']).parse() == Ok(target.address) && of_server(port);
        let is_host = name.eq_ignore_ascii_case(parted(host).0);
        // A server behind us knows neither the client's scheme nor the port that it came to.
        let has_lost_tls =
            is_plain && after.scheme == Scheme::Https && (port.is_none_or(|port| port == 80) || of_server(port));
        let has_own_port = port.is_some() && port == target.port && port != parted(host).1;
        let meant = is_itself || is_host && (has_lost_tls || has_own_port);
        meant.then(|| format!("{}://{host}{path}", after.scheme.label()))
    }
}

/// What follows a scheme, in whatever case that is.
fn strip<'t>(text: &'t str, scheme: &str) -> Option<&'t str> {
    let (start, rest) = text.split_at_checked(scheme.len())?;
    start.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// Name and port of an authority; the name of an IPv6 address keeps its brackets.
fn parted(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port.parse().ok()),
        _ => (authority, None),
    }
}

impl ServiceHttp {
    /// The cookie of ours that the client gets with this response.
    fn cookie_for(
        &self,
        head: &ResponseHead,
        after: &AfterRequest,
        server: RealServerId,
        target: TargetIndex,
    ) -> Option<&[u8]> {
        let cookies = self.cookies.as_ref()?;
        let rule = cookies.cookie();
        let wanted = match rule.set {
            CookieSet::Always => true,
            CookieSet::Missing => after.named != Some(server),
        };
        let mut set_by_server = head.values("Set-Cookie").filter_map(|field| cookie::set_value(field, &rule.name));
        if !wanted || set_by_server.next().is_some() {
            return None;
        }
        cookies.set(target)
    }
}

fn set<'r>(name: &'static str, value: Cow<'r, [u8]>, edits: &mut Edits<'r>) {
    edits.fields.retain(|edit| !matches!(edit, Edit::Remove { name: other } if *other == name));
    edits.fields.push(Edit::Replace { name, value });
}

fn change_header<'r>(name: &'r str, to: &'r HeaderChange, fields: &mut Vec<Edit<'r>>) {
    let value = |value: &'r str| Cow::Borrowed(value.as_bytes());
    if matches!(to, HeaderChange::Remove | HeaderChange::Set(_)) {
        // What came is left out by the edit itself; what was added before is not.
        let added = |edit: &Edit<'_>| match edit {
            Edit::Add { name: other, .. } | Edit::Replace { name: other, .. } => other.eq_ignore_ascii_case(name),
            Edit::Remove { .. } => false,
        };
        fields.retain(|edit| !added(edit));
    }
    fields.push(match to {
        HeaderChange::Add(text) => Edit::Add { name, value: value(text) },
        HeaderChange::Remove => Edit::Remove { name },
        HeaderChange::Set(text) => Edit::Replace { name, value: value(text) },
    });
}

/// A target whose path begins with `from`, with `to` instead; `None` if it does not.
///
/// What follows stays as it was written, unless the beginning was: then all of the path is written anew.
fn moved(target: &str, from: &str, to: &str) -> Option<String> {
    let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
    let plain = decoded(path).ok()?;
    if !begins_with(&plain, from) {
        return None;
    }
    // Without the slash at its end, what follows is nothing or begins with one.
    let cut = from.trim_end_matches('/').len();
    let plain_rest = plain.get(cut..)?;
    let written = path.get(cut..).filter(|rest| {
        let unmoved = begins_with(path.as_bytes(), from);
        unmoved && decoded(rest).is_ok_and(|rest| *rest == *plain_rest)
    });
    let rest = written.map_or_else(|| Cow::Owned(escaped(plain_rest)), Cow::Borrowed);
    let to = if rest.is_empty() { to } else { to.trim_end_matches('/') };
    Some(format!("{}{rest}{query}", escaped(to.as_bytes())))
}

/// A path as it is written: whatever a segment cannot have is escaped (RFC 3986 §3.3).
fn escaped(path: &[u8]) -> String {
    let mut out = String::with_capacity(path.len());
    for &byte in path {
        if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Several fields of one name are one list (RFC 9110 §5.2); `None` where there is none.
fn joined<'a>(values: impl Iterator<Item = &'a [u8]>) -> Option<String> {
    let mut all = String::new();
    for value in values.filter(|value| !value.is_empty()) {
        if !all.is_empty() {
            all.push_str(", ");
        }
        all.push_str(&String::from_utf8_lossy(value));
    }
    (!all.is_empty()).then_some(all)
}

fn appended(before: Option<String>, own: Vec<u8>) -> Cow<'static, [u8]> {
    Cow::Owned(match before {
        Some(before) => [before.as_bytes(), b", ", &own].concat(),
        None => own,
    })
}

/// An address as text. One is in every request, so those of IPv4 do without the machinery of `Display`.
fn written(address: IpAddr) -> Vec<u8> {
    let IpAddr::V4(v4) = address else { return address.to_string().into_bytes() };
    let mut text = Vec::with_capacity("255.255.255.255".len());
    for (place, octet) in v4.octets().into_iter().enumerate() {
        if place > 0 {
            text.push(b'.');
        }
        decimal(u64::from(octet), &mut text);
    }
    text
}

#[cfg(test)]
mod tests;
