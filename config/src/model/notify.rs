//! The part of the model that is about telling others what has changed.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::CommandLine;

/// `[notify]`; at least one of `command` and `webhook` is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Notify {
    /// Gets each message on its standard input.
    pub command: Option<CommandLine>,
    /// Gets each message by POST.
    pub webhook: Option<Webhook>,
    /// What is told.
    pub events: Vec<EventKind>,
    /// How long an event waits for others.
    pub batch_ms: u64,
    /// Time between two messages, at least.
    pub interval_ms: u64,
    /// How long a receiver may take.
    pub timeout_ms: u64,
}

/// `notify.webhook` and what belongs to it.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Webhook {
    /// A name, or an address without brackets.
    pub host: String,
    /// The port, that of the scheme where none is written.
    pub port: u16,
    /// The `Host` header: as written.
    pub authority: String,
    /// Path and query, beginning with `/`. It may be a secret, for chat systems know their users by it: never shown.
    #[serde(skip)]
    pub path: String,
    /// Whose certificates are trusted; `None` = by plain HTTP.
    pub authorities: Option<PathBuf>,
    /// File with the token of `Authorization: Bearer`.
    pub token_file: Option<PathBuf>,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Webhook { host, port, authority, path: _, authorities, token_file } = self;
        let mut told = f.debug_struct("Webhook");
        told.field("host", host).field("port", port).field("authority", authority);
        told.field("authorities", authorities).field("token_file", token_file).finish_non_exhaustive()
    }
}

/// `notify.events`, and what `towpath status` calls them: what kind of state changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// The operator's word about a server.
    Admin,
    /// What the agent of a server says about it.
    Agent,
    /// Whether a bridge leads back to itself.
    Bridge,
    /// How near the end of a certificate is.
    Certificate,
    /// The configuration in force.
    Configuration,
    /// How far the drain of a server is.
    Drain,
    /// A server's health.
    Health,
    /// Whether a server is a member.
    Membership,
    /// Whether what clients meet at a server takes it out.
    Passive,
    /// Whether the process runs, drains or ends.
    Phase,
    /// How full a source address is towards a server.
    SourcePorts,
}

impl EventKind {
    /// All of them, in the order of their words.
    pub const ALL: [EventKind; 11] = [
        EventKind::Admin,
        EventKind::Agent,
        EventKind::Bridge,
        EventKind::Certificate,
        EventKind::Configuration,
        EventKind::Drain,
        EventKind::Health,
        EventKind::Membership,
        EventKind::Passive,
        EventKind::Phase,
        EventKind::SourcePorts,
    ];

    /// Its word in the file, in status and in messages.
    pub const fn word(self) -> &'static str {
        match self {
            EventKind::Admin => "admin",
            EventKind::Agent => "agent",
            EventKind::Bridge => "bridge",
            EventKind::Certificate => "certificate",
            EventKind::Configuration => "configuration",
            EventKind::Drain => "drain",
            EventKind::Health => "health",
            EventKind::Membership => "membership",
            EventKind::Passive => "passive",
            EventKind::Phase => "phase",
            EventKind::SourcePorts => "source-ports",
        }
    }
}
