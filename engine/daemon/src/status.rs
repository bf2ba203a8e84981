//! What `towpath status` shows: one value, read by people, programs and tests alike.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

pub use towpath_core::histogram::{BOUNDS_US, Histogram, RANGES};
use towpath_core::snapshot::ServerHealth;

use crate::admin::{AdminSaid, WeightSaid};
use crate::events::Event;
pub use crate::upgrade::TakenOverStatus;

/// The state of a running process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// `running`, `draining` or `ending`.
    pub phase: String,
    /// From whom this process has taken over; `None` = it was started anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_over: Option<TakenOverStatus>,
    /// `active`, or `standby` for another machine.
    #[serde(default)]
    pub role: String,
    /// When this was told, in milliseconds since 1970: who looks at it later, or by another clock, counts from here.
    #[serde(default)]
    pub unix_ms: u64,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// When it was started, in milliseconds since 1970.
    #[serde(default)]
    pub started_unix_ms: u64,
    /// Number of the configuration and health in force.
    pub generation: u64,
    /// Virtual services in the order of the file.
    pub services: Vec<ServiceStatus>,
    /// What hosts inside open themselves, by `[[outbound_nat]]` in the order of the file and protocol.
    #[serde(default)]
    pub outbound: Vec<OutboundStatus>,
    /// Servers that no service names any more but that still hold connections.
    pub leaving: Vec<LeavingServer>,
    /// How full each source address is towards each server.
    pub source_ports: Vec<SourcePortsStatus>,
    /// Workers in their order.
    pub workers: Vec<WorkerStatus>,
    /// Neighbours on VLANs and bridges: how many are known, and every counter by label; empty where there are no such networks.
    #[serde(default)]
    pub neighbours: BTreeMap<String, u64>,
    /// The threads that sign handshakes; `None` = the workers do, or no service ends TLS.
    #[serde(default)]
    pub handshake_pool: Option<HandshakePoolStatus>,
    /// The access log; `None` = nothing is logged, nor was since the start.
    #[serde(default)]
    pub access_log: Option<AccessLogStatus>,
    /// Who is told of events; empty where nobody is.
    #[serde(default)]
    pub notify: Vec<NotifyStatus>,
    /// What is limited, and how near the limit is.
    pub limits: LimitsStatus,
    /// The latest changes of state, oldest first.
    pub events: Vec<Event>,
    /// How many there were since the start, by kind.
    #[serde(default)]
    pub events_total: BTreeMap<String, u64>,
    /// Upper ends of the ranges of [`LatencyStatus::buckets`], in microseconds.
    #[serde(default)]
    pub latency_bounds_us: Vec<u64>,
}

/// Whether a service can serve new clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// No server takes new clients.
    Down,
    /// Some servers that should take new clients do not.
    Degraded,
    /// Every server that the operator wants in does.
    Up,
}

/// One virtual service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Whether it can serve new clients.
    pub state: ServiceState,
    /// The address that clients use.
    pub vip: IpAddr,
    /// The ports that clients use.
    pub ports: Vec<u16>,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// `stream` or `packet`.
    pub plane: String,
    /// The plane and what is done there: `packet, half-nat`, `stream`, `stream, tls, http`.
    #[serde(default)]
    pub mode: String,
    /// How a server is chosen, as in the configuration.
    pub balance: String,
    /// How long a client comes back to its server, in milliseconds; `None` = not at all.
    pub persistence_ms: Option<u64>,
    /// Connections or sessions that hold a server now.
    pub connections: u32,
    /// Never more than so many; 0 = no limit.
    pub connections_max: u32,
    /// Who waits for a place; `None` where nobody may.
    #[serde(default)]
    pub queue: Option<QueueStatus>,
    /// Connections or sessions that clients opened.
    pub accepted: u64,
    /// Those that reached a server.
    pub opened: u64,
    /// Payload bytes from clients to servers.
    pub bytes_from_client: u64,
    /// Payload bytes from servers to clients.
    pub bytes_to_client: u64,
    /// Every counter of the service, by label.
    pub counters: BTreeMap<String, u64>,
    /// How connections and sessions ended, by label.
    pub terminations: BTreeMap<String, u64>,
    /// How long things took, by what was measured (`connect`, `first_byte`, `handshake`, `queue`); empty where nothing is.
    #[serde(default)]
    pub latencies: BTreeMap<String, LatencyStatus>,
    /// HTTP: requests that were refused, by reason; reasons that never were are left out.
    #[serde(default)]
    pub refused_requests: BTreeMap<String, u64>,
    /// HTTP: the same of responses.
    #[serde(default)]
    pub refused_responses: BTreeMap<String, u64>,
    /// HTTP/2: the same of streams, and of whole connections.
    #[serde(default)]
    pub refused_streams: BTreeMap<String, u64>,
    /// Its certificates in the order of the file; empty where TLS is not ended here.
    #[serde(default)]
    pub certificates: Vec<CertificateStatus>,
    /// Its servers in the order of the file.
    pub servers: Vec<ServerStatus>,
}

/// How long something took, since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyStatus {
    /// How often it was measured.
    pub count: u64,
    /// All of it together, in microseconds.
    pub sum_us: u64,
    /// Half of them took no longer, in microseconds; `None` where nothing was measured.
    pub p50_us: Option<u64>,
    /// The same of nine tenths.
    pub p90_us: Option<u64>,
    /// The same of 99 of a hundred.
    pub p99_us: Option<u64>,
    /// How many by range, each for itself, the last for what took longer than every bound ([`Status::latency_bounds_us`]).
    pub buckets: Vec<u64>,
}

impl From<Histogram> for LatencyStatus {
    fn from(histogram: Histogram) -> LatencyStatus {
        LatencyStatus {
            count: histogram.count(),
            sum_us: histogram.sum_us,
            p50_us: histogram.percentile_us(50),
            p90_us: histogram.percentile_us(90),
            p99_us: histogram.percentile_us(99),
            buckets: histogram.counts.to_vec(),
        }
    }
}

impl LatencyStatus {
    /// What has come since `earlier` was told; all of it, if that is of another process or of other ranges.
    #[must_use]
    pub fn since(&self, earlier: &LatencyStatus) -> LatencyStatus {
        let counts = |of: &LatencyStatus| <[u64; RANGES]>::try_from(of.buckets.as_slice()).ok();
        let (Some(mut now), Some(before)) = (counts(self), counts(earlier)) else { return self.clone() };
        if now.iter().zip(&before).any(|(now, before)| now < before) {
            return self.clone();
        }
        now.iter_mut().zip(before).for_each(|(now, before)| *now -= before);
        Histogram { counts: now, sum_us: self.sum_us.saturating_sub(earlier.sum_us) }.into()
    }
}

/// Clients of one service that wait for a place on a server, over its own servers and those behind its routes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Those that wait now.
    pub waiting: usize,
    /// So many may, of each queue.
    pub max: u32,
    /// For how long the one has that waits longest, in milliseconds.
    pub longest_ms: u64,
    /// And how long each may.
    pub timeout_ms: u64,
}

/// One certificate of one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// Names and addresses that it is for.
    pub names: Vec<String>,
    /// When it begins, in seconds since 1970.
    pub not_before_unix_seconds: i64,
    /// When it ends, in seconds since 1970.
    pub not_after_unix_seconds: i64,
    /// Seconds until it ends; negative once it has.
    pub seconds_left: i64,
}

/// The threads that sign handshakes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandshakePoolStatus {
    /// The CPU of each.
    pub cpus: Vec<usize>,
    /// Those that sign just now.
    pub running: usize,
    /// Handshakes that wait.
    pub queued: usize,
    /// Since the start: handshakes done, late, abandoned and refused because the queue was full; nanoseconds at work and of waiting.
    pub counters: BTreeMap<String, u64>,
}

/// What became of lines on connections and requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessLogStatus {
    /// Lines that are written.
    pub written: u64,
    /// Lines that were dropped because the log had fallen behind; the workers count them, too.
    pub dropped: u64,
    /// Lines that the destination has refused.
    pub failed: u64,
    /// Why it takes none just now; `None` = it does.
    pub trouble: Option<String>,
}

/// What became of messages on events to one receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotifyStatus {
    /// `command` or `webhook`.
    pub receiver: String,
    /// Events that were told.
    pub delivered: u64,
    /// Messages that were not taken; each try counts.
    pub failed: u64,
    /// Events that will never be told: too many waited, or the end had come.
    pub dropped: u64,
    /// Events that wait, without those that are just being told.
    pub waiting: u64,
    /// Why it takes none just now; `None` = it does.
    pub trouble: Option<String>,
}

/// What health checks say about a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HealthStatus {
    /// It takes no new clients: its check failed.
    Down,
    /// Its check passes, but it went up and down too often: it takes clients only if nobody else can.
    Held,
    /// No verdict yet: it takes no new clients.
    Unknown,
    /// Its check passed, or none is configured.
    Up,
}

impl From<ServerHealth> for HealthStatus {
    fn from(health: ServerHealth) -> HealthStatus {
        match health {
            ServerHealth::Down => HealthStatus::Down,
            ServerHealth::Held => HealthStatus::Held,
            ServerHealth::Unknown => HealthStatus::Unknown,
            ServerHealth::Up => HealthStatus::Up,
        }
    }
}

/// One server of one service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its name in this service.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its port; `None` = it keeps the port that the client addressed.
    pub port: Option<u16>,
    /// Share of new connections relative to the others.
    pub weight: u16,
    /// `ready`, `drain` or `halt`.
    pub admin: String,
    /// What was said at run time about its taking connections; `None` = the configuration's word holds.
    #[serde(default)]
    pub admin_said: Option<AdminSaid>,
    /// The same about its weight.
    #[serde(default)]
    pub weight_said: Option<WeightSaid>,
    /// What its health check says.
    pub health: HealthStatus,
    /// Why.
    pub reason: String,
    /// `primary`, `backup` (one that serves because too few others can), `standby` (one that waits), or `fail-open` (used although it is not up,
    /// because too few are).
    #[serde(default)]
    pub duty: String,
    /// Whether it only says that nobody can serve, whatever its name: it is no server that the service has.
    #[serde(default)]
    pub sorry: bool,
    /// Ports of the service that are not up there, while others are.
    #[serde(default)]
    pub closed_ports: Vec<u16>,
    /// What its agent says, in one line, and why it says nothing now; `None` = it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// For how long, in seconds.
    pub health_seconds: u64,
    /// Connections or sessions that the server holds now, over all services; without those that wait.
    pub connections: u32,
    /// Of these, those of this service: what its drain waits for.
    #[serde(default)]
    pub service_connections: u32,
    /// Shared connections to it that wait for the next client.
    #[serde(default)]
    pub waiting: u32,
    /// While it has fewer it gets the next one; 0 = off.
    #[serde(default)]
    pub connections_min: u32,
    /// Never more than so many; 0 = no limit.
    pub connections_max: u32,
    /// Connections or sessions opened on the server, over all services.
    pub opened: u64,
    /// Connects that it refused or did not answer, or whose TLS it failed, over all services.
    #[serde(default)]
    pub connects_failed: u64,
    /// Its responses in HTTP mode, and those that did not come in time, over all services.
    #[serde(default)]
    pub responses: u64,
    /// Of these, those with a status of 500 or more, and those that did not come.
    #[serde(default)]
    pub errors: u64,
}

/// A server that was removed and still holds connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeavingServer {
    /// The name that it had.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its port; `None` = that of the client.
    pub port: Option<u16>,
    /// Connections or sessions that it holds.
    pub connections: u32,
}

/// What hosts inside have opened themselves by one `[[outbound_nat]]` and protocol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutboundStatus {
    /// Its name.
    pub name: String,
    /// `tcp`, `udp` or `echo`.
    pub protocol: String,
    /// Flows that were answered and have not ended.
    pub flows: u64,
    /// Flows that hosts inside began.
    pub accepted: u64,
    /// Of these, flows that were answered.
    pub opened: u64,
    /// Payload bytes to the outside.
    pub bytes_out: u64,
    /// Payload bytes from there.
    pub bytes_in: u64,
    /// How flows ended, by label; ends that never were are left out. The client is who opened the flow.
    pub terminations: BTreeMap<String, u64>,
}

/// How full one source address is towards one server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourcePortsStatus {
    /// The services that lease from it, and the `[[outbound_nat]]`.
    pub services: Vec<String>,
    /// `tcp`, `udp`, or `echo` for the identifiers of pings.
    pub protocol: String,
    /// The source address.
    pub address: IpAddr,
    /// The server; the unspecified address is everyone outside.
    pub destination: SocketAddr,
    /// Ports leased, those at rest included.
    pub leased: u32,
    /// Ports that can be leased.
    pub capacity: u32,
    /// Leased of capacity.
    pub percent: f64,
    /// Whether 80 % is reached.
    pub nearly_exhausted: bool,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its number.
    pub id: u8,
    /// The CPU that it is pinned to.
    pub cpu: usize,
    /// `serving` or `ended`.
    pub state: String,
    /// The generation that it serves.
    pub generation: u64,
    /// Its share of new clients, in 256ths.
    pub vshards: usize,
    /// Connections and sessions that it holds.
    pub sessions: u32,
    /// Time that its thread has had its CPU, in microseconds; also while it looks for work in vain. 0 where the kernel does not say.
    #[serde(default)]
    pub cpu_us: u64,
    /// Every counter of the worker, by label.
    pub counters: BTreeMap<String, u64>,
    /// Flows of its packet plane.
    pub flows: u32,
    /// Every counter of its packet plane and rings, by label; empty where no service is on the packet plane.
    pub packets: BTreeMap<String, u64>,
    /// Frames that its packet plane has dropped, by reason; reasons that never were are left out.
    pub drops: BTreeMap<String, u64>,
}

/// What is limited.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LimitsStatus {
    /// TCP connections.
    pub connections: Usage,
    /// UDP sessions.
    pub udp_sessions: Usage,
    /// Flows of the packet plane; those refused are frames, among the drops of the workers too.
    pub flows: Usage,
    /// Of these, flows that the kernel carries onwards; those refused go through the workers.
    pub fast_flows: Usage,
    /// Persistence entries; those refused are those that had to make room.
    pub persistence_entries: Usage,
    /// File descriptors; refusals are counted per service as `out_of_descriptors`.
    pub descriptors: Usage,
}

/// How near a limit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// In use now.
    pub used: u64,
    /// The limit.
    pub max: u64,
    /// How often it was met.
    pub refused: u64,
}

/// The word that the configuration has for a value of a closed set.
pub(crate) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}
