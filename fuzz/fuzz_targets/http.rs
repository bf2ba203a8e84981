//! The exchange of HTTP mode; what is done with the bytes says `http::run`, which the tests of the core run as well.

#![no_main]

#[path = "../src/http.rs"]
#[allow(dead_code)]
mod http;

libfuzzer_sys::fuzz_target!(|input: &[u8]| http::run(input));
