//! HTTP/2 towards clients (RFC 9113), without I/O: frames, streams, windows and limits of one connection, and what its requests and responses are in
//! HTTP/1.1, which is what everything behind reads and writes.
//!
//! Nobody is trusted to be moderate: whatever costs a client little and us something has a limit, and each limit its reason ([`BadStream`]).

mod connection;
pub mod frame;
pub mod hpack;
mod huffman;
mod meter;
mod refusal;
mod request;
mod response;

pub use connection::{Connection, Progress, Step, StreamId, Then};
pub use frame::ErrorCode;
pub use refusal::BadStream;
pub use request::{RequestBody, TranslatedRequest};
pub use response::{Part, ResponseReader, Unreadable};

/// Limits of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2Limits {
    /// Streams at the same time.
    pub streams_max: u32,
    /// Longest head of a request, unpacked.
    pub head_bytes_max: u32,
    /// Bytes of one request's body that may be here and not taken; a connection may have [`CONNECTION_WINDOWS`] times as many.
    pub window_bytes: u32,
}

/// Windows of streams that make the window of a connection: so many bodies may stand still before they hold up others.
pub const CONNECTION_WINDOWS: u32 = 8;
/// Bytes of answers, heads and the like that may wait to leave before nothing more is read: a client that reads nothing makes no more of them.
pub const WAITING_BYTES_MAX: usize = 64 * 1024;
