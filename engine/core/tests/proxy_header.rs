//! The fuzz target of the PROXY protocol, without a fuzzer: the corpus of `tests/proxy_header` as it is, and changed at random for as long as one likes.
//!
//!     TOWPATH_FUZZ_SECONDS=60 cargo test --release -p towpath-core --test proxy_header fuzz -- --ignored --nocapture

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the corpus lies in files, and fuzzing takes its time"
)]

#[path = "../../../fuzz/src/proxy_header.rs"]
mod target;

use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs};

use towpath_core::proxy_header::{Header, read};
use towpath_core::random::SplitMix64;

/// The corpus by name: `good-…` is a header and nothing more, `bad-…` is none.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/proxy_header");
    let mut entries: Vec<(String, Vec<u8>)> = fs::read_dir(folder)
        .expect("the corpus")
        .map(|entry| {
            let entry = entry.expect("an entry of a folder");
            (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("a file"))
        })
        .collect();
    entries.sort();
    entries
}

#[test]
fn the_corpus_is_read_as_its_names_say() {
    let corpus = corpus();
    assert!(corpus.len() >= 20, "{} entries", corpus.len());
    for (name, bytes) in corpus {
        let read = read(&bytes);
        match name.split('-').next() {
            Some("good") => {
                assert!(matches!(read, Ok(Some(Header { len, .. })) if len == bytes.len()), "{name}: {read:?}");
            }
            Some("bad") => assert!(read.is_err(), "{name}: {read:?}"),
            _ => panic!("{name}: neither good nor bad"),
        }
        target::run(&bytes);
    }
}

fn fuzz(seed: u64, goes_on: impl Fn(u64) -> bool) -> u64 {
    let corpus = corpus();
    let mut random = SplitMix64::new(seed);
    let mut count = 0;
    while goes_on(count) {
        let mut below = |end: usize| random.below(end.max(1) as u64) as usize;
        let mut input = corpus[below(corpus.len())].1.clone();
        for _ in 0..=below(3) {
            let at = below(input.len());
            match below(6) {
                0 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << below(8)),
                1 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte = below(256) as u8),
                2 => input.truncate(at),
                3 => drop(input.drain(at..input.len().min(at + below(8)))),
                4 => input.splice(at..at, (0..below(8)).map(|_| below(256) as u8).collect::<Vec<u8>>()).for_each(drop),
                _ => input.extend_from_slice(&corpus[below(corpus.len())].1),
            }
        }
        target::run(&input);
        count += 1;
    }
    count
}

#[test]
fn changes_of_the_corpus_break_nothing() {
    fuzz(1, |count| count < 50_000);
}

#[test]
#[ignore = "for as long as TOWPATH_FUZZ_SECONDS says"]
fn fuzz_for_a_while() {
    let seconds = env::var("TOWPATH_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let end = Instant::now() + Duration::from_secs(seconds);
    let seed = u64::from(std::process::id());
    let count = fuzz(seed, |_| Instant::now() < end);
    println!("{count} inputs from seed {seed}");
}

/// Writes what cargo-fuzz begins with.
#[test]
#[ignore = "writes into fuzz/corpus"]
fn write_the_seeds_for_the_fuzzer() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/proxy_header");
    fs::create_dir_all(&folder).expect("a folder");
    for (name, bytes) in corpus() {
        fs::write(folder.join(name), bytes).expect("a file");
    }
}
