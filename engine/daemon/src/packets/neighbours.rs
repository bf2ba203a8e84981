//! The neighbours of VLANs and bridges, where the kernel has no address: what is heard on their links, and what is asked there.

use std::collections::BTreeSet;
use std::io;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use towpath_config::model::MachineRole;
use towpath_core::Now;
use towpath_core::packet::{Ip, Mac};
use towpath_core::plane::{Heard, NEIGHBOURS_MAX, NeighbourCounts, Neighbours, Network, PortId};
use towpath_sys::packet::{HeardFrame, Hearing, Tag};

/// Frames that are read in one go.
const FRAMES_MAX: usize = 64;

/// The table, and the socket by which it hears and asks.
pub(crate) struct Neighbourhood {
    table: Neighbours,
    hearing: AsyncFd<Hearing>,
    /// Addresses of ours of which it was told that another station has them too.
    told: BTreeSet<Ip>,
    /// The machine's, when frames were heard last.
    role: MachineRole,
}

impl Neighbourhood {
    /// Hears from here on; `ours`: VIPs and SNAT addresses. To be called within the runtime of the thread that uses it.
    pub(crate) fn new(hearing: Hearing, ours: BTreeSet<Ip>) -> io::Result<Neighbourhood> {
        #[expect(
            deprecated,
            reason = "`register` is unsafe; the descriptor is the socket's own and stays open as long as it"
        )]
        let hearing = AsyncFd::new(hearing)?;
        Ok(Neighbourhood {
            table: Neighbours::new(ours, NEIGHBOURS_MAX),
            hearing,
            told: BTreeSet::new(),
            role: MachineRole::Active,
        })
    }

    /// Who is known.
    pub(crate) fn known(&self) -> impl Iterator<Item = (PortId, Ip, Mac)> + '_ {
        self.table.known()
    }

    /// What was counted.
    pub(crate) fn counts(&self) -> &NeighbourCounts {
        self.table.counts()
    }

    /// When [`Neighbourhood::ask`] has something to do next.
    pub(crate) fn next_due(&self) -> Option<Now> {
        self.table.next_due()
    }

    /// Returns once frames are there.
    pub(crate) async fn heard(&self) {
        if self.hearing.readable().await.map(|mut ready| ready.retain_ready()).is_err() {
            // The runtime is about to end.
            std::future::pending().await
        }
    }

    /// Reads what has come, so much that others are not held up; whether the network is another one since.
    pub(crate) fn hear(&mut self, now: Now, network: &Network, role: MachineRole) -> bool {
        if self.role != role {
            self.role = role;
            self.told.clear();
        }
        let mut is_news = false;
        for _ in 0..FRAMES_MAX {
            let Neighbourhood { table, hearing, .. } = self;
            let heard = hearing.try_io_mut(Interest::READABLE, |hearing| match hearing.take()? {
                Some(frame) => Ok(hear(table, now, network, &frame)),
                None => Err(io::ErrorKind::WouldBlock.into()),
            });
            match heard {
                Ok(Heard::News) => is_news = true,
                // The machine that serves says that it has our addresses, as it should.
                Ok(Heard::Duplicate(ip, _)) if role == MachineRole::Standby && !network.is_own(ip) => {}
                Ok(Heard::Duplicate(ip, mac)) => self.tell_duplicate(ip, mac),
                Ok(Heard::Nothing) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Of an interface that went down; what comes behind it is there.
                Err(error) => tracing::debug!("neighbours: {error}"),
            }
        }
        is_news
    }

    /// Has a neighbour asked for that a worker wants.
    pub(crate) fn want(&mut self, now: Now, network: &Network, port: PortId, via: Ip) {
        self.table.want(now, network, port, via);
    }

    /// Sends the questions that are due; whether the network is another one since: somebody was lost.
    pub(crate) fn ask(&mut self, now: Now, network: &Network) -> bool {
        let Neighbourhood { table, hearing, .. } = self;
        table.ask(now, network, |port, frame| {
            let Some((index, tag)) = way(network, port) else { return };
            if let Err(error) = hearing.get_ref().send(index, tag, frame) {
                tracing::debug!("question for a neighbour: {error}");
            }
        })
    }

    /// Links may lead elsewhere now.
    pub(crate) fn doubt_all(&mut self, now: Now) {
        self.table.doubt_all(now);
    }

    fn tell_duplicate(&mut self, ip: Ip, mac: Mac) {
        // There are no more than addresses of ours.
        if self.told.insert(ip) {
            tracing::warn!("another station says that it has {ip}: {mac}; take the address from one of both");
        }
    }
}

/// What a frame told about the port that it came in by, if it is one of ours.
fn hear(table: &mut Neighbours, now: Now, network: &Network, frame: &HeardFrame<'_>) -> Heard {
    // Tags may be stacked: those are nobody's here.
    if frame.tag.is_some_and(|tag| tag.protocol != Tag::DOT1Q) {
        return Heard::Nothing;
    }
    let is_link = |port: &&towpath_core::plane::Port| port.vlan.is_none() && port.index == frame.interface;
    let link = network.ports.iter().find(is_link).map(|port| port.link);
    let port = link.and_then(|link| network.port_of(link, frame.tag.and_then(Tag::vlan)));
    port.map_or(Heard::Nothing, |port| table.hear(now, network, port, frame.bytes))
}

/// The interface and the tag of what leaves by a port, while the interface is there.
pub(crate) fn way(network: &Network, port: PortId) -> Option<(u32, Option<Tag>)> {
    let port = network.port(port)?;
    let link = network.port(network.port_of(port.link, None)?)?;
    let tag = port.vlan.map(|vlan| Tag::of_vlan(vlan, None));
    (link.index != 0).then_some((link.index, tag))
}
