//! A result from its file, or what is wrong with the file.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::error::Category;

use super::{Ratio, Report, SCHEMA, Spread};

/// Largest file read, in bytes: a hundred times what all suites together write.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Why a file is not read as a result.
#[derive(Debug)]
pub struct ReadError {
    file: PathBuf,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    Cut { line: usize },
    Foreign { what: String },
    Newer { schema: u32 },
    NoJson { what: String },
    Older { what: String },
    Read(io::Error),
    TooLong,
    Unlikely { what: String },
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file.display())?;
        match &self.cause {
            Cause::Cut { line } => {
                write!(f, "ends in the middle, at line {line}; the run that wrote it was cut short: measure again")
            }
            Cause::Foreign { what } => {
                write!(f, "JSON, but no result ({what}); give a file that `--json FILE` has written")
            }
            Cause::Newer { schema } => write!(
                f,
                "schema {schema}, and this program reads up to {SCHEMA}; use the towpath-perf that wrote it, or a newer one"
            ),
            Cause::NoJson { what } => write!(f, "not JSON ({what}); give a file that `--json FILE` has written"),
            Cause::Older { what } => {
                write!(f, "a result, but not one that this program understands ({what}); measure again with it")
            }
            Cause::Read(error) => write!(f, "{error}; name a file that `--json FILE` has written"),
            Cause::TooLong => write!(f, "longer than {} MiB, so no result", FILE_BYTES_MAX >> 20),
            Cause::Unlikely { what } => write!(f, "{what}; the file was changed by hand: measure again"),
        }
    }
}

// No source: the message tells it already.
impl std::error::Error for ReadError {}

impl Report {
    /// Reads what `--json` wrote, this program's or an older one's.
    pub fn read(file: &Path) -> Result<Report, ReadError> {
        let blame = |cause| ReadError { file: file.to_owned(), cause };
        let mut text = String::new();
        File::open(file).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)).map_err(|error| {
            match error.kind() {
                io::ErrorKind::InvalidData => blame(Cause::NoJson { what: error.to_string() }),
                _ => blame(Cause::Read(error)),
            }
        })?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(blame(Cause::TooLong));
        }
        let mut report = parse(&text).map_err(blame)?;
        check(&report).map_err(|what| blame(Cause::Unlikely { what }))?;
        report.settle();
        Ok(report)
    }
}

fn parse(text: &str) -> Result<Report, Cause> {
    // First as any JSON: what is missing is worth telling only if it is a result at all.
    let value: serde_json::Value = serde_json::from_str(text).map_err(|error| match error.classify() {
        Category::Eof if !text.trim().is_empty() => Cause::Cut { line: error.line() },
        _ => Cause::NoJson { what: error.to_string() },
    })?;
    let schema = value.get("schema").and_then(serde_json::Value::as_u64).unwrap_or(1);
    if schema > u64::from(SCHEMA) {
        return Err(Cause::Newer { schema: u32::try_from(schema).unwrap_or(u32::MAX) });
    }
    let is_result = ["suite", "rows"].iter().all(|key| value.get(key).is_some());
    serde_json::from_str(text).map_err(|error| {
        let what = error.to_string();
        if is_result { Cause::Older { what } } else { Cause::Foreign { what } }
    })
}

fn check(report: &Report) -> Result<(), String> {
    let in_order = |Spread { median, min, max }| min <= median && median <= max;
    // What a subject adds to a round trip may be less than nothing.
    if let Some(row) = report.rows.iter().find(|row| !in_order(row.spread())) {
        return Err(format!(
            "{} of {} in {}: the median lies outside of its spread",
            row.metric, row.subject, row.case
        ));
    }
    if let Some(ratio) = report.ratios.iter().find(|ratio| !in_order(ratio.spread()) || ratio.spread().min < 0.0) {
        let Ratio { case, metric, versus, .. } = ratio;
        return Err(format!("{metric} against {versus} in {case}: the median lies outside of its spread"));
    }
    let rising = |points: &[(f64, f64)]| {
        points.iter().all(|&(percentile, us)| (0.0..=100.0).contains(&percentile) && us >= 0.0)
            && points.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1)
    };
    match report.rows.iter().find(|row| !rising(&row.latency)) {
        Some(row) => Err(format!("latency of {} in {}: the curve does not rise", row.subject, row.case)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Phase, Verdict};

    const FIRST_CUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/results/relay-first-cut.json");

    #[test]
    fn a_result_of_the_first_schema_still_reads() {
        let report = Report::read(Path::new(FIRST_CUT)).unwrap();
        assert_eq!((report.schema, report.suite.as_str(), report.rounds), (1, "relay", 5));
        assert!(report.rows.iter().all(|row| row.phase == Some(Phase::Saturation) && row.latency.is_empty()));
        assert!(report.ratios.iter().all(|ratio| ratio.phase == Some(Phase::Saturation)));
        assert!(report.ratios.iter().any(|ratio| ratio.verdict != Verdict::None));
    }

    #[test]
    fn the_shortest_row_that_was_ever_promised_reads() {
        let report = parse(
            r#"{"suite": "udp", "machine": {}, "rounds": 2, "unknown": [], "rows": [{"case": "c", "metric": "rate", "unit": "req/s",
            "subject": "towpath", "median": 2, "min": 1, "max": 3, "p50_us": null, "p99_us": null, "p999_us": null,
            "balancer_cpu_s": 1.5, "client_bound": true}], "ratios": []}"#,
        );
        assert!(report.unwrap().rows[0].client_bound);
    }

    #[test]
    fn verdicts_of_too_few_rounds_are_taken_back() {
        let text = std::fs::read_to_string(FIRST_CUT).unwrap().replace("\"rounds\": 5", "\"rounds\": 2");
        let mut report = parse(&text).unwrap();
        report.settle();
        assert!(report.ratios.iter().all(|ratio| ratio.verdict == Verdict::None));
    }

    #[test]
    fn what_is_no_result_is_told_with_the_next_step() {
        let whole = std::fs::read_to_string(FIRST_CUT).unwrap();
        let table = [
            ("", "not JSON"),
            ("PNG", "not JSON"),
            ("{}", "no result (missing field `suite`"),
            ("[1]", "no result"),
            (&whole[..whole.len() / 2], "ends in the middle, at line "),
            (
                &whole.replace("\"subject\"", "\"program\""),
                "not one that this program understands (missing field `subject`",
            ),
            (&whole.replacen('{', "{\"schema\": 3,", 1), "reads up to 2"),
        ];
        for (text, expected) in table {
            let error = ReadError { file: "x.json".into(), cause: parse(text).unwrap_err() }.to_string();
            assert!(error.starts_with("x.json: ") && error.contains(expected), "{error}");
        }
        let error = Report::read(Path::new("nowhere/x.json")).unwrap_err().to_string();
        assert!(error.starts_with("nowhere/x.json: No such file"), "{error}");
    }

    #[test]
    fn a_spread_turned_round_is_refused() {
        let mut report = Report::read(Path::new(FIRST_CUT)).unwrap();
        report.rows[0].min = report.rows[0].max + 1.0;
        assert!(check(&report).unwrap_err().contains("outside of its spread"));
        let mut report = Report::read(Path::new(FIRST_CUT)).unwrap();
        report.rows[0].latency = vec![(50.0, 2.0), (99.0, 1.0)];
        assert!(check(&report).unwrap_err().contains("does not rise"));
    }
}
