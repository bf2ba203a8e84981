//! Who may come by `control.listen`, and as whom: users, tokens, certificates, and the logins of the page.
//!
//! A browser sends the cookie of a session, and a certificate, whoever has it ask. So whatever comes from another site is refused, and what a session
//! changes needs a word (`X-CSRF-Token`) that only our page knows.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::header::{
    AUTHORIZATION, COOKIE, HOST, HeaderMap, HeaderValue, ORIGIN, RETRY_AFTER, SET_COOKIE, WWW_AUTHENTICATE,
};
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use towpath_config::model::{ControlListen, ControlRole, ControlUser, Model, Page, PasswordHash};
use towpath_core::Now;
use towpath_tls::{
    CipherPolicy, ClientCertificates, ClientTrust, ContextError, FileError, Identity, IdentityError, MinVersion,
    Presented, Resumption, ServedIdentity, ServerContext, ServerSettings, load_authorities, load_revocations,
};

use super::answer::{Answer, json, problem};
use super::caller::{By, Caller, Who};
use super::credential::{
    PASSWORD_BYTES_MAX, TOKEN_BYTES_MAX, TOKEN_BYTES_MIN, draw_key, hash_token, hexadecimal, is_password, is_same,
    nobodys_hash, sha256,
};
use super::session::{Deed, Lifetime, Lines, Session, Sessions, Tried, Tries};
use crate::http_files::FileFault;
use crate::tls::{DatedFile, DatedKind, dates_of, identity_files, provider};

/// Passwords that are judged at the same time, a tenth of a second of a core each …
const JUDGED_MAX: usize = 1;
/// … and those that wait for it.
const WAITING_MAX: usize = 8;
/// Bytes of a file with a token.
const TOKEN_FILE_BYTES_MAX: u64 = TOKEN_BYTES_MAX as u64 + 2;
/// How the cookie is called. `__Host-` binds it to this host and to TLS (RFC 6265bis §4.1.3.2); without TLS browsers refuse that name.
const COOKIE_NAME: &str = "__Host-towpath";
const PLAIN_COOKIE_NAME: &str = "towpath";
/// The word that a mutation by a session has to bring.
const CSRF_HEADER: &str = "x-csrf-token";
/// What the page asks for by itself says so, and does not keep its session alive.
const BACKGROUND_HEADER: &str = "x-towpath-background";

/// How a connection came in by `control.listen`.
#[derive(Clone, Debug)]
pub(super) struct Visit {
    pub(super) address: IpAddr,
    pub(super) has_tls: bool,
    /// The certificate that was shown, and is good …
    pub(super) certificate: Option<Presented>,
    /// … as authorities with this sum say.
    pub(super) authorities: [u8; 32],
    /// Whether it has shown who it is: then it does not make room for others.
    pub(super) is_known: Arc<AtomicBool>,
}

/// Judges who comes by the network. Holds no lock while a password is judged.
pub(crate) struct Guard {
    inside: Mutex<Inside>,
    judged: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

struct Inside {
    access: Option<Arc<Access>>,
    sessions: Sessions,
    tries: Tries,
    lines: Lines,
}

/// `control.listen` with what its files say.
pub(crate) struct Access {
    page: Page,
    lifetime: Lifetime,
    users: Vec<User>,
    tls: Option<ServerContext>,
    identity: Option<Arc<Identity>>,
    /// The lists of what authorities of users have taken back. From its end on nobody comes in by a certificate.
    revocations: Option<DatedFile>,
    /// Sum over the authorities of users' certificates and what they have taken back: a certificate that others have vouched for is nobody's, and one that
    /// has come in before it was taken back has to come in again.
    authorities: [u8; 32],
    /// Networks that may come; empty = every one.
    from: Vec<(IpAddr, u8)>,
}

struct User {
    name: String,
    role: ControlRole,
    password: Option<PasswordHash>,
    token: Option<[u8; 32]>,
    certificate_name: Option<String>,
}

/// Why the files of `[control]` cannot be used: cause and next step.
#[derive(Debug, Error)]
pub enum AccessError {
    /// The listener's own certificate.
    #[error("control.certificate: {0}")]
    Certificate(#[source] Box<IdentityError>),
    /// The authorities of users' certificates.
    #[error("control.client_ca: {0}")]
    ClientCa(#[source] FileError),
    /// The lists of what these authorities have taken back.
    #[error("control.client_crl: {0}")]
    ClientCrl(#[source] FileError),
    /// What they say together.
    #[error("control.certificate: {0}")]
    Context(#[source] ContextError),
    /// Two users with one token.
    #[error(
        "control.user: {one} and {other} have the same token, and nobody could tell them apart; draw another (`towpath credential token`)"
    )]
    SameToken {
        /// One of them.
        one: String,
        /// And the other.
        other: String,
    },
    /// A file with a token.
    #[error("control.user: token_file {}: {why}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// `POST /v1/login`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LoginBody {
    user: String,
    password: String,
}

/// It takes no keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoKeys {}

/// Who is asking, as the page wants to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SessionView {
    user: String,
    role: ControlRole,
    page: Page,
    /// What a mutation has to bring in `X-CSRF-Token`; empty where it need not.
    csrf: String,
    /// Until the login ends if nothing is done, and at all; `None` where nobody has logged in.
    idle_seconds_left: Option<u64>,
    seconds_left: Option<u64>,
}

impl Access {
    /// Reads what `[control]` names; `None` without a listener.
    pub(crate) fn load(model: &Model) -> Result<Option<Access>, AccessError> {
        let Some(listen) = &model.control.listen else { return Ok(None) };
        let users = listen.users.iter().map(User::of).collect::<Result<Vec<_>, _>>()?;
        let mut by_token: HashMap<[u8; 32], &str> = HashMap::new();
        for user in &users {
            let Some(token) = user.token else { continue };
            if let Some(one) = by_token.insert(token, &user.name) {
                return Err(AccessError::SameToken { one: one.to_owned(), other: user.name.clone() });
            }
        }
        let identity = match &listen.certificate {
            None => None,
            Some(files) => {
                let identity = Identity::open(&identity_files(files), provider(model.tls.provider));
                Some(Arc::new(identity.map_err(|error| AccessError::Certificate(Box::new(error)))?))
            }
        };
        let tls = identity.as_ref().map(|identity| context(model, listen, identity)).transpose()?;
        let lifetime = Lifetime { idle_ms: listen.session_idle_ms, whole_ms: listen.session_ms };
        let (tls, authorities) = tls.unzip();
        let revocations = match &listen.client_crl {
            None => None,
            Some(path) => {
                let dates = dates_of(DatedKind::RevocationList, path).map_err(AccessError::ClientCrl)?;
                dates.map(|dates| DatedFile { kind: DatedKind::RevocationList, path: path.clone(), dates })
            }
        };
        Ok(Some(Access {
            page: listen.page,
            lifetime,
            users,
            tls,
            identity,
            revocations,
            authorities: authorities.unwrap_or_default(),
            from: listen.from.clone(),
        }))
    }

    /// With what handshakes are made; `None` = without TLS.
    pub(super) fn tls(&self) -> Option<&ServerContext> {
        self.tls.as_ref()
    }

    /// Who vouches for users' certificates now.
    pub(super) fn authorities(&self) -> [u8; 32] {
        self.authorities
    }

    /// Whether this address may come at all.
    pub(super) fn is_from(&self, address: IpAddr) -> bool {
        self.from.is_empty() || self.from.iter().any(|&(network, prefix)| holds(network, prefix, address))
    }

    /// When the lists of users' certificates that were taken back end, if there are any and they say so.
    pub(crate) fn revocations(&self) -> Option<&DatedFile> {
        self.revocations.as_ref()
    }

    /// The certificate of the listener.
    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.identity.as_deref()
    }
}

fn holds(network: IpAddr, prefix: u8, address: IpAddr) -> bool {
    match (network, address.to_canonical()) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            network.to_bits() & mask == address.to_bits() & mask
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            network.to_bits() & mask == address.to_bits() & mask
        }
        _ => false,
    }
}

/// With what handshakes are made, and the sum over who vouches for users.
fn context(
    model: &Model,
    listen: &ControlListen,
    identity: &Arc<Identity>,
) -> Result<(ServerContext, [u8; 32]), AccessError> {
    let mut vouching = Vec::new();
    let client_certificates = match &listen.client_ca {
        None => ClientCertificates::None,
        Some(path) => {
            let authorities = load_authorities(path).map_err(AccessError::ClientCa)?;
            let revocations = match &listen.client_crl {
                None => Vec::new(),
                Some(path) => load_revocations(path).map_err(AccessError::ClientCrl)?,
            };
            authorities.iter().for_each(|authority| vouching.extend(sha256(authority)));
            revocations.iter().for_each(|list| vouching.extend(sha256(list)));
            ClientCertificates::Request(ClientTrust { authorities, revocations })
        }
    };
    let settings = ServerSettings {
        service: "control.listen".to_owned(),
        provider: provider(model.tls.provider),
        identities: vec![ServedIdentity { identity: Arc::clone(identity), staple: None }],
        min_version: MinVersion::Tls12,
        ciphers: CipherPolicy::Intermediate,
        post_quantum: model.tls.post_quantum,
        alpn: vec![b"http/1.1".to_vec()],
        strict_sni: false,
        // Each handshake judges the certificate of a user anew.
        resumption: Resumption::Off,
        client_certificates,
    };
    let context = ServerContext::new(&settings, None).map_err(AccessError::Context)?;
    Ok((context, sha256(&vouching)))
}

/// What is wrong with the files of `[control]`, each with its key; certificate and revocation lists are judged with those of services
/// ([`crate::preflight::Certificates`]).
pub(crate) fn faults(model: &Model) -> Vec<FileFault> {
    let Some(listen) = &model.control.listen else { return Vec::new() };
    let mut faults = Vec::new();
    let mut tell = |file: &Path, error: AccessError| {
        faults.push(FileFault { service: None, file: file.to_path_buf(), message: error.to_string() });
    };
    if let Some((path, Err(error))) = listen.client_ca.as_deref().map(|path| (path, load_authorities(path))) {
        tell(path, AccessError::ClientCa(error));
    }
    for user in &listen.users {
        if let (Some(path), Err(error)) = (&user.token_file, User::of(user)) {
            tell(path, error);
        }
    }
    if faults.is_empty()
        && let Err(error @ (AccessError::SameToken { .. } | AccessError::Context(_))) = Access::load(model)
    {
        // No single file is wrong, only what they say together.
        let first = listen.users.iter().find_map(|user| user.token_file.clone());
        let file = match &error {
            AccessError::SameToken { .. } => first,
            _ => listen.certificate.as_ref().map(|files| files.file.clone()),
        };
        faults.push(FileFault { service: None, file: file.unwrap_or_default(), message: error.to_string() });
    }
    faults
}

/// Files with a token that every user of the machine may read.
pub(crate) fn exposed(model: &Model) -> impl Iterator<Item = &Path> {
    let is_exposed = |path: &&Path| fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o007 != 0);
    let users = model.control.listen.iter().flat_map(|listen| &listen.users);
    users.filter_map(|user| user.token_file.as_deref()).filter(is_exposed)
}

impl User {
    fn of(user: &ControlUser) -> Result<User, AccessError> {
        let token = match (&user.token, &user.token_file) {
            (Some(hash), _) => Some(hash.0),
            (None, Some(path)) => {
                let token = read_token(path).map_err(|why| AccessError::Token { path: path.clone(), why })?;
                Some(hash_token(&token).0)
            }
            (None, None) => None,
        };
        Ok(User {
            name: user.name.clone(),
            role: user.role,
            password: user.password.clone(),
            token,
            certificate_name: user.certificate_name.clone(),
        })
    }

    /// What a session of this user stands on: with another password it is over.
    fn known_by(&self) -> [u8; 32] {
        self.password.as_ref().map_or([0; 32], |hash| sha256(hash.written().as_bytes()))
    }
}

/// The token in a file: its only line.
pub(super) fn read_token(path: &Path) -> Result<String, String> {
    let told = |error: io::Error| {
        let text = error.to_string();
        format!("{}; check the path", text.split(" (os error").next().unwrap_or_default().to_lowercase())
    };
    let mut token = String::new();
    let file = File::open(path).map_err(told)?;
    file.take(TOKEN_FILE_BYTES_MAX).read_to_string(&mut token).map_err(told)?;
    let token = token.trim();
    if token.len() < TOKEN_BYTES_MIN || token.len() > TOKEN_BYTES_MAX || !is_token(token) {
        return Err(format!(
            "it is no token: one word of ASCII with {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} characters is; `towpath credential token` draws one"
        ));
    }
    Ok(token.to_owned())
}

fn is_token(token: &str) -> bool {
    token.bytes().all(|byte| byte.is_ascii_graphic())
}

impl Guard {
    pub(crate) fn new(access: Option<Access>) -> Guard {
        let inside = Inside {
            access: access.map(Arc::new),
            sessions: Sessions::default(),
            tries: Tries::default(),
            lines: Lines::default(),
        };
        Guard {
            inside: Mutex::new(inside),
            judged: Arc::new(Semaphore::new(JUDGED_MAX)),
            waiting: Arc::new(Semaphore::new(JUDGED_MAX + WAITING_MAX)),
        }
    }

    /// Judges by these from now on. Sessions of users who stay go on.
    pub(crate) fn follow(&self, access: Option<Access>) {
        self.inside().access = access.map(Arc::new);
    }

    pub(crate) fn access(&self) -> Option<Arc<Access>> {
        self.inside().access.clone()
    }

    /// Logins that are open, and how many may be.
    pub(crate) fn sessions(&self) -> (usize, usize) {
        (self.inside().sessions.count(), super::session::SESSIONS_MAX)
    }

    /// What the page does.
    pub(super) fn page(&self) -> Page {
        self.access().map_or(Page::Off, |access| access.page)
    }

    /// Tells of what a stranger has tried, as long as there are not too many of them.
    pub(super) fn tell(&self, now: Now, what: impl fmt::Display) {
        match self.inside().lines.may(now) {
            None => {}
            Some(0) => tracing::warn!("control.listen: {what}"),
            Some(more) => tracing::warn!("control.listen: {what} ({more} more like this were left out before)"),
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who sends these headers. A token goes before a session, and that before a certificate; a wrong one is not passed over.
    pub(super) fn admit(&self, headers: &HeaderMap, visit: &Visit, now: Now) -> Result<Caller, Box<Answer>> {
        let mut inside = self.inside();
        let Inside { access, sessions, lines, tries: _ } = &mut *inside;
        let Some(access) = access else { return Err(foreign().into()) };
        let caller = |user: &User, by| Caller {
            role: user.role,
            who: Who::User { name: user.name.clone(), address: visit.address, by },
        };
        if headers.contains_key(AUTHORIZATION) {
            let user = bearer(headers).and_then(|token| access.of_token(token));
            return user.map(|user| caller(user, By::Token)).ok_or_else(|| {
                if let Some(more) = lines.may(now) {
                    let more = if more > 0 { format!(" ({more} more before)") } else { String::new() };
                    tracing::warn!("control.listen: a wrong token from {}{more}", visit.address);
                }
                unknown(
                    "bad_token",
                    "nobody has this token; is it `Authorization: Bearer TOKEN`, with a token of control.user?",
                )
                .into()
            });
        }
        if access.page != Page::Off
            && let Some(key) = cookie(headers, visit)
        {
            let key = sha256(key.as_bytes());
            let deed = if headers.contains_key(BACKGROUND_HEADER) { Deed::Background } else { Deed::OfUser };
            let session = sessions.find(&key, access.lifetime, deed, now);
            let user = session.and_then(|session| access.of_session(session));
            if user.is_none() {
                sessions.close(&key);
            }
            // Its certificate says who it is, even when the login is over.
            match (user, access.of_certificate(visit)) {
                (Some(user), _) => return Ok(caller(user, By::Session(key))),
                (None, Some(user)) => return Ok(caller(user, By::Certificate)),
                (None, None) => return Err(unknown("session_over", "this login is over; log in again").into()),
            }
        }
        let by_certificate = access.of_certificate(visit).map(|user| caller(user, By::Certificate));
        by_certificate.ok_or_else(|| {
            unknown(
                "no_session",
                "who is asking? Log in, or send `Authorization: Bearer TOKEN` or a client certificate",
            )
            .into()
        })
    }

    /// Whether a session may change anything with these headers.
    pub(super) fn judge_mutation(&self, headers: &HeaderMap, caller: &Caller, now: Now) -> Result<(), Box<Answer>> {
        let Some(key) = caller.session() else { return Ok(()) };
        let mut inside = self.inside();
        let Inside { access: Some(access), sessions, .. } = &mut *inside else { return Err(foreign().into()) };
        let session = sessions.find(&key, access.lifetime, Deed::OfUser, now);
        let said = one(headers, CSRF_HEADER).unwrap_or_default();
        match session {
            Some(session) if is_same(said.as_bytes(), session.csrf.as_bytes()) => Ok(()),
            _ => Err(Box::new(problem(
                StatusCode::FORBIDDEN,
                "bad_csrf",
                "a change by the page needs the word of GET /v1/session in the header X-CSRF-Token; load the page again",
            ))),
        }
    }

    /// Logs somebody in.
    pub(super) async fn log_in(&self, body: LoginBody, visit: &Visit, clock: impl Fn() -> Now) -> Answer {
        let LoginBody { user: name, password } = body;
        let Some(access) = self.access() else { return foreign() };
        // Whoever waits here holds a place, which are few; the others hear so at once.
        let Ok(waiting) = Arc::clone(&self.waiting).try_acquire_owned() else { return too_many(1) };
        let sum = sha256(name.as_bytes());
        let tried = {
            let mut inside = self.inside();
            let wait_ms = inside.tries.wait_ms(visit.address, sum, clock());
            if wait_ms > 0 {
                return too_many(wait_ms.div_ceil(1000));
            }
            inside.tries.note(visit.address, sum, clock())
        };
        let Ok(judged) = Arc::clone(&self.judged).acquire_owned().await else { return too_many(1) };
        let user = access.users.iter().find(|user| user.name == name);
        let hash = user.and_then(|user| user.password.clone());
        let is_known = hash.is_some();
        let rounds = access.users.iter().find_map(|user| Some(user.password.as_ref()?.rounds));
        let hash = hash.unwrap_or_else(|| nobodys_hash(rounds));
        let is_right = password.len() <= PASSWORD_BYTES_MAX
            && spawn_blocking(move || {
                // Until it is judged, also when its client has gone.
                let _places = (judged, waiting);
                is_password(&hash, &password)
            })
            .await
            .unwrap_or(false);
        let shown: String = name.chars().filter(|character| !character.is_control()).take(64).collect();
        let (true, true, Some(user)) = (is_known, is_right, user) else {
            let more = if tried == Tried::FirstWait { "; more of them have to wait from now on" } else { "" };
            self.tell(clock(), format_args!("a wrong password for \"{shown}\" from {}{more}", visit.address));
            return unknown("bad_login", "no such user and password");
        };
        let (Ok(key), Ok(csrf)) = (draw_key(), draw_key()) else {
            return problem(StatusCode::SERVICE_UNAVAILABLE, "no_randomness", "the system gives no random numbers");
        };
        let (key, csrf) = (hexadecimal(&key), hexadecimal(&csrf));
        let (kept, now) = (sha256(key.as_bytes()), clock());
        {
            let mut inside = self.inside();
            inside.tries.forgive(visit.address, sum);
            inside.sessions.open(kept, user.name.clone(), user.known_by(), csrf, now);
        }
        tracing::info!("control.listen: {} ({}) has logged in as {}", user.name, visit.address, user.role.word());
        let who = Who::User { name: user.name.clone(), address: visit.address, by: By::Session(kept) };
        let mut answer = json(StatusCode::OK, &self.view(&Caller { role: user.role, who }, now));
        set_cookie(&mut answer, visit, &key, None);
        answer
    }

    /// Ends a login; whoever has none has none afterwards.
    pub(super) fn log_out(&self, caller: &Caller, visit: &Visit) -> Answer {
        if let Some(key) = caller.session() {
            self.inside().sessions.close(&key);
            tracing::info!("control.listen: {caller} has logged out");
        }
        let mut answer = json(StatusCode::OK, &serde_json::json!({}));
        set_cookie(&mut answer, visit, "", Some(0));
        answer
    }

    /// Who is asking.
    pub(super) fn view(&self, caller: &Caller, now: Now) -> SessionView {
        let mut inside = self.inside();
        let Inside { access, sessions, .. } = &mut *inside;
        let page = access.as_ref().map_or(Page::Off, |access| access.page);
        let lifetime = access.as_ref().map(|access| access.lifetime);
        let session = match (caller.session(), lifetime) {
            (Some(key), Some(lifetime)) => {
                sessions.find(&key, lifetime, Deed::Background, now).map(|session| (session, lifetime))
            }
            _ => None,
        };
        SessionView {
            user: caller.name(),
            role: caller.role,
            page,
            csrf: session.map_or_else(String::new, |(session, _)| session.csrf.clone()),
            idle_seconds_left: session.map(|(session, lifetime)| session.idle_left_ms(lifetime, now) / 1000),
            seconds_left: session.map(|(session, lifetime)| session.left_ms(lifetime, now) / 1000),
        }
    }
}

impl Access {
    fn of_token(&self, token: &str) -> Option<&User> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let hash = hash_token(token);
        self.users.iter().find(|user| user.token.is_some_and(|token| is_same(&token, &hash.0)))
    }

    fn of_session(&self, session: &Session) -> Option<&User> {
        let user = self.users.iter().find(|user| user.name == session.user)?;
        (user.password.is_some() && user.known_by() == session.known_by).then_some(user)
    }

    fn of_certificate(&self, visit: &Visit) -> Option<&User> {
        // A connection may be older than who vouches now.
        let certificate = visit.certificate.as_ref().filter(|_| visit.authorities == self.authorities);
        let Presented { names, common_name, .. } = certificate?;
        let names: Vec<&str> = names.iter().chain(common_name).map(String::as_str).collect();
        self.users.iter().find(|user| user.certificate_name.as_deref().is_some_and(|name| names.contains(&name)))
    }
}

/// Whether a browser had to ask us for the sake of another site (Fetch Metadata, <https://www.w3.org/TR/fetch-metadata/>; `Origin`, RFC 6454 §7). What
/// is no browser sends neither.
pub(super) fn is_of_other_site(headers: &HeaderMap, visit: &Visit) -> bool {
    let by_fetch = headers.contains_key("sec-fetch-site")
        && !matches!(one(headers, "sec-fetch-site"), Some("same-origin" | "none"));
    let by_origin = headers.contains_key(ORIGIN) && {
        let host = one(headers, HOST.as_str());
        // On loopback a proxy may end TLS for us.
        let schemes = if visit.has_tls { &["https"][..] } else { &["http", "https"] };
        match (one(headers, ORIGIN.as_str()), host) {
            (Some(origin), Some(host)) => {
                !schemes.iter().any(|scheme| origin.eq_ignore_ascii_case(&format!("{scheme}://{host}")))
            }
            _ => true,
        }
    };
    by_fetch || by_origin
}

/// What another site gets.
pub(super) fn refuse_other_site() -> Answer {
    problem(StatusCode::FORBIDDEN, "cross_site", "this came from the page of another site; open our own page")
}

/// Whether this method only looks (RFC 9110 §9.2.1).
pub(super) fn only_looks(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// The only header of that name.
fn one<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let mut all = headers.get_all(name).iter();
    let first = all.next()?.to_str().ok()?;
    all.next().is_none().then_some(first)
}

/// The token of `Authorization: Bearer` (RFC 6750 §2.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = one(headers, AUTHORIZATION.as_str())?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && is_token(token)).then_some(token)
}

/// The key of a session. Of two, one may have been put there by somebody else: neither counts.
fn cookie<'h>(headers: &'h HeaderMap, visit: &Visit) -> Option<&'h str> {
    let name = cookie_name(visit);
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut keys = lines.flat_map(|line| line.split(';')).filter_map(|pair| {
        let (key, value) = pair.trim().split_once('=')?;
        (key == name).then_some(value)
    });
    let first = keys.next()?;
    keys.next().is_none().then_some(first)
}

fn cookie_name(visit: &Visit) -> &'static str {
    if visit.has_tls { COOKIE_NAME } else { PLAIN_COOKIE_NAME }
}

/// No script reads it, no other site has it sent, and it goes with the browser.
fn set_cookie(answer: &mut Answer, visit: &Visit, key: &str, age_s: Option<u32>) {
    let secure = if visit.has_tls { "; Secure" } else { "" };
    let age = age_s.map_or_else(String::new, |age| format!("; Max-Age={age}"));
    let cookie = format!("{}={key}; Path=/; HttpOnly; SameSite=Strict{secure}{age}", cookie_name(visit));
    if let Ok(cookie) = HeaderValue::try_from(cookie) {
        answer.headers_mut().insert(SET_COOKIE, cookie);
    }
}

fn unknown(code: &'static str, message: &str) -> Answer {
    let mut answer = problem(StatusCode::UNAUTHORIZED, code, message);
    answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"towpath\""));
    answer
}

fn foreign() -> Answer {
    unknown("no_session", "nobody may come this way")
}

fn too_many(wait_s: u64) -> Answer {
    let message = format!("too many tries; the next one is heard in {wait_s} s");
    let mut answer = problem(StatusCode::TOO_MANY_REQUESTS, "too_many_logins", message);
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait_s));
    answer
}

#[cfg(test)]
mod tests;
