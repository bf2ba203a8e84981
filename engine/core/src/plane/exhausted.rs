//! Where no source port was free a moment ago. A search in vain looks at 256 shards of every address of a pool, and while a pool is used up every
//! SYN asks for one.

use std::net::SocketAddr;

use crate::packet::DropReason;
use crate::{Now, ServiceId};

/// Real servers of services that are remembered at a time; of more, the ones noted last.
const PLACES: usize = 16;

/// Other planes may release ports meanwhile: it is looked again at least this often.
const MEMORY_MS: u64 = 64;

#[derive(Clone, Copy)]
struct Entry {
    service: ServiceId,
    towards: SocketAddr,
    noted: Now,
    reason: DropReason,
}

/// Searches for a source port that were in vain.
#[derive(Default)]
pub(super) struct Exhausted {
    entries: [Option<Entry>; PLACES],
    /// Entries made since it was empty.
    noted: usize,
}

impl Exhausted {
    /// Nothing is remembered.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.noted == 0
    }

    /// Why the last search towards this real server found nothing, if that still holds.
    pub(super) fn recall(&self, now: Now, service: ServiceId, towards: SocketAddr) -> Option<DropReason> {
        if self.noted == 0 {
            return None;
        }
        let mut entries = self.entries.iter().flatten();
        let entry = entries.find(|entry| entry.service == service && entry.towards == towards)?;
        (now.ms_since(entry.noted) < MEMORY_MS).then_some(entry.reason)
    }

    /// A search has just found nothing.
    pub(super) fn note(&mut self, now: Now, service: ServiceId, towards: SocketAddr, reason: DropReason) {
        let is_same =
            |entry: &Option<Entry>| entry.is_none_or(|entry| entry.service == service && entry.towards == towards);
        let place = self.entries.iter().position(is_same).unwrap_or(self.noted % PLACES);
        self.entries[place] = Some(Entry { service, towards, noted: now, reason });
        self.noted += 1;
    }

    /// A port was released, or the pools have changed.
    pub(super) fn forget(&mut self) {
        if self.noted > 0 {
            *self = Exhausted::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_in_vain_is_remembered_until_something_changes() {
        let server = |port| SocketAddr::from(([10, 0, 0, 80], port));
        let mut exhausted = Exhausted::default();
        assert_eq!(exhausted.recall(Now(0), ServiceId(0), server(1)), None);
        for port in 1..=20 {
            exhausted.note(Now(100), ServiceId(0), server(port), DropReason::ServersFull);
        }
        exhausted.note(Now(130), ServiceId(0), server(20), DropReason::PortsExhausted);
        assert_eq!(exhausted.recall(Now(163), ServiceId(0), server(20)), Some(DropReason::PortsExhausted));
        assert_eq!(exhausted.recall(Now(163), ServiceId(0), server(19)), Some(DropReason::ServersFull));
        assert_eq!(exhausted.recall(Now(163), ServiceId(1), server(20)), None);
        assert_eq!(exhausted.recall(Now(164), ServiceId(0), server(19)), None);
        exhausted.forget();
        assert_eq!(exhausted.recall(Now(163), ServiceId(0), server(20)), None);
    }
}
