//! Return values of system calls, and what an errno means for a relay.

use std::io;

/// `-1` becomes the errno, anything else passes.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// As [`check`], for calls that return a length.
pub(crate) fn check_length(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// What an error of a socket call asks of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Bind or connect: that address and port are taken; another lease may work (`EADDRINUSE`, `EADDRNOTAVAIL`).
    AddressTaken,
    /// The peer's host does not answer on its network, or a router says so (`EHOSTUNREACH`, `EHOSTDOWN`).
    HostUnreachable,
    /// A signal came first, or nothing is there yet: try again (`EINTR`, `EAGAIN`, `EINPROGRESS`).
    NotYet,
    /// Anything else.
    Other,
    /// This process or the machine has no descriptor left (`EMFILE`, `ENFILE`).
    OutOfDescriptors,
    /// No memory for it in the kernel (`ENOMEM`, `ENOBUFS`).
    OutOfMemory,
    /// The peer reset or aborted the connection (`ECONNRESET`, `ECONNABORTED`, `EPIPE`).
    PeerReset,
    /// The peer's port is closed (`ECONNREFUSED`).
    Refused,
    /// The peer did not answer in time (`ETIMEDOUT`).
    TimedOut,
    /// There is no way to the peer's network (`ENETUNREACH`, `ENETDOWN`).
    Unreachable,
}

impl Cause {
    /// The cause behind a positive errno.
    pub fn of_errno(errno: i32) -> Cause {
        match errno {
            libc::EADDRINUSE | libc::EADDRNOTAVAIL => Cause::AddressTaken,
            libc::EINTR | libc::EAGAIN | libc::EINPROGRESS => Cause::NotYet,
            libc::EMFILE | libc::ENFILE => Cause::OutOfDescriptors,
            libc::ENOMEM | libc::ENOBUFS => Cause::OutOfMemory,
            libc::ECONNRESET | libc::ECONNABORTED | libc::EPIPE => Cause::PeerReset,
            libc::ECONNREFUSED => Cause::Refused,
            libc::ETIMEDOUT => Cause::TimedOut,
            libc::EHOSTUNREACH | libc::EHOSTDOWN => Cause::HostUnreachable,
            libc::ENETUNREACH | libc::ENETDOWN => Cause::Unreachable,
            _ => Cause::Other,
        }
    }

    /// The cause behind an error of this crate.
    pub fn of(error: &io::Error) -> Cause {
        error.raw_os_error().map_or(Cause::Other, Cause::of_errno)
    }
}
