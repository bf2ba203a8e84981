//! What the kernel knows of the network around: links, addresses, routes, neighbours; watched, and asked for more.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::errno::Cause;
use crate::ethtool::{Devices, Feature};
use crate::link::{self, Link};
use crate::rtnetlink::{self, Conversation, TABLE_MAIN};

/// What is listened for.
const GROUPS: [u32; 6] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
];
/// Room for changes that are not read yet; what does not fit is noticed, and everything is read again.
const CHANGES_BYTES: usize = 1 << 20;
/// The largest datagram of changes: the kernel makes them of one page, rarely more.
const DATAGRAM_BYTES: usize = 64 << 10;
/// Datagrams that one call reads; more are left for the next.
const DATAGRAMS_MAX: usize = 1024;
/// Neighbours that are kept: far more than the kernel does (gc_thresh3, 1,024 by default).
const NEIGHBOURS_MAX: usize = 1 << 16;

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
    /// The next hop, of either family; `None` where the destination is on the link itself. It is on the link even where no route
    /// says so (onlink).
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
    /// Routes of the main table, without those that are dead because their link is down.
    pub routes: Vec<KnownRoute>,
    /// Neighbours with a usable hardware address, by link and address.
    pub neighbours: Vec<Neighbour>,
}

/// What has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Links, addresses or routes; perhaps nothing that [`Tables`] shows.
    pub network: bool,
    /// A neighbour is known now, has another hardware address, or is known no more.
    pub neighbours: bool,
    /// Events are left to be read: ask again before waiting for the descriptor.
    pub is_more_there: bool,
}

/// A view of the kernel's tables, of the namespace in which it was opened, that learns of changes.
pub struct Neighbours {
    requests: Conversation,
    events: Socket,
    datagram: Vec<u8>,
    /// Follows the events, so that it need not be read again when a neighbour is only confirmed.
    known: BTreeMap<(u32, IpAddr), Known>,
    /// What was noticed while tables were read, or is left to be read.
    noticed: Changes,
    /// Events were lost, so `known` is to be read anew.
    missed: bool,
    devices: Devices,
}

/// What is known of a neighbour.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Known {
    mac: [u8; 6],
    /// The administrator has set it.
    permanent: bool,
}

impl Neighbours {
    /// Opens the view for the calling thread's namespace.
    pub fn open() -> io::Result<Neighbours> {
        let mut events = Socket::new(NETLINK_ROUTE)?;
        events.bind(&SocketAddr::new(0, 0))?;
        events.set_rx_buf_sz(libc::c_int::try_from(CHANGES_BYTES).unwrap_or(libc::c_int::MAX))?;
        for group in GROUPS {
            events.add_membership(group)?;
        }
        let mut view = Neighbours {
            requests: Conversation::open()?,
            events,
            datagram: Vec::with_capacity(DATAGRAM_BYTES),
            known: BTreeMap::new(),
            noticed: Changes::default(),
            missed: false,
            devices: Devices::open()?,
        };
        view.learn_neighbours()?;
        Ok(view)
    }

    /// All of it, as it is now. What changes later is told by [`Neighbours::changes`]; a change during the call may be in it and be
    /// told as well.
    pub fn tables(&mut self) -> io::Result<Tables> {
        self.notice()?;
        let links = link::list(&mut self.requests)?;
        let addresses = self.requests.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            for answer in self.requests.dump(RouteNetlinkMessage::GetRoute(request))? {
                if let RouteNetlinkMessage::NewRoute(message) = answer {
                    read_route(&message, &mut routes);
                }
            }
        }
        // Told by what is returned; after an error it is still to be told.
        self.noticed = Changes::default();
        Ok(Tables {
            links,
            addresses: addresses.iter().filter_map(read_address).collect(),
            routes,
            neighbours: self.known.iter().map(|(&(link, ip), known)| Neighbour { link, ip, mac: known.mac }).collect(),
        })
    }

    /// What has changed since the last call of this or [`Neighbours::tables`], without waiting. Nothing is lost: where the kernel
    /// could not keep up, everything has changed.
    pub fn changes(&mut self) -> io::Result<Changes> {
        let is_more_there = self.notice()?;
        Ok(Changes { is_more_there, ..mem::take(&mut self.noticed) })
    }

    /// How many answers were left out of tables because they could not be read, so far.
    pub fn unread(&self) -> u64 {
        self.requests.unread()
    }

    /// Asks the kernel to find out a neighbour's hardware address, or to confirm it (NTF_USE), as it does for its own packets; the
    /// answer comes as a change. Returns at once.
    pub fn ask(&mut self, link: u32, ip: IpAddr) -> io::Result<()> {
        // The kernel would take the entry's permanence away (`__neigh_update`, net/core/neighbour.c).
        if self.known.get(&(link, ip)).is_some_and(|known| known.permanent) {
            return Ok(());
        }
        let mut message = NeighbourMessage::default();
        message.header.ifindex = link;
        message.header.flags = NeighbourFlags::Use;
        let (family, address) = match ip {
            IpAddr::V4(ip) => (AddressFamily::Inet, NeighbourAddress::Inet(ip)),
            IpAddr::V6(ip) => (AddressFamily::Inet6, NeighbourAddress::Inet6(ip)),
        };
        message.header.family = family;
        message.attributes.push(NeighbourAttribute::Destination(address));
        self.requests
            .acknowledged(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE)
            .map_err(|error| io::Error::new(error.kind(), format!("ask for neighbour {ip} on link {link}: {error}")))
    }

    /// Whether the device can cut TCP super-packets itself (TSO).
    pub fn can_segment(&self, interface: &str) -> io::Result<bool> {
        self.devices.does(interface, Feature::Segmentation)
    }

    /// Reads the events that are there, so many at most; says whether there may be more.
    fn notice(&mut self) -> io::Result<bool> {
        for _ in 0..DATAGRAMS_MAX {
            self.datagram.clear();
            match self.events.recv_from(&mut self.datagram, libc::MSG_DONTWAIT) {
                // What was queued before a loss is older than what is read after it.
                Ok(_) if self.missed => continue,
                Ok(_) => {}
                Err(error) if Cause::of(&error) == Cause::NotYet && self.missed => {
                    self.learn_neighbours()?;
                    self.missed = false;
                    // What came meanwhile is in order again, or lost again.
                    continue;
                }
                Err(error) if Cause::of(&error) == Cause::NotYet => return Ok(false),
                // The queue was full (`netlink_overrun`, net/netlink/af_netlink.c): it takes nothing more until it is empty.
                Err(error) if Cause::of(&error) == Cause::OutOfMemory => {
                    self.noticed = Changes { network: true, neighbours: true, ..self.noticed };
                    self.missed = true;
                    continue;
                }
                Err(error) => return Err(error),
            }
            let datagram = mem::take(&mut self.datagram);
            for event in rtnetlink::messages(&datagram) {
                match event.and_then(|event| event.read()) {
                    Ok(NetlinkPayload::InnerMessage(message)) => self.follow(&message),
                    Ok(_) => {}
                    // Something that is not understood has changed.
                    Err(_) => self.noticed = Changes { network: true, ..self.noticed },
                }
            }
            self.datagram = datagram;
        }
        Ok(true)
    }

    fn follow(&mut self, message: &RouteNetlinkMessage) {
        let (message, gone) = match message {
            RouteNetlinkMessage::NewNeighbour(message) => (message, false),
            RouteNetlinkMessage::DelNeighbour(message) => (message, true),
            _ => {
                self.noticed.network = true;
                return;
            }
        };
        let Some((key, known)) = read_neighbour(message) else {
            return;
        };
        let before = self.known.get(&key).map(|known| known.mac);
        let known = known.filter(|_| !gone && (before.is_some() || self.known.len() < NEIGHBOURS_MAX));
        self.noticed.neighbours |= before != known.map(|known| known.mac);
        match known {
            Some(known) => self.known.insert(key, known),
            None => self.known.remove(&key),
        };
    }

    /// Reads all neighbours anew; those that were known stay where that fails.
    fn learn_neighbours(&mut self) -> io::Result<()> {
        let mut found = BTreeMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = NeighbourMessage::default();
            request.header.family = family;
            for answer in self.requests.dump(RouteNetlinkMessage::GetNeighbour(request))? {
                if let RouteNetlinkMessage::NewNeighbour(message) = answer
                    && let Some((key, Some(known))) = read_neighbour(&message)
                    && found.len() < NEIGHBOURS_MAX
                {
                    found.insert(key, known);
                }
            }
        }
        self.known = found;
        Ok(())
    }
}

impl AsFd for Neighbours {
    /// Readable while there are changes.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// Whom a message is about, and what is known of it; `None` where that is no IP neighbour.
fn read_neighbour(message: &NeighbourMessage) -> Option<((u32, IpAddr), Option<Known>)> {
    // A proxied address is one that this host answers for, not a neighbour.
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => ip = Some(IpAddr::V4(*address)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => ip = Some(IpAddr::V6(*address)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    // An entry that is probed keeps its address until it has failed.
    let usable = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Noarp
            | NeighbourState::Permanent
    );
    // Entries for groups and for the loopback name no station.
    let mac = mac.filter(|mac| usable && mac[0] & 1 == 0 && *mac != [0; 6]);
    let permanent = message.header.state == NeighbourState::Permanent;
    Some(((message.header.ifindex, ip?), mac.map(|mac| Known { mac, permanent })))
}

fn read_address(message: &RouteNetlinkMessage) -> Option<LinkAddress> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    let (mut own, mut other) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => own = Some(*ip),
            // Of a point-to-point link the far end's, otherwise the same.
            AddressAttribute::Address(ip) => other = Some(*ip),
            _ => {}
        }
    }
    Some(LinkAddress { link: message.header.index, ip: own.or(other)?, prefix: message.header.prefix_len })
}

/// Appends a route's next hops if it is a unicast route of the main table.
fn read_route(message: &RouteMessage, routes: &mut Vec<KnownRoute>) {
    let header = &message.header;
    let (mut table, mut metric, mut network) = (u32::from(header.table), 0, None);
    let (mut gateway, mut link, mut several) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Destination(address) => network = ip_of(address),
            RouteAttribute::Oif(number) => link = Some(*number),
            RouteAttribute::MultiPath(hops) => several = Some(hops),
            _ => gateway = gateway.or(gateway_of(attribute)),
        }
    }
    if table != u32::from(TABLE_MAIN) || header.kind != RouteType::Unicast || header.flags.contains(RouteFlags::Dead) {
        return;
    }
    let network = network.unwrap_or(match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    });
    let destination = (network, header.destination_prefix_length);
    routes.extend(link.map(|link| KnownRoute { destination, gateway, link, metric }));
    for hop in several.into_iter().flatten().filter(|hop| !hop.flags.contains(RouteNextHopFlags::Dead)) {
        let gateway = hop.attributes.iter().find_map(gateway_of);
        routes.push(KnownRoute { destination, gateway, link: hop.interface_index, metric });
    }
}

fn gateway_of(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip_of(address),
        RouteAttribute::Via(RouteVia::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Via(RouteVia::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host;
    use crate::link::{Route, default_destination};
    use crate::netns::Namespace;
    use crate::privilege::{self, Privilege};
    use std::time::{Duration, Instant};

    const DEADLINE: Duration = Duration::from_secs(10);

    /// Waits until the tables show what is wanted.
    fn eventually<T>(view: &mut Neighbours, what: &str, mut wanted: impl FnMut(&Tables) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(found) = wanted(&view.tables().unwrap()) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            host::await_readable(&*view, left).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }

    #[test]
    fn the_view_follows_the_kernel() {
        if privilege::ensure(the_view_follows_the_kernel).unwrap() == Privilege::Delegated {
            return;
        }
        let (near, far) = (Namespace::create().unwrap(), Namespace::create().unwrap());
        let mut near_links = near.links().unwrap();
        near_links.create_veth("a", "b", &far).unwrap();
        let mut far_links = far.links().unwrap();
        for (links, name, end) in [(&mut near_links, "a", 1), (&mut far_links, "b", 2)] {
            links.add_address(name, IpAddr::from([10, 9, 0, end]), 24).unwrap();
            links.add_address(name, format!("fd09::{end}").parse().unwrap(), 64).unwrap();
            links.set_up(name).unwrap();
        }
        let mut view = near.run(Neighbours::open).unwrap().unwrap();
        let link = near_links.find("a").unwrap();
        let network = (IpAddr::from([10, 9, 0, 0]), 24);
        let tables = eventually(&mut view, "the link's own routes", |tables| {
            tables.routes.iter().any(|route| route.destination == network).then(|| tables.clone())
        });
        assert!(link.ethernet && tables.links.iter().any(|l| l.index == link.index && l.name == "a" && l.ethernet));
        assert!(tables.links.iter().any(|link| link.name == "lo" && !link.ethernet));
        let address = LinkAddress { link: link.index, ip: [10, 9, 0, 1].into(), prefix: 24 };
        assert!(tables.addresses.contains(&address));
        assert!(tables.routes.contains(&KnownRoute {
            destination: network,
            gateway: None,
            link: link.index,
            metric: 0
        }));

        let gateway = IpAddr::from([10, 9, 0, 2]);
        for destination in [default_destination(gateway), ("10.77.0.0".parse().unwrap(), 16)] {
            near_links.add_route(&Route { destination, gateway: Some(gateway), link: "a".into() }).unwrap();
            let route = KnownRoute { destination, gateway: Some(gateway), link: link.index, metric: 0 };
            eventually(&mut view, "a new route", |tables| tables.routes.contains(&route).then_some(()));
        }
        let destination = default_destination("::".parse().unwrap());
        let gateway = Some("fd09::2".parse().unwrap());
        near_links.add_route(&Route { destination, gateway, link: "a".into() }).unwrap();
        eventually(&mut view, "an IPv6 route", |tables| {
            let mut routes = tables.routes.iter();
            routes.any(|r| r.destination == destination && r.gateway == gateway && r.link == link.index).then_some(())
        });

        let mac = far_links.find("b").unwrap().hardware_address;
        for ip in ["10.9.0.2", "fd09::2"] {
            let ip = ip.parse().unwrap();
            let deadline = Instant::now() + DEADLINE;
            let neighbour = loop {
                // The kernel gives up after three questions, and an address that is just looked at for duplicates answers none (RFC 4862 §5.4).
                view.ask(link.index, ip).unwrap();
                let neighbours = view.tables().unwrap().neighbours;
                if let Some(&neighbour) = neighbours.iter().find(|neighbour| neighbour.ip == ip) {
                    break neighbour;
                }
                assert!(Instant::now() < deadline, "no answer from {ip}");
                let _is_change = host::await_readable(&view, Duration::from_secs(1));
            };
            assert_eq!((neighbour.link, neighbour.mac.as_slice()), (link.index, mac.as_slice()));
        }
        // Asked again, it is only confirmed.
        view.ask(link.index, [10, 9, 0, 2].into()).unwrap();
        assert!(!view.changes().unwrap().neighbours);
        view.ask(link.index, [10, 9, 0, 99].into()).unwrap();
        assert!(view.ask(99_999, [10, 9, 0, 2].into()).is_err());

        near_links.remove("a").unwrap();
        eventually(&mut view, "the link is gone", |tables| {
            let gone = tables.links.iter().all(|link| link.name != "a");
            (gone && tables.neighbours.is_empty() && tables.addresses.iter().all(|a| a.link != link.index))
                .then_some(())
        });
    }

    #[test]
    fn changes_are_told_once() {
        if privilege::ensure(changes_are_told_once).unwrap() == Privilege::Delegated {
            return;
        }
        let near = Namespace::create().unwrap();
        let mut view = near.run(Neighbours::open).unwrap().unwrap();
        view.tables().unwrap();
        assert_eq!(view.changes().unwrap(), Changes::default());
        near.links().unwrap().create_bridge("bridge").unwrap();
        host::await_readable(&view, DEADLINE).unwrap();
        assert!(view.changes().unwrap().network);
        assert_eq!(view.changes().unwrap(), Changes::default());
    }

    #[test]
    fn lost_events_leave_nothing_old_behind() {
        if privilege::ensure(lost_events_leave_nothing_old_behind).unwrap() == Privilege::Delegated {
            return;
        }
        // More than the queue holds, of some 2 KiB each with what the kernel adds.
        const EVENTS: u32 = 8_000;
        let near = Namespace::create().unwrap();
        near.links().unwrap().create_veth("a", "b", &near).unwrap();
        near.links().unwrap().set_up("a").unwrap();
        let index = near.links().unwrap().find("a").unwrap().index;
        let mut view = near.run(Neighbours::open).unwrap().unwrap();
        let mut other = near.run(Conversation::open).unwrap().unwrap();
        let first = IpAddr::from([10, 9, 0, 1]);
        for number in 0..EVENTS {
            let mac = [2, 0, number.to_be_bytes()[0], number.to_be_bytes()[1], number.to_be_bytes()[2], number as u8];
            let mut message = NeighbourMessage::default();
            message.header.ifindex = index;
            message.header.family = AddressFamily::Inet;
            message.header.state = NeighbourState::Permanent;
            message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet([10, 9, 0, 1].into())));
            message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
            let flags = NLM_F_CREATE | netlink_packet_core::NLM_F_REPLACE;
            other.acknowledged(RouteNetlinkMessage::NewNeighbour(message), flags).unwrap();
        }
        let changes = view.changes().unwrap();
        assert!(changes.network && changes.neighbours, "the queue was large enough: {changes:?}");
        let last = (EVENTS - 1).to_be_bytes();
        let expected = Neighbour { link: index, ip: first, mac: [2, 0, last[0], last[1], last[2], last[3]] };
        eventually(&mut view, "the newest", |tables| tables.neighbours.contains(&expected).then_some(()));
    }

    #[test]
    fn devices_say_whether_they_cut_super_packets() {
        if privilege::ensure(devices_say_whether_they_cut_super_packets).unwrap() == Privilege::Delegated {
            return;
        }
        let near = Namespace::create().unwrap();
        near.links().unwrap().create_veth("a", "b", &near).unwrap();
        let view = near.run(Neighbours::open).unwrap().unwrap();
        assert!(view.can_segment("a").unwrap());
        assert!(view.can_segment("nowhere").unwrap_err().to_string().contains("`nowhere`"));
        assert!(view.can_segment("a name that is too long").is_err());
    }
}
