//! `towpath sessions` and `towpath flow`: which connections, UDP sessions and flows there are, where one is and why, and the end of some.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use towpath_engine::questions::Transport;
use towpath_engine::sessions::{FlowStatus, KillBody, KilledStatus, SessionStatus, SessionsQuery, SessionsStatus};
use towpath_engine::{post, query};

use crate::answer::{failed, given, show};
use crate::cli::Exit;
use crate::daemon::Daemon;
use crate::paint::{Paint, Tint};
use crate::server::span as time;
use crate::table::{Cell, Table, counted, span};

/// The workers have some seconds to answer.
const LIMIT: Duration = Duration::from_secs(15);

pub(crate) const SESSIONS_HELP: &str = "\
Sessions are the connections and UDP sessions of the stream plane and the flows of the packet plane. The workers look for them in small steps, beside what they serve.

Examples:
  towpath sessions list                                   all of them, 1,000 are shown
  towpath sessions list --service web --server FE-1       those of one server
  towpath sessions list --client 192.0.2.0/24 --idle 5m   those of a network that are silent
  towpath sessions kill 0-c17-5                           this one: both sides are reset
  towpath sessions kill --service web --client 192.0.2.7 --reason 'runaway client'
  towpath sessions kill --server FE-1 --dry-run           only show which would end

Exit codes: 0 ok · 1 refused or failed · 2 usage · 5 daemon not reachable · 7 no answer in time";

pub(crate) const FLOW_HELP: &str = "\
The two ends are those of the client's side (client and VIP) or of the server's (the source that it sees, and its own address), in either order: what a
capture, a firewall's log or `ss` shows can be said as it stands.

Examples:
  towpath flow 192.0.2.7:51234 198.51.100.10:443          which worker, server and lease, in which state, and why
  towpath flow udp 10.0.0.2:20123 10.0.0.81:5060          the same from what the server sees
  towpath flow '[2001:db8::7]:51234' '[2001:db8::10]:443'

Exit codes: 0 there is one · 1 there is none (what is known is said), or it failed · 2 usage · 5 daemon not reachable · 7 no answer in time";

/// What `towpath sessions` does.
#[derive(Debug, Subcommand)]
pub(crate) enum SessionsCommand {
    /// Show which there are
    List(ListArguments),
    /// End some: both sides are reset
    Kill(KillArguments),
}

/// Which sessions.
#[derive(Args, Clone, Debug)]
pub(crate) struct Filter {
    /// Of this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// At this server: its name, address, or address:port
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// From this address or network
    #[arg(long, value_name = "ADDRESS[/PREFIX]")]
    client: Option<String>,
    /// On this plane: stream or packet
    #[arg(long, value_name = "PLANE", value_parser = ["stream", "packet"])]
    plane: Option<String>,
    /// Of this protocol
    #[arg(long, value_name = "PROTOCOL", value_parser = ["tcp", "udp", "echo"])]
    protocol: Option<String>,
    /// In this state, as a list shows it
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// Of this worker
    #[arg(long, value_name = "N")]
    worker: Option<u8>,
    /// Silent for so long, as 90s or 10m
    #[arg(long, value_name = "TIME", value_parser = time)]
    idle: Option<Duration>,
    /// Show so many at most [default: 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    limit: Option<u32>,
}

/// Arguments of `towpath sessions list`.
#[derive(Args, Debug)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    daemon: Daemon,
}

/// Arguments of `towpath sessions kill`.
#[derive(Args, Debug)]
pub(crate) struct KillArguments {
    /// These, as a list shows them
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// All there are
    #[arg(long)]
    all: bool,
    /// Why: shown in events and the log
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Only show which would end
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    daemon: Daemon,
}

/// Arguments of `towpath flow`.
#[derive(Args, Debug)]
pub(crate) struct FlowArguments {
    /// tcp or udp, if it is to be one of them, and the two ends, each as ADDRESS:PORT
    #[arg(value_name = "[tcp|udp] ONE OTHER", num_args = 2..=3, required = true)]
    tuple: Vec<String>,
    #[command(flatten)]
    daemon: Daemon,
}

impl Filter {
    fn query(&self, ids: &[String]) -> SessionsQuery {
        let Filter { service, server, client, plane, protocol, state, worker, idle, limit } = self.clone();
        let idle_ms = idle.map(|idle| idle.as_millis() as u64);
        SessionsQuery { ids: ids.to_vec(), service, server, client, plane, protocol, state, worker, idle_ms, limit }
    }
}

/// The query as pairs of key and value.
fn pairs(query: &SessionsQuery) -> Vec<(&'static str, String)> {
    let SessionsQuery { ids, service, server, client, plane, protocol, state, worker, idle_ms, limit } = query.clone();
    let mut pairs: Vec<(&str, String)> = ids.into_iter().map(|id| ("id", id)).collect();
    pairs.extend(given([
        ("service", service),
        ("server", server),
        ("client", client),
        ("plane", plane),
        ("protocol", protocol),
        ("state", state),
        ("worker", worker.map(|worker| worker.to_string())),
        ("idle_ms", idle_ms.map(|ms| ms.to_string())),
        ("limit", limit.map(|limit| limit.to_string())),
    ]));
    pairs
}

/// Does it.
pub(crate) fn sessions(command: &SessionsCommand) -> Result<Exit> {
    match command {
        SessionsCommand::List(ListArguments { filter, daemon }) => list(filter, daemon),
        SessionsCommand::Kill(arguments) => kill(arguments),
    }
}

fn list(filter: &Filter, daemon: &Daemon) -> Result<Exit> {
    let found: SessionsStatus = match query(&daemon.endpoint()?, "/v1/sessions", &pairs(&filter.query(&[])), LIMIT) {
        Ok(found) => found,
        Err(error) => return Ok(failed(&error)),
    };
    show(daemon, &found, &found.warnings, |paint| match found.matched {
        0 => "no session fits\n".to_owned(),
        matched => format!("{}{}\n", table(&found.sessions, paint), counted(matched as usize, "session")),
    })?;
    Ok(Exit::Done)
}

fn kill(arguments: &KillArguments) -> Result<Exit> {
    let KillArguments { ids, filter, all, reason, dry_run, daemon } = arguments;
    let body = KillBody { sessions: filter.query(ids), all: *all, reason: reason.clone(), dry_run: *dry_run };
    let killed: KilledStatus = match post(&daemon.endpoint()?, "/v1/sessions/kill", &body, LIMIT) {
        Ok(killed) => killed,
        Err(error) => return Ok(failed(&error)),
    };
    show(daemon, &killed, &killed.warnings, |paint| {
        let named = if killed.sessions.is_empty() { String::new() } else { table(&killed.sessions, paint) };
        let sessions = |count: u64| counted(count as usize, "session");
        match killed.dry_run {
            true => format!("{named}{} would end; nothing was changed (--dry-run)\n", sessions(killed.matched)),
            false => format!("{named}{} ended\n", sessions(killed.killed)),
        }
    })?;
    Ok(Exit::Done)
}

/// Looks for a session.
pub(crate) fn flow(arguments: &FlowArguments) -> Result<Exit> {
    let FlowArguments { tuple, daemon } = arguments;
    let (protocol, one, other) = match read(tuple) {
        Ok(read) => read,
        Err(message) => {
            eprintln!("error: {message}");
            return Ok(Exit::Usage);
        }
    };
    let mut said = vec![("one", one.to_string()), ("other", other.to_string())];
    said.extend(protocol.map(|protocol| ("protocol", protocol)));
    let found: FlowStatus = match query(&daemon.endpoint()?, "/v1/flow", &said, LIMIT) {
        Ok(found) => found,
        Err(error) => return Ok(failed(&error)),
    };
    show(daemon, &found, &found.warnings, |paint| shown(&found, paint))?;
    Ok(if found.sessions.is_empty() { Exit::Failed } else { Exit::Done })
}

fn read(tuple: &[String]) -> Result<(Option<String>, SocketAddr, SocketAddr), String> {
    let (protocol, ends) = match tuple {
        [protocol, ends @ ..] if ends.len() == 2 => match protocol.to_ascii_lowercase() {
            protocol if ["tcp", "udp"].contains(&protocol.as_str()) => (Some(protocol), ends),
            other => return Err(format!("\"{other}\" is neither tcp nor udp")),
        },
        ends => (None, ends),
    };
    let end = |text: &String| {
        text.parse::<SocketAddr>()
            .map_err(|_| format!("\"{text}\" is no ADDRESS:PORT, as 192.0.2.7:443 or [2001:db8::7]:443"))
    };
    match ends {
        [one, other] => Ok((protocol, end(one)?, end(other)?)),
        _ => Err("two ends are needed, each as ADDRESS:PORT".to_owned()),
    }
}

fn shown(found: &FlowStatus, paint: Paint) -> String {
    let mut text = String::new();
    for session in &found.sessions {
        let SessionStatus { id, plane, service, client, vip, source, destination, state, idle_ms, .. } = session;
        let server = session.server.as_deref().unwrap_or("no server");
        text += &paint.tint(Tint::Bold, &format!("{service} → {server}"));
        text += &format!(
            ": {} flow of worker {} on the {plane} plane, {state}\n",
            protocol(session.protocol),
            session.worker
        );
        text += &format!("  {client} → {vip}");
        if let (Some(source), Some(destination)) = (source, destination) {
            text += &format!("  ⇒  {source} → {destination}{}", if session.leased { " (leased)" } else { "" });
        }
        text += &format!("\n  id {id}, silent for {}", span(*idle_ms));
        text += &session.ends_in_ms.map_or_else(String::new, |ms| format!(", ends in {} if it stays so", span(ms)));
        text.push('\n');
    }
    found.reasons.iter().for_each(|reason| text += &format!("  {reason}\n"));
    text
}

fn table(sessions: &[SessionStatus], paint: Paint) -> String {
    let mut table = Table::new([
        Cell::word("id"),
        Cell::word("service"),
        Cell::word("server"),
        Cell::word("client"),
        Cell::word("to"),
        Cell::word("protocol"),
        Cell::word("state"),
        Cell::word("why"),
        Cell::figure("silent"),
    ]);
    for session in sessions {
        table.row([
            Cell::word(&session.id),
            Cell::word(&session.service),
            Cell::word(session.server.as_deref().unwrap_or("-")),
            Cell::word(session.client.to_string()),
            Cell::word(session.vip.to_string()),
            Cell::word(format!("{} {}", protocol(session.protocol), session.plane)),
            Cell::word(&session.state),
            Cell::word(session.why.as_deref().unwrap_or("-")),
            Cell::figure(span(session.idle_ms)),
        ]);
    }
    table.render(0, paint)
}

fn protocol(protocol: Transport) -> &'static str {
    match protocol {
        Transport::Echo => "echo",
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_is_two_ends_with_or_without_a_protocol() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let end = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (one, other) = (end("192.0.2.7:1"), end("[2001:db8::1]:443"));
        assert_eq!(read(&words("192.0.2.7:1 [2001:db8::1]:443")), Ok((None, one, other)));
        assert_eq!(read(&words("UDP 192.0.2.7:1 [2001:db8::1]:443")), Ok((Some("udp".to_owned()), one, other)));
        for wrong in ["icmp 192.0.2.7:1 192.0.2.8:2", "192.0.2.7 192.0.2.8:2", "tcp 192.0.2.7:1"] {
            assert!(read(&words(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_said_reaches_the_query() {
        let query = SessionsQuery {
            ids: vec!["0-c1-2".to_owned(), "0-c3-4".to_owned()],
            service: Some("web".to_owned()),
            idle_ms: Some(5),
            ..SessionsQuery::default()
        };
        let pairs = pairs(&query);
        let said: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(said, ["id=0-c1-2", "id=0-c3-4", "service=web", "idle_ms=5"]);
    }
}
