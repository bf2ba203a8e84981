//! Keeps the kernel silent for what the packet plane answers: an nftables chain at the ingress of its interfaces drops those packets
//! after the packet sockets have seen them, and nothing else.

use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// What the kernel does not get to see.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// The destination.
    pub ip: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination ports; of a protocol without ports, only all of them (`0..=65535`).
    pub ports: (u16, u16),
}

impl Claim {
    /// These ports (TCP, UDP).
    pub fn ports(ip: IpAddr, protocol: u8, ports: RangeInclusive<u16>) -> Claim {
        Claim { ip, protocol, ports: (*ports.start(), *ports.end()) }
    }

    /// All of a protocol.
    pub fn protocol(ip: IpAddr, protocol: u8) -> Claim {
        Claim::ports(ip, protocol, 0..=u16::MAX)
    }
}

/// The kernel is silent as long as this lives. After a crash the rule stays, until the next start or [`Silence::clear`].
#[derive(Debug)]
pub struct Silence {}

impl Silence {
    /// Most claims, once those that touch are joined.
    pub const CLAIMS_MAX: usize = 2_000;

    /// Silences the kernel on these interfaces of the calling thread's namespace; what a crash left behind is replaced.
    /// `AddrInUse` when another process keeps the silence in this namespace. Needs CAP_NET_ADMIN.
    pub fn impose(interfaces: &[&str], claims: &[Claim]) -> io::Result<Silence> {
        let _ = (interfaces, claims);
        unimplemented!()
    }

    /// Replaces interfaces and claims in one step: also when an interface was gone and is there again.
    pub fn replace(&mut self, interfaces: &[&str], claims: &[Claim]) -> io::Result<()> {
        let _ = (interfaces, claims);
        unimplemented!()
    }

    /// Lets the kernel speak again; as dropping does, with the error.
    pub fn lift(self) -> io::Result<()> {
        unimplemented!()
    }

    /// Removes what a crash left behind in the calling thread's namespace; says whether there was anything.
    pub fn clear() -> io::Result<bool> {
        unimplemented!()
    }
}
