//! `control.listen`: clients that come by the network, with TLS if there is a certificate.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdTcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use towpath_core::Now;
use towpath_tls::presented;

use super::guard::Visit;
use super::route::Door;
use super::session::{Pace, household};
use super::{ACCEPT_PAUSE, ControlError, converse};
use crate::house::House;
use crate::plan::CONTROL_VISITORS_MAX;

/// Of these places one household may have so many: nobody keeps the others out. Some browsers behind one address have six connections each.
const VISITORS_OF_ONE_MAX: usize = 24;
/// Connections that are welcomed at once, and then in each second: a handshake is a millisecond of the thread that answers all of them.
const WELCOMES: (u64, u64) = (100, 50);
/// The same of one household.
const WELCOMES_OF_ONE: (u64, u64) = (50, 20);
/// Households that are remembered, beside those who are here.
const HOUSEHOLDS_MAX: usize = 1024;
/// A client must have made its handshake by then.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The listener, bound and not yet served.
#[derive(Debug)]
pub struct ControlListener {
    listener: StdTcpListener,
    address: SocketAddr,
}

/// Who is here, and how fast others come.
struct Visitors {
    households: HashMap<IpAddr, Household>,
    all: Pace,
}

struct Household {
    connections: usize,
    pace: Pace,
}

/// A connection that is here.
struct Guest {
    task: AbortHandle,
    /// It has shown who it is.
    is_known: Arc<AtomicBool>,
}

/// What it costs to welcome somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cost {
    Handshake,
    Nothing,
}

/// A connection's place among those of its household.
struct Seat {
    visitors: Arc<Mutex<Visitors>>,
    household: IpAddr,
}

impl ControlListener {
    /// Binds `address`.
    pub fn bind(address: SocketAddr) -> Result<ControlListener, ControlError> {
        let failed = |source| ControlError::Listen { address, source };
        let listener = StdTcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(ControlListener { listener, address })
    }

    /// The listener at `address` that another process has opened.
    pub(crate) fn adopt(address: SocketAddr, listener: StdTcpListener) -> Result<ControlListener, ControlError> {
        listener.set_nonblocking(true).map_err(|source| ControlError::Listen { address, source })?;
        Ok(ControlListener { listener, address })
    }

    /// A copy, for the process that takes over.
    pub(crate) fn copy(&self) -> io::Result<(SocketAddr, StdTcpListener)> {
        Ok((self.address, self.listener.try_clone()?))
    }

    pub(super) async fn serve(self, house: Arc<House>) {
        let ControlListener { listener, address } = self;
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!("control.listen {address}: {error}"),
        };
        let places = Arc::new(Semaphore::new(CONTROL_VISITORS_MAX));
        let visitors = Arc::new(Mutex::new(Visitors::new(house.shared.now())));
        let mut guests: VecDeque<Guest> = VecDeque::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = house.upgrades.handed() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Err(error) => {
                    tracing::warn!("control.listen {address}: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
                Ok((stream, from)) => {
                    let now = house.shared.now();
                    let seat = house.guard.access().filter(|access| access.is_from(from.ip())).and_then(|access| {
                        let cost = if access.tls().is_some() { Cost::Handshake } else { Cost::Nothing };
                        Seat::take(&visitors, from.ip(), cost, now)
                    });
                    let Some(seat) = seat else {
                        house.guard.tell(now, format_args!("a connection from {} was not taken: it is of no network of control.from, or there are too many", from.ip()));
                        continue;
                    };
                    guests.retain(|guest| !guest.task.is_finished());
                    if places.available_permits() == 0 {
                        // Who has not shown who it is makes room, the oldest first: nobody keeps users out by saying nothing.
                        let stranger = guests.iter().position(|guest| !guest.is_known.load(Ordering::Relaxed));
                        let Some(stranger) = stranger.and_then(|place| guests.remove(place)) else { continue };
                        stranger.task.abort();
                    }
                    let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                    let (house, is_known) = (Arc::clone(&house), Arc::new(AtomicBool::new(false)));
                    let known = Arc::clone(&is_known);
                    let task = tokio::spawn(async move {
                        welcome(stream, from.ip(), known, house).await;
                        drop((seat, place));
                    });
                    guests.push_back(Guest { task: task.abort_handle(), is_known });
                }
            }
        }
    }
}

impl Visitors {
    fn new(now: Now) -> Visitors {
        Visitors { households: HashMap::new(), all: Pace::new(WELCOMES.0, WELCOMES.1, now) }
    }

    /// Takes one more of this household in, unless it has too many, or they come too fast for the handshakes that they cost.
    fn take(&mut self, household: IpAddr, cost: Cost, now: Now) -> bool {
        if self.households.len() >= HOUSEHOLDS_MAX {
            self.households.retain(|_, known| known.connections > 0 || !known.pace.is_rested(now));
        }
        if self.households.len() >= HOUSEHOLDS_MAX && !self.households.contains_key(&household) {
            return false;
        }
        let fresh = || Household { connections: 0, pace: Pace::new(WELCOMES_OF_ONE.0, WELCOMES_OF_ONE.1, now) };
        let known = self.households.entry(household).or_insert_with(fresh);
        let mut is_slow = || cost == Cost::Nothing || (known.pace.take(now) && self.all.take(now));
        if known.connections >= VISITORS_OF_ONE_MAX || !is_slow() {
            return false;
        }
        known.connections += 1;
        true
    }

    fn leave(&mut self, household: IpAddr) {
        if let Some(known) = self.households.get_mut(&household) {
            known.connections = known.connections.saturating_sub(1);
        }
    }
}

impl Seat {
    fn take(visitors: &Arc<Mutex<Visitors>>, address: IpAddr, cost: Cost, now: Now) -> Option<Seat> {
        let household = household(address);
        let is_taken = visitors.lock().unwrap_or_else(PoisonError::into_inner).take(household, cost, now);
        is_taken.then(|| Seat { visitors: Arc::clone(visitors), household })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.visitors.lock().unwrap_or_else(PoisonError::into_inner).leave(self.household);
    }
}

async fn welcome(stream: TcpStream, address: IpAddr, is_known: Arc<AtomicBool>, house: Arc<House>) {
    let address = address.to_canonical();
    // Small answers are not to wait for the acknowledgement of others. Without it they come all the same.
    let _set = stream.set_nodelay(true);
    let Some(access) = house.guard.access() else { return };
    let Some(tls) = access.tls() else {
        return converse(
            stream,
            house,
            Door::Network(Visit { address, has_tls: false, certificate: None, authorities: [0; 32], is_known }),
        )
        .await;
    };
    let handshake = TlsAcceptor::from(Arc::clone(tls.config())).accept(stream);
    let stream = match timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!("control.listen: no handshake with {address}: {error}"),
        Err(_) => return tracing::debug!("control.listen: {address} was too slow with its handshake"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).and_then(presented);
    converse(
        stream,
        house,
        Door::Network(Visit { address, has_tls: true, certificate, authorities: access.authorities(), is_known }),
    )
    .await;
}

/// What helps against an address that cannot be listened on.
pub(super) fn next_step(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another program listens there; stop it (`ss -ltnp`), or name another port",
        io::ErrorKind::AddrNotAvailable => "this machine does not have the address; add it, or name another",
        io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE; name another port",
        _ => "name another address",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_household_leaves_places_for_others() {
        let (one, other) = (IpAddr::from([192, 0, 2, 7]), IpAddr::from([192, 0, 2, 8]));
        let visitors = Arc::new(Mutex::new(Visitors::new(Now(0))));
        let take = |address| Seat::take(&visitors, address, Cost::Nothing, Now(0));
        let mut seats: Vec<Seat> = (0..VISITORS_OF_ONE_MAX).filter_map(|_| take(one)).collect();
        assert_eq!(seats.len(), VISITORS_OF_ONE_MAX);
        assert!(take(one).is_none() && take(other).is_some());
        seats.pop();
        assert!(take(one).is_some());
    }

    #[test]
    fn who_comes_too_fast_is_not_welcomed() {
        let (one, other) = (IpAddr::from([192, 0, 2, 7]), IpAddr::from([192, 0, 2, 8]));
        let visitors = Arc::new(Mutex::new(Visitors::new(Now(0))));
        let come = |address, now| Seat::take(&visitors, address, Cost::Handshake, Now(now)).is_some();
        assert_eq!((0..1000).filter(|_| come(one, 0)).count() as u64, WELCOMES_OF_ONE.0);
        assert!(come(other, 0));
        assert_eq!((0..1000).filter(|_| come(one, 1000)).count() as u64, WELCOMES_OF_ONE.1);
        // Many that come once each.
        let strangers = (0..5000_u32).filter(|&number| come(IpAddr::V4((0x0a00_0000 + number).into()), 1000));
        assert!(strangers.count() as u64 <= WELCOMES.0);
        let known = visitors.lock().unwrap().households.len();
        assert!(known <= HOUSEHOLDS_MAX, "{known}");
        assert!(come(one, 60_000));
    }
}
