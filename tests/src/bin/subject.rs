//! The program under test: Towpath itself, built for and with the tests; or one of their helpers.

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    towpath_tests::roles::play(&arguments).unwrap_or_else(towpath::cli::main)
}
