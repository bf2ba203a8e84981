//! HTTP/1.1 (RFC 9110, RFC 9112): heads, bodies, and the requests and responses of one client connection, without I/O.
//!
//! Whatever two parsers could read differently is refused, and what is passed on is written anew, so that the real server reads what was read
//! here. Bodies are never kept: they pass as ranges of the caller's buffers.

pub mod answer;
pub mod body;
mod condition;
pub mod cookie;
pub mod exchange;
mod fields;
mod filter;
mod fingerprint;
pub mod head;
pub mod output;
pub mod pinning;
pub mod rewrite;
pub mod route;
mod scan;
#[cfg(test)]
mod stage;
pub mod write;

pub use answer::Answer;
pub(crate) use condition::holds;
pub use cookie::{HttpSecret, ServerCookies};
pub use exchange::{
    After, ClientEnd, Exchange, Fate, Keep, Lost, Reading, ServerEnd, ServerLeg, Step, Then, TooLate, Waiting,
};
pub(crate) use fields::{is_token, is_value};
pub use head::{BadRequest, BadResponse, Framing, RequestHead, ResponseHead, Version};
pub use output::{Output, Piece};
pub use rewrite::{AfterRequest, Scheme};
pub use route::{HttpMaterial, HttpRules, Page, ServiceMaterial, Verdict};
pub use write::{Edit, Edits};

/// Most fields that a head or a trailer section may have.
pub const HEADERS_MAX: usize = 128;
/// Most options that the `Connection` fields of a head may name.
pub const CONNECTION_OPTIONS_MAX: usize = 32;
/// Longest trailer section.
pub const TRAILER_BYTES_MAX: usize = 8 * 1024;
/// Longest extension of a chunk; RFC 9112 §7.1.1 asks for a limit.
pub const CHUNK_EXTENSION_BYTES_MAX: usize = 256;

/// Limits of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// Longest head of a request or a response, in bytes.
    pub head_bytes_max: u32,
    /// Longest body of a request, in bytes; 0 = no limit.
    pub body_bytes_max: u64,
}

impl HttpLimits {
    /// Whether a request may have a body of so many bytes.
    pub fn allows_body(&self, bytes: u64) -> bool {
        self.body_bytes_max == 0 || bytes <= self.body_bytes_max
    }
}
