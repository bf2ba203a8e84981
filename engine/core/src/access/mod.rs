//! The access log: what is known of a connection or request that is over, and how it reads as a line.
//!
//! A [`Record`] is made where it ends, by the worker, which copies what its line needs; [`line()`] makes the line elsewhere. Nothing here knows files.
//! What the formats mean is told in `config/access-log.md`, whose tables are tested against this code.

mod code;
mod escape;
mod line;
mod query;
mod when;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::counters::Termination;
use crate::ids::RealServerId;
use crate::snapshot::Service;
use crate::time::Now;

pub use code::{Phase, code, letter};
pub use line::{Shown, line};
pub use when::{Utc, utc};

/// Longest text that is kept of a request, by which; what is longer is cut.
const TEXT_BYTES_MAX: [usize; Text::COUNT] = [32, 2048, 255, 1024, 512, 255];
/// A line is no longer than this: every byte of its texts may need six, and names of the file are short.
pub const LINE_BYTES_MAX: usize = 32_768;

/// A connection or a request that is over.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it began: the accept of a connection, the first byte of a request.
    pub began: Now,
    /// Where the client is.
    pub client: SocketAddr,
    /// The proxy that has said so by the PROXY protocol.
    pub proxy: Option<SocketAddr>,
    /// Where the client has connected to.
    pub vip: SocketAddr,
    /// The service that it came to.
    pub service: Arc<Service>,
    /// Who served it: a server, and the place that it was chosen at.
    pub server: Option<(Arc<Service>, RealServerId)>,
    /// How long its parts took.
    pub timers: Timers,
    /// Bytes towards the server: of a connection its payload, of a request head and body.
    pub bytes_from_client: u64,
    /// Bytes towards the client, likewise.
    pub bytes_to_client: u64,
    /// Why it ended.
    pub termination: Termination,
    /// How far it had come.
    pub phase: Phase,
    /// Whether the response was ours, with good reason.
    pub answer: Answered,
    /// Servers tried in vain before.
    pub redispatches: u8,
    /// What else was there when it ended.
    pub load: Load,
    /// TLS that was ended here.
    pub tls: Option<Tls>,
    /// What a request has and a connection has not.
    pub request: Option<Request>,
    /// What client and server have said in words.
    pub texts: Texts,
}

/// What a request has and a connection has not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// As it was told to the client; 0 = nothing was.
    pub status: u16,
    /// Of [`Record::bytes_to_client`] those of the head.
    pub head_bytes: u64,
    /// Its head was whole and according to the rules; else nothing of it is known.
    pub is_read: bool,
    /// HTTP version, major and minor.
    pub version: (u8, u8),
}

/// Who has made the response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answered {
    /// A real server; or nobody has, or we had to tell of a failure.
    #[default]
    ByServer,
    /// Towpath, as its rules say: a redirect, a status, a page.
    ByRule,
    /// Towpath, as a filter refused it.
    Denied,
}

/// Milliseconds; `None` = it did not come so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timers {
    /// From the accept until the client may speak: PROXY header and TLS handshake (HAProxy's Th).
    pub handshake_ms: Option<u64>,
    /// From the first byte of a request until its head was whole (TR).
    pub request_ms: Option<u64>,
    /// From there until a server was chosen and its connect begun (Tw).
    pub wait_ms: Option<u64>,
    /// Until it was connected, its TLS too; 0 where it was already (Tc).
    pub connect_ms: Option<u64>,
    /// Until the head of its response was there (Tr).
    pub response_ms: Option<u64>,
    /// From there, or of a connection from the connect, until the last byte had left (Td).
    pub data_ms: Option<u64>,
    /// Of a request from its first byte (Ta), of a connection from the accept (Tt).
    pub total_ms: u64,
}

/// Connections at the end, as HAProxy's format has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Of the process.
    pub process: u32,
    /// Of the service.
    pub service: u32,
    /// Of the server.
    pub server: u32,
}

/// TLS with the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tls {
    /// As OpenSSL calls it, `TLSv1.3`.
    pub version: &'static str,
    /// The name of the cipher suite.
    pub cipher: &'static str,
    /// Whether a session was resumed.
    pub is_resumed: bool,
}

/// What is kept in words, in the order of [`Texts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// The method.
    Method,
    /// Path and query.
    Target,
    /// The host asked for.
    Host,
    /// Where the client says that it comes from.
    Referer,
    /// What the client says that it is.
    UserAgent,
    /// The name in the ClientHello.
    ServerName,
}

impl Text {
    /// How many there are.
    const COUNT: usize = 6;
    /// All of them, in their order.
    pub const ALL: [Text; Text::COUNT] =
        [Text::Method, Text::Target, Text::Host, Text::Referer, Text::UserAgent, Text::ServerName];
}

/// Words of the network, one behind the other in one piece of memory.
#[derive(Clone, Debug, Default)]
pub struct Texts {
    bytes: Vec<u8>,
    /// Where each ends; `None` = it was not there.
    ends: [Option<u16>; Text::COUNT],
}

impl Texts {
    /// Keeps those that are there, cut to their longest.
    pub fn keep(texts: [Option<&[u8]>; Text::COUNT]) -> Texts {
        let cut = |(text, max): (Option<&[u8]>, usize)| Some(text?.len().min(max));
        let lens: [Option<usize>; Text::COUNT] =
            std::array::from_fn(|index| cut((texts[index], TEXT_BYTES_MAX[index])));
        let mut kept = Texts { bytes: Vec::with_capacity(lens.iter().flatten().sum()), ends: [None; Text::COUNT] };
        for ((text, len), end) in texts.into_iter().zip(lens).zip(&mut kept.ends) {
            let (Some(text), Some(len)) = (text, len) else { continue };
            kept.bytes.extend_from_slice(&text[..len]);
            // All of them together are shorter than 64 KiB.
            *end = Some(kept.bytes.len() as u16);
        }
        kept
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// One of them, if it was there.
    pub fn get(&self, text: Text) -> Option<&[u8]> {
        let index = text as usize;
        let end = self.ends[index]?;
        let start = self.ends[..index].iter().rev().flatten().next().copied().unwrap_or_default();
        self.bytes.get(usize::from(start)..usize::from(end))
    }
}

impl Record {
    /// The two letters of how it ended.
    pub fn code(&self) -> [u8; 2] {
        code(self.termination, self.phase, self.answer)
    }

    /// Whether somebody should look at it: it did not end as it should, or the server has failed it.
    pub fn is_error(&self) -> bool {
        !matches!(self.code()[0], b'-' | b'L') || self.request.is_some_and(|request| request.status >= 500)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_kept_in_their_order_and_cut_to_their_longest() {
        let long = vec![b'x'; 70_000];
        let texts = Texts::keep([Some(b"GET"), Some(&long), None, Some(b""), None, Some(b"a.b")]);
        assert_eq!(texts.get(Text::Method), Some(&b"GET"[..]));
        assert_eq!(texts.get(Text::Target), Some(&long[..2048]));
        assert_eq!(texts.get(Text::Host), None);
        assert_eq!(texts.get(Text::Referer), Some(&b""[..]));
        assert_eq!(texts.get(Text::UserAgent), None);
        assert_eq!(texts.get(Text::ServerName), Some(&b"a.b"[..]));
        let all = Texts::keep([Some(&long); Text::COUNT]);
        for text in Text::ALL {
            assert_eq!(all.get(text).map(<[u8]>::len), Some(TEXT_BYTES_MAX[text as usize]));
        }
        assert!(TEXT_BYTES_MAX.iter().sum::<usize>() * 6 < LINE_BYTES_MAX - 4096);
    }
}
