//! What a report says, as tables that are neither text nor HTML yet.

use super::{Figure, Phase, Ratio, Report, Row, Spread, Verdict, distinct};
use crate::suite::OTHERS_SHARE_MAX;

/// What the name of a case ends in where receive packet steering gave each side its own CPU.
const STEERED: &str = "-steered";

/// Share of the offered work below which an open loop fell behind.
const KEPT_UP_MIN: f64 = 0.99;

/// A table.
pub(super) struct Sheet {
    pub(super) head: Vec<Column>,
    pub(super) rows: Vec<Vec<Cell>>,
}

/// What stands above a column.
pub(super) struct Column {
    pub(super) name: String,
    pub(super) number: bool,
}

/// What stands in a table.
pub(super) enum Cell {
    Text(String),
    Verdict(Verdict),
}

/// A case as it was measured in up to two accountings.
pub(super) struct Group<'a> {
    /// Its name without the accounting.
    pub(super) name: &'a str,
    pub(super) rows: Vec<Pair<'a, Row>>,
    pub(super) ratios: Vec<Pair<'a, Ratio>>,
}

/// The same in two accountings; one of them is there.
pub(super) struct Pair<'a, T> {
    pub(super) plain: Option<&'a T>,
    pub(super) steered: Option<&'a T>,
}

impl<'a, T> Pair<'a, T> {
    /// Pairs those with the same key. What comes twice counts once.
    fn all<K: PartialEq>(items: impl Iterator<Item = &'a T>, case: fn(&T) -> &str, key: fn(&'a T) -> K) -> Vec<Self> {
        let items: Vec<&'a T> = items.collect();
        distinct(items.iter().copied().map(key))
            .into_iter()
            .map(|wanted| {
                let find = |steered| {
                    items.iter().copied().find(|item| key(item) == wanted && is_steered(case(item)) == steered)
                };
                Pair { plain: find(false), steered: find(true) }
            })
            .collect()
    }

    pub(super) fn each(&self) -> impl Iterator<Item = &'a T> {
        self.plain.into_iter().chain(self.steered)
    }

    fn any(&self) -> &'a T {
        self.plain.or(self.steered).expect("a pair is made of at least one")
    }

    /// One cell if there is one accounting in the table, two otherwise.
    fn cells(&self, both: bool, cell: impl Fn(&T) -> Cell) -> impl Iterator<Item = Cell> {
        let empty = || Cell::Text("-".into());
        let (plain, steered) = if both { (self.plain, self.steered) } else { (Some(self.any()), None) };
        let second = both.then(|| steered.map_or_else(empty, &cell));
        [plain.map_or_else(empty, &cell)].into_iter().chain(second)
    }

    /// Both, in one cell.
    fn text(&self, text: impl Fn(&T) -> String) -> Cell {
        Cell::Text(self.each().map(text).collect::<Vec<_>>().join(" / "))
    }
}

/// The cases of a report, each with its accountings side by side.
pub(super) fn groups(report: &Report) -> Vec<Group<'_>> {
    let cases = report.rows.iter().map(|row| &row.case).chain(report.ratios.iter().map(|ratio| &ratio.case));
    distinct(cases.map(|case| base(case)))
        .into_iter()
        .map(|name| {
            let rows = report.rows.iter().filter(move |row| base(&row.case) == name);
            let ratios = report.ratios.iter().filter(move |ratio| base(&ratio.case) == name);
            Group {
                name,
                rows: Pair::all(rows, |row| &row.case, |row| (row.metric.as_str(), row.phase, row.subject.as_str())),
                ratios: Pair::all(ratios, |one| &one.case, |one| (one.metric.as_str(), one.phase, one.versus.as_str())),
            }
        })
        .collect()
}

impl<'a> Group<'a> {
    /// The rows that tell latencies, one per phase and subject: those of the same turns tell the same.
    pub(super) fn latencies(&self) -> Vec<Pair<'a, Row>> {
        let told = self.rows.iter().flat_map(Pair::each).filter(|row| row.p50_us.is_some() || !row.latency.is_empty());
        Pair::all(told, |row| &row.case, |row| (row.phase, row.subject.as_str()))
    }
}

/// The name of a case without its accounting.
pub(super) fn base(case: &str) -> &str {
    case.strip_suffix(STEERED).unwrap_or(case)
}

pub(super) fn is_steered(case: &str) -> bool {
    case.ends_with(STEERED)
}

/// Every row: median, spread and what they have to be read with.
pub(super) fn figures(groups: &[Group<'_>]) -> Sheet {
    let both = both(groups, |group| &group.rows);
    let mut head = columns(&["case", "metric", "load", "subject"], &[]);
    head.extend(accountings(both, "median (min – max)"));
    head.extend(columns(&["unit", "balancer busy", "client busy", "note"], &["balancer busy", "client busy"]));
    let mut rows = Vec::new();
    for group in groups {
        for pair in &group.rows {
            let row = pair.any();
            let mut cells = texts([group.name, &row.metric, load(row.phase), &row.subject]);
            cells.extend(pair.cells(both, |row| Cell::Text(spread(row.spread()))));
            cells.extend([
                Cell::Text(row.unit.clone()),
                pair.text(|row| percent(row.balancer_busy)),
                pair.text(|row| percent(row.client_busy)),
                Cell::Text(distinct(pair.each().flat_map(notes)).join(", ")),
            ]);
            rows.push(cells);
        }
    }
    Sheet { head, rows }
}

/// Latencies that half, 99 % and 99.9 % of the work stayed below.
pub(super) fn latencies(groups: &[Group<'_>]) -> Sheet {
    let both = groups.iter().any(|group| group.latencies().iter().any(|pair| pair.steered.is_some()));
    let mut head = columns(&["case", "load", "subject"], &[]);
    for percentile in ["p50 µs", "p99 µs", "p99.9 µs"] {
        head.extend(accountings(both, percentile));
    }
    let mut rows = Vec::new();
    for group in groups {
        for pair in group.latencies() {
            let mut cells = texts([group.name, load(pair.any().phase), &pair.any().subject]);
            for us in [|row: &Row| row.p50_us, |row: &Row| row.p99_us, |row: &Row| row.p999_us] {
                cells.extend(pair.cells(both, |row| Cell::Text(us(row).map_or_else(|| "-".into(), figure))));
            }
            rows.push(cells);
        }
    }
    Sheet { head, rows }
}

/// Every ratio.
pub(super) fn ratios(groups: &[Group<'_>], subject: &str) -> Sheet {
    let both = both(groups, |group| &group.ratios);
    let mut head = columns(&["case", "metric", "load"], &[]);
    head.extend(columns(&[&format!("{subject} against")], &[]));
    // The verdict stands beside its ratio.
    for name in accountings(both, "ratio (min – max)") {
        let verdict = name.name.replace("ratio (min – max)", "verdict");
        head.extend([name, Column { name: verdict, number: false }]);
    }
    let mut rows = Vec::new();
    for group in groups {
        for pair in &group.ratios {
            let ratio = pair.any();
            let mut cells = texts([group.name, &ratio.metric, load(ratio.phase), &ratio.versus]);
            let spreads = pair.cells(both, |ratio| Cell::Text(spread(ratio.spread())));
            let verdicts = pair.cells(both, |ratio| Cell::Verdict(ratio.verdict));
            cells.extend(spreads.zip(verdicts).flat_map(|(spread, verdict)| [spread, verdict]));
            rows.push(cells);
        }
    }
    Sheet { head, rows }
}

/// Everything in short, a line per ratio; figures that are compared with nothing stand alone.
pub(super) fn summary(report: &Report) -> Sheet {
    let mut head = columns(&["case", "metric", "load"], &[]);
    head.extend(columns(&[report.subject()], &[report.subject()]));
    head.extend(columns(&["peer", "of the peer", "ratio", "verdict"], &["of the peer", "ratio"]));
    let told = |found: Option<Figure>| {
        Cell::Text(found.map_or_else(|| "-".into(), |found| format!("{} {}", spread(found.spread), found.unit)))
    };
    let mut rows = Vec::new();
    for ratio in &report.ratios {
        let mut cells = texts([&ratio.case, &ratio.metric, load(ratio.phase)]);
        cells.push(told(report.figure(ratio, report.subject())));
        cells.push(Cell::Text(ratio.versus.clone()));
        cells.push(told(report.figure(ratio, &ratio.versus)));
        cells.extend([Cell::Text(spread(ratio.spread())), Cell::Verdict(ratio.verdict)]);
        rows.push((ratio.case.as_str(), cells));
    }
    for row in &report.rows {
        let own = row.subject == report.subject();
        let compared = |ratio: &&Ratio| {
            ratio.case == row.case
                && ratio.metric == row.metric
                && ratio.phase == row.phase
                && (own || ratio.versus == row.subject)
        };
        if report.ratios.iter().any(|ratio| compared(&ratio)) {
            continue;
        }
        let mut cells = texts([&row.case, &row.metric, load(row.phase)]);
        let alone = Cell::Text(format!("{} {}", spread(row.spread()), row.unit));
        if own {
            cells.extend([alone, Cell::Text("-".into()), Cell::Text("-".into())]);
        } else {
            cells.extend([Cell::Text("-".into()), Cell::Text(row.subject.clone()), alone]);
        }
        cells.extend([Cell::Text("-".into()), Cell::Verdict(Verdict::None)]);
        rows.push((row.case.as_str(), cells));
    }
    let order = distinct(report.rows.iter().map(|row| row.case.as_str()));
    rows.sort_by_key(|(case, _)| order.iter().position(|known| known == case));
    Sheet { head, rows: rows.into_iter().map(|(_, cells)| cells).collect() }
}

/// What a row has to be read with.
pub(super) fn notes(row: &Row) -> Vec<&'static str> {
    let behind = row.metric == "rate" && row.offered_per_s.is_some_and(|offered| row.median < offered * KEPT_UP_MIN);
    [
        (row.client_bound, "client-bound"),
        (row.others_share > OTHERS_SHARE_MAX, "disturbed"),
        (behind, "below the offered rate"),
    ]
    .into_iter()
    .filter_map(|(holds, word)| holds.then_some(word))
    .collect()
}

/// A figure as people read it: three digits, thousands apart.
pub(super) fn figure(value: f64) -> String {
    if value.abs() < 9.995 {
        return format!("{value:.2}");
    }
    if value.abs() < 99.95 {
        return format!("{value:.1}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::from(if value < 0.0 { "-" } else { "" });
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Median and spread; one figure where all are the same.
pub(super) fn spread(Spread { median, min, max }: Spread) -> String {
    if min == max { figure(median) } else { format!("{} ({} – {})", figure(median), figure(min), figure(max)) }
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

pub(super) fn load(phase: Option<Phase>) -> &'static str {
    phase.map_or("-", Phase::words)
}

fn both<'a, T: 'a>(groups: &'a [Group<'a>], of: fn(&'a Group<'a>) -> &'a Vec<Pair<'a, T>>) -> bool {
    groups.iter().flat_map(of).any(|pair| pair.steered.is_some())
}

fn accountings(both: bool, name: &str) -> Vec<Column> {
    let names = if both { vec![format!("plain {name}"), format!("steered {name}")] } else { vec![name.to_owned()] };
    names.into_iter().map(|name| Column { name, number: true }).collect()
}

fn columns(names: &[&str], numbers: &[&str]) -> Vec<Column> {
    names.iter().map(|&name| Column { name: name.to_owned(), number: numbers.contains(&name) }).collect()
}

fn texts<const N: usize>(texts: [&str; N]) -> Vec<Cell> {
    texts.into_iter().map(|text| Cell::Text(text.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_as_people_read_them() {
        let table = [
            (0.0, "0.00"),
            (1.234, "1.23"),
            (9.996, "10.0"),
            (99.96, "100"),
            (999.6, "1,000"),
            (83967.97, "83,968"),
            (1234567.0, "1,234,567"),
            (-1234.0, "-1,234"),
        ];
        for (value, expected) in table {
            assert_eq!(figure(value), expected);
        }
        assert_eq!(spread(Spread { median: 2.0, min: 2.0, max: 2.0 }), "2.00");
    }

    #[test]
    fn an_open_loop_that_falls_behind_is_noted() {
        let row = Row { metric: "rate".into(), median: 90.0, offered_per_s: Some(100.0), ..Row::default() };
        assert_eq!(notes(&row), ["below the offered rate"]);
        assert!(notes(&Row { median: 99.5, ..row.clone() }).is_empty());
        assert!(notes(&Row { offered_per_s: None, ..row }).is_empty());
    }
}
