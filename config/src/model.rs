//! The checked model: what one configuration file means, with every default filled in and every name resolved.
//!
//! A `Model` exists only when the file had no errors. Durations are whole milliseconds (`*_ms`), limits of 0 mean "no limit".

mod control;
mod http;
mod log;
mod notify;
mod proxy;
mod tls;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::Serialize;

pub use control::{
    Control, ControlGroup, ControlListen, ControlRole, ControlUser, PASSWORD_ROUNDS, Page, PasswordHash, TokenHash,
};
pub use http::{
    BalanceEach, Change, FilterAction, Forwarded, HeaderChange, HeaderMatch, Hsts, Http, HttpFilter, HttpRoute,
    Maintenance, MaintenanceWhen, ParameterMatch, PathMatch, RequestMatch, Reuse, Rewrite, RouteClients, RouteGroup,
    RouteSettings, RouteTo, Way,
};
pub use log::{Log, LogFormat, LogTo, Logged, LoggedQuery, Syslog};
pub use notify::{EventKind, Notify, Webhook};
pub use proxy::{ProxyFrom, ProxyOthers, ProxyTo, ProxyVersion};
pub use tls::{
    CertificateFiles, CipherPolicy, ClientAuthorities, ClientCertificate, EndedTls, HandshakeThreads, PassThrough,
    Resumption, ServerTls, ServiceTls, TlsPool, TlsProvider, TlsRoute, TlsVersion, VerifyServer,
};

/// Ports that health checks speak from, first and last, at addresses that Towpath has on VLANs and bridges: nothing is leased there.
pub const PROBE_PORTS: (u16, u16) = (61_000, 65_535);

/// One configuration file, checked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Model {
    /// Workers and how they wait.
    pub runtime: Runtime,
    /// Upper bounds of everything that is allocated.
    pub limits: Limits,
    /// Where the daemon answers `towpath status`.
    pub control: Control,
    /// TLS of the whole process.
    pub tls: TlsPool,
    /// Lines about connections and requests.
    pub log: Log,
    /// Who is told when a state changes; `None` = nobody.
    pub notify: Option<Notify>,
    /// Static routes of the packet plane, beside the kernel's.
    pub routes: Vec<StaticRoute>,
    /// Whether packets that belong to no service are forwarded, and which.
    pub router: Router,
    /// What hosts inside open themselves and that leaves from an address of ours; the first that fits counts.
    pub outbound: Vec<OutboundNat>,
    /// Interfaces of the packet plane that the file names.
    pub interfaces: Vec<Interface>,
    /// Server groups; a service names one by its index. Servers written inside a service are an anonymous group.
    pub groups: Vec<ServerGroup>,
    /// Virtual services in the order of the file; none only with [`Router::enabled`] or bridges.
    pub services: Vec<VirtualService>,
    /// Pairs of links that frames pass between.
    pub bridges: Vec<Bridge>,
}

/// `[[bridge]]`: transparent mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bridge {
    /// Unique name, among interfaces and VLANs too.
    pub name: String,
    /// The links of its arms; no two bridges share one.
    pub arms: [String; 2],
    /// Own addresses, each with the prefix length of its network.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Whether frames of spanning tree pass.
    pub spanning_tree: bool,
}

/// `[runtime]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Runtime {
    /// Which CPUs carry a worker.
    pub workers: Workers,
    /// How a worker waits when it has nothing to do.
    pub poll: Poll,
    /// Whether the kernel carries open connections of the packet plane onwards.
    pub fast_path: FastPath,
}

/// `runtime.fast_path`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FastPath {
    /// Where the kernel lets us.
    Auto,
    /// Never.
    Off,
}

/// `runtime.workers`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workers {
    /// One worker per CPU that the process may use.
    Auto,
    /// One worker on each of these CPU ids; not empty, no id twice.
    Cpus(Vec<usize>),
}

/// `runtime.poll`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Poll {
    /// Spin a little, then sleep in the ring.
    Adaptive,
    /// Never sleep: lowest latency, one whole CPU per worker.
    Busy,
}

/// `[limits]`: what is allocated at start, for the whole process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// TCP connections relayed at the same time; `None` = as many as the descriptors allow.
    pub connections: Option<u32>,
    /// UDP sessions relayed at the same time; `None` = as many as the descriptors allow, and 65,536 at most.
    pub udp_sessions: Option<u32>,
    /// Persistence entries over all services.
    pub persistence_entries: u32,
    /// Receive buffers per worker, each `buffer_bytes` long; `None` = two for each connection, in at most an eighth of the memory.
    pub buffers: Option<u32>,
    /// Buffers of each kind per worker for connections whose TLS is ended; `None` = as a sixteenth of the memory allows.
    pub tls_buffers: Option<u32>,
    /// Bytes of one receive buffer.
    pub buffer_bytes: u32,
    /// Flows of the packet plane at the same time.
    pub flows: u32,
    /// Of these, flows that the kernel carries onwards; `None` = as many as `flows`, within bounds of the daemon's.
    pub fast_flows: Option<u32>,
    /// TLS handshakes waiting or under way, and connections whose first bytes are waited for.
    pub handshakes: u32,
    /// Streams of one client connection of HTTP/2 at the same time.
    pub http2_streams: u32,
    /// Bytes of a request body on one of them that may be here and not passed on.
    pub http2_window: u32,
}

/// `[[route]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StaticRoute {
    /// Destination network with its prefix length; 0 = everything of its family.
    pub to: (IpAddr, u8),
    /// Next hop, of the same family.
    pub via: IpAddr,
    /// Name of the interface that reaches it; `None` = the one whose network holds it.
    pub interface: Option<String>,
    /// Of several routes to one network the lowest wins.
    pub metric: u32,
}

/// `[router]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Router {
    /// Whether packets that belong to no service are forwarded.
    pub enabled: bool,
    /// Whether a packet must come in by an interface from which a route leads to its source.
    pub source_check: bool,
    /// What becomes of a packet that no rule names.
    pub policy: RuleAction,
    /// The first that fits decides.
    pub rules: Vec<RouterRule>,
}

/// `[[router.rule]]`: which packets, and what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouterRule {
    /// What becomes of them.
    pub action: RuleAction,
    /// Source networks, each with its prefix length; empty = any.
    pub from: Vec<(IpAddr, u8)>,
    /// Destination networks, likewise.
    pub to: Vec<(IpAddr, u8)>,
    /// Name of the interface that they come in by; `None` = any.
    pub from_interface: Option<String>,
    /// Name of the interface that they leave by; `None` = any.
    pub to_interface: Option<String>,
    /// Transport protocol.
    pub protocol: RuleProtocol,
    /// Ranges of destination ports, first and last; empty = any. Not empty only for protocols that have ports.
    pub ports: Vec<(u16, u16)>,
}

/// `action` of a rule, and the router's `policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleAction {
    /// Forward.
    Allow,
    /// Drop, and count it.
    Deny,
}

/// `protocol` of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleProtocol {
    /// Every protocol.
    Any,
    /// ICMP and ICMPv6.
    Icmp,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Default for Router {
    /// As without a `[router]`: nothing is forwarded.
    fn default() -> Router {
        Router { enabled: false, source_check: true, policy: RuleAction::Allow, rules: Vec::new() }
    }
}

/// `[[outbound_nat]]`: which flows that the router would forward leave from another address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OutboundNat {
    /// Unique name.
    pub name: String,
    /// Networks of who opens them, each with its prefix length; never empty, and no network of everything.
    pub from: Vec<(IpAddr, u8)>,
    /// Networks of who they are to, likewise; empty = any.
    pub to: Vec<(IpAddr, u8)>,
    /// Of these, networks that are reached without; may be empty.
    pub except: Vec<(IpAddr, u8)>,
    /// Name of the interface that they leave by; `None` = any.
    pub interface: Option<String>,
    /// Where their addresses and ports come from: a pool, or [`Source::Facing`] for the address of `interface`.
    pub source: Source,
}

/// `[[interface]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Name of the link.
    pub name: String,
    /// Addresses that the kernel should have there, each with its prefix length.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Tagged networks on the link; no number twice.
    pub vlans: Vec<Vlan>,
}

/// `[[interface.vlan]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vlan {
    /// The number in its tag, 1 to 4,094.
    pub id: u16,
    /// Unique among interfaces, VLANs and bridges.
    pub name: String,
    /// Our own addresses there, each with its prefix length; never empty.
    pub addresses: Vec<(IpAddr, u8)>,
}

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
    /// Of a service that judges the servers of a `[[group]]` in its own way: that group, as an index into [`Model::groups`].
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
    /// Whether services that end TLS go on with it towards this server; `None` = as they say, see [`EndedTls::re_encrypts`].
    pub re_encrypt: Option<bool>,
    /// See [`EndedTls::server_name`].
    pub server_name: Option<String>,
    /// What it is told of clients; `None` = as its group or the service says, see [`VirtualService::proxy_version`].
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
    /// Index into [`Model::groups`].
    pub group: usize,
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

/// `persistence`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Persistence {
    /// What makes a client: the first that it shows leads it back. Never empty.
    pub by: Vec<PersistBy>,
    /// Entry lifetime after the client's last new connection, in HTTP mode request.
    pub timeout_ms: u64,
    /// Prefix length that makes an IPv4 client (32 = each address its own).
    pub ipv4_prefix: u8,
    /// Prefix length that makes an IPv6 client.
    pub ipv6_prefix: u8,
    /// Whether a client with an entry may still enter a draining server (requirements.md trap 11).
    pub enter_draining: bool,
}

/// `persistence.by`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PersistBy {
    /// A cookie of this name that the server sets.
    FoundCookie(String),
    /// A request header of this name.
    Header(String),
    /// A cookie of ours.
    InsertedCookie(InsertedCookie),
    /// The `Call-ID` of SIP.
    SipCallId,
    /// The name that it asks for by TLS.
    Sni,
    /// The client's address.
    SourceIp,
    /// `User-Agent` and `Authorization`.
    SuperHttp,
    /// The same, with the client's address.
    SuperHttpAndSourceIp,
    /// The session that its server gave it, of TLS up to 1.2.
    TlsSessionId,
}

/// A cookie of ours: it says which server, unreadably, and ends with the browser's session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InsertedCookie {
    /// Its name.
    pub name: String,
    /// When it is set.
    pub set: CookieSet,
    /// Whether it is hidden from scripts.
    pub http_only: bool,
    /// Whether it comes back over TLS only.
    pub secure: bool,
}

/// `persistence.cookie_set`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CookieSet {
    /// With every response that sets none of that name.
    Always,
    /// When the request has none that names the server.
    Missing,
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

/// `health`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// What is done to judge a server.
    pub check: CheckKind,
    /// Ports checked, each must answer; empty = the server's own port, or the service's first port where the server keeps the service's.
    pub ports: Vec<u16>,
    /// Time between checks of one server.
    pub interval_ms: u64,
    /// The same while its verdict is changing.
    pub fast_interval_ms: u64,
    /// A check that takes longer has failed.
    pub timeout_ms: u64,
    /// Consecutive successes that make a server up.
    pub rise: u16,
    /// Consecutive failures that make a server down.
    pub fall: u16,
    /// What a failing check takes away.
    pub evict: Evict,
    /// When a server goes up and down too often.
    pub damping: Damping,
    /// What clients meet at a server; `None` = only checks judge.
    pub passive: Option<Passive>,
    /// Who says, beside the check, how the server wants to be treated.
    pub agent: Option<Agent>,
}

/// `health.passive`: what clients meet at a server takes it out, whatever its checks say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Passive {
    /// Share of connects that fail, in percent, from which on it is out; 0 = they do not matter.
    pub connect_failures: u8,
    /// Share of responses with a status of 500 or more, likewise.
    pub server_errors: u8,
    /// Fewer connects or responses within the window mean nothing.
    pub at_least: u32,
    /// How far back connects and responses are counted.
    pub window_ms: u64,
    /// How long it is out the first time.
    pub hold_ms: u64,
}

/// `health.evict`: what a failing check takes away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evict {
    /// The server, from every service of its group.
    Group,
    /// The port of the server; each port is judged by itself.
    Port,
    /// Every server with its address, from every service.
    Server,
    /// The server, from the services that use the check.
    #[default]
    Service,
}

/// `health.flaps`, `flap_window` and `flap_hold`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Damping {
    /// A server that went down so often within the window is held; 0 = never.
    pub flaps: u16,
    /// How long a time is remembered that it went down.
    pub window_ms: u64,
    /// How long it is held the first time.
    pub hold_ms: u64,
}

impl Damping {
    /// No server is held.
    pub const OFF: Damping = Damping { flaps: 0, window_ms: 0, hold_ms: 0 };
}

/// `health.agent_port`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Agent {
    /// Where it answers.
    pub port: u16,
    /// The line that it is sent first.
    pub send: Option<String>,
}

/// `health.check`, with what it asks and expects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckKind {
    /// A DNS query is answered as expected.
    Dns(DnsCheck),
    /// An agent says how its server wants to be treated. Never a check of its own: [`Health::agent`] stands beside one.
    Agent {
        /// `health.agent_send`
        send: Option<String>,
    },
    /// A command ends with status 0.
    External(CommandLine),
    /// An HTTP request is answered as expected.
    Http(HttpCheck),
    /// The same over TLS.
    Https(HttpCheck, TlsCheck),
    /// A SIP OPTIONS request is answered as expected.
    Sip(SipCheck),
    /// An LDAP bind succeeds, and the root DSE is found.
    Ldap(LdapCheck),
    /// An echo request is answered; it has no ports.
    Ping,
    /// A RADIUS server answers, and knows the secret.
    Radius(RadiusCheck),
    /// An SMTP server greets, with this text if there is one, and answers EHLO.
    Smtp {
        /// `health.expect`
        expect: Option<String>,
    },
    /// A STUN binding request is answered.
    Stun {
        /// UDP or TCP.
        transport: CheckTransport,
    },
    /// A TCP connection is accepted.
    Tcp,
    /// A TLS handshake completes.
    Tls(TlsCheck),
    /// A datagram is answered as expected.
    Udp(UdpCheck),
}

/// What carries a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// UDP.
    Datagram,
    /// ICMP echo.
    Echo,
    /// TCP, with or without TLS.
    Stream,
}

impl CheckKind {
    /// What carries it.
    pub fn carrier(&self) -> Carrier {
        match self {
            CheckKind::Ping => Carrier::Echo,
            CheckKind::Radius(_) | CheckKind::Udp(_) => Carrier::Datagram,
            CheckKind::Dns(DnsCheck { transport, .. }) | CheckKind::Stun { transport } => match transport {
                CheckTransport::Udp => Carrier::Datagram,
                CheckTransport::Tcp | CheckTransport::Tls => Carrier::Stream,
            },
            CheckKind::Sip(sip) if sip.transport == CheckTransport::Udp => Carrier::Datagram,
            CheckKind::Agent { .. }
            | CheckKind::External(_)
            | CheckKind::Http(_)
            | CheckKind::Https(..)
            | CheckKind::Ldap(_)
            | CheckKind::Sip(_)
            | CheckKind::Smtp { .. }
            | CheckKind::Tcp
            | CheckKind::Tls(_) => Carrier::Stream,
        }
    }

    /// The handshake before anything else, if there is one.
    pub fn tls(&self) -> Option<&TlsCheck> {
        match self {
            CheckKind::Https(_, tls) | CheckKind::Tls(tls) => Some(tls),
            CheckKind::Ldap(ldap) => ldap.tls.as_ref(),
            CheckKind::Sip(sip) => sip.tls.as_ref(),
            _ => None,
        }
    }
}

/// `health.transport`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckTransport {
    /// TCP.
    Tcp,
    /// TLS over TCP.
    Tls,
    /// UDP.
    Udp,
}

/// The query of a check, and which answer passes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct DnsCheck {
    /// UDP or TCP.
    pub transport: CheckTransport,
    /// `health.query`
    pub query: String,
    /// `health.query_type`
    pub record: DnsType,
    /// Codes that pass, never empty; see [`RCODES`].
    pub rcodes: Vec<u8>,
    /// The data of one record of the answer.
    pub expect: Option<String>,
}

/// `health.query_type`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum DnsType {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// The canonical name.
    Cname,
    /// Mail exchangers.
    Mx,
    /// Name servers.
    Ns,
    /// The name of an address.
    Ptr,
    /// The start of authority.
    Soa,
    /// Services.
    Srv,
    /// Texts.
    Txt,
}

/// Response codes of DNS by name (RFC 1035 section 4.1.1).
pub const RCODES: [(&str, u8); 6] =
    [("noerror", 0), ("formerr", 1), ("servfail", 2), ("nxdomain", 3), ("notimp", 4), ("refused", 5)];

/// The bind and the search of a check.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct LdapCheck {
    /// Who binds; `None` = anonymous.
    pub bind: Option<LdapBind>,
    /// What a line `attribute: value` of the root DSE must contain.
    pub expect: Option<String>,
    /// The handshake before; `None` = no TLS.
    pub tls: Option<TlsCheck>,
}

/// A simple bind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct LdapBind {
    /// `health.user`
    pub user: String,
    /// File with the password.
    pub secret_file: PathBuf,
}

/// The request of a check, and which answer passes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RadiusCheck {
    /// File with the secret that the server has for us.
    pub secret_file: PathBuf,
    /// Who asks for access; `None` = the status is asked for.
    pub user: Option<String>,
    /// File with the user's password; one exactly with a user.
    pub password_file: Option<PathBuf>,
    /// Which answer to the user passes.
    pub expect: RadiusAnswer,
}

/// Answers to an Access-Request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RadiusAnswer {
    /// Access-Accept.
    Accept,
    /// One of them, or a challenge.
    Any,
    /// Access-Reject: of a user that nobody knows.
    Reject,
}

/// The datagram of a check, and which answer passes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct UdpCheck {
    /// What is sent; may be empty.
    pub send: Vec<u8>,
    /// What the answer must contain.
    pub expect: Option<Vec<u8>>,
    /// Whether no answer passes as long as nobody refuses.
    pub silence_passes: bool,
}

/// A program and its arguments; no shell comes near them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct CommandLine {
    /// Its whole path.
    pub program: PathBuf,
    /// What it is told.
    pub arguments: Vec<String>,
}

/// The OPTIONS request of a check, and which response passes it (RFC 3261 §11).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct SipCheck {
    /// What it is spoken over.
    pub transport: CheckTransport,
    /// The handshake, where that is TLS.
    pub tls: Option<TlsCheck>,
    /// `health.host`, the domain that is asked; `None` = the server's address and port.
    pub host: Option<String>,
    /// Status codes that pass, as ranges: ascending, apart, never empty.
    pub statuses: Vec<(u16, u16)>,
    /// What the response must contain.
    pub expect: Option<String>,
}

/// The request of a check, and which response passes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct HttpCheck {
    /// Whether the body is asked for: GET, else HEAD.
    pub get: bool,
    /// `health.path`
    pub path: String,
    /// `health.host`; `None` = the server's address and port.
    pub host: Option<String>,
    /// Status codes that pass, as ranges: ascending, apart, never empty.
    pub statuses: Vec<(u16, u16)>,
    /// What the body must contain.
    pub expect: Option<String>,
}

/// The handshake of a check.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct TlsCheck {
    /// The name for SNI and the certificate; `None` = the server's address, and no SNI.
    pub name: Option<String>,
    /// File (PEM) of the authorities that the server's certificate must come from; `None` = any certificate passes.
    pub authorities: Option<PathBuf>,
    /// The certificate must be valid for so many more days; 0 = not asked.
    pub days_left: u16,
}

impl Model {
    /// Every group of servers that a service has: its own first, then those behind its routes.
    pub fn groups_of(&self, service: &VirtualService) -> impl Iterator<Item = &ServerGroup> {
        self.group_indices_of(service).map(|index| &self.groups[index])
    }

    /// The same as indices into [`Model::groups`].
    pub fn group_indices_of(&self, service: &VirtualService) -> impl Iterator<Item = usize> {
        let by_name = service.routes().iter().map(|route| route.group);
        let behind: Vec<usize> = by_name.chain(service.http_groups().map(|(_, group)| group.group)).collect();
        std::iter::once(service.group).chain(behind)
    }

    /// Every VLAN, with the link that it is on.
    pub fn vlans(&self) -> impl Iterator<Item = (&Interface, &Vlan)> {
        self.interfaces.iter().flat_map(|interface| interface.vlans.iter().map(move |vlan| (interface, vlan)))
    }
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
