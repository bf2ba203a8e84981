//! A report as tables for a terminal.

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};

use super::{Report, Row};
use crate::suite::OTHERS_SHARE_MAX;

/// The report as text.
pub fn render(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "{}: {} rounds on {} ({} CPUs, kernel {}, governor {}, steal up to {:.1} %)\n",
        report.suite,
        report.rounds,
        machine.cpu_model,
        machine.cpus,
        machine.kernel,
        machine.governor.as_deref().unwrap_or("none"),
        machine.steal_share_max * 100.0,
    );
    for (name, version) in &machine.versions {
        text.push_str(&format!("  {name}: {version}\n"));
    }
    text.push_str(&format!("{}\n", rows(report)));
    if machine.rounds_retaken > 0 {
        text.push_str(&format!(
            "Rounds thrown away because other programs disturbed them: {}\n",
            machine.rounds_retaken
        ));
    }
    if machine.others_share_max > OTHERS_SHARE_MAX {
        text.push_str(&format!(
            "Other programs did up to {:.0} % of the work on these CPUs: rows marked \"disturbed\" are no measurement. Repeat on a quiet machine.\n",
            machine.others_share_max * 100.0
        ));
    }
    if !report.ratios.is_empty() {
        text.push_str(&format!("{}\n", ratios(report)));
    }
    text
}

fn rows(report: &Report) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header([
        "case",
        "subject",
        "metric",
        "median",
        "min",
        "max",
        "unit",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "balancer",
        "client",
        "",
    ]);
    for row in &report.rows {
        table.add_row([
            row.case.clone(),
            row.subject.clone(),
            row.metric.clone(),
            figure(row.median),
            figure(row.min),
            figure(row.max),
            row.unit.clone(),
            latency(row.p50_us),
            latency(row.p99_us),
            latency(row.p999_us),
            percent(row.balancer_busy),
            percent(row.client_busy),
            note(row),
        ]);
    }
    align(&mut table, &[3, 4, 5, 7, 8, 9, 10, 11]);
    table
}

fn ratios(report: &Report) -> Table {
    let first = report.rows.first().map_or("first subject", |row| row.subject.as_str());
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header([
        "case".to_owned(),
        "metric".to_owned(),
        format!("{first} against"),
        "median".to_owned(),
        "min".to_owned(),
        "max".to_owned(),
        "verdict".to_owned(),
    ]);
    for ratio in &report.ratios {
        table.add_row([
            ratio.case.clone(),
            ratio.metric.clone(),
            ratio.versus.clone(),
            format!("{:.2}", ratio.median),
            format!("{:.2}", ratio.min),
            format!("{:.2}", ratio.max),
            ratio.verdict.word().to_owned(),
        ]);
    }
    align(&mut table, &[3, 4, 5]);
    table
}

fn align(table: &mut Table, columns: &[usize]) {
    for &column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

fn note(row: &Row) -> String {
    let mut words = Vec::new();
    if row.client_bound {
        words.push("client-bound");
    }
    if row.others_share > OTHERS_SHARE_MAX {
        words.push("disturbed");
    }
    words.join(", ")
}

fn figure(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

fn latency(value: Option<f64>) -> String {
    value.map_or_else(String::new, |us| format!("{us:.0}"))
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}
