//! The PROXY protocol; what is done with the bytes says `proxy_header::run`, which the tests of the core run as well.

#![no_main]

#[path = "../src/proxy_header.rs"]
#[allow(dead_code)]
mod proxy_header;

libfuzzer_sys::fuzz_target!(|input: &[u8]| proxy_header::run(input));
