//! A socket that hears what stations ask and tell about their addresses, on every interface and VLAN, and asks itself; or on one interface, and
//! beside that one connection or exchange of datagrams.
//!
//! The first is not bound to an interface, so it outlives those that go and come. The kernel's own neighbours are not its business: for interfaces
//! and VLANs on which the kernel has no address.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::port::Instruction;
use super::socket;
use super::tag::Tag;
use crate::errno::{Cause, check_length};
use crate::socket::{set_flag, set_program};

/// Room for a neighbour message with many options; ARP is shorter.
const FRAME_BYTES_MAX: usize = 512;
/// What came in for us or for a group, and is ARP, a neighbour solicitation or a neighbour advertisement: by kind of packet (SKF_AD_PKTTYPE), EtherType,
/// next header and type of ICMPv6.
const ABOUT_NEIGHBOURS: [Instruction; 12] = [
    (0x30, 0, 0, 0xffff_f004),
    // Neither PACKET_OTHERHOST nor PACKET_OUTGOING.
    (0x35, 9, 0, 3),
    (0x28, 0, 0, 12),
    (0x15, 6, 0, 0x0806),
    (0x15, 0, 6, 0x86dd),
    (0x30, 0, 0, 20),
    (0x15, 0, 4, 58),
    (0x30, 0, 0, 54),
    (0x15, 1, 0, 135),
    (0x15, 0, 1, 136),
    (0x06, 0, 0, u32::MAX),
    (0x06, 0, 0, 0),
];

/// Room for a segment of a connection, in a frame of any MTU that interfaces usually have.
const SEGMENT_BYTES_MAX: usize = 9_216 + 64;

/// The same, and the segments of TCP between two ports: of IPv4 with whatever options, of IPv6 without extension headers.
fn of_connection(own_port: u16, far_port: u16) -> [Instruction; 25] {
    let (own, far) = (own_port.into(), far_port.into());
    [
        (0x30, 0, 0, 0xffff_f004),
        (0x35, 22, 0, 3),
        (0x28, 0, 0, 12),
        (0x15, 19, 0, 0x0806),
        (0x15, 0, 7, 0x0800),
        (0x30, 0, 0, 23),
        (0x15, 0, 17, 6),
        (0xb1, 0, 0, 14),
        (0x48, 0, 0, 14),
        (0x15, 0, 14, far),
        (0x48, 0, 0, 16),
        (0x15, 11, 12, own),
        (0x15, 0, 11, 0x86dd),
        (0x30, 0, 0, 20),
        (0x15, 0, 3, 58),
        (0x30, 0, 0, 54),
        (0x15, 6, 0, 135),
        (0x15, 5, 6, 136),
        (0x15, 0, 5, 6),
        (0x28, 0, 0, 54),
        (0x15, 0, 3, far),
        (0x28, 0, 0, 56),
        (0x15, 0, 1, own),
        (0x06, 0, 0, u32::MAX),
        (0x06, 0, 0, 0),
    ]
}

/// What is about neighbours, all of ICMP, and the datagrams of UDP between two ports: of IPv4 with whatever options, of IPv6 without extension headers.
fn of_datagrams(own_port: u16, far_port: u16) -> [Instruction; 23] {
    let (own, far) = (own_port.into(), far_port.into());
    [
        (0x30, 0, 0, 0xffff_f004),
        (0x35, 20, 0, 3),
        (0x28, 0, 0, 12),
        (0x15, 17, 0, 0x0806),
        (0x15, 0, 8, 0x0800),
        (0x30, 0, 0, 23),
        (0x15, 14, 0, 1),
        (0x15, 0, 14, 17),
        (0xb1, 0, 0, 14),
        (0x48, 0, 0, 14),
        (0x15, 0, 11, far),
        (0x48, 0, 0, 16),
        (0x15, 8, 9, own),
        (0x15, 0, 8, 0x86dd),
        (0x30, 0, 0, 20),
        (0x15, 5, 0, 58),
        (0x15, 0, 5, 17),
        (0x28, 0, 0, 54),
        (0x15, 0, 3, far),
        (0x28, 0, 0, 56),
        (0x15, 0, 1, own),
        (0x06, 0, 0, u32::MAX),
        (0x06, 0, 0, 0),
    ]
}

/// The socket.
#[derive(Debug)]
pub struct Hearing {
    fd: OwnedFd,
    buffer: Box<[u8]>,
}

/// A frame that was heard.
#[derive(Debug, PartialEq, Eq)]
pub struct HeardFrame<'a> {
    /// The number of the interface that it came in by.
    pub interface: u32,
    /// Its outermost tag, which is not in the bytes.
    pub tag: Option<Tag>,
    /// From the Ethernet header on.
    pub bytes: &'a [u8],
}

impl Hearing {
    /// Hears the interfaces of the calling thread's namespace from here on.
    ///
    /// # Errors
    /// `PermissionDenied` without CAP_NET_RAW.
    pub fn open() -> io::Result<Hearing> {
        Hearing::by(&ABOUT_NEIGHBOURS, 0, FRAME_BYTES_MAX)
    }

    /// The same on one interface and its VLANs; beside that it hears the segments that come from one port of TCP to another, of ours, whatever the
    /// addresses.
    ///
    /// # Errors
    /// Likewise; `ENODEV` without such an interface.
    pub fn of_connection(interface: u32, own_port: u16, far_port: u16) -> io::Result<Hearing> {
        Hearing::by(&of_connection(own_port, far_port), interface, SEGMENT_BYTES_MAX)
    }

    /// The same for datagrams of UDP between two ports, and all messages of ICMP.
    ///
    /// # Errors
    /// Likewise.
    pub fn of_datagrams(interface: u32, own_port: u16, far_port: u16) -> io::Result<Hearing> {
        Hearing::by(&of_datagrams(own_port, far_port), interface, SEGMENT_BYTES_MAX)
    }

    /// `interface`: 0 for all.
    fn by(program: &[Instruction], interface: u32, frame_bytes_max: usize) -> io::Result<Hearing> {
        let fd = socket::open()?;
        set_program(&fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program)?;
        set_flag(&fd, libc::SOL_PACKET, libc::PACKET_AUXDATA)?;
        // The filter would drop it as well, but only once the kernel has made a copy of each frame that the host sends.
        set_flag(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING)?;
        socket::bind(&fd, interface)?;
        Ok(Hearing { fd, buffer: vec![0; frame_bytes_max].into() })
    }

    /// A frame that has come, without waiting; longer ones than such messages are cut.
    pub fn take(&mut self) -> io::Result<Option<HeardFrame<'_>>> {
        match socket::receive(&self.fd, &mut self.buffer[..]) {
            Ok(received) => {
                let interface = u32::try_from(received.from.sll_ifindex).unwrap_or(0);
                let bytes = self.buffer.get(..received.length).unwrap_or(&self.buffer[..]);
                Ok(Some(HeardFrame { interface, tag: received.tag, bytes }))
            }
            Err(error) if Cause::of(&error) == Cause::NotYet => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a frame by an interface, with a tag put in.
    pub fn send(&self, interface: u32, tag: Option<Tag>, bytes: &[u8]) -> io::Result<()> {
        let (addresses, rest) = bytes.split_at(bytes.len().min(Tag::PLACE));
        let tag = tag.map(Tag::bytes);
        let frame = [addresses, tag.as_ref().map_or(&[], |tag| &tag[..]), rest].concat();
        let to = socket::link_address(interface)?;
        let place: *const libc::sockaddr_ll = &to;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        let raw = self.fd.as_raw_fd();
        // SAFETY: the pointers name `frame` with its length and `to` with its own; both outlive the call.
        let sent =
            unsafe { libc::sendto(raw, frame.as_ptr().cast(), frame.len(), libc::MSG_DONTWAIT, place.cast(), length) };
        check_length(sent).map(drop)
    }
}

impl AsFd for Hearing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Hearing {
    /// Readable while frames are there.
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
