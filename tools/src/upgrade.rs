//! `towpath upgrade`: a new program takes over from the running one.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use towpath_engine::upgrade::{UpgradeBody, Upgraded};
use towpath_engine::{FetchError, order_upgrade};

use crate::cli::Exit;
use crate::daemon::Daemon;
use crate::status::exit_of;
use crate::table::{counted, span};

pub(crate) const UPGRADE_HELP: &str = "\
The daemon starts the program that is now at the path it was itself started from. The new process reads the configuration, checks everything, and takes
the listeners over as they are: nobody is refused. What was said at run time, what is known of servers and who comes back where goes along. Connections
that are open finish in the process before, each within the drain_timeout of its service; then that ends. If anything fails before the new process
serves, it ends, and the running one goes on as if nothing had been. What only a restart could change, such as limits, an upgrade changes, too.

It is asked for on the machine itself, by the control socket; another program or file only by root or the user that the daemon runs as. Counters begin
anew, as after a restart.

Examples:
  towpath upgrade                       after a new package was installed
  towpath upgrade -c other.toml         the same program with another file
  towpath upgrade --program ./towpath   a program that is not installed

Exit codes: 0 ok · 1 failed · 2 usage · 3 not taken over, nothing is changed · 5 daemon not reachable · 7 no answer in time";

/// Arguments of `towpath upgrade`.
#[derive(Args, Debug)]
pub(crate) struct UpgradeArguments {
    /// Another program than the one that is installed
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// Another configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    daemon: Daemon,
}

/// Has another process take over.
pub(crate) fn upgrade(arguments: &UpgradeArguments) -> Result<Exit> {
    // The daemon is in another directory.
    let absolute = |path: &PathBuf| path.canonicalize().with_context(|| format!("cannot find {}", path.display()));
    let body = UpgradeBody {
        program: arguments.program.as_ref().map(absolute).transpose()?,
        config: arguments.config.as_ref().map(absolute).transpose()?,
    };
    let upgraded = match order_upgrade(&arguments.daemon.endpoint()?, &body) {
        Ok(upgraded) => upgraded,
        Err(error) => {
            eprintln!("error: {}", error.to_string().trim_end());
            return Ok(match error {
                FetchError::Refused { status: 422, .. } => Exit::ConfigErrors,
                other => exit_of(&other),
            });
        }
    };
    let mut out = io::stdout().lock();
    if arguments.daemon.json {
        serde_json::to_writer_pretty(&mut out, &upgraded)?;
        writeln!(out)?;
        return Ok(Exit::Done);
    }
    writeln!(out, "{}", text(&upgraded))?;
    Ok(Exit::Done)
}

fn text(Upgraded { pid, version, before, finishing, drain_timeout_ms }: &Upgraded) -> String {
    let rest = match usize::try_from(*finishing).unwrap_or(usize::MAX) {
        0 => format!("process {before} has none and ends"),
        open => {
            format!(
                "{} may finish in process {before} for up to {}",
                counted(open, "connection"),
                span(*drain_timeout_ms)
            )
        }
    };
    format!("process {pid} (version {version}) serves; {rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_who_serves_and_what_becomes_of_connections() {
        let mut upgraded =
            Upgraded { pid: 12, version: "1.2.3".to_owned(), before: 7, finishing: 1, drain_timeout_ms: 30_000 };
        let expected = "process 12 (version 1.2.3) serves; 1 connection may finish in process 7 for up to 30 s";
        assert_eq!(text(&upgraded), expected);
        upgraded.finishing = 0;
        assert_eq!(text(&upgraded), "process 12 (version 1.2.3) serves; process 7 has none and ends");
    }
}
