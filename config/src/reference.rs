//! The configuration reference, written from the table in [`crate::schema`].

use std::fmt::Write;

use crate::decode::duration_text;
use crate::schema::{Availability, Default, Key, Kind, ROOT, Table};

/// `config/reference.md` as the schema says it.
pub fn reference() -> String {
    let mut out = String::from(
        "# Configuration reference\n\nGenerated from the schema by `cargo run -p towpath-config --example reference`; do not edit.\n\n",
    );
    for table in tables() {
        section(table, &mut out);
    }
    out
}

/// Every table of the schema, each once, in the order of the file.
pub(crate) fn tables() -> Vec<&'static Table> {
    let mut tables: Vec<&'static Table> = vec![&ROOT];
    collect(&ROOT, &mut tables);
    tables
}

fn collect(table: &'static Table, into: &mut Vec<&'static Table>) {
    for key in table.keys {
        for inner in inner_tables(&key.kind) {
            if !into.iter().any(|known| known.path == inner.path) {
                into.push(inner);
                collect(inner, into);
            }
        }
    }
}

fn inner_tables(kind: &Kind) -> Vec<&'static Table> {
    match kind {
        Kind::Table(table) | Kind::Tables(table, _) => vec![table],
        Kind::Either(kinds) => kinds.iter().flat_map(inner_tables).collect(),
        _ => Vec::new(),
    }
}

fn section(table: &Table, out: &mut String) {
    if table.path.is_empty() {
        let _ = writeln!(out, "## The file\n");
    } else {
        let _ = writeln!(out, "## `{}`\n", table.path);
    }
    let _ = writeln!(out, "{}\n", table.doc);
    let _ = writeln!(out, "| key | value | default | meaning |\n|---|---|---|---|");
    for key in table.keys {
        row(key, out);
    }
    out.push('\n');
    for key in table.keys {
        words(key, out);
    }
}

fn row(key: &Key, out: &mut String) {
    let default = match key.default {
        Default::Absent => "-".to_owned(),
        Default::Described(rule) => rule.to_owned(),
        Default::Required => "**required**".to_owned(),
        Default::Value(text) => format!("`{}`", quoted(&key.kind, text)),
    };
    let later = match key.availability {
        Availability::Later => " *Not available yet.*",
        Availability::Now => "",
    };
    let _ = writeln!(out, "| `{}` | {} | {default} | {}{later} |", key.name, value(&key.kind), key.doc);
}

/// The words of a closed set, each with its meaning.
fn words(key: &Key, out: &mut String) {
    let sets: Vec<_> = match key.kind {
        Kind::Word(words) => vec![words],
        Kind::Either(kinds) => {
            kinds.iter().filter_map(|kind| if let Kind::Word(words) = kind { Some(*words) } else { None }).collect()
        }
        _ => Vec::new(),
    };
    if sets.is_empty() {
        return;
    }
    let _ = writeln!(out, "`{}`:\n", key.name);
    for word in sets.into_iter().flatten() {
        let later = match word.availability {
            Availability::Later => " *Not available yet.*",
            Availability::Now => "",
        };
        let _ = writeln!(out, "- `\"{}\"`: {}{later}", word.word, word.doc);
    }
    out.push('\n');
}

fn value(kind: &Kind) -> String {
    match kind {
        Kind::Address => "IP address".to_owned(),
        Kind::Bool => "`true`, `false`".to_owned(),
        Kind::Command => "`[\"/path/of/program\", \"argument\", ...]`".to_owned(),
        Kind::Duration { min_ms, max_ms } => {
            format!("duration, `{}` to `{}`", duration_text(*min_ms), duration_text(*max_ms))
        }
        Kind::Either(kinds) => kinds.iter().map(value).collect::<Vec<_>>().join(" or "),
        Kind::Integer { min, max, unit } => format!("{min} to {max} {unit}"),
        // Of the words before it.
        Kind::List(Kind::Word(_), max) => format!("a list of up to {max} of them"),
        Kind::List(item, max) => format!("list of up to {max}: {}", value(item)),
        Kind::Name => "name".to_owned(),
        Kind::Network => "address/prefix".to_owned(),
        Kind::Path => "path".to_owned(),
        Kind::PortRange => "`\"low-high\"`".to_owned(),
        Kind::Ports => "port, `\"low-high\"`, or a list of both".to_owned(),
        Kind::Socket => "`\"address:port\"`".to_owned(),
        Kind::Table(table) => format!("table [`{}`](#{})", table.path, anchor(table.path)),
        Kind::Tables(table, max) => format!("up to {max} tables [`{}`](#{})", table.path, anchor(table.path)),
        Kind::Text => "text".to_owned(),
        Kind::Word(words) => words.iter().map(|word| format!("`\"{}\"`", word.word)).collect::<Vec<_>>().join(", "),
    }
}

/// As Markdown renderers make it from a heading.
fn anchor(path: &str) -> String {
    path.replace('.', "")
}

/// A default as it would stand in the file.
pub(crate) fn quoted(kind: &Kind, text: &str) -> String {
    let bare = match kind {
        Kind::Bool | Kind::Integer { .. } | Kind::Ports => true,
        Kind::Either(kinds) => {
            text.parse::<i64>().is_ok() && kinds.iter().any(|kind| matches!(kind, Kind::Integer { .. }))
        }
        _ => false,
    };
    if bare { text.to_owned() } else { format!("\"{text}\"") }
}
