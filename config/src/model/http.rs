//! HTTP mode in the model.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;

use super::{Balance, Persistence};
use crate::pattern::Pattern;

/// `service.http`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Http {
    /// What is balanced.
    pub balance_each: BalanceEach,
    /// Whether clients may choose HTTP/2.
    pub http2: bool,
    /// Whether clients share connections to servers.
    pub reuse: Reuse,
    /// Longest request or response head.
    pub head_bytes_max: u32,
    /// Longest request body; 0 = no limit.
    pub body_bytes_max: u64,
    /// How long a request head may take.
    pub head_timeout_ms: u64,
    /// How long a server may take until its response begins, unless a route says otherwise.
    pub response_timeout_ms: u64,
    /// Which headers tell servers about the client.
    pub forwarded: Forwarded,
    /// Networks of proxies, each with its prefix length, whose own such headers are kept.
    pub trusted: Vec<(IpAddr, u8)>,
    /// Whether every request is answered with a redirect to `https`.
    pub redirect_to_https: bool,
    /// Port of `https` in redirects.
    pub https_port: u16,
    /// Whether servers' redirects to themselves, or away from the client's scheme, lead to what the client came to.
    pub rewrite_location: bool,
    /// `Strict-Transport-Security`; `None` where TLS is not ended here.
    pub hsts: Option<Hsts>,
    /// When clients that found no place are to come back.
    pub retry_after_s: u64,
    /// A page for clients that no server serves.
    pub maintenance: Option<Maintenance>,
    /// The first that fits decides.
    pub filters: Vec<HttpFilter>,
    /// The first that fits decides.
    pub routes: Vec<HttpRoute>,
    /// All that fit, in this order.
    pub rewrites: Vec<Rewrite>,
    /// File with the secret that cookies of ours are made by; `None` = a secret of each start's own.
    pub cookie_secret_file: Option<PathBuf>,
}

/// `http.balance_each`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BalanceEach {
    /// All requests of a connection go to one server of their group.
    Connection,
    /// Each request is balanced.
    Request,
}

/// `http.reuse`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reuse {
    /// A connection to a server belongs to one connection of a client.
    Never,
    /// One that has never seen authentication of its connection may carry requests of several.
    Safe {
        /// So many may wait for the next request, of each real server and worker.
        idle_max: u32,
        /// How long one may wait.
        idle_timeout_ms: u64,
    },
}

/// `http.forwarded`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forwarded {
    /// `Forwarded` and the `X-Forwarded-*`.
    Both,
    /// None is added.
    None,
    /// `Forwarded` (RFC 7239).
    Rfc7239,
    /// `X-Forwarded-For`, `X-Forwarded-Proto` and `X-Forwarded-Host`.
    XForwarded,
}

/// `http.hsts` (RFC 6797).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Hsts {
    /// How long browsers remember it.
    pub max_age_s: u64,
    /// For every name below as well.
    pub subdomains: bool,
    /// The name may be put on the browsers' own list.
    pub preload: bool,
}

/// `http.maintenance`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Maintenance {
    /// The page.
    pub file: PathBuf,
    /// Its status, 400 to 599.
    pub status: u16,
    /// Who gets it.
    pub when: MaintenanceWhen,
    /// When to come back.
    pub retry_after_s: Option<u64>,
}

/// `http.maintenance.when`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaintenanceWhen {
    /// Every request that no filter refuses.
    Always,
    /// Requests that no server can take.
    NoServer,
}

/// Conditions of a route, rewrite or filter: all of them must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RequestMatch {
    /// Names in lower case, `*.` in front for every name with one label more; empty = any.
    pub hosts: Vec<String>,
    /// One of them; empty = any.
    pub paths: Vec<PathMatch>,
    /// One of them; empty = any.
    pub methods: Vec<String>,
    /// A header.
    pub header: Option<HeaderMatch>,
    /// Client networks, each with its prefix length; empty = any.
    pub from: Vec<(IpAddr, u8)>,
}

/// `path`, `path_exact`, `path_regex`: compared after decoding, without regard to (ASCII) case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathMatch {
    /// All of it.
    Exact(String),
    /// Its first segments; one that ends with `/` fits only what lies below.
    Prefix(String),
    /// A part of it, unless the pattern says otherwise.
    Regex(Pattern),
}

/// `header`, `header_regex`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeaderMatch {
    /// Name of a header that the request has.
    pub name: String,
    /// What one of its values contains; `None` = anything.
    pub value: Option<Pattern>,
}

/// `[[service.http.route]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HttpRoute {
    /// Unique in its service; its number, from 1, where the file gives none.
    pub name: String,
    /// Which requests.
    pub when: RequestMatch,
    /// What becomes of them.
    pub to: RouteTo,
}

/// What becomes of the requests of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteTo {
    /// Servers.
    Group(RouteGroup),
    /// An answer that leads elsewhere.
    Redirect {
        /// URL or path; `{host}` is the name in the request, `{uri}` its path and query.
        url: String,
        /// 301, 302, 303, 307 or 308.
        status: u16,
    },
    /// An answer of this status, 400 to 599.
    Status(u16),
}

/// Servers behind a route, and what is different for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteGroup {
    /// Index into [`crate::Model::groups`].
    pub group: usize,
    /// Whether it has a balance, health or timeouts of its own, or persistence: then its turns are its own as well.
    pub settings: RouteSettings,
    /// Whose pinned clients are pinned here too.
    pub clients: RouteClients,
    /// How a server is chosen.
    pub balance: Balance,
    /// Whether clients come back to their server.
    pub persistence: Option<Persistence>,
    /// As [`super::VirtualService::idle_timeout_ms`].
    pub idle_timeout_ms: u64,
    /// As [`super::VirtualService::connect_timeout_ms`].
    pub connect_timeout_ms: u64,
    /// As [`Http::response_timeout_ms`].
    pub response_timeout_ms: u64,
}

/// Where the settings of a route are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteSettings {
    /// From its group and service; all routes of the service to this group are one.
    Common,
    /// The route has some.
    Own,
}

/// Which clients a route knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteClients {
    /// Those of every route of the service to this group, by index.
    Group(usize),
    /// Its own: it has its own persistence.
    Route,
    /// Those of the service, whose group this is as well.
    Service,
}

/// `[[service.http.rewrite]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rewrite {
    /// For which requests.
    pub when: RequestMatch,
    /// What is changed.
    pub change: Change,
}

/// `rewrite.what`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// A header.
    Header {
        /// Whose.
        of: Way,
        /// Its name.
        name: String,
        /// What becomes of it.
        to: HeaderChange,
    },
    /// `Host` of requests.
    Host(String),
    /// The first segments of the path of requests.
    Path {
        /// What they are; as [`PathMatch::Prefix`].
        from: String,
        /// What they become.
        to: String,
    },
}

/// What becomes of a header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeaderChange {
    /// One more of this value.
    Add(String),
    /// Every one of its name goes.
    Remove,
    /// It has this value, whatever it was.
    Set(String),
}

/// `rewrite.of`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// On the way to the server.
    Request,
    /// On the way to the client.
    Response,
}

/// `[[service.http.filter]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HttpFilter {
    /// Which requests.
    pub when: RequestMatch,
    /// Of these, those with such a parameter in their query.
    pub parameter: Option<ParameterMatch>,
    /// What happens.
    pub action: FilterAction,
}

/// `filter.action`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FilterAction {
    /// Let through.
    Allow,
    /// Answer this status, 400 to 599.
    Deny(u16),
}

/// `parameter`, `pattern`, `except`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ParameterMatch {
    /// Its name, without regard to case; `None` = any.
    pub name: Option<String>,
    /// What one of its values contains; `None` = anything.
    pub pattern: Option<Pattern>,
    /// What all of that value is not; `None` = nothing.
    pub except: Option<Pattern>,
}
