//! The thread that makes lines of records and writes them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use towpath_config::model::Log;
use towpath_core::access::{LINE_BYTES_MAX, Shown, line};

use super::destination::{Destination, Lines, Refused};
use super::{AccessLog, lock};

/// Records made into lines before these are written.
const BATCH_RECORDS: usize = 1024;
/// … and bytes of lines.
const BATCH_BYTES: usize = 256 * 1024;
/// How long it lets records gather once some are there: fewer wakes and writes, and nobody waits for a line.
const GATHER: Duration = Duration::from_millis(5);
/// How long it sleeps when nobody wakes it.
const SLEEP_MAX: Duration = Duration::from_millis(500);
/// How long the end waits for a destination that takes nothing.
const FLUSH: Duration = Duration::from_secs(2);
/// How often it looks whether it is still wanted while a destination takes nothing.
const LOOK: Duration = Duration::from_millis(100);
/// How long it leaves a destination alone that could not be opened.
const REOPEN: Duration = Duration::from_secs(1);

pub(super) struct Writer {
    log: Arc<AccessLog>,
    /// What `Now` counts from.
    origin: Instant,
    settings: Log,
    /// The turn that they are of.
    turn: Option<u64>,
    destination: Option<Destination>,
    reopen_at: Instant,
    lines: Lines,
    /// The ring that is looked into first.
    first_ring: usize,
    /// Until when the end waits for a destination; what there is then is lost.
    flushes_until: Option<Instant>,
}

/// Whether there may be more at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    Some,
}

impl Writer {
    pub(super) fn new(log: Arc<AccessLog>, origin: Instant) -> Writer {
        let settings = lock(&log.settings).clone();
        let lines = Lines::with_room(BATCH_BYTES + LINE_BYTES_MAX);
        Writer {
            log,
            origin,
            settings,
            turn: None,
            destination: None,
            reopen_at: Instant::now(),
            lines,
            first_ring: 0,
            flushes_until: None,
        }
    }

    pub(super) fn run(mut self) {
        loop {
            self.follow();
            let is_ending = self.is_ending();
            let (taken, left) = self.take();
            if taken > 0 {
                self.write();
            }
            match (left, taken) {
                (Left::Some, _) => {}
                (Left::Nothing, 0) if is_ending => return,
                (Left::Nothing, 0) => self.sleep(),
                (Left::Nothing, _) if is_ending => {}
                (Left::Nothing, _) => thread::sleep(GATHER),
            }
        }
    }

    /// Takes new settings, and the destination that they name.
    fn follow(&mut self) {
        let turn = self.log.turn.load(Ordering::Acquire);
        if self.turn != Some(turn) {
            self.turn = Some(turn);
            self.settings.clone_from(&lock(&self.log.settings));
            self.destination = None;
            self.reopen_at = Instant::now();
        }
    }

    /// Makes lines of records that wait.
    fn take(&mut self) -> (usize, Left) {
        let shown = Shown {
            format: self.settings.format,
            query: self.settings.query,
            origin_unix_ms: unix_ms().saturating_sub(self.origin.elapsed().as_millis() as u64),
        };
        let mut taken = 0;
        let mut left = Left::Nothing;
        // Each ring has its part of a batch, however fast another is filled, and each is the first in its turn, for lines may be long.
        let rings = self.log.rings.len().max(1);
        self.first_ring = (self.first_ring + 1) % rings;
        let places = (0..rings).map(|place| (self.first_ring + place) % rings);
        for ring in places.filter_map(|place| self.log.rings.get(place)?.get()) {
            let mut of_this = BATCH_RECORDS / rings + 1;
            while of_this > 0 && self.lines.bytes() < BATCH_BYTES {
                let Some(record) = ring.pop() else { break };
                let began = shown.origin_unix_ms.saturating_add(record.began.0);
                let is_error = record.is_error();
                self.lines.push(began, is_error, |out| line(&record, &shown, out));
                of_this -= 1;
                taken += 1;
            }
            if !ring.is_empty() {
                left = Left::Some;
            }
        }
        (taken, left)
    }

    /// Whether the process ends; from the first time on, the destination has so much time.
    fn is_ending(&mut self) -> bool {
        let is_ending = self.log.is_ending.load(Ordering::Acquire);
        if is_ending {
            self.flushes_until.get_or_insert_with(|| Instant::now() + FLUSH);
        }
        is_ending
    }

    /// Has the destination take the lines at hand; those that it does not take are lost, and counted.
    fn write(&mut self) {
        let mut trouble = None;
        while !self.lines.is_empty() {
            if self.is_ending() && self.flushes_until.is_some_and(|until| Instant::now() >= until) {
                trouble = trouble.or_else(|| Some("there was no time for the rest".to_owned()));
                break;
            }
            if self.destination.is_none() && Instant::now() >= self.reopen_at {
                match Destination::open(&self.settings.to) {
                    Ok(destination) => self.destination = Some(destination),
                    Err(error) => {
                        trouble = Some(error.to_string());
                        self.reopen_at = Instant::now() + REOPEN;
                    }
                }
            }
            let Some(destination) = &mut self.destination else {
                if trouble.is_none() {
                    trouble.clone_from(&lock(&self.log.trouble));
                }
                break;
            };
            match destination.write(&mut self.lines, LOOK) {
                Ok(written) => {
                    self.log.written.fetch_add(written, Ordering::Relaxed);
                    trouble = None;
                }
                Err(Refused::Full) => {
                    trouble = Some("it takes nothing more".to_owned());
                    self.tell(trouble.as_deref());
                    if self.turn != Some(self.log.turn.load(Ordering::Acquire)) {
                        break;
                    }
                }
                Err(Refused::Failed(error)) => {
                    trouble = Some(error.to_string());
                    // A message that is too long says nothing of the next; a file that is full does.
                    if !destination.is_of_messages() {
                        break;
                    }
                    self.log.failed.fetch_add(self.lines.skip(), Ordering::Relaxed);
                }
                Err(Refused::Gone(error)) => {
                    trouble = Some(error.to_string());
                    self.destination = None;
                    self.reopen_at = Instant::now() + REOPEN;
                    break;
                }
            }
        }
        self.tell(trouble.as_deref());
        self.log.failed.fetch_add(self.lines.clear(), Ordering::Relaxed);
        if self.destination.as_mut().is_some_and(|destination| !destination.give_up()) {
            self.destination = None;
        }
    }

    /// Tells once that lines are lost, and once that they are not any more.
    fn tell(&self, trouble: Option<&str>) {
        let mut known = lock(&self.log.trouble);
        match (&*known, trouble) {
            (None, Some(trouble)) => tracing::warn!("access log: {}: {trouble}; lines are lost", name(&self.settings)),
            (Some(_), None) => tracing::info!("access log: {}: lines are written again", name(&self.settings)),
            _ => {}
        }
        if known.as_deref() != trouble {
            *known = trouble.map(str::to_owned);
        }
    }

    fn sleep(&self) {
        self.log.is_asleep.store(true, Ordering::SeqCst);
        let has_news = self.log.rings.iter().filter_map(|ring| ring.get()).any(|ring| !ring.is_empty());
        if !has_news && !self.log.is_ending.load(Ordering::SeqCst) {
            thread::park_timeout(SLEEP_MAX);
        }
        self.log.is_asleep.store(false, Ordering::SeqCst);
    }
}

fn name(settings: &Log) -> String {
    use towpath_config::model::{LogTo, Syslog};
    match &settings.to {
        LogTo::File(path) | LogTo::Syslog(Syslog::Local(path)) => path.display().to_string(),
        LogTo::Stderr => "stderr".to_owned(),
        LogTo::Stdout => "stdout".to_owned(),
        LogTo::Syslog(Syslog::Server(server, _)) => server.to_string(),
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
