//! A terminal that does not show what is typed.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::errno::check;

/// For as long as it lives, the terminal shows nothing but ends of lines.
#[derive(Debug)]
pub struct Hidden {
    terminal: OwnedFd,
    before: Settings,
}

/// `struct termios`, which has no Debug.
struct Settings(libc::termios);

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Settings")
    }
}

impl Hidden {
    /// Hides what is typed at `terminal` from now on; an error where it is none.
    pub fn new(terminal: &impl AsFd) -> io::Result<Hidden> {
        let terminal = terminal.as_fd().try_clone_to_owned()?;
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the kernel writes a whole `termios` into `settings`, or fails; it outlives the call.
        check(unsafe { libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()) })?;
        // SAFETY: `tcgetattr` has succeeded, so it has filled it in.
        let before = unsafe { settings.assume_init() };
        let mut hidden = before;
        hidden.c_lflag &= !libc::ECHO;
        hidden.c_lflag |= libc::ECHONL;
        set(&terminal, &hidden)?;
        Ok(Hidden { terminal, before: Settings(before) })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // Nobody is left to tell; the shell has its own settings.
        let _set = set(&self.terminal, &self.before.0);
    }
}

/// What was typed before is not for who reads next.
fn set(terminal: &OwnedFd, settings: &libc::termios) -> io::Result<()> {
    // SAFETY: `settings` is a whole `termios` that outlives the call, which only reads it.
    check(unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSAFLUSH, settings) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_terminal_hides_nothing() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(Hidden::new(&one).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
