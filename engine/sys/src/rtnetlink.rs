//! Requests to rtnetlink(7) and their answers.

use std::io;
use std::mem;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// The main routing table (RT_TABLE_MAIN, include/uapi/linux/rtnetlink.h).
pub(crate) const TABLE_MAIN: u8 = 254;

/// Messages that are read for one answer before it counts as lost; a routing table may be large.
const ANSWERS_MAX: usize = 1 << 20;

/// Messages of a lower type are netlink's own (NLMSG_MIN_TYPE, include/uapi/linux/netlink.h).
const TYPE_MIN: u16 = 0x10;

/// A conversation with the kernel about the namespace in which it was opened, from whichever thread it is used later.
pub(crate) struct Conversation {
    socket: Socket,
    sequence: u32,
    unread: u64,
}

impl Conversation {
    /// Opens a conversation about the calling thread's namespace.
    pub(crate) fn open() -> io::Result<Conversation> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Conversation { socket, sequence: 0, unread: 0 })
    }

    /// Makes a request and waits until the kernel has done it, or says why not.
    pub(crate) fn acknowledged(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.converse(request, NLM_F_ACK | flags).map(|_| ())
    }

    /// How many answers of dumps were left out because they could not be read.
    pub(crate) fn unread(&self) -> u64 {
        self.unread
    }

    /// Everything of a kind. What a kernel describes in a way that is not known here is left out and counted: the others are still true.
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

        let mut answers = Answers::default();
        while answers.inner.len() < ANSWERS_MAX {
            let (received, _) = self.socket.recv_from_full()?;
            let end = answers.gather(&received, self.sequence)?;
            self.unread += mem::take(&mut answers.unread);
            if end == End::Reached {
                return Ok(answers.inner);
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "rtnetlink answer without an end"))
    }
}

/// What was answered so far.
#[derive(Default)]
struct Answers {
    inner: Vec<RouteNetlinkMessage>,
    unread: u64,
}

/// Whether the kernel has said that its answer is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Ahead,
    Reached,
}

impl Answers {
    /// Takes the answers to the request of that number from one datagram.
    fn gather(&mut self, datagram: &[u8], sequence: u32) -> io::Result<End> {
        for message in messages(datagram) {
            let message = message?;
            // Of an earlier request, perhaps one that had failed.
            if message.sequence != sequence {
                continue;
            }
            match message.read() {
                Ok(NetlinkPayload::Done(_)) => return Ok(End::Reached),
                Ok(NetlinkPayload::Error(error)) if error.code.is_none() => return Ok(End::Reached),
                Ok(NetlinkPayload::Error(error)) => return Err(error.to_io()),
                Ok(NetlinkPayload::InnerMessage(inner)) => self.inner.push(inner),
                Ok(_) => {}
                Err(_) if message.kind >= TYPE_MIN => self.unread += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(End::Ahead)
    }
}

/// One message of a datagram, as far as its header says.
pub(crate) struct Message<'a> {
    sequence: u32,
    kind: u16,
    bytes: &'a [u8],
}

impl Message<'_> {
    /// What it says.
    pub(crate) fn read(&self) -> io::Result<NetlinkPayload<RouteNetlinkMessage>> {
        let read = NetlinkMessage::<RouteNetlinkMessage>::deserialize(self.bytes);
        read.map(|message| message.payload).map_err(|error| unreadable(&error))
    }
}

/// The messages of one datagram; ends after the first whose length is wrong: where the next one begins is not known.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = io::Result<Message<'_>>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let bytes = mem::take(&mut rest);
        let header = match NetlinkBuffer::new_checked(bytes) {
            Ok(header) => header,
            Err(error) => return Some(Err(unreadable(&error))),
        };
        let length = header.length() as usize;
        rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Message { sequence: header.sequence_number(), kind: header.message_type(), bytes: &bytes[..length] }))
    })
}

fn unreadable(error: &impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("rtnetlink message: {error}"))
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    const SEQUENCE: u32 = 7;
    /// RTM_NEWLINK and NLMSG_DONE.
    const NEW_LINK: u16 = libc::RTM_NEWLINK;
    const DONE: u16 = libc::NLMSG_DONE as u16;

    fn message(kind: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let length = 16 + payload.len() as u32;
        let header =
            [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0, 0], &sequence.to_ne_bytes(), &[0; 4]].concat();
        let mut bytes = [&header, payload].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn an_answer_that_cannot_be_read_hides_no_other() {
        let link = [0; 16];
        let datagram = [
            // Too short for a link, and of another request.
            message(NEW_LINK, SEQUENCE - 1, &[1]),
            message(NEW_LINK, SEQUENCE, &link),
            message(NEW_LINK, SEQUENCE, &[1]),
            message(NEW_LINK, SEQUENCE, &link),
            message(DONE, SEQUENCE, &[0; 4]),
        ]
        .concat();
        let mut answers = Answers::default();
        assert_eq!(answers.gather(&datagram, SEQUENCE).unwrap(), End::Reached);
        let expected = RouteNetlinkMessage::NewLink(LinkMessage::default());
        assert_eq!((answers.inner, answers.unread), (vec![expected.clone(), expected], 1));
    }

    #[test]
    fn lengths_that_are_wrong_end_a_datagram_with_an_error() {
        let mut datagram = message(NEW_LINK, SEQUENCE, &[0; 16]);
        for length in [0u32, 15, 33, u32::MAX] {
            datagram[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(Answers::default().gather(&datagram, SEQUENCE).is_err(), "{length}");
        }
        assert_eq!(Answers::default().gather(&[], SEQUENCE).unwrap(), End::Ahead);
    }
}
