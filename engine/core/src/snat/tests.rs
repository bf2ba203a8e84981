use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use towpath_config::model::{Protocol, SourcePool};

use super::*;
use crate::Now;

const WORKERS: usize = 2;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn server(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}

fn rule(addresses: &[&str], low: u16, high: u16) -> SourcePool {
    SourcePool {
        addresses: addresses.iter().map(|text| address(text)).collect(),
        port_low: low,
        port_high: high,
        rest_ms: 60_000,
        towards: Default::default(),
    }
}

fn book() -> SnatBook {
    SnatBook::new(SnatLimits::default())
}

fn pool(rule: &SourcePool, destinations: &[SocketAddr]) -> Arc<SnatPool> {
    book().pool(rule, &[], Protocol::Tcp, destinations).expect("a pool")
}

/// Leases for worker 0 of [`WORKERS`], whose first shard is 0.
fn lease(pool: &SnatPool, destination: SocketAddr) -> Result<SnatLease, SnatExhausted> {
    pool.lease(destination, VShard(0), &SteeringTable::even(WORKERS), WorkerId(0))
}

fn lease_all(pool: &SnatPool, destination: SocketAddr) -> Vec<SnatLease> {
    std::iter::from_fn(|| lease(pool, destination).ok()).collect()
}

fn sources(leases: &[SnatLease]) -> HashSet<SocketAddr> {
    leases.iter().map(SnatLease::source).collect()
}

#[test]
fn addresses_times_range_are_reached_exactly_and_then_the_pool_says_so() {
    let to = server("10.0.0.1:443");
    let pool = pool(&rule(&["192.0.2.1", "192.0.2.2", "192.0.2.3"], 1024, 65535), &[to]);

    let leases = lease_all(&pool, to);

    assert_eq!(leases.len(), 3 * 64_512);
    assert_eq!(sources(&leases).len(), leases.len(), "a source was leased twice");
    let exhausted = lease(&pool, to).expect_err("no port is left");
    assert_eq!(exhausted, SnatExhausted { destination: to, addresses: 3, capacity: 3 * 64_512 });
    assert_eq!(
        exhausted.to_string(),
        "real server 10.0.0.1:443: all 193536 source ports of 3 source address(es) are leased; add an address to \
         source.pool, or a real server"
    );
}

#[test]
fn release_frees_exactly_that_port() {
    let to = server("10.0.0.1:443");
    let pool = pool(&rule(&["192.0.2.1", "192.0.2.2"], 20_000, 20_999), &[to]);
    let mut leases = lease_all(&pool, to);
    assert_eq!(leases.len(), 2_000);

    for index in [0, 777, 1_999] {
        let freed = leases[index].source();
        pool.release(leases.swap_remove(index));
        let again = lease(&pool, to).expect("one port is free");
        assert_eq!(again.source(), freed);
        lease(&pool, to).expect_err("and only that one was");
        leases.push(again);
    }
}

#[test]
fn the_whole_port_range_can_be_leased_down_to_port_0() {
    let to = server("10.0.0.1:443");
    let pool = pool(&rule(&["192.0.2.1"], 0, 65_535), &[to]);
    assert_eq!(lease_all(&pool, to).len(), 65_536);
}

#[test]
fn the_same_port_serves_different_real_servers_and_protocols() {
    let (one, two, other_port) = (server("10.0.0.1:443"), server("10.0.0.2:443"), server("10.0.0.1:80"));
    let rule = rule(&["192.0.2.1"], 5_000, 5_000);
    let mut book = book();
    let tcp = book.pool(&rule, &[], Protocol::Tcp, &[one, two, other_port]).expect("a pool");
    let udp = book.pool(&rule, &[], Protocol::Udp, &[one]).expect("a pool");

    for (pool, to) in [(&tcp, one), (&tcp, two), (&tcp, other_port), (&udp, one)] {
        assert_eq!(lease(pool, to).expect("free towards this one").port(), 5_000);
        lease(pool, to).expect_err("leased towards this one");
    }
}

#[test]
fn ports_that_we_listen_on_and_ports_outside_the_range_are_never_leased() {
    let to = server("10.0.0.1:443");
    let rule = rule(&["192.0.2.1"], 5_000, 5_099);
    let pool = book().pool(&rule, &[5_000, 5_061, 5_061, 80], Protocol::Tcp, &[to]).expect("a pool");

    let ports: HashSet<u16> = lease_all(&pool, to).iter().map(SnatLease::port).collect();

    assert_eq!(ports, (5_001..=5_099).filter(|&port| port != 5_061).collect());
}

#[test]
fn a_port_that_came_back_is_the_last_of_its_shard_to_go_out_again() {
    let to = server("10.0.0.1:443");
    let pool = pool(&rule(&["192.0.2.1"], 1_024, 65_535), &[to]);
    // 252 ports of the range have the low byte 0.
    for _ in 0..600 {
        let first = lease(&pool, to).expect("free");
        let port = first.port();
        assert_eq!(first.vshard(), VShard(0));
        pool.release(first);

        let others: Vec<SnatLease> = (0..251).map(|_| lease(&pool, to).expect("free")).collect();
        assert!(others.iter().all(|other| other.vshard() == VShard(0) && other.port() != port));
        let last = lease(&pool, to).expect("free");
        assert_eq!(last.port(), port);

        pool.release(last);
        others.into_iter().for_each(|other| pool.release(other));
        // Moves the cursor on, so that each turn begins elsewhere.
        let step = lease(&pool, to).expect("free");
        pool.release(step);
    }
}

#[test]
fn pools_with_the_same_address_and_real_server_share_their_ports() {
    let (shared, own) = (server("10.0.0.1:443"), server("10.0.0.2:443"));
    let mut book = book();
    let wide = book.pool(&rule(&["192.0.2.1"], 5_000, 5_009), &[], Protocol::Tcp, &[shared]).expect("a pool");
    let narrow = book
        .pool(&rule(&["192.0.2.2", "192.0.2.1"], 5_005, 5_006), &[], Protocol::Tcp, &[shared, own])
        .expect("a pool");

    let mut taken = lease_all(&narrow, shared);
    assert_eq!(taken.len(), 4);
    taken.extend(lease_all(&wide, shared));
    assert_eq!(taken.len(), 4 + 8, "the narrow pool's two ports of 192.0.2.1 are taken for the wide one too");
    assert_eq!(sources(&taken).len(), taken.len());
    assert_eq!(lease_all(&narrow, own).len(), 4, "another real server is not concerned");
    assert_eq!(book.maps_in_use(), 4);
}

#[test]
fn home_ports_go_first_then_the_workers_own_then_foreign_ones() {
    let to = server("10.0.0.1:443");
    let pool = pool(&rule(&["192.0.2.1", "192.0.2.2"], 10_240, 12_287), &[to]);
    let steering = SteeringTable::even(3);
    let (home, worker) = (VShard(100), WorkerId(1));
    assert_eq!(steering.worker_of(home), worker);
    let own = steering.owners().iter().filter(|&&owner| owner == worker).count();

    let order: Vec<VShard> =
        std::iter::from_fn(|| pool.lease(to, home, &steering, worker).ok()).map(|lease| lease.vshard()).collect();

    // 2 addresses × 8 ports in each shard.
    let (at_home, rest) = order.split_at(16);
    let (at_worker, foreign) = rest.split_at((own - 1) * 16);
    assert!(at_home.iter().all(|&vshard| vshard == home));
    assert!(at_worker.iter().all(|&vshard| vshard != home && steering.worker_of(vshard) == worker));
    assert_eq!(foreign.len(), (256 - own) * 16);
    assert!(foreign.iter().all(|&vshard| steering.worker_of(vshard) != worker));
}

#[test]
fn addresses_take_turns() {
    let to = server("10.0.0.1:443");
    let addresses = ["192.0.2.1", "192.0.2.2", "192.0.2.3"];
    let pool = pool(&rule(&addresses, 1_024, 65_535), &[to]);

    let mut leased: HashMap<IpAddr, u32> = HashMap::new();
    for _ in 0..300 {
        *leased.entry(lease(&pool, to).expect("free").address()).or_default() += 1;
    }

    assert_eq!(leased, addresses.iter().map(|text| (address(text), 100)).collect());
}

#[test]
fn the_first_flows_of_all_homes_take_turns_at_the_addresses() {
    let to = server("10.0.0.1:443");
    let pool = pool(&rule(&["192.0.2.1", "192.0.2.2"], 1_024, 65_535), &[to]);
    let steering = SteeringTable::even(1);

    let mut leased: HashMap<IpAddr, u32> = HashMap::new();
    for home in (0..=255).map(VShard) {
        let lease = pool.lease(to, home, &steering, WorkerId(0)).expect("free");
        *leased.entry(lease.address()).or_default() += 1;
    }

    assert_eq!(leased, HashMap::from([(address("192.0.2.1"), 128), (address("192.0.2.2"), 128)]));
}

#[test]
fn a_real_server_is_reached_from_addresses_of_its_own_family() {
    let (v4, v6) = (server("10.0.0.1:443"), server("[2001:db8::1]:443"));
    let mixed = rule(&["192.0.2.1", "2001:db8::a", "2001:db8::b"], 5_000, 5_009);
    let pool = pool(&mixed, &[v4, v6]);

    let (from_v4, from_v6) = (lease_all(&pool, v4), lease_all(&pool, v6));
    assert_eq!((from_v4.len(), from_v6.len()), (10, 20));
    assert!(from_v4.iter().all(|lease| lease.address().is_ipv4()));
    assert!(from_v6.iter().all(|lease| lease.address().is_ipv6()));

    let error =
        book().pool(&rule(&["192.0.2.1"], 1_024, 65_535), &[], Protocol::Tcp, &[v6]).expect_err("no IPv6 address");
    assert_eq!(error, SnatBookError::NoAddressFor { destination: v6 });
    assert_eq!(
        error.to_string(),
        "source.pool has no IPv6 address, but real server [2001:db8::1]:443 needs one; add an IPv6 address to the pool"
    );
}

#[test]
fn a_real_server_that_the_pool_does_not_serve_gets_no_port() {
    let pool = pool(&rule(&["192.0.2.1"], 1_024, 65_535), &[server("10.0.0.1:443")]);
    let unknown = server("10.0.0.9:443");
    assert_eq!(
        lease(&pool, unknown).expect_err("unknown"),
        SnatExhausted { destination: unknown, addresses: 0, capacity: 0 }
    );
}

#[test]
fn a_range_that_holds_only_listening_ports_makes_no_pool() {
    let error = book()
        .pool(&rule(&["192.0.2.1"], 443, 444), &[443, 444], Protocol::Tcp, &[server("10.0.0.1:443")])
        .expect_err("nothing to lease");
    assert_eq!(error, SnatBookError::NoPorts { low: 443, high: 444 });
}

#[test]
fn fill_counts_leases_and_is_nearly_full_from_80_percent_on() {
    let (busy, idle) = (server("10.0.0.1:443"), server("10.0.0.2:443"));
    let pool = pool(&rule(&["192.0.2.1"], 5_000, 5_009), &[busy, idle]);
    let fill = |to| pool.fill().find(|fill| fill.destination == to).expect("a row per real server");

    let mut leases: Vec<SnatLease> = (0..7).map(|_| lease(&pool, busy).expect("free")).collect();
    assert_eq!(fill(busy), SnatFill { address: address("192.0.2.1"), destination: busy, leased: 7, capacity: 10 });
    assert!(!fill(busy).is_nearly_full());

    leases.push(lease(&pool, busy).expect("free"));
    assert!(fill(busy).is_nearly_full());
    assert_eq!(fill(idle).leased, 0);

    leases.into_iter().for_each(|lease| pool.release(lease));
    assert_eq!(fill(busy).leased, 0);
}

#[test]
fn the_limit_on_maps_is_an_error_that_says_what_to_reduce() {
    let mut book = SnatBook::new(SnatLimits { maps_max: 3 });
    let rule = rule(&["192.0.2.1", "192.0.2.2"], 1_024, 65_535);
    let first = book.pool(&rule, &[], Protocol::Tcp, &[server("10.0.0.1:443")]).expect("2 of 3 maps");

    let error = book.pool(&rule, &[], Protocol::Tcp, &[server("10.0.0.2:443")]).expect_err("a fourth map is needed");

    assert_eq!(error, SnatBookError::TooManyMaps { in_use: 3, maps_max: 3 });
    assert!(error.to_string().contains("use fewer source addresses per pool"), "{error}");
    // What the failed pool had taken is not lost.
    drop(first);
    book.pool(&rule, &[], Protocol::Tcp, &[server("10.0.0.2:443")]).expect("2 of 3 maps");
}

#[test]
fn a_map_serves_another_real_server_only_when_nothing_is_leased_from_it() {
    let mut book = SnatBook::new(SnatLimits { maps_max: 1 });
    let rule = rule(&["192.0.2.1"], 5_000, 5_001);
    let (gone, new) = (server("10.0.0.1:443"), server("10.0.0.2:443"));
    let pool = book.pool(&rule, &[], Protocol::Tcp, &[gone]).expect("the one map");
    let held = lease(&pool, gone).expect("free");
    drop(pool);

    book.pool(&rule, &[], Protocol::Tcp, &[new]).expect_err("a lease still needs the map");
    // The pool comes back (say, by a reload): the held port is still taken.
    let pool = book.pool(&rule, &[], Protocol::Tcp, &[gone]).expect("its own map");
    assert_eq!(lease_all(&pool, gone).len(), 1);
    drop(pool);
    let maps = Arc::clone(book.maps());
    maps.release(held);
    // The port that `lease_all` dropped is lost on purpose: a lease that is never released keeps its map.
    book.pool(&rule, &[], Protocol::Tcp, &[new]).expect_err("a lease still needs the map");
}

#[test]
fn a_lease_outlives_its_pool_and_is_released_by_number() {
    let mut book = SnatBook::new(SnatLimits { maps_max: 1 });
    let rule = rule(&["192.0.2.1"], 5_000, 5_001);
    let pool = book.pool(&rule, &[], Protocol::Tcp, &[server("10.0.0.1:443")]).expect("the one map");
    let held = lease(&pool, server("10.0.0.1:443")).expect("free");
    drop(pool);
    book.maps().release(held);

    let next = server("10.0.0.2:443");
    let pool = book.pool(&rule, &[], Protocol::Tcp, &[next]).expect("the map is unused");
    assert_eq!(lease_all(&pool, next).len(), 2);
}

#[test]
fn maps_of_servers_that_come_and_go_are_used_again() {
    let mut book = book();
    let rule = rule(&["192.0.2.1"], 1_024, 65_535);
    for turn in 0..10_000_u32 {
        let to = SocketAddr::new(IpAddr::V4((0x0a00_0000 + turn).into()), 443);
        let pool = book.pool(&rule, &[], Protocol::Tcp, &[to]).expect("only one server at a time");
        pool.release(lease(&pool, to).expect("free"));
    }
    assert!(book.maps_in_use() <= 64, "{} maps for one server", book.maps_in_use());
}

#[test]
fn threads_that_fill_a_pool_share_it_without_a_port_twice_or_left_over() {
    let to = server("10.0.0.1:443");
    let pool = pool(&rule(&["192.0.2.1", "192.0.2.2"], 1_024, 65_535), &[to]);
    let steering = SteeringTable::even(4);

    let leases: Vec<SnatLease> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4_u8)
            .map(|thread| {
                let (pool, steering) = (&pool, &steering);
                // Workers 0 and 1 each run twice, so threads also meet on their own shards.
                let worker = WorkerId(thread / 2);
                let homes = move || (0..=255).map(VShard).filter(move |&home| steering.worker_of(home) == worker);
                scope.spawn(move || {
                    let mut homes = homes().cycle();
                    std::iter::from_fn(|| pool.lease(to, homes.next().expect("endless"), steering, worker).ok())
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });

    assert_eq!(leases.len(), 2 * 64_512);
    assert_eq!(sources(&leases).len(), leases.len(), "a source was leased twice");
}

#[test]
fn a_port_never_has_two_owners_while_threads_lease_and_release() {
    let to = server("10.0.0.1:443");
    let (low, high) = (1_024, 65_535);
    let pool = pool(&rule(&["192.0.2.1"], low, high), &[to]);
    let owned: Vec<AtomicBool> = (low..=high).map(|_| AtomicBool::new(false)).collect();

    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (pool, owned) = (&pool, &owned);
            scope.spawn(move || {
                let steering = SteeringTable::even(2);
                let mut random = thread;
                let mut held = Vec::new();
                for _ in 0..100_000 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let wants_more = random >> 62 != 0 || held.is_empty();
                    if wants_more && held.len() < 100 {
                        // All threads have one home, and it holds fewer ports than they want: they fight for each bit of four words.
                        let lease = pool.lease(to, VShard(7), &steering, WorkerId(0)).expect("free");
                        let before = owned[usize::from(lease.port() - low)].swap(true, Ordering::SeqCst);
                        assert!(!before, "port {} has two owners", lease.port());
                        held.push(lease);
                    } else {
                        let lease: SnatLease = held.swap_remove((random >> 32) as usize % held.len());
                        owned[usize::from(lease.port() - low)].store(false, Ordering::SeqCst);
                        pool.release(lease);
                    }
                }
                held.into_iter().for_each(|lease| {
                    owned[usize::from(lease.port() - low)].store(false, Ordering::SeqCst);
                    pool.release(lease);
                });
            });
        }
    });

    assert_eq!(pool.fill().map(|fill| fill.leased).sum::<u32>(), 0, "everything came back");
    assert_eq!(lease_all(&pool, to).len(), 64_512);
}

#[derive(Clone, Debug)]
enum Step {
    Lease { destination: usize, home: u8 },
    Release { pick: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..3_usize, any::<u8>()).prop_map(|(destination, home)| Step::Lease { destination, home }),
        2 => any::<usize>().prop_map(|pick| Step::Release { pick }),
    ];
    prop::collection::vec(step, 1..400)
}

proptest! {
    #[test]
    fn a_pool_behaves_like_a_set_of_sources_per_real_server(
        steps in steps(),
        low in 1_024_u16..60_000,
        len in 1_u16..90,
        exclude in prop::collection::vec(0_u16..90, 0..5),
        workers in 1_usize..5,
    ) {
        let destinations = [server("10.0.0.1:443"), server("10.0.0.2:443"), server("10.0.0.1:80")];
        let rule = rule(&["192.0.2.1", "192.0.2.2"], low, low + len - 1);
        let exclude: Vec<u16> = exclude.into_iter().map(|offset| low + offset).collect();
        let capacity = 2 * (rule.port_low..=rule.port_high).filter(|port| !exclude.contains(port)).count();
        prop_assume!(capacity > 0);
        let pool = book().pool(&rule, &exclude, Protocol::Tcp, &destinations).expect("a pool");
        let steering = SteeringTable::even(workers);
        let mut model: [HashSet<SocketAddr>; 3] = Default::default();
        let mut held: Vec<(usize, SnatLease)> = Vec::new();

        for step in steps {
            match step {
                Step::Lease { destination, home } => {
                    let home = VShard(home);
                    match pool.lease(destinations[destination], home, &steering, steering.worker_of(home)) {
                        Ok(lease) => {
                            prop_assert!((rule.port_low..=rule.port_high).contains(&lease.port()));
                            prop_assert!(!exclude.contains(&lease.port()));
                            prop_assert!(rule.addresses.contains(&lease.address()));
                            prop_assert!(model[destination].insert(lease.source()), "two owners of {}", lease.source());
                            held.push((destination, lease));
                        }
                        Err(_) => prop_assert_eq!(model[destination].len(), capacity, "refused with ports left"),
                    }
                }
                Step::Release { pick } => {
                    if !held.is_empty() {
                        let (destination, lease) = held.swap_remove(pick % held.len());
                        model[destination].remove(&lease.source());
                        pool.release(lease);
                    }
                }
            }
            for fill in pool.fill() {
                let index = destinations.iter().position(|&to| to == fill.destination).expect("one of ours");
                let expected = model[index].iter().filter(|source| source.ip() == fill.address).count();
                prop_assert_eq!(fill.leased as usize, expected);
            }
        }
    }
}

#[test]
fn a_lease_rests_its_time_and_comes_out_once() {
    let to = server("10.0.0.1:443");
    let pool = pool(&rule(&["192.0.2.1"], 5_000, 5_001), &[to]);
    let mut rest = SnatRest::new(8);
    let lease_1 = lease(&pool, to).expect("free");
    let port_1 = lease_1.port();

    assert_eq!(rest.rest(lease_1, Now(1_000), pool.rest_ms()), None);
    let lease_2 = lease(&pool, to).expect("free");
    lease(&pool, to).expect_err("a port at rest is not free");

    assert_eq!(rest.next_due(), Some(Now(61_000)));
    assert_eq!(rest.due(Now(60_999)), None);
    let rested = rest.due(Now(61_000)).expect("60 s are over");
    assert_eq!(rested.port(), port_1);
    assert!(rest.due(Now(u64::MAX)).is_none() && rest.is_empty());
    pool.release(rested);
    assert_eq!(lease(&pool, to).expect("free again").port(), port_1);
    pool.release(lease_2);
}

#[test]
fn leases_with_different_rests_come_out_in_the_order_they_are_due() {
    let to = server("10.0.0.1:443");
    let pool = pool(&rule(&["192.0.2.1"], 5_000, 5_009), &[to]);
    let mut rest = SnatRest::new(8);
    let mut due = Vec::new();
    for rest_ms in [60_000, 5_000, 30_000, 5_000] {
        let lease = lease(&pool, to).expect("free");
        due.push((rest_ms, due.len(), lease.port()));
        assert_eq!(rest.rest(lease, Now(0), rest_ms), None);
    }
    due.sort_unstable();

    let order: Vec<u16> = std::iter::from_fn(|| rest.due(Now(60_000))).map(|lease| lease.port()).collect();

    assert_eq!(order, due.iter().map(|&(_, _, port)| port).collect::<Vec<_>>());
}

#[test]
fn a_full_rest_hands_back_the_lease_with_the_least_time_left() {
    let to = server("10.0.0.1:443");
    let pool = pool(&rule(&["192.0.2.1"], 5_000, 5_009), &[to]);
    let mut rest = SnatRest::new(2);
    let mut put = |now, rest_ms| {
        let lease = lease(&pool, to).expect("free");
        let port = lease.port();
        (port, rest.rest(lease, Now(now), rest_ms).map(|early| early.port()))
    };

    let (first, none) = put(0, 60_000);
    assert_eq!(none, None);
    let (second, none) = put(10, 60_000);
    assert_eq!(none, None);
    let (_, early) = put(20, 60_000);
    assert_eq!(early, Some(first), "it has rested longest");
    let (short, early) = put(30, 1);
    assert_eq!(early, Some(short), "one that is due even sooner does not push out another");
    let (_, early) = put(40, 60_000);
    assert_eq!(early, Some(second));
    assert_eq!(rest.len(), 2);
}

#[test]
fn a_port_that_another_process_holds_is_leased_to_nobody_until_it_is_given_back() {
    let to = server("10.0.0.1:443");
    let mut book = book();
    let pool = book.pool(&rule(&["192.0.2.1"], 20_000, 20_255), &[], Protocol::Tcp, &[to]).expect("a pool");
    let held = server("192.0.2.1:20007");
    let reserved = book.reserve(Leased::Tcp, held, to).expect("a free port");
    assert_eq!(reserved.source(), held);
    assert_eq!(book.reserve(Leased::Tcp, held, to), None, "twice");
    assert_eq!(book.reserve(Leased::Udp, held, to), None, "no pool leases there");
    assert_eq!(book.reserve(Leased::Tcp, held, server("10.0.0.2:443")), None);
    let leases = lease_all(&pool, to);
    assert_eq!(leases.len(), 255);
    assert!(!sources(&leases).contains(&held));
    book.maps().release(reserved);
    assert_eq!(lease(&pool, to).expect("the one that came back").source(), held);
}
