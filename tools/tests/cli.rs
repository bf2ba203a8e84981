//! The program as scripts see it: exit codes, and what goes to which stream.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

const GOOD: &str = r#"
[control]
socket = "none"

[[service]]
name = "web"
vip = "127.0.0.1"
ports = [8080, 8443]

[[service.server]]
name = "a"
address = "127.0.0.2"
"#;

/// Two mistakes of different kinds: an unknown key and a port that is none.
const BAD: &str = r#"
[[service]]
name = "web"
vip = "127.0.0.1"
ports = [70000]
balanse = "round-robin"

[[service.server]]
name = "a"
address = "127.0.0.2"
"#;

/// Right, but no code carries it out yet.
const LATER: &str = r#"
[[service]]
name = "web"
vip = "127.0.0.1"
ports = [443]
template = "lync"

[[service.server]]
name = "a"
address = "127.0.0.2"
"#;

/// A directory of its own, taken away at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("towpath-cli-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, contents).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn towpath(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_towpath")).args(arguments).output().unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn check_of_a_good_file_counts_what_is_in_it_and_exits_0() {
    let scratch = Scratch::new();
    let file = scratch.file("good.toml", GOOD);
    let output = towpath(&["check", path(&file)]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    let summary = format!("{}: 1 service, 2 sockets, 0 errors, ", path(&file));
    assert!(stdout(&output).lines().last().unwrap().starts_with(&summary), "{}", stdout(&output));
    assert_eq!(stderr(&output), "");
}

#[test]
fn check_reports_every_mistake_with_its_place_and_exits_3() {
    let scratch = Scratch::new();
    let file = scratch.file("bad.toml", BAD);
    let output = towpath(&["check", path(&file)]);
    assert_eq!(output.status.code(), Some(3));
    let text = stdout(&output);
    for place in ["bad.toml:5:", "bad.toml:6:1"] {
        assert!(text.contains(place), "{place} is missing in\n{text}");
    }
    assert!(text.contains("balance"), "no \"did you mean\" in\n{text}");
    assert!(text.lines().last().unwrap().contains("2 errors"), "{text}");
    assert!(!text.contains('\x1b'), "colour in a pipe");
}

#[test]
fn check_prints_json_for_programs() {
    let scratch = Scratch::new();
    let file = scratch.file("bad.toml", BAD);
    let output = towpath(&["check", "--json", path(&file)]);
    assert_eq!(output.status.code(), Some(3));
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verdict["file"], path(&file));
    assert_eq!(verdict["errors"], 2);
    let lines: Vec<_> =
        verdict["diagnostics"].as_array().unwrap().iter().map(|d| d["primary"]["line"].clone()).collect();
    assert_eq!(lines, [5, 6]);
    assert!(verdict.get("host").is_none());
}

#[test]
fn check_host_compares_with_this_machine() {
    let scratch = Scratch::new();
    let good = scratch.file("good.toml", GOOD);
    let output = towpath(&["check", "--host", path(&good)]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    assert!(stdout(&output).contains("this machine: 0 errors"), "{}", stdout(&output));
    // RFC 5737: an address that no machine has.
    let elsewhere = scratch.file("elsewhere.toml", GOOD.replace("vip = \"127.0.0.1\"", "vip = \"192.0.2.1\""));
    let output = towpath(&["check", path(&elsewhere)]);
    assert_eq!(output.status.code(), Some(0), "the file alone is right: {}", stdout(&output));
    let output = towpath(&["check", "--host", path(&elsewhere)]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stdout(&output).contains("192.0.2.1"), "{}", stdout(&output));
}

#[test]
fn doctor_examines_this_machine_for_a_file() {
    let scratch = Scratch::new();
    let good = scratch.file("good.toml", GOOD);
    let output = towpath(&["doctor", "--no-probes", "-c", path(&good)]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    for told in ["good.toml · no daemon answers", "machine\n", "● fine", "service web\n", "0 errors, 0 warnings"] {
        assert!(stdout(&output).contains(told), "{told} is missing in\n{}", stdout(&output));
    }
    // RFC 5737: an address that no machine has.
    let elsewhere = scratch.file("elsewhere.toml", GOOD.replace("vip = \"127.0.0.1\"", "vip = \"192.0.2.1\""));
    let output = towpath(&["doctor", "--no-probes", "--json", "-c", path(&elsewhere)]);
    assert_eq!(output.status.code(), Some(3), "{}", stdout(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["worst"], &report["errors"]), (&"error".into(), &1.into()), "{report:#}");
    let readings = report["readings"].as_array().unwrap();
    let lost = readings.iter().find(|reading| reading["state"] == "error").unwrap();
    assert_eq!((&lost["subject"]["name"], &lost["check"]), (&"web".into(), &"addresses".into()));
    assert!(lost["run"]["command"].as_str().unwrap().starts_with("ip address add 192.0.2.1/32"), "{lost:#}");
}

#[test]
fn doctor_of_a_file_with_mistakes_shows_them_and_examines_nothing() {
    let scratch = Scratch::new();
    let bad = scratch.file("bad.toml", BAD);
    let output = towpath(&["doctor", "-c", path(&bad)]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stdout(&output).contains("bad.toml:6:1") && !stdout(&output).contains("machine"), "{}", stdout(&output));
    let output = towpath(&["doctor", "--json", "-c", path(&bad)]);
    assert_eq!(output.status.code(), Some(3));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["errors"], &report["readings"]), (&2.into(), &serde_json::json!([])));
}

#[test]
fn unreadable_files_exit_1_and_say_what_to_do() {
    let scratch = Scratch::new();
    let missing = scratch.0.join("missing.toml");
    let latin_1 = scratch.file("latin-1.toml", b"# \xe4\n");
    for command in ["check", "doctor", "run"] {
        for (file, cause) in
            [(&missing, "No such file"), (&scratch.0, "directory"), (&latin_1, "line 1 (byte 2) is not UTF-8")]
        {
            let arguments = match command {
                "run" | "doctor" => vec![command, "-c", path(file)],
                _ => vec![command, path(file)],
            };
            let output = towpath(&arguments);
            assert_eq!(output.status.code(), Some(1), "{arguments:?}");
            assert!(stderr(&output).contains(cause), "{arguments:?}: {}", stderr(&output));
            assert_eq!(stdout(&output), "");
        }
    }
}

#[test]
fn run_refuses_errors_and_what_is_not_available_with_3() {
    let scratch = Scratch::new();
    let bad = scratch.file("bad.toml", BAD);
    let output = towpath(&["run", "-c", path(&bad)]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("bad.toml:6:1"), "{}", stderr(&output));
    let later = scratch.file("later.toml", LATER);
    let output = towpath(&["check", path(&later)]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    let output = towpath(&["run", "-c", path(&later)]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("later.toml:6:"), "{}", stderr(&output));
    assert!(stderr(&output).contains("refuses what check only warns about"), "{}", stderr(&output));
}

#[test]
fn status_without_a_daemon_exits_5_and_says_what_to_do() {
    let scratch = Scratch::new();
    let socket = scratch.0.join("none.sock");
    let output = towpath(&["status", "--socket", path(&socket)]);
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert!(stderr(&output).contains("none.sock"), "{}", stderr(&output));
}

#[test]
fn usage_errors_exit_2_and_help_exits_0() {
    for arguments in [&["bogus"][..], &["check"], &["demo", "--seconds", "0"], &["run", "--log", "loud"], &[]] {
        assert_eq!(towpath(arguments).status.code(), Some(2), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["--version"], &["run", "--help"], &["demo", "--help"]] {
        let output = towpath(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(!output.stdout.is_empty());
    }
}

#[test]
fn reference_names_every_table_of_the_quickstart() {
    let output = towpath(&["reference"]);
    assert_eq!(output.status.code(), Some(0));
    for word in ["runtime", "service", "vip", "ports", "health"] {
        assert!(stdout(&output).contains(word), "{word} is missing");
    }
}
