//! SNAT ports: which (source address, port) a new flow uses towards its real server.
//!
//! Exact: per (SNAT address, real server address and port, protocol) one bitmap of ports, shared by every pool and worker that
//! uses the three. A free port is found without random trials, so N addresses carry N × their range of ports per real server and
//! not one less; the next one is an error value. Within a shard a rotating cursor lets a port that came back rest before its next use.
//!
//! The controller keeps the [`SnatBook`]; each service leases from a [`SnatPool`]; a [`SnatLease`] must be released, or put to
//! rest in the worker's [`SnatRest`] first.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::packet::Ip;
use crate::steering::{SteeringTable, VSHARDS, vshard_of_port};
use crate::{VShard, WorkerId};

mod book;
mod homes;
mod map;
mod rest;
#[cfg(test)]
mod tests;

pub use book::{MapName, SnatBook, SnatBookError, SnatLimits};
pub use homes::PortHomes;
pub use map::SnatMaps;
pub use rest::SnatRest;

use map::{PortMap, PortMask};

/// A source address and port of ours towards one real server; nobody else has it until it is released.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a lease that is dropped is never free again: release it or let it rest"]
pub struct SnatLease {
    map: u32,
    port: u16,
    /// As flows have it, which most leases are for.
    address: Ip,
}

impl SnatLease {
    /// The SNAT address.
    pub fn address(&self) -> IpAddr {
        self.address.into()
    }

    /// The same as the tables of flows have it.
    #[inline]
    pub fn ip(&self) -> Ip {
        self.address
    }

    /// The leased port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Address and port, to bind to.
    pub fn source(&self) -> SocketAddr {
        SocketAddr::new(self.address.into(), self.port)
    }

    /// The number of its port map: with [`source`](Self::source) all of it, for a flow to hold.
    pub fn into_map(self) -> u32 {
        self.map
    }

    /// The lease that [`into_map`](Self::into_map) took apart. Made twice out of one, it would free a port that somebody else has.
    pub fn from_map(map: u32, source: SocketAddr) -> SnatLease {
        SnatLease { map, port: source.port(), address: source.ip().into() }
    }

    /// The virtual shard that steering sends the returns to; where it is not the flow's home, [`PortHomes`] say which one is.
    pub fn vshard(&self) -> VShard {
        vshard_of_port(self.port)
    }
}

/// What the numbers of a pool are; each has maps of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leased {
    /// Identifiers of ICMP and ICMPv6 echoes.
    Echo,
    /// Ports of TCP.
    Tcp,
    /// Ports of UDP.
    Udp,
}

impl Leased {
    /// Every one, in the order of their numbers.
    pub const ALL: [Leased; 3] = [Leased::Echo, Leased::Tcp, Leased::Udp];

    /// The word used in status.
    pub fn label(self) -> &'static str {
        match self {
            Leased::Echo => "echo",
            Leased::Tcp => "tcp",
            Leased::Udp => "udp",
        }
    }
}

/// Every port of every SNAT address of the pool is leased towards this real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnatExhausted {
    /// The real server.
    pub destination: SocketAddr,
    /// SNAT addresses that can reach it; 0 when the pool does not serve this real server.
    pub addresses: usize,
    /// Ports that these addresses have together, all of them leased.
    pub capacity: u32,
}

impl fmt::Display for SnatExhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SnatExhausted { destination, addresses, capacity } = self;
        if *addresses == 0 {
            return write!(f, "real server {destination}: this pool has no source address for it");
        }
        write!(
            f,
            "real server {destination}: all {capacity} source ports of {addresses} source address(es) are leased; add an address to source.pool, \
             or a real server"
        )
    }
}

impl std::error::Error for SnatExhausted {}

/// How full one SNAT address is towards one real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnatFill {
    /// The SNAT address.
    pub address: IpAddr,
    /// The real server.
    pub destination: SocketAddr,
    /// Ports leased, those at rest included.
    pub leased: u32,
    /// Ports that can be leased.
    pub capacity: u32,
}

impl SnatFill {
    /// Whether 80 % is reached, the point at which the operator is told.
    pub fn is_nearly_full(&self) -> bool {
        u64::from(self.leased) * 5 >= u64::from(self.capacity) * 4
    }
}

/// What one service leases source ports from: its SNAT addresses and port range, towards its real servers.
pub struct SnatPool {
    maps: Arc<SnatMaps>,
    addresses: Box<[IpAddr]>,
    leased: Leased,
    is_of_interface: bool,
    rest_ms: u64,
    mask: PortMask,
    /// Sorted by key, for a binary search.
    routes: Box<[Route]>,
}

/// The SNAT addresses that can reach one real server; never empty.
struct Route {
    key: (u128, u32),
    destination: SocketAddr,
    sources: Box<[RouteSource]>,
    /// Which source the next flow of each home begins with.
    turns: Box<[AtomicU16; VSHARDS]>,
}

impl Route {
    fn new(destination: SocketAddr, sources: Box<[RouteSource]>) -> Route {
        // From the home's own number on: the first flows of 256 homes must not all begin with the first address.
        let first = |home| AtomicU16::new((home % sources.len()) as u16);
        let turns = Box::new(std::array::from_fn(first));
        Route { key: route_key(destination), destination, sources, turns }
    }

    fn next_turn(&self, home: VShard) -> usize {
        usize::from(self.turns[home.index()].load(Ordering::Relaxed))
    }

    /// The source whose turn it is, and the next one's turn. Another worker at the same moment may get the same one: that does no harm.
    fn take_turn(&self, home: VShard) -> usize {
        let turn = self.next_turn(home);
        let next = if turn + 1 < self.sources.len() { turn + 1 } else { 0 };
        self.turns[home.index()].store(next as u16, Ordering::Relaxed);
        turn
    }
}

/// A destination in words that compare fast, and both families apart.
fn route_key(destination: SocketAddr) -> (u128, u32) {
    match destination {
        SocketAddr::V4(v4) => (u128::from(v4.ip().to_bits()), u32::from(v4.port())),
        SocketAddr::V6(v6) => (v6.ip().to_bits(), 1 << 16 | u32::from(v6.port())),
    }
}

struct RouteSource {
    address: Ip,
    map: Arc<PortMap>,
}

/// Where flows of one home lease on one route: of the pool that was asked for it, and good for as long as that one lives.
#[derive(Clone, Copy, Debug)]
pub struct LeasePlace {
    route: RouteId,
    home: VShard,
}

impl LeasePlace {
    /// Where flows whose home is `home` lease on `route`.
    pub fn new(route: RouteId, home: VShard) -> LeasePlace {
        LeasePlace { route, home }
    }
}

/// The way from a pool to one real server: of the pool that was asked for it, and good for as long as that one lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteId(u32);

impl SnatPool {
    /// Leases a source address and port towards `destination` for a flow of `worker` whose home is `home`.
    ///
    /// Ports of the home shard come first, then those of the worker's other shards, then foreign ones; within each, the addresses
    /// take turns.
    pub fn lease(
        &self,
        destination: SocketAddr,
        home: VShard,
        steering: &SteeringTable,
        worker: WorkerId,
    ) -> Result<SnatLease, SnatExhausted> {
        let nowhere = SnatExhausted { destination, addresses: 0, capacity: 0 };
        self.lease_at(LeasePlace::new(self.route(destination).ok_or(nowhere)?, home), steering, worker)
    }

    /// The same where route and home are known.
    #[inline]
    pub fn lease_at(
        &self,
        place: LeasePlace,
        steering: &SteeringTable,
        worker: WorkerId,
    ) -> Result<SnatLease, SnatExhausted> {
        let LeasePlace { route, home } = place;
        let route = &self.routes[route.0 as usize];
        let turn = route.take_turn(home);
        match self.claim_at(&route.sources[turn], home, home) {
            Some(lease) => Ok(lease),
            None => self.search(route, turn, home, steering, worker),
        }
    }

    /// The rest of a lease, where the first address asked has no port of the home shard.
    #[cold]
    #[inline(never)]
    fn search(
        &self,
        route: &Route,
        turn: usize,
        home: VShard,
        steering: &SteeringTable,
        worker: WorkerId,
    ) -> Result<SnatLease, SnatExhausted> {
        let claim = |vshard| self.claim(&route.sources, turn, vshard, home);
        let is_own = |vshard: &VShard| steering.worker_of(*vshard) == worker;
        claim(home)
            .or_else(|| around(home).filter(is_own).find_map(claim))
            .or_else(|| around(home).filter(|vshard| !is_own(vshard)).find_map(claim))
            .ok_or_else(|| self.exhausted(route))
    }

    /// The line of the ports that the next lease there tries first, unless another comes before.
    #[inline]
    pub fn port_line(&self, place: LeasePlace) -> *const u8 {
        std::ptr::from_ref(self.next_map(place).place(place.home)).cast()
    }

    /// The line of the note beside that port, where one is written. Reads the other line.
    #[inline]
    pub fn note_line(&self, place: LeasePlace) -> Option<*const u8> {
        let map = self.next_map(place);
        if map.is_lent(place.home) { map.homes.line(map.next_port(place.home)) } else { None }
    }

    #[inline]
    fn next_map(&self, place: LeasePlace) -> &PortMap {
        let route = &self.routes[place.route.0 as usize];
        &route.sources[route.next_turn(place.home)].map
    }

    /// The route to `destination`; `None`: no address of the pool can reach it.
    pub fn route(&self, destination: SocketAddr) -> Option<RouteId> {
        let key = route_key(destination);
        let place = self.routes.binary_search_by_key(&key, |route| route.key).ok()?;
        u32::try_from(place).ok().map(RouteId)
    }

    fn exhausted(&self, route: &Route) -> SnatExhausted {
        let addresses = route.sources.len();
        SnatExhausted { destination: route.destination, addresses, capacity: self.mask.capacity() * addresses as u32 }
    }

    /// A port of `vshard` at the first address that has one, beginning with the address whose turn it is, for a flow whose home is `home`.
    fn claim(&self, sources: &[RouteSource], turn: usize, vshard: VShard, home: VShard) -> Option<SnatLease> {
        let (before, from) = sources.split_at(turn);
        from.iter().chain(before).find_map(|source| self.claim_at(source, vshard, home))
    }

    #[inline]
    fn claim_at(&self, source: &RouteSource, vshard: VShard, home: VShard) -> Option<SnatLease> {
        let port = source.map.claim(vshard, &self.mask)?;
        source.map.note(port, home);
        Some(SnatLease { map: source.map.id(), port, address: source.address })
    }

    /// Makes the port of `lease` free again. Any pool of the same book may be asked.
    pub fn release(&self, lease: SnatLease) {
        self.maps.release(lease);
    }

    /// The port maps behind it: they outlive the pool, so leases can be released after a reload has replaced it.
    pub fn maps(&self) -> &Arc<SnatMaps> {
        &self.maps
    }

    /// How full each SNAT address is towards each real server.
    pub fn fill(&self) -> impl Iterator<Item = SnatFill> + '_ {
        self.routes.iter().flat_map(move |route| {
            route.sources.iter().map(move |source| SnatFill {
                address: source.address.into(),
                destination: route.destination,
                leased: source.map.leased(&self.mask),
                capacity: self.mask.capacity(),
            })
        })
    }

    /// The SNAT addresses, in the order of the configuration.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Whether its addresses are those of the kernel's interfaces (`source = "interface"`): the kernel answers for them, or nobody does.
    pub fn is_of_interface(&self) -> bool {
        self.is_of_interface
    }

    /// What is leased.
    pub fn leased(&self) -> Leased {
        self.leased
    }

    /// How long a port rests when we sent the first FIN towards the server; 0 = not at all.
    pub fn rest_ms(&self) -> u64 {
        self.rest_ms
    }
}

impl fmt::Debug for SnatPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnatPool")
            .field("addresses", &self.addresses)
            .field("leased", &self.leased)
            .field("capacity", &self.mask.capacity())
            .field("real_servers", &self.routes.len())
            .finish_non_exhaustive()
    }
}

/// The other shards, beginning behind `home`.
fn around(home: VShard) -> impl Iterator<Item = VShard> {
    (1..VSHARDS).map(move |step| VShard(home.0.wrapping_add(step as u8)))
}

impl RouteSource {
    fn new(address: IpAddr, map: Arc<PortMap>) -> RouteSource {
        map.join();
        RouteSource { address: address.into(), map }
    }
}

impl Drop for RouteSource {
    fn drop(&mut self) {
        self.map.leave();
    }
}
