use proptest::prelude::*;

use super::*;

/// Initial sequence numbers of both sides; every script runs from each, so that its numbers also cross the ends of the space.
const STARTS: [[u32; 2]; 4] =
    [[1_000, 900_000], [u32::MAX, u32::MAX - 3], [0x7fff_fffe, 0x8000_0000], [0, 0x7fff_ffff]];

/// Runs a script, one segment a line:
///
/// `> SA 0 1 100  State +Event !Fault @Timeout =FirstFin win=N ws=N`
///
/// that is direction, flags, sequence and acknowledgment number counted from the initial ones, bytes of payload, and what holds
/// afterwards. What is not named must not be there; a timeout that is not named is that of the state, or none with a fault.
fn run(name: &str, sight: Sight, script: &str) {
    for starts in STARTS {
        let mut track = None;
        for (number, line) in script.lines().map(str::trim).filter(|line| !line.is_empty()).enumerate() {
            let at = format!("{name}, from {starts:?}, step {number}: {line}");
            step(&mut track, starts, sight, line, &at);
        }
    }
}

fn step(track: &mut Option<TcpTrack>, starts: [u32; 2], sight: Sight, line: &str, at: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let from = if words[0] == ">" { Direction::Forward } else { Direction::Reverse };
    let number = |index: usize| words[index].parse::<i64>().expect("a number");
    let mut segment = SegmentFacts {
        flags: flags(words[1]),
        seq: starts[from.index()].wrapping_add(number(2) as u32),
        ack: starts[from.opposite().index()].wrapping_add(number(3) as u32),
        window: 60_000,
        payload_len: number(4) as u32,
        window_scale: None,
    };
    let mut expected = Outcome::UNMOVED;
    let (mut timeout_word, mut first_fin) = (None, None);
    for word in &words[6..] {
        if let Some(window) = word.strip_prefix("win=") {
            segment.window = window.parse().expect("a window");
        } else if let Some(scale) = word.strip_prefix("ws=") {
            segment.window_scale = Some(scale.parse().expect("a scale"));
        } else if let Some(event) = word.strip_prefix('+') {
            expected.event = Some(EVENTS.into_iter().find(|known| format!("{known:?}") == event).expect("an event"));
        } else if let Some(fault) = word.strip_prefix('!') {
            expected.fault = Some(FAULTS.into_iter().find(|known| format!("{known:?}") == fault).expect("a fault"));
        } else if let Some(timeout) = word.strip_prefix('@') {
            timeout_word = Some(timeout);
        } else {
            first_fin = Some(word.strip_prefix('=').expect("a known mark"));
        }
    }
    let outcome = match track {
        None => {
            *track = TcpTrack::open(&segment, sight);
            Outcome::timeout(track.expect("the first segment opens").timeout())
        }
        Some(track) => track.advance(from, &segment),
    };
    let track = track.expect("open");
    let timeout = match timeout_word {
        None if expected.fault.is_some() => "None".into(),
        None => format!("{:?}", Some(track.timeout())),
        Some("None") => "None".into(),
        Some(word) => format!("Some({word})"),
    };
    assert_eq!(format!("{:?}", outcome.timeout), timeout, "{at}");
    assert_eq!((outcome.event, outcome.fault), (expected.event, expected.fault), "{at}");
    assert_eq!(format!("{:?}", track.state()), words[5], "{at}");
    assert_eq!(TcpTrack::from_words(track.to_words()), track, "{at}");
    if let Some(first_fin) = first_fin {
        assert_eq!(format!("{:?}", track.closed_first()), format!("Some({first_fin})"), "{at}");
    }
}

fn flags(letters: &str) -> u8 {
    letters.chars().fold(0, |flags, letter| {
        flags
            | match letter {
                'A' => ACK,
                'F' => FIN,
                'P' => 0x08,
                'R' => RST,
                'S' => SYN,
                'U' => 0x20,
                '-' => 0,
                _ => panic!("no flag {letter}"),
            }
    })
}

const EVENTS: [TcpEvent; 4] = [TcpEvent::Closed, TcpEvent::Established, TcpEvent::Reopens, TcpEvent::Reset];

const FAULTS: [TcpFault; 7] = [
    TcpFault::AckOutOfWindow,
    TcpFault::FlagsImpossible,
    TcpFault::NotOpen,
    TcpFault::ResetOutOfWindow,
    TcpFault::SequenceOutOfWindow,
    TcpFault::UnexpectedSyn,
    TcpFault::WrongWay,
];

const HANDSHAKE: &str = "
    > S 0 0 0     SynSent
    < SA 0 1 0    SynAnswered
    > A 1 1 0     Established +Established
";

const CLOSED_BY_OPENER: &str = "
    > S 0 0 0     SynSent
    < SA 0 1 0    SynAnswered
    > A 1 1 0     Established +Established
    > FA 1 1 0    FinForward
    < FA 1 2 0    FinBoth
    > A 2 2 0     TimeWait +Closed =Forward
";

/// A script that goes on after another one.
fn run_after(name: &str, before: &str, script: &str) {
    run(name, Sight::BothWays, &format!("{before}\n{script}"));
}

#[test]
fn connections_open_carry_and_close() {
    run(
        "closed by the opener",
        Sight::BothWays,
        "
        > S 0 0 0       SynSent @Opening
        < SA 0 1 0      SynAnswered @Opening
        > A 1 1 0       Established +Established @Established
        > PA 1 1 500    Established
        < A 1 501 0     Established
        < PA 1 501 60000 Established
        > A 501 60001 0 Established
        > FA 501 60001 0 FinForward @HalfClosed
        < A 60001 502 0 FinForward
        < PA 60001 502 100 FinForward
        > A 502 60101 0 FinForward
        < FA 60101 502 0 FinBoth @Closing
        > A 502 60102 0 TimeWait +Closed @TimeWait =Forward
        < FA 60101 502 0 TimeWait
        > A 502 60102 0 TimeWait
        ",
    );
    run_after(
        "closed by the other side",
        HANDSHAKE,
        "
        < FA 1 1 0      FinReverse
        > A 1 2 0       FinReverse
        > FA 1 2 0      FinBoth
        < A 2 2 0       TimeWait +Closed =Reverse
        ",
    );
    run_after(
        "FIN with data, answered by FIN with its acknowledgment",
        HANDSHAKE,
        "
        > FA 1 1 10     FinForward
        < FA 1 12 20    FinBoth
        > A 12 21 0     FinBoth
        > A 12 22 0     TimeWait +Closed =Forward
        ",
    );
    run_after(
        "the FIN of the opener comes with its handshake",
        "
        > S 0 0 0       SynSent
        < SA 0 1 0      SynAnswered
        > FA 1 1 5      FinForward +Established
        < FA 1 7 0      FinBoth
        > A 7 2 0       TimeWait +Closed
        ",
        "",
    );
    run_after(
        "the server closes before it has seen the ACK",
        "
        > S 0 0 0       SynSent
        < SA 0 1 0      SynAnswered
        < FA 1 1 0      SynAnswered @None
        > A 1 2 0       FinReverse +Established
        > FA 1 2 0      FinBoth
        < A 2 2 0       TimeWait +Closed =Reverse
        ",
        "",
    );
}

#[test]
fn both_sides_close_at_the_same_time() {
    run_after(
        "simultaneous close",
        HANDSHAKE,
        "
        > FA 1 1 0      FinForward
        < FA 1 1 0      FinBoth
        > A 2 2 0       FinBoth
        < A 2 2 0       TimeWait +Closed =Forward
        ",
    );
}

#[test]
fn who_sends_its_fin_before_it_has_the_other_waits() {
    let cases = [
        ("> FA 1 1 0 FinForward\n < FA 1 2 0 FinBoth\n > A 2 2 0 TimeWait +Closed", false),
        ("> FA 1 1 0 FinForward\n < FA 1 1 0 FinBoth\n > A 2 2 0 FinBoth\n < A 2 2 0 TimeWait +Closed", true),
        // Its second FIN knows of the other one; its first one did not.
        ("> FA 1 1 0 FinForward\n < FA 1 1 0 FinBoth\n < FA 1 2 0 FinBoth\n > A 2 2 0 TimeWait +Closed", true),
        ("< FA 1 1 0 FinReverse\n > FA 1 2 0 FinBoth\n < A 2 2 0 TimeWait +Closed", true),
        ("< FA 1 1 0 FinReverse\n > R 1 0 0 Reset +Reset", false),
    ];
    for (script, waits) in cases {
        let mut track = None;
        for line in HANDSHAKE.lines().chain(script.lines()).map(str::trim).filter(|line| !line.is_empty()) {
            step(&mut track, STARTS[0], Sight::BothWays, line, line);
        }
        assert_eq!(track.expect("open").server_waits(), waits, "{script}");
    }
}

#[test]
fn both_sides_open_at_the_same_time() {
    run_after(
        "simultaneous open, RFC 9293 figure 7",
        "
        > S 0 0 0       SynSent
        < S 0 0 0       SynCrossed
        > SA 0 1 0      SynAnswered @None
        < SA 0 1 0      Established +Established
        > PA 1 1 10     Established
        ",
        "",
    );
    run_after(
        "simultaneous open that ends with plain ACKs, SYNs repeated",
        "
        > S 0 0 0       SynSent
        < S 0 0 0       SynCrossed @Opening
        > S 0 0 0       SynCrossed @None
        < S 0 0 0       SynCrossed @None
        < S 7 0 0       SynCrossed !UnexpectedSyn
        < SA 0 1 0      SynAnswered @None
        > A 1 1 0       Established +Established
        ",
        "",
    );
}

#[test]
fn handshakes_survive_loss() {
    run_after(
        "every segment of the handshake comes twice",
        "
        > S 0 0 0       SynSent
        > S 0 0 0       SynSent @None
        < SA 0 1 0      SynAnswered @Opening
        > S 0 0 0       SynAnswered @None
        < SA 0 1 0      SynAnswered @None
        > A 1 1 0       Established +Established
        < SA 0 1 0      Established
        > A 1 1 0       Established
        ",
        "",
    );
    run_after(
        "the ACK is lost, data follows",
        "
        > S 0 0 0       SynSent
        < SA 0 1 0      SynAnswered
        > PA 1 1 100    Established +Established
        ",
        "",
    );
    run_after(
        "a new attempt on the same ports before any answer",
        "
        > S 0 0 0       SynSent
        > S 70000 0 0   SynSent @None
        < SA 0 1 0      SynSent !AckOutOfWindow
        < SA 0 70001 0  SynAnswered
        > A 70001 1 0   Established +Established
        ",
        "",
    );
    run_after(
        "SYN cookies: the second answer has another number",
        "
        > S 0 0 0       SynSent
        < SA 0 1 0      SynAnswered
        > S 0 0 0       SynAnswered @None
        < SA 500000 1 0 SynAnswered @None
        > A 1 500001 0  Established +Established
        ",
        "",
    );
    run_after(
        "fast open: data in the SYN, only the SYN acknowledged, then all",
        "
        > S 0 0 700     SynSent
        < SA 0 1 0      SynAnswered
        > PA 1 1 700    Established +Established
        < A 1 701 0     Established
        ",
        "",
    );
}

#[test]
fn a_handshake_needs_the_right_acknowledgment() {
    run_after(
        "guessed segments",
        "
        > S 0 0 0       SynSent
        > A 1 1 0       SynSent !NotOpen
        < A 1 1 0       SynSent !NotOpen
        > SA 0 1 0      SynSent !UnexpectedSyn
        < SA 0 2 0      SynSent !AckOutOfWindow
        < SA 0 0 0      SynSent !AckOutOfWindow
        < SA 0 1 0      SynAnswered
        > A 1 0 0       SynAnswered !AckOutOfWindow
        > A 1 2 0       SynAnswered !AckOutOfWindow
        > A 1 -5 0      SynAnswered !AckOutOfWindow
        > S 9 0 0       SynAnswered !UnexpectedSyn
        > A 1 1 0       Established +Established
        ",
        "",
    );
}

#[test]
fn an_older_connection_at_the_server_is_cleared_away_by_the_challenge() {
    // RFC 5961 §4.2: the server answers the SYN with an ACK out of the old connection, the client resets that, and tries again.
    run_after(
        "challenge ACK",
        "
        > S 0 0 0       SynSent
        < A 333 777 0   SynSent !NotOpen
        > R 777 0 0     SynSent @None
        > S 0 0 0       SynSent @None
        < SA 0 1 0      SynAnswered
        > A 1 1 0       Established +Established
        ",
        "",
    );
}

#[test]
fn a_client_that_has_forgotten_its_connection_gets_a_new_one() {
    run_after(
        "SYN in the middle",
        HANDSHAKE,
        "
        > PA 1 1 100    Established
        < A 1 101 0     Established
        > S 5000 0 0    Established !UnexpectedSyn
        < A 1 101 0     Established
        > R 101 0 0     Reset +Reset
        ",
    );
    run_after(
        "and the SYN that follows reopens",
        HANDSHAKE,
        "
        > R 1 0 0       Reset +Reset
        > S 5000 0 0    Reset +Reopens @None
        ",
    );
}

#[test]
fn a_connection_that_the_server_takes_in_the_middle_of_another_is_followed() {
    for starts in STARTS {
        let mut track = None;
        for line in HANDSHAKE.lines().filter(|line| !line.trim().is_empty()) {
            step(&mut track, starts, Sight::BothWays, line, line);
        }
        let mut track = track.expect("open");
        track.set_tag(77);
        // Numbers that have nothing to do with those before.
        let [client, server] = starts.map(|start| start.wrapping_add(0x4000_0000));
        let segment = |flags, seq, ack, payload_len| SegmentFacts {
            flags,
            seq,
            ack,
            window: 60_000,
            payload_len,
            window_scale: None,
        };
        let syn = segment(SYN, client, 0, 0);
        assert_eq!(track.advance(Direction::Forward, &syn).fault, Some(TcpFault::UnexpectedSyn));
        let answer = segment(SYN_ACK, server, client.wrapping_add(1), 0);
        assert_eq!(track.advance(Direction::Reverse, &answer).fault, Some(TcpFault::UnexpectedSyn));
        track.restart(&answer);
        assert_eq!((track.state(), track.tag()), (TcpState::SynAnswered, 77));
        let repeated = track.advance(Direction::Reverse, &answer);
        assert!(repeated.is_valid() && repeated.timeout.is_none());
        let ack = segment(ACK, client.wrapping_add(1), server.wrapping_add(1), 100);
        assert_eq!(track.advance(Direction::Forward, &ack).event, Some(TcpEvent::Established));
        let data = segment(ACK, server.wrapping_add(1), client.wrapping_add(101), 100);
        assert_eq!(track.advance(Direction::Reverse, &data), Outcome::timeout(TcpTimeout::Established));
    }
}

#[test]
fn a_reset_counts_only_inside_the_window() {
    run_after(
        "exactly what the receiver expects",
        HANDSHAKE,
        "
        < R 1 0 0       Reset +Reset @Reset
        < R 1 0 0       Reset
        ",
    );
    run_after(
        "everything sent so far, not yet acknowledged",
        HANDSHAKE,
        "
        > PA 1 1 1000   Established
        > RA 1001 1 0   Reset +Reset
        ",
    );
    run_after(
        "inside the window: the receiver asks, and the answer is exact",
        HANDSHAKE,
        "
        > R 30000 0 0   Established @None
        < A 1 1 0       Established @Established
        > R 1 0 0       Reset +Reset
        ",
    );
    run_after(
        "outside",
        HANDSHAKE,
        "
        > R 60002 0 0   Established !ResetOutOfWindow
        > R 0 0 0       Established !ResetOutOfWindow
        < R -9 0 0      Established !ResetOutOfWindow
        < RA 2000000000 1 0 Established !ResetOutOfWindow
        > A 1 1 0       Established
        ",
    );
    run_after(
        "scaled windows are larger",
        "
        > S 0 0 0       SynSent win=60000 ws=2
        < SA 0 1 0      SynAnswered win=60000 ws=7
        > A 1 1 0       Established +Established win=15000
        < A 1 1 0       Established win=1000
        > R 128002 0 0  Established !ResetOutOfWindow
        > R 128001 0 0  Established @None
        < R 60002 0 0   Established !ResetOutOfWindow
        < R 60001 0 0   Established @None
        ",
        "",
    );
    run_after(
        "one side does not scale, so neither does the other",
        "
        > S 0 0 0       SynSent win=60000 ws=7
        < SA 0 1 0      SynAnswered win=60000
        > A 1 1 0       Established +Established win=60000
        < R 60002 0 0   Established !ResetOutOfWindow
        < R 60001 0 0   Established @None
        ",
        "",
    );
}

#[test]
fn a_refused_connection_is_over_at_once() {
    run_after(
        "refused",
        "
        > S 0 0 0       SynSent
        < R 0 0 0       SynSent !ResetOutOfWindow
        < RA 0 2 0      SynSent !ResetOutOfWindow
        < RA 0 1 0      Reset +Reset
        > S 0 0 0       Reset +Reopens @None
        ",
        "",
    );
    run_after(
        "a port scan: the opener resets the answer",
        "
        > S 0 0 0       SynSent
        < SA 0 1 0      SynAnswered
        > R 1 0 0       Reset +Reset
        ",
        "",
    );
    run_after(
        "given up before an answer",
        "
        > S 0 0 0       SynSent
        > RA 1 0 0      Reset +Reset
        < SA 0 1 0      Reset !UnexpectedSyn
        ",
        "",
    );
}

#[test]
fn a_side_that_goes_on_after_its_reset_keeps_the_flow() {
    run_after(
        "what was on its way does not, what the resetter sends does",
        HANDSHAKE,
        "
        < R 1 0 0       Reset +Reset
        > PA 1 1 100    Reset @None
        < A 1 101 0     Reset @None
        < PA 1 101 100  Reset @Closing
        ",
    );
}

#[test]
fn after_the_end_a_reset_is_no_second_end() {
    run_after("browsers do it", CLOSED_BY_OPENER, "> R 2 0 0  TimeWait @None =Forward");
    run_after("nor the server's", CLOSED_BY_OPENER, "< R 2 0 0  TimeWait @None =Forward");
}

#[test]
fn every_syn_of_the_opener_reopens_what_is_over() {
    run_after("higher", CLOSED_BY_OPENER, "> S 3 0 0              TimeWait +Reopens @None");
    run_after("much higher", CLOSED_BY_OPENER, "> S 2000000000 0 0     TimeWait +Reopens @None");
    run_after("another client behind a NAT", CLOSED_BY_OPENER, "> S -1000000000 0 0    TimeWait +Reopens @None");
    run_after("the old SYN", CLOSED_BY_OPENER, "> S 0 0 0              TimeWait +Reopens @None");
    run_after("the very end", CLOSED_BY_OPENER, "> S 2 0 0              TimeWait +Reopens @None");
    run_after("from the other side", CLOSED_BY_OPENER, "< S 5000 0 0           TimeWait !UnexpectedSyn");
}

#[test]
fn segments_outside_the_window_change_nothing() {
    run_after(
        "data and acknowledgments",
        HANDSHAKE,
        "
        > PA 60001 1 10      Established
        > PA 70000 1 10      Established !SequenceOutOfWindow
        > FA 70000 1 0       Established !SequenceOutOfWindow
        > A -66001 1 0       Established !SequenceOutOfWindow
        > A 1 2 0            Established !AckOutOfWindow
        > A 1 -66001 0       Established !AckOutOfWindow
        < A 1 60011 0        Established
        < A 1 60012 0        Established !AckOutOfWindow
        ",
    );
    run_after(
        "keep-alives and window probes",
        HANDSHAKE,
        "
        > A 0 1 0            Established
        > A 0 1 1            Established
        < A 1 1 0            Established win=0
        > PA 1 1 60000       Established
        < A 1 60001 0        Established win=0
        > A 60001 1 1        Established
        ",
    );
    run_after(
        "a super-packet of 64 KiB",
        "
        > S 0 0 0            SynSent ws=7
        < SA 0 1 0           SynAnswered ws=7
        > PA 1 1 65000       Established +Established win=502
        < A 1 1 0            Established win=2000
        > PA 65001 1 65535   Established win=502
        < A 1 130536 0       Established win=502
        ",
        "",
    );
}

#[test]
fn who_sends_on_has_not_sent_the_fin_that_was_guessed() {
    run_after(
        "FIN undone",
        HANDSHAKE,
        "
        > FA 100 1 0         FinForward
        > PA 1 1 500         Established
        < FA 1 501 0         FinReverse
        > FA 501 2 0         FinBoth
        < A 2 502 0          TimeWait +Closed =Reverse
        > PA 502 2 10        TimeWait !SequenceOutOfWindow
        ",
    );
    run_after(
        "an acknowledged FIN stands",
        HANDSHAKE,
        "
        > FA 1 1 0           FinForward
        < A 1 2 0            FinForward
        > PA 2 1 10          FinForward !SequenceOutOfWindow
        ",
    );
}

#[test]
fn impossible_flags_are_refused() {
    for letters in ["-", "P", "F", "SF", "SR", "SAF", "SAR", "RF", "RAF", "SRF", "SARF", "FPU"] {
        run_after("flags", HANDSHAKE, &format!("> {letters} 1 1 0  Established !FlagsImpossible"));
    }
    for letters in ["PA", "UA", "PUA"] {
        run_after("flags", HANDSHAKE, &format!("> {letters} 1 1 0  Established"));
    }
    let segment =
        |letters| SegmentFacts { flags: flags(letters), seq: 0, ack: 0, window: 0, payload_len: 0, window_scale: None };
    for letters in ["SA", "A", "R", "SF", "SR", "FA", "-"] {
        assert_eq!(TcpTrack::open(&segment(letters), Sight::BothWays), None, "{letters} opens nothing");
    }
    assert!(TcpTrack::open(&segment("S"), Sight::BothWays).is_some_and(|track| track.is_half_open()));
    assert!(TcpTrack::open(&segment("SP"), Sight::BothWays).is_some(), "flags that say nothing are ignored");
}

#[test]
fn one_direction_is_enough_for_dsr() {
    let opened = "
        > S 0 0 0            SynSent
        > S 0 0 0            SynSent @None
        < SA 0 1 0           SynSent !WrongWay
        > A 0 1 0            SynSent !SequenceOutOfWindow
        > A 1 1 0            Established +Established @Closing
        > A 1 1 0            Established @Closing
        > PA 1 1 500         Established @Established
        > A 501 900000 0     Established @Established
        > A 17000000 1 0     Established
    ";
    run(
        "closes",
        Sight::OpenerOnly,
        &format!(
            "{opened}
        > FA 600 900000 0    Established
        > FA 601 900000 0    TimeWait +Closed =Forward
        > A 602 900001 0     TimeWait
        > FA 601 900001 0    TimeWait
        > PA 602 900001 9    TimeWait !SequenceOutOfWindow
        > S 9000 0 0         TimeWait +Reopens @None
        "
        ),
    );
    run(
        "is reset",
        Sight::OpenerOnly,
        &format!(
            "{opened}
        > R 502 0 0          Established @None
        > R 90000000 0 0     Established !ResetOutOfWindow
        > RA 501 1 0         Reset +Reset
        "
        ),
    );
}

#[test]
fn resets_carry_numbers_that_both_sides_accept() {
    let mut track = None;
    let starts = STARTS[0];
    let mut pass = |line: &str| {
        step(&mut track, starts, Sight::BothWays, line, line);
        let track = track.expect("open");
        let numbers = |to: Direction| {
            let ResetNumbers { seq, seq_sent, ack } = track.reset_towards(to);
            (seq, seq_sent, ack)
        };
        (numbers(Direction::Forward.opposite()), numbers(Direction::Forward))
    };
    let [client, server] = starts;
    // Towards the server, then towards the client.
    assert_eq!(pass("> S 0 0 0 SynSent"), ((client + 1, client + 1, 0), (0, 0, client + 1)));
    let answered = pass("< SA 0 1 0 SynAnswered");
    assert_eq!(answered, ((client + 1, client + 1, server + 1), (server + 1, server + 1, client + 1)));
    pass("> A 1 1 0 Established +Established");
    let sent = pass("> PA 1 1 100 Established");
    assert_eq!(sent, ((client + 1, client + 101, server + 1), (server + 1, server + 1, client + 101)));
}

#[test]
fn the_default_timeouts_are_those_of_the_standards() {
    let timeouts = TcpTimeouts::default();
    let table = [
        (TcpTimeout::Opening, 240),
        (TcpTimeout::Established, 7_440),
        (TcpTimeout::HalfClosed, 7_440),
        (TcpTimeout::Closing, 240),
        (TcpTimeout::TimeWait, 60),
        (TcpTimeout::Reset, 10),
    ];
    for (timeout, seconds) in table {
        assert_eq!(timeouts.ms(timeout), seconds * 1_000, "{timeout:?}");
        assert_eq!(timeouts.all_ms()[timeout.index()], seconds * 1_000, "{timeout:?}");
        assert_eq!(TcpTimeout::ALL[timeout.index()], timeout);
    }
}

proptest! {
    /// No history of segments, however mad, breaks what a track promises.
    #[test]
    fn events_come_once_and_only_in_order(
        one_way in any::<bool>(),
        syn in 0_u32..4,
        segments in proptest::collection::vec(
            (any::<bool>(), any::<u8>(), 0_u32..6, 0_u32..6, any::<u16>(), 0_u32..3, proptest::option::of(0_u8..20)),
            0..60,
        ),
    ) {
        let segment = |flags, seq: u32, ack: u32, window, payload_len, window_scale| SegmentFacts {
            flags, seq: seq.wrapping_sub(2), ack: ack.wrapping_sub(2), window, payload_len, window_scale,
        };
        let sight = if one_way { Sight::OpenerOnly } else { Sight::BothWays };
        let mut track = TcpTrack::open(&segment(SYN, syn, 0, 100, 0, None), sight).expect("a SYN opens");
        let (mut established, mut over) = (false, false);
        for (forward, flags, seq, ack, window, payload_len, scale) in segments {
            let from = if forward { Direction::Forward } else { Direction::Reverse };
            let before = track;
            let outcome = track.advance(from, &segment(flags, seq, ack, window, payload_len, scale));
            if outcome.fault.is_some() || outcome.event == Some(TcpEvent::Reopens) {
                prop_assert_eq!(track, before);
                prop_assert_eq!(outcome.timeout, None);
            }
            match outcome.event {
                Some(TcpEvent::Established) => {
                    prop_assert!(!established && !over);
                    established = true;
                }
                Some(TcpEvent::Closed) => {
                    prop_assert!(established && !over);
                    over = true;
                }
                Some(TcpEvent::Reset) => {
                    prop_assert!(!over);
                    over = true;
                }
                Some(TcpEvent::Reopens) => prop_assert!(over),
                None => {}
            }
            prop_assert_eq!(track.is_over(), over);
            prop_assert_eq!(track.is_half_open(), !established && !over);
            prop_assert_eq!(TcpTrack::from_words(track.to_words()), track);
        }
    }

    /// Memory that was damaged makes a wrong track, not a panic.
    #[test]
    fn any_words_make_a_track(words in any::<[u32; 6]>(), forward in any::<bool>(), flags in any::<u8>(), seq in any::<u32>(), ack in any::<u32>()) {
        let mut track = TcpTrack::from_words(words);
        let from = if forward { Direction::Forward } else { Direction::Reverse };
        let segment = SegmentFacts { flags, seq, ack, window: 9, payload_len: 65_535, window_scale: Some(255) };
        let _ = track.advance(from, &segment);
        let _ = (track.state(), track.timeout(), track.closed_first(), track.reset_towards(from));
    }
}

/// Two end points that open, exchange data and close over a path that loses, repeats and reorders, with the track in the middle:
/// whatever an end point finds useful must have counted, and the whole must be seen to open and to close once.
#[test]
fn no_useful_segment_of_real_end_points_is_refused() {
    for seed in 1..=300 {
        Path::new(seed).run();
    }
}

struct Path {
    random: u64,
    seed: u64,
    sides: [Side; 2],
    /// Segments on their way from each side to the track.
    queues: [Vec<SegmentFacts>; 2],
    track: Option<TcpTrack>,
    events: Vec<TcpEvent>,
}

#[derive(Default)]
struct Side {
    start: u32,
    scale: Option<u8>,
    window_bytes: u32,
    /// Bytes behind the SYN that this side sends.
    data_len: u32,
    /// Offsets from `start`: acknowledged, sent next.
    acked: u32,
    next: u32,
    /// The next number that is expected of the other side, once its SYN is known.
    expected: Option<u32>,
    peer_window_bytes: u32,
}

impl Side {
    /// Everything that this side sends: SYN, data, FIN.
    fn len(&self) -> u32 {
        self.data_len + 2
    }
}

impl Path {
    fn new(seed: u64) -> Path {
        let mut path = Path {
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15),
            seed,
            sides: [Side::default(), Side::default()],
            queues: [Vec::new(), Vec::new()],
            track: None,
            events: Vec::new(),
        };
        for index in 0..2 {
            let scale = [None, Some(0), Some(3), Some(7)][path.draw(4) as usize];
            let start = [0, u32::MAX - 50_000, 0x7fff_0000, 12_345][path.draw(4) as usize];
            let data_len = [0, 1, 3_000, 400_000][path.draw(4) as usize];
            path.sides[index] = Side { start, scale, data_len, ..Side::default() };
        }
        let scales = path.sides[0].scale.is_some() && path.sides[1].scale.is_some();
        for index in 0..2 {
            path.sides[index].window_bytes = if scales { 200_000 } else { 50_000 };
        }
        path
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn run(&mut self) {
        self.send(0);
        for _ in 0..200_000 {
            let at = self.draw(2) as usize;
            match self.draw(20) {
                0 => {
                    // The retransmission timer.
                    self.sides[at].next = self.sides[at].acked;
                    self.send(at);
                }
                1..=8 => self.send(at),
                _ => self.deliver(at),
            }
            if self.events.last() == Some(&TcpEvent::Closed) {
                break;
            }
        }
        assert_eq!(self.events, [TcpEvent::Established, TcpEvent::Closed], "seed {}", self.seed);
    }

    /// Sends the next segment of side `at`: its SYN, a piece of data, its FIN or a plain ACK.
    fn send(&mut self, at: usize) {
        if self.queues[at].len() >= 40 {
            return;
        }
        let size = [1, 100, 1_448, 14_480, 60_000][self.draw(5) as usize];
        let scales = self.sides[0].scale.is_some() && self.sides[1].scale.is_some();
        let side = &mut self.sides[at];
        if at == 1 && side.expected.is_none() {
            return;
        }
        let mut segment = SegmentFacts {
            flags: if side.expected.is_some() { ACK } else { 0 },
            seq: side.start.wrapping_add(side.next),
            ack: side.expected.unwrap_or(0),
            window: 50_000,
            payload_len: 0,
            window_scale: None,
        };
        if side.next == 0 {
            segment.flags |= SYN;
            segment.window_scale = side.scale;
            side.next = 1;
        } else {
            if side.acked == 0 {
                return;
            }
            let shift = if scales { side.scale.unwrap_or(0) } else { 0 };
            segment.window = (side.window_bytes >> shift).min(65_535) as u16;
            let data_end = side.data_len + 1;
            let may_send = side.peer_window_bytes.saturating_sub(side.next - side.acked);
            segment.payload_len = size.min(data_end.saturating_sub(side.next)).min(may_send);
            side.next += segment.payload_len;
            if side.next == data_end && may_send > segment.payload_len {
                segment.flags |= FIN;
                side.next += 1;
            }
        }
        self.queues[at].push(segment);
    }

    /// A segment of side `at` passes the track and reaches the other side, unless it is lost before or after.
    fn deliver(&mut self, at: usize) {
        if self.queues[at].is_empty() {
            return;
        }
        let index = self.draw(self.queues[at].len().min(4) as u64) as usize;
        let segment = if self.draw(12) == 0 { self.queues[at][index] } else { self.queues[at].remove(index) };
        if self.draw(15) == 0 {
            return;
        }
        let from = [Direction::Forward, Direction::Reverse][at];
        let fault = match &mut self.track {
            None => {
                self.track = TcpTrack::open(&segment, Sight::BothWays);
                None
            }
            Some(track) => {
                let outcome = track.advance(from, &segment);
                self.events.extend(outcome.event);
                outcome.fault
            }
        };
        if self.draw(15) == 0 {
            return;
        }
        let is_useful = self.receive(1 - at, &segment);
        assert!(!is_useful || fault.is_none(), "seed {}: {from:?} {segment:?} {fault:?}", self.seed);
    }

    /// Side `at` takes a segment; whether anything in it was new.
    fn receive(&mut self, at: usize, segment: &SegmentFacts) -> bool {
        let scales = self.sides[0].scale.is_some() && self.sides[1].scale.is_some();
        let peer_scale = if scales && !segment.has(SYN) { self.sides[1 - at].scale.unwrap_or(0) } else { 0 };
        let side = &mut self.sides[at];
        let mut is_useful = false;
        if segment.has(ACK) {
            let acked = segment.ack.wrapping_sub(side.start);
            // RFC 5961 §5.2.
            if acked > side.len() || side.acked.saturating_sub(acked) > 50_000 {
                return false;
            }
            if acked > side.acked {
                side.acked = acked;
                side.next = side.next.max(acked);
                is_useful = true;
            }
            if acked == side.acked {
                side.peer_window_bytes = u32::from(segment.window) << peer_scale;
            }
        }
        match side.expected {
            None if segment.has(SYN) => {
                side.expected = Some(segment.end());
                is_useful = true;
            }
            Some(expected) if !is_after(segment.seq, expected) && is_after(segment.end(), expected) => {
                side.expected = Some(segment.end());
                is_useful = true;
            }
            _ => {}
        }
        is_useful
    }
}
