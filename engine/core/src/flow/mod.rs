//! Flows of the packet plane: what is remembered of a connection between two packets.

pub mod table;

pub use table::{
    Closed, Direction, FlowId, FlowLimits, FlowPath, FlowTable, InsertError, Returns, TableCounts, TimeoutClass,
    Timeouts, Tuple,
};
