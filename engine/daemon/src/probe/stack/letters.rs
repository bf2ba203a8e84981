//! Datagrams of UDP and messages of ICMP by a stack of our own.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::{icmp, udp};
use smoltcp::time::Instant;
use tokio::task::consume_budget;
use tokio::time::timeout;
use towpath_config::model::Carrier;
use towpath_core::packet::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_UDP, Tuple};
use towpath_sys::packet::Hearing;

use super::{FRAMES_PER_STEP, Link, Way, Wire, next_port, retire, step};

/// Datagrams that wait in each direction, and the octets of all of them.
const DATAGRAMS_MAX: usize = FRAMES_PER_STEP;
const BUFFER_BYTES: usize = 16_384;

/// What goes to one port of a server and comes from it, or what echoes.
pub(crate) struct Letters {
    wire: Option<Wire>,
    interface: Interface,
    sockets: SocketSet<'static>,
    client: Client,
    from: SocketAddr,
    to: SocketAddr,
}

#[derive(Clone, Copy)]
enum Client {
    Echo(SocketHandle),
    Udp(SocketHandle),
}

impl Letters {
    pub(in crate::probe) fn open(link: Link, way: &Way, to: SocketAddr, carrier: Carrier) -> io::Result<Letters> {
        // Of an echo it is the identifier.
        let port = next_port();
        let hearing = Hearing::of_datagrams(link.index, port, to.port())?;
        let from = SocketAddr::new(way.from.0, port);
        let asked = match (carrier, to) {
            // Errors about an echo show the identifier as the port of who asks.
            (Carrier::Echo, SocketAddr::V4(_)) => Tuple::new(from, SocketAddr::new(to.ip(), 0), PROTOCOL_ICMP),
            (Carrier::Echo, SocketAddr::V6(_)) => Tuple::new(from, SocketAddr::new(to.ip(), 0), PROTOCOL_ICMPV6),
            (Carrier::Datagram | Carrier::Stream, _) => Tuple::new(from, to, PROTOCOL_UDP),
        };
        let (wire, interface) = Wire::lay(hearing, link, way, asked)?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let client = match carrier {
            Carrier::Echo => {
                let buffer =
                    || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; DATAGRAMS_MAX], vec![0; BUFFER_BYTES]);
                let mut socket = icmp::Socket::new(buffer(), buffer());
                socket.bind(icmp::Endpoint::Ident(port)).map_err(io::Error::other)?;
                Client::Echo(sockets.add(socket))
            }
            Carrier::Datagram | Carrier::Stream => {
                let buffer =
                    || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; DATAGRAMS_MAX], vec![0; BUFFER_BYTES]);
                let mut socket = udp::Socket::new(buffer(), buffer());
                socket.bind(port).map_err(io::Error::other)?;
                Client::Udp(sockets.add(socket))
            }
        };
        Ok(Letters { wire: Some(wire), interface, sockets, client, from, to })
    }

    /// Our own address, and port or identifier.
    pub(in crate::probe) fn from(&self) -> SocketAddr {
        self.from
    }

    pub(in crate::probe) fn send(&mut self, datagram: &[u8]) {
        // One that finds no room is lost, like one on the way: it is sent again.
        let _sent = match self.client {
            Client::Echo(client) => {
                self.sockets.get_mut::<icmp::Socket<'_>>(client).send_slice(datagram, self.to.ip().into()).is_ok()
            }
            Client::Udp(client) => {
                self.sockets.get_mut::<udp::Socket<'_>>(client).send_slice(datagram, self.to).is_ok()
            }
        };
        self.step();
    }

    /// Whether one of them has: the server's hardware address was found.
    pub(in crate::probe) fn have_left(&self) -> bool {
        self.wire.as_ref().is_some_and(|wire| wire.has_asked)
    }

    /// The next one that comes from the server. May be dropped while it waits.
    pub(in crate::probe) async fn receive<'b>(&mut self, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        loop {
            if let Some(length) = self.take(buffer) {
                return Ok(&buffer[..length]);
            }
            if let Some(refusal) = self.wire.as_mut().and_then(|wire| wire.refusal.take()) {
                return Err(refusal.into());
            }
            self.wait().await?;
            self.step();
        }
    }

    /// How long the one is that has come.
    fn take(&mut self, buffer: &mut [u8]) -> Option<usize> {
        loop {
            let (length, from) = match self.client {
                Client::Echo(client) => self.sockets.get_mut::<icmp::Socket<'_>>(client).recv_slice(buffer).ok()?,
                Client::Udp(client) => {
                    let (length, about) = self.sockets.get_mut::<udp::Socket<'_>>(client).recv_slice(buffer).ok()?;
                    (length, about.endpoint.addr)
                }
            };
            if IpAddr::from(from) == self.to.ip() {
                return Some(length);
            }
        }
    }

    /// Reads what has come and sends what is due.
    fn step(&mut self) {
        let Letters { wire: Some(wire), interface, sockets, .. } = self else { return };
        step(interface, wire, sockets);
    }

    /// Returns when there is something to do.
    async fn wait(&mut self) -> io::Result<()> {
        let Letters { wire: Some(wire), interface, sockets, .. } = self else { return Ok(()) };
        // What comes without end keeps it ready; others have their turn.
        consume_budget().await;
        let due = interface.poll_delay(Instant::now(), sockets).map_or(Duration::from_secs(1), Duration::from);
        match timeout(due, wire.hearing.readable()).await {
            Ok(ready) => ready.map(|mut ready| ready.retain_ready()),
            Err(_due) => Ok(()),
        }
    }
}

impl Drop for Letters {
    fn drop(&mut self) {
        retire(self.wire.take());
    }
}
