//! Answers to health checks; what is done with the bytes says `checks::run`, which the tests of the core run as well.

#![no_main]

#[path = "../src/checks.rs"]
#[allow(dead_code)]
mod checks;

libfuzzer_sys::fuzz_target!(|input: &[u8]| checks::run(input));
