//! The fuzz target of HTTP mode, without a fuzzer: its seeds played as they are, and changed at random for as long as one likes.
//!
//!     TOWPATH_FUZZ_SECONDS=60 cargo test --release -p towpath-core --test http fuzz -- --ignored --nocapture
//!
//! The seed of the changes is printed; `TOWPATH_FUZZ_SEED` repeats them. What fails is written to a file that `TOWPATH_FUZZ_INPUT` plays again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;
use std::{env, fs};

use proptest::prelude::*;
use towpath_core::random::SplitMix64;

use crate::target::{SEPARATOR, play, read_plainly, run};
use crate::{GET, LIMITS, entries, read, text};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Changes of one input, at most.
const CHANGES_MAX: u64 = 8;
/// Longest input that is made.
const INPUT_BYTES_MAX: usize = 1 << 14;

/// What is put in: the bytes that mean something.
const WORDS: [&[u8]; 26] = [
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"0\r\n\r\n",
    b"\r\n\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n",
    b"Host: b\r\n",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"chunked",
    b"ffffffffffffffff",
    b"\x00",
    b"HEAD ",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\n\r\n",
    b"WWW-Authenticate: NTLM\r\n",
    SEPARATOR,
];

/// What comes in, of this folder of the corpus.
fn streams(folder: &str) -> Vec<Vec<u8>> {
    let mut streams = Vec::new();
    for (_, case) in ["refused", "passed"].iter().flat_map(|part| entries(&format!("{folder}/{part}"))) {
        let files = fs::read_dir(case).expect("a folder").map(|file| file.expect("an entry").path());
        let mut files: Vec<_> = files.filter(|file| file.file_name().is_some_and(|name| name != "out.http")).collect();
        files.sort();
        streams.extend(files.iter().map(|file| read(file)));
    }
    streams
}

/// What clients send, of the corpus.
pub(crate) fn request_streams() -> Vec<Vec<u8>> {
    streams("requests")
}

/// The corpus, each with what the other side would say.
fn seeds() -> Vec<Vec<u8>> {
    let requests = request_streams().into_iter();
    let requests = requests.map(|request| [&request, GET, SEPARATOR, OK, SEPARATOR, OK].concat());
    let responses = streams("responses").into_iter();
    let responses = responses.map(|response| [GET, GET, SEPARATOR, &response, SEPARATOR, OK].concat());
    requests.chain(responses).enumerate().map(|(at, stream)| [&[at as u8], stream.as_slice()].concat()).collect()
}

#[test]
fn the_seeds_of_the_fuzz_target_break_nothing() {
    let seeds = seeds();
    assert!(seeds.len() > 200, "{} seeds", seeds.len());
    seeds.iter().for_each(|input| replay("a seed", input));
}

#[test]
fn changed_seeds_break_nothing() {
    // Few, the same ones each time.
    fuzz(1, |count| count < 4_000);
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

/// Writes what cargo-fuzz begins with.
#[test]
#[ignore = "it writes files"]
fn write_the_seeds_for_the_fuzzer() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/http");
    fs::create_dir_all(&folder).expect("a folder");
    for (number, input) in seeds().into_iter().enumerate() {
        fs::write(folder.join(number.to_string()), input).expect("a file");
    }
}

/// Plays changed seeds while `goes_on`; how many.
fn fuzz(seed: u64, goes_on: impl Fn(u64) -> bool) -> u64 {
    let mut random = SplitMix64::new(seed);
    let seeds = seeds();
    let mut count = 0;
    while goes_on(count) {
        let any = |random: &mut SplitMix64| &seeds[random.below(seeds.len() as u64) as usize];
        let mut input = any(&mut random).clone();
        for _ in 0..=random.below(CHANGES_MAX) {
            let other = any(&mut random);
            change(&mut input, other, &mut random);
        }
        replay(&format!("input {count} of seed {seed}"), &input);
        count += 1;
    }
    count
}

/// Plays an input; one that fails is written to a file first.
fn replay(name: &str, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| run(input))).is_err() {
        let file = env::temp_dir().join(format!("towpath-fuzz-http-{}", std::process::id()));
        let written = fs::write(&file, input);
        panic!("{name}: TOWPATH_FUZZ_INPUT={} plays it again ({written:?})", file.display());
    }
}

pub(crate) fn change(input: &mut Vec<u8>, other: &[u8], random: &mut SplitMix64) {
    let mut below = |end: usize| random.below(end as u64) as usize;
    let at = below(input.len().max(1)).min(input.len());
    let len = below(24).min(input.len() - at);
    match below(8) {
        0 if at < input.len() => input[at] ^= 1 << below(8),
        1 if at < input.len() => input[at] = below(256) as u8,
        2 => drop(input.drain(at..at + len)),
        3 => {
            let part = input[at..at + len].to_vec();
            let to = below(input.len() + 1);
            input.splice(to..to, part);
        }
        4 => {
            let from = below(other.len().max(1)).min(other.len());
            input.splice(at.., other[from..].iter().copied());
        }
        _ => {
            let word = WORDS[below(WORDS.len())];
            let over = if below(2) == 0 { len.min(word.len()) } else { 0 };
            input.splice(at..at + over, word.iter().copied());
        }
    }
    input.truncate(INPUT_BYTES_MAX);
}

/// A request as a client may well send it, and its body.
fn request() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let method = prop::sample::select(vec!["GET", "POST", "PUT", "PROPFIND"]);
    let field =
        ("[A-Z][a-z]{1,8}-[A-Z][a-z]{1,8}", "[ -~]{0,20}").prop_map(|(name, value)| format!("{name}:{value}\r\n"));
    let fields = prop::collection::vec(field, 0..6);
    let chunks = prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..5);
    (method, "/[a-z/?=&%0-9.]{0,20}", fields, chunks, any::<bool>()).prop_map(
        |(method, target, fields, chunks, chunked)| {
            let body = chunks.concat();
            let mut bytes =
                format!("{method} {target} HTTP/1.1\r\nHost: a.example\r\n{}", fields.concat()).into_bytes();
            if chunked {
                bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                for chunk in &chunks {
                    bytes.extend_from_slice(format!("{:X};e\r\n", chunk.len()).as_bytes());
                    bytes.extend_from_slice(chunk);
                    bytes.extend_from_slice(b"\r\n");
                }
                bytes.extend_from_slice(b"0\r\n\r\n");
            } else {
                bytes.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
                bytes.extend_from_slice(&body);
            }
            (bytes, body)
        },
    )
}

proptest! {
    #[test]
    fn pipelined_requests_reach_the_server_one_by_one_however_they_are_cut(
        requests in prop::collection::vec(request(), 1..5),
        seed in any::<u64>(),
    ) {
        let client: Vec<u8> = requests.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        let mut random = SplitMix64::new(seed);
        let played = play(&client, &vec![OK; requests.len()], LIMITS, |left| 1 + random.below(left.min(90) as u64) as usize);
        let seen = played.to_servers.concat();
        let (messages, rest) = read_plainly(&seen, false);
        prop_assert!(rest.is_empty(), "{}", text(rest));
        let bodies: Vec<_> = messages.iter().map(|message| &message.body).collect();
        prop_assert_eq!(bodies, requests.iter().map(|(_, body)| body).collect::<Vec<_>>());
        // All of them over one connection, and each answered.
        prop_assert_eq!(played.to_servers.len(), 1);
        prop_assert_eq!(played.to_client, OK.repeat(requests.len()));
    }
}
