//! `towpath top`: what a running towpath does, live.
//!
//! One thread asks the daemon, this one draws and hears keys: a daemon that is slow to answer does not hold the keyboard.

mod figures;
mod screen;

use std::io::{self, IsTerminal};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use towpath_engine::{Endpoint, FetchError, fetch_status};

use crate::cli::Exit;
use crate::daemon::Place;
use crate::paint::Paint;
use crate::status::exit_of;
use figures::{History, Reading, Sheet, View};

pub(crate) const TOP_HELP: &str = "\
Keys:
  1 2 3 4 5, Tab    services, servers, workers, source ports, latencies
  s, r              sort by the next column, turn the order round
  /                 show only rows with this text; Esc shows all again
  p, space          hold the picture, and let it go on
  + -               look more or less often
  arrows, Page      scroll
  q, Ctrl-C         end

Examples:
  towpath top
  towpath top --interval 5              look every 5 seconds

Exit codes: 0 ok · 1 failed, or not on a terminal · 2 usage · 5 daemon not reachable · 7 no answer in time";

/// Arguments of `towpath top`.
#[derive(Args, Debug)]
pub(crate) struct TopArguments {
    #[command(flatten)]
    place: Place,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60))]
    interval: u32,
}

/// Longest and shortest time between two looks, in seconds.
const INTERVALS_S: std::ops::RangeInclusive<u32> = 1..=60;
/// How long a key may wait for what was fetched, and the other way round.
const TURN: Duration = Duration::from_millis(50);
/// Characters of a filter.
const FILTER_MAX: usize = 64;
/// Rows that a page key scrolls.
const PAGE_ROWS: usize = 10;

/// Everything that the picture is made of.
#[derive(Debug)]
struct Top {
    interval_s: u32,
    view: View,
    /// Column that rows are sorted by; `None` = as the file has them.
    sort: Option<usize>,
    is_reversed: bool,
    filter: String,
    /// Whether keys are letters of the filter.
    is_typing: bool,
    is_held: bool,
    scrolled: usize,
    earlier: Option<Reading>,
    now: Option<Reading>,
    history: History,
    /// Why there is no newer reading.
    trouble: Option<String>,
    paint: Paint,
}

/// What a key brings about outside of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    GoOn,
    End,
}

/// Shows it until somebody has seen enough.
pub(crate) fn top(arguments: &TopArguments) -> Result<Exit> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        bail!("top draws on a terminal; `towpath status --watch` and `towpath status --json` go elsewhere, too");
    }
    // Who is not reached is told in the terminal as it was.
    let began = Instant::now();
    let endpoint = arguments.place.endpoint()?;
    let first = match fetch_status(&endpoint) {
        Ok(status) => Reading { at: began.elapsed(), status },
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(exit_of(&error));
        }
    };
    let mut top = Top::new(arguments.interval, Paint::on(&io::stdout()));
    top.take(Ok(first));

    let (readings, fetched) = mpsc::sync_channel(1);
    let (pace, paced) = mpsc::sync_channel(1);
    let mut interval = Duration::from_secs(arguments.interval.into());
    thread::Builder::new()
        .name("fetch".to_owned())
        .spawn(move || fetch(&endpoint, began, &mut interval, &readings, &paced))
        .context("cannot start the thread that asks the daemon")?;

    let mut terminal = ratatui::try_init().context("cannot draw on this terminal")?;
    let drawn = show(&mut terminal, &mut top, &fetched, &pace);
    ratatui::restore();
    drawn?;
    Ok(Exit::Done)
}

/// Asks at each interval for as long as somebody listens; a new interval holds at once.
fn fetch(
    endpoint: &Endpoint,
    began: Instant,
    interval: &mut Duration,
    readings: &SyncSender<Result<Reading, String>>,
    paced: &Receiver<Duration>,
) {
    loop {
        match paced.recv_timeout(*interval) {
            Ok(other) => {
                *interval = other;
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let read = fetch_status(endpoint).map(|status| Reading { at: began.elapsed(), status });
        if readings.send(read.map_err(|error: FetchError| error.to_string())).is_err() {
            return;
        }
    }
}

fn show(
    terminal: &mut DefaultTerminal,
    top: &mut Top,
    fetched: &Receiver<Result<Reading, String>>,
    pace: &SyncSender<Duration>,
) -> Result<()> {
    let mut is_changed = true;
    loop {
        if is_changed {
            terminal.draw(|frame| screen::draw(frame, top)).context("cannot draw")?;
        }
        is_changed = false;
        if event::poll(TURN).context("cannot hear keys")? {
            match event::read().context("cannot hear keys")? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    let before = top.interval_s;
                    if top.press(key) == Turn::End {
                        return Ok(());
                    }
                    if top.interval_s != before {
                        // The thread takes it at its next turn; of two, the later one is in the picture already and comes with the next key.
                        let _is_taken = pace.try_send(Duration::from_secs(top.interval_s.into()));
                    }
                    is_changed = true;
                }
                Event::Resize(..) => is_changed = true,
                _ => {}
            }
        }
        while let Ok(read) = fetched.try_recv() {
            is_changed |= !top.is_held;
            top.take(read);
        }
    }
}

impl Top {
    fn new(interval_s: u32, paint: Paint) -> Top {
        Top {
            interval_s,
            view: View::Services,
            sort: None,
            is_reversed: false,
            filter: String::new(),
            is_typing: false,
            is_held: false,
            scrolled: 0,
            earlier: None,
            now: None,
            history: History::default(),
            trouble: None,
            paint,
        }
    }

    /// Takes what the daemon has answered, or why it has not.
    fn take(&mut self, read: Result<Reading, String>) {
        if self.is_held {
            return;
        }
        match read {
            Ok(reading) => {
                self.trouble = None;
                // Counters of another process begin anew: there is nothing to subtract from.
                let goes_on = |now: &Reading| reading.status.uptime_seconds >= now.status.uptime_seconds;
                self.earlier = self.now.take().filter(goes_on);
                if let Some(earlier) = &self.earlier {
                    self.history.note(earlier, &reading);
                }
                self.now = Some(reading);
            }
            Err(reason) => self.trouble = Some(reason),
        }
    }

    /// The rows that are shown, in their order.
    fn sheet(&self) -> Sheet {
        let Some(now) = &self.now else { return Sheet::default() };
        let mut sheet = figures::sheet(self.view, self.earlier.as_ref(), now, &self.history);
        sheet.keep(&self.filter);
        sheet.sort(self.sort, self.is_reversed);
        sheet
    }

    fn press(&mut self, key: KeyEvent) -> Turn {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Turn::End;
        }
        if self.is_typing {
            self.type_on(key.code);
            return Turn::GoOn;
        }
        match key.code {
            KeyCode::Char('q') => return Turn::End,
            KeyCode::Char('1') => self.turn_to(View::Services),
            KeyCode::Char('2') => self.turn_to(View::Servers),
            KeyCode::Char('3') => self.turn_to(View::Workers),
            KeyCode::Char('4') => self.turn_to(View::Sources),
            KeyCode::Char('5') => self.turn_to(View::Latencies),
            KeyCode::Tab => self.turn_to(self.view.next()),
            KeyCode::Char('s') => {
                let columns = self.sheet().columns.len();
                self.sort = match self.sort {
                    None => Some(0),
                    Some(column) => Some(column + 1).filter(|&next| next < columns),
                };
            }
            KeyCode::Char('r') => self.is_reversed = !self.is_reversed,
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Char('p' | ' ') => self.is_held = !self.is_held,
            KeyCode::Char('+') => self.interval_s = (self.interval_s - 1).max(*INTERVALS_S.start()),
            KeyCode::Char('-') => self.interval_s = (self.interval_s + 1).min(*INTERVALS_S.end()),
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Up => self.scrolled = self.scrolled.saturating_sub(1),
            KeyCode::Down => self.scrolled += 1,
            KeyCode::PageUp => self.scrolled = self.scrolled.saturating_sub(PAGE_ROWS),
            KeyCode::PageDown => self.scrolled += PAGE_ROWS,
            KeyCode::Home => self.scrolled = 0,
            _ => {}
        }
        self.scrolled = self.scrolled.min(self.sheet().rows.len().saturating_sub(1));
        Turn::GoOn
    }

    fn type_on(&mut self, key: KeyCode) {
        match key {
            KeyCode::Char(letter) if self.filter.chars().count() < FILTER_MAX => self.filter.push(letter),
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            _ => {}
        }
        self.scrolled = 0;
    }

    fn turn_to(&mut self, view: View) {
        if self.view != view {
            self.view = view;
            // Columns of one view are not those of the next.
            self.sort = None;
            self.scrolled = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::page;

    fn top_of(seconds: u64, change: impl Fn(&mut towpath_engine::Status)) -> Top {
        let mut top = Top::new(1, Paint::Plain);
        top.take(Ok(Reading { at: Duration::ZERO, status: page() }));
        let mut status = page();
        status.uptime_seconds += seconds;
        change(&mut status);
        top.take(Ok(Reading { at: Duration::from_secs(seconds), status }));
        top
    }

    fn press(top: &mut Top, keys: &str) {
        for key in keys.chars() {
            let code = match key {
                '\n' => KeyCode::Enter,
                '\x1b' => KeyCode::Esc,
                '\t' => KeyCode::Tab,
                '↓' => KeyCode::Down,
                letter => KeyCode::Char(letter),
            };
            assert_eq!(top.press(code.into()), Turn::GoOn, "{key:?} ended it");
        }
    }

    #[test]
    fn keys_choose_view_order_and_rows() {
        let mut top = top_of(1, |_| {});
        press(&mut top, "2");
        assert_eq!(top.sheet().keys(), ["front-end/FE-1", "front-end/FE-2"]);
        press(&mut top, "sr");
        assert_eq!(top.sheet().keys(), ["front-end/FE-2", "front-end/FE-1"]);
        press(&mut top, "/fe-1q\x1b/fe-1\n");
        assert_eq!((top.sheet().keys(), top.filter.as_str()), (vec!["front-end/FE-1".to_owned()], "fe-1"));
        press(&mut top, "\x1b↓↓↓↓");
        assert_eq!((top.sheet().rows.len(), top.scrolled), (2, 1));
        press(&mut top, "\t");
        assert_eq!((top.view, top.sort, top.scrolled), (View::Workers, None, 0));
        press(&mut top, "--+");
        assert_eq!(top.interval_s, 2);
        assert_eq!(top.press(KeyCode::Char('q').into()), Turn::End);
        assert_eq!(top.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Turn::End);
    }

    #[test]
    fn sorting_goes_through_the_columns_and_back_to_the_file() {
        let mut top = top_of(1, |_| {});
        let columns = top.sheet().columns.len();
        for column in 0..columns {
            press(&mut top, "s");
            assert_eq!(top.sort, Some(column));
        }
        press(&mut top, "s");
        assert_eq!(top.sort, None);
    }

    #[test]
    fn a_held_picture_stays_and_a_restart_has_no_rates() {
        let mut top = top_of(1, |_| {});
        press(&mut top, "p");
        let mut later = page();
        later.generation = 99;
        top.take(Ok(Reading { at: Duration::from_secs(2), status: later.clone() }));
        assert_eq!(top.now.as_ref().unwrap().status.generation, 17);
        press(&mut top, "p");
        later.uptime_seconds = 0;
        top.take(Ok(Reading { at: Duration::from_secs(3), status: later }));
        assert_eq!(top.now.as_ref().unwrap().status.generation, 99);
        assert!(top.earlier.is_none());
    }

    #[test]
    fn who_does_not_answer_is_said_until_it_does() {
        let mut top = top_of(1, |_| {});
        top.take(Err("no daemon answers".to_owned()));
        assert_eq!(top.trouble.as_deref(), Some("no daemon answers"));
        assert!(top.now.is_some(), "what was read last is still shown");
        top.take(Ok(Reading { at: Duration::from_secs(3), status: page() }));
        assert_eq!(top.trouble, None);
    }
}
