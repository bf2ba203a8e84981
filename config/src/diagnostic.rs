//! What is wrong with a file, where, and what to do about it.

use std::collections::HashSet;
use std::ops::Range;

use serde::Serialize;

/// Most diagnostics that one check reports; the rest are counted.
pub const DIAGNOSTICS_MAX: usize = 200;
/// Most that are held while checking, so that they can be sorted before the rest are dropped.
const HELD_MAX: usize = 4096;

/// Searches through all names or keys of the file, of which there may be thousands.
const SEARCHES_MAX: usize = 64;

/// Code of the warning for what no code carries out yet.
pub const NOT_AVAILABLE: &str = "not-available";

/// Code of errors in the syntax of TOML itself.
pub(crate) const SYNTAX: &str = "syntax";

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// There is no model.
    Error,
    /// There is one, but look.
    Warning,
}

/// A place in the file. `start..end` are bytes, always inside the file and on character boundaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Location {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// A second place that belongs to the story.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Label {
    /// Where.
    #[serde(flatten)]
    pub location: Location,
    /// What is there.
    pub text: String,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Stable id, e.g. `unknown-key`.
    pub code: &'static str,
    /// The cause, in one sentence.
    pub message: String,
    /// Where.
    pub primary: Location,
    /// Further places, e.g. the other of two that clash.
    pub labels: Vec<Label>,
    /// The next step.
    pub hint: Option<String>,
}

pub(crate) type Span = Range<usize>;

/// A diagnostic whose places are still byte ranges.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    severity: Severity,
    code: &'static str,
    message: String,
    span: Span,
    labels: Vec<(Span, String)>,
    hint: Option<String>,
}

impl Finding {
    pub(crate) fn hint(&mut self, text: impl Into<String>) -> &mut Self {
        self.hint = Some(text.into());
        self
    }

    pub(crate) fn label(&mut self, span: &Span, text: impl Into<String>) -> &mut Self {
        self.labels.push((span.clone(), text.into()));
        self
    }
}

/// Collects findings; every part of the check writes into it and goes on.
#[derive(Debug, Default)]
pub(crate) struct Report {
    findings: Vec<Finding>,
    dropped_errors: usize,
    dropped_warnings: usize,
    spare: Option<Finding>,
    searches: usize,
    /// The file could not be read as TOML in full: what seems to be missing may be in the part that was not read.
    pub(crate) incomplete: bool,
}

impl Report {
    pub(crate) fn error(&mut self, code: &'static str, span: &Span, message: impl Into<String>) -> &mut Finding {
        self.push(Severity::Error, code, span, message.into())
    }

    pub(crate) fn warning(&mut self, code: &'static str, span: &Span, message: impl Into<String>) -> &mut Finding {
        self.push(Severity::Warning, code, span, message.into())
    }

    /// No further finding will be kept: costly searches for hints may stop.
    pub(crate) fn full(&self) -> bool {
        self.findings.len() >= HELD_MAX
    }

    /// Whether one more search through all names of the file is affordable.
    pub(crate) fn may_search(&mut self) -> bool {
        self.searches += 1;
        self.searches <= SEARCHES_MAX
    }

    fn push(&mut self, severity: Severity, code: &'static str, span: &Span, message: String) -> &mut Finding {
        let finding = Finding { severity, code, message, span: span.clone(), labels: Vec::new(), hint: None };
        if self.full() {
            match severity {
                Severity::Error => self.dropped_errors += 1,
                Severity::Warning => self.dropped_warnings += 1,
            }
            return self.spare.insert(finding);
        }
        self.findings.push(finding);
        self.findings.last_mut().expect("just pushed")
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.dropped_errors > 0 || self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }

    /// At most [`DIAGNOSTICS_MAX`] and one that counts the rest, in the order of the file. When some must go, warnings go
    /// before errors, and "not available" goes last among warnings, because `run` depends on it.
    pub(crate) fn finish(mut self, lines: &Lines<'_>) -> Vec<Diagnostic> {
        let place = |finding: &Finding| (finding.span.start, finding.span.end, finding.severity);
        self.findings.sort_by_key(place);
        self.findings.dedup();
        // What is wrong anyway need not be available.
        let wrong: HashSet<Span> = self
            .findings
            .iter()
            .filter(|finding| finding.severity == Severity::Error)
            .map(|finding| finding.span.clone())
            .collect();
        self.findings.retain(|finding| finding.code != NOT_AVAILABLE || !wrong.contains(&finding.span));
        self.findings = one_per_broken_line(self.findings, lines);
        let excess = self.findings.len().saturating_sub(DIAGNOSTICS_MAX);
        if excess > 0 {
            self.findings.sort_by_key(|finding| (finding.severity, finding.code != NOT_AVAILABLE, finding.span.start));
            for finding in self.findings.drain(DIAGNOSTICS_MAX..) {
                match finding.severity {
                    Severity::Error => self.dropped_errors += 1,
                    Severity::Warning => self.dropped_warnings += 1,
                }
            }
            self.findings.sort_by_key(place);
        }
        let mut diagnostics: Vec<Diagnostic> = self.findings.into_iter().map(|finding| finding.locate(lines)).collect();
        let more = self.dropped_errors + self.dropped_warnings;
        if more > 0 {
            let severity = if self.dropped_errors > 0 { Severity::Error } else { Severity::Warning };
            diagnostics.push(Diagnostic {
                severity,
                code: "and-more",
                message: format!("and {more} more: {} errors, {} warnings", self.dropped_errors, self.dropped_warnings),
                primary: lines.locate(&(lines.text.len()..lines.text.len())),
                labels: Vec::new(),
                hint: Some("correct these first".to_owned()),
            });
        }
        diagnostics
    }
}

/// After a syntax error the rest of its line means nothing, and an unclosed list runs on over the next lines: one mistake,
/// one message. Takes and gives findings sorted by place; an error is dropped only after another that stays.
fn one_per_broken_line(findings: Vec<Finding>, lines: &Lines<'_>) -> Vec<Finding> {
    let syntax = findings.iter().filter(|finding| finding.code == SYNTAX);
    let broken: HashSet<usize> = syntax.map(|finding| lines.number(finding.span.start)).collect();
    let mut kept: Vec<Finding> = Vec::with_capacity(findings.len());
    // The last broken line that had an error, and the message that was kept for it.
    let mut last: Option<(usize, String)> = None;
    for finding in findings {
        let line = lines.number(finding.span.start);
        if !broken.contains(&line) {
            kept.push(finding);
            continue;
        }
        if finding.severity == Severity::Warning {
            continue;
        }
        match &mut last {
            Some((same, _)) if *same == line => {}
            Some((above, message)) if *above + 1 == line && *message == finding.message => *above = line,
            _ => {
                last = Some((line, finding.message.clone()));
                kept.push(finding);
            }
        }
    }
    kept
}

impl Finding {
    fn locate(self, lines: &Lines<'_>) -> Diagnostic {
        Diagnostic {
            severity: self.severity,
            code: self.code,
            message: self.message,
            primary: lines.locate(&self.span),
            labels: self.labels.into_iter().map(|(span, text)| Label { location: lines.locate(&span), text }).collect(),
            hint: self.hint,
        }
    }
}

/// Byte offsets to lines and columns.
#[derive(Debug)]
pub(crate) struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Lines { text, starts }
    }

    /// The line of a byte, from 1.
    fn number(&self, at: usize) -> usize {
        self.starts.partition_point(|&first| first <= at)
    }

    /// Brings any span inside the text and onto character boundaries.
    pub(crate) fn locate(&self, span: &Span) -> Location {
        let start = self.text.floor_char_boundary(span.start.min(self.text.len()));
        let end = self.text.ceil_char_boundary(span.end.clamp(start, self.text.len()));
        let line = self.number(start);
        let first = self.starts[line - 1];
        Location { line, column: self.text[first..start].chars().count() + 1, start, end }
    }
}
