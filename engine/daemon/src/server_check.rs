//! `towpath server check`: the checks of one server, run now and told step by step. Nothing is judged by them: verdicts are made by the checks that
//! run by themselves.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use towpath_config::model::CheckKind;
use towpath_core::health::{CheckPlan, CheckResult};

use crate::house::House;
use crate::probe::{self, Detail, Trust};
use crate::status::HealthStatus;

/// What is known of a server, and how its checks went just now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerChecked {
    /// The service.
    pub service: String,
    /// The server, as the service calls it.
    pub server: String,
    /// Its address.
    pub address: IpAddr,
    /// The operator's word about it.
    pub admin: String,
    /// The verdict in force, which this changes nothing about.
    pub health: HealthStatus,
    /// Why it is what it is.
    pub reason: String,
    /// Whether every check has passed; an agent passes that answers.
    pub passed: bool,
    /// Its checks, then its agent's; empty where it is not checked.
    pub checks: Vec<CheckRun>,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckRun {
    /// The word of `health.check`, or `agent`.
    pub check: String,
    /// Whether it passed.
    pub passed: bool,
    /// Why it did not; of an agent that answers, its line.
    pub reason: String,
    /// All of it, in microseconds.
    pub took_us: u64,
    /// Every port that it asks.
    pub ports: Vec<PortRun>,
}

/// One port of a check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortRun {
    /// What was asked.
    pub socket: SocketAddr,
    /// Whether it passed.
    pub passed: bool,
    /// From the first step to the last, in microseconds.
    pub took_us: u64,
    /// What was done, in order.
    pub steps: Vec<Step>,
}

/// One thing that a check did or waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What.
    pub step: String,
    /// When it began, in microseconds from the first.
    pub at_us: u64,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// Whether it went well.
    pub passed: bool,
    /// What came of it: what the server said, or why it failed.
    pub detail: String,
}

/// Why nothing was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotChecked {
    /// There is no such service.
    UnknownService,
    /// The service has no such server.
    UnknownServer,
}

/// What there is to run for one server.
struct Errand {
    checked: ServerChecked,
    plans: Vec<CheckPlan>,
}

/// How long the checks of this server may take together.
pub(crate) fn limit(house: &House, service: &str, server: &str) -> Duration {
    let plans = errand(house, service, server).map_or_else(|_| Vec::new(), |errand| errand.plans);
    Duration::from_millis(plans.iter().map(|plan| plan.timeout_ms).max().unwrap_or(0))
}

/// Runs them now, side by side.
pub(crate) async fn run(house: &House, service: &str, server: &str) -> Result<ServerChecked, NotChecked> {
    let Errand { mut checked, plans } = errand(house, service, server)?;
    let network = house.shared.network().current();
    let mut running = Vec::with_capacity(plans.len());
    for plan in plans {
        let (network, subject) = (Arc::clone(&network), house.subject_of(plan.id));
        running.push(tokio::spawn(async move {
            // Room of its own: it has to show what is wrong also when all others wait.
            let places = Arc::new(Semaphore::new(plan.ports.len()));
            let began = tokio::time::Instant::now();
            let probed = probe::run(&plan, &network, &places, &mut Trust::default(), &subject, Detail::Steps).await;
            let (passed, reason) = match (&probed.result, &probed.answer) {
                (CheckResult::Passed, Some(Ok(_))) => (true, probed.heard()),
                (CheckResult::Passed, _) => (true, String::new()),
                (CheckResult::Failed(reason), _) => (false, reason.clone()),
            };
            CheckRun {
                check: word(&plan.kind).to_owned(),
                passed,
                reason,
                took_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
                ports: probed.ports,
            }
        }));
    }
    for run in running {
        if let Ok(run) = run.await {
            checked.passed &= run.passed;
            checked.checks.push(run);
        }
    }
    Ok(checked)
}

/// A server may stand in several groups of a service: each of their checks is run once.
fn errand(house: &House, service: &str, server: &str) -> Result<Errand, NotChecked> {
    let snapshot = house.shared.snapshot();
    let truth = house.truth();
    let mut places = snapshot.each_service().filter(|place| place.name == service).peekable();
    places.peek().ok_or(NotChecked::UnknownService)?;
    let targets: Vec<_> = places.flat_map(|place| &place.targets).filter(|target| target.name == server).collect();
    let first = targets.first().ok_or(NotChecked::UnknownServer)?;
    let mut wanted: Vec<_> = Vec::new();
    for check in
        targets.iter().filter_map(|target| target.check).chain(targets.iter().filter_map(|target| target.agent))
    {
        if !wanted.contains(&check) {
            wanted.push(check);
        }
    }
    let plan = |id| truth.checks().iter().find(|plan| plan.id == id).cloned();
    let checked = ServerChecked {
        service: service.to_owned(),
        server: server.to_owned(),
        address: first.address,
        admin: crate::status::word(&first.admin),
        health: HealthStatus::of(first.health),
        reason: first.reason.to_string(),
        passed: true,
        checks: Vec::with_capacity(wanted.len()),
    };
    Ok(Errand { checked, plans: wanted.into_iter().filter_map(plan).collect() })
}

/// As the file has it.
fn word(kind: &CheckKind) -> &'static str {
    match kind {
        CheckKind::Agent { .. } => "agent",
        CheckKind::External(_) => "external",
        CheckKind::Http(_) => "http",
        CheckKind::Https(..) => "https",
        CheckKind::Sip(_) => "sip",
        CheckKind::Smtp { .. } => "smtp",
        CheckKind::Tcp => "tcp",
        CheckKind::Tls(_) => "tls",
    }
}
