//! The network of the packet plane as the controller last saw it, and what the workers want to know about it.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use towpath_core::WorkerId;
use towpath_core::packet::Ip;
use towpath_core::plane::{NeighbourCounter, NeighbourCounts, Network, PortId};
use towpath_sys::packet::{Instruction, PacketPort};

use super::lock;

/// Next hops that wait to be asked for; more than a plane waits for are not needed.
const WANTED_MAX: usize = 1024;

/// One writer, the controller; workers look at its number once per breath.
#[derive(Debug, Default)]
pub struct NetworkBoard {
    edition: AtomicU64,
    announcements: AtomicU64,
    network: Mutex<Arc<Network>>,
    reopened: Mutex<Vec<(WorkerId, PortId, PacketPort)>>,
    wanted: Mutex<BTreeSet<(PortId, Ip)>>,
    gone: Mutex<BTreeSet<PortId>>,
    asked: Notify,
    neighbours: Mutex<BTreeMap<String, u64>>,
    steering_edition: AtomicU64,
    steering: Mutex<Arc<SteeringPrograms>>,
}

/// How the kernel finds the worker of a frame and of a client, where that differs from the start.
#[derive(Debug, Default)]
pub struct SteeringPrograms {
    /// Of the fanout groups; empty where there is no packet plane.
    pub fanout: Vec<Instruction>,
    /// Of the groups of listeners.
    pub reuseport: Vec<Instruction>,
}

impl NetworkBoard {
    /// Puts other steering programs in force.
    pub(super) fn steer(&self, programs: SteeringPrograms) {
        *lock(&self.steering) = Arc::new(programs);
        self.steering_edition.fetch_add(1, Ordering::Release);
    }

    /// The steering programs in force, if their number is another than `have`, which is set to it; `None` as long as those of the start are.
    #[inline]
    pub fn steering_newer_than(&self, have: &mut u64) -> Option<Arc<SteeringPrograms>> {
        let edition = self.steering_edition.load(Ordering::Acquire);
        if edition == *have {
            return None;
        }
        *have = edition;
        Some(Arc::clone(&lock(&self.steering)))
    }

    /// Puts the next network in force; returns once it is, and wakes nobody: see [`super::Shared::publish_network`].
    pub(super) fn publish(&self, network: Arc<Network>) {
        *lock(&self.network) = network;
        self.edition.fetch_add(1, Ordering::Release);
    }

    /// Has the neighbours told where our addresses are, together with the next network.
    pub(crate) fn ask_for_announcement(&self) {
        self.announcements.fetch_add(1, Ordering::Release);
    }

    /// How often the neighbours were to be told.
    pub fn announcements(&self) -> u64 {
        self.announcements.load(Ordering::Acquire)
    }

    /// Hands a worker a port that was opened anew, together with the next network; one that it has not taken yet gives way.
    pub(crate) fn reopen(&self, worker: WorkerId, port: PortId, opened: PacketPort) {
        let mut reopened = lock(&self.reopened);
        reopened.retain(|(other, number, _)| (*other, *number) != (worker, port));
        reopened.push((worker, port, opened));
    }

    /// The ports that were opened anew for this worker.
    pub fn take_reopened(&self, worker: WorkerId) -> Vec<(PortId, PacketPort)> {
        lock(&self.reopened)
            .extract_if(.., |(other, ..)| *other == worker)
            .map(|(_, port, opened)| (port, opened))
            .collect()
    }

    /// The network in force, if its number is another than `have`, which is set to it. One atomic load when it is not.
    #[inline]
    pub fn newer_than(&self, have: &mut u64) -> Option<Arc<Network>> {
        let edition = self.edition.load(Ordering::Acquire);
        if edition == *have {
            return None;
        }
        *have = edition;
        Some(self.current())
    }

    /// The network in force.
    pub fn current(&self) -> Arc<Network> {
        Arc::clone(&lock(&self.network))
    }

    /// A worker has frames for a next hop that the network does not know.
    pub fn want(&self, port: PortId, via: Ip) {
        let mut wanted = lock(&self.wanted);
        if wanted.len() < WANTED_MAX && wanted.insert((port, via)) {
            self.asked.notify_one();
        }
    }

    /// The next hops wanted since the last call.
    pub(crate) fn take_wanted(&self) -> BTreeSet<(PortId, Ip)> {
        mem::take(&mut lock(&self.wanted))
    }

    /// Says how many neighbours are known where the kernel knows none, and what was counted about them.
    pub(crate) fn note_neighbours(&self, known: usize, counts: &NeighbourCounts) {
        let counters = NeighbourCounter::ALL.iter().map(|&counter| (counter.label().to_owned(), counts.read(counter)));
        *lock(&self.neighbours) = counters.chain([("known".to_owned(), known as u64)]).collect();
    }

    /// The same, by label; empty where the kernel knows all of them.
    pub fn neighbours(&self) -> BTreeMap<String, u64> {
        lock(&self.neighbours).clone()
    }

    /// A worker has found that a port's interface is gone, though one of its name and number may be there again.
    pub fn report_gone(&self, port: PortId) {
        if lock(&self.gone).insert(port) {
            self.asked.notify_one();
        }
    }

    /// The ports reported since the last call.
    pub(crate) fn take_gone(&self) -> BTreeSet<PortId> {
        mem::take(&mut lock(&self.gone))
    }

    /// Somebody wants a next hop, or has reported a port.
    pub(crate) fn asked(&self) -> &Notify {
        &self.asked
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn each_reader_gets_each_network_once() {
        let board = NetworkBoard::default();
        let (mut one, mut other) = (0, 0);
        assert!(board.newer_than(&mut one).is_none());
        board.publish(Arc::default());
        board.publish(Arc::default());
        assert!(board.newer_than(&mut one).is_some());
        assert!(board.newer_than(&mut one).is_none());
        assert!(board.newer_than(&mut other).is_some());
    }

    #[test]
    fn what_is_wanted_is_taken_once_and_bounded() {
        let board = NetworkBoard::default();
        for number in 0..2 * WANTED_MAX as u32 {
            board.want(PortId(0), Ipv4Addr::from_bits(number).into());
            board.want(PortId(0), Ipv4Addr::from_bits(number).into());
        }
        assert_eq!(board.take_wanted().len(), WANTED_MAX);
        assert!(board.take_wanted().is_empty());
    }

    #[test]
    fn a_port_that_several_report_is_gone_once() {
        let board = NetworkBoard::default();
        board.report_gone(PortId(1));
        board.report_gone(PortId(1));
        assert_eq!(board.take_gone().into_iter().collect::<Vec<_>>(), [PortId(1)]);
        assert!(board.take_gone().is_empty());
    }
}
