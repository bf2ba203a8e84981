//! Responses, from what waits to frames: one stream behind the other, as far as the windows of the client go.

use std::mem;

use super::super::frame::{self, ErrorCode, PAYLOAD_BYTES_MAX};
use super::super::hpack;
use super::read::OPENINGS_PER_FRAME;
use super::{Connection, End, Progress, Stream, StreamId};

impl Connection {
    pub(super) fn write_block(&mut self, stream: StreamId, block: &[u8], last: bool) {
        if mem::replace(&mut self.wrote_block, true) {
            return frame::write_fields(stream, block, last, &mut self.out);
        }
        let mut first = Vec::with_capacity(block.len() + 1);
        hpack::write_no_table(&mut first);
        first.extend_from_slice(block);
        frame::write_fields(stream, &first, last, &mut self.out);
    }

    /// The stream whose turn it is, behind the one that has had its own.
    pub(super) fn next_turn(&self) -> Option<usize> {
        let behind = self.streams.partition_point(|stream| stream.id <= self.turn);
        let (before, after) = self.streams.split_at(behind);
        let ready = |stream: &Stream| stream.is_ready(self.send_window);
        let found = after.iter().position(ready).map(|at| behind + at);
        found.or_else(|| before.iter().position(ready))
    }

    /// Writes one frame of this stream, of at most `room` bytes.
    pub(super) fn write_turn(&mut self, at: usize, room: usize, out: &mut Vec<u8>) -> Progress {
        let stream = &mut self.streams[at];
        let id = stream.id;
        self.turn = id;
        let windows = usize::try_from(stream.send_window.min(self.send_window)).unwrap_or(0);
        let len = stream.pending().min(PAYLOAD_BYTES_MAX).min(room).min(windows);
        let is_all = len == stream.pending();
        let ends = is_all && matches!(stream.end, End::Data);
        if len > 0 || ends {
            frame::write_data(id, &stream.pending[stream.sent..stream.sent + len], ends, out);
            stream.sent += len;
            stream.send_window -= len as i64;
            self.send_window -= len as i64;
            self.meters.openings.pay_back(OPENINGS_PER_FRAME);
        }
        if !is_all {
            return Progress { stream: id, drained: false };
        }
        let stream = &mut self.streams[at];
        (stream.pending, stream.sent) = (Vec::new(), 0);
        match mem::replace(&mut stream.end, End::Open) {
            End::Open => {}
            End::Data => self.response_ended(at),
            End::Trailers(block) => {
                self.write_block(id, &block, true);
                self.response_ended(at);
            }
        }
        Progress { stream: id, drained: true }
    }

    /// Our side of a stream has ended; so has the client's, or nobody waits for the rest (RFC 9113 §8.1).
    pub(super) fn response_ended(&mut self, at: usize) {
        let Stream { id, is_whole, .. } = self.streams[at];
        if !is_whole {
            frame::write_reset(id, ErrorCode::NoError, &mut self.out);
        }
        self.forget(id);
    }
}
