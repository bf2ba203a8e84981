//! What packets need to know of the snapshot: which service an address and port is, and each service's rule in one small table.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;

use towpath_config::model::{AdminState, Forwarding, Plane, Protocol};

use super::Network;
use super::flows::timeout_class;
use crate::flow::tcp::{TcpTimeout, TcpTimeouts};
use crate::flow::udp::{UdpTimeout, UdpTimeouts};
use crate::flow::{Direction, FlowPath, Returns, TimeoutClass};
use crate::outbound::OutboundLane;
use crate::packet::{Ip, PROTOCOL_TCP, PROTOCOL_UDP, Tuple};
use crate::random::mix;
use crate::snapshot::{SERVICES_MAX, Service, ServiceSource, Snapshot, Target};
use crate::snat::{Leased, RouteId, SnatMaps, SnatPool};
use crate::{RealServerId, ServiceId, TargetIndex};

const TCP_TIMEOUTS: usize = TcpTimeout::ALL.len();
const UDP_TIMEOUTS: usize = UdpTimeout::ALL.len();

/// A port whose flows from inside may be forgotten early, as it is one of those below 1024 (RFC 4787 REQ-5 a): a resolver has very many, each of one answer.
const DNS_PORT: u16 = 53;
const DNS_TIMEOUT_MS: u64 = 30_000;

/// How the flows of one service are treated. Stays when the service goes, for the flows that it leaves.
#[derive(Clone, Copy, Debug, Default)]
// So that one is found by a shift.
#[repr(align(32))]
pub(super) struct Rule {
    classes: [TimeoutClass; TCP_TIMEOUTS + UDP_TIMEOUTS],
    /// Only the MACs of the flows that it opens are rewritten, and their answers do not come by.
    pub(super) is_dsr: bool,
    /// Whether a lease is kept while the real server may hold the connection in TIME_WAIT.
    pub(super) rests: bool,
    /// For what asks a server that answers at once and once, flows from inside only.
    short_class: Option<TimeoutClass>,
    /// By whom clients that are on no link of ours are answered, instead of by the routes.
    pub(super) next_hop: Option<Ip>,
    /// Whether the kernel may carry how its connections end: a worker hears of it a little later, so not where a limit waits for it.
    pub(super) carries_ends: bool,
}

impl Rule {
    fn new(service: &Service) -> Rule {
        let rest_ms = match &service.source {
            ServiceSource::Client | ServiceSource::Interface => 0,
            ServiceSource::Pool(pool) => pool.rest_ms(),
        };
        let standard = TcpTimeouts::default();
        let tcp = TcpTimeouts {
            opening_ms: service.connect_timeout_ms,
            established_ms: service.idle_timeout_ms,
            half_closed_ms: service.idle_timeout_ms,
            closing_ms: standard.closing_ms.min(service.idle_timeout_ms),
            // A lease that rests does so in its flow.
            time_wait_ms: standard.time_wait_ms.max(rest_ms),
            reset_ms: standard.reset_ms,
        };
        let udp = UdpTimeouts {
            opening_ms: UdpTimeouts::default().opening_ms.min(service.idle_timeout_ms),
            established_ms: service.idle_timeout_ms,
        };
        let is_dsr = service.forwarding == Forwarding::Dsr;
        let next_hop = service.next_hop.map(Ip::from);
        let carries_ends =
            service.max_connections == 0 && service.targets.iter().all(|member| member.max_connections == 0);
        Rule { is_dsr, rests: rest_ms > 0, next_hop, carries_ends, ..Rule::timed(&tcp, &udp) }
    }

    /// Flows from inside have the timeouts of a NAT (RFC 4787 REQ-5, RFC 5382 REQ-5, RFC 5508 REQ-2).
    fn of_outbound(lane: &OutboundLane) -> Rule {
        let rest_ms = lane.pool.rest_ms();
        let standard = TcpTimeouts::default();
        let tcp = TcpTimeouts { time_wait_ms: standard.time_wait_ms.max(rest_ms), ..standard };
        let udp = match lane.pool.leased() {
            Leased::Echo => UdpTimeouts { opening_ms: 60_000, established_ms: 60_000 },
            // Who asks is one of the operator's own: no reason to forget it sooner.
            Leased::Tcp | Leased::Udp => UdpTimeouts { opening_ms: 120_000, ..UdpTimeouts::default() },
        };
        Rule { rests: rest_ms > 0, short_class: Some(timeout_class(DNS_TIMEOUT_MS)), ..Rule::timed(&tcp, &udp) }
    }

    fn timed(tcp: &TcpTimeouts, udp: &UdpTimeouts) -> Rule {
        let mut classes = [TimeoutClass(0); TCP_TIMEOUTS + UDP_TIMEOUTS];
        for (class, ms) in classes.iter_mut().zip(tcp.all_ms().into_iter().chain(udp.all_ms())) {
            *class = timeout_class(ms);
        }
        Rule { classes, ..Rule::default() }
    }

    /// Where the answers of the flows that it opens go.
    pub(super) fn returns(&self) -> Returns {
        if self.is_dsr { Returns::Elsewhere } else { Returns::Here }
    }

    /// Towards whom a packet to `to` leaves: clients that are on no link of ours may have another gateway than the routes say.
    #[inline(always)]
    pub(super) fn station(&self, network: &Network, direction: Direction, to: Ip) -> Ip {
        match self.next_hop {
            Some(gateway) if direction == Direction::Reverse && network.is_on_link(to).is_none() => gateway,
            Some(_) | None => to,
        }
    }

    #[inline]
    pub(super) fn tcp_class(&self, timeout: TcpTimeout) -> TimeoutClass {
        self.classes[timeout.index()]
    }

    /// The class of flows of datagrams, or pings, whose far end, where the flow is not from inside our own, has this port.
    #[inline]
    pub(super) fn udp_class(&self, timeout: UdpTimeout, server_port: u16) -> TimeoutClass {
        match self.short_class {
            Some(class) if server_port == DNS_PORT => class,
            Some(_) | None => self.classes[TCP_TIMEOUTS + timeout.index()],
        }
    }
}

/// Where the packets of a service to one of its members go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// Its address.
    pub(super) server: Ip,
    /// `None`: it keeps the port that the client addressed.
    port: Option<u16>,
    /// The way of the leases there, of the service's pool; `None` where it depends on that port, or where there is no pool.
    route: Option<RouteId>,
}

impl Way {
    fn new(service: &Service, member: &Target) -> Way {
        let destination = member.destination(0);
        let towards = member.lease_destination(service, destination);
        let is_one = member.port.is_some() || service.ports.is_empty();
        let route = match &service.source {
            ServiceSource::Pool(pool) if is_one => pool.route(towards),
            ServiceSource::Client | ServiceSource::Interface | ServiceSource::Pool(_) => None,
        };
        Way { server: destination.ip().into(), port: member.port, route }
    }

    /// The port there of what a client sent to `service_port`.
    #[inline]
    pub(super) fn port(&self, service_port: u16) -> u16 {
        self.port.unwrap_or(service_port)
    }

    /// The way of the leases, `towards` the member.
    #[inline]
    pub(super) fn route(&self, pool: &SnatPool, towards: impl Fn() -> SocketAddr) -> Option<RouteId> {
        self.route.or_else(|| pool.route(towards()))
    }
}

/// Hashes the addresses and ports of the configuration in a few instructions. Without a key: what lies in these tables the operator has
/// chosen, and whoever looks for something else finds no longer runs than those are.
#[derive(Default)]
pub(super) struct ConfiguredHasher(u64);

impl Hasher for ConfiguredHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    #[inline]
    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    #[inline]
    fn write_u64(&mut self, word: u64) {
        self.0 = mix(self.0 ^ word);
    }

    #[inline]
    fn write_u128(&mut self, words: u128) {
        self.write_u64(words as u64 ^ ((words >> 64) as u64).rotate_left(29));
    }
}

type Configured<K, V> = HashMap<K, V, BuildHasherDefault<ConfiguredHasher>>;
pub(super) type ConfiguredSet<K> = HashSet<K, BuildHasherDefault<ConfiguredHasher>>;

/// An address and a protocol as a key, with a port or that of every port.
#[inline]
fn key(address: Ip, port: Option<u16>, protocol: u8) -> (u128, u32) {
    (address_key(address), u32::from(protocol) << 17 | port.map_or(1 << 16, u32::from))
}

#[inline]
pub(super) fn address_key(address: Ip) -> u128 {
    u128::from_be_bytes(address.0)
}

/// The services of the packet plane.
pub(super) struct Services {
    /// By [`ServiceId`]; all there can be, so that no id needs a check.
    rules: Box<[Rule; SERVICES_MAX]>,
    /// By [`ServiceId`], then by the place of the member; as long as the snapshot is.
    ways: Vec<Box<[Way]>>,
    /// By [`key`].
    by_socket: Configured<(u128, u32), ServiceId>,
    /// VIPs and SNAT addresses, by [`address_key`].
    ours: ConfiguredSet<u128>,
    /// By the last octet: whether one of them ends in it. Most packets come from an address that does not.
    ours_endings: [bool; 256],
    /// Of these, those of the kernel's interfaces: even when the kernel has lost one, it is not ours alone.
    lent: ConfiguredSet<u128>,
    /// Addresses of real servers, likewise.
    servers: ConfiguredSet<u128>,
    /// Of these, those that see the addresses of clients and answer them through us.
    half_nat: ConfiguredSet<u128>,
    /// By VIP, servers that answer its clients by themselves.
    direct: Configured<u128, Vec<Ip>>,
    /// Half-NAT servers that were once, by the addresses that flows may still have: no more than the last walk over the flows has found, and those that
    /// newer snapshots have left out since.
    left: ConfiguredSet<u128>,
    /// Of these, those that the walk under way has found a flow of.
    still: ConfiguredSet<u128>,
    /// Members whose flows are to be ended; of a port of the service, or of all of them.
    shunned: HashSet<(ServiceId, RealServerId, Option<u16>)>,
    /// Where leases are given back: one book for all pools.
    maps: Option<Arc<SnatMaps>>,
}

impl Services {
    pub(super) fn new() -> Services {
        Services {
            rules: Box::new([Rule::default(); SERVICES_MAX]),
            ways: Vec::new(),
            by_socket: HashMap::default(),
            ours: HashSet::default(),
            ours_endings: [false; 256],
            lent: HashSet::default(),
            servers: HashSet::default(),
            half_nat: HashSet::default(),
            direct: HashMap::default(),
            left: HashSet::default(),
            still: HashSet::default(),
            shunned: HashSet::new(),
            maps: None,
        }
    }

    /// Follows a newer snapshot. Whether a walk over the flows has something new to find: a member is to lose its flows that was not before, or a half-NAT
    /// server is gone that may have some.
    pub(super) fn adopt(&mut self, snapshot: &Snapshot) -> bool {
        self.ways.clear();
        self.ways.resize_with(snapshot.services.len(), Box::default);
        self.by_socket.clear();
        self.ours.clear();
        self.lent.clear();
        self.servers.clear();
        self.direct.clear();
        let before = std::mem::take(&mut self.half_nat);
        let mut shunned = HashSet::new();
        for service in snapshot.each_service().filter(|service| service.plane == Plane::Packet) {
            self.adopt_service(service);
            for target in &service.targets {
                if target.admin == AdminState::Halt || service.drops_flows_of(target) {
                    shunned.insert((service.id, target.server, None));
                } else if service.drops_flows() {
                    shunned.extend(target.lost_ports().map(|port| (service.id, target.server, Some(port))));
                }
            }
        }
        for lane in snapshot.outbound.each().flat_map(|nat| nat.lanes()) {
            if let Some(rule) = self.rules.get_mut(lane.id.index()) {
                *rule = Rule::of_outbound(lane);
            }
            self.adopt_pool(&lane.pool);
        }
        self.ours_endings = [false; 256];
        self.ours.iter().for_each(|address| self.ours_endings[usize::from(*address as u8)] = true);
        let is_any_gone = before.iter().any(|address| !self.half_nat.contains(address));
        self.left.extend(before);
        self.left.retain(|address| !self.half_nat.contains(address));
        let more = shunned.iter().any(|member| !self.shunned.contains(member));
        self.shunned = shunned;
        more || is_any_gone
    }

    fn adopt_service(&mut self, service: &Service) {
        let vip = Ip::from(service.vip);
        let protocol = protocol_number(service.protocol);
        if let Some(rule) = self.rules.get_mut(service.id.index()) {
            *rule = Rule::new(service);
        }
        if let Some(ways) = self.ways.get_mut(service.id.index()) {
            *ways = service.targets.iter().map(|member| Way::new(service, member)).collect();
        }
        // Another may have its sockets by now.
        if !service.is_leaving {
            let every_port = service.ports.is_empty().then_some(None);
            let ports = service.ports.iter().map(|&port| Some(port)).chain(every_port);
            self.by_socket.extend(ports.map(|port| (key(vip, port, protocol), service.id)));
        }
        self.ours.insert(address_key(vip));
        let servers = service.targets.iter().map(|target| address_key(target.address.into()));
        if service.forwarding == Forwarding::HalfNat {
            self.half_nat.extend(servers.clone());
        }
        if service.forwarding == Forwarding::Dsr {
            let direct = service.targets.iter().map(|target| Ip::from(target.address));
            self.direct.entry(address_key(vip)).or_default().extend(direct);
        }
        self.servers.extend(servers);
        if let ServiceSource::Pool(pool) = &service.source {
            self.adopt_pool(pool);
        }
    }

    fn adopt_pool(&mut self, pool: &SnatPool) {
        let addresses = pool.addresses().iter().map(|&address| address_key(address.into()));
        if pool.is_of_interface() {
            self.lent.extend(addresses.clone());
        }
        self.ours.extend(addresses);
        self.maps = Some(Arc::clone(pool.maps()));
    }

    #[inline]
    pub(super) fn rule(&self, service: ServiceId) -> &Rule {
        &self.rules[service.index() % SERVICES_MAX]
    }

    /// The way to a member of a service of the snapshot.
    #[inline]
    pub(super) fn way(&self, service: ServiceId, member: TargetIndex) -> Option<&Way> {
        self.ways.get(service.index())?.get(member.index())
    }

    /// The service that a client's packet is for.
    pub(super) fn find(&self, tuple: &Tuple) -> Option<ServiceId> {
        let Tuple { dst, dst_port, protocol, .. } = *tuple;
        let every_port = || self.by_socket.get(&key(dst, None, protocol));
        self.by_socket.get(&key(dst, Some(dst_port), protocol)).or_else(every_port).copied()
    }

    /// Whether it is a VIP or SNAT address.
    #[inline]
    pub(super) fn is_ours(&self, address: Ip) -> bool {
        self.ours_endings[usize::from(address.0[15])] && self.ours.contains(&address_key(address))
    }

    /// Whether it is an address of the kernel's whose ports we lease.
    pub(super) fn is_lent(&self, address: Ip) -> bool {
        self.lent.contains(&address_key(address))
    }

    /// All VIPs and SNAT addresses.
    pub(super) fn ours(&self) -> impl Iterator<Item = Ip> + '_ {
        self.ours.iter().map(|address| Ip(address.to_be_bytes()))
    }

    /// Whether a real server has this address.
    pub(super) fn is_server(&self, address: Ip) -> bool {
        self.servers.contains(&address_key(address))
    }

    /// Whether a real server has this address that answers clients through us, or had it and may have flows left.
    pub(super) fn keeps_clients(&self, address: Ip) -> bool {
        let address = address_key(address);
        self.half_nat.contains(&address) || !self.left.is_empty() && self.left.contains(&address)
    }

    /// Whether there is such a real server.
    #[inline]
    pub(super) fn any_keeps_clients(&self) -> bool {
        !self.half_nat.is_empty() || !self.left.is_empty()
    }

    /// Servers that answer clients of this VIP by themselves: packets from it may come from them.
    pub(super) fn direct_servers(&self, vip: Ip) -> &[Ip] {
        self.direct.get(&address_key(vip)).map_or(&[], Vec::as_slice)
    }

    /// Whether a packet is an answer to a client of a service whose answers are not translated.
    pub(super) fn is_direct_answer(&self, tuple: &Tuple) -> bool {
        self.find(&tuple.reversed()).is_some_and(|service| self.rule(service).is_dsr)
    }

    /// A walk over all flows begins, which [finds](Self::find_flow) those of half-NAT servers that are gone.
    pub(super) fn begin_walk(&mut self) {
        self.still.clear();
    }

    /// There is a flow with this path.
    #[inline]
    pub(super) fn find_flow(&mut self, path: &FlowPath) {
        let is_half_nat = path.returns == Returns::Here && path.client.src == path.server.src;
        let address = address_key(path.server.dst);
        if is_half_nat && !self.half_nat.contains(&address) {
            self.left.insert(address);
            self.still.insert(address);
        }
    }

    /// The walk is over: who has no flow is gone for good.
    pub(super) fn end_walk(&mut self) {
        self.left.retain(|address| self.still.contains(address));
    }

    /// Whether half-NAT servers that are gone may have flows.
    pub(super) fn has_left(&self) -> bool {
        !self.left.is_empty()
    }

    /// Whether the flows of this member to this port of the service are to be ended.
    pub(super) fn is_shunned(&self, service: ServiceId, server: RealServerId, port: u16) -> bool {
        self.shunned.contains(&(service, server, None)) || self.shunned.contains(&(service, server, Some(port)))
    }

    /// Where leases are given back.
    pub(super) fn maps(&self) -> Option<&SnatMaps> {
        self.maps.as_deref()
    }
}

pub(super) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => PROTOCOL_TCP,
        Protocol::Udp => PROTOCOL_UDP,
    }
}
