//! `check = "external"`: a program of the operator's says how a server is.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use towpath_config::model::{CheckKind, CommandLine};
use towpath_core::health::{AgentReport, CheckId, CheckPlan};

use crate::command::{self, Outcome, first_line};
use crate::plan::COMMANDS_MAX;

use super::trace::{Detail, Trace};
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

/// Leave to run one program; given back when it has ended, and is gone.
pub(super) struct Place {
    _place: OwnedSemaphorePermit,
    _turn: Option<Turn>,
}

/// Why there is none.
pub(super) enum NoPlace {
    /// The program that was run before for the same check and port still hangs.
    Hangs,
    /// Others take all of them: no fault of the server's.
    Shortage(String),
}

/// What runs by itself, each port of a check once: a program that hangs takes the place of no other server's.
static RUNNING: LazyLock<Mutex<HashSet<(CheckId, u16)>>> = LazyLock::new(Mutex::default);

/// One of those; it ends with this value.
struct Turn((CheckId, u16));

impl Turn {
    fn begin(of: (CheckId, u16)) -> Option<Turn> {
        // Made only where it has begun: its end takes the lock again.
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).insert(of).then(|| Turn(of))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// A place among those that run, waited for no longer than `limit`. What is ordered does not wait for its turn.
pub(super) async fn place(
    of: (CheckId, u16),
    detail: Detail,
    limit: Duration,
    trace: &mut Trace,
) -> Result<Place, NoPlace> {
    trace.enter("place");
    let turn = match detail {
        Detail::Result => Some(Turn::begin(of).ok_or(NoPlace::Hangs)?),
        Detail::Steps => None,
    };
    let late =
        || NoPlace::Shortage(format!("no place to run it within {}, {COMMANDS_MAX} others run", duration(limit)));
    match timeout(limit, Arc::clone(&PLACES).acquire_owned()).await {
        Ok(Ok(place)) => Ok(Place { _place: place, _turn: turn }),
        Ok(Err(_)) | Err(_) => Err(late()),
    }
}

/// Runs it for one port. Others may have changed who can change it.
pub(super) async fn ask(
    place: Place,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_takes_one_place_and_only_its_own_check_waits() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let limit = Duration::from_secs(60);
        let ask = |check, port, detail| {
            runtime.block_on(place((CheckId(check), port), detail, limit, &mut Trace::begin(detail)))
        };
        let hangs = ask(900, 80, Detail::Result);
        assert!(hangs.is_ok());
        assert!(matches!(ask(900, 80, Detail::Result), Err(NoPlace::Hangs)));
        assert!(ask(900, 81, Detail::Result).is_ok() && ask(901, 80, Detail::Result).is_ok());
        assert!(ask(900, 80, Detail::Steps).is_ok(), "what is ordered does not wait for it");
        drop(hangs);
        assert!(ask(900, 80, Detail::Result).is_ok());
    }
}
