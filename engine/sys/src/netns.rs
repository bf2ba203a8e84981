//! Network namespaces without names: they live as long as somebody holds their descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic;
use std::process::Command;
use std::thread;

use crate::errno::check;
use crate::host;
use crate::link::Links;
use crate::process::{self, Child};

/// A network namespace of our own, with its loopback up. It ends with the last holder: this value, a
/// process or socket in it.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
}

impl Namespace {
    /// Creates a namespace. `PermissionDenied` without CAP_SYS_ADMIN: see [`crate::privilege::ensure`].
    pub fn create() -> io::Result<Namespace> {
        let created = thread::scope(|scope| {
            let creator = thread::Builder::new().name("netns-create".into()).spawn_scoped(scope, || {
                // SAFETY: unshare takes no pointer; it changes this thread only, which ends here.
                check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
                Links::open()?.set_up("lo")?;
                File::open("/proc/thread-self/ns/net")
            })?;
            creator.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
        });
        Ok(Namespace { fd: created?.into() })
    }

    /// The namespace of the calling thread.
    pub fn current() -> io::Result<Namespace> {
        Ok(Namespace { fd: File::open("/proc/thread-self/ns/net")?.into() })
    }

    /// Runs `work` on a thread inside the namespace and returns its result. Sockets that it opens stay in the
    /// namespace wherever they are used later. A panic in it goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let inside = thread::Builder::new().name("netns-run".into()).spawn_scoped(scope, || {
                self.enter()?;
                Ok(work())
            })?;
            inside.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
        })
    }

    /// Moves the calling thread into the namespace, for the rest of its life; threads and processes it starts
    /// begin there.
    pub fn enter(&self) -> io::Result<()> {
        // SAFETY: setns takes no pointer; it changes the calling thread only.
        check(unsafe { libc::setns(self.fd.as_raw_fd(), libc::CLONE_NEWNET) })?;
        Ok(())
    }

    /// Starts a program inside the namespace. It, and all it starts, is killed when the returned value is
    /// dropped or when this process ends, however that happens.
    pub fn spawn(&self, command: Command) -> io::Result<Child> {
        let namespace = self.share()?;
        process::spawn_confined(command, move || namespace.enter())
    }

    /// As [`Namespace::spawn`], on these CPUs only.
    pub fn spawn_on(&self, cpus: &[usize], command: Command) -> io::Result<Child> {
        let namespace = self.share()?;
        let cpus = cpus.to_vec();
        process::spawn_confined(command, move || {
            host::pin_thread(&cpus)?;
            namespace.enter()
        })
    }

    /// Another handle on the same namespace.
    pub fn share(&self) -> io::Result<Namespace> {
        Ok(Namespace { fd: self.fd.try_clone()? })
    }

    /// The links of the namespace.
    pub fn links(&self) -> io::Result<Links> {
        self.run(Links::open)?
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Route;
    use crate::packet::{Direction, Tap};
    use crate::privilege::{self, Privilege};
    use std::io::Read;
    use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    const DEADLINE: Duration = Duration::from_secs(10);

    #[test]
    fn two_namespaces_talk_over_a_veth_pair() {
        if privilege::ensure(two_namespaces_talk_over_a_veth_pair).unwrap() == Privilege::Delegated {
            return;
        }
        let near = Namespace::create().unwrap();
        let far = Namespace::create().unwrap();
        let mut near_links = near.links().unwrap();
        near_links.create_veth("a", "b", &far).unwrap();
        let mut far_links = far.links().unwrap();
        for (links, name, ends) in [(&mut near_links, "a", 1), (&mut far_links, "b", 2)] {
            links.add_address(name, IpAddr::from([10, 9, 0, ends]), 24).unwrap();
            links.add_address(name, format!("fd09::{ends}").parse().unwrap(), 64).unwrap();
            links.set_up(name).unwrap();
        }
        let route = Route {
            destination: ("10.77.0.0".parse().unwrap(), 16),
            gateway: Some([10, 9, 0, 2].into()),
            link: "a".into(),
        };
        near_links.add_route(&route).unwrap();
        far_links.add_address("lo", [10, 77, 1, 1].into(), 32).unwrap();

        for to in ["10.9.0.2:0", "[fd09::2]:0", "10.77.1.1:0"] {
            let listener = far.run(|| TcpListener::bind(to)).unwrap().unwrap();
            let to = listener.local_addr().unwrap();
            let stream = near.run(|| TcpStream::connect_timeout(&to, DEADLINE)).unwrap().unwrap();
            assert_eq!(stream.peer_addr().unwrap(), to);
        }
        let refused = near.run(|| TcpListener::bind("10.9.0.2:0")).unwrap().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrNotAvailable);

        near_links.set_down("a").unwrap();
        assert!(!near_links.find("a").unwrap().up);
        assert!(!far_links.find("b").unwrap().carrier);
        near_links.remove("a").unwrap();
        assert_eq!(far_links.find("b").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_tap_sees_what_passes_and_says_which_way() {
        if privilege::ensure(a_tap_sees_what_passes_and_says_which_way).unwrap() == Privilege::Delegated {
            return;
        }
        let near = Namespace::create().unwrap();
        let far = Namespace::create().unwrap();
        let mut near_links = near.links().unwrap();
        near_links.create_veth("a", "b", &far).unwrap();
        near_links.add_address("a", [10, 9, 0, 1].into(), 24).unwrap();
        near_links.set_up("a").unwrap();
        let mut far_links = far.links().unwrap();
        far_links.add_address("b", [10, 9, 0, 2].into(), 24).unwrap();
        far_links.set_up("b").unwrap();

        let taps = [near.run(|| Tap::open("a")).unwrap().unwrap(), far.run(|| Tap::open("b")).unwrap().unwrap()];
        let sender = near.run(|| UdpSocket::bind("10.9.0.1:0")).unwrap().unwrap();
        sender.send_to(b"towpath-tap", "10.9.0.2:9").unwrap();
        for (mut tap, direction) in taps.into_iter().zip([Direction::Sent, Direction::Received]) {
            let deadline = Instant::now() + DEADLINE;
            let frame = tap.find(deadline, |frame| frame.bytes.ends_with(b"towpath-tap")).unwrap().unwrap();
            assert_eq!(frame.direction, direction);
            assert_eq!(tap.lost().unwrap(), 0);
        }
    }

    #[test]
    fn a_dropped_child_takes_its_own_children_with_it() {
        if privilege::ensure(a_dropped_child_takes_its_own_children_with_it).unwrap() == Privilege::Delegated {
            return;
        }
        let namespace = Namespace::create().unwrap();
        let mut command = Command::new("/bin/sh");
        // The grandchild holds the pipe open: its end is the end of the pipe.
        command.args(["-c", "sleep 1000 & echo started; wait"]).stdout(Stdio::piped());
        let mut child = namespace.spawn(command).unwrap();
        let mut output = child.process().stdout.take().unwrap();
        let mut started = [0; 8];
        output.read_exact(&mut started).unwrap();
        assert!(child.wait_timeout(Duration::from_millis(1)).unwrap().is_none());
        drop(child);
        assert_eq!(output.read(&mut started).unwrap(), 0);
    }
}
