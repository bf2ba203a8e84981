//! An eventfd: one thread tells another, asleep in its ring, that something is new.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A counter in the kernel that is readable while it is not 0.
///
/// It is non-blocking, so a ring watches it with a poll operation and then calls [`EventFd::clear`]; a read operation would
/// answer `EAGAIN` at once instead of waiting.
#[derive(Debug)]
pub struct EventFd {
    file: File,
}

impl EventFd {
    /// A new eventfd, not signalled.
    pub fn new() -> io::Result<EventFd> {
        // SAFETY: eventfd takes two integers and touches no memory of ours.
        let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just handed us `raw`; nobody else owns it.
        let owned = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(EventFd { file: File::from(owned) })
    }

    /// Makes the descriptor readable. Any number of signals before the next [`EventFd::clear`] count as one.
    pub fn signal(&self) {
        // Fails only when the counter is at its maximum, and then it is readable already.
        let _full = (&self.file).write(&1u64.to_ne_bytes());
    }

    /// Takes back every signal so far; says whether there was one.
    pub fn clear(&self) -> bool {
        let mut count = [0u8; 8];
        matches!((&self.file).read(&mut count), Ok(8))
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_count_as_one_until_cleared() {
        let event = EventFd::new().expect("eventfd");
        assert!(!event.clear());
        event.signal();
        event.signal();
        assert!(event.clear());
        assert!(!event.clear());
    }
}
