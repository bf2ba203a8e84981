//! The network as the packet plane sees it: its ports, and the next hop of every address.
//!
//! The daemon builds a [`Network`] from what the kernel knows (links, addresses, routes, neighbours) and publishes a new one when that
//! changes. All that can be decided beforehand is decided when it is built: routes and neighbours become ranges of addresses that do not
//! overlap, each with its answer, so that a packet costs one binary search and no more.

use std::cmp::Reverse;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use towpath_config::model;

use super::PortId;
use crate::packet::{Family, Ip, Mac, PROTOCOL_TCP, PROTOCOL_UDP, Tuple};

/// Ports that probes of real servers speak from, at addresses of ports that we keep.
pub const PROBE_PORTS: RangeInclusive<u16> = model::PROBE_PORTS.0..=model::PROBE_PORTS.1;

/// An interface, or a VLAN of one, that the packet plane receives from and sends through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Name of the interface or VLAN.
    pub name: String,
    /// The device that its frames go through, by its place among the rings of a worker.
    pub link: u8,
    /// The VLAN whose tag its frames carry (IEEE 802.1Q); `None` for frames without a tag.
    pub vlan: Option<u16>,
    /// Number that the kernel has for it; 0 while it is not there, for a VLAN, or where nobody asks.
    pub index: u32,
    /// Its link-layer address.
    pub mac: Mac,
    /// Octets of the largest IP packet that it carries.
    pub mtu: u32,
    /// Addresses of this host there, each with the prefix length of its network: at most 32 for IPv4, 128 for IPv6. Those of a bridge are those of its
    /// lower arm.
    pub addresses: Vec<(Ip, u8)>,
    /// Whose they are.
    pub keeper: Keeper,
    /// The other arm of the bridge that it is an arm of: both reach the same stations.
    pub peer: Option<PortId>,
    /// Whether that bridge keeps spanning tree's frames from passing.
    pub blocks_spanning_tree: bool,
    /// Whether the device cuts super-packets into segments itself (TSO).
    pub segments: bool,
}

/// Who has the addresses of a port: answers for them, and knows the neighbours there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keeper {
    /// The kernel.
    #[default]
    Kernel,
    /// We, as the kernel has no such interface: [`Neighbours`](super::Neighbours) asks there.
    Towpath,
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
    stations: BTreeMap<(PortId, Ip), Mac>,
    /// Every route over a port of ours but the default ones.
    routes: Box<[(Block, PortId)]>,
    /// Addresses of the kernel's on interfaces that are no ports; it takes packets for them that come in by any.
    elsewhere: BTreeSet<Ip>,
    /// Addresses of ports that we keep.
    own: BTreeSet<Ip>,
    /// Where questions for certain addresses of ours are answered, whatever the networks say.
    homes: BTreeMap<Ip, PortId>,
}

impl Network {
    /// Joins what the kernel told.
    ///
    /// `routes`: network, prefix length (at most 32 for IPv4, 128 for IPv6; more counts as that), router if there is one, port,
    /// metric. The longest prefix decides, then the lowest metric, then the earlier one. A route over a port that is not in `ports`
    /// means that no route of ours leads there: give it, or a shorter prefix of ours would take its place. `neighbours`: those whose
    /// link-layer address can be used; of two for one address at one port the later one counts.
    pub fn new(
        ports: Vec<Port>,
        routes: Vec<(Ip, u8, Option<Ip>, PortId, u32)>,
        neighbours: Vec<(PortId, Ip, Mac)>,
    ) -> Network {
        let stations: BTreeMap<(PortId, Ip), Mac> =
            neighbours.into_iter().map(|(port, ip, mac)| ((port, ip), mac)).collect();
        let is_ours = |port: PortId| port.index() < ports.len();
        let locate = |port: PortId, ip: Ip| locate(&ports, &stations, port, ip);
        let particular = routes.iter().filter(|&&(_, prefix, _, port, _)| prefix > 0 && is_ours(port));
        let by_port = particular.map(|&(network, prefix, _, port, _)| (Block::of(network, prefix), port)).collect();
        let mut best = BTreeMap::new();
        for (network, prefix, via, port, metric) in routes {
            let way = match via {
                _ if port.index() >= ports.len() => Way::Closed,
                None => Way::Link { port },
                Some(via) => match locate(port, via) {
                    Some((port, mac)) => Way::Router { port, via, mac: Some(mac) },
                    None => Way::Router { port, via, mac: None },
                },
            };
            match best.entry(Block::of(network, prefix)) {
                Entry::Occupied(mut taken) => {
                    let (lowest, _) = *taken.get();
                    if metric < lowest {
                        taken.insert((metric, way));
                    }
                }
                Entry::Vacant(free) => {
                    free.insert((metric, way));
                }
            }
        }
        let mut ways: BTreeMap<Block, Way> = best.into_iter().map(|(block, (_, way))| (block, way)).collect();

        // A neighbour is a route of its own, where the routes say that it is on its port's link.
        let (v4, v6) = (Ranges::v4(&ways), Ranges::v6(&ways));
        let kept = ports.iter().filter(|port| port.keeper == Keeper::Towpath);
        let own = kept.flat_map(|port| &port.addresses).map(|&(ip, _)| ip).collect();
        let network = Network {
            v4,
            v6,
            ports,
            stations,
            routes: by_port,
            elsewhere: BTreeSet::new(),
            own,
            homes: BTreeMap::new(),
        };
        for (&(port, ip), &mac) in &network.stations {
            if let Way::Link { port: of } = network.way(ip)
                && network.segment(of) == network.segment(port)
            {
                ways.insert(Block::of(ip, u8::MAX), Way::Neighbour { port, mac });
            }
        }
        Network { v4: Ranges::v4(&ways), v6: Ranges::v6(&ways), ..network }
    }

    /// The port with this number.
    #[inline]
    pub fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(id.index())
    }

    /// The port of frames that come in by the link at this place, with the tag of this VLAN or none.
    pub fn port_of(&self, link: u8, vlan: Option<u16>) -> Option<PortId> {
        let place = self.ports.iter().position(|port| port.link == link && port.vlan == vlan)?;
        u8::try_from(place).ok().map(PortId)
    }

    /// The next hop of packets to `to`.
    #[inline]
    pub fn next_hop(&self, to: Ip) -> NextHop {
        match self.way(to) {
            Way::Closed => NextHop::NoRoute,
            Way::Link { port } => NextHop::Unresolved { port, via: to },
            Way::Neighbour { port, mac } | Way::Router { port, mac: Some(mac), .. } => NextHop::Ready { port, mac },
            Way::Router { port, via, mac: None } => NextHop::Unresolved { port, via },
        }
    }

    /// Where all addresses leave that [`range_of`](Network::range_of) gives the same number, by that number: how, and through which port. `None`
    /// without a route, no MAC where the station is not known.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Option<(PortId, Option<Mac>)>> + '_ {
        self.v4.ways.iter().chain(&self.v6.ways).map(|way| match *way {
            Way::Closed => None,
            Way::Link { port } => Some((port, None)),
            Way::Neighbour { port, mac } => Some((port, Some(mac))),
            Way::Router { port, mac, .. } => Some((port, mac)),
        })
    }

    /// The first and the last address of each range of IPv4, by its number.
    pub(super) fn bounds_v4(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let ends = self.v4.starts.iter().skip(1).map(|next| next - 1).chain([u32::MAX]);
        self.v4.starts.iter().copied().zip(ends)
    }

    /// The number of the range of IPv4 that `to` is in.
    pub(super) fn range_of_v4(&self, to: u32) -> usize {
        self.v4.find_v4(to)
    }

    /// The number of the range that `to` is in.
    #[inline]
    pub(super) fn range_of(&self, to: Ip) -> usize {
        if to.is_v4() {
            self.v4.find_v4(u32::from_be_bytes(to.v4_octets()))
        } else {
            self.v4.ways.len() + self.v6.find(u128::from_be_bytes(to.0))
        }
    }

    /// The ports by which what `ip` sends may come in, one bit each: that of the way to it, and those of other routes that lead there (the
    /// feasible paths of RFC 3704 §2.3). A default route counts only where it is the way: else it would let in everything.
    pub(super) fn return_ports(&self, ip: Ip) -> u64 {
        let way = match self.way(ip) {
            Way::Closed => 0,
            Way::Link { port } | Way::Neighbour { port, .. } | Way::Router { port, .. } => self.entrances(port),
        };
        let feasible = self.routes.iter().filter(|(block, _)| block.contains(ip));
        feasible.fold(way, |ports, &(_, port)| ports | self.entrances(port))
    }

    /// By which ports comes in what is on the link of this one, one bit each.
    fn entrances(&self, port: PortId) -> u64 {
        port.bit() | self.port(port).and_then(|port| port.peer).map_or(0, PortId::bit)
    }

    /// Whether packets of IPv4 come in here and there by the same interfaces: those have the same numbers, and the same routes lead back.
    pub(super) fn is_entered_alike(&self, other: &Network) -> bool {
        let indices = |network: &Network| network.ports.iter().map(|port| port.index).collect::<Vec<_>>();
        let routes = |network: &Network| -> BTreeSet<(Block, PortId)> {
            network.routes.iter().copied().filter(|(block, _)| block.is_v4()).collect()
        };
        indices(self) == indices(other) && routes(self) == routes(other)
    }

    /// Whether the ports have the same names here and there.
    pub(super) fn is_named_alike(&self, other: &Network) -> bool {
        self.ports.iter().map(|port| &port.name).eq(other.ports.iter().map(|port| &port.name))
    }

    /// The station of `ip` on the link of `port`, if it is known, and the port that it is reached by: of a bridge, either arm.
    pub fn station(&self, port: PortId, ip: Ip) -> Option<(PortId, Mac)> {
        locate(&self.ports, &self.stations, port, ip)
    }

    /// The stations that `before` did not have at their port.
    pub(super) fn stations_since<'a>(&'a self, before: &'a Network) -> impl Iterator<Item = (PortId, Mac)> + 'a {
        let is_new = |&(at, mac): &(&(PortId, Ip), &Mac)| before.stations.get(at) != Some(mac);
        self.stations.iter().filter(is_new).map(|(&(port, _), &mac)| (port, mac))
    }

    /// The port whose link `ip` is on: the route to it has no router.
    #[inline]
    pub fn is_on_link(&self, ip: Ip) -> Option<PortId> {
        match self.way(ip) {
            Way::Link { port } | Way::Neighbour { port, .. } => Some(port),
            Way::Closed | Way::Router { .. } => None,
        }
    }

    /// The same network of a kernel that has these addresses too, on interfaces that are no ports.
    pub fn with_elsewhere(mut self, addresses: impl IntoIterator<Item = Ip>) -> Network {
        self.elsewhere.extend(addresses);
        self
    }

    /// The same network, in which these addresses of ours live on these ports.
    pub fn with_homes(mut self, homes: BTreeMap<Ip, PortId>) -> Network {
        self.homes = homes;
        self
    }

    /// Whether the kernel has this address, on whatever interface, and answers what is sent to it.
    pub fn is_kernels(&self, ip: Ip) -> bool {
        self.holder(ip).is_some() || self.elsewhere.contains(&ip)
    }

    /// The port at which the kernel itself has this address.
    pub fn holder(&self, ip: Ip) -> Option<PortId> {
        let kernels = |port: PortId| self.port(port).is_some_and(|port| port.keeper == Keeper::Kernel);
        self.each_address().find(|&(port, address, _)| address == ip && kernels(port)).map(|(port, ..)| port)
    }

    /// Whether it is an address of a port that we keep: nobody else on this host answers for it.
    #[inline]
    pub fn is_own(&self, ip: Ip) -> bool {
        !self.own.is_empty() && self.own.contains(&ip)
    }

    /// Whether a packet answers a probe of our own.
    pub(super) fn is_probes(&self, tuple: &Tuple) -> bool {
        let is_ours = matches!(tuple.protocol, PROTOCOL_TCP | PROTOCOL_UDP) && PROBE_PORTS.contains(&tuple.dst_port);
        is_ours && self.is_own(tuple.dst)
    }

    /// The addresses of the ports that we keep.
    pub fn kept_addresses(&self) -> impl Iterator<Item = Ip> + '_ {
        self.own.iter().copied()
    }

    /// An address of this host on `port` to speak to `ip` from, and the prefix length of its network: one of the same network, or else that of
    /// [`address_on`](Network::address_on).
    pub fn speaker(&self, port: PortId, ip: Ip) -> Option<(Ip, u8)> {
        let addresses = &self.port(self.segment(port))?.addresses;
        let near = addresses.iter().find(|&&(own, prefix)| Block::of(own, prefix).contains(ip));
        let family = if ip.is_v4() { Family::V4 } else { Family::V6 };
        let any = || {
            let spoken = self.address_on(port, family)?;
            addresses.iter().find(|&&(own, _)| own == spoken)
        };
        near.or_else(any).copied()
    }

    /// The port by which packets to `to` leave, and the router that they go to, if they are not for its link itself.
    pub fn way_to(&self, to: Ip) -> Option<(PortId, Option<Ip>)> {
        match self.way(to) {
            Way::Closed => None,
            Way::Link { port } | Way::Neighbour { port, .. } => Some((port, None)),
            Way::Router { port, via, .. } => Some((port, Some(via))),
        }
    }

    /// The same link by whichever of its ports: of a bridge, its lower one.
    pub(super) fn segment(&self, port: PortId) -> PortId {
        self.port(port).and_then(|port| port.peer).map_or(port, |peer| peer.min(port))
    }

    /// An address of this host on `port` to speak from, if it has one of this family; a link-local one only where there is no other.
    pub fn address_on(&self, port: PortId, family: Family) -> Option<Ip> {
        let addresses = &self.port(self.segment(port))?.addresses;
        let of_family = |&&(ip, _): &&(Ip, u8)| ip.is_v4() == (family == Family::V4);
        addresses.iter().filter(of_family).map(|&(ip, _)| ip).min_by_key(|ip| ip.is_link_local())
    }

    /// An address to speak from to whoever sent a packet that came in by `port`: one there, or any other that reaches further than its link (RFC 1812
    /// section 4.3.2.4).
    pub fn address_towards(&self, port: PortId, family: Family) -> Option<Ip> {
        let ports = (0..=u8::MAX).map(PortId).take(self.ports.len());
        let others = ports.filter_map(|other| self.address_on(other, family));
        let own = self.address_on(port, family);
        own.into_iter().chain(others).find(|ip| !ip.is_link_local()).or(own)
    }

    /// The port where questions for an address of ours are answered: the one that was named for it, or the one whose network holds `ip`, the longest of
    /// those of ports, or the link that the route to it names. `None` when it is on no link of ours.
    pub fn home(&self, ip: Ip) -> Option<PortId> {
        if let Some(&home) = self.homes.get(&ip) {
            return Some(home);
        }
        let holds = self.each_address().filter(|&(_, address, prefix)| Block::of(address, prefix).contains(ip));
        // The first of the longest.
        let longest = holds.min_by_key(|&(.., prefix)| Reverse(prefix)).map(|(port, ..)| port);
        longest.or_else(|| self.is_on_link(ip))
    }

    /// Whether one network of a port holds both: they reach each other without us.
    pub fn joins(&self, a: Ip, b: Ip) -> bool {
        self.each_address()
            .map(|(_, ip, prefix)| Block::of(ip, prefix))
            .any(|block| block.contains(a) && block.contains(b))
    }

    /// Every address of this host, with the prefix length of its network where that is on a port.
    pub(super) fn own_addresses(&self) -> impl Iterator<Item = (Ip, Option<u8>)> + '_ {
        let on_ports = self.each_address().map(|(_, ip, prefix)| (ip, Some(prefix)));
        on_ports.chain(self.elsewhere.iter().map(|&ip| (ip, None)))
    }

    fn each_address(&self) -> impl Iterator<Item = (PortId, Ip, u8)> {
        let numbered = self.ports.iter().zip(0..=u8::MAX);
        numbered.flat_map(|(port, id)| port.addresses.iter().map(move |&(ip, prefix)| (PortId(id), ip, prefix)))
    }

    #[inline]
    fn way(&self, to: Ip) -> Way {
        let range = self.range_of(to);
        let way = self.v4.ways.get(range).or_else(|| self.v6.ways.get(range - self.v4.ways.len()));
        way.copied().unwrap_or(Way::Closed)
    }
}

fn locate(ports: &[Port], stations: &BTreeMap<(PortId, Ip), Mac>, port: PortId, ip: Ip) -> Option<(PortId, Mac)> {
    let peer = ports.get(port.index()).and_then(|port| port.peer);
    [Some(port), peer].into_iter().flatten().find_map(|port| Some((port, *stations.get(&(port, ip))?)))
}

/// What is known about the way to a range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// No route, or one over somebody else's interface.
    Closed,
    /// Each address is its own next hop, and not known.
    Link { port: PortId },
    /// One address on a link, and known.
    Neighbour { port: PortId, mac: Mac },
    /// All addresses have one next hop.
    Router { port: PortId, via: Ip, mac: Option<Mac> },
}

/// The addresses of a prefix. In this order a block comes before those inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Block {
    first: u128,
    last: Reverse<u128>,
}

impl Block {
    /// Of the network that `ip` is in.
    fn of(ip: Ip, prefix: u8) -> Block {
        let (first, last) = ip.network(prefix);
        Block { first, last: Reverse(last) }
    }

    fn contains(self, ip: Ip) -> bool {
        (self.first..=self.last.0).contains(&u128::from_be_bytes(ip.0)) && self.is_v4() == ip.is_v4()
    }

    fn is_v4(self) -> bool {
        Ip(self.first.to_be_bytes()).is_v4()
    }
}

/// Ranges of addresses that do not overlap and leave none out: where each begins, ascending, and its answer.
#[derive(Clone, Debug)]
struct Ranges<K> {
    starts: Box<[K]>,
    ways: Box<[Way]>,
    /// For IPv4, by the first octet: which range its first address is in. A search begins there and ends where the next octet's does: the steps of a
    /// search wait for each other, and most octets have one range.
    octets: Box<[u32]>,
}

impl<K> Default for Ranges<K> {
    fn default() -> Ranges<K> {
        Ranges { starts: Box::default(), ways: Box::default(), octets: Box::default() }
    }
}

impl Ranges<u32> {
    fn v4(ways: &BTreeMap<Block, Way>) -> Ranges<u32> {
        // The last 32 bits, in which blocks are nested as in all 128.
        let low = |bits: u128| bits & u128::from(u32::MAX);
        let blocks = ways.iter().filter(|(block, _)| block.is_v4());
        let flat = flatten(blocks.map(|(block, &way)| (low(block.first), low(block.last.0), way)));
        // What begins behind the last address of all is no range.
        let mut ranges: Ranges<u32> =
            flat.into_iter().filter_map(|(start, way)| Some((u32::try_from(start).ok()?, way))).collect();
        let range_of =
            |octet: u32| ranges.starts.partition_point(|&start| start <= octet << 24).saturating_sub(1) as u32;
        ranges.octets = (0..=u8::MAX.into()).map(range_of).chain([ranges.starts.len() as u32]).collect();
        ranges
    }

    /// The range of `address`, or one behind the last when there is none.
    #[inline]
    fn find_v4(&self, address: u32) -> usize {
        let octet = (address >> 24) as usize;
        let Some(&[from, next]) = self.octets.get(octet..octet + 2) else { return self.ways.len() };
        // The range that the next octet begins in may begin in this one.
        let (from, end) = (from as usize, (next as usize + 1).min(self.starts.len()));
        match self.starts.get(from + 1..end) {
            Some(starts) => from + starts.partition_point(|&start| start <= address),
            None => from,
        }
    }
}

impl Ranges<u128> {
    fn v6(ways: &BTreeMap<Block, Way>) -> Ranges<u128> {
        let blocks = ways.iter().filter(|(block, _)| !block.is_v4());
        flatten(blocks.map(|(block, &way)| (block.first, block.last.0, way))).into_iter().collect()
    }
}

impl<K> FromIterator<(K, Way)> for Ranges<K> {
    fn from_iter<I: IntoIterator<Item = (K, Way)>>(ranges: I) -> Ranges<K> {
        let (starts, ways): (Vec<K>, Vec<Way>) = ranges.into_iter().unzip();
        Ranges { starts: starts.into(), ways: ways.into(), octets: Box::default() }
    }
}

impl Ranges<u128> {
    #[inline]
    fn find(&self, key: u128) -> usize {
        // The first begins at 0, if there is one.
        self.starts.partition_point(|&start| start <= key).saturating_sub(1)
    }
}

/// Blocks that are nested or apart, in the order of [`Block`], cut into ranges: inside a block that is inside another, its own way.
fn flatten(blocks: impl Iterator<Item = (u128, u128, Way)>) -> Vec<(u128, Way)> {
    let mut ranges = vec![(0, Way::Closed)];
    let mut begin = |start, way| {
        if ranges.last().is_some_and(|&(at, _)| at == start) {
            ranges.pop();
        }
        if ranges.last().is_none_or(|&(_, before)| before != way) {
            ranges.push((start, way));
        }
    };
    let mut open: Vec<(u128, Way)> = Vec::new();
    let around = |open: &[(u128, Way)]| open.last().map_or(Way::Closed, |&(_, way)| way);
    for (first, last, way) in blocks {
        while let Some((ended, _)) = open.pop_if(|&mut (ends, _)| ends < first) {
            // Not the last address of all: one more follows.
            begin(ended + 1, around(&open));
        }
        begin(first, way);
        open.push((last, way));
    }
    while let Some((ended, _)) = open.pop() {
        if let Some(next) = ended.checked_add(1) {
            begin(next, around(&open));
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    const ROUTER: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const SERVER: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn ip(text: &str) -> Ip {
        text.parse::<std::net::IpAddr>().unwrap().into()
    }

    fn port(name: &str, addresses: &[(&str, u8)]) -> Port {
        Port {
            name: name.into(),
            mac: Mac([2, 0, 0, 0, 1, name.len() as u8]),
            mtu: 1500,
            addresses: addresses.iter().map(|&(address, prefix)| (ip(address), prefix)).collect(),
            segments: true,
            ..Port::default()
        }
    }

    fn two_arms() -> Network {
        let ports = vec![
            port("out", &[("192.0.2.1", 24), ("fe80::1", 64), ("2001:db8::1", 64)]),
            port("in", &[("10.0.0.1", 16)]),
        ];
        let routes = vec![
            (ip("192.0.2.0"), 24, None, PortId(0), 0),
            (ip("10.0.0.0"), 16, None, PortId(1), 0),
            (ip("2001:db8::"), 64, None, PortId(0), 256),
            (ip("0.0.0.0"), 0, Some(ip("192.0.2.254")), PortId(0), 0),
            (ip("::"), 0, Some(ip("fe80::ff")), PortId(0), 1024),
            (ip("10.0.7.0"), 24, Some(ip("10.0.0.7")), PortId(1), 0),
            (ip("172.16.0.0"), 12, None, PortId(9), 0),
        ];
        let neighbours = vec![
            (PortId(0), ip("192.0.2.254"), ROUTER),
            (PortId(0), ip("fe80::ff"), ROUTER),
            (PortId(1), ip("10.0.0.10"), SERVER),
            (PortId(0), ip("10.0.0.11"), SERVER),
        ];
        Network::new(ports, routes, neighbours)
    }

    #[test]
    fn answers_come_by_the_way_to_their_sender_or_another_route_to_it() {
        let network = two_arms();
        for (from, ports) in [
            ("10.0.0.10", 0b10),
            ("10.0.7.1", 0b10),
            ("192.0.2.9", 0b01),
            // By the default route, the only one.
            ("198.51.100.7", 0b01),
            ("172.16.3.4", 0),
        ] {
            assert_eq!(network.return_ports(ip(from)), ports, "{from}");
        }
        // Both arms lead to one network, and the better one is the way.
        let ports = vec![port("out", &[("10.0.0.1", 16)]), port("in", &[("10.0.0.2", 16)])];
        let routes = vec![(ip("10.0.0.0"), 16, None, PortId(0), 0), (ip("10.0.0.0"), 16, None, PortId(1), 100)];
        assert_eq!(Network::new(ports, routes, vec![]).return_ports(ip("10.0.0.10")), 0b11);
    }

    #[test]
    fn routes_and_neighbours_become_one_answer() {
        let network = two_arms();
        let ready = |port, mac| NextHop::Ready { port: PortId(port), mac };
        let unresolved = |port, via| NextHop::Unresolved { port: PortId(port), via: ip(via) };
        for (to, expected) in [
            ("198.51.100.7", ready(0, ROUTER)),
            ("255.255.255.254", ready(0, ROUTER)),
            ("0.0.0.1", ready(0, ROUTER)),
            ("192.0.2.254", ready(0, ROUTER)),
            ("192.0.2.9", unresolved(0, "192.0.2.9")),
            ("10.0.0.10", ready(1, SERVER)),
            ("10.0.0.9", unresolved(1, "10.0.0.9")),
            // Its neighbour entry is at the other port.
            ("10.0.0.11", unresolved(1, "10.0.0.11")),
            ("10.0.7.1", unresolved(1, "10.0.0.7")),
            ("10.0.8.0", unresolved(1, "10.0.8.0")),
            ("172.16.3.4", NextHop::NoRoute),
            ("2001:db8::5", unresolved(0, "2001:db8::5")),
            ("2001:db8:1::5", ready(0, ROUTER)),
            ("ffff::", ready(0, ROUTER)),
        ] {
            assert_eq!(network.next_hop(ip(to)), expected, "{to}");
        }
    }

    #[test]
    fn an_address_is_on_link_where_its_route_has_no_router() {
        let network = two_arms();
        assert_eq!(network.is_on_link(ip("192.0.2.254")), Some(PortId(0)));
        assert_eq!(network.is_on_link(ip("10.0.200.1")), Some(PortId(1)));
        assert_eq!(network.is_on_link(ip("10.0.7.9")), None);
        assert_eq!(network.is_on_link(ip("198.51.100.1")), None);
        assert_eq!(network.is_on_link(ip("172.16.3.4")), None);
    }

    #[test]
    fn questions_are_answered_where_the_network_is() {
        let network = two_arms();
        assert_eq!(network.home(ip("192.0.2.80")), Some(PortId(0)));
        assert_eq!(network.home(ip("10.0.7.9")), Some(PortId(1)));
        assert_eq!(network.home(ip("2001:db8::80")), Some(PortId(0)));
        assert_eq!(network.home(ip("203.0.113.1")), None);
        assert_eq!(network.holder(ip("10.0.0.1")), Some(PortId(1)));
        assert_eq!(network.holder(ip("10.0.0.2")), None);
        assert_eq!(network.address_on(PortId(0), Family::V6), Some(ip("2001:db8::1")));
        assert_eq!(network.address_on(PortId(0), Family::V4), Some(ip("192.0.2.1")));
        assert_eq!(network.address_on(PortId(1), Family::V6), None);
        assert_eq!(network.address_on(PortId(7), Family::V4), None);
    }

    #[test]
    fn addresses_that_we_keep_are_not_the_kernels() {
        let vlan =
            Port { vlan: Some(20), keeper: Keeper::Towpath, ..port("edge", &[("10.20.0.1", 16), ("fd20::1", 64)]) };
        let network = Network::new(vec![port("in", &[("10.0.0.1", 16)]), vlan], vec![], vec![]);
        for (address, is_own) in [("10.20.0.1", true), ("fd20::1", true), ("10.0.0.1", false), ("10.20.0.2", false)] {
            assert_eq!(network.is_own(ip(address)), is_own, "{address}");
            assert_eq!(network.is_kernels(ip(address)), address == "10.0.0.1", "{address}");
        }
        assert_eq!(network.home(ip("10.20.7.9")), Some(PortId(1)));
        assert_eq!(network.kept_addresses().collect::<Vec<_>>(), [ip("10.20.0.1"), ip("fd20::1")]);
        let homes = BTreeMap::from([(ip("192.0.2.80"), PortId(1))]);
        assert_eq!(network.clone().with_homes(homes).home(ip("192.0.2.80")), Some(PortId(1)));
        assert_eq!(network.speaker(PortId(1), ip("fd20::9")), Some((ip("fd20::1"), 64)));
    }

    #[test]
    fn without_routes_nothing_can_be_reached() {
        for network in [Network::default(), Network::new(vec![port("out", &[])], vec![], vec![])] {
            assert_eq!(network.next_hop(ip("192.0.2.1")), NextHop::NoRoute);
            assert_eq!(network.next_hop(ip("2001:db8::1")), NextHop::NoRoute);
        }
    }

    #[test]
    fn an_ipv6_default_route_does_not_carry_ipv4() {
        let routes = vec![(ip("::"), 0, Some(ip("fe80::1")), PortId(0), 0)];
        let network = Network::new(vec![port("out", &[("2001:db8::1", 0)])], routes, vec![]);
        assert_eq!(network.next_hop(ip("192.0.2.1")), NextHop::NoRoute);
        assert_eq!(network.home(ip("192.0.2.1")), None);
        assert_eq!(network.next_hop(ip("2001:db8::1")), NextHop::Unresolved { port: PortId(0), via: ip("fe80::1") });
    }

    /// A route over few addresses, so that they meet: in 192.0.2.240/28 or 2001:db8::fff0/124.
    fn routes() -> impl Strategy<Value = Vec<(Ip, u8, Option<Ip>, PortId, u32)>> {
        let one = (any::<bool>(), 0_u8..16, 0_u8..=4, prop::option::of(0_u8..16), 0_u8..3, 0_u32..3);
        let one = one.prop_map(|(v4, host, bits, via, port, metric)| {
            let prefix = if v4 { 28 + bits } else { 124 + bits };
            (address(v4, host), prefix, via.map(|via| address(v4, via)), PortId(port), metric)
        });
        prop::collection::vec(one, 0..20)
    }

    fn address(v4: bool, host: u8) -> Ip {
        match v4 {
            true => Ipv4Addr::new(192, 0, 2, 240 + host).into(),
            false => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfff0 + u16::from(host)).into(),
        }
    }

    proptest! {
        #[test]
        fn the_longest_prefix_with_the_lowest_metric_decides(
            routes in routes(),
            stations in prop::collection::vec((0_u8..2, any::<bool>(), 0_u8..16, any::<u8>()), 0..20),
        ) {
            let ports = vec![port("out", &[]), port("in", &[])];
            let neighbours: Vec<(PortId, Ip, Mac)> = stations
                .iter()
                .map(|&(port, v4, host, mac)| (PortId(port), address(v4, host), Mac([2, 0, 0, 0, 0, mac])))
                .collect();
            let network = Network::new(ports, routes.clone(), neighbours.clone());
            for to in (0..16).flat_map(|host| [address(true, host), address(false, host)]) {
                let matching = routes.iter().filter(|(at, prefix, ..)| Block::of(*at, *prefix).contains(to));
                let best = matching.min_by_key(|(_, prefix, _, _, metric)| (Reverse(*prefix), *metric));
                let expected = match best {
                    Some(&(_, _, via, port, _)) if port.0 < 2 => {
                        let via = via.unwrap_or(to);
                        let station = neighbours.iter().rev().find(|&&(at, ip, _)| at == port && ip == via);
                        match station {
                            Some(&(_, _, mac)) => NextHop::Ready { port, mac },
                            None => NextHop::Unresolved { port, via },
                        }
                    }
                    _ => NextHop::NoRoute,
                };
                prop_assert_eq!(network.next_hop(to), expected, "{}", to);
            }
        }
    }
}
