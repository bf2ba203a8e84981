//! From text to the spanned TOML tree, with every syntax error.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Report, SYNTAX, Span};

/// Parses as much as there is; what is broken is reported and left out.
pub(crate) fn parse<'t>(text: &'t str, report: &mut Report) -> Spanned<DeTable<'t>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    report.incomplete = !errors.is_empty();
    for error in &errors {
        if report.full() {
            break;
        }
        let span = error.span().unwrap_or(text.len()..text.len());
        if error.message() == "duplicate key" {
            let name = text.get(span.clone()).unwrap_or("").trim_matches(['"', '\'']);
            let first = if report.may_search() { first_place(root.get_ref(), name, span.start) } else { None };
            let finding = report.error(
                "duplicate-key",
                &span,
                format!("`{}` is written twice in the same table", crate::decode::shorten(name)),
            );
            finding.hint("remove one of them");
            if let Some(first) = first {
                finding.label(&first, "first here");
            }
        } else {
            report.error(SYNTAX, &span, format!("TOML syntax: {}", error.message())).hint(hint(error.message()));
        }
    }
    root
}

fn hint(message: &str) -> &'static str {
    if message.contains("comma between array elements") || message.contains("unclosed array") {
        "a `,` or the closing `]` is missing before this"
    } else if message.contains("string") || message.contains("quote") || message.contains("literal") {
        "text stands in quotes, on one line: name = \"front-end\""
    } else if message.contains("array") || message.contains("inline table") {
        "lists are [1, 2], tables on one line are { key = value }; both end where they began or on a later line"
    } else {
        "a line is `key = value`, `[table]`, `[[list of tables]]` or `# comment`"
    }
}

/// The nearest earlier place with this key. The parser tells only the second one.
fn first_place(root: &DeTable<'_>, name: &str, before: usize) -> Option<Span> {
    let mut best: Option<Span> = None;
    let mut tables = vec![root];
    while let Some(table) = tables.pop() {
        for (key, value) in table {
            let span = key.span();
            if key.get_ref() == name && span.end <= before && best.as_ref().is_none_or(|best| best.start < span.start) {
                best = Some(span);
            }
            let mut values = vec![value.get_ref()];
            while let Some(value) = values.pop() {
                match value {
                    DeValue::Table(inner) => tables.push(inner),
                    DeValue::Array(items) => values.extend(items.iter().map(Spanned::get_ref)),
                    _ => {}
                }
            }
        }
    }
    best
}
