//! The demo as people see it: who serves what while it runs, and the table at the end.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use super::ledger::Sample;
use super::report::Report;
use crate::paint::{Paint, Tint, moves_cursor};
use crate::table::{Cell, Table, counted, thousands};

/// How often the picture is drawn anew on a terminal.
const REDRAW: Duration = Duration::from_millis(200);
/// How often a line is written where nothing can be drawn anew.
const LINE: Duration = Duration::from_secs(1);
/// Widest bar, for all requests of the interval.
const BAR_CELLS: f64 = 40.0;

/// An origin as the relay sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) name: &'static str,
    /// The relay's word: up, down or unknown.
    pub(crate) health: &'static str,
    /// Why; empty where there is no reason.
    pub(crate) reason: String,
    pub(crate) connections: u64,
}

/// How the live picture is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// Drawn anew in place.
    Picture,
    /// One line per second.
    Lines,
}

/// Draws to standard output, or to standard error when that carries JSON.
pub(crate) struct Screen {
    out: Box<dyn Write + Send>,
    style: Style,
    paint: Paint,
    earlier: Sample,
    drawn_lines: usize,
}

impl Screen {
    pub(crate) fn stdout() -> Screen {
        let out = io::stdout();
        let style = if out.is_terminal() && moves_cursor() { Style::Picture } else { Style::Lines };
        Screen { paint: Paint::on(&out), out: Box::new(out), style, earlier: Sample::default(), drawn_lines: 0 }
    }

    pub(crate) fn stderr() -> Screen {
        Screen {
            paint: Paint::Plain,
            out: Box::new(io::stderr()),
            style: Style::Lines,
            earlier: Sample::default(),
            drawn_lines: 0,
        }
    }

    /// Time between two calls of [`Screen::show`].
    pub(crate) fn interval(&self) -> Duration {
        match self.style {
            Style::Picture => REDRAW,
            Style::Lines => LINE,
        }
    }

    /// Text that stays.
    pub(crate) fn say(&mut self, text: &str) -> io::Result<()> {
        self.drawn_lines = 0;
        writeln!(self.out, "{text}")?;
        self.out.flush()
    }

    /// Shows what happened since the last call.
    pub(crate) fn show(&mut self, now: Sample, standings: &[Standing]) -> io::Result<()> {
        let mut text = match self.style {
            Style::Picture => picture(&now, &self.earlier, standings, self.paint),
            Style::Lines => line(&now, &self.earlier, standings),
        };
        if self.style == Style::Picture {
            if self.drawn_lines > 0 {
                // Up to the first line of the last picture, and clear from there on.
                write!(self.out, "\x1b[{}A\x1b[J", self.drawn_lines)?;
            }
            // A narrow terminal cuts long lines: wrapped ones would be more lines than are counted here.
            text = format!("\x1b[?7l{text}\x1b[?7h");
        }
        self.drawn_lines = text.lines().count();
        self.earlier = now;
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// The table at the end.
    pub(crate) fn conclude(&mut self, report: &Report) -> io::Result<()> {
        let text = conclusion(report, self.paint);
        self.say(&text)
    }
}

fn requests_per_second(now: &Sample, earlier: &Sample, origin: usize) -> u64 {
    let seconds = now.seconds_since(earlier);
    if seconds > 0.0 { (now.answered_since(earlier, origin) as f64 / seconds).round() as u64 } else { 0 }
}

fn picture(now: &Sample, earlier: &Sample, standings: &[Standing], paint: Paint) -> String {
    let all: u64 = (0..standings.len()).map(|origin| now.answered_since(earlier, origin)).sum();
    let mut table = Table::new([
        Cell::word("origin"),
        Cell::word("health"),
        Cell::figure("requests/s"),
        Cell::figure("open"),
        Cell::word("share"),
    ]);
    for (origin, standing) in standings.iter().enumerate() {
        let share = if all > 0 { now.answered_since(earlier, origin) as f64 / all as f64 } else { 0.0 };
        let bar = "█".repeat((share * BAR_CELLS).round() as usize);
        let why = if standing.health == "up" { "" } else { &standing.reason };
        table.row([
            Cell::word(standing.name),
            Cell::lamp(standing.health),
            Cell::figure(thousands(requests_per_second(now, earlier, origin))),
            Cell::figure(thousands(standing.connections)),
            Cell::word(if bar.is_empty() { why.to_owned() } else { bar }),
        ]);
    }
    let failed = now.failed_total();
    let failed =
        paint.tint(if failed == 0 { Tint::Green } else { Tint::Red }, &format!("{} failed", thousands(failed)));
    format!(
        "{}  {:.1} s · {} requests · {failed} · {} lost in flight\n",
        table.render(2, paint),
        now.at.as_secs_f64(),
        thousands(now.answered_total()),
        thousands(now.in_flight)
    )
}

fn line(now: &Sample, earlier: &Sample, standings: &[Standing]) -> String {
    let each = standings.iter().enumerate().map(|(origin, standing)| {
        format!("{} {} {} req/s", standing.name, standing.health, thousands(requests_per_second(now, earlier, origin)))
    });
    let each: Vec<String> = each.collect();
    let failed = thousands(now.failed_total());
    format!(
        "{:6.1} s  {}  · {failed} failed · {} lost in flight\n",
        now.at.as_secs_f64(),
        each.join(" · "),
        thousands(now.in_flight)
    )
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn milliseconds(microseconds: u64) -> String {
    format!("{:.2} ms", microseconds as f64 / 1000.0)
}

fn conclusion(report: &Report, paint: Paint) -> String {
    let mut shares = Table::new([
        Cell::word("origin"),
        Cell::figure("requests"),
        Cell::figure("share"),
        Cell::figure("before the stop"),
        Cell::figure("after the stop"),
        Cell::word(""),
    ]);
    for origin in &report.origins {
        shares.row([
            Cell::word(&origin.name),
            Cell::figure(thousands(origin.requests)),
            Cell::figure(percent(origin.share)),
            Cell::figure(thousands(origin.before_stop)),
            Cell::figure(thousands(origin.after_stop)),
            Cell::word(if origin.stopped { "stopped half-way" } else { "" }),
        ]);
    }
    let mut latencies = Table::new([
        Cell::word("latency"),
        Cell::figure("requests"),
        Cell::figure("p50"),
        Cell::figure("p99"),
        Cell::figure("longest"),
    ]);
    for (what, latency) in
        [("on an open connection", &report.latency.keep_alive), ("on a new connection", &report.latency.fresh)]
    {
        latencies.row([
            Cell::word(what),
            Cell::figure(thousands(latency.requests)),
            Cell::figure(milliseconds(latency.p50_us)),
            Cell::figure(milliseconds(latency.p99_us)),
            Cell::figure(milliseconds(latency.max_us)),
        ]);
    }
    let failed = if report.failed == 0 { Tint::Green } else { Tint::Red };
    let mut text = format!(
        "\n{}\n{}\n  {} requests, {}, {} lost in flight on the stopped origin\n",
        shares.render(2, paint),
        latencies.render(2, paint),
        thousands(report.requests),
        paint.tint(failed, &format!("{} failed", thousands(report.failed))),
        thousands(report.lost_in_flight),
    );
    text.push_str(&format!(
        "  {} requests/s · {} conn/s ({}) · {} over {:.1} s\n",
        thousands(report.requests_per_second),
        thousands(report.connections_per_second),
        counted(report.connections as usize, "connection"),
        counted(report.clients, "client"),
        report.seconds
    ));
    for failure in &report.failures {
        text.push_str(&format!(
            "  {} {}: {}\n",
            paint.tint(Tint::Red, "failed"),
            failure.reason,
            thousands(failure.requests)
        ));
    }
    match report.complaints.as_slice() {
        [] => text.push_str(&format!(
            "\n  {}: no request failed; the two others took over when {} stopped.\n",
            paint.tint(Tint::Green, "passed"),
            report.stopped()
        )),
        complaints => {
            for complaint in complaints {
                text.push_str(&format!("\n  {}: {complaint}\n", paint.tint(Tint::Red, "NOT passed")));
            }
        }
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(name: &'static str, health: &'static str, reason: &str) -> Standing {
        Standing { name, health, reason: reason.to_owned(), connections: 7 }
    }

    #[test]
    fn picture_shows_share_of_the_interval_and_the_reason_of_a_down_origin() {
        let earlier = Sample { at: Duration::from_secs(1), answered: vec![100, 100], ..Sample::default() };
        let now = Sample { at: Duration::from_secs(2), answered: vec![1600, 100], in_flight: 2, ..Sample::default() };
        let standings = [standing("ash", "up", "tcp"), standing("birch", "down", "connection refused")];
        let expected = "  origin  health  requests/s  open  share\n\
                        \x20 ash     ● up         1,500     7  ████████████████████████████████████████\n\
                        \x20 birch   ○ down           0     7  connection refused\n\
                        \x20 2.0 s · 1,700 requests · 0 failed · 2 lost in flight\n";
        assert_eq!(picture(&now, &earlier, &standings, Paint::Plain), expected);
        let expected = "   2.0 s  ash up 1,500 req/s · birch down 0 req/s  · 0 failed · 2 lost in flight\n";
        assert_eq!(line(&now, &earlier, &standings), expected);
    }
}
