//! Who is at the other end of a Unix socket, as the kernel knows it.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::errno::check;

/// `SO_PEERGROUPS` (include/uapi/asm-generic/socket.h), which libc lacks on some targets.
const SO_PEERGROUPS: libc::c_int = 59;
/// Supplementary groups that a process may have (`NGROUPS_MAX`, include/uapi/linux/limits.h).
const GROUPS_MAX: usize = 65_536;

/// The supplementary groups that the peer of a connected Unix socket had when it connected.
pub fn supplementary_groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<u32> = vec![0; 64];
    loop {
        let mut length = (groups.len() * size_of::<u32>()) as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes into `groups`, and the length into `length`; both outlive the call.
        let result = check(unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &mut length,
            )
        });
        let count = length as usize / size_of::<u32>();
        match result {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            // It has written how much room is needed.
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && count > groups.len() && count <= GROUPS_MAX => {
                groups.resize(count, 0);
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn our_own_groups_are_those_of_our_peer() {
        let (one, other) = UnixStream::pair().unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
        let mut expected: Vec<u32> = line.split_whitespace().map(|group| group.parse().unwrap()).collect();
        expected.sort_unstable();
        for end in [&one, &other] {
            let mut groups = supplementary_groups(end).unwrap();
            groups.sort_unstable();
            assert_eq!(groups, expected);
        }
    }

    #[test]
    fn a_socket_of_the_network_has_no_such_peer() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(supplementary_groups(&socket).is_err());
    }
}
