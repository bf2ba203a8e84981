//! The network as the packet plane sees it: its ports, and the next hop of every address.
//!
//! The daemon builds a [`Network`] from what the kernel knows (links, addresses, routes, neighbours) and publishes a new one when that
//! changes. All that can be decided beforehand is decided when it is built: routes and neighbours become ranges of addresses that do not
//! overlap, each with its answer, so that a packet costs one binary search and no more.

use super::PortId;
use crate::packet::{Family, Ip, Mac};

/// An interface that the packet plane receives from and sends through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name of the interface.
    pub name: String,
    /// Its link-layer address.
    pub mac: Mac,
    /// Octets of the largest IP packet that it carries.
    pub mtu: u32,
    /// Addresses that the kernel has there, each with the prefix length of its network: at most 32 for IPv4, 128 for IPv6.
    pub addresses: Vec<(Ip, u8)>,
    /// Whether the device cuts super-packets into segments itself (TSO).
    pub segments: bool,
}

/// Where packets to an address leave, and for whom on that link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// No route of ours leads there.
    NoRoute,
    /// Known.
    Ready {
        /// The port they leave through.
        port: PortId,
        /// The station they are sent to.
        mac: Mac,
    },
    /// The way is known, the station is not: its neighbour has to be asked.
    Unresolved {
        /// The port they leave through.
        port: PortId,
        /// The address to ask for: the router's, or the destination's own.
        via: Ip,
    },
}

/// Ports, routes and neighbours. Immutable; a newer one replaces it as a whole.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// The ports, by [`PortId`].
    pub ports: Vec<Port>,
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

impl Network {
    /// Joins what the kernel told.
    ///
    /// `routes`: network, prefix length (at most 32 for IPv4, 128 for IPv6; more counts as that), router if there is one, port,
    /// metric. The longest prefix decides, then the lowest metric, then the earlier one. A route over a port that is not in `ports`
    /// means that no route of ours leads there: give it, or a shorter prefix of ours would take its place. `neighbours`: those whose
    /// link-layer address can be used; of two for one address the later one counts.
    pub fn new(
        ports: Vec<Port>,
        routes: Vec<(Ip, u8, Option<Ip>, PortId, u32)>,
        neighbours: Vec<(PortId, Ip, Mac)>,
    ) -> Network;

    /// The port with this number.
    pub fn port(&self, id: PortId) -> Option<&Port>;

    /// The next hop of packets to `to`.
    pub fn next_hop(&self, to: Ip) -> NextHop;

    /// The port whose link `ip` is on: the route to it has no router.
    pub fn is_on_link(&self, ip: Ip) -> Option<PortId>;

    /// The port at which the kernel itself has this address.
    pub fn holder(&self, ip: Ip) -> Option<PortId>;

    /// An address of the kernel's on `port` to speak from, if it has one of this family: for IPv6 rather not a link-local one.
    pub fn address_on(&self, port: PortId, family: Family) -> Option<Ip>;

    /// The port whose network holds `ip`: where ARP and neighbour questions for an address of ours are answered. `None`: on the port that
    /// they came from.
    pub fn home(&self, ip: Ip) -> Option<PortId>;
}
