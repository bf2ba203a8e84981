//! What the kernel tells about this process (proc(5)): descriptors, memory, time on CPUs.

use std::collections::BTreeMap;
use std::fs;

/// Clock ticks a second in what /proc tells (USER_HZ): 100 on every architecture that we run on.
const TICKS_PER_SECOND: u64 = 100;
/// Threads that are looked at: more than there can be workers.
const THREADS_MAX: usize = 4096;
/// proc_pid_stat(5): fields behind the name in parentheses, counted from `state` on.
const USER_TICKS: usize = 11;
const SYSTEM_TICKS: usize = 12;
const THREADS: usize = 17;
const VIRTUAL_BYTES: usize = 20;

/// Of the whole process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProcessUse {
    /// Time on CPUs, user and system.
    pub(crate) cpu_ms: u64,
    pub(crate) resident_bytes: u64,
    pub(crate) virtual_bytes: u64,
    pub(crate) threads: u64,
}

/// As of now; what the kernel does not tell is 0.
pub(crate) fn process_use() -> ProcessUse {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    use_of(&stat, &status)
}

fn use_of(stat: &str, status: &str) -> ProcessUse {
    // The name may hold anything.
    let fields: Vec<u64> = stat
        .rsplit_once(')')
        .map_or("", |(_, behind)| behind)
        .split_ascii_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    let field = |at: usize| fields.get(at).copied().unwrap_or(0);
    let resident_kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_ascii_whitespace().next()?.parse().ok());
    ProcessUse {
        cpu_ms: (field(USER_TICKS) + field(SYSTEM_TICKS)) * (1000 / TICKS_PER_SECOND),
        resident_bytes: resident_kib.unwrap_or(0u64) * 1024,
        virtual_bytes: field(VIRTUAL_BYTES),
        threads: field(THREADS),
    }
}

/// Descriptors that are open.
pub(crate) fn open_descriptors() -> Option<u64> {
    // One of them is the directory that is being read.
    fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1) as u64)
}

/// Time that each thread has had a CPU, in microseconds, by its name; of threads with the same name one. Empty where the kernel does not count it
/// (CONFIG_SCHED_INFO).
pub(crate) fn cpu_times() -> BTreeMap<String, u64> {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return BTreeMap::new() };
    let time = |thread: fs::DirEntry| {
        // A thread may end while it is looked at.
        let name = fs::read_to_string(thread.path().join("comm")).ok()?;
        let schedule = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        let on_cpu_ns: u64 = schedule.split_ascii_whitespace().next()?.parse().ok()?;
        Some((name.trim_end().to_owned(), on_cpu_ns / 1000))
    };
    threads.take(THREADS_MAX).flatten().filter_map(time).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_moves_no_field() {
        let stat = "4711 (tow) path) S 1 4711 4711 0 -1 4194560 900 0 3 0 250 31 0 0 20 0 9 0 88 1048576 77 18446744073709551615";
        let status = "Name:\ttow) path\nVmPeak:\t  2000 kB\nVmRSS:\t     308 kB\nThreads:\t9\n";
        let expected = ProcessUse { cpu_ms: 2810, resident_bytes: 308 * 1024, virtual_bytes: 1_048_576, threads: 9 };
        assert_eq!(use_of(stat, status), expected);
        assert_eq!(use_of("", ""), ProcessUse::default());
    }

    #[test]
    fn this_process_has_memory_threads_and_descriptors() {
        let now = process_use();
        assert!(now.resident_bytes > 0 && now.virtual_bytes >= now.resident_bytes && now.threads > 0, "{now:?}");
        assert!(open_descriptors().is_some_and(|open| open >= 3));
    }
}
