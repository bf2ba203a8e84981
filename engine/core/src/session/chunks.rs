//! Received bytes on their way out: for each buffer of a worker what it holds, and which one follows it.
//!
//! A session's queue is a chain through this table, so queues take no memory of their own and are bounded by the buffers.

/// One stretch of received bytes inside a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The buffer.
    pub buffer: u16,
    /// Where the unsent bytes start.
    pub start: u32,
    /// Unsent bytes.
    pub len: u32,
}

/// A queue of chunks: first and last buffer and their number.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chain {
    first: u16,
    last: u16,
    count: u16,
}

/// What each buffer of one worker holds while a session has it.
pub struct Chunks {
    rows: Box<[Row]>,
}

#[derive(Clone, Copy, Default)]
struct Row {
    start: u32,
    len: u32,
    next: u16,
}

impl Chunks {
    /// A table for buffers 0 to `buffers` − 1.
    pub fn new(buffers: usize) -> Chunks {
        Chunks { rows: vec![Row::default(); buffers].into_boxed_slice() }
    }

    pub(super) fn push(&mut self, chain: &mut Chain, buffer: u16, len: u32) {
        self.rows[usize::from(buffer)] = Row { start: 0, len, next: 0 };
        if chain.count == 0 {
            chain.first = buffer;
        } else {
            self.rows[usize::from(chain.last)].next = buffer;
        }
        chain.last = buffer;
        chain.count += 1;
    }

    pub(super) fn first(&self, chain: &Chain) -> Option<Chunk> {
        if chain.count == 0 {
            return None;
        }
        let row = &self.rows[usize::from(chain.first)];
        Some(Chunk { buffer: chain.first, start: row.start, len: row.len })
    }

    /// Takes `bytes` off the first chunk; gives its buffer back when nothing is left of it.
    pub(super) fn consume(&mut self, chain: &mut Chain, bytes: u32) -> Option<u16> {
        debug_assert!(chain.count > 0, "nothing was queued");
        let row = &mut self.rows[usize::from(chain.first)];
        row.start += bytes;
        row.len -= bytes.min(row.len);
        if row.len > 0 {
            return None;
        }
        self.pop(chain)
    }

    pub(super) fn pop(&mut self, chain: &mut Chain) -> Option<u16> {
        if chain.count == 0 {
            return None;
        }
        let buffer = chain.first;
        chain.first = self.rows[usize::from(buffer)].next;
        chain.count -= 1;
        Some(buffer)
    }
}

impl Chain {
    pub(super) fn count(&self) -> u16 {
        self.count
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }
}
