//! The part of the model that is about HTTP mode.

use std::path::PathBuf;

use super::{health, networks, persistence, proxy_to, server};
use crate::decode::{Section, Value};
use crate::draft::{Draft, Members, Service, balance};
use crate::model::{self, RouteClients, RouteSettings};
use crate::pattern::{Case, Extent, Pattern};

/// The cookie that mobile clients of Lync 2010 come back by: they want it with every response, must see it, and keep it (requirements.md F-PER-06).
pub(crate) const MOBILITY_COOKIE: &str = "MS-WSMAN";

pub(super) fn service(
    section: &Section,
    service: &Service<'_>,
    draft: &Draft<'_>,
    groups: &mut Vec<model::ServerGroup>,
) -> Option<model::Http> {
    let response_timeout_ms = section.duration("response_timeout").map(|timeout| timeout.value);
    let mut routes = Vec::new();
    for (place, route) in section.tables("route").iter().enumerate() {
        let name = route.text("name").map_or_else(|| (place + 1).to_string(), |name| name.value.to_owned());
        let to = match (route.text("redirect"), route.number("status")) {
            (Some(url), _) => model::RouteTo::Redirect {
                url: url.value.to_owned(),
                status: route.word("redirect_status")?.value.parse().ok()?,
            },
            (None, Some(status)) => model::RouteTo::Status(status.value),
            (None, None) => model::RouteTo::Group(group(route, &name, service, draft, groups, response_timeout_ms)?),
        };
        routes.push(model::HttpRoute { name, when: when(route)?, to });
    }
    let hsts = match section.table("hsts") {
        Some(hsts) => Some(model::Hsts {
            max_age_s: hsts.duration("max_age")?.value / 1000,
            subdomains: hsts.bool("subdomains")?.value,
            preload: hsts.bool("preload")?.value,
        }),
        None => None,
    };
    let maintenance = match section.table("maintenance") {
        Some(page) => Some(model::Maintenance {
            file: PathBuf::from(page.text("file")?.value),
            status: page.number("status")?.value,
            when: match page.word("when")?.value {
                "always" => model::MaintenanceWhen::Always,
                _ => model::MaintenanceWhen::NoServer,
            },
            retry_after_s: page.duration("retry_after").map(|after| after.value / 1000),
        }),
        None => None,
    };
    Some(model::Http {
        retry_after_s: section.duration("retry_after")?.value / 1000,
        balance_each: match section.word("balance_each")?.value {
            "connection" => model::BalanceEach::Connection,
            _ => model::BalanceEach::Request,
        },
        http2: section.bool("http2")?.value,
        reuse: match section.word("reuse")?.value {
            "safe" => model::Reuse::Safe {
                idle_max: section.number("reuse_idle_max")?.value,
                idle_timeout_ms: section.duration("reuse_idle_timeout")?.value,
            },
            _ => model::Reuse::Never,
        },
        head_bytes_max: section.number("head_bytes_max")?.value,
        body_bytes_max: section.number("body_bytes_max")?.value,
        head_timeout_ms: section.duration("head_timeout")?.value,
        response_timeout_ms: response_timeout_ms.unwrap_or(service.idle_timeout_ms.value),
        forwarded: match section.word("forwarded")?.value {
            "both" => model::Forwarded::Both,
            "none" => model::Forwarded::None,
            "rfc7239" => model::Forwarded::Rfc7239,
            _ => model::Forwarded::XForwarded,
        },
        trusted: networks(section, "trusted"),
        redirect_to_https: section.bool("redirect_to_https")?.value,
        https_port: section.number("https_port")?.value,
        rewrite_location: section.bool("rewrite_location")?.value,
        hsts,
        maintenance,
        filters: section.tables("filter").iter().map(filter).collect::<Option<_>>()?,
        routes,
        rewrites: section.tables("rewrite").iter().map(rewrite).collect::<Option<_>>()?,
        cookie_secret_file: section.text("cookie_secret_file").map(|path| PathBuf::from(path.value)),
    })
}

/// The servers behind a route. With a `health` of its own they are one more group.
fn group(
    route: &Section,
    name: &str,
    service: &Service<'_>,
    draft: &Draft<'_>,
    groups: &mut Vec<model::ServerGroup>,
    response_timeout_ms: Option<u64>,
) -> Option<model::RouteGroup> {
    let named = draft.group(route.text("group")?.value)?;
    let own_health = route.table("health");
    let group = match own_health {
        None => named,
        Some(own) => {
            groups.push(model::ServerGroup {
                name: format!("{}: {name}", service.name.as_ref()?.value),
                servers: draft.groups[named].servers.iter().map(server).collect::<Option<_>>()?,
                health: health(Some(own)),
                proxy_protocol: proxy_to(draft.groups[named].section),
                origin: Some(named),
            });
            groups.len() - 1
        }
    };
    let own_persistence = route.written("persistence").is_some();
    let own = ["balance", "health", "idle_timeout", "connect_timeout", "response_timeout"];
    let is_own = own_persistence || own.into_iter().any(|key| route.written(key).is_some());
    let of_service = matches!(service.members, Members::Group(members) if members == named);
    let idle_timeout = route.duration("idle_timeout").map(|timeout| timeout.value);
    let service_balance = || match draft.groups[named].section.word("balance").filter(|word| word.written) {
        Some(word) if service.section.word("balance").is_none() => balance(word.value),
        _ => service.balance(&draft.groups),
    };
    Some(model::RouteGroup {
        group,
        settings: if is_own { RouteSettings::Own } else { RouteSettings::Common },
        clients: match (own_persistence, of_service) {
            (true, _) => RouteClients::Route,
            (false, true) => RouteClients::Service,
            (false, false) => RouteClients::Group(named),
        },
        balance: route.word("balance").map_or_else(service_balance, |word| balance(word.value)),
        persistence: persistence(if own_persistence { route } else { service.section }, service)?,
        idle_timeout_ms: idle_timeout.unwrap_or(service.idle_timeout_ms.value),
        connect_timeout_ms: route.duration("connect_timeout").or(service.section.duration("connect_timeout"))?.value,
        response_timeout_ms: route
            .duration("response_timeout")
            .map(|timeout| timeout.value)
            .or(response_timeout_ms)
            .or(idle_timeout)
            .unwrap_or(service.idle_timeout_ms.value),
    })
}

pub(super) fn inserted_cookie(section: &Section, service: &Service<'_>) -> Option<model::InsertedCookie> {
    let name = section.text("cookie")?.value.to_owned();
    let for_mobility = name == MOBILITY_COOKIE;
    let says = |key: &str| section.bool(key).map(|says| says.value);
    let ends_tls = service.tls_mode.value != "pass-through";
    Some(model::InsertedCookie {
        set: match section.word("cookie_set").map(|set| set.value) {
            Some("always") => model::CookieSet::Always,
            None if for_mobility => model::CookieSet::Always,
            _ => model::CookieSet::Missing,
        },
        http_only: says("cookie_http_only").unwrap_or(!for_mobility),
        secure: says("cookie_secure").unwrap_or(ends_tls && !for_mobility),
        name,
    })
}

/// The conditions of a route, rewrite or filter.
fn when(section: &Section) -> Option<model::RequestMatch> {
    let lower = |text: &String| text.to_ascii_lowercase();
    let prefixes = texts(section, "path").map(|path| model::PathMatch::Prefix(lower(path)));
    let exact = texts(section, "path_exact").map(|path| model::PathMatch::Exact(lower(path)));
    let regexes = texts(section, "path_regex").map(|text| {
        let pattern = Pattern::new(text, Case::Ignored, Extent::Part).ok()?;
        Some(model::PathMatch::Regex(pattern))
    });
    let paths = prefixes.chain(exact).map(Some).chain(regexes).collect::<Option<_>>()?;
    let header = match section.table.key("header_regex").and_then(|_| section.text("header")) {
        Some(name) => Some(model::HeaderMatch {
            name: name.value.to_owned(),
            value: pattern(section, "header_regex", Extent::Part)?,
        }),
        None => None,
    };
    Some(model::RequestMatch {
        hosts: texts(section, "host").map(lower).collect(),
        paths,
        methods: texts(section, "method").cloned().collect(),
        header,
        from: networks(section, "from"),
    })
}

fn rewrite(section: &Section) -> Option<model::Rewrite> {
    let text = |key: &str| section.text(key).map(|text| text.value.to_owned());
    let header = |to| {
        let of = match section.word("of")?.value {
            "response" => model::Way::Response,
            _ => model::Way::Request,
        };
        Some(model::Change::Header { of, name: text("header")?, to })
    };
    let change = match section.word("what")?.value {
        "add-header" => header(model::HeaderChange::Add(text("with")?))?,
        "host" => model::Change::Host(text("with")?),
        "path" => model::Change::Path { from: text("match")?.to_ascii_lowercase(), to: text("with")? },
        "remove-header" => header(model::HeaderChange::Remove)?,
        _ => header(model::HeaderChange::Set(text("with")?))?,
    };
    Some(model::Rewrite { when: when(section)?, change })
}

fn filter(section: &Section) -> Option<model::HttpFilter> {
    let parameter = match section.text("parameter") {
        Some(name) => Some(model::ParameterMatch {
            name: (name.value != "*").then(|| name.value.to_owned()),
            pattern: pattern(section, "pattern", Extent::Part)?,
            except: pattern(section, "except", Extent::Whole)?,
        }),
        None => None,
    };
    let action = match section.word("action")?.value {
        "allow" => model::FilterAction::Allow,
        _ => model::FilterAction::Deny(section.number("status")?.value),
    };
    Some(model::HttpFilter { when: when(section)?, parameter, action })
}

/// The outer `None` means that something is wrong with it, the inner that there is none.
fn pattern(section: &Section, key: &str, extent: Extent) -> Option<Option<Pattern>> {
    match section.text(key) {
        Some(text) => Some(Some(Pattern::new(text.value, Case::Counts, extent).ok()?)),
        None => Some(None),
    }
}

/// The texts of a list.
fn texts<'s>(section: &'s Section, key: &str) -> impl Iterator<Item = &'s String> {
    let written = section.list(key).map_or(&[][..], |list| list.value);
    written.iter().filter_map(|item| if let Value::Text(text) = &item.value { Some(text) } else { None })
}
