//! The two letters that tell how a connection or request ended, as readers of HAProxy's log know them: who ended it, and how far it had come.

use super::Answered;
use crate::counters::Termination;

/// How far it had come: the second letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// PROXY header, handshake, or the head of a request.
    Request,
    /// A server was to be chosen.
    Queue,
    /// … or reached.
    Connect,
    /// The head of its response was waited for.
    Head,
    /// Bytes of bodies, or of a connection.
    Data,
    /// Everything had come from the server, and the rest was to leave for the client.
    Last,
}

impl Phase {
    /// All of them, in their order.
    pub const ALL: [Phase; 6] = [Phase::Request, Phase::Queue, Phase::Connect, Phase::Head, Phase::Data, Phase::Last];

    /// Its letter.
    pub fn letter(self) -> u8 {
        match self {
            Phase::Request => b'R',
            Phase::Queue => b'Q',
            Phase::Connect => b'C',
            Phase::Head => b'H',
            Phase::Data => b'D',
            Phase::Last => b'L',
        }
    }
}

/// Who ended it: the first letter. `C` client, `c` client too slow or silent, `S` server, `s` server too slow or silent, `P` refused by us, `R` for want of
/// room, `D` its server was down, `K` by the operator, `I` by a failure of the system, `-` nobody: it was over.
pub fn letter(termination: Termination) -> u8 {
    match termination {
        Termination::ClientReset
        | Termination::ClientTruncated
        | Termination::HandshakeAlert
        | Termination::HandshakeLeft
        | Termination::ProxyLeft
        | Termination::QueueLeft
        | Termination::RequestCutOff => b'C',
        Termination::HandshakeTimedOut
        | Termination::HeadTimedOut
        | Termination::IdleTimedOut
        | Termination::ProxyTimedOut => b'c',
        Termination::ConnectFailed
        | Termination::NoServer
        | Termination::ResponseCutOff
        | Termination::ServerHandshakeFailed
        | Termination::ServerReset
        | Termination::ServerTruncated => b'S',
        Termination::ConnectTimedOut | Termination::QueueTimedOut | Termination::ResponseTimedOut => b's',
        Termination::BadFrames
        | Termination::BadRequest
        | Termination::BadResponse
        | Termination::HandshakeCertificate
        | Termination::HandshakeFailed
        | Termination::HandshakeNothingShared
        | Termination::HandshakeUnknownName
        | Termination::LogonOverHttp2
        | Termination::ProxyInvalid
        | Termination::ProxyUntrusted
        | Termination::TlsBroken => b'P',
        Termination::HandshakeRefused
        | Termination::OutOfConnections
        | Termination::OutOfDescriptors
        | Termination::OutOfHandshakes
        | Termination::OutOfSourcePorts
        | Termination::OutOfTlsBuffers
        | Termination::OutOfTlsMemory
        | Termination::QueueFull
        | Termination::ServersFull
        | Termination::ServiceFull => b'R',
        Termination::ServerDown => b'D',
        Termination::DrainEnded | Termination::Killed | Termination::ServerDrained | Termination::ServerHalted => b'K',
        Termination::SystemRefused => b'I',
        Termination::ClientClosed | Termination::KeepAliveEnded | Termination::ServerClosed => b'-',
    }
}

/// How far it had come, where the termination itself says so.
fn implied(termination: Termination) -> Option<Phase> {
    match termination {
        Termination::HandshakeAlert
        | Termination::HandshakeCertificate
        | Termination::HandshakeFailed
        | Termination::HandshakeLeft
        | Termination::HandshakeNothingShared
        | Termination::HandshakeRefused
        | Termination::HandshakeTimedOut
        | Termination::HandshakeUnknownName
        | Termination::HeadTimedOut
        | Termination::OutOfConnections
        | Termination::OutOfHandshakes
        | Termination::ProxyInvalid
        | Termination::ProxyLeft
        | Termination::ProxyTimedOut
        | Termination::ProxyUntrusted => Some(Phase::Request),
        Termination::QueueFull
        | Termination::QueueLeft
        | Termination::QueueTimedOut
        | Termination::ServersFull
        | Termination::ServiceFull => Some(Phase::Queue),
        Termination::ConnectFailed
        | Termination::ConnectTimedOut
        | Termination::NoServer
        | Termination::OutOfSourcePorts
        | Termination::ServerHandshakeFailed => Some(Phase::Connect),
        Termination::ResponseTimedOut => Some(Phase::Head),
        Termination::ResponseCutOff => Some(Phase::Data),
        _ => None,
    }
}

/// Both letters. What Towpath has answered as its rules say is `LR`, what a filter has refused `PR`.
pub fn code(termination: Termination, phase: Phase, answer: Answered) -> [u8; 2] {
    match (letter(termination), answer) {
        (b'-', Answered::ByRule) => *b"LR",
        (b'-', Answered::Denied) => *b"PR",
        (b'-', Answered::ByServer) => *b"--",
        (letter, _) => [letter, implied(termination).unwrap_or(phase).letter()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page for operators.
    const PAGE: &str = include_str!("../../../../config/access-log.md");

    #[test]
    fn the_page_has_every_termination_with_its_letter() {
        for &termination in Termination::ALL {
            let letter = char::from(letter(termination));
            let row = format!("| `{}` | `{letter}` |", termination.label());
            assert!(PAGE.contains(&row), "config/access-log.md lacks {row} {}", termination.help());
        }
        let rows = PAGE.lines().filter(|line| line.matches('|').count() == 4 && line.starts_with("| `")).count();
        assert_eq!(rows, Termination::ALL.len(), "a row of something that is no termination");
    }

    #[test]
    fn the_page_has_every_letter() {
        let firsts = Termination::ALL.iter().map(|&termination| letter(termination)).chain([b'L']);
        for letter in firsts.chain(Phase::ALL.map(Phase::letter)) {
            let letter = char::from(letter);
            assert!(PAGE.lines().any(|line| line.starts_with(&format!("- `{letter}`"))), "{letter}");
        }
    }

    #[test]
    fn what_is_over_has_no_phase_and_what_we_answer_by_rule_has_its_own() {
        assert_eq!(code(Termination::KeepAliveEnded, Phase::Data, Answered::ByServer), *b"--");
        assert_eq!(code(Termination::KeepAliveEnded, Phase::Request, Answered::ByRule), *b"LR");
        assert_eq!(code(Termination::KeepAliveEnded, Phase::Request, Answered::Denied), *b"PR");
        assert_eq!(code(Termination::ResponseTimedOut, Phase::Head, Answered::ByServer), *b"sH");
        assert_eq!(code(Termination::NoServer, Phase::Data, Answered::ByRule), *b"SC");
        assert_eq!(code(Termination::ClientReset, Phase::Last, Answered::ByServer), *b"CL");
    }
}
