//! The text format of Prometheus (exposition format 0.0.4), read as strictly as anybody may: what a collector might forgive is a fault here.

use std::collections::{BTreeMap, BTreeSet};

/// One metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Exposed {
    /// Its name.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// What it means.
    pub help: String,
    /// Its values.
    pub values: Vec<Sample>,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric's name, of a histogram with what it is.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

/// All metrics of a text, by name.
#[derive(Clone, Debug, Default)]
pub struct Exposition {
    /// In their order.
    pub metrics: Vec<Exposed>,
}

impl Exposition {
    /// The metric of that name.
    pub fn find(&self, name: &str) -> Option<&Exposed> {
        self.metrics.iter().find(|metric| metric.name == name)
    }

    /// The one value of a metric, or of a part of a histogram, with these labels among its own.
    ///
    /// # Panics
    ///
    /// Where there is none, or are several.
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|own| own == value))
        };
        let all: Vec<&Sample> = self.metrics.iter().flat_map(|metric| &metric.values).filter(fits).collect();
        match all.as_slice() {
            [one] => one.value,
            other => panic!("{name} {labels:?}: {other:?}"),
        }
    }

    /// Reads a text; the error names the line.
    pub fn read(text: &str) -> Result<Exposition, String> {
        if !text.is_empty() && !text.ends_with('\n') {
            return Err("the last line has no end".to_owned());
        }
        let mut reader = Reader::default();
        for (number, line) in (1..).zip(text.split_terminator('\n')) {
            reader.take(line).map_err(|error| format!("line {number}: {error}: {line}"))?;
        }
        reader.finish_metric()?;
        Ok(Exposition { metrics: reader.metrics })
    }
}

#[derive(Default)]
struct Reader {
    metrics: Vec<Exposed>,
    /// Its help was read, its type is still to come.
    announced: Option<(String, String)>,
    names: BTreeSet<String>,
    series: BTreeSet<(String, BTreeMap<String, String>)>,
}

impl Reader {
    fn take(&mut self, line: &str) -> Result<(), String> {
        if let Some(help) = line.strip_prefix("# HELP ") {
            self.finish_metric()?;
            let (name, help) = help.split_once(' ').ok_or("no help")?;
            if !is_name(name) || help.trim().is_empty() {
                return Err("no name, or no help".to_owned());
            }
            if !self.names.insert(name.to_owned()) {
                return Err("its values do not stand together".to_owned());
            }
            self.announced = Some((name.to_owned(), unescape(help, &['\\', 'n'])?));
            return Ok(());
        }
        if let Some(of) = line.strip_prefix("# TYPE ") {
            let (name, kind) = of.split_once(' ').ok_or("no type")?;
            let (announced, help) = self.announced.take().ok_or("a type without help in front")?;
            if announced != name || !["counter", "gauge", "histogram"].contains(&kind) {
                return Err("another name, or no type".to_owned());
            }
            if (kind == "counter") != name.ends_with("_total") {
                return Err("counters, and only these, end in _total".to_owned());
            }
            let exposed = Exposed { name: name.to_owned(), kind: kind.to_owned(), help, values: Vec::new() };
            self.metrics.push(exposed);
            return Ok(());
        }
        if line.starts_with('#') || line.trim().is_empty() {
            return Err("neither help, nor type, nor a value".to_owned());
        }
        let sample = sample(line)?;
        let metric = self.metrics.last_mut().filter(|_| self.announced.is_none()).ok_or("a value without a type")?;
        let part = sample.name.strip_prefix(metric.name.as_str()).ok_or("the value of another metric")?;
        let fits = match metric.kind.as_str() {
            "histogram" => ["_bucket", "_sum", "_count"].contains(&part),
            _ => part.is_empty(),
        };
        if !fits || (metric.kind != "gauge" && sample.value < 0.0) {
            return Err("no value of its kind".to_owned());
        }
        if !self.series.insert((sample.name.clone(), sample.labels.clone())) {
            return Err("twice".to_owned());
        }
        metric.values.push(sample);
        Ok(())
    }

    /// What can be said once all values of a metric are there.
    fn finish_metric(&mut self) -> Result<(), String> {
        if let Some((name, _)) = &self.announced {
            return Err(format!("{name} has no type"));
        }
        let Some(metric) = self.metrics.last() else { return Ok(()) };
        if metric.values.is_empty() {
            return Err(format!("{} has no value", metric.name));
        }
        let names = |sample: &Sample| sample.labels.keys().filter(|name| *name != "le").cloned().collect::<Vec<_>>();
        if metric.values.iter().any(|sample| names(sample) != names(&metric.values[0])) {
            return Err(format!("{} has values with other labels", metric.name));
        }
        if metric.kind != "histogram" {
            return Ok(());
        }
        let mut by_labels: BTreeMap<BTreeMap<String, String>, Vec<&Sample>> = BTreeMap::new();
        for sample in &metric.values {
            let mut labels = sample.labels.clone();
            labels.remove("le");
            by_labels.entry(labels).or_default().push(sample);
        }
        by_labels.values().try_for_each(|samples| histogram(&metric.name, samples))
    }
}

/// Buckets rise, in bounds and in counts, and the last has all.
fn histogram(name: &str, samples: &[&Sample]) -> Result<(), String> {
    let of = |part: &str| samples.iter().filter(|sample| sample.name == format!("{name}_{part}")).collect::<Vec<_>>();
    let (buckets, sums, counts) = (of("bucket"), of("sum"), of("count"));
    let (&[_], &[count]) = (sums.as_slice(), counts.as_slice()) else {
        return Err(format!("{name} needs one sum and one count"));
    };
    let bound = |sample: &Sample| number(sample.labels.get("le").map_or("", String::as_str));
    let bounds = buckets.iter().map(|sample| bound(sample)).collect::<Result<Vec<f64>, String>>()?;
    let rises = bounds.windows(2).all(|pair| pair[0] < pair[1])
        && buckets.windows(2).all(|pair| pair[0].value <= pair[1].value);
    let is_whole =
        bounds.last() == Some(&f64::INFINITY) && buckets.last().is_some_and(|last| last.value == count.value);
    if rises && is_whole { Ok(()) } else { Err(format!("{name}: buckets do not add up")) }
}

fn sample(line: &str) -> Result<Sample, String> {
    let (series, value) = line.rsplit_once(' ').ok_or("no value")?;
    let value = number(value)?;
    let (name, labels) = match series.split_once('{') {
        None => (series, BTreeMap::new()),
        Some((name, rest)) => (name, labels(rest.strip_suffix('}').ok_or("labels without an end")?)?),
    };
    if !is_name(name) {
        return Err("no name".to_owned());
    }
    Ok(Sample { name: name.to_owned(), labels, value })
}

fn labels(mut text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut labels = BTreeMap::new();
    loop {
        let (name, rest) = text.split_once("=\"").ok_or("a label without a value")?;
        if !is_name(name) || name.contains(':') || name.starts_with("__") {
            return Err(format!("no label: {name}"));
        }
        let end = end_of_quotes(rest).ok_or("quotes without an end")?;
        let value = unescape(&rest[..end], &['\\', 'n', '"'])?;
        if labels.insert(name.to_owned(), value).is_some() {
            return Err(format!("{name} twice"));
        }
        match rest[end + 1..].strip_prefix(',') {
            Some(more) => text = more,
            None if rest[end + 1..].is_empty() => return Ok(labels),
            None => return Err("something behind a label".to_owned()),
        }
    }
}

fn end_of_quotes(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, character)| {
        let is_end = character == '"' && !escaped;
        escaped = character == '\\' && !escaped;
        is_end.then_some(at)
    })
}

fn unescape(text: &str, allowed: &[char]) -> Result<String, String> {
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        plain.push(match character {
            '\\' => match characters.next() {
                Some('n') => '\n',
                Some(other) if allowed.contains(&other) => other,
                _ => return Err("an escape that is none".to_owned()),
            },
            other => other,
        });
    }
    Ok(plain)
}

fn number(text: &str) -> Result<f64, String> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        _ if text.bytes().all(|byte| byte.is_ascii_digit() || b"-.".contains(&byte)) => {
            text.parse().map_err(|_| format!("no number: {text}"))
        }
        _ => Err(format!("no number: {text}")),
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|first: char| first.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP a_total One.\n# TYPE a_total counter\na_total{x=\"say \\\"hi\\\"\\n\",y=\"\"} 1.5\na_total{x=\"b\",y=\"\"} 2\n\
                        # HELP h Two.\n# TYPE h histogram\nh_bucket{le=\"0.5\"} 1\nh_bucket{le=\"+Inf\"} 3\nh_sum 7\nh_count 3\n";

    #[test]
    fn values_are_found_by_their_labels() {
        let read = Exposition::read(GOOD).expect("good");
        assert_eq!(read.value("a_total", &[("x", "say \"hi\"\n")]), 1.5);
        assert_eq!(read.value("h_bucket", &[("le", "+Inf")]), 3.0);
        assert_eq!(read.find("h").map(|metric| metric.values.len()), Some(4));
    }

    #[test]
    fn every_fault_is_found() {
        for (from, to) in [
            ("# TYPE a_total counter\n", ""),
            ("# HELP h Two.\n", ""),
            ("a_total{x=\"b\",y=\"\"} 2\n", "a_total{x=\"say \\\"hi\\\"\\n\",y=\"\"} 2\n"),
            ("a_total{x=\"b\",y=\"\"} 2\n", "a_total{x=\"b\"} 2\n"),
            ("a_total{x=\"b\",y=\"\"} 2", "a_total{x=\"b\",y=\"\"} -2"),
            ("y=\"\"} 2", "y=\"\"} 2e1"),
            ("y=\"\"} 2", "y=\"\" } 2"),
            ("\\n\"", "\\t\""),
            ("h_bucket{le=\"0.5\"} 1", "h_bucket{le=\"0.5\"} 4"),
            ("h_bucket{le=\"+Inf\"} 3\n", ""),
            ("h_count 3\n", "h_count 2\n"),
            ("h_sum 7\n", ""),
            ("h_sum 7\n", "h_total 7\n"),
            ("a_total counter", "a_total gauge"),
            ("h_count 3\n", "h_count 3"),
            ("h_count 3\n", "h_count 3\n\n"),
            ("h_count 3\n", "h_count 3\n# HELP a_total Again.\n# TYPE a_total counter\na_total{x=\"c\",y=\"\"} 1\n"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            assert!(Exposition::read(&GOOD.replacen(from, to, 1)).is_err(), "{from} → {to}");
        }
    }
}
