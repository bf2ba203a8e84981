//! A datagram of the operator's, and what has to come back.

use towpath_config::model::UdpCheck;

use super::{Course, found, shown};

/// One question.
#[derive(Debug)]
pub(super) struct UdpTalk {
    check: UdpCheck,
    heard: String,
}

impl UdpTalk {
    pub(super) fn begin(check: &UdpCheck, send: &mut Vec<u8>) -> UdpTalk {
        send.extend_from_slice(&check.send);
        UdpTalk { check: check.clone(), heard: String::new() }
    }

    pub(super) fn received(&mut self, bytes: &[u8]) -> Course {
        self.heard = format!("\"{}\"", shown(bytes));
        match self.check.expect.as_deref() {
            Some(expect) if !found(bytes, expect) => {
                Course::Failed(format!("answers {}, without \"{}\"", self.heard, shown(expect)))
            }
            _ => Course::Passed,
        }
    }

    pub(super) fn passes_in_silence(&self) -> bool {
        self.check.silence_passes
    }

    pub(super) fn heard(&mut self) -> String {
        std::mem::take(&mut self.heard)
    }
}
