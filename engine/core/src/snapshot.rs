//! Everything a worker needs to serve, in one immutable value: configuration, health and ids of one generation.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use towpath_config::model::{
    AdminState, Balance, FirstBytes, Forwarding, Logged, MachineRole, Overload, Passive, Persistence, Plane, Protocol,
    ProxyFrom, ProxyOthers, ProxyVersion, Queue,
};

use crate::admin::Halted;
use crate::health::CheckId;
use crate::http::{HttpRules, HttpSecret, ServerCookies, holds};
use crate::ids::{Generation, RealServerId, ServiceId, TargetIndex};
use crate::maglev::MaglevTable;
use crate::name_routes::NameRoutes;
use crate::outbound::Outbound;
use crate::router::Router;
use crate::snat::SnatPool;
use crate::steering::SteeringTable;
use crate::time::Now;

/// Services at most, over all groups; a [`ServiceId`] is below it.
pub const SERVICES_MAX: usize = 1024;
/// RealServers at most, those that are gone but still hold connections included; a [`RealServerId`] is below it.
pub const REAL_SERVERS_MAX: usize = 4096;

/// One generation of the truth. Immutable; workers hold it in an `Arc` and replace it as a whole.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its number.
    pub generation: Generation,
    /// Indexed by [`Service::place`]; `None` where the service is gone.
    pub services: Vec<Option<Arc<Service>>>,
    /// Indexed by [`RealServerId`]; `None` where no service of this generation has it.
    pub real_servers: Vec<Option<RealServer>>,
    /// Which worker owns which vshard.
    pub steering: Arc<SteeringTable>,
    /// Which packets that belong to no service are forwarded.
    pub router: Arc<Router>,
    /// What hosts inside open themselves and that leaves from an address of ours.
    pub outbound: Arc<Outbound>,
    /// Whether this machine serves, or another one does.
    pub role: MachineRole,
}

impl Snapshot {
    /// The service at this place, if this generation has it.
    #[inline]
    pub fn service(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.services.get(id.index())?.as_ref()
    }

    /// The real server with this id, if this generation has it.
    pub fn real_server(&self, id: RealServerId) -> Option<&RealServer> {
        self.real_servers.get(id.index())?.as_ref()
    }

    /// The services of this generation, by place: beside each one those behind its routes.
    pub fn each_service(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter().flatten()
    }
}

/// What names a RealServer, for status: one (address, port), however many services use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealServer {
    /// Its id.
    pub id: RealServerId,
    /// The name of its first membership in the order of the file.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its port; `None` = it keeps the port that the client addressed.
    pub port: Option<u16>,
}

/// One VirtualService with the members that serve it.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its id: whose connections are counted.
    pub id: ServiceId,
    /// Where it is in [`Snapshot::services`], and whose turns are kept apart: its id, but for the servers behind a route a place of their own.
    pub place: ServiceId,
    /// Whose pinned clients it knows: its place, but for a route of HTTP mode that shares those of another.
    pub pins: ServiceId,
    /// Its name.
    pub name: String,
    /// The name of the group of servers at this place.
    pub group: String,
    /// The address that clients use.
    pub vip: IpAddr,
    /// The ports that clients use, ascending; empty = every port (packet plane).
    pub ports: Vec<u16>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Which plane carries it.
    pub plane: Plane,
    /// How its packets are rewritten; of the stream plane always full-NAT.
    pub forwarding: Forwarding,
    /// How a server is chosen for a new client.
    pub balance: Balance,
    /// Whether a client comes back to its server.
    pub persistence: Option<Persistence>,
    /// What clients are known by is hashed under it.
    pub secret: HttpSecret,
    /// What clients are to send before they get a server, and how long that is waited for.
    pub first_bytes: Option<(FirstBytes, u64)>,
    /// A connection without a byte in either direction for this long is closed.
    pub idle_timeout_ms: u64,
    /// How long a connect to a server may take.
    pub connect_timeout_ms: u64,
    /// How long connections may finish when the process stops or the service goes.
    pub drain_timeout_ms: u64,
    /// How many further servers are tried when a connect fails.
    pub redispatch: u8,
    /// Whether connections to a server that goes down are reset at both ends; UDP always leaves such a server.
    pub drop_on_failure: bool,
    /// How long a server that comes back takes less than its share; 0 = not at all.
    pub slow_start_ms: u64,
    /// What clients meet at its servers takes these out.
    pub passive: Option<Passive>,
    /// Never more than this many connections; 0 = no limit.
    pub max_connections: u32,
    /// Who may wait for a place; `None` = nobody.
    pub queue: Option<Queue>,
    /// What becomes of a client that finds no place, and none to wait in (packet plane, TCP).
    pub overload: Overload,
    /// Whether one of the members has `min_connections`.
    pub has_minimums: bool,
    /// Where source ports come from.
    pub source: ServiceSource,
    /// Gateway of what goes back to clients, instead of the routes (packet plane); not for those on a link of ours.
    pub next_hop: Option<IpAddr>,
    /// The members in the order of the file, whatever their state; no RealServer twice.
    pub targets: Vec<Target>,
    /// Those of them that take new connections. Whoever changes members after a connection was given begins with a new one.
    pub entrants: Entrants,
    /// Which clients go to other servers, by the name that they ask for.
    pub routes: Option<Arc<NameRoutes>>,
    /// A reload has taken it out: it is here for the flows that it still has, and nobody new comes to it (packet plane).
    pub is_leaving: bool,
    /// Present when `balance` is Maglev.
    pub maglev: Option<Arc<MaglevTable>>,
    /// HTTP mode, of its own servers and of those behind its routes alike; `None` = connections are relayed unread.
    pub http: Option<ServiceHttp>,
    /// Proxies in front that say who the client is.
    pub proxy_from: Option<Arc<ProxyFrom>>,
    /// Which of its connections and requests get a line.
    pub log: Logged,
}

/// What a client has to say by the PROXY protocol before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heralded {
    /// Nothing.
    No,
    /// It comes from where nobody may.
    Refused,
    /// A header within so many milliseconds.
    Within(u64),
}

/// HTTP mode of one place.
#[derive(Clone, Debug)]
pub struct ServiceHttp {
    /// What becomes of requests, for the service as a whole.
    pub rules: Arc<HttpRules>,
    /// How long a server of this place may take until its response begins.
    pub response_timeout_ms: u64,
    /// What its servers are called in a cookie of ours, where persistence inserts one.
    pub cookies: Option<Arc<ServerCookies>>,
}

impl Service {
    /// The places of the servers behind its routes, each once; not its own.
    pub fn places_behind(&self) -> Vec<ServiceId> {
        let by_name = self.routes.iter().flat_map(|routes| routes.places());
        let by_request = self.http.iter().flat_map(|http| http.rules.places());
        let mut places: Vec<ServiceId> = by_name.chain(by_request).filter(|place| *place != self.id).collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    /// What a connection from this address has to begin with.
    pub fn heralded(&self, from: IpAddr) -> Heralded {
        let Some(proxies) = &self.proxy_from else { return Heralded::No };
        let from = from.to_canonical();
        match holds(&proxies.networks, from) {
            true => Heralded::Within(proxies.timeout_ms),
            false if proxies.others == ProxyOthers::Serve => Heralded::No,
            false => Heralded::Refused,
        }
    }

    /// The member at this place.
    #[inline]
    pub fn target(&self, index: TargetIndex) -> Option<&Target> {
        self.targets.get(index.index())
    }

    /// The members that may have a new connection; `None` where a port of one is closed, so that it depends on the port who may.
    #[inline]
    pub fn entrants(&self) -> Option<&EntrantList> {
        self.entrants.0.get_or_init(|| EntrantList::of(&self.targets)).as_ref()
    }

    /// Where `server` stands among the members, if it is one.
    pub fn target_of(&self, server: RealServerId) -> Option<(TargetIndex, &Target)> {
        let place = self.targets.iter().position(|target| target.server == server)?;
        Some((TargetIndex(place as u16), &self.targets[place]))
    }

    /// Whether all connections and sessions of this member end because it is down; of UDP, which knows no next connection, also because it only said
    /// sorry for others and these can serve again.
    pub fn drops_flows_of(&self, member: &Target) -> bool {
        let is_lost = member.health == ServerHealth::Down && !member.is_out;
        is_lost && !member.is_trusted() && self.drops_flows() || self.is_relieved(member)
    }

    /// Of single ports that are down nobody knows here whether another server has them.
    fn is_relieved(&self, member: &Target) -> bool {
        let is_idle = member.is_sorry() && member.duty == Duty::LastResort;
        is_idle && self.protocol == Protocol::Udp && self.targets.iter().all(|other| other.closed_ports.is_empty())
    }

    /// Whether those to this port of the service do, be it the port alone that is down.
    pub fn drops_flows_at(&self, member: &Target, port: u16) -> bool {
        self.drops_flows_of(member) || self.drops_flows() && member.lost_ports().any(|lost| lost == port)
    }

    /// Whether connections leave what is down.
    pub fn drops_flows(&self) -> bool {
        self.protocol == Protocol::Udp || self.drop_on_failure
    }

    /// Whether some member takes less than its share at this time.
    #[inline]
    pub fn ramps(&self, now: Now) -> bool {
        self.slow_start_ms > 0 && self.targets.iter().any(|member| self.ramp(member, now) < RAMP_FULL)
    }

    /// What part of its share `member` takes at this time, in thousandths.
    pub fn ramp(&self, member: &Target, now: Now) -> u64 {
        let Some(returned) = member.returned.filter(|_| self.slow_start_ms > 0) else { return RAMP_FULL };
        let risen = u128::from(now.ms_since(returned)) * u128::from(RAMP_FULL) / u128::from(self.slow_start_ms);
        u64::try_from(risen).unwrap_or(RAMP_FULL).clamp(RAMP_LEAST, RAMP_FULL)
    }

    /// The share of `member` in new connections at this time. Comparable with others of the same service only.
    #[inline]
    pub fn share_of(&self, member: &Target, now: Now) -> u64 {
        let weight = u64::from(member.weight);
        if self.slow_start_ms == 0 { weight } else { weight * self.ramp(member, now) }
    }
}

/// What a walk over the members of a service needs of those that take new connections, beside each other: a [`Target`] is some cache lines. Found at the
/// first walk; a copy of the service, whose members may then be changed, finds its own.
#[derive(Debug, Default)]
pub struct Entrants(OnceLock<Option<EntrantList>>);

impl Clone for Entrants {
    fn clone(&self) -> Entrants {
        Entrants::default()
    }
}

/// Members that take new connections, in the order of the file.
#[derive(Debug)]
pub struct EntrantList {
    /// Each of them.
    pub all: Box<[Entrant]>,
    /// Whether one of them has a limit of connections.
    pub has_limits: bool,
}

/// A member that takes new connections, at every port of its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entrant {
    /// Its RealServer.
    pub server: RealServerId,
    /// Never more than this many connections on that; 0 = no limit.
    pub max_connections: u32,
    /// Its place in [`Service::targets`].
    pub place: TargetIndex,
}

impl EntrantList {
    fn of(targets: &[Target]) -> Option<EntrantList> {
        let entering = targets.iter().zip(0..).filter(|(target, _)| target.takes_new());
        let entrants = entering.map(|(target, place)| {
            let Target { server, max_connections, .. } = *target;
            target.closed_ports.is_empty().then_some(Entrant { server, max_connections, place: TargetIndex(place) })
        });
        let all: Box<[Entrant]> = entrants.collect::<Option<_>>()?;
        let has_limits = all.iter().any(|entrant| entrant.max_connections != 0);
        Some(EntrantList { all, has_limits })
    }
}

/// All of a share, in thousandths.
const RAMP_FULL: u64 = 1_000;
/// What a server that has just come back takes of its share: with less it would hardly be seen whether it can serve.
const RAMP_LEAST: u64 = 100;

/// Where the source address and port towards a real server come from.
#[derive(Clone, Debug)]
pub enum ServiceSource {
    /// Both are the client's own.
    Client,
    /// The kernel picks both.
    Interface,
    /// Both are leased; with half-NAT only for clients on a real server's own network.
    Pool(Arc<SnatPool>),
}

/// Membership of one RealServer in one service.
#[derive(Clone, Debug)]
pub struct Target {
    /// The RealServer.
    pub server: RealServerId,
    /// The name of this membership.
    pub name: String,
    /// Address of the server.
    pub address: IpAddr,
    /// Port; `None` = the port that the client addressed.
    pub port: Option<u16>,
    /// Share of new connections relative to the other members; 0 = none (but clients pinned to it still come).
    pub weight: u16,
    /// While the server has fewer connections, over all services, it gets the next one before members that have as many as they are to; 0 = it never does.
    pub min_connections: u32,
    /// Never more than this many connections on the server, over all services; 0 = no limit.
    pub max_connections: u32,
    /// The operator's word: what was said at run time, else the configuration's.
    pub admin: AdminState,
    /// Where that is `halt`: who did it.
    pub halted: Halted,
    /// What its check says.
    pub health: ServerHealth,
    /// The check of this service that judges it, the first if there are several; `None` = no health configured.
    pub check: Option<CheckId>,
    /// The agent whose word is laid over that, if it has one.
    pub agent: Option<CheckId>,
    /// Nobody enters, not even who is pinned to it, nor when few servers are left: its agent says so.
    pub in_maintenance: bool,
    /// Why `health` is what it is, for status.
    pub reason: Arc<str>,
    /// Since when `health` is what it is; the origin of time when it never changed.
    pub since: Now,
    /// Further checks that judge it: of single ports, or of services that take it away from this one as well (`health.evict`).
    pub also: Arc<[CheckId]>,
    /// Ports of it, as clients address them, that are not up though it is as a whole (`evict = "port"`), ascending.
    pub closed_ports: Arc<[ClosedPort]>,
    /// What it is there for.
    pub role: Role,
    /// Whether it is one's turn whose role is to wait for others to fail.
    pub duty: Duty,
    /// Whether it is down by what clients met alone: a guess, which ends no connection.
    pub is_out: bool,
    /// Whether it counts as up although it is not: too few are.
    pub fail_open: bool,
    /// When it came back, down or out of service before: its share grows from then on.
    pub returned: Option<Now>,
    /// What connections to it begin with: a header that tells of one client, so no other may have such a connection.
    pub proxy: Option<ProxyVersion>,
}

impl Target {
    /// Where a connection to `service_port` of the VIP goes.
    #[inline]
    pub fn destination(&self, service_port: u16) -> SocketAddr {
        SocketAddr::new(self.address, self.port.unwrap_or(service_port))
    }

    /// The real server as a destination of [`SnatPool`]: with port 0, which is all of them, where a service of every port keeps the client's.
    pub fn lease_destination(&self, service: &Service, destination: SocketAddr) -> SocketAddr {
        let any_port = service.ports.is_empty() && self.port.is_none();
        SocketAddr::new(self.address, if any_port { 0 } else { destination.port() })
    }

    /// Whether it counts as up.
    #[inline]
    pub fn is_trusted(&self) -> bool {
        self.health == ServerHealth::Up || self.fail_open
    }

    /// Whether a client without a pin may be sent here: up, ready, of some weight, and on duty.
    #[inline]
    pub fn takes_new(&self) -> bool {
        self.duty == Duty::Serving && self.could_take_new()
    }

    /// Whether it may be sent here if all others have failed to take it.
    #[inline]
    pub fn stands_by(&self) -> bool {
        self.duty == Duty::Standby && self.could_take_new()
    }

    /// Whether it may be sent here if those that stand by have failed, too.
    #[inline]
    pub fn is_last_resort(&self) -> bool {
        self.duty == Duty::LastResort && self.could_take_new()
    }

    /// Whether it serves in the place of others only to say that they cannot: no client is its own.
    #[inline]
    pub fn is_sorry(&self) -> bool {
        self.role == Role::Sorry
    }

    #[inline]
    fn could_take_new(&self) -> bool {
        self.weight > 0 && self.is_trusted() && self.admin == AdminState::Ready
    }

    /// Whether it serves this port of the service as far as checks of single ports know.
    #[inline]
    pub fn serves(&self, port: u16) -> bool {
        self.closed_ports.is_empty() || self.fail_open || self.closed_ports.iter().all(|closed| closed.port != port)
    }

    /// Ports of it that are down by themselves.
    pub fn lost_ports(&self) -> impl Iterator<Item = u16> + '_ {
        let closed = if self.fail_open { &[] } else { &*self.closed_ports };
        closed.iter().filter(|closed| closed.health == ServerHealth::Down).map(|closed| closed.port)
    }

    /// Every check that judges it.
    pub fn checks(&self) -> impl Iterator<Item = CheckId> + '_ {
        self.check.into_iter().chain(self.also.iter().copied())
    }

    /// Whether a client pinned to it may still be sent here. A weight of 0 does not matter (as in HAProxy, where such a
    /// server "will still accept persistent connections"); a draining one takes it only with `enter_draining`.
    #[inline]
    pub fn takes_pinned(&self, persistence: &Persistence) -> bool {
        let admitted = match self.admin {
            AdminState::Ready => true,
            AdminState::Drain => persistence.enter_draining,
            AdminState::Halt => false,
        };
        admitted && self.duty == Duty::Serving && !self.is_sorry() && !self.in_maintenance && self.is_trusted()
    }
}

/// A port of a server that is not up, while others are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedPort {
    /// As clients address it.
    pub port: u16,
    /// Down, or without a verdict.
    pub health: ServerHealth,
}

/// What a server is there for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// To serve.
    #[default]
    Primary,
    /// To serve while no primary can (`backup`).
    Backup,
    /// To serve while nobody else can (`sorry`).
    Sorry,
}

/// Whose turn it is to serve, found out by [`crate::eligible::settle`] of all members together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Duty {
    /// It takes clients if it can.
    #[default]
    Serving,
    /// It waits until others cannot.
    Standby,
    /// It waits until nobody else can.
    LastResort,
}

/// What health checks say about a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServerHealth {
    /// `fall` checks in a row failed.
    Down,
    /// Its checks pass, but it has gone up and down too often: it takes clients only while nobody else can (`health.flaps`).
    Held,
    /// No verdict yet: takes no new connections.
    Unknown,
    /// `rise` checks in a row succeeded, or no health is configured.
    Up,
}

impl ServerHealth {
    /// The word used in status, metrics and docs.
    pub fn label(self) -> &'static str {
        match self {
            ServerHealth::Down => "down",
            ServerHealth::Held => "held",
            ServerHealth::Unknown => "unknown",
            ServerHealth::Up => "up",
        }
    }
}
