//! The text format of Prometheus (exposition format 0.0.4): `# HELP`, `# TYPE`, then the values of a metric, all together.

use std::collections::HashMap;
use std::fmt::{self, Write as _};

use super::family::{Family, Kind};

/// A value, exact: what is counted in small units is not rounded on its way to seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Count(u64),
    /// So many of which so many are one.
    Parts(u64, u64),
    /// May be below 0.
    Signed(i64),
}

impl From<u64> for Value {
    fn from(count: u64) -> Value {
        Value::Count(count)
    }
}

impl From<u32> for Value {
    fn from(count: u32) -> Value {
        Value::Count(count.into())
    }
}

impl From<usize> for Value {
    fn from(count: usize) -> Value {
        Value::Count(count as u64)
    }
}

impl From<bool> for Value {
    fn from(holds: bool) -> Value {
        Value::Count(holds.into())
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Value::Count(count) | Value::Parts(count, 0 | 1) => count.fmt(f),
            Value::Parts(count, per_unit) => {
                // Per units are powers of ten.
                let digits = per_unit.ilog10() as usize;
                let (whole, rest) = (count / per_unit, count % per_unit);
                if rest == 0 { whole.fmt(f) } else { write!(f, "{whole}.{rest:0digits$}") }
            }
            Value::Signed(value) => value.fmt(f),
        }
    }
}

/// Values by metric, in the order of the list.
pub(super) struct Sheet<'f> {
    families: &'f [Family],
    places: HashMap<&'f str, usize>,
    values: Vec<String>,
}

impl<'f> Sheet<'f> {
    pub(super) fn new(families: &'f [Family]) -> Sheet<'f> {
        let places = families.iter().enumerate().map(|(at, family)| (family.name.as_str(), at)).collect();
        Sheet { families, places, values: vec![String::new(); families.len()] }
    }

    /// One value; `labels` are the values of the metric's labels, in their order.
    pub(super) fn add(&mut self, name: &str, labels: &[&str], value: impl Into<Value>) {
        let Some((family, lines)) = self.lines(name, labels.len()) else { return };
        lines.push_str(name);
        put_labels(lines, family.labels.iter().copied().zip(labels.iter().copied()));
        put(lines, format_args!(" {}\n", value.into()));
    }

    /// One histogram, from counts that are each for themselves. Bounds and sum are in microseconds, what is written in seconds.
    pub(super) fn add_histogram(
        &mut self,
        name: &str,
        labels: &[&str],
        bounds_us: &[u64],
        counts: &[u64],
        sum_us: u64,
    ) {
        let Some((family, lines)) = self.lines(name, labels.len()) else { return };
        let labels = || family.labels.iter().copied().zip(labels.iter().copied());
        let mut count = 0;
        for (at, here) in counts.iter().enumerate() {
            count += here;
            let bound =
                bounds_us.get(at).map_or_else(|| "+Inf".to_owned(), |us| Value::Parts(*us, 1_000_000).trimmed());
            put(lines, format_args!("{name}_bucket"));
            put_labels(lines, labels().chain([("le", bound.as_str())]));
            put(lines, format_args!(" {count}\n"));
        }
        for (part, value) in [("sum", Value::Parts(sum_us, 1_000_000)), ("count", Value::Count(count))] {
            put(lines, format_args!("{name}_{part}"));
            put_labels(lines, labels());
            put(lines, format_args!(" {value}\n"));
        }
    }

    fn lines(&mut self, name: &str, labels: usize) -> Option<(&'f Family, &mut String)> {
        let at = self.places.get(name).copied();
        debug_assert!(at.is_some(), "{name} is not in the list of metrics");
        let (families, at) = (self.families, at?);
        debug_assert_eq!(families[at].labels.len(), labels, "labels of {name}");
        Some((&families[at], &mut self.values[at]))
    }

    /// All of it; metrics without a value are left out.
    pub(super) fn finish(self) -> String {
        let mut text = String::with_capacity(self.values.iter().map(|lines| lines.len() + 256).sum());
        for (family, lines) in self.families.iter().zip(&self.values).filter(|(_, lines)| !lines.is_empty()) {
            let Family { name, kind, help, labels: _ } = family;
            put(&mut text, format_args!("# HELP {name} {}\n# TYPE {name} {}\n", escaped_help(help), kind.word()));
            text.push_str(lines);
        }
        text
    }
}

impl Value {
    /// Without zeros behind the last digit.
    fn trimmed(self) -> String {
        let text = self.to_string();
        if text.contains('.') { text.trim_end_matches('0').to_owned() } else { text }
    }
}

impl Family {
    /// Names that values of it are written by.
    pub fn value_names(&self) -> Vec<String> {
        match self.kind {
            Kind::Counter | Kind::Gauge => vec![self.name.clone()],
            Kind::Histogram => ["bucket", "sum", "count"].iter().map(|part| format!("{}_{part}", self.name)).collect(),
        }
    }
}

fn put_labels<'l>(lines: &mut String, labels: impl Iterator<Item = (&'l str, &'l str)>) {
    let mut open = '{';
    for (name, value) in labels {
        put(lines, format_args!("{open}{name}=\"{}\"", escaped_label(value)));
        open = ',';
    }
    if open == ',' {
        lines.push('}');
    }
}

fn put(text: &mut String, what: fmt::Arguments<'_>) {
    // Writing into memory does not fail.
    let _ = text.write_fmt(what);
}

fn escaped_label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn escaped_help(help: &str) -> String {
    help.replace('\\', "\\\\").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family(name: &str, kind: Kind, labels: &'static [&'static str]) -> Family {
        Family { name: name.to_owned(), kind, labels, help: "Back\\slash.".to_owned() }
    }

    #[test]
    fn values_stand_together_under_their_head_whatever_the_order() {
        let families = [
            family("a", Kind::Gauge, &["x", "y"]),
            family("b_total", Kind::Counter, &[]),
            family("c", Kind::Gauge, &[]),
        ];
        let mut sheet = Sheet::new(&families);
        sheet.add("b_total", &[], Value::Parts(1_500_000, 1_000_000));
        sheet.add("a", &["1", "say \"hi\"\\\n"], 7u64);
        sheet.add("a", &["2", ""], Value::Signed(-3));
        let expected = "# HELP a Back\\\\slash.\n# TYPE a gauge\na{x=\"1\",y=\"say \\\"hi\\\"\\\\\\n\"} 7\na{x=\"2\",y=\"\"} -3\n\
                        # HELP b_total Back\\\\slash.\n# TYPE b_total counter\nb_total 1.500000\n";
        assert_eq!(sheet.finish(), expected);
    }

    #[test]
    fn a_histogram_adds_up_and_ends_in_infinity() {
        let families = [family("h_seconds", Kind::Histogram, &["x"])];
        let mut sheet = Sheet::new(&families);
        sheet.add_histogram("h_seconds", &["v"], &[250, 1_000_000], &[2, 0, 3], 61_000_500);
        let values: Vec<String> = sheet.finish().lines().skip(2).map(str::to_owned).collect();
        assert_eq!(
            values,
            [
                "h_seconds_bucket{x=\"v\",le=\"0.00025\"} 2",
                "h_seconds_bucket{x=\"v\",le=\"1\"} 2",
                "h_seconds_bucket{x=\"v\",le=\"+Inf\"} 5",
                "h_seconds_sum{x=\"v\"} 61.000500",
                "h_seconds_count{x=\"v\"} 5",
            ]
        );
    }
}
