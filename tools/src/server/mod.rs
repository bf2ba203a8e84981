//! `towpath server`: take servers out of service and back, at run time.

mod check;
mod select;
pub(crate) mod shown;
mod wait;

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use towpath_engine::admin::{Configuration, MemberStatus, OrderBody, Ordered, ThenWord, WeightBody};
use towpath_engine::{fetch_members, order};

use crate::cli::Exit;
use crate::daemon::Daemon;
use crate::paint::Paint;
use crate::status::exit_of;
use check::{CHECK_HELP, CheckServerArguments, check};
use select::Selector;
use wait::{Patience, Waited, WaitsFor, wait};

pub(crate) const SERVER_HELP: &str = "\
Servers are named SERVICE/SERVER, where the server is its name, its address or address:port, and * is every one: web/FE-1, 'web/*' (the
whole service), '*/FE-1' (this server everywhere), '*/*'.

What is said here holds until something else is said, here or in the file: a reload keeps it unless the file says something new of that server. It
survives a restart (control.state_file).

Examples:
  towpath server drain web/FE-1 --reason 'patch day'      no new clients; those there are stay
  towpath server drain '*/FE-1' --deadline 30m --wait     … for half an hour, then it is halted; wait for that
  towpath server drain web/FE-1 --until 5 --then halt     … until 5 connections are left, then it is halted
  towpath server halt web/FE-1                            its connections are reset now
  towpath server weight web/FE-1 10                       a smaller share of new clients
  towpath server ready '*/FE-1'                           back again
  towpath server show 'web/*'                             who is in which state, since when and why
  towpath server check web/FE-1                           its health check now, step by step

Exit codes: 0 ok · 1 refused or failed · 2 usage · 5 daemon not reachable · 7 still waiting when --timeout was over (what was said holds)";

/// What `towpath server` does.
#[derive(Debug, Subcommand)]
pub(crate) enum ServerCommand {
    /// Take new clients again
    Ready(ReadyArguments),
    /// Keep the connections there are, take no new ones
    Drain(DrainArguments),
    /// Take no new clients, and end the connections there are
    Halt(HaltArguments),
    /// Change the share of new clients
    Weight(WeightArguments),
    /// Show in which state servers are, since when and why
    Show(ShowArguments),
    /// Run the checks of servers now, and show each step with its time
    #[command(after_help = CHECK_HELP)]
    Check(CheckServerArguments),
}

/// Which servers, and where the daemon is.
#[derive(Args, Debug)]
pub(crate) struct Addressed {
    /// Servers: SERVICE/SERVER, * for every one
    #[arg(value_name = "SERVICE/SERVER", required = true)]
    servers: Vec<Selector>,
    #[command(flatten)]
    daemon: Daemon,
}

/// What goes with every order.
#[derive(Args, Debug)]
pub(crate) struct Spoken {
    /// Why: shown in status, events and the log
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Only show what would change
    #[arg(long)]
    dry_run: bool,
}

/// Whether to wait for what an order brings about.
#[derive(Args, Debug)]
pub(crate) struct Waiting {
    /// Return when it is done
    #[arg(long)]
    wait: bool,
    /// Wait at most so long, as 90s or 10m; what was said holds all the same
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = span)]
    timeout: Option<Duration>,
}

/// Arguments of `towpath server ready`.
#[derive(Args, Debug)]
pub(crate) struct ReadyArguments {
    #[command(flatten)]
    addressed: Addressed,
    #[command(flatten)]
    spoken: Spoken,
    #[command(flatten)]
    waiting: Waiting,
}

/// Arguments of `towpath server drain`.
#[derive(Args, Debug)]
pub(crate) struct DrainArguments {
    #[command(flatten)]
    addressed: Addressed,
    /// Over after this time, as 90s or 10m, whatever is left
    #[arg(long, value_name = "TIME", value_parser = span)]
    deadline: Option<Duration>,
    /// Over when no more than N connections are left
    #[arg(long, value_name = "N", default_value_t = 0)]
    until: u32,
    /// What follows: halt ends what is left, stay lets it go on [default: halt with --deadline, else stay]
    #[arg(long, value_enum)]
    then: Option<After>,
    #[command(flatten)]
    spoken: Spoken,
    #[command(flatten)]
    waiting: Waiting,
}

/// What follows a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum After {
    /// What is left ends
    Halt,
    /// What is left goes on
    Stay,
}

/// Arguments of `towpath server halt`.
#[derive(Args, Debug)]
pub(crate) struct HaltArguments {
    #[command(flatten)]
    addressed: Addressed,
    #[command(flatten)]
    spoken: Spoken,
    #[command(flatten)]
    waiting: Waiting,
}

/// Arguments of `towpath server weight`.
#[derive(Args, Debug)]
pub(crate) struct WeightArguments {
    /// Servers: SERVICE/SERVER, * for every one
    #[arg(value_name = "SERVICE/SERVER")]
    servers: Selector,
    /// 0 to 65535, or `configured` for what the file says
    #[arg(value_name = "WEIGHT", value_parser = weight)]
    weight: WeightBody,
    #[command(flatten)]
    spoken: Spoken,
    #[command(flatten)]
    daemon: Daemon,
}

/// Arguments of `towpath server show`.
#[derive(Args, Debug)]
pub(crate) struct ShowArguments {
    #[command(flatten)]
    addressed: Addressed,
}

/// What a command has done, for programs.
#[derive(Debug, Serialize)]
struct Done {
    orders: Vec<Ordered>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waited: Option<Waited>,
}

/// Does it.
pub(crate) fn server(command: &ServerCommand) -> Result<Exit> {
    match command {
        ServerCommand::Ready(ReadyArguments { addressed, spoken, waiting }) => {
            give("ready", &addressed.servers, &addressed.daemon, &body(spoken), Some((waiting, WaitsFor::Taking)))
        }
        ServerCommand::Drain(DrainArguments { addressed, deadline, until, then, spoken, waiting }) => {
            let body = OrderBody {
                deadline_ms: deadline.map(|deadline| deadline.as_millis() as u64),
                until: (*until > 0).then_some(*until),
                then: then.map(|then| match then {
                    After::Halt => ThenWord::Halt,
                    After::Stay => ThenWord::Stay,
                }),
                ..body(spoken)
            };
            give("drain", &addressed.servers, &addressed.daemon, &body, Some((waiting, WaitsFor::Drained)))
        }
        ServerCommand::Halt(HaltArguments { addressed, spoken, waiting }) => {
            give("halt", &addressed.servers, &addressed.daemon, &body(spoken), Some((waiting, WaitsFor::Empty)))
        }
        ServerCommand::Weight(WeightArguments { servers, weight, spoken, daemon }) => {
            let body = OrderBody { weight: Some(*weight), ..body(spoken) };
            give("weight", std::slice::from_ref(servers), daemon, &body, None)
        }
        ServerCommand::Show(ShowArguments { addressed }) => show(addressed),
        ServerCommand::Check(arguments) => check(arguments),
    }
}

fn body(spoken: &Spoken) -> OrderBody {
    OrderBody { reason: spoken.reason.clone(), dry_run: spoken.dry_run, ..OrderBody::default() }
}

/// Gives an order about each of `servers`, and waits where that is asked for. The first refusal ends it: what was said before holds.
fn give(
    verb: &str,
    servers: &[Selector],
    daemon: &Daemon,
    body: &OrderBody,
    waiting: Option<(&Waiting, WaitsFor)>,
) -> Result<Exit> {
    let at = daemon.endpoint()?;
    let mut done = Done { orders: Vec::new(), waited: None };
    let paint = Paint::on(&io::stdout());
    for selector in servers {
        match order(&at, &selector.path(), verb, body) {
            Ok(ordered) => {
                if !daemon.json {
                    io::stdout().write_all(shown::ordered(verb, &ordered, body, paint).as_bytes())?;
                    ordered.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
                }
                done.orders.push(ordered);
            }
            Err(error) => {
                eprintln!("error: {selector}: {error}");
                return Ok(exit_of(&error));
            }
        }
    }
    let mut exit = Exit::Done;
    if let Some((Waiting { wait: true, timeout }, waits_for)) = waiting
        && !body.dry_run
    {
        let patience = Patience { timeout: *timeout, quiet: daemon.json };
        match wait(&at, servers, waits_for, &patience) {
            Ok(waited) => {
                exit = waited.exit();
                if !daemon.json {
                    io::stdout().write_all(waited.text().as_bytes())?;
                }
                done.waited = Some(waited);
            }
            Err(error) => {
                eprintln!("error: {error}");
                exit = exit_of(&error);
            }
        }
    }
    if daemon.json {
        print_json(&done)?;
    }
    Ok(exit)
}

fn show(addressed: &Addressed) -> Result<Exit> {
    let at = addressed.daemon.endpoint()?;
    let mut members: Vec<MemberStatus> = Vec::new();
    for selector in &addressed.servers {
        match fetch_members(&at, &selector.path()) {
            Ok(found) => {
                for member in found.members {
                    if !members.contains(&member) {
                        members.push(member);
                    }
                }
            }
            Err(error) => {
                eprintln!("error: {selector}: {error}");
                return Ok(exit_of(&error));
            }
        }
    }
    if addressed.daemon.json {
        print_json(&members)?;
    } else {
        let text = shown::members(&members, shown::unix_ms(), Paint::on(&io::stdout()));
        io::stdout().write_all(text.as_bytes())?;
    }
    Ok(Exit::Done)
}

pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    Ok(())
}

fn span(text: &str) -> Result<Duration, String> {
    let ms = towpath_config::duration_ms(text);
    ms.map(Duration::from_millis).ok_or_else(|| "write a number with its unit, as 90s, 10m or 2h".to_owned())
}

fn weight(text: &str) -> Result<WeightBody, String> {
    match text {
        "configured" => Ok(WeightBody::Word(Configuration::Configured)),
        number => match number.parse() {
            Ok(weight) => Ok(WeightBody::Number(weight)),
            Err(_) => Err("write a number from 0 to 65535, or `configured`".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_weights_have_bounds() {
        assert_eq!(span("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(span("2h"), Ok(Duration::from_secs(7200)));
        for wrong in ["90", "", "1.5h", "-1s", "10 parsecs"] {
            assert!(span(wrong).unwrap_err().contains("90s, 10m or 2h"), "{wrong}");
        }
        assert_eq!(weight("0"), Ok(WeightBody::Number(0)));
        assert_eq!(weight("configured"), Ok(WeightBody::Word(Configuration::Configured)));
        for wrong in ["65536", "-1", "half"] {
            assert!(weight(wrong).unwrap_err().contains("0 to 65535"), "{wrong}");
        }
    }
}
