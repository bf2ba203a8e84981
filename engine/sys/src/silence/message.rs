//! Messages to nf_tables: netlink attributes, nested, in one batch that takes effect as a whole or not at all.

use std::io;

use netlink_sys::Socket;

use crate::errno::Cause;

/// `NFNETLINK_V0`.
const VERSION: u8 = 0;
/// Set in the kind of an attribute that holds attributes (linux/netlink.h).
const NESTED: u16 = 1 << 15;
const HEADER_BYTES: usize = 16;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// Room for one datagram of answers; those to a batch of ours are a few dozen bytes each.
const ANSWER_BYTES: usize = 64 << 10;

/// Messages that are sent together.
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// Of the message that begins the batch.
    first: u32,
    next: u32,
}

impl Batch {
    /// Begins a batch; its messages are numbered from `sequence` on.
    pub(super) fn new(sequence: u32) -> Batch {
        let mut batch = Batch { bytes: Vec::new(), first: sequence, next: sequence };
        batch.control(libc::NFNL_MSG_BATCH_BEGIN);
        batch
    }

    /// Adds a message to nf_tables about the netdev family.
    pub(super) fn push(&mut self, kind: libc::c_int, flags: u16, attributes: Attributes) {
        let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
        let flags = libc::NLM_F_ACK as u16 | flags;
        self.message(kind, flags, libc::NFPROTO_NETDEV as u8, 0, &attributes.bytes);
    }

    /// Has the kernel carry the batch out; returns the number for the next batch, and how the first message that failed did.
    pub(super) fn commit(mut self, socket: &Socket) -> (u32, io::Result<()>) {
        // Of those that are acknowledged, the last.
        let last = self.next.wrapping_sub(1);
        self.control(libc::NFNL_MSG_BATCH_END);
        let result = socket.send(&self.bytes, 0).and_then(|_| read_answers(socket, self.first, last));
        (self.next, result)
    }

    fn control(&mut self, kind: libc::c_int) {
        self.message(kind as u16, 0, libc::AF_UNSPEC as u8, libc::NFNL_SUBSYS_NFTABLES as u16, &[]);
    }

    /// `struct nlmsghdr`, `struct nfgenmsg`, attributes.
    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) {
        let generic = [[family, VERSION], resource.to_be_bytes()].concat();
        let length = HEADER_BYTES + generic.len() + attributes.len();
        self.bytes.extend((length as u32).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((libc::NLM_F_REQUEST as u16 | flags).to_ne_bytes());
        self.bytes.extend(self.next.to_ne_bytes());
        // To the kernel.
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend(generic);
        self.bytes.extend(attributes);
        self.next = self.next.wrapping_add(1);
    }
}

/// Attributes of one message, or nested in one.
#[derive(Default)]
pub(super) struct Attributes {
    bytes: Vec<u8>,
}

impl Attributes {
    /// Adds bytes.
    ///
    /// # Panics
    /// If they are more than an attribute can hold (64 KiB): the caller's mistake.
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Attributes {
        let length = u16::try_from(ATTRIBUTE_HEADER_BYTES + value.len()).expect("an attribute is shorter than 64 KiB");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a number; nf_tables has them all in network byte order.
    pub(super) fn number(self, kind: u16, value: u32) -> Attributes {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds a string, with its end.
    pub(super) fn text(self, kind: u16, value: &str) -> Attributes {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds attributes inside an attribute.
    pub(super) fn nest(self, kind: u16, inner: Attributes) -> Attributes {
        self.bytes(NESTED | kind, &inner.bytes)
    }
}

/// Reads the answers to the messages `first` to `last`. The kernel has carried the batch out within send(2), so they are there.
fn read_answers(socket: &Socket, first: u32, last: u32) -> io::Result<()> {
    let mut failure = None;
    let mut acknowledged = false;
    let mut datagram = Vec::with_capacity(ANSWER_BYTES);
    loop {
        datagram.clear();
        match socket.recv_from(&mut datagram, libc::MSG_DONTWAIT) {
            Ok(_) => {}
            Err(error) if Cause::of(&error) == Cause::NotYet => break,
            Err(error) => return Err(error),
        }
        let mut rest = datagram.as_slice();
        while let Some((sequence, answer, behind)) = split_answer(rest) {
            rest = behind;
            // Older answers may be left from a batch that failed in several places.
            if sequence.wrapping_sub(first) > last.wrapping_sub(first) {
                continue;
            }
            match answer {
                Some(0) => acknowledged |= sequence == last,
                Some(error) => failure = failure.or(Some(io::Error::from_raw_os_error(-error))),
                None => {}
            }
        }
    }
    match failure {
        Some(error) => Err(error),
        None if acknowledged => Ok(()),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "nf_tables has not answered")),
    }
}

/// The first message of a datagram: its number, the negative errno if it is an answer, and what is behind it.
fn split_answer(bytes: &[u8]) -> Option<(u32, Option<i32>, &[u8])> {
    let word = |at: usize| bytes.get(at..at + 4).and_then(|word| <[u8; 4]>::try_from(word).ok());
    let length = u32::from_ne_bytes(word(0)?) as usize;
    if length < HEADER_BYTES {
        return None;
    }
    let [kind_0, kind_1, ..] = word(4)?;
    let sequence = u32::from_ne_bytes(word(8)?);
    let is_answer = libc::c_int::from(u16::from_ne_bytes([kind_0, kind_1])) == libc::NLMSG_ERROR;
    let answer = if is_answer { Some(i32::from_ne_bytes(word(HEADER_BYTES)?)) } else { None };
    Some((sequence, answer, bytes.get(length.next_multiple_of(4)..).unwrap_or(&[])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_aligned_and_nested() {
        let attributes =
            Attributes::default().text(1, "ab").nest(2, Attributes::default().number(3, 0x0102_0304).bytes(4, &[5]));
        let mut expected = Vec::new();
        for (length, kind, value) in [(7u16, 1u16, vec![b'a', b'b', 0, 0]), (20, NESTED | 2, Vec::new())] {
            expected.extend([length.to_ne_bytes(), kind.to_ne_bytes()].concat());
            expected.extend(value);
        }
        for (length, kind, value) in [(8u16, 3u16, [1, 2, 3, 4]), (5, 4, [5, 0, 0, 0])] {
            expected.extend([length.to_ne_bytes(), kind.to_ne_bytes()].concat());
            expected.extend(value);
        }
        assert_eq!(attributes.bytes, expected);
    }

    #[test]
    fn garbage_is_no_answer() {
        for bytes in [&[][..], &[0; 16], &[255; 3], &[16, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]] {
            assert!(split_answer(bytes).is_none(), "{bytes:?}");
        }
    }
}
