//! A client of our own for TCP and datagrams (smoltcp), for real servers on VLANs and bridges: the kernel has no address there, so its sockets do not reach them
//! (design.md 10.8). And for those that are asked for a VIP, as direct server return does: frames with the VIP go to the server's own MAC.
//!
//! Each check has a stack and a packet socket to itself, which hears nothing else than what is for that connection, and what is asked and told
//! about addresses. Nobody has to know by which arm of a bridge a server is reached: each arm tries with its own MAC, and where the server is not,
//! its address is asked for in vain. The plane leaves [`PROBE_PORTS`] of addresses that we keep alone.

mod letters;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::{JoinSet, consume_budget};
use tokio::time::timeout;
use towpath_core::health::CheckPlan;
use towpath_core::packet::{ETHERNET_LEN, Family, IcmpErrorKind, Ip, PROTOCOL_TCP, Packet, Tuple, parse};
use towpath_core::plane::{Keeper, Network, PROBE_PORTS, PortId};
use towpath_sys::packet::{Hearing, Tag};

use crate::packets;
use crate::packets::arms::holds;
pub(super) use letters::Letters;

/// Bytes of what a server says at once that are taken, in each direction.
const BUFFER_BYTES: usize = 4_096;
/// Frames that one step reads: a socket has room for as many datagrams.
const FRAMES_PER_STEP: usize = 4;
/// Where the sender's and the target's addresses lie in a frame with ARP (RFC 826).
const ARP_SENDER: Range<usize> = ETHERNET_LEN + 14..ETHERNET_LEN + 18;
const ARP_TARGET: Range<usize> = ETHERNET_LEN + 24..ETHERNET_LEN + 28;
/// Codes of unreachable destinations (RFC 792, RFC 4443 section 3.1).
const V4_PORT_UNREACHABLE: u8 = 3;
const V6_PORT_UNREACHABLE: u8 = 4;
/// How long the server may take to close its side once it has answered.
const CLOSE_WITHIN: Duration = Duration::from_millis(200);

/// The way to a server that only we can reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// By which it may be: both arms of a bridge.
    links: Vec<Link>,
    mtu_bytes: usize,
    /// What the file calls it.
    name: String,
    /// The address to speak from, and the prefix length of the network whose hosts are asked for themselves.
    from: (IpAddr, u8),
    /// Who takes what is for others.
    router: Option<IpAddr>,
    /// Of which address the hardware address is asked for instead of the other one's.
    stand_in: Option<StandIn>,
}

/// One that has the VIP and does not answer for it, for the VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StandIn {
    vip: Ipv4Addr,
    server: Ipv4Addr,
}

/// What frames leave and come in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// The number of the interface.
    index: u32,
    tag: Option<Tag>,
    /// Our own there.
    mac: [u8; 6],
}

impl Way {
    /// By which the server may be reached.
    pub(super) fn links(&self) -> impl Iterator<Item = Link> + '_ {
        self.links.iter().copied()
    }
}

/// The way of this check in this network, where the kernel has none; an error in the words of an operator where nobody has one.
pub(super) fn way(network: &Network, plan: &CheckPlan) -> Option<Result<Way, String>> {
    let server = plan.address;
    let (id, router) = network.way_to(Ip::from(server))?;
    let port = network.port(id).filter(|port| port.keeper == Keeper::Towpath || plan.vip.is_some())?;
    let family = if server.is_ipv4() { Family::V4 } else { Family::V6 };
    let Some((own, prefix)) = network.speaker(id, router.unwrap_or(Ip::from(server))) else {
        return Some(Err(format!("{} has no {} address to ask from", port.name, name(family))));
    };
    let (from, router, stand_in) = match (plan.vip, router, server) {
        (None, router, _) => ((own.into(), prefix), router.map(IpAddr::from), None),
        (Some(IpAddr::V4(vip)), None, IpAddr::V4(server)) if holds(own.into(), prefix, vip.into()) => {
            ((own.into(), prefix), None, Some(StandIn { vip, server }))
        }
        // As if the server were the router to its VIP.
        (Some(_), None, IpAddr::V4(_)) => ((own.into(), prefix), Some(server), None),
        (Some(_), None, IpAddr::V6(_)) => ((own.into(), 128), Some(server), None),
        (Some(vip), Some(router), _) => {
            return Some(Err(format!(
                "{vip} cannot be asked for behind router {router}; direct server return needs a network of ours"
            )));
        }
    };
    let arms: [Option<PortId>; 2] = [Some(id), port.peer];
    let links: Vec<Link> = arms.into_iter().flatten().filter_map(|arm| link(network, arm)).collect();
    if links.is_empty() {
        return Some(Err(format!("interface {} is not there", port.name)));
    }
    let mtu_bytes = usize::try_from(port.mtu).unwrap_or(usize::MAX).min(9_216);
    Some(Ok(Way { links, mtu_bytes, name: port.name.clone(), from, router, stand_in }))
}

/// For people.
impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stand_in {
            Some(StandIn { server, .. }) => write!(f, "{}, at {server}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

/// That of a port, while the interface is there.
fn link(network: &Network, port: PortId) -> Option<Link> {
    let (index, tag) = packets::way(network, port)?;
    Some(Link { index, tag, mac: network.port(port)?.mac.0 })
}

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// Connects. To be dropped when it takes too long.
pub(super) async fn connect(way: &Way, to: SocketAddr) -> io::Result<Stack> {
    let mut tries = JoinSet::new();
    for &link in &way.links {
        let way = way.clone();
        tries.spawn(async move { connect_by(link, &way, to).await });
    }
    let mut result = Err(io::ErrorKind::NetworkUnreachable.into());
    while let Some(tried) = tries.join_next().await {
        result = tried.map_err(io::Error::other).flatten();
        // Only the arm that the server is behind has an answer, be it a refusal; the other one ends with the set.
        if result.as_ref().map_or_else(|error| error.kind() == io::ErrorKind::ConnectionRefused, |_| true) {
            break;
        }
    }
    result
}

/// The same by one of the links.
async fn connect_by(link: Link, way: &Way, to: SocketAddr) -> io::Result<Stack> {
    let port = next_port();
    let mut stack = Stack::open(link, way, to, port)?;
    stack.connect(to, port)?;
    loop {
        stack.step();
        match stack.state() {
            State::SynSent => stack.wait().await?,
            State::Closed => return Err(io::ErrorKind::ConnectionRefused.into()),
            _ => return Ok(stack),
        }
    }
}

/// In turn, so that a port rests for as long as there are others.
fn next_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = PROBE_PORTS.end() - PROBE_PORTS.start() + 1;
    PROBE_PORTS.start() + NEXT.fetch_add(1, Ordering::Relaxed) % count
}

/// One connection.
pub(super) struct Stack {
    wire: Option<Wire>,
    interface: Interface,
    sockets: SocketSet<'static>,
    client: SocketHandle,
    from: SocketAddr,
}

impl Stack {
    /// `local_port`: the only one that it hears.
    fn open(link: Link, way: &Way, to: SocketAddr, local_port: u16) -> io::Result<Stack> {
        let hearing = Hearing::of_connection(link.index, local_port, to.port())?;
        let from = SocketAddr::new(way.from.0, local_port);
        let (wire, interface) = Wire::lay(hearing, link, way, Tuple::new(from, to, PROTOCOL_TCP))?;
        let buffer = || SocketBuffer::new(vec![0; BUFFER_BYTES]);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let client = sockets.add(Socket::new(buffer(), buffer()));
        Ok(Stack { wire: Some(wire), interface, sockets, client, from })
    }

    /// Our own address and port.
    pub(super) fn from(&self) -> SocketAddr {
        self.from
    }

    fn connect(&mut self, to: SocketAddr, local_port: u16) -> io::Result<()> {
        let client = self.sockets.get_mut::<Socket<'_>>(self.client);
        client.connect(self.interface.context(), to, local_port).map_err(io::Error::other)
    }

    fn state(&self) -> State {
        self.sockets.get::<Socket<'_>>(self.client).state()
    }

    /// Reads what has come and sends what is due.
    fn step(&mut self) {
        let Stack { wire: Some(wire), interface, sockets, .. } = self else { return };
        step(interface, wire, sockets);
    }

    /// Returns when there is something to do.
    async fn wait(&mut self) -> io::Result<()> {
        let Stack { wire: Some(wire), interface, sockets, .. } = self else { return Ok(()) };
        // What comes without end keeps it ready; others have their turn.
        consume_budget().await;
        let due = interface.poll_delay(Instant::now(), sockets).map_or(Duration::from_secs(1), Duration::from);
        match timeout(due, wire.hearing.readable()).await {
            Ok(ready) => ready.map(|mut ready| ready.retain_ready()),
            Err(_due) => Ok(()),
        }
    }

    /// Hands all of it to the connection, and waits until the server takes it.
    pub(super) async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let client = self.sockets.get_mut::<Socket<'_>>(self.client);
            if !client.may_send() {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            let taken = client.send_slice(bytes).map_err(io::Error::other)?;
            bytes = &bytes[taken..];
            self.step();
            if taken == 0 {
                self.wait().await?;
            }
        }
        Ok(())
    }

    /// 0 = the server has ended its stream.
    pub(super) async fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let client = self.sockets.get_mut::<Socket<'_>>(self.client);
            match client.recv_slice(buffer) {
                Ok(0) => {}
                // The next step offers the room to the server again.
                Ok(length) => return Ok(length),
                Err(RecvError::Finished) => return Ok(0),
                Err(RecvError::InvalidState) => return Err(io::ErrorKind::ConnectionReset.into()),
            }
            self.wait().await?;
            self.step();
        }
    }

    /// Ends the connection; whether the server ends its side in time or not, it has answered.
    pub(super) async fn close(mut self) {
        let _closed = timeout(CLOSE_WITHIN, self.end()).await;
        self.abort();
    }

    /// Ends our side and waits for the other one.
    async fn end(&mut self) -> io::Result<()> {
        self.sockets.get_mut::<Socket<'_>>(self.client).close();
        loop {
            self.step();
            if matches!(self.state(), State::Closed | State::TimeWait) {
                return Ok(());
            }
            self.wait().await?;
        }
    }

    /// Resets what is left of it.
    fn abort(&mut self) {
        if !matches!(self.state(), State::Closed | State::TimeWait) {
            self.sockets.get_mut::<Socket<'_>>(self.client).abort();
            self.step();
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        retire(self.wire.take());
    }
}

/// Reads some of what has come and sends what is due.
fn step(interface: &mut Interface, wire: &mut Wire, sockets: &mut SocketSet<'_>) {
    let now = Instant::now();
    interface.poll_maintenance(now);
    for _ in 0..FRAMES_PER_STEP {
        if matches!(interface.poll_ingress_single(now, wire, sockets), PollIngressSingleResult::None) {
            break;
        }
    }
    while interface.poll_egress(now, wire, sockets) == PollResult::SocketStateChanged {}
}

/// Closing a packet socket waits until no CPU looks at it any more, which takes milliseconds (net/packet/af_packet.c, packet_release).
fn retire(wire: Option<Wire>) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let _closed = runtime.spawn_blocking(move || drop(wire));
    }
}

/// The link that the server may be on.
struct Wire {
    hearing: AsyncFd<Hearing>,
    link: Link,
    mtu_bytes: usize,
    stand_in: Option<StandIn>,
    /// As what our packets go to the server: an error about anything else is not about this check.
    asked: Tuple,
    /// Whether one of them has left: what waits for the server's hardware address has not.
    has_asked: bool,
    /// What somebody has said about a packet of ours to the server.
    refusal: Option<io::ErrorKind>,
    /// The frame that was read last.
    read: Vec<u8>,
}

impl Wire {
    /// With it goes what speaks IP over it.
    fn lay(hearing: Hearing, link: Link, way: &Way, asked: Tuple) -> io::Result<(Wire, Interface)> {
        #[expect(
            deprecated,
            reason = "`register` is unsafe; the descriptor is the socket's own and stays open as long as it"
        )]
        let hearing = AsyncFd::new(hearing)?;
        let mut wire = Wire {
            hearing,
            link,
            mtu_bytes: way.mtu_bytes,
            stand_in: way.stand_in,
            asked,
            has_asked: false,
            refusal: None,
            read: Vec::new(),
        };
        let mut config = Config::new(EthernetAddress(link.mac).into());
        config.random_seed = crate::engine::system_seed();
        let mut interface = Interface::new(config, &mut wire, Instant::now());
        interface.update_ip_addrs(|addresses| {
            let _room_for_one = addresses.push(IpCidr::new(way.from.0.into(), way.from.1));
        });
        match way.router {
            Some(IpAddr::V4(router)) => drop(interface.routes_mut().add_default_ipv4_route(router)),
            Some(IpAddr::V6(router)) => drop(interface.routes_mut().add_default_ipv6_route(router)),
            None => {}
        }
        Ok((wire, interface))
    }

    /// The frame that was read last, and leave to send one.
    fn split(&mut self) -> (&[u8], Sending<'_>) {
        let Wire { hearing, link, stand_in, asked, has_asked, read, .. } = self;
        (read, Sending { hearing: hearing.get_ref(), link: *link, stand_in: *stand_in, asked: *asked, has_asked })
    }

    /// An error about what we have sent to the server: smoltcp tells of none to a socket, and of those of routers that quote little nobody at all.
    fn refusal(&self, frame: &[u8]) -> Option<io::ErrorKind> {
        let Ok(Packet::IcmpError(error)) = parse(frame) else { return None };
        if error.kind != IcmpErrorKind::Unreachable || error.embedded != self.asked {
            return None;
        }
        let code = *frame.get(usize::from(error.parsed.l4) + 1)?;
        let is_port = code == if self.asked.src.is_v4() { V4_PORT_UNREACHABLE } else { V6_PORT_UNREACHABLE };
        Some(if is_port { io::ErrorKind::ConnectionRefused } else { io::ErrorKind::HostUnreachable })
    }
}

/// Whether this is a packet of `asked`, or part of one, and nothing about neighbours.
fn asks(frame: &[u8], asked: &Tuple) -> bool {
    match parse(frame) {
        Ok(Packet::Echo(parsed) | Packet::Transport(parsed)) => parsed.tuple == *asked,
        Ok(Packet::Fragment(_)) => true,
        _ => false,
    }
}

/// Leave to send one frame.
struct Sending<'w> {
    hearing: &'w Hearing,
    link: Link,
    stand_in: Option<StandIn>,
    asked: Tuple,
    has_asked: &'w mut bool,
}

/// A frame that has come.
struct Received<'w>(&'w [u8]);

impl Device for Wire {
    type RxToken<'w> = Received<'w>;
    type TxToken<'w> = Sending<'w>;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        let Wire { hearing, link, stand_in, read, .. } = &mut *self;
        let taken = hearing.try_io_mut(Interest::READABLE, |hearing| {
            let Some(frame) = hearing.take()? else { return Err(io::ErrorKind::WouldBlock.into()) };
            let vlan = |tag: Option<Tag>| tag.and_then(Tag::vlan);
            let is_ours = vlan(frame.tag) == vlan(link.tag);
            read.clear();
            read.extend_from_slice(frame.bytes);
            Ok(is_ours)
        });
        match taken {
            Ok(true) => {}
            // What comes behind it is there for the next step.
            Ok(false) => return None,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            // Of an interface that went down; likewise.
            Err(error) => {
                tracing::debug!("probe: {error}");
                return None;
            }
        }
        if let Some(StandIn { vip, server }) = *stand_in {
            replace(read, ARP_SENDER, server, vip);
        }
        self.refusal = self.refusal.or_else(|| self.refusal(&self.read));
        let (read, sending) = self.split();
        Some((Received(read), sending))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending<'_>> {
        Some(self.split().1)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu_bytes + ETHERNET_LEN;
        // Between virtual interfaces, that of what comes in may be unfinished.
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities.checksum.udp = Checksum::Tx;
        capabilities
    }
}

/// Writes `new` where a frame that is ARP has `old`.
fn replace(frame: &mut [u8], place: Range<usize>, old: Ipv4Addr, new: Ipv4Addr) {
    let is_arp = frame.get(ETHERNET_LEN - 2..ETHERNET_LEN) == Some(&[0x08, 0x06]);
    if let Some(address) = frame.get_mut(place).filter(|address| is_arp && **address == old.octets()) {
        address.copy_from_slice(&new.octets());
    }
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut frame = vec![0; length];
        let written = write(&mut frame);
        if let Some(StandIn { vip, server }) = self.stand_in {
            replace(&mut frame, ARP_TARGET, vip, server);
        }
        // What is lost here is sent again, as what is lost on the way.
        match self.hearing.send(self.link.index, self.link.tag, &frame) {
            Ok(()) => *self.has_asked = *self.has_asked || asks(&frame, &self.asked),
            Err(error) => tracing::debug!("probe: {error}"),
        }
        written
    }
}
