//! The packet plane of a worker: frames out of its rings, through the plane, and out again.
//!
//! A breath looks into the rings whether or not they were announced: that costs a read of memory. The ring's polls only end a sleep.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use towpath_config::model::{AdminState, MachineRole, Plane as PlaneWord};
use towpath_core::counters::{ServiceCounter, Termination};
use towpath_core::director::{Pick, Refusal, Tried};
use towpath_core::loads::Loads;
use towpath_core::packet::rewrite::Checksum;
use towpath_core::plane::{
    BATCH_MAX, Desk, FLOW_RECORD, FlowEnd, FlowPlace, Frame, HELD_BYTES_MAX, Inherited, Outbox, Plane, PlaneSettings,
    PortId, Survey, Verdict,
};
use towpath_core::snapshot::{Service, Snapshot};
use towpath_core::{Now, RealServerId, ServiceId, WorkerId};
use towpath_sys::packet::{Offload, PacketPort, PacketPorts, PortState};
use towpath_sys::pages;
use towpath_sys::prefetch::prefetch;
use towpath_sys::ring::{Completion, Readiness};

use super::Worker;
use super::capture::{Tap, Tapped};
use super::handoff::Handoff;
use super::lanes::Lanes;
use super::token::{Key, Token};
use crate::shared::{Inbox, RingCounter, Seat, Shared};
use crate::upgrade::plane::{Inheritance, PlaneOrder, PlaneWish, Writing};

/// Batches of frames moved in one breath.
const BATCHES_MAX: usize = 8;
/// Flows looked at in one breath because their time may be up.
const EXPIRED_MAX: usize = 256;
/// Of these, before what was made for them is sent: a step of a sweep may end 16 flows, and each end may get two resets.
const EXPIRED_STEP: usize = 4;
/// Places of flows written down in one breath.
const WRITTEN_MAX: usize = 4_096;
/// Frames made in one batch or one step of expiry, besides those that waited for a next hop.
const MADE_MAX: usize = 4 * 16 * EXPIRED_STEP;
/// How long after a change the counters that status shows may be older.
const NOTE_MS: u64 = 100;
/// Time between two looks at what the kernel counts of the rings.
const RING_NOTE_MS: u64 = 1000;
/// How often our addresses are announced, and the time in between (RFC 5227 section 1.1, ANNOUNCE_NUM and ANNOUNCE_INTERVAL).
const ANNOUNCEMENTS: u32 = 2;
const ANNOUNCE_AGAIN_MS: u64 = 2000;
/// How often when they were another machine's before: neighbours know that one, and a frame may be lost.
const TAKEOVER_ANNOUNCEMENTS: u32 = 5;
/// The worker that questions for neighbours are steered to, so the one that announces.
const ANNOUNCER: WorkerId = WorkerId(0);

/// The rings and the plane of one worker.
pub(super) struct Packets {
    pub(super) ports: PacketPorts,
    pub(super) plane: Plane,
    pub(super) out: Outbox,
    pub(super) verdicts: Vec<Verdict>,
    pub(super) handoff: Handoff,
    pub(super) lanes: Lanes,
    /// Hands out copies of frames, while somebody wants them.
    pub(super) tap: Option<Box<Tap>>,
    /// Of the network that the plane has.
    edition: u64,
    /// Of the announcements that were made.
    announced: u64,
    /// When our addresses are announced next, and how often in all.
    announce: Option<(Now, u32)>,
    note_at: Option<Now>,
    ring_note_at: Now,
    /// How often each port was opened: a poll of an earlier one says nothing about it.
    openings: Vec<u32>,
    /// Ports whose interface is gone, as was reported for this opening.
    gone: Vec<bool>,
    /// A port was announced; if it has no frame, its state has changed.
    was_polled: bool,
    /// Services whose flows were ended because their drain is over.
    drained: usize,
    /// Flows whose time is up, or whose server was halted.
    overdue: Left,
    /// That of the snapshot at hand.
    role: MachineRole,
    /// Frames were moved since somebody asked.
    has_moved: bool,
    /// Neither reads nor sends: another process is about to take over.
    is_frozen: bool,
    /// Its flows are being written down for that process.
    writing: Option<Writing>,
}

/// More may be there at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    Nothing,
    Something,
}

impl Packets {
    pub(super) fn new(
        ports: Vec<PacketPort>,
        inboxes: Arc<[Inbox]>,
        settings: &PlaneSettings,
        snapshot: &Arc<Snapshot>,
        shared: &Shared,
        now: Now,
    ) -> Packets {
        let network = shared.network().current();
        let (openings, gone) = (vec![0; ports.len()], vec![false; ports.len()]);
        let lanes = Lanes::new(&network);
        let plane = Plane::new(settings, Arc::clone(snapshot), network, now);
        plane.memory().for_each(|memory| {
            pages::prefer_huge(memory);
        });
        let made_max = settings.pending_frames_max + MADE_MAX;
        Packets {
            ports: PacketPorts::new(ports),
            plane,
            out: Outbox::new(made_max, made_max * HELD_BYTES_MAX),
            verdicts: Vec::with_capacity(BATCH_MAX),
            handoff: Handoff::new(settings.worker, inboxes),
            lanes,
            tap: None,
            // None: ports may have been opened anew since the first, and they are taken with the next.
            edition: 0,
            announced: shared.network().announcements(),
            announce: (settings.worker == ANNOUNCER).then_some((now, ANNOUNCEMENTS)),
            note_at: Some(now),
            ring_note_at: now,
            openings,
            gone,
            was_polled: false,
            drained: 0,
            overdue: Left::Nothing,
            role: snapshot.role,
            has_moved: false,
            is_frozen: false,
            writing: None,
        }
    }

    /// Takes this worker's flows of the process before, and none of the frames that were forwarded there.
    pub(super) fn inherit(
        &mut self,
        inheritance: &Inheritance,
        shared: &Shared,
        seat: &Seat,
        now: Now,
    ) -> io::Result<()> {
        self.ports.take_from(inheritance.began_unix_ns());
        let mut desk = Counters { shared, seat, takes_new: true };
        let count = |desk: &mut Counters<'_>, service, server| {
            // Without limits it always fits.
            let _counted = desk.shared.loads().try_open(service, 0, server, 0);
        };
        let (mut taken, mut lost) = (0, 0);
        let result = inheritance.each(|record| {
            let became = self.plane.inherit(now, record, inheritance, &mut desk, count, &mut self.out);
            match became.map_err(|error| format!("a flow of the process before is damaged: {error}"))? {
                Inherited::Taken => taken += 1,
                Inherited::Lost => lost += 1,
                Inherited::Elsewhere(_) => {}
            }
            // Nothing is said about those that found no room: the process before may still have to go on.
            self.out.clear();
            Ok(())
        });
        inheritance.count(taken, lost);
        inheritance.await_others();
        result
    }

    /// Writes some of the flows down, and says so once all are.
    fn write_flows(&mut self, now: Now, desk: &mut Counters<'_>, id: WorkerId) -> Left {
        let Some(Writing { order, at }) = &mut self.writing else { return Left::Nothing };
        let mut records = Vec::with_capacity(WRITTEN_MAX * FLOW_RECORD);
        let is_end = self.plane.write_flows(now, at, WRITTEN_MAX, desk, &mut records);
        let written = order.write(id.index(), &records);
        if !is_end && written.is_ok() {
            return Left::Something;
        }
        self.plane.tell_carried(desk);
        order.answer(written);
        self.writing = None;
        Left::Nothing
    }

    /// Flows that it holds.
    pub(super) fn flows(&self) -> u32 {
        u32::try_from(self.plane.flows()).unwrap_or(u32::MAX)
    }

    /// When it has something to do next, whatever comes in.
    pub(super) fn next_due(&self) -> Option<Now> {
        if self.is_frozen {
            return None;
        }
        [self.plane.next_due(), self.announce.map(|(at, _)| at), self.note_at].into_iter().flatten().min()
    }

    /// Takes frames from the rings, at most so many batches.
    fn move_frames(&mut self, now: Now, desk: &mut Counters<'_>) -> Left {
        for batch in 0..BATCHES_MAX {
            let count = self.ports.take(BATCH_MAX);
            if count == 0 {
                if batch == 0 && self.was_polled {
                    self.ask_states(desk.shared);
                }
                self.was_polled = false;
                return Left::Nothing;
            }
            self.move_batch(now, count, desk);
            self.has_moved = true;
            self.note_soon(now);
        }
        Left::Something
    }

    /// Asks how the ports are, which takes the error away that would announce one for ever, and reports those that are gone.
    fn ask_states(&mut self, shared: &Shared) {
        for (gone, port) in self.gone.iter_mut().zip(0..) {
            if self.ports.state(port) == PortState::Gone && !*gone {
                *gone = true;
                shared.network().report_gone(PortId(port));
            }
        }
    }

    fn move_batch(&mut self, now: Now, count: usize, desk: &mut Counters<'_>) {
        let mut received = self.ports.frames();
        let mut tags = [None; BATCH_MAX];
        let mut frames: [Frame<'_>; BATCH_MAX] = std::array::from_fn(|at| match received.next() {
            Some(frame) => {
                tags[at] = frame.tag;
                Frame {
                    bytes: frame.bytes,
                    front: frame.front,
                    port: self.lanes.port(frame.port, frame.tag),
                    checksum: if frame.offload.checksum.is_some() { Checksum::Partial } else { Checksum::Complete },
                    segment_bytes: frame.offload.segments.map_or(0, |segments| segments.payload_bytes),
                }
            }
            None => Frame::default(),
        });
        drop(received);
        if let Some(tap) = &mut self.tap {
            tap.look(&self.plane, &frames[..count], None);
        }
        self.plane.process(now, &mut frames[..count], &mut self.verdicts, desk, &mut self.out);
        if let Some(tap) = &mut self.tap {
            tap.note(&frames[..count], &self.verdicts);
        }
        let mut any_handed = false;
        for (frame, verdict) in self.verdicts.iter().enumerate() {
            match verdict {
                Verdict::Send(port) => {
                    let (link, tag) = self.lanes.way(*port, tags[frame]);
                    self.ports.send(frame, link, tag);
                }
                Verdict::Translated { port, begins } => {
                    self.ports.cross(frame, *begins);
                    let (link, tag) = self.lanes.way(*port, tags[frame]);
                    self.ports.send(frame, link, tag);
                }
                Verdict::HandOff(_) => any_handed = true,
                Verdict::Drop(_) | Verdict::Kept | Verdict::Pass => {}
            }
        }
        if any_handed {
            self.hand_off_batch();
        }
        self.send_made();
    }

    /// Sends what the plane has made, and hands fragments to the workers that have their flows.
    pub(super) fn send_made(&mut self) {
        if let Some(tap) = &mut self.tap
            && tap.note_made(&self.plane, &self.out) == Tapped::Over
        {
            self.tap = None;
        }
        for (port, bytes) in self.out.iter() {
            let (link, tag) = self.lanes.way(port, None);
            self.ports.send_bytes(link, bytes, Offload::NONE, tag);
        }
        for (to, port, bytes) in self.out.handed() {
            let (link, tag) = self.lanes.way(port, None);
            if !self.handoff.hand(to, link, bytes, Offload::NONE, tag) {
                self.plane.count_not_handed();
            }
        }
        self.out.clear();
    }

    /// Ends one flow as an operator wants it.
    pub(super) fn end_flow(&mut self, now: Now, place: FlowPlace, desk: &mut Counters<'_>) -> FlowEnd {
        let end = self.plane.end_flow(now, place, desk, &mut self.out);
        self.send_made();
        self.note_soon(now);
        end
    }

    /// Ends flows whose time is up.
    fn expire(&mut self, now: Now, desk: &mut Counters<'_>) -> Left {
        if self.plane.next_due().is_none_or(|due| due > now) {
            return Left::Nothing;
        }
        self.note_soon(now);
        for _ in 0..EXPIRED_MAX / EXPIRED_STEP {
            let all_done = self.plane.expire(now, EXPIRED_STEP, desk, &mut self.out);
            self.send_made();
            if all_done {
                return Left::Nothing;
            }
        }
        Left::Something
    }

    /// Says where our addresses are, when that is due.
    fn announce(&mut self, now: Now) {
        let Some((_, times)) = self.announce.filter(|(at, _)| *at <= now) else { return };
        self.announce = (times > 1).then_some((now + ANNOUNCE_AGAIN_MS, times - 1));
        self.plane.announce(&mut self.out);
        self.send_made();
    }

    /// The counters have changed, so status is to show it.
    pub(super) fn note_soon(&mut self, now: Now) {
        self.note_at.get_or_insert(now + NOTE_MS);
    }

    /// Copies the counters for status, when that is due.
    fn note(&mut self, now: Now, shared: &Shared, seat: &Seat) {
        if self.note_at.is_some_and(|at| at <= now) {
            self.note_at = None;
            seat.note_packets(self.plane.counts(), self.plane.flows());
        }
        // By itself: a ring may lose every frame, and no worker sleeps longer.
        if now >= self.ring_note_at {
            self.note_rings(now, shared, seat);
        }
    }

    fn note_rings(&mut self, now: Now, shared: &Shared, seat: &Seat) {
        self.ring_note_at = now + RING_NOTE_MS;
        // An error may have come together with frames, or have gone with a send.
        self.ask_states(shared);
        seat.note_ring(RingCounter::MadeTooMany, self.out.overflowed());
        let mut sums = [0; RingCounter::ALL.len()];
        for port in 0..self.openings.len() as u8 {
            let (received, sent) = (self.ports.rx_counts(port), self.ports.tx_counts(port));
            let counts = [
                (RingCounter::ReceivedForeign, received.foreign),
                (RingCounter::ReceivedLost, received.dropped),
                (RingCounter::ReceivedTagged, received.tagged),
                (RingCounter::ReceivedTruncated, received.truncated),
                (RingCounter::ReceivedUnknown, received.unknown),
                (RingCounter::SendDown, sent.down),
                (RingCounter::SendFull, sent.full),
                (RingCounter::SendRefused, sent.refused),
                (RingCounter::SendTooLarge, sent.too_large),
            ];
            counts.into_iter().for_each(|(counter, count)| sums[counter as usize] += count);
        }
        for &counter in RingCounter::ALL.iter().filter(|&&counter| counter != RingCounter::MadeTooMany) {
            seat.note_ring(counter, sums[counter as usize]);
        }
    }
}

impl Worker {
    /// Has the rings end a sleep.
    pub(super) fn arm_packets(&mut self) -> io::Result<()> {
        let ports = self.packets.as_ref().map_or(0, |packets| packets.openings.len());
        (0..ports).try_for_each(|port| self.arm_port(port))
    }

    fn arm_port(&mut self, port: usize) -> io::Result<()> {
        let Some(packets) = &self.packets else { return Ok(()) };
        let token = Token::Frames(Key { index: port as u32, generation: packets.openings[port] });
        self.ring.await_ready_many(packets.ports.poll_fd(port as u8), Readiness::Readable, token.pack())
    }

    /// A port has frames, or has changed its state: this breath looks.
    pub(super) fn frames_announced(&mut self, key: Key, completion: &Completion) -> io::Result<()> {
        let Some(packets) = &mut self.packets else { return Ok(()) };
        if packets.openings.get(key.index as usize) != Some(&key.generation) {
            return Ok(());
        }
        packets.was_polled = true;
        if completion.more() { Ok(()) } else { self.arm_port(key.index as usize) }
    }

    /// One turn of the packet plane; says whether it has more to do at once.
    pub(super) fn move_packets(&mut self) -> io::Result<Left> {
        if let Worker { packets: Some(packets), shared, id, now, .. } = self
            && packets.is_frozen
        {
            let mut desk = Counters { shared, seat: shared.seat(*id), takes_new: true };
            return Ok(packets.write_flows(*now, &mut desk, *id));
        }
        self.follow_network()?;
        let letters = self.read_letters()?;
        let Worker { packets: Some(packets), shared, id, now, stopping, .. } = self else {
            self.report_moved();
            return Ok(Left::Nothing);
        };
        let seat = shared.seat(*id);
        let mut desk = Counters { shared, seat, takes_new: stopping.is_none() };
        let moved = packets.move_frames(*now, &mut desk);
        let exported = packets.export(*now, &mut desk);
        packets.overdue = packets.expire(*now, &mut desk);
        packets.announce(*now);
        packets.ports.flush();
        packets.handoff.wake_others(shared.seats());
        while let Some((port, via)) = packets.plane.wanted(*now) {
            shared.network().want(port, via);
        }
        if exported == Left::Something {
            packets.note_soon(*now);
        }
        packets.note(*now, shared, seat);
        let overdue = packets.overdue;
        self.report_moved();
        let is_left = [letters, moved, exported, overdue].contains(&Left::Something);
        Ok(if is_left { Left::Something } else { Left::Nothing })
    }

    /// Stops, goes on or ends as another process takes over, or does not.
    pub(super) fn obey_plane(&mut self, order: Arc<PlaneOrder>) -> io::Result<()> {
        match (&order.wish, &mut self.packets) {
            (PlaneWish::Freeze(_), Some(packets)) if packets.plane.is_moving() => {
                order.answer(Err(io::Error::other("flows still move between workers; try again in a moment")));
            }
            (PlaneWish::Freeze(_), Some(packets)) => {
                packets.ports.flush();
                packets.is_frozen = true;
                packets.writing = Some(Writing { order, at: Survey::START });
            }
            (PlaneWish::Thaw, Some(packets)) => {
                (packets.is_frozen, packets.writing) = (false, None);
                packets.note_soon(self.now);
                order.answer(Ok(()));
            }
            (PlaneWish::Leave, Some(_)) => {
                self.leave_ports()?;
                self.packets = None;
                order.answer(Ok(()));
            }
            (_, None) => order.answer(Ok(())),
        }
        Ok(())
    }

    /// A wait for a port would keep it open.
    fn leave_ports(&mut self) -> io::Result<()> {
        let Some(packets) = &self.packets else { return Ok(()) };
        for (index, generation) in (0..).zip(packets.openings.clone()) {
            self.ring.cancel_wait(Token::Frames(Key { index, generation }).pack(), Token::Nothing.pack())?;
        }
        Ok(())
    }

    /// Forwards by the newest network from here on, and sends what waited for it.
    pub(super) fn follow_network(&mut self) -> io::Result<()> {
        let Worker { packets: Some(packets), shared, id, now, .. } = self else { return Ok(()) };
        let Some(network) = shared.network().newer_than(&mut packets.edition) else { return Ok(()) };
        packets.lanes = Lanes::new(&network);
        packets.plane.adopt_network(network, &mut packets.out);
        packets.send_made();
        packets.ports.flush();
        let announcements = shared.network().announcements();
        if announcements != packets.announced && *id == ANNOUNCER {
            packets.announced = announcements;
            packets.announce = Some((*now, ANNOUNCEMENTS));
        }
        for (port, opened) in shared.network().take_reopened(*id) {
            self.replace_port(port, opened)?;
        }
        Ok(())
    }

    fn replace_port(&mut self, port: PortId, opened: PacketPort) -> io::Result<()> {
        let Some(packets) = &mut self.packets else { return Ok(()) };
        let Some(opening) = packets.openings.get_mut(port.index()) else { return Ok(()) };
        let poll = Token::Frames(Key { index: u32::from(port.0), generation: *opening });
        *opening += 1;
        packets.gone[port.index()] = false;
        self.ring.cancel_wait(poll.pack(), Token::Nothing.pack())?;
        drop(packets.ports.replace(port.0, opened));
        self.steer_again();
        self.arm_port(port.index())
    }

    /// Whether a service of the packet plane still has connections, on whichever worker: those that only wait for the end of their
    /// time do not count.
    pub(super) fn carries_flows(&self) -> bool {
        let on_packets = |service: &&Arc<Service>| service.plane == PlaneWord::Packet;
        self.packets.is_some()
            && self
                .snapshot
                .each_service()
                .filter(on_packets)
                .any(|service| self.shared.loads().service_active(service.id) > 0)
    }

    /// Hands the plane the snapshot that the worker has adopted.
    pub(super) fn adopt_in_plane(&mut self) {
        if let Some(packets) = &mut self.packets {
            packets.drained = 0;
            if packets.role != self.snapshot.role {
                packets.role = self.snapshot.role;
                let takes_over = packets.role == MachineRole::Active && self.id == ANNOUNCER;
                packets.announce = takes_over.then_some((self.now, TAKEOVER_ANNOUNCEMENTS));
            }
            packets.plane.adopt_snapshot(Arc::clone(&self.snapshot));
        }
    }

    /// Ends the flows of services whose drain is over: resets for both sides, as if their servers had been halted.
    pub(super) fn end_drained_flows(&mut self, over: impl Fn(&Service) -> bool) {
        let Some(packets) = &mut self.packets else { return };
        let is_over = |service: &Service| service.plane == PlaneWord::Packet && over(service);
        let drained = self.snapshot.each_service().filter(|service| is_over(service)).count();
        if drained == packets.drained {
            return;
        }
        packets.drained = drained;
        let mut snapshot = Snapshot::clone(&self.snapshot);
        for service in snapshot.services.iter_mut().flatten().filter(|service| is_over(service)) {
            let service = Arc::make_mut(service);
            service.targets.iter_mut().for_each(|target| target.admin = AdminState::Halt);
        }
        packets.plane.adopt_snapshot(Arc::new(snapshot));
        packets.overdue = Left::Something;
    }

    /// Whether frames were moved since the last call.
    pub(super) fn take_has_moved(&mut self) -> bool {
        self.packets.as_mut().is_some_and(|packets| std::mem::take(&mut packets.has_moved))
    }

    /// Whether flows are to be ended that still are there.
    pub(super) fn has_overdue_flows(&self) -> bool {
        self.packets.as_ref().is_some_and(|packets| packets.overdue == Left::Something)
    }
}

/// Where the plane asks for servers and tells what it has done: the state that all workers share, and this worker's seat.
pub(super) struct Counters<'w> {
    pub(super) shared: &'w Shared,
    pub(super) seat: &'w Seat,
    /// Nobody is served any more who is not yet.
    pub(super) takes_new: bool,
}

impl Desk for Counters<'_> {
    fn pick(&mut self, service: &Service, client: SocketAddr, port: u16, now: Now) -> Result<Pick, Refusal> {
        if !self.takes_new {
            return Err(Refusal::NoServer);
        }
        self.shared.pick(service, client, port, &Tried::new(), now)
    }

    fn close(&mut self, service: ServiceId, server: RealServerId) {
        self.shared.close(service, server);
    }

    fn count(&mut self, service: ServiceId, counter: ServiceCounter, n: u64) {
        self.seat.service_page(service).add(counter, n);
    }

    fn end(&mut self, service: ServiceId, termination: Termination) {
        let termination = match termination {
            // A client that came while we drain: to it nobody is here.
            Termination::NoServer if !self.takes_new => return,
            Termination::ServerDrained | Termination::ServerHalted if !self.takes_new => Termination::DrainEnded,
            other => other,
        };
        self.seat.service_page(service).count_end(termination);
    }

    fn opened(&mut self, server: RealServerId) {
        self.seat.count_opened(server);
    }

    fn failed(&mut self, server: RealServerId) {
        self.seat.count_failed(server);
    }

    #[inline(always)]
    fn prefetch(&self, line: *const u8) {
        prefetch(line);
    }
}
