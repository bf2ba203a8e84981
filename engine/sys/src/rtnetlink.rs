//! Requests to rtnetlink(7) and their answers.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// The main routing table (RT_TABLE_MAIN, include/uapi/linux/rtnetlink.h).
pub(crate) const TABLE_MAIN: u8 = 254;

/// Messages that are read for one answer before it counts as lost; a routing table may be large.
const ANSWERS_MAX: usize = 1 << 20;

/// A conversation with the kernel about the namespace in which it was opened, from whichever thread it is used later.
pub(crate) struct Conversation {
    socket: Socket,
    sequence: u32,
}

impl Conversation {
    /// Opens a conversation about the calling thread's namespace.
    pub(crate) fn open() -> io::Result<Conversation> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Conversation { socket, sequence: 0 })
    }

    /// Makes a request and waits until the kernel has done it, or says why not.
    pub(crate) fn acknowledged(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.converse(request, NLM_F_ACK | flags).map(|_| ())
    }

    /// Everything of a kind.
    pub(crate) fn dump(&mut self, request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.converse(request, NLM_F_DUMP)
    }

    /// Sends a request and reads until the kernel says that it is done, or why not.
    fn converse(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut answers = Vec::new();
        while answers.len() < ANSWERS_MAX {
            let (received, _) = self.socket.recv_from_full()?;
            for answer in messages(&received) {
                let answer = answer?;
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    _ => {}
                }
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "rtnetlink answer without an end"))
    }
}

/// The messages of one datagram; ends after the first that cannot be read.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = io::Result<NetlinkMessage<RouteNetlinkMessage>>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let read = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("rtnetlink message: {error}")));
        let length = read.as_ref().map_or(0, |message| message.header.length as usize);
        rest = match length {
            // Unreadable, or of no length: where the next one begins is not known.
            0 => &[],
            length => &rest[length.next_multiple_of(4).min(rest.len())..],
        };
        Some(read)
    })
}
