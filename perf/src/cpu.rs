//! What CPUs spend their time on, from /proc/stat.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// What /proc/stat counts in, per second (USER_HZ: 100 on every architecture Linux runs on here).
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds of work of these processes since they started; a process that is gone counts as 0.
pub fn process_seconds(pids: &[u32]) -> f64 {
    let ticks: u64 = pids.iter().filter_map(|pid| Some(ProcessStat::read(*pid)?.busy_ticks)).sum();
    ticks as f64 / TICKS_PER_SECOND
}

/// Seconds of work since its start of each process that ran last on one of these CPUs.
pub fn process_seconds_on(cpus: &[usize]) -> io::Result<BTreeMap<u32, f64>> {
    let seconds = |stat: ProcessStat| stat.busy_ticks as f64 / TICKS_PER_SECOND;
    Ok(processes()?
        .into_iter()
        .filter(|(_, stat)| cpus.contains(&stat.last_cpu))
        .map(|(pid, stat)| (pid, seconds(stat)))
        .collect())
}

/// Nanoseconds that the threads of these processes have run, softirqs in their name included; a process that is gone counts as 0.
pub fn run_time_ns(pids: &[u32]) -> u64 {
    let threads = pids.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok()).flatten().flatten();
    threads
        .filter_map(|thread| {
            // Documentation/scheduler/sched-stats.rst: time on the CPU, time waiting for it, times it got it.
            let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        })
        .sum()
}

/// Nanoseconds that each thread of a process with such a name has run or has waited for a CPU, in the order of their names: what it had to do, whoever
/// else had its CPU meanwhile.
pub fn wanted_time_ns(pid: u32, name: impl Fn(&str) -> bool) -> io::Result<Vec<u64>> {
    let mut threads = BTreeMap::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = thread?.path();
        let called = fs::read_to_string(path.join("comm"))?;
        if name(called.trim_end()) {
            threads.insert(called, parse_wanted(&fs::read_to_string(path.join("schedstat"))?).unwrap_or_default());
        }
    }
    Ok(threads.into_values().collect())
}

/// Documentation/scheduler/sched-stats.rst: time on the CPU, time waiting for it, times it got it.
fn parse_wanted(schedstat: &str) -> Option<u64> {
    let mut words = schedstat.split_whitespace().map(str::parse::<u64>);
    Some(words.next()?.ok()?.saturating_add(words.next()?.ok()?))
}

/// Memory of these processes, in bytes; pages that several share count once. A process that is gone counts as 0.
pub fn memory_bytes(pids: &[u32]) -> u64 {
    let text = pids.iter().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok());
    text.filter_map(|text| parse_pss(&text)).sum()
}

/// The proportional set size: a page of n processes counts 1/n in each.
fn parse_pss(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// A process and all that descend from it.
pub fn process_tree(root: u32) -> io::Result<Vec<u32>> {
    let all = processes()?;
    let mut tree = vec![root];
    let mut next = 0;
    // Every process has one parent, so none is added twice and this ends with the last one.
    while let Some(&parent) = tree.get(next) {
        tree.extend(all.iter().filter(|(_, stat)| stat.parent == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    Ok(tree)
}

/// The kernel's threads for softirqs that were put off, which do network work of whoever caused it.
pub fn softirq_threads() -> io::Result<Vec<u32>> {
    Ok(processes()?.into_iter().filter(|(_, stat)| stat.name.starts_with("ksoftirqd/")).map(|(pid, _)| pid).collect())
}

fn processes() -> io::Result<Vec<(u32, ProcessStat)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may have ended since the folder was read.
        found.extend(ProcessStat::read(pid).map(|stat| (pid, stat)));
    }
    Ok(found)
}

/// What /proc/PID/stat tells that matters here.
struct ProcessStat {
    name: String,
    parent: u32,
    busy_ticks: u64,
    last_cpu: usize,
}

impl ProcessStat {
    fn read(pid: u32) -> Option<ProcessStat> {
        ProcessStat::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<ProcessStat> {
        // proc(5): pid (comm) state ppid …; comm may contain anything, also parentheses. utime and stime are fields 14 and 15, processor is 39.
        let (before, after) = text.rsplit_once(')')?;
        let (_, name) = before.split_once('(')?;
        let fields: Vec<&str> = after.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(ProcessStat {
            name: name.to_owned(),
            parent: u32::try_from(field(4)?).ok()?,
            busy_ticks: field(14)? + field(15)?,
            last_cpu: usize::try_from(field(39)?).ok()?,
        })
    }
}

/// Time of one CPU that was not work, since boot.
///
/// What /proc/stat calls work is sampled at ticks, and an idle CPU has none: packets that are steered to it then are received in
/// interrupts that nothing counts. Idle time is exact (kernel/time/tick-sched.c: `get_cpu_idle_time_us`, interrupts excluded), so
/// work is the time that was neither idle nor stolen.
#[derive(Clone, Copy, Debug)]
pub struct CpuTime {
    at: Instant,
    /// Idle and waiting for I/O.
    idle_ticks: u64,
    /// Taken by the hypervisor for others.
    steal_ticks: u64,
}

/// What a CPU did between two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuUse {
    /// Seconds of work: user, system, interrupts and softirqs; steal excluded.
    pub busy_s: f64,
    /// Share of the time that was ours in which it worked.
    pub busy_share: f64,
    /// Share of the time that the hypervisor took.
    pub steal_share: f64,
}

impl CpuTime {
    /// Reads the time of some CPUs, in the order asked for.
    pub fn read(cpus: &[usize]) -> io::Result<Vec<CpuTime>> {
        let (at, text) = (Instant::now(), fs::read_to_string("/proc/stat")?);
        cpus.iter()
            .map(|cpu| {
                let (idle_ticks, steal_ticks) = parse(&text, *cpu).ok_or_else(|| {
                    io::Error::new(io::ErrorKind::NotFound, format!("CPU {cpu} is not in /proc/stat; see `lscpu`"))
                })?;
                Ok(CpuTime { at, idle_ticks, steal_ticks })
            })
            .collect()
    }

    /// What happened since an earlier reading.
    pub fn since(self, earlier: CpuTime) -> CpuUse {
        let seconds = |later: u64, earlier: u64| later.saturating_sub(earlier) as f64 / TICKS_PER_SECOND;
        let elapsed_s = self.at.saturating_duration_since(earlier.at).as_secs_f64();
        let idle_s = seconds(self.idle_ticks, earlier.idle_ticks);
        let steal_s = seconds(self.steal_ticks, earlier.steal_ticks);
        let busy_s = (elapsed_s - idle_s - steal_s).max(0.0);
        let share = |part: f64, whole: f64| if whole > 0.0 { (part / whole).min(1.0) } else { 0.0 };
        CpuUse { busy_s, busy_share: share(busy_s, elapsed_s - steal_s), steal_share: share(steal_s, elapsed_s) }
    }
}

/// Idle and stolen ticks of a CPU.
fn parse(text: &str, cpu: usize) -> Option<(u64, u64)> {
    let name = format!("cpu{cpu}");
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(&name))?;
    let ticks: Vec<u64> = line.split_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
    // proc(5): user nice system idle iowait irq softirq steal …
    let &[_, _, _, idle, iowait, _, _, steal, ..] = ticks.as_slice() else { return None };
    Some((idle + iowait, steal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const STAT: &str = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu1 1 2 3 40 5 6 7 8 0 0\ncpu10 1 0 0 0 0 0 0 0 0 0\nintr 1\n";

    #[test]
    fn who_waits_for_a_cpu_wants_it() {
        assert_eq!(parse_wanted("2000 700 31\n"), Some(2700));
        assert_eq!((parse_wanted(""), parse_wanted("2000"), parse_wanted("a b c")), (None, None, None));
        let own = std::process::id();
        let all = wanted_time_ns(own, |_| true).unwrap();
        assert!(!all.is_empty() && wanted_time_ns(own, |name| name == "nobody's name").unwrap().is_empty());
    }

    #[test]
    fn waiting_is_idle_and_a_cpu_is_found_by_its_whole_name() {
        assert_eq!(parse(STAT, 1), Some((45, 8)));
        assert_eq!(parse(STAT, 10), Some((0, 0)));
        assert_eq!(parse(STAT, 2), None);
    }

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let text = "42 (a (b) c) S 7 1 1 0 -1 0 0 0 0 0 100 23 0 0 20 0 1 0 5 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 17 3 0";
        let stat = ProcessStat::parse(text).unwrap();
        assert_eq!((stat.name.as_str(), stat.parent, stat.busy_ticks, stat.last_cpu), ("a (b) c", 7, 123, 3));
        let own = std::process::id();
        let parent = ProcessStat::read(own).unwrap().parent;
        assert!(process_tree(parent).unwrap().contains(&own));
    }

    #[test]
    fn own_memory_and_time_can_be_told() {
        let own = [std::process::id()];
        assert_eq!(parse_pss("00-7f rollup\nRss:  1796 kB\nPss:   461 kB\nPss_Dirty: 9 kB\n"), Some(461 * 1024));
        assert!(memory_bytes(&own) > 4096);
        assert!(run_time_ns(&own) > 0);
        assert_eq!((memory_bytes(&[u32::MAX]), run_time_ns(&[u32::MAX])), (0, 0));
    }

    #[test]
    fn work_is_what_was_neither_idle_nor_stolen() {
        let earlier = CpuTime { at: Instant::now(), idle_ticks: 1_000, steal_ticks: 10 };
        let at = |seconds| earlier.at + Duration::from_secs(seconds);
        for (later, busy_s, busy_share, steal_share) in [
            (CpuTime { at: at(2), idle_ticks: 1_050, steal_ticks: 110 }, 0.5, 0.5, 0.5),
            (CpuTime { at: at(2), idle_ticks: 1_000, steal_ticks: 10 }, 2.0, 1.0, 0.0),
            // Ticks and clock are not read in the same moment.
            (CpuTime { at: at(1), idle_ticks: 1_101, steal_ticks: 10 }, 0.0, 0.0, 0.0),
            (earlier, 0.0, 0.0, 0.0),
        ] {
            let used = later.since(earlier);
            assert_eq!(
                (used.busy_s, used.busy_share, used.steal_share),
                (busy_s, busy_share, steal_share),
                "{later:?}"
            );
        }
    }
}
