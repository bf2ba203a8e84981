use proptest::prelude::*;

use super::*;
use crate::fixtures::{add_service, model, target};

const FE_1: &str = "192.168.10.31";
const FE_2: &str = "192.168.10.32";
const READY: Configured = Configured { admin: AdminState::Ready, weight: 100 };

fn member(service: &str, address: &str) -> Member {
    Member { service: service.into(), address: address.parse().unwrap(), port: None }
}

fn said(unix_ms: u64) -> Said {
    Said { unix_ms, by: "user root".into(), reason: "patch day".into() }
}

fn drain(deadline_ms: Option<u64>, until: u32, then: Then) -> Order {
    Order::Drain { deadline_ms, until, then }
}

fn laid(words: &AdminWords, service: &str, address: &str) -> Target {
    let mut target = Target { address: address.parse().unwrap(), ..target(0) };
    words.lay_over(service, &mut target);
    target
}

#[test]
fn a_word_is_about_one_server_of_one_service() {
    let mut words = AdminWords::new();
    words.say(&member("web", FE_1), READY, Order::Halt, said(1), Now(0));
    words.say(&member("web", FE_1), READY, Order::Weight(Some(7)), said(1), Now(0));
    let halted = laid(&words, "web", FE_1);
    assert_eq!((halted.admin, halted.halted, halted.weight), (AdminState::Halt, Halted::ByOperator, 7));
    for (service, address) in [("mail", FE_1), ("web", FE_2)] {
        let other = laid(&words, service, address);
        assert_eq!((other.admin, other.weight), (AdminState::Ready, 100), "{service} {address}");
    }
    let own_port = Target { address: FE_1.parse().unwrap(), port: Some(8443), ..target(0) };
    let mut other = own_port.clone();
    words.lay_over("web", &mut other);
    assert_eq!(other.admin, own_port.admin, "another port is another server");
}

#[test]
fn what_the_file_says_anyway_is_no_word() {
    let mut words = AdminWords::new();
    let web = member("web", FE_1);
    for order in [Order::Halt, drain(None, 0, Then::Stay), Order::Weight(Some(3))] {
        words.say(&web, READY, order, said(1), Now(0));
    }
    words.say(&web, READY, Order::Ready, said(2), Now(0));
    assert_eq!(words.of(&web).unwrap().admin, None);
    words.say(&web, READY, Order::Weight(Some(100)), said(2), Now(0));
    assert!(words.is_empty());
    let drained = Configured { admin: AdminState::Drain, weight: 100 };
    words.say(&web, drained, Order::Ready, said(3), Now(0));
    assert_eq!(words.standing(&web, drained), READY, "over a file that says drain, ready is a word");
    words.say(&web, drained, Order::Weight(None), said(3), Now(0));
    assert_eq!(words.of(&web).unwrap().weight, None);
}

#[test]
fn a_state_said_again_counts_from_when_it_began() {
    let mut words = AdminWords::new();
    let web = member("web", FE_1);
    let since = |words: &AdminWords| words.of(&web).unwrap().admin.as_ref().unwrap().said.unix_ms;
    words.say(&web, READY, drain(None, 0, Then::Stay), said(10), Now(0));
    words.say(&web, READY, drain(Some(60_000), 0, Then::Halt), said(20), Now(5));
    assert_eq!(since(&words), 10);
    let deadline = words.of(&web).unwrap().admin.as_ref().unwrap().drain.unwrap().deadline;
    assert_eq!(deadline, Some(Now(60_005)), "but the new deadline holds");
    words.say(&web, READY, Order::Halt, said(30), Now(6));
    assert_eq!(since(&words), 30);
}

#[test]
fn a_word_gives_way_to_a_later_one_of_the_file_and_to_nothing_else() {
    let mut file = model();
    add_service(&mut file, "web", &[443], &[FE_1, FE_2], None);
    let web = member("web", FE_1);
    let mut words = AdminWords::new();
    words.say(&web, READY, drain(None, 0, Then::Stay), said(1), Now(0));
    words.say(&web, READY, Order::Weight(Some(5)), said(1), Now(0));
    let before = words.clone();
    // A reload that changes something else.
    file.groups[0].servers[1].admin = AdminState::Halt;
    file.services[0].idle_timeout_ms += 1;
    assert_eq!((words.follow(&file), &words), (Vec::new(), &before));
    // The file says halt now: later than our drain. The weight stays.
    file.groups[0].servers[0].admin = AdminState::Halt;
    assert_eq!(words.follow(&file), [GivenWay { member: web.clone(), to: GaveWayTo::Configuration }]);
    let held = words.of(&web).unwrap();
    assert_eq!((&held.admin, held.weight.as_ref().map(|word| word.weight)), (&None, Some(5)));
    file.groups[0].servers.remove(0);
    assert_eq!(words.follow(&file), [GivenWay { member: web, to: GaveWayTo::Removal }]);
    assert!(words.is_empty());
}

#[test]
fn a_drain_ends_by_what_is_left_or_by_its_deadline() {
    let web = member("web", FE_1);
    let cases = [
        // (deadline, until, connections at 100 s, how it ended by then)
        (None, 0, Some(1), None),
        (None, 0, Some(0), Some((DrainEnd::Until, 0))),
        (None, 5, Some(6), None),
        (None, 5, Some(5), Some((DrainEnd::Until, 5))),
        (Some(100_001), 5, Some(6), None),
        (Some(100_000), 5, Some(6), Some((DrainEnd::Deadline, 6))),
        (Some(100_000), 5, Some(3), Some((DrainEnd::Until, 3))),
        // Not every worker knows of it: new connections may still come.
        (Some(100_001), 5, None, None),
        (Some(100_000), 5, None, Some((DrainEnd::Deadline, 0))),
    ];
    for (deadline_ms, until, connections, expected) in cases {
        for then in [Then::Halt, Then::Stay] {
            let mut words = AdminWords::new();
            words.say(&web, READY, drain(deadline_ms, until, then), said(1), Now(0));
            assert!(words.is_draining());
            let ended = words.turn(Now(100_000), 77, |_| connections);
            let case = format!("{deadline_ms:?} {until} {connections:?} {then:?}");
            let over = expected.map(|(why, left)| DrainOver { why, unix_ms: 77, left });
            assert_eq!(ended.first().map(|ended| (ended.then, ended.over)), over.map(|over| (then, over)), "{case}");
            assert_eq!(words.is_draining(), over.is_none(), "{case}");
            let target = laid(&words, "web", FE_1);
            let halts = over.is_some() && then == Then::Halt;
            assert_eq!(target.admin, if halts { AdminState::Halt } else { AdminState::Drain }, "{case}");
            if halts {
                assert_eq!(target.halted.termination(), Termination::ServerDrained, "{case}");
            }
            assert_eq!(
                words.turn(Now(u64::MAX), 99, |_| Some(0)).len(),
                usize::from(over.is_none()),
                "it ends once: {case}"
            );
        }
    }
}

#[test]
fn a_halt_by_the_operator_after_a_drain_is_the_operators() {
    let mut words = AdminWords::new();
    let web = member("web", FE_1);
    words.say(&web, READY, drain(Some(1), 0, Then::Halt), said(1), Now(0));
    words.say(&web, READY, Order::Halt, said(2), Now(0));
    assert_eq!(words.turn(Now(10), 3, |_| Some(4)), []);
    assert_eq!(laid(&words, "web", FE_1).halted.termination(), Termination::ServerHalted);
}

#[test]
fn a_server_of_two_groups_of_a_service_is_one_member() {
    let mut file = model();
    add_service(&mut file, "web", &[443], &[FE_1, FE_1], None);
    let all = members(&file);
    assert_eq!(all.len(), 1);
    assert_eq!((&all[0].0, all[0].2), (&member("web", FE_1), READY));
}

fn orders() -> impl Strategy<Value = Order> {
    prop_oneof![
        Just(Order::Ready),
        Just(Order::Halt),
        (proptest::option::of(0u64..500), 0u32..4, any::<bool>()).prop_map(|(deadline, until, halt)| drain(
            deadline,
            until,
            if halt { Then::Halt } else { Then::Stay }
        )),
        proptest::option::of(0u16..300).prop_map(Order::Weight),
    ]
}

proptest! {
    /// Whatever is said in whatever order: the last word about each thing holds, a drain ends once and never by itself turns into
    /// anything that takes connections.
    #[test]
    fn the_last_word_holds(steps in proptest::collection::vec((orders(), 0u64..200, 0u32..5), 1..40)) {
        let web = member("web", FE_1);
        let mut words = AdminWords::new();
        let mut now = Now(0);
        let mut expected = READY;
        for (order, wait, connections) in steps {
            now = now + wait;
            for ended in words.turn(now, now.0, |_| Some(connections)) {
                if ended.then == Then::Halt {
                    expected.admin = AdminState::Halt;
                }
            }
            prop_assert_eq!(words.standing(&web, READY), expected);
            words.say(&web, READY, order, said(now.0), now);
            match order {
                Order::Ready => expected.admin = AdminState::Ready,
                Order::Halt => expected.admin = AdminState::Halt,
                Order::Drain { .. } => expected.admin = AdminState::Drain,
                Order::Weight(weight) => expected.weight = weight.unwrap_or(READY.weight),
            }
            prop_assert_eq!(words.standing(&web, READY), expected);
            let target = laid(&words, "web", FE_1);
            prop_assert_eq!((target.admin, target.weight), (expected.admin, expected.weight));
        }
    }
}

#[test]
fn who_was_drained_or_halted_and_is_ready_again_has_come_back() {
    let mut file = model();
    add_service(&mut file, "web", &[443], &[FE_1, FE_2], None);
    let mut words = AdminWords::new();
    words.note_returns(&file, Now(0));
    assert_eq!(laid(&words, "web", FE_1).returned, None, "who was ready at the start has not been away");
    for (order, at) in [(Order::Halt, 100), (drain(None, 0, Then::Stay), 300)] {
        words.say(&member("web", FE_1), READY, order, said(1), Now(at));
        words.note_returns(&file, Now(at));
        words.say(&member("web", FE_1), READY, Order::Ready, said(2), Now(at + 50));
        words.note_returns(&file, Now(at + 50));
        // Whatever is said of others later.
        words.note_returns(&file, Now(at + 70));
        assert_eq!(laid(&words, "web", FE_1).returned, Some(Now(at + 50)), "{order:?}");
        assert_eq!(laid(&words, "web", FE_2).returned, None, "{order:?}");
    }
    // The file may say it as well.
    file.groups[0].servers[1].admin = AdminState::Drain;
    words.note_returns(&file, Now(400));
    file.groups[0].servers[1].admin = AdminState::Ready;
    words.note_returns(&file, Now(500));
    assert_eq!(laid(&words, "web", FE_2).returned, Some(Now(500)));
}

#[test]
fn the_later_word_about_the_role_holds() {
    let mut file = model();
    let mut words = AdminWords::new();
    assert_eq!(words.role(&file), MachineRole::Active);
    words.say_role(&file, MachineRole::Standby, said(10));
    words.say_role(&file, MachineRole::Standby, said(20));
    assert_eq!(words.role(&file), MachineRole::Standby);
    assert_eq!(words.role_word().map(|word| word.said.unix_ms), Some(10), "since when it is so");
    assert!(words.follow(&file).is_empty());
    assert_eq!(words.role(&file), MachineRole::Standby);
    // The file says something new.
    file.runtime.role = Some(MachineRole::Active);
    words.follow(&file);
    assert_eq!((words.role(&file), words.role_word()), (MachineRole::Active, None));
    file.runtime.role = Some(MachineRole::Standby);
    assert_eq!(words.role(&file), MachineRole::Standby);
    words.say_role(&file, MachineRole::Active, said(30));
    assert_eq!(words.role(&file), MachineRole::Active);
    words.say_role(&file, MachineRole::Standby, said(40));
    assert_eq!(words.role_word(), None, "what the file says anyway is no word");
}
