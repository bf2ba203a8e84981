//! Child processes that cannot outlive us.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::errno::check;
use crate::host;

/// A running program that is killed, with all it started, when this is dropped or when our process ends.
///
/// It runs as the first process of a PID namespace of its own, whose end takes every descendant with it; and the kernel
/// kills it (`PR_SET_PDEATHSIG`) when the thread that started it ends, which is therefore kept for its lifetime.
#[derive(Debug)]
pub struct Child {
    process: std::process::Child,
    exit: OwnedFd,
    /// Held while the child may live; dropping it lets `warden` go.
    release: Option<mpsc::Sender<()>>,
    warden: Option<JoinHandle<()>>,
}

impl Child {
    /// The process as the standard library knows it: its id and pipes.
    pub fn process(&mut self) -> &mut std::process::Child {
        &mut self.process
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends a signal, as in `libc::SIGTERM`. Being the first of its PID namespace, the program ignores signals for which it
    /// has no handler, except SIGKILL and SIGSTOP.
    pub fn signal(&mut self, signal: i32) -> io::Result<()> {
        // A process that is reaped has given its id back.
        if self.process.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = libc::pid_t::try_from(self.process.id()).map_err(io::Error::other)?;
        // SAFETY: kill takes no pointer; the process is not reaped yet, so the id is still its own.
        check(unsafe { libc::kill(pid, signal) })?;
        Ok(())
    }

    /// Asks it to end (SIGTERM).
    pub fn terminate(&mut self) -> io::Result<()> {
        self.signal(libc::SIGTERM)
    }

    /// Lowers or raises how many descriptors it may hold, while it runs.
    pub fn limit_descriptors(&mut self, nofile: u64) -> io::Result<()> {
        let pid = libc::pid_t::try_from(self.process.id()).map_err(io::Error::other)?;
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel writes one rlimit into `limit`, which outlives the call; null sets nothing.
        check(unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &mut limit) })?;
        limit.rlim_cur = nofile.min(limit.rlim_max);
        // SAFETY: the kernel reads one rlimit from `limit`, which outlives the call; null asks for nothing back.
        check(unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &limit, std::ptr::null_mut()) })?;
        Ok(())
    }

    /// Kills it and all it started.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.process.kill()?;
        self.process.wait()
    }

    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.process.try_wait()
    }

    /// Waits until it ends; `None` when it still runs after `timeout`.
    pub fn wait_timeout(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        match host::await_readable(&self.exit, timeout) {
            Ok(()) => self.process.wait().map(Some),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only for a process that has ended and been reaped, which is what we want.
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
        self.release = None;
        if let Some(warden) = self.warden.take() {
            let _ended = warden.join();
        }
    }
}

/// A program in a process group of its own, which ends whole: with what the program has started and left behind, unless that has left the group.
///
/// Nothing is done between fork and exec, so that the standard library can use `posix_spawn`: a fork would copy the page tables of all our memory.
#[derive(Debug)]
pub struct Group {
    /// `None` once it is reaped: then its id, which is the group's, may be another's.
    leader: Option<std::process::Child>,
    exit: OwnedFd,
    held: Held,
}

/// What is given back when the program has ended.
struct Held(Option<Box<dyn Send + Sync>>);

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Held").field(&self.0.is_some()).finish()
    }
}

impl Group {
    /// Starts the program. `held` is dropped once it has ended: also one that is killed may hang in the kernel for as long as that likes, so that whoever
    /// bounds their number has to count it until then.
    pub fn spawn(command: &mut Command, held: impl Send + Sync + 'static) -> io::Result<Group> {
        let mut leader = command.process_group(0).spawn()?;
        match open_pidfd(leader.id()) {
            Ok(exit) => Ok(Group { leader: Some(leader), exit, held: Held(Some(Box::new(held))) }),
            Err(error) => {
                // Both fail only for a process that has ended.
                let _killed = leader.kill();
                let _reaped = leader.wait();
                Err(error)
            }
        }
    }

    /// Kills whoever of the group still lives. Waits for nobody.
    pub fn kill(&self) -> io::Result<()> {
        let Some(leader) = &self.leader else { return Ok(()) };
        let group = libc::pid_t::try_from(leader.id()).map_err(io::Error::other)?;
        // SAFETY: kill takes no pointer; the leader is not reaped yet, so that the id is still the group's own.
        match check(unsafe { libc::kill(-group, libc::SIGKILL) }) {
            Ok(_) => Ok(()),
            // Nobody is left, or only who runs as another user by now.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EPERM)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// How the program has ended, if it has; what it left of its group is killed then, for later nobody knows it any more.
    pub fn try_end(&mut self) -> io::Result<Option<ExitStatus>> {
        if host::await_readable(&self.exit, Duration::ZERO).is_err() {
            return Ok(None);
        }
        self.kill()?;
        match self.leader.take() {
            Some(mut leader) => leader.wait().map(Some),
            None => Ok(None),
        }
    }
}

/// Readable once the program has ended.
impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.exit.as_fd()
    }
}

impl AsRawFd for Group {
    fn as_raw_fd(&self) -> RawFd {
        self.exit.as_raw_fd()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _killed = self.kill();
        if let Some(mut leader) = self.leader.take() {
            let held = self.held.0.take();
            // One that hangs in the kernel dies when that lets it go.
            let _reaped = thread::Builder::new().name("reaper".into()).spawn(move || {
                let _ended = leader.wait();
                drop(held);
            });
        }
    }
}

/// A file without a name, for a program that wants to be told a path: [`MemoryFile::path`] is one that every process of ours can
/// open, and the file is gone with this value.
#[derive(Debug)]
pub struct MemoryFile {
    file: File,
}

impl MemoryFile {
    /// A file with this content.
    pub fn create(content: &[u8]) -> io::Result<MemoryFile> {
        // SAFETY: the name is a NUL-terminated string that outlives the call.
        let raw = check(unsafe { libc::memfd_create(c"towpath".as_ptr(), libc::MFD_CLOEXEC) })?;
        // SAFETY: memfd_create has just returned this descriptor, and nobody else holds it.
        let mut file = File::from(unsafe { OwnedFd::from_raw_fd(raw) });
        file.write_all(content)?;
        Ok(MemoryFile { file })
    }

    /// Where other processes of this user find it, for as long as this value lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
    }

    /// A handle for a program to write through; several share one position.
    pub fn writer(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// What is in it now.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        // Opened anew: reading must not move the position at which others write.
        std::fs::read(self.path())
    }
}

/// A process that need not be our child.
#[derive(Debug)]
pub struct Process {
    exit: OwnedFd,
}

impl Process {
    /// The process of that id; `NotFound` when there is none. What is known of it otherwise is to be checked after this: the id
    /// may have been another's before.
    pub fn open(pid: u32) -> io::Result<Process> {
        match open_pidfd(pid) {
            Ok(exit) => Ok(Process { exit }),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                Err(io::Error::new(io::ErrorKind::NotFound, format!("no process {pid}")))
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until it has ended; says whether it has. Who started it still learns how.
    pub fn has_ended(&self, timeout: Duration) -> bool {
        host::await_readable(&self.exit, timeout).is_ok()
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub fn end(&self, timeout: Duration) -> io::Result<()> {
        let (fd, no_info) = (self.exit.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: null asks for the signal's usual information; the rest are integers.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGTERM, no_info, 0) };
        if result == -1 {
            return Err(io::Error::last_os_error());
        }
        host::await_readable(&self.exit, timeout)
    }
}

/// Has the kernel kill the program when the thread that starts it ends.
pub fn die_with_parent(command: &mut Command) -> io::Result<()> {
    let parent = open_pidfd(std::process::id())?;
    let request = move || {
        // SAFETY: PR_SET_PDEATHSIG takes an integer.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) })?;
        // A parent that ended before this will not be heard of.
        let mut poll = libc::pollfd { fd: parent.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the kernel reads and writes one pollfd, which outlives the call.
        match check(unsafe { libc::poll(&mut poll, 1, 0) })? {
            0 => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    };
    // SAFETY: the closure makes two system calls and neither allocates nor takes a lock.
    unsafe { command.pre_exec(request) };
    Ok(())
}

/// Starts a program in a PID namespace of its own, from a thread that has called `prepare` first.
pub(crate) fn spawn_confined(
    mut command: Command,
    prepare: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<Child> {
    die_with_parent(&mut command)?;
    let (report, started) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let warden = thread::Builder::new().name("warden".into()).spawn(move || {
        let spawned = prepare()
            .and_then(|()| {
                // SAFETY: unshare takes no pointer; it concerns the children of this thread only.
                check(unsafe { libc::unshare(libc::CLONE_NEWPID) })
            })
            .and_then(|_| {
                command.spawn().map_err(|error| {
                    io::Error::new(error.kind(), format!("start {:?}: {error}", command.get_program()))
                })
            });
        if report.send(spawned).is_ok() {
            // Nothing is ever sent: this returns when the other side is gone.
            let _gone = released.recv();
        }
    })?;
    let process = started.recv().map_err(|_| io::Error::other("the thread that starts a child has panicked"))??;
    let exit = open_pidfd(process.id())?;
    Ok(Child { process, exit, release: Some(release), warden: Some(warden) })
}

/// A descriptor that is readable once the process has ended.
fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::c_long::from(pid);
    let flags: libc::c_long = 0;
    // SAFETY: pidfd_open takes two integers.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) };
    let raw = RawFd::try_from(raw).map_err(io::Error::other)?;
    let raw = check(raw)?;
    // SAFETY: pidfd_open has just returned this descriptor, and nobody else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
