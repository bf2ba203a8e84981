//! Parser and packet plane; what is done with the bytes says `plane::run`, which the tests of the workspace run as well.

#![no_main]

#[path = "../../tests/tests/packets/bench.rs"]
#[allow(dead_code)]
mod bench;
#[path = "../../tests/tests/packets/capture.rs"]
#[allow(dead_code)]
mod capture;
#[path = "../src/plane.rs"]
#[allow(dead_code)]
mod plane;

libfuzzer_sys::fuzz_target!(|input: &[u8]| plane::run(input));
