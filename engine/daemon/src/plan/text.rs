//! The plan as an operator reads it at start, and numbers as people write them.

use std::fmt;

use towpath_config::model::{Poll, Protocol};

use super::{Bound, BoundFrom, FastPlan, HandshakesPlan, Plan, Share, total};

/// Listeners shown one by one; the rest is counted.
const LISTENERS_SHOWN: usize = 40;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpus: Vec<usize> = self.workers.iter().map(|w| w.cpu).collect();
        let poll = match self.poll {
            Poll::Adaptive => "adaptive",
            Poll::Busy => "busy",
        };
        writeln!(f, "workers      {} on {}, poll {poll}", self.workers.len(), cpu_list(&cpus))?;
        self.write_listeners(f)?;
        if let Some(packets) = &self.packets {
            let arms: Vec<&str> = packets.arms.iter().map(|arm| arm.name.as_str()).collect();
            writeln!(f, "interfaces   {}", arms.join(", "))?;
            writeln!(
                f,
                "flows        {} at most, and {} half open",
                grouped(packets.flows_max()),
                grouped(packets.half_open_max())
            )?;
            match &packets.fast {
                FastPlan::InKernel { flows } => {
                    writeln!(f, "fast path    in the kernel, {} flows at most", grouped(u64::from(*flows)))?;
                }
                FastPlan::Off => writeln!(f, "fast path    off")?,
                FastPlan::Unavailable(why) => writeln!(f, "fast path    none: {why}")?,
                FastPlan::Unneeded => {
                    writeln!(f, "fast path    none: nothing is routed, and no service translates TCP over IPv4")?
                }
            }
        }
        match &self.handshake_threads {
            HandshakesPlan::Pool { cpus } => {
                let threads = if cpus.len() == 1 { "thread" } else { "threads" };
                let when = if self.pool_gives_way() { ", while workers there have nothing to do" } else { "" };
                writeln!(f, "handshakes   signed by {} {threads} on {}{when}", cpus.len(), cpu_list(cpus))?;
            }
            HandshakesPlan::Unneeded => {}
            HandshakesPlan::Workers => writeln!(f, "handshakes   signed by the workers, other traffic first")?,
        }
        writeln!(f, "connections  {}", bound(self.connections))?;
        writeln!(f, "UDP sessions {}", bound(self.udp_sessions))?;
        writeln!(f, "persistence  {} entries", grouped(u64::from(self.persistence_entries)))?;
        writeln!(
            f,
            "buffers      {} × {} per worker, {} pipes for bulk",
            grouped(u64::from(self.buffers)),
            bytes(u64::from(self.buffer_bytes)),
            self.pipes_per_worker
        )?;
        write_shares(f, "memory", &self.memory, self.memory_available, bytes)?;
        write_shares(f, "descriptors", &self.descriptors, self.nofile, grouped)
    }
}

impl Plan {
    /// One line per service address and protocol, its ports side by side.
    fn write_listeners(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sockets = self.listeners.len();
        writeln!(f, "listeners    {} × {} workers", grouped(sockets as u64), self.workers.len())?;
        let width = self.listeners.iter().take(LISTENERS_SHOWN).map(|l| l.service.chars().count()).max().unwrap_or(0);
        for listener in self.listeners.iter().take(LISTENERS_SHOWN) {
            let protocol = match listener.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            };
            writeln!(f, "  {:width$}  {protocol} {}", listener.service, listener.address)?;
        }
        if sockets > LISTENERS_SHOWN {
            writeln!(f, "  and {} more", sockets - LISTENERS_SHOWN)?;
        }
        Ok(())
    }
}

/// A heading with total and limit, then one right-aligned line per part.
fn write_shares(
    f: &mut fmt::Formatter<'_>,
    heading: &str,
    parts: &[Share],
    limit: u64,
    number: fn(u64) -> String,
) -> fmt::Result {
    writeln!(f, "{heading:<12} {} at most, of {}", number(total(parts)), number(limit))?;
    let names = parts.iter().map(|part| part.what.chars().count()).max().unwrap_or(0);
    let numbers = parts.iter().map(|part| number(part.amount).chars().count()).max().unwrap_or(0);
    for part in parts {
        writeln!(f, "  {:names$}  {:>numbers$}", part.what, number(part.amount))?;
    }
    Ok(())
}

fn bound(bound: Bound) -> String {
    let max = grouped(u64::from(bound.max));
    match bound.from {
        BoundFrom::Configured => format!("{max} at most"),
        BoundFrom::Descriptors => format!("{max} at most, as the descriptors allow"),
        BoundFrom::Lowered { configured } => {
            format!("{max} at most: {} are configured, the descriptors end there", grouped(u64::from(configured)))
        }
        BoundFrom::Memory => format!("{max} at most, as the memory allows"),
        BoundFrom::Unused => "none".to_owned(),
    }
}

/// `12,345`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1.5 GiB`; whole numbers below 1 MiB.
pub(crate) fn bytes(amount: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if amount < 1024 {
        return format!("{amount} B");
    }
    let mut value = amount as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = usize::from(unit > 0);
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// `2 and 5`, `1, 2 and 7`.
pub(super) fn list(numbers: &[usize]) -> String {
    let words: Vec<String> = numbers.iter().map(usize::to_string).collect();
    match words.split_last() {
        None => "none".to_owned(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

/// `CPU 0`, `CPUs 0-3, 6`.
pub(crate) fn cpu_list(cpus: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == cpu => *end = cpu,
            _ => runs.push((cpu, cpu)),
        }
    }
    let words: Vec<String> = runs
        .iter()
        .map(|&(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    format!("{} {}", if cpus.len() == 1 { "CPU" } else { "CPUs" }, words.join(", "))
}

/// `listeners 52, reserve 64`.
pub(super) fn shares(parts: &[Share]) -> String {
    joined(parts, grouped)
}

/// The same for bytes.
pub(super) fn byte_shares(parts: &[Share]) -> String {
    joined(parts, bytes)
}

fn joined(parts: &[Share], number: fn(u64) -> String) -> String {
    parts.iter().map(|part| format!("{} {}", part.what, number(part.amount))).collect::<Vec<_>>().join(", ")
}
