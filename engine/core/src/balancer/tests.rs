use proptest::prelude::*;

use super::*;
use crate::fixtures::{METHODS, client, service, weighted};
use crate::ids::ServiceId;
use crate::loads::PlainLoads;

fn everybody(service: &Service) -> Candidates {
    let mut candidates = Candidates::new();
    for (place, target) in service.targets.iter().enumerate() {
        if target.takes_new() {
            candidates.insert(TargetIndex(place as u16));
        }
    }
    candidates
}

/// Gives one connection to a server and keeps it open.
fn open(state: &mut BalancerState, service: &Service, loads: &PlainLoads, n: u32) -> usize {
    let candidates = everybody(service);
    let target = state.choose(service, &candidates, loads, client(n).ip()).expect("somebody takes connections");
    state.taken(service, &candidates, target);
    loads.try_open(ServiceId(0), 0, service.targets[target.index()].server, 0).expect("no limit");
    target.index()
}

/// Connections per member after `connections` opens; each stays open, or is closed at once.
fn shares(service: &Service, connections: u32, stay_open: bool) -> Vec<u32> {
    let mut state = BalancerState::new(42);
    let loads = PlainLoads::new(1, 64);
    let mut shares = vec![0; service.targets.len()];
    for n in 0..connections {
        let at = open(&mut state, service, &loads, n);
        shares[at] += 1;
        if !stay_open {
            loads.close(ServiceId(0), service.targets[at].server);
        }
    }
    shares
}

#[test]
fn candidates_are_a_set_of_places() {
    let mut candidates = Candidates::new();
    for place in [4095, 0, 63, 64, 700] {
        candidates.insert(TargetIndex(place));
    }
    candidates.remove(TargetIndex(63));
    assert_eq!(candidates.iter().map(|target| target.0).collect::<Vec<_>>(), [0, 64, 700, 4095]);
    assert!(candidates.contains(TargetIndex(700)) && !candidates.contains(TargetIndex(63)));
}

#[test]
fn smooth_weighted_round_robin_interleaves_as_nginx_documents() {
    let service = service(Balance::WeightedRoundRobin, weighted(&[5, 1, 1]));
    let mut state = BalancerState::new(0);
    let loads = PlainLoads::new(1, 64);
    let order: Vec<usize> = (0..14).map(|n| open(&mut state, &service, &loads, n)).collect();
    assert_eq!(order, [0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0]);
}

#[test]
fn round_robin_and_least_connections_know_no_weight_but_none() {
    assert_eq!(shares(&service(Balance::RoundRobin, weighted(&[1, 9, 0, 500])), 300, false), [100, 100, 0, 100]);
    assert_eq!(shares(&service(Balance::LeastConnections, weighted(&[1, 9, 0, 500])), 300, true), [100, 100, 0, 100]);
}

#[test]
fn idle_heavy_servers_win_first() {
    assert_eq!(shares(&service(Balance::WeightedLeastConnections, weighted(&[1, 3, 2])), 1, true), [0, 1, 0]);
    assert_eq!(shares(&service(Balance::WeightedLeastConnections, weighted(&[1, 3, 2])), 60, true), [10, 30, 20]);
    assert_eq!(
        shares(&service(Balance::WeightedLeastConnections, weighted(&[1, u16::MAX])), 65_536, true),
        [1, 65_535]
    );
}

#[test]
fn no_method_gives_to_weight_0_or_to_nobody() {
    for balance in METHODS {
        assert_eq!(shares(&service(balance, weighted(&[0, 7, 0])), 50, true), [0, 50, 0], "{balance:?}");
        let nobody = service(balance, weighted(&[0, 0]));
        let mut state = BalancerState::new(1);
        let choice = state.choose(&nobody, &everybody(&nobody), &PlainLoads::new(1, 2), client(1).ip());
        assert_eq!(choice, None, "{balance:?}");
    }
}

#[test]
fn hashes_and_draws_share_by_weight() {
    // (method, tolerance of a share in 40,000 connections, per cent)
    for (balance, tolerance) in [(Balance::SourceHash, 5), (Balance::Maglev, 5), (Balance::RandomOfTwo, 1)] {
        let shares = shares(&service(balance, weighted(&[100, 200, 300, 400])), 40_000, true);
        for (share, fair) in shares.into_iter().zip([4_000_u32, 8_000, 12_000, 16_000]) {
            assert!(share.abs_diff(fair) * 100 <= fair * tolerance, "{balance:?}: {share} instead of {fair}");
        }
    }
}

#[test]
fn random_of_two_follows_its_seed_and_keeps_the_busier_one_out() {
    let service = service(Balance::RandomOfTwo, weighted(&[100, 100, 100]));
    let loads = PlainLoads::new(1, 64);
    let order = |seed| {
        let mut state = BalancerState::new(seed);
        (0..64)
            .map(|n| {
                let at = open(&mut state, &service, &loads, n);
                loads.close(ServiceId(0), service.targets[at].server);
                at
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
    loads.try_open(ServiceId(0), 0, RealServerId(1), 0).unwrap();
    assert!(!order(3).contains(&1), "of two, the busiest never wins");
}

#[test]
fn a_client_keeps_its_server_under_both_hashes() {
    for balance in [Balance::SourceHash, Balance::Maglev] {
        let service = service(balance, weighted(&[100, 50, 100, 7]));
        let loads = PlainLoads::new(1, 64);
        for n in 0..200 {
            let first = open(&mut BalancerState::new(1), &service, &loads, n);
            let later = open(&mut BalancerState::new(2), &service, &loads, n);
            assert_eq!(first, later);
        }
    }
}

#[test]
fn under_source_hash_a_full_server_moves_only_its_own_clients() {
    let service = service(Balance::SourceHash, weighted(&[100, 100, 100, 100]));
    let loads = PlainLoads::new(1, 64);
    let mut state = BalancerState::new(1);
    let all = everybody(&service);
    let mut without = all.clone();
    without.remove(TargetIndex(2));
    let mut taken_over = [0; 4];
    for n in 0..4_000 {
        let own = state.choose(&service, &all, &loads, client(n).ip()).unwrap();
        let other = state.choose(&service, &without, &loads, client(n).ip()).unwrap();
        if own == TargetIndex(2) {
            taken_over[other.index()] += 1;
        } else {
            assert_eq!(own, other);
        }
    }
    assert_eq!(taken_over[2], 0);
    assert!([0, 1, 3].iter().all(|&at: &usize| (230..450).contains(&taken_over[at])), "{taken_over:?}");
}

#[test]
fn new_weights_count_from_the_next_connection() {
    for balance in [Balance::WeightedRoundRobin, Balance::WeightedLeastConnections] {
        let before = service(balance, weighted(&[u16::MAX, 1]));
        let after = service(balance, weighted(&[1, 1]));
        let loads = PlainLoads::new(1, 64);
        for given in [0, 1, 2, 30_000, 32_767, 32_768, 65_535] {
            let mut state = BalancerState::new(1);
            for n in 0..given {
                let at = open(&mut state, &before, &loads, n);
                loads.close(ServiceId(0), before.targets[at].server);
            }
            let first = (0..20)
                .filter(|&n| {
                    let at = open(&mut state, &after, &loads, n);
                    loads.close(ServiceId(0), after.targets[at].server);
                    at == 0
                })
                .count();
            assert!((8..=12).contains(&first), "{balance:?} after {given}: {first} of 20");
        }
    }
}

#[test]
fn turns_go_on_in_order_when_there_were_as_many_as_a_number_holds() {
    let service = service(Balance::LeastConnections, weighted(&[100; 4]));
    let loads = PlainLoads::new(1, 64);
    let mut state = BalancerState::new(1);
    state.seat(&service.targets);
    state.turns = u32::MAX - 6;
    for (seat, turn) in state.seats.iter_mut().zip([7, u32::MAX - 7, u32::MAX - 6, 0]) {
        seat.last_turn = turn;
    }
    let given = (0..20).map(|_| {
        let target = state.choose_at_once(&service, &Tried::new(), &loads).expect("somebody takes connections");
        state.taken_at_once(target);
        target.index()
    });
    let given: Vec<usize> = given.collect();
    assert_eq!(given, [3, 0, 1, 2].repeat(5));
    assert!(state.turns < u32::MAX / 2 + 20);
}

#[test]
fn members_that_stay_keep_their_turns_and_the_gone_are_forgotten() {
    let mut state = BalancerState::new(1);
    let loads = PlainLoads::new(1, 64);
    let all = service(Balance::RoundRobin, weighted(&[100; 4]));
    assert_eq!((0..5).map(|n| open(&mut state, &all, &loads, n)).collect::<Vec<_>>(), [0, 1, 2, 3, 0]);
    let mut fewer = service(Balance::RoundRobin, weighted(&[100; 4]));
    fewer.targets.remove(1);
    // Servers 0, 2, 3: server 2 waits longest.
    assert_eq!((0..4).map(|n| open(&mut state, &fewer, &loads, n)).collect::<Vec<_>>(), [1, 2, 0, 1]);
    assert_eq!(state.seats.len(), 3);
    let mut turned = service(Balance::RoundRobin, weighted(&[100; 4]));
    turned.targets.rotate_left(2);
    // Servers 2, 3, 0, 1: server 1 is new, then 3 waits longest.
    assert_eq!((0..4).map(|n| open(&mut state, &turned, &loads, n)).collect::<Vec<_>>(), [3, 1, 2, 0]);
}

proptest! {
    #[test]
    fn weighted_round_robin_is_exact_over_a_cycle_and_never_far_off(weights in prop::collection::vec(0_u16..50, 1..8)) {
        let sum: u32 = weights.iter().copied().map(u32::from).sum();
        prop_assume!(sum > 0);
        let service = service(Balance::WeightedRoundRobin, weighted(&weights));
        let mut state = BalancerState::new(0);
        let loads = PlainLoads::new(1, 64);
        let mut shares = vec![0_u32; weights.len()];
        for n in 1..=2 * sum {
            shares[open(&mut state, &service, &loads, n)] += 1;
            for (share, weight) in shares.iter().zip(&weights) {
                // Ahead by less than one turn, behind by less than the number of members.
                let ahead = i64::from(share * sum) - i64::from(n * u32::from(*weight));
                prop_assert!(ahead < i64::from(sum) && ahead > -i64::from(sum) * weights.len() as i64);
            }
            if n % sum == 0 {
                let cycles = n / sum;
                prop_assert!(shares.iter().zip(&weights).all(|(&share, &weight)| share == cycles * u32::from(weight)));
            }
        }
    }

    #[test]
    fn weighted_least_connections_never_gives_to_the_more_loaded(
        weights in prop::collection::vec(0_u16..=u16::MAX, 1..10),
        steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..200),
    ) {
        prop_assume!(weights.iter().any(|&weight| weight > 0));
        let service = service(Balance::WeightedLeastConnections, weighted(&weights));
        let mut state = BalancerState::new(0);
        let loads = PlainLoads::new(1, 64);
        let mut opened: Vec<usize> = Vec::new();
        for (n, (close, which)) in steps.into_iter().enumerate() {
            if close && !opened.is_empty() {
                let at = opened.swap_remove(which.index(opened.len()));
                loads.close(ServiceId(0), service.targets[at].server);
                continue;
            }
            let before: Vec<u64> = service.targets.iter().map(|target| u64::from(loads.active(target.server))).collect();
            let at = open(&mut state, &service, &loads, n as u32);
            opened.push(at);
            let (mine, weight) = (before[at] + 1, u64::from(weights[at]));
            for (other, &others) in before.iter().enumerate().filter(|(other, _)| weights[*other] > 0) {
                prop_assert!(mine * u64::from(weights[other]) <= (others + 1) * weight);
            }
        }
    }

    #[test]
    fn connections_that_stay_follow_the_weights(weights in prop::collection::vec(1_u16..=1_000, 2..8), rounds in 1_u32..4) {
        let sum: u32 = weights.iter().copied().map(u32::from).sum();
        let shares = shares(&service(Balance::WeightedLeastConnections, weighted(&weights)), rounds * sum, true);
        for (share, weight) in shares.iter().zip(&weights) {
            prop_assert_eq!(*share, rounds * u32::from(*weight));
        }
    }
}
