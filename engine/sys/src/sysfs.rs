//! A network namespace's own view of /sys, of which /sys/class/net is part.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use crate::errno::check;
use crate::netns::Namespace;

/// A file system of kind sysfs that is mounted nowhere and ends with this value.
#[derive(Debug)]
pub struct Sysfs {
    root: OwnedFd,
}

impl Sysfs {
    /// The view of a namespace. `PermissionDenied` without CAP_SYS_ADMIN.
    pub fn of(namespace: &Namespace) -> io::Result<Sysfs> {
        namespace.run(|| {
            // A mount needs the right to change the mount namespace, which in a user namespace only one of our own gives.
            // SAFETY: unshare takes no pointer; it changes this thread only, which ends after this closure.
            check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
            // A sysfs shows the network namespace of the thread that creates it (fs/sysfs/mount.c, sysfs_init_fs_context).
            let context = open_context()?;
            create(&context)?;
            mount(&context).map(|root| Sysfs { root })
        })?
    }

    /// Writes a value into a file, as in `class/net/lan/queues/rx-0/rps_cpus`.
    pub fn write(&self, file: &str, value: &str) -> io::Result<()> {
        fs::write(self.path(file), value).map_err(|error| told(&error, &format!("/sys/{file} = {value}")))
    }

    /// What is in a file, without the end of its line.
    pub fn read(&self, file: &str) -> io::Result<String> {
        let text = fs::read_to_string(self.path(file)).map_err(|error| told(&error, &format!("/sys/{file}")))?;
        Ok(text.trim_end().to_owned())
    }

    /// The names in a directory.
    pub fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(self.path(directory)).map_err(|error| told(&error, &format!("/sys/{directory}")))?;
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
    }

    fn path(&self, file: &str) -> String {
        format!("/proc/self/fd/{}/{file}", self.root.as_raw_fd())
    }
}

fn open_context() -> io::Result<OwnedFd> {
    // SAFETY: fsopen reads a NUL-terminated string that outlives the call, and an integer.
    let raw = unsafe { libc::syscall(libc::SYS_fsopen, c"sysfs".as_ptr(), libc::FSOPEN_CLOEXEC) };
    owned(raw)
}

fn create(context: &OwnedFd) -> io::Result<()> {
    let nothing = ptr::null::<libc::c_char>();
    // SAFETY: FSCONFIG_CMD_CREATE takes no key and no value.
    let result = unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), libc::FSCONFIG_CMD_CREATE, nothing, nothing, 0)
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn mount(context: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: fsmount takes integers.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), libc::FSMOUNT_CLOEXEC, 0) })
}

/// The descriptor that a system call has returned.
fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let raw = check(RawFd::try_from(result).map_err(io::Error::other)?)?;
    // SAFETY: the kernel has just returned this descriptor, and nobody else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn told(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privilege::{self, Privilege};

    #[test]
    fn a_namespace_shows_its_own_links_and_takes_their_settings() {
        if privilege::ensure(a_namespace_shows_its_own_links_and_takes_their_settings).unwrap() == Privilege::Delegated
        {
            return;
        }
        let (near, far) = (Namespace::create().unwrap(), Namespace::create().unwrap());
        near.links().unwrap().create_veth("here", "there", &far).unwrap();
        let sysfs = Sysfs::of(&near).unwrap();
        let file = "class/net/here/queues/rx-0/rps_cpus";
        assert_eq!(sysfs.read(file).unwrap().trim_start_matches(['0', ',']), "");
        sysfs.write(file, "1").unwrap();
        assert_eq!(sysfs.read(file).unwrap().trim_start_matches(['0', ',']), "1");
        assert!(sysfs.list("class/net").unwrap().contains(&"here".to_owned()));
        assert_eq!(sysfs.read("class/net/there/ifindex").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(Sysfs::of(&far).unwrap().read("class/net/there/ifindex").is_ok());
    }
}
