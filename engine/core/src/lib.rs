//! Decisions: who serves a new flow, from which source port, until when. No I/O, no clock, no threads, no unsafe.

pub mod counters;
pub mod ids;
pub mod snat;
pub mod steering;
pub mod time;

pub use ids::{Generation, RealServerId, ServiceId, TargetIndex, VShard, WorkerId};
pub use time::Now;
