//! The right to build networks: held by root, and by anybody inside a user namespace.

use std::any;
use std::env;
use std::ffi::CString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::errno::{check, check_length};
use crate::netns::Namespace;
use crate::process;

/// Set in a test that runs in a user namespace of ours.
const MARK: &str = "TOWPATH_IN_USER_NAMESPACE";

/// How a test may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// This process may not, but has run the test again in a user namespace, where it has passed: return.
    Delegated,
    /// This process may create namespaces and links: go on.
    Held,
}

/// Sees to it that the calling test may create network namespaces: as it is, or by running it again, alone, in a user
/// namespace. `test` is the test function itself; its path is the name that the test program knows it by.
///
/// Fails with the reason when neither is possible or the second run fails.
pub fn ensure<F: FnOnce()>(test: F) -> io::Result<Privilege> {
    let refused = match Namespace::create() {
        Ok(_) => return Ok(Privilege::Held),
        Err(error) => error,
    };
    let path = any::type_name_of_val(&test);
    let name = path.split_once("::").map_or(path, |(_crate, name)| name);
    if env::var_os(MARK).is_some() {
        return Err(io::Error::new(
            refused.kind(),
            format!("{name}: no network namespace even in a user namespace ({refused}); run as root"),
        ));
    }
    let mut command = Command::new(env::current_exe()?);
    command.args([name, "--exact", "--nocapture", "--include-ignored"]).env(MARK, "1");
    enter_user_namespace(&mut command)?;
    process::die_with_parent(&mut command)?;
    let output = command.output().map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("{name}: not root ({refused}) and no user namespace ({error}); run as root, or allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone)"),
        )
    })?;
    let told = String::from_utf8_lossy(&output.stdout);
    // A name that selects no test would pass without having run anything.
    if output.status.success() && told.contains("1 passed") {
        return Ok(Privilege::Delegated);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{name} in a user namespace: {}\n{told}\n{errors}", output.status)))
}

/// Has the program start as root of a new user namespace.
fn enter_user_namespace(command: &mut Command) -> io::Result<()> {
    // SAFETY: getuid takes nothing and cannot fail.
    let uid = unsafe { libc::getuid() };
    // SAFETY: getgid takes nothing and cannot fail.
    let gid = unsafe { libc::getgid() };
    let files = [
        (CString::new("/proc/self/setgroups")?, "deny".to_owned()),
        (CString::new("/proc/self/uid_map")?, format!("0 {uid} 1")),
        (CString::new("/proc/self/gid_map")?, format!("0 {gid} 1")),
    ];
    let enter = move || {
        // SAFETY: unshare takes no pointer; the forked process has one thread.
        check(unsafe { libc::unshare(libc::CLONE_NEWUSER) })?;
        for (path, content) in &files {
            // SAFETY: `path` is a NUL-terminated string that outlives the call.
            let fd = check(unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) })?;
            // SAFETY: the pointer and length name `content`, which outlives the call.
            check_length(unsafe { libc::write(fd, content.as_ptr().cast(), content.len()) })?;
            // SAFETY: `fd` was opened above and is not used after.
            check(unsafe { libc::close(fd) })?;
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls on memory prepared before the fork; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(enter) };
    Ok(())
}
