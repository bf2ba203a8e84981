use proptest::prelude::*;

use super::*;
use crate::fixtures::half_an_hour;

const FOREVER: Now = Now(u64::MAX);

fn key(n: u8) -> PersistenceKey {
    PersistenceKey::new(ServiceId(u16::from(n / 8)), IpAddr::from([10, 0, 0, n]), &half_an_hour())
}

#[test]
fn an_entry_lives_up_to_the_moment_it_expires() {
    let mut table = PersistenceTable::new(4, 1);
    table.record(key(1), RealServerId(7), Now(1_000), Now(0));
    assert_eq!(table.lookup(key(1), Now(1_000)), Some(RealServerId(7)));
    assert_eq!(table.lookup(key(1), Now(1_001)), None);
    assert_eq!((table.len(), table.evicted()), (0, 0));
}

#[test]
fn a_table_of_no_entries_remembers_nobody() {
    let mut table = PersistenceTable::new(0, 1);
    table.record(key(1), RealServerId(7), FOREVER, Now(0));
    assert_eq!(table.lookup(key(1), Now(0)), None);
    assert_eq!((table.sweep(Now(0), 10), table.capacity(), table.is_empty()), (0, 0, true));
}

#[test]
fn a_lost_entry_counts_only_if_it_lived() {
    let mut table = PersistenceTable::new(1, 1);
    table.record(key(1), RealServerId(1), Now(10), Now(0));
    table.record(key(2), RealServerId(1), Now(30), Now(20));
    assert_eq!(table.evicted(), 0);
    table.record(key(3), RealServerId(1), Now(40), Now(30));
    assert_eq!(table.evicted(), 1);
    assert_eq!(table.lookup(key(3), Now(30)), Some(RealServerId(1)));
}

#[test]
fn new_entries_clear_expired_ones_away() {
    let mut table = PersistenceTable::new(100, 1);
    for n in 0..50 {
        table.record(key(n), RealServerId(1), Now(10), Now(0));
    }
    for n in 100..150 {
        table.record(key(n), RealServerId(1), FOREVER, Now(20));
    }
    assert_eq!(table.len(), 50);
    for n in 0..50 {
        table.record(key(n), RealServerId(1), Now(30), Now(20));
    }
    assert_eq!(table.sweep(Now(40), 100), 50);
    assert_eq!(table.len(), 50);
}

#[test]
fn clients_are_cut_to_their_prefix() {
    let rule = Persistence { ipv4_prefix: 24, ipv6_prefix: 64, ..half_an_hour() };
    // (one, other, whether they are the same client)
    let table = [
        ("192.0.2.1", "192.0.2.254", true),
        ("192.0.2.1", "192.0.3.1", false),
        ("192.0.2.1", "::ffff:192.0.2.9", true),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::", true),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", false),
    ];
    let key = |address: &str, rule: &Persistence| PersistenceKey::new(ServiceId(1), address.parse().unwrap(), rule);
    for (one, other, same) in table {
        assert_eq!(key(one, &rule) == key(other, &rule), same, "{one} and {other}");
        assert_ne!(key(one, &half_an_hour()), key(other, &half_an_hour()));
    }
    let everybody = Persistence { ipv4_prefix: 0, ipv6_prefix: 0, ..half_an_hour() };
    assert_eq!(key("192.0.2.1", &everybody), key("203.0.113.9", &everybody));
    assert_eq!(key("2001:db8::1", &everybody), key("fe80::1", &everybody));
}

#[test]
fn stripes_share_the_clients_and_follow_the_prefix() {
    let rule = Persistence { ipv4_prefix: 24, ..half_an_hour() };
    let stripe = |address: [u8; 4]| PersistenceKey::new(ServiceId(1), address.into(), &rule).stripe(9);
    let mut clients = [0; PERSISTENCE_STRIPES];
    for high in 0..64 {
        for low in 0..100 {
            let at = stripe([10, high, low, 1]);
            assert_eq!(at, stripe([10, high, low, 200]));
            clients[at] += 1;
        }
    }
    assert!(clients.iter().all(|n| (50..150).contains(n)), "{clients:?}");
}

#[derive(Clone, Debug)]
enum Step {
    ForgetServer(u16),
    ForgetService(u16),
    Lookup(u8),
    Record(u8, u16),
    Sweep(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0_u16..4).prop_map(Step::ForgetServer),
        1 => (0_u16..4).prop_map(Step::ForgetService),
        8 => (0_u8..32).prop_map(Step::Lookup),
        12 => (0_u8..32, 0_u16..4).prop_map(|(client, server)| Step::Record(client, server)),
        1 => (0_usize..8).prop_map(Step::Sweep),
    ]
}

proptest! {
    /// Against a list in the order of refreshing.
    #[test]
    fn a_table_holds_exactly_the_entries_refreshed_last(capacity in 1_usize..20, seed: u64, steps in prop::collection::vec(step(), 0..300)) {
        let mut table = PersistenceTable::new(capacity as u32, seed);
        let mut list: Vec<(u8, u16)> = Vec::new();
        let mut evicted = 0;
        for step in steps {
            match step {
                Step::ForgetServer(server) => {
                    let before = list.len();
                    list.retain(|entry| entry.1 != server);
                    prop_assert_eq!(table.forget_server(RealServerId(server)), before - list.len());
                }
                Step::ForgetService(service) => {
                    let before = list.len();
                    list.retain(|entry| u16::from(entry.0 / 8) != service);
                    prop_assert_eq!(table.forget_service(ServiceId(service)), before - list.len());
                }
                Step::Lookup(client) => {
                    let expected = list.iter().find(|entry| entry.0 == client).map(|entry| RealServerId(entry.1));
                    prop_assert_eq!(table.lookup(key(client), Now(5)), expected);
                }
                Step::Record(client, server) => {
                    list.retain(|entry| entry.0 != client);
                    if list.len() == capacity {
                        list.remove(0);
                        evicted += 1;
                    }
                    list.push((client, server));
                    table.record(key(client), RealServerId(server), FOREVER, Now(5));
                }
                Step::Sweep(budget) => prop_assert_eq!(table.sweep(Now(5), budget), 0),
            }
            prop_assert_eq!(table.len(), list.len());
            prop_assert!(table.len() <= table.capacity());
            prop_assert_eq!(table.evicted(), evicted);
        }
    }

    /// With time: what is found was recorded last and lives; what lives is found unless it was evicted.
    #[test]
    fn only_living_entries_are_found(capacity in 1_u32..20, steps in prop::collection::vec((0_u8..32, 0_u16..4, 0_u64..20, 0_u64..5), 0..300)) {
        let mut table = PersistenceTable::new(capacity, 3);
        let mut last = std::collections::HashMap::new();
        let mut now = Now(0);
        for (client, server, timeout_ms, pause_ms) in steps {
            now = now + pause_ms;
            let found = table.lookup(key(client), now);
            let lives = last.get(&client).copied().filter(|&(_, expires)| expires >= now).map(|(server, _)| server);
            prop_assert!(found.is_none() || found == lives);
            prop_assert!(found == lives || table.evicted() > 0);
            table.record(key(client), RealServerId(server), now + timeout_ms, now);
            last.insert(client, (RealServerId(server), now + timeout_ms));
            prop_assert!(table.len() <= table.capacity());
        }
    }
}

#[test]
fn a_walk_finds_what_lives_and_clears_what_it_is_told_to() {
    let mut table = PersistenceTable::new(100, 1);
    for n in 0..50 {
        let expires = if n % 5 == 0 { Now(10) } else { FOREVER };
        table.record(key(n), RealServerId(u16::from(n % 2)), expires, Now(0));
    }
    let now = Now(20);
    assert_eq!(table.peek(key(1), now).map(|entry| entry.server), Some(RealServerId(1)));
    assert_eq!(table.peek(key(5), now), None, "it has expired");
    let found = |table: &PersistenceTable, places: usize| {
        let (mut at, mut found) = (Some(0), Vec::new());
        while let Some(from) = at {
            at = table.survey(from, places, now, |entry| found.push(entry.key));
        }
        found
    };
    for places in [1, 7, 1_000] {
        assert_eq!(found(&table, places).len(), 40, "{places}");
    }
    let (mut at, mut gone) = (Some(0), 0);
    while let Some(from) = at {
        let (more, next) = table.forget_some(from, 7, now, |entry| entry.server == RealServerId(1));
        (at, gone) = (next, gone + more);
    }
    // Of the 25 of that server 5 had expired: they go, but nobody had them any more.
    assert_eq!((gone, table.len()), (20, 25));
    assert!(
        found(&table, 7).iter().all(|&key| table.peek(key, now).is_some_and(|entry| entry.server == RealServerId(0)))
    );
    // What is left is still found, and what is free is used again.
    for n in 0..100 {
        table.record(key(n), RealServerId(3), FOREVER, now);
    }
    assert_eq!((table.len(), table.evicted(), found(&table, 9).len()), (100, 0, 100));
}
