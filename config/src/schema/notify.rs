//! `[notify]`.

use super::{HOUR, Kind, MINUTE, MS, Table, duration, key, word};

const EVENT: Kind = Kind::Word(&[
    word("admin", "The operator's word about a server."),
    word("agent", "What the agent of a server says about it."),
    word("bridge", "A bridge leads back to itself, or does so no more."),
    word("certificate", "A certificate, revocation list or OCSP response is about to end, or was renewed."),
    word("configuration", "Another configuration is in force."),
    word("drain", "How far the drain of a server is."),
    word("health", "A server went down or came back; not its first check passed."),
    word("membership", "A server joined a service or left it."),
    word("passive", "What clients meet at a server takes it out, or does so no more."),
    word("phase", "The process drains or ends."),
    word("source-ports", "A source address is nearly exhausted towards a server, or calm again."),
]);

pub(super) static NOTIFY: Table = Table {
    path: "notify",
    doc: "Who is told when a state changes: a command, a webhook, or both. What is told is an object of JSON: `text` (a line per event, as chat systems take it), `host`, `version`, \
          `events` as in `towpath status --json`, and `dropped`, the events that were never told because a receiver had been away for too long.",
    keys: &[
        key(
            "command",
            Kind::Command,
            "Program and arguments; it gets the message on its standard input, and `TOWPATH_HOST`, `TOWPATH_EVENTS` (how many) and `TOWPATH_TEXT` (at most 4 KiB) in its environment. \
             It runs as the user of the daemon, without a shell; another exit code than 0 means that the message was not taken.",
        ),
        key(
            "webhook",
            Kind::Text,
            "Where the message is sent to by POST: `\"https://hooks.example.org/towpath\"`; any status from 200 to 299 means that it was taken. Redirects are not followed.",
        ),
        key("webhook_ca", Kind::Path, "Authorities (PEM) for a webhook by https; read anew when the file changes.")
            .default("/etc/ssl/certs/ca-certificates.crt"),
        key(
            "webhook_token_file",
            Kind::Path,
            "File with a token that is sent as `Authorization: Bearer`; read anew for each message.",
        ),
        key("events", Kind::Either(&[EVENT, Kind::List(&EVENT, 16)]), "What is told.").described("everything"),
        key(
            "batch",
            duration(0, 5 * MINUTE),
            "How long an event waits for others, so that what happens together is one message.",
        )
        .default("2s"),
        key(
            "interval",
            duration(0, HOUR),
            "Time between two messages, at least. After one that was not taken it doubles, up to five minutes; what is not told meanwhile stays, up to 1,024 events.",
        )
        .default("10s"),
        key("timeout", duration(100 * MS, MINUTE), "A receiver that takes longer has not taken the message; a command is killed.")
            .default("10s"),
    ],
};
