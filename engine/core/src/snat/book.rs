//! Which port map belongs to which (SNAT address, real server, protocol): the controller's side of SNAT.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use towpath_config::model::SourcePool;

use super::map::{PortMap, PortMask, SnatMaps};
use super::{Leased, Route, RouteSource, SnatLease, SnatPool};
use crate::steering::vshard_of_port;

/// Upper bounds of a [`SnatBook`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnatLimits {
    /// Port maps: one per SNAT address, real server address and port, and protocol; 16 KiB each, allocated when first needed.
    pub maps_max: u32,
}

impl Default for SnatLimits {
    /// 4,096 maps: at most 64 MiB.
    fn default() -> SnatLimits {
        SnatLimits { maps_max: 4096 }
    }
}

/// A pool that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnatBookError {
    /// No SNAT address is of the real server's family.
    NoAddressFor {
        /// The real server.
        destination: SocketAddr,
    },
    /// Every port of the range is one that we listen on.
    NoPorts {
        /// Lowest port of the range.
        low: u16,
        /// Highest port of the range.
        high: u16,
    },
    /// The pool needs more port maps than are left.
    TooManyMaps {
        /// Maps in use by other pools and leases when the pool asked for one more.
        in_use: u32,
        /// The limit.
        maps_max: u32,
    },
}

impl fmt::Display for SnatBookError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SnatBookError::NoAddressFor { destination } => {
                let family = if destination.is_ipv4() { "IPv4" } else { "IPv6" };
                write!(
                    f,
                    "source.pool has no {family} address, but real server {destination} needs one; add an {family} address to the pool"
                )
            }
            SnatBookError::NoPorts { low, high } => {
                write!(f, "source.ports {low}-{high} holds only ports that services listen on; widen the range")
            }
            SnatBookError::TooManyMaps { in_use, maps_max } => write!(
                f,
                "{in_use} of {maps_max} source port maps are in use and more are needed (one per source address, real server port and \
                 protocol); use fewer source addresses per pool, fewer real servers or fewer ports per service"
            ),
        }
    }
}

impl std::error::Error for SnatBookError {}

/// All port maps. Two pools that name the same SNAT address, real server and protocol share one map, so never two flows
/// have one port.
#[derive(Debug)]
pub struct SnatBook {
    maps: Arc<SnatMaps>,
    maps_max: u32,
    by_key: HashMap<MapName, Arc<PortMap>>,
    /// Maps that were allocated and belong to no key.
    unused: Vec<Arc<PortMap>>,
    /// Maps allocated; the next one gets this number.
    allocated: u32,
    /// Maps in use at which the book next looks for unused ones.
    sweep_at: usize,
}

/// Below this many maps it is not worth looking for unused ones.
const SWEEP_MIN: usize = 64;

/// What a port map is of, in whichever process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MapName {
    /// The SNAT address.
    pub address: IpAddr,
    /// The real server, or whoever a lane of outbound NAT leases towards.
    pub destination: SocketAddr,
    /// What its numbers are.
    pub leased: Leased,
}

impl SnatBook {
    /// A book without maps.
    pub fn new(limits: SnatLimits) -> SnatBook {
        SnatBook {
            maps: Arc::new(SnatMaps::new(limits.maps_max)),
            maps_max: limits.maps_max,
            by_key: HashMap::new(),
            unused: Vec::new(),
            allocated: 0,
            sweep_at: SWEEP_MIN,
        }
    }

    /// A pool that leases from `rule` towards `destinations`, never one of the ports in `exclude` (those we listen on at the
    /// pool's addresses).
    ///
    /// Each destination gets the SNAT addresses of its own family, or the one that `rule` has for it.
    pub fn pool(
        &mut self,
        rule: &SourcePool,
        exclude: &[u16],
        leased: impl Into<Leased>,
        destinations: &[SocketAddr],
    ) -> Result<Arc<SnatPool>, SnatBookError> {
        let leased = leased.into();
        let mask = PortMask::new(rule.port_low, rule.port_high, exclude);
        if mask.capacity() == 0 {
            return Err(SnatBookError::NoPorts { low: rule.port_low, high: rule.port_high });
        }
        let mut destinations = destinations.to_vec();
        destinations.sort_unstable();
        destinations.dedup();
        let mut routes = destinations
            .into_iter()
            .map(|destination| self.route(rule, leased, destination))
            .collect::<Result<Box<[Route]>, _>>()?;
        routes.sort_unstable_by_key(|route| route.key);
        Ok(Arc::new(SnatPool {
            maps: Arc::clone(&self.maps),
            addresses: rule.addresses.clone().into(),
            leased,
            is_of_interface: !rule.towards.is_empty(),
            rest_ms: rule.rest_ms,
            mask,
            routes,
        }))
    }

    fn route(&mut self, rule: &SourcePool, leased: Leased, destination: SocketAddr) -> Result<Route, SnatBookError> {
        let towards = rule.towards.get(&destination.ip());
        let sources = rule
            .addresses
            .iter()
            .filter(|&address| address.is_ipv4() == destination.is_ipv4() && towards.is_none_or(|own| own == address))
            .map(|&address| Ok(RouteSource::new(address, self.map(MapName { address, destination, leased })?)))
            .collect::<Result<Box<[_]>, _>>()?;
        if sources.is_empty() {
            return Err(SnatBookError::NoAddressFor { destination });
        }
        Ok(Route::new(destination, sources))
    }

    fn map(&mut self, key: MapName) -> Result<Arc<PortMap>, SnatBookError> {
        if let Some(map) = self.by_key.get(&key) {
            return Ok(Arc::clone(map));
        }
        let map = self.spare_map()?;
        self.by_key.insert(key, Arc::clone(&map));
        Ok(map)
    }

    /// A map that belongs to no key: one used before if there is one, so that memory follows what is in use.
    fn spare_map(&mut self) -> Result<Arc<PortMap>, SnatBookError> {
        let all_taken = self.unused.is_empty() && self.allocated == self.maps_max;
        if all_taken || self.by_key.len() >= self.sweep_at {
            self.sweep();
        }
        if let Some(map) = self.unused.pop() {
            return Ok(map);
        }
        if self.allocated == self.maps_max {
            return Err(SnatBookError::TooManyMaps { in_use: self.allocated, maps_max: self.maps_max });
        }
        let map = self.maps.open(self.allocated);
        self.allocated += 1;
        Ok(map)
    }

    /// Takes back the maps that no pool and no lease needs.
    fn sweep(&mut self) {
        let unused = &mut self.unused;
        unused.extend(self.by_key.extract_if(|_, map| map.is_unused()).map(|(_, map)| map));
        self.sweep_at = (self.by_key.len() * 2).max(SWEEP_MIN);
    }

    /// Takes one certain port, which another process holds, so that nobody leases it here. `None`: no pool leases there, or it is leased.
    pub fn reserve(&self, leased: Leased, source: SocketAddr, destination: SocketAddr) -> Option<SnatLease> {
        let map = self.map_of(&MapName { address: source.ip(), destination, leased })?;
        self.maps.take(map, source, vshard_of_port(source.port()))
    }

    /// The maps that belong to a (SNAT address, real server, protocol), with their numbers.
    pub fn each_map(&self) -> impl Iterator<Item = (u32, MapName)> + '_ {
        self.by_key.iter().map(|(name, map)| (map.id(), *name))
    }

    /// The number of the map with this name, if there is one.
    pub fn map_of(&self, name: &MapName) -> Option<u32> {
        Some(self.by_key.get(name)?.id())
    }

    /// Where leases are released whose pool is gone.
    pub fn maps(&self) -> &Arc<SnatMaps> {
        &self.maps
    }

    /// Maps that belong to a (SNAT address, real server, protocol) now.
    pub fn maps_in_use(&self) -> usize {
        self.by_key.len()
    }
}
