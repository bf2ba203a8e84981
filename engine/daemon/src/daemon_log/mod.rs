//! What the daemon tells about itself: to standard error or to syslog, by a thread of its own, so that nobody waits for either.
//!
//! There is one for the process, as there is one standard error. Who has not started it, as tests, tells nothing.

mod repeats;
mod style;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use towpath_config::model::{LogLevel, OwnLog, Syslog};
use tracing::Level;
use tracing::level_filters::LevelFilter;

use crate::events::unix_ms;
use crate::syslog::{Message, Refused, Sender, Source};
use repeats::{Offer, Repeats, Sum};
pub use style::Reader;
use style::{Line, severity};

/// Lines that wait for the thread; those beyond are counted and dropped.
const LINES_MAX: usize = 1024;
/// How long one message is offered to syslog.
const SYSLOG_WAIT: Duration = Duration::from_millis(100);
/// How long a syslog is left alone that could not be opened, or has gone; each time twice as long, …
const REOPEN: Duration = Duration::from_secs(1);
/// … up to this: one that lets a connect wait holds up all lines meanwhile.
const REOPEN_MAX: Duration = Duration::from_secs(60);
/// How long the end waits for what is to be written.
const FINISH_WAIT: Duration = Duration::from_secs(2);

static LOG: OnceLock<Arc<DaemonLog>> = OnceLock::new();
/// The least urgent level that is told, as [`rank`] has it: asked by every place that might tell something.
static TOLD: AtomicU8 = AtomicU8::new(0);

struct DaemonLog {
    reader: Reader,
    /// Stronger than what the configuration says.
    level: Option<LevelFilter>,
    origin: Instant,
    desk: Mutex<Desk>,
    /// There is something for the thread.
    news: Condvar,
    /// Something was written.
    progress: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What tellers and thread share; held for as long as it takes to put a line down.
struct Desk {
    settings: OwnLog,
    /// Raised with other settings.
    edition: u64,
    lines: VecDeque<Line>,
    dropped: u64,
    repeats: Repeats<Level>,
    /// Lines that were put down, and those that were written.
    put: u64,
    written: u64,
    is_ending: bool,
}

/// Starts it: `level` counts whatever the configuration says. Lines go to standard error until [`follow`] says otherwise.
pub fn start(reader: Reader, level: Option<LevelFilter>) -> io::Result<()> {
    let log = Arc::new(DaemonLog {
        reader,
        level,
        origin: Instant::now(),
        desk: Mutex::new(Desk {
            settings: OwnLog::default(),
            edition: 0,
            lines: VecDeque::new(),
            dropped: 0,
            repeats: Repeats::new(),
            put: 0,
            written: 0,
            is_ending: false,
        }),
        news: Condvar::new(),
        progress: Condvar::new(),
        thread: Mutex::new(None),
    });
    let writer = Arc::clone(&log);
    let thread = thread::Builder::new().name("log".to_owned()).spawn(move || Writer::new(writer).run())?;
    *lock(&log.thread) = Some(thread);
    TOLD.store(rank(level.unwrap_or(LevelFilter::INFO)), Ordering::Relaxed);
    // A second start goes on with the first one's.
    let _first = LOG.set(log);
    Ok(())
}

/// Tells by these settings from now on.
pub(crate) fn follow(settings: &OwnLog) {
    let Some(log) = LOG.get() else { return };
    if log.level.is_none() {
        TOLD.store(rank(filter_of(settings.level)), Ordering::Relaxed);
    }
    let mut desk = lock(&log.desk);
    if desk.settings != *settings {
        settings.clone_into(&mut desk.settings);
        desk.edition += 1;
        log.news.notify_one();
    }
}

/// Whether lines of this level are told.
pub fn is_told(level: Level) -> bool {
    rank(LevelFilter::from_level(level)) <= TOLD.load(Ordering::Relaxed)
}

/// 0 = nothing.
fn rank(filter: LevelFilter) -> u8 {
    match filter {
        LevelFilter::OFF => 0,
        LevelFilter::ERROR => 1,
        LevelFilter::WARN => 2,
        LevelFilter::INFO => 3,
        LevelFilter::DEBUG => 4,
        _ => 5,
    }
}

fn filter_of(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    }
}

/// Tells one line, or counts it if the same was told just now. Waits for nobody.
pub fn tell(level: Level, text: &str) {
    let Some(log) = LOG.get() else { return };
    let line = Line::new(level, unix_ms(), text);
    let now_ms = log.now_ms();
    let mut desk = lock(&log.desk);
    let (offer, pushed_out) = desk.repeats.offer(level, &line.text, now_ms);
    if let Some(sum) = pushed_out {
        desk.push(line_of(sum));
    }
    if offer == Offer::Repeat {
        return;
    }
    desk.push(line);
    drop(desk);
    log.news.notify_one();
}

/// Writes what there is and ends. What is told afterwards is not.
pub fn finish() {
    let Some(log) = LOG.get() else { return };
    lock(&log.desk).is_ending = true;
    log.news.notify_one();
    let desk = lock(&log.desk);
    let waited = log.progress.wait_timeout_while(desk, FINISH_WAIT, |desk| desk.written < desk.put || desk.is_ending);
    let is_over = waited.is_ok_and(|(desk, _)| !desk.is_ending);
    if is_over && let Some(thread) = lock(&log.thread).take() {
        // It does not panic; and then there is nobody left to tell.
        let _ended = thread.join();
    }
}

impl DaemonLog {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Desk {
    fn push(&mut self, line: Line) {
        if self.lines.len() == LINES_MAX {
            self.dropped += 1;
            return;
        }
        self.put += 1;
        self.lines.push_back(line);
    }
}

fn line_of(sum: Sum<Level>) -> Line {
    Line { level: sum.level, unix_ms: unix_ms(), text: sum.text }
}

/// The thread that writes.
struct Writer {
    log: Arc<DaemonLog>,
    settings: OwnLog,
    edition: u64,
    syslog: Option<Sender>,
    reopen_at: Instant,
    /// How long it is left alone the next time.
    reopen_after: Duration,
    /// It was said that syslog takes nothing.
    is_troubled: bool,
    out: Vec<u8>,
}

impl Writer {
    fn new(log: Arc<DaemonLog>) -> Writer {
        Writer {
            log,
            settings: OwnLog::default(),
            edition: 0,
            syslog: None,
            reopen_at: Instant::now(),
            reopen_after: REOPEN,
            is_troubled: false,
            out: Vec::new(),
        }
    }

    fn run(mut self) {
        loop {
            let (lines, is_ending) = self.wait();
            let count = lines.len() as u64;
            for line in &lines {
                self.write(line);
            }
            let mut desk = lock(&self.log.desk);
            desk.written += count;
            let is_over = is_ending && desk.lines.is_empty();
            if is_over {
                // Whoever waits for the end sees that it is there.
                desk.is_ending = false;
            }
            drop(desk);
            self.log.progress.notify_all();
            if is_over {
                return;
            }
        }
    }

    /// Waits until there is something to write, and takes it.
    fn wait(&mut self) -> (Vec<Line>, bool) {
        let log = Arc::clone(&self.log);
        let mut desk = lock(&log.desk);
        loop {
            if desk.edition != self.edition {
                self.edition = desk.edition;
                if self.settings.syslog != desk.settings.syslog {
                    (self.syslog, self.is_troubled) = (None, false);
                    (self.reopen_at, self.reopen_after) = (Instant::now(), REOPEN);
                }
                self.settings.clone_from(&desk.settings);
            }
            let now_ms = log.now_ms();
            let is_ending = desk.is_ending;
            let sums = if is_ending { desk.repeats.finish(now_ms) } else { desk.repeats.due(now_ms) };
            sums.into_iter().for_each(|sum| desk.push(line_of(sum)));
            let dropped = std::mem::take(&mut desk.dropped);
            if dropped > 0 {
                let text = format!("{dropped} lines of this log were dropped: it could not be written fast enough");
                // Behind those that were in time, in whose place it is not.
                desk.put += 1;
                desk.lines.push_back(Line { level: Level::WARN, unix_ms: unix_ms(), text });
            }
            if !desk.lines.is_empty() || is_ending {
                return (desk.lines.drain(..).collect(), is_ending);
            }
            let sleep = desk.repeats.next_due_ms().map(|due| Duration::from_millis(due.saturating_sub(now_ms)));
            desk = match sleep {
                None => log.news.wait(desk).unwrap_or_else(PoisonError::into_inner),
                Some(sleep) => log.news.wait_timeout(desk, sleep).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    fn write(&mut self, line: &Line) {
        let Some(to) = self.settings.syslog.clone() else { return self.write_here(line) };
        match self.send(&to, line) {
            Ok(()) if self.is_troubled => {
                self.is_troubled = false;
                self.write_here(&Line::new(
                    Level::INFO,
                    unix_ms(),
                    &format!("syslog {}: lines go there again", name(&to)),
                ));
            }
            Ok(()) => {}
            Err(error) => {
                if !self.is_troubled {
                    self.is_troubled = true;
                    let text = format!("syslog {}: {error}; lines go to standard error meanwhile", name(&to));
                    self.write_here(&Line::new(Level::WARN, unix_ms(), &text));
                }
                self.write_here(line);
            }
        }
    }

    fn send(&mut self, to: &Syslog, line: &Line) -> io::Result<()> {
        if self.syslog.is_none() {
            if Instant::now() < self.reopen_at {
                return Err(io::ErrorKind::NotConnected.into());
            }
            self.syslog = match Sender::open(to, Source::Daemon) {
                Ok(sender) => Some(sender),
                Err(error) => {
                    self.leave_alone();
                    return Err(error);
                }
            };
        }
        let Some(sender) = &mut self.syslog else { return Err(io::ErrorKind::NotConnected.into()) };
        let text = line.text.replace('\n', " · ");
        let message = Message { severity: severity(line.level), unix_ms: line.unix_ms, text: text.as_bytes() };
        let refused = match sender.send(&message, SYSLOG_WAIT) {
            Ok(()) => {
                self.reopen_after = REOPEN;
                return Ok(());
            }
            Err(refused) => refused,
        };
        let can_go_on = sender.give_up();
        let (error, is_gone) = match refused {
            Refused::Full => (io::Error::other("it takes nothing more"), false),
            Refused::Failed(error) => (error, false),
            Refused::Gone(error) => (error, true),
        };
        if is_gone || !can_go_on {
            self.syslog = None;
            self.leave_alone();
        }
        Err(error)
    }

    fn leave_alone(&mut self) {
        self.reopen_at = Instant::now() + self.reopen_after;
        self.reopen_after = (2 * self.reopen_after).min(REOPEN_MAX);
    }

    fn write_here(&mut self, line: &Line) {
        self.out.clear();
        line.put(self.settings.format, self.log.reader, &mut self.out);
        // Whoever read it may be gone, which is no reason to stop balancing.
        let _ = io::stderr().lock().write_all(&self.out);
    }
}

fn name(to: &Syslog) -> String {
    match to {
        Syslog::Local(path) => path.display().to_string(),
        Syslog::Server(server, _) => server.to_string(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// The one test that starts it: there is one for the process.
    #[test]
    fn lines_go_to_syslog_by_their_level_and_repeats_are_summed_up_at_the_end() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("log");
        let collector = UnixDatagram::bind(&path).expect("a socket");
        collector.set_read_timeout(Some(Duration::from_secs(60))).expect("not zero");
        assert!(!is_told(Level::ERROR), "nobody has started it");
        tell(Level::ERROR, "into the void");
        start(Reader::Plain, None).expect("a thread");
        follow(&OwnLog { syslog: Some(Syslog::Local(path)), level: LogLevel::Warn, ..OwnLog::default() });
        assert!(is_told(Level::WARN) && !is_told(Level::INFO));
        let writer = thread::spawn(|| {
            for _ in 0..218 {
                tell(Level::WARN, "no descriptor\nis left");
            }
            tell(Level::ERROR, "the end is near");
            finish();
        });
        let mut message = [0; 500];
        let mut heard = Vec::new();
        while heard.len() < 7 {
            let length = collector.recv(&mut message).expect("a message");
            let text = String::from_utf8_lossy(&message[..length]).into_owned();
            let (head, text) =
                text.split_once("]: ").map(|(head, text)| (head.to_owned(), text.to_owned())).expect("a head");
            heard.push((head[..4].to_owned(), text));
        }
        writer.join().expect("it ends");
        let expected = |priority: &str, text: &str| (priority.to_owned(), text.to_owned());
        assert!(heard[..5].iter().all(|line| *line == expected("<28>", "no descriptor · is left")), "{heard:?}");
        assert_eq!(heard[5], expected("<27>", "the end is near"));
        assert_eq!(heard[6].0, "<28>");
        assert!(heard[6].1.starts_with("no descriptor · is left … 213 more in "), "{heard:?}");
        tell(Level::ERROR, "behind the end");
        collector.set_nonblocking(true).expect("a socket");
        assert!(collector.recv(&mut message).is_err(), "nothing is told behind the end");
    }
}
