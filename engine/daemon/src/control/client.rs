//! The side of the command line: one request over the socket, one answer, and what is wrong where there is none.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::answer::{Problem, Refused};
use super::route::escape;
use crate::admin::{MembersStatus, OrderBody, Ordered};
use crate::controller::Reloaded;
use crate::reload::changes::ReloadPlan;
use crate::status::Status;

/// Bytes that an answer may have: 1,024 services with some hundred servers each.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long the command line waits for an answer that needs no work.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for an order, which is published to the workers and written down first.
const ORDER_TIMEOUT: Duration = Duration::from_secs(15);
/// The same for a reload, before which the machine is asked and every file is read.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Why no answer came.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The daemon answered with something else.
    #[error("the daemon at {} answered {status}; is it of another version?", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// Its answer.
        status: u16,
    },
    /// The answer could not be read.
    #[error("the daemon at {} sent something else than was asked for ({reason}); is it of another version?", path.display())]
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
    /// The daemon has refused, and said why.
    #[error("{}", problem.message)]
    Refused {
        /// The status of its answer.
        status: u16,
        /// Why.
        problem: Problem,
    },
    /// No answer in time.
    #[error("the daemon at {} took the connection but did not answer within {} s", path.display(), limit.as_secs())]
    TimedOut {
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        limit: Duration,
    },
}

/// Where servers of services are in the API; `None` = every one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerPath {
    /// Name of the service.
    pub service: Option<String>,
    /// Name, address, or address and port of the server.
    pub server: Option<String>,
}

impl ServerPath {
    /// The path, with a verb below it unless that is empty.
    pub fn uri(&self, verb: &str) -> String {
        let part = |name: &Option<String>| name.as_deref().map_or_else(|| "*".to_owned(), escape);
        let slash = if verb.is_empty() { "" } else { "/" };
        format!("/v1/services/{}/servers/{}{slash}{verb}", part(&self.service), part(&self.server))
    }
}

/// Asks the daemon at `path` for its status. Blocks for a few seconds at most; not to be called from an async task.
pub fn fetch_status(path: &Path) -> Result<Status, FetchError> {
    call(path, Method::GET, "/v1/status", Vec::new(), FETCH_TIMEOUT)
}

/// Asks for servers of services. Blocks as [`fetch_status`].
pub fn fetch_members(path: &Path, servers: &ServerPath) -> Result<MembersStatus, FetchError> {
    call(path, Method::GET, &servers.uri(""), Vec::new(), FETCH_TIMEOUT)
}

/// Gives an order (`ready`, `drain`, `halt`, `weight`) about servers. Returns when every worker follows it.
pub fn order(path: &Path, servers: &ServerPath, verb: &str, body: &OrderBody) -> Result<Ordered, FetchError> {
    post(path, &servers.uri(verb), body, ORDER_TIMEOUT)
}

/// Has the daemon take its file as it is now. Returns when every worker serves it.
pub fn order_reload(path: &Path) -> Result<Reloaded, FetchError> {
    post(path, "/v1/reload", &json!({}), RELOAD_TIMEOUT)
}

/// Asks what a reload would change: of the daemon's own file, or of one with this name and text.
pub fn fetch_plan(path: &Path, file: Option<(&str, &str)>) -> Result<ReloadPlan, FetchError> {
    match file {
        None => call(path, Method::GET, "/v1/plan", Vec::new(), RELOAD_TIMEOUT),
        Some((name, text)) => post(path, "/v1/plan", &json!({ "name": name, "text": text }), RELOAD_TIMEOUT),
    }
}

/// Sends `body` to a route of the API and waits so long for its answer.
pub fn post<T: DeserializeOwned>(
    path: &Path,
    uri: &str,
    body: &impl Serialize,
    limit: Duration,
) -> Result<T, FetchError> {
    let malformed =
        |error: serde_json::Error| FetchError::Malformed { path: path.to_owned(), reason: error.to_string() };
    call(path, Method::POST, uri, serde_json::to_vec(body).map_err(malformed)?, limit)
}

fn call<T: DeserializeOwned>(
    path: &Path,
    method: Method,
    uri: &str,
    body: Vec<u8>,
    limit: Duration,
) -> Result<T, FetchError> {
    let unreachable = |source| FetchError::NotReachable { path: path.to_owned(), source };
    let malformed = |reason: String| FetchError::Malformed { path: path.to_owned(), reason };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(unreachable)?;
    let late = || FetchError::TimedOut { path: path.to_owned(), limit };
    let asking = async { timeout(limit, ask(path, method, uri, body)).await.unwrap_or_else(|_| Err(late())) };
    let (status, body) = runtime.block_on(asking)?;
    if status == StatusCode::OK {
        return serde_json::from_slice(&body).map_err(|error| malformed(error.to_string()));
    }
    Err(match serde_json::from_slice::<Refused>(&body) {
        Ok(Refused { error: problem }) => FetchError::Refused { status: status.as_u16(), problem },
        Err(_) => FetchError::Answer { path: path.to_owned(), status: status.as_u16() },
    })
}

async fn ask(path: &Path, method: Method, uri: &str, body: Vec<u8>) -> Result<(StatusCode, Bytes), FetchError> {
    let unreachable = |source| FetchError::NotReachable { path: path.to_owned(), source };
    let malformed = |reason: String| FetchError::Malformed { path: path.to_owned(), reason };
    let stream = UnixStream::connect(path).await.map_err(unreachable)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| malformed(e.to_string()))?;
    let driver = tokio::spawn(connection);
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = method;
    *request.uri_mut() = uri.parse::<Uri>().map_err(|error| malformed(error.to_string()))?;
    request.headers_mut().insert(HOST, HeaderValue::from_static("towpath"));
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let response = sender.send_request(request).await.map_err(|e| malformed(e.to_string()))?;
    let status = response.status();
    let body =
        Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|e| malformed(e.to_string()))?;
    driver.abort();
    Ok((status, body.to_bytes()))
}
