//! The process at the other end of the Unix socket, and what it may do.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tokio::net::UnixStream;
use towpath_config::model::ControlRole;
use towpath_sys::peer::supplementary_groups;

/// Of the lists of users and groups so much is read to find a name.
const USERS_BYTES_MAX: u64 = 1024 * 1024;
/// What a group may do that may write to the socket.
const GROUP_WRITES: u32 = 0o020;

/// A process, as it was when it connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    /// Of its own process namespace; `None` = it is in one that we do not see.
    process: Option<i32>,
}

/// Whom a file belongs to, and what its group may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    uid: u32,
    gid: u32,
    mode: u32,
}

impl Peer {
    /// Who has connected (`SO_PEERCRED`).
    pub(super) fn of(stream: &UnixStream) -> io::Result<Peer> {
        let credentials = stream.peer_cred()?;
        Ok(Peer {
            uid: credentials.uid(),
            gid: credentials.gid(),
            // Without them it is judged by its first group.
            groups: supplementary_groups(stream).unwrap_or_default(),
            process: credentials.pid().filter(|&process| process > 0),
        })
    }

    /// What it may do: root, the owner of the socket and its group may do everything. Who else may connect, because somebody has opened the file's
    /// mode, may look only.
    pub(super) fn role(&self, socket: &Path) -> ControlRole {
        // Without the file it cannot be told who else it belonged to.
        let owner = fs::symlink_metadata(socket).ok();
        self.role_by(owner.map(|file| Owner { uid: file.uid(), gid: file.gid(), mode: file.mode() }))
    }

    /// Whether it is root, or runs as the owner of the socket, so as this process: of the group alone nobody has what this process may do.
    pub(super) fn is_owner(&self, socket: &Path) -> bool {
        self.uid == 0 || fs::symlink_metadata(socket).is_ok_and(|file| file.uid() == self.uid)
    }

    fn role_by(&self, owner: Option<Owner>) -> ControlRole {
        let is_owner = |owner: Owner| {
            let of_group = self.gid == owner.gid || self.groups.contains(&owner.gid);
            self.uid == owner.uid || (of_group && owner.mode & GROUP_WRITES != 0)
        };
        if self.uid == 0 || owner.is_some_and(is_owner) { ControlRole::Admin } else { ControlRole::Viewer }
    }
}

impl fmt::Display for Peer {
    /// `root (uid 0, process 4711)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match name_of(self.uid) {
            Some(name) => write!(f, "{name} (uid {}", self.uid)?,
            None => write!(f, "user (uid {}", self.uid)?,
        }
        match self.process {
            Some(process) => write!(f, ", process {process})"),
            None => f.write_str(")"),
        }
    }
}

/// The name of a user of this machine (passwd(5)); those of directories have none here.
fn name_of(uid: u32) -> Option<String> {
    let mut users = String::new();
    File::open("/etc/passwd").ok()?.take(USERS_BYTES_MAX).read_to_string(&mut users).ok()?;
    name_in(&users, uid)
}

/// The number of a group of this machine (group(5)).
pub(super) fn group_named(name: &str) -> Option<u32> {
    let mut groups = String::new();
    File::open("/etc/group").ok()?.take(USERS_BYTES_MAX).read_to_string(&mut groups).ok()?;
    number_in(&groups, name)
}

fn number_in(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

fn name_in(users: &str, uid: u32) -> Option<String> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let of = fields.nth(1)?.parse::<u32>().ok()?;
        (of == uid).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_group_and_root_may_change_what_others_may_see() {
        let peer = |uid, gid, groups: &[u32]| Peer { uid, gid, groups: groups.to_vec(), process: Some(7) };
        let owner = Owner { uid: 100, gid: 200, mode: 0o140_660 };
        let open = Owner { mode: 0o140_666, ..owner };
        let closed = Owner { mode: 0o140_606, ..owner };
        for (peer, expected) in [
            (peer(0, 0, &[]), [true, true, true]),
            (peer(100, 1, &[]), [true, true, true]),
            (peer(1000, 200, &[]), [true, true, false]),
            (peer(1000, 1000, &[4, 200]), [true, true, false]),
            (peer(1000, 1000, &[4]), [false, false, false]),
        ] {
            let roles = expected.map(|all| if all { ControlRole::Admin } else { ControlRole::Viewer });
            assert_eq!([owner, open, closed].map(|owner| peer.role_by(Some(owner))), roles, "{peer:?}");
            let alone = if peer.uid == 0 { ControlRole::Admin } else { ControlRole::Viewer };
            assert_eq!(peer.role_by(None), alone, "{peer:?}");
        }
    }

    #[test]
    fn users_are_found_by_their_number() {
        let users = "root:x:0:0:root:/root:/bin/bash\n\nbroken\n:x:5::\nmail:x:8:8:mail:/var/mail:/usr/sbin/nologin\n";
        assert_eq!([0, 8, 5, 9].map(|uid| name_in(users, uid)), [Some("root".into()), Some("mail".into()), None, None]);
    }

    #[test]
    fn groups_are_found_by_their_name() {
        let groups = "root:x:0:\n\nbroken\nbad:x:y:\nwheel:x:10:alice,bob\n:x:5:\n";
        assert_eq!(
            ["root", "wheel", "bad", "alice", ""].map(|name| number_in(groups, name)),
            [Some(0), Some(10), None, None, Some(5)]
        );
    }
}
