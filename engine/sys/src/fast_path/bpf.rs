//! bpf(2): maps that are memory of ours too, programs, links.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::errno::check;
use crate::socket::own;

// Commands, kinds and flags (linux/bpf.h).
const MAP_CREATE: libc::c_long = 0;
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
const MAP_TYPE_ARRAY: u32 = 2;
/// The map's memory can be mapped (Linux 5.5).
const MMAPABLE: u32 = 1 << 10;
const TCX_INGRESS: u32 = 46;
/// In front of all that are there: none of those may take a frame that the sockets were not shown.
const BEFORE: u32 = 1 << 3;
/// Tell what was checked, in some words.
const LOG_BRIEF: u32 = 1;
/// What the kernel tells about a refused program is kept so far.
const LOG_BYTES: usize = 1 << 20;
/// Lines of it that an error shows.
const LOG_LINES: usize = 12;

/// What a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The ingress of an interface.
    Ingress,
    /// The filter of a socket.
    SocketFilter,
}

impl Kind {
    fn number(self) -> u32 {
        match self {
            Kind::Ingress => 3,
            Kind::SocketFilter => 1,
        }
    }
}

/// The members of `union bpf_attr` for MAP_CREATE, as far as they are used; the kernel takes the others as 0.
#[repr(C)]
struct MapAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

/// Those for PROG_LOAD.
#[repr(C)]
struct ProgramAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

/// Those for LINK_CREATE.
#[repr(C)]
struct LinkAttr {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// An array map of so many elements, whose memory can be mapped.
pub(crate) fn create_array(name: &str, element_octets: u32, elements: u32) -> io::Result<OwnedFd> {
    let attr = MapAttr {
        map_type: MAP_TYPE_ARRAY,
        key_size: size_of::<u32>() as u32,
        value_size: element_octets,
        max_entries: elements,
        map_flags: MMAPABLE,
        inner_map_fd: 0,
        numa_node: 0,
        map_name: object_name(name),
    };
    // SAFETY: a map's attributes hold no address.
    unsafe { call(MAP_CREATE, &attr) }
}

/// Has the kernel check and take a program.
///
/// # Errors
/// Those of the kernel, with the end of what it tells about a program that it refuses.
pub(crate) fn load(name: &str, kind: Kind, program: &[u64]) -> io::Result<OwnedFd> {
    let quiet = match try_load(name, kind, program, &mut []) {
        Ok(loaded) => return Ok(loaded),
        // Of a program that it refuses it says EACCES.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Err(error),
        Err(error) => error,
    };
    let mut log = vec![0; LOG_BYTES];
    let told = match try_load(name, kind, program, &mut log) {
        Ok(loaded) => return Ok(loaded),
        Err(_) => String::from_utf8_lossy(log.split(|&octet| octet == 0).next().unwrap_or_default()).into_owned(),
    };
    let lines: Vec<&str> = told.lines().collect();
    let last = lines[lines.len().saturating_sub(LOG_LINES)..].join("; ");
    let colon = if last.is_empty() { "" } else { ": " };
    Err(io::Error::new(quiet.kind(), format!("{name}: {quiet}{colon}{last}")))
}

fn try_load(name: &str, kind: Kind, program: &[u64], log: &mut [u8]) -> io::Result<OwnedFd> {
    let attr = ProgramAttr {
        prog_type: kind.number(),
        insn_cnt: u32::try_from(program.len()).map_err(io::Error::other)?,
        insns: program.as_ptr().addr() as u64,
        license: c"Apache-2.0".as_ptr().addr() as u64,
        log_level: if log.is_empty() { 0 } else { LOG_BRIEF },
        log_size: log.len() as u32,
        log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr().addr() as u64 },
        kern_version: 0,
        prog_flags: 0,
        prog_name: object_name(name),
    };
    // SAFETY: the addresses and lengths name `program`, a string that ends with NUL, and `log`, which only the kernel writes to; all outlive the call.
    unsafe { call(PROG_LOAD, &attr) }
}

/// Attaches a program to the ingress of an interface of the calling thread's namespace, until the link is closed.
pub(super) fn attach_ingress(program: &impl AsFd, ifindex: u32) -> io::Result<OwnedFd> {
    let attr = LinkAttr {
        prog_fd: program.as_fd().as_raw_fd().cast_unsigned(),
        target_ifindex: ifindex,
        attach_type: TCX_INGRESS,
        flags: BEFORE,
    };
    // SAFETY: a link's attributes hold no address.
    unsafe { call(LINK_CREATE, &attr) }
}

/// What the kernel shows an object as: at most 15 letters.
fn object_name(name: &str) -> [u8; 16] {
    let mut octets = [0; 16];
    octets.iter_mut().zip(name.bytes().take(15)).for_each(|(to, from)| *to = from);
    octets
}

/// Makes an object of bpf(2).
///
/// # Safety
/// The addresses in `attr` are those of memory that is as long as `attr` says and outlives the call.
unsafe fn call<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    let place: *const T = attr;
    // SAFETY: the pointer and length name `attr`, which outlives the call; the caller vouches for the addresses in it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, place, size_of::<T>()) };
    let raw = libc::c_int::try_from(result).map_err(io::Error::other)?;
    Ok(own(check(raw)?))
}
