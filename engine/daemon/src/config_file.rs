//! The configuration file, as a start, a reload and a plan read it: what `check` only warns about, because no code carries it out yet, is refused here.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use towpath_config::model::Model;
use towpath_config::{Checked, Diagnostic, Severity, render};

use crate::engine::ReloadError;
use crate::house::House;

/// What a file is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To see what it would change.
    Plan,
    /// To take it while running.
    Reload,
    /// To start with it.
    Start,
}

impl Purpose {
    /// What a refusal means.
    fn refusal(self) -> &'static str {
        match self {
            Purpose::Plan => "it could not be taken; correct the lines named above",
            Purpose::Reload => "nothing is changed; correct the lines named above",
            Purpose::Start => "nothing is started; correct the lines named above",
        }
    }
}

/// How text for people is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// With the colours of a terminal.
    Colour,
    /// Without.
    Plain,
}

/// A file that has a meaning.
#[derive(Debug)]
pub struct Accepted {
    /// It.
    pub model: Box<Model>,
    /// What it is warned of, each with its place; `None` = of nothing.
    pub warnings: Option<String>,
}

/// A file that is not taken, with every reason and its place.
#[derive(Debug, Error)]
#[error("{text}")]
pub struct RejectedFile {
    /// Everything for people.
    pub text: String,
    /// Everything for programs.
    pub diagnostics: Vec<Diagnostic>,
}

impl RejectedFile {
    /// The errors; where there are none, what run refuses all the same.
    fn reasons(&self) -> impl Iterator<Item = &Diagnostic> {
        let is_error = |diagnostic: &Diagnostic| diagnostic.severity == Severity::Error;
        let any = self.diagnostics.iter().any(is_error);
        self.diagnostics.iter().filter(move |diagnostic| !any || is_error(diagnostic))
    }
}

/// Why a reload by order was refused. The configuration before it stays in force.
#[derive(Debug, Error)]
pub enum RefusedReload {
    /// The process does not take it.
    #[error("{0}")]
    Engine(#[source] ReloadError),
    /// The configuration was no file's.
    #[error("this process was not started with a file that it could read again")]
    NoFile,
    /// What is in the file.
    #[error("{0}")]
    Rejected(#[source] RejectedFile),
    /// The file cannot be read.
    #[error("cannot read {}: {source}; {}", path.display(), next_step(source.kind()))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl RefusedReload {
    /// Each reason by itself.
    pub fn reasons(&self) -> Vec<String> {
        match self {
            RefusedReload::Engine(error) => error.reasons(),
            RefusedReload::Rejected(rejected) => rejected
                .reasons()
                .map(|Diagnostic { message, primary, hint, .. }| {
                    let hint = hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
                    format!("line {}, column {}: {message}{hint}", primary.line, primary.column)
                })
                .collect(),
            other => vec![other.to_string()],
        }
    }
}

/// Judges the text of a file; `name` is shown.
pub fn accept(name: &str, text: &str, purpose: Purpose, style: Style) -> Result<Accepted, RejectedFile> {
    let checked = towpath_config::check(name, text);
    let mut told = render(&checked.diagnostics, name, text, style == Style::Colour);
    let unavailable = checked.unavailable().count();
    let Checked { model, diagnostics, .. } = checked;
    match model {
        Some(model) if unavailable == 0 => {
            Ok(Accepted { model: Box::new(model), warnings: (!told.is_empty()).then_some(told) })
        }
        Some(_) => {
            let settings = match unavailable {
                1 => "one setting is".to_owned(),
                many => format!("{many} settings are"),
            };
            let refusal = purpose.refusal();
            let _ = writeln!(
                told,
                "{name}: {settings} not available yet, and run refuses what check only warns about; {refusal}"
            );
            Err(RejectedFile { text: told, diagnostics })
        }
        None => {
            let errors = diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).count();
            let plural = if errors == 1 { "" } else { "s" };
            let _ = writeln!(told, "{name}: {errors} error{plural}; {}", purpose.refusal());
            Err(RejectedFile { text: told, diagnostics })
        }
    }
}

/// Reads and judges the file that a running process was started with.
pub(crate) fn read_again(path: Option<&Path>, purpose: Purpose) -> Result<Accepted, RefusedReload> {
    let Some(path) = path else { return Err(RefusedReload::NoFile) };
    let unreadable = |source| RefusedReload::Unreadable { path: path.to_owned(), source };
    let text = towpath_config::read(path).map_err(unreadable)?;
    accept(&path.display().to_string(), &text, purpose, Style::Plain).map_err(RefusedReload::Rejected)
}

/// The same for a reload of this one.
pub(crate) fn of_house(house: &House) -> Result<Accepted, RefusedReload> {
    read_again(house.config.as_deref(), Purpose::Reload)
}

fn next_step(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::InvalidData => "nothing is changed",
        io::ErrorKind::NotFound => "check the path; nothing is changed",
        io::ErrorKind::PermissionDenied => "let the user of the daemon read it; nothing is changed",
        _ => "nothing is changed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[[service]]\nname = \"web\"\nvip = \"192.0.2.1\"\nports = 80\n[[service.server]]\nname = \"one\"\n\
                        address = \"192.0.2.11\"\n";

    #[test]
    fn a_file_is_taken_or_refused_with_every_place() {
        let accepted = accept("my.toml", GOOD, Purpose::Reload, Style::Plain).unwrap();
        assert_eq!(accepted.model.services.len(), 1);
        let broken = GOOD.replace("ports = 80", "ports = 0\nbalance = \"fairly\"");
        let rejected = accept("my.toml", &broken, Purpose::Reload, Style::Plain).unwrap_err();
        for told in ["my.toml:4:9", "my.toml:5:11", "my.toml: 2 errors; nothing is changed"] {
            assert!(rejected.text.contains(told), "{told} is missing in\n{}", rejected.text);
        }
        let reasons = RefusedReload::Rejected(rejected).reasons();
        assert!(reasons.len() == 2 && reasons[0].starts_with("line 4, column 9: "), "{reasons:?}");
    }

    #[test]
    fn a_file_that_is_not_there_says_so_with_its_path() {
        let gone = read_again(Some(Path::new("/nowhere/towpath.toml")), Purpose::Reload).unwrap_err().to_string();
        assert!(gone.contains("/nowhere/towpath.toml") && gone.contains("check the path"), "{gone}");
        assert!(matches!(read_again(None, Purpose::Reload), Err(RefusedReload::NoFile)));
    }
}
