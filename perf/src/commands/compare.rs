//! `compare`: what changed between two results.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;

use towpath_perf::report::compare::Comparison;
use towpath_perf::report::{Report, table};

/// What is asked of it.
#[derive(Args)]
pub(crate) struct Compare {
    /// The older result.
    old: PathBuf,
    /// The newer result.
    new: PathBuf,
    /// Also writes the comparison here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fails if the first subject got worse: by its ratios to peers of the same version, and by its own figures where there
    /// is no such ratio and the machine is the same.
    #[arg(long)]
    fail_on_regression: bool,
}

impl Compare {
    /// Does it.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let comparison = Comparison::of(&Report::read(&self.old)?, &Report::read(&self.new)?)?;
        print!("{}", table::changes(&comparison));
        if let Some(file) = &self.json {
            let text = serde_json::to_string_pretty(&comparison)?;
            fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
        }
        if self.fail_on_regression && comparison.regressed() {
            bail!("{} got worse: {}", comparison.subject, comparison.regressions().join(", "));
        }
        Ok(())
    }
}
