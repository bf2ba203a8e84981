//! `check = "external"`: a program of the operator's says how a server is.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use towpath_config::model::{CheckKind, CommandLine};
use towpath_core::health::{AgentReport, CheckPlan};

use crate::command::{self, Outcome, first_line};
use crate::plan::COMMANDS_MAX;

use super::trace::Trace;
use super::{Subject, duration, words};

/// The places of all of them.
static PLACES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(COMMANDS_MAX)));

/// What the program is told.
pub(super) fn environment(plan: &CheckPlan, to: SocketAddr, subject: &Subject) -> Vec<(&'static str, String)> {
    if !matches!(plan.kind, CheckKind::External(_)) {
        return Vec::new();
    }
    let mut environment = vec![
        ("TOWPATH_ADDRESS", plan.address.to_string()),
        ("TOWPATH_PORT", to.port().to_string()),
        ("TOWPATH_SERVER", subject.server.clone()),
        ("TOWPATH_SERVICES", subject.services.join(",")),
        ("TOWPATH_TIMEOUT_MS", plan.timeout_ms.to_string()),
    ];
    environment.extend(plan.vip.map(|vip| ("TOWPATH_VIP", vip.to_string())));
    environment
}

/// A place among those that run, waited for no longer than `limit`.
pub(super) async fn place(limit: Duration, trace: &mut Trace) -> Result<OwnedSemaphorePermit, String> {
    trace.enter("place");
    match timeout(limit, Arc::clone(&PLACES).acquire_owned()).await {
        Ok(Ok(place)) => Ok(place),
        Ok(Err(_closed)) => Err("the process is ending".to_owned()),
        Err(_late) => {
            Err(format!("no place to run it within {}: {COMMANDS_MAX} others have not ended", duration(limit)))
        }
    }
}

/// Runs it for one port. Others may have changed who can change it.
pub(super) async fn ask(
    place: OwnedSemaphorePermit,
    line: &CommandLine,
    environment: &[(&str, String)],
    limit: Duration,
    trace: &mut Trace,
) -> Result<Option<AgentReport>, String> {
    trace.enter("command");
    command::judge(&line.program).map_err(|problem| format!("{}: {problem}", line.program.display()))?;
    let with = |what: String, output: &str| match first_line(output) {
        line if line.is_empty() => what,
        line => format!("{what}: {line}"),
    };
    match command::run(place, line, environment, &[], limit).await {
        Ok(Outcome::Exited { status: 0, output }) => {
            trace.done(|| with("status 0".to_owned(), &output));
            Ok(None)
        }
        Ok(Outcome::Exited { status, output }) => Err(with(format!("status {status}"), &output)),
        Ok(Outcome::Late { output }) => Err(with(format!("no end within {}", duration(limit)), &output)),
        Ok(Outcome::Signalled { signal, output }) => Err(with(format!("killed by signal {signal}"), &output)),
        Err(error) => Err(format!("{}: {}", line.program.display(), words(&error))),
    }
}
