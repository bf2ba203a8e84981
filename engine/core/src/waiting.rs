//! Who waits for a place: the clients of one service that found every server at its limit, first come first served over all workers.
//!
//! The engine keeps one queue per place beside the balancer's state, under the same lock. Whoever may have made room (a connection ends, another
//! generation is adopted, the first in line has gone) calls the worker whose client is first; that worker asks again. So nobody is served out of turn,
//! and no place stays free while somebody waits who could have it: after each event that may make room, whoever is first is asked after it.
//!
//! A client that has just joined must ask once more if it is the first: a place that was given back before it stood in line called nobody.

use std::collections::VecDeque;

use crate::director::{Pick, Refusal};
use crate::ids::{RealServerId, ServiceId, WorkerId};
use crate::snapshot::Service;
use crate::time::Now;

/// A place in the queue. Never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

impl Ticket {
    /// The first that a queue gives.
    pub const FIRST: Ticket = Ticket(0);
}

/// Somebody who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiter {
    ticket: Ticket,
    worker: WorkerId,
    since: Now,
    /// Has left; its row goes once it is first, or with the others that have left.
    left: bool,
}

/// The queue of one place.
#[derive(Clone, Debug, Default)]
pub struct WaitingQueue {
    /// By ticket, ascending. The first has not left.
    waiters: VecDeque<Waiter>,
    /// Those that have left.
    left: usize,
    next: u64,
}

/// Whether who waits for a place of `waited_for` may have the one that a connection of `service` on `server` gives back: the limit that it left room under is
/// the service's, or a server's.
pub fn may_have(waited_for: &Service, service: ServiceId, server: RealServerId) -> bool {
    waited_for.id == service || waited_for.target_of(server).is_some()
}

/// As many wait as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull;

impl WaitingQueue {
    /// A queue in which nobody waits.
    pub fn new() -> WaitingQueue {
        WaitingQueue::default()
    }

    /// Whether nobody waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiters.len() - self.left
    }

    /// How long the first has waited; 0 if nobody waits.
    pub fn longest_ms(&self, now: Now) -> u64 {
        self.waiters.front().map_or(0, |first| now.ms_since(first.since))
    }

    /// The worker whose client is first.
    pub fn first(&self) -> Option<WorkerId> {
        self.waiters.front().map(|first| first.worker)
    }

    /// Whether this one is first.
    pub fn is_first(&self, ticket: Ticket) -> bool {
        self.waiters.front().is_some_and(|first| first.ticket == ticket)
    }

    /// A client of `worker` waits behind all others, unless `max` do already.
    pub fn join(&mut self, worker: WorkerId, max: usize, now: Now) -> Result<Ticket, QueueFull> {
        if self.len() >= max {
            return Err(QueueFull);
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.waiters.push_back(Waiter { ticket, worker, since: now, left: false });
        Ok(ticket)
    }

    /// Has `pick` choose a server for the client with this ticket if it is first; it waits no more once it has one. Says, too, whom to call: who is
    /// first then, for whom there may be another place.
    pub fn serve(
        &mut self,
        ticket: Ticket,
        pick: impl FnOnce() -> Result<Pick, Refusal>,
    ) -> (Result<Pick, Refusal>, Option<WorkerId>) {
        if !self.is_first(ticket) {
            return (Err(Refusal::ServersFull), None);
        }
        let picked = pick();
        let called = if picked.is_ok() { self.leave(ticket) } else { None };
        (picked, called)
    }

    /// The client with this ticket waits no more, if it did. Says whom to call: who is first now and was not.
    pub fn leave(&mut self, ticket: Ticket) -> Option<WorkerId> {
        let at = self.waiters.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()?;
        let waiter = self.waiters.get_mut(at).filter(|waiter| !waiter.left)?;
        waiter.left = true;
        self.left += 1;
        let was_first = at == 0;
        while self.waiters.front().is_some_and(|first| first.left) {
            self.waiters.pop_front();
            self.left -= 1;
        }
        // So that the rows are never more than twice those who wait.
        if self.left > self.waiters.len() / 2 {
            self.waiters.retain(|waiter| !waiter.left);
            self.left = 0;
        }
        if was_first { self.first() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::director::PickReason;
    use crate::ids::TargetIndex;

    const HERE: WorkerId = WorkerId(0);
    const THERE: WorkerId = WorkerId(1);
    const PICK: Pick = Pick { target: TargetIndex(0), server: RealServerId(0), why: PickReason::Balanced };

    #[test]
    fn whoever_came_first_is_served_first_and_calls_the_next() {
        let mut queue = WaitingQueue::new();
        let first = queue.join(HERE, 9, Now(10)).unwrap();
        let second = queue.join(THERE, 9, Now(20)).unwrap();
        let third = queue.join(HERE, 9, Now(30)).unwrap();
        assert_eq!((queue.len(), queue.longest_ms(Now(110)), queue.first()), (3, 100, Some(HERE)));
        assert_eq!(queue.serve(second, || panic!("not its turn")), (Err(Refusal::ServersFull), None));
        assert_eq!(queue.serve(first, || Err(Refusal::ServiceFull)), (Err(Refusal::ServiceFull), None));
        assert_eq!(queue.serve(first, || Ok(PICK)), (Ok(PICK), Some(THERE)));
        // Who leaves from the middle calls nobody: nothing has changed for who is first.
        assert_eq!(queue.leave(third), None);
        assert_eq!((queue.len(), queue.longest_ms(Now(110))), (1, 90));
        assert_eq!(queue.leave(second), None, "nobody is left to call");
        assert!(queue.is_empty() && queue.leave(second).is_none() && queue.longest_ms(Now(110)) == 0);
    }

    #[test]
    fn a_full_queue_takes_the_next_once_one_has_left() {
        let mut queue = WaitingQueue::new();
        let tickets: Vec<Ticket> = (0..3).map(|_| queue.join(HERE, 3, Now(0)).unwrap()).collect();
        assert_eq!(queue.join(THERE, 3, Now(0)), Err(QueueFull));
        assert_eq!(queue.leave(tickets[1]), None);
        let last = queue.join(THERE, 3, Now(0)).unwrap();
        assert_eq!(queue.join(THERE, 3, Now(0)), Err(QueueFull));
        assert_eq!(queue.leave(tickets[0]), Some(HERE), "the third is first now");
        assert_eq!(queue.leave(tickets[2]), Some(THERE));
        assert!(queue.is_first(last) && queue.join(HERE, 0, Now(0)).is_err());
    }

    proptest! {
        /// Against a list that is kept in the simplest way; and its rows stay in proportion to those who wait.
        #[test]
        fn it_is_a_list_in_order_of_arrival(steps in prop::collection::vec((0u8..4, 0usize..24), 1..400)) {
            let (mut queue, mut list) = (WaitingQueue::new(), Vec::new());
            for (number, (step, place)) in steps.into_iter().enumerate() {
                let worker = WorkerId(number as u8);
                match step {
                    0 | 1 => match queue.join(worker, 16, Now(number as u64)) {
                        Ok(ticket) => list.push((ticket, worker)),
                        Err(QueueFull) => prop_assert_eq!(list.len(), 16),
                    },
                    2 if !list.is_empty() => {
                        let at = place % list.len();
                        let (ticket, _) = list.remove(at);
                        let called = if at == 0 { list.first().map(|(_, worker)| *worker) } else { None };
                        prop_assert_eq!(queue.leave(ticket), called);
                    }
                    _ => if let Some((ticket, _)) = list.first().copied() {
                        list.remove(0);
                        let called = list.first().map(|(_, worker)| *worker);
                        prop_assert_eq!(queue.serve(ticket, || Ok(PICK)), (Ok(PICK), called));
                    },
                }
                prop_assert_eq!(queue.len(), list.len());
                prop_assert_eq!(queue.first(), list.first().map(|(_, worker)| *worker));
                prop_assert!(queue.waiters.len() <= 2 * list.len() + 1);
            }
        }
    }
}
