//! A turn in memory: the packet plane alone, from reading a frame to rewriting it, on one CPU and without the kernel.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::{Duration, Instant};

use towpath_config::model::{AdminState, Balance, Forwarding, Plane as PlaneKind, Protocol, SourcePool};
use towpath_core::balancer::BalancerState;
use towpath_core::counters::{ServiceCounter, Termination};
use towpath_core::flow::Direction;
use towpath_core::loads::{Loads, PlainLoads};
use towpath_core::packet::rewrite::{Checksum, Layout, complete_checksum};
use towpath_core::packet::{Family, Mac, PROTOCOL_TCP, PROTOCOL_UDP, Packet, Parsed, TcpFlags, Tuple, parse};
use towpath_core::persistence::PersistenceTable;
use towpath_core::plane::{
    BATCH_MAX, Desk, Frame, Network, Outbox, Plane, PlaneCounter, PlaneSettings, Port, PortId, Strays, Verdict,
};
use towpath_core::random::SplitMix64;
use towpath_core::snapshot::{RealServer, ServerHealth, Service, ServiceSource, Snapshot, Target};
use towpath_core::snat::{SnatBook, SnatLimits};
use towpath_core::steering::SteeringTable;
use towpath_core::{Generation, Now, Pick, RealServerId, Refusal, ServiceId, Tried, WorkerId};
use towpath_sys::host;
use towpath_sys::instructions::InstructionCounter;
use towpath_sys::pages;
use towpath_sys::prefetch::prefetch;

use super::sample::{Reading, Sample};
use super::{Case, Options, on_cpus};
use crate::cpu::{CpuTime, run_time_ns};
use crate::crowd;
use crate::peers::forwarding_word;
use crate::segment::{Datagram, HEADERS_LEN_MAX, Segment, flags, is_intact};

/// Frames that are written before they are taken one batch after the other: writing them is not measured, and they lie in the core's own
/// cache as those do that a device or a neighbour has just delivered.
const CHUNK_FRAMES: usize = 64 * BATCH_MAX;

/// Octets that an established flow carries in each frame.
const PAYLOAD: [u8; 64] = [0x5a; 64];

/// Payloads that each side sends before it begins again: less than the window of a SYN.
const SENT_MAX: u32 = 512;

/// Room for a frame: whole cache lines.
const SLOT_BYTES: usize = (HEADERS_LEN_MAX + PAYLOAD.len()).next_multiple_of(64);

/// Real servers, and SNAT addresses: together 16 million ports.
const MEMBERS: u8 = 16;

/// Last octet of the first server and of the first SNAT address; the others follow.
const SERVER_NUMBER: u8 = 11;
const SOURCE_NUMBER: u8 = 101;

const SERVICE_PORT: u16 = 8080;
const SERVER_PORT: u16 = 7000;

/// Most flows: each server's port at each SNAT address, with room to spare.
pub const FLOWS_MAX: usize = 15_000_000;

const FRONT: PortId = PortId(0);
const BACK: PortId = PortId(1);
const FRONT_MAC: Mac = Mac([2, 0, 0, 0, 1, 1]);
const BACK_MAC: Mac = Mac([2, 0, 0, 0, 2, 1]);
const ROUTER_MAC: Mac = Mac([2, 0, 0, 0, 1, 2]);

/// Flows whose handshakes may be under way; a chunk has fewer.
const HALF_OPEN_MAX: usize = 1 << 16;
const HALF_OPEN_PER_SOURCE_MAX: u32 = 256;

/// Flows that the timers may look at between two chunks, as a worker does between two breaths.
const EXPIRE_BUDGET: usize = 256;

/// After this the last connection that was closed is forgotten: 60 s after its end, as long as its source port would rest.
const CLOSED_MS: u64 = 70_000;

/// What both sides have sent before they close: the last payload of a turn included.
const SENT_BEFORE_END: u32 = SENT_MAX * PAYLOAD.len() as u32;

/// Segments with data of the connection whose whole time is told, beside those of its handshake and of its end.
const DATA_SEGMENTS: u32 = 3;

/// After this the last flow has been silent for too long.
const FAR_MS: u64 = 2 * IDLE_TIMEOUT_MS;

const IDLE_TIMEOUT_MS: u64 = 1_800_000;

/// What a flow takes, beside the plane's own 128 bytes: what this measurement remembers of it.
const OPENED_BYTES: u64 = size_of::<Opened>() as u64;

/// Of everything that does not depend on the number of flows.
const FIXED_BYTES: u64 = 256 << 20;

/// With fewer flows, what does not depend on their number is most of the memory, and of the time of their end.
const WHOLE_TOLD_FROM: usize = 500_000;

/// What the packets of an established flow are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cargo {
    /// UDP.
    Datagrams,
    /// TCP, as a network card delivers it.
    Segments,
    /// TCP, its checksums left to a network card: as over veth and virtio.
    SegmentsUnsummed,
    /// TCP in super-packets, which a card has to cut. Their length is left out: the plane reads their headers only.
    SuperSegments,
}

impl Cargo {
    fn protocol(self) -> Protocol {
        match self {
            Cargo::Datagrams => Protocol::Udp,
            Cargo::Segments | Cargo::SegmentsUnsummed | Cargo::SuperSegments => Protocol::Tcp,
        }
    }

    fn checksum(self) -> Checksum {
        match self {
            Cargo::Datagrams | Cargo::Segments => Checksum::Complete,
            Cargo::SegmentsUnsummed | Cargo::SuperSegments => Checksum::Partial,
        }
    }

    /// Payload of the segments that a frame is to be cut into; 0 for a frame that is none of these.
    fn segment_bytes(self) -> u16 {
        match self {
            Cargo::Datagrams | Cargo::Segments | Cargo::SegmentsUnsummed => 0,
            Cargo::SuperSegments => PAYLOAD.len() as u16 / 2,
        }
    }

    /// In the name of a case.
    fn suffix(self) -> &'static str {
        match self {
            Cargo::Datagrams => "-udp",
            Cargo::Segments => "",
            Cargo::SegmentsUnsummed => "-unsummed",
            Cargo::SuperSegments => "-super",
        }
    }
}

/// What is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InMemory {
    /// How packets leave: full-NAT or half-NAT.
    pub forwarding: Forwarding,
    /// Of clients, VIP and real servers.
    pub family: Family,
    /// What it consists of.
    pub cargo: Cargo,
    /// Established flows, at most [`FLOWS_MAX`]; each packet belongs to one that is drawn by lot.
    pub flows: usize,
}

impl InMemory {
    /// As in `memory-full-nat-v4-1M`, `memory-full-nat-v4-udp-1M`.
    pub fn name(&self) -> String {
        let forwarding = forwarding_word(self.forwarding);
        let family = match self.family {
            Family::V4 => "v4",
            Family::V6 => "v6",
        };
        let flows = match self.flows {
            flows if flows.is_multiple_of(1_000_000) => format!("{}M", flows / 1_000_000),
            flows if flows.is_multiple_of(1000) => format!("{}k", flows / 1000),
            flows => flows.to_string(),
        };
        format!("memory-{forwarding}-{family}{}-{flows}", self.cargo.suffix())
    }
}

/// Opens the flows, takes packets of all of them for the counted time, and has them expire.
pub(super) fn take(case: &Case, work: &InMemory, options: &Options) -> io::Result<Vec<Sample>> {
    let (needed, available) = (needed_bytes(work.flows), host::memory()?.available_bytes);
    if needed > available {
        let mib = |bytes: u64| bytes >> 20;
        let message = format!(
            "{} flows take {} MiB and {} are free; ask for fewer with --flows",
            work.flows,
            mib(needed),
            mib(available)
        );
        return Err(io::Error::new(io::ErrorKind::OutOfMemory, message));
    }
    let cpu = [options.pins.balancer];
    let own = [std::process::id()];
    let (readings, used, own_s) = on_cpus(&cpu, || {
        let (own_before, before) = (run_time_ns(&own), CpuTime::read(&cpu)?);
        let readings = measure(work, options.warm_up, options.measure)?;
        // While this thread lives: afterwards its time is nobody's.
        let own_s = (run_time_ns(&own) - own_before) as f64 / 1e9;
        let used = CpuTime::read(&cpu)?.into_iter().zip(before).map(|(after, before)| after.since(before)).next();
        Ok((readings, used.unwrap_or_default(), own_s))
    })?;
    Ok(vec![Sample {
        case: case.name.clone(),
        readings,
        balancer_cpu_s: used.busy_s,
        balancer_busy: used.busy_share,
        others_share: if used.busy_s > 0.0 { (1.0 - own_s / used.busy_s).max(0.0) } else { 0.0 },
        steal_share: used.steal_share,
        ..Sample::default()
    }])
}

/// Whether there is memory for so many flows, and as much again for others.
pub(super) fn fits(flows: usize) -> bool {
    host::memory().is_ok_and(|memory| needed_bytes(flows) <= memory.available_bytes / 2)
}

fn needed_bytes(flows: usize) -> u64 {
    let work = InMemory { forwarding: Forwarding::FullNat, family: Family::V4, cargo: Cargo::Segments, flows };
    let plane_bytes = Plane::memory_bytes(&Scene { work }.settings(flows)) as u64;
    plane_bytes + flows as u64 * OPENED_BYTES + FIXED_BYTES
}

fn measure(work: &InMemory, warm_up: Duration, counted: Duration) -> io::Result<Vec<Reading>> {
    let opened = vec![Opened { port: 1, source: 1, server: 1 }; work.flows];
    let scene = Scene { work: *work };
    let (service, snapshot) = scene.snapshot()?;
    let network = scene.network();
    // All at once and for good; what the process has more than before would also tell what the allocator had kept from a case before.
    let memory = Plane::memory_bytes(&scene.settings(work.flows));
    let plane = Plane::new(&scene.settings(work.flows), Arc::new(snapshot), Arc::new(network), Now(0));
    // As a worker of the daemon does.
    plane.memory().for_each(|memory| {
        pages::prefer_huge(memory);
    });
    let mut bench = Bench {
        scene,
        plane,
        desk: PlainDesk::new(),
        out: Outbox::new(256, 1 << 16),
        verdicts: Vec::with_capacity(BATCH_MAX),
        slots: vec![Slot([0; SLOT_BYTES]); CHUNK_FRAMES],
        filled: Vec::with_capacity(CHUNK_FRAMES),
        opened,
        started: Instant::now(),
        instructions: InstructionCounter::open(),
    };
    let opening = bench.open()?;
    let mut random = SplitMix64::new(work.flows as u64);
    bench.exchange(&mut random, warm_up)?;
    let exchanged = bench.exchange(&mut random, counted)?;
    // Datagrams have no end that can be seen.
    let ended = match work.cargo.protocol() {
        Protocol::Tcp => Some(bench.close(&mut random)?),
        Protocol::Udp => None,
    };
    let left = work.flows - ended.as_ref().map_or(0, |ended| ended.flows);
    let expiry = bench.expire(FAR_MS, left)?;
    bench.verify_end(service)?;

    let reading = |metric, unit: &str, value| Reading { metric, unit: unit.into(), value, comparable: true };
    let flows = work.flows as f64;
    let mut readings = vec![reading("packet-time", "ns", exchanged.ns_each())];
    readings.extend(exchanged.instructions_each().map(|each| reading("packet-instructions", "instructions", each)));
    readings.push(reading("opening-rate", "flows/s", flows / opening.whole.time.as_secs_f64()));
    readings.push(reading("first-packet-time", "ns", opening.first.ns_each()));
    readings.extend(opening.first.instructions_each().map(|n| reading("first-packet-instructions", "instructions", n)));
    if work.flows >= WHOLE_TOLD_FROM {
        if let Some(ended) = ended {
            let ending_ns = ended.time.as_nanos() as f64 / ended.flows as f64;
            let opening_ns = opening.whole.time.as_nanos() as f64 / flows;
            let data_ns = f64::from(DATA_SEGMENTS) * exchanged.ns_each();
            readings.push(reading("ending-time", "ns", ending_ns));
            readings.push(reading("connection-time", "ns", opening_ns + data_ns + ending_ns));
        }
        readings.push(reading("expiry-time", "ns", expiry.as_nanos() as f64 / left as f64));
        readings.push(reading("memory", "B/flow", memory as f64 / flows));
    }
    Ok(readings)
}

/// What frames have cost.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    frames: usize,
    time: Duration,
    /// None where they are not counted.
    instructions: Option<u64>,
}

impl Cost {
    fn ns_each(&self) -> f64 {
        self.time.as_nanos() as f64 / self.frames.max(1) as f64
    }

    fn instructions_each(&self) -> Option<f64> {
        Some(self.instructions? as f64 / self.frames.max(1) as f64)
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, more: Cost) {
        *self = match self.frames {
            0 => more,
            _ => Cost {
                frames: self.frames + more.frames,
                time: self.time + more.time,
                instructions: self.instructions.zip(more.instructions).map(|(before, more)| before + more),
            },
        }
    }
}

struct Opening {
    /// The SYNs alone: Director, lease, insertion.
    first: Cost,
    /// All three segments of the handshakes.
    whole: Cost,
}

/// Connections that their ends have closed: four segments each, and that they are forgotten.
struct Ending {
    flows: usize,
    time: Duration,
}

/// What is needed to make the server's packets of a flow.
#[derive(Clone, Copy, Debug)]
struct Opened {
    /// Source port towards the server; of half-NAT, the client's.
    port: u16,
    /// Number of the SNAT address; not used in half-NAT.
    source: u8,
    /// Number of the real server.
    server: u8,
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Slot([u8; SLOT_BYTES]);

/// A frame in the slot of the same number.
#[derive(Clone, Copy, Debug)]
struct Filled {
    length: usize,
    flow: usize,
    direction: Direction,
    has_data: bool,
}

/// A plane, and what is fed to it.
struct Bench {
    scene: Scene,
    plane: Plane,
    desk: PlainDesk,
    out: Outbox,
    verdicts: Vec<Verdict>,
    slots: Vec<Slot>,
    filled: Vec<Filled>,
    opened: Vec<Opened>,
    started: Instant,
    instructions: Option<InstructionCounter>,
}

impl Bench {
    fn now(&self) -> Now {
        Now(self.started.elapsed().as_millis() as u64)
    }

    /// Completes the handshake of every flow.
    fn open(&mut self) -> io::Result<Opening> {
        let mut opening = Opening { first: Cost::default(), whole: Cost::default() };
        let flows = self.opened.len();
        for first in (0..flows).step_by(CHUNK_FRAMES) {
            let chunk = first..flows.min(first + CHUNK_FRAMES);
            let syn = flags(&[TcpFlags::SYN]);
            chunk.clone().for_each(|flow| self.fill(flow, Direction::Forward, syn, [0; 2]));
            let cost = self.take()?;
            opening.first += cost;
            opening.whole += cost;
            self.learn()?;
            let syn_ack = flags(&[TcpFlags::SYN, TcpFlags::ACK]);
            chunk.clone().for_each(|flow| self.fill(flow, Direction::Reverse, syn_ack, [0; 2]));
            opening.whole += self.take()?;
            self.verify()?;
            // The server's datagram has established the flow.
            if self.scene.work.cargo.protocol() == Protocol::Udp {
                continue;
            }
            chunk.for_each(|flow| self.fill(flow, Direction::Forward, TcpFlags::ACK, [0; 2]));
            opening.whole += self.take()?;
            self.verify()?;
        }
        match (self.plane.flows(), self.plane.half_open()) {
            (open, 0) if open == flows => Ok(opening),
            (open, half) => {
                Err(io::Error::other(format!("{flows} flows were opened, and there are {open}, {half} half open")))
            }
        }
    }

    /// Packets of flows drawn by lot, either way, for about so long with all that is not measured.
    fn exchange(&mut self, random: &mut SplitMix64, duration: Duration) -> io::Result<Cost> {
        let mut cost = Cost::default();
        let data = flags(&[TcpFlags::ACK, TcpFlags::PSH]);
        let end = Instant::now() + duration;
        for turn in 0_u32.. {
            // Each side's numbers go on, inside of the window that the other has offered; then the same octets come once more.
            let sent = turn % SENT_MAX * PAYLOAD.len() as u32;
            for _ in 0..CHUNK_FRAMES {
                let flow = random.below(self.opened.len() as u64) as usize;
                let direction = if random.below(2) == 0 { Direction::Forward } else { Direction::Reverse };
                self.fill(flow, direction, data, [sent, 0]);
            }
            cost += self.take()?;
            self.verify()?;
            if Instant::now() >= end {
                break;
            }
        }
        match self.plane.counts().read(PlaneCounter::TcpFaults) {
            0 => Ok(cost),
            faults => Err(io::Error::other(format!("{faults} packets did not fit their connections"))),
        }
    }

    /// Closes half of the connections, drawn by lot, the client first, and has them forgotten.
    fn close(&mut self, random: &mut SplitMix64) -> io::Result<Ending> {
        let mut flows: Vec<u32> = (0..self.opened.len() as u32).collect();
        let half = flows.len() / 2;
        for place in 0..half {
            let other = place + random.below((flows.len() - place) as u64) as usize;
            flows.swap(place, other);
        }
        let fin = flags(&[TcpFlags::FIN, TcpFlags::ACK]);
        let (sent, ended) = (SENT_BEFORE_END, SENT_BEFORE_END + 1);
        let segments = [
            (Direction::Forward, fin, [sent, 0]),
            (Direction::Reverse, TcpFlags::ACK, [sent, ended]),
            (Direction::Reverse, fin, [sent, ended]),
            (Direction::Forward, TcpFlags::ACK, [ended, ended]),
        ];
        let mut time = Duration::ZERO;
        for chunk in flows[..half].chunks(CHUNK_FRAMES) {
            for (direction, flags, numbers) in segments {
                chunk.iter().for_each(|&flow| self.fill(flow as usize, direction, flags, numbers));
                time += self.take()?.time;
                self.verify()?;
            }
        }
        let counted = self.desk.loads.active_of_service(ServiceId(0)) as usize;
        if counted + half != flows.len() {
            return Err(io::Error::other(format!("{half} of {} were closed, and {counted} are counted", flows.len())));
        }
        time += self.expire(CLOSED_MS, half)?;
        Ok(Ending { flows: half, time })
    }

    /// Has flows end because nobody has used them for so long: as many as this. The time of it.
    fn expire(&mut self, silent_ms: u64, flows: usize) -> io::Result<Duration> {
        let (later, mut time, before) = (self.now() + silent_ms, Duration::ZERO, self.plane.flows());
        let turns_max = self.opened.len() / EXPIRE_BUDGET * 16 + (1 << 16);
        for _ in 0..turns_max {
            let started = Instant::now();
            let is_done = self.plane.expire(later, EXPIRE_BUDGET, &mut self.desk, &mut self.out);
            time += started.elapsed();
            self.out.clear();
            if is_done {
                break;
            }
        }
        match before - self.plane.flows() {
            gone if gone == flows => Ok(time),
            gone => Err(io::Error::other(format!("of {before} flows {gone} have expired, not {flows}"))),
        }
    }

    /// Nothing is left.
    fn verify_end(&self, service: ServiceId) -> io::Result<()> {
        match (self.plane.flows(), self.desk.loads.active_of_service(service)) {
            (0, 0) => Ok(()),
            (flows, counted) => {
                Err(io::Error::other(format!("after their end, {flows} flows are left and {counted} are counted")))
            }
        }
    }

    /// Writes the next frame of the chunk: a segment that `direction` sends after `sent` octets, having got `got` of the other side.
    fn fill(&mut self, flow: usize, direction: Direction, flags: TcpFlags, [sent, got]: [u32; 2]) {
        let slot = &mut self.slots[self.filled.len()].0;
        let is_opening = flags.contains(TcpFlags::SYN);
        let (from, to) = self.scene.incoming(flow, direction, self.opened[flow]);
        let (from_mac, to_mac) = match direction {
            Direction::Forward => (ROUTER_MAC, FRONT_MAC),
            Direction::Reverse => (server_mac(self.opened[flow].server), BACK_MAC),
        };
        let segment = Segment {
            from_mac,
            to_mac,
            from,
            to,
            seq: crowd::first_number(flow, direction).wrapping_add(if is_opening { 0 } else { 1 + sent }),
            ack: match flags.contains(TcpFlags::ACK) {
                true => crowd::first_number(flow, direction.opposite()).wrapping_add(1 + got),
                false => 0,
            },
            flags,
            payload: if flags.contains(TcpFlags::PSH) { &PAYLOAD } else { &[] },
        };
        let cargo = self.scene.work.cargo;
        let length = match cargo.protocol() {
            Protocol::Tcp => segment.write_as(slot, cargo.checksum()),
            Protocol::Udp => Datagram { from_mac, to_mac, from, to, payload: &PAYLOAD }.write(slot),
        };
        self.filled.push(Filled { length, flow, direction, has_data: flags.contains(TcpFlags::PSH) });
    }

    /// Feeds the chunk to the plane. Only this is measured.
    fn take(&mut self) -> io::Result<Cost> {
        let now = self.now();
        let mut frames: Vec<Frame<'_>> = self
            .slots
            .iter_mut()
            .zip(&self.filled)
            .map(|(slot, filled)| Frame {
                bytes: &mut slot.0[..filled.length],
                port: self.scene.port(filled.direction),
                checksum: self.scene.work.cargo.checksum(),
                segment_bytes: if filled.has_data { self.scene.work.cargo.segment_bytes() } else { 0 },
            })
            .collect();
        let counted = || self.instructions.as_ref().map(InstructionCounter::read).transpose();
        let mut wrong = None;
        let before = counted()?;
        let started = Instant::now();
        for (batch, filled) in frames.chunks_mut(BATCH_MAX).zip(self.filled.chunks(BATCH_MAX)) {
            self.plane.process(now, batch, &mut self.verdicts, &mut self.desk, &mut self.out);
            let mut decided = self.verdicts.iter().zip(filled);
            let is_sent = |direction: Direction| Verdict::Send(self.scene.port(direction.opposite()));
            wrong = wrong
                .or(decided.find(|(verdict, filled)| **verdict != is_sent(filled.direction)).map(|(v, f)| (*v, *f)));
        }
        // The timers are part of the work, and have nothing to do yet.
        self.plane.expire(now, EXPIRE_BUDGET, &mut self.desk, &mut self.out);
        let time = started.elapsed();
        let instructions = counted()?.zip(before).map(|(after, before)| after - before);
        if let Some((verdict, Filled { flow, direction, .. })) = wrong {
            return Err(io::Error::other(format!(
                "a packet of flow {flow}, {direction:?}, was not sent on but {verdict:?}"
            )));
        }
        if !self.out.is_empty() {
            return Err(io::Error::other(format!("the plane made {} frames of its own", self.out.len())));
        }
        Ok(Cost { frames: self.filled.len(), time, instructions })
    }

    /// What the chunk, of SYNs, tells about its flows.
    fn learn(&mut self) -> io::Result<()> {
        for (slot, filled) in self.slots.iter().zip(&self.filled) {
            // What is none shows below.
            let Ok(Packet::Transport(read)) = parse(&slot.0[..filled.length]) else { continue };
            let Tuple { src, dst, src_port, .. } = read.tuple;
            self.opened[filled.flow] = Opened {
                port: src_port,
                source: src.0[15].wrapping_sub(SOURCE_NUMBER),
                server: dst.0[15].wrapping_sub(SERVER_NUMBER),
            };
        }
        self.verify()
    }

    /// Every frame of the chunk has become what it should, and is forgotten.
    fn verify(&mut self) -> io::Result<()> {
        for (slot, filled) in self.slots.iter_mut().zip(&self.filled) {
            let read = rewritten(slot, filled, self.scene.work.cargo.checksum())?;
            let expected = self.scene.outgoing(filled.flow, filled.direction, self.opened[filled.flow]);
            if read.tuple != expected {
                let message =
                    format!("a packet of flow {} has become {:?} instead of {expected:?}", filled.flow, read.tuple);
                return Err(io::Error::other(message));
            }
        }
        self.filled.clear();
        Ok(())
    }
}

/// The frame in a slot, which must be a whole packet with the right checksums, once those are made that were left to a card.
fn rewritten(slot: &mut Slot, filled: &Filled, checksum: Checksum) -> io::Result<Parsed> {
    let frame = &mut slot.0[..filled.length];
    let read = parse(frame);
    if let (Ok(Packet::Transport(parsed)), Checksum::Partial) = (&read, checksum) {
        // Its error is one of `is_intact`, too: the field is as it was.
        let _ = complete_checksum(frame, &Layout::from(parsed));
    }
    match read {
        Ok(Packet::Transport(parsed)) if is_intact(frame, &parsed) => Ok(parsed),
        other => Err(io::Error::other(format!(
            "a packet of flow {} has become {other:?}, or its checksum is wrong",
            filled.flow
        ))),
    }
}

/// Who talks to whom.
#[derive(Clone, Copy, Debug)]
struct Scene {
    work: InMemory,
}

impl Scene {
    /// Host `number` of the network of a port.
    fn host(&self, port: PortId, number: u8) -> IpAddr {
        match self.work.family {
            Family::V4 => IpAddr::from([10, 88, port.0 + 1, number]),
            Family::V6 => Ipv6Addr::new(0xfd88, 0, 0, u16::from(port.0) + 1, 0, 0, 0, number.into()).into(),
        }
    }

    fn vip(&self) -> SocketAddr {
        SocketAddr::new(self.host(FRONT, 100), SERVICE_PORT)
    }

    fn server(&self, number: u8) -> IpAddr {
        self.host(BACK, SERVER_NUMBER.wrapping_add(number))
    }

    /// Both ends of a packet as the server has it, seen from the client.
    fn inside(&self, flow: usize, opened: Opened) -> (SocketAddr, SocketAddr) {
        let source = match self.work.forwarding {
            Forwarding::FullNat => {
                SocketAddr::new(self.host(BACK, SOURCE_NUMBER.wrapping_add(opened.source)), opened.port)
            }
            Forwarding::Dsr | Forwarding::HalfNat => crowd::client(self.work.family, flow),
        };
        (source, SocketAddr::new(self.server(opened.server), SERVER_PORT))
    }

    /// From and to whom a packet comes.
    fn incoming(&self, flow: usize, direction: Direction, opened: Opened) -> (SocketAddr, SocketAddr) {
        match direction {
            Direction::Forward => (crowd::client(self.work.family, flow), self.vip()),
            Direction::Reverse => {
                let (source, server) = self.inside(flow, opened);
                (server, source)
            }
        }
    }

    /// What it is to become.
    fn outgoing(&self, flow: usize, direction: Direction, opened: Opened) -> Tuple {
        let (from, to) = match direction {
            Direction::Forward => self.inside(flow, opened),
            Direction::Reverse => (self.vip(), crowd::client(self.work.family, flow)),
        };
        Tuple {
            src: from.ip().into(),
            dst: to.ip().into(),
            src_port: from.port(),
            dst_port: to.port(),
            protocol: match self.work.cargo.protocol() {
                Protocol::Tcp => PROTOCOL_TCP,
                Protocol::Udp => PROTOCOL_UDP,
            },
        }
    }

    /// Where packets of a direction come in.
    fn port(&self, direction: Direction) -> PortId {
        match direction {
            Direction::Forward => FRONT,
            Direction::Reverse => BACK,
        }
    }

    fn settings(&self, flows: usize) -> PlaneSettings {
        PlaneSettings {
            flows_max: flows,
            half_open_max: HALF_OPEN_MAX,
            half_open_per_source_max: HALF_OPEN_PER_SOURCE_MAX,
            pending_frames_max: 64,
            replies_per_second: 1000,
            worker: WorkerId(0),
            seed: [0x7f4a_7c15_9e37_79b9, 0x1ce4_e5b9_bf58_476d],
            steering_seed: 0x2545_f491,
            strays: Strays::Drop,
        }
    }

    fn network(&self) -> Network {
        let prefix = match self.work.family {
            Family::V4 => 24,
            Family::V6 => 64,
        };
        let port = |id: PortId, name: &str, mac| Port {
            name: name.into(),
            index: 1 + u32::from(id.0),
            mac,
            mtu: 1500,
            addresses: vec![(self.host(id, 1).into(), prefix)],
            segments: true,
        };
        let router = self.host(FRONT, 2).into();
        let on_link = |id: PortId| (self.host(id, 0).into(), prefix, None, id, 0);
        // From behind a router, so that not every one of them is a neighbour.
        let clients = match self.work.family {
            Family::V4 => crowd::NETWORK_V4,
            Family::V6 => crowd::NETWORK_V6,
        };
        let neighbours = (0..MEMBERS).map(|number| (BACK, self.server(number).into(), server_mac(number)));
        Network::new(
            vec![port(FRONT, "front", FRONT_MAC), port(BACK, "back", BACK_MAC)],
            vec![on_link(FRONT), on_link(BACK), (clients.0.into(), clients.1, Some(router), FRONT, 0)],
            neighbours.chain([(FRONT, router, ROUTER_MAC)]).collect(),
        )
    }

    /// One service with all servers, and its id.
    fn snapshot(&self) -> io::Result<(ServiceId, Snapshot)> {
        let destinations: Vec<SocketAddr> =
            (0..MEMBERS).map(|number| SocketAddr::new(self.server(number), SERVER_PORT)).collect();
        let source = match self.work.forwarding {
            Forwarding::Dsr | Forwarding::HalfNat => ServiceSource::Client,
            Forwarding::FullNat => {
                let rule = SourcePool {
                    addresses: (0..MEMBERS).map(|number| self.host(BACK, SOURCE_NUMBER + number)).collect(),
                    port_low: 1024,
                    port_high: u16::MAX,
                    rest_ms: 60_000,
                    towards: Default::default(),
                };
                let pool =
                    SnatBook::new(SnatLimits::default()).pool(&rule, &[], self.work.cargo.protocol(), &destinations);
                ServiceSource::Pool(pool.map_err(io::Error::other)?)
            }
        };
        let id = ServiceId(0);
        let target = |(number, destination): (usize, &SocketAddr)| Target {
            server: RealServerId(number as u16),
            name: format!("server-{}", number + 1),
            address: destination.ip(),
            port: Some(destination.port()),
            weight: 100,
            max_connections: 0,
            admin: AdminState::Ready,
            health: ServerHealth::Up,
            check: None,
            reason: Arc::from("no health check configured"),
            since: Now(0),
        };
        let targets: Vec<Target> = destinations.iter().enumerate().map(target).collect();
        let real_servers = targets.iter().map(|target| {
            let Target { server, ref name, address, port, .. } = *target;
            Some(RealServer { id: server, name: name.clone(), address, port })
        });
        let real_servers = real_servers.collect();
        let service = Service {
            id,
            name: "relay".into(),
            vip: self.vip().ip(),
            ports: vec![SERVICE_PORT],
            protocol: self.work.cargo.protocol(),
            plane: PlaneKind::Packet,
            forwarding: self.work.forwarding,
            balance: Balance::LeastConnections,
            persistence: None,
            idle_timeout_ms: IDLE_TIMEOUT_MS,
            connect_timeout_ms: 4_000,
            drain_timeout_ms: 30_000,
            redispatch: 3,
            drop_on_failure: false,
            max_connections: 0,
            source,
            targets,
            maglev: None,
        };
        let snapshot = Snapshot {
            generation: Generation(1),
            services: vec![Some(Arc::new(service))],
            real_servers,
            steering: Arc::new(SteeringTable::even(1)),
        };
        Ok((id, snapshot))
    }
}

fn server_mac(number: u8) -> Mac {
    Mac([2, 0, 0, 0, 2, SERVER_NUMBER.wrapping_add(number)])
}

/// The Director for one thread, without persistence.
struct PlainDesk {
    balancer: BalancerState,
    persistence: PersistenceTable,
    loads: PlainLoads,
}

impl PlainDesk {
    fn new() -> PlainDesk {
        PlainDesk {
            balancer: BalancerState::new(1),
            persistence: PersistenceTable::new(0, 1),
            loads: PlainLoads::new(1, usize::from(MEMBERS)),
        }
    }
}

impl Desk for PlainDesk {
    fn pick(&mut self, service: &Service, client: SocketAddr, now: Now) -> Result<Pick, Refusal> {
        let tried = Tried::new();
        towpath_core::pick(service, &mut self.balancer, &mut self.persistence, &self.loads, client, &tried, now)
    }

    fn close(&mut self, service: ServiceId, server: RealServerId) {
        self.loads.close(service, server);
    }

    fn count(&mut self, _service: ServiceId, _counter: ServiceCounter, _n: u64) {}

    fn end(&mut self, _service: ServiceId, _termination: Termination) {}

    fn opened(&mut self, _server: RealServerId) {}

    /// As a worker of the daemon does.
    #[inline(always)]
    fn prefetch(&self, line: *const u8) {
        prefetch(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_mode_family_and_flows() {
        let name = |cargo, flows| InMemory { forwarding: Forwarding::FullNat, family: Family::V6, cargo, flows }.name();
        assert_eq!(
            [1000, 10_000_000, 1500].map(|flows| name(Cargo::Segments, flows)),
            ["memory-full-nat-v6-1k", "memory-full-nat-v6-10M", "memory-full-nat-v6-1500"]
        );
        assert_eq!(name(Cargo::Datagrams, 1000), "memory-full-nat-v6-udp-1k");
    }

    #[test]
    fn every_packet_of_a_few_flows_arrives_as_it_should() {
        let modes = [Forwarding::FullNat, Forwarding::HalfNat].map(|mode| [(mode, Family::V4), (mode, Family::V6)]);
        let cargoes = [Cargo::Datagrams, Cargo::Segments, Cargo::SegmentsUnsummed, Cargo::SuperSegments];
        for ((forwarding, family), cargo) in
            modes.into_iter().flatten().flat_map(|mode| cargoes.map(|cargo| (mode, cargo)))
        {
            let work = InMemory { forwarding, family, cargo, flows: 5000 };
            let readings = measure(&work, Duration::ZERO, Duration::from_millis(20)).unwrap();
            assert!(readings.iter().all(|reading| reading.value > 0.0), "{work:?}: {readings:?}");
        }
    }
}
