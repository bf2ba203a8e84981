//! `towpath role`: whether this machine serves or stands by for its twin, asked and said over the daemon's Unix socket.

use std::io::{self, Write};

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;
use towpath_engine::role::{RoleBody, RoleChanged, RoleStatus, RoleText};
use towpath_engine::{FetchError, fetch_role, take_role};

use crate::cli::Exit;
use crate::daemon::Daemon;
use crate::status::exit_of;
use crate::table::span;

pub(crate) const ROLE_HELP: &str = "\
Of two machines with the same VIPs one is active, the other stands by: it answers no ARP and no neighbour solicitation for VIPs and SNAT addresses and
sends nothing on the packet plane; its listeners and health checks are ready. Who becomes active announces its addresses. What is said holds until
something else is said, here or in the file (`runtime.role`), and survives a restart; only \"active\" does not survive a start of the machine, whose twin
serves by then. Write role = \"standby\" into both files. Connections do not move with the role.

With keepalived:
  vrrp_instance towpath {
    …
    notify_master \"/usr/bin/towpath role active --reason keepalived\"
    notify_backup \"/usr/bin/towpath role standby --reason keepalived\"
    notify_fault  \"/usr/bin/towpath role standby --reason 'keepalived: fault'\"
  }

Examples:
  towpath role                          which role this machine has, since when and why
  towpath role standby                  the other machine serves from here on; returns when this one is silent
  towpath role active                   this one does

Exit codes: 0 ok · 1 refused or failed · 2 usage · 5 daemon not reachable";

/// Arguments of `towpath role`.
#[derive(Args, Debug)]
pub(crate) struct RoleArguments {
    /// The role that the machine is to have; without it, the one that it has is shown
    #[arg(value_enum, value_name = "ROLE")]
    role: Option<Role>,
    /// Why: shown in status, events and the log
    #[arg(long, value_name = "TEXT", default_value = "", requires = "role")]
    reason: String,
    #[command(flatten)]
    daemon: Daemon,
}

/// What a machine is to its twin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// It serves
    Active,
    /// The other one serves
    Standby,
}

/// Asks or says it.
pub(crate) fn role(arguments: &RoleArguments) -> Result<Exit> {
    let RoleArguments { role, reason, daemon } = arguments;
    let role = role.map(|role| match role {
        Role::Active => RoleText::Active,
        Role::Standby => RoleText::Standby,
    });
    match role {
        None => tell(fetch_role(&daemon.endpoint()?), daemon, |status| shown(status, unix_ms())),
        Some(role) => {
            let body = RoleBody { role, reason: reason.clone() };
            tell(take_role(&daemon.endpoint()?, &body), daemon, done)
        }
    }
}

fn tell<T: Serialize>(answer: Result<T, FetchError>, daemon: &Daemon, text: impl FnOnce(&T) -> String) -> Result<Exit> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(exit_of(&error));
        }
    };
    let mut out = io::stdout().lock();
    if daemon.json {
        serde_json::to_writer_pretty(&mut out, &answer)?;
        writeln!(out)?;
    } else {
        out.write_all(text(&answer).as_bytes())?;
    }
    Ok(Exit::Done)
}

fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_millis() as u64)
}

fn name(role: RoleText) -> &'static str {
    match role {
        RoleText::Active => "active",
        RoleText::Standby => "standby",
    }
}

fn shown(status: &RoleStatus, unix_ms: u64) -> String {
    let role = name(status.role);
    match (&status.said, status.configured) {
        (Some(said), configured) => {
            let since = span(unix_ms.saturating_sub(said.since_unix_ms));
            let reason = if said.reason.is_empty() { String::new() } else { format!(": {}", said.reason) };
            let file = configured.map_or("nothing", name);
            format!("{role} for {since}, by {}{reason} (the file says {file})\n", said.by)
        }
        (None, Some(_)) => format!("{role}, as the file says\n"),
        (None, None) => format!("{role}; the file does not name a role\n"),
    }
}

fn done(changed: &RoleChanged) -> String {
    let mut text = match changed.before == changed.after {
        true => format!("{}, as before\n", name(changed.after)),
        false => format!("{} → {}\n", name(changed.before), name(changed.after)),
    };
    for warning in &changed.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use towpath_engine::role::RoleSaid;

    use super::*;

    #[test]
    fn a_role_is_shown_with_who_has_said_so() {
        let by_file = RoleStatus { role: RoleText::Standby, configured: Some(RoleText::Standby), said: None };
        assert_eq!(shown(&by_file, 0), "standby, as the file says\n");
        let alone = RoleStatus { role: RoleText::Active, configured: None, said: None };
        assert_eq!(shown(&alone, 0), "active; the file does not name a role\n");
        let said = RoleSaid { since_unix_ms: 1_000, by: "root (uid 0)".into(), reason: "keepalived".into() };
        let said = RoleStatus { role: RoleText::Active, said: Some(said), ..by_file };
        let text = shown(&said, 61_000);
        assert!(text.starts_with("active for ") && text.contains("by root (uid 0): keepalived"), "{text}");
        assert!(text.ends_with("(the file says standby)\n"), "{text}");
    }

    #[test]
    fn what_a_word_did_is_told_with_its_warnings() {
        let mut changed = RoleChanged {
            generation: 2,
            before: RoleText::Standby,
            after: RoleText::Active,
            warnings: vec!["vip 192.0.2.10 is not here".into()],
        };
        assert_eq!(done(&changed), "standby → active\nwarning: vip 192.0.2.10 is not here\n");
        changed.before = RoleText::Active;
        changed.warnings.clear();
        assert_eq!(done(&changed), "active, as before\n");
    }
}
