//! The demo's clients: some keep their connection, some open a new one for every request, all as fast as they are answered.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::{RwLock, RwLockReadGuard};
use tokio::task::JoinSet;

use super::client::{Connection, Failure, Reuse};
use super::ledger::{Ledger, Loss, Sample, judge};
use super::origin::Origin;

/// Clients that keep their connection.
pub(crate) const KEEP_ALIVE_CLIENTS: usize = 24;
/// Clients that open a connection per request.
pub(crate) const FRESH_CLIENTS: usize = 8;
/// All of them.
pub(crate) const CLIENTS: usize = KEEP_ALIVE_CLIENTS + FRESH_CLIENTS;
/// A keep-alive client opens a new connection after this many requests.
const REQUESTS_PER_CONNECTION: u32 = 500;
/// Pause of a client after a failure, so that a relay that is gone is not asked a million times.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(20);
/// Longest latency that the histogram tells apart, above the client's patience.
const LATENCY_MAX_US: u64 = 60_000_000;

/// What all clients share.
pub(crate) struct Traffic {
    relay: SocketAddr,
    origins: &'static [&'static str],
    ledger: Ledger,
    /// Held for reading from the opening of a connection to its first answer, for writing while an origin is closed:
    /// at that moment every open connection has told whose it is, so each lost request is attributed exactly.
    openings: RwLock<()>,
    stopped: OnceLock<usize>,
    ended: AtomicBool,
}

/// Latencies in microseconds by kind of client.
pub(crate) struct Latencies {
    /// A request on a connection that is already open.
    pub(crate) keep_alive: Histogram<u64>,
    /// A new connection, its request and its answer.
    pub(crate) fresh: Histogram<u64>,
}

impl Latencies {
    pub(crate) fn new() -> Latencies {
        let histogram = || Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("the bounds are constants in range");
        Latencies { keep_alive: histogram(), fresh: histogram() }
    }

    fn add(&mut self, other: &Latencies) {
        self.keep_alive.add(&other.keep_alive).expect("both histograms have the same bounds");
        self.fresh.add(&other.fresh).expect("both histograms have the same bounds");
    }
}

/// The counts around the stop of an origin.
pub(crate) struct StopMoment {
    /// Just before it was closed.
    pub(crate) before: Sample,
    /// Just after it was closed.
    pub(crate) after: Sample,
}

impl Traffic {
    pub(crate) fn new(relay: SocketAddr, origins: &'static [&'static str]) -> Arc<Traffic> {
        Arc::new(Traffic {
            relay,
            origins,
            ledger: Ledger::new(origins.len()),
            openings: RwLock::new(()),
            stopped: OnceLock::new(),
            ended: AtomicBool::new(false),
        })
    }

    pub(crate) fn sample(&self) -> Sample {
        self.ledger.sample()
    }

    /// Starts all clients.
    pub(crate) fn start(self: &Arc<Traffic>) -> JoinSet<Latencies> {
        let mut clients = JoinSet::new();
        for _ in 0..KEEP_ALIVE_CLIENTS {
            clients.spawn(keep_asking(Arc::clone(self)));
        }
        for _ in 0..FRESH_CLIENTS {
            clients.spawn(ask_afresh(Arc::clone(self)));
        }
        clients
    }

    /// Closes `origin`, which has number `index`, in the middle of the traffic.
    pub(crate) async fn stop(&self, index: usize, origin: Origin) -> StopMoment {
        let _nobody_opens = self.openings.write().await;
        let before = self.sample();
        self.stopped.set(index).expect("one origin is stopped per demo");
        origin.stop().await;
        StopMoment { before, after: self.sample() }
    }

    /// Lets every client finish its request and gathers what they measured.
    pub(crate) async fn end(&self, mut clients: JoinSet<Latencies>) -> Latencies {
        self.ended.store(true, Ordering::Relaxed);
        let mut all = Latencies::new();
        while let Some(latencies) = clients.join_next().await {
            all.add(&latencies.expect("a client does not panic"));
        }
        all
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    async fn open(&self) -> Result<(Connection, RwLockReadGuard<'_, ()>), Failure> {
        let opening = self.openings.read().await;
        let connection = Connection::open(self.relay).await?;
        self.ledger.connected();
        Ok((connection, opening))
    }

    async fn lose(&self, failure: Failure, served_by: Option<usize>) {
        let loss = judge(failure, served_by, self.stopped.get().copied());
        self.ledger.lost(loss);
        if let Loss::Failed(_) = loss {
            tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
        }
    }
}

async fn keep_asking(traffic: Arc<Traffic>) -> Latencies {
    let mut latencies = Latencies::new();
    while !traffic.has_ended() {
        let opened = Instant::now();
        let (mut connection, opening) = match traffic.open().await {
            Ok(opened) => opened,
            Err(failure) => {
                traffic.lose(failure, None).await;
                continue;
            }
        };
        let mut opening = Some(opening);
        for request in 0..REQUESTS_PER_CONNECTION {
            if traffic.has_ended() {
                break;
            }
            let sent = Instant::now();
            let answer = match connection.has_ended() {
                Ok(true) if request > 0 => break,
                Ok(true) => Err(Failure::Closed),
                Ok(false) => connection.get(Reuse::KeepAlive, traffic.origins).await,
                Err(failure) => Err(failure),
            };
            match answer {
                Ok(origin) => {
                    traffic.ledger.answered(origin);
                    match opening.take() {
                        Some(_) => latencies.fresh.saturating_record(microseconds_since(opened)),
                        None => latencies.keep_alive.saturating_record(microseconds_since(sent)),
                    }
                }
                Err(failure) => {
                    drop(opening.take());
                    traffic.lose(failure, connection.served_by()).await;
                    break;
                }
            }
        }
    }
    latencies
}

async fn ask_afresh(traffic: Arc<Traffic>) -> Latencies {
    let mut latencies = Latencies::new();
    while !traffic.has_ended() {
        let began = Instant::now();
        let outcome = match traffic.open().await {
            Ok((mut connection, _opening)) => connection.get(Reuse::Close, traffic.origins).await,
            Err(failure) => Err(failure),
        };
        match outcome {
            Ok(origin) => {
                traffic.ledger.answered(origin);
                latencies.fresh.saturating_record(microseconds_since(began));
            }
            Err(failure) => traffic.lose(failure, None).await,
        }
    }
    latencies
}

fn microseconds_since(earlier: Instant) -> u64 {
    u64::try_from(earlier.elapsed().as_micros()).unwrap_or(LATENCY_MAX_US)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    /// Waits until `fact` holds of the counts.
    async fn until(traffic: &Traffic, fact: impl Fn(&Sample) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !fact(&traffic.sample()) {
            assert!(Instant::now() < deadline, "{:?}", traffic.sample());
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn without_a_relay_a_stopped_origin_shows_as_failed_requests() {
        let origin = Origin::open("ash", (Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let traffic = Traffic::new(origin.address(), &["ash"]);
        let clients = traffic.start();
        until(&traffic, |sample| sample.answered[0] > 1000).await;
        let stop = traffic.stop(0, origin).await;
        assert_eq!(stop.before.failed_total(), 0, "{:?}", stop.before);
        until(&traffic, |sample| sample.failed_total() > 0).await;
        let latencies = traffic.end(clients).await;
        let end = traffic.sample();
        // Nobody takes over, so new connections fail; what was under way on open ones is excused.
        assert!(end.failed.keys().all(|failure| *failure == Failure::ConnectFailed), "{end:?}");
        assert!(end.in_flight <= KEEP_ALIVE_CLIENTS as u64, "{end:?}");
        assert_eq!(latencies.keep_alive.len() + latencies.fresh.len(), end.answered_total());
    }

    #[tokio::test]
    async fn an_origin_that_nobody_stopped_has_no_excuse() {
        let origin = Origin::open("ash", (Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let traffic = Traffic::new(origin.address(), &["ash"]);
        let clients = traffic.start();
        until(&traffic, |sample| sample.answered[0] > 1000).await;
        origin.stop().await;
        until(&traffic, |sample| sample.failed_total() > 0).await;
        traffic.end(clients).await;
        assert_eq!(traffic.sample().in_flight, 0);
    }
}
