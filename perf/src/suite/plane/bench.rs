//! A plane in memory, and the packets that are fed to it: only feeding them is measured.

use std::io;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::{Duration, Instant};

use towpath_config::model::Protocol;
use towpath_core::flow::Direction;
use towpath_core::packet::rewrite::{Checksum, Layout, complete_checksum};
use towpath_core::packet::{Packet, Parsed, TcpFlags, Tuple, parse};
use towpath_core::plane::{BATCH_MAX, Frame, Outbox, Plane, PlaneCounter, Verdict};
use towpath_core::random::SplitMix64;
use towpath_core::{Now, ServiceId};
use towpath_sys::instructions::InstructionCounter;
use towpath_sys::pages;

use super::InMemory;
use super::counted::{self, Stretch};
use super::scene::{BACK_MAC, FRONT_MAC, PlainDesk, ROUTER_MAC, SERVER_NUMBER, SOURCE_NUMBER, Scene, server_mac};
use crate::crowd;
use crate::segment::{Datagram, HEADERS_LEN_MAX, Segment, flags, is_intact};

/// Frames that are written before they are taken one batch after the other: writing them is not measured, and they lie in the core's own
/// cache as those do that a device or a neighbour has just delivered.
pub(super) const CHUNK_FRAMES: usize = 64 * BATCH_MAX;

/// Octets that an established flow carries in each frame.
pub(super) const PAYLOAD: [u8; 64] = [0x5a; 64];

/// Payloads that each side sends before it begins again: less than the window of a SYN.
const SENT_MAX: u32 = 512;

/// Room for a frame: whole cache lines.
const SLOT_BYTES: usize = (HEADERS_LEN_MAX + PAYLOAD.len()).next_multiple_of(64);

/// Flows that the timers may look at between two chunks, as a worker does between two breaths.
const EXPIRE_BUDGET: usize = 256;

/// What both sides have sent before they close: the last payload of a turn included.
const SENT_BEFORE_END: u32 = SENT_MAX * PAYLOAD.len() as u32;

/// What frames have cost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    pub(super) frames: usize,
    pub(super) time: Duration,
    /// None where they are not counted.
    instructions: Option<u64>,
}

impl Cost {
    pub(super) fn ns_each(&self) -> f64 {
        self.time.as_nanos() as f64 / self.frames.max(1) as f64
    }

    pub(super) fn instructions_each(&self) -> Option<f64> {
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

/// Flows that were opened.
pub(super) struct Opening {
    /// The SYNs alone: Director, lease, insertion. Each creates its flow.
    pub(super) first: Cost,
    /// All three segments of the handshakes, which establish it.
    pub(super) whole: Cost,
}

/// Connections that their ends have closed: four segments each, and that they are forgotten.
pub(super) struct Ending {
    pub(super) flows: usize,
    pub(super) time: Duration,
}

/// What is needed to make the server's packets of a flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opened {
    /// Source port towards the server; of half-NAT, the client's.
    pub(super) port: u16,
    /// Number of the SNAT address; not used in half-NAT.
    pub(super) source: u8,
    /// Number of the real server.
    pub(super) server: u8,
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
pub(super) struct Bench {
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
    service: ServiceId,
    memory_bytes: usize,
    /// What somebody counts who watches this process from outside.
    watched: Option<Stretch>,
}

impl Bench {
    /// A plane with room for the flows, and nothing in it.
    pub(super) fn new(work: InMemory, watched: Option<Stretch>) -> io::Result<Bench> {
        let opened = vec![Opened { port: 1, source: 1, server: 1 }; work.flows];
        let scene = Scene { work };
        let (service, snapshot) = scene.snapshot()?;
        let settings = scene.settings(work.flows);
        let plane = Plane::new(&settings, Arc::new(snapshot), Arc::new(scene.network()), Now(0));
        // As a worker of the daemon does.
        plane.memory().for_each(|memory| {
            pages::prefer_huge(memory);
        });
        Ok(Bench {
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
            service,
            // All at once and for good; what the process has more than before would also tell what the allocator had kept from a case before.
            memory_bytes: Plane::memory_bytes(&settings),
            watched,
        })
    }

    /// What the plane takes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    fn now(&self) -> Now {
        Now(self.started.elapsed().as_millis() as u64)
    }

    /// Completes the handshake of every flow.
    pub(super) fn open(&mut self) -> io::Result<Opening> {
        let mut opening = Opening { first: Cost::default(), whole: Cost::default() };
        let flows = self.opened.len();
        for first in (0..flows).step_by(CHUNK_FRAMES) {
            let chunk = first..flows.min(first + CHUNK_FRAMES);
            let syn = flags(&[TcpFlags::SYN]);
            chunk.clone().for_each(|flow| self.fill(flow, Direction::Forward, syn, [0; 2]));
            let cost = self.take(Stretch::Openings)?;
            opening.first += cost;
            opening.whole += cost;
            self.learn()?;
            let syn_ack = flags(&[TcpFlags::SYN, TcpFlags::ACK]);
            chunk.clone().for_each(|flow| self.fill(flow, Direction::Reverse, syn_ack, [0; 2]));
            opening.whole += self.take(Stretch::Others)?;
            self.verify()?;
            // The server's datagram has established the flow.
            if self.scene.work.cargo.protocol() == Protocol::Udp {
                continue;
            }
            chunk.for_each(|flow| self.fill(flow, Direction::Forward, TcpFlags::ACK, [0; 2]));
            opening.whole += self.take(Stretch::Others)?;
            self.verify()?;
        }
        match (self.plane.flows(), self.plane.half_open()) {
            (open, 0) if open == flows => Ok(opening),
            (open, half) => {
                Err(io::Error::other(format!("{flows} flows were opened, and there are {open}, {half} half open")))
            }
        }
    }

    /// A packet each way of every flow, in an order drawn by lot: the first ones with data.
    pub(super) fn visit(&mut self, random: &mut SplitMix64) -> io::Result<Cost> {
        let mut cost = Cost::default();
        for direction in Direction::BOTH {
            for chunk in drawn(random, self.opened.len(), self.opened.len()).chunks(CHUNK_FRAMES) {
                let data = flags(&[TcpFlags::ACK, TcpFlags::PSH]);
                chunk.iter().for_each(|&flow| self.fill(flow as usize, direction, data, [0; 2]));
                cost += self.take(Stretch::Others)?;
                self.verify()?;
            }
        }
        Ok(cost)
    }

    /// Packets of flows drawn by lot, either way, for about so long with all that is not measured.
    pub(super) fn exchange(&mut self, random: &mut SplitMix64, duration: Duration) -> io::Result<Cost> {
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
            cost += self.take(Stretch::Packets)?;
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

    /// Closes half of the connections, drawn by lot, the client first, and has them forgotten after `forgotten_ms`.
    pub(super) fn close(&mut self, random: &mut SplitMix64, forgotten_ms: u64) -> io::Result<Ending> {
        let all = self.opened.len();
        let half = all / 2;
        let flows = drawn(random, all, half);
        let fin = flags(&[TcpFlags::FIN, TcpFlags::ACK]);
        let (sent, ended) = (SENT_BEFORE_END, SENT_BEFORE_END + 1);
        let segments = [
            (Direction::Forward, fin, [sent, 0]),
            (Direction::Reverse, TcpFlags::ACK, [sent, ended]),
            (Direction::Reverse, fin, [sent, ended]),
            (Direction::Forward, TcpFlags::ACK, [ended, ended]),
        ];
        let mut time = Duration::ZERO;
        for chunk in flows.chunks(CHUNK_FRAMES) {
            for (direction, flags, numbers) in segments {
                chunk.iter().for_each(|&flow| self.fill(flow as usize, direction, flags, numbers));
                time += self.take(Stretch::Others)?.time;
                self.verify()?;
            }
        }
        let counted = self.desk.loads.active_of_service(self.service) as usize;
        if counted + half != all {
            return Err(io::Error::other(format!("{half} of {all} were closed, and {counted} are counted")));
        }
        time += self.expire(forgotten_ms, half)?;
        Ok(Ending { flows: half, time })
    }

    /// Has flows end because nobody has used them for so long: as many as this. The time of it.
    pub(super) fn expire(&mut self, silent_ms: u64, flows: usize) -> io::Result<Duration> {
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
    pub(super) fn verify_end(&self) -> io::Result<()> {
        match (self.plane.flows(), self.desk.loads.active_of_service(self.service)) {
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
    fn take(&mut self, stretch: Stretch) -> io::Result<Cost> {
        let now = self.now();
        let mut frames: Vec<Frame<'_>> = self
            .slots
            .iter_mut()
            .zip(&self.filled)
            .map(|(slot, filled)| Frame {
                bytes: &mut slot.0[..filled.length],
                front: &mut [],
                port: self.scene.port(filled.direction),
                checksum: self.scene.work.cargo.checksum(),
                segment_bytes: if filled.has_data { self.scene.work.cargo.segment_bytes() } else { 0 },
            })
            .collect();
        let counted = || self.instructions.as_ref().map(InstructionCounter::read).transpose();
        let feed = if self.watched == Some(stretch) { counted::feed_watched } else { counted::feed };
        let mut wrong = None;
        let before = counted()?;
        let started = Instant::now();
        for (batch, filled) in frames.chunks_mut(BATCH_MAX).zip(self.filled.chunks(BATCH_MAX)) {
            feed(&mut self.plane, now, batch, &mut self.verdicts, &mut self.desk, &mut self.out);
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

/// So many of `all` flows, each once, in an order drawn by lot.
fn drawn(random: &mut SplitMix64, all: usize, count: usize) -> Vec<u32> {
    let mut flows: Vec<u32> = (0..all as u32).collect();
    for place in 0..count {
        let other = place + random.below((all - place) as u64) as usize;
        flows.swap(place, other);
    }
    flows.truncate(count);
    flows
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
