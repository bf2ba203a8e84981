//! How many instructions a packet takes, where the processor shows no counter of them: valgrind runs this program with few flows and counts.
//!
//! Few do, as the count hardly depends on how many there are; and it is nearly the same each time, so each case is counted once.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use towpath_core::Now;
use towpath_core::plane::{Frame, Outbox, Plane, Verdict};
use towpath_core::random::SplitMix64;
use towpath_sys::instructions::InstructionCounter;

use super::bench::{Bench, CHUNK_FRAMES};
use super::scene::PlainDesk;
use super::{INSTRUCTIONS, InMemory};
use crate::suite::Options;
use crate::suite::sample::Reading;

/// Flows that are counted with, at most.
const FLOWS_MAX: usize = 4 * CHUNK_FRAMES;

/// Packets of established flows that are counted.
const PACKETS: usize = CHUNK_FRAMES;

/// What is counted by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Stretch {
    /// The packets that create flows.
    Openings,
    /// Packets of flows that are established.
    Packets,
    /// Any others.
    #[value(skip)]
    Others,
}

impl Stretch {
    /// What its figure is called.
    pub(super) fn metric(self) -> &'static str {
        match self {
            Stretch::Openings => "first-packet-instructions",
            Stretch::Packets => "packet-instructions",
            Stretch::Others => "other-instructions",
        }
    }

    /// On a command line.
    fn word(self) -> &'static str {
        match self {
            Stretch::Openings => "openings",
            Stretch::Packets => "packets",
            Stretch::Others => "others",
        }
    }
}

/// What was counted in this run so far, by the names of cases.
#[derive(Clone, Debug, Default)]
pub struct Counts(Arc<Mutex<BTreeMap<(String, &'static str), f64>>>);

/// Who counts instructions on this machine; none where nobody does.
pub fn counter() -> Option<&'static str> {
    if InstructionCounter::open().is_some() {
        return Some("the processor");
    }
    let asked = Command::new("valgrind").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success()).then_some("valgrind")
}

/// Instructions of a packet and of an opening, unless they are among these readings, or were told before in this run.
pub(super) fn readings(work: &InMemory, told: &[Reading], options: &Options) -> io::Result<Vec<Reading>> {
    let is_told = |stretch: Stretch| told.iter().any(|reading| reading.metric == stretch.metric());
    let mut readings = Vec::new();
    if is_told(Stretch::Packets) || counter() != Some("valgrind") {
        return Ok(readings);
    }
    let few = InMemory { flows: work.flows.min(FLOWS_MAX), ..*work };
    for stretch in [Stretch::Packets, Stretch::Openings] {
        let mut counts = options.counts.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let key = (few.name(), stretch.metric());
        let value = match counts.get(&key) {
            Some(&value) => value,
            None => *counts.entry(key).or_insert(count(&few, stretch, &options.program)?),
        };
        readings.push(Reading { metric: stretch.metric(), unit: INSTRUCTIONS.into(), value, comparable: true });
    }
    Ok(readings)
}

/// Has valgrind run `program` with [`run`] and count what [`feed_watched`] executes.
fn count(work: &InMemory, stretch: Stretch, program: &Path) -> io::Result<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg("--toggle-collect=*counted*feed_watched*")
        .arg(program)
        .args(["instructions", &work.name(), "--flows", &work.flows.to_string(), "--of", stretch.word()])
        .output()?;
    let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let collected = told.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse::<u64>().ok());
    match (output.status.success(), said.trim().parse::<u64>(), collected) {
        (true, Ok(packets @ 1..), Some(instructions @ 1..)) => Ok(instructions as f64 / packets as f64),
        _ => Err(io::Error::other(format!("valgrind has counted nothing: {told}"))),
    }
}

/// Does the work with one stretch watched; returns its packets.
pub fn run(work: &InMemory, stretch: Stretch) -> io::Result<usize> {
    let mut bench = Bench::new(*work, Some(stretch))?;
    let opening = bench.open()?;
    if stretch == Stretch::Openings {
        return Ok(opening.first.frames);
    }
    let mut random = SplitMix64::new(work.flows as u64);
    bench.visit(&mut random)?;
    let mut packets = 0;
    while packets < PACKETS {
        packets += bench.exchange(&mut random, Duration::ZERO)?.frames;
    }
    Ok(packets)
}

/// Feeds a batch to the plane.
#[inline(never)]
pub(super) fn feed(
    plane: &mut Plane,
    now: Now,
    batch: &mut [Frame<'_>],
    verdicts: &mut Vec<Verdict>,
    desk: &mut PlainDesk,
    out: &mut Outbox,
) {
    plane.process(now, batch, verdicts, desk, out);
}

/// The same, for whoever knows it by its name.
#[inline(never)]
pub(super) fn feed_watched(
    plane: &mut Plane,
    now: Now,
    batch: &mut [Frame<'_>],
    verdicts: &mut Vec<Verdict>,
    desk: &mut PlainDesk,
    out: &mut Outbox,
) {
    feed(plane, now, batch, verdicts, desk, out);
}
