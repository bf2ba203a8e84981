//! `towpath reload` and `towpath plan`: take the changed file, and what that would change.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use towpath_engine::reload::changes::{PlannedChange, ReloadPlan};
use towpath_engine::{FetchError, fetch_plan, order_reload};

use crate::cli::Exit;
use crate::daemon::Daemon;
use crate::file::ConfigFile;
use crate::paint::{Paint, Tint};
use crate::status::exit_of;
use crate::table::counted;

pub(crate) const RELOAD_HELP: &str = "\
The daemon reads the file that it was started with, checks all of it (certificates and ports included), and takes it at once and as a whole. With an
error nothing is changed. Connections that are open go on; those of a service that is gone may finish within its drain_timeout.

Examples:
  towpath plan                          what would change
  towpath reload                        change it
  towpath reload --json | jq .generation

Exit codes: 0 ok · 1 failed · 2 usage · 3 the file is not taken, nothing is changed · 5 daemon not reachable · 7 no answer in time";

pub(crate) const PLAN_HELP: &str = "\
Nothing is changed. What would need a restart, and whatever else keeps the daemon from taking the file, is told with its place or name.

Examples:
  towpath plan                          of the file that the daemon was started with
  towpath plan -c new.toml              of another one
  towpath plan --json | jq '.changes[] | select(.effect != \"go-on\")'

Exit codes: 0 a reload would take it · 1 failed · 2 usage · 3 it would not · 5 daemon not reachable · 7 no answer in time";

/// Arguments of `towpath reload`.
#[derive(Args, Debug)]
pub(crate) struct ReloadArguments {
    #[command(flatten)]
    daemon: Daemon,
}

/// Arguments of `towpath plan`.
#[derive(Args, Debug)]
pub(crate) struct PlanArguments {
    /// Another file than the daemon's
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    daemon: Daemon,
}

/// Has the daemon take its file.
pub(crate) fn reload(arguments: &ReloadArguments) -> Result<Exit> {
    let reloaded = match order_reload(&arguments.daemon.endpoint()?) {
        Ok(reloaded) => reloaded,
        Err(error) => return refused(&error),
    };
    reloaded.warnings.iter().for_each(|warning| eprintln!("warning: {}", warning.trim_end()));
    let mut out = io::stdout().lock();
    if arguments.daemon.json {
        print_json(&mut out, &reloaded)?;
        return Ok(Exit::Done);
    }
    write!(out, "{}", changes_text(&reloaded.changes, Paint::on(&io::stdout())))?;
    writeln!(out, "generation {} is in effect", reloaded.generation)?;
    Ok(Exit::Done)
}

/// Shows what a reload would change.
pub(crate) fn plan(arguments: &PlanArguments) -> Result<Exit> {
    let file = arguments.config.as_deref().map(ConfigFile::read).transpose()?;
    let plan = match fetch_plan(
        &arguments.daemon.endpoint()?,
        file.as_ref().map(|file| (file.name.as_str(), file.text.as_str())),
    ) {
        Ok(plan) => plan,
        Err(error) => return refused(&error),
    };
    let exit = if plan.refusals.is_empty() { Exit::Done } else { Exit::ConfigErrors };
    let mut out = io::stdout().lock();
    match arguments.daemon.json {
        true => print_json(&mut out, &plan)?,
        false => write!(out, "{}", plan_text(&plan, Paint::on(&io::stdout())))?,
    }
    Ok(exit)
}

fn refused(error: &FetchError) -> Result<Exit> {
    eprintln!("error: {}", error.to_string().trim_end());
    Ok(match error {
        FetchError::Refused { status: 422, .. } => Exit::ConfigErrors,
        other => exit_of(other),
    })
}

fn print_json(out: &mut impl Write, value: &impl Serialize) -> Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)?;
    Ok(())
}

fn plan_text(plan: &ReloadPlan, paint: Paint) -> String {
    let mut text = changes_text(&plan.changes, paint);
    for refusal in &plan.refusals {
        text.push_str(&format!("{}: {refusal}\n", paint.tint(Tint::Red, "refused")));
    }
    text.push_str(match plan.refusals.as_slice() {
        [] if plan.changes.is_empty() => "nothing would change\n",
        [] => "a reload would take this: `towpath reload`\n",
        _ => "a reload would refuse this and change nothing\n",
    });
    text
}

/// One line for each change, and what becomes of connections where there are any.
fn changes_text(changes: &[PlannedChange], paint: Paint) -> String {
    let line = |change: &PlannedChange| {
        let PlannedChange { subject, change, from, to, connections, effect } = change;
        let (sign, tint) = match change.as_str() {
            "added" => ("+", Tint::Green),
            "removed" => ("-", Tint::Red),
            _ => ("~", Tint::Yellow),
        };
        let what = match (change.as_str(), from.is_empty(), to.is_empty()) {
            ("added" | "removed" | "changed", true, true) => change.clone(),
            ("added", true, false) => format!("added: {to}"),
            (key, true, false) => format!("{key}: {to} (was not set)"),
            (key, false, true) => format!("{key}: not set any more (was {from})"),
            (key, ..) => format!("{key}: {from} → {to}"),
        };
        let touched = match usize::try_from(*connections).unwrap_or(usize::MAX) {
            0 => String::new(),
            open => format!(" ({} open: {})", counted(open, "connection"), effect.words()),
        };
        format!("{} {subject}: {what}{touched}\n", paint.tint(tint, sign))
    };
    changes.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use towpath_engine::reload::changes::Effect;

    use super::*;

    #[test]
    fn a_plan_reads_as_lines_with_what_becomes_of_connections() {
        let change = |subject: &str, change: &str, from: &str, to: &str, connections, effect| PlannedChange {
            subject: subject.to_owned(),
            change: change.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
            connections,
            effect,
        };
        let mut plan = ReloadPlan {
            generation: 4,
            changes: vec![
                change("service mail", "removed", "", "", 1, Effect::Finish),
                change("service web", "ports", "80", "80, 443", 12, Effect::GoOn),
                change("service web", "max_connections", "", "9", 0, Effect::GoOn),
                change("service post", "added", "", "192.0.2.1 tcp 25", 0, Effect::GoOn),
                change("server one of service web", "admin", "ready", "halt", 3, Effect::End),
            ],
            refusals: Vec::new(),
        };
        assert_eq!(
            plan_text(&plan, Paint::Plain),
            "- service mail: removed (1 connection open: may finish within drain_timeout)\n\
             ~ service web: ports: 80 → 80, 443 (12 connections open: go on)\n\
             ~ service web: max_connections: 9 (was not set)\n\
             + service post: added: 192.0.2.1 tcp 25\n\
             ~ server one of service web: admin: ready → halt (3 connections open: ended)\n\
             a reload would take this: `towpath reload`\n"
        );
        plan.changes.clear();
        assert_eq!(plan_text(&plan, Paint::Plain), "nothing would change\n");
        plan.refusals.push("limits.flows: cannot be taken while running; restart to apply".to_owned());
        assert!(plan_text(&plan, Paint::Plain).starts_with("refused: limits.flows"));
    }
}
