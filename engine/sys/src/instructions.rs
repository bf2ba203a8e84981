//! Instructions that a thread has executed, where the processor counts them.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{FromRawFd, OwnedFd};

// include/uapi/linux/perf_event.h
const TYPE_HARDWARE: u32 = 0;
const HARDWARE_INSTRUCTIONS: u64 = 1;
const EXCLUDE_KERNEL: u64 = 1 << 5;
const EXCLUDE_HYPERVISOR: u64 = 1 << 6;
const CLOSE_ON_EXEC: libc::c_ulong = 1 << 3;

/// `struct perf_event_attr` as of its first version: whatever came later is 0 to the kernel.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    breakpoint_address: u64,
}

/// Counts what the thread that opened it executes in user mode.
#[derive(Debug)]
pub struct InstructionCounter {
    file: File,
}

impl InstructionCounter {
    /// Starts to count for the calling thread; `None` where nobody can: most virtual machines have no counters, and
    /// `kernel.perf_event_paranoid` may forbid their use.
    pub fn open() -> Option<InstructionCounter> {
        let attributes = Attributes {
            kind: TYPE_HARDWARE,
            size: size_of::<Attributes>() as u32,
            config: HARDWARE_INSTRUCTIONS,
            flags: EXCLUDE_KERNEL | EXCLUDE_HYPERVISOR,
            ..Attributes::default()
        };
        let place: *const Attributes = &attributes;
        let (this_thread, any_cpu, no_group): (libc::pid_t, libc::c_int, libc::c_int) = (0, -1, -1);
        // SAFETY: the kernel reads `size` bytes from `attributes`, which outlives the call; the other arguments are integers.
        let raw =
            unsafe { libc::syscall(libc::SYS_perf_event_open, place, this_thread, any_cpu, no_group, CLOSE_ON_EXEC) };
        let raw = libc::c_int::try_from(raw).ok().filter(|&raw| raw >= 0)?;
        // SAFETY: perf_event_open has just returned this descriptor, and nobody else holds it.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        Some(InstructionCounter { file: fd.into() })
    }

    /// Instructions so far.
    pub fn read(&self) -> io::Result<u64> {
        let mut count = [0; 8];
        (&self.file).read_exact(&mut count)?;
        Ok(u64::from_ne_bytes(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_work_is_more_instructions() {
        let Some(counter) = InstructionCounter::open() else { return };
        let work = |turns: u64| {
            let before = counter.read().unwrap();
            std::hint::black_box((0..turns).fold(0, |sum: u64, turn| std::hint::black_box(sum ^ turn)));
            counter.read().unwrap() - before
        };
        assert!(work(100_000) > work(1_000) + 100_000);
    }
}
