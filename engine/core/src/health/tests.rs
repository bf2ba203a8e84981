use proptest::prelude::*;

use super::*;

fn plan(id: u32, ports: &[u16], interval_ms: u64) -> CheckPlan {
    CheckPlan {
        id: CheckId(id),
        address: "192.0.2.1".parse().unwrap(),
        vip: None,
        kind: CheckKind::Tcp,
        ports: ports.to_vec(),
        proxy: None,
        interval_ms,
        fast_interval_ms: interval_ms,
        timeout_ms: 3_000,
        rise: 2,
        fall: 3,
        damping: Damping::OFF,
    }
}

fn failed(reason: &str) -> CheckResult {
    CheckResult::Failed(reason.into())
}

#[test]
fn only_consecutive_results_change_a_verdict() {
    // (rise, fall, results: + passed, - failed, verdict after each: u unknown, U up, D down)
    let table = [
        (2, 3, "++", "uU"),
        (2, 3, "---", "uuD"),
        (2, 3, "+-+--++", "uuuuuuU"),
        (2, 3, "++--+--+---", "uUUUUUUUUUD"),
        (2, 3, "---+-+-++", "uuDDDDDDU"),
        (1, 1, "+-+-", "UDUD"),
        (3, 1, "-+++", "DDDU"),
        (0, 0, "+-", "UD"),
    ];
    for (rise, fall, results, verdicts) in table {
        let mut state = HealthState::new(rise, fall, Now(0));
        let mut seen = String::new();
        for (at, result) in results.chars().enumerate() {
            let before = state.health();
            let result = if result == '+' { CheckResult::Passed } else { failed("refused") };
            let transition = state.on_result(result, Now(at as u64));
            assert_eq!(transition.is_some(), before != state.health());
            if let Some(transition) = transition {
                assert_eq!((transition.from, transition.to), (before, state.health()));
                assert_eq!((transition.at, state.since()), (Now(at as u64), Now(at as u64)));
            }
            seen.push(match state.health() {
                ServerHealth::Down => 'D',
                ServerHealth::Held => 'H',
                ServerHealth::Unknown => 'u',
                ServerHealth::Up => 'U',
            });
        }
        assert_eq!(seen, verdicts, "rise {rise}, fall {fall}, results {results}");
    }
}

#[test]
fn the_reason_is_the_latest_that_counts() {
    let mut state = HealthState::new(1, 2, Now(0));
    assert_eq!(&**state.reason(), "no check has finished yet");
    state.on_result(failed("refused"), Now(1));
    assert_eq!(&**state.reason(), "refused");
    state.on_result(CheckResult::Passed, Now(2));
    assert_eq!(&**state.reason(), "check passed");
    state.on_result(failed("refused"), Now(3));
    assert_eq!(&**state.reason(), "check passed");
    assert_eq!(state.against(), (1, 2));
    let down = state.on_result(failed("timed out"), Now(4)).unwrap();
    assert_eq!(&*down.reason, "timed out");
    state.on_result(failed("no route"), Now(5));
    assert_eq!(&**state.reason(), "no route");
    assert_eq!(state.since(), Now(4));
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let mut state = HealthState::new(1, 1, Now(0));
    state.on_result(failed(&format!("x{}", "ü".repeat(500))), Now(0));
    assert_eq!(state.reason().len(), REASON_BYTES_MAX - 1);
}

#[test]
fn t_36_a_group_passes_only_if_every_port_does() {
    let plan = plan(0, &[444, 5061], 5_000);
    let refused = || Err("refused".to_owned());
    let judged = [
        plan.judge(&[(5061, Ok(())), (444, Ok(()))]),
        plan.judge(&[(5061, Ok(())), (444, refused())]),
        plan.judge(&[(5061, refused()), (444, Ok(()))]),
        plan.judge(&[(5061, refused()), (444, refused())]),
        plan.judge(&[(5061, Ok(()))]),
        plan.judge(&[(5061, Ok(())), (444, Ok(())), (80, refused())]),
    ];
    let expected = [
        CheckResult::Passed,
        failed("port 444: refused"),
        failed("port 5061: refused"),
        failed("port 444: refused; port 5061: refused"),
        failed("port 444: not checked"),
        CheckResult::Passed,
    ];
    assert_eq!(judged, expected);
}

proptest! {
    #[test]
    fn checks_keep_within_a_tenth_of_their_interval(seed: u64, interval_ms in 1_u64..100_000, started in 0_u64..1 << 40) {
        let fast_interval_ms = interval_ms / 3 + 1;
        let plan = CheckPlan { fast_interval_ms, ..plan(0, &[80], interval_ms) };
        let mut schedule = CheckSchedule::new(&plan, seed, Now(started));
        let first = schedule.due().ms_since(Now(started));
        prop_assert!(first < interval_ms.min(FIRST_CHECK_WINDOW_MS));
        for pace in [Pace::Steady, Pace::Changing, Pace::Unknown] {
            let interval_ms = match pace {
                Pace::Changing => fast_interval_ms,
                Pace::Steady => interval_ms,
                Pace::Unknown => fast_interval_ms.min(UNKNOWN_INTERVAL_MS),
            };
            let due = schedule.advance(Now(started), pace);
            prop_assert_eq!(due, schedule.due());
            let gap = due.ms_since(Now(started));
            prop_assert!(gap * 10 >= interval_ms * 9 && gap * 10 <= interval_ms * 11, "{} of {}", gap, interval_ms);
        }
    }
}

#[test]
fn checks_come_faster_only_while_a_verdict_is_changing() {
    // (results: + passed, - failed; pace after each: u unknown, s steady, c changing)
    let table = [("++++", "usss"), ("++-+--+---", "uscsccsccs"), ("---+++", "uuscss"), ("+-+-", "uuuu")];
    for (results, paces) in table {
        let mut state = HealthState::new(2, 3, Now(0));
        let mut seen = String::new();
        for result in results.chars() {
            state.on_result(if result == '+' { CheckResult::Passed } else { failed("refused") }, Now(0));
            seen.push(match state.pace() {
                Pace::Changing => 'c',
                Pace::Steady => 's',
                Pace::Unknown => 'u',
            });
        }
        assert_eq!(seen, paces, "{results}");
    }
}

fn agent(id: u32, port: u16, interval_ms: u64) -> CheckPlan {
    CheckPlan { kind: CheckKind::Agent { send: None }, ..plan(id, &[port], interval_ms) }
}

#[test]
fn what_an_agent_has_said_outlives_a_new_interval_but_not_another_port() {
    let mut board = HealthBoard::new();
    board.adopt(&[plan(0, &[80], 5_000), agent(1, 9_999, 5_000)], Now(0));
    assert!(!board.is_judged(CheckId(0)) && !board.is_judged(CheckId(1)) && board.is_judged(CheckId(7)));
    assert_eq!(board.len(), 1, "an agent is no check");
    let report = AgentReport::parse(b"drain").unwrap();
    assert_eq!(board.on_answer(CheckId(1), Ok(report.clone()), Now(1)), AgentChange::Word("ready"));
    assert!(board.is_judged(CheckId(1)));
    assert_eq!(board.on_result(CheckId(1), failed("it is no check"), Now(1)), None);
    let word = |board: &HealthBoard, id| board.agent(CheckId(id)).map(AgentState::word);
    board.adopt(&[agent(2, 9_999, 1_000)], Now(10));
    assert_eq!((word(&board, 1), word(&board, 2)), (None, Some("drain")));
    assert_eq!(board.on_answer(CheckId(1), Ok(report), Now(11)), AgentChange::Nothing);
    board.adopt(&[agent(3, 9_998, 1_000)], Now(20));
    assert_eq!(word(&board, 3), Some("ready"));
}

#[test]
fn checks_do_not_march_in_step_and_keep_their_interval_on_average() {
    let mut gaps: Vec<u64> = Vec::new();
    let mut firsts = std::collections::HashSet::new();
    for seed in 0..200 {
        let mut schedule = CheckSchedule::new(&plan(0, &[80], 5_000), seed, Now(0));
        firsts.insert(schedule.due());
        let started = schedule.due();
        gaps.push(schedule.advance(started, Pace::Steady).ms_since(started));
    }
    assert!(firsts.len() > 100, "{} different starts", firsts.len());
    let mean = gaps.iter().sum::<u64>() / 200;
    assert!((4_900..5_100).contains(&mean), "{mean}");
    assert!(gaps.iter().any(|&gap| gap < 4_600) && gaps.iter().any(|&gap| gap > 5_400));
}

#[test]
fn a_board_keeps_what_stays_and_ignores_what_is_gone() {
    let elsewhere = CheckPlan { address: "192.0.2.2".parse().unwrap(), ..plan(2, &[82], 5_000) };
    let mut board = HealthBoard::new();
    board.adopt(&[plan(0, &[80], 5_000), plan(1, &[81], 5_000)], Now(0));
    for at in 1..=2 {
        board.on_result(CheckId(0), CheckResult::Passed, Now(at));
        board.on_result(CheckId(1), CheckResult::Passed, Now(at));
    }
    board.adopt(&[plan(1, &[81], 5_000), elsewhere], Now(10));
    assert_eq!(board.len(), 2);
    assert!(board.state(CheckId(0)).is_none());
    assert_eq!(board.on_result(CheckId(0), failed("late"), Now(11)), None);
    let kept = board.state(CheckId(1)).unwrap();
    assert_eq!((kept.health(), kept.since()), (ServerHealth::Up, Now(2)));
    assert_eq!(board.state(CheckId(2)).unwrap().health(), ServerHealth::Unknown);
}

#[test]
fn a_new_interval_or_port_takes_no_server_out_of_service() {
    let mut board = HealthBoard::new();
    board.adopt(&[plan(0, &[80], 5_000)], Now(0));
    board.on_result(CheckId(0), CheckResult::Passed, Now(1));
    board.on_result(CheckId(0), CheckResult::Passed, Now(2));
    let health_of = |board: &HealthBoard, id| {
        let state = board.state(CheckId(id)).unwrap();
        (state.health(), state.since())
    };
    board.adopt(&[plan(1, &[80], 1_000)], Now(10));
    assert_eq!(health_of(&board, 1), (ServerHealth::Up, Now(2)));
    board.adopt(&[plan(2, &[80, 81], 1_000)], Now(10));
    assert_eq!(health_of(&board, 2), (ServerHealth::Up, Now(2)));
    // A further check of the same address is another question.
    board.adopt(&[plan(2, &[80, 81], 1_000), plan(3, &[82], 1_000), plan(4, &[80, 81], 9_000)], Now(10));
    assert_eq!(health_of(&board, 3), (ServerHealth::Unknown, Now(10)));
    assert_eq!(health_of(&board, 4), (ServerHealth::Up, Now(2)));
    for at in 11..=12 {
        assert_eq!(board.on_result(CheckId(2), failed("refused"), Now(at)), None);
    }
    assert!(board.on_result(CheckId(2), failed("refused"), Now(13)).is_some());
}

#[test]
fn a_server_that_flaps_is_held_for_longer_each_time() {
    let damping = Damping { flaps: 3, window_ms: 60_000, hold_ms: 10_000 };
    let mut state = HealthState::new(1, 1, Now(0)).damped(damping);
    let mut now = Now(0);
    let mut after = |ms: u64, result: CheckResult| {
        now = now + ms;
        (state.on_result(result, now).map(|transition| transition.to), state.reason().to_string())
    };
    let up = |told: (Option<ServerHealth>, String)| assert_eq!(told.0, Some(ServerHealth::Up));
    let down = |told: (Option<ServerHealth>, String)| assert_eq!(told.0, Some(ServerHealth::Down));
    up(after(0, CheckResult::Passed));
    for _ in 0..2 {
        down(after(1_000, failed("refused")));
        up(after(1_000, CheckResult::Passed));
    }
    // The third time within the window.
    down(after(1_000, failed("refused")));
    let (to, reason) = after(1_000, CheckResult::Passed);
    assert_eq!(to, Some(ServerHealth::Held));
    assert_eq!(reason, "its check passes, but it went down 3 times lately: held for 9 s");
    // Held, it may go down as well, which is not one more time that it fell.
    down(after(1_000, failed("refused")));
    assert_eq!(after(1_000, CheckResult::Passed).0, Some(ServerHealth::Held));
    assert_eq!(after(6_999, CheckResult::Passed).0, None);
    up(after(1, CheckResult::Passed));
    for hold_ms in [20_000, 40_000] {
        down(after(1, failed("refused")));
        assert_eq!(after(hold_ms - 1, CheckResult::Passed).0, Some(ServerHealth::Held));
        up(after(1, CheckResult::Passed));
    }
    // Once the window has passed nothing is known of it.
    down(after(60_001, failed("refused")));
    up(after(1, CheckResult::Passed));
}

#[test]
fn no_damping_holds_nobody_and_what_is_remembered_is_bounded() {
    let mut never = HealthState::new(1, 1, Now(0));
    let often = Damping { flaps: 100, window_ms: u64::MAX, hold_ms: u64::MAX };
    let mut seldom = HealthState::new(1, 1, Now(0)).damped(often);
    for n in 0..2_000 {
        let result = if n % 2 == 0 { CheckResult::Passed } else { failed("refused") };
        never.on_result(result.clone(), Now(n));
        seldom.on_result(result, Now(n));
        assert_ne!(never.health(), ServerHealth::Held);
        assert!(seldom.falls.len() <= FALLS_MAX);
    }
    assert!(never.falls.is_empty());
    seldom.on_result(CheckResult::Passed, Now(3_000));
    assert_eq!(seldom.health(), ServerHealth::Held, "for ever, and without an overflow");
}

#[test]
fn only_who_was_down_has_returned() {
    let mut state = HealthState::new(1, 1, Now(0));
    state.on_result(CheckResult::Passed, Now(5));
    assert_eq!(state.returned(), None, "the first verdict");
    state.on_result(failed("refused"), Now(6));
    assert_eq!(state.returned(), None);
    state.on_result(CheckResult::Passed, Now(7));
    assert_eq!(state.returned(), Some(Now(7)));
}

#[test]
fn an_inherited_verdict_holds_until_the_counts_change_it() {
    let mut board = HealthBoard::new();
    let plans = [plan(0, &[80], 1_000), plan(1, &[81], 1_000), plan(2, &[82], 1_000), plan(3, &[83], 1_000)];
    board.adopt(&plans, Now(0));
    let told = [ServerHealth::Up, ServerHealth::Down, ServerHealth::Held, ServerHealth::Unknown];
    for (plan, health) in plans.iter().zip(told) {
        board.inherit(plan.id, health, "as it was", Now(5));
    }
    let health = |board: &HealthBoard, id| board.state(CheckId(id)).unwrap().health();
    assert_eq!(
        [0, 1, 2, 3].map(|id| health(&board, id)),
        [ServerHealth::Up, ServerHealth::Down, ServerHealth::Down, ServerHealth::Unknown]
    );
    assert!(board.is_judged(CheckId(0)) && !board.is_judged(CheckId(3)));
    // Falls after three, rises after two.
    for (id, result, times) in [(0, failed("refused"), 3), (1, CheckResult::Passed, 2)] {
        let before = health(&board, id);
        let transitions: Vec<bool> =
            (0..times).map(|_| board.on_result(CheckId(id), result.clone(), Now(9)).is_some()).collect();
        assert_eq!(transitions.iter().filter(|changed| **changed).count(), 1);
        assert!(transitions[times - 1] && health(&board, id) != before);
    }
    // Whoever has a verdict of its own believes it.
    board.inherit(CheckId(1), ServerHealth::Down, "late", Now(10));
    assert_eq!(health(&board, 1), ServerHealth::Up);
}
