//! The origin: answers the requests of [`crate::message`].

use std::io;
use std::net::{SocketAddr, TcpListener};

use mio::net::TcpStream;
use towpath_sys::socket::{ListenOptions, Transport, open_listener};

use super::engine::{Engine, Moved, Next, READ_BYTES, STEPS_MAX, read, write};
use crate::message::{Filler, Header, Kind, Progress, Reader, WINDOW_BYTES_MAX};

/// Filler copied behind a header at a time, so that a short answer leaves in one piece.
const PIECE_BYTES: usize = 16 * 1024;

/// Opens a listener for an origin in the calling thread's namespace.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let fd = open_listener(address, Transport::Tcp, &ListenOptions::default())
        .map_err(|error| io::Error::new(error.kind(), format!("origin {address}: {error}")))?;
    Ok(TcpListener::from(fd))
}

/// Answers on these addresses, on the calling thread, until the process ends. `ready` is called once all are open.
pub fn serve(addresses: &[SocketAddr], ready: impl FnOnce(&[SocketAddr])) -> io::Result<()> {
    let mut engine = Engine::new()?;
    let mut open = Vec::new();
    for &address in addresses {
        let listener = listen(address)?;
        open.push(listener.local_addr()?);
        engine.listen(listener)?;
    }
    ready(&open);
    engine.run_until(None)
}

/// The origin's side of one connection.
pub(super) struct Origin {
    reader: Reader,
    outgoing: Outgoing,
    /// What to do once the answer has left.
    then: Then,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Close,
    Listen,
}

impl Origin {
    pub(super) fn new() -> Origin {
        Origin { reader: Reader::new(), outgoing: Outgoing::nothing(), then: Then::Listen }
    }

    pub(super) fn advance(&mut self, stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<Next> {
        for _ in 0..STEPS_MAX {
            // A client that sends without reading is answered no further.
            match self.outgoing.send(stream)? {
                Sent::All if self.then == Then::Close => return Ok(Next::Close),
                Sent::All => {}
                Sent::Blocked => return Ok(Next::Wait),
                Sent::Partly => return Ok(Next::Again),
            }
            let length = match read(stream, buffer)? {
                Moved::Bytes(length) => length,
                Moved::End => return Ok(Next::Close),
                Moved::NotYet => return Ok(Next::Wait),
            };
            match self.reader.take(&buffer[..length]) {
                Progress::Partial if length < READ_BYTES => return Ok(Next::Wait),
                Progress::Partial => {}
                Progress::Complete(request, used) if used == length => {
                    self.answer(request);
                    // Most answers leave at once, and less than there was room for has been read: the next request brings an event.
                    if self.then == Then::Listen && self.outgoing.send(stream)? == Sent::All {
                        return Ok(Next::Wait);
                    }
                }
                // Clients send one request at a time.
                Progress::Complete(..) | Progress::Wrong => {
                    let header = Header { kind: Kind::Corrupt, tag: 0, filler_bytes: 0, answer_filler_bytes: 0 };
                    self.outgoing = Outgoing::message(header);
                    self.then = Then::Close;
                }
            }
        }
        Ok(Next::Again)
    }

    fn answer(&mut self, request: Header) {
        match request.kind {
            Kind::Stream => self.outgoing = Outgoing::stream(request.tag),
            Kind::Answer | Kind::AnswerAndClose | Kind::Corrupt => {
                self.outgoing.become_message(Header {
                    kind: Kind::Answer,
                    tag: request.tag,
                    filler_bytes: request.answer_filler_bytes,
                    answer_filler_bytes: 0,
                });
            }
        }
        self.then = if request.kind == Kind::Answer { Then::Listen } else { Then::Close };
    }
}

/// A message on its way: a header, filler copied behind it so that a short one leaves in one piece, and more filler.
pub(super) struct Outgoing {
    head: Vec<u8>,
    head_sent: usize,
    filler: Filler,
    filler_left: u64,
}

/// How far a message has left.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// All of it.
    All,
    /// The peer takes no more for now.
    Blocked,
    /// As much as one turn allows.
    Partly,
}

impl Outgoing {
    pub(super) fn nothing() -> Outgoing {
        Outgoing { head: Vec::new(), head_sent: 0, filler: Filler::of(0), filler_left: 0 }
    }

    fn message(header: Header) -> Outgoing {
        let mut outgoing = Outgoing::nothing();
        outgoing.become_message(header);
        outgoing
    }

    fn stream(tag: u64) -> Outgoing {
        Outgoing { filler: Filler::of(tag), filler_left: u64::MAX, ..Outgoing::nothing() }
    }

    /// Takes this message in place of the one that has left, in the same memory.
    pub(super) fn become_message(&mut self, header: Header) {
        self.head.clear();
        self.head_sent = 0;
        self.head.extend_from_slice(&header.encode());
        self.filler = Filler::of(header.tag);
        let part = (header.filler_bytes as usize).min(PIECE_BYTES);
        self.head.extend_from_slice(self.filler.window(part));
        self.filler_left = u64::from(header.filler_bytes) - part as u64;
    }

    pub(super) fn send(&mut self, stream: &mut TcpStream) -> io::Result<Sent> {
        for _ in 0..STEPS_MAX {
            if self.head_sent < self.head.len() {
                match write(stream, &self.head[self.head_sent..])? {
                    Moved::Bytes(length) => self.head_sent += length,
                    Moved::NotYet | Moved::End => return Ok(Sent::Blocked),
                }
            } else if self.filler_left > 0 {
                let length =
                    usize::try_from(self.filler_left).map_or(WINDOW_BYTES_MAX, |left| left.min(WINDOW_BYTES_MAX));
                let mut ahead = self.filler;
                match write(stream, ahead.window(length))? {
                    Moved::Bytes(length) => {
                        self.filler.window(length);
                        self.filler_left -= length as u64;
                    }
                    Moved::NotYet | Moved::End => return Ok(Sent::Blocked),
                }
            } else {
                return Ok(Sent::All);
            }
        }
        let left = self.head_sent < self.head.len() || self.filler_left > 0;
        Ok(if left { Sent::Partly } else { Sent::All })
    }
}
