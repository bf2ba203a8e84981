//! The fuzz target of cookies, without a fuzzer: its seeds, and random changes of them.

use towpath_core::random::SplitMix64;

use crate::cookies_target::{NAMES, SEPARATOR, Stage};

/// What is put in: the bytes that mean something.
const WORDS: [&[u8]; 12] =
    [b";", b"=", b" ", b"\"", b"\t", b",", b"\r\nCookie: ", b"\r\n", b"OURS=", b"THEIRS=", b"\x00", SEPARATOR];
/// Changes of one input, at most.
const CHANGES_MAX: u64 = 6;

fn seeds(stage: &Stage) -> Vec<Vec<u8>> {
    let [one, two] = <[_; 2]>::try_from(stage.of_servers()).expect("two servers");
    let join = |parts: &[&[u8]]| parts.concat();
    let mut seeds = vec![
        join(&[&one]),
        join(&[b"a=b; ", &two, b"; THEIRS=x", SEPARATOR, b"THEIRS=y; Path=/; HttpOnly"]),
        join(&[&two, b";", &one]),
        join(&[b"OURS=; ", &one, b"x; ", &two, SEPARATOR, b"THEIRS=; Max-Age=0"]),
        join(&[b"XOURS=1; ours=", &one[NAMES[0].len() + 1..], b"; THEIRS = z ", SEPARATOR, b" THEIRS = \"q\" "]),
    ];
    seeds.push(Vec::new());
    seeds
}

#[test]
fn whatever_cookies_say_clients_are_found_by_what_stands_there() {
    let stage = Stage::new();
    let seeds = seeds(&stage);
    seeds.iter().for_each(|seed| stage.run(seed));
    let mut random = SplitMix64::new(3);
    let mut at = |below: usize| random.below(below as u64) as usize;
    for _ in 0..20_000 {
        let mut input = seeds[at(seeds.len())].clone();
        for _ in 0..=at(CHANGES_MAX as usize) {
            let place = at(input.len() + 1);
            match at(4) {
                0 => drop(input.splice(place..place, WORDS[at(WORDS.len())].iter().copied())),
                1 if place < input.len() => input[place] ^= 1 << at(8),
                2 => input.truncate(place),
                _ => {
                    let other = &seeds[at(seeds.len())];
                    let start = at(other.len() + 1);
                    drop(input.splice(place..place, other[start..].iter().copied()));
                }
            }
        }
        stage.run(&input);
    }
}
