//! Notes: to which virtual shard a return packet belongs whose flow is not here. They lie in the port maps that all workers share
//! ([`PortHomes`]); this finds the map of a packet.

use std::collections::HashMap;
use std::net::SocketAddr;

use towpath_config::model::Plane;

use super::services::protocol_number;
use crate::VShard;
use crate::flow::FlowPath;
use crate::packet::{Ip, Tuple};
use crate::snapshot::{ServiceSource, Snapshot};
use crate::snat::{PortHomes, SnatLease};

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
}

impl Notes {
    /// Follows a newer snapshot. Maps of servers that have gone stay for as long as they have leases.
    pub(super) fn adopt(&mut self, snapshot: &Snapshot) {
        self.homes.retain(|_, homes| !homes.is_unused());
        for service in snapshot.each_service().filter(|service| service.plane == Plane::Packet) {
            let ServiceSource::Pool(pool) = &service.source else { continue };
            let protocol = protocol_number(pool.protocol());
            self.homes.extend(pool.homes().map(|(source, server, homes)| {
                let (source, server_port) = (Ip::from(source), server.port());
                (NoteKey { source, server: server.ip().into(), server_port, protocol }, homes)
            }));
        }
        self.has_any_port = self.homes.keys().any(|key| key.server_port == 0);
    }

    /// The home of the flow that may have the path to the server that `lease`, which is towards `towards`, gives to another one: a server's port can
    /// be one of a service and, with all of its ports, that of another service, and these two lease from maps of their own.
    pub(super) fn twin_of(&self, lease: &SnatLease, towards: SocketAddr, path: &FlowPath) -> Option<VShard> {
        if !self.has_any_port {
            return None;
        }
        let Tuple { src, dst, dst_port, protocol, .. } = path.server;
        let server_port = if towards.port() == 0 { dst_port } else { 0 };
        let twin = self.homes.get(&NoteKey { source: src, server: dst, server_port, protocol })?;
        twin.is_leased(lease.port()).then(|| twin.home_of(lease.port()))
    }

    /// The home of the flow that a packet with this tuple is a return of; `None` when it can be none: it is not from a real server to an address
    /// that is leased from towards it.
    pub(super) fn home_of(&self, returns: &Tuple) -> Option<VShard> {
        let Tuple { src, dst, src_port, dst_port, protocol } = *returns;
        let key = NoteKey { source: dst, server: src, server_port: src_port, protocol };
        let homes = self.homes.get(&key).or_else(|| self.homes.get(&NoteKey { server_port: 0, ..key }))?;
        Some(homes.home_of(dst_port))
    }
}
