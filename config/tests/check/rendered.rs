//! Diagnostics as a person reads them: each `expected/NAME.toml` must be told as `expected/NAME.txt`.
//!
//! `TOWPATH_BLESS=1 cargo test -p towpath-config rendered` writes the texts; read the difference before you commit it.

use std::fs;
use std::path::Path;

use towpath_config::{check, render};

#[test]
fn diagnostics_read_as_expected() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/expected");
    let bless = std::env::var_os("TOWPATH_BLESS").is_some();
    let mut seen = 0;
    for entry in fs::read_dir(&directory).expect("the folder is there") {
        let path = entry.expect("readable").path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("readable");
        let name = path.file_name().and_then(|name| name.to_str()).expect("UTF-8");
        let shown = render(&check(name, &text).diagnostics, name, &text, false);
        let expected = path.with_extension("txt");
        if bless {
            fs::write(&expected, &shown).expect("writable");
        } else {
            let expected = fs::read_to_string(&expected).expect("there is a text for every file");
            assert!(shown == expected, "{name} is told as\n{shown}\nnot as\n{expected}");
        }
        seen += 1;
    }
    assert!(seen >= 4, "{seen} files");
}

#[test]
fn color_is_only_there_when_asked_for() {
    let text = "[[service]]\n";
    let checked = check("c.toml", text);
    assert!(!render(&checked.diagnostics, "c.toml", text, false).contains('\u{1b}'));
    assert!(render(&checked.diagnostics, "c.toml", text, true).contains('\u{1b}'));
}
