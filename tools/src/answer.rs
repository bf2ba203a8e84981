//! The answers of the daemon as every command shows them: warnings apart, then JSON or a text; and the words of a question.

use std::io::{self, Write};

use anyhow::Result;
use serde::Serialize;
use towpath_engine::FetchError;

use crate::cli::Exit;
use crate::daemon::Daemon;
use crate::paint::Paint;
use crate::server::print_json;
use crate::status::exit_of;

/// The words of a question that were given.
pub(crate) fn given<const N: usize>(words: [(&'static str, Option<String>); N]) -> Vec<(&'static str, String)> {
    words.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

/// Shows an answer in the way that the operator wants it.
pub(crate) fn show(
    daemon: &Daemon,
    answer: &impl Serialize,
    warnings: &[String],
    text: impl FnOnce(Paint) -> String,
) -> Result<()> {
    warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    if daemon.json {
        return print_json(answer);
    }
    let mut out = io::stdout().lock();
    let text = text(Paint::on(&out));
    out.write_all(text.as_bytes())?;
    Ok(())
}

/// Says why there is no answer.
pub(crate) fn failed(error: &FetchError) -> Exit {
    eprintln!("error: {error}");
    exit_of(error)
}
