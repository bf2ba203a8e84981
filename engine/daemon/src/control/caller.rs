//! Who asks: a process at the other end of the Unix socket, or a user who came by `control.listen`.

use std::fmt;
use std::net::IpAddr;

use towpath_config::model::ControlRole;

use super::peer::Peer;

/// Who asks, and what it may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(super) role: ControlRole,
    pub(super) who: Who,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// By the Unix socket.
    Local(Peer),
    /// By the network.
    User { name: String, address: IpAddr, by: By },
}

/// What a user is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum By {
    Certificate,
    /// The session with this key, which a browser sends whoever had it ask.
    Session([u8; 32]),
    Token,
}

impl Caller {
    /// Whether a browser may ask in its name without its knowing.
    pub(super) fn session(&self) -> Option<[u8; 32]> {
        match &self.who {
            Who::User { by: By::Session(key), .. } => Some(*key),
            Who::User { by: By::Certificate | By::Token, .. } | Who::Local(_) => None,
        }
    }

    /// Its name, without whence it came.
    pub(super) fn name(&self) -> String {
        match &self.who {
            Who::Local(peer) => peer.to_string(),
            Who::User { name, .. } => name.clone(),
        }
    }
}

impl fmt::Display for Caller {
    /// `root (uid 0, process 4711)`, `alice (192.0.2.7, token)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Local(peer) => peer.fmt(f),
            Who::User { name, address, by } => {
                let by = match by {
                    By::Certificate => "certificate",
                    By::Session(_) => "page",
                    By::Token => "token",
                };
                write!(f, "{name} ({address}, {by})")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_came_by_the_network_is_told_with_whence_and_how() {
        let caller = |by| Caller {
            role: ControlRole::Viewer,
            who: Who::User { name: "alice".to_owned(), address: [192, 0, 2, 7].into(), by },
        };
        assert_eq!(caller(By::Token).to_string(), "alice (192.0.2.7, token)");
        assert_eq!(caller(By::Session([7; 32])).to_string(), "alice (192.0.2.7, page)");
        assert_eq!(caller(By::Certificate).to_string(), "alice (192.0.2.7, certificate)");
        assert_eq!((caller(By::Token).session(), caller(By::Session([7; 32])).session()), (None, Some([7; 32])));
    }
}
