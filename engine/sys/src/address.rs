//! Socket addresses in the kernel's layout, and back.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// An IPv4 or IPv6 socket address as the kernel reads and writes it, with its length.
///
/// A ring operation that names it must keep it in place until the operation is submitted.
#[derive(Clone, Copy)]
pub struct RawAddress {
    /// Of family AF_INET or AF_INET6: every constructor sees to it.
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

impl RawAddress {
    /// Lets a system call write an address into the given place, of the given length, and returns its result beside the address.
    pub(crate) fn written_by(
        call: impl FnOnce(*mut libc::sockaddr, &mut libc::socklen_t) -> io::Result<libc::c_int>,
    ) -> io::Result<(libc::c_int, Option<RawAddress>)> {
        let mut raw = RawAddress::zeroed();
        let result = call((&raw mut raw.storage).cast(), &mut raw.length)?;
        Ok((result, raw.if_ip()))
    }

    /// The address in bytes that the kernel wrote; `None` when it is neither IPv4 nor IPv6 or cut short.
    pub fn from_bytes(bytes: &[u8]) -> Option<RawAddress> {
        let mut raw = RawAddress::zeroed();
        let length = bytes.len().min(size_of::<libc::sockaddr_storage>());
        let place: *mut u8 = (&raw mut raw.storage).cast();
        // SAFETY: both sides have at least `length` bytes and do not overlap; every byte pattern is a sockaddr_storage.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, length) };
        raw.length = length as libc::socklen_t;
        raw.if_ip()
    }

    /// The address for the kernel to read.
    pub fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    /// How many bytes of it hold the address.
    #[expect(clippy::len_without_is_empty, reason = "no address is empty")]
    pub fn len(&self) -> libc::socklen_t {
        self.length
    }

    /// The address in the standard library's form.
    pub fn to_socket_addr(&self) -> SocketAddr {
        if libc::c_int::from(self.storage.ss_family) == libc::AF_INET {
            let view: *const libc::sockaddr_in = (&raw const self.storage).cast();
            // SAFETY: sockaddr_storage is at least as large and as aligned as sockaddr_in, of which every bit pattern is a value.
            let inet = unsafe { view.read() };
            let ip = Ipv4Addr::from(u32::from_be(inet.sin_addr.s_addr));
            SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(inet.sin_port)))
        } else {
            let view: *const libc::sockaddr_in6 = (&raw const self.storage).cast();
            // SAFETY: as above, for sockaddr_in6.
            let inet6 = unsafe { view.read() };
            let ip = Ipv6Addr::from(inet6.sin6_addr.s6_addr);
            let port = u16::from_be(inet6.sin6_port);
            SocketAddr::V6(SocketAddrV6::new(ip, port, inet6.sin6_flowinfo, inet6.sin6_scope_id))
        }
    }

    fn zeroed() -> RawAddress {
        // SAFETY: sockaddr_storage is plain integers, for which all zeroes is a value.
        let storage = unsafe { mem::zeroed() };
        RawAddress { storage, length: size_of::<libc::sockaddr_storage>() as libc::socklen_t }
    }

    fn if_ip(self) -> Option<RawAddress> {
        let expected = match libc::c_int::from(self.storage.ss_family) {
            libc::AF_INET => size_of::<libc::sockaddr_in>(),
            libc::AF_INET6 => size_of::<libc::sockaddr_in6>(),
            _ => return None,
        };
        (self.length as usize >= expected).then_some(self)
    }
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> RawAddress {
        let mut raw = RawAddress::zeroed();
        match address {
            SocketAddr::V4(v4) => {
                let inet = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                let place: *mut libc::sockaddr_in = (&raw mut raw.storage).cast();
                // SAFETY: sockaddr_storage is at least as large and as aligned as sockaddr_in, and `raw` is ours.
                unsafe { place.write(inet) };
                raw.length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            SocketAddr::V6(v6) => {
                let inet6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                let place: *mut libc::sockaddr_in6 = (&raw mut raw.storage).cast();
                // SAFETY: as above, for sockaddr_in6.
                unsafe { place.write(inet6) };
                raw.length = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            }
        }
        raw
    }
}

impl std::fmt::Debug for RawAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RawAddress({})", self.to_socket_addr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_kernels_layout() {
        for text in ["192.0.2.1:443", "0.0.0.0:0", "255.255.255.255:65535", "[2001:db8::1]:5061", "[::]:0"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(RawAddress::from(address).to_socket_addr(), address, "{text}");
        }
        let scoped = SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 80, 0, 7));
        assert_eq!(RawAddress::from(scoped).to_socket_addr(), scoped);
    }

    #[test]
    fn bytes_that_hold_no_ip_address_are_refused() {
        let raw = RawAddress::from(SocketAddr::from(([192, 0, 2, 1], 443)));
        let place: *const u8 = raw.as_ptr().cast();
        // SAFETY: `raw` holds `len` bytes.
        let bytes = unsafe { std::slice::from_raw_parts(place, raw.len() as usize) };
        assert_eq!(RawAddress::from_bytes(bytes).unwrap().to_socket_addr(), raw.to_socket_addr());
        assert!(RawAddress::from_bytes(&bytes[..8]).is_none());
        assert!(RawAddress::from_bytes(&[0xff; 4096]).is_none());
        assert!(RawAddress::from_bytes(&[]).is_none());
    }
}
