//! Which sockets clients come in by, and what becomes of those that a reload takes out: what the controller and all workers agree on before one closes.
//!
//! The sockets of one address and port, one per worker, close together or stay together: the kernel numbers them, and steers by these numbers. So each
//! worker says when it needs its own no more, and all close theirs when the last has said so. Until then a reload may want them back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Mutex;

use towpath_config::model::Protocol;
use towpath_core::{Generation, WorkerId};

use super::lock;
use crate::listen::{Listener, Opening};

/// What clients come to.
pub type Doorway = (Protocol, SocketAddr);

/// The sockets of one doorway.
#[derive(Debug)]
struct Sockets {
    /// How many are open.
    open: usize,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// A service has it.
    Open,
    /// None has it any more; these workers need theirs no more.
    Leaving { ready: BTreeSet<WorkerId> },
    /// All do.
    Closing,
}

/// What a reload finds of the doorways that it wants.
#[derive(Debug, Default)]
pub(crate) struct Reserved {
    /// To be opened.
    pub(crate) fresh: Vec<Opening>,
    /// They were leaving and stay.
    pub(crate) back: Vec<Doorway>,
    /// They close at this moment, and can be opened in another one.
    pub(crate) closing: Vec<Doorway>,
}

/// Touched by reloads and by workers that take or close listeners only.
#[derive(Debug, Default)]
pub struct DoorBoard {
    workers: usize,
    sockets: Mutex<BTreeMap<Doorway, Sockets>>,
    handed: Mutex<Vec<(Generation, WorkerId, Listener)>>,
}

impl DoorBoard {
    pub(super) fn new(workers: usize) -> DoorBoard {
        DoorBoard { workers, ..DoorBoard::default() }
    }

    /// These are open, one socket for each worker.
    pub(crate) fn enter(&self, doorways: impl Iterator<Item = Doorway>) {
        let workers = self.workers;
        self.enter_counted(doorways.map(|doorway| (doorway, workers)));
    }

    /// These are open, so many sockets each: some workers may have two, where a process with more of them had opened them.
    pub(crate) fn enter_counted(&self, doorways: impl Iterator<Item = (Doorway, usize)>) {
        let mut sockets = lock(&self.sockets);
        sockets.extend(doorways.map(|(doorway, open)| (doorway, Sockets { open, state: State::Open })));
    }

    /// Finds what of `wanted` has to be opened. What was leaving stays from here on, unless it is [given up](Self::leave) again.
    pub(crate) fn reserve(&self, wanted: &[Opening]) -> Reserved {
        let mut sockets = lock(&self.sockets);
        let mut reserved = Reserved::default();
        for opening in wanted {
            let doorway = opening.doorway();
            match sockets.get_mut(&doorway).map(|sockets| &mut sockets.state) {
                None => reserved.fresh.push(opening.clone()),
                Some(State::Open) => {}
                Some(state @ State::Leaving { .. }) => {
                    *state = State::Open;
                    reserved.back.push(doorway);
                }
                Some(State::Closing) => reserved.closing.push(doorway),
            }
        }
        reserved
    }

    /// No service has these any more: workers close them when nobody comes by them who is to be served.
    pub(crate) fn leave(&self, doorways: impl IntoIterator<Item = Doorway>) {
        let mut sockets = lock(&self.sockets);
        for doorway in doorways {
            if let Some(sockets) = sockets.get_mut(&doorway) {
                sockets.state = State::Leaving { ready: BTreeSet::new() };
            }
        }
    }

    /// Gives each worker its listeners; the n-th list is worker n's. They take them with this generation, which knows whose they are.
    pub(crate) fn hand(&self, generation: Generation, listeners: Vec<Vec<Listener>>) {
        let mut handed = lock(&self.handed);
        for (list, worker) in listeners.into_iter().zip(0u8..) {
            handed.extend(list.into_iter().map(|listener| (generation, WorkerId(worker), listener)));
        }
    }

    /// The listeners that were handed to this worker up to this generation.
    pub(crate) fn take(&self, worker: WorkerId, generation: Generation) -> Vec<Listener> {
        let is_its = |(since, to, _): &mut (Generation, WorkerId, Listener)| *to == worker && *since <= generation;
        lock(&self.handed).extract_if(.., is_its).map(|(.., listener)| listener).collect()
    }

    /// This worker needs its socket no more. Whether it was the last one that did, so that all are to close theirs.
    pub(crate) fn ready(&self, worker: WorkerId, doorway: &Doorway) -> bool {
        let mut sockets = lock(&self.sockets);
        let Some(Sockets { open, state }) = sockets.get_mut(doorway) else { return false };
        let State::Leaving { ready } = state else { return false };
        ready.insert(worker);
        let is_last = ready.len() >= (*open).min(self.workers);
        if is_last {
            *state = State::Closing;
        }
        is_last
    }

    /// Whether all workers are to close theirs.
    pub(crate) fn is_closing(&self, doorway: &Doorway) -> bool {
        lock(&self.sockets).get(doorway).is_none_or(|sockets| sockets.state == State::Closing)
    }

    /// Whether sockets are open there, or close just now.
    pub(crate) fn has(&self, doorway: &Doorway) -> bool {
        lock(&self.sockets).contains_key(doorway)
    }

    /// A worker has closed its socket.
    pub(crate) fn closed(&self, doorway: &Doorway) {
        let mut sockets = lock(&self.sockets);
        if let Some(of_doorway) = sockets.get_mut(doorway) {
            of_doorway.open = of_doorway.open.saturating_sub(1);
            if of_doorway.open == 0 {
                sockets.remove(doorway);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use towpath_core::ServiceId;
    use towpath_sys::socket::Binding;

    use super::*;

    const ONE: WorkerId = WorkerId(0);
    const OTHER: WorkerId = WorkerId(1);

    fn opening(port: u16) -> Opening {
        let address = SocketAddr::from(([192, 0, 2, 1], port));
        Opening {
            service: ServiceId(0),
            name: "web".to_owned(),
            protocol: Protocol::Tcp,
            address,
            binding: Binding::HostAddress,
        }
    }

    fn board(port: u16) -> (DoorBoard, Doorway) {
        let board = DoorBoard::new(2);
        let doorway = opening(port).doorway();
        board.enter([doorway].into_iter());
        (board, doorway)
    }

    #[test]
    fn sockets_close_when_the_last_worker_needs_its_own_no_more() {
        let (board, doorway) = board(80);
        assert!(!board.ready(ONE, &doorway), "a service has it");
        board.leave([doorway]);
        assert!(!board.ready(ONE, &doorway) && !board.ready(ONE, &doorway), "one worker is not two");
        assert!(!board.is_closing(&doorway));
        assert!(board.ready(OTHER, &doorway));
        assert!(board.is_closing(&doorway));
        board.closed(&doorway);
        assert_eq!(board.reserve(&[opening(80)]).closing, [doorway]);
        board.closed(&doorway);
        assert_eq!(board.reserve(&[opening(80)]).fresh, [opening(80)]);
    }

    #[test]
    fn a_worker_may_say_again_what_a_refused_reload_has_made_of_no_account() {
        let (board, doorway) = board(80);
        board.leave([doorway]);
        assert!(!board.ready(ONE, &doorway));
        board.leave(board.reserve(&[opening(80)]).back);
        assert!(!board.ready(OTHER, &doorway));
        assert!(board.ready(ONE, &doorway));
    }

    #[test]
    fn what_leaves_can_be_had_back_until_it_closes() {
        let (board, doorway) = board(80);
        board.leave([doorway]);
        assert!(!board.ready(ONE, &doorway));
        let reserved = board.reserve(&[opening(80), opening(81)]);
        assert_eq!((reserved.back, reserved.fresh), (vec![doorway], vec![opening(81)]));
        assert!(!board.ready(OTHER, &doorway), "it stays");
        // What was said before counts no more.
        board.leave([doorway]);
        assert!(!board.ready(OTHER, &doorway));
        assert!(board.ready(ONE, &doorway));
    }
}
