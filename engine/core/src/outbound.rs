//! Outbound NAT: what hosts inside open themselves through the router leaves from an address of ours (`[[outbound_nat]]`).
//!
//! Each flow leases a port, or of a ping an identifier, from one map per SNAT address and protocol, whoever it is to: so one address carries about 64,000
//! flows of each protocol.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use towpath_config::model::{self, Protocol};

use crate::ids::ServiceId;
use crate::packet::{Ip, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP};
use crate::router::Networks;
use crate::snat::{Leased, SnatPool};

/// Everything that is translated on its way out.
#[derive(Clone, Debug, Default)]
pub struct Outbound {
    nats: Box<[OutboundNat]>,
    /// Whose traffic is translated by any of them, and real servers: what goes there stays as it is.
    inside: Networks,
}

/// One `[[outbound_nat]]`.
#[derive(Clone, Debug)]
pub struct OutboundNat {
    /// Its name.
    pub name: String,
    /// As `from`, as it is written.
    inside: Box<[(IpAddr, u8)]>,
    from: Networks,
    to: Networks,
    except: Networks,
    interface: Option<String>,
    lanes: [OutboundLane; Leased::ALL.len()],
}

/// What one `[[outbound_nat]]` does for one protocol.
#[derive(Clone, Debug)]
pub struct OutboundLane {
    /// What its flows are counted under; no service has this number.
    pub id: ServiceId,
    /// Where its flows lease from, each [towards](towards_anyone) whoever it is.
    pub pool: Arc<SnatPool>,
}

impl Outbound {
    /// What the operator says, where these are the addresses of the real servers.
    pub fn new(nats: Vec<OutboundNat>, servers: &[IpAddr]) -> Outbound {
        if nats.is_empty() {
            return Outbound::default();
        }
        let servers = servers.iter().map(|&server| (server, if server.is_ipv4() { 32 } else { 128 }));
        let inside = Networks::of(nats.iter().flat_map(|nat| nat.inside.iter().copied()).chain(servers));
        Outbound { nats: nats.into(), inside }
    }

    /// All of them, in the order of the file.
    pub fn each(&self) -> impl Iterator<Item = &OutboundNat> {
        self.nats.iter()
    }

    /// Whether there is any.
    #[inline]
    pub fn is_any(&self) -> bool {
        !self.nats.is_empty()
    }

    /// The lane whose flows are counted under this number.
    pub fn lane(&self, id: ServiceId) -> Option<&OutboundLane> {
        self.nats.iter().flat_map(|nat| &nat.lanes).find(|lane| lane.id == id)
    }

    /// Who translates what `src` opens to `dst`, if it leaves by the interface of this name: the first that fits.
    pub fn find(&self, src: Ip, dst: Ip, leaves_by: &str) -> Option<&OutboundNat> {
        if self.inside.hold(dst) {
            return None;
        }
        let is_named = |nat: &OutboundNat| nat.interface.as_ref().is_none_or(|name| name == leaves_by);
        self.nats.iter().find(|nat| nat.fits(src, dst) && is_named(nat))
    }

    /// Whether what `src` opens to `dst` may be translated, wherever it leaves.
    pub fn may_translate(&self, src: Ip, dst: Ip) -> bool {
        self.is_any() && !self.inside.hold(dst) && self.nats.iter().any(|nat| nat.fits(src, dst))
    }
}

impl OutboundNat {
    /// What `nat` says, with a lane for each of [`Leased::ALL`].
    pub fn new(nat: &model::OutboundNat, lanes: [OutboundLane; Leased::ALL.len()]) -> OutboundNat {
        OutboundNat {
            name: nat.name.clone(),
            inside: nat.from.as_slice().into(),
            from: Networks::new(&nat.from),
            to: Networks::new(&nat.to),
            except: if nat.except.is_empty() { Networks::default() } else { Networks::new(&nat.except) },
            interface: nat.interface.clone(),
            lanes,
        }
    }

    fn fits(&self, src: Ip, dst: Ip) -> bool {
        self.from.hold(src) && self.to.hold(dst) && !self.except.hold(dst)
    }

    /// What it does for packets of this protocol; `None` for one that has neither ports nor pings.
    pub fn lane_of(&self, protocol: u8) -> Option<&OutboundLane> {
        let leased = match protocol {
            PROTOCOL_ICMP | PROTOCOL_ICMPV6 => Leased::Echo,
            PROTOCOL_TCP => Leased::Tcp,
            PROTOCOL_UDP => Leased::Udp,
            _ => return None,
        };
        self.lanes.get(leased as usize)
    }

    /// What it does for each of [`Leased::ALL`].
    pub fn lanes(&self) -> &[OutboundLane] {
        &self.lanes
    }
}

/// In place of a real server, in the pools that [`OutboundNat`] leases from: everybody of the family of `address`.
pub fn towards_anyone(address: IpAddr) -> SocketAddr {
    let anyone = match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(anyone, 0)
}

impl From<Protocol> for Leased {
    fn from(protocol: Protocol) -> Leased {
        match protocol {
            Protocol::Tcp => Leased::Tcp,
            Protocol::Udp => Leased::Udp,
        }
    }
}
