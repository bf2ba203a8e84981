//! `towpath doctor`: what works on this machine for this configuration, what does not, and the command that mends it.
//!
//! Facts are gathered first (facts.rs), answers are asked for on the wire (probes.rs), and pure functions judge both (judge.rs). It works
//! without a running daemon and beside one: it opens no port that the daemon has, and nothing that it sends belongs to a service.

mod facts;
mod frames;
mod judge;
mod probes;
#[cfg(test)]
mod tests;

use std::io;

use serde::Serialize;
use towpath_config::model::Model;

use crate::fetch_status;
use crate::packets::facing;
use crate::preflight::{self, Check};

pub use facts::{Card, Facts, HugePages, LinkFacts};
pub use judge::readings;
pub use probes::{Answers, Asked, Echoed, NotShown, Probes, Purpose, Returned, Shown, Summed, Tried, probe};

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// As it should be.
    Fine,
    /// Nobody could look.
    Unknown,
    /// It works, and could work better.
    Hint,
    /// It runs, but probably not as meant.
    Warning,
    /// It does not start, or a service does not work.
    Error,
}

impl State {
    /// All of them, the best first.
    pub const ALL: [State; 5] = [State::Fine, State::Unknown, State::Hint, State::Warning, State::Error];

    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            State::Fine => "fine",
            State::Unknown => "unknown",
            State::Hint => "hint",
            State::Warning => "warning",
            State::Error => "error",
        }
    }
}

/// What a reading is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "name")]
pub enum Subject {
    /// The whole of it.
    Machine,
    /// An interface, by its name.
    Interface(String),
    /// A virtual service, by its name.
    Service(String),
}

/// How one thing is, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// What it is about.
    pub subject: Subject,
    /// What was looked at.
    pub check: Check,
    /// How it is.
    pub state: State,
    /// What was found: of what is wrong, the cause and the next step.
    pub found: String,
    /// What mends it, or shows more.
    pub run: Option<Run>,
}

/// A command for the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Run {
    /// Where it is to be run.
    pub at: Place,
    /// It, as for a shell of root's; `…` stands for what only the operator knows.
    pub command: String,
}

/// Where a command is to be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// On this machine.
    Here,
    /// At the other end: on the real server, or the station, that the reading names.
    There,
}

impl Reading {
    /// A reading whose command is the one that `found` has in backticks, to be run here.
    pub fn new(subject: Subject, check: Check, state: State, found: impl Into<String>) -> Reading {
        let found = found.into();
        let run = command_in(&found).filter(|_| state != State::Fine);
        let run = run.map(|command| Run { at: Place::Here, command: command.to_owned() });
        Reading { subject, check, state, found, run }
    }
}

/// A daemon that answers beside us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Daemon {
    /// Its version.
    pub version: String,
    /// `running`, `draining` or `ending`.
    pub phase: String,
    /// Seconds since its start.
    pub uptime_seconds: u64,
}

/// Whether anything is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probing {
    /// Nothing: only this machine is looked at.
    Off,
    /// Gateways, real servers and whoever may have our addresses are asked, for a few seconds.
    On,
}

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Examination {
    /// The daemon that runs; `None` where nobody answers.
    pub daemon: Option<Daemon>,
    /// The machine first, then interfaces, then services in the order of the file; of each, the worst first.
    pub readings: Vec<Reading>,
}

impl Examination {
    /// How many readings are in this state.
    pub fn count(&self, state: State) -> usize {
        self.readings.iter().filter(|reading| reading.state == state).count()
    }

    /// The worst state.
    pub fn worst(&self) -> State {
        self.readings.iter().map(|reading| reading.state).max().unwrap_or(State::Fine)
    }
}

/// Looks at the machine, in the network namespace of the calling thread, for this configuration.
pub fn examine(model: &Model, probing: Probing) -> io::Result<Examination> {
    let model = &facing::resolve(model.clone(), None);
    let status = model
        .control
        .socket
        .as_deref()
        .and_then(|socket| fetch_status(&crate::Endpoint::Socket(socket.to_owned())).ok());
    let daemon = status.map(|status| Daemon {
        version: status.version,
        phase: status.phase,
        uptime_seconds: status.uptime_seconds,
    });
    let facts = Facts::gather(model, daemon.is_some())?;
    let probes = match probing {
        Probing::Off => Probes::Off,
        Probing::On => probe(model, &facts),
    };
    Ok(Examination { daemon, readings: readings(model, &facts, &probes) })
}

impl From<preflight::Severity> for State {
    fn from(severity: preflight::Severity) -> State {
        match severity {
            preflight::Severity::Warning => State::Warning,
            preflight::Severity::Error => State::Error,
        }
    }
}

/// Programs that messages name in backticks; other words in backticks are keys, names and settings.
const PROGRAMS: [&str; 10] = ["apt", "bpftool", "echo", "ethtool", "ip", "nft", "ss", "sysctl", "systemctl", "ulimit"];

/// The first command in backticks.
fn command_in(message: &str) -> Option<&str> {
    let is_command = |text: &&str| text.split(' ').next().is_some_and(|first| PROGRAMS.contains(&first));
    let pieces: Vec<&str> = message.split('`').collect();
    // The last one has no backtick behind it.
    let (_, closed) = pieces.split_last()?;
    closed.iter().skip(1).step_by(2).copied().find(is_command)
}
