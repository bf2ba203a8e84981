//! What two readings of the status say together: rates, and the rows of each view.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use towpath_engine::Status;
use towpath_engine::status::{ServerStatus, ServiceState, ServiceStatus};

use crate::paint::Tint;
use crate::status::{bytes, health_word};
use crate::table::thousands;

/// Looks that are kept of each row.
const HISTORY_LOOKS: usize = 120;
/// Of these, those that a row shows.
const SPARK_LOOKS: usize = 16;
const SPARKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The status at some time since we began to look.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub(super) at: Duration,
    pub(super) status: Status,
}

/// What the rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    Services,
    Servers,
    Workers,
    Sources,
    Latencies,
}

impl View {
    pub(super) const ALL: [View; 5] = [View::Services, View::Servers, View::Workers, View::Sources, View::Latencies];

    pub(super) fn word(self) -> &'static str {
        match self {
            View::Services => "services",
            View::Servers => "servers",
            View::Workers => "workers",
            View::Sources => "source ports",
            View::Latencies => "latencies",
        }
    }

    pub(super) fn next(self) -> View {
        match self {
            View::Services => View::Servers,
            View::Servers => View::Workers,
            View::Workers => View::Sources,
            View::Sources => View::Latencies,
            View::Latencies => View::Services,
        }
    }
}

/// One cell: how it reads, and what it is sorted by.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Value {
    pub(super) text: String,
    order: Order,
    pub(super) tint: Option<Tint>,
}

#[derive(Clone, Debug, PartialEq)]
enum Order {
    Amount(f64),
    Word,
}

impl Value {
    fn word(text: impl Into<String>) -> Value {
        Value { text: text.into(), order: Order::Word, tint: None }
    }

    fn amount(amount: f64, text: String) -> Value {
        Value { text, order: Order::Amount(amount), tint: None }
    }

    fn count(count: u64) -> Value {
        Value::amount(count as f64, thousands(count))
    }

    /// A rate; where there is nothing to compare with, a dash.
    fn rate(rate: Option<f64>) -> Value {
        match rate {
            Some(rate) => Value::amount(rate, thousands(rate.round() as u64)),
            None => Value::amount(-1.0, "-".to_owned()),
        }
    }

    fn throughput(rate: Option<f64>) -> Value {
        match rate {
            Some(rate) => Value::amount(rate, format!("{}/s", bytes(rate.round() as u64))),
            None => Value::amount(-1.0, "-".to_owned()),
        }
    }

    fn percent(percent: Option<f64>) -> Value {
        let tint = match percent {
            Some(percent) if percent >= 95.0 => Some(Tint::Red),
            Some(percent) if percent >= 80.0 => Some(Tint::Yellow),
            _ => None,
        };
        let value = match percent {
            Some(percent) => Value::amount(percent, format!("{percent:.1} %")),
            None => Value::amount(-1.0, "-".to_owned()),
        };
        Value { tint, ..value }
    }

    /// A time; where nothing was measured, a dash.
    fn time(us: Option<u64>) -> Value {
        match us {
            Some(us) => Value::amount(us as f64, crate::status::turn(us)),
            None => Value::amount(-1.0, "-".to_owned()),
        }
    }

    fn tinted(self, tint: Tint) -> Value {
        Value { tint: Some(tint), ..self }
    }

    pub(super) fn is_figure(&self) -> bool {
        matches!(self.order, Order::Amount(_))
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    /// What names it; its history is under that.
    key: String,
    pub(super) values: Vec<Value>,
}

/// What a view shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sheet {
    pub(super) columns: &'static [&'static str],
    pub(super) rows: Vec<Line>,
    /// Rows that the filter has taken away.
    pub(super) hidden: usize,
}

impl Sheet {
    /// Only rows with this text, in whatever case.
    pub(super) fn keep(&mut self, text: &str) {
        let text = text.to_lowercase();
        let all = self.rows.len();
        let has = |line: &Line| line.values.iter().any(|value| value.text.to_lowercase().contains(&text));
        self.rows.retain(|line| text.is_empty() || has(line));
        self.hidden = all - self.rows.len();
    }

    /// Words from A, figures from the largest: what is looked for is at the top.
    pub(super) fn sort(&mut self, column: Option<usize>, is_reversed: bool) {
        if let Some(column) = column {
            self.rows.sort_by(|a, b| {
                let (Some(a), Some(b)) = (a.values.get(column), b.values.get(column)) else {
                    return std::cmp::Ordering::Equal;
                };
                match (&a.order, &b.order) {
                    (Order::Amount(a), Order::Amount(b)) => b.total_cmp(a),
                    _ => a.text.cmp(&b.text),
                }
            });
        }
        if is_reversed {
            self.rows.reverse();
        }
    }

    #[cfg(test)]
    pub(super) fn keys(&self) -> Vec<String> {
        self.rows.iter().map(|line| line.key.clone()).collect()
    }
}

/// Rates of each row at the latest looks.
#[derive(Debug, Default)]
pub(super) struct History {
    rows: BTreeMap<String, VecDeque<u64>>,
}

impl History {
    /// New connections a second: of everything (under the empty key), of services and of servers; busy permille of workers.
    pub(super) fn note(&mut self, earlier: &Reading, now: &Reading) {
        let mut rates: BTreeMap<String, u64> = BTreeMap::new();
        for service in &now.status.services {
            let before = service_of(&earlier.status, &service.name);
            let rate = per_second(earlier, now, before.map(|before| before.accepted), service.accepted);
            let rate = rate.unwrap_or_default().round() as u64;
            *rates.entry(String::new()).or_default() += rate;
            rates.insert(service.name.clone(), rate);
        }
        // Rows that are gone are forgotten, so that reloads without end do not fill us.
        self.rows.retain(|key, _| rates.contains_key(key));
        for (key, rate) in rates {
            let looks = self.rows.entry(key).or_default();
            if looks.len() == HISTORY_LOOKS {
                looks.pop_front();
            }
            looks.push_back(rate);
        }
    }

    /// The latest looks of a row, oldest first.
    pub(super) fn of(&self, key: &str) -> Vec<u64> {
        self.rows.get(key).map(|looks| looks.iter().copied().collect()).unwrap_or_default()
    }
}

/// How a sum has grown per second; `None` where there is nothing to compare with.
fn per_second(earlier: &Reading, now: &Reading, before: Option<u64>, after: u64) -> Option<f64> {
    let seconds = now.at.checked_sub(earlier.at)?.as_secs_f64();
    // Not below zero: whoever was configured anew counts anew.
    before.filter(|_| seconds > 0.0).map(|before| after.saturating_sub(before) as f64 / seconds)
}

fn service_of<'s>(status: &'s Status, name: &str) -> Option<&'s ServiceStatus> {
    status.services.iter().find(|service| service.name == name)
}

/// New connections a second and bytes a second in both directions, over all services.
pub(super) fn totals(earlier: Option<&Reading>, now: &Reading) -> [Option<f64>; 3] {
    let sums = |status: &Status| {
        status.services.iter().fold([0; 3], |[accepted, from, to], service| {
            [accepted + service.accepted, from + service.bytes_from_client, to + service.bytes_to_client]
        })
    };
    let after = sums(&now.status);
    let Some(earlier) = earlier else { return [None; 3] };
    let before = sums(&earlier.status);
    [0, 1, 2].map(|of| per_second(earlier, now, Some(before[of]), after[of]))
}

/// The rows of a view in the order of the daemon.
pub(super) fn sheet(view: View, earlier: Option<&Reading>, now: &Reading, history: &History) -> Sheet {
    let (columns, rows): (&'static [&'static str], Vec<Line>) = match view {
        View::Services => (
            &["service", "state", "conn/s", "open", "in", "out", "unserved/s", "servers", "lately"],
            now.status.services.iter().map(|service| service_line(service, earlier, now, history)).collect(),
        ),
        View::Servers => (
            &["server", "address", "admin", "health", "opened/s", "open", "max", "weight", "reason"],
            now.status
                .services
                .iter()
                .flat_map(|service| service.servers.iter().map(move |server| (service, server)))
                .map(|(service, server)| server_line(service, server, earlier, now))
                .collect(),
        ),
        View::Workers => (
            &["worker", "CPU", "state", "busy", "turns/s", "open", "flows", "frames/s", "drops/s", "longest turn"],
            worker_lines(earlier, now),
        ),
        View::Latencies => (
            &["service", "what", "per second", "p50", "p90", "p99", "p99 since the start"],
            now.status.services.iter().flat_map(|service| latency_lines(service, earlier, now)).collect(),
        ),
        View::Sources => (
            &["address", "server", "protocol", "leased", "of", "full", "services"],
            now.status.source_ports.iter().map(source_line).collect(),
        ),
    };
    Sheet { columns, rows, hidden: 0 }
}

fn service_line(service: &ServiceStatus, earlier: Option<&Reading>, now: &Reading, history: &History) -> Line {
    let before = earlier.and_then(|earlier| service_of(&earlier.status, &service.name));
    let rate = |of: fn(&ServiceStatus) -> u64| {
        earlier.and_then(|earlier| per_second(earlier, now, before.map(of), of(service)))
    };
    let state = match service.state {
        ServiceState::Down => Value::word("○ down").tinted(Tint::Red),
        ServiceState::Degraded => Value::word("◐ degraded").tinted(Tint::Yellow),
        ServiceState::Up => Value::word("● up").tinted(Tint::Green),
    };
    let up = service.servers.iter().filter(|server| health_word(server.health) == "up").count();
    // Who came and got no server.
    let unserved = rate(|service| service.accepted.saturating_sub(service.opened));
    Line {
        key: service.name.clone(),
        values: vec![
            Value::word(&service.name),
            state,
            Value::rate(rate(|service| service.accepted)),
            Value::count(service.connections.into()),
            Value::throughput(rate(|service| service.bytes_from_client)),
            Value::throughput(rate(|service| service.bytes_to_client)),
            Value::rate(unserved),
            Value::amount(up as f64, format!("{up}/{}", service.servers.len())),
            Value::word(sparks(&history.of(&service.name), SPARK_LOOKS)),
        ],
    }
}

fn server_line(service: &ServiceStatus, server: &ServerStatus, earlier: Option<&Reading>, now: &Reading) -> Line {
    let before = earlier.and_then(|earlier| {
        let service = service_of(&earlier.status, &service.name)?;
        service.servers.iter().find(|known| known.name == server.name && known.address == server.address)
    });
    let opened =
        earlier.and_then(|earlier| per_second(earlier, now, before.map(|before| before.opened), server.opened));
    let address = match server.port {
        Some(port) => std::net::SocketAddr::new(server.address, port).to_string(),
        None => server.address.to_string(),
    };
    let health = match health_word(server.health) {
        "up" => Value::word("● up").tinted(Tint::Green),
        "down" => Value::word("○ down").tinted(Tint::Red),
        other => Value::word(format!("◐ {other}")).tinted(Tint::Yellow),
    };
    let admin = match server.admin.as_str() {
        "ready" => Value::word("ready"),
        other => Value::word(other).tinted(Tint::Yellow),
    };
    let name = format!("{}/{}", service.name, server.name);
    Line {
        key: name.clone(),
        values: vec![
            Value::word(name),
            Value::word(address),
            admin,
            health,
            Value::rate(opened),
            Value::count(server.connections.into()),
            match server.connections_max {
                0 => Value::amount(f64::MAX, "-".to_owned()),
                max => Value::count(max.into()),
            },
            Value::count(server.weight.into()),
            Value::word(&server.reason),
        ],
    }
}

fn worker_lines(earlier: Option<&Reading>, now: &Reading) -> Vec<Line> {
    let lines = now.status.workers.iter().map(|worker| {
        let before = earlier.and_then(|earlier| earlier.status.workers.iter().find(|known| known.id == worker.id));
        let counter = |of: &BTreeMap<String, u64>, label: &str| of.get(label).copied().unwrap_or(0);
        let counted = |label: &str| {
            let earlier = earlier?;
            per_second(
                earlier,
                now,
                before.map(|before| counter(&before.counters, label)),
                counter(&worker.counters, label),
            )
        };
        let sum = |of: &BTreeMap<String, u64>| of.values().sum::<u64>();
        let frames = earlier.and_then(|earlier| {
            let before = before.map(|before| counter(&before.packets, "frames"));
            per_second(earlier, now, before, counter(&worker.packets, "frames"))
        });
        let drops = earlier
            .and_then(|earlier| per_second(earlier, now, before.map(|before| sum(&before.drops)), sum(&worker.drops)));
        // Microseconds a second are millionths: 10,000 of them are a percent.
        let busy = worker.counters.contains_key("busy_microseconds").then(|| counted("busy_microseconds")).flatten();
        let longest = counter(&worker.counters, "breath_max_microseconds");
        let dropped = drops.is_some_and(|drops| drops > 0.0);
        Line {
            key: format!("worker {}", worker.id),
            values: vec![
                Value::count(worker.id.into()),
                Value::count(worker.cpu as u64),
                match worker.state.as_str() {
                    "serving" => Value::word("serving"),
                    other => Value::word(other).tinted(Tint::Yellow),
                },
                Value::percent(busy.map(|busy| (busy / 10_000.0).min(100.0))),
                Value::rate(counted("breaths")),
                Value::count(worker.sessions.into()),
                Value::count(worker.flows.into()),
                Value::rate(frames),
                if dropped { Value::rate(drops).tinted(Tint::Yellow) } else { Value::rate(drops) },
                Value::amount(longest as f64, crate::status::turn(longest)),
            ],
        }
    });
    lines.collect()
}

/// What is measured of a service, in the order in which a connection meets it, with its words.
const LATENCIES: [(&str, &str); 4] =
    [("handshake", "TLS handshake"), ("queue", "queue"), ("connect", "connect"), ("first_byte", "first byte")];

/// How long things took between the two looks, and since the start; what nobody has waited for is left out.
fn latency_lines(service: &ServiceStatus, earlier: Option<&Reading>, now: &Reading) -> Vec<Line> {
    let before = earlier.and_then(|earlier| service_of(&earlier.status, &service.name));
    let line = |(label, word): (&str, &str)| {
        let all = service.latencies.get(label).filter(|all| all.count > 0)?;
        let before = before.map(|before| before.latencies.get(label).cloned().unwrap_or_default());
        let rate =
            earlier.and_then(|earlier| per_second(earlier, now, before.as_ref().map(|before| before.count), all.count));
        let lately = before.map_or_else(|| all.clone(), |before| all.since(&before));
        Some(Line {
            key: format!("{}/{label}", service.name),
            values: vec![
                Value::word(&service.name),
                Value::word(word),
                Value::rate(rate),
                Value::time(lately.p50_us),
                Value::time(lately.p90_us),
                Value::time(lately.p99_us),
                Value::time(all.p99_us),
            ],
        })
    };
    LATENCIES.into_iter().filter_map(line).collect()
}

fn source_line(fill: &towpath_engine::status::SourcePortsStatus) -> Line {
    let server = match fill.destination.ip().is_unspecified() {
        true => "any outside".to_owned(),
        false => fill.destination.to_string(),
    };
    Line {
        key: format!("{} {} {server}", fill.protocol, fill.address),
        values: vec![
            Value::word(fill.address.to_string()),
            Value::word(server),
            Value::word(&fill.protocol),
            Value::count(fill.leased.into()),
            Value::count(fill.capacity.into()),
            Value::percent(Some(fill.percent)),
            Value::word(fill.services.join(", ")),
        ],
    }
}

/// The latest looks as bars, each against the highest of them.
pub(super) fn sparks(looks: &[u64], columns: usize) -> String {
    let shown = &looks[looks.len().saturating_sub(columns)..];
    let highest = shown.iter().copied().max().unwrap_or(0).max(1);
    let bar = |&look: &u64| {
        // Anything is seen: only nothing is the lowest bar.
        let step = if look == 0 { 0 } else { 1 + (look * (SPARKS.len() as u64 - 2) / highest) as usize };
        SPARKS.get(step).copied().unwrap_or('█')
    };
    shown.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::page;

    fn readings(change: impl Fn(&mut Status)) -> (Reading, Reading) {
        let earlier = Reading { at: Duration::from_secs(10), status: page() };
        let mut status = page();
        change(&mut status);
        (earlier, Reading { at: Duration::from_secs(12), status })
    }

    fn texts(sheet: &Sheet, row: usize) -> Vec<&str> {
        sheet.rows[row].values.iter().map(|value| value.text.as_str()).collect()
    }

    #[test]
    fn rates_are_per_second_of_the_time_between_two_looks() {
        let (earlier, now) = readings(|status| {
            let service = &mut status.services[0];
            service.accepted += 3000;
            service.opened += 2990;
            service.bytes_to_client += 4_000_000;
            service.servers[0].opened += 2990;
            status.workers[0].counters.insert("busy_microseconds".to_owned(), 1_700_000);
        });
        let mut history = History::default();
        history.note(&earlier, &now);
        let services = sheet(View::Services, Some(&earlier), &now, &history);
        let expected = ["front-end", "◐ degraded", "1,500", "1,200", "0 B/s", "2.0 MB/s", "5", "1/2", "█"];
        assert_eq!(texts(&services, 0), expected);
        let servers = sheet(View::Servers, Some(&earlier), &now, &history);
        assert_eq!(texts(&servers, 0)[4], "1,495");
        assert_eq!(totals(Some(&earlier), &now).map(Option::unwrap), [1500.0, 0.0, 2_000_000.0]);

        // Of a worker that has just appeared there is nothing to subtract, nor at the first look.
        let workers = sheet(View::Workers, Some(&earlier), &now, &history);
        assert_eq!(texts(&workers, 0)[3], "85.0 %");
        assert_eq!(workers.rows[0].values[3].tint, Some(Tint::Yellow));
        assert_eq!(texts(&sheet(View::Services, None, &now, &history), 0)[2], "-");
        assert_eq!(totals(None, &now), [None; 3]);
    }

    #[test]
    fn latencies_are_those_between_two_looks() {
        let measured = |ranges: &[(usize, u64)]| {
            let mut histogram = towpath_engine::status::Histogram::default();
            ranges.iter().for_each(|&(range, count)| histogram.counts[range] = count);
            towpath_engine::status::LatencyStatus::from(histogram)
        };
        let (mut earlier, mut now) = readings(|_| {});
        let put = |reading: &mut Reading, latency| {
            reading.status.services[0].latencies.insert("connect".to_owned(), latency);
        };
        // A hundred fast ones before, ten slow ones since.
        put(&mut earlier, measured(&[(0, 100)]));
        put(&mut now, measured(&[(0, 100), (5, 10)]));
        let latencies = sheet(View::Latencies, Some(&earlier), &now, &History::default());
        assert_eq!(latencies.keys(), ["front-end/connect"], "what was never measured has no row");
        let row = texts(&latencies, 0);
        assert_eq!(row[..3], ["front-end", "connect", "5"]);
        let amount = |column: usize| match latencies.rows[0].values[column].order {
            Order::Amount(amount) => amount,
            Order::Word => panic!("{row:?}"),
        };
        let (low, high) = (towpath_engine::status::BOUNDS_US[4] as f64, towpath_engine::status::BOUNDS_US[5] as f64);
        for column in 3..6 {
            assert!(amount(column) > low && amount(column) <= high, "{row:?}: nothing of what was before");
        }
        // Where nothing has come since there is nothing to say, but of the whole.
        put(&mut earlier, measured(&[(0, 100), (5, 10)]));
        let latencies = sheet(View::Latencies, Some(&earlier), &now, &History::default());
        assert_eq!(texts(&latencies, 0)[2..6], ["0", "-", "-", "-"]);
        assert_ne!(texts(&latencies, 0)[6], "-");
        // Of another process.
        put(&mut earlier, measured(&[(0, 900)]));
        let latencies = sheet(View::Latencies, Some(&earlier), &now, &History::default());
        assert_ne!(texts(&latencies, 0)[3], "-");
    }

    #[test]
    fn counters_that_begin_anew_are_no_rate_below_zero() {
        let (earlier, now) = readings(|status| status.services[0].accepted = 7);
        let services = sheet(View::Services, Some(&earlier), &now, &History::default());
        assert_eq!(texts(&services, 0)[2], "0");
    }

    #[test]
    fn rows_that_are_gone_are_forgotten_and_no_row_grows_for_ever() {
        let (earlier, now) = readings(|status| status.services[0].accepted += 2);
        let mut history = History::default();
        for _ in 0..HISTORY_LOOKS + 5 {
            history.note(&earlier, &now);
        }
        assert_eq!(history.of("front-end"), vec![1; HISTORY_LOOKS]);
        let (earlier, now) = readings(|status| status.services[0].name = "other".to_owned());
        history.note(&earlier, &now);
        assert_eq!((history.of("front-end").len(), history.of("other").len()), (0, 1));
    }

    #[test]
    fn bars_are_seen_wherever_there_is_anything() {
        assert_eq!(sparks(&[0, 1, 1000], 8), "▁▂█");
        assert_eq!(sparks(&[5, 0, 0], 2), "▁▁");
        assert_eq!(sparks(&[], 8), "");
    }

    #[test]
    fn the_fullest_source_addresses_stand_out_and_come_first() {
        let (earlier, now) = readings(|status| {
            let full = status.source_ports[0].clone();
            status.source_ports.push(towpath_engine::status::SourcePortsStatus { percent: 96.0, ..full });
        });
        let mut sources = sheet(View::Sources, Some(&earlier), &now, &History::default());
        sources.sort(Some(5), false);
        assert_eq!(texts(&sources, 0)[5], "96.0 %");
        assert_eq!(sources.rows[0].values[5].tint, Some(Tint::Red));
    }
}
