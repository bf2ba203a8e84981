//! What leaves by one side of an exchange, in order: bytes made here, and ranges of what was received.

use std::ops::Range;

/// Most bytes of the input that are copied in one go.
const COPIED_MAX: usize = 512;

/// A part of what leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of ours, and short ranges of the input: this range of [`Output::made`].
    Made(Range<u32>),
    /// This range of the bytes given to the last [`on_client`](super::Exchange::on_client) or [`on_server`](super::Exchange::on_server).
    Passed(Range<u32>),
}

/// What leaves by one side. To be sent (or copied) and cleared before other bytes are given to the exchange.
#[derive(Clone, Debug, Default)]
pub struct Output {
    made: Vec<u8>,
    pieces: Vec<Piece>,
}

impl Output {
    /// The parts, in order; none is empty, and no two neighbours could be one.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// What [`Piece::Made`] is of.
    pub fn made(&self) -> &[u8] {
        &self.made
    }

    /// Whether nothing leaves.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes that leave.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(|(Piece::Made(range) | Piece::Passed(range))| range.len()).sum()
    }

    /// Nothing leaves any more; the memory is kept for the next time.
    pub fn clear(&mut self) {
        self.made.clear();
        self.pieces.clear();
    }

    /// Appends everything to `out`; `input` is what [`Piece::Passed`] is of.
    ///
    /// # Panics
    /// If `input` is not that.
    pub fn copy_into(&self, input: &[u8], out: &mut Vec<u8>) {
        for piece in &self.pieces {
            let (bytes, range) = match piece {
                Piece::Made(range) => (self.made.as_slice(), range),
                Piece::Passed(range) => (input, range),
            };
            out.extend_from_slice(&bytes[range.start as usize..range.end as usize]);
        }
    }

    /// Bytes that `write` appends.
    pub(super) fn make(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.made.len() as u32;
        write(&mut self.made);
        let end = self.made.len() as u32;
        match self.pieces.last_mut() {
            Some(Piece::Made(last)) => last.end = end,
            _ if end > start => self.pieces.push(Piece::Made(start..end)),
            _ => {}
        }
    }

    /// `len` bytes of the input, from `at` on. Few of them are copied beside bytes of ours: a piece more costs more than that, and a
    /// body in tiny chunks is not to become as many pieces.
    pub(super) fn pass(&mut self, input: &[u8], at: usize, len: usize) {
        let range = at as u32..(at + len) as u32;
        match self.pieces.last_mut() {
            Some(Piece::Passed(last)) if last.end == range.start => last.end = range.end,
            Some(Piece::Made(last)) if len <= COPIED_MAX => {
                self.made.extend_from_slice(&input[at..at + len]);
                last.end += len as u32;
            }
            _ if len > 0 => self.pieces.push(Piece::Passed(range)),
            _ => {}
        }
    }
}
