//! The origin: answers the requests of [`crate::message`], over TCP and UDP.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use towpath_sys::socket::{ListenOptions, Transport, open_listener, set_receive_buffer};

use super::engine::Engine;
use super::tls;
use super::wire::{Heard, Listen, Said, Wire};
use crate::message::{Framing, Header, Kind};
use crate::web::Visitor;

/// Asked of the kernel for datagrams that wait at an origin, in bytes, so that losses are the subject's; it grants less.
const DATAGRAM_QUEUE_BYTES: u32 = 4 << 20;

/// Opens a listener for an origin in the calling thread's namespace.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let fd = open_listener(address, Transport::Tcp, &ListenOptions::default()).map_err(|error| at(address, &error))?;
    Ok(TcpListener::from(fd))
}

/// Opens a socket for an origin of datagrams in the calling thread's namespace.
pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let fd = open_listener(address, Transport::Udp, &ListenOptions::default()).map_err(|error| at(address, &error))?;
    set_receive_buffer(&fd, DATAGRAM_QUEUE_BYTES)?;
    let socket = UdpSocket::from(fd);
    // Answers wait for room instead of getting lost at their start.
    socket.set_nonblocking(false)?;
    Ok(socket)
}

/// Answers on these, on the calling thread, until it fails or the process ends.
pub fn serve(listeners: Vec<TcpListener>, sockets: Vec<UdpSocket>) -> io::Result<()> {
    serve_with(Engine::for_origin()?, listeners, sockets)
}

/// As [`serve`], as a web server.
pub fn serve_web(listeners: Vec<TcpListener>) -> io::Result<()> {
    let mut engine = Engine::for_origin()?;
    engine.wire.framing = Framing::Web(Visitor::New);
    serve_with(engine, listeners, Vec::new())
}

/// As [`serve`], over TLS, with a certificate that is made now.
pub fn serve_tls(listeners: Vec<TcpListener>) -> io::Result<()> {
    let mut engine = Engine::for_tls_origin()?;
    engine.wire.origin_tls = Some(tls::origin_config()?);
    serve_with(engine, listeners, Vec::new())
}

fn serve_with(mut engine: Engine, listeners: Vec<TcpListener>, sockets: Vec<UdpSocket>) -> io::Result<()> {
    engine.answer_on(listeners, sockets)?;
    engine.run_until(None)
}

fn at(address: SocketAddr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("origin {address}: {error}"))
}

/// What the origin does with a connection once its answer has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Close,
    Listen,
    /// The client has been told that its bytes are wrong; closing could overtake that.
    Ignore,
}

/// A client has connected. Its first request tells whether it stays.
pub(super) fn accepted(wire: &mut Wire, slot: u32) -> io::Result<()> {
    wire.hear(slot, Listen::Once)
}

/// Answers. What becomes of a client that goes away is the client's matter.
pub(super) fn heard(wire: &mut Wire, slot: u32, heard: Heard) -> io::Result<()> {
    let busy = wire.is_sending(slot);
    let Some(then) = wire.then(slot) else { return Ok(()) };
    match heard {
        Heard::End | Heard::Failed(_) => wire.close(slot),
        _ if *then == Then::Ignore => wire.hear(slot, Listen::Many),
        Heard::Message(request) if !busy => {
            let is_last = request.kind != Kind::Answer || wire.asks_for_end(slot);
            let next = if is_last { Then::Close } else { Then::Listen };
            if let Some(then) = wire.then(slot) {
                *then = next;
            }
            answer(wire, slot, request, next)
        }
        Heard::Nothing | Heard::Opened | Heard::Partial => wire.hear(slot, Listen::Once),
        Heard::Filler(_) | Heard::Lacks(_) | Heard::Message(_) | Heard::Wrong if busy => wire.close(slot),
        Heard::Filler(_) | Heard::Lacks(_) | Heard::Message(_) | Heard::Wrong => {
            *then = Then::Ignore;
            let corrupt = if let Heard::Lacks(lack) = heard { Header { tag: lack.tag(), ..CORRUPT } } else { CORRUPT };
            wire.say(slot, &wire.framing.answer_head(Kind::Answer, &corrupt), corrupt)?;
            wire.hear(slot, Listen::Many)
        }
    }
}

/// Goes on after a part of an answer has left.
pub(super) fn said(wire: &mut Wire, slot: u32, said: Said) -> io::Result<()> {
    match said {
        Said::Failed(_) => wire.close(slot),
        Said::All if wire.then(slot).is_some_and(|then| *then == Then::Close) => wire.close(slot),
        Said::All | Said::Partly => Ok(()),
    }
}

/// Told to a client whose request did not arrive as it was sent.
pub(super) const CORRUPT: Header = Header { kind: Kind::Corrupt, tag: 0, filler_bytes: 0, answer_filler_bytes: 0 };

fn answer(wire: &mut Wire, slot: u32, request: Header, next: Then) -> io::Result<()> {
    if request.kind == Kind::Stream {
        return wire.say_stream(slot, request.tag);
    }
    let answer = Header {
        kind: Kind::Answer,
        tag: request.tag,
        filler_bytes: request.answer_filler_bytes,
        answer_filler_bytes: 0,
    };
    let kind = if next == Then::Listen { Kind::Answer } else { Kind::AnswerAndClose };
    wire.say(slot, &wire.framing.answer_head(kind, &answer), answer)?;
    match next {
        Then::Ignore | Then::Listen => wire.hear(slot, Listen::Many),
        // Closed in the same submission.
        _ if wire.leaves_in_one_piece(slot) => wire.close(slot),
        _ => Ok(()),
    }
}
