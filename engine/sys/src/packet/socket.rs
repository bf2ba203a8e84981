//! Packet sockets (packet(7)): opened, bound to an interface, asked for their losses.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::errno::check;
use crate::socket::own;

/// The number of an interface of the calling thread's namespace.
pub(super) fn index_of(interface: &str) -> io::Result<u32> {
    let name = CString::new(interface)?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => {
            let error = io::Error::last_os_error();
            Err(io::Error::new(error.kind(), format!("interface `{interface}`: {error}")))
        }
        index => Ok(index),
    }
}

/// A packet socket that nothing arrives at before it is bound.
pub(super) fn open() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes no pointer.
    Ok(own(check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?))
}

/// Lets the frames of an interface arrive, of every protocol: a socket for one protocol sits behind the ingress hook of nftables.
pub(super) fn bind(fd: &impl AsFd, index: u32) -> io::Result<()> {
    // SAFETY: sockaddr_ll is plain integers, for which all zeroes is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = libc::c_int::try_from(index).map_err(io::Error::other)?;
    let place: *const libc::sockaddr_ll = &address;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer and length name `address`, which outlives the call.
    check(unsafe { libc::bind(fd.as_fd().as_raw_fd(), place.cast(), length) })?;
    Ok(())
}

/// Whether the interface that the socket was bound to is still there: the kernel unbinds the sockets of one that goes.
pub(super) fn is_bound(fd: &impl AsFd) -> io::Result<bool> {
    // SAFETY: sockaddr_ll is plain integers, for which all zeroes is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    let place: *mut libc::sockaddr_ll = &mut address;
    let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointers name `address` and its length; both outlive the call.
    check(unsafe { libc::getsockname(fd.as_fd().as_raw_fd(), place.cast(), &mut length) })?;
    Ok(address.sll_ifindex > 0)
}

/// Whether the interface of that number, in the socket's namespace, is administratively up; `ENODEV` when there is none.
pub(super) fn is_up(fd: &impl AsFd, index: u32) -> io::Result<bool> {
    // SAFETY: ifreq is plain integers and a pointer, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_ifru.ifru_ifindex = libc::c_int::try_from(index).map_err(io::Error::other)?;
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: the kernel reads and writes one ifreq, which outlives the call; this fills in the name.
    check(unsafe { libc::ioctl(raw, libc::SIOCGIFNAME as _, &mut request) })?;
    // SAFETY: as above; this replaces the number by the flags.
    check(unsafe { libc::ioctl(raw, libc::SIOCGIFFLAGS as _, &mut request) })?;
    // SAFETY: the kernel has just written this member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(libc::c_int::from(flags) & libc::IFF_UP != 0)
}

/// How many frames the socket had no room for since the last call.
pub(super) fn take_losses(fd: &impl AsFd) -> io::Result<u64> {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let place: *mut libc::tpacket_stats = &mut stats;
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: the pointers name `stats` and its length; both outlive the call.
    check(unsafe { libc::getsockopt(raw, libc::SOL_PACKET, libc::PACKET_STATISTICS, place.cast(), &mut length) })?;
    Ok(u64::from(stats.tp_drops))
}
