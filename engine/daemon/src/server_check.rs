//! `towpath server check`: the checks of one server, run now and told step by step. Nothing is judged by them: verdicts are made by the checks that
//! run by themselves.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use towpath_config::model::CheckKind;
use towpath_core::health::{CheckId, CheckPlan, CheckResult};
use towpath_core::plane::Network;
use towpath_core::snapshot::Target;

use crate::admin::MemberStatus;
use crate::house::House;
use crate::plan::ORDERED_PROBES_MAX;
use crate::probe::{self, Detail, Subject, Trust};
use crate::status::HealthStatus;

/// Room for all that is ordered: it has to show what is wrong also when all others wait.
static PLACES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(ORDERED_PROBES_MAX)));

/// The answer of `POST …/check`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// The servers that were chosen.
    pub servers: Vec<ServerChecked>,
}

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

/// What there is to run for one server.
pub(crate) struct Errand {
    checked: ServerChecked,
    plans: Vec<(CheckPlan, Subject)>,
    network: Arc<Network>,
}

/// What is to be run for this member. A server may stand in several groups of a service: each of their checks is run once.
pub(crate) fn errand(house: &House, member: &MemberStatus) -> Option<Errand> {
    let snapshot = house.shared.snapshot();
    let is_it = |target: &&Target| target.address == member.address && target.port == member.port;
    let of_service = snapshot.each_service().filter(|place| place.name == member.service);
    let targets: Vec<_> = of_service.flat_map(|place| &place.targets).filter(is_it).collect();
    let first = targets.first()?;
    let checks = targets.iter().filter_map(|target| target.check);
    let agents = targets.iter().filter_map(|target| target.agent);
    let mut wanted: Vec<CheckId> = Vec::new();
    for check in checks.chain(agents) {
        if !wanted.contains(&check) {
            wanted.push(check);
        }
    }
    let plan = |id| house.truth().checks().iter().find(|plan| plan.id == id).cloned();
    let plans: Vec<_> = wanted.into_iter().filter_map(|id| Some((plan(id)?, house.subject_of(id)))).collect();
    let checked = ServerChecked {
        service: member.service.clone(),
        server: member.server.clone(),
        address: first.address,
        admin: crate::status::word(&first.admin),
        health: first.health.into(),
        reason: first.reason.to_string(),
        passed: true,
        checks: Vec::with_capacity(plans.len()),
    };
    Some(Errand { checked, plans, network: house.shared.network().current() })
}

impl Errand {
    /// Runs it now, one check after the other: none is to disturb the other's times.
    pub(crate) async fn run(self) -> ServerChecked {
        let Errand { mut checked, plans, network } = self;
        for (plan, subject) in plans {
            let run = check(&plan, &subject, &network).await;
            checked.passed &= run.passed;
            checked.checks.push(run);
        }
        checked
    }
}

async fn check(plan: &CheckPlan, subject: &Subject, network: &Network) -> CheckRun {
    let began = Instant::now();
    let probed = probe::run(plan, network, &PLACES, &mut Trust::default(), subject, Detail::Steps).await;
    let (passed, reason) = match (&probed.result, &probed.answer) {
        (CheckResult::Passed, Some(_)) => (true, probed.heard()),
        (CheckResult::Passed, None) => (true, String::new()),
        (CheckResult::Failed(reason), _) => (false, reason.clone()),
    };
    CheckRun {
        check: word(&plan.kind).to_owned(),
        passed,
        reason,
        took_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
        ports: probed.ports,
    }
}

/// As the file has it.
fn word(kind: &CheckKind) -> &'static str {
    match kind {
        CheckKind::Agent { .. } => "agent",
        CheckKind::Dns(_) => "dns",
        CheckKind::External(_) => "external",
        CheckKind::Http(_) => "http",
        CheckKind::Https(..) => "https",
        CheckKind::Ldap(_) => "ldap",
        CheckKind::Ping => "ping",
        CheckKind::Radius(_) => "radius",
        CheckKind::Sip(_) => "sip",
        CheckKind::Smtp { .. } => "smtp",
        CheckKind::Stun { .. } => "stun",
        CheckKind::Tcp => "tcp",
        CheckKind::Tls(_) => "tls",
        CheckKind::Udp(_) => "udp",
    }
}
