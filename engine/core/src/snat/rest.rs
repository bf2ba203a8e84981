//! Where a port rests when we sent the first FIN towards the server: a server that holds the old connection in TIME_WAIT and
//! uses no TCP timestamps refuses the same port for 60 s (RFC 9293 §3.6.1, RFC 6191).

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::SnatLease;
use crate::Now;

/// Leases of one worker that are not used any more and not free yet.
///
/// Bounded. When it is full, the lease that has the least time left gives way: it has rested longest of those with its rest, and
/// the alternative, refusing a client, is a sure loss where early use is only a possible one.
#[derive(Debug)]
pub struct SnatRest {
    /// The one due first on top; of those due together, the one put to rest first.
    resting: BinaryHeap<Reverse<Resting>>,
    rest_max: usize,
    rested: u64,
}

#[derive(Debug)]
struct Resting {
    due: Now,
    number: u64,
    lease: SnatLease,
}

impl SnatRest {
    /// Room for `rest_max` leases, allocated now.
    ///
    /// # Panics
    /// When `rest_max` is 0.
    pub fn new(rest_max: usize) -> SnatRest {
        assert!(rest_max > 0, "a worker must be able to rest at least one lease");
        SnatRest { resting: BinaryHeap::with_capacity(rest_max), rest_max, rested: 0 }
    }

    /// Puts `lease` to rest for `rest_ms` from `now`.
    ///
    /// When there is no room, hands back the lease with the least time left, which may be this one: the caller releases and
    /// counts it.
    #[must_use = "a lease that is handed back must be released"]
    pub fn rest(&mut self, lease: SnatLease, now: Now, rest_ms: u64) -> Option<SnatLease> {
        let resting = Reverse(Resting { due: now + rest_ms, number: self.rested, lease });
        self.rested += 1;
        if self.resting.len() < self.rest_max {
            self.resting.push(resting);
            return None;
        }
        let mut first = self.resting.peek_mut().expect("rest_max is at least 1, so a full rest is not empty");
        if resting > *first {
            return Some(resting.0.lease);
        }
        Some(std::mem::replace(&mut *first, resting).0.lease)
    }

    /// A lease that has rested enough, to be released; called until there is none.
    pub fn due(&mut self, now: Now) -> Option<SnatLease> {
        if self.next_due()? > now {
            return None;
        }
        self.resting.pop().map(|Reverse(resting)| resting.lease)
    }

    /// When the next lease will have rested enough.
    pub fn next_due(&self) -> Option<Now> {
        self.resting.peek().map(|Reverse(resting)| resting.due)
    }

    /// Leases at rest.
    pub fn len(&self) -> usize {
        self.resting.len()
    }

    /// Whether no lease is at rest.
    pub fn is_empty(&self) -> bool {
        self.resting.is_empty()
    }
}

impl PartialEq for Resting {
    fn eq(&self, other: &Resting) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Resting {}

impl PartialOrd for Resting {
    fn partial_cmp(&self, other: &Resting) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Resting {
    fn cmp(&self, other: &Resting) -> Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}
