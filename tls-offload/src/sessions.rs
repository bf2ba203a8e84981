//! Sessions that are kept in memory: of clients (instead of tickets), and ours with a real server.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;
use rustls::server::StoresServerSessions;
use zeroize::Zeroizing;

/// Parts of a cache, so that workers seldom meet at a lock.
const SHARDS: usize = 16;
/// Largest session that is kept: one without client certificates has about 200 bytes.
const SESSION_BYTES_MAX: usize = 16 * 1024;

/// Where the sessions of a context are, beside its tickets.
#[derive(Clone)]
pub(crate) enum ServerSessions {
    /// Here, for who has the same binding.
    Cache { binding: [u8; 32], cache: Arc<SessionCache> },
    /// Nowhere.
    None,
}

impl ServerSessions {
    /// The cache, if it is one of this kind.
    pub(crate) fn cache_of(
        &self,
        wanted: &[u8; 32],
        sessions_max: usize,
        lifetime: Duration,
    ) -> Option<Arc<SessionCache>> {
        match self {
            ServerSessions::Cache { binding, cache } => {
                let fits = binding == wanted && cache.sessions_max == sessions_max && cache.lifetime == lifetime;
                fits.then(|| Arc::clone(cache))
            }
            ServerSessions::None => None,
        }
    }
}

/// Sessions of clients of one service.
pub(crate) struct SessionCache {
    sessions_max: usize,
    lifetime: Duration,
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    sessions: HashMap<Vec<u8>, Stored>,
    /// Oldest first; may name sessions that are gone.
    order: VecDeque<Vec<u8>>,
}

struct Stored {
    value: Zeroizing<Vec<u8>>,
    at: Instant,
}

impl SessionCache {
    pub(crate) fn new(sessions_max: usize, lifetime: Duration) -> SessionCache {
        SessionCache { sessions_max, lifetime, hasher: RandomState::new(), shards: Default::default() }
    }

    fn shard(&self, key: &[u8]) -> MutexGuard<'_, Shard> {
        let shard = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions_max_of_shard(&self) -> usize {
        self.sessions_max.div_ceil(SHARDS)
    }

    fn fresh(&self, stored: &Stored) -> Option<Vec<u8>> {
        (stored.at.elapsed() <= self.lifetime).then(|| stored.value.to_vec())
    }
}

impl StoresServerSessions for SessionCache {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        if value.len() > SESSION_BYTES_MAX || self.sessions_max == 0 {
            return false;
        }
        let mut shard = self.shard(&key);
        while shard.order.len() >= self.sessions_max_of_shard() {
            let Some(oldest) = shard.order.pop_front() else { break };
            shard.sessions.remove(&oldest);
        }
        shard.order.push_back(key.clone());
        shard.sessions.insert(key, Stored { value: Zeroizing::new(value), at: Instant::now() });
        true
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.fresh(self.shard(key).sessions.get(key)?)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        let stored = self.shard(key).sessions.remove(key)?;
        self.fresh(&stored)
    }

    fn can_cache(&self) -> bool {
        self.sessions_max > 0
    }
}

impl fmt::Debug for SessionCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionCache").field("sessions_max", &self.sessions_max).finish_non_exhaustive()
    }
}

/// Our sessions with one real server, by the name that we asked for.
pub(crate) struct ClientSessions {
    sessions_max: usize,
    kept: Mutex<Kept>,
}

/// Each oldest first, and no longer than `sessions_max`.
#[derive(Default)]
struct Kept {
    groups: VecDeque<(ServerName<'static>, NamedGroup)>,
    tls12: VecDeque<(ServerName<'static>, Tls12ClientSessionValue)>,
    tls13: VecDeque<(ServerName<'static>, Tls13ClientSessionValue)>,
}

impl ClientSessions {
    pub(crate) fn new(sessions_max: usize) -> ClientSessions {
        ClientSessions { sessions_max, kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push<V>(&self, kept: &mut VecDeque<(ServerName<'static>, V)>, name: ServerName<'static>, value: V) {
        while kept.len() >= self.sessions_max {
            kept.pop_front();
        }
        kept.push_back((name, value));
    }
}

/// The newest of a name.
fn newest<'k, V>(kept: &'k VecDeque<(ServerName<'static>, V)>, name: &ServerName<'_>) -> Option<&'k V> {
    kept.iter().rev().find(|(of, _)| of == name).map(|(_, value)| value)
}

impl ClientSessionStore for ClientSessions {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        let groups = &mut self.kept().groups;
        groups.retain(|(of, _)| *of != name);
        self.push(groups, name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        newest(&self.kept().groups, name).copied()
    }

    fn set_tls12_session(&self, name: ServerName<'static>, value: Tls12ClientSessionValue) {
        let sessions = &mut self.kept().tls12;
        sessions.retain(|(of, _)| *of != name);
        self.push(sessions, name, value);
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        newest(&self.kept().tls12, name).cloned()
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        self.kept().tls12.retain(|(of, _)| of != name);
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.push(&mut self.kept().tls13, name, value);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let tickets = &mut self.kept().tls13;
        // A ticket is used once, so that nobody on the way can tell two connections to be ours (RFC 8446 appendix C.4).
        let newest = tickets.iter().rposition(|(of, _)| of == name)?;
        tickets.remove(newest).map(|(_, value)| value)
    }
}

impl fmt::Debug for ClientSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSessions").field("sessions_max", &self.sessions_max).finish_non_exhaustive()
    }
}
