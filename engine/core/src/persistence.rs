//! Which real server a client comes back to: a bounded table by service and what makes a client.

use std::hash::Hasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use towpath_config::model::{PersistBy, Persistence};

use crate::client_hello::SessionId;
use crate::http::RequestHead;
use crate::ids::{RealServerId, ServiceId};
use crate::random::{hash_address, mix};
use crate::snapshot::Service;
use crate::time::Now;

/// Tables into which the engine divides the clients, each with a lock of its own.
pub const PERSISTENCE_STRIPES: usize = 64;

/// Entries that each new one looks at for expired ones, so that these leave without a timer.
const SWEEP_PER_RECORD: usize = 2;

/// A client of a service: all its connections, to whichever port and over whichever worker, have this key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PersistenceKey {
    service: ServiceId,
    who: Who,
}

/// What makes the client. No larger than an address: an entry holds one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Who {
    /// Its address, cut to a prefix.
    Address(IpAddr),
    /// Hash of what its requests say.
    Fingerprint(Fingerprint),
}

/// Hash of what makes a client, under a secret: nobody can aim at another's.
pub type Fingerprint = [u8; 16];

impl PersistenceKey {
    /// The key of `client`: its address cut to the prefix length of its family. An IPv4-mapped IPv6 address is an IPv4 client.
    pub fn new(service: ServiceId, client: IpAddr, rule: &Persistence) -> PersistenceKey {
        PersistenceKey { service, who: Who::Address(prefix(client, rule)) }
    }

    /// The key of a client that is known by what its requests say.
    pub fn of_fingerprint(service: ServiceId, fingerprint: Fingerprint) -> PersistenceKey {
        PersistenceKey { service, who: Who::Fingerprint(fingerprint) }
    }

    /// The place whose clients it is of ([`Service::pins`]).
    pub fn service(&self) -> ServiceId {
        self.service
    }

    /// The address, cut to its prefix, that makes this client, if that is what does.
    pub fn address(&self) -> Option<IpAddr> {
        match self.who {
            Who::Address(address) => Some(address),
            Who::Fingerprint(_) => None,
        }
    }

    /// The hash that makes this client, if that is what does.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        match self.who {
            Who::Address(_) => None,
            Who::Fingerprint(fingerprint) => Some(fingerprint),
        }
    }

    /// The stripe of this key, below [`PERSISTENCE_STRIPES`]. `seed` is one per process and secret, so that clients cannot crowd one.
    pub fn stripe(&self, seed: u64) -> usize {
        let hash = match self.who {
            Who::Address(prefix) => hash_address(prefix, seed),
            Who::Fingerprint([a, b, c, d, e, f, g, h, ..]) => mix(u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ seed),
        };
        (mix(hash ^ u64::from(self.service.0)) % PERSISTENCE_STRIPES as u64) as usize
    }
}

/// An address cut to the prefix length of its family.
pub(crate) fn prefix(client: IpAddr, rule: &Persistence) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(u32::from(rule.ipv4_prefix))).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(u32::from(rule.ipv6_prefix))).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    }
}

/// Which server a client should come back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// The one that its entry names, if it has one; the one that takes it now is remembered.
    Key(PersistenceKey),
    /// None: it is balanced, and nothing is remembered.
    Nobody,
    /// The one that its entry names, if it has one; else nothing is remembered: what the client shows may mean nothing.
    Offered(PersistenceKey),
    /// This one: the client said so itself, by a cookie of ours. Nothing is remembered.
    Server(RealServerId),
}

impl Pin {
    /// By the client's address alone, where the service goes by it at all.
    pub fn of_address(service: &Service, client: IpAddr) -> Pin {
        match &service.persistence {
            Some(rule) if rule.by.contains(&PersistBy::SourceIp) => {
                Pin::Key(PersistenceKey::new(service.pins, client, rule))
            }
            _ => Pin::Nobody,
        }
    }

    /// The stripe whose table [`crate::director::pick_pinned`] must be given; 0 where it looks at none.
    pub fn stripe(&self, seed: u64) -> usize {
        match self {
            Pin::Key(key) | Pin::Offered(key) => key.stripe(seed),
            Pin::Nobody | Pin::Server(_) => 0,
        }
    }
}

/// Most things that one rule knows clients by, as `persistence.by` may name.
pub const KINDS_MAX: usize = 4;

/// What was seen of a client before it gets a server.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Its address.
    pub address: IpAddr,
    /// The `Call-ID` of its first SIP message.
    pub call_id: Option<&'a [u8]>,
    /// Its request, in HTTP mode.
    pub request: Option<&'a RequestHead>,
    /// The name that it has asked for by TLS.
    pub server_name: Option<&'a str>,
    /// The session that it offers by TLS that passes through.
    pub session: Option<SessionId>,
}

impl Seen<'_> {
    /// Nothing but its address.
    pub fn of_address(address: IpAddr) -> Seen<'static> {
        Seen { address, call_id: None, request: None, server_name: None, session: None }
    }
}

/// What a client is known by, in the order of the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pins: [Pin; KINDS_MAX],
}

impl Known {
    /// By nothing: it is balanced.
    pub const NOTHING: Known = Known { pins: [Pin::Nobody; KINDS_MAX] };

    /// By these; what is more than [`KINDS_MAX`] is left out.
    pub fn by(found: impl IntoIterator<Item = Pin>) -> Known {
        let mut known = Known::NOTHING;
        for (place, pin) in known.pins.iter_mut().zip(found) {
            *place = pin;
        }
        known
    }

    /// Which of them leads it back: the first, but one that it only offers must be `remembered`, and a server that it names must be one that `takes` it:
    /// where it has gone, what else the client is known by may lead all of its requests to one other.
    pub fn decides(
        &self,
        mut remembered: impl FnMut(PersistenceKey) -> bool,
        mut takes: impl FnMut(RealServerId) -> bool,
    ) -> Pin {
        let leads = |pin: &Pin| match pin {
            Pin::Key(_) => true,
            Pin::Nobody => false,
            Pin::Offered(key) => remembered(*key),
            Pin::Server(server) => takes(*server),
        };
        let gone = self.named().map_or(Pin::Nobody, Pin::Server);
        self.pins.iter().copied().find(leads).unwrap_or(gone)
    }

    /// The keys that it shows, under which the server that it gets may be remembered.
    pub fn keys(&self) -> impl Iterator<Item = PersistenceKey> {
        self.pins.iter().filter_map(|pin| if let Pin::Key(key) = pin { Some(*key) } else { None })
    }

    /// The server that it names by a cookie of ours.
    pub fn named(&self) -> Option<RealServerId> {
        self.pins.iter().find_map(|pin| if let Pin::Server(server) = pin { Some(*server) } else { None })
    }
}

impl Service {
    /// Whether a client that comes back to this server may be sent there.
    pub fn takes_back(&self, server: RealServerId) -> bool {
        let target = self.target_of(server).map(|(_, target)| target);
        self.persistence.as_ref().zip(target).is_some_and(|(rule, target)| target.takes_pinned(rule))
    }

    /// What a client is known by that shows this.
    pub fn known(&self, seen: &Seen<'_>) -> Known {
        let Some(rule) = &self.persistence else { return Known::NOTHING };
        Known::by(rule.by.iter().filter_map(|by| match by {
            PersistBy::SipCallId => seen.call_id.map(|id| Pin::Key(self.call(id))),
            PersistBy::Sni => seen.server_name.map(|name| Pin::Key(self.hashed(b'n', name.as_bytes()))),
            PersistBy::SourceIp => Some(Pin::Key(PersistenceKey::new(self.pins, seen.address, rule))),
            PersistBy::TlsSessionId => seen.session.map(|id| Pin::Offered(self.hashed(b't', id.as_bytes()))),
            PersistBy::FoundCookie(_)
            | PersistBy::Header(_)
            | PersistBy::InsertedCookie(_)
            | PersistBy::SuperHttp
            | PersistBy::SuperHttpAndSourceIp => self.pin(by, seen.request?, seen.address),
        }))
    }

    /// The client that is given this session by its server, if clients are known by theirs. `offered` is what it has shown itself: said back
    /// beside a ticket it was made up and means nothing.
    pub fn learns_session(&self, given: SessionId, offered: Option<SessionId>, ticket: bool) -> Option<PersistenceKey> {
        let rule = self.persistence.as_ref()?;
        let is_made_up = ticket && offered == Some(given);
        let wanted = rule.by.contains(&PersistBy::TlsSessionId) && !is_made_up;
        wanted.then(|| self.hashed(b't', given.as_bytes()))
    }

    /// Whether clients are known by their calls.
    pub fn knows_calls(&self) -> bool {
        self.persistence.as_ref().is_some_and(|rule| rule.by.contains(&PersistBy::SipCallId))
    }

    /// Whoever takes part in the call with this `Call-ID`.
    pub fn call(&self, call_id: &[u8]) -> PersistenceKey {
        self.hashed(b'i', call_id)
    }

    fn hashed(&self, purpose: u8, bytes: &[u8]) -> PersistenceKey {
        PersistenceKey::of_fingerprint(self.pins, self.secret.hash(purpose, |hasher| hasher.write(bytes)))
    }
}

/// The stripe whose table [`crate::director::pick`] must be given for `client`; 0 for a service without persistence.
pub fn key_stripe(service: &Service, client: IpAddr, seed: u64) -> usize {
    Pin::of_address(service, client).stripe(seed)
}

/// Entries of one stripe, for one thread at a time. Allocated as a whole at the start (48 bytes an entry, 4 to 8 for its bucket);
/// when it is full, the entry refreshed longest ago gives way.
#[derive(Debug)]
pub struct PersistenceTable {
    capacity: u32,
    /// First entry of each chain, as its number + 1; 0 = none. The length is a power of two.
    buckets: Vec<Link>,
    entries: Vec<Entry>,
    /// First of the entries without a key, chained by `chain`.
    free: Link,
    /// Refreshed last and first of those in use.
    newest: Link,
    oldest: Link,
    len: u32,
    /// Where the search for expired entries goes on.
    hand: u32,
    seed: u64,
    evicted: u64,
}

/// Number of an entry + 1, or 0 for none: so that fresh memory is an empty table.
type Link = u32;

const NONE: Link = 0;

/// An entry as it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// The client.
    pub key: PersistenceKey,
    /// Its server.
    pub server: RealServerId,
    /// The last moment at which the entry lives.
    pub expires: Now,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// `None` = free.
    key: Option<PersistenceKey>,
    server: RealServerId,
    /// The last moment at which it lives.
    expires: Now,
    chain: Link,
    newer: Link,
    older: Link,
}

impl PersistenceTable {
    /// A table for `capacity` entries. With a capacity of 0 it remembers nobody. `seed` is secret, so that clients cannot aim
    /// at one bucket.
    pub fn new(capacity: u32, seed: u64) -> PersistenceTable {
        // Links are numbers + 1.
        let capacity = capacity.min(Link::MAX - 1);
        PersistenceTable {
            capacity,
            buckets: vec![NONE; (capacity as usize).next_power_of_two()],
            entries: Vec::with_capacity(capacity as usize),
            free: NONE,
            newest: NONE,
            oldest: NONE,
            len: 0,
            hand: 0,
            seed,
            evicted: 0,
        }
    }

    /// The server of this client, if its entry lives: it does up to and including the moment it expires.
    pub fn lookup(&mut self, key: PersistenceKey, now: Now) -> Option<RealServerId> {
        let link = self.find(key)?;
        let entry = self.entry(link);
        if entry.expires < now {
            self.remove(link);
            return None;
        }
        Some(entry.server)
    }

    /// The entry of this client, if it lives; nothing changes by that.
    pub fn peek(&self, key: PersistenceKey, now: Now) -> Option<Remembered> {
        let Entry { server, expires, .. } = *self.entry(self.find(key)?);
        (expires >= now).then_some(Remembered { key, server, expires })
    }

    /// Tells `found` of the entries that live at the next `places`, from `at` on. Where to go on; `None`: that was the end.
    pub fn survey(&self, at: usize, places: usize, now: Now, mut found: impl FnMut(Remembered)) -> Option<usize> {
        let end = at.saturating_add(places).min(self.entries.len());
        for &Entry { key, server, expires, .. } in self.entries.get(at..end).unwrap_or_default() {
            if let Some(key) = key.filter(|_| expires >= now) {
                found(Remembered { key, server, expires });
            }
        }
        (end < self.entries.len()).then_some(end)
    }

    /// Removes the entries that `goes` names at the next `places`, from `at` on; how many of those lived. Where to go on; `None`: that was the end.
    pub fn forget_some(
        &mut self,
        at: usize,
        places: usize,
        now: Now,
        mut goes: impl FnMut(Remembered) -> bool,
    ) -> (usize, Option<usize>) {
        let end = at.saturating_add(places).min(self.entries.len());
        let mut gone = 0;
        for place in at..end {
            let Entry { key, server, expires, .. } = self.entries[place];
            if let Some(key) = key
                && goes(Remembered { key, server, expires })
            {
                gone += usize::from(expires >= now);
                self.remove((place + 1) as Link);
            }
        }
        (gone, (end < self.entries.len()).then_some(end))
    }

    /// From now until `expires` this client belongs to `server`. When the table is full the entry refreshed longest ago is lost.
    pub fn record(&mut self, key: PersistenceKey, server: RealServerId, expires: Now, now: Now) {
        if self.capacity == 0 {
            return;
        }
        if let Some(link) = self.find(key) {
            let entry = &mut self.entries[place(link)];
            entry.server = server;
            entry.expires = expires;
            self.unlink(link);
            self.link_newest(link);
            return;
        }
        self.sweep(now, SWEEP_PER_RECORD);
        let link = self.vacate(now);
        let bucket = self.bucket(key);
        self.entries[place(link)] =
            Entry { key: Some(key), server, expires, chain: self.buckets[bucket], newer: NONE, older: NONE };
        self.buckets[bucket] = link;
        self.link_newest(link);
        self.len += 1;
    }

    /// The same where no entry of this client lives; one that does stays as it is.
    pub fn record_if_absent(&mut self, key: PersistenceKey, server: RealServerId, expires: Now, now: Now) {
        if self.lookup(key, now).is_none() {
            self.record(key, server, expires, now);
        }
    }

    /// Looks at the next `budget` entries in turn and removes those that have expired; how many that were. Keeps
    /// [`PersistenceTable::len`] honest while few clients come.
    pub fn sweep(&mut self, now: Now, budget: usize) -> usize {
        let before = self.len;
        for _ in 0..budget.min(self.entries.len()) {
            let at = self.hand as usize % self.entries.len();
            self.hand = (at + 1) as u32;
            let entry = &self.entries[at];
            if entry.key.is_some() && entry.expires < now {
                self.remove((at + 1) as Link);
            }
        }
        (before - self.len) as usize
    }

    /// Removes every entry of `server`; how many that were. O(capacity): only before the id is given to another server.
    pub fn forget_server(&mut self, server: RealServerId) -> usize {
        self.forget(|entry, _| entry.server == server)
    }

    /// Removes every entry of `service`; how many that were. O(capacity): only before the id is given to another service.
    pub fn forget_service(&mut self, service: ServiceId) -> usize {
        self.forget(|_, key| key.service == service)
    }

    /// Entries now, among them expired ones that nobody has come across yet.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Entries at most.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Entries lost before their time because the table was full, since the start.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn forget(&mut self, goes: impl Fn(&Entry, &PersistenceKey) -> bool) -> usize {
        let before = self.len;
        for at in 0..self.entries.len() {
            let entry = &self.entries[at];
            if entry.key.as_ref().is_some_and(|key| goes(entry, key)) {
                self.remove((at + 1) as Link);
            }
        }
        (before - self.len) as usize
    }

    /// An entry that is in no list: a free one, a fresh one, or the oldest one's.
    fn vacate(&mut self, now: Now) -> Link {
        if self.free == NONE && self.entries.len() == self.capacity() {
            let oldest = self.oldest;
            self.evicted += u64::from(self.entry(oldest).expires >= now);
            self.remove(oldest);
        }
        if self.free != NONE {
            let link = self.free;
            self.free = self.entry(link).chain;
            return link;
        }
        self.entries.push(Entry {
            key: None,
            server: RealServerId(0),
            expires: Now(0),
            chain: NONE,
            newer: NONE,
            older: NONE,
        });
        self.entries.len() as Link
    }

    fn find(&self, key: PersistenceKey) -> Option<Link> {
        let mut link = self.buckets[self.bucket(key)];
        while link != NONE {
            let entry = self.entry(link);
            if entry.key == Some(key) {
                return Some(link);
            }
            link = entry.chain;
        }
        None
    }

    fn bucket(&self, key: PersistenceKey) -> usize {
        // SipHash-1-3 behind a secret first word.
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write_u64(self.seed);
        std::hash::Hash::hash(&key, &mut hasher);
        hasher.finish() as usize & (self.buckets.len() - 1)
    }

    /// Takes an entry in use out of its bucket and the order, and puts it on the free chain.
    fn remove(&mut self, link: Link) {
        let entry = *self.entry(link);
        let key = entry.key.expect("only an entry in use is removed");
        let bucket = self.bucket(key);
        if self.buckets[bucket] == link {
            self.buckets[bucket] = entry.chain;
        } else {
            let mut before = self.buckets[bucket];
            while self.entry(before).chain != link {
                before = self.entry(before).chain;
            }
            self.entries[place(before)].chain = entry.chain;
        }
        self.unlink(link);
        let entry = &mut self.entries[place(link)];
        entry.key = None;
        entry.chain = self.free;
        self.free = link;
        self.len -= 1;
    }

    fn unlink(&mut self, link: Link) {
        let Entry { newer, older, .. } = *self.entry(link);
        match newer {
            NONE => self.newest = older,
            _ => self.entries[place(newer)].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            _ => self.entries[place(older)].newer = newer,
        }
    }

    fn link_newest(&mut self, link: Link) {
        let older = self.newest;
        let entry = &mut self.entries[place(link)];
        entry.newer = NONE;
        entry.older = older;
        match older {
            NONE => self.oldest = link,
            _ => self.entries[place(older)].newer = link,
        }
        self.newest = link;
    }

    fn entry(&self, link: Link) -> &Entry {
        &self.entries[place(link)]
    }
}

fn place(link: Link) -> usize {
    link as usize - 1
}

#[cfg(test)]
mod tests;
