//! How many connections each service and each real server carries now, counted by all workers together.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crossbeam_utils::CachePadded;
use towpath_core::fast_path::FastMemory;
use towpath_core::loads::{Full, Loads};
use towpath_core::{RealServerId, ServiceId};

thread_local! {
    /// The thread has taken a place of a service and given it back, because the server had none.
    static UNDONE: Cell<bool> = const { Cell::new(false) };
}

/// Whether the thread has held a place of a service for a moment, since it was asked last: somebody may have found the service full by that.
pub(super) fn take_undone() -> bool {
    UNDONE.take()
}

/// [`Loads`] over atomics: touched when a connection opens or closes, never per byte.
///
/// Giving back and reading are sequentially consistent with joining a queue (`super::waiting`): whoever gives a place back sees who waits, or who waits sees the
/// place. On x86-64 they are the same instructions as without.
///
/// Each cell has a cache line of its own, so that two busy servers do not slow each other down.
pub struct SharedLoads {
    services: Box<[CachePadded<AtomicU32>]>,
    servers: Box<[CachePadded<AtomicU32>]>,
    /// By service, then by server: a row is made when a service opens its first connection (16 KiB, of which what is near its servers is touched).
    members: Box<[OnceLock<Box<[AtomicU32]>>]>,
    /// Where the fast path counts connections that are over, and that a worker has still to hear of.
    fast: OnceLock<FastMemory>,
}

impl SharedLoads {
    /// All counts 0.
    pub fn new(services_max: usize, real_servers_max: usize) -> SharedLoads {
        SharedLoads {
            services: (0..services_max).map(|_| CachePadded::default()).collect(),
            servers: (0..real_servers_max).map(|_| CachePadded::default()).collect(),
            members: (0..services_max).map(|_| OnceLock::new()).collect(),
            fast: OnceLock::new(),
        }
    }

    /// Leaves out from here on what is over by this memory. Only the first counts.
    pub(crate) fn leave_out(&self, fast: FastMemory) {
        let _is_first = self.fast.set(fast);
    }

    /// Connections to a server that are counted here, and over.
    fn over(&self, server: RealServerId) -> u32 {
        self.fast.get().map_or(0, |fast| fast.ended(server))
    }

    /// All connections to a server that were not given back, be they over or not.
    pub(crate) fn held(&self, server: RealServerId) -> u32 {
        self.servers[server.index()].load(Ordering::SeqCst)
    }

    /// Connections and sessions of `service` now.
    pub fn service_active(&self, service: ServiceId) -> u32 {
        self.services[service.index()].load(Ordering::Acquire)
    }

    fn member(&self, service: ServiceId, server: RealServerId) -> &AtomicU32 {
        let row =
            self.members[service.index()].get_or_init(|| (0..self.servers.len()).map(|_| AtomicU32::new(0)).collect());
        &row[server.index()]
    }
}

impl Loads for SharedLoads {
    fn active(&self, server: RealServerId) -> u32 {
        self.held(server).saturating_sub(self.over(server))
    }

    fn active_of(&self, service: ServiceId, server: RealServerId) -> u32 {
        self.members[service.index()].get().map_or(0, |row| row[server.index()].load(Ordering::Acquire))
    }

    fn try_open(
        &self,
        service: ServiceId,
        service_max: u32,
        server: RealServerId,
        server_max: u32,
    ) -> Result<(), Full> {
        // Asked anew at each try: a connection that is over is left out of it a moment before it is given back.
        let server_max = || if server_max == 0 { 0 } else { server_max.saturating_add(self.over(server)) };
        let service_max = || service_max;
        // A look first, so that a place of the service is held in vain only where another thread comes in between. A client that is led back to a full
        // server is no such race, and must not look like one to those who wait.
        if is_full(&self.services[service.index()], service_max) {
            return Err(Full::Service);
        }
        if is_full(&self.servers[server.index()], server_max) {
            return Err(Full::Server);
        }
        // Service first: its slot is given back when the server has none, so both count or neither does.
        if !take_slot(&self.services[service.index()], service_max) {
            return Err(Full::Service);
        }
        if !take_slot(&self.servers[server.index()], server_max) {
            give_back(&self.services[service.index()]);
            // Without a limit of the service nobody was refused by it.
            UNDONE.set(service_max() != 0);
            return Err(Full::Server);
        }
        self.member(service, server).fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn close(&self, service: ServiceId, server: RealServerId) {
        give_back(self.member(service, server));
        give_back(&self.servers[server.index()]);
        give_back(&self.services[service.index()]);
    }
}

/// Counts one more unless `max` (0 = none) is reached.
fn take_slot(cell: &AtomicU32, max: impl Fn() -> u32) -> bool {
    cell.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
        let max = max();
        let room = max == 0 || count < max;
        if room { count.checked_add(1) } else { None }
    })
    .is_ok()
}

fn is_full(cell: &AtomicU32, max: impl Fn() -> u32) -> bool {
    let max = max();
    max != 0 && cell.load(Ordering::SeqCst) >= max
}

fn give_back(cell: &AtomicU32) {
    let before = cell.fetch_sub(1, Ordering::SeqCst);
    debug_assert!(before > 0, "a close without its open");
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    const SERVICE: ServiceId = ServiceId(0);
    const SERVER: RealServerId = RealServerId(3);

    #[test]
    fn a_full_server_leaves_the_service_uncounted() {
        let loads = SharedLoads::new(1, 4);
        assert_eq!(loads.try_open(SERVICE, 0, SERVER, 1), Ok(()));
        assert_eq!(loads.try_open(SERVICE, 0, SERVER, 1), Err(Full::Server));
        assert_eq!((loads.service_active(SERVICE), loads.active(SERVER), loads.active_of(SERVICE, SERVER)), (1, 1, 1));
        loads.close(SERVICE, SERVER);
        assert_eq!(loads.active_of(SERVICE, SERVER), 0);
        assert_eq!((loads.service_active(SERVICE), loads.active(SERVER)), (0, 0));
    }

    #[test]
    fn a_full_service_leaves_the_server_uncounted() {
        let loads = SharedLoads::new(1, 4);
        assert_eq!(loads.try_open(SERVICE, 1, SERVER, 0), Ok(()));
        assert_eq!(loads.try_open(SERVICE, 1, SERVER, 0), Err(Full::Service));
        assert_eq!((loads.service_active(SERVICE), loads.active(SERVER)), (1, 1));
    }

    #[test]
    fn threads_that_race_for_the_last_slot_never_share_it() {
        const THREADS: usize = 4;
        const ROUNDS: usize = 2_000;
        let loads = SharedLoads::new(1, 4);
        let barrier = Barrier::new(THREADS);
        let wins: usize = thread::scope(|scope| {
            let workers: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        let mut wins = 0;
                        for _ in 0..ROUNDS {
                            barrier.wait();
                            let won = loads.try_open(SERVICE, 0, SERVER, 1).is_ok();
                            barrier.wait();
                            if won {
                                wins += 1;
                                loads.close(SERVICE, SERVER);
                            }
                        }
                        wins
                    })
                })
                .collect();
            workers.into_iter().map(|w| w.join().expect("no panic")).sum()
        });
        assert_eq!(wins, ROUNDS, "exactly one winner a round");
        assert_eq!(loads.active(SERVER), 0);
    }
}
