//! The PROXY protocol: the header that a connection from a proxy in front has to begin with, and the one that a real server gets from us.
//!
//! The header is looked at where it lies, in the kernel, until it is whole; then exactly its bytes are taken, whatever came behind them. So all that follows, routes by
//! name, TLS, HTTP, a relay and its pump, finds the client's first byte first.

use std::io::{self, Read};
use std::net::SocketAddr;

use towpath_core::counters::Termination;
use towpath_core::proxy_header::{About, AboutTls, BadHeader, Header, Said, V2_BYTES_MAX, read, write};
use towpath_core::session::{Session, Side};
use towpath_sys::socket::{self, Behind};
use towpath_tls::Connection;

use super::Worker;
use super::peek::{LookedFor, Looking};
use super::relay::Relay;
use super::token::Key;

// It has room for a header: V2 is the longer one.
const _: () = assert!(V2_BYTES_MAX <= towpath_core::client_hello::HELLO_BYTES_MAX);

/// What a proxy in front has said of its client, beside where that is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proxied {
    /// Who has said so.
    pub(super) proxy: SocketAddr,
    /// Where the client has connected to.
    pub(super) destination: SocketAddr,
}

impl Worker {
    /// Waits for the header of a connection that a proxy has opened.
    pub(super) fn await_header(&mut self, key: Key, timeout_ms: u64) -> io::Result<()> {
        self.look_for(key, LookedFor::Header, timeout_ms)
    }

    /// More of the header is there, or nothing more comes; `seen` bytes wait.
    pub(super) fn header_seen(&mut self, key: Key, looking: Looking, seen: usize) -> io::Result<()> {
        let header = read(&self.first_bytes[..seen]);
        let why = match header {
            Ok(Some(header)) => return self.take_header(key, header),
            Ok(None) if seen > 0 && self.looks_on(key, looking, seen)? => return Ok(()),
            Ok(None) if matches!(looking, Looking::GivenUp(_)) => Termination::ProxyTimedOut,
            Ok(None) => Termination::ProxyLeft,
            // A whole buffer without the end of a header cannot be.
            Err(
                BadHeader::Address
                | BadHeader::Checksum
                | BadHeader::Command
                | BadHeader::Family
                | BadHeader::Length
                | BadHeader::Start
                | BadHeader::TooLong,
            ) => Termination::ProxyInvalid,
        };
        self.turn_away(key, why)
    }

    /// The header is whole: it is taken, and what follows it is the client's.
    fn take_header(&mut self, key: Key, header: Header) -> io::Result<()> {
        self.wheel.disarm(key.index);
        let Worker { relays, first_bytes, .. } = self;
        let Some(relay) = relays.get_mut(key) else { return Ok(()) };
        relay.looking = None;
        let Some(mut client) = relay.leg(Side::Client) else { return Ok(()) };
        let _ = socket::set_readable_from(client, 1);
        // They are there: it does not wait.
        if !matches!(client.read(&mut first_bytes[..header.len]), Ok(taken) if taken == header.len) {
            return self.turn_away(key, Termination::SystemRefused);
        }
        if let Said::Proxied { source, destination } = header.said {
            let proxy = relay.client_address();
            relay.believe(Proxied { proxy, destination }, source);
        }
        let service = relay.service();
        let session = Session::connecting(self.now, service.connect_timeout_ms, service.idle_timeout_ms);
        let goes_on_waiting = service.first_bytes.is_some() || relay.is_secured();
        relay.session = session;
        if !goes_on_waiting {
            self.shared.handshakes().leave();
        }
        self.admit(key)
    }

    /// Tells a server that was just reached whose connection it is, if it is to know; says whether that has left.
    pub(super) fn tell_of_client(&mut self, key: Key) -> bool {
        let Some(relay) = self.relays.get(key) else { return true };
        let Some(version) = relay.proxy_to().filter(|_| !relay.is_ending()) else { return true };
        let tls = self.tls_of_client(relay).map(|connection| AboutTls {
            version: connection.version(),
            cipher: connection.cipher(),
            has_certificate: connection.peer_certificates().is_some(),
            alpn: connection.alpn(),
            authority: relay.client_name.as_deref(),
        });
        let about = About { source: relay.client_address(), destination: relay.vip(), tls };
        let mut header = Vec::new();
        write(version, &about, &mut header);
        let Some(relay) = self.relays.get_mut(key) else { return true };
        let follows = relay.speaks_first();
        if !follows {
            // What follows is not to wait for the acknowledgement.
            relay.legs.send_without_delay();
        }
        let Some(server) = relay.leg(Side::Server) else { return false };
        let behind = if follows { Behind::More } else { Behind::Nothing };
        // The first bytes of a connection, and few: the kernel takes them, or the connection has failed.
        matches!(socket::send_now(server, &header, behind), Ok(sent) if sent == header.len())
    }
}

impl Worker {
    /// TLS with a client; where it is a stream of HTTP/2, that of the connection that brings it.
    pub(super) fn tls_of_client<'a>(&'a self, relay: &'a Relay) -> Option<&'a Connection> {
        let of_hub = || self.relays.get(relay.hub_of_spoke()?)?.client_connection();
        relay.client_connection().or_else(of_hub)
    }
}

impl Relay {
    /// Whether bytes of ours follow at once: a handshake, a request, or what the client has sent already.
    fn speaks_first(&self) -> bool {
        let has_handshake = self
            .server()
            .is_some_and(|server| self.service_tls.as_ref().is_some_and(|tls| tls.towards(server).is_some()));
        has_handshake || self.http.is_some() || self.session.has_queued(Side::Client)
    }
}
