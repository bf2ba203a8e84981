//! Maglev hashing (Eisenbud et al., "Maglev: A fast and reliable software network load balancer", NSDI 2016, §3.4): a table in
//! which every member owns entries in proportion to its weight, and which hardly changes when a member comes or goes.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::fmt;
use std::net::IpAddr;

use crate::balancer::Candidates;
use crate::ids::TargetIndex;
use crate::random::{hash_address, mix};

/// Entries of a table: the smaller of the two primes in the paper's evaluation. 100 entries per member keep the shares within 1 %
/// (§3.4), so it serves 655 members to that bound, in 128 KiB. The size is the same for every group: one that grew with the
/// group would move all clients when it changed.
pub const MAGLEV_ENTRIES: usize = 65_537;

/// Seeds are fixed: every worker, restart and machine builds the same table (design.md 9, several nodes by ECMP).
const CLIENT_SEED: u64 = 0x746f_7770_6174_6802;
const OFFSET_SEED: u64 = 0x746f_7770_6174_6803;
const SKIP_SEED: u64 = 0x746f_7770_6174_6804;

/// Entries tried by hashing again when the client's own member cannot take it.
const REHASHES_MAX: u64 = 64;

/// One who may own entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaglevMember {
    /// Its place in the group.
    pub target: TargetIndex,
    /// What it is known by everywhere: its place in the table follows from these, not from ids or the order of the file.
    pub address: IpAddr,
    /// Its port, if it has one of its own.
    pub port: Option<u16>,
    /// Its share; not 0.
    pub weight: u16,
}

/// Who serves each client, by the hash of its address.
#[derive(Clone, PartialEq, Eq)]
pub struct MaglevTable {
    entries: Box<[TargetIndex]>,
}

impl fmt::Debug for MaglevTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MaglevTable").field("entries", &self.entries.len()).finish()
    }
}

impl MaglevTable {
    /// The table of these members; `None` when there are none. A member of weight 0 owns nothing.
    ///
    /// The paper lets members choose entries in turns. With weights, a member takes its k-th turn at time (k + ½) / weight
    /// (Webster's rule), so the times of one member do not depend on the others, and none of them moves when another goes.
    /// O(entries × (log members + probes)), some milliseconds: for the controller, not for the path.
    pub fn new(members: &[MaglevMember]) -> Option<MaglevTable> {
        const NOBODY: TargetIndex = TargetIndex(u16::MAX);
        let mut turns: BinaryHeap<Reverse<Turn>> =
            members.iter().filter(|member| member.weight > 0).map(|member| Reverse(Turn::first(member))).collect();
        if turns.is_empty() {
            return None;
        }
        let mut entries = vec![NOBODY; MAGLEV_ENTRIES].into_boxed_slice();
        for _ in 0..MAGLEV_ENTRIES {
            let mut turn = turns.peek_mut().expect("no turn is ever taken out, only put back later");
            let entry = turn.0.preference.next_free(|entry| entries[entry] == NOBODY);
            entries[entry] = turn.0.target;
            turn.0.taken += 1;
        }
        Some(MaglevTable { entries })
    }

    /// The candidate that serves `client`. Its own member if that is one; else the next by hashing again, so that the clients
    /// of a member that is full or was tried spread over all others.
    pub fn lookup(&self, client: IpAddr, candidates: &Candidates) -> Option<TargetIndex> {
        let hash = hash_address(client, CLIENT_SEED);
        let own = self.owner(hash);
        if candidates.contains(own) {
            return Some(own);
        }
        (1..=REHASHES_MAX)
            .map(|round| self.owner(mix(hash.wrapping_add(round))))
            .find(|&other| candidates.contains(other))
            .or_else(|| candidates.iter().next())
    }

    /// Who owns each entry.
    pub fn entries(&self) -> &[TargetIndex] {
        &self.entries
    }

    fn owner(&self, hash: u64) -> TargetIndex {
        self.entries[(hash % MAGLEV_ENTRIES as u64) as usize]
    }
}

/// The next turn of one member. Ordered by its time; members with equal times by what they are, so the file's order does not matter.
struct Turn {
    target: TargetIndex,
    weight: u16,
    taken: u64,
    identity: (IpAddr, Option<u16>),
    preference: Preference,
}

impl Turn {
    fn first(member: &MaglevMember) -> Turn {
        Turn {
            target: member.target,
            weight: member.weight,
            taken: 0,
            identity: (member.address, member.port),
            preference: Preference::new(member),
        }
    }
}

impl Ord for Turn {
    fn cmp(&self, other: &Turn) -> Ordering {
        // (k + ½) / weight, both sides doubled and multiplied out.
        let mine = (2 * self.taken + 1) * u64::from(other.weight);
        let theirs = (2 * other.taken + 1) * u64::from(self.weight);
        mine.cmp(&theirs).then_with(|| self.identity.cmp(&other.identity))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Turn) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Turn {
    fn eq(&self, other: &Turn) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Turn {}

/// The order in which a member wants the entries: a permutation, for the number of entries is prime.
struct Preference {
    next: usize,
    skip: usize,
}

impl Preference {
    fn new(member: &MaglevMember) -> Preference {
        let port = member.port.map_or(0x1_0000, u64::from);
        let hash = |seed| mix(hash_address(member.address, seed) ^ port);
        Preference {
            next: (hash(OFFSET_SEED) % MAGLEV_ENTRIES as u64) as usize,
            skip: (hash(SKIP_SEED) % (MAGLEV_ENTRIES as u64 - 1)) as usize + 1,
        }
    }

    /// The first entry in this order that is free. There must be one.
    fn next_free(&mut self, is_free: impl Fn(usize) -> bool) -> usize {
        loop {
            let entry = self.next;
            self.next = (self.next + self.skip) % MAGLEV_ENTRIES;
            if is_free(entry) {
                return entry;
            }
        }
    }
}

#[cfg(test)]
mod tests;
