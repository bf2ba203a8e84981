//! From the results of checks to up and down: who is checked, when next, and after how many results a server changes.

mod agent;
mod conversation;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use towpath_config::model::{CheckKind, Damping, ProxyVersion};

use crate::admin::AdminWords;
use crate::passive::PassiveBoard;
use crate::proxy_header;
use crate::random::SplitMix64;
use crate::snapshot::ServerHealth;
use crate::time::Now;

pub use agent::{AgentAdmin, AgentChange, AgentHealth, AgentReport, AgentState};
pub use conversation::{Conversation, Course, Parties, Secrets};

/// Different checks at most, over all services. Each runs once however many services and workers use it.
pub const CHECKS_MAX: usize = 8192;
/// First checks are spread over this long, or over one interval if that is shorter.
pub const FIRST_CHECK_WINDOW_MS: u64 = 500;
/// While a server has no verdict it is checked at least this often, so that `rise` does not delay a start by whole intervals.
pub const UNKNOWN_INTERVAL_MS: u64 = 500;
/// Times that a server went down which are remembered at most: as many as `health.flaps` may be, and some more.
pub const FALLS_MAX: usize = 128;
/// A server is held up to two to the power of this times as long as the first time.
const HOLD_DOUBLINGS_MAX: usize = 3;
/// A reason longer than this is cut.
pub const REASON_BYTES_MAX: usize = 200;
/// In the place of a port, of a check that has none: an echo request.
pub const NO_PORT: u16 = 0;

/// One check of one address with one set of parameters. Never given out twice by a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CheckId(pub u32);

impl fmt::Display for CheckId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A check to run: two with equal parameters are one (design.md 10.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckPlan {
    /// Its id; stable as long as all parameters stay.
    pub id: CheckId,
    /// Address of the server.
    pub address: IpAddr,
    /// What is asked for at the server's place on its network instead of its address: the VIP that direct server return delivers to it.
    pub vip: Option<IpAddr>,
    /// What is done on each port.
    pub kind: CheckKind,
    /// Every one of these must answer; ascending, without duplicates, never empty. [`NO_PORT`] alone for a check without any.
    pub ports: Vec<u16>,
    /// Those of them where clients come with a header of the PROXY protocol: a check says there that it is none.
    pub proxy: Option<(ProxyVersion, Vec<u16>)>,
    /// Time between the starts of two checks.
    pub interval_ms: u64,
    /// The same while the verdict is changing.
    pub fast_interval_ms: u64,
    /// A port that takes longer has failed.
    pub timeout_ms: u64,
    /// Consecutive successes that make it up.
    pub rise: u16,
    /// Consecutive failures that make it down.
    pub fall: u16,
    /// When it goes up and down too often.
    pub damping: Damping,
}

impl CheckPlan {
    /// Whether it asks an agent, whose word is laid over what a check says.
    pub fn is_agent(&self) -> bool {
        matches!(self.kind, CheckKind::Agent { .. })
    }

    /// What a connection to this port begins with, if anything.
    pub fn herald(&self, port: u16) -> Vec<u8> {
        let mut header = Vec::new();
        if let Some((version, ports)) = &self.proxy
            && ports.contains(&port)
        {
            proxy_header::local(*version, &mut header);
        }
        header
    }

    /// The sockets to try, all of them each time.
    pub fn sockets(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.ports.iter().map(|&port| SocketAddr::new(self.vip.unwrap_or(self.address), port))
    }

    /// One result for the group of ports: passed only if *every* port answered (T-36). A port without a result has failed.
    pub fn judge(&self, results: &[(u16, Result<(), String>)]) -> CheckResult {
        let mut failures = Vec::new();
        for &port in &self.ports {
            match results.iter().find(|(of, _)| *of == port) {
                Some((_, Ok(()))) => {}
                Some((_, Err(reason))) if port == NO_PORT => failures.push(reason.clone()),
                Some((_, Err(reason))) => failures.push(format!("port {port}: {reason}")),
                None => failures.push(format!("port {port}: not checked")),
            }
        }
        if failures.is_empty() { CheckResult::Passed } else { CheckResult::Failed(failures.join("; ")) }
    }
}

/// How one check went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// It did not pass, with the cause in words.
    Failed(String),
    /// Every port answered in time.
    Passed,
}

/// A server changed sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// What it was.
    pub from: ServerHealth,
    /// What it is from now on.
    pub to: ServerHealth,
    /// Why.
    pub reason: Arc<str>,
    /// When.
    pub at: Now,
    /// For how long it had been what it was, in milliseconds.
    pub lasted_ms: u64,
}

/// The verdict about one check, built from its results.
///
/// It starts `Unknown`. From there `rise` successes in a row make it `Up` and `fall` failures in a row `Down`, whichever
/// comes first; later the same counts change it back. One result of the other kind starts the count again.
///
/// One that goes down too often is `Held` in place of `Up` for a while ([`Damping`]; the idea is that of route flap damping, RFC 2439): what ends and
/// moves connections with each change must not do so all the time.
#[derive(Clone, Debug)]
pub struct HealthState {
    rise: u16,
    fall: u16,
    damping: Damping,
    /// When it went down from up, within the window of the damping, oldest first; at most [`FALLS_MAX`].
    falls: VecDeque<Now>,
    /// Until when it is not up, whatever the results.
    held_until: Option<Now>,
    /// When it came up after it had been down.
    returned: Option<Now>,
    health: ServerHealth,
    since: Now,
    reason: Arc<str>,
    passed_in_a_row: u16,
    failed_in_a_row: u16,
}

impl HealthState {
    /// No verdict yet. A `rise` or `fall` of 0 counts as 1.
    pub fn new(rise: u16, fall: u16, now: Now) -> HealthState {
        HealthState {
            rise: rise.max(1),
            fall: fall.max(1),
            damping: Damping::OFF,
            falls: VecDeque::new(),
            held_until: None,
            returned: None,
            health: ServerHealth::Unknown,
            since: now,
            reason: Arc::from("no check has finished yet"),
            passed_in_a_row: 0,
            failed_in_a_row: 0,
        }
    }

    /// The same with damping.
    pub fn damped(self, damping: Damping) -> HealthState {
        HealthState { damping, ..self }
    }

    /// Takes one result; `Some` when the verdict changes.
    pub fn on_result(&mut self, result: CheckResult, now: Now) -> Option<Transition> {
        let is_held = self.held_until.is_some_and(|until| now < until);
        let verdict = match result {
            CheckResult::Passed => {
                self.failed_in_a_row = 0;
                self.passed_in_a_row = self.passed_in_a_row.saturating_add(1);
                let risen = if is_held { ServerHealth::Held } else { ServerHealth::Up };
                (self.passed_in_a_row >= self.rise).then_some(risen)
            }
            CheckResult::Failed(reason) => {
                self.passed_in_a_row = 0;
                self.failed_in_a_row = self.failed_in_a_row.saturating_add(1);
                let stays = matches!(self.health, ServerHealth::Held | ServerHealth::Up);
                if !stays || self.failed_in_a_row >= self.fall {
                    self.reason = bounded(&reason);
                }
                (self.failed_in_a_row >= self.fall).then_some(ServerHealth::Down)
            }
        };
        let to = verdict.filter(|&verdict| verdict != self.health)?;
        match to {
            ServerHealth::Down => {
                self.returned = None;
                if self.health == ServerHealth::Up {
                    self.note_fall(now);
                }
            }
            ServerHealth::Held => {
                let left_s = self.held_until.map_or(0, |until| until.ms_since(now).div_ceil(1000));
                let falls = self.falls.len();
                self.reason =
                    format!("its check passes, but it went down {falls} times lately: held for {left_s} s").into();
            }
            ServerHealth::Up => {
                self.reason = Arc::from("check passed");
                self.returned = (self.health != ServerHealth::Unknown).then_some(now);
                self.held_until = None;
            }
            ServerHealth::Unknown => {}
        }
        let from = std::mem::replace(&mut self.health, to);
        let since = std::mem::replace(&mut self.since, now);
        Some(Transition { from, to, reason: self.reason.clone(), at: now, lasted_ms: now.ms_since(since) })
    }

    /// It went down from up.
    fn note_fall(&mut self, now: Now) {
        let Damping { flaps, window_ms, hold_ms } = self.damping;
        if flaps == 0 {
            return;
        }
        while self.falls.len() == FALLS_MAX || self.falls.front().is_some_and(|&fall| now.ms_since(fall) > window_ms) {
            self.falls.pop_front();
        }
        self.falls.push_back(now);
        let Some(over) = self.falls.len().checked_sub(usize::from(flaps)) else { return };
        let hold_ms = hold_ms.saturating_mul(1 << over.min(HOLD_DOUBLINGS_MAX));
        self.held_until = Some(now + hold_ms);
    }

    /// The verdict.
    pub fn health(&self) -> ServerHealth {
        self.health
    }

    /// When it came up again after it had been down; `None` while it is down, and where it has been up since its first verdict.
    pub fn returned(&self) -> Option<Now> {
        self.returned
    }

    /// When the verdict last changed; when it was created if it never did.
    pub fn since(&self) -> Now {
        self.since
    }

    /// Why the verdict is what it is; for a server that is down or unknown, the latest failure.
    pub fn reason(&self) -> &Arc<str> {
        &self.reason
    }

    /// Results in a row that speak against the verdict, and how many of them change it: "1 of 3 failed".
    pub fn against(&self) -> (u16, u16) {
        match self.health {
            ServerHealth::Held | ServerHealth::Up => (self.failed_in_a_row, self.fall),
            ServerHealth::Down | ServerHealth::Unknown => (self.passed_in_a_row, self.rise),
        }
    }

    /// How soon the next check is wanted.
    pub fn pace(&self) -> Pace {
        match self.health {
            ServerHealth::Unknown => Pace::Unknown,
            ServerHealth::Down | ServerHealth::Held | ServerHealth::Up if self.against().0 > 0 => Pace::Changing,
            ServerHealth::Down | ServerHealth::Held | ServerHealth::Up => Pace::Steady,
        }
    }
}

/// Why a check comes when it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// The latest result speaks against the verdict.
    Changing,
    /// The verdict stands.
    Steady,
    /// There is no verdict.
    Unknown,
}

fn bounded(reason: &str) -> Arc<str> {
    if reason.len() <= REASON_BYTES_MAX {
        return Arc::from(reason);
    }
    let end = (0..=REASON_BYTES_MAX).rev().find(|&at| reason.is_char_boundary(at)).unwrap_or(0);
    Arc::from(&reason[..end])
}

/// When one check runs next: at once for a fresh one, then at its interval ± 10 %, so that checks do not march in step.
#[derive(Clone, Debug)]
pub struct CheckSchedule {
    interval_ms: u64,
    fast_interval_ms: u64,
    due: Now,
    random: SplitMix64,
}

impl CheckSchedule {
    /// A schedule whose first check is due within [`FIRST_CHECK_WINDOW_MS`] (or one interval, if shorter) of `now`.
    pub fn new(plan: &CheckPlan, seed: u64, now: Now) -> CheckSchedule {
        let interval_ms = plan.interval_ms.max(1);
        let fast_interval_ms = plan.fast_interval_ms.clamp(1, interval_ms);
        let mut random = SplitMix64::new(seed);
        let due = now + random.below(interval_ms.min(FIRST_CHECK_WINDOW_MS));
        CheckSchedule { interval_ms, fast_interval_ms, due, random }
    }

    /// When the next check starts.
    pub fn due(&self) -> Now {
        self.due
    }

    /// A check has started at `started` and this follows from its result: sets and returns when the next one is due,
    /// `started` + interval ± 10 %. Without a verdict the interval is at most [`UNKNOWN_INTERVAL_MS`].
    pub fn advance(&mut self, started: Now, pace: Pace) -> Now {
        let interval_ms = match pace {
            Pace::Changing => self.fast_interval_ms,
            Pace::Steady => self.interval_ms,
            Pace::Unknown => self.fast_interval_ms.min(UNKNOWN_INTERVAL_MS),
        };
        let slack_ms = interval_ms / 10;
        self.due = started + (interval_ms - slack_ms) + self.random.below(2 * slack_ms + 1);
        self.due
    }
}

/// The verdicts about all checks that run, and what the operator has said beside the file: what [`crate::compile::compile`] reads.
#[derive(Clone, Debug, Default)]
pub struct HealthBoard {
    /// The operator's words at run time.
    pub words: AdminWords,
    rows: HashMap<CheckId, Row>,
    /// What clients meet.
    pub passive: PassiveBoard,
    agents: HashMap<CheckId, Agent>,
}

#[derive(Clone, Debug)]
struct Agent {
    subject: Subject,
    state: AgentState,
}

#[derive(Clone, Debug)]
struct Row {
    subject: Subject,
    state: HealthState,
}

/// What is checked, whatever the rhythm and the counts.
type Subject = (IpAddr, CheckKind, Vec<u16>);

impl HealthBoard {
    /// An empty board.
    pub fn new() -> HealthBoard {
        HealthBoard::default()
    }

    /// Keeps exactly these checks: what is known about those that stay, nothing of the rest.
    ///
    /// A new check is `Unknown`, unless it only asks anew what was asked before: the same ports of the same address, or the
    /// same address in place of a check that is gone. Then that verdict holds until the new counts change it, so that a new
    /// interval or another port takes no server out of service.
    pub fn adopt(&mut self, plans: &[CheckPlan], now: Now) {
        self.adopt_agents(plans, now);
        let plans: Vec<&CheckPlan> = plans.iter().filter(|plan| !plan.is_agent()).collect();
        let mut gone = std::mem::take(&mut self.rows);
        for plan in &plans {
            if let Some(row) = gone.remove(&plan.id) {
                self.rows.insert(plan.id, row);
            }
        }
        let mut same_ports: HashMap<Subject, HealthState> = HashMap::new();
        let mut same_address: HashMap<(IpAddr, CheckKind), (CheckId, HealthState)> = HashMap::new();
        let mut before: Vec<(&CheckId, &Row)> = gone.iter().chain(&self.rows).collect();
        before.sort_unstable_by_key(|(id, _)| **id);
        for (_, row) in before {
            same_ports.insert(row.subject.clone(), row.state.clone());
        }
        for (id, Row { subject: (address, kind, _), state }) in gone {
            let latest = same_address.entry((address, kind)).or_insert((id, state.clone()));
            if id > latest.0 {
                *latest = (id, state);
            }
        }
        for plan in plans {
            if self.rows.contains_key(&plan.id) {
                continue;
            }
            let subject = (plan.address, plan.kind.clone(), plan.ports.clone());
            let mut state = HealthState::new(plan.rise, plan.fall, now).damped(plan.damping);
            let before =
                same_ports.get(&subject).or_else(|| Some(&same_address.get(&(plan.address, plan.kind.clone()))?.1));
            if let Some(before) = before {
                state.health = before.health;
                state.since = before.since;
                state.reason = before.reason.clone();
                state.falls = before.falls.clone();
                state.held_until = before.held_until;
                state.returned = before.returned;
            }
            self.rows.insert(plan.id, Row { subject, state });
        }
    }

    /// An agent is the one who answers at a port of an address; what it has said holds, however often it is asked from now on.
    fn adopt_agents(&mut self, plans: &[CheckPlan], now: Now) {
        let before = std::mem::take(&mut self.agents);
        for plan in plans.iter().filter(|plan| plan.is_agent()) {
            let subject: Subject = (plan.address, plan.kind.clone(), plan.ports.clone());
            let known = before.get(&plan.id).or_else(|| before.values().find(|agent| agent.subject == subject));
            let state = known.map_or_else(|| AgentState::new(now), |agent| agent.state.clone());
            self.agents.insert(plan.id, Agent { subject, state });
        }
    }

    /// Takes the answer of an agent, or why there is none. Of one that is gone it is ignored.
    pub fn on_answer(&mut self, agent: CheckId, answer: Result<AgentReport, String>, now: Now) -> AgentChange {
        self.agents.get_mut(&agent).map_or(AgentChange::Nothing, |agent| agent.state.on_answer(answer, now))
    }

    /// What is known of an agent.
    pub fn agent(&self, agent: CheckId) -> Option<&AgentState> {
        self.agents.get(&agent).map(|agent| &agent.state)
    }

    /// Whether this check has come to a verdict, or this agent was asked; also of one that is gone.
    pub fn is_judged(&self, check: CheckId) -> bool {
        match (self.state(check), self.agent(check)) {
            (Some(state), _) => state.health() != ServerHealth::Unknown,
            (None, Some(agent)) => agent.is_asked(),
            (None, None) => true,
        }
    }

    /// Takes one result; `Some` when the verdict changes and a new snapshot is due. A check that is gone is ignored.
    pub fn on_result(&mut self, check: CheckId, result: CheckResult, now: Now) -> Option<Transition> {
        self.rows.get_mut(&check)?.state.on_result(result, now)
    }

    /// Gives a check that has no verdict yet the one that another process had come to; it holds until the check's own counts change it.
    pub fn inherit(&mut self, check: CheckId, health: ServerHealth, reason: &str, now: Now) {
        let Some(Row { state, .. }) = self.rows.get_mut(&check) else { return };
        if state.health != ServerHealth::Unknown {
            return;
        }
        // For how long one is still held back nobody has told: it has to prove itself once more.
        state.health = if health == ServerHealth::Held { ServerHealth::Down } else { health };
        state.reason = bounded(reason);
        state.since = now;
    }

    /// What is known about `check`.
    pub fn state(&self, check: CheckId) -> Option<&HealthState> {
        self.rows.get(&check).map(|row| &row.state)
    }

    /// Checks on the board.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether no check is on the board.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

#[cfg(test)]
mod tests;
