//! `config/failure.md`: every event has its clients, every cell its tests, and every test is there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The events that the table must have, by their headings.
const EVENTS: [&str; 13] = [
    "A server refuses",
    "A server is silent",
    "A server is slow",
    "A server is drained",
    "A drain is over",
    "A server is halted",
    "A server is removed",
    "A server returns",
    "A server is ready again",
    "No server is left",
    "No server is left but the sorry server",
    "The service is at its limit",
    "The queue is full",
];
/// The rows of each.
const CLIENTS: [&str; 3] = ["new", "persistent", "existing"];
/// Behind the first column.
const PLANES: [&str; 2] = ["stream plane", "packet plane"];

/// What is wrong with the table, each with its place; `tests` has the text of each file.
fn faults(table: &str, tests: &BTreeMap<String, String>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut sections: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for section in table.split("\n## ").skip(1) {
        let (heading, rest) = section.split_once('\n').unwrap_or((section, ""));
        let rows = rest.lines().filter(|line| line.starts_with('|')).collect();
        if sections.insert(heading, rows).is_some() {
            faults.push(format!("`{heading}` is there twice"));
        }
    }
    let missing = EVENTS.iter().filter(|event| !sections.contains_key(*event));
    faults.extend(missing.map(|event| format!("`{event}` is missing")));
    for (event, rows) in sections {
        let rows: Vec<Vec<&str>> =
            rows.iter().map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect();
        if rows.first().is_none_or(|head| head.get(1..) != Some(&PLANES[..])) {
            faults.push(format!("`{event}` does not have the columns of both planes"));
        }
        for clients in CLIENTS {
            let Some(row) = rows.iter().find(|row| row.first() == Some(&clients)) else {
                faults.push(format!("`{event}` says nothing of {clients} clients"));
                continue;
            };
            if row.len() != 1 + PLANES.len() {
                faults.push(format!("`{event}`, {clients}: {} columns", row.len()));
            }
            for (plane, cell) in PLANES.iter().zip(row.iter().skip(1)) {
                let place = format!("`{event}`, {clients} clients, {plane}");
                let named = references(cell);
                if named.is_empty() {
                    faults.push(format!("{place}: no test"));
                }
                for (file, test) in named {
                    if !tests.get(file).is_some_and(|text| has_test(text, test)) {
                        faults.push(format!("{place}: {file} has no test {test}"));
                    }
                }
            }
        }
    }
    faults
}

/// What stands in backticks as `file.rs name_of_a_test`.
fn references(cell: &str) -> Vec<(&str, &str)> {
    let quoted = cell.split('`').skip(1).step_by(2);
    quoted.filter_map(|text| text.split_once(' ')).filter(|(file, _)| file.ends_with(".rs")).collect()
}

/// Whether the file has this test, which may need a package, but is left out for no other reason.
fn has_test(text: &str, name: &str) -> bool {
    text.split("#[test]\n").skip(1).any(|test| {
        let mut lines = test.lines().skip_while(|line| line.starts_with("#[ignore = \"needs the Debian package"));
        lines.next().is_some_and(|line| line.starts_with(&format!("fn {name}()")))
    })
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a folder of it")
}

#[test]
fn every_cell_of_the_table_names_tests_that_are_there() {
    let table = fs::read_to_string(repository().join("config/failure.md")).expect("the table");
    let mut tests = BTreeMap::new();
    for entry in fs::read_dir(repository().join("tests/tests")).expect("the tests") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            tests.insert(name, fs::read_to_string(&path).expect("a test"));
        }
    }
    let faults = faults(&table, &tests);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_table_with_a_hole_is_told_where() {
    let cell = "others serve: `a.rs it_holds`";
    let row = |clients: &str| format!("| {clients} | {cell} | {cell} |\n");
    let rows = CLIENTS.map(row).concat();
    let section = |event: &str| {
        format!("\n## {event}\n\nWhat it is.\n\n| clients | stream plane | packet plane |\n|---|---|---|\n{rows}")
    };
    let whole = EVENTS.map(section).concat();
    let tests = BTreeMap::from([("a.rs".to_owned(), "#[test]\nfn it_holds() {\n}\n\nfn helper() {}\n".to_owned())]);
    assert_eq!(faults(&whole, &tests), Vec::<String>::new());
    for (from, to, told) in [
        ("## A server is slow", "## A server is lazy", "`A server is slow` is missing"),
        ("| stream plane |", "| plane |", "`A server refuses` does not have the columns of both planes"),
        ("| new |", "| fresh |", "`A server refuses` says nothing of new clients"),
        ("`a.rs it_holds` | ", "`it_holds` | ", "`A server refuses`, new clients, stream plane: no test"),
        (
            "`a.rs it_holds` |\n",
            "`a.rs helper` |\n",
            "`A server refuses`, new clients, packet plane: a.rs has no test helper",
        ),
        (
            "`a.rs it_holds` |\n",
            "`b.rs it_holds` |\n",
            "`A server refuses`, new clients, packet plane: b.rs has no test it_holds",
        ),
        ("`a.rs it_holds` |\n", "`a.rs it_holds` | x |\n", "`A server refuses`, new: 4 columns"),
    ] {
        assert_eq!(faults(&whole.replacen(from, to, 1), &tests), [told], "{from}");
    }
}
