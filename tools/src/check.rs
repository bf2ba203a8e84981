//! `towpath check`: every mistake of a file at once, with its place; with `--host` also what this machine cannot do.

use std::io::{self, Write};

use anyhow::{Context, Result};
use serde::Serialize;
use towpath_config::{Checked, Diagnostic, Model, Severity};
use towpath_engine::preflight::{self, Finding};

use crate::cli::{CheckArguments, Exit};
use crate::file::ConfigFile;
use crate::paint::{Paint, Tint};
use crate::table::counted;

/// What `--json` prints.
#[derive(Serialize)]
struct Verdict<'a> {
    file: &'a str,
    errors: usize,
    warnings: usize,
    diagnostics: &'a [Diagnostic],
    /// Only with `--host`; `null` where the file has errors, so that nothing could be compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<Option<&'a [Finding]>>,
}

/// Errors and warnings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    errors: usize,
    warnings: usize,
}

/// Checks one file and prints the verdict.
pub(crate) fn check(arguments: &CheckArguments) -> Result<Exit> {
    let file = ConfigFile::read(&arguments.file)?;
    let checked = towpath_config::check(&file.name, &file.text);
    let findings = match (&checked.model, arguments.host) {
        (Some(model), true) => Some(find(model)?),
        (Some(_) | None, _) => None,
    };
    let of_file = tally_diagnostics(&checked.diagnostics);
    let of_host = findings.as_deref().map(tally_findings).unwrap_or_default();

    let stdout = io::stdout();
    let paint = Paint::on(&stdout);
    let mut out = stdout.lock();
    if arguments.json {
        let verdict = Verdict {
            file: &file.name,
            errors: of_file.errors + of_host.errors,
            warnings: of_file.warnings + of_host.warnings,
            diagnostics: &checked.diagnostics,
            host: arguments.host.then_some(findings.as_deref()),
        };
        serde_json::to_writer_pretty(&mut out, &verdict)?;
        writeln!(out)?;
    } else {
        let colour = paint == Paint::Colour;
        write!(out, "{}", towpath_config::render(&checked.diagnostics, &file.name, &file.text, colour))?;
        writeln!(out, "{}", summary(&file.name, &checked, of_file, paint))?;
        match findings {
            Some(findings) => {
                let (placed, rest): (Vec<_>, Vec<_>) =
                    findings.into_iter().partition(|found| place(&checked, found).is_some());
                let placed: Vec<_> = placed.iter().filter_map(|finding| place(&checked, finding)).collect();
                write!(out, "{}", towpath_config::render(&placed, &file.name, &file.text, colour))?;
                write!(out, "{}", render_findings(&rest, paint))?;
                writeln!(out, "this machine: {}", of_host.text(paint))?;
            }
            None if arguments.host => writeln!(out, "this machine: not compared before the file has no errors")?,
            None => {}
        }
    }
    Ok(if of_file.errors + of_host.errors == 0 { Exit::Done } else { Exit::ConfigErrors })
}

fn find(model: &Model) -> Result<Vec<Finding>> {
    preflight::check_host(model).context("cannot find out what this machine offers")
}

/// A finding about a file that the configuration names, at the place where it does.
fn place(checked: &Checked, finding: &Finding) -> Option<Diagnostic> {
    let path = finding.file.as_ref()?;
    let named = checked.files.iter().find(|named| named.path == *path)?;
    let (message, hint) = match finding.message.split_once("; ") {
        Some((cause, step)) => (cause.to_owned(), Some(step.to_owned())),
        None => (finding.message.clone(), None),
    };
    Some(Diagnostic {
        severity: match finding.severity {
            preflight::Severity::Error => Severity::Error,
            preflight::Severity::Warning => Severity::Warning,
        },
        code: finding.check.name(),
        message,
        primary: named.location,
        labels: Vec::new(),
        hint,
    })
}

fn tally_diagnostics(diagnostics: &[Diagnostic]) -> Tally {
    let errors = diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).count();
    Tally { errors, warnings: diagnostics.len() - errors }
}

fn tally_findings(findings: &[Finding]) -> Tally {
    let errors = findings.iter().filter(|finding| finding.severity == preflight::Severity::Error).count();
    Tally { errors, warnings: findings.len() - errors }
}

impl Tally {
    fn text(self, paint: Paint) -> String {
        let tinted = |number: usize, noun: &str, tint: Tint| {
            let text = counted(number, noun);
            if number > 0 { paint.tint(tint, &text) } else { text }
        };
        format!("{}, {}", tinted(self.errors, "error", Tint::Red), tinted(self.warnings, "warning", Tint::Yellow))
    }
}

/// The last line: what is in the file, and how many things are wrong with it.
fn summary(name: &str, checked: &Checked, tally: Tally, paint: Paint) -> String {
    let contents = checked.model.as_ref().map(|model| {
        let sockets: usize = model.services.iter().map(|service| service.sockets().count()).sum();
        format!("{}, {}, ", counted(model.services.len(), "service"), counted(sockets, "socket"))
    });
    let mut line = format!("{name}: {}{}", contents.unwrap_or_default(), tally.text(paint));
    let unavailable = checked.unavailable().count();
    if unavailable > 0 {
        line.push_str(&format!(" ({unavailable} not available yet: `towpath run` refuses the file)"));
    }
    line
}

/// One line per finding about the machine.
pub(crate) fn render_findings(findings: &[Finding], paint: Paint) -> String {
    let line = |finding: &Finding| {
        let severity = match finding.severity {
            preflight::Severity::Error => paint.tint(Tint::Red, "error"),
            preflight::Severity::Warning => paint.tint(Tint::Yellow, "warning"),
        };
        let service = finding.service.as_ref().map(|name| format!("service \"{name}\": ")).unwrap_or_default();
        format!("{severity}: {service}{}\n", finding.message)
    };
    findings.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finding_names_severity_service_and_next_step() {
        let finding = |severity, service: Option<&str>| Finding {
            severity,
            check: preflight::Check::Addresses,
            service: service.map(str::to_owned),
            message: "cause; next step".to_owned(),
            file: None,
        };
        let findings = [finding(preflight::Severity::Error, Some("web")), finding(preflight::Severity::Warning, None)];
        let expected = "error: service \"web\": cause; next step\nwarning: cause; next step\n";
        assert_eq!(render_findings(&findings, Paint::Plain), expected);
        assert_eq!(tally_findings(&findings), Tally { errors: 1, warnings: 1 });
        assert_eq!(Tally { errors: 1, warnings: 0 }.text(Paint::Plain), "1 error, 0 warnings");
    }
}
