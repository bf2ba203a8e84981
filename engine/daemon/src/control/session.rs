//! Logins of the page: who is logged in, until when, and how fast wrong passwords may be tried. Pure: time is an argument.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use towpath_core::Now;

/// Sessions at the same time; of more, the one that was used longest ago gives way.
pub(super) const SESSIONS_MAX: usize = 128;
/// Addresses whose wrong passwords are counted; of more, the one that was wrong longest ago gives way.
const SOURCES_MAX: usize = 1024;
/// So many wrong passwords cost nothing: people mistype.
const FREE_TRIES: u32 = 5;
/// The wait after the next one; it doubles with each.
const FIRST_WAIT_MS: u64 = 2_000;
/// The longest wait.
const WAIT_MS_MAX: u64 = 5 * 60_000;
/// Wrong passwords are forgotten after so long without another.
const MEMORY_MS: u64 = 15 * 60_000;

/// One login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) user: String,
    /// Sum of what the user was known by: another password ends the session.
    pub(super) known_by: [u8; 32],
    /// What a mutation must say to show that it comes from our page.
    pub(super) csrf: String,
    opened: Now,
    used: Now,
}

/// How long a session may last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lifetime {
    pub(super) idle_ms: u64,
    pub(super) whole_ms: u64,
}

/// Whether a request is something that its user did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// Of the page's own accord.
    Background,
    OfUser,
}

/// Sessions by the sum of their key: who reads our memory has none of the keys.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    open: HashMap<[u8; 32], Session>,
}

impl Sessions {
    /// Opens one. `known_by` is what the user was known by.
    pub(super) fn open(&mut self, key: [u8; 32], user: String, known_by: [u8; 32], csrf: String, now: Now) {
        if self.open.len() >= SESSIONS_MAX
            && let Some(oldest) = self.open.iter().min_by_key(|(_, session)| session.used).map(|(key, _)| *key)
        {
            self.open.remove(&oldest);
        }
        self.open.insert(key, Session { user, known_by, csrf, opened: now, used: now });
    }

    /// The session, unless it is over.
    pub(super) fn find(&mut self, key: &[u8; 32], lifetime: Lifetime, deed: Deed, now: Now) -> Option<&Session> {
        self.sweep(lifetime, now);
        let session = self.open.get_mut(key)?;
        if deed == Deed::OfUser {
            session.used = now;
        }
        Some(session)
    }

    pub(super) fn close(&mut self, key: &[u8; 32]) {
        self.open.remove(key);
    }

    pub(super) fn count(&self) -> usize {
        self.open.len()
    }

    fn sweep(&mut self, lifetime: Lifetime, now: Now) {
        self.open.retain(|_, session| session.idle_left_ms(lifetime, now) > 0);
    }
}

impl Session {
    /// Until it ends for want of use, or at all.
    pub(super) fn idle_left_ms(&self, lifetime: Lifetime, now: Now) -> u64 {
        lifetime.idle_ms.saturating_sub(now.ms_since(self.used)).min(self.left_ms(lifetime, now))
    }

    /// Until it ends at all.
    pub(super) fn left_ms(&self, lifetime: Lifetime, now: Now) -> u64 {
        lifetime.whole_ms.saturating_sub(now.ms_since(self.opened))
    }
}

/// Wrong passwords by where they came from: after a few each costs time, for that source only, so that nobody locks others out.
#[derive(Debug, Default)]
pub(super) struct Tries {
    wrong: HashMap<IpAddr, Wrong>,
}

#[derive(Clone, Copy, Debug)]
struct Wrong {
    count: u32,
    last: Now,
}

/// What became of a wrong password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tried {
    /// It costs nothing yet.
    Free,
    /// The source has to wait from now on, and had not to before.
    FirstWait,
    /// It has to wait again.
    Wait,
}

impl Tries {
    /// For how long this source has to wait before its next try.
    pub(super) fn wait_ms(&self, source: IpAddr, now: Now) -> u64 {
        let Some(wrong) = self.wrong.get(&household(source)) else { return 0 };
        wrong.wait_ms().saturating_sub(now.ms_since(wrong.last))
    }

    /// Takes note of a wrong password.
    pub(super) fn note_wrong(&mut self, source: IpAddr, now: Now) -> Tried {
        let source = household(source);
        self.wrong.retain(|_, wrong| now.ms_since(wrong.last) < MEMORY_MS);
        if self.wrong.len() >= SOURCES_MAX
            && !self.wrong.contains_key(&source)
            && let Some(oldest) = self.wrong.iter().min_by_key(|(_, wrong)| wrong.last).map(|(source, _)| *source)
        {
            self.wrong.remove(&oldest);
        }
        let wrong = self.wrong.entry(source).or_insert(Wrong { count: 0, last: now });
        wrong.count = wrong.count.saturating_add(1);
        wrong.last = now;
        match wrong.count {
            0..FREE_TRIES => Tried::Free,
            FREE_TRIES => Tried::FirstWait,
            _ => Tried::Wait,
        }
    }

    /// The password was right.
    pub(super) fn forgive(&mut self, source: IpAddr) {
        self.wrong.remove(&household(source));
    }
}

impl Wrong {
    fn wait_ms(&self) -> u64 {
        match self.count.checked_sub(FREE_TRIES) {
            None => 0,
            Some(more) => (FIRST_WAIT_MS << more.min(16)).min(WAIT_MS_MAX),
        }
    }
}

/// Whose address it is: a household has a /64 of IPv6 (RFC 6177), and any address of it.
pub(super) fn household(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIME: Lifetime = Lifetime { idle_ms: 1000, whole_ms: 5000 };

    fn opened(now: u64) -> Sessions {
        let mut sessions = Sessions::default();
        sessions.open([1; 32], "alice".to_owned(), [0; 32], "csrf".to_owned(), Now(now));
        sessions
    }

    #[test]
    fn a_session_ends_when_nothing_is_done_or_after_its_time() {
        let mut sessions = opened(0);
        for now in (900..4900).step_by(900) {
            assert!(sessions.find(&[1; 32], LIFETIME, Deed::OfUser, Now(now)).is_some(), "{now}");
        }
        assert!(sessions.find(&[1; 32], LIFETIME, Deed::OfUser, Now(5000)).is_none(), "its time is over");
        let mut sessions = opened(0);
        assert!(sessions.find(&[1; 32], LIFETIME, Deed::Background, Now(900)).is_some());
        assert!(sessions.find(&[1; 32], LIFETIME, Deed::Background, Now(1000)).is_none(), "its user has done nothing");
        assert_eq!(sessions.count(), 0);
        assert!(opened(0).find(&[2; 32], LIFETIME, Deed::OfUser, Now(0)).is_none());
        let mut sessions = opened(0);
        sessions.close(&[1; 32]);
        assert!(sessions.find(&[1; 32], LIFETIME, Deed::OfUser, Now(0)).is_none());
    }

    #[test]
    fn what_is_left_is_the_shorter_of_both() {
        let mut sessions = opened(0);
        let session = sessions.find(&[1; 32], LIFETIME, Deed::Background, Now(400)).unwrap();
        assert_eq!((session.idle_left_ms(LIFETIME, Now(400)), session.left_ms(LIFETIME, Now(400))), (600, 4600));
        for now in (900..4900).step_by(900) {
            sessions.find(&[1; 32], LIFETIME, Deed::OfUser, Now(now)).unwrap();
        }
        let session = sessions.find(&[1; 32], LIFETIME, Deed::OfUser, Now(4600)).unwrap();
        assert_eq!(session.idle_left_ms(LIFETIME, Now(4600)), 400);
    }

    #[test]
    fn the_session_that_was_used_longest_ago_gives_way() {
        let mut sessions = Sessions::default();
        let key = |number: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_be_bytes());
            key
        };
        let long = Lifetime { idle_ms: 1 << 40, whole_ms: 1 << 40 };
        for number in 0..=SESSIONS_MAX {
            sessions.open(key(number), "alice".to_owned(), [0; 32], String::new(), Now(number as u64));
            // The first one is in use.
            sessions.find(&key(0), long, Deed::OfUser, Now(number as u64));
        }
        assert_eq!(sessions.count(), SESSIONS_MAX);
        let is_open = |sessions: &mut Sessions, number| {
            sessions.find(&key(number), long, Deed::Background, Now(SESSIONS_MAX as u64)).is_some()
        };
        assert!(is_open(&mut sessions, 0) && !is_open(&mut sessions, 1) && is_open(&mut sessions, 2));
    }

    #[test]
    fn wrong_passwords_cost_their_source_more_and_more_time_and_nobody_else() {
        let (mut tries, source, other) = (Tries::default(), IpAddr::from([192, 0, 2, 7]), IpAddr::from([192, 0, 2, 8]));
        for _ in 1..FREE_TRIES {
            assert_eq!(tries.note_wrong(source, Now(0)), Tried::Free);
            assert_eq!(tries.wait_ms(source, Now(0)), 0);
        }
        assert_eq!(tries.note_wrong(source, Now(0)), Tried::FirstWait);
        assert_eq!(tries.wait_ms(source, Now(500)), FIRST_WAIT_MS - 500);
        assert_eq!((tries.wait_ms(source, Now(FIRST_WAIT_MS)), tries.wait_ms(other, Now(0))), (0, 0));
        assert_eq!(tries.note_wrong(source, Now(FIRST_WAIT_MS)), Tried::Wait);
        assert_eq!(tries.wait_ms(source, Now(FIRST_WAIT_MS)), 2 * FIRST_WAIT_MS);
        for _ in 0..100 {
            tries.note_wrong(source, Now(FIRST_WAIT_MS));
        }
        assert_eq!(tries.wait_ms(source, Now(FIRST_WAIT_MS)), WAIT_MS_MAX);
        tries.forgive(source);
        assert_eq!(tries.note_wrong(source, Now(FIRST_WAIT_MS)), Tried::Free);
    }

    #[test]
    fn a_household_is_one_source_and_the_table_has_its_bound() {
        let mut tries = Tries::default();
        let v6 = |host: u128| IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8_u128 << 96) | host));
        for host in 0..u128::from(FREE_TRIES) {
            tries.note_wrong(v6(host), Now(0));
        }
        assert!(tries.wait_ms(v6(77), Now(0)) > 0);
        assert_eq!(tries.wait_ms(v6(77 << 64), Now(0)), 0);
        assert_eq!(household("::ffff:192.0.2.7".parse().unwrap()), IpAddr::from([192, 0, 2, 7]));
        for number in 0..3 * SOURCES_MAX as u32 {
            tries.note_wrong(IpAddr::V4((0x0a00_0000 + number).into()), Now(1 + u64::from(number)));
        }
        assert_eq!(tries.wrong.len(), SOURCES_MAX);
        assert_eq!(tries.wait_ms(v6(77), Now(0)), 0, "the oldest has given way");
        let late = Now(10 * MEMORY_MS);
        tries.note_wrong(v6(0), late);
        assert_eq!(tries.wrong.len(), 1, "the rest is forgotten");
    }
}
