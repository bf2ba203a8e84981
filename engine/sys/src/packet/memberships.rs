//! Groups of stations whose frames interfaces take in for us, apart from any port: for addresses that have come since the ports were opened.

use std::io;
use std::os::fd::OwnedFd;

use super::socket;
use crate::socket::set_option;

/// Octets of an Ethernet address.
const MAC_BYTES: u16 = 6;

/// Ends with its last member: the kernel counts who has joined. Nothing arrives here.
#[derive(Debug)]
pub struct Memberships {
    socket: OwnedFd,
}

impl Memberships {
    /// None yet.
    pub fn open() -> io::Result<Memberships> {
        Ok(Memberships { socket: socket::open()? })
    }

    /// Has the interface of this number take in frames for a group, as neighbour discovery for our addresses needs (RFC 4861 §7.2.1).
    pub fn join(&self, index: u32, group: [u8; 6]) -> io::Result<()> {
        let mut address = [0; 8];
        address[..group.len()].copy_from_slice(&group);
        let membership = libc::packet_mreq {
            mr_ifindex: libc::c_int::try_from(index).map_err(io::Error::other)?,
            mr_type: libc::PACKET_MR_MULTICAST as libc::c_ushort,
            mr_alen: MAC_BYTES,
            mr_address: address,
        };
        set_option(&self.socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)
    }
}
