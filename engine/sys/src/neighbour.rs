//! What the kernel knows of the network around: links, addresses, routes, neighbours; watched, and asked for more.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use crate::link::Link;

/// A neighbour whose hardware address is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Number of the link it is on.
    pub link: u32,
    /// Its address.
    pub ip: IpAddr,
    /// Its hardware address.
    pub mac: [u8; 6],
}

/// An address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkAddress {
    /// Number of the link it is on.
    pub link: u32,
    /// The address.
    pub ip: IpAddr,
    /// Length of its network's prefix.
    pub prefix: u8,
}

/// A unicast route of the main table. A route over several next hops stands here once for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownRoute {
    /// Network and prefix length.
    pub destination: (IpAddr, u8),
    /// The next hop; `None` where the destination is on the link itself.
    pub gateway: Option<IpAddr>,
    /// Number of the link it leaves by.
    pub link: u32,
    /// Of two routes to one network, the one with the lower metric is taken.
    pub metric: u32,
}

/// What the kernel knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Every interface.
    pub links: Vec<Link>,
    /// Every address.
    pub addresses: Vec<LinkAddress>,
    /// Routes of the main table.
    pub routes: Vec<KnownRoute>,
    /// Neighbours with a usable hardware address.
    pub neighbours: Vec<Neighbour>,
}

/// What has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Links, addresses or routes.
    pub network: bool,
    /// A neighbour is known now, has another hardware address, or is known no more.
    pub neighbours: bool,
}

/// A view of the kernel's tables, of the namespace in which it was opened, that learns of changes.
pub struct Neighbours {}

impl Neighbours {
    /// Opens the view for the calling thread's namespace.
    pub fn open() -> io::Result<Neighbours> {
        unimplemented!()
    }

    /// All of it, as it is now. Changes from here on are told by [`Neighbours::changes`].
    pub fn tables(&mut self) -> io::Result<Tables> {
        unimplemented!()
    }

    /// What has changed since the last call, without waiting. Loses nothing: where the kernel could not keep up, everything has
    /// changed.
    pub fn changes(&mut self) -> io::Result<Changes> {
        unimplemented!()
    }

    /// Asks the kernel to find out a neighbour's hardware address, or to confirm it (NTF_USE); the answer comes as a change.
    pub fn ask(&mut self, link: u32, ip: IpAddr) -> io::Result<()> {
        let _ = (link, ip);
        unimplemented!()
    }

    /// Whether the device can cut super-packets itself (TSO).
    pub fn can_segment(&self, interface: &str) -> io::Result<bool> {
        let _ = interface;
        unimplemented!()
    }

    /// Whether the device joins what it receives into super-packets (GRO or LRO).
    pub fn joins_segments(&self, interface: &str) -> io::Result<bool> {
        let _ = interface;
        unimplemented!()
    }
}

impl AsFd for Neighbours {
    /// Readable while there are changes.
    fn as_fd(&self) -> BorrowedFd<'_> {
        unimplemented!()
    }
}
