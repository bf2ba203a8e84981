//! What the two processes say to each other.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use towpath_config::model::Protocol;
use towpath_core::WorkerId;
use towpath_core::health::CheckPlan;
use towpath_core::snapshot::ServerHealth;

use crate::questions::Transport;
use crate::shared::Doorway;

use super::plane::PlaneManifest;

/// Descriptors that a manifest announces at most: 1,024 services with a few ports each on a hundred workers.
pub(super) const DESCRIPTORS_MAX: usize = 1 << 19;

/// The new process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "kebab-case")]
pub(super) enum FromNew {
    /// Who it is.
    Hello {
        /// The form of what it understands.
        format: u32,
        /// Its version.
        version: String,
    },
    /// Everything is checked and open; it waits for the word to go.
    Ready,
    /// It does not take over.
    Refused {
        /// Each reason by itself.
        reasons: Vec<String>,
    },
    /// Its workers serve.
    Running,
}

/// The old process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "kebab-case")]
pub(super) enum FromOld {
    /// So many connections and sessions are left.
    Finishing {
        /// All of them.
        connections: u64,
    },
    /// The new one may serve.
    Go(Box<Going>),
    /// What there is; descriptors follow.
    Manifest(Box<Manifest>),
    /// Control socket, metrics and state file are the new one's.
    Yours,
}

/// What there is to take over, and the secrets under which clients come back.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Version of the old process.
    pub(super) version: String,
    /// Its id.
    pub(super) pid: u32,
    /// Of all that it draws: clients are steered and remembered by it.
    pub(super) seed: u64,
    /// Workers that it was started with.
    pub(super) workers: usize,
    /// Of cookies and of what clients are known by, where the file names no secret.
    pub(super) http_secret: Secret,
    /// What was said at run time, as in `control.state_file`.
    pub(super) words: String,
    /// What is known of servers, by what is checked.
    pub(super) verdicts: BTreeMap<String, Verdict>,
    /// `control.socket`, if it comes as a descriptor.
    pub(super) socket: Option<PathBuf>,
    /// `control.listen` likewise.
    pub(super) listen: Option<SocketAddr>,
    /// `metrics.listen` likewise.
    pub(super) metrics: Option<SocketAddr>,
    /// The listeners of the stream plane, in the order of their descriptors, behind those three.
    pub(super) doors: Vec<HeldDoor>,
    /// Whether the kernel is kept silent for a packet plane; what says by whom is the last descriptor.
    pub(super) is_silent: bool,
}

/// What nobody is to read in a log.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Secret(pub(super) [u8; 16]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Manifest {
    /// Descriptors that come with it.
    pub(super) fn descriptors(&self) -> usize {
        let named = [self.socket.is_some(), self.listen.is_some(), self.metrics.is_some()];
        named.into_iter().filter(|is_there| *is_there).count() + self.doors.len() + usize::from(self.is_silent)
    }
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldDoor {
    /// Its number among those of the same address and port, as the kernel counts.
    pub(crate) place: u16,
    pub(crate) is_udp: bool,
    pub(crate) address: SocketAddr,
}

impl HeldDoor {
    pub(super) fn protocol(&self) -> Protocol {
        if self.is_udp { Protocol::Udp } else { Protocol::Tcp }
    }
}

/// What a check had come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    health: HealthWord,
    reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum HealthWord {
    Down,
    Held,
    Up,
}

impl Verdict {
    /// `None` = there is none yet.
    pub(crate) fn of(health: ServerHealth, reason: &str) -> Option<Verdict> {
        let health = match health {
            ServerHealth::Unknown => return None,
            ServerHealth::Down => HealthWord::Down,
            ServerHealth::Held => HealthWord::Held,
            ServerHealth::Up => HealthWord::Up,
        };
        Some(Verdict { health, reason: reason.to_owned() })
    }

    pub(crate) fn health(&self) -> ServerHealth {
        match self.health {
            HealthWord::Down => ServerHealth::Down,
            HealthWord::Held => ServerHealth::Held,
            HealthWord::Up => ServerHealth::Up,
        }
    }

    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }
}

/// What tells a check from others in both processes: what is asked of whom, not how often. A version that asks otherwise begins anew.
pub(crate) fn subject_of(plan: &CheckPlan) -> String {
    format!("{} {:?} {:?} {:?}", plan.address, plan.ports, plan.vip, plan.kind)
}

/// What the new process needs at the moment at which it begins to serve. Behind it come the persistence entries.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Going {
    /// What was said at run time, as in `control.state_file`.
    pub(super) words: String,
    /// Source ports that connections of the old process hold.
    pub(super) leases: Vec<HeldPorts>,
    /// What the flows of the packet plane are, which come as descriptors at the end; `None` where there is none.
    pub(super) plane: Option<PlaneManifest>,
}

/// Source ports of one address towards one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldPorts {
    pub(crate) transport: Transport,
    pub(crate) address: IpAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) ports: Vec<u16>,
}

/// A source port that a connection holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeldLease {
    pub(crate) transport: Transport,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
}

/// Ports of the same address towards the same server together.
pub(super) fn together(leases: impl IntoIterator<Item = HeldLease>) -> Vec<HeldPorts> {
    let mut by_end: BTreeMap<(bool, IpAddr, SocketAddr), Vec<u16>> = BTreeMap::new();
    for HeldLease { transport, source, destination } in leases {
        let ports = by_end.entry((transport == Transport::Udp, source.ip(), destination)).or_default();
        ports.push(source.port());
    }
    let held = |((is_udp, address, destination), ports)| {
        let transport = if is_udp { Transport::Udp } else { Transport::Tcp };
        HeldPorts { transport, address, destination, ports }
    };
    by_end.into_iter().map(held).collect()
}

/// Copies of what the controller listens on.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) socket: Option<(PathBuf, UnixListener)>,
    pub(crate) listen: Option<(SocketAddr, TcpListener)>,
    pub(crate) metrics: Option<(SocketAddr, TcpListener)>,
}

impl Held {
    /// In the order of the manifest.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let socket = self.socket.as_ref().map(|(_, listener)| listener.as_fd());
        let listen = self.listen.as_ref().map(|(_, listener)| listener.as_fd());
        let metrics = self.metrics.as_ref().map(|(_, listener)| listener.as_fd());
        [socket, listen, metrics].into_iter().flatten()
    }
}

/// What a worker holds that the next process needs.
#[derive(Debug)]
pub(crate) struct Holdings {
    pub(crate) worker: WorkerId,
    /// In the order in which it has got them.
    pub(crate) doors: Vec<(Doorway, OwnedFd)>,
    pub(crate) leases: Vec<HeldLease>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_the_same_ends_are_told_together() {
        let lease = |transport, source: &str, to: &str| HeldLease {
            transport,
            source: source.parse().unwrap(),
            destination: to.parse().unwrap(),
        };
        let held = together([
            lease(Transport::Tcp, "192.0.2.1:2000", "192.0.2.9:80"),
            lease(Transport::Udp, "192.0.2.1:2000", "192.0.2.9:80"),
            lease(Transport::Tcp, "192.0.2.1:1000", "192.0.2.9:80"),
            lease(Transport::Tcp, "192.0.2.1:2000", "192.0.2.9:81"),
        ]);
        let ports: Vec<(Transport, u16, &[u16])> =
            held.iter().map(|held| (held.transport, held.destination.port(), held.ports.as_slice())).collect();
        assert_eq!(
            ports,
            [(Transport::Tcp, 80, &[2000, 1000][..]), (Transport::Tcp, 81, &[2000]), (Transport::Udp, 80, &[2000])]
        );
    }

    #[test]
    fn a_manifest_says_how_many_descriptors_come() {
        let door = HeldDoor { place: 1, is_udp: true, address: "192.0.2.1:53".parse().unwrap() };
        let manifest = Manifest {
            version: "1".to_owned(),
            pid: 7,
            seed: u64::MAX,
            workers: 2,
            http_secret: Secret([9; 16]),
            words: String::new(),
            verdicts: BTreeMap::new(),
            socket: Some("/run/towpath/control.sock".into()),
            listen: None,
            metrics: Some("127.0.0.1:9900".parse().unwrap()),
            doors: vec![door.clone(), door],
            is_silent: false,
        };
        assert_eq!(manifest.descriptors(), 4);
        let told = serde_json::to_vec(&FromOld::Manifest(Box::new(manifest))).unwrap();
        let FromOld::Manifest(heard) = serde_json::from_slice(&told).unwrap() else { panic!("another word") };
        assert_eq!((heard.seed, heard.descriptors(), heard.doors[0].protocol()), (u64::MAX, 4, Protocol::Udp));
    }
}
