//! The tls suite: TLS that ends at one subject on one CPU, and what its cryptography alone could do.

use towpath_config::model::Plane;

use super::{Accounting, Case, Course, Mode, Terms, Unit};
use crate::certificate::KeyKind;
use crate::load::Work;
use crate::load::tls::{Tls, Version};

/// Requests a second of plain connections while handshakes flood in.
const QUIET_PER_SECOND: u32 = 5000;

/// CPUs from which on handshakes can have one of their own: balancer, client, origin beside the flood, and that one.
pub const POOL_CPUS_MIN: usize = 4;

/// New clients, with this key and version.
const fn new(key: KeyKind, version: Version) -> Terms {
    Terms { key, client: Tls { version, resumes: false }, reencrypts: false }
}

/// As most clients are.
const USUAL: Terms = new(KeyKind::P256, Version::V13);

const REENCRYPTED: Terms = Terms { reencrypts: true, ..USUAL };

/// What is measured, each under these accountings; memory and what needs no lab once. `cpus` are there in all.
pub fn cases(accountings: &[Accounting], cpus: usize) -> Vec<Case> {
    let case = |accounting: Accounting, name: &str, terms, course| Case {
        name: accounting.name(name),
        accounting,
        plane: Plane::Stream,
        mode: Mode::USUAL,
        tls: Some(terms),
        http: None,
        course,
    };
    let loads = loads();
    let isolation = |has_pool| Course::Isolation { per_second: QUIET_PER_SECOND, has_pool };
    let flooded = new(KeyKind::Rsa2048, Version::V13);
    let mut cases: Vec<Case> = Vec::new();
    for &accounting in accountings {
        cases.extend(loads.iter().map(|(name, terms, course)| case(accounting, name, *terms, course.clone())));
        cases.push(case(accounting, "isolation", flooded, isolation(false)));
        if cpus >= POOL_CPUS_MIN {
            cases.push(case(accounting, "isolation-pool", flooded, isolation(true)));
        }
    }
    let memory = Course::Memory { few: 500, many: 4500 };
    cases.push(case(Accounting::Plain, "tls-idle-memory", USUAL, memory.clone()));
    cases.push(case(Accounting::Plain, "tls-idle-memory-reencrypt", REENCRYPTED, memory));
    cases.push(Case { tls: None, ..case(Accounting::Plain, "ceiling", USUAL, Course::Ceiling) });
    cases
}

/// The loads, by name.
fn loads() -> Vec<(&'static str, Terms, Course)> {
    let resumed = |version| Terms { client: Tls { version, resumes: true }, ..new(KeyKind::P256, version) };
    let handshakes = |name, terms| {
        let work = Work::Connect { concurrency: 64, request_bytes: 128, answer_bytes: 128 };
        (name, terms, Course::Load { work, unit: Unit::Handshakes })
    };
    let bulk = |name, terms| (name, terms, Course::Load { work: Work::Bulk { streams: 4 }, unit: Unit::Gigabits });
    let kept = Work::KeepAlive { connections: 64, idle: 0, request_bytes: 128, answer_bytes: 128 };
    vec![
        handshakes("handshake-rsa2048-full", new(KeyKind::Rsa2048, Version::V13)),
        handshakes("handshake-rsa2048-full-tls12", new(KeyKind::Rsa2048, Version::V12)),
        handshakes("handshake-p256-full", USUAL),
        handshakes("handshake-p256-full-tls12", new(KeyKind::P256, Version::V12)),
        handshakes("handshake-p256-resumed", resumed(Version::V13)),
        handshakes("handshake-p256-resumed-tls12", resumed(Version::V12)),
        bulk("tls-bulk-terminate", USUAL),
        bulk("tls-bulk-reencrypt", REENCRYPTED),
        ("tls-keepalive-64c", USUAL, Course::Load { work: kept, unit: Unit::Requests }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_measured_only_where_it_has_a_cpu() {
        let names = |cpus| cases(&Accounting::ALL, cpus).into_iter().map(|case| case.name).collect::<Vec<_>>();
        assert!(!names(2).contains(&"isolation-pool".into()));
        assert!(names(4).contains(&"isolation-pool-steered".into()));
        assert!(names(2).contains(&"handshake-p256-resumed-tls12-steered".into()));
    }
}
