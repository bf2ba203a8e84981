//! `towpath events`: what changed lately, and what changes next.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use towpath_engine::events::{Event, EventKind};
use towpath_engine::{Endpoint, EventsPage, FetchError, get};

use crate::cli::Exit;
use crate::daemon::Daemon;
use crate::paint::{Paint, Tint};
use crate::server::print_json;
use crate::status::exit_of;

pub(crate) const EVENTS_HELP: &str = "\
Examples:
  towpath events                        the latest, oldest first
  towpath events --follow               and what happens from now on, until Ctrl-C
  towpath events --kind health --kind drain
  towpath events --follow --json        an object a line

Exit codes: 0 ok · 1 failed · 2 usage · 5 daemon not reachable · 7 no answer in time";

/// An answer to who follows comes after so long, at most.
const WAIT_S: u64 = 20;
/// An answer must have come by then.
const LIMIT: Duration = Duration::from_secs(WAIT_S + 10);
/// A daemon that restarts is waited for so long between two tries.
const RETRY: Duration = Duration::from_secs(1);

/// Arguments of `towpath events`.
#[derive(Args, Debug)]
pub(crate) struct EventsArguments {
    /// Go on with what happens from now on
    #[arg(long, short)]
    follow: bool,
    /// Show the latest N
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=256))]
    limit: u16,
    /// Only events of this kind, as in `notify.events`; may be given several times
    #[arg(long, value_name = "KIND", value_parser = kind)]
    kind: Vec<EventKind>,
    #[command(flatten)]
    daemon: Daemon,
}

/// Asks and prints.
pub(crate) fn events(arguments: &EventsArguments) -> Result<Exit> {
    let EventsArguments { follow, limit, kind, daemon } = arguments;
    let at = daemon.endpoint()?;
    let wanted = |event: &Event| kind.is_empty() || kind.contains(&event.kind);
    // Of all that are kept, so that the latest of a kind are found.
    let mut page: EventsPage = match get(&at, "/v1/events", LIMIT) {
        Ok(page) => page,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(exit_of(&error));
        }
    };
    page.events.retain(|event| wanted(event));
    let skip = page.events.len().saturating_sub(usize::from(*limit));
    page.events.drain(..skip);
    if !follow {
        match daemon.json {
            true => print_json(&page)?,
            false => print(&page.events)?,
        }
        return Ok(Exit::Done);
    }
    let mut is_away = false;
    loop {
        match daemon.json {
            true => print_lines(&page.events)?,
            false => print(&page.events)?,
        }
        if page.missed > 0 {
            eprintln!("warning: {} events came faster than they were read, and are not kept", page.missed);
        }
        page = loop {
            match next(&at, &page.cursor) {
                Ok(page) => break page,
                Err(
                    error @ (FetchError::NotReachable { .. }
                    | FetchError::TimedOut { .. }
                    | FetchError::Malformed { .. }),
                ) => {
                    if !is_away {
                        eprintln!("warning: {error}; trying again");
                    }
                    is_away = true;
                    thread::sleep(RETRY);
                }
                Err(error) => {
                    eprintln!("error: {error}");
                    return Ok(exit_of(&error));
                }
            }
        };
        is_away = false;
        page.events.retain(|event| wanted(event));
    }
}

fn next(at: &Endpoint, cursor: &str) -> Result<EventsPage, FetchError> {
    get(at, &format!("/v1/events?since={cursor}&wait={WAIT_S}"), LIMIT)
}

fn print(events: &[Event]) -> io::Result<()> {
    let paint = Paint::on(&io::stdout());
    let mut out = io::stdout().lock();
    for event in events {
        writeln!(out, "{}", line(event, paint))?;
    }
    out.flush()
}

fn print_lines(events: &[Event]) -> Result<()> {
    let mut out = io::stdout().lock();
    for event in events {
        serde_json::to_writer(&mut out, event)?;
        writeln!(out)?;
    }
    out.flush()?;
    Ok(())
}

/// `2026-11-22 17:50:41Z  health  server FE-1 of web: up → down: …`
fn line(event: &Event, paint: Paint) -> String {
    let when = paint.tint(Tint::Dim, &utc(event.unix_ms));
    format!("{when}  {:<13}  {}", event.kind.word(), event.line())
}

/// A time of UTC to the second, as F-MG-02 has it (days to a civil date: Howard Hinnant, chrono-compatible low-level date algorithms).
fn utc(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Days since 1 March 0000; an era is 400 years.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

fn kind(word: &str) -> Result<EventKind, String> {
    EventKind::ALL.into_iter().find(|kind| kind.word() == word).ok_or_else(|| {
        let words: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.word()).collect();
        format!("one of {}", words.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_utc() {
        for (unix_ms, expected) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_399_000, "2000-02-28 23:59:59Z"),
            (951_782_400_999, "2000-02-29 00:00:00Z"),
            (1_709_251_200_000, "2024-03-01 00:00:00Z"),
            (1_735_689_599_000, "2024-12-31 23:59:59Z"),
            (4_102_444_800_000, "2100-01-01 00:00:00Z"),
            (4_107_542_400_000, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(utc(unix_ms), expected);
        }
    }

    #[test]
    fn kinds_have_the_words_of_the_file() {
        assert_eq!(kind("source-ports"), Ok(EventKind::SourcePorts));
        assert!(kind("weather").unwrap_err().contains("health"));
    }
}
