//! The public packet corpus: what comes in, what leaves and what is counted, in files; see `tests/packets/README.md`.
//!
//! `TOWPATH_UPDATE=1` writes what leaves and what is counted anew, for a person to look at the difference.

#[path = "packets/bench.rs"]
mod bench;
#[path = "packets/capture.rs"]
mod capture;
#[path = "packets/cross.rs"]
mod cross;
#[path = "packets/frames.rs"]
mod frames;
#[path = "packets/fuzz.rs"]
mod fuzz;
#[path = "packets/ip.rs"]
mod ip;
#[path = "packets/outbound.rs"]
mod outbound;
#[path = "../../fuzz/src/plane.rs"]
mod plane;
#[path = "packets/scenes.rs"]
mod scenes;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use bench::{Carrier, Counters};
use capture::{Captured, Offload};
use scenes::{SCENES, Script};

/// Octets in a line of a dump.
const DUMP_LINE: usize = 16;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packets")
}

/// The folders of the cases, in order.
fn cases() -> Vec<PathBuf> {
    let entries = fs::read_dir(corpus()).expect("the corpus is there");
    let mut cases: Vec<PathBuf> =
        entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_dir()).collect();
    cases.sort();
    cases
}

fn is_updating() -> bool {
    std::env::var_os("TOWPATH_UPDATE").is_some_and(|value| value == "1")
}

#[test]
fn what_leaves_and_what_is_counted_is_what_the_corpus_says() {
    let cases = cases();
    assert!(!cases.is_empty(), "no cases in {}", corpus().display());
    let failures: Vec<String> = cases.iter().filter_map(|case| judge(case).err()).collect();
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// Counters that only a plane with a fast path has.
const FAST: [&str; 7] = [
    "fast_flows_entered",
    "fast_flows_left",
    "fast_flows_refused",
    "fast_transits_entered",
    "fast_transits_left",
    "fast_transits_refused",
    "frames_fast",
];

#[test]
fn the_same_leaves_and_is_counted_where_the_kernel_carries_flows() {
    let mut carried = 0;
    for case in cases() {
        let name = case.display();
        let config = fs::read_to_string(case.join("config.toml")).expect("a configuration");
        let incoming = capture::read(&case.join("in.pcap"));
        let by = |carrier| bench::run_by(&config, &incoming, carrier).expect("an accepted configuration");
        let ((left, counters), (left_fast, mut counters_fast)) = (by(Carrier::Plane), by(Carrier::Kernel));
        assert_eq!(compare(&left, &left_fast), "", "{name}");
        if let Some(of_plane) = counters_fast.get_mut("plane") {
            carried += of_plane.get("frames_fast").copied().unwrap_or(0);
            of_plane.retain(|counter, _| !FAST.contains(&counter.as_str()));
        }
        assert_eq!(compare_counters(&counters, &counters_fast), "", "{name}");
    }
    assert!(carried > 0, "the kernel carried nothing");
}

/// A wrong checksum that is kept wrong is no case of the corpus: what it expects has to be right in itself.
#[test]
fn the_frames_that_are_expected_have_the_right_checksums() {
    for case in cases() {
        let incoming = capture::read(&case.join("in.pcap"));
        let mut fragments: Vec<(Vec<u8>, u16, bool, Vec<u8>)> = Vec::new();
        for (number, frame) in (1..).zip(capture::read(&case.join("out.pcap"))) {
            // What crosses a bridge is its sender's, and a probe of a loop has no checksum.
            if incoming.iter().any(|came| came.bytes == frame.bytes) || frames::is_probe(&frame.bytes) {
                continue;
            }
            let fail = |why: String| panic!("{}, frame {number}: {why}\n{}", case.display(), dump(&frame.bytes));
            let (mut bytes, mut is_partial) = (frame.bytes.clone(), frame.offload != Offload::Nothing);
            if let Some((common, offset, is_last)) = frames::place(&bytes) {
                fragments.push((common.clone(), offset, is_last, bytes));
                // Those of one packet leave one after the other.
                if !is_last {
                    continue;
                }
                let parts = std::mem::take(&mut fragments);
                assert!(parts.iter().all(|part| part.0 == common), "{}: mixed fragments", case.display());
                let parts: Vec<&[u8]> = parts.iter().map(|part| &part.3[..]).collect();
                bytes = frames::joined(&parts).unwrap_or_else(fail);
                is_partial = false;
            }
            if let Err(why) = frames::verify_checksums(&bytes, is_partial) {
                fail(why);
            }
        }
        assert!(fragments.is_empty(), "{}: a packet without its end", case.display());
    }
}

#[test]
fn the_frames_that_come_in_are_those_described() {
    for (name, frames) in described() {
        let path = corpus().join(name).join("in.pcap");
        let stored = fs::read(&path).unwrap_or_default();
        assert!(
            stored == capture::file(&frames),
            "{} is not what scenes.rs describes; write it with `cargo test --test packets -- --ignored`",
            path.display()
        );
    }
}

/// Writes each `in.pcap` that `scenes.rs` describes.
#[test]
#[ignore = "it writes files"]
fn write_the_frames_that_come_in() {
    for (name, frames) in described() {
        let folder = corpus().join(name);
        fs::create_dir_all(&folder).expect("a folder for the case");
        fs::write(folder.join("in.pcap"), capture::file(&frames)).expect("a file for the case");
    }
}

fn described() -> impl Iterator<Item = (&'static str, Vec<Captured>)> {
    SCENES.iter().chain(cross::SCENES).chain(ip::SCENES).chain(outbound::SCENES).map(|(name, write)| {
        let mut script = Script::default();
        write(&mut script);
        (*name, script.frames)
    })
}

/// Runs a case; what differs from its files.
fn judge(case: &Path) -> Result<(), String> {
    let name = case.file_name().unwrap_or_default().to_string_lossy();
    let read = |file: &str| fs::read_to_string(case.join(file)).map_err(|error| format!("{name}/{file}: {error}"));
    let incoming = capture::read(&case.join("in.pcap"));
    if incoming.is_empty() {
        return Err(format!("{name}/in.pcap: no frames"));
    }
    let (left, counters) =
        bench::run(&read("config.toml")?, &incoming).map_err(|why| format!("{name}/config.toml: {why}"))?;
    if is_updating() {
        let written = fs::write(case.join("out.pcap"), capture::file(&left))
            .and_then(|()| fs::write(case.join("counters.toml"), text_of(&counters)));
        return written.map_err(|error| format!("{name}: {error}"));
    }
    let mut differences = compare(&capture::read(&case.join("out.pcap")), &left);
    let expected: Counters =
        toml::from_str(&read("counters.toml")?).map_err(|error| format!("{name}/counters.toml: {error}"))?;
    differences += &compare_counters(&expected, &counters);
    match differences.is_empty() {
        true => Ok(()),
        false => Err(format!("{name}:\n{differences}")),
    }
}

/// The first frame that differs, both as hex; empty when none does.
fn compare(expected: &[Captured], found: &[Captured]) -> String {
    let mut text = String::new();
    let Some(at) = (0..expected.len().max(found.len())).find(|&at| expected.get(at) != found.get(at)) else {
        return text;
    };
    let _ =
        writeln!(text, "  {} frames should leave and {} did; frame {} differs", expected.len(), found.len(), at + 1);
    for (what, frame) in [("expected", expected.get(at)), ("found", found.get(at))] {
        let _ = match frame {
            Some(Captured { at_ms, port, offload, bytes }) => writeln!(
                text,
                "  {what}: {} octets through port {} after {at_ms} ms, left to the device: {offload:?}\n{}",
                bytes.len(),
                port.0,
                dump(bytes)
            ),
            None => writeln!(text, "  {what}: none"),
        };
    }
    if let (Some(expected), Some(found)) = (expected.get(at), found.get(at)) {
        let (expected, found) = (&expected.bytes, &found.bytes);
        let octet = (0..expected.len().max(found.len())).find(|&at| expected.get(at) != found.get(at));
        if let Some(octet) = octet {
            let show = |bytes: &[u8]| bytes.get(octet).map_or("nothing".into(), |value| format!("{value:02x}"));
            let _ = writeln!(text, "  first at octet {octet:#06x}: {} instead of {}", show(found), show(expected));
        }
    }
    text
}

fn compare_counters(expected: &Counters, found: &Counters) -> String {
    let none = Default::default();
    let mut text = String::new();
    let mut sections: Vec<&String> = expected.keys().chain(found.keys()).collect();
    sections.sort_unstable();
    sections.dedup();
    for section in sections {
        let (expected, found) = (expected.get(section).unwrap_or(&none), found.get(section).unwrap_or(&none));
        let mut names: Vec<&String> = expected.keys().chain(found.keys()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let value = |counters: &std::collections::BTreeMap<String, u64>| counters.get(name).copied().unwrap_or(0);
            if value(expected) != value(found) {
                let _ = writeln!(text, "  [{section}] {name} = {} instead of {}", value(found), value(expected));
            }
        }
    }
    text
}

fn text_of(counters: &Counters) -> String {
    let mut text = String::new();
    for (section, values) in counters {
        // Names of services are quoted, as they may be anything.
        let header = match section.split_once('.') {
            Some(_) => format!("\"{section}\""),
            None => section.clone(),
        };
        let _ = writeln!(text, "{}[{header}]", if text.is_empty() { "" } else { "\n" });
        for (name, value) in values {
            let _ = writeln!(text, "{name} = {value}");
        }
    }
    text
}

fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (line, octets) in bytes.chunks(DUMP_LINE).enumerate() {
        let _ = write!(text, "    {:04x} ", line * DUMP_LINE);
        for octet in octets {
            let _ = write!(text, " {octet:02x}");
        }
        text.push('\n');
    }
    text
}

#[test]
fn a_difference_is_told_with_both_frames_and_the_first_octet() {
    let frame =
        |bytes: &[u8]| Captured { at_ms: 10, port: bench::INSIDE, offload: Offload::Nothing, bytes: bytes.to_vec() };
    let expected = [frame(&[1, 2, 3]), frame(&[4, 5, 6])];
    assert_eq!(compare(&expected, &expected), "");
    let told = compare(&expected, &[frame(&[1, 2, 3]), frame(&[4, 0x55, 6])]);
    assert_eq!(
        told,
        "  2 frames should leave and 2 did; frame 2 differs
  expected: 3 octets through port 1 after 10 ms, left to the device: Nothing
    0000  04 05 06

  found: 3 octets through port 1 after 10 ms, left to the device: Nothing
    0000  04 55 06

  first at octet 0x0001: 55 instead of 05
"
    );
    let told = compare(&expected, &expected[..1]);
    assert!(
        told.contains("2 frames should leave and 1 did; frame 2 differs") && told.contains("found: none"),
        "{told}"
    );
}
