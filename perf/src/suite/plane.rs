//! A turn in memory: the packet plane alone, from reading a frame to rewriting it, on one CPU and without the kernel.

mod bench;
pub mod counted;
mod scene;

use std::io;
use std::time::Duration;

use towpath_config::model::{Forwarding, Protocol};
use towpath_core::packet::Family;
use towpath_core::packet::rewrite::Checksum;
use towpath_core::plane::Plane;
use towpath_core::random::SplitMix64;
use towpath_sys::host;

use super::sample::{Reading, Sample};
use super::{Case, Options, on_cpus};
use crate::cpu::{CpuTime, run_time_ns};
use crate::peers::forwarding_word;
use bench::{Bench, Opened, PAYLOAD};
use counted::Stretch;
use scene::{IDLE_TIMEOUT_MS, Scene};

/// Most flows: each server's port at each SNAT address, with room to spare.
pub const FLOWS_MAX: usize = 15_000_000;

/// After this the last connection that was closed is forgotten: 60 s after its end, as long as its source port would rest.
const CLOSED_MS: u64 = 70_000;

/// Segments with data of the connection whose whole time is told, beside those of its handshake and of its end.
const DATA_SEGMENTS: u32 = 3;

/// After this the last flow has been silent for too long.
const FAR_MS: u64 = 2 * IDLE_TIMEOUT_MS;

/// What a flow takes, beside the plane's own 128 bytes: what this measurement remembers of it, and its place in a row of all.
const OPENED_BYTES: u64 = (size_of::<Opened>() + size_of::<u32>()) as u64;

/// Of everything that does not depend on the number of flows.
const FIXED_BYTES: u64 = 256 << 20;

/// Unit of what is counted with them.
const INSTRUCTIONS: &str = "instructions";

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
    let (mut readings, used, own_s) = on_cpus(&cpu, || {
        let (own_before, before) = (run_time_ns(&own), CpuTime::read(&cpu)?);
        let readings = measure(work, options.warm_up, options.measure)?;
        // While this thread lives: afterwards its time is nobody's.
        let own_s = (run_time_ns(&own) - own_before) as f64 / 1e9;
        let used = CpuTime::read(&cpu)?.into_iter().zip(before).map(|(after, before)| after.since(before)).next();
        Ok((readings, used.unwrap_or_default(), own_s))
    })?;
    for counted in counted::readings(work, &readings, options)? {
        // Beside the time of the same.
        let time = counted.metric.replace("instructions", "time");
        let place =
            readings.iter().position(|reading| reading.metric == time).map_or(readings.len(), |place| place + 1);
        readings.insert(place, counted);
    }
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
    let mut bench = Bench::new(*work, None)?;
    let opening = bench.open()?;
    let mut random = SplitMix64::new(work.flows as u64);
    // What only the first packets of a flow need is done once for each of them, however many there are.
    let visited = bench.visit(&mut random)?;
    bench.exchange(&mut random, warm_up)?;
    let exchanged = bench.exchange(&mut random, counted)?;
    // Datagrams have no end that can be seen.
    let ended = match work.cargo.protocol() {
        Protocol::Tcp => Some(bench.close(&mut random, CLOSED_MS)?),
        Protocol::Udp => None,
    };
    let left = work.flows - ended.as_ref().map_or(0, |ended| ended.flows);
    let expiry = bench.expire(FAR_MS, left)?;
    bench.verify_end()?;

    let reading = |metric, unit: &str, value| Reading { metric, unit: unit.into(), value, comparable: true };
    let flows = work.flows as f64;
    let mut readings = vec![reading("packet-time", "ns", exchanged.ns_each())];
    readings.extend(exchanged.instructions_each().map(|each| reading(Stretch::Packets.metric(), INSTRUCTIONS, each)));
    readings.push(reading("first-packet-time", "ns", opening.first.ns_each()));
    readings.extend(opening.first.instructions_each().map(|n| reading(Stretch::Openings.metric(), INSTRUCTIONS, n)));
    readings.push(reading("created-rate", "flows/s", flows / opening.first.time.as_secs_f64()));
    readings.push(reading("established-rate", "flows/s", flows / opening.whole.time.as_secs_f64()));
    if work.flows >= WHOLE_TOLD_FROM {
        if let Some(ended) = ended {
            let ending_ns = ended.time.as_nanos() as f64 / ended.flows as f64;
            let opening_ns = opening.whole.time.as_nanos() as f64 / flows;
            // The first ones each way cost more.
            let data_ns = 2.0 * visited.ns_each() + f64::from(DATA_SEGMENTS - 2) * exchanged.ns_each();
            readings.push(reading("ending-time", "ns", ending_ns));
            readings.push(reading("connection-time", "ns", opening_ns + data_ns + ending_ns));
        }
        readings.push(reading("expiry-time", "ns", expiry.as_nanos() as f64 / left as f64));
        readings.push(reading("memory", "B/flow", bench.memory_bytes() as f64 / flows));
    }
    Ok(readings)
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
