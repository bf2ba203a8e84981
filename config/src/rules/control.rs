//! `[control]`: who may ask the daemon, and change it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::decode::{At, Section, Value};
use crate::diagnostic::{Report, Span};
use crate::draft::{Draft, DraftPorts};
use crate::model::{PASSWORD_ROUNDS, PasswordHash, Plane, Protocol, TokenHash};

/// `sockaddr_un.sun_path` with its closing zero.
const SOCKET_PATH_MAX: usize = 107;

/// Keys that mean nothing where nobody is answered but at the socket.
const OF_LISTENER: [&str; 9] = [
    "certificate",
    "client_ca",
    "client_crl",
    "from",
    "page",
    "private_key",
    "session_idle_timeout",
    "session_timeout",
    "user",
];
/// Keys that a user is known by.
const CREDENTIALS: [&str; 4] = ["certificate_name", "password_hash", "token_file", "token_hash"];

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    let Some(control) = draft.root.table("control") else { return };
    socket(control, report);
    let Some(listen) = control.entry("listen") else {
        if !control.broken.contains(&"listen") {
            without_listener(control, report);
        }
        return;
    };
    if let Value::Socket(address) = listen.value {
        listener(draft, control, &At { value: address, span: listen.at.clone(), written: true }, report);
    }
    users(control, report);
}

fn socket(control: &Section, report: &mut Report) {
    if let Some(socket) = control.text("socket")
        && socket.value.len() > SOCKET_PATH_MAX
    {
        report
            .error("too-long", &socket.span, format!("`control.socket` has {} bytes", socket.value.len()))
            .hint(format!("the kernel takes socket paths of at most {SOCKET_PATH_MAX} bytes"));
    }
    if let (Some(group), Some(socket)) = (control.written("group"), control.text("socket"))
        && socket.value == "none"
    {
        report
            .error("no-effect", group, "`control.group` has no effect without a control socket")
            .hint("remove it, or set `control.socket`");
    }
    if let (Some(state), Some(socket)) = (control.text("state_file"), control.text("socket"))
        && state.written
        && state.value != "none"
    {
        if socket.value == "none" {
            report
                .error("no-effect", &state.span, "`control.state_file` has no effect without a control socket")
                .hint("nothing can be said at run time then; remove it, or set `control.socket`");
        } else if state.value == socket.value {
            report
                .error("duplicate-path", &state.span, "`control.state_file` is the control socket")
                .hint("name another file, or remove the key");
        }
    }
}

fn without_listener(control: &Section, report: &mut Report) {
    for key in OF_LISTENER {
        if let Some(span) = control.written(key) {
            report
                .error(
                    "no-effect",
                    span,
                    format!("`control.{key}` has no effect: nobody is answered but at the socket"),
                )
                .hint("add `listen = \"127.0.0.1:9443\"`, or remove it");
        }
    }
}

fn listener(draft: &Draft<'_>, control: &Section, listen: &At<SocketAddr>, report: &mut Report) {
    let address = listen.value;
    if address.port() == 0 {
        report
            .error("bad-address", &listen.span, "`control.listen` names port 0")
            .hint("name a port from 1 to 65535, as in \"127.0.0.1:9443\"");
    }
    if address.ip().is_multicast() || address.ip() == IpAddr::from([255; 4]) {
        report
            .error("unusable-address", &listen.span, format!("`control.listen` is no address of a machine: {address}"))
            .hint("name an address of this machine, or \"0.0.0.0\" or \"[::]\" for all of them");
    }
    let is_there = |key| control.entry(key).is_some() || control.broken.contains(&key);
    if !is_there("certificate") {
        if !address.ip().to_canonical().is_loopback() {
            report
                .error(
                    "needs-tls",
                    &listen.span,
                    format!("`control.listen` {address} is no loopback address, and without a certificate whoever is on the way reads the passwords"),
                )
                .hint("add `certificate` and `private_key`, or use 127.0.0.1 or [::1]");
        }
        for key in ["client_ca", "client_crl", "private_key"] {
            if let Some(span) = control.written(key) {
                report
                    .error("missing-key", span, format!("`control.{key}` means nothing without `control.certificate`"))
                    .hint("add `certificate`, or remove it");
            }
        }
    }
    if let (Some(lists), true, false) = (control.written("client_crl"), is_there("certificate"), is_there("client_ca"))
    {
        report
            .error("missing-key", lists, "`control.client_crl` means nothing without `control.client_ca`")
            .hint("name the authorities that the lists are of, or remove it");
    }
    if let (Some(certificate), false) = (control.written("certificate"), is_there("private_key")) {
        report
            .error("missing-key", certificate, "`control.private_key` is missing")
            .hint("name the file with the private key; it may be the same file");
    }
    if let (Some(idle), Some(whole)) = (control.duration("session_idle_timeout"), control.duration("session_timeout"))
        && idle.value > whole.value
        && (idle.written || whole.written)
    {
        let (at, other) = if idle.written { (&idle, &whole) } else { (&whole, &idle) };
        let told = report.error(
            "conflicting-keys",
            &at.span,
            "a login cannot be idle for longer than it lasts: `session_idle_timeout` is longer than `session_timeout`",
        );
        if other.written {
            told.label(&other.span, "the other one");
        }
        told.hint("make `session_timeout` the longer one");
    }
    for service in &draft.services {
        let (Some(vip), Some(protocol), Some(DraftPorts::Set(ports))) =
            (&service.vip, &service.protocol, &service.ports)
        else {
            continue;
        };
        let same = vip.value == address.ip() || address.ip().is_unspecified();
        if let (true, Plane::Stream, Protocol::Tcp, Some(place)) =
            (same, service.plane.value, protocol.value, ports.value.place(address.port()))
        {
            report
                .error(
                    "duplicate-socket",
                    &listen.span,
                    format!(
                        "`control.listen` and service {} both listen on {}/tcp",
                        service.title(),
                        SocketAddr::new(vip.value, address.port())
                    ),
                )
                .label(place, "here as well")
                .hint("give the page another port");
        }
    }
}

fn users(control: &Section, report: &mut Report) {
    let users = control.tables("user");
    if let (true, false, Some(listen)) = (users.is_empty(), control.broken.contains(&"user"), control.written("listen"))
    {
        report
            .error("missing-key", listen, "`control.listen` has no users, and there are no default credentials")
            .hint("add a `[[control.user]]`; `towpath credential password` makes its `password_hash`");
    }
    for (key, what) in [("name", "users"), ("certificate_name", "certificates of users")] {
        let mut seen: HashMap<&str, Span> = HashMap::new();
        for name in users.iter().filter_map(|user| user.text(key)) {
            if let Some(first) = seen.get(name.value) {
                report
                    .error("duplicate-name", &name.span, format!("two {what} are named \"{}\"", name.value))
                    .label(first, "first here")
                    .hint("nobody could tell them apart; rename one of them");
            } else {
                seen.insert(name.value, name.span);
            }
        }
    }
    let mut passwords = 0;
    for user in users {
        credentials(control, user, report);
        passwords += usize::from(user.entry("password_hash").is_some() || user.broken.contains(&"password_hash"));
    }
    if let Some(page) = control.word("page")
        && page.written
        && page.value != "off"
        && passwords == 0
        && !users.is_empty()
    {
        report
            .error("no-effect", &page.span, "nobody can log in to the page: no user has a `password_hash`")
            .hint("give a user what `towpath credential password` prints, or write `page = \"off\"`");
    }
}

fn credentials(control: &Section, user: &Section, report: &mut Report) {
    let is_there = |key: &&str| user.entry(key).is_some() || user.broken.contains(key);
    let who = user.text("name").map(|name| format!(" \"{}\"", name.value)).unwrap_or_default();
    if !CREDENTIALS.iter().any(is_there) {
        report
            .error("missing-key", &user.span, format!("nothing tells who user{who} is"))
            .hint("add `password_hash`, `token_hash`, `token_file` or `certificate_name`");
    }
    if let Some(hash) = user.text("password_hash")
        && PasswordHash::read(hash.value).is_none()
    {
        report.error("bad-hash", &hash.span, "`password_hash` is no hash of a password").hint(format!(
            "write what `towpath credential password` prints: \"pbkdf2-sha512:ROUNDS:SALT:SUM\", with {} to {} rounds; never the password itself",
            PASSWORD_ROUNDS.start(),
            PASSWORD_ROUNDS.end()
        ));
    }
    if let Some(hash) = user.text("token_hash")
        && TokenHash::read(hash.value).is_none()
    {
        report.error("bad-hash", &hash.span, "`token_hash` is no hash of a token").hint(
            "write what `towpath credential token` prints: \"sha256:\" and 64 hexadecimal digits; never the token itself",
        );
    }
    if let (Some(file), Some(hash)) = (user.written("token_file"), user.written("token_hash")) {
        report
            .error("conflicting-keys", file, "a user has one token")
            .label(hash, "here is its hash already")
            .hint("remove one of them");
    }
    if let Some(name) = user.written("certificate_name")
        && control.entry("client_ca").is_none()
        && !control.broken.contains(&"client_ca")
    {
        report
            .error("missing-key", name, "no certificate of a user is trusted: `control.client_ca` is missing")
            .hint("name the authorities of users' certificates");
    }
}
