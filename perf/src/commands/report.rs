//! `report`: results as a page and as a Markdown table.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use towpath_perf::report::{self, page, table};

/// What is asked of it.
#[derive(Args)]
pub(crate) struct Report {
    /// Results that `--json FILE` has written.
    #[arg(required = true, value_name = "RESULT")]
    results: Vec<PathBuf>,
    /// Where the page goes: one file that needs nothing else. By default the first result's name with .html.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Where the Markdown tables go instead of standard output.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

impl Report {
    /// Does it.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let mut results = Vec::new();
        for file in &self.results {
            results.push((name(file), report::Report::read(file)?));
        }
        let html = self.html.clone().unwrap_or_else(|| self.results[0].with_extension("html"));
        for file in [Some(&html), self.markdown.as_ref()].into_iter().flatten() {
            if self.results.contains(file) {
                bail!("{}: is one of the results; name another file to write to", file.display());
            }
        }
        let page = page::render(&results).context("draw the plots")?;
        write(&html, &page)?;
        let mut markdown = String::new();
        for (name, result) in &results {
            if results.len() > 1 {
                markdown.push_str(&format!(
                    "{}### {} ({name})\n\n",
                    if markdown.is_empty() { "" } else { "\n" },
                    result.suite
                ));
            }
            markdown.push_str(&table::markdown(result));
        }
        match &self.markdown {
            Some(file) => write(file, &markdown)?,
            None => print!("{markdown}"),
        }
        eprintln!("The page is {}; open it in any browser.", html.display());
        Ok(())
    }
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

fn name(file: &Path) -> String {
    file.file_name().map_or_else(|| file.display().to_string(), |name| name.to_string_lossy().into_owned())
}
