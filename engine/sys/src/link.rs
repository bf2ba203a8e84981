//! Interfaces, addresses and routes of one network namespace, over rtnetlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::rtnetlink::{Conversation, TABLE_MAIN};

/// A conversation with the kernel about the links of the namespace in which it was opened, from whichever
/// thread it is used later.
pub struct Links {
    conversation: Conversation,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in the namespace.
    pub index: u32,
    /// Its name in the namespace.
    pub name: String,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether there is a cable: the other end is up too.
    pub carrier: bool,
    /// Whether it is an Ethernet; the loopback is not.
    pub ethernet: bool,
    /// Its hardware address; empty where it has none.
    pub hardware_address: Vec<u8>,
    /// The largest packet it carries whole.
    pub mtu_bytes: u32,
}

/// A route to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Network and prefix length; an unspecified address with prefix 0 is the default route.
    pub destination: (IpAddr, u8),
    /// The next hop; `None` for a destination on the link itself.
    pub gateway: Option<IpAddr>,
    /// The link it leaves through.
    pub link: String,
}

impl Links {
    /// Opens a conversation about the calling thread's namespace.
    pub fn open() -> io::Result<Links> {
        Ok(Links { conversation: Conversation::open()? })
    }

    /// Every interface.
    pub fn list(&mut self) -> io::Result<Vec<Link>> {
        list(&mut self.conversation)
    }

    /// The interface of that name; `NotFound` when there is none.
    pub fn find(&mut self, name: &str) -> io::Result<Link> {
        self.list()?
            .into_iter()
            .find(|link| link.name == name)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no interface `{name}` in this namespace")))
    }

    /// Creates a pair of connected interfaces: `name` here, `peer_name` in the peer's namespace.
    pub fn create_veth(&mut self, name: &str, peer_name: &str, peer_namespace: &impl AsFd) -> io::Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes.push(LinkAttribute::IfName(peer_name.to_owned()));
        peer.attributes.push(LinkAttribute::NetNsFd(peer_namespace.as_fd().as_raw_fd()));
        let mut near = LinkMessage::default();
        near.attributes.push(LinkAttribute::IfName(name.to_owned()));
        near.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.create(RouteNetlinkMessage::NewLink(near))
            .map_err(|error| told(&error, &format!("create veth pair `{name}`")))
    }

    /// Creates a bridge.
    pub fn create_bridge(&mut self, name: &str) -> io::Result<()> {
        let mut bridge = LinkMessage::default();
        bridge.attributes.push(LinkAttribute::IfName(name.to_owned()));
        bridge.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        self.create(RouteNetlinkMessage::NewLink(bridge))
            .map_err(|error| told(&error, &format!("create bridge `{name}`")))
    }

    /// Makes a link a port of a bridge.
    pub fn enslave(&mut self, name: &str, bridge: &str) -> io::Result<()> {
        let bridge_index = self.find(bridge)?.index;
        let mut message = self.message_for(name)?;
        message.attributes.push(LinkAttribute::Controller(bridge_index));
        self.change(message, &format!("make `{name}` a port of `{bridge}`"))
    }

    /// Moves a link into another namespace; it arrives down and without addresses.
    pub fn move_to(&mut self, name: &str, namespace: &impl AsFd) -> io::Result<()> {
        let mut message = self.message_for(name)?;
        message.attributes.push(LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()));
        self.change(message, &format!("move `{name}`"))
    }

    /// Sets a link up.
    pub fn set_up(&mut self, name: &str) -> io::Result<()> {
        let mut message = self.message_for(name)?;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.change(message, &format!("set `{name}` up"))
    }

    /// Sets a link down: as when the cable is pulled, for the other end too.
    pub fn set_down(&mut self, name: &str) -> io::Result<()> {
        let mut message = self.message_for(name)?;
        message.header.flags = LinkFlags::empty();
        message.header.change_mask = LinkFlags::Up;
        self.change(message, &format!("set `{name}` down"))
    }

    /// Sets the largest packet a link carries whole.
    pub fn set_mtu(&mut self, name: &str, mtu_bytes: u32) -> io::Result<()> {
        let mut message = self.message_for(name)?;
        message.attributes.push(LinkAttribute::Mtu(mtu_bytes));
        self.change(message, &format!("set the MTU of `{name}`"))
    }

    /// Gives a link another hardware address.
    pub fn set_hardware_address(&mut self, name: &str, address: [u8; 6]) -> io::Result<()> {
        let mut message = self.message_for(name)?;
        message.attributes.push(LinkAttribute::Address(address.to_vec()));
        self.change(message, &format!("set the hardware address of `{name}`"))
    }

    /// Removes a link; of a veth pair, both ends.
    pub fn remove(&mut self, name: &str) -> io::Result<()> {
        let message = self.message_for(name)?;
        let request = RouteNetlinkMessage::DelLink(message);
        self.conversation.acknowledged(request, 0).map_err(|error| told(&error, &format!("remove `{name}`")))
    }

    /// Adds an address, usable at once: IPv6 does without duplicate address detection.
    pub fn add_address(&mut self, name: &str, ip: IpAddr, prefix: u8) -> io::Result<()> {
        let message = self.address_message(name, ip, prefix)?;
        let request = RouteNetlinkMessage::NewAddress(message);
        self.create(request).map_err(|error| told(&error, &format!("add {ip}/{prefix} to `{name}`")))
    }

    /// Takes an address away.
    pub fn remove_address(&mut self, name: &str, ip: IpAddr, prefix: u8) -> io::Result<()> {
        let message = self.address_message(name, ip, prefix)?;
        let request = RouteNetlinkMessage::DelAddress(message);
        self.conversation
            .acknowledged(request, 0)
            .map_err(|error| told(&error, &format!("remove {ip}/{prefix} from `{name}`")))
    }

    /// Adds a route to the main table, or replaces the one to the same destination.
    pub fn add_route(&mut self, route: &Route) -> io::Result<()> {
        let (network, prefix) = route.destination;
        let mut message = RouteMessage::default();
        message.header.address_family = family(network);
        message.header.destination_prefix_length = prefix;
        message.header.table = TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope = match route.gateway {
            Some(_) => RouteScope::Universe,
            None if network.is_ipv6() => RouteScope::Universe,
            None => RouteScope::Link,
        };
        if prefix > 0 {
            message.attributes.push(RouteAttribute::Destination(route_address(network)));
        }
        if let Some(gateway) = route.gateway {
            message.attributes.push(RouteAttribute::Gateway(route_address(gateway)));
        }
        message.attributes.push(RouteAttribute::Oif(self.find(&route.link)?.index));
        self.conversation
            .acknowledged(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(|error| told(&error, &format!("add route to {network}/{prefix} over `{}`", route.link)))
    }

    fn message_for(&mut self, name: &str) -> io::Result<LinkMessage> {
        let mut message = LinkMessage::default();
        message.header.index = self.find(name)?.index;
        Ok(message)
    }

    fn address_message(&mut self, name: &str, ip: IpAddr, prefix: u8) -> io::Result<AddressMessage> {
        let mut message = AddressMessage::default();
        message.header.family = family(ip);
        message.header.prefix_len = prefix;
        message.header.scope = AddressScope::Universe;
        message.header.index = self.find(name)?.index;
        message.attributes.push(AddressAttribute::Local(ip));
        message.attributes.push(AddressAttribute::Address(ip));
        if ip.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        Ok(message)
    }

    fn change(&mut self, message: LinkMessage, what: &str) -> io::Result<()> {
        let request = RouteNetlinkMessage::SetLink(message);
        self.conversation.acknowledged(request, 0).map_err(|error| told(&error, what))
    }

    fn create(&mut self, request: RouteNetlinkMessage) -> io::Result<()> {
        self.conversation.acknowledged(request, NLM_F_CREATE | NLM_F_EXCL)
    }
}

/// Every interface.
pub(crate) fn list(conversation: &mut Conversation) -> io::Result<Vec<Link>> {
    let answers = conversation.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some(read_link(&message)),
            _ => None,
        })
        .collect())
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        hardware_address: Vec::new(),
        mtu_bytes: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.hardware_address.clone_from(bytes),
            LinkAttribute::Mtu(bytes) => link.mtu_bytes = *bytes,
            _ => {}
        }
    }
    link
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn route_address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

/// The default route of a family, as a destination.
pub fn default_destination(ip: IpAddr) -> (IpAddr, u8) {
    match ip {
        IpAddr::V4(_) => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        IpAddr::V6(_) => (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
    }
}

fn told(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
