//! `health`: checks that can answer, and keys that do nothing.

use std::collections::HashSet;

use super::tls::{Wildcard, host_name};
use crate::decode::{PortSet, Section};
use crate::diagnostic::{Report, Span};
use crate::draft::{Draft, DraftPorts, Members, Service};
use crate::model::{CheckTransport, Forwarding, Protocol, RCODES, RadiusAnswer};

/// Ports of one check: each is a connection per server and interval.
const PORTS_MAX: usize = 64;

pub(super) fn judge(draft: &Draft<'_>, report: &mut Report) {
    let mut seen = HashSet::new();
    for section in
        draft.groups.iter().map(|group| group.section).chain(draft.services.iter().map(|service| service.section))
    {
        if let Some(health) = section.table("health")
            && seen.insert(health.span.start)
        {
            judge_one(health, report);
        }
    }
    for service in &draft.services {
        let Some(health) = draft.health(service) else { continue };
        evicted(draft, service, health, report);
        passive(service, health, report);
        let (Some(protocol), Some(check)) = (&service.protocol, health.word("check")) else { continue };
        let over_tcp = match check.value {
            "dns" | "sip" | "stun" => transport(health, check.value) != CheckTransport::Udp,
            value => matches!(value, "tcp" | "tls" | "http" | "https" | "smtp" | "ldap"),
        };
        if protocol.value == Protocol::Udp
            && over_tcp
            && health.entry("ports").is_none()
            && !health.broken.contains(&"ports")
        {
            report
                .error(
                    "udp-check",
                    &check.span,
                    format!(
                        "a UDP service needs a port for its \"{}\" check: nobody answers TCP on its own",
                        check.value
                    ),
                )
                .label(&protocol.span, format!("service {} is UDP", service.title()))
                .hint(match check.value {
                    "sip" => "add `transport = \"udp\"`, or `ports = [...]` with a TCP port of the server",
                    _ => "add `ports = [...]` with a TCP port of the server, or remove `health`",
                });
        }
    }
}

fn judge_one(health: &Section, report: &mut Report) {
    if let (Some(interval), Some(timeout)) = (health.duration("interval"), health.duration("timeout"))
        && timeout.value > interval.value
    {
        let (here, there, text) = if timeout.written || !interval.written {
            (&timeout.span, &interval.span, "the time between checks")
        } else {
            (&interval.span, &timeout.span, "the longer timeout")
        };
        report
            .warning(
                "slow-check",
                here,
                "a check may take longer than the time between checks: a silent server is found late",
            )
            .label(there, text)
            .hint("keep `timeout` below `interval`");
    }
    rhythm(health, report);
    if let Some(ports) = health.ports("ports")
        && PortSet::count(ports.value) > PORTS_MAX
    {
        report
            .error("too-many", &ports.span, format!("{} ports to check, at most {PORTS_MAX}", ports.value.count()))
            .hint("check the ports that tell most about the server");
    }
    request(health, report);
    agent(health, report);
    command(health, report);
    match health.word("check").map_or("", |check| check.value) {
        "dns" => dns(health, report),
        "ldap" => ldap(health, report),
        "radius" => radius(health, report),
        "sip" => sip(health, report),
        "stun" => transports(health, &["udp", "tcp"], report),
        "udp" => datagram(health, report),
        _ => {}
    }
    without_effect(health, report);
}

/// What a failing check takes away, of this service.
fn evicted(draft: &Draft<'_>, service: &Service<'_>, health: &Section, report: &mut Report) {
    let Some(evict) = health.word("evict").filter(|evict| evict.written) else { return };
    match (evict.value, &service.members) {
        ("group", Members::Own(_)) => {
            report
                .error("conflicting-keys", &evict.span, "`evict = \"group\"` is for servers of a `[[group]]`")
                .label(&service.section.span, format!("service {} has servers of its own", service.title()))
                .hint("use `evict = \"service\"`, or `\"server\"` for every service that has one with this address");
        }
        ("port", _) if health.word("check").is_some_and(|check| check.value == "ping") => {
            report
                .error("conflicting-keys", &evict.span, "an echo request asks no port, so none can be taken away")
                .hint("use `evict = \"service\"`, or a check that asks ports");
        }
        ("port", _) => each_port(draft, service, health, &evict.span, report),
        _ => {}
    }
}

/// Of ports that are judged each by itself clients come to every one, and there is one at least.
fn each_port(draft: &Draft<'_>, service: &Service<'_>, health: &Section, evict: &Span, report: &mut Report) {
    let keeps_port = draft.servers(service).iter().any(|server| server.port.is_none());
    let Some(ports) = health.ports("ports") else {
        let all = match &service.ports {
            Some(DraftPorts::All(span)) => Some(span),
            Some(DraftPorts::Set(set)) if PortSet::count(set.value) > PORTS_MAX => Some(&set.span),
            _ => None,
        };
        if let Some(all) = all.filter(|_| keeps_port) {
            report
                .error("too-many", evict, format!("each port is checked by itself, at most {PORTS_MAX} of them"))
                .label(all, format!("the ports of service {}", service.title()))
                .hint("name those that tell most about the server: `ports = [...]`");
        }
        return;
    };
    let served = |port: u16| {
        service.port(port).is_some() && keeps_port
            || draft.servers(service).iter().any(|server| server.port.as_ref().is_some_and(|own| own.value == port))
    };
    let stray = ports.value.ranges.iter().find(|range| (range.low..=range.high).any(|port| !served(port)));
    if let (Some(range), true) = (stray, service.ports.is_some()) {
        let port = (range.low..=range.high).find(|&port| !served(port)).unwrap_or(range.low);
        report
            .error(
                "conflicting-keys",
                &range.span,
                format!("port {port} takes nothing away: no client of service {} comes to it", service.title()),
            )
            .label(evict, "a failing port is left, the server stays")
            .hint("remove the port, or use `evict = \"service\"`");
    }
}

/// `passive`, of this service.
fn passive(service: &Service<'_>, health: &Section, report: &mut Report) {
    let Some(passive) = health.table("passive") else { return };
    if health.word("check").is_some_and(|check| check.value == "none") {
        report
            .error("conflicting-keys", &passive.span, "`health.passive` goes with a check, here is none")
            .hint("use `check = \"tcp\"`, or remove it");
        return;
    }
    if ["connect_failures", "server_errors"].iter().any(|key| passive.broken.contains(key)) {
        return;
    }
    let share = |key| passive.integer(key).filter(|share| share.value > 0);
    if let Some(errors) = share("server_errors").filter(|_| service.http.is_none()) {
        report
            .error("needs-http", &errors.span, "`server_errors` needs HTTP mode: else nobody reads the responses")
            .label(&service.section.span, format!("service {} relays bytes", service.title()))
            .hint("add `http = {}`, or remove it");
    }
    if let Some(protocol) = service.protocol.as_ref().filter(|protocol| protocol.value == Protocol::Udp) {
        report
            .error("conflicting-keys", &passive.span, "UDP tells nobody whether a server was reached")
            .label(&protocol.span, format!("service {} is UDP", service.title()))
            .hint("remove `passive`");
    } else if let Some(forwarding) = service.forwarding.as_ref().filter(|_| service.forwarding() == Forwarding::Dsr) {
        report
            .error("conflicting-keys", &passive.span, "`passive` needs the answers of servers, which pass Towpath by")
            .label(&forwarding.span, "direct server return")
            .hint("remove it: there only checks can tell");
    } else if share("server_errors").is_none() && share("connect_failures").is_none() {
        report
            .error("conflicting-keys", &passive.span, "`health.passive` looks at nothing")
            .hint("set `connect_failures` or `server_errors` above 0, or remove it");
    }
}

/// A verdict that changes is never looked at less often than one that stands.
fn rhythm(health: &Section, report: &mut Report) {
    if let (Some(fast), Some(interval)) = (health.duration("fast_interval"), health.duration("interval"))
        && fast.value > interval.value
    {
        report
            .error("bad-interval", &fast.span, "`health.fast_interval` is longer than the interval")
            .label(&interval.span, if interval.written { "the interval" } else { "the interval is 5 s" })
            .hint("keep it below `interval`, or remove it");
    }
}

/// Who says what beside the check.
fn agent(health: &Section, report: &mut Report) {
    if let (Some(send), None) = (health.written("agent_send"), health.entry("agent_port"))
        && !health.broken.contains(&"agent_port")
    {
        report.error("no-effect", send, "`health.agent_send` is said to nobody").hint("add `agent_port`, or remove it");
    }
    if let (Some(port), Some(check)) = (health.written("agent_port"), health.word("check"))
        && check.value == "none"
    {
        report
            .error("conflicting-keys", port, "an agent stands beside a check, and there is none")
            .label(&check.span, "no check")
            .hint("use `check = \"tcp\"`: an agent that has gone says nothing about its server");
    }
}

/// What is run.
fn command(health: &Section, report: &mut Report) {
    let Some(check) = health.word("check") else { return };
    if check.value == "external" && health.entry("command").is_none() && !health.broken.contains(&"command") {
        report
            .error("missing-key", &check.span, "an external check has nothing to run")
            .hint("add `command = [\"/usr/local/bin/check\"]`, with the program's whole path and its arguments");
    }
}

/// Spoken over what, by `health.transport` or as the protocol usually is.
pub(crate) fn transport(health: &Section, check: &str) -> CheckTransport {
    match health.word("transport").map(|word| word.value) {
        Some("tls") => CheckTransport::Tls,
        Some("udp") => CheckTransport::Udp,
        None if matches!(check, "dns" | "stun") => CheckTransport::Udp,
        _ => CheckTransport::Tcp,
    }
}

fn transports(health: &Section, allowed: &[&str], report: &mut Report) {
    if let (Some(check), Some(word)) = (health.word("check"), health.word("transport"))
        && !allowed.contains(&word.value)
    {
        let cause = format!("`check = \"{}\"` is not spoken over \"{}\"", check.value, word.value);
        let hint = allowed.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ");
        report.error("bad-transport", &word.span, cause).hint(format!("use {hint}"));
    }
}

/// A key that the check cannot do without.
fn needs(health: &Section, key: &str, why: &str, report: &mut Report) {
    if health.entry(key).is_none() && !health.broken.contains(&key) {
        report.error("missing-key", &health.span, format!("`health.{key}` is missing")).hint(why);
    }
}

fn dns(health: &Section, report: &mut Report) {
    transports(health, &["udp", "tcp"], report);
    needs(health, "query", "add `query = \"example.org\"`, a name that the server answers for", report);
    if let Some(query) = health.text("query") {
        let bare = query.value.strip_suffix('.').unwrap_or(query.value);
        let fits = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(|byte| byte.is_ascii_graphic());
        if query.value != "." && (bare.len() > 253 || !bare.split('.').all(fits)) {
            report
                .error("bad-name", &query.span, format!("`health.query` is no name of DNS: \"{}\"", query.value))
                .hint("labels of 1 to 63 ASCII signs with dots between them; names in other letters as `xn--...`");
        }
    }
    if let Some(rcode) = health.text("rcode")
        && rcodes(rcode.value).is_none()
    {
        let words = RCODES.map(|(word, _)| word).join(", ");
        report
            .error("bad-rcode", &rcode.span, format!("`health.rcode` names no answers of DNS: \"{}\"", rcode.value))
            .hint(format!("one or more of {words}"));
    }
}

fn ldap(health: &Section, report: &mut Report) {
    transports(health, &["tcp", "tls"], report);
    match (health.text("user"), health.text("secret_file")) {
        (Some(user), _) => {
            needs(health, "secret_file", "add the file with the user's password", report);
            if transport(health, "ldap") == CheckTransport::Tcp {
                report
                    .warning("clear-password", &user.span, "each check sends the password of this user in clear text")
                    .hint("add `transport = \"tls\"`, with the port of LDAP over TLS (636) in `ports`");
            }
        }
        (None, Some(secret)) => {
            report
                .error(
                    "no-effect",
                    &secret.span,
                    "`health.secret_file` has no effect: an anonymous bind has no password",
                )
                .hint("add `user`, or remove it");
        }
        (None, None) => {}
    }
    if transport(health, "ldap") != CheckTransport::Tls {
        without_tls(health, &["host", "verify", "ca", "days_left"], report);
    }
}

/// SIP has a use for its host without TLS, too.
fn sip(health: &Section, report: &mut Report) {
    if transport(health, "sip") != CheckTransport::Tls {
        without_tls(health, &["verify", "ca", "days_left"], report);
    }
}

fn without_tls(health: &Section, keys: &[&str], report: &mut Report) {
    for key in keys {
        if let Some(span) = health.written(key) {
            report
                .error("no-effect", span, format!("`health.{key}` has no effect without TLS"))
                .hint("add `transport = \"tls\"`, or remove it");
        }
    }
}

fn radius(health: &Section, report: &mut Report) {
    needs(health, "secret_file", "add the file with the secret that the server has for this machine", report);
    match (health.text("user"), health.text("password_file")) {
        (Some(_), _) => needs(health, "password_file", "add the file with the user's password", report),
        (None, Some(password)) => {
            report
                .error("no-effect", &password.span, "`health.password_file` has no effect without a user")
                .hint("add `user`, or remove it");
        }
        (None, None) => {}
    }
    if let Some(word) = health.word("message_authenticator").filter(|word| word.written)
        && health.text("user").is_none()
        && !health.broken.contains(&"user")
    {
        report
            .error(
                "no-effect",
                &word.span,
                "`health.message_authenticator` has no effect without a user: a status lets nobody in",
            )
            .hint("add `user` and `password_file`, or remove it");
    }
    if let Some(expect) = health.text("expect") {
        if radius_answer(expect.value).is_none() {
            let cause = format!("no answer of RADIUS: \"{}\"", expect.value);
            report.error("bad-answer", &expect.span, cause).hint("use \"accept\", \"reject\" or \"any\"");
        } else if health.text("user").is_none() {
            report
                .error("no-effect", &expect.span, "`health.expect` has no effect: a server's status is one answer only")
                .hint("add `user` and `password_file`, or remove it");
        }
    }
}

fn datagram(health: &Section, report: &mut Report) {
    for (plain, hex) in [("send", "send_hex"), ("expect", "expect_hex")] {
        let Some(written) = health.text(hex) else { continue };
        if hexadecimal(written.value).is_none() {
            report
                .error("bad-hex", &written.span, format!("`health.{hex}` is not hexadecimal: \"{}\"", written.value))
                .hint("two digits for each octet, as in `\"ff ff 00 10\"`");
        }
        if let Some(text) = health.text(plain) {
            report
                .error("conflicting-keys", &written.span, format!("`health.{hex}` says again what `{plain}` says"))
                .label(&text.span, "as text")
                .hint("keep one of the two");
        }
    }
}

/// The codes of a text like `noerror,nxdomain`.
pub(crate) fn rcodes(text: &str) -> Option<Vec<u8>> {
    let code =
        |word: &str| RCODES.iter().find(|(name, _)| word.trim().eq_ignore_ascii_case(name)).map(|(_, code)| *code);
    text.split(',').map(code).collect()
}

pub(crate) fn radius_answer(text: &str) -> Option<RadiusAnswer> {
    match text {
        "accept" => Some(RadiusAnswer::Accept),
        "any" => Some(RadiusAnswer::Any),
        "reject" => Some(RadiusAnswer::Reject),
        _ => None,
    }
}

/// The octets of a text like `ff 00 1a`.
pub(crate) fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.chars().filter(|sign| *sign != ' ').map(|sign| Some(sign.to_digit(16)? as u8)).collect::<Option<_>>()?;
    digits.len().is_multiple_of(2).then(|| digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// What is asked, and what has to come back.
fn request(health: &Section, report: &mut Report) {
    if let Some(path) = health.text("path")
        && !(path.value.starts_with('/') && path.value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'))
    {
        report
            .error("bad-path", &path.span, format!("`health.path` is no path of a request: \"{}\"", path.value))
            .hint("begin with `/`; write other signs than those of ASCII, spaces and `#` as `%20` and so on");
    }
    // RFC 3261 §21 has a class more than HTTP.
    let highest = if health.word("check").is_some_and(|check| check.value == "sip") { 699 } else { 599 };
    if let Some(status) = health.text("status")
        && statuses(status.value).is_none_or(|ranges| ranges.last().is_none_or(|&(_, high)| high > highest))
    {
        report
            .error("bad-status", &status.span, format!("`health.status` names no status codes: \"{}\"", status.value))
            .hint(format!("codes from 100 to {highest} and ranges of them, as in `\"200-399,401\"`"));
    }
    if let Some(host) = health.text("host") {
        host_name(&host, Wildcard::Refused, "health.host", report);
    }
    if let Some(expect) = health.text("expect")
        && let Some(method) = health.word("method").filter(|method| method.value == "HEAD")
    {
        report
            .error("conflicting-keys", &expect.span, "the answer to HEAD has no body that could contain it")
            .label(&method.span, "asked without a body")
            .hint("use `method = \"GET\"`");
    }
    if let Some(span) = health.written("ca")
        && health.bool("verify").is_some_and(|verify| !verify.value)
    {
        report
            .error("no-effect", span, "`health.ca` has no effect: the certificate is not checked")
            .hint("add `verify = true`, or remove it");
    }
}

/// The ranges of status codes in a text like `200-399,401`: ascending and apart.
pub(crate) fn statuses(text: &str) -> Option<Vec<(u16, u16)>> {
    let mut ranges = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let code = |text: &str| text.trim().parse().ok().filter(|code| (100..=699).contains(code));
        let (low, high): (u16, u16) = (code(low)?, code(high)?);
        if low > high {
            return None;
        }
        ranges.push((low, high));
    }
    ranges.sort_unstable();
    let mut apart: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
    for (low, high) in ranges {
        match apart.last_mut() {
            Some(last) if low <= last.1 + 1 => last.1 = last.1.max(high),
            _ => apart.push((low, high)),
        }
    }
    Some(apart)
}

/// Everything but `none`.
const RUNNING: [&str; 13] =
    ["dns", "external", "http", "https", "ldap", "ping", "radius", "sip", "smtp", "stun", "tcp", "tls", "udp"];

fn without_effect(health: &Section, report: &mut Report) {
    let Some(check) = health.word("check") else { return };
    for key in ["evict", "flaps", "flap_window", "flap_hold"] {
        if let Some(span) = health.written(key).filter(|_| check.value == "none") {
            report
                .error("no-effect", span, format!("`health.{key}` has no effect with `check = \"none\"`"))
                .hint("remove it");
        }
    }
    for key in ["flap_window", "flap_hold"] {
        if let Some(span) = health.written(key)
            && health.integer("flaps").is_some_and(|flaps| flaps.value == 0)
        {
            report
                .error("no-effect", span, format!("`health.{key}` has no effect: no server is held (`flaps = 0`)"))
                .hint("remove it");
        }
    }
    let fitting: [(&str, &[&str]); 27] = [
        ("command", &["external"]),
        ("days_left", &["https", "ldap", "sip", "tls"]),
        ("fast_interval", &RUNNING),
        ("method", &["http", "https"]),
        ("path", &["http", "https"]),
        ("host", &["http", "https", "ldap", "sip", "tls"]),
        ("status", &["http", "https", "sip"]),
        ("expect", &["dns", "http", "https", "ldap", "radius", "sip", "smtp", "udp"]),
        ("expect_hex", &["udp"]),
        ("verify", &["https", "ldap", "sip", "tls"]),
        ("ca", &["https", "ldap", "sip", "tls"]),
        ("secret_file", &["ldap", "radius"]),
        ("user", &["ldap", "radius"]),
        ("password_file", &["radius"]),
        ("message_authenticator", &["radius"]),
        ("transport", &["dns", "ldap", "sip", "stun"]),
        ("query", &["dns"]),
        ("query_type", &["dns"]),
        ("rcode", &["dns"]),
        ("send", &["udp"]),
        ("send_hex", &["udp"]),
        ("no_answer", &["udp"]),
        ("ports", &["dns", "external", "http", "https", "ldap", "radius", "sip", "smtp", "stun", "tcp", "tls", "udp"]),
        ("interval", &RUNNING),
        ("timeout", &RUNNING),
        ("rise", &RUNNING),
        ("fall", &RUNNING),
    ];
    for (key, fitting) in fitting {
        if let Some(span) = health.written(key)
            && !fitting.contains(&check.value)
        {
            report
                .error("no-effect", span, format!("`health.{key}` has no effect with `check = \"{}\"`", check.value))
                .hint(format!("remove it; it is for {}", listed(fitting)));
        }
    }
}

/// Kinds of checks for a hint.
fn listed(kinds: &[&str]) -> String {
    if kinds.len() == RUNNING.len() {
        return "checks that ask something".to_owned();
    }
    kinds.iter().map(|kind| format!("\"{kind}\"")).collect::<Vec<_>>().join(", ")
}
