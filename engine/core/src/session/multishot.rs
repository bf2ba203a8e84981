//! Which paths may keep a multishot receive: one that stays armed from message to message and so saves an operation for each.
//!
//! It has a price. Once data is there, the kernel fills up to 32 buffers (`MULTISHOT_MAX_RETRY`, io_uring/net.c) before it hears
//! a cancel, so a few hundred clients that never read could hold every buffer of a worker. So a multishot receive is granted
//! against a reservation of buffers, and all reservations together are half of them. What a path holds once its grant is gone is
//! not reserved any more, so grants are given only while three quarters of the buffers are free: then what was left behind and
//! all grants together leave some for receives into one buffer at a time, which is what who has no grant does. When all grants
//! are taken, a holder that has been silent makes room (second chance, as a page cache does it), so that a thousand idle
//! connections do not keep the busy ones from theirs.

use crate::time::Now;

/// Buffers reserved per grant: what a path queues, what one round of the kernel can add, and a few for the next round.
const BUFFERS_RESERVED: usize = 40;
/// Holders looked at for one that has been silent.
const LOOKS_MAX: usize = 8;
/// Least time between two such looks: with more busy paths than grants, moving the grants about would cost more than it saves.
const LOOK_EVERY_MS: u64 = 1;

/// The multishot receives of one worker; `H` names a path.
pub struct Multishots<H> {
    grants: Box<[Option<Grant<H>>]>,
    free: Vec<u16>,
    buffers: usize,
    hand: usize,
    next_look: Now,
}

struct Grant<H> {
    holder: H,
    /// Something arrived since the hand came by.
    used: bool,
}

/// The answer to [`Multishots::claim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim<H> {
    /// Granted, under this number.
    Granted(u16),
    /// Granted, and this silent holder has lost the same number: its receive is to be cancelled.
    Moved(u16, H),
    /// None is left, or too few buffers are free.
    Refused,
}

impl<H: Copy> Multishots<H> {
    /// As many grants as half of `buffers` can back.
    pub fn new(buffers: usize) -> Multishots<H> {
        let count = u16::try_from(buffers / 2 / BUFFERS_RESERVED).unwrap_or(u16::MAX);
        Multishots {
            grants: (0..count).map(|_| None).collect(),
            free: (0..count).rev().collect(),
            buffers,
            hand: 0,
            next_look: Now(0),
        }
    }

    /// Asks for a grant while `buffers_free` of the worker's buffers are free.
    pub fn claim(&mut self, holder: H, buffers_free: usize, now: Now) -> Claim<H> {
        if buffers_free * 4 <= self.buffers * 3 {
            return Claim::Refused;
        }
        let grant = Some(Grant { holder, used: true });
        if let Some(number) = self.free.pop() {
            self.grants[usize::from(number)] = grant;
            return Claim::Granted(number);
        }
        if now < self.next_look {
            return Claim::Refused;
        }
        self.next_look = now + LOOK_EVERY_MS;
        for _ in 0..LOOKS_MAX.min(self.grants.len()) {
            let number = self.hand;
            self.hand = (self.hand + 1) % self.grants.len();
            match &mut self.grants[number] {
                Some(old) if old.used => old.used = false,
                Some(old) => {
                    let silent = old.holder;
                    self.grants[number] = grant;
                    return Claim::Moved(number as u16, silent);
                }
                None => {}
            }
        }
        Claim::Refused
    }

    /// Something arrived under a grant.
    pub fn touch(&mut self, number: u16) {
        if let Some(Some(grant)) = self.grants.get_mut(usize::from(number)) {
            grant.used = true;
        }
    }

    /// Takes a grant back whose receive has ended.
    ///
    /// # Panics
    /// If it is not granted: taken back twice, it would be granted twice.
    pub fn release(&mut self, number: u16) {
        assert!(self.grants[usize::from(number)].take().is_some(), "grant {number} is not out");
        self.free.push(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: usize = 4 * 2 * BUFFERS_RESERVED;

    fn full() -> Multishots<u32> {
        let mut multishots = Multishots::new(ALL);
        for holder in 0..4 {
            assert!(matches!(multishots.claim(holder, ALL, Now(0)), Claim::Granted(_)));
        }
        multishots
    }

    #[test]
    fn all_grants_together_reserve_half_of_the_buffers() {
        for (buffers, grants) in [(0, 0), (79, 0), (80, 1), (20_000, 250), (65_535, 819)] {
            let mut multishots = Multishots::new(buffers);
            let granted =
                (0..2_000).take_while(|holder| multishots.claim(*holder, buffers, Now(0)) != Claim::Refused).count();
            assert_eq!(granted, grants, "{buffers} buffers");
        }
    }

    #[test]
    fn a_silent_holder_makes_room_and_a_busy_one_does_not() {
        let mut multishots = full();
        assert_eq!(multishots.claim(9, ALL, Now(1)), Claim::Refused, "all have just been granted");
        multishots.touch(0);
        assert_eq!(multishots.claim(9, ALL, Now(2)), Claim::Moved(1, 1));
        let mut busy = full();
        for ms in 1..100 {
            assert_eq!(busy.claim(9, ALL, Now(ms)), Claim::Refused);
            for number in 0..4 {
                busy.touch(number);
            }
        }
    }

    #[test]
    fn silent_holders_are_looked_for_once_a_millisecond() {
        let mut multishots = full();
        assert_eq!(multishots.claim(9, ALL, Now(4)), Claim::Refused);
        assert!(matches!(multishots.claim(9, ALL, Now(5)), Claim::Moved(..)));
        assert_eq!(multishots.claim(10, ALL, Now(5)), Claim::Refused);
        assert!(matches!(multishots.claim(10, ALL, Now(6)), Claim::Moved(..)));
    }

    #[test]
    fn none_is_given_once_a_quarter_of_the_buffers_is_held() {
        let mut multishots = Multishots::new(ALL);
        assert_eq!(multishots.claim(1, ALL * 3 / 4, Now(0)), Claim::Refused);
        assert_eq!(multishots.claim(1, ALL * 3 / 4 + 1, Now(0)), Claim::Granted(0));
    }

    #[test]
    fn what_is_taken_back_is_granted_again() {
        let mut multishots = full();
        multishots.release(2);
        assert_eq!(multishots.claim(7, ALL, Now(0)), Claim::Granted(2));
    }
}
