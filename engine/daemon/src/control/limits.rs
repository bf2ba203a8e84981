//! `GET /v1/limits`: what is scarce, how full it is, and what to do about it.

use std::fs;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};

use super::answer::{Answer, json};
use crate::house::House;
use crate::preflight::memory_bytes;
use crate::status::{Status, Usage};

/// From so many percent on a limit is near.
const HIGH_PERCENT: f64 = 80.0;

/// Everything that is limited.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LimitRows {
    /// Those of the process first, then what services, servers and source addresses have.
    pub limits: Vec<LimitRow>,
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LimitRow {
    /// What is limited.
    pub name: String,
    /// Of whom; `None` = of the process.
    pub subject: Option<String>,
    /// In use now.
    pub used: u64,
    /// The limit.
    pub max: u64,
    /// Used of the limit.
    pub percent: f64,
    /// How often it was met since the start; `None` where that is not counted.
    pub refused: Option<u64>,
    /// What is used and limited: `connections`, `bytes` …
    pub unit: String,
    /// How near it is.
    pub level: Level,
    /// The key of the configuration that sets it; `None` = no key does.
    pub key: Option<String>,
    /// What to do when it is full.
    pub remedy: String,
}

/// How near a limit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Far.
    Ok,
    /// 80 % or more.
    High,
    /// Nothing is left.
    Full,
}

/// What status does not show.
struct Besides {
    /// Handshakes that may wait or be under way.
    handshakes_max: u64,
    /// Logins of the page, and how many may be; `None` = there is no page.
    sessions: Option<(u64, u64)>,
    /// Memory of the process, and what the machine has left for it; `None` = it could not be asked.
    memory: Option<(u64, u64)>,
}

pub(super) fn show(house: &House) -> Answer {
    let status = house.status();
    let sessions = house.guard.access().map(|_| {
        let (open, max) = house.guard.sessions();
        (open as u64, max as u64)
    });
    let handshakes_max = u64::from(house.truth().model().limits.handshakes);
    let memory = resident_bytes().zip(memory_bytes().ok());
    json(StatusCode::OK, &LimitRows { limits: rows(&status, &Besides { handshakes_max, sessions, memory }) })
}

/// Memory that the process holds (`VmRSS`, proc_pid_status(5)).
fn resident_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn rows(status: &Status, besides: &Besides) -> Vec<LimitRow> {
    let limits = &status.limits;
    let mut rows = Vec::new();
    for (name, usage, unit, key, remedy) in [
        (
            "connections",
            &limits.connections,
            "connections",
            "limits.connections",
            "raise it; each takes two descriptors and its buffers",
        ),
        (
            "UDP sessions",
            &limits.udp_sessions,
            "sessions",
            "limits.udp_sessions",
            "raise it, or shorten `idle_timeout` of UDP services",
        ),
        (
            "flows",
            &limits.flows,
            "flows",
            "limits.flows",
            "raise it, or shorten `idle_timeout` of services on the packet plane",
        ),
        (
            "fast flows",
            &limits.fast_flows,
            "flows",
            "limits.fast_flows",
            "raise it; what finds no place goes through the workers",
        ),
        (
            "persistence entries",
            &limits.persistence_entries,
            "entries",
            "limits.persistence_entries",
            "raise it, or shorten `persistence.timeout`; the least recently used makes room",
        ),
    ] {
        // Nothing of the kind is there.
        if usage.max > 0 {
            rows.push(row(name, None, usage, unit).told(Some(key), remedy));
        }
    }
    rows.push(
        LimitRow { refused: None, ..row("descriptors", None, &limits.descriptors, "descriptors") }
            .told(None, "raise LimitNOFILE of the unit (`ulimit -n`), or lower `limits.connections`"),
    );
    if let Some(pool) = &status.handshake_pool {
        let refused = pool.counters.get("refused").copied().unwrap_or_default();
        let usage = Usage { used: (pool.queued + pool.running) as u64, max: besides.handshakes_max, refused };
        rows.push(
            row("TLS handshakes", None, &usage, "handshakes")
                .told(Some("limits.handshakes"), "name more CPUs in `tls.threads`; ECDSA certificates sign faster"),
        );
    }
    if let Some((used, left)) = besides.memory {
        let usage = Usage { used, max: used.saturating_add(left), refused: 0 };
        rows.push(
            LimitRow { refused: None, ..row("memory", None, &usage, "bytes") }
                .told(None, "lower `limits.connections`, `limits.buffers` or `limits.flows`, or give the machine more"),
        );
    }
    if let Some((used, max)) = besides.sessions {
        let usage = Usage { used, max, refused: 0 };
        rows.push(
            LimitRow { refused: None, ..row("logins", None, &usage, "logins") }
                .told(None, "log out; the one that was used longest ago makes room"),
        );
    }
    for service in &status.services {
        if service.connections_max > 0 {
            let usage = Usage { used: service.connections.into(), max: service.connections_max.into(), refused: 0 };
            rows.push(
                LimitRow { refused: None, ..row("service connections", Some(&service.name), &usage, "connections") }
                    .told(Some("service.max_connections"), "raise it, or add a `queue`"),
            );
        }
        if let Some(queue) = &service.queue {
            let usage = Usage { used: queue.waiting as u64, max: queue.max.into(), refused: 0 };
            rows.push(
                LimitRow { refused: None, ..row("queue", Some(&service.name), &usage, "clients") }
                    .told(Some("service.queue"), "add servers, or raise `max_connections` of servers"),
            );
        }
        for server in &service.servers {
            if server.connections_max > 0 {
                let usage = Usage { used: server.connections.into(), max: server.connections_max.into(), refused: 0 };
                let subject = format!("{}/{}", service.name, server.name);
                rows.push(
                    LimitRow { refused: None, ..row("server connections", Some(&subject), &usage, "connections") }
                        .told(Some("service.server.max_connections"), "raise it, or add servers"),
                );
            }
        }
    }
    for ports in &status.source_ports {
        let towards = match ports.destination.ip().is_unspecified() {
            true => "everyone outside".to_owned(),
            false => ports.destination.to_string(),
        };
        let subject = format!("{} towards {towards} ({})", ports.address, ports.protocol);
        let usage = Usage { used: ports.leased.into(), max: ports.capacity.into(), refused: 0 };
        rows.push(
            LimitRow { refused: None, ..row("source ports", Some(&subject), &usage, "ports") }.told(
                Some("service.source.pool"),
                "add an address to the pool; ports rest a while after each connection",
            ),
        );
    }
    rows
}

fn row(name: &str, subject: Option<&str>, usage: &Usage, unit: &str) -> LimitRow {
    let Usage { used, max, refused } = *usage;
    let percent = if max == 0 { 100.0 } else { used as f64 * 100.0 / max as f64 };
    let level = match () {
        () if used >= max => Level::Full,
        () if percent >= HIGH_PERCENT => Level::High,
        () => Level::Ok,
    };
    LimitRow {
        name: name.to_owned(),
        subject: subject.map(str::to_owned),
        used,
        max,
        percent: (percent * 10.0).round() / 10.0,
        refused: Some(refused),
        unit: unit.to_owned(),
        level,
        key: None,
        remedy: String::new(),
    }
}

impl LimitRow {
    fn told(self, key: Option<&str>, remedy: &str) -> LimitRow {
        LimitRow { key: key.map(str::to_owned), remedy: remedy.to_owned(), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_near_from_four_fifths_on() {
        let level = |used, max| row("flows", None, &Usage { used, max, refused: 0 }, "flows").level;
        assert_eq!(
            [level(0, 10), level(7, 10), level(8, 10), level(10, 10), level(11, 10), level(0, 0)],
            [Level::Ok, Level::Ok, Level::High, Level::Full, Level::Full, Level::Full]
        );
        let row =
            row("flows", None, &Usage { used: 1, max: 3, refused: 2 }, "flows").told(Some("limits.flows"), "raise it");
        assert_eq!((row.percent, row.refused, row.key.as_deref()), (33.3, Some(2), Some("limits.flows")));
    }

    #[test]
    fn our_own_memory_is_known() {
        assert!(resident_bytes().is_some_and(|bytes| bytes > 1024 * 1024));
    }
}
