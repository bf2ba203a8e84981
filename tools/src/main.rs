//! The program `towpath`; everything is in the library, so that tests can be the same program.

use std::process::ExitCode;

fn main() -> ExitCode {
    towpath::cli::main()
}
