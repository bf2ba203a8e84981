//! A report as tables for a terminal, and as a table for a README.

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};

use super::compare::Comparison;
use super::sheet::{self, Cell, Sheet};
use super::{Report, Verdict, targets};
use crate::suite::OTHERS_SHARE_MAX;

/// The report as text: figures, latencies, ratios.
pub fn render(report: &Report) -> String {
    let mut report = report.clone();
    report.settle();
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
    let groups = sheet::groups(&report);
    let latencies = sheet::latencies(&groups);
    text.push_str(&format!("{}\n", grouped(sheet::figures(&groups))));
    if !latencies.rows.is_empty() {
        text.push_str(&format!("\n{}\n", grouped(latencies)));
    }
    if !report.ratios.is_empty() {
        text.push_str(&format!("\n{}\n", grouped(sheet::ratios(&groups, report.subject()))));
    }
    let targets = targets::lines(&report);
    if !targets.is_empty() {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN).set_header(["target", "bound", "measured", ""]);
        targets.iter().for_each(|line| {
            table.add_row(line);
        });
        text.push_str(&format!("\n{table}\n"));
    }
    for line in warnings(&report) {
        text.push_str(&format!("{line}\n"));
    }
    text
}

/// A Markdown table: one line per ratio, and per figure that is compared with nothing.
pub fn markdown(report: &Report) -> String {
    let mut sheet = sheet::summary(report);
    for cell in sheet.rows.iter_mut().flatten() {
        if let Cell::Text(text) = cell {
            *text = text.replace('|', "\\|").replace(['\n', '\r'], " ");
        }
    }
    format!("{}\n", table(sheet))
}

/// What changed between two results.
pub fn changes(comparison: &Comparison) -> String {
    let mut text = comparison.preface();
    if !comparison.changes.is_empty() {
        text.push_str(&format!("{}\n", grouped(comparison.sheet())));
    }
    text
}

/// What has to be known before any figure is believed.
pub(super) fn warnings(report: &Report) -> Vec<String> {
    let machine = &report.machine;
    let mut lines = Vec::new();
    if machine.rounds_retaken > 0 {
        lines.push(format!("Rounds thrown away because other programs disturbed them: {}", machine.rounds_retaken));
    }
    if machine.others_share_max > OTHERS_SHARE_MAX {
        lines.push(format!(
            "Other programs did up to {} of the work on these CPUs: rows marked \"disturbed\" are no measurement. Repeat on a quiet machine.",
            sheet::percent(machine.others_share_max)
        ));
    }
    if report.ratios.iter().any(|ratio| ratio.verdict == Verdict::None) {
        lines.push(format!("No verdict from fewer than {} rounds.", super::VERDICT_ROUNDS_MIN));
    }
    lines
}

/// The name of a case once, not in each of its lines.
fn grouped(mut sheet: Sheet) -> Table {
    let mut last = None;
    for row in &mut sheet.rows {
        let Some(Cell::Text(case)) = row.first_mut() else { continue };
        if last.as_ref() == Some(&*case) {
            case.clear();
        } else {
            last = Some(case.clone());
        }
    }
    table(sheet)
}

fn table(sheet: Sheet) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(sheet.head.iter().map(|column| &column.name));
    for row in sheet.rows {
        table.add_row(row.into_iter().map(|cell| match cell {
            Cell::Text(text) => text,
            Cell::Verdict(verdict) => verdict.word().to_owned(),
        }));
    }
    for (number, column) in sheet.head.iter().enumerate() {
        if let Some(drawn) = table.column_mut(number).filter(|_| column.number) {
            drawn.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::sample;

    #[test]
    fn plain_and_steered_stand_side_by_side() {
        let text = render(&sample());
        let line = text.lines().find(|line| line.contains("| haproxy") && line.contains("1.10 (1.05 – 1.20)")).unwrap();
        assert!(line.contains("better") && line.contains("1.60 (1.50 – 1.70)"), "{line}");
        assert_eq!(text.matches("keepalive-128B-64c ").count(), 3, "once a table:\n{text}");
        assert!(!text.contains("-steered"), "{text}");
    }

    #[test]
    fn the_readme_gets_one_line_per_ratio_and_none_is_lost() {
        let report = sample();
        let text = markdown(&report);
        let compared = report.ratios.len();
        let alone = ["memory"].len();
        assert_eq!(text.lines().count(), 2 + compared + alone, "{text}");
        assert!(text.lines().all(|line| line.starts_with('|') && line.ends_with('|')), "{text}");
        assert!(text.contains("1,310 B"), "{text}");
    }

    #[test]
    fn two_rounds_show_a_dash_for_the_verdict() {
        let report = Report { rounds: 2, ..sample() };
        let text = render(&report);
        assert!(!text.contains("better") && text.contains("No verdict from fewer than 3 rounds."), "{text}");
    }
}
