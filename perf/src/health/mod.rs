//! What health checks cost: Towpath with many servers that are checked at a known rate and carry nothing, and the time that its controller spends meanwhile.

mod answer;

use std::fmt::{self, Write};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use towpath_sys::process::{Child, MemoryFile};

use crate::lab::{Host, Lab, Topology};
use answer::answer;

/// Addresses of the server; each has the ports of all services.
const ADDRESSES: usize = 100;
/// The last number of the first of them.
const FIRST_ADDRESS: u8 = 101;
/// The port of the first service; the others follow.
const FIRST_PORT: u16 = 10_000;
/// How long it may take until every server is up, and until the daemon has ended.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often it is looked whether something has happened.
const LOOK: Duration = Duration::from_millis(50);
/// Of the checks that were asked for, the share that there must be: intervals vary by a tenth, around what they should be.
const RATE_SHARE_MIN: f64 = 0.95;
/// What the daemon writes of a server that is down now.
const WENT_DOWN: &str = "→ down";
/// The thread that checks.
const CONTROLLER: &str = "controller";

/// What is done to find out whether a server is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckedBy {
    /// A GET, over a connection of its own.
    Http,
    /// The same over TLS.
    Https,
    /// Nothing: what the controller does anyway.
    None,
    /// A connection.
    Tcp,
    /// A whole handshake of TLS 1.3.
    Tls,
    /// A datagram and its answer.
    Udp,
}

impl CheckedBy {
    /// All kinds, what costs nothing first.
    pub const ALL: [CheckedBy; 6] =
        [CheckedBy::None, CheckedBy::Tcp, CheckedBy::Udp, CheckedBy::Http, CheckedBy::Tls, CheckedBy::Https];

    /// The kind of that name.
    pub fn find(name: &str) -> Option<CheckedBy> {
        CheckedBy::ALL.into_iter().find(|kind| kind.to_string() == name)
    }

    /// The keys of `health` that are its own.
    fn keys(self) -> &'static str {
        match self {
            CheckedBy::Http => "check = \"http\", path = \"/healthcheck.htm\", expect = \"200 OK\"",
            CheckedBy::Https => "check = \"https\", path = \"/healthcheck.htm\", expect = \"200 OK\"",
            CheckedBy::None => "check = \"none\"",
            CheckedBy::Tcp => "check = \"tcp\"",
            CheckedBy::Tls => "check = \"tls\"",
            CheckedBy::Udp => "check = \"udp\", send = \"are you well?\", expect = \"well\"",
        }
    }
}

impl fmt::Display for CheckedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CheckedBy::Http => "http",
            CheckedBy::Https => "https",
            CheckedBy::None => "none",
            CheckedBy::Tcp => "tcp",
            CheckedBy::Tls => "tls",
            CheckedBy::Udp => "udp",
        })
    }
}

/// How many checks there are.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Servers, each checked by itself.
    pub servers: usize,
    /// Checks of all of them together.
    pub per_minute: u64,
}

impl Rate {
    /// Time between two checks of one server.
    fn interval_ms(self) -> u64 {
        (self.servers as u64 * 60_000 / self.per_minute.max(1)).max(100)
    }

    /// So long, and until each server's interval is whole: the first checks come close together, and those after them nearly so.
    fn whole_intervals(self, time: Duration) -> Duration {
        let interval_ms = self.interval_ms();
        Duration::from_millis((time.as_millis() as u64).div_ceil(interval_ms).max(1) * interval_ms)
    }

    fn services(self) -> usize {
        self.servers.div_ceil(ADDRESSES)
    }

    fn ports(self) -> impl Iterator<Item = u16> {
        (FIRST_PORT..).take(self.services())
    }
}

/// What it has cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// How servers were checked.
    pub kind: CheckedBy,
    /// Checks that the servers have answered.
    pub checks: u64,
    /// How long they were counted.
    pub seconds: f64,
    /// Checks in a minute.
    pub checks_per_minute: f64,
    /// Time that the controller has run, softirqs in its name included.
    pub controller_seconds: f64,
    /// Of one CPU.
    pub controller_percent: f64,
    /// For one check, what the controller does anyway included.
    pub microseconds_per_check: f64,
}

/// How a cost compares with what it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Less.
    Met,
    /// As much, or more.
    Missed,
    /// There were not as many checks as were asked for: nothing is known.
    RateMissed,
}

impl Cost {
    /// Against so many percent of a CPU, where it is what was asked for.
    pub fn against(&self, percent: f64, rate: Rate) -> Goal {
        let least = rate.per_minute as f64 * RATE_SHARE_MIN;
        match self.controller_percent < percent {
            _ if self.kind != CheckedBy::None && self.checks_per_minute < least => Goal::RateMissed,
            true => Goal::Met,
            false => Goal::Missed,
        }
    }

    fn of(kind: CheckedBy, checks: u64, elapsed: Duration, run_ns: u64) -> Cost {
        let seconds = elapsed.as_secs_f64().max(0.001);
        let controller_seconds = run_ns as f64 / 1e9;
        Cost {
            kind,
            checks,
            seconds,
            checks_per_minute: checks as f64 * 60.0 / seconds,
            controller_seconds,
            controller_percent: controller_seconds * 100.0 / seconds,
            microseconds_per_check: if checks > 0 { controller_seconds * 1e6 / checks as f64 } else { 0.0 },
        }
    }
}

/// Measures for so long, in a lab of its own; `towpath` is the program.
pub fn measure(towpath: &Path, kind: CheckedBy, rate: Rate, time: Duration) -> io::Result<Cost> {
    let lab = Lab::build(Topology::TwoArm, 1)?;
    let server = lab.server(1);
    let [a, b, c, _] = server.ipv4().octets();
    let addresses: Vec<Ipv4Addr> =
        (FIRST_ADDRESS..).take(ADDRESSES.min(rate.servers)).map(|last| Ipv4Addr::new(a, b, c, last)).collect();
    addresses.iter().try_for_each(|address| server.add_address((*address).into()))?;
    let answered = Arc::new(AtomicU64::new(0));
    for port in rate.ports() {
        answer(server, kind, &addresses, port, &answered)?;
    }
    let mut daemon = Daemon::start(lab.balancer(), towpath, kind, rate, &addresses)?;
    // Each server has been found to be up, and the first checks, which come faster, are over.
    daemon.until_serving(|| kind == CheckedBy::None || answered.load(Ordering::Relaxed) >= 3 * rate.servers as u64)?;
    let time = rate.whole_intervals(time);
    let (start, before, run_before) = (Instant::now(), answered.load(Ordering::Relaxed), daemon.controller_ns()?);
    thread::sleep(time);
    let (elapsed, run_ns) = (start.elapsed(), daemon.controller_ns()?.saturating_sub(run_before));
    let checks = answered.load(Ordering::Relaxed) - before;
    // What was answered need not have been an answer to the check.
    if let Some(failed) = daemon.said().lines().find(|line| line.contains(WENT_DOWN)) {
        return Err(io::Error::other(format!("a server that is well was found to be down: {failed}")));
    }
    daemon.stop()?;
    Ok(Cost::of(kind, checks, elapsed, run_ns))
}

/// The program, with the files that it needs.
struct Daemon {
    child: Child,
    log: MemoryFile,
    _config: MemoryFile,
}

impl Daemon {
    fn start(host: &Host, towpath: &Path, kind: CheckedBy, rate: Rate, addresses: &[Ipv4Addr]) -> io::Result<Daemon> {
        let log = MemoryFile::create(b"")?;
        let file = MemoryFile::create(config(kind, rate, host.ipv4(), addresses).as_bytes())?;
        let mut command = Command::new(towpath);
        command.args(["run", "-c"]).arg(file.path());
        command.stdin(Stdio::null()).stdout(log.writer()?).stderr(log.writer()?);
        Ok(Daemon { child: host.spawn(command)?, log, _config: file })
    }

    fn until_serving(&mut self, is_steady: impl Fn() -> bool) -> io::Result<()> {
        let start = Instant::now();
        while !(self.said().contains("serving: ") && is_steady()) {
            if let Some(status) = self.child.wait_timeout(LOOK)? {
                return Err(io::Error::other(format!("it has ended ({status}): {}", self.said())));
            }
            if start.elapsed() > DEADLINE {
                return Err(io::Error::other(format!("the servers are not checked: {}", self.said())));
            }
        }
        Ok(())
    }

    /// Nanoseconds that its controller has run (Documentation/scheduler/sched-stats.rst).
    fn controller_ns(&self) -> io::Result<u64> {
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let task = task?.path();
            if fs::read_to_string(task.join("comm"))?.trim_end() != CONTROLLER {
                continue;
            }
            let text = fs::read_to_string(task.join("schedstat"))?;
            let run = text.split_whitespace().next().and_then(|run| run.parse().ok());
            return run.ok_or_else(|| io::Error::other(format!("schedstat of the controller: {text:?}")));
        }
        Err(io::Error::other(format!("there is no thread `{CONTROLLER}`: {}", self.said())))
    }

    fn stop(mut self) -> io::Result<()> {
        self.child.terminate()?;
        if self.child.wait_timeout(DEADLINE)?.is_none() {
            self.child.kill()?;
        }
        Ok(())
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.log.read().unwrap_or_default()).into_owned()
    }
}

/// Services of at most as many servers as there are addresses, all of them checked.
fn config(kind: CheckedBy, rate: Rate, vip: Ipv4Addr, addresses: &[Ipv4Addr]) -> String {
    let mut text = "[control]\nsocket = \"none\"\n[runtime]\nworkers = [0]\n".to_owned();
    let mut left = rate.servers;
    let interval_ms = rate.interval_ms();
    let rhythm = match kind {
        CheckedBy::None => String::new(),
        _ => format!(", interval = {interval_ms}, timeout = {}, rise = 2, fall = 3", (interval_ms - 1).min(2_000)),
    };
    for port in rate.ports() {
        let _ = write!(
            text,
            "[[service]]\nname = \"service-{port}\"\nvip = \"{vip}\"\nports = {port}\n\
             health = {{ {}{rhythm} }}\n",
            kind.keys()
        );
        for address in addresses.iter().take(left) {
            let _ = write!(text, "[[service.server]]\nname = \"server-{address}\"\naddress = \"{address}\"\n");
        }
        left = left.saturating_sub(addresses.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_configuration_with_one_check_per_server() {
        let rate = Rate { servers: 250, per_minute: 10_000 };
        assert_eq!(rate.interval_ms(), 1500);
        let whole = |seconds| rate.whole_intervals(Duration::from_secs(seconds)).as_millis();
        assert_eq!([0, 1, 3, 20].map(whole), [1500, 1500, 3000, 21_000]);
        let addresses: Vec<Ipv4Addr> = (0..ADDRESSES as u8).map(|last| Ipv4Addr::new(10, 0, 0, last + 1)).collect();
        for kind in CheckedBy::ALL {
            assert_eq!(CheckedBy::find(&kind.to_string()), Some(kind));
            let text = config(kind, rate, Ipv4Addr::new(192, 0, 2, 1), &addresses);
            let checked = towpath_config::check("health.toml", &text);
            assert!(checked.diagnostics.is_empty(), "{kind}: {:?}", checked.diagnostics);
            let model = checked.model.expect("no errors");
            let servers: Vec<usize> = model.groups.iter().map(|group| group.servers.len()).collect();
            assert_eq!(servers, [100, 100, 50], "{kind}");
            assert_eq!(model.groups.iter().all(|group| group.health.is_some()), kind != CheckedBy::None);
        }
        assert_eq!(CheckedBy::find("smoke"), None);
    }

    #[test]
    fn a_goal_is_not_met_by_fewer_checks() {
        let rate = Rate { servers: 500, per_minute: 10_000 };
        let against = |kind, checks| Cost::of(kind, checks, Duration::from_secs(60), 600_000_000).against(1.5, rate);
        assert_eq!(against(CheckedBy::Tcp, 9_600), Goal::Met);
        assert_eq!(against(CheckedBy::Tcp, 9_400), Goal::RateMissed);
        assert_eq!(against(CheckedBy::None, 0), Goal::Met);
        assert_eq!(
            Cost::of(CheckedBy::Tcp, 10_000, Duration::from_secs(60), 900_000_000).against(1.5, rate),
            Goal::Missed
        );
    }

    #[test]
    fn the_cost_is_a_share_of_one_cpu() {
        let cost = Cost::of(CheckedBy::Tcp, 500, Duration::from_secs(3), 30_000_000);
        assert_eq!(
            (cost.checks_per_minute, cost.controller_percent, cost.microseconds_per_check),
            (10_000.0, 1.0, 60.0)
        );
        assert_eq!(Cost::of(CheckedBy::None, 0, Duration::from_secs(1), 0).microseconds_per_check, 0.0);
    }
}
