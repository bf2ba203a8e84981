//! Small services and models for the tests of this crate.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use towpath_config::model::{
    AdminState, Balance, CheckKind, Control, ControlGroup, Damping, Evict, FastPath, Forwarding, HandshakeThreads,
    Health, Limits, Log, Logged, Metrics, Model, Overload, PassThrough, PersistBy, Persistence, Plane, Poll, Ports,
    Protocol, ProxyTo, Router, Runtime, Server, ServerGroup, ServiceTls, Source, TlsPool, TlsProvider, VirtualService,
    Workers,
};

use crate::admin::Halted;
use crate::compile;
use crate::http::{HttpMaterial, HttpSecret};
use crate::ids::{RealServerId, ServiceId};
use crate::snapshot::{Duty, Entrants, Role, ServerHealth, Service, ServiceSource, Target};
use crate::time::Now;

/// Every method.
pub(crate) const METHODS: [Balance; 7] = [
    Balance::LeastConnections,
    Balance::Maglev,
    Balance::RandomOfTwo,
    Balance::RoundRobin,
    Balance::SourceHash,
    Balance::WeightedLeastConnections,
    Balance::WeightedRoundRobin,
];

/// A member that is up and ready, of weight 100 and without a limit.
pub(crate) fn target(server: u16) -> Target {
    Target {
        server: RealServerId(server),
        name: format!("FE-{server}"),
        address: IpAddr::V4(Ipv4Addr::from_bits(0xc000_0200 + u32::from(server))),
        port: None,
        weight: 100,
        min_connections: 0,
        max_connections: 0,
        admin: AdminState::Ready,
        halted: Halted::ByOperator,
        health: ServerHealth::Up,
        check: None,
        agent: None,
        in_maintenance: false,
        reason: Arc::from("no health check configured"),
        since: Now(0),
        also: Arc::default(),
        closed_ports: Arc::default(),
        role: Role::Primary,
        duty: Duty::Serving,
        is_out: false,
        fail_open: false,
        returned: None,
        proxy: None,
    }
}

pub(crate) fn weighted(weights: &[u16]) -> Vec<Target> {
    let member = |(server, &weight)| Target { weight, ..target(server as u16) };
    weights.iter().enumerate().map(member).collect()
}

/// A service on port 5061 with these members.
pub(crate) fn service(balance: Balance, targets: Vec<Target>) -> Service {
    Service {
        is_leaving: false,
        id: ServiceId(0),
        place: ServiceId(0),
        pins: ServiceId(0),
        name: "front-end".into(),
        group: "front-end".into(),
        vip: "192.0.2.250".parse().unwrap(),
        ports: vec![443, 5061],
        protocol: Protocol::Tcp,
        plane: Plane::Stream,
        forwarding: Forwarding::FullNat,
        balance,
        persistence: None,
        secret: HttpSecret::new([7; 16]),
        first_bytes: None,
        idle_timeout_ms: 1_800_000,
        connect_timeout_ms: 4_000,
        drain_timeout_ms: 30_000,
        redispatch: 3,
        drop_on_failure: false,
        slow_start_ms: 0,
        passive: None,
        max_connections: 0,
        queue: None,
        overload: Overload::Silent,
        has_minimums: false,
        source: ServiceSource::Interface,
        next_hop: None,
        routes: None,
        http: None,
        proxy_from: None,
        log: Logged::None,
        maglev: match balance {
            Balance::Maglev => compile::maglev(&targets),
            _ => None,
        },
        targets,
        entrants: Entrants::default(),
    }
}

/// Persistence of half an hour by single addresses.
pub(crate) fn half_an_hour() -> Persistence {
    Persistence {
        by: vec![PersistBy::SourceIp],
        timeout_ms: 1_800_000,
        ipv4_prefix: 32,
        ipv6_prefix: 128,
        enter_draining: false,
    }
}

/// Client number `n`, on some port.
pub(crate) fn client(n: u32) -> SocketAddr {
    let address = Ipv4Addr::from_bits(0x0a00_0000 + n);
    SocketAddr::new(IpAddr::V4(address), 40_000 + (n % 20_000) as u16)
}

/// Secrets and pages of no service.
pub(crate) fn http_material() -> HttpMaterial {
    HttpMaterial::new(HttpSecret::new([7; 16]))
}

/// A model without groups and services.
pub(crate) fn model() -> Model {
    Model {
        runtime: Runtime { workers: Workers::Auto, poll: Poll::Adaptive, fast_path: FastPath::Auto, role: None },
        limits: Limits {
            connections: None,
            udp_sessions: Some(1024),
            persistence_entries: 1024,
            buffers: Some(64),
            tls_buffers: None,
            buffer_bytes: 16_384,
            flows: 1024,
            fast_flows: None,
            handshakes: 1024,
            http2_streams: 100,
            http2_window: 262_144,
        },
        control: Control { socket: None, state_file: None, group: ControlGroup::OfProcess, listen: None },
        tls: TlsPool {
            provider: TlsProvider::AwsLcRs,
            threads: HandshakeThreads::Auto,
            queue_deadline_ms: 2_000,
            post_quantum: true,
            ticket_lifetime_ms: 43_200_000,
            ticket_key_file: None,
        },
        notify: None,
        metrics: Metrics::default(),
        log: Log::default(),
        routes: Vec::new(),
        router: Router::default(),
        outbound: Vec::new(),
        interfaces: Vec::new(),
        groups: Vec::new(),
        services: Vec::new(),
        bridges: Vec::new(),
    }
}

/// Adds a service with a group of its own to `model`.
pub(crate) fn add_service(model: &mut Model, name: &str, ports: &[u16], addresses: &[&str], health: Option<Health>) {
    model.groups.push(ServerGroup {
        name: name.into(),
        servers: addresses.iter().map(|address| server(address, None)).collect(),
        health,
        proxy_protocol: None,
        origin: None,
    });
    let place = model.services.len();
    model.services.push(VirtualService {
        name: name.into(),
        vip: IpAddr::V4(Ipv4Addr::new(192, 168, 10, 100 + place as u8)),
        ports: Ports::List(ports.to_vec()),
        protocol: Protocol::Tcp,
        plane: Plane::Stream,
        forwarding: Forwarding::FullNat,
        application: None,
        balance: Balance::WeightedLeastConnections,
        persistence: None,
        idle_timeout_ms: 1_800_000,
        connect_timeout_ms: 4_000,
        drain_timeout_ms: 30_000,
        redispatch: 3,
        drop_on_failure: false,
        panic_threshold: 0,
        slow_start_ms: 0,
        max_connections: 0,
        queue: None,
        overload: Overload::Silent,
        source: Source::Interface,
        next_hop: None,
        client_networks: Vec::new(),
        interface: None,
        tls: ServiceTls::PassThrough(PassThrough::default()),
        http: None,
        proxy_protocol: ProxyTo::None,
        proxy_from: None,
        log: Logged::None,
        group: model.groups.len() - 1,
        sorry: None,
    });
}

pub(crate) fn server(address: &str, port: Option<u16>) -> Server {
    Server {
        name: format!("server {address}"),
        address: address.parse().unwrap(),
        port,
        weight: 100,
        min_connections: 0,
        max_connections: 0,
        admin: AdminState::Ready,
        backup: false,
        re_encrypt: None,
        server_name: None,
        proxy_protocol: None,
    }
}

/// A TCP check of these ports: every 5 s, up after 2, down after 3.
pub(crate) fn tcp_check(ports: &[u16]) -> Health {
    Health {
        check: CheckKind::Tcp,
        ports: ports.to_vec(),
        interval_ms: 5_000,
        fast_interval_ms: 5_000,
        timeout_ms: 3_000,
        rise: 2,
        fall: 3,
        evict: Evict::Service,
        damping: Damping::OFF,
        passive: None,
        agent: None,
    }
}
