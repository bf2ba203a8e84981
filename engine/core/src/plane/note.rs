//! Notes: to which virtual shard a return packet belongs whose flow is not here. They lie in the port maps that all workers share
//! ([`PortHomes`]); this finds the map of a packet.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use towpath_config::model::Plane;

use crate::VShard;
use crate::flow::FlowPath;
use crate::packet::{Ip, PROTOCOL_TCP, PROTOCOL_UDP, Tuple};
use crate::snapshot::{ServiceSource, Snapshot};
use crate::snat::{Leased, PortHomes, SnatLease};

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct NoteKey {
    /// The SNAT address.
    source: Ip,
    server: Ip,
    /// 0 = every port of it.
    server_port: u16,
    protocol: u8,
}

/// The port maps that flows may have leased from.
#[derive(Default)]
pub(super) struct Notes {
    homes: HashMap<NoteKey, PortHomes>,
    /// Whether one of them is of every port of a server.
    has_any_port: bool,
    /// Those that flows from inside lease from, whoever they are to, by SNAT address and protocol. Pings need none.
    outbound: HashMap<(Ip, u8), PortHomes>,
}

impl Notes {
    /// Follows a newer snapshot. Maps of servers that have gone stay for as long as they have leases.
    pub(super) fn adopt(&mut self, snapshot: &Snapshot) {
        let mut named = HashSet::new();
        for service in snapshot.each_service().filter(|service| service.plane == Plane::Packet) {
            let ServiceSource::Pool(pool) = &service.source else { continue };
            let Some(protocol) = protocol_number(pool.leased()) else { continue };
            for (source, server, homes) in pool.homes() {
                let (source, server_port) = (Ip::from(source), server.port());
                let key = NoteKey { source, server: server.ip().into(), server_port, protocol };
                named.insert(key);
                self.homes.insert(key, homes);
            }
        }
        // A map that was a gone server's may be another one's by now.
        let in_use: HashSet<u32> = named.iter().map(|key| self.homes[key].map()).collect();
        self.homes.retain(|key, homes| named.contains(key) || !homes.is_unused() && !in_use.contains(&homes.map()));
        let lanes = snapshot.outbound.each().flat_map(|nat| nat.lanes());
        self.outbound = lanes
            .filter_map(|lane| Some((&lane.pool, protocol_number(lane.pool.leased())?)))
            .flat_map(|(pool, protocol)| pool.homes().map(move |(ip, _, homes)| ((ip.into(), protocol), homes)))
            .collect();
        self.has_any_port = self.homes.keys().any(|key| key.server_port == 0);
    }

    /// Whether two services may lease the port of one path from maps of their own.
    #[inline]
    pub(super) fn has_twins(&self) -> bool {
        self.has_any_port
    }

    /// The home of the flow that may have the path to the server that `lease`, which is towards `towards`, gives to another one: a server's port can
    /// be one of a service and, with all of its ports, that of another service, and these two lease from maps of their own.
    pub(super) fn twin_of(&self, lease: &SnatLease, towards: SocketAddr, path: &FlowPath) -> Option<VShard> {
        let Tuple { src, dst, dst_port, protocol, .. } = path.server;
        let server_port = if towards.port() == 0 { dst_port } else { 0 };
        let twin = self.homes.get(&NoteKey { source: src, server: dst, server_port, protocol })?;
        twin.is_leased(lease.port()).then(|| twin.home_of(lease.port()))
    }

    /// The home of the flow that a packet with this tuple is a return of; `None` when it can be none: it is not from a real server to an address
    /// that is leased from towards it.
    pub(super) fn home_of(&self, returns: &Tuple) -> Option<VShard> {
        self.homes_of(returns).map(|homes| homes.home_of(returns.dst_port))
    }

    /// The notes of the port that a packet with this tuple comes back to; where two services lease it from maps of their own, of the one that has.
    pub(super) fn homes_of(&self, returns: &Tuple) -> Option<&PortHomes> {
        let Tuple { src, dst, src_port, dst_port, protocol } = *returns;
        let key = NoteKey { source: dst, server: src, server_port: src_port, protocol };
        let exact = self.homes.get(&key);
        let of_server = match self.has_any_port {
            false => exact,
            true => match (exact, self.homes.get(&NoteKey { server_port: 0, ..key })) {
                (Some(exact), Some(every)) if !exact.is_leased(dst_port) && every.is_leased(dst_port) => Some(every),
                (exact, every) => exact.or(every),
            },
        };
        // Whom flows from inside are to may have become a real server meanwhile.
        match of_server {
            Some(homes) if homes.is_leased(dst_port) => Some(homes),
            homes => {
                let outbound = self.outbound.get(&(dst, protocol));
                outbound.filter(|outbound| homes.is_none() || outbound.is_leased(dst_port)).or(homes)
            }
        }
    }
}

/// The protocol whose ports are leased.
fn protocol_number(leased: Leased) -> Option<u8> {
    match leased {
        Leased::Echo => None,
        Leased::Tcp => Some(PROTOCOL_TCP),
        Leased::Udp => Some(PROTOCOL_UDP),
    }
}
