//! `health`: what do checks cost?

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use towpath_perf::health::{CheckedBy, Cost, Goal, Rate, measure};

/// What health checks cost Towpath's controller, by kind of check: so many a minute, of servers that are all well, beside no traffic.
#[derive(Args)]
pub(crate) struct Health {
    /// Kinds of checks.
    #[arg(long, value_delimiter = ',', value_name = "KIND,…", default_value = "none,tcp,udp,http,tls,https", value_parser = kind)]
    kinds: Vec<CheckedBy>,
    /// Checks of all servers together, in a minute.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: u64,
    /// Servers; the time between two checks of one follows from it, and is 100 ms at least.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=5_000))]
    servers: u16,
    /// Seconds that are measured, by kind.
    #[arg(long, value_name = "S", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// What the controller may take of one CPU, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0)]
    goal: f64,
    /// Also writes the result here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Towpath's program; by default the one beside this program.
    #[arg(long, value_name = "PATH")]
    towpath: Option<PathBuf>,
}

fn kind(name: &str) -> Result<CheckedBy, String> {
    CheckedBy::find(name).ok_or_else(|| {
        let all: Vec<String> = CheckedBy::ALL.iter().map(ToString::to_string).collect();
        format!("there are {}", all.join(", "))
    })
}

/// What is written.
#[derive(Serialize)]
struct Told {
    servers: u16,
    rate_per_minute: u64,
    goal_percent: f64,
    costs: Vec<Cost>,
}

impl Health {
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
        let rate = Rate { servers: self.servers.into(), per_minute: self.rate };
        let mut costs = Vec::new();
        for &kind in &self.kinds {
            eprintln!("{kind}: {} s", self.seconds);
            let cost = measure(&towpath, kind, rate, Duration::from_secs(self.seconds));
            costs.push(cost.with_context(|| kind.to_string())?);
        }
        let told = Told { servers: self.servers, rate_per_minute: self.rate, goal_percent: self.goal, costs };
        println!("{}", table(&told, rate));
        if let Some(file) = &self.json {
            let text = serde_json::to_string_pretty(&told).context("the result")?;
            fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        for cost in &told.costs {
            match cost.against(self.goal, rate) {
                Goal::Met => {}
                Goal::Missed => {
                    bail!("{}: {:.2} % of a CPU, the goal is {} %", cost.kind, cost.controller_percent, self.goal)
                }
                Goal::RateMissed => {
                    bail!("{}: only {:.0} of {} checks a minute", cost.kind, cost.checks_per_minute, self.rate)
                }
            }
        }
        Ok(())
    }
}

fn table(told: &Told, rate: Rate) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(["check", "checks/min", "% of a CPU", "µs per check", "goal"]);
    for cost in &told.costs {
        table.add_row([
            cost.kind.to_string(),
            format!("{:.0}", cost.checks_per_minute),
            format!("{:.2}", cost.controller_percent),
            format!("{:.0}", cost.microseconds_per_check),
            match cost.against(told.goal_percent, rate) {
                Goal::Met => "met",
                Goal::Missed => "missed",
                Goal::RateMissed => "too few checks",
            }
            .to_owned(),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
