//! What an agent on a server says about it, in the words of HAProxy's agent check (its configuration manual, 5.2), and what that makes of a member.

use std::sync::Arc;

use towpath_config::model::AdminState;

use crate::snapshot::{ServerHealth, Target};
use crate::time::Now;

use super::bounded;

/// Longest line of an agent.
pub(super) const LINE_BYTES_MAX: usize = 1_024;
/// Largest share of its weight that a server may ask for.
const PERCENT_MAX: u32 = 10_000;

/// One line of an agent. What it does not mention stays as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentReport {
    /// Share of the weight in the file.
    pub weight_percent: Option<u32>,
    /// Never more than so many connections.
    pub max_connections: Option<u32>,
    /// How the server wants to be treated.
    pub admin: Option<AgentAdmin>,
    /// Whether it works.
    pub health: Option<AgentHealth>,
    /// Why, in the agent's words; may be empty.
    pub reason: String,
    /// The first word that nobody knows.
    pub unknown: Option<String>,
}

/// How a server wants to be treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AgentAdmin {
    /// As the operator's `drain`.
    Drain,
    /// Nobody enters, not even who is pinned to it; what is open stays.
    Maint,
    /// As the operator says.
    #[default]
    Ready,
}

/// Whether a server works, by its own account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AgentHealth {
    /// It is down, whatever its check says.
    Down,
    /// It is what its check says.
    #[default]
    Up,
}

impl AgentReport {
    /// Reads a line: words between blanks, tabs and commas in any order and case, then `#` and a reason.
    pub fn parse(line: &[u8]) -> Result<AgentReport, String> {
        let line = line.split(|byte| matches!(byte, b'\r' | b'\n' | 0)).next().unwrap_or_default();
        // What it says goes to terminals.
        let plain = |sign: char| if sign == '\t' { ' ' } else { sign };
        let line: String = String::from_utf8_lossy(line).chars().map(plain).filter(|sign| !sign.is_control()).collect();
        let (words, reason) = line.split_once('#').unwrap_or((&line, ""));
        let mut report = AgentReport { reason: reason.trim().to_owned(), ..AgentReport::default() };
        let mut knows_any = false;
        for word in words.split([' ', ',']).filter(|word| !word.is_empty()) {
            match report.take(word) {
                Some(()) => knows_any = true,
                None => report.unknown = report.unknown.or_else(|| Some(word.to_owned())),
            }
        }
        match (knows_any, &report.unknown) {
            (true, _) => Ok(report),
            (false, Some(word)) => Err(format!("the agent says \"{word}\", which nobody knows")),
            (false, None) => Err("the agent says nothing".to_owned()),
        }
    }

    fn take(&mut self, word: &str) -> Option<()> {
        let number =
            |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
        if let Some(percent) = word.strip_suffix('%') {
            self.weight_percent = Some(number(percent).filter(|&percent| percent <= PERCENT_MAX)?);
            return Some(());
        }
        let word = word.to_ascii_lowercase();
        if let Some(connections) = word.strip_prefix("maxconn:") {
            self.max_connections = Some(number(connections)?);
            return Some(());
        }
        match word.as_str() {
            "drain" => self.admin = Some(AgentAdmin::Drain),
            "maint" => self.admin = Some(AgentAdmin::Maint),
            "ready" => self.admin = Some(AgentAdmin::Ready),
            "down" | "fail" | "failed" | "stopped" => self.health = Some(AgentHealth::Down),
            "up" => self.health = Some(AgentHealth::Up),
            _ => return None,
        }
        Some(())
    }
}

/// Everything that an agent has said and not taken back.
#[derive(Clone, Debug)]
pub struct AgentState {
    weight_percent: Option<u32>,
    max_connections: Option<u32>,
    admin: AgentAdmin,
    health: AgentHealth,
    reason: Arc<str>,
    since: Now,
    /// Why the latest question has no answer.
    failure: Option<Arc<str>>,
    asked: bool,
}

/// What an answer has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentChange {
    /// Nothing that members are made of.
    Nothing,
    /// A share or a limit.
    Share,
    /// Its word: [`AgentState::word`] before.
    Word(&'static str),
}

impl AgentState {
    /// Nothing is said yet.
    pub fn new(now: Now) -> AgentState {
        AgentState {
            weight_percent: None,
            max_connections: None,
            admin: AgentAdmin::Ready,
            health: AgentHealth::Up,
            reason: Arc::from(""),
            since: now,
            failure: None,
            asked: false,
        }
    }

    /// Takes one answer. Without one everything stays: an agent that has gone is no reason to send clients to a server that it took out.
    pub fn on_answer(&mut self, answer: Result<AgentReport, String>, now: Now) -> AgentChange {
        self.asked = true;
        let report = match answer {
            Ok(report) => report,
            Err(reason) => {
                self.failure = Some(bounded(&reason));
                return AgentChange::Nothing;
            }
        };
        self.failure = report.unknown.as_deref().map(|word| bounded(&format!("nobody knows its word \"{word}\"")));
        let before = (self.weight_percent, self.max_connections);
        let word = self.word();
        self.weight_percent = report.weight_percent.or(self.weight_percent);
        self.max_connections = report.max_connections.or(self.max_connections);
        self.admin = report.admin.unwrap_or(self.admin);
        self.health = report.health.unwrap_or(self.health);
        if self.word() != word {
            self.reason = bounded(&report.reason);
            self.since = now;
            return AgentChange::Word(word);
        }
        if !report.reason.is_empty() {
            self.reason = bounded(&report.reason);
        }
        if before == (self.weight_percent, self.max_connections) { AgentChange::Nothing } else { AgentChange::Share }
    }

    /// Whether it was asked at all.
    pub fn is_asked(&self) -> bool {
        self.asked
    }

    /// What it says, in the strongest of its words.
    pub fn word(&self) -> &'static str {
        match (self.health, self.admin) {
            (AgentHealth::Down, _) => "down",
            (AgentHealth::Up, AgentAdmin::Maint) => "maint",
            (AgentHealth::Up, AgentAdmin::Drain) => "drain",
            (AgentHealth::Up, AgentAdmin::Ready) => "ready",
        }
    }

    /// Why, in its words; may be empty.
    pub fn reason(&self) -> &Arc<str> {
        &self.reason
    }

    /// All of it in one line, for status: `drain, 50 %, at most 30 connections (backup runs); no answer: connection refused`.
    pub fn line(&self) -> String {
        let mut line = self.word().to_owned();
        if let Some(percent) = self.weight_percent {
            line.push_str(&format!(", {percent} %"));
        }
        if let Some(connections) = self.max_connections {
            line.push_str(&format!(", at most {connections} connections"));
        }
        if !self.reason.is_empty() {
            line.push_str(&format!(" ({})", self.reason));
        }
        if let Some(failure) = &self.failure {
            line.push_str(&format!("; {failure}"));
        }
        line
    }

    /// Lays what it says over a member: of its word and the operator's the stronger one counts, of two limits the lower one, and its share is one of
    /// the operator's weight.
    pub fn lay_over(&self, target: &mut Target) {
        if let Some(percent) = self.weight_percent {
            let share = u64::from(target.weight) * u64::from(percent);
            // A share of 1 % of weight 1 is little, not nothing.
            let least = u64::from(share > 0);
            target.weight = u16::try_from((share / 100).max(least)).unwrap_or(u16::MAX);
        }
        // HAProxy's 0 is no limit, as ours.
        if let Some(most) = self.max_connections.filter(|&most| most > 0) {
            target.max_connections = if target.max_connections == 0 { most } else { target.max_connections.min(most) };
        }
        match self.admin {
            AgentAdmin::Ready => {}
            AgentAdmin::Drain | AgentAdmin::Maint => {
                if target.admin == AdminState::Ready {
                    target.admin = AdminState::Drain;
                }
                target.in_maintenance = self.admin == AgentAdmin::Maint;
            }
        }
        target.in_maintenance |= self.health == AgentHealth::Down;
        if self.health == AgentHealth::Down && target.health != ServerHealth::Down {
            target.health = ServerHealth::Down;
            target.since = self.since;
            let because = if self.reason.is_empty() { String::new() } else { format!(": {}", self.reason) };
            target.reason = bounded(&format!("its agent says down{because}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures;

    fn report(line: &str) -> AgentReport {
        AgentReport::parse(line.as_bytes()).unwrap()
    }

    #[test]
    fn words_are_read_in_any_order_and_case() {
        let all = AgentReport {
            weight_percent: Some(75),
            max_connections: Some(30),
            admin: Some(AgentAdmin::Drain),
            health: Some(AgentHealth::Up),
            reason: String::new(),
            unknown: None,
        };
        let reason = |admin, reason: &str| AgentReport { admin, reason: reason.into(), ..AgentReport::default() };
        let down = |reason: &str| AgentReport { health: Some(AgentHealth::Down), ..report_of(reason) };
        let rows = [
            ("75% maxconn:30 drain up\n", all.clone()),
            ("UP,DRAIN\tMAXCONN:30 75%\r\nmaint\r\n", all),
            ("maint", reason(Some(AgentAdmin::Maint), "")),
            ("ready # back at work ", reason(Some(AgentAdmin::Ready), "back at work")),
            ("down #disk full", down("disk full")),
            ("failed", down("")),
            ("stopped\0rest", down("")),
            ("fail", down("")),
        ];
        for (line, expected) in rows {
            assert_eq!(report(line), expected, "{line}");
        }
        let odd = report("50% please 10001%");
        assert_eq!((odd.weight_percent, odd.unknown.as_deref()), (Some(50), Some("please")));
        for (line, told) in [
            ("", "the agent says nothing"),
            (" , \t\n", "the agent says nothing"),
            ("# only a reason", "the agent says nothing"),
            ("HTTP/1.1 200 OK", "the agent says \"HTTP/1.1\", which nobody knows"),
            ("-5%", "the agent says \"-5%\", which nobody knows"),
            ("%", "the agent says \"%\", which nobody knows"),
            ("maxconn:", "the agent says \"maxconn:\", which nobody knows"),
            ("maxconn:99999999999", "the agent says \"maxconn:99999999999\", which nobody knows"),
        ] {
            assert_eq!(AgentReport::parse(line.as_bytes()), Err(told.to_owned()), "{line}");
        }
    }

    fn report_of(reason: &str) -> AgentReport {
        AgentReport { reason: reason.into(), ..AgentReport::default() }
    }

    /// A member of weight 100 under what an agent has said, line by line.
    fn under(lines: &[&str]) -> Target {
        let mut state = AgentState::new(Now(0));
        for (at, line) in lines.iter().enumerate() {
            state.on_answer(AgentReport::parse(line.as_bytes()), Now(at as u64));
        }
        let mut target = fixtures::target(0);
        state.lay_over(&mut target);
        target
    }

    #[test]
    fn what_is_not_mentioned_stays_and_what_is_taken_back_goes() {
        assert_eq!(under(&["50%", "drain"]).weight, 50);
        assert_eq!(under(&["50%", "100%"]).weight, 100);
        assert_eq!(under(&["250%"]).weight, 250);
        assert_eq!(under(&["0%"]).weight, 0);
        assert_eq!(under(&["drain"]).admin, AdminState::Drain);
        assert_eq!(under(&["drain", "up 10%"]).admin, AdminState::Drain);
        assert_eq!(under(&["drain", "ready"]).admin, AdminState::Ready);
        assert!(!under(&["maint", "drain"]).in_maintenance);
        let maint = under(&["maint"]);
        assert!(maint.in_maintenance && maint.admin == AdminState::Drain && maint.health == ServerHealth::Up);
        let down = under(&["down # disk full"]);
        assert_eq!((down.health, &*down.reason), (ServerHealth::Down, "its agent says down: disk full"));
        // Only `up` takes `down` back.
        assert_eq!(under(&["down", "ready"]).health, ServerHealth::Down);
        assert_eq!(under(&["down", "up"]).health, ServerHealth::Up);
        // No answer, or nonsense: all stays.
        assert_eq!(under(&["down", "", "what?"]).health, ServerHealth::Down);
        assert_eq!(under(&[]).weight, 100);
    }

    #[test]
    fn of_two_words_the_stronger_one_counts() {
        let mut state = AgentState::new(Now(0));
        state.on_answer(Ok(report("ready up maxconn:30")), Now(5));
        let mut halted = Target { admin: AdminState::Halt, max_connections: 20, ..fixtures::target(0) };
        state.lay_over(&mut halted);
        assert_eq!((halted.admin, halted.max_connections), (AdminState::Halt, 20));
        state.on_answer(Ok(report("drain down")), Now(6));
        let failed = Target { health: ServerHealth::Down, since: Now(1), ..halted };
        let mut laid = failed.clone();
        state.lay_over(&mut laid);
        assert_eq!((laid.admin, laid.since, &laid.reason), (AdminState::Halt, Now(1), &failed.reason));
        let mut unlimited = fixtures::target(0);
        state.lay_over(&mut unlimited);
        assert_eq!((unlimited.admin, unlimited.max_connections, unlimited.since), (AdminState::Drain, 30, Now(6)));
        let mut light = Target { weight: 1, ..fixtures::target(0) };
        state.on_answer(Ok(report("10%")), Now(7));
        state.lay_over(&mut light);
        assert_eq!(light.weight, 1);
    }

    #[test]
    fn a_change_says_what_kind_it_is() {
        let mut state = AgentState::new(Now(0));
        assert!(!state.is_asked());
        assert_eq!(state.on_answer(Err("connection refused".into()), Now(1)), AgentChange::Nothing);
        assert!(state.is_asked());
        assert_eq!(state.line(), "ready; connection refused");
        assert_eq!(state.on_answer(Ok(report("50% maxconn:30")), Now(2)), AgentChange::Share);
        assert_eq!(state.on_answer(Ok(report("50% up")), Now(3)), AgentChange::Nothing);
        assert_eq!(state.on_answer(Ok(report("drain # backup runs")), Now(4)), AgentChange::Word("ready"));
        assert_eq!(state.line(), "drain, 50 %, at most 30 connections (backup runs)");
        assert_eq!(state.on_answer(Ok(report("down odd")), Now(5)), AgentChange::Word("drain"));
        assert_eq!(state.line(), "down, 50 %, at most 30 connections; nobody knows its word \"odd\"");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_an_agent_says_is_bounded(line in proptest::collection::vec(any::<u8>(), 0..LINE_BYTES_MAX)) {
            let mut state = AgentState::new(Now(0));
            state.on_answer(AgentReport::parse(&line), Now(1));
            let mut target = fixtures::target(0);
            state.lay_over(&mut target);
            prop_assert!(state.line().len() < 3 * super::super::REASON_BYTES_MAX);
        }
    }
}
