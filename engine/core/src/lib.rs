//! Decisions: who serves a new flow, from which source port, until when. No I/O, no clock, no threads, no unsafe.

#![forbid(unsafe_code)]

pub mod access;
pub mod admin;
mod assembler;
pub mod balancer;
pub mod burst;
pub mod client_hello;
pub mod compile;
pub mod counters;
pub mod director;
pub mod eligible;
pub mod explain;
pub mod fast_path;
#[cfg(test)]
mod fixtures;
pub mod flow;
pub mod health;
pub mod histogram;
pub mod http;
pub mod http2;
pub mod ids;
pub mod loads;
pub mod maglev;
pub mod name_routes;
pub mod notices;
pub mod outbound;
pub mod packet;
pub mod passive;
pub mod persistence;
pub mod plane;
pub mod proxy_header;
pub mod random;
pub mod registry;
pub mod router;
pub mod server_hello;
pub mod session;
pub mod sip;
pub mod snapshot;
pub mod snat;
pub mod steering;
pub mod time;
pub mod waiting;
pub mod wheel;

pub use director::{Client, Pick, PickReason, Refusal, Tried, pick, pick_pinned};
pub use health::{CheckId, CheckPlan, CheckResult, HealthBoard};
pub use ids::{Generation, RealServerId, ServiceId, TargetIndex, VShard, WorkerId};
pub use loads::{Full, Loads};
pub use snapshot::{Service, Snapshot, Target};
pub use time::Now;
