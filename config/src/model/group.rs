//! The part of the model that is about real servers and their groups.

use std::net::IpAddr;

use serde::Serialize;

use super::{Health, ProxyTo};

/// The name of each service's sorry server among its members.
pub const SORRY_NAME: &str = "sorry";

/// `[[group]]`, or the servers written inside one service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServerGroup {
    /// Name from the file; an anonymous group bears the name of its service.
    pub name: String,
    /// The members, in the order of the file; never empty.
    pub servers: Vec<Server>,
    /// How members are judged up or down; `None` = always up.
    pub health: Option<Health>,
    /// What they are told of clients, unless they say otherwise; `None` = as the service says.
    pub proxy_protocol: Option<ProxyTo>,
    /// Of a service that judges the servers of a `[[group]]` in its own way: that group, as an index into [`Model::groups`](super::Model::groups).
    pub origin: Option<usize>,
}

/// `[[service.server]]` or `[[group.server]]`: membership of one RealServer in one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Server {
    /// Name, unique in its group.
    pub name: String,
    /// Address of the RealServer.
    pub address: IpAddr,
    /// Port; `None` = keep the port that the client addressed.
    pub port: Option<u16>,
    /// Share of new connections relative to the other members, 0 to 65,535; 0 = none.
    pub weight: u16,
    /// While it has fewer connections it gets the next one before others; 0 = off.
    pub min_connections: u32,
    /// Never more than this many connections; 0 = no limit.
    pub max_connections: u32,
    /// The operator's word.
    pub admin: AdminState,
    /// Whether it takes clients only when no other server can.
    pub backup: bool,
    /// Whether services that end TLS go on with it towards this server; `None` = as they say, see [`EndedTls::re_encrypts`](super::EndedTls::re_encrypts).
    pub re_encrypt: Option<bool>,
    /// See [`EndedTls::server_name`](super::EndedTls::server_name).
    pub server_name: Option<String>,
    /// What it is told of clients; `None` = as its group or the service says, see [`VirtualService::proxy_version`](super::VirtualService::proxy_version).
    pub proxy_protocol: Option<ProxyTo>,
}

/// The operator's word about a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdminState {
    /// Takes new connections.
    #[default]
    Ready,
    /// Keeps its connections, takes no new ones (but see `persistence.enter_draining`).
    Drain,
    /// Takes none and keeps none.
    Halt,
}
