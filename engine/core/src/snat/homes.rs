//! Where the flow lives that has a leased port: the note that a lease outside of its home leaves for whoever gets the returns.
//!
//! Steering sends a return packet to the worker that owns the port's virtual shard. The flow is at the worker that owns its home, and that may
//! be another. So each port of a map has one octet beside its bit: the home of the flow that leased it last. A note names a virtual shard and
//! no worker, and lies where every worker reads it: when shards move to other workers there is nothing to tell and nothing to lose.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::sync::{Arc, OnceLock};

use super::SnatPool;
use super::map::PortMap;
use crate::VShard;

const PORTS: usize = 1 << 16;

/// The homes of one port map: 64 KiB, allocated when a pool of the packet plane first asks for them. The kernel's sockets need none.
///
/// Plain octets and nothing else, so they can live in memory that outlives the process.
#[derive(Default)]
pub(super) struct Homes {
    /// In the order of the map: by virtual shard, then by the high octet of the port.
    by_port: OnceLock<Box<[AtomicU8]>>,
}

impl Homes {
    fn keep(&self) -> &[AtomicU8] {
        // A port that was never leased is at home.
        self.by_port.get_or_init(|| (0..PORTS).map(|at| AtomicU8::new((at >> 8) as u8)).collect())
    }

    /// The line of the note of `port`.
    #[inline]
    pub(super) fn line(&self, port: u16) -> Option<*const u8> {
        Some(std::ptr::from_ref(&self.by_port.get()?[place(port)]).cast())
    }

    /// The flow that has just leased `port` lives in `home`.
    #[inline]
    pub(super) fn write(&self, port: u16, home: VShard) {
        if let Some(homes) = self.by_port.get() {
            homes[place(port)].store(home.0, Ordering::Release);
        }
    }
}

fn place(port: u16) -> usize {
    port.swap_bytes().into()
}

/// Where returns to the ports of one SNAT address from one real server belong.
#[derive(Clone)]
pub struct PortHomes {
    map: Arc<PortMap>,
}

impl PortHomes {
    /// The home of the flow that leased `port` last; of a port that nobody has leased yet, its own virtual shard.
    pub fn home_of(&self, port: u16) -> VShard {
        VShard(self.map.homes.keep()[place(port)].load(Ordering::Acquire))
    }

    /// Whether `port` is leased. Of two workers that each claim a port in one map and then ask for it in the other's, one learns of the other.
    pub fn is_leased(&self, port: u16) -> bool {
        fence(Ordering::SeqCst);
        self.map.is_leased(port)
    }

    /// The number of the port map.
    pub fn map(&self) -> u32 {
        self.map.id()
    }

    /// Whether no port is leased, and no pool leases from here any more.
    pub fn is_unused(&self) -> bool {
        self.map.is_unused()
    }
}

impl SnatPool {
    /// The homes of its ports, by SNAT address and real server; from the first call on they are kept.
    pub fn homes(&self) -> impl Iterator<Item = (IpAddr, SocketAddr, PortHomes)> + '_ {
        self.routes.iter().flat_map(|route| {
            route.sources.iter().map(|source| {
                source.map.homes.keep();
                (source.address.into(), route.destination, PortHomes { map: Arc::clone(&source.map) })
            })
        })
    }
}
