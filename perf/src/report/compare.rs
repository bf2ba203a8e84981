//! What changed between two results of the same suite.

use std::fmt;

use serde::Serialize;

use super::sheet::{self, Cell, Column, Sheet};
use super::{Better, Phase, Report, Row, Spread, VERDICT_ROUNDS_MIN, distinct};
use crate::machine::Machine;

/// Two results side by side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Name of the suite.
    pub suite: String,
    /// The one that regressions are told of: the first in both results.
    pub subject: String,
    /// What differs between the machines, in words. Empty: absolute figures may be compared.
    pub machine: Vec<String>,
    /// What differs between the versions of the subjects, in words.
    pub versions: Vec<String>,
    /// One per figure and ratio that both results have.
    pub changes: Vec<Change>,
    /// What only the older result has.
    pub only_old: Vec<String>,
    /// What only the newer result has.
    pub only_new: Vec<String>,
}

/// What became of one figure or ratio.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Name of the case.
    pub case: String,
    /// How the load was driven.
    pub phase: Option<Phase>,
    /// What was measured.
    pub metric: String,
    /// Whose figure.
    pub subject: String,
    /// For a ratio: against whom.
    pub versus: Option<String>,
    /// Unit of the figures; none for a ratio.
    pub unit: Option<String>,
    /// In the older result.
    pub old: Spread,
    /// In the newer result.
    pub new: Spread,
    /// By how much the median rose, in percent; none from 0.
    pub percent: Option<f64>,
    /// What follows.
    pub outcome: Outcome,
    /// Whether a regression is told by it: a ratio if there is one, because both sides of it met the same minute; else the first
    /// subject's own figure.
    pub decides: bool,
}

/// What follows from two spreads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "word", content = "because")]
pub enum Outcome {
    /// Better in every round than in any before.
    Better,
    /// May not be compared, and why.
    NotJudged(String),
    /// The spreads overlap.
    Overlap,
    /// Worse in every round than in any before.
    Worse,
}

/// Results that have nothing in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompareError {
    /// Different suites: the older one's, the newer one's.
    Suites(String, String),
    /// Different first subjects: the older one's, the newer one's.
    Subjects(String, String),
}

impl fmt::Display for CompareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, old, new) = match self {
            CompareError::Suites(old, new) => ("suite", old, new),
            CompareError::Subjects(old, new) => ("first subject", old, new),
        };
        write!(f, "the {what} of the old result is {old}, of the new one {new}; compare two results of the same {what}")
    }
}

impl std::error::Error for CompareError {}

impl Comparison {
    /// Compares two results.
    pub fn of(old: &Report, new: &Report) -> Result<Comparison, CompareError> {
        if old.suite != new.suite {
            return Err(CompareError::Suites(old.suite.clone(), new.suite.clone()));
        }
        if old.subject() != new.subject() {
            return Err(CompareError::Subjects(old.subject().into(), new.subject().into()));
        }
        let machine = differences(&old.machine, &new.machine);
        let few_rounds = old.rounds.min(new.rounds) < VERDICT_ROUNDS_MIN;
        let few = || few_rounds.then(|| format!("fewer than {VERDICT_ROUNDS_MIN} rounds"));
        let mut changes = Vec::new();
        let find = |row: &Row| old.rows.iter().find(|before| before.key() == row.key());
        for (before, now) in new.rows.iter().filter_map(|now| Some((find(now)?, now))) {
            let reason = few()
                .or_else(|| (!machine.is_empty()).then(|| "other machine".to_owned()))
                .or_else(|| (before.unit != now.unit).then(|| format!("was in {}", before.unit)));
            changes.push(Change {
                case: now.case.clone(),
                phase: now.phase,
                metric: now.metric.clone(),
                subject: now.subject.clone(),
                versus: None,
                unit: Some(now.unit.clone()),
                old: before.spread(),
                new: now.spread(),
                percent: percent(before.median, now.median),
                outcome: judge(before.spread(), now.spread(), Better::of(&now.metric, &now.unit), reason),
                decides: false,
            });
        }
        for now in &new.ratios {
            let Some(before) = old.ratios.iter().find(|before| before.key() == now.key()) else { continue };
            let version = |report: &Report| report.machine.versions.get(&now.versus).cloned();
            let other_peer = (version(old) != version(new)).then(|| format!("other {}", now.versus));
            let outcome = judge(before.spread(), now.spread(), Better::Higher, few().or(other_peer));
            changes.push(Change {
                case: now.case.clone(),
                phase: now.phase,
                metric: now.metric.clone(),
                subject: new.subject().to_owned(),
                versus: Some(now.versus.clone()),
                unit: None,
                old: before.spread(),
                new: now.spread(),
                percent: percent(before.median, now.median),
                decides: !matches!(outcome, Outcome::NotJudged(_)),
                outcome,
            });
        }
        let told: Vec<_> = changes.iter().filter(|change| change.decides).map(Change::measured).map(owned).collect();
        for change in changes.iter_mut().filter(|change| change.versus.is_none()) {
            change.decides = change.subject == new.subject()
                && !matches!(change.outcome, Outcome::NotJudged(_))
                && !told.contains(&owned(change.measured()));
        }
        let order = distinct(new.rows.iter().map(|row| &row.case));
        changes.sort_by_key(|change| order.iter().position(|&case| *case == change.case));
        Ok(Comparison {
            suite: new.suite.clone(),
            subject: new.subject().to_owned(),
            machine,
            versions: versions(&old.machine, &new.machine),
            changes,
            only_old: missing(old, new),
            only_new: missing(new, old),
        })
    }

    /// Whether the first subject got worse.
    pub fn regressed(&self) -> bool {
        !self.regressions().is_empty()
    }

    /// What the first subject got worse in.
    pub fn regressions(&self) -> Vec<String> {
        let worse = self.changes.iter().filter(|change| change.decides && change.outcome == Outcome::Worse);
        distinct(worse.map(|change| format!("{} {}", change.case, change.metric)))
    }

    /// What has to be known before the table is read.
    pub(super) fn preface(&self) -> String {
        let mut text = format!("{}: ", self.suite);
        if self.machine.is_empty() {
            text.push_str("the same kind of machine\n");
        } else {
            text.push_str(&format!("the machines differ ({}): only ratios are judged\n", self.machine.join("; ")));
        }
        for line in &self.versions {
            text.push_str(&format!("  {line}\n"));
        }
        for (names, which) in [(&self.only_old, "old"), (&self.only_new, "new")] {
            if !names.is_empty() {
                text.push_str(&format!("Only in the {which} result: {}\n", names.join(", ")));
            }
        }
        if self.changes.is_empty() {
            text.push_str("Nothing that both results have.\n");
        }
        text
    }

    pub(super) fn sheet(&self) -> Sheet {
        let head = [
            ("case", false),
            ("metric", false),
            ("load", false),
            ("of", false),
            ("old (min – max)", true),
            ("new (min – max)", true),
            ("unit", false),
            ("change", true),
            ("", false),
        ];
        let cells = |change: &Change| {
            let of = match &change.versus {
                Some(versus) => format!("{} / {versus}", change.subject),
                None => change.subject.clone(),
            };
            [
                change.case.clone(),
                change.metric.clone(),
                sheet::load(change.phase).to_owned(),
                of,
                sheet::spread(change.old),
                sheet::spread(change.new),
                change.unit.clone().unwrap_or_else(|| "ratio".into()),
                change.percent.map_or_else(|| "-".into(), |percent| format!("{percent:+.1} %")),
                change.word(),
            ]
        };
        Sheet {
            head: head.map(|(name, number)| Column { name: name.into(), number }).into(),
            rows: self.changes.iter().map(|change| cells(change).map(Cell::Text).into()).collect(),
        }
    }
}

impl Change {
    /// What follows, in words. Where the spreads overlap, nothing is said.
    pub fn word(&self) -> String {
        let speed = !matches!(self.metric.as_str(), "loss" | "memory");
        match &self.outcome {
            Outcome::Better if speed => "faster".into(),
            Outcome::Better => "better".into(),
            Outcome::NotJudged(reason) => format!("not judged: {reason}"),
            Outcome::Overlap => "-".into(),
            Outcome::Worse if speed => "slower".into(),
            Outcome::Worse => "worse".into(),
        }
    }

    fn measured(&self) -> (&str, &str, Option<Phase>) {
        (&self.case, &self.metric, self.phase)
    }
}

fn owned((case, metric, phase): (&str, &str, Option<Phase>)) -> (String, String, Option<Phase>) {
    (case.to_owned(), metric.to_owned(), phase)
}

fn judge(old: Spread, new: Spread, better: Better, reason: Option<String>) -> Outcome {
    let (above, below) = match better {
        Better::Higher => (Outcome::Better, Outcome::Worse),
        Better::Lower => (Outcome::Worse, Outcome::Better),
    };
    match reason {
        Some(reason) => Outcome::NotJudged(reason),
        None if new.min > old.max => above,
        None if new.max < old.min => below,
        None => Outcome::Overlap,
    }
}

fn percent(old: f64, new: f64) -> Option<f64> {
    (old != 0.0).then(|| (new / old - 1.0) * 100.0)
}

/// Facts that move absolute figures.
fn differences(old: &Machine, new: &Machine) -> Vec<String> {
    let governor = |machine: &Machine| machine.governor.clone().unwrap_or_else(|| "none".into());
    [
        ("CPU", old.cpu_model.clone(), new.cpu_model.clone()),
        ("CPUs", old.cpus.to_string(), new.cpus.to_string()),
        ("kernel", old.kernel.clone(), new.kernel.clone()),
        ("governor", governor(old), governor(new)),
        ("pins", format!("{:?}", old.pins), format!("{:?}", new.pins)),
    ]
    .into_iter()
    .filter(|(_, old, new)| old != new)
    .map(|(what, old, new)| format!("{what}: {old} → {new}"))
    .collect()
}

fn versions(old: &Machine, new: &Machine) -> Vec<String> {
    old.versions
        .iter()
        .filter_map(|(name, before)| {
            let now = new.versions.get(name).filter(|now| *now != before)?;
            Some(format!("{name}: {before} → {now}"))
        })
        .collect()
}

/// What the one result has and the other has not.
fn missing(has: &Report, lacks: &Report) -> Vec<String> {
    let name = |(case, metric, _, subject): (&str, &str, Option<Phase>, &str)| format!("{case} {metric} {subject}");
    let rows = has.rows.iter().filter(|row| !lacks.rows.iter().any(|other| other.key() == row.key()));
    distinct(rows.map(|row| name(row.key())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::sample;

    fn spread(min: f64, max: f64) -> Spread {
        Spread { median: (min + max) / 2.0, min, max }
    }

    #[test]
    fn only_spreads_that_do_not_overlap_are_judged() {
        let table = [
            ((10.0, 12.0), (13.0, 14.0), Better::Higher, Outcome::Better),
            ((10.0, 12.0), (12.0, 14.0), Better::Higher, Outcome::Overlap),
            ((10.0, 12.0), (8.0, 9.0), Better::Higher, Outcome::Worse),
            ((10.0, 12.0), (13.0, 14.0), Better::Lower, Outcome::Worse),
            ((10.0, 12.0), (8.0, 9.0), Better::Lower, Outcome::Better),
            ((10.0, 12.0), (1.0, 99.0), Better::Lower, Outcome::Overlap),
        ];
        for (old, new, better, expected) in table {
            assert_eq!(judge(spread(old.0, old.1), spread(new.0, new.1), better, None), expected, "{old:?} {new:?}");
        }
        let refused = judge(spread(1.0, 1.0), spread(2.0, 2.0), Better::Higher, Some("why".into()));
        assert_eq!(refused, Outcome::NotJudged("why".into()));
    }

    /// The sample with everything of the first subject slower by this factor, and its ratios too.
    fn slower(report: &Report, factor: f64) -> Report {
        let mut report = report.clone();
        let subject = report.subject().to_owned();
        for row in report.rows.iter_mut().filter(|row| row.subject == subject && row.metric != "memory") {
            (row.median, row.min, row.max) = (row.median / factor, row.min / factor, row.max / factor);
        }
        for ratio in &mut report.ratios {
            (ratio.median, ratio.min, ratio.max) = (ratio.median / factor, ratio.min / factor, ratio.max / factor);
        }
        report
    }

    #[test]
    fn the_same_result_twice_is_no_regression() {
        let comparison = Comparison::of(&sample(), &sample()).unwrap();
        assert!(!comparison.regressed());
        assert_eq!(comparison.changes.len(), sample().rows.len() + sample().ratios.len());
        assert!(
            comparison.changes.iter().all(|change| change.outcome == Outcome::Overlap && change.percent == Some(0.0))
        );
    }

    #[test]
    fn a_slower_subject_is_a_regression_and_a_faster_one_is_not() {
        let sample = sample();
        assert!(Comparison::of(&sample, &slower(&sample, 3.0)).unwrap().regressed());
        assert!(!Comparison::of(&slower(&sample, 3.0), &sample).unwrap().regressed());
    }

    #[test]
    fn a_machine_that_is_slower_for_all_is_no_regression() {
        let sample = sample();
        let mut slow = sample.clone();
        for row in slow.rows.iter_mut().filter(|row| row.metric != "memory") {
            (row.median, row.min, row.max) = (row.median / 3.0, row.min / 3.0, row.max / 3.0);
        }
        let comparison = Comparison::of(&sample, &slow).unwrap();
        assert!(comparison.changes.iter().any(|change| change.word() == "slower"), "it is still told");
        assert!(!comparison.regressed());
    }

    #[test]
    fn on_another_machine_only_ratios_are_judged() {
        let sample = sample();
        let mut other = slower(&sample, 3.0);
        other.machine.kernel = "7.0".into();
        let comparison = Comparison::of(&sample, &other).unwrap();
        assert!(comparison.preface().contains("kernel: 6.18 → 7.0"));
        let absolute = comparison.changes.iter().filter(|change| change.versus.is_none());
        assert!(absolute.clone().count() > 0 && absolute.clone().all(|change| !change.decides));
        assert!(absolute.into_iter().all(|change| change.word() == "not judged: other machine"));
        assert!(comparison.regressed(), "by its ratios");
    }

    #[test]
    fn another_version_of_a_peer_gives_no_ratio_to_judge() {
        let sample = sample();
        let mut other = slower(&sample, 3.0);
        other.machine.kernel = "7.0".into();
        other.machine.versions.insert("haproxy".into(), "HAProxy 9".into());
        other.machine.versions.insert("nginx".into(), "nginx 9".into());
        let comparison = Comparison::of(&sample, &other).unwrap();
        assert!(!comparison.regressed());
        assert!(comparison.changes.iter().any(|change| change.word() == "not judged: other haproxy"));
        assert_eq!(comparison.versions.len(), 2);
    }

    #[test]
    fn memory_without_a_peer_is_judged_by_itself() {
        let sample = sample();
        let mut fat = sample.clone();
        for row in fat.rows.iter_mut().filter(|row| row.metric == "memory") {
            (row.median, row.min, row.max) = (5000.0, 4900.0, 5100.0);
        }
        let comparison = Comparison::of(&sample, &fat).unwrap();
        assert!(comparison.regressed());
        assert!(comparison.changes.iter().any(|change| change.metric == "memory" && change.word() == "worse"));
    }

    #[test]
    fn what_only_one_has_is_named_and_other_suites_are_refused() {
        let sample = sample();
        let mut short = sample.clone();
        short.rows.retain(|row| row.metric != "memory");
        let comparison = Comparison::of(&sample, &short).unwrap();
        assert_eq!((comparison.only_old.len(), comparison.only_new.len()), (1, 0));
        assert!(comparison.only_old[0].contains("memory towpath"));
        let udp = Report { suite: "udp".into(), ..sample.clone() };
        assert!(
            Comparison::of(&sample, &udp).unwrap_err().to_string().contains("compare two results of the same suite")
        );
    }
}
