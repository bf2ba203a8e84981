//! What a worker is told once, at its start.

use towpath_config::model::Poll;
use towpath_core::plane::PlaneSettings;

/// Bounds and seeds of one worker.
#[derive(Clone, Copy, Debug)]
pub struct WorkerSettings {
    /// How it waits when it has nothing to do.
    pub poll: Poll,
    /// TCP connections of the whole process; one worker may hold them all.
    pub connections_max: u32,
    /// UDP sessions of the whole process; one worker may hold them all.
    pub udp_sessions_max: u32,
    /// Receive buffers of this worker.
    pub buffers: u32,
    /// Bytes of one receive buffer.
    pub buffer_bytes: u32,
    /// Buffers of each kind for connections with TLS; 0 where no service ends TLS.
    pub record_buffers: u16,
    /// Buffers for what HTTP mode makes; 0 where no service is in HTTP mode, or those for TLS serve for it.
    pub http_buffers: u16,
    /// Streams of one client connection of HTTP/2.
    pub http2_streams: u32,
    /// Bytes of a request body on one of them that may be here and not passed on.
    pub http2_window: u32,
    /// How long the next step of a handshake may wait for its turn.
    pub queue_deadline_ms: u64,
    /// The pool's threads run only while workers sleep.
    pub pool_gives_way: bool,
    /// Pipes that may be lent to bulk connections (two descriptors each).
    pub pipes_max: u32,
    /// Seed of the worker's random decisions.
    pub seed: u64,
    /// Called at the start of each breath.
    pub on_breath: Option<fn()>,
    /// Its packet plane; `None` where no service is on it.
    pub plane: Option<PlaneSettings>,
}
