//! Flows of the packet plane: what is remembered of a connection between two packets.

pub mod half_open;
pub mod table;
pub mod tcp;
pub mod udp;

pub use table::{
    Closed, FlowId, FlowLimits, FlowPath, FlowTable, InsertError, Met, PathHashes, Returns, SeenAt, TableCounts,
    TimeoutClass, Timeouts, Trace, TupleHash,
};

/// Which way a packet of a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client, which opened the flow.
    Forward,
    /// From the real server.
    Reverse,
}

impl Direction {
    /// Both ways.
    pub const BOTH: [Direction; 2] = [Direction::Forward, Direction::Reverse];

    /// The other way.
    #[inline]
    pub fn opposite(self) -> Direction {
        match self {
            Direction::Forward => Direction::Reverse,
            Direction::Reverse => Direction::Forward,
        }
    }

    #[inline]
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}
