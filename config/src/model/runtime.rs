//! The part of the model that is about workers and what they may use.

use serde::Serialize;

/// `[runtime]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Runtime {
    /// Which CPUs carry a worker.
    pub workers: Workers,
    /// How a worker waits when it has nothing to do.
    pub poll: Poll,
    /// Whether the kernel carries open connections of the packet plane onwards.
    pub fast_path: FastPath,
    /// What the machine is to its twin, unless another word was said; `None` = it has none.
    pub role: Option<MachineRole>,
}

/// `runtime.role`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineRole {
    /// It serves.
    #[default]
    Active,
    /// Another machine serves.
    Standby,
}

/// `runtime.fast_path`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FastPath {
    /// Where the kernel lets us.
    Auto,
    /// Never.
    Off,
}

/// `runtime.workers`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workers {
    /// One worker per CPU that the process may use.
    Auto,
    /// One worker on each of these CPU ids; not empty, no id twice.
    Cpus(Vec<usize>),
}

/// `runtime.poll`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Poll {
    /// Spin a little, then sleep in the ring.
    Adaptive,
    /// Never sleep: lowest latency, one whole CPU per worker.
    Busy,
}

/// `[limits]`: what is allocated at start, for the whole process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// TCP connections relayed at the same time; `None` = as many as the descriptors allow.
    pub connections: Option<u32>,
    /// UDP sessions relayed at the same time; `None` = as many as the descriptors allow, and 65,536 at most.
    pub udp_sessions: Option<u32>,
    /// Persistence entries over all services.
    pub persistence_entries: u32,
    /// Receive buffers per worker, each `buffer_bytes` long; `None` = two for each connection, in at most an eighth of the memory.
    pub buffers: Option<u32>,
    /// Buffers of each kind per worker for connections whose TLS is ended; `None` = as a sixteenth of the memory allows.
    pub tls_buffers: Option<u32>,
    /// Bytes of one receive buffer.
    pub buffer_bytes: u32,
    /// Flows of the packet plane at the same time.
    pub flows: u32,
    /// Of these, flows that the kernel carries onwards; `None` = as many as `flows`, within bounds of the daemon's.
    pub fast_flows: Option<u32>,
    /// TLS handshakes waiting or under way, and connections whose first bytes are waited for.
    pub handshakes: u32,
    /// Streams of one client connection of HTTP/2 at the same time.
    pub http2_streams: u32,
    /// Bytes of a request body on one of them that may be here and not passed on.
    pub http2_window: u32,
}
