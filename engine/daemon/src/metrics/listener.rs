//! The listener for who collects metrics: plain HTTP, `GET /metrics` and nothing else, apart from everything that may change anything.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdTcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use towpath_config::model::Metrics;

use super::latest::beside;
use crate::house::House;
use crate::plan::METRICS_CLIENTS_MAX;

/// A client must have sent its request by then.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// And have taken its answer by then: Prometheus itself gives up after ten.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);
/// How long to wait after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes that a request may have before it is refused.
const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// Opens the socket that `settings` name; `None` where they name none.
pub(crate) fn bind(settings: &Metrics) -> Result<Option<StdTcpListener>, String> {
    let Some(listen) = settings.listen else { return Ok(None) };
    open(listen).map(Some).map_err(|error| {
        let next = match error.kind() {
            io::ErrorKind::AddrInUse => "another process, a service here, or this listener at the address that it has now, uses that port; name another one",
            io::ErrorKind::AddrNotAvailable => "this address is not on this host; add it, or name another",
            _ => "name another address or port",
        };
        format!("metrics.listen = \"{listen}\": {error}; {next}")
    })
}

fn open(listen: SocketAddr) -> io::Result<StdTcpListener> {
    let listener = StdTcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves by the settings at hand.
pub(crate) struct MetricsServer {
    /// Where those are answered who come by the network.
    desk: Handle,
    /// Where it listens, and its task.
    serving: Option<(SocketAddr, AbortHandle)>,
    /// Who may ask; empty = everybody.
    from: Arc<Mutex<Vec<(IpAddr, u8)>>>,
}

impl MetricsServer {
    /// One that will answer there, and listens nowhere yet.
    pub(crate) fn new(desk: Handle) -> MetricsServer {
        MetricsServer { desk, serving: None, from: Arc::default() }
    }

    /// Where it listens.
    pub(crate) fn listens_at(&self) -> Option<SocketAddr> {
        self.serving.as_ref().map(|(listen, _)| *listen)
    }

    /// Opens what `settings` want beside what is open already, and changes nothing yet.
    pub(crate) fn prepare(&self, settings: &Metrics) -> Result<Option<StdTcpListener>, String> {
        if settings.listen == self.listens_at() { Ok(None) } else { bind(settings) }
    }

    /// Serves by `settings` from here on, with what was opened for them.
    pub(crate) fn follow(&mut self, settings: &Metrics, opened: Option<StdTcpListener>, house: &Arc<House>) {
        settings.from.clone_into(&mut self.from.lock().unwrap_or_else(PoisonError::into_inner));
        if settings.listen == self.listens_at() && opened.is_none() {
            return;
        }
        if let Some((_, task)) = self.serving.take() {
            task.abort();
        }
        // Of the one before the next process is to have no copy, or the address would stay taken.
        let copy = settings.listen.zip(opened.as_ref()).map(|(listen, opened)| Ok((listen, opened.try_clone()?)));
        let copy = copy.transpose().unwrap_or_else(|error: io::Error| {
            tracing::warn!("metrics: an upgrade will not hand their listener over: {error}");
            None
        });
        house.upgrades.hold_metrics(copy);
        let (Some(listen), Some(opened)) = (settings.listen, opened) else { return };
        let task = self.desk.spawn(serve(opened, Arc::clone(house), Arc::clone(&self.from)));
        self.serving = Some((listen, task.abort_handle()));
    }
}

async fn serve(listener: StdTcpListener, house: Arc<House>, from: Arc<Mutex<Vec<(IpAddr, u8)>>>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("metrics: {error}"),
    };
    let places = Arc::new(Semaphore::new(METRICS_CLIENTS_MAX));
    loop {
        // Whoever comes when all places are taken waits in the socket's own queue.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            biased;
            () = house.upgrades.handed() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Err(error) => {
                tracing::warn!("metrics: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
            Ok((stream, client)) => {
                if !may_ask(&from.lock().unwrap_or_else(PoisonError::into_inner), client.ip()) {
                    continue;
                }
                let house = Arc::clone(&house);
                tokio::spawn(async move {
                    if timeout(CONNECTION_TIMEOUT, converse(stream, house)).await.is_err() {
                        tracing::debug!("metrics: {client} was too slow");
                    }
                    drop(place);
                });
            }
        }
    }
}

/// Who may not gets no answer at all.
fn may_ask(from: &[(IpAddr, u8)], client: IpAddr) -> bool {
    let client = client.to_canonical();
    from.is_empty() || from.iter().any(|&(network, prefix)| holds(network, prefix, client))
}

fn holds(network: IpAddr, prefix: u8, address: IpAddr) -> bool {
    let (network, address, bits) = match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            (u128::from(network.to_bits()), u128::from(address.to_bits()), 32)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => (network.to_bits(), address.to_bits(), 128),
        _ => return false,
    };
    let host_bits = u32::from(bits - prefix.min(bits));
    (network ^ address).checked_shr(host_bits).unwrap_or(0) == 0
}

/// One request, one answer.
async fn converse(stream: TcpStream, house: Arc<House>) {
    let service = service_fn(move |request| {
        let house = Arc::clone(&house);
        async move { Ok::<_, Infallible>(answer(request, house).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(REQUEST_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = connection {
        tracing::debug!("metrics: {error}");
    }
}

async fn answer(request: Request<Incoming>, house: Arc<House>) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {}
        (_, "/metrics") => {
            let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "here is GET only\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        _ => return plain(StatusCode::NOT_FOUND, "not here; there is /metrics\n"),
    }
    let is_head = request.method() == Method::HEAD;
    drop(request);
    match beside(&house).await {
        Some(text) if is_head => {
            let mut answer = plain(StatusCode::OK, "");
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(super::CONTENT_TYPE));
            answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
            answer
        }
        Some(text) => {
            let mut answer = plain(StatusCode::OK, text);
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(super::CONTENT_TYPE));
            answer
        }
        // The process ends.
        None => plain(StatusCode::SERVICE_UNAVAILABLE, "the process is ending\n"),
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_say_who_may_ask() {
        let network = |text: &str, prefix| (text.parse::<IpAddr>().expect("an address"), prefix);
        let from = [network("192.0.2.0", 24), network("2001:db8::", 32), network("198.51.100.7", 32)];
        for (client, may) in [
            ("192.0.2.200", true),
            ("::ffff:192.0.2.1", true),
            ("192.0.3.1", false),
            ("198.51.100.7", true),
            ("198.51.100.6", false),
            ("2001:db8:ffff::1", true),
            ("2001:db9::1", false),
        ] {
            let address = client.parse().expect("an address");
            assert_eq!(may_ask(&from, address), may, "{client}");
            assert!(may_ask(&[], address));
            assert_eq!(may_ask(&[network("0.0.0.0", 0)], address), !client.starts_with("2001"), "{client}");
        }
    }
}
