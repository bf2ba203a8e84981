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
        let before = keys.before.as_ref().map(|before| Ring::new(Arc::clone(before), binding));
        Tickets { own: Ring::new(keys, binding), before }
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
        self.own.seal(plain, unix_s())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let now_s = unix_s();
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

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIME_S: u64 = 3600;
    const BINDING: [u8; 32] = [1; 32];

    fn shared() -> Arc<TicketKeys> {
        Arc::new(TicketKeys::shared(&[7; 48], Duration::from_secs(LIFETIME_S)).expect("a secret"))
    }

    fn drawn() -> Arc<TicketKeys> {
        Arc::new(TicketKeys::drawn(Duration::from_secs(LIFETIME_S)))
    }

    /// Somewhere in the middle of an epoch.
    const NOW_S: u64 = 1_000 * LIFETIME_S + 1_800;

    #[test]
    fn a_ticket_opens_for_its_lifetime_and_not_a_second_longer() {
        for keys in [shared(), drawn()] {
            let ring = Ring::new(keys, &BINDING);
            // Given out at the beginning, in the middle and at the end of an epoch.
            for at_s in [NOW_S - 1_800, NOW_S, NOW_S + 1_799] {
                let ticket = ring.seal(b"session", at_s).expect("a ticket");
                for (later_s, opens) in
                    [(0, true), (LIFETIME_S, true), (LIFETIME_S + 1, false), (3 * LIFETIME_S, false)]
                {
                    let plain = ring.open(&ticket, at_s + later_s);
                    assert_eq!(plain.as_deref() == Some(b"session"), opens, "{at_s} {later_s}");
                }
            }
        }
    }

    #[test]
    fn a_clock_that_is_a_little_ahead_elsewhere_does_no_harm() {
        let (here, there) = (Ring::new(shared(), &BINDING), Ring::new(shared(), &BINDING));
        for (ahead_s, opens) in [(SKEW_S, true), (SKEW_S + 1, false), (2 * LIFETIME_S, false)] {
            let ticket = there.seal(b"session", NOW_S + ahead_s).expect("a ticket");
            assert_eq!(here.open(&ticket, NOW_S).is_some(), opens, "{ahead_s}");
        }
        // Across the end of an epoch.
        let end_s = NOW_S + 1_799;
        let ticket = there.seal(b"session", end_s + 10).expect("a ticket");
        assert!(here.open(&ticket, end_s).is_some());
    }

    #[test]
    fn a_drawn_secret_is_forgotten_with_its_epoch() {
        let keys = drawn();
        let ring = Ring::new(Arc::clone(&keys), &BINDING);
        let epochs = || match &keys.source {
            Source::Drawn(drawn) => lock(drawn).keys().copied().collect::<Vec<_>>(),
            Source::Given(_) => Vec::new(),
        };
        for later in 0..5 {
            ring.seal(b"session", NOW_S + later * LIFETIME_S).expect("a ticket");
        }
        assert_eq!(epochs(), [1_003, 1_004]);
        assert_eq!(ring.derived.read().expect("no panic").len(), 2);
        // Nobody makes us draw for another time by asking.
        let mut forged = ring.seal(b"session", NOW_S + 4 * LIFETIME_S).expect("a ticket");
        forged[..EPOCH_BYTES].copy_from_slice(&1_005_u64.to_be_bytes());
        assert_eq!(ring.open(&forged, NOW_S + 4 * LIFETIME_S), None);
        assert_eq!(epochs(), [1_003, 1_004]);
    }

    #[test]
    fn a_changed_cut_or_foreign_ticket_does_not_open() {
        let ring = Ring::new(shared(), &BINDING);
        let ticket = ring.seal(b"session", NOW_S).expect("a ticket");
        for place in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[place] ^= 1;
            assert_eq!(ring.open(&changed, NOW_S), None, "octet {place}");
            assert_eq!(ring.open(&ticket[..place], NOW_S), None, "cut to {place}");
        }
        assert_eq!(Ring::new(shared(), &[2; 32]).open(&ticket, NOW_S), None);
        assert_eq!(ring.open(&ticket, NOW_S).as_deref(), Some(&b"session"[..]));
        assert_ne!(ring.seal(b"session", NOW_S), ring.seal(b"session", NOW_S), "a nonce each");
    }

    #[test]
    fn secrets_have_a_size_and_are_not_shown() {
        for bytes in [0, SECRET_BYTES_MIN - 1, SECRET_BYTES_MAX + 1] {
            let error = TicketKeys::shared(&vec![b'x'; bytes], Duration::from_secs(60)).expect_err("no secret");
            assert_eq!(error, SecretError { bytes });
        }
        let keys = Arc::new(TicketKeys::shared(&[b'x'; 32], Duration::from_secs(60)).expect("a secret"));
        let tickets = Tickets::new(Arc::clone(&keys), &BINDING);
        assert_eq!(tickets.lifetime(), 60);
        let shown = format!("{keys:?}");
        assert!(!shown.contains("120") && !shown.contains('x'), "{shown}");
        assert!(keys.is_of(Some(&[b'x'; 32]), Duration::from_secs(60)));
        assert!(!keys.is_of(Some(&[b'x'; 32]), Duration::from_secs(61)) && !keys.is_of(None, Duration::from_secs(60)));
    }
}
