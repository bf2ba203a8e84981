//! Results: from rounds to medians, spreads and verdicts; as JSON and as tables.

pub mod table;

use serde::{Deserialize, Serialize};

use crate::machine::Machine;

/// The result of a suite, as written by `--json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Name of the suite.
    pub suite: String,
    /// Where it ran.
    pub machine: Machine,
    /// How often each subject had its turn in each case.
    pub rounds: usize,
    /// One per case, metric and subject.
    pub rows: Vec<Row>,
    /// One per case, metric and subject other than the first.
    pub ratios: Vec<Ratio>,
}

/// What one subject did in one case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Name of the case.
    pub case: String,
    /// `rate` or `efficiency` (work per CPU-second of the balancer).
    pub metric: String,
    /// Unit of the next three.
    pub unit: String,
    /// Name of the subject.
    pub subject: String,
    /// Median over the rounds.
    pub median: f64,
    /// Smallest of the rounds.
    pub min: f64,
    /// Largest of the rounds.
    pub max: f64,
    /// Latency that half of the work stayed below, over all rounds; none for bulk.
    pub p50_us: Option<f64>,
    /// The same for 99 %.
    pub p99_us: Option<f64>,
    /// The same for 99.9 %.
    pub p999_us: Option<f64>,
    /// Median of the seconds of work of the balancer's CPU.
    pub balancer_cpu_s: f64,
    /// Median share of the time in which the balancer's CPU worked.
    pub balancer_busy: f64,
    /// Median share of the time in which the client's CPUs worked.
    pub client_busy: f64,
    /// Median share of the work on these CPUs that was neither the subject's, the client's nor the origin's.
    pub others_share: f64,
    /// Whether the client was the ceiling, not the balancer, in most rounds.
    pub client_bound: bool,
}

/// How the first subject compares with another; above 1, the first is better, whatever the metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Name of the case.
    pub case: String,
    /// `rate`, `efficiency`, `p50` or `p99`.
    pub metric: String,
    /// Name of the other subject.
    pub versus: String,
    /// Median of the rounds' ratios.
    pub median: f64,
    /// Smallest of the rounds' ratios.
    pub min: f64,
    /// Largest of the rounds' ratios.
    pub max: f64,
    /// What follows.
    pub verdict: Verdict,
}

/// What the rounds' ratios say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The first subject won every round.
    Better,
    /// Now one, now the other.
    Tie,
    /// The first subject lost every round.
    Worse,
}

/// Median, smallest and largest of some figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The one in the middle; of an even number, the mean of the two.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// `None` for no figures.
    pub fn of(figures: &[f64]) -> Option<Spread> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let upper = sorted.len() / 2;
        let lower = (sorted.len() - 1) / 2;
        Some(Spread { median: (sorted[lower] + sorted[upper]) / 2.0, min, max })
    }
}

impl Verdict {
    /// A spread that crosses 1 is a tie.
    pub fn of(ratios: Spread) -> Verdict {
        if ratios.min > 1.0 {
            Verdict::Better
        } else if ratios.max < 1.0 {
            Verdict::Worse
        } else {
            Verdict::Tie
        }
    }

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Better => "better",
            Verdict::Tie => "tie",
            Verdict::Worse => "worse",
        }
    }
}

/// Compares two subjects round by round. `None` when a round lacks a figure.
pub fn ratio(case: &str, metric: &str, versus: &str, ours: &[f64], theirs: &[f64], better: Better) -> Option<Ratio> {
    let ratios: Vec<f64> = ours
        .iter()
        .zip(theirs)
        .map(|(&ours, &theirs)| match better {
            Better::Higher => ours / theirs,
            Better::Lower => theirs / ours,
        })
        .filter(|ratio| ratio.is_finite())
        .collect();
    if ratios.len() != ours.len() {
        return None;
    }
    let spread = Spread::of(&ratios)?;
    Some(Ratio {
        case: case.to_owned(),
        metric: metric.to_owned(),
        versus: versus.to_owned(),
        median: spread.median,
        min: spread.min,
        max: spread.max,
        verdict: Verdict::of(spread),
    })
}

/// Which way a figure is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Rates.
    Higher,
    /// Latencies.
    Lower,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_that_crosses_one_is_a_tie() {
        let verdict = |ours: &[f64], better| ratio("c", "m", "p", ours, &[10.0, 10.0, 10.0], better).unwrap().verdict;
        assert_eq!(verdict(&[11.0, 12.0, 30.0], Better::Higher), Verdict::Better);
        assert_eq!(verdict(&[9.0, 12.0, 30.0], Better::Higher), Verdict::Tie);
        assert_eq!(verdict(&[9.0, 8.0, 1.0], Better::Higher), Verdict::Worse);
        assert_eq!(verdict(&[9.0, 8.0, 1.0], Better::Lower), Verdict::Better);
    }

    #[test]
    fn the_median_is_of_the_rounds_own_ratios() {
        let ratio = ratio("c", "m", "p", &[10.0, 40.0, 90.0], &[10.0, 20.0, 30.0], Better::Higher).unwrap();
        assert_eq!((ratio.min, ratio.median, ratio.max), (1.0, 2.0, 3.0));
    }

    #[test]
    fn a_round_without_a_figure_gives_no_ratio() {
        assert!(ratio("c", "m", "p", &[1.0, 0.0], &[1.0, 0.0], Better::Higher).is_none());
        assert!(Spread::of(&[]).is_none());
        assert_eq!(Spread::of(&[4.0, 1.0]).unwrap().median, 2.5);
    }
}
