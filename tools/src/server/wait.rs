//! Waiting for what an order brings about, with the count of what is left.

use std::io::{self, IsTerminal};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use towpath_engine::admin::MemberStatus;
use towpath_engine::{Endpoint, FetchError, fetch_members};

use super::select::Selector;
use crate::cli::Exit;
use crate::table::{counted, span};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Between two lines about what is left, to people …
const TELL_EVERY: Duration = Duration::from_secs(1);
/// … and to a file.
const TELL_FILE_EVERY: Duration = Duration::from_secs(30);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitsFor {
    /// The drain is over.
    Drained,
    /// No connection is left.
    Empty,
    /// New clients are taken: it is up as well.
    Taking,
}

/// How long, and whether anything is said meanwhile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) timeout: Option<Duration>,
    pub(crate) quiet: bool,
}

/// How the wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum End {
    /// What was waited for is there.
    Done,
    /// Somebody has said something else meanwhile.
    Overruled,
    /// `--timeout` was over.
    TimedOut,
}

/// What came of waiting.
#[derive(Debug, Serialize)]
pub(crate) struct Waited {
    pub(crate) end: End,
    pub(crate) waited_ms: u64,
    /// The servers as they were last.
    pub(crate) members: Vec<MemberStatus>,
}

impl Waited {
    pub(crate) fn exit(&self) -> Exit {
        match self.end {
            End::Done => Exit::Done,
            End::Overruled => Exit::Failed,
            End::TimedOut => Exit::TimedOut,
        }
    }

    /// The last lines.
    pub(crate) fn text(&self) -> String {
        let after = span(self.waited_ms);
        let mut text = String::new();
        for MemberStatus { service, server, admin, connections, admin_said, .. } in &self.members {
            let left = counted(*connections as usize, "connection");
            let by = admin_said.as_ref().map(|said| format!(" by {}", said.by)).unwrap_or_default();
            text += &match self.end {
                End::Done => format!("{service}/{server}: {admin} after {after}, {left}\n"),
                End::Overruled => format!("{service}/{server}: {admin}{by}, {left}\n"),
                End::TimedOut => format!("{service}/{server}: {admin}, {left} after {after}; it goes on\n"),
            };
        }
        text
    }
}

/// Looks at the servers until all are as wanted, the time is over, or somebody has said something else.
pub(crate) fn wait(
    at: &Endpoint,
    servers: &[Selector],
    waits_for: WaitsFor,
    patience: &Patience,
) -> Result<Waited, FetchError> {
    let started = Instant::now();
    let tell_every = if io::stderr().is_terminal() { TELL_EVERY } else { TELL_FILE_EVERY };
    let mut told: Option<(Instant, u64)> = None;
    loop {
        let mut members = Vec::new();
        for selector in servers {
            members.extend(fetch_members(at, &selector.path())?.members);
        }
        let waited = started.elapsed();
        let end = match () {
            () if members.iter().all(|member| is_done(member, waits_for)) => Some(End::Done),
            () if members.iter().any(|member| is_overruled(member, waits_for)) => Some(End::Overruled),
            () if patience.timeout.is_some_and(|timeout| waited >= timeout) => Some(End::TimedOut),
            () => None,
        };
        if let Some(end) = end {
            return Ok(Waited { end, waited_ms: waited.as_millis() as u64, members });
        }
        let left: u64 = members.iter().map(|member| u64::from(member.connections)).sum();
        let is_news = told.is_none_or(|(at, count)| count != left && at.elapsed() >= tell_every);
        if is_news && !patience.quiet {
            eprintln!("{}", progress(&members, waits_for));
            told = Some((Instant::now(), left));
        }
        thread::sleep(LOOK_EVERY);
    }
}

fn is_done(member: &MemberStatus, waits_for: WaitsFor) -> bool {
    match waits_for {
        WaitsFor::Drained => drain_is_over(member),
        WaitsFor::Empty => member.admin == "halt" && member.connections == 0,
        WaitsFor::Taking => takes_its_part(member),
    }
}

/// A backup that waits, and one without a weight, are as ready as they can be.
fn takes_its_part(member: &MemberStatus) -> bool {
    member.takes_new || (member.admin == "ready" && (member.stands_by || member.weight == 0))
}

/// One that was to be halted is done when that has happened to its connections.
fn drain_is_over(member: &MemberStatus) -> bool {
    let drain = member.admin_said.as_ref().and_then(|said| said.drain.as_ref());
    drain.is_some_and(|drain| drain.over.is_some()) && (member.admin != "halt" || member.connections == 0)
}

/// Whether what was said does not hold any more.
fn is_overruled(member: &MemberStatus, waits_for: WaitsFor) -> bool {
    match waits_for {
        WaitsFor::Drained => member.admin_said.as_ref().is_none_or(|said| said.drain.is_none()),
        WaitsFor::Empty => member.admin != "halt",
        WaitsFor::Taking => member.admin != "ready",
    }
}

fn progress(members: &[MemberStatus], waits_for: WaitsFor) -> String {
    let open: Vec<&MemberStatus> = members.iter().filter(|member| !is_done(member, waits_for)).collect();
    let left: u64 = open.iter().map(|member| u64::from(member.connections)).sum();
    let of = match open.as_slice() {
        [one] => format!("{}/{}", one.service, one.server),
        several => counted(several.len(), "server"),
    };
    if waits_for == WaitsFor::Taking {
        return format!("{of}: not up yet");
    }
    let deadline = open.iter().filter_map(|member| member.admin_said.as_ref()?.drain.as_ref()?.deadline_in_ms).max();
    let deadline = deadline.map(|ms| format!(", {} until the deadline", span(ms))).unwrap_or_default();
    format!("{of}: {} left{deadline}", counted(left as usize, "connection"))
}

#[cfg(test)]
mod tests {
    use towpath_engine::admin::{AdminSaid, DrainEndWord, DrainOverStatus, DrainStatus, ThenWord};
    use towpath_engine::status::HealthStatus;

    use super::*;

    fn member(admin: &str, connections: u32, drain: Option<DrainStatus>) -> MemberStatus {
        let said = |drain| AdminSaid {
            since_unix_ms: 0,
            by: "root (uid 0)".into(),
            reason: String::new(),
            configured: "ready".into(),
            drain,
        };
        MemberStatus {
            service: "web".into(),
            server: "FE-1".into(),
            address: [192, 0, 2, 1].into(),
            port: None,
            admin: admin.into(),
            weight: 100,
            health: HealthStatus::Up,
            takes_new: admin == "ready",
            stands_by: false,
            connections,
            admin_said: (admin != "ready").then(|| said(drain)),
            weight_said: None,
        }
    }

    fn drain(then: ThenWord, is_over: bool) -> Option<DrainStatus> {
        let over = DrainOverStatus { why: DrainEndWord::Until, unix_ms: 0, left: 0 };
        Some(DrainStatus { deadline_in_ms: Some(61_000), until: 0, then, over: is_over.then_some(over) })
    }

    #[test]
    fn a_wait_ends_when_it_is_done_or_overruled() {
        use ThenWord::{Halt, Stay};
        use WaitsFor::{Drained, Empty, Taking};
        for (member, waits_for, done, overruled) in [
            (member("drain", 3, drain(Stay, false)), Drained, false, false),
            (member("drain", 3, drain(Stay, true)), Drained, true, false),
            (member("halt", 3, drain(Halt, true)), Drained, false, false),
            (member("halt", 0, drain(Halt, true)), Drained, true, false),
            (member("halt", 0, None), Drained, false, true),
            (member("ready", 3, None), Drained, false, true),
            (member("halt", 3, None), Empty, false, false),
            (member("halt", 0, None), Empty, true, false),
            (member("ready", 0, None), Empty, false, true),
            (member("ready", 0, None), Taking, true, false),
            (member("drain", 0, drain(Stay, false)), Taking, false, true),
            (MemberStatus { takes_new: false, ..member("ready", 0, None) }, Taking, false, false),
            (MemberStatus { takes_new: false, stands_by: true, ..member("ready", 0, None) }, Taking, true, false),
            (MemberStatus { takes_new: false, weight: 0, ..member("ready", 0, None) }, Taking, true, false),
        ] {
            let found = (is_done(&member, waits_for), is_overruled(&member, waits_for));
            assert_eq!(found, (done, overruled), "{waits_for:?} {member:?}");
        }
    }

    #[test]
    fn progress_counts_what_is_left_and_the_time() {
        let one = member("drain", 1, drain(ThenWord::Halt, false));
        let done = member("drain", 0, drain(ThenWord::Halt, true));
        let line = progress(&[one.clone(), done], WaitsFor::Drained);
        assert_eq!(line, "web/FE-1: 1 connection left, 1 min 1 s until the deadline");
        let two = [one.clone(), MemberStatus { connections: 1_200, ..one }];
        assert_eq!(progress(&two, WaitsFor::Empty), "2 servers: 1,201 connections left, 1 min 1 s until the deadline");
    }
}
