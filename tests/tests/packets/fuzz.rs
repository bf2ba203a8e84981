//! The fuzz target of the packet plane, without a fuzzer: its seeds played as they are, and changed at random for as long as one likes.
//!
//!     TOWPATH_FUZZ_SECONDS=60 cargo test --release -p towpath-tests --test packets fuzz -- --ignored --nocapture
//!
//! The seed of the changes is printed; `TOWPATH_FUZZ_SEED` repeats them. What fails is written to a file that `TOWPATH_FUZZ_INPUT` plays again.
//! With a nightly compiler and cargo-fuzz: `cargo +nightly fuzz run plane fuzz/corpus/plane`, after `write_the_seeds_for_the_fuzzer` below.

use std::env;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use towpath_core::plane::PortId;

use crate::capture::{self, Captured};
use crate::plane;

/// Changes of one input, at most.
const CHANGES_MAX: u64 = 12;
/// Inputs that were changed without a failure are kept to be changed further, at most so many.
const KEPT_MAX: usize = 512;

/// The frames of the corpus, for each configuration in turn: those of other cases, too.
fn seeds() -> Vec<(String, Vec<u8>)> {
    let cases = crate::cases();
    let mut seeds = Vec::new();
    for case in &cases {
        let frames = capture::read(&case.join("in.pcap"));
        let name = case.file_name().unwrap_or_default().to_string_lossy();
        for (config, _) in plane::CONFIGS {
            let input = plane::input_of(config, &frames).expect("it is one of them");
            seeds.push((format!("{config}-{name}"), input));
        }
    }
    seeds.push(("nothing".into(), Vec::new()));
    seeds.push(("no-steps".into(), vec![0]));
    let empty = Captured { at_ms: 70_000, port: PortId(2), bytes: Vec::new() };
    seeds.push(("empty-frame".into(), plane::input_of("dsr-v4-tcp", &[empty]).expect("it is one of them")));
    seeds
}

#[test]
fn the_seeds_of_the_fuzz_target_break_nothing() {
    let seeds = seeds();
    assert!(seeds.len() > 100, "{} seeds", seeds.len());
    seeds.iter().for_each(|(name, input)| play(name, input));
}

#[test]
fn changed_seeds_break_nothing() {
    // Few, the same ones each time.
    fuzz(1, |count| count < 2_000);
}

#[test]
#[ignore = "it takes as long as TOWPATH_FUZZ_SECONDS says"]
fn fuzz_for_a_while() {
    if let Some(file) = env::var_os("TOWPATH_FUZZ_INPUT") {
        return play("the file", &fs::read(file).expect("a file"));
    }
    let number = |name| env::var(name).ok().and_then(|value| value.parse().ok());
    let seconds = number("TOWPATH_FUZZ_SECONDS").unwrap_or(10);
    let seed = number("TOWPATH_FUZZ_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("TOWPATH_FUZZ_SEED={seed}");
    let end = Instant::now() + Duration::from_secs(seconds);
    let count = fuzz(seed, |_| Instant::now() < end);
    println!("{count} inputs in {seconds} s");
}

/// Writes what cargo-fuzz begins with.
#[test]
#[ignore = "it writes files"]
fn write_the_seeds_for_the_fuzzer() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/plane");
    fs::create_dir_all(&folder).expect("a folder");
    for (name, input) in seeds() {
        fs::write(folder.join(name), input).expect("a file");
    }
}

/// Plays changed seeds while `goes_on`; how many.
fn fuzz(seed: u64, goes_on: impl Fn(u64) -> bool) -> u64 {
    let mut random = Random(seed | 1);
    let mut inputs: Vec<Vec<u8>> = seeds().into_iter().map(|(_, input)| input).collect();
    let first = inputs.len();
    let mut count = 0;
    while goes_on(count) {
        let mut input = inputs[random.below(inputs.len())].clone();
        for _ in 0..=random.next() % CHANGES_MAX {
            let other = random.below(inputs.len());
            change(&mut input, &inputs[other], &mut random);
        }
        play(&format!("input {count} of seed {seed}"), &input);
        count += 1;
        if inputs.len() < first + KEPT_MAX {
            inputs.push(input);
        } else {
            let at = first + random.below(KEPT_MAX);
            inputs[at] = input;
        }
    }
    count
}

/// Plays an input; one that fails is written to a file first.
fn play(name: &str, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| plane::run(input))).is_err() {
        let file = env::temp_dir().join(format!("towpath-fuzz-{}", std::process::id()));
        let written = fs::write(&file, input);
        panic!("{name}: TOWPATH_FUZZ_INPUT={} plays it again ({written:?})", file.display());
    }
}

/// Longest input that is made.
const INPUT_BYTES_MAX: usize = 1 << 15;

fn change(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(input.len().max(1));
    let len = random.below(64);
    match random.next() % 10 {
        // Numbers at and beside the ends of what fields hold.
        0 | 1 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff, 4, 5][random.below(8)],
        2 | 3 if at < input.len() => input[at] ^= 1 << random.below(8),
        4 if at < input.len() => input[at] = random.next() as u8,
        // A part again, elsewhere.
        5 => {
            let part = input[at.min(input.len())..(at + len).min(input.len())].to_vec();
            let to = random.below(input.len() + 1);
            input.splice(to..to, part);
        }
        6 => {
            input.drain(at.min(input.len())..(at + len).min(input.len()));
        }
        7 => {
            let from = random.below(other.len().max(1)).min(other.len());
            let part = other[from..].iter().take(4 * len).copied();
            input.splice(at.min(input.len()).., part);
        }
        // A whole input behind this one: its configuration becomes a step.
        8 => input.extend_from_slice(other),
        // A wait, a reload or another network.
        _ => {
            let step = [5 + (random.next() % 3) as u8, random.next() as u8, random.next() as u8];
            input.splice(at.min(input.len())..at.min(input.len()), step);
        }
    }
    input.truncate(INPUT_BYTES_MAX);
}

/// xorshift64 (Marsaglia, 2003): the same changes on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}
