//! The packet suite: Towpath's packet plane beside its peers over veth, and alone in memory.

use towpath_config::model::{Forwarding, Plane};
use towpath_core::packet::Family;

use super::{Accounting, Case, Course, InMemory, relay, udp};

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

/// Loads over veth under these accountings, and the plane in memory with each of these numbers of flows.
pub fn cases(accountings: &[Accounting], flows: &[usize]) -> Vec<Case> {
    let mut courses = relay::courses();
    courses.extend(udp::courses());
    courses.retain(|(name, _)| LOADS.contains(name));
    let modes =
        [(Forwarding::FullNat, Family::V4), (Forwarding::FullNat, Family::V6), (Forwarding::HalfNat, Family::V4)];
    let in_memory = modes.into_iter().flat_map(|(forwarding, family)| {
        flows.iter().map(move |&flows| {
            let work = InMemory { forwarding, family, flows };
            Case {
                name: work.name(),
                accounting: Accounting::Plain,
                plane: Plane::Packet,
                course: Course::InMemory(work),
            }
        })
    });
    super::under(accountings, Plane::Packet, &courses).into_iter().chain(in_memory).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_load_is_one_that_another_suite_has() {
        let cases = cases(&Accounting::ALL, &[1000]);
        assert_eq!(cases.len(), 2 * LOADS.len() + 3);
        assert!(cases.iter().all(|case| case.plane == Plane::Packet));
    }
}
