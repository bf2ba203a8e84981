//! Rewrites `config/reference.md` from the schema.

use std::{fs, io, path::Path};

fn main() -> io::Result<()> {
    fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("reference.md"), towpath_config::reference())
}
