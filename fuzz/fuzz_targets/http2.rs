//! A connection of HTTP/2; what is done with the bytes says `http2::run`, which the tests of the core run as well.

#![no_main]

#[path = "../src/http2.rs"]
#[allow(dead_code)]
mod http2;

libfuzzer_sys::fuzz_target!(|input: &[u8]| http2::run(input));
