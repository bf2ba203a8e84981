//! Cookies of clients and servers; what is done with the bytes says `cookies::Stage::run`, which the tests of the core run as well.

#![no_main]

use std::sync::LazyLock;

#[path = "../src/cookies.rs"]
#[allow(dead_code)]
mod cookies;

static STAGE: LazyLock<cookies::Stage> = LazyLock::new(cookies::Stage::new);

libfuzzer_sys::fuzz_target!(|input: &[u8]| STAGE.run(input));
