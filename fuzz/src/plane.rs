//! Arbitrary frames and steps against one small packet plane.
//!
//! An input is a byte that chooses the configuration, then steps: a byte that says which, and what it needs. Whatever the bytes are, the plane
//! must not panic, keeps its bounds, sends only what it would take itself, and after all timeouts has given everything back.

use std::sync::Arc;

use towpath_config::Model;
use towpath_config::model::AdminState;
use towpath_core::compile::compile;
use towpath_core::health::HealthBoard;
use towpath_core::http::{HttpMaterial, HttpSecret};
use towpath_core::packet::rewrite::Checksum;
use towpath_core::packet::{DropReason, ETHERNET_LEN, checksum, parse};
use towpath_core::plane::{BATCH_MAX, Frame, Network, Outbox, Plane, PortId, Verdict};
use towpath_core::registry::Registry;
use towpath_core::snapshot::{ServerHealth, ServiceSource, Snapshot};
use towpath_core::snat::{SnatBook, SnatLimits};
use towpath_core::steering::SteeringTable;
use towpath_core::{Generation, Now};

use crate::bench::{self, SETTINGS, TestDesk};
use crate::capture::{Captured, Offload};

/// A case of the packet corpus: its name and its configuration.
macro_rules! config {
    ($case:literal) => {
        ($case, include_str!(concat!("../../tests/packets/", $case, "/config.toml")))
    };
}

/// The configurations, those of the packet corpus.
pub(crate) const CONFIGS: [(&str, &str); 20] = [
    config!("dsr-v4-tcp"),
    config!("fragments-half-nat-v4-udp"),
    config!("fragments-v4-udp"),
    config!("fragments-v6-udp"),
    config!("full-nat-v4-tcp"),
    config!("full-nat-v4-udp"),
    config!("full-nat-v6-tcp"),
    config!("full-nat-v6-udp"),
    config!("hairpin-other-server"),
    config!("hairpin-same-server"),
    config!("half-nat-v4-tcp"),
    config!("outbound-refused"),
    config!("outbound-v4-udp"),
    config!("outbound-v6-tcp"),
    config!("pool-exhausted"),
    config!("router-rules"),
    config!("v4-to-v6-fragments"),
    config!("v4-to-v6-tcp"),
    config!("v6-to-v4-tcp"),
    config!("v6-to-v4-udp"),
];

/// Steps of one input; more bytes are left unread, so that no input takes long.
const STEPS_MAX: usize = 512;
/// Longer than any timeout of the corpus's configurations, rests included.
const FOR_EVER_MS: u64 = 3 * 3_600_000;
/// Room for what the plane makes.
const MADE_MAX: usize = 256;

/// The kinds of steps; a byte stands for the one of its remainder.
const KINDS: u8 = 8;
const FRAME: u8 = 0;
const LAST_FRAME_OF_A_BATCH: u8 = 1;
const PARTIAL_FRAME: u8 = 2;
const SUPER_PACKET: u8 = 3;
/// Whose IPv4 header checksum is made right.
const MENDED_FRAME: u8 = 4;
const WAIT: u8 = 5;
const SNAPSHOT: u8 = 6;
const NETWORK: u8 = 7;

/// The input that plays these frames, or `None` when no configuration has this name.
pub(crate) fn input_of(case: &str, frames: &[Captured]) -> Option<Vec<u8>> {
    let config = CONFIGS.iter().position(|(name, _)| *name == case)?;
    let mut input = vec![config as u8];
    let mut now_ms = 0;
    for Captured { at_ms, port, offload, bytes } in frames {
        while at_ms - now_ms > 0 {
            let ticks = u16::try_from((at_ms - now_ms).div_ceil(TICK_MS)).unwrap_or(u16::MAX);
            input.push(WAIT);
            input.extend(ticks.to_be_bytes());
            now_ms = (now_ms + u64::from(ticks) * TICK_MS).min(*at_ms);
        }
        let kind = match offload {
            Offload::Nothing => FRAME,
            Offload::Checksum => PARTIAL_FRAME,
            Offload::Segments(_) => SUPER_PACKET,
        };
        input.extend([kind, port.0]);
        input.extend((bytes.len() as u16).to_be_bytes());
        input.extend(bytes);
    }
    Some(input)
}

/// The least that a step waits.
const TICK_MS: u64 = 10;

/// Plays an input.
///
/// # Panics
/// When the plane does, or breaks its word.
pub(crate) fn run(input: &[u8]) {
    let Some((&config, mut steps)) = input.split_first() else { return };
    let (_, config) = CONFIGS[usize::from(config) % CONFIGS.len()];
    let mut world = World::new(bench::model(config).expect("a configuration of the corpus"));
    for _ in 0..STEPS_MAX {
        if world.step(&mut steps).is_none() {
            break;
        }
    }
    world.end();
}

struct World {
    model: Model,
    registry: Registry,
    book: SnatBook,
    /// All that were in force: flows may still hold what their pools leased.
    snapshots: Vec<Arc<Snapshot>>,
    plane: Plane,
    desk: TestDesk,
    out: Outbox,
    now: Now,
    frames: Vec<Input>,
}

struct Input {
    /// The room in front of the frame, and the frame.
    memory: Vec<u8>,
    front_bytes: usize,
    port: PortId,
    checksum: Checksum,
    segment_bytes: u16,
}

impl World {
    fn new(model: Model) -> World {
        let (mut registry, mut book) = (Registry::new(), SnatBook::new(SnatLimits::default()));
        let snapshot = snapshot(&model, &mut registry, &mut book, Generation(1));
        let plane = Plane::new(&SETTINGS, Arc::clone(&snapshot), Arc::new(bench::network()), Now(0));
        World {
            model,
            registry,
            book,
            desk: TestDesk::new(&snapshot),
            snapshots: vec![snapshot],
            plane,
            out: Outbox::new(MADE_MAX, MADE_MAX << 8),
            now: Now(0),
            frames: Vec::new(),
        }
    }

    /// Takes one step off the input; `None` when it is used up.
    fn step(&mut self, steps: &mut &[u8]) -> Option<()> {
        let kind = steps.split_off_first()? % KINDS;
        match kind {
            WAIT => {
                let ticks = half(steps)?;
                self.flush();
                self.wait(u64::from(ticks) * TICK_MS);
            }
            SNAPSHOT => {
                let changes = *steps.split_off_first()?;
                self.flush();
                self.change(changes);
            }
            NETWORK => {
                let knows = *steps.split_off_first()?;
                self.flush();
                let network = if knows & 1 == 0 { Network::default() } else { bench::network() };
                self.plane.adopt_network(Arc::new(network), &mut self.out);
                self.take_made();
            }
            frame => {
                let place = *steps.split_off_first()?;
                let front_bytes = if place / 3 % 2 == 0 { Frame::FRONT } else { 0 };
                let len = usize::from(half(steps)?).min(steps.len());
                let mut memory = [&[0; Frame::FRONT][..front_bytes], steps.split_off(..len)?].concat();
                if frame == MENDED_FRAME {
                    mend(&mut memory[front_bytes..]);
                }
                self.frames.push(Input {
                    memory,
                    front_bytes,
                    port: PortId(place % 3),
                    checksum: if frame >= PARTIAL_FRAME && frame != MENDED_FRAME {
                        Checksum::Partial
                    } else {
                        Checksum::Complete
                    },
                    segment_bytes: if frame == SUPER_PACKET { 1_448 } else { 0 },
                });
                if frame == LAST_FRAME_OF_A_BATCH || self.frames.len() == BATCH_MAX {
                    self.flush();
                }
            }
        }
        Some(())
    }

    /// Hands the frames that were gathered to the plane.
    fn flush(&mut self) {
        let mut inputs = std::mem::take(&mut self.frames);
        let mut frames: Vec<Frame<'_>> = inputs
            .iter_mut()
            .map(|input| {
                let (front, bytes) = input.memory.split_at_mut(input.front_bytes);
                let Input { port, checksum, segment_bytes, .. } = *input;
                Frame { bytes, front, port, checksum, segment_bytes }
            })
            .collect();
        let mut verdicts = Vec::new();
        self.plane.process(self.now, &mut frames, &mut verdicts, &mut self.desk, &mut self.out);
        assert_eq!(verdicts.len(), frames.len());
        for (input, verdict) in inputs.iter().zip(verdicts) {
            let (port, begins) = match verdict {
                Verdict::Send(port) => (port, 0),
                Verdict::Translated { port, begins } => (port, begins),
                Verdict::Drop(_) | Verdict::HandOff(_) | Verdict::Kept | Verdict::Pass => continue,
            };
            let start = input.front_bytes.checked_add_signed(begins.into()).expect("within the room in front");
            let frame = &input.memory[start..];
            assert!(port.0 < 2, "no such port: {port:?}");
            assert!(is_readable(frame, &self.model), "{:?}: {frame:02x?}", parse(frame));
        }
        assert!(self.plane.half_open() <= SETTINGS.half_open_max);
        assert!(self.plane.flows() <= SETTINGS.half_open_max + SETTINGS.flows_max);
        self.take_made();
    }

    fn take_made(&mut self) {
        for (port, frame) in self.out.iter() {
            let is_readable = is_readable(frame, &self.model);
            assert!(port.0 < 2 && is_readable, "{port:?} {:?}: {frame:02x?}", parse(frame));
        }
        self.out.clear();
    }

    fn wait(&mut self, ms: u64) {
        self.now = self.now + ms;
        // Each call does something, or says that it is done.
        for _ in 0..10_000 {
            let is_done = self.plane.expire(self.now, 64, &mut self.desk, &mut self.out);
            self.take_made();
            if is_done {
                return;
            }
        }
        panic!("what is due does not come to an end");
    }

    /// A reload: the first server is ready, drained, halted or down, and connections are dropped for that or not.
    fn change(&mut self, changes: u8) {
        let mut model = self.model.clone();
        for service in &mut model.services {
            service.drop_on_failure = changes & 8 != 0;
            let admin = match changes & 3 {
                0 | 1 => AdminState::Ready,
                2 => AdminState::Drain,
                _ => AdminState::Halt,
            };
            model.groups[service.group].servers[0].admin = admin;
        }
        let generation = Generation(self.snapshots.len() as u64 + 1);
        let mut next = snapshot(&model, &mut self.registry, &mut self.book, generation);
        if changes & 3 == 1 {
            for service in Arc::make_mut(&mut next).services.iter_mut().flatten() {
                Arc::make_mut(service).targets[0].health = ServerHealth::Down;
            }
        }
        self.plane.adopt_snapshot(Arc::clone(&next));
        self.snapshots.push(next);
    }

    /// Everything ends by itself, and nothing is left of it.
    fn end(mut self) {
        self.flush();
        self.wait(FOR_EVER_MS);
        self.wait(FOR_EVER_MS);
        assert_eq!(self.plane.flows(), 0, "flows that never end");
        for snapshot in &self.snapshots {
            for service in snapshot.each_service() {
                assert_eq!(self.desk.active_of(service.id), 0, "connections that are still counted");
                let ServiceSource::Pool(pool) = &service.source else { continue };
                assert_eq!(pool.fill().map(|fill| fill.leased).sum::<u32>(), 0, "ports that are still leased");
            }
            for lane in snapshot.outbound.each().flat_map(|nat| nat.lanes()) {
                assert_eq!(lane.pool.fill().map(|fill| fill.leased).sum::<u32>(), 0, "ports that are still leased");
            }
        }
    }
}

fn snapshot(model: &Model, registry: &mut Registry, book: &mut SnatBook, generation: Generation) -> Arc<Snapshot> {
    let steering = Arc::new(SteeringTable::even(1));
    Arc::new(
        compile(
            model,
            registry,
            &HealthBoard::new(),
            book,
            steering,
            &HttpMaterial::new(HttpSecret::new([7; 16])),
            generation,
        )
        .expect("it compiles"),
    )
}

/// Whether the plane would take a frame itself; of what is only routed, who receives it has to understand the inside.
fn is_readable(frame: &[u8], model: &Model) -> bool {
    use DropReason::{IcmpEmbedded, IcmpEmbeddedFragment, IcmpEmbeddedSource, UdpChecksumMissing};
    match parse(frame) {
        Ok(_) => true,
        Err(IcmpEmbedded | IcmpEmbeddedFragment | IcmpEmbeddedSource | UdpChecksumMissing) => model.router.enabled,
        Err(_) => false,
    }
}

fn half(steps: &mut &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes([*steps.split_off_first()?, *steps.split_off_first()?]))
}

/// Makes the checksum of an IPv4 header right: changed bytes would come no further than that.
fn mend(frame: &mut [u8]) {
    let Some((ethernet, packet)) = frame.split_at_mut_checked(ETHERNET_LEN) else { return };
    let Some(&first) = packet.first() else { return };
    let len = usize::from(first & 0x0f) * 4;
    if ethernet[12..] != [0x08, 0x00] || len < 20 || packet.len() < len {
        return;
    }
    packet[10..12].fill(0);
    let sum = checksum::of(&packet[..len]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}
