//! What will be allocated: shown at start, and refused when it cannot fit (facts.md, "fd limit").

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use serde::Serialize;
use thiserror::Error;
use towpath_config::model::{
    CheckKind, Model, Plane as PlaneWord, Poll, Ports, Protocol, Reuse, ServerGroup, VirtualService, Workers,
};
use towpath_core::WorkerId;
use towpath_core::fast_path::FastShape;
use towpath_core::plane::{HELD_BYTES_MAX, Plane as DataPlane, PlaneSettings, Strays};
use towpath_core::snat::Leased;
use towpath_sys::packet::RingSettings;

use crate::packets::arms::Arm;
use crate::packets::claims;
use crate::packets::fast::Readiness;
use crate::preflight::HostFacts;
use crate::shared::Inbox;
use crate::worker::{OUTGOING_BUFFERS_MAX, OUTGOING_BYTES, RECORD_BUFFER_BYTES, kept_bytes_max};

/// Most workers of a process: a worker id is one byte.
pub const WORKERS_MAX: usize = 256;
/// Pipes that each worker may lend to bulk connections (design.md 10.10 has 32; why more and smaller: ARCHITECTURE.md).
pub const PIPES_PER_WORKER: u32 = 104;
/// Those of them that are large: they are lent first.
pub const LARGE_PIPES_PER_WORKER: u32 = 8;
/// Ports that health checks connect to at the same time.
pub const PROBES_MAX: usize = 256;
/// Programs of health checks that run at the same time; others wait, and their time has not begun. Each may be an interpreter of tens of MiB.
pub const COMMANDS_MAX: usize = 32;
/// Both ends of its output, one of them twice while it starts, and who tells its end.
const DESCRIPTORS_PER_COMMAND: u64 = 4;
/// Ports that checks by order connect to at the same time, beside those.
pub const ORDERED_PROBES_MAX: usize = 32;
/// Clients that the control socket serves at the same time.
pub const CONTROL_CLIENTS_MAX: usize = 16;
/// Those that collect metrics.
pub const METRICS_CLIENTS_MAX: usize = 8;

/// Clients that `control.listen` serves at the same time.
pub const CONTROL_VISITORS_MAX: usize = 64;

/// Descriptors of the process itself: standard streams, the event loops of the controller and of those who answer questions, whatever was inherited.
const PROCESS_DESCRIPTORS: u64 = 32;
/// Per worker: its ring, its eventfd, and one to give up when descriptors run out.
const WORKER_DESCRIPTORS: u64 = 3;
/// Kept free, so that a full process can still open a file or be looked at.
const RESERVED_DESCRIPTORS: u64 = 64;
/// A relayed connection has a client socket and a server socket.
const DESCRIPTORS_PER_CONNECTION: u64 = 2;
/// A UDP session has a socket towards its server; clients come in through the listener.
const DESCRIPTORS_PER_UDP_SESSION: u64 = 1;
/// A pipe has two ends.
const DESCRIPTORS_PER_PIPE: u64 = 2;
/// Below this many connections a relay is of no use, so deriving fewer is refused.
const DERIVED_CONNECTIONS_MIN: u64 = 16;
/// UDP sessions that nobody has counted: at most, and at least.
const UDP_SESSIONS_AUTO_MAX: u32 = 65_536;
const UDP_SESSIONS_AUTO_MIN: u32 = 16;

/// State of one relayed connection, its place in tables and timers included.
const CONNECTION_BYTES: u64 = 1024;
/// What the kernel holds for the two sockets of an idle connection (facts.md 1a: 17-19 KB for the four of both ends).
const KERNEL_CONNECTION_BYTES: u64 = 9 * 1024;
/// State of a client's connection of HTTP/2 beside that: the table of fields (4 KiB as RFC 7541 counts it, and what its entries cost) and the streams. What
/// it keeps of frames and bodies counts with parts of TLS records.
const HTTP2_BYTES: u64 = 10 * 1024;
/// State of one connection to a real server that waits for the next client, its place in tables included; and what the kernel holds for it.
const IDLE_CONNECTION_BYTES: u64 = 512 + KERNEL_CONNECTION_BYTES / 2;
/// State of one UDP session, its place in tables and timers included.
const UDP_SESSION_BYTES: u64 = 512;
/// What the kernel holds for the one socket of an idle session.
const KERNEL_UDP_SESSION_BYTES: u64 = 2 * 1024;
/// One entry of the persistence table with its bucket.
const PERSISTENCE_ENTRY_BYTES: u64 = 56;
/// Bytes asked of the kernel per pipe. A process without CAP_SYS_RESOURCE gets this for its first pipes only
/// (fs.pipe-user-pages-soft), smaller ones later.
pub const PIPE_BYTES: u64 = 256 * 1024;

/// The same for a large one. With 4 KiB pages, those of two workers are just what a user gets.
pub const LARGE_PIPE_BYTES: u64 = 1024 * 1024;
/// One port map: (SNAT address, server, protocol). On the packet plane it says for each port where its flow lives, too.
const SNAT_MAP_BYTES: u64 = 16 * 1024;
const PORT_HOMES_BYTES: u64 = 64 * 1024;
/// Rings, buffers for datagrams, counters and stack of one worker.
const WORKER_BYTES: u64 = 12 * 1024 * 1024;
/// A timer; every worker has one for each connection and session of the process, because one worker may hold them all.
const TIMER_BYTES: u64 = 24;
/// Derived receive buffers take at most this share of the memory, over all workers.
const DERIVED_BUFFERS_SHARE: u64 = 8;
/// So that each path of each connection can hold one while its peer stalls, …
const BUFFERS_PER_CONNECTION: u64 = 2;
/// … and some are always on loan to the kernel.
const BUFFERS_LENT: u64 = 512;
/// Where nothing is relayed over TCP, a ring has as few as it can.
const BUFFERS_MIN: u32 = 16;
/// The kernel numbers a worker's buffers with 16 bits.
const BUFFERS_MAX: u64 = u16::MAX as u64;
/// Of the flows of a worker, so many more may be half open, beside the others: a flood of handshakes has no more room.
const HALF_OPEN_SHARE: u32 = 8;
/// Half-open flows of one worker, at least and at most.
const HALF_OPEN_FLOWS: std::ops::RangeInclusive<u32> = 1024..=65_536;
/// Of these, those of one source: one host cannot take the room of all others.
const HALF_OPEN_SOURCE_SHARE: u32 = 4;
/// Frames of one worker that wait for a next hop.
const PENDING_FRAMES: usize = 1024;
/// Resets and ICMP errors that one worker makes in a second.
const REPLIES_PER_SECOND: u32 = 1000;
/// What frames of one worker and interface wait in: at most this much, …
const RING_BYTES_MAX: u64 = 32 << 20;
/// … and all of them together at most this share of the memory.
const RINGS_SHARE: u64 = 16;
/// Sockets that watch and silence the kernel for the packet plane.
const PACKET_DESCRIPTORS: u64 = 6;
/// Maps and programs of the fast path; each interface takes one more.
const FAST_PATH_DESCRIPTORS: u64 = 5;
/// Flows that the kernel carries where the file does not say: at most so many, …
const FAST_FLOWS_DERIVED: u32 = 262_144;
/// … in at most this share of the memory, …
const FAST_FLOWS_SHARE: u64 = 16;
/// … of which each takes so much.
const FAST_FLOW_BYTES: u64 = 512;
/// Buffers of one worker for connections with TLS: at least, and at most; …
const RECORD_BUFFERS: std::ops::RangeInclusive<u64> = 64..=8_192;
/// … they take at most this share of the memory, over all workers.
const RECORDS_SHARE: u64 = 16;
/// State of one leg with TLS, idle.
const TLS_LEG_BYTES: u64 = 5 * 1024;
/// State of one handshake under way; what has been received of it is counted with the parts of records.
const HANDSHAKE_BYTES: u64 = 16 * 1024;
/// A flow in the large table, or in that of half-open ones, with its places in index and timers.
const FLOW_BYTES: u64 = 128;
/// Derived limits leave this share of the memory to others.
const DERIVED_MEMORY_SHARE: u64 = 2;

/// What a plan is made from, beside the model.
#[derive(Clone, Debug)]
pub struct PlanInput {
    /// CPUs that the process may use, ascending.
    pub cpus: Vec<usize>,
    /// Descriptors that the process may hold.
    pub nofile: u64,
    /// Memory that the process may take.
    pub memory_bytes: u64,
    /// Interfaces of the packet plane; empty where no service is on it.
    pub arms: Vec<Arm>,
    /// Whether the kernel can carry its flows onwards.
    pub fast_path: Readiness,
}

impl PlanInput {
    /// The machine's facts as they are.
    pub fn of(facts: &HostFacts) -> PlanInput {
        PlanInput {
            cpus: facts.cpus.clone(),
            nofile: facts.nofile,
            memory_bytes: facts.memory_bytes,
            arms: facts.packets.as_ref().map_or_else(Vec::new, |packets| packets.arms.clone()),
            fast_path: facts.packets.as_ref().map_or(Readiness::Unneeded, |packets| packets.fast_path.clone()),
        }
    }
}

/// What will be allocated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// One worker per line, in worker order.
    pub workers: Vec<WorkerPlan>,
    /// How workers wait.
    pub poll: Poll,
    /// Each is opened once per worker.
    pub listeners: Vec<ListenerPlan>,
    /// TCP connections at the same time.
    pub connections: Bound,
    /// UDP sessions at the same time.
    pub udp_sessions: Bound,
    /// Persistence entries at the same time.
    pub persistence_entries: u32,
    /// Receive buffers of one worker.
    pub buffers: u32,
    /// Whether their number is the operator's.
    pub buffers_configured: bool,
    /// Bytes of one receive buffer.
    pub buffer_bytes: u32,
    /// Buffers of one worker for connections with TLS; 0 where no service ends TLS.
    pub record_buffers: u16,
    /// Buffers of one worker for what HTTP mode makes; 0 where no service is in HTTP mode, or those for TLS serve for it.
    pub http_buffers: u16,
    /// Streams of one client connection of HTTP/2.
    #[serde(skip)]
    pub http2_streams: u32,
    /// Bytes of a request body on one of them that may be here and not passed on.
    #[serde(skip)]
    pub http2_window: u32,
    /// TLS handshakes, and clients whose first bytes are waited for, at the same time.
    pub handshakes_max: u32,
    /// How long a handshake may wait for its turn, in milliseconds.
    #[serde(skip)]
    pub queue_deadline_ms: u64,
    /// Pipes of one worker for bulk connections.
    pub pipes_per_worker: u32,
    /// The packet plane; `None` where no service is on it.
    pub packets: Option<PacketsPlan>,
    /// Who signs handshakes.
    pub handshake_threads: HandshakesPlan,
    /// Bytes, by use.
    pub memory: Vec<Share>,
    /// Bytes that the process may take.
    pub memory_available: u64,
    /// Descriptors, by use.
    pub descriptors: Vec<Share>,
    /// Descriptors that the process may hold.
    pub nofile: u64,
}

/// One worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WorkerPlan {
    /// Its number.
    pub id: u8,
    /// The CPU that it is pinned to.
    pub cpu: usize,
}

/// The packet plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PacketsPlan {
    /// Its interfaces, in the order of its ports.
    pub arms: Vec<Arm>,
    /// Workers that carry it.
    pub workers: usize,
    /// The receive ring of one worker at one interface.
    #[serde(skip)]
    pub ring: RingSettings,
    /// The tables of one worker; worker and seeds are each worker's own.
    #[serde(skip)]
    pub plane: PlaneSettings,
    /// Who carries established flows onwards.
    pub fast: FastPlan,
}

/// The fast path of the packet plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FastPlan {
    /// The kernel carries established flows, and what is routed.
    InKernel {
        /// So many at the same time, over all workers.
        flows: u32,
    },
    /// The operator does not want it.
    Off,
    /// The kernel does not let us; why.
    Unavailable(String),
    /// Nothing is routed, and no service has flows that it could carry.
    Unneeded,
}

impl FastPlan {
    fn new(model: &Model, input: &PlanInput, workers: usize) -> FastPlan {
        match &input.fast_path {
            Readiness::Off => FastPlan::Off,
            Readiness::Unavailable(why) => FastPlan::Unavailable(why.clone()),
            Readiness::Unneeded => FastPlan::Unneeded,
            Readiness::Ready => {
                let derived = whole(input.memory_bytes / FAST_FLOWS_SHARE / FAST_FLOW_BYTES).min(FAST_FLOWS_DERIVED);
                let wanted = model.limits.fast_flows.unwrap_or(derived).min(model.limits.flows);
                let share = wanted.clamp(1, FastShape::FLOWS_MAX) / whole(workers as u64).max(1);
                FastPlan::InKernel { flows: share.max(1) * whole(workers as u64) }
            }
        }
    }

    /// Flows that the kernel carries at the same time, over all workers; of these, transits may be half.
    pub fn flows(&self) -> u32 {
        match *self {
            FastPlan::InKernel { flows } => flows,
            FastPlan::Off | FastPlan::Unavailable(_) | FastPlan::Unneeded => 0,
        }
    }

    fn memory_bytes(&self) -> u64 {
        match *self {
            FastPlan::InKernel { flows } => {
                FastShape::new(flows).bytes() + u64::from(flows) * DataPlane::BYTES_PER_FAST_FLOW as u64
            }
            FastPlan::Off | FastPlan::Unavailable(_) | FastPlan::Unneeded => 0,
        }
    }
}

impl PacketsPlan {
    fn new(model: &Model, workers: usize, input: &PlanInput) -> Option<PacketsPlan> {
        if !claims::carries_packets(model) {
            return None;
        }
        let flows_max = model.limits.flows.div_ceil(whole(workers as u64));
        let half_open_max = (flows_max / HALF_OPEN_SHARE).clamp(*HALF_OPEN_FLOWS.start(), *HALF_OPEN_FLOWS.end());
        let plane = PlaneSettings {
            flows_max: flows_max as usize,
            half_open_max: half_open_max as usize,
            half_open_per_source_max: half_open_max / HALF_OPEN_SOURCE_SHARE,
            pending_frames_max: PENDING_FRAMES,
            replies_per_second: REPLIES_PER_SECOND,
            worker: WorkerId(0),
            seed: [0; 2],
            steering_seed: 0,
            strays: Strays::Reset,
        };
        let rings = (workers * input.arms.len()).max(1) as u64;
        let mtu_bytes = input.arms.iter().map(|arm| arm.mtu_bytes).max().unwrap_or(0);
        let ring = RingSettings::within((input.memory_bytes / RINGS_SHARE / rings).min(RING_BYTES_MAX), mtu_bytes);
        let fast = FastPlan::new(model, input, workers);
        Some(PacketsPlan { arms: input.arms.clone(), workers, ring, plane, fast })
    }

    /// Flows of the process at the same time.
    pub fn flows_max(&self) -> u64 {
        self.flows_max_of(self.workers)
    }

    /// The same while only so many workers take part.
    pub fn flows_max_of(&self, workers: usize) -> u64 {
        (self.plane.flows_max * workers) as u64
    }

    /// Of the flows that the kernel carries, those of one worker.
    pub fn fast_flows_of(&self, worker: u16) -> Range<u32> {
        let share = self.fast.flows() / whole(self.workers as u64).max(1);
        let first = u32::from(worker) * share;
        first..first + share
    }

    /// Half-open flows of the process, beside the others.
    pub fn half_open_max(&self) -> u64 {
        (self.plane.half_open_max * self.workers) as u64
    }

    fn memory(&self) -> Vec<Share> {
        let workers = self.workers as u64;
        let half_open = self.plane.half_open_max as u64 * FLOW_BYTES;
        // Twice: what has waited is copied once more when it leaves.
        let waiting = 2 * (self.plane.pending_frames_max * HELD_BYTES_MAX) as u64;
        let flows = self.plane.flows_max as u64 * FLOW_BYTES;
        let inboxes = if workers > 1 { workers * Inbox::BYTES } else { 0 };
        vec![
            share("packets handed off", inboxes),
            share("packet rings", workers * self.arms.len() as u64 * self.ring.bytes()),
            share("flows", workers * flows),
            share("half-open flows", workers * half_open),
            share("fast path", self.fast.memory_bytes()),
            share("packets that wait", workers * waiting),
        ]
    }
}

/// One socket that clients use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListenerPlan {
    /// Name of the service.
    pub service: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address and port.
    pub address: SocketAddr,
}

/// A limit and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bound {
    /// The limit.
    pub max: u32,
    /// Where it comes from.
    pub from: BoundFrom,
}

/// Where a limit comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BoundFrom {
    /// As configured.
    Configured,
    /// As many as the descriptors allow.
    Descriptors,
    /// As many as the memory allows.
    Memory,
    /// No service needs any.
    Unused,
    /// Fewer than configured, because the descriptors end there.
    Lowered {
        /// What the configuration says.
        configured: u32,
    },
}

/// A part of something that is limited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Share {
    /// What it is used for.
    pub what: String,
    /// How much.
    pub amount: u64,
}

/// Why a plan cannot fit.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// A CPU that is not there, or that the process may not use.
    #[error(
        "runtime.workers names CPU {}, but this process may use {}; take them out, or write workers = \"auto\"",
        list(missing),
        cpu_list(usable)
    )]
    NoSuchCpu {
        /// The CPUs that are not there.
        missing: Vec<usize>,
        /// The CPUs that are.
        usable: Vec<usize>,
    },
    /// A CPU for handshakes that is not there, or that the process may not use.
    #[error(
        "tls.threads names CPU {}, but this process may use {}; take them out, or write threads = \"auto\"",
        list(missing),
        cpu_list(usable)
    )]
    NoSuchTlsCpu {
        /// The CPUs that are not there.
        missing: Vec<usize>,
        /// The CPUs that are.
        usable: Vec<usize>,
    },
    /// A CPU that workers are to have in any case, and that the process may not use.
    #[error("workers are to have CPU {}, but this process may use {}", list(missing), cpu_list(usable))]
    NotUsable {
        /// The CPUs that it may not use.
        missing: Vec<usize>,
        /// The CPUs that it may.
        usable: Vec<usize>,
    },
    /// More workers than a worker id can name.
    #[error("{0} workers, but one process carries at most {WORKERS_MAX}; name fewer CPUs in runtime.workers")]
    TooManyWorkers(usize),
    /// More descriptors than the process may hold.
    #[error(
        "{} descriptors are needed ({}), the process may hold {}; raise LimitNOFILE= in the systemd unit (or `ulimit -n`) to {}, or {}",
        grouped(*needed), shares(parts), grouped(*nofile), grouped(*needed), remedy
    )]
    Descriptors {
        /// How many are needed.
        needed: u64,
        /// How many there may be.
        nofile: u64,
        /// What for, largest first.
        parts: Vec<Share>,
        /// What to change in the configuration.
        remedy: String,
    },
    /// More memory than there is.
    #[error("{} of memory are needed ({}), {} are available; lower the limit behind the largest part",
        bytes(*needed), byte_shares(parts), bytes(*available))]
    Memory {
        /// How many bytes are needed.
        needed: u64,
        /// How many there are.
        available: u64,
        /// What for, largest first.
        parts: Vec<Share>,
    },
}

/// Every reason why a plan cannot fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanErrors(pub Vec<PlanError>);

impl fmt::Display for PlanErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for PlanErrors {}

impl Plan {
    /// Whether the pool's threads share CPUs with workers, and so run only while those sleep; workers that never do share like everybody.
    pub fn pool_gives_way(&self) -> bool {
        self.poll != Poll::Busy && self.handshake_threads.shares_cpus(self.workers.iter().map(|worker| worker.cpu))
    }

    /// Plans the allocation for `model`, or says everything that does not fit.
    pub fn new(model: &Model, input: &PlanInput) -> Result<Plan, PlanErrors> {
        let cpus = worker_cpus(&model.runtime.workers, &input.cpus).map_err(|error| PlanErrors(vec![error]))?;
        let handshake_threads =
            HandshakesPlan::new(model, &cpus, &input.cpus).map_err(|error| PlanErrors(vec![error]))?;
        let packets = PacketsPlan::new(model, cpus.len(), input);
        let needs = Needs::of(model, cpus.len(), packets.as_ref(), input);
        let (connections, udp_sessions) = needs.bounds(model, input);
        let descriptors = needs.descriptors(connections.max, udp_sessions.max);
        let memory = needs.memory(connections.max, udp_sessions.max);
        let mut errors = Vec::new();
        if let Err(error) = needs.fit_descriptors(model, &descriptors, connections, input) {
            errors.push(error);
        }
        if total(&memory) > input.memory_bytes {
            errors.push(PlanError::Memory {
                needed: total(&memory),
                available: input.memory_bytes,
                parts: largest_first(&memory),
            });
        }
        if !errors.is_empty() {
            return Err(PlanErrors(errors));
        }
        Ok(Plan {
            workers: cpus.into_iter().zip(0u8..=255).map(|(cpu, id)| WorkerPlan { id, cpu }).collect(),
            poll: model.runtime.poll,
            listeners: listeners(model),
            connections,
            udp_sessions,
            persistence_entries: model.limits.persistence_entries,
            buffers: needs.buffers,
            buffers_configured: model.limits.buffers.is_some(),
            buffer_bytes: model.limits.buffer_bytes,
            record_buffers: needs.record_buffers,
            http_buffers: needs.http_buffers,
            http2_streams: model.limits.http2_streams,
            http2_window: model.limits.http2_window,
            handshakes_max: model.limits.handshakes,
            queue_deadline_ms: model.tls.queue_deadline_ms,
            pipes_per_worker: needs.pipes_per_worker,
            packets,
            handshake_threads,
            memory,
            memory_available: input.memory_bytes,
            descriptors,
            nofile: input.nofile,
        })
    }

    /// Descriptors in all, when every limit is reached.
    pub fn descriptors_total(&self) -> u64 {
        total(&self.descriptors)
    }

    /// Bytes in all, when every limit is reached.
    pub fn memory_total(&self) -> u64 {
        total(&self.memory)
    }

    /// What is planned other than the configuration says.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let BoundFrom::Lowered { configured } = self.udp_sessions.from {
            warnings.push(format!(
                "limits.udp_sessions = {configured} does not fit into {} descriptors; {} will be admitted; raise LimitNOFILE= in the \
                 systemd unit (or `ulimit -n`), or lower limits.udp_sessions",
                grouped(self.nofile),
                grouped(u64::from(self.udp_sessions.max))
            ));
        }
        let enough = u64::from(self.connections.max) * BUFFERS_PER_CONNECTION;
        if self.buffers_configured && u64::from(self.buffers) < enough {
            warnings.push(format!(
                "limits.buffers = {} per worker are fewer than two for each of {} connections: clients that never read can hold \
                 them all and keep the others waiting; raise it, or lower limits.connections",
                grouped(u64::from(self.buffers)),
                grouped(u64::from(self.connections.max))
            ));
        }
        warnings
    }
}

/// The CPUs that workers may use: those that are `named`, each of which must be `usable`, or all.
pub(crate) fn usable_cpus(named: Option<&[usize]>, usable: Vec<usize>) -> Result<Vec<usize>, PlanErrors> {
    let Some(named) = named else { return Ok(usable) };
    let missing: BTreeSet<usize> = named.iter().copied().filter(|cpu| !usable.contains(cpu)).collect();
    if missing.is_empty() {
        return Ok(named.to_vec());
    }
    Err(PlanErrors(vec![PlanError::NotUsable { missing: missing.into_iter().collect(), usable }]))
}

/// The CPUs that carry a worker, in worker order.
fn worker_cpus(workers: &Workers, usable: &[usize]) -> Result<Vec<usize>, PlanError> {
    match workers {
        Workers::Auto => Ok(usable.iter().copied().take(WORKERS_MAX).collect()),
        Workers::Cpus(wanted) => {
            let missing: Vec<usize> = wanted.iter().copied().filter(|cpu| !usable.contains(cpu)).collect();
            if !missing.is_empty() {
                return Err(PlanError::NoSuchCpu { missing, usable: usable.to_vec() });
            }
            if wanted.len() > WORKERS_MAX {
                return Err(PlanError::TooManyWorkers(wanted.len()));
            }
            Ok(wanted.clone())
        }
    }
}

fn listeners(model: &Model) -> Vec<ListenerPlan> {
    model
        .services
        .iter()
        .filter(|service| service.plane == PlaneWord::Stream)
        .flat_map(|service| {
            service.sockets().map(|address| ListenerPlan {
                service: service.name.clone(),
                protocol: service.protocol,
                address,
            })
        })
        .collect()
}

/// Receive buffers of one worker where the file does not say: any worker may hold every connection.
fn derived_buffers(model: &Model, tcp: Use, workers: u64, input: &PlanInput) -> u32 {
    if tcp == Use::Unused {
        return BUFFERS_MIN;
    }
    let connections = model.limits.connections.map_or(input.nofile / 2, u64::from);
    let wanted = connections.saturating_mul(BUFFERS_PER_CONNECTION).saturating_add(BUFFERS_LENT);
    let affordable = input.memory_bytes / DERIVED_BUFFERS_SHARE / workers / u64::from(model.limits.buffer_bytes);
    u32::try_from(wanted.min(affordable).clamp(BUFFERS_LENT, BUFFERS_MAX)).expect("clamped to 16 bits")
}

/// What is needed whatever the number of connections, and by each of them.
struct Needs {
    fixed_descriptors: Vec<Share>,
    fixed_memory: Vec<Share>,
    workers: u64,
    pipes_per_worker: u32,
    buffers: u32,
    record_buffers: u16,
    http_buffers: u16,
    /// Legs with TLS of one connection, at most.
    tls_legs: u64,
    /// What HTTP/2 takes of one connection.
    http2_bytes: u64,
    tcp: Use,
    udp: Use,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Needed,
    Unused,
}

fn pipe_bytes(pipes: u32) -> u64 {
    let large = pipes.min(LARGE_PIPES_PER_WORKER);
    u64::from(large) * LARGE_PIPE_BYTES + u64::from(pipes - large) * PIPE_BYTES
}

impl Needs {
    fn of(model: &Model, workers: usize, packets: Option<&PacketsPlan>, input: &PlanInput) -> Needs {
        let workers = workers as u64;
        let uses = |protocol| {
            let relayed = |s: &VirtualService| s.plane == PlaneWord::Stream && s.protocol == protocol;
            if model.services.iter().any(relayed) { Use::Needed } else { Use::Unused }
        };
        let (tcp, udp) = (uses(Protocol::Tcp), uses(Protocol::Udp));
        let pipes_per_worker = if tcp == Use::Needed { PIPES_PER_WORKER } else { 0 };
        let pipes = workers * u64::from(pipes_per_worker);
        let sockets = listeners(model).len() as u64;
        let control = if model.control.socket.is_some() { 1 + CONTROL_CLIENTS_MAX as u64 } else { 0 };
        let metrics = if model.metrics.listen.is_some() { 1 + METRICS_CLIENTS_MAX as u64 } else { 0 };
        let visitors = if model.control.listen.is_some() { 1 + CONTROL_VISITORS_MAX as u64 } else { 0 };
        let limits = &model.limits;
        let buffers = limits.buffers.unwrap_or_else(|| derived_buffers(model, tcp, workers, input));
        let tls_legs = tls_legs(model);
        let record_buffers = if tls_legs > 0 { record_buffers(model, workers, input) } else { 0 };
        // Both kinds are numbered together.
        let buffers = buffers.min(u32::from(u16::MAX - record_buffers));
        let http_buffers = if tls_legs == 0 && has_http(model) { buffers.min(OUTGOING_BUFFERS_MAX) as u16 } else { 0 };
        let idle = workers * idle_connections(model);
        let handshakes = if tls_legs > 0 { u64::from(limits.handshakes) } else { 0 };
        let rings = packets.map_or(0, |packets| workers * packets.arms.len() as u64 + PACKET_DESCRIPTORS);
        let fast = packets.filter(|packets| packets.fast.flows() > 0);
        let fast = fast.map_or(0, |packets| FAST_PATH_DESCRIPTORS + packets.arms.len() as u64);
        let homes = snat_maps(model, |plane| plane == PlaneWord::Packet) as u64 * PORT_HOMES_BYTES;
        // By each arm of a bridge.
        let probe_sockets = if model.bridges.is_empty() { 1 } else { 2 };
        let mut fixed_memory = vec![
            share("workers", workers * WORKER_BYTES),
            share("receive buffers", workers * u64::from(buffers) * u64::from(limits.buffer_bytes)),
            share("TLS buffers", workers * u64::from(record_buffers) * RECORD_BUFFER_BYTES),
            share("HTTP buffers", workers * u64::from(http_buffers) * u64::from(OUTGOING_BYTES)),
            share("parts of TLS records", workers * kept_bytes_max(record_buffers) as u64),
            share("TLS handshakes", handshakes * HANDSHAKE_BYTES),
            share("persistence", u64::from(limits.persistence_entries) * PERSISTENCE_ENTRY_BYTES),
            share("source ports", snat_maps(model, |_| true) as u64 * SNAT_MAP_BYTES + homes),
            share("pipes for bulk", workers * pipe_bytes(pipes_per_worker)),
            // With TLS towards servers a connection has two such legs, one of which waits with it.
            share("waiting server connections", idle * (IDLE_CONNECTION_BYTES + tls_legs / 2 * TLS_LEG_BYTES)),
        ];
        fixed_memory.extend(packets.map_or_else(Vec::new, PacketsPlan::memory));
        fixed_memory.extend(handshakes::session_memory(model));
        Needs {
            fixed_descriptors: vec![
                share("process", PROCESS_DESCRIPTORS),
                share("workers", workers * WORKER_DESCRIPTORS),
                share("listeners", workers * sockets),
                share("waiting server connections", idle),
                share("packet rings", rings),
                share("fast path", fast),
                share("pipes for bulk", pipes * DESCRIPTORS_PER_PIPE),
                share(
                    "health checks",
                    (checked_ports(model) as u64).min((PROBES_MAX + ORDERED_PROBES_MAX) as u64) * probe_sockets,
                ),
                share("commands of checks", commands(model).min(COMMANDS_MAX as u64) * DESCRIPTORS_PER_COMMAND),
                share("control socket", control),
                share("metrics", metrics),
                share("control listener", visitors),
                share("reserve", RESERVED_DESCRIPTORS),
            ],
            fixed_memory,
            workers,
            pipes_per_worker,
            buffers,
            record_buffers,
            http_buffers,
            tls_legs,
            http2_bytes: if has_http2(model) { HTTP2_BYTES } else { 0 },
            tcp,
            udp,
        }
    }

    /// How many connections and sessions are admitted; what is not given is derived from what is left.
    fn bounds(&self, model: &Model, input: &PlanInput) -> (Bound, Bound) {
        let free = input.nofile.saturating_sub(total(&self.fixed_descriptors));
        let udp = match (self.udp, model.limits.udp_sessions, model.limits.connections) {
            (Use::Unused, ..) => Bound { max: 0, from: BoundFrom::Unused },
            // Somebody who gives both numbers means them; otherwise UDP takes at most what TCP leaves of a fair share.
            (Use::Needed, Some(max), Some(_)) => Bound { max, from: BoundFrom::Configured },
            (Use::Needed, configured, connections) => {
                let fair = match (self.tcp, connections) {
                    (Use::Unused, _) => free,
                    (Use::Needed, None) => free / 2,
                    (Use::Needed, Some(tcp)) => free.saturating_sub(u64::from(tcp) * DESCRIPTORS_PER_CONNECTION),
                };
                let by_descriptors = whole(fair / DESCRIPTORS_PER_UDP_SESSION);
                match configured {
                    Some(max) if max <= by_descriptors => Bound { max, from: BoundFrom::Configured },
                    Some(configured) => Bound { max: by_descriptors, from: BoundFrom::Lowered { configured } },
                    None if UDP_SESSIONS_AUTO_MAX <= by_descriptors => {
                        Bound { max: UDP_SESSIONS_AUTO_MAX, from: BoundFrom::Configured }
                    }
                    // Fewer than some would be no service: then the plan does not fit.
                    None => Bound { max: by_descriptors.max(UDP_SESSIONS_AUTO_MIN), from: BoundFrom::Descriptors },
                }
            }
        };
        let tcp = match (self.tcp, model.limits.connections) {
            (Use::Unused, _) => Bound { max: 0, from: BoundFrom::Unused },
            (Use::Needed, Some(max)) => Bound { max, from: BoundFrom::Configured },
            (Use::Needed, None) => {
                let left = free.saturating_sub(u64::from(udp.max) * DESCRIPTORS_PER_UDP_SESSION);
                let by_descriptors = left / DESCRIPTORS_PER_CONNECTION;
                let room = (input.memory_bytes / DERIVED_MEMORY_SHARE).saturating_sub(total(&self.memory(0, udp.max)));
                let by_memory = room
                    / (CONNECTION_BYTES
                        + self.tls_legs * TLS_LEG_BYTES
                        + self.http2_bytes
                        + KERNEL_CONNECTION_BYTES
                        + self.workers * TIMER_BYTES);
                if by_memory < by_descriptors {
                    Bound { max: whole(by_memory), from: BoundFrom::Memory }
                } else {
                    Bound { max: whole(by_descriptors), from: BoundFrom::Descriptors }
                }
            }
        };
        (tcp, udp)
    }

    fn descriptors(&self, connections: u32, udp_sessions: u32) -> Vec<Share> {
        let mut shares = self.fixed_descriptors.clone();
        shares.push(share("TCP connections", u64::from(connections) * DESCRIPTORS_PER_CONNECTION));
        shares.push(share("UDP sessions", u64::from(udp_sessions) * DESCRIPTORS_PER_UDP_SESSION));
        shares.retain(|share| share.amount > 0);
        shares
    }

    fn memory(&self, connections: u32, udp_sessions: u32) -> Vec<Share> {
        let mut shares = self.fixed_memory.clone();
        let (connections, udp_sessions) = (u64::from(connections), u64::from(udp_sessions));
        shares.push(share("connections", connections * CONNECTION_BYTES));
        shares.push(share("TLS connections", connections * self.tls_legs * TLS_LEG_BYTES));
        shares.push(share("HTTP/2 connections", connections * self.http2_bytes));
        shares.push(share("UDP sessions", udp_sessions * UDP_SESSION_BYTES));
        shares.push(share("timers", self.workers * (connections + udp_sessions) * TIMER_BYTES));
        shares.push(share(
            "kernel sockets, idle",
            connections * KERNEL_CONNECTION_BYTES + udp_sessions * KERNEL_UDP_SESSION_BYTES,
        ));
        shares.retain(|share| share.amount > 0);
        shares
    }

    fn fit_descriptors(
        &self,
        model: &Model,
        descriptors: &[Share],
        connections: Bound,
        input: &PlanInput,
    ) -> Result<(), PlanError> {
        let too_few = connections.from != BoundFrom::Configured
            && self.tcp == Use::Needed
            && u64::from(connections.max) < DERIVED_CONNECTIONS_MIN;
        let mut needed = total(descriptors);
        if needed <= input.nofile && !too_few {
            return Ok(());
        }
        if too_few {
            let missing = DERIVED_CONNECTIONS_MIN - u64::from(connections.max);
            needed = needed.max(input.nofile) + missing * DESCRIPTORS_PER_CONNECTION;
        }
        let fixed = total(&self.fixed_descriptors);
        let udp_sessions = model.limits.udp_sessions.unwrap_or(UDP_SESSIONS_AUTO_MIN);
        let udp = if self.udp == Use::Needed { u64::from(udp_sessions) } else { 0 };
        let left = input.nofile.saturating_sub(fixed + udp * DESCRIPTORS_PER_UDP_SESSION) / DESCRIPTORS_PER_CONNECTION;
        let remedy = if model.limits.connections.is_some() && left >= DERIVED_CONNECTIONS_MIN {
            format!("set limits.connections to at most {left}")
        } else if model.limits.connections.is_some() && udp > 0 {
            "lower limits.udp_sessions and limits.connections".to_owned()
        } else {
            "use fewer workers or fewer ports".to_owned()
        };
        Err(PlanError::Descriptors { needed, nofile: input.nofile, parts: largest_first(descriptors), remedy })
    }
}

/// Legs with TLS that a connection of this process has at most.
fn tls_legs(model: &Model) -> u64 {
    let ended = model.services.iter().filter_map(|service| Some((service, service.ended_tls()?)));
    let legs = ended.map(|(service, tls)| {
        let re_encrypts = model.servers_of(service).any(|server| tls.re_encrypts(server));
        1 + u64::from(re_encrypts)
    });
    legs.max().unwrap_or(0)
}

/// Whether a service is in HTTP mode.
fn has_http(model: &Model) -> bool {
    model.services.iter().any(|service| service.http.is_some())
}

/// Whether clients of a service may choose HTTP/2.
fn has_http2(model: &Model) -> bool {
    model.services.iter().any(|service| service.http.as_ref().is_some_and(|http| http.http2))
}

/// Connections to real servers that may wait for the next client, of one worker.
fn idle_connections(model: &Model) -> u64 {
    let shares = |service: &VirtualService| match service.http.as_ref()?.reuse {
        Reuse::Never => None,
        Reuse::Safe { idle_max, .. } => Some(idle_max),
    };
    let of = |service: &VirtualService| {
        let ids: BTreeSet<_> = model.servers_of(service).map(|server| (server.address, server.port)).collect();
        shares(service).map_or(0, |idle_max| ids.len() as u64 * u64::from(idle_max))
    };
    model.services.iter().map(of).sum()
}

/// Buffers of each kind for connections with TLS, of one worker.
fn record_buffers(model: &Model, workers: u64, input: &PlanInput) -> u16 {
    let affordable = input.memory_bytes / RECORDS_SHARE / workers / RECORD_BUFFER_BYTES;
    let derived = affordable.clamp(*RECORD_BUFFERS.start(), *RECORD_BUFFERS.end());
    let buffers = model.limits.tls_buffers.map_or(derived, u64::from);
    u16::try_from(buffers).expect("the key and the clamp have 16 bits")
}

/// Runs of programs that checks may want at the same time.
fn commands(model: &Model) -> u64 {
    let external = |group: &&ServerGroup| {
        group.health.as_ref().is_some_and(|health| matches!(health.check, CheckKind::External(_)))
    };
    let runs =
        |group: &ServerGroup| group.servers.len() * group.health.as_ref().map_or(0, |health| health.ports.len().max(1));
    model.groups.iter().filter(external).map(runs).sum::<usize>() as u64
}

/// Distinct (server, checked port) pairs, with those of agents; each may be under way at the same time.
fn checked_ports(model: &Model) -> usize {
    let mut pairs = BTreeSet::new();
    for group in &model.groups {
        let Some(health) = &group.health else { continue };
        if let Some(agent) = &health.agent {
            pairs.extend(group.servers.iter().map(|server| (server.address, agent.port)));
        }
        if matches!(health.check, CheckKind::External(_)) {
            continue;
        }
        for server in &group.servers {
            let own = [server.port.unwrap_or(0)];
            let ports: &[u16] = if health.ports.is_empty() { &own } else { &health.ports };
            pairs.extend(ports.iter().map(|&port| (server.address, port)));
        }
    }
    pairs.len()
}

/// Distinct (SNAT address, server address and port, protocol), the keys of the port maps. A server of a service of every port
/// has one map for all of them. Of the services of these planes; beside those, what hosts inside open has one for each SNAT address and protocol.
fn snat_maps(model: &Model, counts: impl Fn(PlaneWord) -> bool) -> usize {
    let mut keys = BTreeSet::new();
    for service in model.services.iter().filter(|service| counts(service.plane)) {
        let Some(pool) = claims::pool(service) else { continue };
        let ports: &[u16] = match &service.ports {
            Ports::All => &[0],
            Ports::List(ports) => ports,
        };
        for server in model.servers_of(service) {
            for destination in ports.iter().map(|&port| server.port.unwrap_or(port)) {
                for &address in pool.addresses.iter().filter(|a| a.is_ipv4() == server.address.is_ipv4()) {
                    keys.insert((address, server.address, destination, service.protocol));
                }
            }
        }
    }
    let outbound = claims::outbound(model).filter(|_| counts(PlaneWord::Packet));
    let outside: BTreeSet<&IpAddr> = outbound.flat_map(|(_, pool)| &pool.addresses).collect();
    keys.len() + outside.len() * Leased::ALL.len()
}

fn share(what: &str, amount: u64) -> Share {
    Share { what: what.to_owned(), amount }
}

fn total(shares: &[Share]) -> u64 {
    shares.iter().map(|share| share.amount).sum()
}

fn largest_first(shares: &[Share]) -> Vec<Share> {
    let mut shares = shares.to_vec();
    shares.sort_by_key(|share| std::cmp::Reverse(share.amount));
    shares
}

fn whole(amount: u64) -> u32 {
    u32::try_from(amount).unwrap_or(u32::MAX)
}

mod handshakes;
mod text;

pub use handshakes::HandshakesPlan;
use text::{byte_shares, list, shares};
pub(crate) use text::{bytes, cpu_list, grouped};

#[cfg(test)]
mod tests;
