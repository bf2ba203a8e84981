//! The side of the command line: one request to the daemon, one answer, and what is wrong where there is none.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use towpath_tls::{
    CipherPolicy, ClientContext, ClientSettings, Identity, MinVersion, Provider, ServerVerification, load_authorities,
};

use super::answer::{Problem, Refused};
use super::guard::read_token;
use super::route::escape;
use crate::admin::{MembersStatus, OrderBody, Ordered};
use crate::controller::Reloaded;
use crate::reload::changes::ReloadPlan;
use crate::role::{RoleBody, RoleChanged, RoleStatus};
use crate::status::Status;
use crate::upgrade::{UpgradeBody, Upgraded};

/// Bytes that an answer may have: 1,024 services with some hundred servers each.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long the command line waits for an answer that needs no work.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for an order, which is published to the workers and written down first.
const ORDER_TIMEOUT: Duration = Duration::from_secs(15);
/// The same for a reload, before which the machine is asked and every file is read.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// The same for an upgrade: the new process does all that a start does.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(240);

/// Where a daemon is asked.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// At `control.listen`.
    Remote(Box<Remote>),
    /// At `control.socket`.
    Socket(PathBuf),
}

/// `control.listen` of a daemon, and as whom it is asked.
#[derive(Clone)]
pub struct Remote {
    url: String,
    authority: String,
    host: String,
    port: u16,
    /// `None` = plain HTTP.
    tls: Option<ClientContext>,
    token: Option<HeaderValue>,
}

/// As whom a daemon is asked by the network.
#[derive(Clone, Debug, Default)]
pub struct Asker {
    /// File with a token.
    pub token_file: Option<PathBuf>,
    /// PEM with a certificate and its private key.
    pub certificate: Option<PathBuf>,
}

impl Remote {
    /// `url` is `https://HOST[:PORT]`; without TLS only on loopback, where nobody reads the token.
    pub fn new(url: &str, asker: &Asker, authorities: &Path) -> Result<Remote, String> {
        let bad = |why: &str| format!("{url} {why}; write it as in https://lb.example.org:9443");
        let parsed: Uri = url.parse().map_err(|_| bad("is no URL"))?;
        let has_tls = match parsed.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad("begins with neither https:// nor http://")),
        };
        if !matches!(parsed.path(), "" | "/") || parsed.query().is_some() {
            return Err(bad("has a path"));
        }
        let authority = parsed.authority().filter(|authority| !authority.as_str().contains('@'));
        let authority = authority.ok_or_else(|| bad("names no host, or a user"))?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let address: Option<IpAddr> = host.parse().ok();
        let is_here = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        if !has_tls && !is_here {
            return Err(format!("{url}: without TLS whoever is on the way reads the token; write https://"));
        }
        let token = match &asker.token_file {
            None => None,
            Some(path) => {
                let read = read_token(path).map_err(|why| format!("{}: {why}", path.display()))?;
                let mut token = HeaderValue::try_from(format!("Bearer {read}"))
                    .map_err(|_| format!("{}: it is no token", path.display()))?;
                token.set_sensitive(true);
                Some(token)
            }
        };
        let identity = asker.certificate.as_deref().map(|path| Identity::load(path, path, Provider::default()));
        let identity = identity.transpose().map_err(|error| error.to_string())?;
        let tls = if has_tls { Some(context(&host, address, authorities, identity)?) } else { None };
        let port = authority.port_u16().unwrap_or(if has_tls { 443 } else { 80 });
        Ok(Remote { url: url.to_owned(), authority: authority.as_str().to_owned(), host, port, tls, token })
    }
}

fn context(
    host: &str,
    address: Option<IpAddr>,
    authorities: &Path,
    identity: Option<Identity>,
) -> Result<ClientContext, String> {
    let authorities = load_authorities(authorities).map_err(|error| error.to_string())?;
    let settings = ClientSettings {
        provider: Provider::default(),
        min_version: MinVersion::Tls12,
        ciphers: CipherPolicy::Intermediate,
        post_quantum: false,
        verification: ServerVerification::Authorities(authorities),
        server_name: address.is_none().then(|| host.to_owned()),
        identity: identity.map(Arc::new),
        sessions_max: 0,
    };
    ClientContext::new(&settings, None).map_err(|error| error.to_string())
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("url", &self.url).finish_non_exhaustive()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Remote(remote) => f.write_str(&remote.url),
            Endpoint::Socket(path) => path.display().fmt(f),
        }
    }
}

impl Endpoint {
    /// What to look at when nobody answers.
    fn key(&self) -> &'static str {
        match self {
            Endpoint::Remote(_) => "control.listen",
            Endpoint::Socket(_) => "control.socket",
        }
    }
}

/// Why no answer came.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The daemon answered with something else.
    #[error("the daemon at {at} answered {status}; is it of another version?")]
    Answer {
        /// Where.
        at: String,
        /// Its answer.
        status: u16,
    },
    /// The answer could not be read.
    #[error("the daemon at {at} sent something else than was asked for ({reason}); is it of another version?")]
    Malformed {
        /// Where.
        at: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody answers there.
    #[error("no daemon answers at {at} ({source}); is it running (`towpath run`), and is this its {key}?")]
    NotReachable {
        /// Where.
        at: String,
        /// The key that says where it answers.
        key: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Who answers is not known to be the daemon.
    #[error("no TLS with {at}: {reason}; name the authority of its certificate with --ca")]
    NotTrusted {
        /// Where.
        at: String,
        /// What is wrong.
        reason: String,
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
    #[error("the daemon at {at} took the connection but did not answer within {} s", limit.as_secs())]
    TimedOut {
        /// Where.
        at: String,
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

/// Asks a daemon for its status. Blocks for a few seconds at most; not to be called from an async task.
pub fn fetch_status(at: &Endpoint) -> Result<Status, FetchError> {
    get(at, "/v1/status", FETCH_TIMEOUT)
}

/// Asks for servers of services. Blocks as [`fetch_status`].
pub fn fetch_members(at: &Endpoint, servers: &ServerPath) -> Result<MembersStatus, FetchError> {
    get(at, &servers.uri(""), FETCH_TIMEOUT)
}

/// Gives an order (`ready`, `drain`, `halt`, `weight`) about servers. Returns when every worker follows it.
pub fn order(at: &Endpoint, servers: &ServerPath, verb: &str, body: &OrderBody) -> Result<Ordered, FetchError> {
    post(at, &servers.uri(verb), body, ORDER_TIMEOUT)
}

/// Asks a route of the API and waits so long for its answer.
pub fn get<T: DeserializeOwned>(at: &Endpoint, uri: &str, limit: Duration) -> Result<T, FetchError> {
    call(at, Method::GET, uri, Vec::new(), limit)
}

/// Asks for the role of the machine. Blocks as [`fetch_status`].
pub fn fetch_role(at: &Endpoint) -> Result<RoleStatus, FetchError> {
    get(at, "/v1/role", FETCH_TIMEOUT)
}

/// Gives the machine a role. Returns when every worker follows it.
pub fn take_role(at: &Endpoint, body: &RoleBody) -> Result<RoleChanged, FetchError> {
    post(at, "/v1/role", body, ORDER_TIMEOUT)
}

/// Has the daemon take its file as it is now. Returns when every worker serves it.
pub fn order_reload(at: &Endpoint) -> Result<Reloaded, FetchError> {
    post(at, "/v1/reload", &json!({}), RELOAD_TIMEOUT)
}

/// Has another process take over from the daemon. Returns when that one serves.
pub fn order_upgrade(at: &Endpoint, body: &UpgradeBody) -> Result<Upgraded, FetchError> {
    post(at, "/v1/upgrade", body, UPGRADE_TIMEOUT)
}

/// Asks what a reload would change: of the daemon's own file, or of one with this name and text.
pub fn fetch_plan(at: &Endpoint, file: Option<(&str, &str)>) -> Result<ReloadPlan, FetchError> {
    match file {
        None => get(at, "/v1/plan", RELOAD_TIMEOUT),
        Some((name, text)) => post(at, "/v1/plan", &json!({ "name": name, "text": text }), RELOAD_TIMEOUT),
    }
}

/// Sends `body` to a route of the API and waits so long for its answer.
pub fn post<T: DeserializeOwned>(
    at: &Endpoint,
    uri: &str,
    body: &impl Serialize,
    limit: Duration,
) -> Result<T, FetchError> {
    let malformed = |error: serde_json::Error| FetchError::Malformed { at: at.to_string(), reason: error.to_string() };
    call(at, Method::POST, uri, serde_json::to_vec(body).map_err(malformed)?, limit)
}

/// Asks a route of the API with a query: pairs of key and value, not escaped.
pub fn query<T: DeserializeOwned>(
    at: &Endpoint,
    uri: &str,
    query: &[(&str, String)],
    limit: Duration,
) -> Result<T, FetchError> {
    let pairs: Vec<String> = query.iter().map(|(key, value)| format!("{key}={}", escape(value))).collect();
    let mark = if pairs.is_empty() { "" } else { "?" };
    get(at, &format!("{uri}{mark}{}", pairs.join("&")), limit)
}

/// Sends `body` to a route of the API that answers with a file.
pub fn fetch_file(at: &Endpoint, uri: &str, body: &impl Serialize, limit: Duration) -> Result<Vec<u8>, FetchError> {
    let malformed = |error: serde_json::Error| FetchError::Malformed { at: at.to_string(), reason: error.to_string() };
    let body = serde_json::to_vec(body).map_err(malformed)?;
    Ok(call_for_bytes(at, Method::POST, uri, body, limit)?.to_vec())
}

fn call<T: DeserializeOwned>(
    at: &Endpoint,
    method: Method,
    uri: &str,
    body: Vec<u8>,
    limit: Duration,
) -> Result<T, FetchError> {
    let body = call_for_bytes(at, method, uri, body, limit)?;
    serde_json::from_slice(&body)
        .map_err(|error| FetchError::Malformed { at: at.to_string(), reason: error.to_string() })
}

fn call_for_bytes(
    at: &Endpoint,
    method: Method,
    uri: &str,
    body: Vec<u8>,
    limit: Duration,
) -> Result<Bytes, FetchError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| FetchError::NotReachable { at: at.to_string(), key: at.key(), source })?;
    let late = || FetchError::TimedOut { at: at.to_string(), limit };
    let asking = async { timeout(limit, ask(at, method, uri, body)).await.unwrap_or_else(|_| Err(late())) };
    let asked = runtime.block_on(asking);
    // A name server that does not answer is not waited for.
    runtime.shutdown_background();
    let (status, body) = asked?;
    if status == StatusCode::OK {
        return Ok(body);
    }
    Err(match serde_json::from_slice::<Refused>(&body) {
        Ok(Refused { error: problem }) => FetchError::Refused { status: status.as_u16(), problem },
        Err(_) => FetchError::Answer { at: at.to_string(), status: status.as_u16() },
    })
}

async fn ask(at: &Endpoint, method: Method, uri: &str, body: Vec<u8>) -> Result<(StatusCode, Bytes), FetchError> {
    let unreachable = |source| FetchError::NotReachable { at: at.to_string(), key: at.key(), source };
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = method;
    *request.uri_mut() =
        uri.parse::<Uri>().map_err(|error| FetchError::Malformed { at: at.to_string(), reason: error.to_string() })?;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("towpath"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    match at {
        Endpoint::Socket(path) => {
            let stream = UnixStream::connect(path).await.map_err(unreachable)?;
            exchange(at, stream, request).await
        }
        Endpoint::Remote(remote) => {
            if let Ok(host) = HeaderValue::try_from(&remote.authority) {
                headers.insert(HOST, host);
            }
            if let Some(token) = &remote.token {
                headers.insert(AUTHORIZATION, token.clone());
            }
            let stream = TcpStream::connect((remote.host.as_str(), remote.port)).await.map_err(unreachable)?;
            let Some(tls) = &remote.tls else { return exchange(at, stream, request).await };
            let untrusted = |reason: String| FetchError::NotTrusted { at: at.to_string(), reason };
            let name = ServerName::try_from(remote.host.clone()).map_err(|error| untrusted(error.to_string()))?;
            let connector = TlsConnector::from(Arc::clone(tls.config()));
            let stream = connector.connect(name, stream).await.map_err(|error| untrusted(error.to_string()))?;
            exchange(at, stream, request).await
        }
    }
}

async fn exchange(
    at: &Endpoint,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), FetchError> {
    let malformed = |reason: String| FetchError::Malformed { at: at.to_string(), reason };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| malformed(e.to_string()))?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(|e| malformed(e.to_string()))?;
    let status = response.status();
    let body =
        Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|e| malformed(e.to_string()))?;
    driver.abort();
    Ok((status, body.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_host_and_nothing_else() {
        let new = |url: &str| Remote::new(url, &Asker::default(), Path::new("/no/such/file"));
        for (url, host, port) in [
            ("http://127.0.0.1:9443", "127.0.0.1", 9443),
            ("http://[::1]/", "::1", 80),
            ("http://localhost:1", "localhost", 1),
        ] {
            let remote = new(url).unwrap();
            assert_eq!((remote.host.as_str(), remote.port, remote.tls.is_none()), (host, port, true), "{url}");
            assert!(!format!("{remote:?}").contains("token"), "{remote:?}");
        }
        for (url, why) in [
            ("lb.example.org", "begins with neither"),
            ("ftp://lb.example.org", "begins with neither"),
            ("http://127.0.0.1/v1/status", "has a path"),
            ("http://127.0.0.1/?a", "has a path"),
            ("http://me:secret@127.0.0.1", "names no host, or a user"),
            ("http://lb.example.org", "reads the token"),
            ("http://192.0.2.1", "reads the token"),
            ("https://lb.example.org", "/no/such/file"),
            ("http://a b", "is no URL"),
        ] {
            let told = new(url).unwrap_err();
            assert!(told.contains(why), "{url}: {told}");
        }
    }
}
