//! `control.listen`: clients that come by the network, with TLS if there is a certificate.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdTcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use towpath_tls::presented;

use super::guard::Visit;
use super::route::Door;
use super::session::household;
use super::{ACCEPT_PAUSE, ControlError, converse};
use crate::house::House;
use crate::plan::CONTROL_VISITORS_MAX;

/// Of these places one household may have so many: nobody keeps the others out.
const VISITORS_OF_ONE_MAX: usize = 8;
/// A client must have made its handshake by then.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The listener, bound and not yet served.
#[derive(Debug)]
pub struct ControlListener {
    listener: StdTcpListener,
    address: SocketAddr,
}

/// Connections of each household.
type Visitors = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// A connection's place among those of its household.
struct Seat {
    visitors: Visitors,
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

    pub(super) async fn serve(self, house: Arc<House>) {
        let ControlListener { listener, address } = self;
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!("control.listen {address}: {error}"),
        };
        let (places, visitors) = (Arc::new(Semaphore::new(CONTROL_VISITORS_MAX)), Visitors::default());
        loop {
            // Whoever comes when all places are taken waits in the listener's own queue.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match listener.accept().await {
                Err(error) => {
                    tracing::warn!("control.listen {address}: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
                Ok((stream, from)) => {
                    let Some(seat) = Seat::take(&visitors, from.ip()) else {
                        tracing::debug!("control.listen: {} has {VISITORS_OF_ONE_MAX} connections already", from.ip());
                        continue;
                    };
                    let house = Arc::clone(&house);
                    tokio::spawn(async move {
                        welcome(stream, from.ip(), house).await;
                        drop((seat, place));
                    });
                }
            }
        }
    }
}

impl Seat {
    fn take(visitors: &Visitors, address: IpAddr) -> Option<Seat> {
        let household = household(address);
        let mut taken = visitors.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(household).or_default();
        if *count >= VISITORS_OF_ONE_MAX {
            return None;
        }
        *count += 1;
        Some(Seat { visitors: Arc::clone(visitors), household })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.visitors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.household) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.household);
            }
        }
    }
}

async fn welcome(stream: TcpStream, address: IpAddr, house: Arc<House>) {
    let address = address.to_canonical();
    // Small answers are not to wait for the acknowledgement of others. Without it they come all the same.
    let _set = stream.set_nodelay(true);
    let Some(access) = house.guard.access() else { return };
    let Some(tls) = access.tls() else {
        return converse(stream, house, Door::Network(Visit { address, has_tls: false, certificate: None })).await;
    };
    let handshake = TlsAcceptor::from(Arc::clone(tls.config())).accept(stream);
    let stream = match timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!("control.listen: no handshake with {address}: {error}"),
        Err(_) => return tracing::debug!("control.listen: {address} was too slow with its handshake"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).and_then(presented);
    converse(stream, house, Door::Network(Visit { address, has_tls: true, certificate })).await;
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
        let (visitors, one, other) = (Visitors::default(), IpAddr::from([192, 0, 2, 7]), IpAddr::from([192, 0, 2, 8]));
        let mut seats: Vec<Seat> = (0..VISITORS_OF_ONE_MAX).filter_map(|_| Seat::take(&visitors, one)).collect();
        assert_eq!(seats.len(), VISITORS_OF_ONE_MAX);
        assert!(Seat::take(&visitors, one).is_none() && Seat::take(&visitors, other).is_some());
        seats.pop();
        assert!(Seat::take(&visitors, one).is_some());
        drop(seats);
        assert!(visitors.lock().unwrap().is_empty());
    }
}
