//! The packet suite: Towpath's packet plane beside its peers over veth, and alone in memory.

use towpath_config::model::{Forwarding, Plane};
use towpath_core::packet::Family;

use super::{Accounting, Cargo, Case, Course, InMemory, Mode, plane, relay, udp};

/// Of the loads of the other suites: bulk, requests, new connections, small packets.
const LOADS: [&str; 9] = [
    "keepalive-128B-4c",
    "keepalive-128B-64c",
    "keepalive-128B-1024c",
    "connect",
    "bulk-1",
    "bulk-4",
    "bulk-64",
    "datagrams-128B-64f",
    "datagrams-128B-1024f",
];

/// Of these, what is measured in other modes than full-NAT over IPv4, too.
const LOADS_OF_MODES: [&str; 4] = ["keepalive-128B-64c", "connect", "bulk-4", "datagrams-128B-64f"];

/// The other modes.
const MODES: [Mode; 4] = [
    Mode::through(Forwarding::FullNat, Family::V6),
    Mode::through(Forwarding::HalfNat, Family::V4),
    Mode::through(Forwarding::HalfNat, Family::V6),
    Mode::ROUTED,
];

/// More than all that wait on their way at a time, so that nobody waits for the next one.
const CROWD: Course = Course::Churn { at_once: 256 };

/// What the plane carries in memory.
const IN_MEMORY: [(Forwarding, Family, Cargo); 7] = [
    (Forwarding::FullNat, Family::V4, Cargo::Segments),
    (Forwarding::FullNat, Family::V4, Cargo::SegmentsUnsummed),
    (Forwarding::FullNat, Family::V4, Cargo::SuperSegments),
    (Forwarding::FullNat, Family::V4, Cargo::Datagrams),
    (Forwarding::FullNat, Family::V6, Cargo::Segments),
    (Forwarding::HalfNat, Family::V4, Cargo::Segments),
    (Forwarding::HalfNat, Family::V6, Cargo::Segments),
];

/// Flows that only the first of these is measured with by itself: they take minutes, and what differs shows with fewer.
pub const FLOWS_MANY: usize = 10_000_000;

/// Loads over veth under these accountings, and the plane in memory with each of these numbers of flows.
pub fn cases(accountings: &[Accounting], flows: &[usize]) -> Vec<Case> {
    let mut courses = relay::courses();
    courses.extend(udp::courses());
    courses.retain(|(name, _)| LOADS.contains(name));
    let in_memory = IN_MEMORY.into_iter().flat_map(|mode| flows.iter().map(move |&flows| in_memory_case(mode, flows)));
    // Connections of kernels are more work for these than for a packet plane; and what a subject costs at rest and for one request does not show under load.
    let others = [("connect-crowd", CROWD), ("round-trip", Course::RoundTrip), ("idle-cpu", Course::Idle)];
    let of_modes: Vec<_> = courses.iter().filter(|(name, _)| LOADS_OF_MODES.contains(name)).cloned().collect();
    let under = |mode, courses: &[_]| super::under(accountings, Plane::Packet, mode, courses);
    let mut cases = under(Mode::USUAL, &courses);
    cases.extend(under(Mode::USUAL, &others));
    cases.extend(MODES.into_iter().flat_map(|mode| under(mode, &of_modes)));
    cases.extend(in_memory);
    cases
}

/// The plane in memory with [`FLOWS_MANY`] flows; none where there is no memory for it.
pub fn many() -> Option<Case> {
    plane::fits(FLOWS_MANY).then(|| in_memory_case(IN_MEMORY[0], FLOWS_MANY))
}

/// The work in memory of this name with so many flows.
pub fn in_memory(name: &str, flows: usize) -> Option<InMemory> {
    let works = IN_MEMORY.into_iter().map(|(forwarding, family, cargo)| InMemory { forwarding, family, cargo, flows });
    works.into_iter().find(|work| work.name() == name)
}

fn in_memory_case((forwarding, family, cargo): (Forwarding, Family, Cargo), flows: usize) -> Case {
    let work = InMemory { forwarding, family, cargo, flows };
    Case {
        name: work.name(),
        accounting: Accounting::Plain,
        plane: Plane::Packet,
        mode: Mode::USUAL,
        tls: None,
        http: None,
        course: Course::InMemory(work),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_load_is_one_that_another_suite_has() {
        let cases = cases(&Accounting::ALL, &[1000]);
        assert_eq!(cases.len(), 2 * (LOADS.len() + 3 + MODES.len() * LOADS_OF_MODES.len()) + IN_MEMORY.len());
        assert!(cases.iter().all(|case| case.plane == Plane::Packet));
    }
}
