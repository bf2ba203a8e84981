//! The engine: workers, listeners, the controller with its health probes, and the control socket.

pub mod listen;
pub mod plan;
pub mod preflight;
pub mod settings;
pub mod shared;
pub mod worker;
