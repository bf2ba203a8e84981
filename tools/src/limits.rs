//! `towpath limits`: what is scarce, and how full it is.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use towpath_engine::{Level, LimitRow, LimitRows, get};

use crate::cli::Exit;
use crate::daemon::Daemon;
use crate::paint::{Paint, Tint};
use crate::server::print_json;
use crate::status::{bytes, exit_of};
use crate::table::{Cell, Table};

pub(crate) const LIMITS_HELP: &str = "\
Examples:
  towpath limits                        those of the process, and of others what is 80 % full or more
  towpath limits --all                  every service, server and source address
  towpath limits --json | jq '.limits[] | select(.level != \"ok\")'

Exit codes: 0 ok · 1 failed · 2 usage · 5 daemon not reachable · 7 no answer in time";

const LIMIT: Duration = Duration::from_secs(5);
/// Characters of a bar.
const BAR: usize = 20;

/// Arguments of `towpath limits`.
#[derive(Args, Debug)]
pub(crate) struct LimitsArguments {
    /// Show those of services, servers and source addresses that are far from full, too
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    daemon: Daemon,
}

/// Asks and prints.
pub(crate) fn limits(arguments: &LimitsArguments) -> Result<Exit> {
    let LimitsArguments { all, daemon } = arguments;
    let rows: LimitRows = match get(&daemon.endpoint()?, "/v1/limits", LIMIT) {
        Ok(rows) => rows,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(exit_of(&error));
        }
    };
    if daemon.json {
        print_json(&rows)?;
    } else {
        let paint = Paint::on(&io::stdout());
        io::stdout().write_all(render(&rows.limits, *all, paint).as_bytes())?;
    }
    Ok(Exit::Done)
}

fn render(rows: &[LimitRow], all: bool, paint: Paint) -> String {
    let mut table = Table::new([
        Cell::word("LIMIT"),
        Cell::word("FULL"),
        Cell::figure("PERCENT"),
        Cell::figure("USED"),
        Cell::figure("OF"),
        Cell::figure("REFUSED"),
    ]);
    let (shown, hidden): (Vec<&LimitRow>, Vec<&LimitRow>) =
        rows.iter().partition(|row| all || row.subject.is_none() || row.level != Level::Ok);
    for row in &shown {
        let amount = |amount| if row.unit == "bytes" { bytes(amount) } else { amount.to_string() };
        let name =
            row.subject.as_ref().map_or_else(|| row.name.clone(), |subject| format!("{} of {subject}", row.name));
        table.row([
            Cell::word(name),
            Cell::word(bar(row.percent)).tinted(tint(row.level)),
            Cell::figure(format!("{:.1}", row.percent)),
            Cell::figure(amount(row.used)),
            Cell::figure(amount(row.max)),
            Cell::figure(row.refused.map_or_else(|| "-".to_owned(), |refused| refused.to_string())),
        ]);
    }
    let mut text = table.render(0, paint);
    if !hidden.is_empty() {
        text.push_str(&format!("  and {} less full (--all)\n", hidden.len()));
    }
    let near = shown.iter().filter(|row| row.level != Level::Ok || row.refused.is_some_and(|refused| refused > 0));
    for (place, row) in near.enumerate() {
        let key = row.key.as_ref().map(|key| format!(" ({key})")).unwrap_or_default();
        let name = paint.tint(tint(row.level), &row.name);
        text.push_str(&format!("{}{name}{key}: {}\n", if place == 0 { "\n" } else { "" }, row.remedy));
    }
    text
}

fn tint(level: Level) -> Tint {
    match level {
        Level::Ok => Tint::Green,
        Level::High => Tint::Yellow,
        Level::Full => Tint::Red,
    }
}

/// Something that is used at all shows, and something that is left.
fn bar(percent: f64) -> String {
    let exact = (percent.clamp(0.0, 100.0) / 100.0 * BAR as f64).round() as usize;
    let filled = match percent {
        _ if percent <= 0.0 => 0,
        _ if percent >= 100.0 => BAR,
        _ => exact.clamp(1, BAR - 1),
    };
    format!("{}{}", "█".repeat(filled), "░".repeat(BAR - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, subject: Option<&str>, percent: f64, level: Level) -> LimitRow {
        LimitRow {
            name: name.to_owned(),
            subject: subject.map(str::to_owned),
            used: 3,
            max: 10,
            percent,
            refused: None,
            unit: "flows".to_owned(),
            level,
            key: Some("limits.flows".to_owned()),
            remedy: "raise it".to_owned(),
        }
    }

    #[test]
    fn what_is_near_is_shown_with_what_helps() {
        let rows = [
            row("flows", None, 30.0, Level::Ok),
            row("source ports", Some("192.0.2.5"), 85.0, Level::High),
            row("source ports", Some("192.0.2.6"), 1.0, Level::Ok),
        ];
        let text = render(&rows, false, Paint::Plain);
        assert!(text.contains("flows") && text.contains("source ports of 192.0.2.5"), "{text}");
        assert!(!text.contains("192.0.2.6") && text.contains("and 1 less full (--all)"), "{text}");
        assert!(text.ends_with("\nsource ports (limits.flows): raise it\n"), "{text}");
        assert!(render(&rows, true, Paint::Plain).contains("192.0.2.6"));
    }

    #[test]
    fn a_bar_is_full_or_empty_only_when_that_is_so() {
        let filled = |percent| bar(percent).chars().filter(|&c| c == '█').count();
        assert_eq!([0.0, 0.1, 50.0, 99.9, 100.0, 120.0].map(filled), [0, 1, 10, 19, 20, 20]);
        assert!(bar(33.0).chars().count() == BAR);
    }
}
