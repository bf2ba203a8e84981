//! One question to an agent: it may be sent a line, and answers with one.

use crate::http::ServerEnd;

use super::super::agent::{AgentReport, LINE_BYTES_MAX};
use super::{Course, shown};

#[derive(Debug, Default)]
pub(super) struct AgentTalk {
    line: Vec<u8>,
    report: Option<AgentReport>,
}

impl AgentTalk {
    pub(super) fn begin(line: Option<&str>, send: &mut Vec<u8>) -> AgentTalk {
        if let Some(line) = line {
            send.extend_from_slice(line.as_bytes());
            send.push(b'\n');
        }
        AgentTalk::default()
    }

    pub(super) fn received(&mut self, bytes: &[u8]) -> Course {
        self.line.extend_from_slice(bytes);
        if self.line.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
            return self.judge();
        }
        match self.line.len() {
            LINE_BYTES_MAX.. => Course::Failed(format!("the agent's line is longer than {LINE_BYTES_MAX} bytes")),
            _ => Course::More,
        }
    }

    /// A line need not have an end (HAProxy's manual: "optionally terminated"), but a torn one may be half of one.
    pub(super) fn ended(&mut self, end: ServerEnd) -> Course {
        match end {
            ServerEnd::Orderly => self.judge(),
            ServerEnd::Broken => Course::Failed("the agent's line is cut off".to_owned()),
        }
    }

    pub(super) fn report(&mut self) -> Option<AgentReport> {
        self.report.take()
    }

    pub(super) fn heard(&self) -> String {
        let line = self.line.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
        shown(line)
    }

    fn judge(&mut self) -> Course {
        match AgentReport::parse(&self.line) {
            Ok(report) => {
                self.report = Some(report);
                Course::Passed
            }
            Err(reason) => Course::Failed(reason),
        }
    }
}
