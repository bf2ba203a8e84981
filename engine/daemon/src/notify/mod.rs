//! Tells others of events: a command, a webhook. Nobody waits for them: an event is put into a bounded queue, and one task per receiver makes messages of
//! what is there and delivers them, at their own pace.
//!
//! ```text
//! EventLog::record → Notifier::offer → Notices (core) → deliver → command::run, or webhook::post
//! ```

mod message;
mod webhook;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify as Bell;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use towpath_config::model::{CommandLine, EventKind, Model, Notify, Webhook};
use towpath_core::Now;
use towpath_core::notices::{Message, Notices, Rhythm, Room};

use crate::command::{self, Outcome};
use crate::events::Event;
use crate::http_files::FileFault;
use crate::probe::words;
use crate::status::NotifyStatus;
use message::Sender;

/// What is left to tell at the end of the process has so long.
const FAREWELL: Duration = Duration::from_secs(2);

/// Services of one event that are named.
const SERVICES_TOLD_MAX: usize = 32;

/// Who is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiver {
    Command,
    Webhook,
}

impl Receiver {
    const ALL: [Receiver; 2] = [Receiver::Command, Receiver::Webhook];

    fn word(self) -> &'static str {
        match self {
            Receiver::Command => "command",
            Receiver::Webhook => "webhook",
        }
    }
}

/// How a receiver is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    Command(CommandLine),
    Webhook(Webhook),
}

/// What waits for receivers, and what became of the rest.
pub(crate) struct Notifier {
    sender: Sender,
    origin: Instant,
    desks: [Desk; 2],
}

/// One receiver's.
#[derive(Default)]
struct Desk {
    state: Mutex<State>,
    /// Something waits, the settings are others, or the end has come.
    news: Bell,
}

#[derive(Default)]
struct State {
    /// `None` = the file does not name this receiver.
    line: Option<Line>,
    is_ending: bool,
    /// Events that were told.
    delivered: u64,
    /// Messages that were not taken, each try.
    failed: u64,
    /// Events that will never be told.
    dropped: u64,
    /// Why the last message was not taken; `None` = it was.
    trouble: Option<String>,
}

struct Line {
    way: Way,
    events: Vec<EventKind>,
    limit: Duration,
    notices: Notices<Arc<Event>>,
}

impl Notifier {
    /// Tells nobody yet.
    pub(crate) fn new(version: &str) -> Notifier {
        Notifier { sender: Sender::here(version), origin: Instant::now(), desks: Default::default() }
    }

    /// By these settings from now on. What waits for a receiver that stays goes the new way.
    pub(crate) fn follow(&self, settings: Option<&Notify>) {
        for (receiver, desk) in self.each() {
            let way = settings.and_then(|notify| match receiver {
                Receiver::Command => notify.command.clone().map(Way::Command),
                Receiver::Webhook => notify.webhook.clone().map(Way::Webhook),
            });
            let mut state = desk.lock();
            state.line = match (way, settings) {
                (Some(way), Some(notify)) => {
                    let rhythm = Rhythm { batch_ms: notify.batch_ms, interval_ms: notify.interval_ms };
                    let (before, mut notices) = match state.line.take() {
                        Some(line) => (Some(line.way), line.notices),
                        None => (None, Notices::new(rhythm)),
                    };
                    notices.set_rhythm(rhythm);
                    // What an operator has mended shows at once. A file may have been mended under the same name.
                    if before.as_ref() != Some(&way) || state.trouble.is_some() {
                        notices.forgive(self.now());
                    }
                    let limit = Duration::from_millis(notify.timeout_ms);
                    Some(Line { way, events: notify.events.clone(), limit, notices })
                }
                _ => None,
            };
            drop(state);
            desk.news.notify_one();
        }
    }

    /// Has everybody told who wants to hear of it. Waits for nobody.
    pub(crate) fn offer(&self, event: &Event) {
        if !is_news(event) {
            return;
        }
        let event = Arc::new(bounded(event));
        for (_, desk) in self.each() {
            let mut state = desk.lock();
            let Some(line) = state.line.as_mut().filter(|line| line.events.contains(&event.kind)) else { continue };
            if let Room::Made(count) = line.notices.offer(Arc::clone(&event), self.now()) {
                state.dropped += count as u64;
            }
            drop(state);
            desk.news.notify_one();
        }
    }

    /// What became of messages, by receiver; empty where nobody is told.
    pub(crate) fn status(&self) -> Vec<NotifyStatus> {
        let of = |(receiver, desk): (Receiver, &Desk)| {
            let state = desk.lock();
            state.line.as_ref().map(|line| NotifyStatus {
                receiver: receiver.word().to_owned(),
                delivered: state.delivered,
                failed: state.failed,
                dropped: state.dropped,
                waiting: line.notices.len() as u64,
                trouble: state.trouble.clone(),
            })
        };
        self.each().filter_map(of).collect()
    }

    /// Delivers until [`Receivers::finish`].
    pub(crate) fn serve(self: &Arc<Notifier>) -> Receivers {
        let serve = |receiver| tokio::spawn(deliver_all(Arc::clone(self), receiver));
        Receivers { notifier: Arc::clone(self), tasks: Receiver::ALL.map(serve) }
    }

    fn each(&self) -> impl Iterator<Item = (Receiver, &Desk)> {
        Receiver::ALL.into_iter().zip(&self.desks)
    }

    fn desk(&self, receiver: Receiver) -> &Desk {
        match receiver {
            Receiver::Command => &self.desks[0],
            Receiver::Webhook => &self.desks[1],
        }
    }

    fn now(&self) -> Now {
        Now(u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The tasks that deliver.
pub(crate) struct Receivers {
    notifier: Arc<Notifier>,
    tasks: [JoinHandle<()>; 2],
}

impl Receivers {
    /// Tells what is left, once, and waits for that for [`FAREWELL`] at most.
    pub(crate) async fn finish(self) {
        for (_, desk) in self.notifier.each() {
            desk.lock().is_ending = true;
            desk.news.notify_one();
        }
        let until = Instant::now() + FAREWELL;
        for task in self.tasks {
            let left = until.saturating_duration_since(Instant::now());
            let stop = task.abort_handle();
            if timeout(left, task).await.is_err() {
                stop.abort();
                tracing::warn!(
                    "notify: the end did not wait for a receiver that does not answer; it was not told everything"
                );
            }
        }
    }
}

/// What is wrong with the program and the files that `[notify]` names.
pub(crate) fn faults(model: &Model) -> Vec<FileFault> {
    let Some(notify) = &model.notify else { return Vec::new() };
    let fault = |file: &Path, message: String| FileFault { service: None, file: file.to_path_buf(), message };
    let mut faults = Vec::new();
    if let Some(CommandLine { program, .. }) = &notify.command
        && let Err(problem) = command::judge(program)
    {
        faults.push(fault(program, format!("notify.command: {}: {problem}", program.display())));
    }
    if let Some(webhook) = &notify.webhook {
        if let (Some(file), Err(problem)) = (&webhook.authorities, webhook::context(webhook)) {
            faults.push(fault(file, problem));
        }
        if let (Some(file), Err(problem)) = (&webhook.token_file, webhook::token(webhook)) {
            faults.push(fault(file, problem));
        }
    }
    faults
}

/// What nobody needs to be told: that the first check of a server has passed is what a start is like.
fn is_news(event: &Event) -> bool {
    !(event.kind == EventKind::Health && event.from == "unknown" && event.to == "up")
}

/// An event without the rest of a long list: a message has to have an end.
fn bounded(event: &Event) -> Event {
    let mut event = event.clone();
    if event.services.len() > SERVICES_TOLD_MAX {
        let more = event.services.len() - SERVICES_TOLD_MAX;
        event.services.truncate(SERVICES_TOLD_MAX);
        event.services.push(format!("and {more} more"));
    }
    event
}

/// What is done next for a receiver.
enum Turn {
    Deliver { message: Message<Arc<Event>>, way: Way, limit: Duration },
    End,
    Wait(Option<Now>),
}

async fn deliver_all(notifier: Arc<Notifier>, receiver: Receiver) {
    let desk = notifier.desk(receiver);
    loop {
        match next_turn(desk, notifier.now()) {
            Turn::End => return,
            Turn::Wait(due) => tokio::select! {
                () = desk.news.notified() => {}
                () = at(notifier.origin, due) => {}
            },
            Turn::Deliver { message, way, limit } => {
                let result = deliver(&notifier.sender, &message, &way, limit).await;
                settle(desk, receiver, message, &way, result, notifier.now());
            }
        }
    }
}

fn next_turn(desk: &Desk, now: Now) -> Turn {
    let mut state = desk.lock();
    let is_ending = state.is_ending;
    let Some(line) = &mut state.line else { return if is_ending { Turn::End } else { Turn::Wait(None) } };
    let message = if is_ending { line.notices.take_at_once() } else { line.notices.take(now) };
    match message {
        Some(message) => Turn::Deliver { message, way: line.way.clone(), limit: line.limit },
        None if is_ending => Turn::End,
        None => Turn::Wait(line.notices.due()),
    }
}

/// Why a message was not taken, in the words of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    /// Another time it may be.
    NotNow(String),
    /// It never will be: there is something in it.
    Refused(String),
}

/// Hands one message over.
async fn deliver(sender: &Sender, message: &Message<Arc<Event>>, way: &Way, limit: Duration) -> Result<(), Failure> {
    let text = sender.text(message);
    let body = sender.body(message, &text).map_err(Failure::Refused)?;
    match way {
        Way::Command(line) => {
            let environment = sender.environment(message, &text);
            taken(command::run((), line, &environment, &body, limit).await).map_err(Failure::NotNow)
        }
        Way::Webhook(webhook) => webhook::post(webhook, &body, limit).await,
    }
}

/// Whether a command has taken its message.
fn taken(outcome: io::Result<Outcome>) -> Result<(), String> {
    let said = |output: &str| match command::first_line(output) {
        line if line.is_empty() => String::new(),
        line => format!(": {line}"),
    };
    match outcome {
        Err(error) => Err(words(&error)),
        Ok(Outcome::Exited { status: 0, .. }) => Ok(()),
        Ok(Outcome::Exited { status, output }) => Err(format!("exit code {status}{}", said(&output))),
        Ok(Outcome::Late { output }) => Err(format!("it took too long and was killed{}", said(&output))),
        Ok(Outcome::Signalled { signal, output }) => Err(format!("ended by signal {signal}{}", said(&output))),
    }
}

/// Notes what became of a message.
fn settle(
    desk: &Desk,
    receiver: Receiver,
    message: Message<Arc<Event>>,
    way: &Way,
    result: Result<(), Failure>,
    now: Now,
) {
    let mut state = desk.lock();
    let count = message.notices().len() as u64;
    match result {
        Ok(()) => {
            state.delivered += count;
            if state.trouble.take().is_some() {
                tracing::info!("notify: {} takes messages again", way.told());
            }
            if let Some(line) = &mut state.line {
                line.notices.delivered(now);
            }
        }
        Err(failure) => {
            let (Failure::NotNow(reason) | Failure::Refused(reason)) = failure.clone();
            state.failed += 1;
            // Told once, and again when it is another reason.
            if state.trouble.as_ref() != Some(&reason) {
                tracing::warn!("notify: {} did not take a message: {reason}; it is tried again", way.told());
                state.trouble = Some(reason);
            }
            let is_ending = state.is_ending;
            let lost = match &mut state.line {
                Some(line) if !is_ending => {
                    let room = match failure {
                        Failure::NotNow(_) => line.notices.failed(message, now),
                        Failure::Refused(_) => line.notices.refused(message, now),
                    };
                    match room {
                        Room::Enough => 0,
                        Room::Made(lost) => lost as u64,
                    }
                }
                // A reload has taken the receiver away meanwhile, or it is too late for another try.
                _ => count,
            };
            state.dropped += lost;
            if is_ending {
                state.line = None;
                tracing::warn!("notify: the {} was not told of {count} events before the end", receiver.word());
            }
        }
    }
}

impl Way {
    /// As an operator knows it; the path of a webhook may be a secret.
    fn told(&self) -> String {
        match self {
            Way::Command(line) => line.program.display().to_string(),
            Way::Webhook(webhook) => format!("the webhook at {}", webhook.authority),
        }
    }
}

/// At this time; never, if there is none.
async fn at(origin: Instant, due: Option<Now>) {
    match due {
        Some(due) => sleep_until(origin + Duration::from_millis(due.0)).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
