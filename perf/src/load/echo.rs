//! The origin of datagrams: returns each that arrived as it was sent.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;

use towpath_sys::ring::Completion;

use super::origin::CORRUPT;
use super::wire::{What, Wire};
use crate::message::{Progress, Reader};

/// Begins to answer on socket `number`.
pub(super) fn answer_on(wire: &mut Wire, number: usize, socket: &UdpSocket) -> io::Result<()> {
    wire.start(What::Echo, number, |ring, token| ring.receive_messages(socket.as_fd(), token))
}

/// Answers what a receive has brought.
pub(super) fn heard(wire: &mut Wire, number: usize, socket: &UdpSocket, completion: &Completion) -> io::Result<()> {
    if let Some(buffer) = completion.buffer() {
        if let Some(datagram) = wire.ring.datagram(buffer, completion.result()) {
            let payload = wire.ring.datagram_buffers().bytes(buffer, datagram.start, datagram.len);
            let whole = matches!(Reader::default().take(payload), Progress::Complete(_, used) if used == payload.len());
            // An answer that cannot be sent is missed by its client.
            let _missed = match whole {
                true => socket.send_to(payload, datagram.sender),
                false => socket.send_to(&CORRUPT.encode(), datagram.sender),
            };
        }
        wire.ring.datagram_buffers().recycle(buffer);
    }
    // It ends when no buffer is left for a moment, or with an error that came back for an earlier answer.
    if completion.more() { Ok(()) } else { answer_on(wire, number, socket) }
}
