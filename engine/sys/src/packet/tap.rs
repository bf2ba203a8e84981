//! A tap on an interface, for those who look at what is on the wire: tests, and questions that the doctor asks there.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use super::tag::Tag;
use super::{Instruction, Offload, PartialChecksum, socket};
use crate::errno::{Cause, check_length};
use crate::host;
use crate::socket::{set_flag, set_program};

/// The largest frame a virtual interface hands over: a super-packet of 64 KiB and its headers.
const FRAME_BYTES_MAX: usize = (1 << 16) + 256;

/// Which way a frame went, seen from the tapped interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It came in.
    Received,
    /// It left.
    Sent,
}

/// A captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which way it went.
    pub direction: Direction,
    /// From the Ethernet header on. Between virtual interfaces the transport checksum may be unfinished and the frame larger than the MTU.
    pub bytes: Vec<u8>,
    /// The outermost VLAN tag of one that came in, which the kernel takes off; one that leaves has it in its bytes.
    pub tag: Option<Tag>,
}

/// Sees every frame of an interface from the moment it is opened.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    index: u32,
    buffer: Vec<u8>,
    lost: u64,
}

impl Tap {
    /// Opens a tap on an interface of the calling thread's namespace.
    pub fn open(interface: &str) -> io::Result<Tap> {
        let index = socket::index_of(interface)?;
        let fd = socket::open()?;
        // What the kernel does not grant only makes losses likelier, and those are counted.
        let _granted = crate::socket::set_receive_buffer(&fd, 16 << 20);
        set_flag(&fd, libc::SOL_PACKET, libc::PACKET_AUXDATA)?;
        socket::bind(&fd, index)?;
        Ok(Tap { fd, index, buffer: vec![0; FRAME_BYTES_MAX], lost: 0 })
    }

    /// Sees only what a classic BPF program accepts from now on; what has come already stays.
    pub fn keep_only(&self, program: &[Instruction]) -> io::Result<()> {
        set_program(&self.fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program)
    }

    /// Sends a whole frame, Ethernet header first and every checksum complete.
    ///
    /// # Errors
    /// `NetworkDown` where the interface is, and what does not fit its MTU.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and length name `frame`, which outlives the call.
        check_length(unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) })?;
        Ok(())
    }

    /// Sends a frame whose checksum is left to the device, or to the kernel where the device does not say that it completes such.
    ///
    /// # Errors
    /// As those of [`Tap::send`].
    pub fn send_unfinished(&self, frame: &[u8], checksum: PartialChecksum) -> io::Result<()> {
        // A socket of its own: with this option ours would have a header before each frame that it hears.
        let fd = socket::open()?;
        set_flag(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR)?;
        let header = Offload { checksum: Some(checksum), segments: None }.header(frame, 0);
        let whole = [header.as_slice(), frame].concat();
        // SAFETY: sockaddr_ll is plain integers, for which all zeroes is a value.
        let mut to: libc::sockaddr_ll = unsafe { mem::zeroed() };
        to.sll_family = libc::AF_PACKET as libc::c_ushort;
        to.sll_ifindex = libc::c_int::try_from(self.index).map_err(io::Error::other)?;
        let place: *const libc::sockaddr_ll = &to;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        let (bytes, raw) = (whole.as_ptr().cast(), fd.as_raw_fd());
        // SAFETY: the pointers name `whole` with its length and `to` with its own; both outlive the call.
        check_length(unsafe { libc::sendto(raw, bytes, whole.len(), 0, place.cast(), length) })?;
        Ok(())
    }

    /// The next frame; `None` when none comes before the deadline.
    pub fn next(&mut self, deadline: Instant) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(Some(frame));
            }
            match host::await_readable(&self.fd, deadline.saturating_duration_since(Instant::now())) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next frame that `wanted` accepts; `None` when none comes before the deadline. Others are passed over.
    pub fn find(&mut self, deadline: Instant, mut wanted: impl FnMut(&Frame) -> bool) -> io::Result<Option<Frame>> {
        while let Some(frame) = self.next(deadline)? {
            if wanted(&frame) {
                return Ok(Some(frame));
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        Ok(None)
    }

    /// A frame that has been captured already, without waiting.
    pub fn take(&mut self) -> io::Result<Option<Frame>> {
        let socket::Received { length: received, from, tag } = match socket::receive(&self.fd, &mut self.buffer) {
            Ok(received) => received,
            Err(error) if Cause::of(&error) == Cause::NotYet => return Ok(None),
            Err(error) => return Err(error),
        };
        if received > self.buffer.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("frame of {received} bytes does not fit the tap"),
            ));
        }
        let direction = if from.sll_pkttype == libc::PACKET_OUTGOING { Direction::Sent } else { Direction::Received };
        Ok(Some(Frame { direction, bytes: self.buffer[..received].to_vec(), tag }))
    }

    /// How many frames passed while the tap had no room for them.
    pub fn lost(&mut self) -> io::Result<u64> {
        // Reading resets the kernel's own count.
        self.lost += socket::take_losses(&self.fd)?;
        Ok(self.lost)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
