//! `control`: how fast does the control socket answer while the workers are at full load?

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};

use towpath_perf::control::{Answers, Load, Question, measure};

/// How fast Towpath answers `status` and `metrics` on its control socket: idle, and while every worker has more to do than it can.
#[derive(Args)]
pub(crate) struct Control {
    /// Services of ten servers each, beside the one that carries the load.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(0..=1_000))]
    services: u16,
    /// Seconds that are measured, by question and load.
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// What the slowest answer may take, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 100.0)]
    goal: f64,
    /// Also writes the result here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Towpath's program; by default the one beside this program.
    #[arg(long, value_name = "PATH")]
    towpath: Option<PathBuf>,
}

impl Control {
    /// Does it.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let towpath = match &self.towpath {
            Some(program) => program.clone(),
            None => std::env::current_exe().context("where is this program?")?.with_file_name("towpath"),
        };
        // Hosts and processes of the lab are held by this process: its end is theirs.
        ctrlc::set_handler(|| {
            eprintln!("\ntowpath-perf: interrupted; the lab is gone");
            std::process::exit(130);
        })
        .context("cannot watch for Ctrl-C")?;
        towpath_sys::host::raise_nofile_limit().context("cannot raise the limit on descriptors")?;
        let all = measure(&towpath, self.services, Duration::from_secs(self.seconds))?;
        println!("{}", self.table(&all));
        if let Some(file) = &self.json {
            let text = serde_json::to_string_pretty(&all).context("the result")?;
            fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        for answers in &all {
            if !answers.is_loaded() {
                bail!(
                    "a worker was busy for {:.0} % of the time only: that is no full load",
                    answers.busy_share * 100.0
                );
            }
            if !answers.meets(self.goal) {
                bail!("{}: {:.1} ms, the goal is {} ms", word(answers), answers.max_ms, self.goal);
            }
        }
        Ok(())
    }

    fn table(&self, all: &[Answers]) -> Table {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN).set_header([
            "question",
            "answers",
            "KB",
            "p50 ms",
            "p99 ms",
            "max ms",
            "least busy worker",
            "requests/s",
            "goal",
        ]);
        for answers in all {
            table.add_row([
                word(answers).to_owned(),
                answers.count.to_string(),
                format!("{:.0}", answers.bytes as f64 / 1000.0),
                format!("{:.2}", answers.p50_ms),
                format!("{:.2}", answers.p99_ms),
                format!("{:.2}", answers.max_ms),
                format!("{:.0} %", answers.busy_share * 100.0),
                format!("{:.0}", answers.requests_per_second),
                if answers.meets(self.goal) { "met" } else { "missed" }.to_owned(),
            ]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

fn word(answers: &Answers) -> &'static str {
    match (answers.question, answers.load) {
        (Question::Status, Load::None) => "status, idle",
        (Question::Status, Load::Full) => "status, full load",
        (Question::Metrics, Load::None) => "metrics, idle",
        (Question::Metrics, Load::Full) => "metrics, full load",
    }
}
