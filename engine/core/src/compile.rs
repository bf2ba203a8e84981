//! One truth, one swap: configuration, health and ids become one snapshot. Any error leaves everything as it was.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use towpath_config::model::{
    self, Balance, Carrier, CheckKind, Damping, Evict, Forwarding, Health, HttpRoute, Model, Plane, Ports,
    RouteClients, RouteGroup, RouteSettings, Server, ServerGroup, Source, SourcePool, VirtualService,
};

use crate::admin::Halted;
use crate::eligible;
use crate::health::{CHECKS_MAX, CheckId, CheckPlan, HealthBoard, HealthState, NO_PORT};
use crate::http::{HttpMaterial, HttpRules, HttpSecret};
use crate::ids::{Generation, RealServerId, ServiceId, TargetIndex};
use crate::maglev::{MaglevMember, MaglevTable};
use crate::name_routes::NameRoutes;
use crate::outbound::{Outbound, OutboundLane, OutboundNat, towards_anyone};
use crate::registry::{CheckKey, Registry, RegistryFull};
use crate::router::Router;
use crate::snapshot::{
    ClosedPort, Duty, Entrants, RealServer, Role, ServerHealth, Service, ServiceHttp, ServiceSource, Snapshot, Target,
};
use crate::snat::{Leased, SnatBook, SnatBookError, SnatPool};
use crate::steering::SteeringTable;
use crate::time::Now;

/// Why a model cannot become a snapshot. The registry is as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompileError {
    /// A group names the same address and port twice.
    DuplicateServer {
        /// Name of the service.
        service: String,
        /// Names of the two.
        servers: [String; 2],
    },
    /// A check has no port: none is given, and neither the server nor the service has one.
    NoCheckPort {
        /// Name of the service.
        service: String,
        /// Name of the server.
        server: String,
    },
    /// The source pool of an `[[outbound_nat]]` cannot be made.
    Outbound {
        /// Its name.
        name: String,
        /// Why.
        error: SnatBookError,
    },
    /// Nobody has said yet which address the interface of an `[[outbound_nat]]` has.
    OutboundUnknown {
        /// Its name.
        name: String,
    },
    /// The source pool of a service cannot be made.
    Source {
        /// Name of the service.
        service: String,
        /// Why.
        error: SnatBookError,
    },
    /// Nobody has said yet which address the source of a service is; see [`Source::Facing`].
    SourceUnknown {
        /// Name of the service.
        service: String,
    },
    /// More different health checks than [`CHECKS_MAX`].
    TooManyChecks,
    /// More real servers than ids.
    TooManyServers(RegistryFull),
    /// More services than ids.
    TooManyServices(RegistryFull),
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CompileError::DuplicateServer { service, servers: [first, second] } => write!(
                f,
                "service \"{service}\": servers \"{first}\" and \"{second}\" have the same address and port; remove one, or add its weight to the other"
            ),
            CompileError::NoCheckPort { service, server } => write!(
                f,
                "service \"{service}\": the health check of server \"{server}\" has no port; set health.ports"
            ),
            CompileError::Outbound { name, error } => write!(f, "outbound_nat \"{name}\": {error}"),
            CompileError::OutboundUnknown { name } => write!(
                f,
                "outbound_nat \"{name}\": which address its interface has is not known; give one with source.pool"
            ),
            CompileError::Source { service, error } => write!(f, "service \"{service}\": {error}"),
            CompileError::SourceUnknown { service } => write!(
                f,
                "service \"{service}\": which address the interface towards its servers has is not known; give one with source.pool"
            ),
            CompileError::TooManyChecks => {
                write!(f, "more than {CHECKS_MAX} different health checks; give servers the same check parameters")
            }
            CompileError::TooManyServers(full) => write_full(f, "real servers", full),
            CompileError::TooManyServices(full) => write_full(f, "services", full),
        }
    }
}

fn write_full(f: &mut fmt::Formatter<'_>, what: &str, full: &RegistryFull) -> fmt::Result {
    let RegistryFull { max, gone } = full;
    match gone {
        0 => write!(f, "more than {max} {what}; divide them over several machines"),
        _ => write!(
            f,
            "more than {max} {what}, {gone} of them removed but still in use; wait until their connections have ended"
        ),
    }
}

impl std::error::Error for CompileError {}

/// The checks that this model needs, each once however many services use it (design.md 10.3), by id. Checks that it no longer
/// needs are forgotten. Hand the result to [`HealthBoard::adopt`], then [`compile`].
pub fn checks(model: &Model, registry: &mut Registry) -> Result<Vec<CheckPlan>, CompileError> {
    let mut next = registry.clone();
    let mut plans: HashMap<CheckId, CheckPlan> = HashMap::new();
    for (service, group) in groups(model) {
        let Some(health) = &group.health else { continue };
        for server in &group.servers {
            let keys = check_keys(service, group, server, health)?;
            // First what stays: old and new checks together may be more than the limit.
            for key in keys.into_iter().chain(agent_key(server, health)) {
                if let Some(id) = next.check(&key) {
                    plans.entry(id).or_insert_with(|| plan(id, key));
                }
            }
        }
    }
    next.retain_checks(|id| plans.contains_key(&id));
    for (service, group) in groups(model) {
        let Some(health) = &group.health else { continue };
        for server in &group.servers {
            let keys = check_keys(service, group, server, health)?;
            for key in keys.into_iter().chain(agent_key(server, health)) {
                let id = next.take_check(&key).map_err(|_| CompileError::TooManyChecks)?;
                plans.entry(id).or_insert_with(|| plan(id, key));
            }
        }
    }
    let mut plans: Vec<CheckPlan> = plans.into_values().collect();
    plans.sort_unstable_by_key(|plan| plan.id);
    *registry = next;
    Ok(plans)
}

/// The snapshot of this model under this health. Ids are taken from `registry`, port maps from `snat`, secrets and pages of HTTP mode
/// from `http`.
///
/// A server is up if its check is up on every port of its group, or if no health is configured; without a verdict, and when
/// [`checks`] was not asked about this model before, it is unknown. What a check takes away that fails is its `evict`.
pub fn compile(
    model: &Model,
    registry: &mut Registry,
    health: &HealthBoard,
    snat: &mut SnatBook,
    steering: Arc<SteeringTable>,
    http: &HttpMaterial,
    generation: Generation,
) -> Result<Snapshot, CompileError> {
    let mut next = registry.clone();
    next.begin();
    let evictions = Evictions::find(model, &next, health)?;
    let router = Arc::new(Router::new(&model.router));
    let mut snapshot = Snapshot {
        generation,
        services: Vec::new(),
        real_servers: Vec::new(),
        steering,
        router,
        outbound: Arc::default(),
        role: health.words.role(model),
    };
    for service in &model.services {
        let id = next.take_service(&service.name).map_err(CompileError::TooManyServices)?;
        let mut take = |name: &str| next.take_service(name).map_err(CompileError::TooManyServices);
        let mut places: Vec<Place<'_>> = Vec::new();
        let mut routes = NameRoutes::default();
        for route in service.routes() {
            let place = take(&behind(service, &model.groups[route.group]))?;
            route.names.iter().for_each(|name| routes.insert(name, place));
            places.push(Place { place, pins: place, group: route.group, route: None });
        }
        let mut http_places = Vec::new();
        for (route, group) in service.http_groups() {
            let place = http_place(model, service, id, route, group, &mut take)?;
            http_places.push(place.place);
            if place.place != id && places.iter().all(|known| known.place != place.place) {
                places.push(place);
            }
        }
        let material = http.of(&service.name);
        let secret = material.0;
        let rules = service.http.as_ref().map(|rules| Arc::new(HttpRules::new(rules, http_places, material)));
        places.push(Place { place: id, pins: id, group: service.group, route: None });
        for place in places {
            let judges = Judges { board: health, evictions: &evictions };
            let targets = targets(model, service, place.group, &mut next, &judges, &mut snapshot)?;
            let mut compiled = service_of(model, service, id, &place, targets, rules.as_ref(), secret, snat)?;
            if place.place == id && !service.routes().is_empty() {
                compiled.routes = Some(Arc::new(std::mem::take(&mut routes)));
            }
            *place_at(&mut snapshot.services, place.place.index()) = Some(Arc::new(compiled));
        }
    }
    let nats = model.outbound.iter().map(|nat| outbound_nat(model, nat, &mut next, snat));
    let nats: Vec<OutboundNat> = nats.collect::<Result<_, _>>()?;
    let servers: Vec<IpAddr> = model.servers().map(|server| server.address).collect();
    snapshot.outbound = Arc::new(Outbound::new(nats, &servers));
    *registry = next;
    Ok(snapshot)
}

fn outbound_nat(
    model: &Model,
    nat: &model::OutboundNat,
    registry: &mut Registry,
    snat: &mut SnatBook,
) -> Result<OutboundNat, CompileError> {
    let Source::Pool(rule) = &nat.source else {
        return Err(CompileError::OutboundUnknown { name: nat.name.clone() });
    };
    let listening = listening(model, rule, |_| true);
    let mut destinations: Vec<SocketAddr> = rule.addresses.iter().copied().map(towards_anyone).collect();
    destinations.sort_unstable();
    destinations.dedup();
    let mut lane = |leased: Leased| {
        // No service has a name with a line break.
        let key = format!("outbound_nat\n{}\n{}", nat.name, leased.label());
        let id = registry.take_service(&key).map_err(CompileError::TooManyServices)?;
        let pool = match leased {
            // Identifiers are nobody else's, and pings leave nothing behind.
            Leased::Echo => {
                let rule = SourcePool { port_low: 1, port_high: u16::MAX, rest_ms: 0, ..rule.clone() };
                snat.pool(&rule, &[], leased, &destinations)
            }
            Leased::Tcp | Leased::Udp => snat.pool(rule, &listening, leased, &destinations),
        };
        let pool = pool.map_err(|error| CompileError::Outbound { name: nat.name.clone(), error })?;
        Ok(OutboundLane { id, pool })
    };
    let [echo, tcp, udp] = Leased::ALL;
    Ok(OutboundNat::new(nat, [lane(echo)?, lane(tcp)?, lane(udp)?]))
}

/// Checks that take servers away from more than the services that use them.
#[derive(Default)]
struct Evictions {
    /// `evict = "server"`.
    of_addresses: HashMap<IpAddr, Eviction>,
    /// `evict = "group"`: by `[[group]]`, address and port.
    of_members: HashMap<(usize, IpAddr, Option<u16>), Eviction>,
}

#[derive(Default)]
struct Eviction {
    checks: Vec<CheckId>,
    /// Of the first that has failed; else of the first that is held.
    lost: Option<Verdict>,
    /// When the last of them came back.
    returned: Option<Now>,
}

impl Evictions {
    fn find(model: &Model, registry: &Registry, board: &HealthBoard) -> Result<Evictions, CompileError> {
        let mut found = Evictions::default();
        for service in &model.services {
            for index in model.group_indices_of(service) {
                let group = &model.groups[index];
                let Some(health) = &group.health else { continue };
                for server in &group.servers {
                    let eviction = match health.evict {
                        Evict::Port | Evict::Service => continue,
                        Evict::Server => found.of_addresses.entry(server.address).or_default(),
                        Evict::Group => {
                            let member = (family(model, index), server.address, server.port);
                            found.of_members.entry(member).or_default()
                        }
                    };
                    eviction.learn(&check_keys(service, group, server, health)?, service, registry, board);
                }
            }
        }
        Ok(found)
    }

    /// What concerns a member of this group.
    fn of(&self, family: usize, server: &Server) -> impl Iterator<Item = &Eviction> {
        let by_address = self.of_addresses.get(&server.address);
        by_address.into_iter().chain(self.of_members.get(&(family, server.address, server.port)))
    }
}

impl Eviction {
    fn learn(&mut self, keys: &[CheckKey], service: &VirtualService, registry: &Registry, board: &HealthBoard) {
        for check in keys.iter().filter_map(|key| registry.check(key)) {
            if self.checks.contains(&check) {
                continue;
            }
            self.checks.push(check);
            let Some(state) = board.state(check) else { continue };
            self.returned = self.returned.max(state.returned());
            let is_worse = match (state.health(), self.lost.as_ref().map(|lost| lost.health)) {
                (ServerHealth::Down, known) => known != Some(ServerHealth::Down),
                (ServerHealth::Held, known) => known.is_none(),
                (ServerHealth::Unknown | ServerHealth::Up, _) => false,
            };
            if is_worse {
                let reason = format!("{}, as service \"{}\" has found", state.reason(), service.name).into();
                self.lost = Some(Verdict { reason, ..Verdict::of(state) });
            }
        }
    }
}

/// The `[[group]]` that the servers of this one are of; itself where there is none.
fn family(model: &Model, group: usize) -> usize {
    model.groups[group].origin.unwrap_or(group)
}

/// Each service with every group of servers that it has.
fn groups(model: &Model) -> impl Iterator<Item = (&VirtualService, &ServerGroup)> {
    model.services.iter().flat_map(|service| model.groups_of(service).map(move |group| (service, group)))
}

/// What the registry knows the servers behind a route by; no service is named so, for a name has no control characters.
fn behind(service: &VirtualService, group: &ServerGroup) -> String {
    format!("{}\0{}", service.name, group.name)
}

/// Where servers of a service are in the snapshot.
struct Place<'m> {
    place: ServiceId,
    pins: ServiceId,
    /// Index into [`Model::groups`].
    group: usize,
    /// What is different for them.
    route: Option<&'m RouteGroup>,
}

/// The place of a route of HTTP mode. Routes to one group have one place, unless one has settings of its own; a service that has the same
/// group shares its place with them.
fn http_place<'m>(
    model: &Model,
    service: &VirtualService,
    id: ServiceId,
    route: &HttpRoute,
    group: &'m RouteGroup,
    take: &mut impl FnMut(&str) -> Result<ServiceId, CompileError>,
) -> Result<Place<'m>, CompileError> {
    let place = match (group.settings, group.clients) {
        (RouteSettings::Common, RouteClients::Service) if group.group == service.group => id,
        (RouteSettings::Common, _) => take(&behind(service, &model.groups[group.group]))?,
        // No group has a name with a control character.
        (RouteSettings::Own, _) => take(&format!("{}\0\0{}", service.name, route.name))?,
    };
    let pins = match group.clients {
        RouteClients::Group(named) => take(&behind(service, &model.groups[named]))?,
        RouteClients::Route => place,
        RouteClients::Service => id,
    };
    Ok(Place { place, pins, group: group.group, route: Some(group) })
}

#[expect(clippy::too_many_arguments, reason = "everything that a place is made of")]
fn service_of(
    model: &Model,
    service: &VirtualService,
    id: ServiceId,
    place: &Place<'_>,
    targets: Vec<Target>,
    rules: Option<&Arc<HttpRules>>,
    secret: HttpSecret,
    snat: &mut SnatBook,
) -> Result<Service, CompileError> {
    let balance = place.route.map_or(service.balance, |route| route.balance);
    let persistence = place.route.map_or(&service.persistence, |route| &route.persistence);
    let http = service.http.as_ref().zip(rules).map(|(http, rules)| ServiceHttp {
        rules: Arc::clone(rules),
        response_timeout_ms: place.route.map_or(http.response_timeout_ms, |route| route.response_timeout_ms),
        cookies: rules.cookies(persistence.as_ref(), &targets),
    });
    let ports = match &service.ports {
        Ports::List(ports) => ports.clone(),
        Ports::All => Vec::new(),
    };
    let source = match &service.source {
        Source::Client => ServiceSource::Client,
        Source::Facing(_) => return Err(CompileError::SourceUnknown { service: service.name.clone() }),
        Source::Interface => ServiceSource::Interface,
        Source::Pool(rule) => ServiceSource::Pool(
            pool(model, service, rule, &ports, &targets, snat)
                .map_err(|error| CompileError::Source { service: service.name.clone(), error })?,
        ),
    };
    let maglev = match balance {
        Balance::Maglev => maglev(&targets),
        _ => None,
    };
    Ok(Service {
        is_leaving: false,
        id,
        place: place.place,
        pins: place.pins,
        name: service.name.clone(),
        group: model.groups[place.group].name.clone(),
        vip: service.vip,
        ports,
        protocol: service.protocol,
        plane: service.plane,
        forwarding: service.forwarding,
        balance,
        persistence: persistence.clone(),
        secret,
        first_bytes: service.first_bytes().map(|of| (of, service.first_bytes_wait_ms())),
        idle_timeout_ms: place.route.map_or(service.idle_timeout_ms, |route| route.idle_timeout_ms),
        connect_timeout_ms: place.route.map_or(service.connect_timeout_ms, |route| route.connect_timeout_ms),
        drain_timeout_ms: service.drain_timeout_ms,
        redispatch: service.redispatch,
        drop_on_failure: service.drop_on_failure,
        slow_start_ms: service.slow_start_ms,
        passive: model.groups[place.group].health.as_ref().and_then(|health| health.passive),
        max_connections: service.max_connections,
        queue: service.queue,
        overload: service.overload,
        has_minimums: targets.iter().any(|target| target.min_connections > 0),
        source,
        next_hop: service.next_hop,
        targets,
        entrants: Entrants::default(),
        routes: None,
        maglev,
        http,
        proxy_from: service.proxy_from.clone().map(Arc::new),
        log: service.log,
    })
}

/// What servers are judged by.
struct Judges<'c> {
    board: &'c HealthBoard,
    evictions: &'c Evictions,
}

/// The members of a group as targets of `service`; the snapshot learns them as real servers.
fn targets(
    model: &Model,
    service: &VirtualService,
    group: usize,
    registry: &mut Registry,
    judges: &Judges<'_>,
    snapshot: &mut Snapshot,
) -> Result<Vec<Target>, CompileError> {
    let family = family(model, group);
    let group = &model.groups[group];
    let mut first: HashMap<RealServerId, &str> = HashMap::new();
    let mut targets = Vec::with_capacity(group.servers.len());
    for server in &group.servers {
        let id = member_id(service, server, &mut first, registry, snapshot)?;
        let Judged { mut verdict, checks, closed_ports } = judge(service, group, server, registry, judges.board)?;
        let (check, mut also) = match checks.split_first() {
            Some((first, rest)) => (Some(*first), rest.to_vec()),
            None => (None, Vec::new()),
        };
        for eviction in judges.evictions.of(family, server) {
            also.extend(eviction.checks.iter().filter(|other| !checks.contains(other)));
            match (&eviction.lost, verdict.health) {
                (Some(lost), ServerHealth::Unknown | ServerHealth::Up) => verdict = lost.clone(),
                (Some(lost), ServerHealth::Held) if lost.health == ServerHealth::Down => verdict = lost.clone(),
                _ => verdict.returned = verdict.returned.max(eviction.returned),
            }
        }
        let agent = group.health.as_ref().and_then(|health| registry.check(&agent_key(server, health)?));
        let mut target = Target {
            proxy: service.proxy_version(group, server),
            check,
            also: also.into(),
            agent,
            closed_ports,
            ..target(id, server, verdict)
        };
        judges.board.words.lay_over(&service.name, &mut target);
        if let Some(agent) = agent.and_then(|agent| judges.board.agent(agent)) {
            agent.lay_over(&mut target);
        }
        targets.push(target);
    }
    if let Some(rule) = group.health.as_ref().and_then(|health| health.passive) {
        let passive = &judges.board.passive;
        for target in &mut targets {
            target.returned = target.returned.max(passive.returned(target.server, &rule));
        }
        let out = |(place, target): (usize, &Target)| Some((place, passive.out(target.server, &rule)?.clone()));
        let outs = targets.iter().enumerate().filter_map(out).collect();
        eligible::put_out(&mut targets, outs);
    }
    // For a service that answers everything itself there is nothing to be sorry for.
    if let Some(sorry) = service.sorry.as_ref().filter(|_| !targets.is_empty()) {
        targets.push(sorry_target(service, sorry, &mut first, registry, judges, snapshot)?);
    }
    eligible::settle(&mut targets, service.panic_threshold);
    Ok(targets)
}

/// Who says sorry for a service, at each of its places: what a check would find matters to nobody, for there is nobody else.
fn sorry_target<'m>(
    service: &VirtualService,
    sorry: &'m Server,
    known: &mut HashMap<RealServerId, &'m str>,
    registry: &mut Registry,
    judges: &Judges<'_>,
    snapshot: &mut Snapshot,
) -> Result<Target, CompileError> {
    let id = member_id(service, sorry, known, registry, snapshot)?;
    let mut target = Target {
        proxy: None,
        role: Role::Sorry,
        duty: Duty::LastResort,
        ..target(id, sorry, Verdict::unasked(ServerHealth::Up, "it is not checked"))
    };
    judges.board.words.lay_over(&service.name, &mut target);
    Ok(target)
}

/// The id of a member, which the snapshot knows from here on; no service has a server twice.
fn member_id<'m>(
    service: &VirtualService,
    server: &'m Server,
    known: &mut HashMap<RealServerId, &'m str>,
    registry: &mut Registry,
    snapshot: &mut Snapshot,
) -> Result<RealServerId, CompileError> {
    let id = registry.take_server(server.address, server.port).map_err(CompileError::TooManyServers)?;
    if let Some(other) = known.insert(id, &server.name) {
        return Err(CompileError::DuplicateServer {
            service: service.name.clone(),
            servers: [other.to_owned(), server.name.clone()],
        });
    }
    place_at(&mut snapshot.real_servers, id.index()).get_or_insert_with(|| RealServer {
        id,
        name: server.name.clone(),
        address: server.address,
        port: server.port,
    });
    Ok(id)
}

/// What a server is by the configuration and this verdict, before anybody has said anything.
fn target(id: RealServerId, server: &Server, verdict: Verdict) -> Target {
    Target {
        proxy: None,
        server: id,
        name: server.name.clone(),
        address: server.address,
        port: server.port,
        weight: server.weight,
        min_connections: server.min_connections,
        max_connections: server.max_connections,
        admin: server.admin,
        halted: Halted::ByOperator,
        health: verdict.health,
        check: None,
        also: Arc::default(),
        agent: None,
        in_maintenance: false,
        reason: verdict.reason,
        since: verdict.since,
        returned: verdict.returned,
        closed_ports: Arc::default(),
        role: if server.backup { Role::Backup } else { Role::Primary },
        duty: Duty::Serving,
        is_out: false,
        fail_open: false,
    }
}

#[derive(Clone)]
struct Verdict {
    health: ServerHealth,
    reason: Arc<str>,
    since: Now,
    /// When it came back, if it was down before.
    returned: Option<Now>,
}

impl Verdict {
    fn of(state: &HealthState) -> Verdict {
        Verdict {
            health: state.health(),
            reason: state.reason().clone(),
            since: state.since(),
            returned: state.returned(),
        }
    }

    fn unasked(health: ServerHealth, reason: &str) -> Verdict {
        Verdict { health, reason: Arc::from(reason), since: Now(0), returned: None }
    }

    fn of_check(check: Option<CheckId>, board: &HealthBoard) -> Verdict {
        check
            .and_then(|check| board.state(check))
            .map_or_else(|| Verdict::unasked(ServerHealth::Unknown, "no check has started yet"), Verdict::of)
    }
}

/// What the checks of a service say about one of its members.
struct Judged {
    verdict: Verdict,
    checks: Vec<CheckId>,
    closed_ports: Arc<[ClosedPort]>,
}

fn judge(
    service: &VirtualService,
    group: &ServerGroup,
    server: &Server,
    registry: &Registry,
    board: &HealthBoard,
) -> Result<Judged, CompileError> {
    let none = Arc::default();
    let Some(health) = &group.health else {
        let verdict = Verdict::unasked(ServerHealth::Up, "no health check configured");
        return Ok(Judged { verdict, checks: Vec::new(), closed_ports: none });
    };
    let keys = check_keys(service, group, server, health)?;
    let checks: Vec<CheckId> = keys.iter().filter_map(|key| registry.check(key)).collect();
    if health.evict == Evict::Port {
        let ports: Vec<(u16, Verdict)> = keys
            .iter()
            .flat_map(|key| key.ports.iter().map(|&port| (port, Verdict::of_check(registry.check(key), board))))
            .collect();
        let (verdict, closed_ports) = judge_ports(service, server, &ports);
        return Ok(Judged { verdict, checks, closed_ports });
    }
    let verdict = Verdict::of_check(checks.first().copied(), board);
    Ok(Judged { verdict, checks, closed_ports: none })
}

/// A server whose ports are judged each by itself: it is up while some port that clients come to is, or is not checked.
fn judge_ports(service: &VirtualService, server: &Server, ports: &[(u16, Verdict)]) -> (Verdict, Arc<[ClosedPort]>) {
    let is_served = |port: u16| match server.port {
        Some(own) => own == port,
        None => service.ports == Ports::All || service.sockets().any(|socket| socket.port() == port),
    };
    let judged: Vec<&(u16, Verdict)> = ports.iter().filter(|(port, _)| is_served(*port)).collect();
    let served = match (server.port, &service.ports) {
        (Some(_), _) => 1,
        (None, Ports::List(ports)) => ports.len(),
        (None, Ports::All) => usize::from(u16::MAX),
    };
    let shut = || judged.iter().filter(|(_, verdict)| verdict.health != ServerHealth::Up);
    if shut().count() < served {
        let latest = judged.iter().map(|(_, verdict)| verdict.since).max().unwrap_or_default();
        let returned = judged.iter().filter_map(|(_, verdict)| verdict.returned).max();
        let closed = shut().map(|(port, verdict)| ClosedPort { port: *port, health: verdict.health });
        let closed: Vec<ClosedPort> = closed.collect();
        let reason = match closed.is_empty() {
            true => Arc::from("check passed"),
            false => shut().map(|(_, verdict)| &*verdict.reason).collect::<Vec<_>>().join("; ").into(),
        };
        let verdict = Verdict { health: ServerHealth::Up, reason, since: latest, returned };
        return (verdict, closed.into());
    }
    // None is left: it is as well as the best of them.
    let rank = |health| match health {
        ServerHealth::Up => 0,
        ServerHealth::Held => 1,
        ServerHealth::Unknown => 2,
        ServerHealth::Down => 3,
    };
    let best = judged.iter().min_by_key(|(_, verdict)| rank(verdict.health));
    let verdict = best.map_or_else(
        || Verdict::unasked(ServerHealth::Up, "none of its ports is checked"),
        |(_, verdict)| verdict.clone(),
    );
    (verdict, Arc::default())
}

/// What is checked for `server` as a member of `service`: the ports given, else the port of its own, else the service's first. Where each port is judged
/// by itself there is a check for each, without ports given for all that clients come to. Never empty.
fn check_keys(
    service: &VirtualService,
    group: &ServerGroup,
    server: &Server,
    health: &Health,
) -> Result<Vec<CheckKey>, CompileError> {
    let own = || match server.port {
        Some(port) => vec![port],
        None if health.evict == Evict::Port => service.sockets().map(|socket| socket.port()).collect(),
        None => service.sockets().next().map(|socket| socket.port()).into_iter().collect(),
    };
    let mut ports = match (health.check.carrier(), health.ports.is_empty()) {
        (Carrier::Echo, _) => vec![NO_PORT],
        (_, false) => health.ports.clone(),
        (_, true) => own(),
    };
    if ports.is_empty() {
        return Err(CompileError::NoCheckPort { service: service.name.clone(), server: server.name.clone() });
    }
    ports.sort_unstable();
    ports.dedup();
    Ok(match health.evict {
        Evict::Port => ports.into_iter().map(|port| check_key(service, group, server, health, vec![port])).collect(),
        Evict::Group | Evict::Server | Evict::Service => vec![check_key(service, group, server, health, ports)],
    })
}

/// One check of these ports.
fn check_key(
    service: &VirtualService,
    group: &ServerGroup,
    server: &Server,
    health: &Health,
    ports: Vec<u16>,
) -> CheckKey {
    // Of ports that no client of the service comes to nobody knows what they expect.
    let is_served = |port: u16| match server.port {
        Some(own) => own == port,
        None => service.sockets().any(|socket| socket.port() == port),
    };
    let heralded: Vec<u16> = ports.iter().copied().filter(|&port| is_served(port)).collect();
    let is_stream = health.check.carrier() == Carrier::Stream;
    let proxy = service.proxy_version(group, server).filter(|_| is_stream && !heralded.is_empty());
    CheckKey {
        proxy: proxy.map(|version| (version, heralded)),
        address: server.address,
        vip: (service.forwarding == Forwarding::Dsr).then_some(service.vip),
        kind: health.check.clone(),
        ports,
        interval_ms: health.interval_ms,
        fast_interval_ms: health.fast_interval_ms,
        timeout_ms: health.timeout_ms,
        rise: health.rise,
        fall: health.fall,
        damping: health.damping,
    }
}

/// What its agent is asked, if it has one: always at its own address, for a VIP is no matter of the agent's.
fn agent_key(server: &Server, health: &Health) -> Option<CheckKey> {
    let agent = health.agent.as_ref()?;
    Some(CheckKey {
        proxy: None,
        address: server.address,
        vip: None,
        kind: CheckKind::Agent { send: agent.send.clone() },
        ports: vec![agent.port],
        interval_ms: health.interval_ms,
        fast_interval_ms: health.interval_ms,
        timeout_ms: health.timeout_ms,
        rise: 1,
        fall: 1,
        damping: Damping::OFF,
    })
}

fn plan(id: CheckId, key: CheckKey) -> CheckPlan {
    CheckPlan {
        id,
        address: key.address,
        vip: key.vip,
        kind: key.kind,
        ports: key.ports,
        proxy: key.proxy,
        interval_ms: key.interval_ms,
        fast_interval_ms: key.fast_interval_ms,
        timeout_ms: key.timeout_ms,
        rise: key.rise,
        fall: key.fall,
        damping: key.damping,
    }
}

/// The pool of `service` towards every place its members can be reached, without the ports we listen on at its addresses.
fn pool(
    model: &Model,
    service: &VirtualService,
    rule: &SourcePool,
    ports: &[u16],
    targets: &[Target],
    snat: &mut SnatBook,
) -> Result<Arc<SnatPool>, SnatBookError> {
    // On the packet plane those of the other protocol too: steering goes by the port alone.
    let shares_ports = |other: &VirtualService| service.plane == Plane::Packet || other.protocol == service.protocol;
    let listening = listening(model, rule, shares_ports);
    let destinations: Vec<SocketAddr> = targets
        .iter()
        .flat_map(|target| match target.port {
            Some(port) => vec![SocketAddr::new(target.address, port)],
            // Every port: one map for all of them, see Target::lease_destination.
            None if ports.is_empty() => vec![SocketAddr::new(target.address, 0)],
            None => ports.iter().map(|&port| target.destination(port)).collect(),
        })
        .collect();
    snat.pool(rule, &listening, service.protocol, &destinations)
}

/// The ports that services for which `counts` says so have at the addresses of a pool, ascending.
fn listening(model: &Model, rule: &SourcePool, counts: impl Fn(&VirtualService) -> bool) -> Vec<u16> {
    let services = model.services.iter().filter(|other| rule.addresses.contains(&other.vip) && counts(other));
    let listening: HashSet<u16> = services.flat_map(VirtualService::sockets).map(|socket| socket.port()).collect();
    let mut listening: Vec<u16> = listening.into_iter().collect();
    listening.sort_unstable();
    listening
}

/// The Maglev table over the members that take new connections now.
pub(crate) fn maglev(targets: &[Target]) -> Option<Arc<MaglevTable>> {
    let members: Vec<MaglevMember> = targets
        .iter()
        .enumerate()
        .filter(|(_, target)| target.takes_new())
        .map(|(place, target)| MaglevMember {
            target: TargetIndex(place as u16),
            address: target.address,
            port: target.port,
            weight: target.weight,
        })
        .collect();
    MaglevTable::new(&members).map(Arc::new)
}

/// The place with this index, the table made long enough.
fn place_at<T>(table: &mut Vec<Option<T>>, index: usize) -> &mut Option<T> {
    if table.len() <= index {
        table.resize_with(index + 1, || None);
    }
    &mut table[index]
}

#[cfg(test)]
mod tests;
