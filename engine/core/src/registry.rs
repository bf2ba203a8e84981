//! Names to ids: stable over reloads, never given to another while something holds them.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;

use towpath_config::model::{CheckKind, Damping, ProxyVersion};

use crate::health::{CHECKS_MAX, CheckId};
use crate::ids::{RealServerId, ServiceId};
use crate::snapshot::{REAL_SERVERS_MAX, SERVICES_MAX};

/// Which names have which ids.
///
/// A service is known by its name, a real server by (address, port), a check by all its parameters. What a model no longer
/// names keeps its id, for connections and persistence entries may hold it ([`Registry::gone_services`],
/// [`Registry::gone_servers`]); a name that comes back finds its old one. The id is free for another only after `release`.
#[derive(Clone, Debug)]
pub struct Registry {
    services: Ids<String>,
    servers: Ids<(IpAddr, Option<u16>)>,
    checks: HashMap<CheckKey, CheckId>,
    checks_given: u32,
}

/// Everything that makes two checks one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CheckKey {
    pub(crate) address: IpAddr,
    pub(crate) vip: Option<IpAddr>,
    pub(crate) kind: CheckKind,
    /// Ascending, without duplicates.
    pub(crate) ports: Vec<u16>,
    pub(crate) proxy: Option<(ProxyVersion, Vec<u16>)>,
    pub(crate) interval_ms: u64,
    pub(crate) fast_interval_ms: u64,
    pub(crate) timeout_ms: u64,
    pub(crate) rise: u16,
    pub(crate) fall: u16,
    pub(crate) damping: Damping,
}

/// A kind of id has run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegistryFull {
    /// Ids of that kind.
    pub max: usize,
    /// How many of them belong to names that are gone and were not released yet.
    pub gone: usize,
}

impl Default for Registry {
    fn default() -> Registry {
        Registry::new()
    }
}

impl Registry {
    /// No names yet.
    pub fn new() -> Registry {
        Registry::bounded(SERVICES_MAX, REAL_SERVERS_MAX)
    }

    /// A registry with fewer ids: small tests reach their end.
    pub(crate) fn bounded(services_max: usize, servers_max: usize) -> Registry {
        Registry {
            services: Ids::new(services_max, Next::Released),
            servers: Ids::new(servers_max, Next::Fresh),
            checks: HashMap::new(),
            checks_given: 0,
        }
    }

    /// The id of a service by name, gone ones included.
    pub fn service(&self, name: &str) -> Option<ServiceId> {
        self.services.by_name.get(name).map(|&id| ServiceId(id))
    }

    /// The id of a real server, gone ones included.
    pub fn server(&self, address: IpAddr, port: Option<u16>) -> Option<RealServerId> {
        self.servers.by_name.get(&(address, port)).map(|&id| RealServerId(id))
    }

    /// Services that the last model no longer named and that were not released, ascending.
    pub fn gone_services(&self) -> impl Iterator<Item = ServiceId> + '_ {
        self.services.gone().map(ServiceId)
    }

    /// Real servers that the last model no longer named and that were not released, ascending.
    pub fn gone_servers(&self) -> impl Iterator<Item = RealServerId> + '_ {
        self.servers.gone().map(RealServerId)
    }

    /// How many services with new names can come before ids have to be released.
    pub fn services_left(&self) -> usize {
        self.services.left()
    }

    /// Nothing holds the id of this gone service any more: no connection, no worker's snapshot, no persistence entry
    /// ([`crate::persistence::PersistenceTable::forget_service`]). Returns whether it was gone; one in use stays.
    pub fn release_service(&mut self, id: ServiceId) -> bool {
        self.services.release(id.0)
    }

    /// Nothing holds the id of this gone server any more: no connection, no worker's snapshot, no persistence entry
    /// ([`crate::persistence::PersistenceTable::forget_server`]). Returns whether it was gone; one in use stays.
    pub fn release_server(&mut self, id: RealServerId) -> bool {
        self.servers.release(id.0)
    }

    /// From here on the names of a new model are taken; those not taken are gone.
    pub(crate) fn begin(&mut self) {
        self.services.begin();
        self.servers.begin();
    }

    pub(crate) fn take_service(&mut self, name: &str) -> Result<ServiceId, RegistryFull> {
        self.services.take(name).map(ServiceId)
    }

    pub(crate) fn take_server(&mut self, address: IpAddr, port: Option<u16>) -> Result<RealServerId, RegistryFull> {
        self.servers.take(&(address, port)).map(RealServerId)
    }

    pub(crate) fn check(&self, key: &CheckKey) -> Option<CheckId> {
        self.checks.get(key).copied()
    }

    pub(crate) fn take_check(&mut self, key: &CheckKey) -> Result<CheckId, RegistryFull> {
        if let Some(id) = self.check(key) {
            return Ok(id);
        }
        if self.checks.len() >= CHECKS_MAX {
            return Err(RegistryFull { max: CHECKS_MAX, gone: 0 });
        }
        let id = CheckId(self.checks_given);
        self.checks_given = self.checks_given.checked_add(1).expect("four thousand million checks outlive no process");
        self.checks.insert(key.clone(), id);
        Ok(id)
    }

    pub(crate) fn retain_checks(&mut self, keep: impl Fn(CheckId) -> bool) {
        self.checks.retain(|_, id| keep(*id));
    }
}

/// Ids 0 to `max` - 1 of one kind.
#[derive(Clone, Debug)]
struct Ids<Name> {
    by_name: HashMap<Name, u16>,
    /// Whether the latest model names it; by id. Also the number of ids ever given.
    live: Vec<bool>,
    /// Released ids; the one released longest ago is given first.
    free: VecDeque<u16>,
    max: usize,
    first: Next,
}

/// Which ids are given first.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// Those never given: a released one rests as long as possible.
    Fresh,
    /// Released ones: each that was given has memory of its own.
    Released,
}

impl<Name: Eq + Hash> Ids<Name> {
    fn new(max: usize, first: Next) -> Ids<Name> {
        Ids { by_name: HashMap::new(), live: Vec::new(), free: VecDeque::new(), max, first }
    }

    fn begin(&mut self) {
        self.live.fill(false);
    }

    fn take<Q>(&mut self, name: &Q) -> Result<u16, RegistryFull>
    where
        Name: std::borrow::Borrow<Q>,
        Q: ?Sized + Eq + Hash + ToOwned<Owned = Name>,
    {
        let id = match self.by_name.get(name) {
            Some(&id) => id,
            None => {
                let id = self.next()?;
                self.by_name.insert(name.to_owned(), id);
                id
            }
        };
        self.live[usize::from(id)] = true;
        Ok(id)
    }

    fn next(&mut self) -> Result<u16, RegistryFull> {
        if matches!(self.first, Next::Released)
            && let Some(id) = self.free.pop_front()
        {
            return Ok(id);
        }
        if self.live.len() < self.max {
            self.live.push(false);
            return Ok((self.live.len() - 1) as u16);
        }
        self.free.pop_front().ok_or_else(|| RegistryFull { max: self.max, gone: self.gone().count() })
    }

    fn left(&self) -> usize {
        self.max - self.live.len() + self.free.len()
    }

    fn gone(&self) -> impl Iterator<Item = u16> + '_ {
        let mut gone: Vec<u16> = self.by_name.values().copied().filter(|&id| !self.live[usize::from(id)]).collect();
        gone.sort_unstable();
        gone.into_iter()
    }

    fn release(&mut self, id: u16) -> bool {
        let held = self.by_name.len();
        let live = &self.live;
        self.by_name.retain(|_, of| *of != id || live[usize::from(id)]);
        let released = self.by_name.len() < held;
        if released {
            self.free.push_back(id);
        }
        released
    }
}
