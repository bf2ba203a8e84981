//! From a draft without errors to the model.

mod control;
mod http;
mod log;
mod notify;
mod tls;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::decode::{At, PortSet, Section, Value};
use crate::draft::{Draft, DraftPorts, DraftSource, Members, Persists, Server, Service, persists};
use crate::model;
use crate::rules::health::{hexadecimal, radius_answer, rcodes, statuses, transport};

/// Ports leased at addresses of our own, unless the file says otherwise.
pub(crate) const POOL_PORTS: (u16, u16) = (1024, u16::MAX);
/// Ports leased at an address that the kernel has as well: below those that it gives to its own connections (32768-60999).
const FACING_PORTS: (u16, u16) = (16_384, 32_767);
/// How long a port rests, unless the file says otherwise.
const POOL_REST_MS: u64 = 60_000;

/// `None` when something that the model needs is missing, which has been reported.
pub(crate) fn build(draft: &Draft<'_>) -> Option<model::Model> {
    let mut groups = Vec::with_capacity(draft.groups.len() + draft.services.len());
    for group in &draft.groups {
        groups.push(model::ServerGroup {
            name: group.name.as_ref()?.value.to_owned(),
            servers: group.servers.iter().map(server).collect::<Option<_>>()?,
            health: health(group.section.table("health")),
            proxy_protocol: proxy_to(group.section),
            origin: None,
        });
    }
    let mut services = Vec::with_capacity(draft.services.len());
    for draft_service in &draft.services {
        let own_health = draft_service.section.table("health");
        let group = match (&draft_service.members, own_health) {
            (Members::Group(index), None) => *index,
            (_, own_health) => {
                groups.push(model::ServerGroup {
                    name: draft_service.name.as_ref()?.value.to_owned(),
                    servers: draft.servers(draft_service).iter().map(server).collect::<Option<_>>()?,
                    health: health(own_health),
                    proxy_protocol: match &draft_service.members {
                        Members::Group(index) => proxy_to(draft.groups[*index].section),
                        Members::Own(_) => None,
                    },
                    origin: match &draft_service.members {
                        Members::Group(index) => Some(*index),
                        Members::Own(_) => None,
                    },
                });
                groups.len() - 1
            }
        };
        services.push(service(draft_service, draft, &mut groups, group)?);
    }
    Some(model::Model {
        runtime: runtime(draft.root)?,
        limits: limits(draft.root)?,
        control: control::control(draft.root)?,
        tls: tls::pool(draft.root)?,
        log: log::log(draft.root)?,
        notify: notify::notify(draft.root)?,
        routes: draft.root.tables("route").iter().map(route).collect::<Option<_>>()?,
        router: router(draft.root)?,
        outbound: draft.root.tables("outbound_nat").iter().map(outbound_nat).collect::<Option<_>>()?,
        interfaces: draft.root.tables("interface").iter().map(interface).collect::<Option<_>>()?,
        groups,
        services,
        bridges: draft.root.tables("bridge").iter().map(bridge).collect::<Option<_>>()?,
    })
}

fn bridge(section: &Section) -> Option<model::Bridge> {
    let arms = section.list("interfaces")?.value.iter().filter_map(|arm| match &arm.value {
        Value::Text(name) => Some(name.clone()),
        _ => None,
    });
    Some(model::Bridge {
        name: section.text("name")?.value.to_owned(),
        arms: arms.collect::<Vec<_>>().try_into().ok()?,
        addresses: networks(section, "addresses"),
        spanning_tree: section.bool("spanning_tree")?.value,
    })
}

fn service(
    service: &Service<'_>,
    draft: &Draft<'_>,
    groups: &mut Vec<model::ServerGroup>,
    group: usize,
) -> Option<model::VirtualService> {
    let section = service.section;
    Some(model::VirtualService {
        name: service.name.as_ref()?.value.to_owned(),
        vip: service.vip.as_ref()?.value,
        ports: match service.ports.as_ref()? {
            DraftPorts::All(_) => model::Ports::All,
            DraftPorts::Set(ports) => model::Ports::List(ports.value.list()),
        },
        protocol: service.protocol.as_ref()?.value,
        plane: service.plane.value,
        forwarding: service.forwarding(),
        application: service.application.as_ref().map(|application| application.value),
        balance: service.balance(&draft.groups),
        persistence: persistence(section, service)?,
        idle_timeout_ms: service.idle_timeout_ms.value,
        connect_timeout_ms: section.duration("connect_timeout")?.value,
        drain_timeout_ms: section.duration("drain_timeout")?.value,
        redispatch: section.number("redispatch")?.value,
        drop_on_failure: section.bool("drop_on_failure")?.value,
        panic_threshold: section.number("panic_threshold")?.value,
        slow_start_ms: section.duration("slow_start")?.value,
        max_connections: section.number("max_connections")?.value,
        queue: match section.number("queue")?.value {
            0 => None,
            max => Some(model::Queue { max, timeout_ms: section.duration("queue_timeout")?.value }),
        },
        overload: match section.word("overload")?.value {
            "reset" => model::Overload::Reset,
            _ => model::Overload::Silent,
        },
        source: source(service)?,
        next_hop: section.address("next_hop").map(|next_hop| next_hop.value),
        client_networks: networks(section, "client_networks"),
        interface: section.text("interface").map(|interface| interface.value.to_owned()),
        tls: tls::service(service, draft)?,
        http: match service.http {
            Some(section) => Some(Box::new(http::service(section, service, draft, groups)?)),
            None => None,
        },
        proxy_protocol: proxy_to(section).unwrap_or_default(),
        proxy_from: proxy_from(section)?,
        log: log::of_service(service, draft.root)?,
        group,
    })
}

/// `proxy_protocol` as far as it is written.
fn proxy_to(section: &Section) -> Option<model::ProxyTo> {
    section.word("proxy_protocol").map(|word| match word.value {
        "v1" => model::ProxyTo::V1,
        "v2" => model::ProxyTo::V2,
        _ => model::ProxyTo::None,
    })
}

/// The outer `None` means that something is missing, the inner that nobody speaks for clients.
fn proxy_from(section: &Section) -> Option<Option<model::ProxyFrom>> {
    if section.list("proxy_protocol_from").is_none() {
        return Some(None);
    }
    Some(Some(model::ProxyFrom {
        networks: networks(section, "proxy_protocol_from"),
        timeout_ms: section.duration("proxy_protocol_timeout")?.value,
        others: match section.word("proxy_protocol_others")?.value {
            "serve" => model::ProxyOthers::Serve,
            _ => model::ProxyOthers::Refuse,
        },
    }))
}

fn server(server: &Server<'_>) -> Option<model::Server> {
    Some(model::Server {
        name: server.name.as_ref()?.value.to_owned(),
        address: server.address.as_ref()?.value,
        port: server.port.as_ref().map(|port| port.value),
        weight: server.weight.value,
        min_connections: server.section.number("min_connections")?.value,
        max_connections: server.max_connections.value,
        admin: server.admin.value,
        backup: server.section.bool("backup")?.value,
        re_encrypt: server.section.bool("re_encrypt").map(|re_encrypt| re_encrypt.value),
        server_name: server.section.text("server_name").map(|name| name.value.to_ascii_lowercase()),
        proxy_protocol: proxy_to(server.section),
    })
}

/// Of a service or a route. The outer `None` means that something is missing, the inner that clients are not pinned.
fn persistence(section: &Section, service: &Service<'_>) -> Option<Option<model::Persistence>> {
    let kinds = match persists(section) {
        Persists::None => return Some(None),
        Persists::Unknown => return None,
        Persists::By(kinds) => kinds,
    };
    let section = section.table("persistence")?;
    let by = |kind: &str| {
        Some(match kind {
            "cookie" if section.word("cookie_mode")?.value == "find" => {
                model::PersistBy::FoundCookie(section.text("cookie")?.value.to_owned())
            }
            "cookie" => model::PersistBy::InsertedCookie(http::inserted_cookie(section, service)?),
            "header" => model::PersistBy::Header(section.text("header")?.value.to_owned()),
            "sip-call-id" => model::PersistBy::SipCallId,
            "sni" => model::PersistBy::Sni,
            "super-http" => model::PersistBy::SuperHttp,
            "super-http-and-source-ip" => model::PersistBy::SuperHttpAndSourceIp,
            "tls-session-id" => model::PersistBy::TlsSessionId,
            _ => model::PersistBy::SourceIp,
        })
    };
    Some(Some(model::Persistence {
        by: kinds.iter().map(|kind| by(kind.value)).collect::<Option<_>>()?,
        timeout_ms: section.duration("timeout")?.value,
        ipv4_prefix: section.number("ipv4_prefix")?.value,
        ipv6_prefix: section.number("ipv6_prefix")?.value,
        enter_draining: section.bool("enter_draining")?.value,
    }))
}

fn source(service: &Service<'_>) -> Option<model::Source> {
    match &service.source {
        DraftSource::Unknown => None,
        DraftSource::Client(_) => Some(model::Source::Client),
        DraftSource::Interface(_) if service.keeps_client() => Some(model::Source::Client),
        DraftSource::Interface(_) if service.plane.value == model::Plane::Stream => Some(model::Source::Interface),
        DraftSource::Interface(_) => Some(facing(FACING_PORTS, POOL_REST_MS)),
        DraftSource::Facing(pool) | DraftSource::Pool(pool) => pool_source(pool),
        DraftSource::Vip(_) => {
            let vip = service.vip.as_ref()?.value;
            Some(model::Source::Pool(model::SourcePool {
                addresses: vec![vip],
                port_low: POOL_PORTS.0,
                port_high: POOL_PORTS.1,
                rest_ms: POOL_REST_MS,
                towards: BTreeMap::new(),
            }))
        }
    }
}

/// `source = { pool = … }`: of addresses, or with the word `"interface"` of those that only the machine knows.
fn pool_source(pool: &Section) -> Option<model::Source> {
    let written = pool.port_range("ports").map(|ports| ports.value);
    let rest_ms = pool.duration("rest")?.value;
    if pool.word("pool").is_some() {
        return Some(facing(written.unwrap_or(FACING_PORTS), rest_ms));
    }
    let (port_low, port_high) = written.unwrap_or(POOL_PORTS);
    let addresses = pool_addresses(pool);
    Some(model::Source::Pool(model::SourcePool { addresses, port_low, port_high, rest_ms, towards: BTreeMap::new() }))
}

fn facing((port_low, port_high): (u16, u16), rest_ms: u64) -> model::Source {
    model::Source::Facing(model::FacingPorts { port_low, port_high, rest_ms })
}

fn interface(section: &Section) -> Option<model::Interface> {
    let name = section.text("name")?.value;
    let vlan = |section: &Section| {
        let id: u16 = section.number("id")?.value;
        let own = section.text("name").map(|name| name.value.to_owned());
        let addresses = networks(section, "addresses");
        Some(model::Vlan { id, name: own.unwrap_or_else(|| format!("{name}.{id}")), addresses })
    };
    Some(model::Interface {
        name: name.to_owned(),
        addresses: networks(section, "addresses"),
        vlans: section.tables("vlan").iter().map(vlan).collect::<Option<_>>()?,
    })
}

/// The addresses with prefix lengths of a list.
fn networks(section: &Section, key: &str) -> Vec<(IpAddr, u8)> {
    let written = section.list(key).map_or(&[][..], |list| list.value);
    let network = |item: &At<Value>| match &item.value {
        Value::Network(network) => Some((network.address, network.prefix)),
        _ => None,
    };
    written.iter().filter_map(network).collect()
}

/// The addresses of a `source = { pool = [...] }`.
pub(crate) fn pool_addresses(pool: &Section) -> Vec<IpAddr> {
    pool.list("pool").map_or(&[][..], |list| list.value).iter().filter_map(|item| item.address()).collect()
}

fn health(section: Option<&Section>) -> Option<model::Health> {
    let section = section?;
    if section.word("check")?.value == "none" {
        return None;
    }
    Some(model::Health {
        check: check_kind(section)?,
        ports: section.ports("ports").map(|ports| ports.value).map_or_else(Vec::new, PortSet::list),
        interval_ms: section.duration("interval")?.value,
        fast_interval_ms: section.duration("fast_interval").or_else(|| section.duration("interval"))?.value,
        timeout_ms: section.duration("timeout")?.value,
        rise: section.number("rise")?.value,
        fall: section.number("fall")?.value,
        evict: match section.word("evict")?.value {
            "group" => model::Evict::Group,
            "port" => model::Evict::Port,
            "server" => model::Evict::Server,
            _ => model::Evict::Service,
        },
        damping: model::Damping {
            flaps: section.number("flaps")?.value,
            window_ms: section.duration("flap_window")?.value,
            hold_ms: section.duration("flap_hold")?.value,
        },
        passive: match section.table("passive") {
            Some(passive) => Some(model::Passive {
                connect_failures: passive.number("connect_failures")?.value,
                server_errors: passive.number("server_errors")?.value,
                at_least: passive.number("at_least")?.value,
                window_ms: passive.duration("window")?.value,
                hold_ms: passive.duration("hold")?.value,
            }),
            None => None,
        },
        agent: section.number("agent_port").map(|port| model::Agent {
            port: port.value,
            send: section.text("agent_send").map(|line| line.value.to_owned()),
        }),
    })
}

/// The words of a command.
pub(crate) fn command_line(section: &Section, key: &str) -> Option<model::CommandLine> {
    let words = section.list(key)?.value;
    let mut words = words.iter().filter_map(|word| if let Value::Text(text) = &word.value { Some(text) } else { None });
    Some(model::CommandLine { program: words.next()?.into(), arguments: words.cloned().collect() })
}

fn check_kind(section: &Section) -> Option<model::CheckKind> {
    let text = |key| section.text(key).map(|text| text.value.to_owned());
    let tls = || {
        let verify = section.bool("verify")?.value;
        let authorities = verify.then(|| text("ca").map(Into::into));
        let days_left = section.number("days_left")?.value;
        Some(model::TlsCheck { name: text("host"), authorities: authorities.flatten(), days_left })
    };
    let http = || {
        Some(model::HttpCheck {
            get: section.word("method")?.value == "GET",
            path: text("path")?,
            host: text("host"),
            statuses: statuses(section.text("status")?.value)?,
            expect: text("expect"),
        })
    };
    let octets = |plain, hex| match (text(plain), text(hex)) {
        (Some(text), _) => Some(text.into_bytes()),
        (None, Some(hex)) => hexadecimal(&hex),
        (None, None) => None,
    };
    let check = section.word("check")?.value;
    Some(match check {
        "external" => model::CheckKind::External(command_line(section, "command")?),
        "sip" => model::CheckKind::Sip(model::SipCheck {
            transport: transport(section, check),
            tls: match transport(section, check) {
                model::CheckTransport::Tls => Some(tls()?),
                model::CheckTransport::Tcp | model::CheckTransport::Udp => None,
            },
            host: text("host"),
            statuses: statuses(section.text("status")?.value)?,
            expect: text("expect"),
        }),
        "dns" => model::CheckKind::Dns(model::DnsCheck {
            transport: transport(section, check),
            query: text("query")?,
            record: match section.word("query_type")?.value {
                "AAAA" => model::DnsType::Aaaa,
                "CNAME" => model::DnsType::Cname,
                "MX" => model::DnsType::Mx,
                "NS" => model::DnsType::Ns,
                "PTR" => model::DnsType::Ptr,
                "SOA" => model::DnsType::Soa,
                "SRV" => model::DnsType::Srv,
                "TXT" => model::DnsType::Txt,
                _ => model::DnsType::A,
            },
            rcodes: rcodes(section.text("rcode")?.value)?,
            expect: text("expect"),
        }),
        "http" => model::CheckKind::Http(http()?),
        "https" => model::CheckKind::Https(http()?, tls()?),
        "ldap" => model::CheckKind::Ldap(model::LdapCheck {
            bind: match text("user") {
                Some(user) => Some(model::LdapBind { user, secret_file: text("secret_file")?.into() }),
                None => None,
            },
            expect: text("expect"),
            tls: match transport(section, check) {
                model::CheckTransport::Tls => Some(tls()?),
                model::CheckTransport::Tcp | model::CheckTransport::Udp => None,
            },
        }),
        "ping" => model::CheckKind::Ping,
        "radius" => model::CheckKind::Radius(model::RadiusCheck {
            secret_file: text("secret_file")?.into(),
            user: text("user"),
            password_file: text("password_file").map(Into::into),
            expect: match text("expect") {
                Some(expect) => radius_answer(&expect)?,
                None => model::RadiusAnswer::Accept,
            },
        }),
        "smtp" => model::CheckKind::Smtp { expect: text("expect") },
        "stun" => model::CheckKind::Stun { transport: transport(section, check) },
        "tls" => model::CheckKind::Tls(tls()?),
        "udp" => model::CheckKind::Udp(model::UdpCheck {
            send: octets("send", "send_hex").unwrap_or_default(),
            expect: octets("expect", "expect_hex"),
            silence_passes: section.word("no_answer")?.value == "passes",
        }),
        _ => model::CheckKind::Tcp,
    })
}

fn runtime(root: &Section) -> Option<model::Runtime> {
    let Some(section) = root.table("runtime") else {
        return Some(model::Runtime {
            workers: model::Workers::Auto,
            poll: model::Poll::Adaptive,
            fast_path: model::FastPath::Auto,
        });
    };
    let workers = match section.list("workers") {
        Some(cpus) => model::Workers::Cpus(
            cpus.value.iter().filter_map(|cpu| cpu.integer()).filter_map(|cpu| usize::try_from(cpu).ok()).collect(),
        ),
        None => model::Workers::Auto,
    };
    let poll = if section.word("poll")?.value == "busy" { model::Poll::Busy } else { model::Poll::Adaptive };
    let fast_path =
        if section.word("fast_path")?.value == "off" { model::FastPath::Off } else { model::FastPath::Auto };
    Some(model::Runtime { workers, poll, fast_path })
}

fn limits(root: &Section) -> Option<model::Limits> {
    let defaults = crate::decode::defaults("limits");
    let section = root.table("limits").unwrap_or(&defaults);
    Some(model::Limits {
        connections: section.number("connections").map(|connections| connections.value),
        udp_sessions: section.number("udp_sessions").map(|sessions| sessions.value),
        persistence_entries: section.number("persistence_entries")?.value,
        buffers: section.number("buffers").map(|buffers| buffers.value),
        tls_buffers: section.number("tls_buffers").map(|buffers| buffers.value),
        buffer_bytes: section.number("buffer_bytes")?.value,
        flows: section.number("flows")?.value,
        fast_flows: section.number("fast_flows").map(|flows| flows.value),
        handshakes: section.number("handshakes")?.value,
        http2_streams: section.number("http2_streams")?.value,
        http2_window: section.number("http2_window")?.value,
    })
}

fn route(section: &Section) -> Option<model::StaticRoute> {
    let via = section.address("via")?.value;
    let everything = match via {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    Some(model::StaticRoute {
        to: section.network("to").map_or((everything, 0), |to| (to.value.address, to.value.prefix)),
        via,
        interface: section.text("interface").map(|name| name.value.to_owned()),
        metric: section.number("metric")?.value,
    })
}

fn router(root: &Section) -> Option<model::Router> {
    let defaults = crate::decode::defaults("router");
    let section = root.table("router").unwrap_or(&defaults);
    Some(model::Router {
        enabled: section.bool("enabled")?.value,
        source_check: section.bool("source_check")?.value,
        policy: action(section.word("policy")?.value),
        rules: section.tables("rule").iter().map(rule).collect::<Option<_>>()?,
    })
}

fn outbound_nat(section: &Section) -> Option<model::OutboundNat> {
    Some(model::OutboundNat {
        name: section.text("name")?.value.to_owned(),
        from: networks(section, "from"),
        to: networks(section, "to"),
        except: networks(section, "except"),
        interface: section.text("interface").map(|name| name.value.to_owned()),
        source: match section.table("source") {
            Some(pool) => pool_source(pool)?,
            None => facing(FACING_PORTS, POOL_REST_MS),
        },
    })
}

fn rule(section: &Section) -> Option<model::RouterRule> {
    let name = |key| section.text(key).map(|name| name.value.to_owned());
    Some(model::RouterRule {
        action: action(section.word("action")?.value),
        from: networks(section, "from"),
        to: networks(section, "to"),
        from_interface: name("from_interface"),
        to_interface: name("to_interface"),
        protocol: match section.word("protocol")?.value {
            "icmp" => model::RuleProtocol::Icmp,
            "tcp" => model::RuleProtocol::Tcp,
            "udp" => model::RuleProtocol::Udp,
            _ => model::RuleProtocol::Any,
        },
        ports: section
            .ports("ports")
            .map_or_else(Vec::new, |ports| ports.value.ranges.iter().map(|range| (range.low, range.high)).collect()),
    })
}

fn action(word: &str) -> model::RuleAction {
    if word == "deny" { model::RuleAction::Deny } else { model::RuleAction::Allow }
}
