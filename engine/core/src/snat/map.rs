//! The bitmap of one (SNAT address, real server, protocol), and the table of all of them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::SnatLease;
use super::homes::Homes;
use crate::VShard;
use crate::steering::{VSHARDS, vshard_of_port};

/// Ports of one shard: those with the same low byte.
const PORTS_PER_VSHARD: usize = 256;
const WORDS_PER_VSHARD: usize = PORTS_PER_VSHARD / 64;

/// One shard of a bitmap, in one cache line of its own: a worker that leases from its own shards shares no line with another.
///
/// Plain words and nothing else, so it can live in memory that outlives the process.
#[repr(C, align(64))]
struct Shard {
    /// Bit `port >> 8` is set while the port is leased.
    leased: [AtomicU64; WORDS_PER_VSHARD],
    /// Where the next search begins: one past the bit claimed last.
    cursor: AtomicU64,
    /// Not 0 once a port of it was leased for a flow of another home: until then every note says what it said at first.
    lent: AtomicU64,
    spare: [AtomicU64; 2],
}

/// Which ports of one (SNAT address, real server, protocol) are leased: 16 KiB.
pub(super) struct PortMap {
    id: u32,
    /// Pools that lease from here. The book reuses a map only when there are none and no port is leased.
    pools: AtomicU32,
    /// In place: to reach one is one read less.
    shards: [Shard; VSHARDS],
    pub(super) homes: Homes,
}

impl std::fmt::Debug for PortMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PortMap").field("id", &self.id).field("pools", &self.pools).finish_non_exhaustive()
    }
}

impl PortMap {
    fn new(id: u32) -> PortMap {
        let word = || AtomicU64::new(0);
        let shard = |_| Shard {
            leased: [word(), word(), word(), word()],
            cursor: word(),
            lent: word(),
            spare: [word(), word()],
        };
        PortMap { id, pools: AtomicU32::new(0), shards: std::array::from_fn(shard), homes: Homes::default() }
    }

    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Claims a free port of `vshard` that `mask` permits.
    pub(super) fn claim(&self, vshard: VShard, mask: &PortMask) -> Option<u16> {
        let shard = &self.shards[vshard.index()];
        let allowed = &mask.shards[vshard.index()];
        let start = shard.cursor.load(Ordering::Relaxed) as usize % PORTS_PER_VSHARD;
        let (first, bit) = (start / 64, start % 64);
        // From the cursor to the end, around, and up to the cursor: its word is visited twice, once for each side.
        for step in 0..=WORDS_PER_VSHARD {
            let index = (first + step) % WORDS_PER_VSHARD;
            let side = match step {
                0 => u64::MAX << bit,
                WORDS_PER_VSHARD => !(u64::MAX << bit),
                _ => u64::MAX,
            };
            let mut taken = shard.leased[index].load(Ordering::Relaxed);
            // Ends: a further turn means that another worker claimed the bit, so somebody has made progress.
            loop {
                let free = !taken & allowed[index] & side;
                if free == 0 {
                    break;
                }
                let position = free.trailing_zeros();
                let claimed = 1 << position;
                taken = shard.leased[index].fetch_or(claimed, Ordering::AcqRel);
                if taken & claimed == 0 {
                    let bit = index * 64 + position as usize;
                    shard.cursor.store((bit + 1) as u64, Ordering::Relaxed);
                    return Some((bit << 8) as u16 | u16::from(vshard.0));
                }
            }
        }
        None
    }

    /// Claims one certain port; false where it is leased.
    pub(super) fn take(&self, port: u16, home: VShard) -> bool {
        let (vshard, word, bit) = place(port);
        let taken = self.shards[vshard].leased[word].fetch_or(bit, Ordering::AcqRel) & bit == 0;
        if taken {
            self.note(port, home);
        }
        taken
    }

    /// Notes that the flow which has just leased `port` lives in `home`. Where nothing else was ever said of these ports, their notes are right as
    /// they are, and the line of one more table need not be written.
    #[inline]
    pub(super) fn note(&self, port: u16, home: VShard) {
        let vshard = vshard_of_port(port);
        let lent = &self.shards[vshard.index()].lent;
        if home != vshard {
            // Seen by whoever leases this port after it was released: the release is behind it, and the claim reads what that wrote.
            lent.store(1, Ordering::Relaxed);
        } else if lent.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.homes.write(port, home);
    }

    /// Whether leases of a shard write their notes.
    #[inline]
    pub(super) fn is_lent(&self, vshard: VShard) -> bool {
        self.shards[vshard.index()].lent.load(Ordering::Relaxed) != 0
    }

    /// Makes `port` free again; false when it was not leased.
    fn release(&self, port: u16) -> bool {
        let shard = &self.shards[vshard_of_port(port).index()];
        let bit = usize::from(port >> 8);
        let before = shard.leased[bit / 64].fetch_and(!(1 << (bit % 64)), Ordering::AcqRel);
        before & (1 << (bit % 64)) != 0
    }

    /// Whether `port` is leased.
    pub(super) fn is_leased(&self, port: u16) -> bool {
        let (vshard, word, bit) = place(port);
        self.shards[vshard].leased[word].load(Ordering::Acquire) & bit != 0
    }

    /// The port of a shard that the next search begins at.
    #[inline]
    pub(super) fn next_port(&self, vshard: VShard) -> u16 {
        let bit = self.shards[vshard.index()].cursor.load(Ordering::Relaxed) as u16 % PORTS_PER_VSHARD as u16;
        bit << 8 | u16::from(vshard.0)
    }

    /// A word in the line of a shard.
    #[inline]
    pub(super) fn place(&self, vshard: VShard) -> &AtomicU64 {
        &self.shards[vshard.index()].cursor
    }

    /// Leased ports among those that `mask` permits.
    pub(super) fn leased(&self, mask: &PortMask) -> u32 {
        self.shards
            .iter()
            .zip(&mask.shards)
            .map(|(shard, allowed)| {
                shard
                    .leased
                    .iter()
                    .zip(allowed)
                    .map(|(word, allowed)| (word.load(Ordering::Relaxed) & allowed).count_ones())
                    .sum::<u32>()
            })
            .sum()
    }

    fn is_all_free(&self) -> bool {
        self.shards.iter().all(|shard| shard.leased.iter().all(|word| word.load(Ordering::Acquire) == 0))
    }

    pub(super) fn join(&self) {
        self.pools.fetch_add(1, Ordering::Relaxed);
    }

    /// The last thing that a pool does with the map: everything it did happens before the book sees it gone.
    pub(super) fn leave(&self) {
        self.pools.fetch_sub(1, Ordering::Release);
    }

    /// Whether no pool can lease from here any more and nothing is leased.
    pub(super) fn is_unused(&self) -> bool {
        self.pools.load(Ordering::Acquire) == 0 && self.is_all_free()
    }
}

/// The ports that a pool may lease, laid out like the map.
pub(super) struct PortMask {
    shards: Box<[[u64; WORDS_PER_VSHARD]]>,
    capacity: u32,
}

impl PortMask {
    pub(super) fn new(low: u16, high: u16, exclude: &[u16]) -> PortMask {
        let mut shards = vec![[0; WORDS_PER_VSHARD]; VSHARDS].into_boxed_slice();
        for port in low..=high {
            let (vshard, word, bit) = place(port);
            shards[vshard][word] |= bit;
        }
        for &port in exclude {
            let (vshard, word, bit) = place(port);
            shards[vshard][word] &= !bit;
        }
        let capacity = shards.iter().flatten().map(|word: &u64| word.count_ones()).sum();
        PortMask { shards, capacity }
    }

    /// Ports permitted.
    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }
}

fn place(port: u16) -> (usize, usize, u64) {
    let bit = usize::from(port >> 8);
    (vshard_of_port(port).index(), bit / 64, 1 << (bit % 64))
}

/// Every port map of one [`SnatBook`](super::SnatBook), by number: where a lease is released when its pool is gone.
///
/// A map is never freed, only used again for another real server once nothing is leased from it, so the number in a
/// lease stays good for as long as the lease lives.
pub struct SnatMaps {
    slots: Box<[OnceLock<Arc<PortMap>>]>,
}

impl SnatMaps {
    pub(super) fn new(maps_max: u32) -> SnatMaps {
        SnatMaps { slots: (0..maps_max).map(|_| OnceLock::new()).collect() }
    }

    /// The map with this number, allocated at its first use.
    pub(super) fn open(&self, id: u32) -> Arc<PortMap> {
        self.slots[id as usize].get_or_init(|| Arc::new(PortMap::new(id))).clone()
    }

    /// A word in the line that [`release`](Self::release) of this port of a map is going to write.
    #[inline]
    pub fn place(&self, map: u32, port: u16) -> Option<&AtomicU64> {
        Some(self.slots.get(map as usize)?.get()?.place(vshard_of_port(port)))
    }

    /// Takes one certain port of a map for a flow that has it already and whose home is `home`. `None`: there is no such map, or it is leased.
    pub fn take(&self, map: u32, source: SocketAddr, home: VShard) -> Option<SnatLease> {
        let of = self.slots.get(map as usize)?.get()?;
        of.take(source.port(), home).then(|| SnatLease::from_map(map, source))
    }

    /// Makes the port of `lease` free again.
    pub fn release(&self, lease: SnatLease) {
        let map = self.slots.get(lease.map as usize).and_then(OnceLock::get);
        let was_leased = map.is_some_and(|map| map.release(lease.port));
        debug_assert!(was_leased, "{lease:?} was leased from another book");
    }
}

impl std::fmt::Debug for SnatMaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let open = self.slots.iter().filter(|slot| slot.get().is_some()).count();
        f.debug_struct("SnatMaps").field("open", &open).field("max", &self.slots.len()).finish()
    }
}
