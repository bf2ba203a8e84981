//! Who talks to whom in memory: clients behind a router, one service, its real servers.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use towpath_config::model::{
    AdminState, Balance, Forwarding, Logged, Overload, Plane as PlaneKind, Protocol, SourcePool,
};
use towpath_core::admin::Halted;
use towpath_core::balancer::BalancerState;
use towpath_core::counters::{ServiceCounter, Termination};
use towpath_core::flow::Direction;
use towpath_core::http::HttpSecret;
use towpath_core::loads::{Loads, PlainLoads};
use towpath_core::packet::{Family, Mac, PROTOCOL_TCP, PROTOCOL_UDP, Tuple};
use towpath_core::persistence::PersistenceTable;
use towpath_core::plane::{Desk, Network, PlaneSettings, Port, PortId, Strays};
use towpath_core::snapshot::{
    Duty, Entrants, RealServer, Role, ServerHealth, Service, ServiceSource, Snapshot, Target,
};
use towpath_core::snat::{SnatBook, SnatLimits};
use towpath_core::steering::SteeringTable;
use towpath_core::{Generation, Now, Pick, RealServerId, Refusal, ServiceId, Tried, WorkerId};
use towpath_sys::prefetch::prefetch;

use super::InMemory;
use super::bench::Opened;
use crate::crowd;

/// Real servers, and SNAT addresses: together 16 million ports.
const MEMBERS: u8 = 16;

/// Last octet of the first server and of the first SNAT address; the others follow.
pub(super) const SERVER_NUMBER: u8 = 11;

pub(super) const SOURCE_NUMBER: u8 = 101;

const SERVICE_PORT: u16 = 8080;

const SERVER_PORT: u16 = 7000;

const FRONT: PortId = PortId(0);

const BACK: PortId = PortId(1);

pub(super) const FRONT_MAC: Mac = Mac([2, 0, 0, 0, 1, 1]);

pub(super) const BACK_MAC: Mac = Mac([2, 0, 0, 0, 2, 1]);

pub(super) const ROUTER_MAC: Mac = Mac([2, 0, 0, 0, 1, 2]);

/// Flows whose handshakes may be under way; a chunk has fewer.
const HALF_OPEN_MAX: usize = 1 << 16;

const HALF_OPEN_PER_SOURCE_MAX: u32 = 256;

pub(super) const IDLE_TIMEOUT_MS: u64 = 1_800_000;

/// Who talks to whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scene {
    pub(super) work: InMemory,
}

impl Scene {
    /// Host `number` of the network of a port.
    fn host(&self, port: PortId, number: u8) -> IpAddr {
        match self.work.family {
            Family::V4 => IpAddr::from([10, 88, port.0 + 1, number]),
            Family::V6 => Ipv6Addr::new(0xfd88, 0, 0, u16::from(port.0) + 1, 0, 0, 0, number.into()).into(),
        }
    }

    fn vip(&self) -> SocketAddr {
        SocketAddr::new(self.host(FRONT, 100), SERVICE_PORT)
    }

    fn server(&self, number: u8) -> IpAddr {
        self.host(BACK, SERVER_NUMBER.wrapping_add(number))
    }

    /// Both ends of a packet as the server has it, seen from the client.
    fn inside(&self, flow: usize, opened: Opened) -> (SocketAddr, SocketAddr) {
        let source = match self.work.forwarding {
            Forwarding::FullNat => {
                SocketAddr::new(self.host(BACK, SOURCE_NUMBER.wrapping_add(opened.source)), opened.port)
            }
            Forwarding::Dsr | Forwarding::HalfNat => crowd::client(self.work.family, flow),
        };
        (source, SocketAddr::new(self.server(opened.server), SERVER_PORT))
    }

    /// From and to whom a packet comes.
    pub(super) fn incoming(&self, flow: usize, direction: Direction, opened: Opened) -> (SocketAddr, SocketAddr) {
        match direction {
            Direction::Forward => (crowd::client(self.work.family, flow), self.vip()),
            Direction::Reverse => {
                let (source, server) = self.inside(flow, opened);
                (server, source)
            }
        }
    }

    /// What it is to become.
    pub(super) fn outgoing(&self, flow: usize, direction: Direction, opened: Opened) -> Tuple {
        let (from, to) = match direction {
            Direction::Forward => self.inside(flow, opened),
            Direction::Reverse => (self.vip(), crowd::client(self.work.family, flow)),
        };
        Tuple {
            src: from.ip().into(),
            dst: to.ip().into(),
            src_port: from.port(),
            dst_port: to.port(),
            protocol: match self.work.cargo.protocol() {
                Protocol::Tcp => PROTOCOL_TCP,
                Protocol::Udp => PROTOCOL_UDP,
            },
        }
    }

    /// Where packets of a direction come in.
    pub(super) fn port(&self, direction: Direction) -> PortId {
        match direction {
            Direction::Forward => FRONT,
            Direction::Reverse => BACK,
        }
    }

    pub(super) fn settings(&self, flows: usize) -> PlaneSettings {
        PlaneSettings {
            flows_max: flows,
            half_open_max: HALF_OPEN_MAX,
            half_open_per_source_max: HALF_OPEN_PER_SOURCE_MAX,
            pending_frames_max: 64,
            replies_per_second: 1000,
            worker: WorkerId(0),
            seed: [0x7f4a_7c15_9e37_79b9, 0x1ce4_e5b9_bf58_476d],
            steering_seed: 0x2545_f491,
            strays: Strays::Drop,
        }
    }

    pub(super) fn network(&self) -> Network {
        let prefix = match self.work.family {
            Family::V4 => 24,
            Family::V6 => 64,
        };
        let port = |id: PortId, name: &str, mac| Port {
            name: name.into(),
            index: 1 + u32::from(id.0),
            mac,
            mtu: 1500,
            addresses: vec![(self.host(id, 1).into(), prefix)],
            segments: true,
            ..Port::default()
        };
        let router = self.host(FRONT, 2).into();
        let on_link = |id: PortId| (self.host(id, 0).into(), prefix, None, id, 0);
        // From behind a router, so that not every one of them is a neighbour.
        let clients = match self.work.family {
            Family::V4 => crowd::NETWORK_V4,
            Family::V6 => crowd::NETWORK_V6,
        };
        let neighbours = (0..MEMBERS).map(|number| (BACK, self.server(number).into(), server_mac(number)));
        Network::new(
            vec![port(FRONT, "front", FRONT_MAC), port(BACK, "back", BACK_MAC)],
            vec![on_link(FRONT), on_link(BACK), (clients.0.into(), clients.1, Some(router), FRONT, 0)],
            neighbours.chain([(FRONT, router, ROUTER_MAC)]).collect(),
        )
    }

    /// One service with all servers, and its id.
    pub(super) fn snapshot(&self) -> io::Result<(ServiceId, Snapshot)> {
        let destinations: Vec<SocketAddr> =
            (0..MEMBERS).map(|number| SocketAddr::new(self.server(number), SERVER_PORT)).collect();
        let source = match self.work.forwarding {
            Forwarding::Dsr | Forwarding::HalfNat => ServiceSource::Client,
            Forwarding::FullNat => {
                let rule = SourcePool {
                    addresses: (0..MEMBERS).map(|number| self.host(BACK, SOURCE_NUMBER + number)).collect(),
                    port_low: 1024,
                    port_high: u16::MAX,
                    rest_ms: 60_000,
                    towards: Default::default(),
                };
                let pool =
                    SnatBook::new(SnatLimits::default()).pool(&rule, &[], self.work.cargo.protocol(), &destinations);
                ServiceSource::Pool(pool.map_err(io::Error::other)?)
            }
        };
        let id = ServiceId(0);
        let target = |(number, destination): (usize, &SocketAddr)| Target {
            server: RealServerId(number as u16),
            name: format!("server-{}", number + 1),
            address: destination.ip(),
            port: Some(destination.port()),
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
        };
        let targets: Vec<Target> = destinations.iter().enumerate().map(target).collect();
        let real_servers = targets.iter().map(|target| {
            let Target { server, ref name, address, port, .. } = *target;
            Some(RealServer { id: server, name: name.clone(), address, port })
        });
        let real_servers = real_servers.collect();
        let service = Service {
            is_leaving: false,
            id,
            place: id,
            pins: id,
            name: "relay".into(),
            group: "relay".into(),
            vip: self.vip().ip(),
            ports: vec![SERVICE_PORT],
            protocol: self.work.cargo.protocol(),
            plane: PlaneKind::Packet,
            forwarding: self.work.forwarding,
            balance: Balance::LeastConnections,
            persistence: None,
            secret: HttpSecret::new([7; 16]),
            first_bytes: None,
            idle_timeout_ms: IDLE_TIMEOUT_MS,
            connect_timeout_ms: 4_000,
            drain_timeout_ms: 30_000,
            redispatch: 3,
            drop_on_failure: false,
            slow_start_ms: 0,
            passive: None,
            next_hop: None,
            max_connections: 0,
            queue: None,
            overload: Overload::Silent,
            has_minimums: false,
            source,
            targets,
            entrants: Entrants::default(),
            routes: None,
            maglev: None,
            http: None,
            proxy_from: None,
            log: Logged::None,
        };
        let snapshot = Snapshot {
            generation: Generation(1),
            services: vec![Some(Arc::new(service))],
            real_servers,
            steering: Arc::new(SteeringTable::even(1)),
            router: Arc::default(),
            outbound: Arc::default(),
            role: Default::default(),
        };
        Ok((id, snapshot))
    }
}

pub(super) fn server_mac(number: u8) -> Mac {
    Mac([2, 0, 0, 0, 2, SERVER_NUMBER.wrapping_add(number)])
}

/// The Director for one thread, without persistence.
pub(super) struct PlainDesk {
    balancer: BalancerState,
    persistence: PersistenceTable,
    pub(super) loads: PlainLoads,
}

impl PlainDesk {
    pub(super) fn new() -> PlainDesk {
        PlainDesk {
            balancer: BalancerState::new(1),
            persistence: PersistenceTable::new(0, 1),
            loads: PlainLoads::new(1, usize::from(MEMBERS)),
        }
    }
}

impl Desk for PlainDesk {
    fn pick(&mut self, service: &Service, client: SocketAddr, _: u16, now: Now) -> Result<Pick, Refusal> {
        let tried = Tried::new();
        towpath_core::pick(service, &mut self.balancer, &mut self.persistence, &self.loads, client, &tried, now)
    }

    fn close(&mut self, service: ServiceId, server: RealServerId) {
        self.loads.close(service, server);
    }

    fn count(&mut self, _service: ServiceId, _counter: ServiceCounter, _n: u64) {}

    fn end(&mut self, _service: ServiceId, _termination: Termination) {}

    fn opened(&mut self, _server: RealServerId) {}

    fn failed(&mut self, _server: RealServerId) {}

    /// As a worker of the daemon does.
    #[inline(always)]
    fn prefetch(&self, line: *const u8) {
        prefetch(line);
    }
}
