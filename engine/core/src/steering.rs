//! Steering: which worker owns a flow, by one pure function for both directions (design: "the return packet reaches the
//! worker that owns the flow").
//!
//! A flow's home is the virtual shard of its client; a SNAT port belongs to the virtual shard of its low byte; a table of 256
//! entries says which worker owns a virtual shard. The number of workers can change without a flow or a port changing its shard.
//! [`frame`] says it for the frames of the packet plane, [`program`] writes both as classic BPF programs for the kernel.

use std::net::IpAddr;

use crate::packet::Ip;
use crate::{VShard, WorkerId};

pub mod frame;
pub mod program;
#[cfg(test)]
mod tests;

/// Virtual shards; every flow and every SNAT port belongs to one.
pub const VSHARDS: usize = 256;

/// Most workers that a table can name.
pub const WORKERS_MAX: usize = 256;

// 32-bit multiply, xor and shift only: classic BPF has nothing else. The finish is MurmurHash3's fmix32 (public domain).
const MIX: u32 = 0x9e37_79b1;
const MIX_SHIFT: u32 = 15;
const FINISH_SHIFT_1: u32 = 16;
const FINISH_1: u32 = 0x85eb_ca6b;
const FINISH_SHIFT_2: u32 = 13;
const FINISH_2: u32 = 0xc2b2_ae35;
const FINISH_SHIFT_3: u32 = 16;

/// The home of a flow: the virtual shard of its client address and port.
///
/// The seed keeps clients from choosing their worker. An IPv4-mapped IPv6 address counts as the IPv4 address it is.
pub fn vshard_of_client(address: IpAddr, port: u16, seed: u32) -> VShard {
    VShard(finish(mix_address(mix(seed, u32::from(port)), address)) as u8)
}

/// The same for an address as the tables have it.
#[inline]
pub fn vshard_of_client_ip(address: Ip, port: u16, seed: u32) -> VShard {
    let hash = mix(seed, u32::from(port));
    let bits = u128::from_be_bytes(address.0);
    let hash = if address.is_v4() { mix(hash, bits as u32) } else { mix_words(hash, bits) };
    VShard(finish(hash) as u8)
}

/// The virtual shard that a SNAT port belongs to: its low byte.
pub fn vshard_of_port(port: u16) -> VShard {
    VShard(port as u8)
}

/// Mixes in the one or four words of an address.
fn mix_address(hash: u32, address: IpAddr) -> u32 {
    match address.to_canonical() {
        IpAddr::V4(v4) => mix(hash, v4.to_bits()),
        IpAddr::V6(v6) => mix_words(hash, v6.to_bits()),
    }
}

fn mix_words(hash: u32, bits: u128) -> u32 {
    [96, 64, 32, 0].iter().fold(hash, |hash, shift| mix(hash, (bits >> shift) as u32))
}

fn mix(hash: u32, word: u32) -> u32 {
    let hash = (hash ^ word).wrapping_mul(MIX);
    hash ^ (hash >> MIX_SHIFT)
}

fn finish(hash: u32) -> u32 {
    let hash = (hash ^ (hash >> FINISH_SHIFT_1)).wrapping_mul(FINISH_1);
    let hash = (hash ^ (hash >> FINISH_SHIFT_2)).wrapping_mul(FINISH_2);
    hash ^ (hash >> FINISH_SHIFT_3)
}

/// Which worker owns which virtual shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SteeringTable {
    owners: [WorkerId; VSHARDS],
}

impl SteeringTable {
    /// A table that gives each of `workers` workers the same share (to within one shard), in contiguous runs.
    ///
    /// # Panics
    /// When `workers` is not 1 to [`WORKERS_MAX`].
    pub fn even(workers: usize) -> SteeringTable {
        assert!(
            (1..=WORKERS_MAX).contains(&workers),
            "a steering table names 1 to {WORKERS_MAX} workers, not {workers}"
        );
        SteeringTable { owners: std::array::from_fn(|vshard| WorkerId((vshard * workers / VSHARDS) as u8)) }
    }

    /// A table for `workers` workers that is even again and moves as few shards as that takes.
    ///
    /// # Panics
    /// When `workers` is not 1 to [`WORKERS_MAX`].
    pub fn remapped(&self, workers: usize) -> SteeringTable {
        assert!(
            (1..=WORKERS_MAX).contains(&workers),
            "a steering table names 1 to {WORKERS_MAX} workers, not {workers}"
        );
        let quotas = self.quotas(workers);
        let mut kept = [0; WORKERS_MAX];
        let mut homeless = Vec::new();
        let mut owners = self.owners;
        for (vshard, owner) in owners.iter().enumerate() {
            if kept[owner.index()] < quotas[owner.index()] {
                kept[owner.index()] += 1;
            } else {
                homeless.push(vshard);
            }
        }
        let mut taker = 0;
        for vshard in homeless {
            while kept[taker] == quotas[taker] {
                taker += 1;
            }
            owners[vshard] = WorkerId(taker as u8);
            kept[taker] += 1;
        }
        SteeringTable { owners }
    }

    /// How many shards each worker has in an even table: those that own most today keep the odd ones.
    fn quotas(&self, workers: usize) -> [usize; WORKERS_MAX] {
        let mut owned = [0_usize; WORKERS_MAX];
        for owner in &self.owners {
            owned[owner.index()] += 1;
        }
        let mut by_owned: Vec<usize> = (0..workers).collect();
        by_owned.sort_by_key(|&worker| std::cmp::Reverse(owned[worker]));
        let mut quotas = [0; WORKERS_MAX];
        for (rank, worker) in by_owned.into_iter().enumerate() {
            quotas[worker] = VSHARDS / workers + usize::from(rank < VSHARDS % workers);
        }
        quotas
    }

    /// The worker that owns `vshard`.
    #[inline]
    pub fn worker_of(&self, vshard: VShard) -> WorkerId {
        self.owners[vshard.index()]
    }

    /// How many workers the table names: the highest id plus one.
    pub fn workers(&self) -> usize {
        self.owners.iter().map(|owner| owner.index() + 1).max().expect("the table has 256 entries")
    }

    /// The owners of all virtual shards, in order.
    pub fn owners(&self) -> &[WorkerId; VSHARDS] {
        &self.owners
    }
}
