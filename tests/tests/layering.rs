//! The walls between the crates hold: every arrow points one way, `unsafe` stays in engine/sys, every crate keeps the
//! workspace's lints, core stays free of clocks, files, threads and locks, and ARCHITECTURE.md names files that are there.

use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use toml::{Table, Value};

/// What each crate of the workspace may import from it. A crate without a row here is an error, so is a row without a crate.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("towpath-config", &[]),
    ("towpath-core", &["towpath-config"]),
    ("towpath-sys", &[]),
    ("towpath-tls", &[]),
    ("towpath-engine", &["towpath-config", "towpath-core", "towpath-sys", "towpath-tls"]),
    ("towpath-perf", &["towpath-config", "towpath-core", "towpath-sys", "towpath-tls", "towpath-engine"]),
    ("towpath", &["towpath-config", "towpath-core", "towpath-sys", "towpath-tls", "towpath-engine", "towpath-perf"]),
    (
        "towpath-tests",
        &["towpath", "towpath-config", "towpath-core", "towpath-engine", "towpath-perf", "towpath-sys", "towpath-tls"],
    ),
];

/// The one place of `unsafe`.
const UNSAFE_HOME: &str = "engine/sys";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_path_buf()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn table(path: &Path) -> Table {
    read(path).parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The manifest of each member of the workspace, with its folder.
fn members() -> Vec<(String, Table)> {
    let workspace = table(&root().join("Cargo.toml"));
    let members = workspace["workspace"]["members"].as_array().expect("a list of members");
    members
        .iter()
        .map(|member| {
            let folder = member.as_str().expect("members are strings");
            (folder.to_string(), table(&root().join(folder).join("Cargo.toml")))
        })
        .collect()
}

fn package_name(manifest: &Table) -> &str {
    manifest["package"]["name"].as_str().expect("a package has a name")
}

/// Everything that a manifest imports, of any kind (also for tests, builds and single platforms), by the name of the package.
fn imports(manifest: &Table) -> Vec<String> {
    let mut imports = Vec::new();
    for (key, value) in manifest {
        let Value::Table(value) = value else { continue };
        match key.as_str() {
            "dependencies" | "dev-dependencies" | "build-dependencies" => {
                imports.extend(
                    value
                        .iter()
                        .map(|(name, how)| how.get("package").and_then(Value::as_str).unwrap_or(name).to_string()),
                );
            }
            "target" => {
                imports.extend(value.values().filter_map(Value::as_table).flat_map(self::imports));
            }
            _ => {}
        }
    }
    imports
}

/// The arrows of `manifest` that point the wrong way, each as a sentence.
fn wrong_arrows(manifest: &Table) -> Vec<String> {
    let name = package_name(manifest);
    let Some((_, allowed)) = MAY_IMPORT.iter().find(|(row, _)| *row == name) else {
        return vec![format!("{name} has no row in MAY_IMPORT: say what it may import")];
    };
    imports(manifest)
        .into_iter()
        .filter(|import| import.starts_with("towpath") && !allowed.contains(&import.as_str()))
        .map(|import| format!("{name} imports {import}"))
        .collect()
}

/// How often `source` uses `unsafe` as code or loosens the lint that forbids it; comments and strings do not count.
fn unsafe_tokens(source: &str) -> usize {
    fn count(tokens: TokenStream, loosening: bool) -> usize {
        let mut found = 0;
        let mut loosens = false;
        for token in tokens {
            match &token {
                TokenTree::Ident(ident) => {
                    found += usize::from(ident == "unsafe" || loosening && ident == "unsafe_code")
                }
                TokenTree::Group(group) => found += count(group.stream(), loosening || loosens),
                TokenTree::Literal(_) | TokenTree::Punct(_) => {}
            }
            loosens =
                matches!(&token, TokenTree::Ident(ident) if ident == "allow" || ident == "expect" || ident == "warn");
        }
        found
    }
    count(source.parse().unwrap_or_else(|error| panic!("not Rust: {error}\n{source}")), false)
}

/// Every Rust file below `folder`, without build output and hidden folders.
fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let entry = entry.expect("a folder that can be opened can be read");
        let (path, name) = (entry.path(), entry.file_name());
        let kind = entry.file_type().expect("an entry has a type");
        if kind.is_dir() {
            if name != "target" && !name.to_string_lossy().starts_with('.') {
                rust_files(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn arrows_between_crates_point_one_way() {
    let members = members();
    let wrong: Vec<String> = members.iter().flat_map(|(_, manifest)| wrong_arrows(manifest)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    let names: Vec<&str> = members.iter().map(|(_, manifest)| package_name(manifest)).collect();
    for (row, _) in MAY_IMPORT {
        assert!(names.contains(row), "{row} has a row but is no member of the workspace");
    }
}

#[test]
fn an_arrow_that_turns_round_is_found_wherever_it_is_written() {
    let wrong = |text: &str| wrong_arrows(&text.parse().expect("TOML"));
    let core = "[package]\nname = \"towpath-core\"\n";
    assert_eq!(wrong(&format!("{core}[dependencies]\ntowpath-config.workspace = true\nserde = \"1\"")), [""; 0]);
    for section in [
        "[dependencies]\ntowpath-sys.workspace = true",
        "[dev-dependencies]\ntowpath-sys = { path = \"../sys\" }",
        "[build-dependencies.sys]\npackage = \"towpath-sys\"\npath = \"../sys\"",
        "[target.'cfg(unix)'.dependencies]\ntowpath-sys = \"0.1\"",
    ] {
        assert_eq!(wrong(&format!("{core}{section}")), ["towpath-core imports towpath-sys"], "{section}");
    }
    assert_eq!(wrong("[package]\nname = \"towpath-new\"").len(), 1);
}

#[test]
fn unsafe_stays_in_engine_sys() {
    let mut files = Vec::new();
    rust_files(&root(), &mut files);
    let home = root().join(UNSAFE_HOME);
    let outside: Vec<&PathBuf> = files.iter().filter(|file| !file.starts_with(&home)).collect();
    assert!(outside.len() > MAY_IMPORT.len(), "the search saw only {outside:?}");

    let unsafe_files: Vec<String> = outside
        .into_iter()
        .map(|file| (file, unsafe_tokens(&read(file))))
        .filter(|(_, tokens)| *tokens > 0)
        .map(|(file, tokens)| format!("{}: {tokens} × unsafe; it belongs in {UNSAFE_HOME}", file.display()))
        .collect();
    assert!(unsafe_files.is_empty(), "{}", unsafe_files.join("\n"));
}

#[test]
fn unsafe_counts_as_code_only() {
    assert_eq!(
        unsafe_tokens("// unsafe\n/* unsafe */ /// unsafe\nfn f() { let _ = \"unsafe\"; let unsafely = 1; }"),
        0
    );
    assert_eq!(unsafe_tokens("fn f() { unsafe { g() } }"), 1);
    assert_eq!(unsafe_tokens("unsafe fn f() {}\nunsafe impl Send for T {}"), 2);
    assert_eq!(unsafe_tokens("macro_rules! m { () => { [(unsafe { g() })] } }"), 1);
    assert_eq!(unsafe_tokens("#[unsafe(no_mangle)] extern \"C\" fn f() {}"), 1);
    assert_eq!(unsafe_tokens("#![allow(unsafe_code)]"), 1);
    assert_eq!(unsafe_tokens("#[expect(dead_code, unsafe_code)] fn f() {}"), 1);
    assert_eq!(unsafe_tokens("#![forbid(unsafe_code)]"), 0);
}

#[test]
fn every_crate_keeps_the_lints_of_the_workspace() {
    for (folder, manifest) in members() {
        let inherits = manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(Value::as_bool);
        assert_eq!(inherits, Some(true), "{folder}/Cargo.toml: add [lints] workspace = true");
    }

    let workspace = table(&root().join("Cargo.toml"));
    let lints = &workspace["workspace"]["lints"];
    assert_eq!(lints["rust"]["unsafe_code"].as_str(), Some("deny"));
    for lint in ["undocumented_unsafe_blocks", "multiple_unsafe_ops_per_block"] {
        assert_eq!(lints["clippy"][lint].as_str(), Some("deny"), "{lint}");
    }
}

#[test]
fn core_has_no_clock_no_files_no_sockets_no_threads_and_no_locks() {
    let bans = table(&root().join("engine/core/clippy.toml"));
    let banned: Vec<&str> = ["disallowed-types", "disallowed-methods"]
        .iter()
        .flat_map(|list| bans[*list].as_array().expect("a list of bans"))
        .map(|ban| ban["path"].as_str().expect("a ban has a path"))
        .collect();
    for path in [
        "std::fs::File",
        "std::net::TcpStream",
        "std::net::UdpSocket",
        "std::sync::Mutex",
        "std::sync::RwLock",
        "std::thread::sleep",
        "std::thread::spawn",
        "std::time::Instant::now",
        "std::time::SystemTime::now",
    ] {
        assert!(banned.contains(&path), "engine/core/clippy.toml does not ban {path}");
    }
}

/// The Rust files in `text` that are named with their folder, as they are written there.
fn named_files(text: &str) -> Vec<&str> {
    let is_of_path = |letter: char| letter.is_ascii_alphanumeric() || "/_-.".contains(letter);
    text.split(|letter| !is_of_path(letter))
        .map(|word| word.trim_end_matches('.'))
        .filter(|word| word.contains('/') && word.ends_with(".rs"))
        .collect()
}

/// Whether one of the `files` has a path that ends as the name says; between a crate and the rest of the name `src` may be left out.
fn is_there(name: &str, files: &[PathBuf]) -> bool {
    let within = name.split_once('/').map(|(folder, rest)| format!("{folder}/src/{rest}"));
    files.iter().any(|file| file.ends_with(name) || within.as_ref().is_some_and(|within| file.ends_with(within)))
}

#[test]
fn the_architecture_names_files_that_are_there() {
    let mut files = Vec::new();
    rust_files(&root(), &mut files);
    let text = read(&root().join("ARCHITECTURE.md"));
    let named = named_files(&text);
    assert!(named.len() > 100, "the search saw only {named:?}");
    let gone: Vec<&&str> = named.iter().filter(|name| !is_there(name, &files)).collect();
    assert!(gone.is_empty(), "ARCHITECTURE.md names files that have moved or gone: {gone:?}");
}

#[test]
fn files_are_found_in_prose_and_in_drawings() {
    let named = named_files("→ one (core/wheel.rs), `daemon/plan.rs`. See main.rs, or worker/http2/mod.rs.");
    assert_eq!(named, ["core/wheel.rs", "daemon/plan.rs", "worker/http2/mod.rs"]);
    let files = [PathBuf::from("/root/engine/core/src/wheel.rs")];
    assert!(is_there("core/wheel.rs", &files) && is_there("src/wheel.rs", &files));
    assert!(!is_there("core/heel.rs", &files) && !is_there("sys/wheel.rs", &files));
}
