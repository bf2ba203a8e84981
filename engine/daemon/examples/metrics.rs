//! Rewrites `config/metrics.md` from the list of metrics.

use std::{fs, io, path::Path};

fn main() -> io::Result<()> {
    fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/metrics.md"), towpath_engine::metrics::page())
}
