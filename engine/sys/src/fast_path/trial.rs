//! BPF_PROG_TEST_RUN: a program on a frame as if it arrived on the loopback of the calling thread's namespace.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::errno::check;

const PROG_TEST_RUN: libc::c_long = 10;
/// Octets of `struct __sk_buff` up to and with `gso_size`, and room behind it.
const CONTEXT_BYTES: usize = 184;
const IFINDEX: usize = 40;
const GSO_SIZE: usize = 176;
/// Room for the frame that comes out.
const FRAME_BYTES: usize = 4096;

/// The members of `union bpf_attr` for PROG_TEST_RUN, as far as they are used.
#[repr(C)]
#[derive(Default)]
struct Attr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
}

/// What a program did with a frame that nobody has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// What it returned.
    pub result: i32,
    /// The frame as it left it.
    pub frame: Vec<u8>,
}

/// Runs a program on a frame to the station 00:00:00:00:00:00 that arrives on interface 1; of a super-packet, each segment has so many octets of payload.
pub(super) fn run(program: BorrowedFd<'_>, frame: &[u8], segment_bytes: u16) -> io::Result<Trial> {
    let mut skb = [0_u8; CONTEXT_BYTES];
    skb[IFINDEX..IFINDEX + 4].copy_from_slice(&1_u32.to_ne_bytes());
    skb[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&u32::from(segment_bytes).to_ne_bytes());
    let mut out = vec![0_u8; FRAME_BYTES];
    let mut attr = Attr {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        data_size_in: frame.len() as u32,
        data_size_out: out.len() as u32,
        data_in: frame.as_ptr().addr() as u64,
        data_out: out.as_mut_ptr().expose_provenance() as u64,
        ctx_size_in: skb.len() as u32,
        ctx_in: skb.as_ptr().addr() as u64,
        ..Attr::default()
    };
    // SAFETY: the addresses and lengths name `frame`, `out` and `skb`; all outlive the call.
    unsafe { call(&mut attr) }?;
    out.truncate(attr.data_size_out as usize);
    Ok(Trial { result: attr.retval.cast_signed(), frame: out })
}

/// Runs a program on a frame for what else it does.
pub(crate) fn run_for_effect(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<()> {
    let mut attr = Attr {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        data_size_in: frame.len() as u32,
        data_in: frame.as_ptr().addr() as u64,
        ..Attr::default()
    };
    // SAFETY: address and length name `frame`, which outlives the call.
    unsafe { call(&mut attr) }
}

/// Has the kernel run a program.
///
/// # Safety
/// The addresses in `attr` are those of memory that is as long as `attr` says, may be written to where the kernel writes, and outlives the call.
unsafe fn call(attr: &mut Attr) -> io::Result<()> {
    let place: *mut Attr = attr;
    // SAFETY: the pointer and length name `attr`, which outlives the call; the caller vouches for the addresses in it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, place, size_of::<Attr>()) };
    check(result as libc::c_int)?;
    Ok(())
}
