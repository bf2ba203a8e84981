//! The two legs of a relay. The server's is held as what it is: pinned to this client's connection for life, or lent to it for an exchange.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use towpath_core::http::pinning::{Lent, Pinned};
use towpath_core::session::Side;
use towpath_core::snapshot::Service;
use towpath_core::snat::SnatLease;
use towpath_core::{Now, RealServerId};
use towpath_sys::socket;

use super::secure::TlsLeg;
use crate::tls::ServiceTls;

/// A connection to a real server, with all that belongs to it and that another client would take over with it.
pub(super) struct ServerConnection {
    pub(super) socket: TcpStream,
    /// Its source port, where the service leases them.
    pub(super) lease: Option<SnatLease>,
    pub(super) tls: Option<Box<TlsLeg>>,
    /// What it was dialled for; kept only where clients share connections.
    pub(super) terms: Option<Box<Terms>>,
    /// Since when it waits for the next client.
    pub(super) since: Now,
    sends: Sends,
}

/// What a connection was dialled for: who wants the same may have it.
pub(super) struct Terms {
    /// The service as it was then, or when the connection was used last.
    pub(super) service: Arc<Service>,
    pub(super) server: RealServerId,
    pub(super) destination: SocketAddr,
    /// What TLS towards servers was done with, if the service ends TLS.
    pub(super) service_tls: Option<Arc<ServiceTls>>,
    /// The name that the server was asked for and the protocol that it was offered, where those are the client's and the server has TLS.
    pub(super) client_name: Option<Box<str>>,
    pub(super) client_alpn: Option<Box<[u8]>>,
}

/// How often something has been sent.
enum Sends {
    None,
    One,
    Many,
}

impl ServerConnection {
    pub(super) fn new(socket: TcpStream, lease: Option<SnatLease>, terms: Option<Box<Terms>>) -> ServerConnection {
        ServerConnection { socket, lease, tls: None, terms, since: Now::default(), sends: Sends::None }
    }

    /// Before the second send, which could otherwise wait 40 ms for the acknowledgement of the first; many connections never come that far.
    fn send_without_delay(&mut self) {
        match self.sends {
            Sends::None => self.sends = Sends::One,
            Sends::One => {
                self.sends = Sends::Many;
                // A failure costs only the wait.
                let _ = socket::set_nodelay(&self.socket);
            }
            Sends::Many => {}
        }
    }
}

/// The leg towards a real server.
pub(super) enum ServerLeg {
    /// There is none.
    Absent,
    /// This client's until the exchange is over.
    Lent(Lent<ServerConnection>),
    /// This client's for life.
    Pinned(Pinned<ServerConnection>),
}

impl ServerLeg {
    /// Takes it out.
    pub(super) fn take(&mut self) -> ServerLeg {
        std::mem::replace(self, ServerLeg::Absent)
    }

    fn connection(&self) -> Option<&ServerConnection> {
        match self {
            ServerLeg::Absent => None,
            ServerLeg::Lent(lent) => Some(lent.connection()),
            ServerLeg::Pinned(pinned) => Some(pinned.connection()),
        }
    }

    pub(super) fn connection_mut(&mut self) -> Option<&mut ServerConnection> {
        match self {
            ServerLeg::Absent => None,
            ServerLeg::Lent(lent) => Some(lent.connection_mut()),
            ServerLeg::Pinned(pinned) => Some(pinned.connection_mut()),
        }
    }

    /// The connection, to be closed.
    pub(super) fn end(self) -> Option<ServerConnection> {
        match self {
            ServerLeg::Absent => None,
            ServerLeg::Lent(lent) => Some(lent.end()),
            ServerLeg::Pinned(pinned) => Some(pinned.end()),
        }
    }
}

/// Both legs.
pub(super) struct Legs {
    /// `None` where it is memory: of a spoke.
    pub(super) client: Option<TcpStream>,
    pub(super) client_tls: Option<Box<TlsLeg>>,
    pub(super) server: ServerLeg,
}

impl Legs {
    /// A client's, without a server.
    pub(super) fn of(client: Option<TcpStream>) -> Legs {
        Legs { client, client_tls: None, server: ServerLeg::Absent }
    }

    pub(super) fn socket(&self, side: Side) -> Option<&TcpStream> {
        match side {
            Side::Client => self.client.as_ref(),
            Side::Server => self.server.connection().map(|connection| &connection.socket),
        }
    }

    /// TLS of a leg, where it has any.
    pub(super) fn tls(&self, side: Side) -> Option<&TlsLeg> {
        match side {
            Side::Client => self.client_tls.as_deref(),
            Side::Server => self.server.connection()?.tls.as_deref(),
        }
    }

    pub(super) fn tls_mut(&mut self, side: Side) -> Option<&mut TlsLeg> {
        match side {
            Side::Client => self.client_tls.as_deref_mut(),
            Side::Server => self.server.connection_mut()?.tls.as_deref_mut(),
        }
    }

    /// Every leg with TLS.
    pub(super) fn each_tls(&self) -> impl Iterator<Item = &TlsLeg> {
        Side::BOTH.into_iter().filter_map(|side| self.tls(side))
    }

    /// The address and port that the server sees: those leased, else those that the kernel has chosen.
    pub(super) fn source(&self) -> Option<SocketAddr> {
        let connection = self.server.connection()?;
        match &connection.lease {
            Some(lease) => Some(lease.source()),
            None => connection.socket.local_addr().ok(),
        }
    }

    /// Whether the server's leg has a lease.
    pub(super) fn has_lease(&self) -> bool {
        self.server.connection().is_some_and(|connection| connection.lease.is_some())
    }

    /// Whether more than one thing was sent to the server.
    pub(super) fn is_seasoned(&self) -> bool {
        self.server.connection().is_some_and(|connection| matches!(connection.sends, Sends::Many))
    }

    /// Before each send to the server.
    pub(super) fn send_without_delay(&mut self) {
        if let Some(connection) = self.server.connection_mut() {
            connection.send_without_delay();
        }
    }
}
