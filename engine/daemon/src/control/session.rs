//! Logins of the page: who is logged in, until when, and how fast wrong passwords may be tried. Pure: time is an argument.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use towpath_core::Now;

/// Sessions at the same time; of more, the one that was used longest ago gives way.
pub(super) const SESSIONS_MAX: usize = 128;
/// Of these, those of one user: nobody logs the others out by logging in.
const SESSIONS_OF_ONE_MAX: usize = 16;
/// Sources whose wrong passwords are counted; of more, the one that was wrong longest ago gives way.
const SOURCES_MAX: usize = 2048;
/// So many wrong passwords of one user cost nothing: people mistype.
const FREE_TRIES: u32 = 5;
/// The same of a whole household, whoever it says it is.
const HOUSEHOLD_FREE_TRIES: u32 = 20;
/// Lines in the log about strangers, in each window.
const LINES_MAX: u32 = 20;
const LINES_WINDOW_MS: u64 = 10_000;
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
        if self.open.values().filter(|session| session.user == user).count() >= SESSIONS_OF_ONE_MAX {
            self.close_oldest(|session| session.user == user);
        }
        if self.open.len() >= SESSIONS_MAX {
            self.close_oldest(|_| true);
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

    fn close_oldest(&mut self, of: impl Fn(&Session) -> bool) {
        let those = self.open.iter().filter(|(_, session)| of(session));
        if let Some(oldest) = those.min_by_key(|(_, session)| session.used).map(|(key, _)| *key) {
            self.open.remove(&oldest);
        }
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

/// Wrong passwords by where they came from: after a few each costs time, for that source only, so that nobody locks others out. A household is
/// counted as a whole, too, and for that no right password makes good: it may be the guesser's own.
#[derive(Debug, Default)]
pub(super) struct Tries {
    wrong: HashMap<(IpAddr, Option<Name>), Wrong>,
}

/// Sum of a user's name, of whatever length that is.
pub(super) type Name = [u8; 32];

#[derive(Clone, Copy, Debug)]
struct Wrong {
    count: u32,
    last: Now,
}

/// What a try costs if it is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tried {
    /// It costs nothing yet.
    Free,
    /// The source has to wait from now on, and had not to before.
    FirstWait,
    /// It has to wait again.
    Wait,
}

impl Tries {
    /// For how long this source has to wait before its next try as this user.
    pub(super) fn wait_ms(&self, source: IpAddr, name: Name, now: Now) -> u64 {
        let source = household(source);
        let of = |name: Option<Name>| {
            let Some(wrong) = self.wrong.get(&(source, name)) else { return 0 };
            wrong.wait_ms(free(name)).saturating_sub(now.ms_since(wrong.last))
        };
        of(None).max(of(Some(name)))
    }

    /// Takes note of a try before it is judged: who does not wait for the answer has tried, too.
    pub(super) fn note(&mut self, source: IpAddr, name: Name, now: Now) -> Tried {
        let source = household(source);
        let whole = self.count((source, None), now);
        whole.max(self.count((source, Some(name)), now))
    }

    fn count(&mut self, source: (IpAddr, Option<Name>), now: Now) -> Tried {
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
        match wrong.count.cmp(&free(source.1)) {
            Ordering::Less => Tried::Free,
            Ordering::Equal => Tried::FirstWait,
            Ordering::Greater => Tried::Wait,
        }
    }

    /// The password was right: of its user nothing was wrong.
    pub(super) fn forgive(&mut self, source: IpAddr, name: Name) {
        let source = household(source);
        self.wrong.remove(&(source, Some(name)));
        if let Some(whole) = self.wrong.get_mut(&(source, None)) {
            whole.count = whole.count.saturating_sub(1);
        }
    }
}

impl Wrong {
    fn wait_ms(&self, free: u32) -> u64 {
        match self.count.checked_sub(free) {
            None => 0,
            Some(more) => (FIRST_WAIT_MS << more.min(16)).min(WAIT_MS_MAX),
        }
    }
}

fn free(name: Option<Name>) -> u32 {
    if name.is_some() { FREE_TRIES } else { HOUSEHOLD_FREE_TRIES }
}

/// How many lines strangers have in the log: they choose the text, so no two of them need be the same.
#[derive(Debug, Default)]
pub(super) struct Lines {
    window: Now,
    written: u32,
    left_out: u32,
}

impl Lines {
    /// Whether one may be written now; and how many were left out before it.
    pub(super) fn may(&mut self, now: Now) -> Option<u32> {
        if now.ms_since(self.window) >= LINES_WINDOW_MS {
            (self.window, self.written) = (now, 0);
        }
        if self.written >= LINES_MAX {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// A pace: so many at once, and then so many a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    burst: u64,
    per_second: u64,
    /// Thousandths of what may still come.
    left: u64,
    last: Now,
}

impl Pace {
    pub(super) fn new(burst: u64, per_second: u64, now: Now) -> Pace {
        Pace { burst, per_second, left: burst * 1000, last: now }
    }

    /// Whether one more may come.
    pub(super) fn take(&mut self, now: Now) -> bool {
        self.left = self.left_at(now);
        self.last = now;
        let may = self.left >= 1000;
        if may {
            self.left -= 1000;
        }
        may
    }

    /// Whether it is as it was at first: then it need not be remembered.
    pub(super) fn is_rested(&self, now: Now) -> bool {
        self.left_at(now) == self.burst * 1000
    }

    fn left_at(&self, now: Now) -> u64 {
        let more = now.ms_since(self.last).saturating_mul(self.per_second);
        self.left.saturating_add(more).min(self.burst * 1000)
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
            sessions.open(key(number), format!("user {number}"), [0; 32], String::new(), Now(number as u64));
            // The first one is in use.
            sessions.find(&key(0), long, Deed::OfUser, Now(number as u64));
        }
        assert_eq!(sessions.count(), SESSIONS_MAX);
        let is_open = |sessions: &mut Sessions, number| {
            sessions.find(&key(number), long, Deed::Background, Now(SESSIONS_MAX as u64)).is_some()
        };
        assert!(is_open(&mut sessions, 0) && !is_open(&mut sessions, 1) && is_open(&mut sessions, 2));
    }

    const ALICE: Name = [1; 32];
    const BOB: Name = [2; 32];

    #[test]
    fn wrong_passwords_cost_their_source_more_and_more_time_and_nobody_else() {
        let (mut tries, source, other) = (Tries::default(), IpAddr::from([192, 0, 2, 7]), IpAddr::from([192, 0, 2, 8]));
        for _ in 1..FREE_TRIES {
            assert_eq!(tries.note(source, ALICE, Now(0)), Tried::Free);
            assert_eq!(tries.wait_ms(source, ALICE, Now(0)), 0);
        }
        assert_eq!(tries.note(source, ALICE, Now(0)), Tried::FirstWait);
        assert_eq!(tries.wait_ms(source, ALICE, Now(500)), FIRST_WAIT_MS - 500);
        assert_eq!(tries.wait_ms(source, ALICE, Now(FIRST_WAIT_MS)), 0);
        assert_eq!((tries.wait_ms(other, ALICE, Now(0)), tries.wait_ms(source, BOB, Now(0))), (0, 0));
        assert_eq!(tries.note(source, ALICE, Now(FIRST_WAIT_MS)), Tried::Wait);
        assert_eq!(tries.wait_ms(source, ALICE, Now(FIRST_WAIT_MS)), 2 * FIRST_WAIT_MS);
        for _ in 0..100 {
            tries.note(source, ALICE, Now(FIRST_WAIT_MS));
        }
        assert_eq!(tries.wait_ms(source, ALICE, Now(FIRST_WAIT_MS)), WAIT_MS_MAX);
        assert_eq!(tries.wait_ms(source, BOB, Now(FIRST_WAIT_MS)), WAIT_MS_MAX, "the household as a whole");
    }

    #[test]
    fn ones_own_password_does_not_pay_for_guesses_at_that_of_others() {
        let (mut tries, source) = (Tries::default(), IpAddr::from([192, 0, 2, 7]));
        let mut guesses = 0;
        while tries.wait_ms(source, ALICE, Now(0)) == 0 {
            tries.note(source, ALICE, Now(0));
            guesses += 1;
            tries.note(source, BOB, Now(0));
            tries.forgive(source, BOB);
        }
        assert_eq!(guesses, FREE_TRIES);
        // Nor do guesses at many names, each a few times.
        let mut tries = Tries::default();
        let names = (0..=255).map(|name| [name; 32]);
        let tried = names.take_while(|name| {
            tries.note(source, *name, Now(0));
            tries.wait_ms(source, *name, Now(0)) == 0
        });
        assert_eq!(tried.count() as u32, HOUSEHOLD_FREE_TRIES - 1);
        // Who logs in again and again is not slowed down.
        let mut tries = Tries::default();
        for _ in 0..10 * HOUSEHOLD_FREE_TRIES {
            assert_eq!(tries.wait_ms(source, BOB, Now(0)), 0);
            tries.note(source, BOB, Now(0));
            tries.forgive(source, BOB);
        }
    }

    #[test]
    fn a_household_is_one_source_and_the_table_has_its_bound() {
        let mut tries = Tries::default();
        let v6 = |host: u128| IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8_u128 << 96) | host));
        for host in 0..u128::from(FREE_TRIES) {
            tries.note(v6(host), ALICE, Now(0));
        }
        assert!(tries.wait_ms(v6(77), ALICE, Now(0)) > 0);
        assert_eq!(tries.wait_ms(v6(77 << 64), ALICE, Now(0)), 0);
        assert_eq!(household("::ffff:192.0.2.7".parse().unwrap()), IpAddr::from([192, 0, 2, 7]));
        for number in 0..2 * SOURCES_MAX as u32 {
            tries.note(IpAddr::V4((0x0a00_0000 + number).into()), ALICE, Now(1 + u64::from(number)));
        }
        assert_eq!(tries.wrong.len(), SOURCES_MAX);
        assert_eq!(tries.wait_ms(v6(77), ALICE, Now(0)), 0, "the oldest has given way");
        let late = Now(10 * MEMORY_MS);
        tries.note(v6(0), ALICE, late);
        assert_eq!(tries.wrong.len(), 2, "the rest is forgotten");
    }

    #[test]
    fn one_user_logs_nobody_else_out() {
        let mut sessions = opened(0);
        let long = Lifetime { idle_ms: 1 << 40, whole_ms: 1 << 40 };
        for number in 2..=200 {
            sessions.open([number; 32], "bob".to_owned(), [0; 32], String::new(), Now(number.into()));
        }
        assert_eq!(sessions.count(), 1 + SESSIONS_OF_ONE_MAX);
        assert!(sessions.find(&[1; 32], long, Deed::Background, Now(200)).is_some(), "alice");
        assert!(sessions.find(&[200; 32], long, Deed::Background, Now(200)).is_some());
        assert!(sessions.find(&[2; 32], long, Deed::Background, Now(200)).is_none(), "his own oldest");
    }

    #[test]
    fn strangers_have_so_many_lines_and_the_rest_is_counted() {
        let mut lines = Lines::default();
        let start = Now(50_000);
        assert!((0..LINES_MAX).all(|_| lines.may(start) == Some(0)));
        assert!((0..7).all(|_| lines.may(Now(start.0 + LINES_WINDOW_MS - 1)).is_none()));
        assert_eq!(lines.may(Now(start.0 + LINES_WINDOW_MS)), Some(7));
        assert_eq!(lines.may(Now(start.0 + LINES_WINDOW_MS)), Some(0));
    }

    #[test]
    fn a_pace_allows_a_burst_and_then_so_many_a_second() {
        let mut pace = Pace::new(3, 2, Now(0));
        assert!(pace.is_rested(Now(0)));
        assert_eq!(
            [0, 0, 0, 0, 499, 500, 500, 1000].map(|now| pace.take(Now(now))),
            [true, true, true, false, false, true, false, true]
        );
        assert!(!pace.is_rested(Now(1000)) && pace.is_rested(Now(60_000)));
        assert_eq!((0..10).filter(|_| pace.take(Now(1 << 40))).count(), 3);
    }
}
