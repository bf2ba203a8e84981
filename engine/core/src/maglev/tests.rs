use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::fixtures::client;

fn member(place: u16, weight: u16) -> MaglevMember {
    MaglevMember {
        target: TargetIndex(place),
        address: IpAddr::V4(Ipv4Addr::from_bits(0xc000_0200 + u32::from(place))),
        port: None,
        weight,
    }
}

fn members(weights: &[u16]) -> Vec<MaglevMember> {
    weights.iter().enumerate().map(|(place, &weight)| member(place as u16, weight)).collect()
}

fn owned(table: &MaglevTable, members_len: usize) -> Vec<usize> {
    let mut owned = vec![0; members_len];
    for entry in table.entries() {
        owned[entry.index()] += 1;
    }
    owned
}

#[test]
fn the_table_size_is_prime() {
    assert!((2..=256).all(|divisor| !MAGLEV_ENTRIES.is_multiple_of(divisor)));
}

#[test]
fn equal_members_own_equally_many_entries() {
    for len in [1, 2, 3, 7, 100, 655] {
        let owned = owned(&MaglevTable::new(&members(&vec![100; len])).unwrap(), len);
        let spread = owned.iter().max().unwrap() - owned.iter().min().unwrap();
        assert!(spread <= 1, "{len} members: {spread}");
    }
}

#[test]
fn nobody_makes_no_table() {
    assert_eq!(MaglevTable::new(&[]), None);
    assert_eq!(MaglevTable::new(&members(&[0, 0])), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn entries_match_weights_and_none_is_left_over(weights in prop::collection::vec(0_u16..=u16::MAX, 1..20)) {
        prop_assume!(weights.iter().any(|&weight| weight > 0));
        let owned = owned(&MaglevTable::new(&members(&weights)).unwrap(), weights.len());
        let sum: f64 = weights.iter().copied().map(f64::from).sum();
        for (&weight, &owned) in weights.iter().zip(&owned) {
            let fair = MAGLEV_ENTRIES as f64 * f64::from(weight) / sum;
            prop_assert!((owned as f64 - fair).abs() <= 2.0, "weight {weight} of {sum}: {owned} entries, fair {fair}");
            prop_assert!(weight > 0 || owned == 0);
        }
    }

    #[test]
    fn one_that_goes_moves_its_own_clients_and_hardly_another(
        weights in prop::collection::vec(1_u16..=200, 2..12),
        gone: prop::sample::Index,
    ) {
        let all = members(&weights);
        let gone = TargetIndex(gone.index(all.len()) as u16);
        let rest: Vec<MaglevMember> = all.iter().copied().filter(|member| member.target != gone).collect();
        let before = MaglevTable::new(&all).unwrap();
        let after = MaglevTable::new(&rest).unwrap();
        let moved = before.entries().iter().zip(after.entries()).filter(|(before, after)| **before != gone && before != after).count();
        prop_assert!(after.entries().iter().all(|&owner| owner != gone));
        prop_assert!(moved * 100 <= MAGLEV_ENTRIES * MOVED_PERCENT_MAX, "{moved} moved");
    }

    #[test]
    fn the_order_of_the_file_does_not_matter(weights in prop::collection::vec(1_u16..=200, 2..8), turn: prop::sample::Index) {
        let mut turned = members(&weights);
        let before = MaglevTable::new(&turned).unwrap();
        let by = turn.index(turned.len());
        turned.rotate_left(by);
        prop_assert_eq!(before, MaglevTable::new(&turned).unwrap());
    }
}

/// Entries of the other members that may move when one of any weight goes, per cent of the table. The most seen in 3,000
/// draws was 11; with equal weights it stays below 1.
const MOVED_PERCENT_MAX: usize = 15;

#[test]
fn one_of_many_equal_members_that_goes_moves_few_other_clients() {
    for len in [10_u16, 50, 100] {
        let all = members(&vec![100; usize::from(len)]);
        let before = MaglevTable::new(&all).unwrap();
        let after = MaglevTable::new(&all[1..]).unwrap();
        let moved = before
            .entries()
            .iter()
            .zip(after.entries())
            .filter(|(before, after)| before.index() != 0 && before != after)
            .count();
        assert!(moved * 100 <= MAGLEV_ENTRIES, "{len} members: {moved} of {MAGLEV_ENTRIES} moved");
    }
}

#[test]
fn clients_of_a_full_member_spread_over_all_others() {
    let table = MaglevTable::new(&members(&[100; 5])).unwrap();
    let mut all = Candidates::new();
    (0..5).for_each(|place| all.insert(TargetIndex(place)));
    let mut without = all.clone();
    without.remove(TargetIndex(2));
    let mut taken_over = [0; 5];
    for n in 0..5_000 {
        let own = table.lookup(client(n).ip(), &all).unwrap();
        let other = table.lookup(client(n).ip(), &without).unwrap();
        if own == TargetIndex(2) {
            taken_over[other.index()] += 1;
        } else {
            assert_eq!(own, other);
        }
    }
    assert_eq!(taken_over[2], 0);
    let spread: Vec<i32> = taken_over.into_iter().filter(|&n| n > 0).collect();
    assert!(spread.len() == 4 && spread.iter().all(|&n| (150..350).contains(&n)), "{taken_over:?}");
    assert_eq!(table.lookup(client(0).ip(), &Candidates::new()), None);
}
