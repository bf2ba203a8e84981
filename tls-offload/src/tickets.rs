//! Tickets: sessions that clients keep for us, under keys that all workers share and that a second machine can share.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{hkdf, rand};
use rustls::server::ProducesTickets;
use thiserror::Error;
use zeroize::Zeroizing;

/// Fewest bytes of a secret that machines share.
pub const SECRET_BYTES_MIN: usize = 32;
/// Most bytes of a secret that machines share.
pub const SECRET_BYTES_MAX: usize = 1024;
/// How far the clock of a machine that shares our secret may be ahead of ours, in seconds.
const SKEW_S: u64 = 300;

const EPOCH_BYTES: usize = 8;
const ISSUED_BYTES: usize = 8;

type Secret = Zeroizing<[u8; 32]>;

/// What ticket keys of all services are derived from. A key lives for one epoch of the lifetime and is accepted during the next.
pub struct TicketKeys {
    lifetime_s: u64,
    source: Source,
    /// Whose tickets are accepted too, and no longer given out.
    before: Option<Arc<TicketKeys>>,
}

enum Source {
    /// Drawn for each epoch, and forgotten with it: who takes the machine later cannot open what was recorded.
    Drawn(Mutex<BTreeMap<u64, Secret>>),
    /// Given: who has it can open every session that a ticket was given for, until it is changed.
    Given(Zeroizing<Vec<u8>>),
}

/// A secret of the wrong size.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "{bytes} bytes are no ticket secret; it has {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} random ones: `openssl rand -out FILE 48`"
)]
pub struct SecretError {
    /// Its bytes.
    pub bytes: usize,
}

impl TicketKeys {
    /// Keys of this process alone, for sessions that may be resumed for `lifetime` (whole seconds, at least one).
    pub fn drawn(lifetime: Duration) -> TicketKeys {
        TicketKeys { lifetime_s: lifetime.as_secs().max(1), source: Source::Drawn(Mutex::default()), before: None }
    }

    /// Keys that every machine with the same secret and lifetime has.
    pub fn shared(secret: &[u8], lifetime: Duration) -> Result<TicketKeys, SecretError> {
        if !(SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&secret.len()) {
            return Err(SecretError { bytes: secret.len() });
        }
        let source = Source::Given(Zeroizing::new(secret.to_vec()));
        Ok(TicketKeys { lifetime_s: lifetime.as_secs().max(1), source, before: None })
    }

    /// Accepts the tickets of `before` too, so that a new secret does not end all sessions at once. What `before` itself accepted is let go.
    pub fn after(mut self, before: &Arc<TicketKeys>) -> TicketKeys {
        // A chain of more than one would grow with each reload.
        self.before = Some(match &before.before {
            None => Arc::clone(before),
            Some(_) => Arc::new(before.alone()),
        });
        self
    }

    /// Whether the same tickets come from `self` as from a secret: nothing has to be made anew.
    pub fn is_of(&self, secret: Option<&[u8]>, lifetime: Duration) -> bool {
        let same_source = match (&self.source, secret) {
            (Source::Drawn(_), None) => true,
            (Source::Given(own), Some(secret)) => own.as_slice() == secret,
            _ => false,
        };
        same_source && self.lifetime_s == lifetime.as_secs().max(1)
    }

    fn alone(&self) -> TicketKeys {
        let source = match &self.source {
            Source::Drawn(drawn) => Source::Drawn(Mutex::new(lock(drawn).clone())),
            Source::Given(secret) => Source::Given(secret.clone()),
        };
        TicketKeys { lifetime_s: self.lifetime_s, source, before: None }
    }

    fn epoch(&self, now_s: u64) -> u64 {
        now_s / self.lifetime_s
    }

    /// The key of a service in an epoch, of which now is `now_epoch`. `None` = such tickets are not accepted (any more).
    fn key(&self, binding: &[u8; 32], epoch: u64, now_epoch: u64) -> Option<LessSafeKey> {
        let label: &[&[u8]] = &[b"towpath ticket 1", binding, &epoch.to_be_bytes()];
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"towpath tickets");
        let secret = match &self.source {
            Source::Given(secret) => salt.extract(secret),
            Source::Drawn(drawn) => {
                let mut drawn = lock(drawn);
                drawn.retain(|&epoch, _| epoch + 1 >= now_epoch);
                if let Entry::Vacant(place) = drawn.entry(epoch) {
                    // What nobody has been given a ticket with is not drawn because somebody asks for it.
                    if epoch != now_epoch {
                        return None;
                    }
                    let mut secret = Secret::default();
                    rand::fill(secret.as_mut_slice()).ok()?;
                    place.insert(secret);
                }
                salt.extract(drawn.get(&epoch)?.as_slice())
            }
        };
        let key = secret.expand(label, &AES_256_GCM_SIV).ok()?;
        Some(LessSafeKey::new(UnboundKey::from(key)))
    }
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKeys").field("lifetime_s", &self.lifetime_s).finish_non_exhaustive()
    }
}

/// The tickets of one service and client-certificate policy: a ticket of another does not open.
///
/// A ticket is the epoch, a random nonce, and sealed with both (RFC 8452, where a nonce drawn twice does no harm) the time and the session.
#[derive(Debug)]
pub(crate) struct Tickets {
    own: Ring,
    before: Option<Ring>,
    clock: fn() -> u64,
}

/// The keys of one secret that were used of late.
#[derive(Debug)]
struct Ring {
    keys: Arc<TicketKeys>,
    binding: [u8; 32],
    /// By epoch; three at most: the last, this and the next.
    derived: RwLock<Vec<(u64, Arc<LessSafeKey>)>>,
}

impl Tickets {
    pub(crate) fn new(keys: Arc<TicketKeys>, binding: &[u8; 32]) -> Tickets {
        Tickets::with_clock(keys, binding, unix_s)
    }

    fn with_clock(keys: Arc<TicketKeys>, binding: &[u8; 32], clock: fn() -> u64) -> Tickets {
        let before = keys.before.as_ref().map(|before| Ring::new(Arc::clone(before), binding));
        Tickets { own: Ring::new(keys, binding), before, clock }
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(self.own.keys.lifetime_s).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.own.seal(plain, (self.clock)())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let now_s = (self.clock)();
        self.own.open(ticket, now_s).or_else(|| self.before.as_ref()?.open(ticket, now_s))
    }
}

impl Ring {
    fn new(keys: Arc<TicketKeys>, binding: &[u8; 32]) -> Ring {
        Ring { keys, binding: *binding, derived: RwLock::default() }
    }

    fn seal(&self, plain: &[u8], now_s: u64) -> Option<Vec<u8>> {
        let epoch = self.keys.epoch(now_s);
        let key = self.key(epoch, epoch)?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let head = EPOCH_BYTES + NONCE_LEN;
        let mut ticket = Vec::with_capacity(head + ISSUED_BYTES + plain.len() + AES_256_GCM_SIV.tag_len());
        ticket.extend(epoch.to_be_bytes());
        ticket.extend(nonce);
        ticket.extend(now_s.to_be_bytes());
        ticket.extend(plain);
        let aad = Aad::from(epoch.to_be_bytes());
        let tag = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut ticket[head..]).ok()?;
        ticket.extend(tag.as_ref());
        Some(ticket)
    }

    fn open(&self, ticket: &[u8], now_s: u64) -> Option<Vec<u8>> {
        let (epoch_bytes, rest) = ticket.split_first_chunk::<EPOCH_BYTES>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let (epoch, now_epoch) = (u64::from_be_bytes(*epoch_bytes), self.keys.epoch(now_s));
        if epoch.abs_diff(now_epoch) > 1 {
            return None;
        }
        let key = self.key(epoch, now_epoch)?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = key.open_in_place(nonce, Aad::from(*epoch_bytes), &mut sealed).ok()?;
        let (issued, plain) = opened.split_first_chunk::<ISSUED_BYTES>()?;
        let issued_s = u64::from_be_bytes(*issued);
        let is_fresh =
            issued_s <= now_s.saturating_add(SKEW_S) && now_s.saturating_sub(issued_s) <= self.keys.lifetime_s;
        is_fresh.then(|| plain.to_vec())
    }

    fn key(&self, epoch: u64, now_epoch: u64) -> Option<Arc<LessSafeKey>> {
        let find = |derived: &[(u64, Arc<LessSafeKey>)]| {
            derived.iter().find(|(of, _)| *of == epoch).map(|(_, key)| Arc::clone(key))
        };
        if let Some(key) = find(&self.derived.read().unwrap_or_else(PoisonError::into_inner)) {
            return Some(key);
        }
        let mut derived = self.derived.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = find(&derived) {
            return Some(key);
        }
        let key = Arc::new(self.keys.key(&self.binding, epoch, now_epoch)?);
        derived.retain(|(of, _)| of.abs_diff(now_epoch) <= 1);
        derived.push((epoch, Arc::clone(&key)));
        Some(key)
    }
}

fn lock(drawn: &Mutex<BTreeMap<u64, Secret>>) -> std::sync::MutexGuard<'_, BTreeMap<u64, Secret>> {
    drawn.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
