//! The measurements without kernel sockets: in memory, and of clients and a server that speak TCP by themselves.

#![allow(clippy::unwrap_used)]

mod program;

use std::fs;

use program::{Folder, towpath_perf};
use towpath_perf::lab::{Privilege, ensure_privilege};
use towpath_perf::report::{Report, Row};

const QUICK: [&str; 8] = ["--against", "", "--seconds", "0.2", "--repeat", "1", "--retake", "0"];

/// Runs a suite and reads its result.
fn measure(arguments: &[&str]) -> Report {
    let folder = Folder::new("packet");
    let file = folder.path().join("result.json");
    let output = towpath_perf(arguments).args(QUICK).arg("--json").arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap()
}

#[track_caller]
fn figure(report: &Report, case: &str, metric: &str) -> f64 {
    let is_it = |row: &&Row| row.case == case && row.metric == metric;
    report.rows.iter().find(is_it).unwrap_or_else(|| panic!("no {metric} of {case}: {report:?}")).median
}

#[test]
fn peers_without_a_kernel_open_hold_and_close_through_the_kernels_translation() {
    let this = peers_without_a_kernel_open_hold_and_close_through_the_kernels_translation;
    if ensure_privilege(this).unwrap() == Privilege::Delegated {
        return;
    }
    let report = measure(&["snat", "--subject", "kernel", "--connections", "3000", "--addresses", "2"]);
    let of = |part: &str, metric: &str| figure(&report, &format!("snat-3000-over-2{part}"), metric);
    assert_eq!((of("", "opened"), of("", "refused")), (3000.0, 0.0));
    assert_eq!((of("-data", "answered"), of("-close", "closed")), (30.0, 3000.0));
    assert!(of("", "rate") > 0.0 && of("-data", "p50") > 0.0);
}

#[test]
fn connections_of_peers_without_a_kernel_come_and_go() {
    if ensure_privilege(connections_of_peers_without_a_kernel_come_and_go).unwrap() == Privilege::Delegated {
        return;
    }
    let case = "connect-crowd-steered";
    let report = measure(&["packet", "--subject", "kernel", "--against", "haproxy", "--case", case]);
    assert!(figure(&report, case, "rate") > 0.0 && figure(&report, case, "efficiency-saturated") > 0.0);
    let rows: Vec<_> = report.rows.iter().filter(|row| row.metric == "rate").collect();
    assert_eq!(rows.len(), 2, "{rows:?}");
    for row in rows {
        assert!(row.median > 0.0 && row.p50_us.is_some_and(|p50| p50 > 0.0) && row.p99_us >= row.p50_us, "{row:?}");
    }
}

#[test]
fn the_packet_plane_is_measured_in_memory() {
    // Nobody starts the program that is named.
    let report = measure(&["packet", "--towpath", "/bin/true", "--flows", "5000", "--case", "memory-half-nat-v4-5k"]);
    for metric in ["packet-time", "first-packet-time", "created-rate", "established-rate"] {
        assert!(figure(&report, "memory-half-nat-v4-5k", metric) > 0.0, "{metric}");
    }
}

#[test]
fn the_kernel_is_left_out_where_it_cannot_follow_so_many_connections() {
    if !std::path::Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists() {
        return;
    }
    let arguments = ["snat", "--connections", "10000000", "--addresses", "4", "--subject", "kernel", "--against", ""];
    let output = towpath_perf(&arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("nf_conntrack_max=10000000"), "{said}");
}

#[test]
fn who_takes_descriptors_cannot_be_asked_for_very_many_connections() {
    let arguments = ["snat", "--connections", "3000", "--subject", "kernel", "--against", "haproxy"];
    let output = towpath_perf(&arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // Where it is not on the machine, that is told instead.
    assert!(!output.status.success() && (said.contains("leave it out") || said.contains("install")), "{said}");
}
