//! What the relay, the packet plane, TLS and HTTP mode are meant to reach, beside what a report has of it.

use super::sheet;
use super::{Better, Report};

/// One figure and its bound.
struct Target {
    what: &'static str,
    case: &'static str,
    metric: &'static str,
    of: Figure,
    bound: Bound,
}

/// Which figure.
enum Figure {
    /// The first subject's own, in this many of its units.
    Own(f64),
    /// The least of its ratios to these: where it is better by more, this one decides.
    LeastRatio(&'static [&'static str]),
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// Those of the suite `packet`, one core, each host receiving on its own.
const PACKET: [Target; 14] = [
    ratio("bulk against the kernel", "bulk-4-steered", "rate", &["kernel"], 1.0),
    ratio("bulk against nginx", "bulk-4-steered", "rate", &["nginx"], 1.2),
    ratio("bulk against HAProxy", "bulk-4-steered", "rate", &["haproxy"], 1.3),
    ratio(
        "requests per CPU-second against the better relay",
        "keepalive-128B-64c-steered",
        "efficiency-saturated",
        &["haproxy", "nginx"],
        2.5,
    ),
    ratio(
        "connections per CPU-second against the better relay",
        "connect-steered",
        "efficiency-saturated",
        &["haproxy", "nginx"],
        2.0,
    ),
    // Of clients without a kernel: those of kernels are the ceiling before the subject is.
    ratio(
        "the same, clients without a kernel",
        "connect-crowd-steered",
        "efficiency-saturated",
        &["haproxy", "nginx"],
        2.0,
    ),
    ratio(
        "connections per CPU-second against the kernel",
        "connect-crowd-steered",
        "efficiency-saturated",
        &["kernel"],
        0.9,
    ),
    own("a packet of 1 M flows, ns", "memory-full-nat-v4-1M", "packet-time", 1.0, Bound::AtMost(45.0)),
    own("a packet of 10 M flows, ns", "memory-full-nat-v4-10M", "packet-time", 1.0, Bound::AtMost(60.0)),
    // A flow is open once its SYN has made it: it has its server, its source port and its entries. `established-rate` counts all three segments.
    own("openings by SYN, M/s, 1 M flows", "memory-full-nat-v4-1M", "created-rate", 1e-6, Bound::AtLeast(3.0)),
    own("openings by SYN, M/s, 10 M flows", "memory-full-nat-v4-10M", "created-rate", 1e-6, Bound::AtLeast(3.0)),
    own("memory of 10 M flows, GB", "memory-full-nat-v4-10M", "memory", 1e-2, Bound::AtMost(1.3)),
    own("added round trip, median, µs", "round-trip-steered", "added-p50", 1.0, Bound::AtMost(30.0)),
    own("at rest, % of a CPU", "idle-cpu", "busy", 1.0, Bound::AtMost(1.0)),
];

/// Who relays, ends TLS and balances HTTP beside us.
const PEERS: &[&str] = &["haproxy", "nginx"];

/// Those of the suite `relay`: one core, work per CPU-second, and the latency of a few connections at one rate for all.
const RELAY: [Target; 10] = [
    per_cpu("requests against the better peer", "keepalive-128B-64c", 1.15),
    per_cpu("requests against the better peer, steered", "keepalive-128B-64c-steered", 1.5),
    per_cpu("connections against the better peer", "connect", 1.2),
    per_cpu("connections against the better peer, steered", "connect-steered", 1.35),
    ratio("bulk at one rate against the better peer", "bulk-4", "efficiency", PEERS, 1.0),
    ratio("median of 4 connections against the better peer", "keepalive-128B-4c", "p50", PEERS, 0.95),
    ratio("median of 4 connections against the better peer, steered", "keepalive-128B-4c-steered", "p50", PEERS, 1.0),
    ratio("slowest 1 % of 4 connections against the better peer", "keepalive-128B-4c", "p99", PEERS, 0.95),
    ratio(
        "slowest 1 % of 4 connections against the better peer, steered",
        "keepalive-128B-4c-steered",
        "p99",
        PEERS,
        1.0,
    ),
    own("memory of an idle connection, KB", "idle-memory", "memory", 1e-3, Bound::AtMost(1.5)),
];

/// Those of the suite `tls`: one core, work per CPU-second.
const TLS: [Target; 14] = [
    per_cpu("full handshakes, P-256, against the better peer", "handshake-p256-full", 2.2),
    per_cpu("full handshakes, RSA-2048, against the better peer", "handshake-rsa2048-full", 1.5),
    per_cpu("resumed handshakes against the better peer", "handshake-p256-resumed", 1.7),
    per_cpu("bulk, TLS ended here, against the better peer", "tls-bulk-terminate", 1.8),
    per_cpu("bulk, encrypted again, against the better peer", "tls-bulk-reencrypt", 1.5),
    per_cpu("requests on kept connections against the better peer", "tls-keepalive-64c", 1.1),
    own("RSA-2048 handshakes in memory, % of the limit", "ceiling", "rsa2048-share", 1.0, Bound::AtLeast(85.0)),
    own("P-256 handshakes in memory, % of the limit", "ceiling", "p256-share", 1.0, Bound::AtLeast(70.0)),
    own("median beside a flood, × of quiet", "isolation", "slowdown-p50", 1.0, Bound::AtMost(2.0)),
    own("90 % beside a flood, × of quiet", "isolation", "slowdown-p90", 1.0, Bound::AtMost(2.0)),
    own("median beside a flood, pool apart, × of quiet", "isolation-pool", "slowdown-p50", 1.0, Bound::AtMost(1.3)),
    own("90 % beside a flood, pool apart, × of quiet", "isolation-pool", "slowdown-p90", 1.0, Bound::AtMost(1.3)),
    own("memory of an idle connection, KB", "tls-idle-memory", "memory", 1e-3, Bound::AtMost(5.0)),
    own("the same, encrypted again, KB", "tls-idle-memory-reencrypt", "memory", 1e-3, Bound::AtMost(10.0)),
];

/// Those of the suite `http`: one core, work per CPU-second, and the slowest 1 % at one rate for all.
const HTTP: [Target; 9] = [
    per_cpu("requests against the better peer", "http-keepalive-64c", 1.2),
    per_cpu("requests against the better peer, steered", "http-keepalive-64c-steered", 1.2),
    per_cpu("connections of one request against the better peer", "http-connect", 1.2),
    per_cpu("connections of one request against the better peer, steered", "http-connect-steered", 1.2),
    per_cpu("responses of 64 KB against the better peer", "http-64KB-64c", 1.2),
    per_cpu("responses of 64 KB against the better peer, steered", "http-64KB-64c-steered", 1.2),
    slowest("slowest 1 % of requests against the better peer", "http-keepalive-64c"),
    slowest("slowest 1 % of connections of one request against the better peer", "http-connect"),
    slowest("slowest 1 % of responses of 64 KB against the better peer", "http-64KB-64c"),
];

const fn slowest(what: &'static str, case: &'static str) -> Target {
    ratio(what, case, "p99", PEERS, 1.0)
}

const fn per_cpu(what: &'static str, case: &'static str, at_least: f64) -> Target {
    ratio(what, case, "efficiency-saturated", PEERS, at_least)
}

const fn own(what: &'static str, case: &'static str, metric: &'static str, scale: f64, bound: Bound) -> Target {
    Target { what, case, metric, of: Figure::Own(scale), bound }
}

const fn ratio(
    what: &'static str,
    case: &'static str,
    metric: &'static str,
    versus: &'static [&'static str],
    at_least: f64,
) -> Target {
    Target { what, case, metric, of: Figure::LeastRatio(versus), bound: Bound::AtLeast(at_least) }
}

impl Target {
    /// What the report has of it; none where it has not been measured, or not beside each of the others.
    fn figure(&self, report: &Report) -> Option<f64> {
        let row_of = |subject: &str| {
            let is_it =
                |row: &&super::Row| (&*row.case, &*row.metric, &*row.subject) == (self.case, self.metric, subject);
            report.rows.iter().find(is_it)
        };
        let row = row_of(report.subject())?;
        let own = row.median;
        let ratio_to = |subject: &str| {
            let other = row_of(subject)?.median;
            Some(match Better::of(self.metric, &row.unit) {
                Better::Higher => own / other,
                Better::Lower => other / own,
            })
        };
        match self.of {
            Figure::Own(scale) => Some(own * scale),
            Figure::LeastRatio(versus) => versus
                .iter()
                .map(|other| ratio_to(other))
                .try_fold(f64::INFINITY, |least, ratio: Option<f64>| Some(least.min(ratio?))),
        }
    }
}

impl Bound {
    fn words(self) -> String {
        match self {
            Bound::AtLeast(least) => format!("at least {}", sheet::figure(least)),
            Bound::AtMost(most) => format!("at most {}", sheet::figure(most)),
        }
    }

    fn verdict(self, figure: f64) -> String {
        let missed = match self {
            Bound::AtLeast(least) => 1.0 - figure / least,
            Bound::AtMost(most) => figure / most - 1.0,
        };
        if missed <= 0.0 { "met".into() } else { format!("missed by {:.0} %", (missed * 100.0).ceil()) }
    }
}

/// One line for each target that the report has a figure of: what, its bound, the figure, whether it is met.
pub(super) fn lines(report: &Report) -> Vec<[String; 4]> {
    let targets: &[Target] = match report.suite.as_str() {
        _ if report.rows.is_empty() => &[],
        "http" => &HTTP,
        "packet" => &PACKET,
        "relay" => &RELAY,
        "tls" => &TLS,
        _ => &[],
    };
    let line = |target: &Target| {
        let figure = target.figure(report)?;
        Some([target.what.into(), target.bound.words(), sheet::figure(figure), target.bound.verdict(figure)])
    };
    targets.iter().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::sample;

    fn report(suite: &str, figures: &[(&str, &str, &str, f64)]) -> Report {
        let template = sample();
        let rows = figures.iter().map(|&(case, metric, subject, median)| super::super::Row {
            case: case.into(),
            metric: metric.into(),
            subject: subject.into(),
            median,
            unit: if metric == "p99" { "µs".into() } else { template.rows[0].unit.clone() },
            ..template.rows[0].clone()
        });
        Report { suite: suite.into(), rows: rows.collect(), ..template.clone() }
    }

    #[test]
    fn what_is_met_and_what_is_missed_is_told_and_what_was_not_measured_is_left_out() {
        let keepalive = "keepalive-128B-64c-steered";
        let report = report(
            "packet",
            &[
                ("memory-full-nat-v4-10M", "memory", "towpath", 113.0),
                ("round-trip-steered", "added-p50", "towpath", 33.1),
                (keepalive, "efficiency-saturated", "towpath", 250.0),
                (keepalive, "efficiency-saturated", "haproxy", 80.0),
                (keepalive, "efficiency-saturated", "nginx", 125.0),
                // Not beside the kernel: no ratio.
                ("bulk-4-steered", "rate", "towpath", 20.0),
                ("idle-cpu", "busy", "nginx", 0.1),
            ],
        );
        let told: Vec<(String, String)> =
            lines(&report).into_iter().map(|[what, _, _, verdict]| (what, verdict)).collect();
        let told: Vec<(&str, &str)> = told.iter().map(|(what, verdict)| (what.as_str(), verdict.as_str())).collect();
        assert_eq!(
            told,
            [
                ("requests per CPU-second against the better relay", "missed by 20 %"),
                ("memory of 10 M flows, GB", "met"),
                ("added round trip, median, µs", "missed by 11 %"),
            ]
        );
    }

    #[test]
    fn of_a_latency_the_least_ratio_is_to_the_quickest() {
        let case = "http-connect";
        let of = |own| {
            report("http", &[(case, "p99", "towpath", own), (case, "p99", "haproxy", 2.0), (case, "p99", "nginx", 3.0)])
        };
        let told = |own| lines(&of(own)).into_iter().map(|[.., figure, verdict]| (figure, verdict)).collect::<Vec<_>>();
        assert_eq!(told(1.0), [("2.00".into(), "met".into())]);
        assert_eq!(told(2.5), [("0.80".into(), "missed by 20 %".into())]);
    }

    #[test]
    fn every_target_is_a_case_of_the_suite() {
        let cases = crate::suite::packet::cases(&crate::suite::Accounting::ALL, &[1_000_000, 10_000_000]);
        assert!(PACKET.iter().all(|target| cases.iter().any(|case| case.name == target.case)));
        let cases = crate::suite::relay::cases(&crate::suite::Accounting::ALL);
        assert!(RELAY.iter().all(|target| cases.iter().any(|case| case.name == target.case)));
        let cases = crate::suite::tls::cases(&crate::suite::Accounting::ALL, crate::suite::tls::POOL_CPUS_MIN);
        assert!(TLS.iter().all(|target| cases.iter().any(|case| case.name == target.case)));
        let cases = crate::suite::http::cases(&crate::suite::Accounting::ALL);
        assert!(HTTP.iter().all(|target| cases.iter().any(|case| case.name == target.case)));
    }
}
