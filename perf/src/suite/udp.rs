//! The udp suite: datagrams there and back through one subject on one CPU.

use towpath_config::model::Plane;

use super::{Accounting, Case, Course, Mode, Unit};
use crate::load::Work;

/// What is measured, each under these accountings.
pub fn cases(accountings: &[Accounting]) -> Vec<Case> {
    super::under(accountings, Plane::Stream, Mode::USUAL, &courses())
}

/// The loads, by name.
pub(super) fn courses() -> Vec<(&'static str, Course)> {
    let echo =
        |flows, payload_bytes| Course::Load { work: Work::Datagrams { flows, payload_bytes }, unit: Unit::Datagrams };
    vec![
        ("datagrams-128B-4f", echo(4, 128)),
        ("datagrams-128B-64f", echo(64, 128)),
        ("datagrams-1200B-64f", echo(64, 1200)),
        ("datagrams-128B-1024f", echo(1024, 128)),
    ]
}
