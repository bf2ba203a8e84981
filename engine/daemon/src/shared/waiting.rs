//! Which places somebody waits for. Whoever gives a place back asks here first, without a lock: one load, of a line that changes only when a queue begins or
//! ends.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use towpath_core::ServiceId;

/// A bit for each place where somebody waits, and how many of them are set.
///
/// Set and cleared under the lock of the place's desk; read by anybody. All is sequentially consistent with the counts of connections
/// (`SharedLoads`): who joins a queue sets the bit first and looks for a place after that, who gives a place back counts first and looks for the
/// bit after that. So one of the two sees the other.
pub(super) struct WaitingBoard {
    queues: CachePadded<AtomicU32>,
    places: Box<[AtomicU64]>,
}

impl WaitingBoard {
    pub(super) fn new(places_max: usize) -> WaitingBoard {
        WaitingBoard {
            queues: CachePadded::default(),
            places: (0..places_max.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Whether nobody waits anywhere.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.queues.load(Ordering::SeqCst) == 0
    }

    /// Whether somebody waits for this place.
    #[inline]
    pub(super) fn holds(&self, place: ServiceId) -> bool {
        !self.is_empty() && self.places[place.index() / 64].load(Ordering::SeqCst) & bit(place) != 0
    }

    /// Somebody waits for this place from here on. Only under its desk's lock.
    pub(super) fn insert(&self, place: ServiceId) {
        if self.places[place.index() / 64].fetch_or(bit(place), Ordering::SeqCst) & bit(place) == 0 {
            self.queues.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Nobody does any more. Only under its desk's lock.
    pub(super) fn remove(&self, place: ServiceId) {
        if self.places[place.index() / 64].fetch_and(!bit(place), Ordering::SeqCst) & bit(place) != 0 {
            self.queues.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// The places that somebody waits for.
    pub(super) fn iter(&self) -> impl Iterator<Item = ServiceId> {
        self.places.iter().enumerate().flat_map(|(word, bits)| {
            let mut bits = bits.load(Ordering::SeqCst);
            std::iter::from_fn(move || {
                let place = (bits != 0).then(|| ServiceId((word * 64) as u16 + bits.trailing_zeros() as u16))?;
                bits &= bits - 1;
                Some(place)
            })
        })
    }
}

fn bit(place: ServiceId) -> u64 {
    1 << (place.index() % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_was_inserted_and_not_removed() {
        let board = WaitingBoard::new(130);
        assert!(board.is_empty() && !board.holds(ServiceId(129)));
        for place in [129, 0, 63, 64, 0] {
            board.insert(ServiceId(place));
        }
        assert_eq!(board.iter().map(|place| place.0).collect::<Vec<_>>(), [0, 63, 64, 129]);
        board.remove(ServiceId(63));
        board.remove(ServiceId(63));
        assert!(!board.holds(ServiceId(63)) && board.holds(ServiceId(64)) && !board.is_empty());
        for place in [0, 64, 129] {
            board.remove(ServiceId(place));
        }
        assert!(board.is_empty() && board.iter().next().is_none());
    }
}
