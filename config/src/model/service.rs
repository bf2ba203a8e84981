//! The part of the model that is about virtual services.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::{
    EndedTls, Http, HttpRoute, Logged, PersistBy, Persistence, ProxyFrom, ProxyTo, ProxyVersion, RouteGroup, RouteTo,
    Server, ServerGroup, ServiceTls, TlsRoute,
};

/// `[[service]]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VirtualService {
    /// Unique name.
    pub name: String,
    /// The address that clients use.
    pub vip: IpAddr,
    /// The ports that clients use.
    pub ports: Ports,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Which plane carries it.
    pub plane: Plane,
    /// How its packets are rewritten; a relay of the stream plane is full-NAT.
    pub forwarding: Forwarding,
    /// What it serves; switches on the rules for that product.
    pub application: Option<Application>,
    /// How a server is chosen for a new client.
    pub balance: Balance,
    /// Whether a client comes back to its server.
    pub persistence: Option<Persistence>,
    /// A connection or session without a byte in either direction for this long is closed.
    pub idle_timeout_ms: u64,
    /// How long a connection to a server may take.
    pub connect_timeout_ms: u64,
    /// How long connections may finish when the process stops or the service goes.
    pub drain_timeout_ms: u64,
    /// How many further servers are tried when a connect fails; 0 = none.
    pub redispatch: u8,
    /// Whether connections to a server that goes down are reset at both ends; UDP always leaves such a server.
    pub drop_on_failure: bool,
    /// Share of the servers, in percent, that must be up; below it backups join in, or checks are not believed. 0 = none.
    pub panic_threshold: u8,
    /// How long a server that comes back takes less than its share; 0 = not at all.
    pub slow_start_ms: u64,
    /// Never more than this many connections at once; 0 = no limit.
    pub max_connections: u32,
    /// Who may wait for a place; `None` = nobody.
    pub queue: Option<Queue>,
    /// What becomes of a TCP client on the packet plane that finds no place.
    pub overload: Overload,
    /// The address that the real server sees.
    pub source: Source,
    /// Gateway of what goes back to clients, instead of the routes; not for those on a link of ours.
    pub next_hop: Option<IpAddr>,
    /// Networks that clients come from, each with its prefix length, as far as half-NAT depends on them; empty = nobody has said.
    pub client_networks: Vec<(IpAddr, u8)>,
    /// Interface or VLAN that the VIP lives on; `None` = the one whose network holds it (packet plane).
    pub interface: Option<String>,
    /// Who ends TLS.
    pub tls: ServiceTls,
    /// HTTP mode; `None` = connections are relayed unread.
    pub http: Option<Box<Http>>,
    /// What servers are told of clients, unless they or their group say otherwise.
    pub proxy_protocol: ProxyTo,
    /// Proxies in front that say who the client is; `None` = nobody does.
    pub proxy_from: Option<ProxyFrom>,
    /// Which of its connections and requests get a line.
    pub log: Logged,
    /// Index into [`Model::groups`](super::Model::groups).
    pub group: usize,
    /// Who serves while none of its servers can.
    pub sorry: Option<Server>,
}

/// `queue`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Queue {
    /// Clients that may wait, > 0.
    pub max: u32,
    /// How long each may.
    pub timeout_ms: u64,
}

/// `overload`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overload {
    /// It is reset.
    Reset,
    /// It gets no answer.
    #[default]
    Silent,
}

/// `ports`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ports {
    /// Sorted, without duplicates, never empty.
    List(Vec<u16>),
    /// Every port (packet plane only).
    All,
}

/// `protocol`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// `plane`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plane {
    /// Packets: the VIP belongs to Towpath.
    Packet,
    /// Connections: the VIP belongs to the kernel.
    Stream,
}

/// `forwarding`: how packets are rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forwarding {
    /// Only the hardware address is rewritten; the reply bypasses the balancer.
    Dsr,
    /// Source and destination are rewritten.
    FullNat,
    /// Only the destination is rewritten; the server sees the client.
    HalfNat,
}

/// `application`: the product behind a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Application {
    /// Exchange 2010.
    #[serde(rename = "exchange-2010")]
    Exchange2010,
    /// Exchange 2013 and later.
    #[serde(rename = "exchange-2013")]
    Exchange2013,
    /// LDAP.
    Ldap,
    /// Lync 2010.
    #[serde(rename = "lync-2010")]
    Lync2010,
    /// Lync 2013 / Skype for Business.
    #[serde(rename = "lync-2013")]
    Lync2013,
    /// Office Communications Server 2007 R2.
    #[serde(rename = "ocs-2007r2")]
    Ocs2007R2,
    /// RADIUS.
    Radius,
    /// SharePoint.
    Sharepoint,
    /// SMTP.
    Smtp,
}

/// `balance`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Fewest connections; ties rotate.
    LeastConnections,
    /// Maglev consistent hash of the client address (Eisenbud et al., NSDI 2016).
    Maglev,
    /// The less loaded of two drawn at random.
    RandomOfTwo,
    /// In turn.
    RoundRobin,
    /// Hash of the client address over the members that are up.
    SourceHash,
    /// Fewest connections per weight; ties rotate.
    WeightedLeastConnections,
    /// In turn, by weight, smoothly interleaved.
    WeightedRoundRobin,
}

/// What the first bytes of a client are read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstBytes {
    /// TLS that passes through.
    ClientHello,
    /// SIP, plain or in TLS that is ended here.
    Sip,
}

/// `source`: the address that the real server sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The client's own (half-NAT and direct server return).
    Client,
    /// Ports are leased from the address of the interface that leads to each real server (packet plane); which one that is only
    /// the machine can say.
    Facing(FacingPorts),
    /// The kernel picks address and port (stream plane).
    Interface,
    /// Ports are leased from these addresses; with half-NAT only for clients on a server's own network.
    Pool(SourcePool),
}

/// `source = { pool = "interface", ports = "16384-32767" }`, on the packet plane also `source = "interface"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FacingPorts {
    /// Lowest port leased; the kernel must not give it to its own connections.
    pub port_low: u16,
    /// Highest port leased, ≥ `port_low`.
    pub port_high: u16,
    /// As in [`SourcePool`].
    pub rest_ms: u64,
}

/// `source = { pool = […], ports = "1024-65535" }`; `source = "vip"` becomes a pool of the VIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SourcePool {
    /// SNAT addresses, without duplicates, never empty.
    pub addresses: Vec<IpAddr>,
    /// Lowest port leased.
    pub port_low: u16,
    /// Highest port leased, ≥ `port_low`.
    pub port_high: u16,
    /// How long a port rests when we sent the first FIN towards the server (design.md 10.9).
    pub rest_ms: u64,
    /// Real servers that see one certain address of these; the others see any.
    pub towards: BTreeMap<IpAddr, IpAddr>,
}

impl VirtualService {
    /// What this member of a group is told of this service's clients.
    pub fn proxy_version(&self, group: &ServerGroup, server: &Server) -> Option<ProxyVersion> {
        server.proxy_protocol.or(group.proxy_protocol).unwrap_or(self.proxy_protocol).version()
    }

    /// How TLS is ended here, if it is.
    pub fn ended_tls(&self) -> Option<&EndedTls> {
        match &self.tls {
            ServiceTls::Ended(tls) => Some(tls),
            ServiceTls::PassThrough(_) => None,
        }
    }

    /// Where clients go by the name that they ask for.
    pub fn routes(&self) -> &[TlsRoute] {
        match &self.tls {
            ServiceTls::Ended(_) => &[],
            ServiceTls::PassThrough(tls) => &tls.routes,
        }
    }

    /// The routes of HTTP mode that lead to servers.
    pub fn http_groups(&self) -> impl Iterator<Item = (&HttpRoute, &RouteGroup)> {
        let routes = self.http.iter().flat_map(|http| &http.routes);
        routes.filter_map(|route| match &route.to {
            RouteTo::Group(group) => Some((route, group)),
            RouteTo::Redirect { .. } | RouteTo::Status(_) => None,
        })
    }

    /// What its clients are to send before a real server is chosen, where nobody here ends TLS: it tells who they are, or which servers they are for.
    pub fn first_bytes(&self) -> Option<FirstBytes> {
        let by = |kind: PersistBy| self.persistence.iter().any(|rule| rule.by.contains(&kind));
        if self.http.is_some() || self.protocol == Protocol::Udp {
            return None;
        }
        match &self.tls {
            _ if by(PersistBy::SipCallId) => Some(FirstBytes::Sip),
            ServiceTls::PassThrough(tls)
                if !tls.routes.is_empty() || by(PersistBy::Sni) || by(PersistBy::TlsSessionId) =>
            {
                Some(FirstBytes::ClientHello)
            }
            ServiceTls::Ended(_) | ServiceTls::PassThrough(_) => None,
        }
    }

    /// How long the first bytes of a client are waited for, where they tell where it goes.
    pub fn first_bytes_wait_ms(&self) -> u64 {
        match &self.tls {
            ServiceTls::Ended(tls) => tls.handshake_timeout_ms,
            ServiceTls::PassThrough(tls) => tls.handshake_timeout_ms,
        }
    }

    /// The sockets that clients connect to, one per port; empty for an all-ports service.
    pub fn sockets(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let ports: &[u16] = match &self.ports {
            Ports::List(list) => list,
            Ports::All => &[],
        };
        ports.iter().map(|&port| SocketAddr::new(self.vip, port))
    }
}
