//! Hand-off: a frame that came here while its flow lives at another worker. Steering goes by the port of a return, and that may have been
//! leased outside of the flow's home; and while virtual shards move, frames and flows do not arrive together.
//!
//! No frame goes round for ever. It goes to the owner of its flow's home by a table that only gets newer; the owner passes it back once, to the
//! worker that has still to give the home's flows away; and what that one hands here is not passed on: by then all that it had is here.

use std::net::SocketAddr;

use super::flows::Found;
use super::{Desk, Frame, Outbox, Plane, PlaneCounter, Verdict};
use crate::flow::FlowPath;
use crate::packet::{DropReason, PROTOCOL_TCP, Tuple};
use crate::snat::SnatLease;
use crate::steering::{vshard_of_client, vshard_of_port};
use crate::{Now, ServiceId, VShard, WorkerId};

impl Plane {
    /// As [`Plane::process`] for frames that worker `by` has handed off. What has come from it before, [`Cargo`](super::Cargo) too, must have been
    /// taken, and the snapshot be as new as the one that it had.
    ///
    /// # Panics
    /// When there are more than [`BATCH_MAX`](super::BATCH_MAX) frames.
    pub fn process_handed(
        &mut self,
        now: Now,
        by: WorkerId,
        frames: &mut [Frame<'_>],
        verdicts: &mut Vec<Verdict>,
        desk: &mut impl Desk,
        out: &mut Outbox,
    ) {
        self.handed_by = Some(by);
        self.counts.add(PlaneCounter::FramesHandedHere, frames.len() as u64);
        self.process(now, frames, verdicts, desk, out);
        self.handed_by = None;
    }

    /// A frame with the verdict [`Verdict::HandOff`] found no room at the other worker.
    pub fn count_not_handed(&mut self) {
        self.counts.drops[DropReason::HandOffFull as usize] += 1;
    }

    /// Where a packet of no flow here belongs, if that is elsewhere; `service` is the one that it is for.
    pub(super) fn hand_off(&mut self, tuple: &Tuple, service: Option<ServiceId>) -> Option<Verdict> {
        let (to, cause) = self.elsewhere(tuple, service)?;
        self.counts.add(cause, 1);
        Some(Verdict::HandOff(to))
    }

    /// The same worker, and as what that is counted.
    #[inline]
    pub(super) fn elsewhere(&self, tuple: &Tuple, service: Option<ServiceId>) -> Option<(WorkerId, PlaneCounter)> {
        if self.moving.is_alone() { None } else { self.owner_elsewhere(tuple, service) }
    }

    /// The same where some packets do.
    #[inline(never)]
    fn owner_elsewhere(&self, tuple: &Tuple, service: Option<ServiceId>) -> Option<(WorkerId, PlaneCounter)> {
        let home = self.home_of(tuple, service)?;
        let owner = self.snapshot.steering.worker_of(home);
        let to = match owner == self.worker {
            true => self.moving.awaited(home).filter(|&from| self.handed_by != Some(from))?,
            false => owner,
        };
        let is_noted = service.is_none() && self.services.is_ours(tuple.dst) && home != vshard_of_port(tuple.dst_port);
        let cause = if is_noted { PlaneCounter::FramesHandedByNote } else { PlaneCounter::FramesHandedByMove };
        Some((to, cause))
    }

    /// The home of the flow that a packet is of, or opens.
    fn home_of(&self, tuple: &Tuple, service: Option<ServiceId>) -> Option<VShard> {
        let client = |socket: SocketAddr| vshard_of_client(socket.ip(), socket.port(), self.steering_seed);
        match service {
            Some(_) => Some(client(tuple.source())),
            None => self.notes.home_of(tuple).or_else(|| self.outbound_home(tuple)).or_else(|| {
                // The client of a half-NAT flow.
                let is_server = self.services.is_server(tuple.src) || self.services.keeps_clients(tuple.src);
                let is_returned = is_server && !self.services.is_ours(tuple.dst);
                is_returned.then(|| client(tuple.reversed().source()))
            }),
        }
    }

    /// Whether the flow that a packet names is over and has just [given way](Self::gives_way).
    pub(super) fn is_replaced(&mut self, found: Found, protocol: u8) -> bool {
        let state = self.flows.table(found.stage).state(found.id);
        protocol == PROTOCOL_TCP && state.is_some_and(|state| state.tcp().is_over()) && self.gives_way(found)
    }

    /// A connection that is over stays for late packets, and gives way to the next user of its port; where that one lives elsewhere, to its first
    /// packet that comes by. Whether it just did.
    #[cold]
    pub(super) fn gives_way(&mut self, found: Found) -> bool {
        if self.moving.is_alone() {
            return false;
        }
        let Some(path) = self.flows.table(found.stage).path(found.id) else { return false };
        let home = self.home_of_flow(&path);
        let returns = path.server.reversed();
        // What is over has no lease: one of the same home, where that is another worker's, is of a newer flow there.
        let is_elsewhere = self.snapshot.steering.worker_of(home) != self.worker;
        let is_lost = self.notes.homes_of(&returns).is_some_and(|homes| {
            homes.home_of(returns.dst_port) != home || is_elsewhere && homes.is_leased(returns.dst_port)
        });
        if is_lost && self.flows.is_over(found.stage, found.id) {
            self.flows.give_way(found.stage, found.id);
            return true;
        }
        false
    }

    /// Whether a flow at another worker may have this path already, of a lease from another map.
    pub(super) fn is_taken_elsewhere(&self, lease: &SnatLease, towards: SocketAddr, path: &FlowPath) -> bool {
        let twin = self.notes.twin_of(lease, towards, path);
        // Of flows that are here the flow table knows better.
        twin.is_some_and(|home| {
            self.snapshot.steering.worker_of(home) != self.worker || self.moving.awaited(home).is_some()
        })
    }
}
