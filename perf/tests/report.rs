//! The commands that read results, run as programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const FIRST_CUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/results/relay-first-cut.json");

fn perf(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_towpath-perf")).args(arguments).output().expect("cargo has built it")
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_result_becomes_a_page_and_a_table() {
    let page = file("report.html");
    let done = perf(&["report", FIRST_CUT, FIRST_CUT, "--html", page.to_str().unwrap()]);
    assert!(done.status.success(), "{}", said(&done.stderr));
    assert_eq!(said(&done.stdout).matches("### relay (relay-first-cut.json)").count(), 2);
    assert!(fs::read_to_string(page).unwrap().starts_with("<!DOCTYPE html>"));
}

#[test]
fn a_result_is_never_overwritten() {
    let result = file("mine.json");
    fs::copy(FIRST_CUT, &result).unwrap();
    let name = result.to_str().unwrap();
    let done = perf(&["report", name, "--html", name]);
    assert_eq!(done.status.code(), Some(1));
    assert!(said(&done.stderr).contains("mine.json: is one of the results"), "{}", said(&done.stderr));
    assert_eq!(fs::read(&result).unwrap(), fs::read(FIRST_CUT).unwrap());
}

#[test]
fn a_file_cut_short_is_named_once_with_the_next_step() {
    let cut = file("cut.json");
    fs::write(&cut, &fs::read(FIRST_CUT).unwrap()[..5000]).unwrap();
    let done = perf(&["compare", FIRST_CUT, cut.to_str().unwrap()]);
    assert_eq!(done.status.code(), Some(1));
    let error = said(&done.stderr);
    assert!(error.contains("cut.json: ends in the middle") && error.contains("measure again"), "{error}");
    let error = said(&perf(&["report", "nowhere.json"]).stderr);
    assert_eq!(error.matches("No such file").count(), 1, "{error}");
}

#[test]
fn only_a_regression_fails() {
    let (worse, told) = (file("worse.json"), file("changes.json"));
    let mut result: serde_json::Value = serde_json::from_slice(&fs::read(FIRST_CUT).unwrap()).unwrap();
    for ratio in result["ratios"].as_array_mut().unwrap() {
        for figure in ["median", "min", "max"] {
            ratio[figure] = (ratio[figure].as_f64().unwrap() / 4.0).into();
        }
    }
    fs::write(&worse, result.to_string()).unwrap();
    let worse = worse.to_str().unwrap();
    let table = [
        (FIRST_CUT, FIRST_CUT, Some("--fail-on-regression"), 0),
        (FIRST_CUT, worse, None, 0),
        (FIRST_CUT, worse, Some("--fail-on-regression"), 1),
        (worse, FIRST_CUT, Some("--fail-on-regression"), 0),
    ];
    for (old, new, flag, expected) in table {
        let arguments: Vec<&str> =
            ["compare", old, new, "--json", told.to_str().unwrap()].into_iter().chain(flag).collect();
        let done = perf(&arguments);
        assert_eq!(done.status.code(), Some(expected), "{}", said(&done.stderr));
        let told: serde_json::Value = serde_json::from_slice(&fs::read(&told).unwrap()).unwrap();
        assert!(!told["changes"].as_array().unwrap().is_empty());
        if expected == 1 {
            assert!(said(&done.stderr).contains("towpath got worse: ") && said(&done.stdout).contains("slower"));
        }
    }
}
