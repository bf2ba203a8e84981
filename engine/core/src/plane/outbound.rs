//! Outbound NAT: a packet that the router would forward as it is, and that opens a flow from inside, leaves from an address of ours; its flow lives where
//! steering sends such packets, by their destination. Pings go all to one worker, and so do the replies to them.

use super::flows::{Detail, OpenError, State};
use super::opening::{LEASES_MAX, Refused, first_class, refused};
use super::reply::Complaint;
use super::{Desk, Frame, Plane, PlaneCounter, Turn, Verdict};
use crate::counters::{ServiceCounter, Termination};
use crate::flow::{FlowId, FlowPath, Returns};
use crate::outbound::{OutboundLane, towards_anyone};
use crate::packet::{DropReason, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Parsed, Tuple};
use crate::router::{Passage, PassageKind};
use crate::snapshot::Snapshot;
use crate::snat::LeasePlace;
use crate::steering::vshard_of_client_ip;
use crate::{PickReason, RealServerId, VShard};

/// Whether these are the numbers of ICMP, whose flows are pings.
fn is_ping(protocol: u8) -> bool {
    matches!(protocol, PROTOCOL_ICMP | PROTOCOL_ICMPV6)
}

/// Whether a packet of which all is known may open a flow: of ICMP only an echo request.
fn may_open(frame: &[u8], packet: &Parsed) -> bool {
    match packet.tuple.protocol {
        PROTOCOL_TCP | PROTOCOL_UDP => packet.tuple.src_port != 0,
        _ => matches!(frame.get(usize::from(packet.l4)), Some(8 | 128)),
    }
}

impl Plane {
    /// The home of a flow: of one from inside, that of whom it is to.
    pub(super) fn home_of_flow(&self, path: &FlowPath) -> VShard {
        let Tuple { src, dst, src_port, dst_port, protocol } = path.client;
        match path.is_outbound() {
            true if is_ping(protocol) => VShard(0),
            true => vshard_of_client_ip(dst, dst_port, self.steering_seed),
            false => vshard_of_client_ip(src, src_port, self.steering_seed),
        }
    }

    /// The home of the flow that a packet on its way out is of, or would open; of pings, of the replies to them as well.
    pub(super) fn outbound_home(&self, tuple: &Tuple) -> Option<VShard> {
        let outbound = &self.snapshot.outbound;
        let is_ping = is_ping(tuple.protocol);
        let is_reply = || is_ping && outbound.is_any() && self.services.is_ours(tuple.dst);
        if !outbound.may_translate(tuple.src, tuple.dst) && !is_reply() {
            return None;
        }
        let home = || vshard_of_client_ip(tuple.dst, tuple.dst_port, self.steering_seed);
        Some(if is_ping { VShard(0) } else { home() })
    }

    /// From where a packet that the router would forward is to leave instead, if it opens a flow.
    pub(super) fn lane_out(&self, frame: &[u8], packet: &Parsed, passage: &Passage<'_>) -> Option<OutboundLane> {
        let Tuple { src, dst, protocol, .. } = packet.tuple;
        let Snapshot { outbound, router, .. } = &*self.snapshot;
        let lane = outbound.find(src, dst, passage.leaves_by)?.lane_of(protocol)?;
        // What comes later of a connection from outside is forwarded as it is, and so is what answers a question that a rule lets in.
        let opens = match passage.kind {
            PassageKind::Opens => true,
            PassageKind::Follows => false,
            PassageKind::Stands => !router.is_answer(passage),
        };
        (opens && may_open(frame, packet)).then(|| lane.clone())
    }

    /// Opens a flow for a packet on its way out.
    pub(super) fn open_outbound<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Parsed,
        lane: &OutboundLane,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        let Some(state) = self.first_state(frame.bytes, packet, lane.id) else {
            return Verdict::Drop(DropReason::TcpStray);
        };
        let (reason, termination) = match self.admit_outbound(lane, packet, state, turn) {
            Ok((flow, path)) => return self.begin(frame, packet, lane.id, flow, &path, turn),
            Err(refused) => refused,
        };
        turn.desk.end(lane.id, termination);
        match packet.tuple.protocol {
            PROTOCOL_TCP => self.reset_sender(frame, packet, turn),
            _ => self.complain(frame, packet, Complaint::Prohibited, turn),
        }
        Verdict::Drop(reason)
    }

    fn admit_outbound<D: Desk>(
        &mut self,
        lane: &OutboundLane,
        packet: &Parsed,
        state: State,
        turn: &mut Turn<'_, D>,
    ) -> Result<(FlowId, FlowPath), Refused> {
        let client = &packet.tuple;
        self.flows.make_room(client, Returns::Here).map_err(refused)?;
        self.flows
            .admit(self.flows.sources.source(client.src))
            .map_err(|_| (DropReason::HalfOpenSource, Termination::OutOfConnections))?;
        turn.desk.count(lane.id, ServiceCounter::Accepted, 1);
        let opened = self.lease_outbound(lane, client, state, turn);
        if opened.is_err() {
            self.flows.dismiss(client);
        }
        opened
    }

    fn lease_outbound<D: Desk>(
        &mut self,
        lane: &OutboundLane,
        client: &Tuple,
        state: State,
        turn: &mut Turn<'_, D>,
    ) -> Result<(FlowId, FlowPath), Refused> {
        let towards = towards_anyone(client.dst.into());
        let exhausted = (DropReason::PortsExhausted, Termination::OutOfSourcePorts);
        if let Some(reason) = self.exhausted.recall(turn.now, lane.id, towards) {
            return Err((reason, exhausted.1));
        }
        let unleased = FlowPath { client: *client, server: *client, returns: Returns::Here };
        let home = self.home_of_flow(&unleased);
        // Of a family that its pool has no address of.
        let Some(route) = lane.pool.route(towards) else { return Err(exhausted) };
        let class = first_class(self.services.rule(lane.id), client);
        for _ in 0..LEASES_MAX {
            let Ok(lease) = lane.pool.lease_at(LeasePlace::new(route, home), &self.snapshot.steering, self.worker)
            else {
                self.exhausted.note(turn.now, lane.id, towards, exhausted.0);
                return Err(exhausted);
            };
            let server = Tuple { src: lease.ip(), src_port: lease.port(), ..*client };
            let path = FlowPath { server, ..unleased };
            let mut detail = Detail::new(RealServerId::NOBODY, PickReason::Balanced, Some(lease));
            let hashes = self.flows.half_open.hashes(&path);
            match self.flows.open(turn.now, &path, &hashes, class, state, detail) {
                Ok(id) => return Ok((id, path)),
                Err(error) => {
                    detail.release(&path, self.services.maps());
                    if error != OpenError::Taken {
                        return Err(refused(error));
                    }
                    self.counts.add(PlaneCounter::LeasesRetried, 1);
                }
            }
        }
        Err(exhausted)
    }

    /// Takes a ping, or the reply to one, onwards if it is of a flow; or to the worker that has the flows of pings. `None`: it is of none.
    pub(super) fn forward_echo<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        echo: &Parsed,
        turn: &mut Turn<'_, D>,
    ) -> Option<Verdict> {
        if !self.snapshot.outbound.is_any() {
            return None;
        }
        let found = self.flows.lookup(&echo.tuple);
        if let Some(found) = found
            && let Some(verdict) = self.forward(frame, echo, found, turn)
        {
            return Some(verdict);
        }
        self.hand_off(&echo.tuple, None)
    }
}
