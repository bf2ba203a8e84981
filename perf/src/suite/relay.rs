//! The relay suite: TCP through one subject on one CPU.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::{Accounting, Case, Options, Stage, Turn, Unit, run_cases};
use crate::lab::{Lab, Topology};
use crate::load::{Work, origin};
use crate::peers::Setting;
use crate::report::Report;

/// Where clients connect to: an address that only the balancer has.
const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 88, 1, 100));

/// Port of the VIP. Nothing else is on these hosts.
const SERVICE_PORT: u16 = 8080;

/// Port of the origin.
const ORIGIN_PORT: u16 = 7000;

/// What is measured, each under these accountings.
pub fn cases(accountings: &[Accounting]) -> Vec<Case> {
    let kept = |connections| Work::KeepAlive { connections, idle: 0, request_bytes: 128, answer_bytes: 128 };
    let works = [
        ("keepalive-128B-64c", kept(64), Unit::Requests),
        ("connect", Work::Connect { concurrency: 32, request_bytes: 128, answer_bytes: 128 }, Unit::Connections),
        ("bulk-4", Work::Bulk { streams: 4 }, Unit::Gigabits),
    ];
    let under = |&accounting: &Accounting| {
        works.map(|(name, work, unit)| Case { name: accounting.name(name), accounting, work, unit })
    };
    accountings.iter().flat_map(under).collect()
}

/// Measures each subject in each of these cases, telling `progress` before each turn.
pub fn run(cases: &[Case], options: &Options, progress: impl FnMut(Turn<'_>)) -> io::Result<Report> {
    let lab = Lab::build(Topology::TwoArm, 1)?;
    lab.balancer().add_address(VIP)?;
    let server = SocketAddr::from((lab.server(1).ipv4(), ORIGIN_PORT));
    let setting = Setting { listen: SocketAddr::new(VIP, SERVICE_PORT), server, cpu: options.pins.balancer };
    let origin = lab.server(1).run(|| origin::listen(server))??;
    run_cases("relay", cases, options, &Stage { lab, origin, setting }, progress)
}
