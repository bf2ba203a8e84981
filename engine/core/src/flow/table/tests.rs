use super::*;
use crate::random::SplitMix64;
use proptest::prelude::*;
use std::collections::HashMap;
use std::net::Ipv4Addr;

type Table = FlowTable<[u32; 6], [u32; 3]>;

const SHORT: TimeoutClass = TimeoutClass(0);
const LONG: TimeoutClass = TimeoutClass(1);
const SHORT_MS: u64 = 4_000;
const LONG_MS: u64 = 7_440_000;
const LATE_MS: u64 = 2 * TICK_MS;

fn table(flows_max: usize, seed: u64) -> Table {
    let limits = FlowLimits { flows_max, addresses_max: 64 };
    FlowTable::new(limits, Timeouts::new(&[SHORT_MS, LONG_MS]), [seed, !seed], Now(0))
}

fn v4(a: u8, b: u8, c: u8, d: u8) -> Ip {
    Ipv4Addr::new(a, b, c, d).into()
}

fn v6(last: u32) -> Ip {
    Ip(((0x2001_0db8_u128 << 96) | u128::from(last)).to_be_bytes())
}

fn tuple(src: Ip, src_port: u16, dst: Ip, dst_port: u16) -> Tuple {
    Tuple { src, dst, src_port, dst_port, protocol: 6 }
}

/// The full-NAT flow of client number `n`; every second one is IPv6.
fn full_nat(n: u32) -> FlowPath {
    let [_, b, c, d] = (n >> 4).to_be_bytes();
    let port = 1_024 + (n % 60_000) as u16;
    let (client, vip, source, server) = if n.is_multiple_of(2) {
        (v4(10, b, c, d), v4(192, 0, 2, 1), v4(192, 0, 2, 100 + (n / 60_000 % 100) as u8), v4(198, 51, 100, 1))
    } else {
        (v6(n), v6(1 << 30), v6((1 << 30) + 100 + n / 60_000), v6((1 << 30) + 1))
    };
    FlowPath {
        client: tuple(client, (n % 16) as u16 + 40_000, vip, 443),
        server: tuple(source, port, server, 8_443),
        returns: Returns::Here,
    }
}

fn half_nat() -> FlowPath {
    let client = v4(203, 0, 113, 7);
    FlowPath {
        client: tuple(client, 5_000, v4(192, 0, 2, 1), 443),
        server: tuple(client, 5_000, v4(198, 51, 100, 1), 8_443),
        returns: Returns::Here,
    }
}

fn insert(table: &mut Table, now: Now, path: &FlowPath, class: TimeoutClass) -> Result<FlowId, InsertError> {
    table.insert(now, path, class, [7; 6], [8; 3])
}

fn expire_all(table: &mut Table, now: Now) -> Vec<FlowId> {
    let mut budget = usize::MAX;
    std::iter::from_fn(|| table.expire(now, &mut budget)).map(|closed| closed.id).collect()
}

#[test]
fn a_flow_of_either_family_costs_at_most_128_bytes() {
    assert_eq!(Table::BYTES_PER_FLOW, 104);
    assert_eq!(FlowTable::<[u32; 6], [u32; 9]>::BYTES_PER_FLOW, 128);
    // Ten million in 1.3 GB: the flows, and beside them only what does not grow with them.
    let table = table(100_000, 1);
    assert!(table.memory_bytes() <= 100_000 * 104 + 16 * 1_024, "{}", table.memory_bytes());
}

#[test]
fn both_directions_find_the_flow_and_no_other_tuple_does() {
    let dsr = FlowPath { returns: Returns::Elsewhere, ..half_nat() };
    for path in [full_nat(0), full_nat(1), half_nat(), dsr] {
        let mut table = table(4, 3);
        let id = insert(&mut table, Now(0), &path, LONG).unwrap();
        assert_eq!(table.lookup(&path.client), Some((id, Direction::Forward)));
        let returns = (path.returns == Returns::Here).then_some((id, Direction::Reverse));
        assert_eq!(table.lookup(&path.server.reversed()), returns);
        assert_eq!(table.path(id), Some(path));
        assert_eq!(path.outgoing(Direction::Reverse), path.client.reversed());
        for near in [
            path.client.reversed(),
            Tuple { protocol: 17, ..path.client },
            Tuple { src_port: path.client.src_port ^ 1, ..path.client },
            Tuple { dst_port: path.client.dst_port ^ 1, ..path.client },
            Tuple { src: v4(10, 9, 9, 9), ..path.client },
            Tuple { dst: v4(10, 9, 9, 9), ..path.client },
        ] {
            assert_eq!(table.lookup(&near), None, "{near:?}");
        }
        let closed = table.remove(id).unwrap();
        assert_eq!((closed.id, closed.path, closed.state, closed.detail), (id, path, [7; 6], [8; 3]));
        assert_eq!(table.lookup(&path.client), None);
        assert_eq!(table.lookup(&path.server.reversed()), None);
        assert_eq!((table.len(), table.addresses()), (0, 0));
    }
}

#[test]
fn a_tuple_belongs_to_one_flow() {
    let mut table = table(8, 3);
    let first = full_nat(0);
    let id = insert(&mut table, Now(0), &first, LONG).unwrap();
    let same_client = FlowPath { server: full_nat(2).server, ..first };
    let same_returns = FlowPath { client: full_nat(2).client, ..first };
    for path in [first, same_client, same_returns] {
        assert_eq!(insert(&mut table, Now(0), &path, LONG), Err(InsertError::Exists(Some(id))));
    }
    let client = full_nat(4).client;
    let looped = FlowPath { client, server: client.reversed(), returns: Returns::Here };
    assert_eq!(insert(&mut table, Now(0), &looped, LONG), Err(InsertError::Exists(None)));
    assert_eq!((table.len(), table.addresses()), (1, 0));
    insert(&mut table, Now(0), &full_nat(1), LONG).unwrap();
    assert_eq!((table.len(), table.addresses()), (2, 3));
}

#[test]
fn a_stale_id_is_no_other_flow() {
    let mut table = table(1, 3);
    let old = insert(&mut table, Now(0), &full_nat(0), LONG).unwrap();
    table.remove(old).unwrap();
    let new = insert(&mut table, Now(0), &full_nat(2), LONG).unwrap();
    assert_eq!(old.slot(), new.slot());
    assert!(table.remove(old).is_none());
    assert!(table.state(old).is_none() && table.state_mut(old).is_none());
    assert!(table.detail(old).is_none() && table.detail_mut(old).is_none());
    assert!(table.path(old).is_none() && table.class(old).is_none());
    assert!(!table.touch(old, Now(5), SHORT));
    assert_eq!(table.at(new.slot()), Some(new));
}

#[test]
fn a_slot_retires_when_its_generations_are_used_up() {
    let mut table = table(1, 3);
    table.hot[0].generation = u32::MAX - 1;
    let last = insert(&mut table, Now(0), &full_nat(0), LONG).unwrap();
    table.remove(last).unwrap();
    assert_eq!(table.at(0), None);
    assert_eq!(insert(&mut table, Now(0), &full_nat(0), LONG), Err(InsertError::Full));
    assert_eq!((table.counts().retired, table.counts().slots_full), (1, 1));
}

#[test]
fn every_slot_can_be_used_and_the_next_flow_is_refused_and_counted() {
    for (flows_max, seed) in [(1, 1), (7, 2), (100, 3), (1_000, 4), (60_000, 5)] {
        let mut table = table(flows_max, seed);
        for n in 0..flows_max as u32 {
            let inserted = insert(&mut table, Now(0), &full_nat(n), LONG);
            assert!(inserted.is_ok(), "flow {n} of {flows_max}: {inserted:?}");
        }
        assert_eq!(insert(&mut table, Now(0), &full_nat(flows_max as u32), LONG), Err(InsertError::Full));
        assert_eq!(
            table.counts(),
            TableCounts { slots_full: 1, moved: table.counts().moved, ..TableCounts::default() }
        );
        for n in 0..flows_max as u32 {
            let path = full_nat(n);
            let (id, direction) = table.lookup(&path.client).expect("inserted");
            assert_eq!(direction, Direction::Forward);
            assert_eq!(table.lookup(&path.server.reversed()), Some((id, Direction::Reverse)));
        }
        for slot in 0..flows_max {
            let id = table.at(slot).expect("every slot is used");
            table.remove(id).unwrap();
        }
        assert_eq!((table.len(), table.addresses()), (0, 0));
    }
}

#[test]
fn a_full_address_book_refuses_and_leaves_nothing_behind() {
    let limits = FlowLimits { flows_max: 10, addresses_max: 4 };
    let mut table: Table = FlowTable::new(limits, Timeouts::new(&[SHORT_MS, LONG_MS]), [1, 2], Now(0));
    let id = insert(&mut table, Now(0), &full_nat(1), LONG).unwrap();
    let other = FlowPath {
        client: tuple(v6(9), 9, v6(10), 443),
        server: tuple(v6(11), 9, v6(12), 443),
        returns: Returns::Here,
    };
    assert_eq!(insert(&mut table, Now(0), &other, LONG), Err(InsertError::AddressesFull));
    assert_eq!((table.addresses(), table.counts().addresses_full), (3, 1));
    assert!(insert(&mut table, Now(0), &full_nat(0), LONG).is_ok(), "IPv4 needs no room in the book");
    table.remove(id).unwrap();
    assert!(insert(&mut table, Now(0), &other, LONG).is_ok());
}

#[test]
fn a_batch_finds_what_single_lookups_find() {
    let mut table = table(2_000, 9);
    for n in 0..2_000 {
        insert(&mut table, Now(0), &full_nat(n), LONG).unwrap();
    }
    let mut random = SplitMix64::new(4);
    for len in [0, 1, 31, 32, 33, 100] {
        // Every third flow is unknown.
        let tuples: Vec<Tuple> = (0..len)
            .map(|_| {
                let path = full_nat(random.below(3_000) as u32);
                if random.below(2) == 0 { path.client } else { path.server.reversed() }
            })
            .collect();
        let mut found = vec![None; len];
        table.lookup_batch(&tuples, &mut found);
        let single: Vec<_> = tuples.iter().map(|tuple| table.lookup(tuple)).collect();
        assert_eq!(found, single);
    }
}

#[test]
fn a_silent_flow_expires_after_its_timeout_and_not_before() {
    let mut table = table(4, 3);
    let id = insert(&mut table, Now(1_001), &full_nat(0), SHORT).unwrap();
    assert!(expire_all(&mut table, Now(1_001 + SHORT_MS - 1)).is_empty());
    assert!(table.touch(id, Now(3_000), SHORT));
    assert!(expire_all(&mut table, Now(3_000 + SHORT_MS - 1)).is_empty());
    assert_eq!(expire_all(&mut table, Now(3_000 + SHORT_MS + LATE_MS)), [id]);
    assert_eq!((table.len(), table.next_expiry()), (0, None));
}

#[test]
fn a_shorter_class_counts_at_once_and_a_longer_one_as_well() {
    let mut table = table(4, 3);
    let closing = insert(&mut table, Now(0), &full_nat(0), LONG).unwrap();
    let opened = insert(&mut table, Now(0), &full_nat(1), SHORT).unwrap();
    table.touch(closing, Now(100), SHORT);
    table.touch(opened, Now(100), LONG);
    assert_eq!(expire_all(&mut table, Now(100 + SHORT_MS + LATE_MS)), [closing]);
    assert!(expire_all(&mut table, Now(100 + LONG_MS - 1)).is_empty());
    assert_eq!(expire_all(&mut table, Now(100 + LONG_MS + LATE_MS)), [opened]);
}

#[test]
fn expiry_keeps_to_its_budget_and_goes_on_where_it_stopped() {
    let mut table = table(1_000, 3);
    for n in 0..1_000 {
        insert(&mut table, Now(0), &full_nat(n), LONG).unwrap();
    }
    let (mut expired, mut turns) = (0, 0);
    while !table.is_empty() {
        let mut budget = 10;
        while table.expire(Now(LONG_MS + LATE_MS), &mut budget).is_some() {
            expired += 1;
        }
        turns += 1;
        assert!(turns < 400, "each flow is looked at a few times at most");
    }
    assert_eq!(expired, 1_000);
    assert!(turns >= 100);
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u32, bool),
    Remove(u32),
    Touch(u32, bool),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..40_u32, any::<bool>()).prop_map(|(n, long)| Step::Insert(n, long)),
        1 => (0..40_u32).prop_map(Step::Remove),
        3 => (0..40_u32, any::<bool>()).prop_map(|(n, long)| Step::Touch(n, long)),
        1 => prop_oneof![0..200_u64, 0..2 * SHORT_MS, 0..2 * LONG_MS].prop_map(Step::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// Against a plain map of flow to (id, last seen, timeout).
    #[test]
    fn the_table_agrees_with_a_map(steps in prop::collection::vec(step(), 1..150), seed in any::<u64>()) {
        let mut table = table(24, seed);
        let mut model: HashMap<u32, (FlowId, Now, u64)> = HashMap::new();
        let mut now = Now(0);
        let class = |long| if long { (LONG, LONG_MS) } else { (SHORT, SHORT_MS) };
        for step in steps {
            match step {
                Step::Insert(n, long) => {
                    let (class, timeout_ms) = class(long);
                    match (insert(&mut table, now, &full_nat(n), class), model.get(&n)) {
                        (Ok(id), None) => {
                            model.insert(n, (id, now, timeout_ms));
                        }
                        (Err(InsertError::Exists(Some(id))), Some((known, ..))) => prop_assert_eq!(id, *known),
                        (Err(InsertError::Full), None) => prop_assert_eq!(model.len(), 24),
                        (result, known) => prop_assert!(false, "{:?} beside {:?}", result, known),
                    }
                }
                Step::Remove(n) => {
                    if let Some((id, ..)) = model.remove(&n) {
                        prop_assert_eq!(table.remove(id).map(|closed| closed.path), Some(full_nat(n)));
                    }
                }
                Step::Touch(n, long) => {
                    if let Some(entry) = model.get_mut(&n) {
                        let (class, timeout_ms) = class(long);
                        prop_assert!(table.touch(entry.0, now, class));
                        *entry = (entry.0, now, timeout_ms);
                    }
                }
                Step::Pass(ms) => {
                    now = now + ms;
                    let expired = expire_all(&mut table, now);
                    model.retain(|_, (id, seen, timeout_ms)| {
                        let silent_ms = now.ms_since(*seen);
                        let gone = expired.contains(id);
                        assert!(!gone || silent_ms >= *timeout_ms, "expired after {silent_ms} ms");
                        assert!(gone || silent_ms < *timeout_ms + LATE_MS, "still there after {silent_ms} ms");
                        !gone
                    });
                }
            }
            prop_assert_eq!(table.len(), model.len());
            for n in 0..40 {
                let path = full_nat(n);
                let known = model.get(&n).map(|(id, ..)| *id);
                prop_assert_eq!(table.lookup(&path.client), known.map(|id| (id, Direction::Forward)));
                prop_assert_eq!(table.lookup(&path.server.reversed()), known.map(|id| (id, Direction::Reverse)));
            }
        }
    }
}
