//! The relay suite: TCP through one subject on one CPU.

use towpath_config::model::Plane;

use super::{Accounting, Case, Course, Mode, Unit};
use crate::load::Work;

/// What is measured, each under these accountings; memory once, as it does not depend on who receives.
pub fn cases(accountings: &[Accounting]) -> Vec<Case> {
    let memory = Case {
        name: "idle-memory".into(),
        accounting: Accounting::Plain,
        plane: Plane::Stream,
        mode: Mode::USUAL,
        tls: None,
        http: None,
        course: Course::Memory { few: 500, many: 7500 },
    };
    super::under(accountings, Plane::Stream, Mode::USUAL, &courses()).into_iter().chain([memory]).collect()
}

/// The loads, by name.
pub(super) fn courses() -> Vec<(&'static str, Course)> {
    let kept = |connections, idle, request_bytes, answer_bytes| Course::Load {
        work: Work::KeepAlive { connections, idle, request_bytes, answer_bytes },
        unit: Unit::Requests,
    };
    let connect = Course::Load {
        work: Work::Connect { concurrency: 128, request_bytes: 128, answer_bytes: 128 },
        unit: Unit::Connections,
    };
    let bulk = |streams| Course::Load { work: Work::Bulk { streams }, unit: Unit::Gigabits };
    vec![
        ("keepalive-128B-4c", kept(4, 0, 128, 128)),
        ("keepalive-128B-64c", kept(64, 0, 128, 128)),
        ("keepalive-1KB-64c", kept(64, 0, 128, 1024)),
        ("keepalive-16KB-64c", kept(64, 0, 128, 16 * 1024)),
        ("keepalive-128B-1024c", kept(1024, 0, 128, 128)),
        ("connect", connect),
        ("bulk-1", bulk(1)),
        ("bulk-4", bulk(4)),
        ("bulk-64", bulk(64)),
        ("mostly-idle-8000", kept(80, 7920, 128, 128)),
    ]
}
