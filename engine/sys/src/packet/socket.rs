//! Packet sockets (packet(7)): opened, bound to an interface, asked for their losses.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::tag::Tag;
use crate::errno::{check, check_length};
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

/// Lets the frames of an interface arrive, or with number 0 those of all, of every protocol: a socket for one protocol sits behind the ingress hook of
/// nftables.
pub(super) fn bind(fd: &impl AsFd, index: u32) -> io::Result<()> {
    let address = link_address(index)?;
    let place: *const libc::sockaddr_ll = &address;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer and length name `address`, which outlives the call.
    check(unsafe { libc::bind(fd.as_fd().as_raw_fd(), place.cast(), length) })?;
    Ok(())
}

/// An interface as an address: to receive its frames, or to send by it.
pub(super) fn link_address(index: u32) -> io::Result<libc::sockaddr_ll> {
    // SAFETY: sockaddr_ll is plain integers, for which all zeroes is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = libc::c_int::try_from(index).map_err(io::Error::other)?;
    Ok(address)
}

/// A frame that a socket with PACKET_AUXDATA has received.
pub(super) struct Received {
    /// Its bytes, also where there was room for fewer.
    pub(super) length: usize,
    /// Where it came in, and for whom it was.
    pub(super) from: libc::sockaddr_ll,
    /// The tag that the kernel has taken off.
    pub(super) tag: Option<Tag>,
}

/// Room for one message about a frame, aligned as such a message is.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Receives a frame, without waiting.
pub(super) fn receive(fd: &impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    // SAFETY: sockaddr_ll is plain integers, for which all zeroes is a value.
    let mut from: libc::sockaddr_ll = unsafe { mem::zeroed() };
    let mut control = Control([0; 64]);
    let mut room = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let place: *mut libc::sockaddr_ll = &mut from;
    // SAFETY: all zeroes is a valid msghdr: null pointers with zero lengths.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = place.cast();
    message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    message.msg_iov = &mut room;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: the message names `buffer`, `from` and `control` with their lengths; all outlive the call.
    let length = check_length(unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &mut message, flags) })?;
    Ok(Received { length, from, tag: tag_of(&message) })
}

/// The tag that the control messages tell of.
fn tag_of(message: &libc::msghdr) -> Option<Tag> {
    // SAFETY: the kernel has filled in the message, whose control buffer is still there.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !next.is_null() {
        // SAFETY: not null, so it lies whole in the control buffer, which is aligned for it.
        let header = unsafe { &*next };
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
            // SAFETY: as above.
            let data: *const libc::tpacket_auxdata = unsafe { libc::CMSG_DATA(next) }.cast();
            // SAFETY: this is what such a message carries, wherever it is aligned.
            let aux = unsafe { data.read_unaligned() };
            return Tag::of_aux(aux.tp_status, aux.tp_vlan_tci, aux.tp_vlan_tpid);
        }
        // SAFETY: as for the first one.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
    None
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
