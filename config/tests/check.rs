//! The check as its callers see it: text in, model or diagnostics out.

#[path = "check/control.rs"]
mod control;
#[path = "check/examples.rs"]
mod examples;
#[path = "check/failure.rs"]
mod failure;
#[path = "check/http.rs"]
mod http;
#[path = "check/limits.rs"]
mod limits;
#[path = "check/mistakes.rs"]
mod mistakes;
#[path = "check/model.rs"]
mod model;
#[path = "check/properties.rs"]
mod properties;
#[path = "check/rendered.rs"]
mod rendered;
#[path = "check/tls.rs"]
mod tls;

use towpath_config::{Checked, check};

/// Code and the text it points at, for every diagnostic.
fn told<'t>(checked: &Checked, text: &'t str) -> Vec<(&'static str, &'t str)> {
    checked
        .diagnostics
        .iter()
        .map(|diagnostic| (diagnostic.code, &text[diagnostic.primary.start..diagnostic.primary.end]))
        .collect()
}

/// A file with one service, with further lines of the service and of its only server.
fn service(lines: &str, server: &str) -> String {
    let unless = |written: &str, key: &str, line: &'static str| {
        if written.lines().any(|written| written.starts_with(key)) { "" } else { line }
    };
    let vip = unless(lines, "vip =", "vip = \"192.0.2.10\"\n");
    let ports = unless(lines, "ports =", "ports = [443]\n");
    let first_server = server.split("[[").next().unwrap_or("");
    let address = unless(first_server, "address =", "address = \"192.0.2.21\"\n");
    format!(
        "[[service]]\nname = \"web\"\n{vip}{ports}{lines}\n\n[[service.server]]\nname = \"one\"\n{address}{server}\n"
    )
}

/// Asserts exactly these diagnostics, in this order.
#[track_caller]
fn expect(text: &str, expected: &[(&str, &str)]) {
    let checked = check("test.toml", text);
    assert_eq!(
        told(&checked, text),
        expected,
        "for\n{text}\n{}",
        towpath_config::render(&checked.diagnostics, "test.toml", text, false)
    );
}
