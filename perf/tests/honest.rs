//! A subject that crashes, refuses or answers wrongly fails the run with that reason; a client that is the ceiling is said to be.

#![allow(clippy::unwrap_used)]

mod program;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::iter;
use std::process::Output;
use std::time::{Duration, Instant};

use program::{Folder, Impostor, towpath_perf};
use towpath_perf::lab::{Privilege, ensure_privilege};
use towpath_perf::report::{Phase, Report, Row};

const QUICK: [&str; 8] = ["--against", "", "--accounting", "plain", "--repeat", "1", "--retake", "0"];

/// How long runs may go on finding the balancer's CPU taken by other programs.
const PATIENCE: Duration = Duration::from_secs(180);

/// Runs a case of the relay suite at an impostor.
fn run(impostor: &Impostor, case: &str, seconds: &str) -> Output {
    let path = impostor.path();
    let mut command = towpath_perf(&["relay", "--case", case, "--towpath", &path, "--seconds", seconds]);
    command.args(QUICK);
    command.output().unwrap()
}

/// The run has failed and said so, with each of these words.
#[track_caller]
fn assert_failed(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in words {
        assert!(said.contains(word), "no `{word}` in:\n{said}");
    }
    assert!(output.stdout.is_empty(), "a failed run prints no figures: {}", String::from_utf8_lossy(&output.stdout));
}

#[test]
#[ignore = "needs the Debian package python3"]
fn a_subject_that_crashes_fails_the_run() {
    if ensure_privilege(a_subject_that_crashes_fails_the_run).unwrap() == Privilege::Delegated {
        return;
    }
    let body = r#"
listener = listen()
threading.Thread(target=relay, args=(listener, lambda _, data: data), daemon=True).start()
# Once clients are there, so in the midst of the work.
select.select([socket.socket()], [], [], 0.15)
print("lp0 on fire", file=sys.stderr, flush=True)
os._exit(42)
"#;
    let output = run(&Impostor::new("crash", body), "keepalive-128B-4c", "2");
    assert_failed(&output, &["towpath in keepalive-128B-4c", "has ended by itself (exit status: 42)", "lp0 on fire"]);
}

#[test]
#[ignore = "needs the Debian package python3"]
fn a_subject_that_cannot_start_fails_the_run() {
    if ensure_privilege(a_subject_that_cannot_start_fails_the_run).unwrap() == Privilege::Delegated {
        return;
    }
    let output = run(&Impostor::new("stillborn", "sys.exit('no such key')\n"), "connect", "0.2");
    assert_failed(&output, &["towpath in connect", "has ended by itself (exit status: 1)", "no such key"]);
}

#[test]
#[ignore = "needs the Debian package python3"]
fn a_subject_that_refuses_fails_the_run() {
    if ensure_privilege(a_subject_that_refuses_fails_the_run).unwrap() == Privilege::Delegated {
        return;
    }
    let body = r#"
listener = listen()
while True:
    client, _ = listener.accept()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
"#;
    for case in ["connect", "bulk-1"] {
        assert_failed(&run(&Impostor::new("refuse", body), case, "0.2"), &["towpath in", "reset"]);
    }
}

#[test]
#[ignore = "needs the Debian package python3"]
fn a_subject_that_changes_a_byte_fails_the_run() {
    if ensure_privilege(a_subject_that_changes_a_byte_fails_the_run).unwrap() == Privilege::Delegated {
        return;
    }
    let body = r#"
def change(passed, data):
    at = 5000 - passed
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1:] if 0 <= at < len(data) else data
relay(listen(), change)
"#;
    for case in ["keepalive-16KB-64c", "bulk-1"] {
        assert_failed(&run(&Impostor::new("change", body), case, "0.2"), &["towpath in", "were not sent"]);
    }
}

#[test]
fn a_subject_that_leaves_bytes_out_fails_the_run() {
    if ensure_privilege(a_subject_that_leaves_bytes_out_fails_the_run).unwrap() == Privilege::Delegated {
        return;
    }
    let body = "relay(listen(), lambda passed, data: b'' if passed > 300000 else data)\n";
    assert_failed(&run(&Impostor::new("leave-out", body), "bulk-4", "0.2"), &["towpath in bulk-4"]);
}

#[test]
#[ignore = "needs the Debian package python3"]
fn a_run_that_fails_keeps_the_cases_before() {
    if ensure_privilege(a_run_that_fails_keeps_the_cases_before).unwrap() == Privilege::Delegated {
        return;
    }
    let body = r#"
relay(listen(), lambda passed, data: data[:-1] + bytes([data[-1] ^ 1]) if len(data) > 4096 else data)
"#;
    let (folder, impostor) = (Folder::new("kept"), Impostor::new("late", body));
    let file = folder.path().join("result.json");
    let mut command = towpath_perf(&["relay", "--case", "keepalive-128B-4c", "keepalive-16KB-64c", "--seconds", "0.2"]);
    let output = command.args(["--towpath", &impostor.path(), "--json"]).arg(&file).args(QUICK).output().unwrap();
    assert_failed(&output, &["towpath in keepalive-16KB-64c", "1 of 2 cases are complete"]);
    let report: Report = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert!(!report.rows.is_empty() && report.rows.iter().all(|row| row.case == "keepalive-128B-4c"), "{report:?}");
}

#[test]
fn a_client_without_time_is_the_ceiling() {
    if ensure_privilege(a_client_without_time_is_the_ceiling).unwrap() == Privilege::Delegated {
        return;
    }
    // The kernel relays in the name of whoever sends, so the balancer's CPU has nothing to do and the client's has everything.
    let folder = Folder::new("ceiling");
    let file = folder.path().join("result.json");
    let measure = || {
        let case = ["relay", "--subject", "kernel", "--case", "keepalive-128B-64c", "--seconds", "0.3", "--json"];
        let output = towpath_perf(&case).arg(&file).args(QUICK).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Report = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        report.rows
    };
    // Other tests run beside this one and may keep the balancer's CPU busy; then nothing can be said.
    let begun = Instant::now();
    let rows = iter::repeat_with(measure)
        .take_while(|_| begun.elapsed() < PATIENCE)
        .find(|rows| rows.iter().any(|row| row.metric == "rate" && row.balancer_busy < 0.95 && row.client_busy >= 0.95))
        .expect("never was the client's CPU busy while the balancer's was not");
    let is_rate_at_saturation = |row: &&Row| row.metric == "rate" && row.phase == Some(Phase::Saturation);
    let bound: Vec<&Row> = rows
        .iter()
        .filter(is_rate_at_saturation)
        .filter(|row| row.balancer_busy < 0.95 && row.client_busy >= 0.95)
        .collect();
    assert!(bound.iter().all(|row| row.client_bound), "{bound:?}");
    assert!(rows.iter().all(|row| !row.metric.starts_with("efficiency")), "nobody's work was told as the balancer's");
}

#[test]
fn a_load_is_driven_across_a_wire_without_a_lab() {
    // Here the wire is the loopback, and nobody stands between client and origin.
    let mut origin = towpath_perf(&["origin", "127.0.0.1:0"]).spawn().unwrap();
    let mut told = String::new();
    BufReader::new(origin.stdout.take().unwrap()).read_line(&mut told).unwrap();
    let target = told.split_whitespace().nth(2).unwrap().trim_end_matches(',').to_owned();
    let cpus = towpath_sys::host::available_cpus().unwrap();
    // A thread on each of them.
    let pin = format!("client={}-{}", cpus[0], cpus[cpus.len().min(2) - 1]);
    let folder = Folder::new("wire");
    for (suite, case) in [("relay", "keepalive-128B-4c"), ("udp", "datagrams-128B-4f")] {
        let file = folder.path().join(suite);
        let mut command = towpath_perf(&[suite, "--no-lab", "--target", &target, "--pin", &pin, "--case", case]);
        command.args(["--seconds", "0.2", "--repeat", "1", "--retake", "0", "--json"]).arg(&file);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Report = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        let metrics: BTreeSet<&str> = report.rows.iter().map(|row| row.metric.as_str()).collect();
        // What the far end's CPU did is not known here.
        assert!(metrics.is_superset(&BTreeSet::from(["rate", "p50", "p99"])), "{metrics:?}");
        assert!(metrics.iter().all(|metric| !metric.starts_with("efficiency")), "{metrics:?}");
        assert!(report.rows.iter().all(|row| row.subject == target && row.median.is_finite()));
    }
    let wrong = towpath_perf(&["relay", "--no-lab"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    origin.kill().unwrap();
    origin.wait().unwrap();
}

#[test]
fn a_missing_program_is_named_with_what_to_do() {
    let output = towpath_perf(&["relay", "--towpath", "/nonexistent/towpath"]).output().unwrap();
    assert_failed(&output, &["/nonexistent/towpath", "cargo build --release", "--towpath"]);
    let output = towpath_perf(&["relay", "--towpath", "/bin/true", "--against", "squid"]).output().unwrap();
    assert_failed(&output, &["squid", "haproxy, hitch, kernel, nginx, nginx-http, towpath"]);
}
