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

#[test]
fn line_ends_of_windows_and_byte_order_marks_do_no_harm() {
    let text = "\u{feff}[[service]]\r\nname = \"web\"\r\nvip = \"192.0.2.1\"\r\nports = 80\r\ncolour = 1\r\n\
                [[service.server]]\r\nname = \"one\"\r\naddress = \"192.0.2.2\"\r\n";
    let checked = check("w.toml", text);
    assert_eq!(checked.diagnostics.len(), 1);
    let primary = checked.diagnostics[0].primary;
    assert_eq!((primary.line, primary.column, &text[primary.start..primary.end]), (5, 1, "colour"));
    let shown = render(&checked.diagnostics, "w.toml", text, false);
    assert!(shown.contains("5 | colour = 1"), "{shown}");
    assert!(!shown.contains(['\r', '\u{240d}']), "{shown}");
}
