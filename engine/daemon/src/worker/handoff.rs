//! Between workers: frames that came here and belong elsewhere, flows that move, and the programs by which the kernel steers.

use std::io;
use std::sync::Arc;

use towpath_core::WorkerId;
use towpath_core::packet::rewrite::Checksum;
use towpath_core::plane::{BATCH_MAX, Frame, Verdict};
use towpath_sys::packet::{Offload, Tag};
use towpath_sys::ring::Wait;

use super::Worker;
use super::packets::{Counters, Left, Packets};
use crate::shared::{HandedFrame, Inbox, Letter, Parcel, Seat};

/// Letters read in one breath.
const LETTERS_MAX: usize = 256;
/// Slots of flows looked at in one breath because their virtual shard may have moved.
const EXPORTED_MAX: usize = 2048;

/// How long a steering program waits that the kernel did not take; as no sleep is longer, nothing has to wake for it.
const RESTEER_MS: u64 = 1000;

/// The worker that tells the kernel how to steer: any member of a group may, for all of them.
const STEERSMAN: WorkerId = WorkerId(0);

/// What a worker has of the others.
pub(super) struct Handoff {
    id: WorkerId,
    /// By worker; empty where there is only one, or no packet plane.
    inboxes: Arc<[Inbox]>,
    /// Who has got something since they were last woken; one bit each.
    got: [u64; 4],
    /// What was read and is not yet done.
    letters: Vec<Letter>,
    /// Frames of one batch.
    frames: Vec<HandedFrame>,
}

impl Handoff {
    pub(super) fn new(id: WorkerId, inboxes: Arc<[Inbox]>) -> Handoff {
        Handoff {
            id,
            inboxes,
            got: [0; 4],
            letters: Vec::with_capacity(LETTERS_MAX),
            frames: Vec::with_capacity(BATCH_MAX),
        }
    }

    fn own(&self) -> Option<&Inbox> {
        self.inboxes.get(self.id.index())
    }

    /// Hands a frame to another worker; whether it had room.
    pub(super) fn hand(&mut self, to: WorkerId, link: u8, bytes: &[u8], offload: Offload, tag: Option<Tag>) -> bool {
        let inbox = self.inboxes.get(to.index());
        let is_taken = inbox.is_some_and(|inbox| inbox.put_frame(self.id, link, bytes, offload, tag));
        self.note(to);
        is_taken
    }

    fn note(&mut self, to: WorkerId) {
        self.got[to.index() / 64] |= 1 << (to.index() % 64);
    }

    /// Wakes who has got something and sleeps.
    pub(super) fn wake_others<'s>(&mut self, seats: impl Iterator<Item = &'s Seat>) {
        if self.got == [0; 4] {
            return;
        }
        for (seat, inbox) in seats.zip(&*self.inboxes) {
            let worker = seat.id().index();
            if self.got[worker / 64] >> (worker % 64) & 1 == 1 && inbox.must_wake() {
                seat.wake();
            }
        }
        self.got = [0; 4];
    }
}

impl Packets {
    /// Gives flows away whose virtual shards belong to others now.
    pub(super) fn export(&mut self, now: towpath_core::Now, desk: &mut Counters<'_>) -> Left {
        let Packets { plane, handoff, .. } = self;
        let all_given = plane.export(now, EXPORTED_MAX, desk, |to, cargo| {
            let given = handoff.inboxes.get(to.index()).is_some_and(|inbox| inbox.put_cargo(handoff.id, cargo));
            handoff.note(to);
            given
        });
        if all_given { Left::Nothing } else { Left::Something }
    }

    /// Does what the letters at hand say.
    fn do_letters(&mut self, now: towpath_core::Now, desk: &mut Counters<'_>) {
        let mut letters = std::mem::take(&mut self.handoff.letters);
        let mut by = self.handoff.id;
        for letter in letters.drain(..) {
            if letter.by != by || self.handoff.frames.len() == BATCH_MAX || matches!(letter.parcel, Parcel::Cargo(_)) {
                self.do_frames(now, by, desk);
            }
            by = letter.by;
            match letter.parcel {
                Parcel::Frame(frame) => self.handoff.frames.push(frame),
                Parcel::Cargo(cargo) => {
                    self.plane.import(now, by, cargo, desk, &mut self.out);
                    self.send_made();
                }
            }
        }
        self.do_frames(now, by, desk);
        self.handoff.letters = letters;
    }

    /// Takes the frames of one batch through the plane.
    fn do_frames(&mut self, now: towpath_core::Now, by: WorkerId, desk: &mut Counters<'_>) {
        let count = self.handoff.frames.len();
        if count == 0 {
            return;
        }
        let mut handed = std::mem::take(&mut self.handoff.frames);
        let mut rest = handed.iter_mut();
        let mut frames: [Frame<'_>; BATCH_MAX] = std::array::from_fn(|_| match rest.next() {
            Some(frame) => {
                let port = self.lanes.port(frame.link, frame.tag);
                let checksum = if frame.offload.checksum.is_some() { Checksum::Partial } else { Checksum::Complete };
                let segment_bytes = frame.offload.segments.map_or(0, |segments| segments.payload_bytes);
                let (front, bytes) = frame.parts_mut();
                Frame { bytes, front, port, checksum, segment_bytes }
            }
            None => Frame::default(),
        });
        if let Some(tap) = &mut self.tap {
            tap.look(&self.plane, &frames[..count], Some(by));
        }
        self.plane.process_handed(now, by, &mut frames[..count], &mut self.verdicts, desk, &mut self.out);
        if let Some(tap) = &mut self.tap {
            tap.note(&frames[..count], &self.verdicts);
        }
        for (mut frame, verdict) in handed.drain(..).zip(&self.verdicts) {
            match *verdict {
                Verdict::Send(port) => {
                    let (link, tag) = self.lanes.way(port, frame.tag);
                    self.ports.send_bytes(link, frame.bytes(), frame.offload, tag);
                }
                Verdict::Translated { port, begins } => {
                    frame.cross(begins);
                    let (link, tag) = self.lanes.way(port, frame.tag);
                    self.ports.send_bytes(link, frame.bytes(), frame.offload, tag);
                }
                Verdict::HandOff(to) => {
                    if !self.handoff.hand(to, frame.link, frame.bytes(), frame.offload, frame.tag) {
                        self.plane.count_not_handed();
                    }
                }
                Verdict::Drop(_) | Verdict::Kept | Verdict::Pass => {}
            }
            if let Some(inbox) = self.handoff.own() {
                inbox.give_back(frame);
            }
        }
        self.handoff.frames = handed;
        self.send_made();
    }

    /// Hands the frames of the batch that are others' to them, as they were received.
    pub(super) fn hand_off_batch(&mut self) {
        for (frame, verdict) in self.ports.frames().zip(&self.verdicts) {
            if let Verdict::HandOff(to) = *verdict
                && !self.handoff.hand(to, frame.port, frame.bytes, frame.offload, frame.tag)
            {
                self.plane.count_not_handed();
            }
        }
    }
}

impl Worker {
    /// Reads what other workers have put in.
    pub(super) fn read_letters(&mut self) -> io::Result<Left> {
        let Some(packets) = &mut self.packets else { return Ok(Left::Nothing) };
        let Handoff { id, inboxes, letters, .. } = &mut packets.handoff;
        let Some(inbox) = inboxes.get(id.index()) else { return Ok(Left::Nothing) };
        inbox.get_up();
        while letters.len() < LETTERS_MAX
            && let Some(letter) = inbox.take()
        {
            letters.push(letter);
        }
        if letters.is_empty() {
            return Ok(Left::Nothing);
        }
        let left = if letters.len() == LETTERS_MAX { Left::Something } else { Left::Nothing };
        // Who wrote may know a newer snapshot, and it was published before.
        self.adopt()?;
        let Worker { packets: Some(packets), shared, id, now, stopping, .. } = self else { return Ok(left) };
        let mut desk = Counters { shared, seat: shared.seat(*id), takes_new: stopping.is_none() };
        packets.do_letters(*now, &mut desk);
        packets.note_soon(*now);
        Ok(left)
    }

    /// Whether flows are still to be given, or to come.
    pub(super) fn is_moving(&self) -> bool {
        self.packets.as_ref().is_some_and(|packets| packets.plane.is_moving())
    }

    /// Sleeps only when nobody has put anything in.
    pub(super) fn lie_down(&self, wait: Wait) -> Wait {
        let own = self.packets.as_ref().and_then(|packets| packets.handoff.own());
        match (wait, own) {
            (Wait::Sleep(_), Some(inbox)) if !inbox.lie_down() => Wait::Poll,
            _ => wait,
        }
    }

    /// Says that all flows which a generation gives to others are on their way, and those that others give have come.
    pub(super) fn report_moved(&mut self) {
        if !self.is_moving() && self.moved != self.snapshot.generation {
            self.moved = self.snapshot.generation;
            self.shared.report_moved(self.id, self.moved);
        }
    }

    /// Has the kernel steer by the newest programs. UDP clients of the stream plane stay with the workers that have their sessions.
    pub(super) fn follow_steering(&mut self) {
        if self.id != STEERSMAN {
            return;
        }
        if self.resteer_at.is_some_and(|due| due <= self.now) {
            self.steered = 0;
        }
        let Some(programs) = self.shared.network().steering_newer_than(&mut self.steered) else { return };
        let is_first = self.resteer_at.take().is_none();
        let mut failed = Vec::new();
        let ports = self.packets.as_ref().map_or(0, |packets| packets.ports.count());
        for port in 0..ports as u8 {
            let Some(packets) = &self.packets else { break };
            let port = packets.ports.port(port);
            // One that is gone is opened anew, and then steered.
            if let Err(error) = port.steer(&programs.fanout) {
                failed.push(format!("frames of interface {}: {error}", port.name()));
            }
        }
        if let Err(error) = self.doors.steer(&programs.reuseport) {
            failed.push(format!("new clients: {error}"));
        }
        if failed.is_empty() {
            return;
        }
        self.resteer_at = Some(self.now + RESTEER_MS);
        if is_first {
            tracing::warn!("steered as before until the kernel takes the new program: {}", failed.join("; "));
        }
    }

    /// A port was opened anew, and so is steered as at the start.
    pub(super) fn steer_again(&mut self) {
        self.steered = 0;
    }
}
