//! Which path and method is for what, and what role it takes: one table. Paths begin with the version of what they answer; what changes anything is a
//! POST.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use towpath_config::model::{ControlRole, Page};

use super::answer::{Answer, json, not_allowed, problem, text};
use super::caller::{Caller, Who};
use super::guard::{self, LoginBody, NoKeys, Visit};
use super::peer::Peer;
use super::server::Verb;
use super::{
    capture, certs, check, events, explain, files, limits, persistence, reload, role, server, sessions, upgrade,
};
use crate::admin::Chosen;
use crate::house::House;
use crate::metrics;

/// Bytes that the body of a request may have.
pub(super) const BODY_BYTES_MAX: usize = 16 * 1024;
/// Segments that a path may have.
const SEGMENTS_MAX: usize = 8;
/// Of a path so much is written into the log.
const PATH_LOGGED_MAX: usize = 300;
/// Of a method so much.
const METHOD_LOGGED_MAX: usize = 16;

/// By when a connection has to be over. A route whose answer takes longer puts it off.
pub(super) struct Deadline(watch::Sender<Instant>);

impl Deadline {
    /// So long from now on.
    pub(super) fn new(limit: Duration) -> (Deadline, watch::Receiver<Instant>) {
        let (sender, receiver) = watch::channel(Instant::now() + limit);
        (Deadline(sender), receiver)
    }

    /// So long from now on, instead of what it was.
    pub(super) fn put_off(&self, limit: Duration) {
        self.0.send_replace(Instant::now() + limit);
    }
}

/// How a request came in.
pub(super) enum Door {
    /// By `control.listen`.
    Network(Visit),
    /// By the Unix socket at this path.
    Socket { peer: Peer, path: Arc<Path> },
}

/// One request that its caller may make, with everything that an answer needs.
pub(super) struct Asked<'a> {
    pub(super) house: &'a House,
    pub(super) who: &'a Caller,
    pub(super) path: &'a [Segment],
    pub(super) deadline: &'a Deadline,
}

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Capture,
    Certificates,
    Check,
    ClearPersistence,
    Events,
    Explain,
    Flow,
    KillSessions,
    Limits,
    Logout,
    Metrics,
    Order(Verb),
    Persistence,
    Role,
    Plan,
    PlanOf,
    Reload,
    Routes,
    SayRole,
    Servers,
    Session,
    Sessions,
    Status,
    Upgrade,
}

/// What is left behind of a request that is no question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Trace {
    /// An event with who, what, before and after, where anything is another afterwards or was refused by what it says; and a line in the log.
    Event,
    /// A line in the log with who and what: nothing of ours is another afterwards.
    Line,
}

impl Action {
    /// What it leaves behind; `None` = it only looks.
    fn trace(self) -> Option<Trace> {
        match self {
            Action::Capture
            | Action::ClearPersistence
            | Action::KillSessions
            | Action::Order(_)
            | Action::Reload
            | Action::SayRole
            | Action::Upgrade => Some(Trace::Event),
            // Checks by order judge nothing, a plan takes nothing, and a login is its user's own.
            Action::Check | Action::Logout | Action::PlanOf => Some(Trace::Line),
            Action::Certificates
            | Action::Events
            | Action::Explain
            | Action::Flow
            | Action::Limits
            | Action::Metrics
            | Action::Persistence
            | Action::Plan
            | Action::Role
            | Action::Routes
            | Action::Servers
            | Action::Session
            | Action::Sessions
            | Action::Status => None,
        }
    }
}

/// One line of the table.
pub(super) struct Route {
    method: Method,
    /// `{}` stands for any one part.
    path: &'static str,
    /// Who may not do less than this one may ask.
    role: ControlRole,
    action: Action,
}

const fn see(path: &'static str, action: Action) -> Route {
    Route { method: Method::GET, path, role: ControlRole::Viewer, action }
}

const fn change(path: &'static str, role: ControlRole, action: Action) -> Route {
    Route { method: Method::POST, path, role, action }
}

/// Everything there is, beside the files of the page and the login, which nobody needs a role for.
static ROUTES: &[Route] = &[
    see("/metrics", Action::Metrics),
    see("/status", Action::Status),
    see("/v1", Action::Routes),
    // Frames hold what people write.
    change("/v1/capture", ControlRole::Admin, Action::Capture),
    see("/v1/certs", Action::Certificates),
    see("/v1/events", Action::Events),
    see("/v1/explain", Action::Explain),
    see("/v1/flow", Action::Flow),
    see("/v1/limits", Action::Limits),
    change("/v1/logout", ControlRole::Viewer, Action::Logout),
    see("/v1/metrics", Action::Metrics),
    see("/v1/persistence", Action::Persistence),
    change("/v1/persistence/clear", ControlRole::Operator, Action::ClearPersistence),
    see("/v1/role", Action::Role),
    change("/v1/role", ControlRole::Operator, Action::SayRole),
    // Files are read for it, and the machine is asked. One of the caller's may name files that only the daemon can read.
    Route { method: Method::GET, path: "/v1/plan", role: ControlRole::Operator, action: Action::Plan },
    change("/v1/plan", ControlRole::Operator, Action::PlanOf),
    change("/v1/reload", ControlRole::Operator, Action::Reload),
    see("/v1/services/{}/servers/{}", Action::Servers),
    // Servers notice it, and commands run.
    change("/v1/services/{}/servers/{}/check", ControlRole::Operator, Action::Check),
    change("/v1/services/{}/servers/{}/drain", ControlRole::Operator, Action::Order(Verb::Drain)),
    change("/v1/services/{}/servers/{}/halt", ControlRole::Operator, Action::Order(Verb::Halt)),
    change("/v1/services/{}/servers/{}/ready", ControlRole::Operator, Action::Order(Verb::Ready)),
    change("/v1/services/{}/servers/{}/weight", ControlRole::Operator, Action::Order(Verb::Weight)),
    see("/v1/session", Action::Session),
    see("/v1/sessions", Action::Sessions),
    change("/v1/sessions/kill", ControlRole::Operator, Action::KillSessions),
    see("/v1/status", Action::Status),
    // A program is started with everything that this process may do.
    change("/v1/upgrade", ControlRole::Admin, Action::Upgrade),
];
const LOGIN: &str = "/v1/login";

/// Does what a request asks for.
async fn act(action: Action, request: Request<Incoming>, asked: &Asked<'_>, door: &Door) -> Answer {
    let Asked { house, who, path, .. } = asked;
    match action {
        Action::Capture => capture::capture(request, asked).await,
        Action::Certificates => certs::show(house),
        Action::Check => check::check(request, &chosen(path), asked).await,
        Action::ClearPersistence => persistence::clear(request, asked).await,
        Action::Events => {
            let query = request.uri().query().unwrap_or_default().to_owned();
            events::show(&query, asked).await
        }
        Action::Explain => explain::explain(request, asked),
        Action::Flow => sessions::flow(request, asked).await,
        Action::KillSessions => sessions::kill(request, asked).await,
        Action::Limits => limits::show(house),
        Action::Logout => match (read_body::<NoKeys>(request).await, door) {
            (Err(answer), _) => answer,
            (Ok(_), Door::Network(visit)) => house.guard.log_out(who, visit),
            (Ok(_), Door::Socket { .. }) => json(StatusCode::OK, &serde_json::json!({})),
        },
        Action::Metrics => text(metrics::CONTENT_TYPE, metrics::here(house).await),
        Action::Order(verb) => server::change(request, verb, &chosen(path), asked).await,
        Action::Persistence => persistence::list(request, asked).await,
        Action::Role => role::show(asked),
        Action::SayRole => role::change(request, asked).await,
        Action::Plan => reload::plan(asked).await,
        Action::PlanOf => reload::plan_of(request, asked).await,
        Action::Reload => reload::reload(request, asked).await,
        Action::Routes => json(StatusCode::OK, &routes()),
        Action::Servers => server::show(house, &chosen(path)),
        Action::Session => json(StatusCode::OK, &house.guard.view(who, house.shared.now())),
        Action::Sessions => sessions::list(request, asked).await,
        Action::Status => json(StatusCode::OK, &house.status()),
        Action::Upgrade => upgrade::upgrade(request, asked, door).await,
    }
}

/// Answers one request.
pub(super) async fn answer(request: Request<Incoming>, house: &House, door: &Door, deadline: &Deadline) -> Answer {
    match door {
        Door::Socket { peer, path } => {
            let who = Caller { role: peer.role(path), who: Who::Local(peer.clone()) };
            serve(request, house, &who, door, deadline).await
        }
        Door::Network(visit) => {
            let mut answer = by_network(request, house, visit, door, deadline).await;
            files::harden(&mut answer);
            if answer.status().is_client_error() {
                // Who may not come keeps no place.
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            answer
        }
    }
}

async fn by_network(
    request: Request<Incoming>,
    house: &House,
    visit: &Visit,
    door: &Door,
    deadline: &Deadline,
) -> Answer {
    let page = house.guard.page();
    let (method, path) = (request.method(), request.uri().path());
    if page != Page::Off
        && guard::only_looks(method)
        && let Some(asset) = crate::page::find(path)
    {
        return files::send(asset, request.headers());
    }
    if guard::is_of_other_site(request.headers(), visit) {
        let what =
            format_args!("{} {} from {} refused: it is of another site", word(method), shown(path), visit.address);
        house.guard.tell(house.shared.now(), what);
        return guard::refuse_other_site();
    }
    if page != Page::Off && path == LOGIN {
        if *method != Method::POST {
            return not_allowed("POST");
        }
        // A page of another site cannot send JSON without asking first.
        return match read_body::<LoginBody>(request).await {
            Ok(body) => house.guard.log_in(body, visit, || house.shared.now()).await,
            Err(answer) => answer,
        };
    }
    match house.guard.admit(request.headers(), visit, house.shared.now()) {
        Ok(who) => {
            visit.is_known.store(true, Ordering::Relaxed);
            serve(request, house, &who, door, deadline).await
        }
        Err(answer) => *answer,
    }
}

/// Does what `who` asks for, if it may.
async fn serve(request: Request<Incoming>, house: &House, who: &Caller, door: &Door, deadline: &Deadline) -> Answer {
    let Some(path) = segments(request.uri().path()) else {
        return problem(
            StatusCode::BAD_REQUEST,
            "bad_path",
            "the path has a damaged escape, no UTF-8 or too many parts",
        );
    };
    let route = match find(request.method(), &path) {
        Found::Route(route) => route,
        Found::OtherMethod(allowed) => return not_allowed(&allowed),
        Found::Nothing => {
            return problem(StatusCode::NOT_FOUND, "not_found", "not here; GET /v1 shows what there is, and who may");
        }
    };
    let what = format!("{} {}", word(request.method()), shown(request.uri().path()));
    if let Err(answer) = may(route, request.headers(), who, house) {
        tracing::warn!("control: {who}: {what} refused");
        return *answer;
    }
    let asked = Asked { house, who, path: &path, deadline };
    let answer = act(route.action, request, &asked, door).await;
    if route.action.trace().is_some() {
        tracing::info!("control: {who}: {what}: {}", answer.status().as_u16());
    }
    answer
}

/// Whether `who` may take this route.
fn may(route: &Route, headers: &HeaderMap, who: &Caller, house: &House) -> Result<(), Box<Answer>> {
    if who.role < route.role {
        let how = match who.who {
            Who::Local(_) => "that is for root, the owner and the group of the socket",
            Who::User { .. } => "its role in control.user is another",
        };
        let (role, needed) = (who.role.word(), route.role.word());
        let message = format!("{who} is a {role}, and this is for the role {needed}: {how}");
        return Err(problem(StatusCode::FORBIDDEN, "forbidden", message).into());
    }
    if route.method == Method::GET {
        return Ok(());
    }
    if who.session().is_some() && house.guard.page() == Page::ReadOnly && route.action != Action::Logout {
        let message =
            "the page shows, but changes nothing: control.page is \"read-only\"; use the command line, or set \"full\"";
        return Err(problem(StatusCode::FORBIDDEN, "read_only", message).into());
    }
    house.guard.judge_mutation(headers, who, house.shared.now())
}

/// What the table says about a request.
enum Found {
    Route(&'static Route),
    /// The path is there for these.
    OtherMethod(String),
    Nothing,
}

fn find(method: &Method, path: &[Segment]) -> Found {
    let is_here = |route: &&Route| {
        let mut parts = route.path.split('/').skip(1);
        let fits = path.iter().all(|segment| match parts.next() {
            Some("{}") => true,
            Some(part) => segment.word() == Some(part),
            None => false,
        });
        fits && parts.next().is_none()
    };
    let here: Vec<&'static Route> = ROUTES.iter().filter(is_here).collect();
    // What HEAD is asked is what GET is (RFC 9110 §9.3.2).
    let wanted = if method == Method::HEAD { &Method::GET } else { method };
    if let Some(route) = here.iter().find(|route| route.method == *wanted) {
        return Found::Route(route);
    }
    let allowed: Vec<&str> = here.iter().map(|route| route.method.as_str()).collect();
    if allowed.is_empty() { Found::Nothing } else { Found::OtherMethod(allowed.join(", ")) }
}

/// One route, for people and programs.
#[derive(Debug, Serialize, Deserialize)]
struct RouteRow {
    method: String,
    path: String,
    role: ControlRole,
    /// What it leaves behind; nothing where it only looks.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<Trace>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RouteRows {
    routes: Vec<RouteRow>,
}

fn routes() -> RouteRows {
    let row = |route: &Route| RouteRow {
        method: route.method.to_string(),
        path: route.path.to_owned(),
        role: route.role,
        trace: route.action.trace(),
    };
    RouteRows { routes: ROUTES.iter().map(row).collect() }
}

/// A path as the log has it: hyper lets no control character through.
fn shown(path: &str) -> &str {
    &path[..path.floor_char_boundary(PATH_LOGGED_MAX)]
}

/// A method as the log has it: whoever asks may have made it up.
fn word(method: &Method) -> &str {
    &method.as_str()[..method.as_str().floor_char_boundary(METHOD_LOGGED_MAX)]
}

/// One name in a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    /// As it stands.
    Word(String),
    /// `*`, not escaped: every one. A name may be a `*` of its own, which then is escaped.
    Any,
}

fn chosen(path: &[Segment]) -> Chosen {
    let name = |at: usize| path.get(at).and_then(Segment::word).map(str::to_owned);
    Chosen { service: name(2), server: name(4) }
}

impl Segment {
    pub(super) fn word(&self) -> Option<&str> {
        match self {
            Segment::Word(word) => Some(word),
            Segment::Any => None,
        }
    }
}

/// The parts of a path, unescaped (RFC 3986 §2.1); `None` where it is damaged.
fn segments(path: &str) -> Option<Vec<Segment>> {
    let parts = path.strip_prefix('/')?.split('/');
    if parts.clone().count() > SEGMENTS_MAX {
        return None;
    }
    parts.map(|part| if part == "*" { Some(Segment::Any) } else { unescape(part).map(Segment::Word) }).collect()
}

pub(super) fn unescape(part: &str) -> Option<String> {
    let mut bytes = part.bytes();
    let mut plain = Vec::with_capacity(part.len());
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?].map(|digit| char::from(digit).to_digit(16));
                let [Some(high), Some(low)] = digits else { return None };
                (high * 16 + low) as u8
            }
            other => other,
        });
    }
    String::from_utf8(plain).ok()
}

/// One part of a path with everything escaped that is not unreserved.
pub(super) fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

/// The body of a request as JSON; without one, what `{}` says. A page of a browser cannot send JSON to another site without asking it first, so the type
/// is insisted on.
pub(super) async fn read_body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Answer> {
    read_body_of(request, BODY_BYTES_MAX).await
}

/// The same of one that may have so many bytes.
pub(super) async fn read_body_of<T: DeserializeOwned>(request: Request<Incoming>, max: usize) -> Result<T, Answer> {
    let (head, body) = request.into_parts();
    if !body.is_end_stream() && !is_json(&head.headers) {
        let message = "a body is JSON; send it with `Content-Type: application/json`";
        return Err(problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", message));
    }
    let bytes = match Limited::new(body, max).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            let message = format!("a body has at most {max} bytes");
            return Err(problem(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message));
        }
        Err(error) => return Err(problem(StatusCode::BAD_REQUEST, "bad_body", error.to_string())),
    };
    let text = if bytes.is_empty() { Bytes::from_static(b"{}") } else { bytes };
    // A list of no values would do for an object without required keys.
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(problem(StatusCode::BAD_REQUEST, "bad_body", "the body is no JSON object"));
    }
    serde_json::from_slice(&text).map_err(|error| problem(StatusCode::BAD_REQUEST, "bad_body", error.to_string()))
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) else { return false };
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_out_of_a_path_as_they_went_in() {
        for name in ["web", "front end", "a/b", "*", "größe", "100%", "..", "[2001:db8::1]:443"] {
            let path = format!("/v1/services/{}/servers/*", escape(name));
            let parts = segments(&path).unwrap();
            assert_eq!(parts[2], Segment::Word(name.to_owned()), "{path}");
            assert_eq!(chosen(&parts), Chosen { service: Some(name.to_owned()), server: None }, "{path}");
        }
    }

    #[test]
    fn damaged_paths_are_refused() {
        let long = format!("/{}", ["a"; SEGMENTS_MAX + 1].join("/"));
        for path in ["", "v1", "/%", "/%4", "/%zz", "/%+1", "/%ff", "/a%C3", &long] {
            assert_eq!(segments(path), None, "{path}");
        }
        assert_eq!(segments("/").unwrap(), [Segment::Word(String::new())]);
        assert_eq!(segments("/%2a/*").unwrap(), [Segment::Word("*".into()), Segment::Any]);
    }

    fn found(method: &Method, path: &str) -> Option<(Action, ControlRole)> {
        match find(method, &segments(path).unwrap()) {
            Found::Route(route) => Some((route.action, route.role)),
            Found::OtherMethod(_) | Found::Nothing => None,
        }
    }

    #[test]
    fn every_route_is_found_by_its_method_only() {
        for route in ROUTES {
            let path = route.path.replace("{}", "a%20b");
            assert_eq!(found(&route.method, &path), Some((route.action, route.role)), "{path}");
            let Found::OtherMethod(allowed) = find(&Method::DELETE, &segments(&path).unwrap()) else {
                panic!("{path}")
            };
            assert!(allowed.contains(route.method.as_str()), "{path}: {allowed}");
            assert!(
                found(&route.method, &format!("{path}/")).is_none()
                    && found(&route.method, &format!("{path}/x")).is_none()
            );
        }
        assert_eq!(found(&Method::HEAD, "/v1/status"), Some((Action::Status, ControlRole::Viewer)));
        assert_eq!(found(&Method::GET, "/v1/services/*/servers/*"), Some((Action::Servers, ControlRole::Viewer)));
        for path in [
            "/",
            "/*",
            "/v1/*",
            "/V1/status",
            "/v1//status",
            "/v1/services/a/servers",
            "/v1/services/a/servers/b/restart",
        ] {
            assert!(matches!(find(&Method::GET, &segments(path).unwrap()), Found::Nothing), "{path}");
        }
    }

    #[test]
    fn no_viewer_changes_anything_but_its_own_login() {
        for route in ROUTES {
            match route.method {
                // A plan is work for the machine.
                Method::GET if route.action == Action::Plan => assert_eq!(route.role, ControlRole::Operator),
                Method::GET => assert_eq!(route.role, ControlRole::Viewer, "{}", route.path),
                Method::POST => {
                    let is_own = route.action == Action::Logout;
                    assert!(is_own || route.role >= ControlRole::Operator, "{}", route.path);
                }
                _ => panic!("{} is neither GET nor POST", route.path),
            }
        }
        // That the traces are there is shown by tests/tests/audit.rs, with every route.
        for route in ROUTES {
            assert_eq!(route.method == Method::POST, route.action.trace().is_some(), "{}", route.path);
        }
        let paths: std::collections::BTreeSet<_> =
            ROUTES.iter().map(|route| (route.path, route.method.as_str())).collect();
        assert_eq!(paths.len(), ROUTES.len(), "each stands once");
    }
}
