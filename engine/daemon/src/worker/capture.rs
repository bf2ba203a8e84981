//! Copies of frames for an operator: as they came, what became of them, and as they left.
//!
//! While nobody captures, a batch pays one look at whether somebody does. While somebody does, each frame is parsed and looked up once more.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use towpath_core::WorkerId;
use towpath_core::plane::{Concern, Frame, Outbox, Plane, PortId, Verdict};

use crate::questions::{CaptureOrder, CapturedFrame, Way, holds};

/// What copies the frames of a worker.
pub(super) struct Tap {
    order: Arc<CaptureOrder>,
    worker: WorkerId,
    /// Copies of frames of the batch at hand, by their places, before they were decided about.
    looked: Vec<(usize, CapturedFrame)>,
    /// What is handed out with the end of the batch.
    ready: Vec<CapturedFrame>,
}

/// Whether there is more to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tapped {
    More,
    Over,
}

impl Tap {
    pub(super) fn new(order: Arc<CaptureOrder>, worker: WorkerId) -> Tap {
        Tap { order, worker, looked: Vec::new(), ready: Vec::new() }
    }

    /// Copies those frames of a batch that are wanted, as they came; by another worker, if one has handed them on.
    pub(super) fn look(&mut self, plane: &Plane, frames: &[Frame<'_>], handed_by: Option<WorkerId>) {
        self.looked.clear();
        if self.order.is_over() {
            return;
        }
        let at = since_1970();
        for (place, frame) in frames.iter().enumerate() {
            let Some(concern) = self.wants(plane, frame.bytes) else { continue };
            // What becomes of it is not known yet.
            let way = Way::Came(Verdict::Pass);
            let parts = [&*frame.bytes, &[]];
            if let Some(captured) = self.copy(at, frame.port, way, parts, frame.segment_bytes, concern) {
                self.looked.push((place, CapturedFrame { handed_by, ..captured }));
            }
        }
    }

    /// Adds what became of them, and those that leave as they do.
    pub(super) fn note(&mut self, frames: &[Frame<'_>], verdicts: &[Verdict]) {
        let at = if self.looked.is_empty() { Duration::ZERO } else { since_1970() };
        for (place, mut came) in std::mem::take(&mut self.looked) {
            let (Some(verdict), Some(frame)) = (verdicts.get(place), frames.get(place)) else { continue };
            let concern = Concern { client: came.client, from_client: came.from_client };
            came.way = Way::Came(*verdict);
            self.ready.push(came);
            let (port, parts) = match *verdict {
                Verdict::Send(port) => (port, [&*frame.bytes, &[]]),
                // It begins in the room in front, or later than before.
                Verdict::Translated { port, begins } => match usize::try_from(begins) {
                    Ok(later) => (port, [frame.bytes.get(later..).unwrap_or_default(), &[]]),
                    Err(_) => {
                        let earlier = usize::from(begins.unsigned_abs());
                        let front = frame.front.len().saturating_sub(earlier);
                        (port, [&frame.front[front..], &*frame.bytes])
                    }
                },
                Verdict::Drop(_) | Verdict::HandOff(_) | Verdict::Kept | Verdict::Pass => continue,
            };
            let left = self.copy(at, port, Way::Left, parts, frame.segment_bytes, concern);
            self.ready.extend(left);
        }
    }

    /// Copies what was made here and is about to leave, and hands everything out.
    pub(super) fn note_made(&mut self, plane: &Plane, out: &Outbox) -> Tapped {
        if !self.order.is_over() {
            for (port, bytes) in out.iter() {
                if let Some(concern) = self.wants(plane, bytes) {
                    let made = self.copy(since_1970(), port, Way::Made, [bytes, &[]], 0, concern);
                    self.ready.extend(made);
                }
            }
        }
        if !self.ready.is_empty() {
            self.order.hand_out(std::mem::take(&mut self.ready));
        }
        if self.order.is_over() { Tapped::Over } else { Tapped::More }
    }

    fn wants(&self, plane: &Plane, frame: &[u8]) -> Option<Concern> {
        let concern = plane.concerns(frame, &self.order.services)?;
        let is_theirs = self.order.client.is_none_or(|network| holds(network, concern.client.ip()));
        is_theirs.then_some(concern)
    }

    /// A copy of a frame in two parts, as far as there is room for it.
    fn copy(
        &self,
        at: Duration,
        port: PortId,
        way: Way,
        parts: [&[u8]; 2],
        segment_bytes: u16,
        concern: Concern,
    ) -> Option<CapturedFrame> {
        let len = parts[0].len() + parts[1].len();
        let kept = len.min(self.order.snap_bytes);
        if !self.order.takes(kept) {
            return None;
        }
        let mut bytes = Vec::with_capacity(kept);
        for part in parts {
            let rest = kept - bytes.len();
            bytes.extend_from_slice(&part[..part.len().min(rest)]);
        }
        let Concern { client, from_client } = concern;
        Some(CapturedFrame {
            at,
            worker: self.worker,
            handed_by: None,
            port,
            way,
            bytes,
            len: u32::try_from(len).unwrap_or(u32::MAX),
            segment_bytes,
            client,
            from_client,
        })
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
