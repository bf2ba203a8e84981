//! `towpath persistence`: which clients come back to which server, and how to forget it.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use towpath_engine::persistence::{ClearBody, ClearedStatus, EntriesStatus, EntryStatus, PersistenceQuery};
use towpath_engine::{post, query};

use crate::answer::{failed, given, show};
use crate::cli::Exit;
use crate::daemon::Daemon;
use crate::paint::Paint;
use crate::table::{Cell, Table, counted, span};

/// The daemon looks through a few million entries in that time.
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) const PERSISTENCE_HELP: &str = "\
What is forgotten ends no connection: the client gets a server anew with its next one.

Examples:
  towpath persistence list --service web
  towpath persistence list --client 192.0.2.7             where does this client come back to
  towpath persistence clear --server FE-1                 its clients are spread anew
  towpath persistence clear --service web --dry-run       only count them
  towpath persistence clear --all

Exit codes: 0 ok · 1 refused or failed · 2 usage · 5 daemon not reachable · 7 no answer in time";

/// What `towpath persistence` does.
#[derive(Debug, Subcommand)]
pub(crate) enum PersistenceCommand {
    /// Show who comes back to which server
    List(ListArguments),
    /// Forget it
    Clear(ClearArguments),
}

/// Which entries.
#[derive(Args, Clone, Debug)]
pub(crate) struct Filter {
    /// Of this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// That lead to this server: its name, address, or address:port
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// Of this address or network
    #[arg(long, value_name = "ADDRESS[/PREFIX]")]
    client: Option<String>,
    /// Of the client that is known by this hash, as a list shows it
    #[arg(long, value_name = "HASH")]
    key: Option<String>,
}

/// Arguments of `towpath persistence list`.
#[derive(Args, Debug)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    filter: Filter,
    /// Show so many at most [default: 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    limit: Option<u32>,
    #[command(flatten)]
    daemon: Daemon,
}

/// Arguments of `towpath persistence clear`.
#[derive(Args, Debug)]
pub(crate) struct ClearArguments {
    #[command(flatten)]
    filter: Filter,
    /// All there are
    #[arg(long)]
    all: bool,
    /// Why: shown in events and the log
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Only count them
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    daemon: Daemon,
}

impl Filter {
    fn query(&self, limit: Option<u32>) -> PersistenceQuery {
        let Filter { service, server, client, key } = self.clone();
        PersistenceQuery { service, server, client, key, limit }
    }
}

/// Does it.
pub(crate) fn persistence(command: &PersistenceCommand) -> Result<Exit> {
    match command {
        PersistenceCommand::List(arguments) => list(arguments),
        PersistenceCommand::Clear(arguments) => clear(arguments),
    }
}

fn list(arguments: &ListArguments) -> Result<Exit> {
    let ListArguments { filter, limit, daemon } = arguments;
    let PersistenceQuery { service, server, client, key, limit } = filter.query(*limit);
    let said = given([
        ("service", service),
        ("server", server),
        ("client", client),
        ("key", key),
        ("limit", limit.map(|limit| limit.to_string())),
    ]);
    let found: EntriesStatus = match query(&daemon.endpoint()?, "/v1/persistence", &said, LIMIT) {
        Ok(found) => found,
        Err(error) => return Ok(failed(&error)),
    };
    show(daemon, &found, &found.warnings, |paint| match found.matched {
        0 => "no entry fits\n".to_owned(),
        matched => format!("{}{} remembered\n", table(&found.entries, paint), counted(matched as usize, "client")),
    })?;
    Ok(Exit::Done)
}

fn clear(arguments: &ClearArguments) -> Result<Exit> {
    let ClearArguments { filter, all, reason, dry_run, daemon } = arguments;
    let body = ClearBody { entries: filter.query(None), all: *all, reason: reason.clone(), dry_run: *dry_run };
    let cleared: ClearedStatus = match post(&daemon.endpoint()?, "/v1/persistence/clear", &body, LIMIT) {
        Ok(cleared) => cleared,
        Err(error) => return Ok(failed(&error)),
    };
    show(daemon, &cleared, &cleared.warnings, |_| {
        let clients = counted(cleared.cleared as usize, "client");
        match cleared.dry_run {
            true => format!("{clients} would be forgotten; nothing was changed (--dry-run)\n"),
            false => format!("{clients} forgotten\n"),
        }
    })?;
    Ok(Exit::Done)
}

fn table(entries: &[EntryStatus], paint: Paint) -> String {
    let mut table =
        Table::new([Cell::word("service"), Cell::word("client"), Cell::word("server"), Cell::figure("expires in")]);
    for entry in entries {
        let group = if entry.group == entry.service { String::new() } else { format!(" ({})", entry.group) };
        let client = entry.client.as_deref().or(entry.key.as_deref()).unwrap_or("-");
        table.row([
            Cell::word(format!("{}{group}", entry.service)),
            Cell::word(client),
            Cell::word(&entry.server),
            Cell::figure(span(entry.expires_in_ms)),
        ]);
    }
    table.render(0, paint)
}
