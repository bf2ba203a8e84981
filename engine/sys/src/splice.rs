//! Bytes from socket to socket through a pipe, without passing through this process (splice(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::errno::{Cause, check, check_length};

/// A pipe whose ends are non-blocking and closed on exec.
#[derive(Debug)]
pub struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    capacity: usize,
}

/// Outcome of moving bytes into a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// So many bytes (never 0) are now in the pipe.
    Bytes(usize),
    /// The source has ended.
    End,
    /// The source has nothing, or the pipe has no room: wait for whichever it is.
    NotYet,
}

/// Outcome of moving bytes out of a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// So many bytes (never 0) have left the pipe.
    Bytes(usize),
    /// The sink takes nothing now, or the pipe is empty: wait for whichever it is.
    NotYet,
}

impl Pipe {
    /// Opens a pipe and asks for `capacity` bytes. Without CAP_SYS_RESOURCE the kernel grants a user only
    /// `fs.pipe-user-pages-soft` pages in all and caps one pipe at `fs.pipe-max-size`; a pipe that it would not
    /// enlarge is returned with the capacity it has, which [`Pipe::capacity`] tells.
    pub fn open(capacity: usize) -> io::Result<Pipe> {
        let mut ends: [RawFd; 2] = [-1; 2];
        // SAFETY: the kernel writes two descriptors into the array, which outlives the call.
        check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) })?;
        // SAFETY: pipe2 has just returned this descriptor, and nobody else holds it.
        let reader = unsafe { OwnedFd::from_raw_fd(ends[0]) };
        // SAFETY: as above.
        let writer = unsafe { OwnedFd::from_raw_fd(ends[1]) };
        let wanted = libc::c_int::try_from(capacity).unwrap_or(libc::c_int::MAX);
        // SAFETY: F_SETPIPE_SZ takes an integer.
        let set = check(unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, wanted) });
        let granted = match set {
            Ok(bytes) => bytes,
            // SAFETY: F_GETPIPE_SZ takes nothing.
            Err(_) => check(unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_GETPIPE_SZ) })?,
        };
        Ok(Pipe { reader, writer, capacity: usize::try_from(granted).unwrap_or(0) })
    }

    /// How many bytes fit in at best. Small segments fill a pipe sooner: each takes a page slot.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The end that a ring operation or a poll reads from.
    pub fn reader(&self) -> &OwnedFd {
        &self.reader
    }

    /// The end that a ring operation or a poll writes to.
    pub fn writer(&self) -> &OwnedFd {
        &self.writer
    }

    /// Moves up to `length` bytes from a socket into the pipe.
    pub fn fill(&self, source: &impl AsFd, length: usize) -> io::Result<Filled> {
        match splice(source.as_fd().as_raw_fd(), self.writer.as_raw_fd(), length) {
            Ok(0) => Ok(Filled::End),
            Ok(bytes) => Ok(Filled::Bytes(bytes)),
            Err(error) if Cause::of(&error) == Cause::NotYet => Ok(Filled::NotYet),
            Err(error) => Err(error),
        }
    }

    /// Moves up to `length` bytes out of the pipe into a socket.
    pub fn drain(&self, sink: &impl AsFd, length: usize) -> io::Result<Drained> {
        match splice(self.reader.as_raw_fd(), sink.as_fd().as_raw_fd(), length) {
            Ok(0) => Ok(Drained::NotYet),
            Ok(bytes) => Ok(Drained::Bytes(bytes)),
            Err(error) if Cause::of(&error) == Cause::NotYet => Ok(Drained::NotYet),
            Err(error) => Err(error),
        }
    }
}

fn splice(from: RawFd, to: RawFd, length: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    // SAFETY: both offset pointers are null, as pipes and sockets require; both descriptors are open for the length of the call.
    check_length(unsafe { libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), length, flags) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        (near, far)
    }

    #[test]
    fn bytes_pass_through_a_pipe_and_the_end_is_seen() {
        let (mut client, left) = tcp_pair();
        let (right, mut server) = tcp_pair();
        let pipe = Pipe::open(256 * 1024).unwrap();
        assert!(pipe.capacity() >= 4096);

        client.write_all(b"through the pipe").unwrap();
        assert_eq!(pipe.fill(&left, 1 << 20).unwrap(), Filled::Bytes(16));
        assert_eq!(pipe.drain(&right, 16).unwrap(), Drained::Bytes(16));
        let mut read = [0; 16];
        server.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"through the pipe");

        left.set_nonblocking(true).unwrap();
        assert_eq!(pipe.fill(&left, 1 << 20).unwrap(), Filled::NotYet);
        assert_eq!(pipe.drain(&right, 1).unwrap(), Drained::NotYet);
        drop(client);
        left.set_nonblocking(false).unwrap();
        assert_eq!(pipe.fill(&left, 1 << 20).unwrap(), Filled::End);
    }
}
