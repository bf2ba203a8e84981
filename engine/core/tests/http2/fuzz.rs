//! The fuzz target of HTTP/2, without a fuzzer: its seeds played as they are, and changed at random for as long as one likes.
//!
//!     TOWPATH_FUZZ_SECONDS=60 cargo test --release -p towpath-core --test http2 fuzz -- --ignored --nocapture
//!
//! The seed of the changes is printed; `TOWPATH_FUZZ_SEED` repeats them. What fails is written to a file that `TOWPATH_FUZZ_INPUT` plays again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use std::{env, fs};

use towpath_core::random::SplitMix64;

use super::*;

/// Changes of one input, at most.
const CHANGES_MAX: u64 = 6;
/// Longest input that is made.
const INPUT_BYTES_MAX: usize = 1 << 14;

/// What clients send behind their preface, each frame for itself.
fn seeds() -> Vec<Vec<Vec<u8>>> {
    let settings = frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]);
    let ping = frame(PING, 0, 0, &[1; 8]);
    let trailers = fields(&[("x-sum", "1")]);
    let long = request("POST", &[("cookie", "a=1"), ("cookie", "b=2"), ("x-long", &"x".repeat(900))]);
    let bodies: Vec<Vec<Vec<u8>>> = vec![
        vec![get(1), get(3), ping.clone(), get(5), get(7)],
        vec![post(1, &[("content-length", "9")]), frame(DATA, 0, 1, b"first"), frame(DATA, END, 1, b"last")],
        vec![post(1, &[]), frame(DATA, frame::PADDED, 1, b"\x02abcPP"), frame(HEADERS, END | WHOLE, 1, &trailers)],
        vec![
            frame(HEADERS, END, 1, &long[..20]),
            frame(CONTINUATION, 0, 1, &long[20..300]),
            frame(CONTINUATION, WHOLE, 1, &long[300..]),
            get(3),
        ],
        vec![
            post(1, &[]),
            frame(WINDOW, 0, 0, &[0, 1, 0, 0]),
            frame(DATA, END, 1, &[7; 5_000]),
            get(3),
            frame(RESET, 0, 3, &[0, 0, 0, 8]),
            frame(WINDOW, 0, 3, &[0, 0, 0, 1]),
        ],
        vec![frame(PRIORITY, 0, 1, &[0; 5]), frame(0xbb, 0, 0, b"grease"), get(1), frame(GO_AWAY, 0, 0, &[0; 8])],
        vec![
            frame(HEADERS, END | WHOLE, 1, &[&request("GET", &[])[..], &[0x40, 1, b'x', 1, b'y', 0xbe, 0xbe]].concat()),
            frame(HEADERS, END | WHOLE, 3, &[&[0x20], &request("HEAD", &[])[..]].concat()),
            frame(HEADERS, END | WHOLE, 5, &fields(&[(":method", "CONNECT"), (":authority", "a:1")])),
        ],
        (0..12).map(|number| post(2 * number + 1, &[])).collect(),
    ];
    bodies
        .into_iter()
        .map(|body| [vec![settings.clone(), frame(SETTINGS, frame::ACK, 0, &[])], body].concat())
        .collect()
}

fn input(seed: u8, frames: &[Vec<u8>]) -> Vec<u8> {
    [&[seed], frames.concat().as_slice()].concat()
}

#[test]
fn the_seeds_of_the_fuzz_target_break_nothing() {
    for (number, frames) in seeds().iter().enumerate() {
        (0..8).for_each(|seed| replay(&format!("seed {number}"), &input(seed, frames)));
    }
}

#[test]
fn changed_seeds_break_nothing() {
    // Few, the same ones each time.
    fuzz(1, |count| count < 3_000);
}

#[test]
#[ignore = "it takes as long as TOWPATH_FUZZ_SECONDS says"]
fn fuzz_for_a_while() {
    if let Some(file) = env::var_os("TOWPATH_FUZZ_INPUT") {
        return replay("the file", &fs::read(file).expect("a file"));
    }
    let number = |name| env::var(name).ok().and_then(|value: String| value.parse().ok());
    let seconds = number("TOWPATH_FUZZ_SECONDS").unwrap_or(10);
    let seed = number("TOWPATH_FUZZ_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("TOWPATH_FUZZ_SEED={seed}");
    let end = std::time::Instant::now() + Duration::from_secs(seconds);
    let count = fuzz(seed, |_| std::time::Instant::now() < end);
    println!("{count} inputs in {seconds} s");
}

/// Plays changed seeds while `goes_on`; how many.
fn fuzz(seed: u64, goes_on: impl Fn(u64) -> bool) -> u64 {
    let mut random = SplitMix64::new(seed);
    let seeds = seeds();
    let mut count = 0;
    while goes_on(count) {
        let mut frames = seeds[random.below(seeds.len() as u64) as usize].clone();
        let other = &seeds[random.below(seeds.len() as u64) as usize];
        for _ in 0..random.below(CHANGES_MAX) {
            change_frames(&mut frames, other, &mut random);
        }
        let mut input = input(random.below(256) as u8, &frames);
        for _ in 0..random.below(CHANGES_MAX) {
            let at = 1 + random.below(input.len() as u64 - 1) as usize;
            match random.below(3) {
                0 => input[at] ^= 1 << random.below(8),
                1 => input[at] = random.below(256) as u8,
                _ => input.truncate(at + 1),
            }
        }
        input.truncate(INPUT_BYTES_MAX);
        replay(&format!("input {count} of seed {seed}"), &input);
        count += 1;
    }
    count
}

/// Frames in another order, twice, left out, of other seeds, or with another flag, kind, stream or payload of the same length.
fn change_frames(frames: &mut Vec<Vec<u8>>, other: &[Vec<u8>], random: &mut SplitMix64) {
    let mut below = |end: usize| random.below(end.max(1) as u64) as usize;
    let at = below(frames.len());
    match below(7) {
        0 if frames.len() > 1 => drop(frames.remove(at)),
        1 => {
            let to = below(frames.len());
            frames.swap(at, to);
        }
        2 => frames.insert(at, other[below(other.len())].clone()),
        3 => frames[at][3] = below(12) as u8,
        4 => frames[at][4] ^= [END, WHOLE, frame::PADDED, frame::WITH_PRIORITY][below(4)],
        5 => frames[at][8] = below(16) as u8,
        _ if frames[at].len() > HEAD_BYTES => {
            let place = HEAD_BYTES + below(frames[at].len() - HEAD_BYTES);
            frames[at][place] = below(256) as u8;
        }
        _ => {}
    }
}

/// Plays an input; one that fails is written to a file first.
fn replay(name: &str, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| target::run(input))).is_err() {
        let file = env::temp_dir().join(format!("towpath-fuzz-http2-{}", std::process::id()));
        let written = fs::write(&file, input);
        panic!("{name}: TOWPATH_FUZZ_INPUT={} plays it again ({written:?})", file.display());
    }
}
