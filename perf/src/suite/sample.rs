//! What turns bring, and what follows from it over all rounds: rows and ratios.

use std::io;

use crate::load::new_histogram;
use crate::peers::Subject;
use crate::report::{Better, Phase, Report, Row, Spread, latency_curve, ratio};

/// What one turn tells about one case in one phase.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    /// Name of the case: the turn's, or a part of it.
    pub(super) case: String,
    pub(super) phase: Option<Phase>,
    /// The figures.
    pub(super) readings: Vec<Reading>,
    /// Pieces of work done per second, in the unit of a pace; none where nothing is paced.
    pub(super) per_second: Option<f64>,
    /// In the unit of the rate, where the load was an open loop.
    pub(super) offered_per_s: Option<f64>,
    /// In nanoseconds: (value, how often).
    pub(super) latency_ns: Vec<(u64, u64)>,
    pub(super) balancer_cpu_s: f64,
    pub(super) balancer_busy: f64,
    pub(super) client_busy: f64,
    pub(super) client_bound: bool,
    pub(super) others_share: f64,
    pub(super) steal_share: f64,
}

/// One figure.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// `rate`, `efficiency` …
    pub(super) metric: &'static str,
    pub(super) unit: String,
    pub(super) value: f64,
    /// Whether it says something beside another subject's.
    pub(super) comparable: bool,
}

/// Adds rows and ratios of a case: `rounds[round][subject]` are the samples of a turn.
pub(super) fn tell(report: &mut Report, subjects: &[Subject], rounds: &[Vec<Vec<Sample>>]) {
    let mut parts: Vec<(&str, Option<Phase>)> = Vec::new();
    for sample in rounds.iter().flatten().flatten() {
        if !parts.contains(&(&sample.case, sample.phase)) {
            parts.push((&sample.case, sample.phase));
        }
    }
    for (case, phase) in parts {
        // In the order of the rounds; none where a turn tells nothing of this part.
        let of = |number: usize| -> Vec<Option<&Sample>> {
            let is_part = |sample: &&Sample| sample.case == case && sample.phase == phase;
            rounds.iter().map(|round| round[number].iter().find(is_part)).collect()
        };
        let samples: Vec<Vec<Option<&Sample>>> = (0..subjects.len()).map(of).collect();
        for (subject, samples) in subjects.iter().zip(&samples) {
            let samples: Vec<&Sample> = samples.iter().copied().flatten().collect();
            report.rows.extend(rows(case, phase, subject, &samples));
        }
        let Some((ours, others)) = samples.split_first() else { continue };
        for (subject, theirs) in subjects.iter().skip(1).zip(others) {
            for metric in metrics(ours.iter().copied().flatten()) {
                let figures = |samples: &[Option<&Sample>]| -> Option<(Better, Vec<f64>)> {
                    let readings: Vec<&Reading> = samples
                        .iter()
                        .map(|sample| {
                            let mut readings = (*sample)?.readings.iter();
                            readings.find(|reading| reading.metric == metric && reading.comparable)
                        })
                        .collect::<Option<_>>()?;
                    let better = Better::of(metric, &readings.first()?.unit);
                    Some((better, readings.into_iter().map(|reading| reading.value).collect()))
                };
                // A ratio of some of the rounds would be one of chosen rounds.
                let (Some((better, ours)), Some((_, theirs))) = (figures(ours), figures(theirs)) else { continue };
                let told = ratio(case, metric, &subject.name, &ours, &theirs, better);
                report.ratios.extend(told.map(|told| crate::report::Ratio { phase, ..told }));
            }
        }
    }
}

/// Each metric once, in the order of the readings.
fn metrics<'a>(samples: impl Iterator<Item = &'a Sample>) -> Vec<&'static str> {
    let mut metrics = Vec::new();
    for reading in samples.flat_map(|sample| &sample.readings) {
        if !metrics.contains(&reading.metric) {
            metrics.push(reading.metric);
        }
    }
    metrics
}

fn rows(case: &str, phase: Option<Phase>, subject: &Subject, samples: &[&Sample]) -> Vec<Row> {
    let mut histogram = new_histogram();
    for &(value, count) in samples.iter().flat_map(|sample| &sample.latency_ns) {
        histogram.saturating_record_n(value, count);
    }
    let quantile_us = |q: f64| (!histogram.is_empty()).then(|| histogram.value_at_quantile(q) as f64 / 1000.0);
    let median = |of: fn(&Sample) -> f64| {
        Spread::of(&samples.iter().map(|sample| of(sample)).collect::<Vec<_>>()).map_or(0.0, |spread| spread.median)
    };
    let offered: Vec<f64> = samples.iter().filter_map(|sample| sample.offered_per_s).collect();
    let bound = samples.iter().filter(|sample| sample.client_bound).count();
    metrics(samples.iter().copied())
        .into_iter()
        .filter_map(|metric| {
            let readings: Vec<&Reading> =
                samples.iter().flat_map(|sample| &sample.readings).filter(|reading| reading.metric == metric).collect();
            let spread = Spread::of(&readings.iter().map(|reading| reading.value).collect::<Vec<_>>())?;
            Some(Row {
                case: case.to_owned(),
                phase,
                metric: metric.to_owned(),
                unit: readings.first()?.unit.clone(),
                subject: subject.name.clone(),
                median: spread.median,
                min: spread.min,
                max: spread.max,
                p50_us: quantile_us(0.5),
                p99_us: quantile_us(0.99),
                p999_us: quantile_us(0.999),
                latency: latency_curve(&histogram),
                offered_per_s: Spread::of(&offered).map(|spread| spread.median),
                balancer_cpu_s: median(|sample| sample.balancer_cpu_s),
                balancer_busy: median(|sample| sample.balancer_busy),
                client_busy: median(|sample| sample.client_busy),
                others_share: median(|sample| sample.others_share),
                client_bound: bound * 2 > samples.len(),
            })
        })
        .collect()
}

/// The error of a client thread that has panicked.
pub(super) fn panicked<T>(_payload: T) -> io::Error {
    io::Error::other("the client has panicked")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::report::Verdict;
    use std::path::Path;

    fn sample(phase: Phase, value: f64, comparable: bool) -> Sample {
        let readings = vec![Reading { metric: "rate", unit: "req/s".into(), value, comparable }];
        Sample { case: "c".into(), phase: Some(phase), readings, ..Sample::default() }
    }

    fn told(rounds: &[[(f64, bool); 2]]) -> Report {
        let subjects = [(); 2].map(|()| Subject::find("towpath", Path::new("/bin/true")).unwrap());
        let rounds: Vec<Vec<Vec<Sample>>> = rounds
            .iter()
            .map(|round| round.iter().map(|&(v, c)| vec![sample(Phase::Saturation, v, c)]).collect())
            .collect();
        let mut report = Report {
            schema: crate::report::SCHEMA,
            suite: "s".into(),
            machine: Machine::default(),
            rounds: rounds.len(),
            rows: Vec::new(),
            ratios: Vec::new(),
        };
        tell(&mut report, &subjects, &rounds);
        report
    }

    #[test]
    fn rounds_become_one_row_each_and_one_ratio() {
        let report = told(&[[(20.0, true), (10.0, true)], [(30.0, true), (10.0, true)], [(40.0, true), (10.0, true)]]);
        assert_eq!(report.rows.iter().map(|row| row.median).collect::<Vec<_>>(), [30.0, 10.0]);
        let [ratio] = report.ratios.as_slice() else { panic!("{:?}", report.ratios) };
        assert_eq!((ratio.median, ratio.verdict, ratio.phase), (3.0, Verdict::Better, Some(Phase::Saturation)));
    }

    #[test]
    fn a_figure_that_is_not_comparable_in_one_round_gives_no_ratio() {
        let report = told(&[[(20.0, true), (10.0, true)], [(20.0, true), (10.0, false)]]);
        assert_eq!((report.rows.len(), report.ratios.len()), (2, 0));
    }
}
