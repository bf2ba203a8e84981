//! Facts about this machine: CPUs, descriptors, memory, addresses, port ranges.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::mem;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::address::RawAddress;
use crate::errno::check;

/// How many descriptors this process may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorLimit {
    /// In force now.
    pub soft: u64,
    /// To which it can be raised without privilege.
    pub hard: u64,
}

/// Main memory of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total_bytes: u64,
    /// What new work can take without swapping.
    pub available_bytes: u64,
}

/// An address that this host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAddress {
    /// Name of the interface it is on.
    pub interface: String,
    /// The address.
    pub ip: IpAddr,
    /// Length of its network's prefix.
    pub prefix: u8,
    /// Whether the interface is up.
    pub up: bool,
}

/// The limit on descriptors.
pub fn nofile_limit() -> io::Result<DescriptorLimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one rlimit into `limit`, which outlives the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    Ok(DescriptorLimit { soft: limit.rlim_cur, hard: limit.rlim_max })
}

/// Raises the limit on descriptors as far as it goes without privilege, and tells where it is now.
pub fn raise_nofile_limit() -> io::Result<DescriptorLimit> {
    let limit = nofile_limit()?;
    let wanted = libc::rlimit { rlim_cur: limit.hard, rlim_max: limit.hard };
    // SAFETY: the kernel reads one rlimit from `wanted`, which outlives the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &wanted) })?;
    nofile_limit()
}

/// The CPUs this thread may run on, ascending.
pub fn available_cpus() -> io::Result<Vec<usize>> {
    // SAFETY: cpu_set_t is an array of integers, for which all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes at most the given size into `set`, which outlives the call; 0 is the calling thread.
    check(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) })?;
    let bits = size_of::<libc::cpu_set_t>() * 8;
    Ok((0..bits)
        .filter(|&cpu| {
            // SAFETY: `cpu` is below the number of bits in the set.
            unsafe { libc::CPU_ISSET(cpu, &set) }
        })
        .collect())
}

/// Keeps the calling thread on the given CPUs; threads and processes it starts inherit it.
pub fn pin_thread(cpus: &[usize]) -> io::Result<()> {
    let bits = size_of::<libc::cpu_set_t>() * 8;
    // SAFETY: cpu_set_t is an array of integers, for which all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    for &cpu in cpus {
        if cpu >= bits {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("CPU {cpu}: the kernel's set ends at {bits}"),
            ));
        }
        // SAFETY: `cpu` is below the number of bits in the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: the kernel reads `set`, which outlives the call; 0 is the calling thread.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) })?;
    Ok(())
}

/// Has the calling thread give way to every other of usual priority.
pub fn give_way() -> io::Result<()> {
    // SAFETY: setpriority takes integers and touches no memory of ours; 0 is the calling thread (NPTL).
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) })?;
    Ok(())
}

/// Has the calling thread run only while its CPU has nothing else to do (SCHED_IDLE, sched(7)): whoever wakes up there goes first at once.
pub fn run_when_idle() -> io::Result<()> {
    // SAFETY: zeroes are a valid sched_param, and the priority that SCHED_IDLE asks for.
    let parameters: libc::sched_param = unsafe { mem::zeroed() };
    // SAFETY: the kernel reads `parameters`, which outlive the call; 0 is the calling thread.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &parameters) })?;
    Ok(())
}

/// Lets timed waits of the calling thread end so many nanoseconds (> 0) late, to be woken with others; 50,000 by default.
pub fn set_timer_slack(slack_ns: u32) -> io::Result<()> {
    // SAFETY: PR_SET_TIMERSLACK takes an integer and touches no memory of ours.
    check(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, libc::c_ulong::from(slack_ns)) })?;
    Ok(())
}

/// Lets a program that this thread starts do what this thread may: every capability that it has becomes ambient (capabilities(7)). The other threads
/// keep theirs to themselves.
pub fn hand_on_all_capabilities() -> io::Result<()> {
    /// `struct __user_cap_header_struct` (include/uapi/linux/capability.h).
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    /// `struct __user_cap_data_struct`, of which there are two: the low and the high half.
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Half {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3`
    const VERSION: u32 = 0x2008_0522;
    let mut header = Header { version: VERSION, pid: 0 };
    let mut halves = [Half::default(); 2];
    // SAFETY: the kernel reads one header and writes two halves; both outlive the call.
    check_call(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, halves.as_mut_ptr()) })?;
    // A service manager that gives us ambient ones has made them inheritable already.
    if halves.iter().any(|half| half.permitted & !half.inheritable != 0) {
        halves.iter_mut().for_each(|half| half.inheritable |= half.permitted);
        // SAFETY: the kernel reads one header and two halves; both outlive the call.
        check_call(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, halves.as_ptr()) })?;
    }
    for capability in 0..64_u32 {
        if halves[capability as usize / 32].permitted & (1 << (capability % 32)) == 0 {
            continue;
        }
        let none: libc::c_ulong = 0;
        // SAFETY: prctl(2) takes five numbers here, and changes this thread's credentials only.
        check(unsafe {
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong,
                libc::c_ulong::from(capability),
                none,
                none,
            )
        })?;
    }
    Ok(())
}

fn check_call(result: libc::c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Keeps what this thread may do, and those that it makes, from programs that they start: no capability is ambient any more (capabilities(7)). A
/// service manager hands capabilities to us that way.
pub fn hand_on_no_capabilities() -> io::Result<()> {
    let none: libc::c_ulong = 0;
    // SAFETY: prctl(2) takes five numbers here, and changes this thread's credentials only.
    check(unsafe {
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, none, none, none)
    })?;
    Ok(())
}

/// The ports the kernel picks from when a socket asks for none (of the calling thread's network namespace).
pub fn ip_local_port_range() -> io::Result<RangeInclusive<u16>> {
    let path = "/proc/sys/net/ipv4/ip_local_port_range";
    let text = fs::read_to_string(path)?;
    let mut ports = text.split_whitespace().map(str::parse::<u16>);
    match (ports.next(), ports.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok(first..=last),
        _ => Err(unreadable(path, &text)),
    }
}

/// The longest backlog a listener gets (of the calling thread's network namespace).
pub fn somaxconn() -> io::Result<u32> {
    let path = "/proc/sys/net/core/somaxconn";
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(|_| unreadable(path, &text))
}

/// Memory of the machine.
pub fn memory() -> io::Result<Memory> {
    let path = "/proc/meminfo";
    let text = fs::read_to_string(path)?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
            .map(|kib| kib * 1024)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{path}: no line `{name}`")))
    };
    Ok(Memory { total_bytes: field("MemTotal:")?, available_bytes: field("MemAvailable:")? })
}

/// Waits until a descriptor has something to read or its peer is gone; `TimedOut` after `timeout`.
pub fn await_readable(fd: &impl AsFd, timeout: Duration) -> io::Result<()> {
    await_events(fd, libc::POLLIN, timeout)
}

/// Waits until a descriptor takes something or its peer is gone; `TimedOut` after `timeout`. A pipe that does takes 4,096 bytes (`PIPE_BUF`, pipe(7)).
pub fn await_writable(fd: &impl AsFd, timeout: Duration) -> io::Result<()> {
    await_events(fd, libc::POLLOUT, timeout)
}

fn await_events(fd: &impl AsFd, events: libc::c_short, timeout: Duration) -> io::Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up: a remainder below a millisecond must not spin.
        let left_ms = libc::c_int::try_from(left.as_millis() + 1).unwrap_or(libc::c_int::MAX);
        let mut poll = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events, revents: 0 };
        // SAFETY: the kernel reads and writes one pollfd, which outlives the call.
        match check(unsafe { libc::poll(&mut poll, 1, left_ms) }) {
            Ok(0) if Instant::now() >= deadline => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("nothing within {timeout:?}")));
            }
            Ok(0) => {}
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Opens a file to append to, made if it is not there (mode 640). A named pipe is not waited for: without a reader it is `ENXIO`, and a full one takes
/// nothing.
pub fn open_to_append(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

/// Whether `error` says that nobody reads a named pipe.
pub fn is_without_reader(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENXIO)
}

/// What CLOCK_MONOTONIC shows, in milliseconds: the clock of the kernel's programs, and that of `Instant`.
pub fn monotonic_ms() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer names `time`, which outlives the call; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    (time.tv_sec as u64).saturating_mul(1000) + time.tv_nsec as u64 / 1_000_000
}

/// Time that the calling thread has had a CPU, the kernel's work for it included, in microseconds.
pub fn thread_cpu_us() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer names `time`, which outlives the call; every thread has this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    (time.tv_sec as u64).saturating_mul(1_000_000) + time.tv_nsec as u64 / 1_000
}

/// Release of the running kernel, as in `6.1.0-25-amd64`.
pub fn kernel_release() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned())
}

/// Every IPv4 and IPv6 address of the calling thread's network namespace.
pub fn addresses() -> io::Result<Vec<HostAddress>> {
    let mut head: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: getifaddrs writes the head of a list, which is freed below and not touched after.
    check(unsafe { libc::getifaddrs(&mut head) })?;
    let mut found = Vec::new();
    let mut next = head;
    while !next.is_null() {
        // SAFETY: `next` is a non-null node of the list that getifaddrs returned and that is not freed yet.
        let node = unsafe { &*next };
        next = node.ifa_next;
        let Some(ip) = read_ip(node.ifa_addr) else {
            continue;
        };
        // SAFETY: ifa_name is a NUL-terminated string that lives as long as the list.
        let name = unsafe { CStr::from_ptr(node.ifa_name) };
        let prefix = read_ip(node.ifa_netmask).map_or(0, |mask| match mask {
            IpAddr::V4(mask) => mask.to_bits().leading_ones() as u8,
            IpAddr::V6(mask) => mask.to_bits().leading_ones() as u8,
        });
        found.push(HostAddress {
            interface: name.to_string_lossy().into_owned(),
            ip,
            prefix,
            up: node.ifa_flags & libc::IFF_UP as libc::c_uint != 0,
        });
    }
    // SAFETY: `head` came from getifaddrs and no reference into the list is left.
    unsafe { libc::freeifaddrs(head) };
    Ok(found)
}

/// The address behind a sockaddr of getifaddrs; `None` when absent or neither IPv4 nor IPv6.
fn read_ip(address: *const libc::sockaddr) -> Option<IpAddr> {
    if address.is_null() {
        return None;
    }
    // SAFETY: getifaddrs lets it point to a sockaddr, whose family comes first.
    let family = libc::c_int::from(unsafe { (*address).sa_family });
    let length = match family {
        libc::AF_INET => size_of::<libc::sockaddr_in>(),
        libc::AF_INET6 => size_of::<libc::sockaddr_in6>(),
        _ => return None,
    };
    // SAFETY: the family says that `length` bytes are there, and the list they are part of outlives this function.
    let bytes = unsafe { std::slice::from_raw_parts(address.cast::<u8>(), length) };
    RawAddress::from_bytes(bytes).map(|raw| raw.to_socket_addr().ip())
}

fn unreadable(path: &str, text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{path}: unexpected content {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_among_the_addresses() {
        let addresses = addresses().unwrap();
        let loopback = addresses.iter().find(|a| a.ip == IpAddr::from([127, 0, 0, 1])).unwrap();
        assert_eq!((loopback.interface.as_str(), loopback.prefix), ("lo", 8));
    }

    #[test]
    fn a_pinned_thread_runs_on_its_cpu_only() {
        let cpu = *available_cpus().unwrap().last().unwrap();
        std::thread::spawn(move || {
            pin_thread(&[cpu]).unwrap();
            assert_eq!(available_cpus().unwrap(), [cpu]);
            assert!(pin_thread(&[1 << 20]).is_err());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_program_gets_what_the_thread_that_starts_it_hands_on() {
        let line = |status: &str, name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
        };
        let ours = || fs::read_to_string("/proc/thread-self/status").unwrap();
        let before = line(&ours(), "CapAmb:");
        std::thread::spawn(move || {
            hand_on_all_capabilities().unwrap();
            let permitted = line(&ours(), "CapPrm:");
            let output = std::process::Command::new("cat").arg("/proc/self/status").output().unwrap();
            assert_eq!(line(&String::from_utf8(output.stdout).unwrap(), "CapAmb:"), permitted);
            hand_on_no_capabilities().unwrap();
            assert_eq!(line(&ours(), "CapAmb:"), "0000000000000000");
        })
        .join()
        .unwrap();
        assert_eq!(line(&ours(), "CapAmb:"), before, "other threads keep theirs to themselves");
    }

    #[test]
    fn the_machine_tells_its_limits() {
        let limit = raise_nofile_limit().unwrap();
        assert_eq!(limit.soft, limit.hard);
        assert!(somaxconn().unwrap() > 0);
        let ports = ip_local_port_range().unwrap();
        assert!(ports.start() < ports.end());
        let memory = memory().unwrap();
        assert!(memory.available_bytes <= memory.total_bytes);
        assert!(!kernel_release().unwrap().is_empty());
    }
}
