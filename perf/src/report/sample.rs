//! A result for tests: two accountings, three subjects, both phases.

use super::{Better, CURVE_PERCENTILES, Phase, Ratio, Report, Row, SCHEMA, Spread, ratio};
use crate::machine::Machine;

const SUBJECTS: [&str; 3] = ["towpath", "haproxy", "nginx"];

/// Rate of the last subject, and how far the others lie above it, per round.
const CASES: [(&str, f64, [[f64; 3]; 2]); 3] = [
    ("keepalive-128B-64c", 60000.0, [[1.1, 1.05, 1.2], [1.0, 1.0, 1.0]]),
    ("keepalive-128B-64c-steered", 50000.0, [[1.6, 1.5, 1.7], [1.0, 1.0, 1.0]]),
    ("keepalive-128B-4c", 30000.0, [[0.98, 0.9, 1.05], [1.02, 1.01, 1.03]]),
];

/// The result.
pub(super) fn sample() -> Report {
    let mut report = Report {
        schema: SCHEMA,
        suite: "relay".into(),
        machine: Machine {
            cpu_model: "AMD EPYC".into(),
            cpus: 2,
            kernel: "6.18".into(),
            memory_bytes: 24 << 30,
            pins: [("balancer".into(), vec![0]), ("client".into(), vec![1])].into(),
            versions: SUBJECTS.map(|name| (name.into(), format!("{name} 1.0"))).into(),
            ..Machine::default()
        },
        rounds: 3,
        rows: Vec::new(),
        ratios: Vec::new(),
    };
    for (case, base, above) in CASES {
        let all: Vec<Vec<f64>> = above.iter().chain([&[1.0; 3]]).map(|above| above.map(|a| a * base).into()).collect();
        for (metric, phase) in [("rate", Phase::Saturation), ("efficiency", Phase::EqualRate)] {
            for (number, figures) in all.iter().enumerate() {
                report.rows.push(row(case, metric, phase, number, figures));
            }
            for (number, theirs) in all.iter().enumerate().skip(1) {
                let told = ratio(case, metric, SUBJECTS[number], &all[0], theirs, Better::Higher);
                report.ratios.push(Ratio { phase: Some(phase), ..told.unwrap() });
            }
        }
        for (number, theirs) in all.iter().enumerate().skip(1) {
            let told = ratio(case, "p99", SUBJECTS[number], &all[0], theirs, Better::Lower);
            report.ratios.push(Ratio { phase: Some(Phase::EqualRate), ..told.unwrap() });
        }
    }
    let memory =
        Row { unit: "B".into(), latency: Vec::new(), ..row("idle-8000", "memory", Phase::Saturation, 0, &[1310.0]) };
    report.rows.push(Row { p50_us: None, p99_us: None, p999_us: None, ..memory });
    report
}

fn row(case: &str, metric: &str, phase: Phase, subject: usize, figures: &[f64]) -> Row {
    let Spread { median, min, max } = Spread::of(figures).unwrap();
    let nines = |percentile: f64| -(1.0 - percentile / 100.0).log10();
    let us = |percentile: f64| (80.0 + 15.0 * subject as f64) * (1.0 + nines(percentile).powf(1.7));
    Row {
        case: case.into(),
        phase: Some(phase),
        metric: metric.into(),
        unit: if metric == "rate" { "req/s" } else { "req/CPU-s" }.into(),
        subject: SUBJECTS[subject].into(),
        median,
        min,
        max,
        p50_us: Some(us(50.0)),
        p99_us: Some(us(99.0)),
        p999_us: Some(us(99.9)),
        latency: CURVE_PERCENTILES.iter().map(|&percentile| (percentile, us(percentile))).collect(),
        balancer_cpu_s: 2.9,
        balancer_busy: 0.97,
        client_busy: 0.9,
        client_bound: subject == 2 && case.ends_with("steered"),
        ..Row::default()
    }
}
