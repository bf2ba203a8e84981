//! The control socket: HTTP/1.1 and JSON over a Unix socket, read-only; and the client that the command line uses.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HOST};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use towpath_sys::Cause;

use crate::house::House;
use crate::plan::CONTROL_CLIENTS_MAX;
use crate::status::Status;

/// A client must have sent its request by then.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// A client must have taken its answer by then.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes that a request may have before it is refused.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// Bytes that an answer may have: 1,024 services with some hundred servers each.
const STATUS_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long the command line waits for a status.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Owner and group may talk to us.
const SOCKET_MODE: u32 = 0o660;

/// The socket, bound and not yet served; its file goes with it.
#[derive(Debug)]
pub struct ControlSocket {
    listener: StdUnixListener,
    file: SocketFile,
}

/// Why the control socket could not be opened: cause and next step.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Another daemon answers there.
    #[error("control socket {}: another daemon answers there; stop it, or set another control.socket", .0.display())]
    InUse(PathBuf),
    /// There is a file that is no socket.
    #[error("control socket {}: there is a file that is not a socket; remove it, or set another control.socket", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("control socket {}: {source}; make its directory writable for this user (RuntimeDirectory= in the systemd unit), set another control.socket, or \"none\"", path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why no status came.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The daemon answered with something else than a status.
    #[error("the daemon at {} answered {status}; is it of another version?", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// Its answer.
        status: u16,
    },
    /// The answer could not be read.
    #[error("the daemon at {} sent something that is not a status ({reason}); is it of another version?", path.display())]
    Malformed {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody answers at the socket.
    #[error("no daemon answers at {} ({source}); is it running (`towpath run`), and is this its control.socket?", path.display())]
    NotReachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No answer in time.
    #[error("the daemon at {} took the connection but did not answer within {} s", path.display(), FETCH_TIMEOUT.as_secs())]
    TimedOut {
        /// The socket.
        path: PathBuf,
    },
}

/// The file of a bound socket; removed with it, unless somebody has put another one there.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl ControlSocket {
    /// Binds `path`. A socket file that a dead daemon left behind is replaced, a live daemon's is not.
    pub fn bind(path: &Path) -> Result<ControlSocket, ControlError> {
        let system = |source| ControlError::System { path: path.to_owned(), source };
        clear_the_way(path)?;
        if let Some(directory) = path.parent()
            && !directory.exists()
            && !directory.as_os_str().is_empty()
        {
            // /run is empty after a boot.
            fs::create_dir(directory).map_err(system)?;
        }
        let listener = StdUnixListener::bind(path).map_err(system)?;
        // Until here only the owner may connect, as the umask stands; nobody is let in by accident.
        fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(system)?;
        listener.set_nonblocking(true).map_err(system)?;
        let metadata = fs::symlink_metadata(path).map_err(system)?;
        let file = SocketFile { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() };
        Ok(ControlSocket { listener, file })
    }

    /// Where it is bound.
    pub fn path(&self) -> &Path {
        &self.file.path
    }
}

/// Removes what a dead daemon left behind; refuses for anything else that is there.
fn clear_the_way(path: &Path) -> Result<(), ControlError> {
    let system = |source| ControlError::System { path: path.to_owned(), source };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ControlError::NotASocket(path.to_owned()));
    }
    match StdUnixStream::connect(path) {
        Ok(_) => Err(ControlError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(system),
        // Its queue is full: somebody lives there.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(ControlError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(system(error)),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| metadata.dev() == self.device && metadata.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("control socket {} could not be removed: {error}", self.path.display());
        }
    }
}

/// Answers for as long as the controller runs.
pub(crate) async fn serve(socket: ControlSocket, house: Arc<House>) {
    let ControlSocket { listener, file } = socket;
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!("control socket {}: {error}", file.path.display());
            return;
        }
    };
    let places = Arc::new(Semaphore::new(CONTROL_CLIENTS_MAX));
    let mut spare = spare_descriptor();
    loop {
        // Whoever comes when all places are taken waits in the socket's own queue.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            // The operator may want to know just that.
            Err(error) if Cause::of(&error) == Cause::OutOfDescriptors && spare.take().is_some() => {}
            Err(error) => {
                tracing::warn!("control socket {}: {error}", file.path.display());
                sleep(ACCEPT_PAUSE).await;
                spare = spare.or_else(spare_descriptor);
            }
            Ok((stream, _)) => {
                let house = Arc::clone(&house);
                if spare.is_none() {
                    // One at a time, so that the descriptor comes back to us.
                    converse(stream, house).await;
                    spare = spare_descriptor();
                    continue;
                }
                tokio::spawn(async move {
                    converse(stream, house).await;
                    drop(place);
                });
            }
        }
    }
}

/// Let go when no descriptor is left, for the client that asks then.
fn spare_descriptor() -> Option<fs::File> {
    fs::File::open("/dev/null").ok()
}

/// One request, one answer.
async fn converse(stream: UnixStream, house: Arc<House>) {
    let service = service_fn(move |request| {
        let answer = answer(&request, &house);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(REQUEST_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("control socket: {error}"),
        Err(_) => tracing::debug!("control socket: a client was too slow"),
    }
}

fn answer(request: &Request<Incoming>, house: &House) -> Response<Full<Bytes>> {
    match (request.uri().path(), request.method()) {
        ("/status", &Method::GET) => match serde_json::to_vec(&house.status()) {
            Ok(json) => respond(StatusCode::OK, "application/json", json),
            Err(error) => {
                respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", format!("{error}\n").into())
            }
        },
        ("/status", _) => {
            let mut response = respond(
                StatusCode::METHOD_NOT_ALLOWED,
                "text/plain; charset=utf-8",
                "this socket is read-only: GET /status\n".into(),
            );
            response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
            response
        }
        _ => respond(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "not here; there is GET /status\n".into()),
    }
}

fn respond(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

/// Asks the daemon at `path` for its status. Blocks for a few seconds at most; not to be called from an async task.
pub fn fetch_status(path: &Path) -> Result<Status, FetchError> {
    let unreachable = |source| FetchError::NotReachable { path: path.to_owned(), source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(unreachable)?;
    runtime.block_on(async {
        timeout(FETCH_TIMEOUT, fetch(path))
            .await
            .unwrap_or_else(|_| Err(FetchError::TimedOut { path: path.to_owned() }))
    })
}

async fn fetch(path: &Path) -> Result<Status, FetchError> {
    let unreachable = |source| FetchError::NotReachable { path: path.to_owned(), source };
    let malformed = |reason: String| FetchError::Malformed { path: path.to_owned(), reason };
    let stream = UnixStream::connect(path).await.map_err(unreachable)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| malformed(e.to_string()))?;
    let driver = tokio::spawn(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = hyper::Uri::from_static("/status");
    request.headers_mut().insert(HOST, hyper::header::HeaderValue::from_static("towpath"));
    let response = sender.send_request(request).await.map_err(|e| malformed(e.to_string()))?;
    if response.status() != StatusCode::OK {
        return Err(FetchError::Answer { path: path.to_owned(), status: response.status().as_u16() });
    }
    let body =
        Limited::new(response.into_body(), STATUS_BYTES_MAX).collect().await.map_err(|e| malformed(e.to_string()))?;
    driver.abort();
    serde_json::from_slice(&body.to_bytes()).map_err(|e| malformed(e.to_string()))
}
