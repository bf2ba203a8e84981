//! `towpath status`: what a running towpath does, asked over its Unix socket or by its `control.listen`.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use ratatui::crossterm;
use towpath_config::schema::{self, Kind};
use towpath_engine::events::Event;
use towpath_engine::shared::RingCounter;
use towpath_engine::status::{
    AccessLogStatus, CertificateStatus, HandshakePoolStatus, HealthStatus, NotifyStatus, OutboundStatus, ServerStatus,
    ServiceState, ServiceStatus, SourcePortsStatus, Status, TakenOverStatus, Usage, WorkerStatus,
};
use towpath_engine::{FetchError, fetch_status};

use crate::cli::{Exit, StatusArguments};
use crate::paint::{Paint, Tint, moves_cursor};
use crate::server::shown::{self, admin_line, weight_line};
use crate::table::{Cell, Table, counted, span, thousands};

/// Source addresses shown, the fullest first.
const SOURCE_PORTS_SHOWN: usize = 20;
/// Certificates that end within so many seconds stand out.
const CERTIFICATE_NEAR_S: u64 = 30 * 86_400;
/// Changes of state shown, the latest last.
const EVENTS_SHOWN: usize = 8;

/// Where a daemon answers unless its file says otherwise: the default of `control.socket`.
pub(crate) fn default_socket() -> PathBuf {
    let Some(Kind::Table(control)) = schema::ROOT.key("control").map(|key| key.kind) else { return PathBuf::new() };
    match control.key("socket").map(|key| key.default) {
        Some(schema::Default::Value(path)) => PathBuf::from(path),
        _ => PathBuf::new(),
    }
}

/// Asks and prints, once or again and again.
pub(crate) fn status(arguments: &StatusArguments) -> Result<Exit> {
    match arguments.watch {
        None => once(arguments),
        Some(seconds) => watch(arguments, Duration::from_secs(seconds.into())),
    }
}

fn once(arguments: &StatusArguments) -> Result<Exit> {
    let status = match fetch_status(&arguments.daemon.endpoint()?) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(exit_of(&error));
        }
    };
    let stdout = io::stdout();
    let paint = Paint::on(&stdout);
    let mut out = stdout.lock();
    if arguments.daemon.json {
        serde_json::to_writer_pretty(&mut out, &status)?;
        writeln!(out)?;
    } else {
        out.write_all(render(&status, shown::unix_ms(), paint).as_bytes())?;
    }
    Ok(Exit::Done)
}

/// Shows it anew until a signal ends it. A daemon that does not answer may be there again the next time: that is said in its place.
fn watch(arguments: &StatusArguments, interval: Duration) -> Result<Exit> {
    let stdout = io::stdout();
    let paint = Paint::on(&stdout);
    let in_place = stdout.is_terminal() && moves_cursor();
    let mut out = stdout.lock();
    let endpoint = arguments.daemon.endpoint()?;
    loop {
        // Anew each time: windows are made larger and smaller.
        let size = if in_place { crossterm::terminal::size().ok() } else { None };
        let lines_max = size.map(|(_columns, lines)| usize::from(lines));
        let fetched = fetch_status(&endpoint);
        match (&fetched, arguments.daemon.json) {
            (Ok(status), true) => {
                serde_json::to_writer(&mut out, status)?;
                writeln!(out)?;
            }
            (Ok(status), false) => {
                out.write_all(frame(&render(status, shown::unix_ms(), paint), lines_max).as_bytes())?;
            }
            // Whoever reads JSON reads nothing else.
            (Err(error), true) => eprintln!("error: {error}"),
            (Err(error), false) => {
                let text = format!("{}: {error}\n", paint.tint(Tint::Red, "error"));
                out.write_all(frame(&text, lines_max).as_bytes())?;
            }
        }
        out.flush()?;
        thread::sleep(interval);
    }
}

/// A page in the place of the one before, or below it where nothing can be drawn anew. Each line is cleared behind its end and then all below the last,
/// so that nothing flickers.
fn frame(page: &str, lines_max: Option<usize>) -> String {
    let Some(lines_max) = lines_max else { return format!("{page}\n") };
    let lines: Vec<&str> = page.lines().collect();
    // A page that is too long would push its own beginning out; the last line has no end, which would scroll.
    let shown = match lines.len() >= lines_max {
        true => lines_max.saturating_sub(1),
        false => lines.len(),
    };
    let mut text: String = lines[..shown].iter().map(|line| format!("{line}\x1b[K\r\n")).collect();
    if shown < lines.len() {
        text.push_str(&format!("… {} more lines: `towpath status | less`, `towpath top`\x1b[K", lines.len() - shown));
    }
    // Lines that are too wide are cut for as long: wrapped ones would be more than are counted.
    format!("\x1b[?7l\x1b[H{text}\x1b[J\x1b[?7h")
}

/// How a command ends that got no answer.
pub(crate) fn exit_of(error: &FetchError) -> Exit {
    match error {
        FetchError::Answer { .. } | FetchError::Malformed { .. } | FetchError::Refused { .. } => Exit::Failed,
        FetchError::NotReachable { .. } | FetchError::NotTrusted { .. } => Exit::Unreachable,
        FetchError::TimedOut { .. } => Exit::TimedOut,
    }
}

/// From whom this process has taken over, and what is left there.
fn taken_over(TakenOverStatus { pid, version, at_unix_ms, finishing }: &TakenOverStatus, unix_ms: u64) -> String {
    let rest = match finishing {
        None => "it has ended".to_owned(),
        Some(0) => "it is about to end".to_owned(),
        Some(1) => "1 connection finishes there".to_owned(),
        Some(open) => format!("{} finish there", counted(usize::try_from(*open).unwrap_or(usize::MAX), "connection")),
    };
    format!("taken over from process {pid} ({version}) {} ago; {rest}\n", span(unix_ms.saturating_sub(*at_unix_ms)))
}

/// The whole page. `unix_ms` is the time now, which events are counted from.
pub(crate) fn render(status: &Status, unix_ms: u64, paint: Paint) -> String {
    let phase = match status.phase.as_str() {
        "running" => paint.tint(Tint::Green, "running"),
        other => paint.tint(Tint::Yellow, other),
    };
    let role = match status.role.as_str() {
        "standby" => format!(" · {}", paint.tint(Tint::Yellow, "standby for another machine")),
        _ => String::new(),
    };
    let mut text = format!(
        "towpath {} · {phase} for {}{role} · generation {}\n",
        status.version,
        span(status.uptime_seconds.saturating_mul(1000)),
        status.generation
    );
    if let Some(before) = &status.taken_over {
        text.push_str(&taken_over(before, unix_ms));
    }
    for service in &status.services {
        text.push('\n');
        text.push_str(&render_service(service, unix_ms, paint));
    }
    let mut section = |heading: &str, body: String| {
        if !body.is_empty() {
            text.push_str(&format!("\n{}\n{body}", paint.tint(Tint::Bold, heading)));
        }
    };
    section("opened from inside", outbound(&status.outbound, paint));
    section("removed servers that still hold connections", leaving(status, paint));
    section("source ports", source_ports(&status.source_ports, paint));
    section("workers", workers(&status.workers, paint));
    section("handshakes", handshakes(status.handshake_pool.as_ref(), paint));
    section("lost frames", losses(&status.workers, paint));
    section("dropped frames", drops(&status.workers, paint));
    section("access log", access_log(status.access_log.as_ref(), paint));
    section("who is told of events", notify(&status.notify, paint));
    section("limits", limits(status, paint));
    section("latest changes", events(&status.events, unix_ms, paint));
    text
}

fn render_service(service: &ServiceStatus, unix_ms: u64, paint: Paint) -> String {
    let state = match service.state {
        ServiceState::Down => paint.tint(Tint::Red, "○ down"),
        ServiceState::Degraded => paint.tint(Tint::Yellow, "◐ degraded"),
        ServiceState::Up => paint.tint(Tint::Green, "● up"),
    };
    let persistence = service.persistence_ms.map(|ms| format!(", clients return for {}", span(ms))).unwrap_or_default();
    let mut text = format!(
        "{}  {state}  {} {} {} · {}{persistence}\n",
        paint.tint(Tint::Bold, &service.name),
        service.vip,
        service.protocol,
        ports(&service.ports),
        service.balance
    );
    let mut table = Table::new([
        Cell::word("server"),
        Cell::word("address"),
        Cell::figure("weight"),
        Cell::word("admin"),
        Cell::word("health"),
        Cell::figure("for"),
        Cell::figure("open"),
        Cell::figure("max"),
        Cell::figure("opened"),
        Cell::word("reason"),
    ]);
    for server in &service.servers {
        table.row(server_row(server));
    }
    text.push_str(&table.render(2, paint));
    for server in &service.servers {
        let admin = server.admin_said.as_ref().map(|said| admin_line(&server.admin, said, unix_ms));
        let weight = server.weight_said.as_ref().map(|said| weight_line(said, unix_ms));
        for line in [admin, weight].into_iter().flatten() {
            text.push_str(&format!("  {}: {line}\n", server.name));
        }
    }
    text.push_str(&format!("  {}\n", traffic(service)));
    if let Some(queue) = queue(service) {
        text.push_str(&format!("  {queue}\n"));
    }
    if let Some(requests) = requests(service) {
        text.push_str(&format!("  {requests}\n"));
    }
    if let Some(shared) = shared(service) {
        text.push_str(&format!("  {shared}\n"));
    }
    let refused = [
        ("requests", &service.refused_requests),
        ("responses", &service.refused_responses),
        ("streams", &service.refused_streams),
    ];
    for (what, reasons) in refused {
        let reasons: Vec<String> = counts(reasons.iter().map(|(label, &count)| (label.as_str(), count)));
        if !reasons.is_empty() {
            text.push_str(&format!("  refused {what}: {}\n", reasons.join(" · ")));
        }
    }
    let ended: Vec<String> = counts(service.terminations.iter().map(|(label, &count)| (label.as_str(), count)));
    for certificate in &service.certificates {
        text.push_str(&format!("  certificate {}\n", certificate_line(certificate, paint)));
    }
    if !ended.is_empty() {
        text.push_str(&format!("  ended: {}\n", ended.join(" · ")));
    }
    text
}

/// Who waits for a place, and what became of those who did; `None` where nobody may.
fn queue(service: &ServiceStatus) -> Option<String> {
    let queue = service.queue.as_ref()?;
    let counter = |label: &str| service.counters.get(label).copied().unwrap_or(0);
    let ended = |label: &str| service.terminations.get(label).copied().unwrap_or(0);
    let longest = match queue.waiting {
        0 => String::new(),
        _ => format!(", the first for {}", span(queue.longest_ms)),
    };
    let served = counter("queue_served");
    let mean = counter("queue_waited_milliseconds").checked_div(served);
    let shown = [
        ("waited", counter("queued")),
        ("served", served),
        ("timed out", ended("queue_timed_out")),
        ("left", ended("queue_left")),
        ("found it full", ended("queue_full")),
    ];
    let waiting = format!("{} of {} wait{longest}", thousands(queue.waiting as u64), thousands(queue.max.into()));
    let mean = mean.map(|ms| format!("{} on average", span(ms)));
    let parts = std::iter::once(waiting).chain(counts(shown.into_iter())).chain(mean);
    Some(format!("queue: {}", parts.collect::<Vec<_>>().join(" · ")))
}

/// What HTTP mode has counted; `None` where no request has come.
fn requests(service: &ServiceStatus) -> Option<String> {
    let counter = |label: &str| service.counters.get(label).copied().unwrap_or(0);
    let shown = [
        ("requests", "requests"),
        ("2xx", "responses_2xx"),
        ("3xx", "responses_3xx"),
        ("4xx", "responses_4xx"),
        ("5xx", "responses_5xx"),
        ("answered here", "answered"),
        ("denied", "denied"),
        ("unserved", "unserved"),
        ("tunnels", "tunnels"),
    ];
    let shown: Vec<(&str, u64)> = shown.map(|(word, label)| (word, counter(label))).into();
    let any = shown.iter().any(|(_, count)| *count > 0);
    any.then(|| counts(shown.into_iter()).join(" · "))
}

/// What has become of connections that clients share; `None` where they share none.
fn shared(service: &ServiceStatus) -> Option<String> {
    let counter = |label: &str| service.counters.get(label).copied().unwrap_or(0);
    let waiting = service.servers.iter().map(|server| u64::from(server.waiting)).sum();
    let shown = [
        ("wait", waiting),
        ("reused", counter("server_reused")),
        ("dialled", counter("server_dialled")),
        ("sent again", counter("resent")),
        ("ended by servers", counter("server_idle_ended")),
        ("timed out", counter("server_idle_timed_out")),
        ("no room", counter("server_idle_refused")),
        ("retired", counter("server_idle_retired")),
    ];
    let any = waiting > 0 || counter("server_reused") > 0;
    any.then(|| format!("shared connections: {}", counts(shown.into_iter()).join(" · ")))
}

fn server_row(server: &ServerStatus) -> [Cell; 10] {
    let address = match server.port {
        Some(port) => std::net::SocketAddr::new(server.address, port).to_string(),
        None => server.address.to_string(),
    };
    let admin = match server.admin.as_str() {
        "ready" => Cell::word("ready"),
        other => Cell::word(other).tinted(Tint::Yellow),
    };
    [
        Cell::word(&server.name),
        Cell::word(address),
        Cell::figure(server.weight),
        admin,
        Cell::lamp(health_word(server.health)),
        Cell::figure(span(server.health_seconds.saturating_mul(1000))),
        Cell::figure(thousands(server.connections.into())),
        Cell::figure(maximum(server.connections_max)),
        Cell::figure(thousands(server.opened)),
        Cell::word(match &server.agent {
            Some(agent) => format!("{}; agent: {agent}", standing(server)),
            None => standing(server),
        }),
    ]
}

/// Why its health is as it is, behind what part it has in the service if that is not the usual one.
fn standing(server: &ServerStatus) -> String {
    let part = match server.duty.as_str() {
        "backup" => "serves as backup",
        "standby" => "stands by",
        "fail-open" => "used although it is not up",
        _ => return server.reason.clone(),
    };
    format!("{part}: {}", server.reason)
}

/// The word for a verdict of a health check.
pub(crate) fn health_word(health: HealthStatus) -> &'static str {
    match health {
        HealthStatus::Down => "down",
        HealthStatus::Held => "held",
        HealthStatus::Unknown => "unknown",
        HealthStatus::Up => "up",
    }
}

fn maximum(max: u32) -> String {
    if max == 0 { "-".to_owned() } else { thousands(max.into()) }
}

fn traffic(service: &ServiceStatus) -> String {
    let open = match service.connections_max {
        0 => format!("{} open", thousands(service.connections.into())),
        max => format!("{} of {} open", thousands(service.connections.into()), thousands(max.into())),
    };
    format!(
        "{open} · {} accepted · {} opened · {} from clients · {} to clients",
        thousands(service.accepted),
        thousands(service.opened),
        bytes(service.bytes_from_client),
        bytes(service.bytes_to_client)
    )
}

/// Those that are not 0, as `label 1,234`.
fn counts<'a>(all: impl Iterator<Item = (&'a str, u64)>) -> Vec<String> {
    all.filter(|&(_, count)| count > 0).map(|(label, count)| format!("{label} {}", thousands(count))).collect()
}

fn leaving(status: &Status, paint: Paint) -> String {
    if status.leaving.is_empty() {
        return String::new();
    }
    let mut table = Table::new([Cell::word("server"), Cell::word("address"), Cell::figure("open")]);
    for server in &status.leaving {
        let port = server.port.map(|port| format!(":{port}")).unwrap_or_default();
        table.row([
            Cell::word(&server.name),
            Cell::word(format!("{}{port}", server.address)),
            Cell::figure(thousands(server.connections.into())),
        ]);
    }
    table.render(2, paint)
}

fn outbound(all: &[OutboundStatus], paint: Paint) -> String {
    if all.is_empty() {
        return String::new();
    }
    let mut table = Table::new([
        Cell::word("outbound_nat"),
        Cell::word("protocol"),
        Cell::figure("open"),
        Cell::figure("opened"),
        Cell::figure("began"),
        Cell::figure("bytes out"),
        Cell::figure("bytes in"),
        Cell::word("ended"),
    ]);
    for lane in all {
        let ended = counts(lane.terminations.iter().map(|(label, &count)| (label.as_str(), count)));
        table.row([
            Cell::word(&lane.name),
            Cell::word(&lane.protocol),
            Cell::figure(thousands(lane.flows)),
            Cell::figure(thousands(lane.opened)),
            Cell::figure(thousands(lane.accepted)),
            Cell::figure(thousands(lane.bytes_out)),
            Cell::figure(thousands(lane.bytes_in)),
            Cell::word(ended.join(" · ")),
        ]);
    }
    table.render(2, paint)
}

fn source_ports(all: &[SourcePortsStatus], paint: Paint) -> String {
    if all.is_empty() {
        return String::new();
    }
    let mut fullest: Vec<&SourcePortsStatus> = all.iter().collect();
    fullest.sort_by(|a, b| b.percent.total_cmp(&a.percent));
    let mut table = Table::new([
        Cell::word("address"),
        Cell::word("server"),
        Cell::word("protocol"),
        Cell::figure("leased"),
        Cell::figure("of"),
        Cell::figure("full"),
        Cell::word("services"),
    ]);
    for fill in fullest.iter().take(SOURCE_PORTS_SHOWN) {
        let full = Cell::figure(format!("{:.1} %", fill.percent));
        table.row([
            Cell::word(fill.address.to_string()),
            Cell::word(if fill.destination.ip().is_unspecified() {
                "any outside".to_owned()
            } else {
                fill.destination.to_string()
            }),
            Cell::word(&fill.protocol),
            Cell::figure(thousands(fill.leased.into())),
            Cell::figure(thousands(fill.capacity.into())),
            if fill.nearly_exhausted { full.tinted(Tint::Red) } else { full },
            Cell::word(fill.services.join(", ")),
        ]);
    }
    let mut text = table.render(2, paint);
    if let Some(rest) = fullest.len().checked_sub(SOURCE_PORTS_SHOWN).filter(|&rest| rest > 0) {
        text.push_str(&format!("  and {rest} less full\n"));
    }
    text
}

/// `for mail.example.com: ends in 12 d 3 h`
fn certificate_line(certificate: &CertificateStatus, paint: Paint) -> String {
    let names = if certificate.names.is_empty() { "no name".to_owned() } else { certificate.names.join(", ") };
    let lasts_s = certificate.not_after_unix_seconds.saturating_sub(certificate.not_before_unix_seconds);
    let ends = match u64::try_from(certificate.seconds_left) {
        Err(_) => paint.tint(Tint::Red, "has ended"),
        Ok(_) if certificate.seconds_left > lasts_s => paint.tint(Tint::Red, "is not valid yet"),
        Ok(left_s) => {
            let ends = format!("ends in {}", span(left_s.saturating_mul(1000)));
            if left_s < CERTIFICATE_NEAR_S { paint.tint(Tint::Yellow, &ends) } else { ends }
        }
    };
    format!("for {names}: {ends}")
}

/// What became of its lines; nothing where none is wanted.
fn access_log(log: Option<&AccessLogStatus>, paint: Paint) -> String {
    let Some(AccessLogStatus { written, dropped, failed, trouble }) = log else { return String::new() };
    let mut table =
        Table::new([Cell::figure("written"), Cell::figure("dropped"), Cell::figure("failed"), Cell::word("trouble")]);
    let lost = |count: u64| {
        let cell = Cell::figure(thousands(count));
        if count > 0 { cell.tinted(Tint::Yellow) } else { cell }
    };
    let trouble = Cell::word(trouble.as_deref().unwrap_or_default()).tinted(Tint::Yellow);
    table.row([Cell::figure(thousands(*written)), lost(*dropped), lost(*failed), trouble]);
    table.render(2, paint)
}

/// What became of messages; nothing where nobody is told.
fn notify(receivers: &[NotifyStatus], paint: Paint) -> String {
    if receivers.is_empty() {
        return String::new();
    }
    let mut table = Table::new([
        Cell::word("receiver"),
        Cell::figure("told"),
        Cell::figure("waiting"),
        Cell::figure("failed tries"),
        Cell::figure("dropped"),
        Cell::word("trouble"),
    ]);
    let lost = |count: u64| {
        let cell = Cell::figure(thousands(count));
        if count > 0 { cell.tinted(Tint::Yellow) } else { cell }
    };
    for NotifyStatus { receiver, delivered, failed, dropped, waiting, trouble } in receivers {
        table.row([
            Cell::word(receiver.clone()),
            Cell::figure(thousands(*delivered)),
            Cell::figure(thousands(*waiting)),
            lost(*failed),
            lost(*dropped),
            Cell::word(trouble.as_deref().unwrap_or_default()).tinted(Tint::Yellow),
        ]);
    }
    table.render(2, paint)
}

/// The threads that sign handshakes; nothing where workers do.
fn handshakes(pool: Option<&HandshakePoolStatus>, paint: Paint) -> String {
    let Some(pool) = pool else { return String::new() };
    let counter = |label: &str| pool.counters.get(label).copied().unwrap_or(0);
    let taken = counter("done") + counter("late") + counter("abandoned");
    let mut table = Table::new([
        Cell::figure("threads"),
        Cell::figure("signing"),
        Cell::figure("waiting"),
        Cell::figure("mean wait"),
        Cell::figure("done"),
        Cell::figure("late"),
        Cell::figure("refused"),
        Cell::figure("abandoned"),
    ]);
    let refusals = |label: &str| {
        let cell = Cell::figure(thousands(counter(label)));
        if counter(label) > 0 { cell.tinted(Tint::Yellow) } else { cell }
    };
    table.row([
        Cell::figure(pool.cpus.len()),
        Cell::figure(pool.running),
        Cell::figure(thousands(pool.queued as u64)),
        Cell::figure(turn(counter("waited_ns").checked_div(taken).unwrap_or(0) / 1000)),
        Cell::figure(thousands(counter("done"))),
        refusals("late"),
        refusals("refused"),
        Cell::figure(thousands(counter("abandoned"))),
    ]);
    table.render(2, paint)
}

fn workers(all: &[WorkerStatus], paint: Paint) -> String {
    let mut table = Table::new([
        Cell::figure("worker"),
        Cell::figure("CPU"),
        Cell::word("state"),
        Cell::figure("generation"),
        Cell::figure("open"),
        Cell::figure("turns"),
        Cell::figure("longest turn"),
    ]);
    for worker in all {
        let counter = |label: &str| worker.counters.get(label).copied().unwrap_or(0);
        table.row([
            Cell::figure(worker.id),
            Cell::figure(worker.cpu),
            match worker.state.as_str() {
                "serving" => Cell::word("serving"),
                other => Cell::word(other).tinted(Tint::Yellow),
            },
            Cell::figure(worker.generation),
            Cell::figure(thousands(worker.sessions.into())),
            Cell::figure(thousands(counter("breaths"))),
            Cell::figure(turn(counter("breath_max_microseconds"))),
        ]);
    }
    table.render(2, paint)
}

/// Frames that never came to the packet plane or never left, over all workers, most frequent first. Those for another station are
/// no loss.
fn losses(all: &[WorkerStatus], paint: Paint) -> String {
    let labels = RingCounter::ALL.iter().filter(|&&counter| counter != RingCounter::ReceivedForeign);
    let labels: Vec<&str> = labels.map(|counter| counter.label()).collect();
    let counters = all.iter().flat_map(|worker| &worker.packets);
    reasons(counters.filter(|(label, count)| **count > 0 && labels.contains(&label.as_str())), paint)
}

/// Why the packet plane dropped frames, over all workers, most frequent first.
fn drops(all: &[WorkerStatus], paint: Paint) -> String {
    reasons(all.iter().flat_map(|worker| &worker.drops), paint)
}

fn reasons<'s>(counts: impl Iterator<Item = (&'s String, &'s u64)>, paint: Paint) -> String {
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (reason, count) in counts {
        *sums.entry(reason).or_default() += count;
    }
    if sums.is_empty() {
        return String::new();
    }
    let mut sums: Vec<(&str, u64)> = sums.into_iter().collect();
    sums.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    let mut table = Table::new([Cell::word("reason"), Cell::figure("frames")]);
    for (reason, count) in sums {
        table.row([Cell::word(reason), Cell::figure(thousands(count))]);
    }
    table.render(2, paint)
}

pub(crate) fn turn(microseconds: u64) -> String {
    if microseconds < 1000 { format!("{microseconds} µs") } else { format!("{:.1} ms", microseconds as f64 / 1000.0) }
}

fn limits(status: &Status, paint: Paint) -> String {
    let mut table =
        Table::new([Cell::word("limit"), Cell::figure("used"), Cell::figure("of"), Cell::figure("refused")]);
    let limits = &status.limits;
    let rows = [
        ("connections", limits.connections),
        ("UDP sessions", limits.udp_sessions),
        ("flows", limits.flows),
        ("fast flows", limits.fast_flows),
        ("persistence entries", limits.persistence_entries),
        ("descriptors", limits.descriptors),
    ];
    // Without a service on the packet plane there is no place for flows.
    for (what, Usage { used, max, refused }) in
        rows.into_iter().filter(|(what, usage)| usage.max > 0 || !what.ends_with("flows"))
    {
        let refused_cell = Cell::figure(thousands(refused));
        table.row([
            Cell::word(what),
            Cell::figure(thousands(used)),
            Cell::figure(thousands(max)),
            if refused > 0 { refused_cell.tinted(Tint::Yellow) } else { refused_cell },
        ]);
    }
    table.render(2, paint)
}

fn events(all: &[Event], unix_ms: u64, paint: Paint) -> String {
    if all.is_empty() {
        return String::new();
    }
    let mut table = Table::new([Cell::figure("ago"), Cell::word("what")]);
    for event in &all[all.len().saturating_sub(EVENTS_SHOWN)..] {
        table.row([Cell::figure(span(unix_ms.saturating_sub(event.unix_ms))), Cell::word(event.line())]);
    }
    table.render(2, paint)
}

/// Ports in order, neighbours as ranges: 80, 443, 50000-50099.
pub(crate) fn ports(all: &[u16]) -> String {
    if all.is_empty() {
        return "all".to_owned();
    }
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for &port in all {
        match runs.last_mut() {
            Some((_, last)) if *last < u16::MAX && *last + 1 == port => *last = port,
            _ => runs.push((port, port)),
        }
    }
    let run = |&(first, last): &(u16, u16)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}, {last}"),
        _ => format!("{first}-{last}"),
    };
    let runs: Vec<String> = runs.iter().map(run).collect();
    runs.join(", ")
}

pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut amount = count as f64 / 1000.0;
    let mut unit = 0;
    // What would be written as 1000.0 is 1.0 of the next unit.
    while amount >= 999.95 && unit + 1 < UNITS.len() {
        amount /= 1000.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use towpath_engine::admin::{AdminSaid, DrainStatus, ThenWord};
    use towpath_engine::events::EventKind;
    use towpath_engine::status::{LeavingServer, LimitsStatus};

    fn server(name: &str, last: u8, health: HealthStatus, reason: &str) -> ServerStatus {
        ServerStatus {
            name: name.to_owned(),
            address: [192, 0, 2, last].into(),
            port: None,
            weight: 100,
            admin: "ready".to_owned(),
            admin_said: None,
            weight_said: None,
            health,
            reason: reason.to_owned(),
            duty: "primary".to_owned(),
            sorry: false,
            closed_ports: Vec::new(),
            agent: None,
            health_seconds: 75,
            connections: 600,
            service_connections: 600,
            waiting: 0,
            connections_min: 0,
            connections_max: 0,
            opened: 12_000,
            connects_failed: 0,
            responses: 0,
            errors: 0,
        }
    }

    pub(crate) fn page() -> Status {
        let counts = |pairs: &[(&str, u64)]| -> BTreeMap<String, u64> {
            pairs.iter().map(|&(label, count)| (label.to_owned(), count)).collect()
        };
        let draining = ServerStatus {
            port: Some(8443),
            admin: "drain".to_owned(),
            admin_said: Some(AdminSaid {
                since_unix_ms: 952_000,
                by: "root (uid 0, process 4711)".to_owned(),
                reason: "patch day".to_owned(),
                configured: "ready".to_owned(),
                drain: Some(DrainStatus { deadline_in_ms: Some(240_000), until: 5, then: ThenWord::Halt, over: None }),
            }),
            connections_max: 2000,
            ..server("FE-2", 32, HealthStatus::Down, "port 5061: connection refused")
        };
        Status {
            version: "0.1.0".to_owned(),
            phase: "running".to_owned(),
            taken_over: None,
            role: "active".to_owned(),
            unix_ms: 1_012_000,
            uptime_seconds: 7440,
            started_unix_ms: 0,
            generation: 17,
            services: vec![ServiceStatus {
                name: "front-end".to_owned(),
                state: ServiceState::Degraded,
                vip: [192, 0, 2, 30].into(),
                ports: vec![135, 443, 444, 5061, 5062, 5063],
                protocol: "tcp".to_owned(),
                plane: "stream".to_owned(),
                mode: "stream".to_owned(),
                balance: "weighted-least-connections".to_owned(),
                persistence_ms: Some(1_800_000),
                connections: 1200,
                connections_max: 0,
                queue: None,
                accepted: 24_003,
                opened: 24_000,
                bytes_from_client: 999,
                bytes_to_client: 1_250_000_000,
                counters: BTreeMap::new(),
                terminations: counts(&[("client_closed", 22_797), ("no_server", 3), ("server_reset", 0)]),
                latencies: BTreeMap::new(),
                refused_requests: BTreeMap::new(),
                refused_responses: BTreeMap::new(),
                refused_streams: BTreeMap::new(),
                certificates: Vec::new(),
                servers: vec![server("FE-1", 31, HealthStatus::Up, ""), draining],
            }],
            outbound: Vec::new(),
            leaving: vec![LeavingServer {
                name: "FE-0".to_owned(),
                address: [192, 0, 2, 29].into(),
                port: None,
                connections: 4,
            }],
            source_ports: vec![SourcePortsStatus {
                services: vec!["front-end".to_owned()],
                protocol: "tcp".to_owned(),
                address: [192, 0, 2, 40].into(),
                destination: ([192, 0, 2, 31], 443).into(),
                leased: 600,
                capacity: 64_512,
                percent: 0.93,
                nearly_exhausted: false,
            }],
            workers: vec![WorkerStatus {
                id: 0,
                cpu: 2,
                state: "serving".to_owned(),
                generation: 17,
                vshards: 256,
                sessions: 1200,
                cpu_us: 0,
                counters: counts(&[("breaths", 1_000_000), ("breath_max_microseconds", 1250)]),
                flows: 0,
                packets: BTreeMap::new(),
                drops: BTreeMap::new(),
            }],
            neighbours: BTreeMap::new(),
            handshake_pool: None,
            access_log: None,
            notify: Vec::new(),
            limits: LimitsStatus {
                connections: Usage { used: 1200, max: 9936, refused: 0 },
                udp_sessions: Usage { used: 0, max: 65_536, refused: 0 },
                flows: Usage { used: 0, max: 0, refused: 0 },
                fast_flows: Usage { used: 0, max: 0, refused: 0 },
                persistence_entries: Usage { used: 310, max: 262_144, refused: 0 },
                descriptors: Usage { used: 2431, max: 20_000, refused: 0 },
            },
            events: vec![Event {
                id: 1,
                unix_ms: 1_000_000,
                kind: EventKind::Health,
                services: vec!["front-end".to_owned()],
                subject: Some("server FE-2".to_owned()),
                from: "up".to_owned(),
                to: "down".to_owned(),
                reason: "port 5061: connection refused".to_owned(),
                lasted_seconds: None,
            }],
            events_total: BTreeMap::new(),
            latency_bounds_us: Vec::new(),
        }
    }

    #[test]
    fn it_is_said_from_whom_was_taken_over() {
        let before = |finishing| TakenOverStatus { pid: 17, version: "0.1.0".to_owned(), at_unix_ms: 7_000, finishing };
        let table = [
            (Some(0), "taken over from process 17 (0.1.0) 1 min 30 s ago; it is about to end\n"),
            (Some(1), "taken over from process 17 (0.1.0) 1 min 30 s ago; 1 connection finishes there\n"),
            (Some(1_200), "taken over from process 17 (0.1.0) 1 min 30 s ago; 1,200 connections finish there\n"),
            (None, "taken over from process 17 (0.1.0) 1 min 30 s ago; it has ended\n"),
        ];
        for (finishing, expected) in table {
            assert_eq!(taken_over(&before(finishing), 97_000), expected);
        }
        let status = Status { taken_over: Some(before(Some(1))), ..page() };
        let page = render(&status, status.unix_ms, Paint::Plain);
        assert!(page.lines().nth(1).is_some_and(|line| line.starts_with("taken over from process 17")), "{page}");
    }

    #[test]
    fn page_shows_services_servers_workers_limits_and_reasons() {
        let expected = "\
towpath 0.1.0 · running for 2 h 4 min · generation 17

front-end  ◐ degraded  192.0.2.30 tcp 135, 443, 444, 5061-5063 · weighted-least-connections, clients return for 30 min 0 s
  server  address          weight  admin  health         for  open    max  opened  reason
  FE-1    192.0.2.31          100  ready  ● up    1 min 15 s   600      -  12,000
  FE-2    192.0.2.32:8443     100  drain  ○ down  1 min 15 s   600  2,000  12,000  port 5061: connection refused
  FE-2: drain for 1 min 0 s by root (uid 0, process 4711): patch day; over in 4 min 0 s or at 5 connections, then halted
  1,200 open · 24,003 accepted · 24,000 opened · 999 B from clients · 1.2 GB to clients
  ended: client_closed 22,797 · no_server 3

removed servers that still hold connections
  server  address     open
  FE-0    192.0.2.29     4

source ports
  address     server          protocol  leased      of   full  services
  192.0.2.40  192.0.2.31:443  tcp          600  64,512  0.9 %  front-end

workers
  worker  CPU  state    generation   open      turns  longest turn
       0    2  serving          17  1,200  1,000,000        1.2 ms

limits
  limit                 used       of  refused
  connections          1,200    9,936        0
  UDP sessions             0   65,536        0
  persistence entries    310  262,144        0
  descriptors          2,431   20,000        0

latest changes
   ago  what
  12 s  server FE-2 of front-end: up → down: port 5061: connection refused
";
        let page = render(&page(), 1_012_000, Paint::Plain);
        assert_eq!(page, expected, "\n{page}");
    }

    #[test]
    fn certificates_and_the_pool_are_shown_where_tls_ends() {
        const DAY_S: i64 = 86_400;
        let certificate = |seconds_left| CertificateStatus {
            names: vec!["mail.example.com".to_owned(), "owa.example.com".to_owned()],
            not_before_unix_seconds: 0,
            not_after_unix_seconds: 100 * DAY_S,
            seconds_left,
        };
        let mut page = page();
        page.services[0].certificates = [50 * DAY_S, -1, 101 * DAY_S].map(certificate).to_vec();
        let counters = [("done", 1999), ("late", 1), ("refused", 3), ("waited_ns", 4_000_000)];
        page.handshake_pool = Some(HandshakePoolStatus {
            cpus: vec![2, 3],
            running: 1,
            queued: 1200,
            counters: counters.map(|(label, count)| (label.to_owned(), count)).into(),
        });
        let page = render(&page, 0, Paint::Plain);
        for line in [
            "  certificate for mail.example.com, owa.example.com: ends in 50 d 0 h\n",
            "owa.example.com: has ended\n",
            "owa.example.com: is not valid yet\n",
            "  threads  signing  waiting  mean wait   done  late  refused  abandoned\n        2        1    1,200       2 µs  1,999     1        3          0\n",
        ] {
            assert!(page.contains(line), "{line:?} is missing in\n{page}");
        }
    }

    #[test]
    fn lines_that_are_lost_are_shown_with_the_reason() {
        let mut page = page();
        page.access_log = Some(AccessLogStatus {
            written: 12_000,
            dropped: 3,
            failed: 0,
            trouble: Some("No space left on device".to_owned()),
        });
        let page = render(&page, 0, Paint::Plain);
        let section =
            "access log\n  written  dropped  failed  trouble\n   12,000        3       0  No space left on device\n";
        assert!(page.contains(section), "{page}");
    }

    #[test]
    fn who_is_told_of_events_is_shown_with_what_is_wrong() {
        let mut page = page();
        assert!(!render(&page, 0, Paint::Plain).contains("who is told"));
        page.notify = vec![NotifyStatus {
            receiver: "webhook".to_owned(),
            delivered: 1200,
            failed: 2,
            dropped: 0,
            waiting: 3,
            trouble: Some("status 503".to_owned()),
        }];
        let page = render(&page, 0, Paint::Plain);
        let section = "who is told of events\n  receiver   told  waiting  failed tries  dropped  trouble\n  \
                       webhook   1,200        3             2        0  status 503\n";
        assert!(page.contains(section), "{page}");
    }

    #[test]
    fn what_rings_lose_is_shown_and_what_was_for_others_is_not() {
        let packets =
            [("frames", 9), ("received_foreign", 5), ("received_lost", 1), ("send_full", 1200), ("send_down", 0)];
        let packets: BTreeMap<String, u64> = packets.map(|(label, count)| (label.to_owned(), count)).into();
        let worker = WorkerStatus { packets, ..page().workers.remove(0) };
        let text = losses(&[worker.clone(), worker], Paint::Plain);
        assert_eq!(text, "  reason         frames\n  send_full       2,400\n  received_lost       2\n");
        assert_eq!(losses(&page().workers, Paint::Plain), "");
    }

    #[test]
    fn only_the_fullest_source_addresses_are_shown() {
        let one = page().source_ports.remove(0);
        let all: Vec<SourcePortsStatus> =
            (0..SOURCE_PORTS_SHOWN + 2).map(|n| SourcePortsStatus { percent: n as f64, ..one.clone() }).collect();
        let text = source_ports(&all, Paint::Plain);
        let fullest = format!("{:.1} %", (SOURCE_PORTS_SHOWN + 1) as f64);
        assert!(text.lines().nth(1).unwrap().contains(&fullest), "{text}");
        assert!(text.ends_with("  and 2 less full\n"), "{text}");
    }

    #[test]
    fn a_page_is_put_in_the_place_of_the_one_before() {
        assert_eq!(frame("a\nb\n", Some(24)), "\x1b[?7l\x1b[Ha\x1b[K\r\nb\x1b[K\r\n\x1b[J\x1b[?7h");
        assert_eq!(frame("a\n", None), "a\n\n");
        let long = frame("1\n2\n3\n4\n", Some(3));
        assert_eq!(long.matches("\r\n").count(), 2, "{long:?}");
        assert!(long.contains("… 2 more lines"), "{long:?}");
    }

    #[test]
    fn ports_and_bytes_are_short() {
        assert_eq!(ports(&[80, 81, 443, 65_533, 65_534, 65_535]), "80, 81, 443, 65533-65535");
        let amounts = [0, 999, 1000, 999_949, 999_950, 5_000_000_000_000].map(bytes);
        assert_eq!([turn(999), turn(1250)], ["999 µs", "1.2 ms"]);
        assert_eq!(amounts, ["0 B", "999 B", "1.0 KB", "999.9 KB", "1.0 MB", "5.0 TB"]);
    }

    #[test]
    fn default_socket_is_that_of_the_schema() {
        assert!(default_socket().is_absolute());
    }

    #[test]
    fn scripts_can_tell_why_no_status_came() {
        let at = || "/nowhere".to_owned();
        let source = io::ErrorKind::NotFound.into();
        assert_eq!(exit_of(&FetchError::NotReachable { at: at(), key: "control.socket", source }), Exit::Unreachable);
        assert_eq!(exit_of(&FetchError::TimedOut { at: at(), limit: Duration::ZERO }), Exit::TimedOut);
        assert_eq!(exit_of(&FetchError::Answer { at: at(), status: 500 }), Exit::Failed);
    }
}
