//! HTTP/1.1 without I/O: the corpus of `tests/http`, exchanges by hand, what nginx and Apache read, and the fuzz target without a fuzzer.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the corpus lies in files, and fuzzing takes its time"
)]

#[path = "http/cookies.rs"]
mod cookies;
#[path = "../../../fuzz/src/cookies.rs"]
mod cookies_target;
#[path = "http/corpus.rs"]
mod corpus;
#[path = "http/exchanges.rs"]
mod exchanges;
#[path = "http/fuzz.rs"]
mod fuzz;
#[path = "http/identity.rs"]
mod identity;
#[path = "http/origins.rs"]
mod origins;
#[path = "http/pinning.rs"]
mod pinning;
#[path = "../../../fuzz/src/http.rs"]
mod target;

use std::fs;
use std::path::{Path, PathBuf};

use towpath_core::http::HttpLimits;

/// As the configuration has them.
const LIMITS: HttpLimits = HttpLimits { head_bytes_max: 32_768, body_bytes_max: 0 };

/// A request that everything follows.
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";

/// The entries of a folder of the corpus, by name.
fn entries(folder: &str) -> Vec<(String, PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/http").join(folder);
    let entry = |entry: Result<fs::DirEntry, std::io::Error>| {
        let entry = entry.expect("an entry of a folder");
        (entry.file_name().to_string_lossy().into_owned(), entry.path())
    };
    let mut entries: Vec<_> =
        fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())).map(entry).collect();
    entries.sort();
    entries
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
