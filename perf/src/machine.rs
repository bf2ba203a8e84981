//! What a reader has to know about the machine behind a figure.

use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};

/// Facts about the machine and the programs measured on it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// As the CPU calls itself.
    pub cpu_model: String,
    /// How many CPUs this process may use.
    pub cpus: usize,
    /// Frequency governor of CPU 0, where there is one.
    pub governor: Option<String>,
    /// Release of the kernel.
    pub kernel: String,
    /// Main memory.
    pub memory_bytes: u64,
    /// Largest share of the work on the watched CPUs in a counted time that was neither the subject's, the client's nor the origin's.
    pub others_share_max: f64,
    /// Which CPU did what: `balancer`, `client`.
    pub pins: BTreeMap<String, Vec<usize>>,
    /// Rounds that were thrown away and taken again because other programs disturbed them.
    pub rounds_retaken: usize,
    /// Largest share of a counted time that the hypervisor took from one of these CPUs.
    pub steal_share_max: f64,
    /// What each subject says about its version.
    pub versions: BTreeMap<String, String>,
}

impl Machine {
    /// Facts that do not depend on the measurement.
    pub fn describe() -> Machine {
        let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu_model = cpu_info
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, value)| value.trim().to_owned()))
            .unwrap_or_else(|| "unknown".into());
        Machine {
            cpu_model,
            cpus: towpath_sys::host::available_cpus().map_or(0, |cpus| cpus.len()),
            governor: fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
                .ok()
                .map(|text| text.trim().to_owned()),
            kernel: towpath_sys::host::kernel_release().unwrap_or_else(|_| "unknown".into()),
            memory_bytes: towpath_sys::host::memory().map_or(0, |memory| memory.total_bytes),
            ..Machine::default()
        }
    }
}
