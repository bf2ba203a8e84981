//! A client that sends whatever frames it is told, and reads those that come.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::sync::Arc;

use towpath_core::http2::ErrorCode;
use towpath_core::http2::frame::{self, FrameHead, HEAD_BYTES, Kind, PREFACE};
use towpath_core::http2::hpack::{self, Decoder};
use towpath_tests::pki::{Pki, Stream, open_with};
use towpath_tests::{Host, PATIENCE};

/// A request without its path.
pub(crate) const GET: [(&str, &str); 3] = [(":method", "GET"), (":scheme", "https"), (":authority", "web.test")];

pub(crate) struct FrameClient {
    stream: Stream,
    decoder: Decoder,
    /// What has come of each stream.
    responses: HashMap<u32, Response>,
    resets: HashMap<u32, u32>,
    gone_away: VecDeque<(u32, u32)>,
    ended: bool,
}

/// A response, as far as it has come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) whole: bool,
}

impl Response {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or("not text")
    }
}

impl FrameClient {
    /// Connects, and begins as it should.
    #[track_caller]
    pub(crate) fn open(pki: &Pki, host: &Host, vip: Ipv4Addr) -> FrameClient {
        let mut config = pki.client_config(rustls::ALL_VERSIONS);
        Arc::make_mut(&mut config).alpn_protocols = vec![b"h2".to_vec()];
        let stream = open_with(&config, host, (vip, 443)).expect("a handshake");
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"h2"[..]));
        for limit in [std::net::TcpStream::set_read_timeout, std::net::TcpStream::set_write_timeout] {
            limit(&stream.sock, Some(PATIENCE)).expect("not zero");
        }
        let mut client = FrameClient {
            stream,
            decoder: Decoder::default(),
            responses: HashMap::new(),
            resets: HashMap::new(),
            gone_away: VecDeque::new(),
            ended: false,
        };
        let mut begin = PREFACE.to_vec();
        frame::write_settings(&[], &mut begin);
        client.send(&begin).expect("the relay takes it");
        client
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    #[track_caller]
    pub(crate) fn request(&mut self, stream: u32, fields: &[(&str, &str)], last: bool) {
        let mut bytes = Vec::new();
        frame::write_fields(stream, &block(fields), last, &mut bytes);
        self.send(&bytes).expect("the relay takes it");
    }

    #[track_caller]
    pub(crate) fn data(&mut self, stream: u32, bytes: &[u8], last: bool) {
        let mut out = Vec::new();
        frame::write_data(stream, bytes, last, &mut out);
        self.send(&out).expect("the relay takes it");
    }

    #[track_caller]
    pub(crate) fn reset(&mut self, stream: u32) {
        let mut out = Vec::new();
        frame::write_reset(stream, ErrorCode::Cancel, &mut out);
        self.send(&out).expect("the relay takes it");
    }

    #[track_caller]
    pub(crate) fn open_window(&mut self, stream: u32, bytes: u32) {
        let mut out = Vec::new();
        frame::write_window_update(stream, bytes, &mut out);
        self.send(&out).expect("the relay takes it");
    }

    /// The whole response of this stream.
    #[track_caller]
    pub(crate) fn response(&mut self, stream: u32) -> Response {
        self.read_until(|client| client.responses.get(&stream).filter(|response| response.whole).cloned())
    }

    /// The whole response of this stream, or what it was reset by; `None` where neither will come.
    pub(crate) fn end_of(&mut self, stream: u32) -> Option<Result<Response, u32>> {
        loop {
            if let Some(response) = self.responses.get(&stream).filter(|response| response.whole) {
                return Some(Ok(response.clone()));
            }
            if let Some(code) = self.resets.get(&stream) {
                return Some(Err(*code));
            }
            if self.ended || self.gone_away.iter().any(|(last, _)| *last < stream) {
                return None;
            }
            self.read_frame();
        }
    }

    /// What this stream was reset by.
    #[track_caller]
    pub(crate) fn reset_of(&mut self, stream: u32) -> u32 {
        self.read_until(|client| client.resets.get(&stream).copied())
    }

    /// The next GOAWAY: the last stream, and why.
    #[track_caller]
    pub(crate) fn go_away(&mut self) -> (u32, u32) {
        self.read_until(|client| client.gone_away.pop_front())
    }

    /// Waits for bytes of a body.
    #[track_caller]
    pub(crate) fn until_data(&mut self, stream: u32) {
        let has = |response: &&Response| !response.body.is_empty();
        self.read_until(|client| client.responses.get(&stream).filter(has).map(drop));
    }

    /// Reads to the end of the connection, whatever it is.
    pub(crate) fn until_end(&mut self) {
        while !self.ended {
            self.read_frame();
        }
    }

    #[track_caller]
    fn read_until<T>(&mut self, mut wanted: impl FnMut(&mut FrameClient) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(self) {
                return found;
            }
            assert!(!self.ended, "the relay has ended: resets {:?}, {:?}", self.resets, self.gone_away);
            self.read_frame();
        }
    }

    fn read_frame(&mut self) {
        let mut head = [0; HEAD_BYTES];
        if self.stream.read_exact(&mut head).is_err() {
            self.ended = true;
            return;
        }
        let head = FrameHead::read(&head);
        let mut payload = vec![0; head.len];
        if self.stream.read_exact(&mut payload).is_err() {
            self.ended = true;
            return;
        }
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four bytes"));
        match head.kind {
            Kind::Headers => {
                assert!(head.has(frame::END_HEADERS), "heads of tests are short");
                let response = self.responses.entry(head.stream).or_default();
                let fields = &mut response.fields;
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let keep = |name: &[u8], value: &[u8]| fields.push((text(name), text(value)));
                self.decoder.read(&payload, keep).expect("a block");
                let status = response.fields.iter().rev().find(|(name, _)| name == ":status");
                response.status = status.and_then(|(_, value)| value.parse().ok()).unwrap_or(response.status);
                response.whole = head.has(frame::END_STREAM);
            }
            Kind::Data => {
                let response = self.responses.entry(head.stream).or_default();
                response.body.extend_from_slice(&payload);
                response.whole = head.has(frame::END_STREAM);
            }
            Kind::ResetStream => drop(self.resets.insert(head.stream, number(&payload))),
            Kind::GoAway => self.gone_away.push_back((number(&payload[..4]), number(&payload[4..8]))),
            Kind::Ping if !head.has(frame::ACK) => {
                let mut answer = Vec::new();
                frame::write_ping(payload.try_into().expect("eight bytes"), true, &mut answer);
                // It may be gone.
                let _gone = self.send(&answer);
            }
            _ => {}
        }
    }
}

pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    fields.iter().for_each(|(name, value)| hpack::write(name.as_bytes(), value.as_bytes(), &mut block));
    block
}
