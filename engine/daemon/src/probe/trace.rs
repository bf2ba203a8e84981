//! What a check does, step by step, with the time that each step takes.

use std::time::{Duration, Instant};

use crate::server_check::Step;

/// Characters of what came of a step that are told.
const DETAIL_CHARACTERS_MAX: usize = 300;

/// How much of a check is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Only how it ended.
    Result,
    /// Every step.
    Steps,
}

/// The steps of one port. Those of checks that run by themselves are only entered: it has to be known what they wait for.
pub(super) struct Trace {
    detail: Detail,
    began: Instant,
    /// The step at hand, and since when.
    at: Option<(&'static str, Instant)>,
    steps: Vec<Step>,
}

impl Trace {
    pub(super) fn begin(detail: Detail) -> Trace {
        Trace { detail, began: Instant::now(), at: None, steps: Vec::new() }
    }

    /// Begins a step.
    pub(super) fn enter(&mut self, step: &'static str) {
        self.at = Some((step, Instant::now()));
    }

    /// The step at hand.
    pub(super) fn current(&self) -> Option<&'static str> {
        self.at.map(|(step, _)| step)
    }

    /// The step at hand has gone well, if there is one.
    pub(super) fn done(&mut self, detail: impl FnOnce() -> String) {
        self.end(true, detail);
    }

    /// … has failed.
    pub(super) fn failed(&mut self, reason: &str) {
        self.end(false, || reason.to_owned());
    }

    fn end(&mut self, passed: bool, detail: impl FnOnce() -> String) {
        let Some((step, since)) = self.at.take() else { return };
        if self.detail == Detail::Result {
            return;
        }
        self.steps.push(Step {
            step: step.to_owned(),
            at_us: micros(since.duration_since(self.began)),
            took_us: micros(since.elapsed()),
            passed,
            detail: shown(&detail()),
        });
    }

    /// One for another try at the same.
    pub(super) fn beside(&self) -> Trace {
        Trace { detail: self.detail, began: self.began, at: None, steps: Vec::new() }
    }

    /// Takes over how that try went.
    pub(super) fn adopt(&mut self, other: Trace) {
        self.at = other.at;
        self.steps.extend(other.steps);
    }

    /// All of them, and how long they took together.
    pub(super) fn finish(self) -> (Vec<Step>, u64) {
        (self.steps, micros(self.began.elapsed()))
    }
}

/// What servers say goes to terminals: one line, without signs that those act on, and not more than a line.
fn shown(text: &str) -> String {
    let mut shown: String =
        text.chars().take(DETAIL_CHARACTERS_MAX).map(|sign| if sign.is_control() { '.' } else { sign }).collect();
    if text.chars().nth(DETAIL_CHARACTERS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_each_other_and_say_how_they_went() {
        let mut trace = Trace::begin(Detail::Steps);
        trace.done(|| unreachable!("nothing was begun"));
        trace.enter("connect");
        trace.done(|| "from 192.0.2.1:40000".to_owned());
        trace.enter("greeting");
        assert_eq!(trace.current(), Some("greeting"));
        trace.failed("no greeting within 3 s");
        trace.failed("told already");
        let (steps, took_us) = trace.finish();
        let told: Vec<_> = steps.iter().map(|step| (step.step.as_str(), step.passed, step.detail.as_str())).collect();
        assert_eq!(told, [("connect", true, "from 192.0.2.1:40000"), ("greeting", false, "no greeting within 3 s")]);
        assert!(steps[0].at_us + steps[0].took_us <= steps[1].at_us && steps[1].at_us + steps[1].took_us <= took_us);

        let mut trace = Trace::begin(Detail::Steps);
        trace.enter("greeting");
        trace.done(|| format!("\x1b]52;{}", "x".repeat(1_000)));
        let (steps, _) = trace.finish();
        assert_eq!(steps[0].detail, format!(".]52;{}…", "x".repeat(DETAIL_CHARACTERS_MAX - 5)));

        let mut trace = Trace::begin(Detail::Result);
        trace.enter("connect");
        trace.done(|| unreachable!("nobody wants to know"));
        assert_eq!((trace.current(), trace.finish().0), (None, Vec::new()));
    }
}
