//! The kernel's side of the fast path: memory that programs of the kernel read and write as well, and these programs, at the ingress of interfaces and in front of packet sockets.
//!
//! What the memory holds and what the programs do is not known here. Everything is held by descriptors, so it ends with the process, however that ends.

pub(crate) mod bpf;
#[cfg(test)]
mod tests;
pub(crate) mod trial;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::host;
use crate::mapping::Mapping;
use bpf::Kind;

pub use trial::Trial;

/// The first Linux with links to the ingress of an interface (tcx).
const LINUX_MIN: (u32, u32) = (6, 6);

/// A map: an array of so many elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSize {
    /// Octets of an element, a multiple of 8.
    pub element_octets: u32,
    /// Elements.
    pub elements: u32,
}

/// The programs, each as the kernel's instructions of 64 bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    /// For the ingress of interfaces.
    pub carry: Vec<u64>,
    /// For packet sockets: how much of a frame they get.
    pub filter: Vec<u64>,
}

/// Why this machine has no fast path.
#[derive(Debug)]
pub enum Unavailable {
    /// The programs are for little-endian machines.
    BigEndian,
    /// The kernel is older than Linux 6.6, or was built without bpf(2).
    Kernel(String),
    /// There is no memory for it.
    Memory(io::Error),
    /// This process may not load programs.
    Privilege,
    /// The kernel does not take the programs.
    Refused(io::Error),
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unavailable::BigEndian => f.write_str("the machine is big-endian"),
            Unavailable::Kernel(release) => write!(f, "Linux {release} has no tcx; it needs 6.6 or later, with bpf(2)"),
            Unavailable::Memory(error) => write!(f, "no memory: {error}"),
            Unavailable::Privilege => {
                f.write_str("no right to load programs: it needs CAP_BPF and CAP_NET_ADMIN, outside of user namespaces")
            }
            Unavailable::Refused(error) => write!(f, "the kernel refuses the programs: {error}"),
        }
    }
}

impl std::error::Error for Unavailable {}

/// The memory of a map, as words that the kernel may change at any time.
#[derive(Debug)]
pub struct MapWords(Mapping);

// SAFETY: the mapping is read and written as atomic words only.
unsafe impl Sync for MapWords {}

impl AsRef<[AtomicU64]> for MapWords {
    fn as_ref(&self) -> &[AtomicU64] {
        let words = self.0.len() / size_of::<AtomicU64>();
        // SAFETY: the mapping is page-aligned, mapped for reading and writing and so long, lives as long as `self`, and is nowhere taken for anything but atomic words.
        unsafe { slice::from_raw_parts(self.0.base().cast().as_ptr(), words) }
    }
}

/// The programs and their maps, taken by the kernel.
#[derive(Debug)]
pub struct FastPath<const MAPS: usize> {
    words: [Arc<MapWords>; MAPS],
    carry: OwnedFd,
    filter: OwnedFd,
}

/// A program at the ingress of an interface; it is gone when this is dropped.
#[derive(Debug)]
pub struct Attached(#[expect(dead_code, reason = "the program is attached as long as it is open")] OwnedFd);

impl<const MAPS: usize> FastPath<MAPS> {
    /// Makes the maps, all zero, and has the kernel take the programs, which `write` makes for the maps' descriptors. Nothing is attached yet.
    ///
    /// # Errors
    /// This machine, or this process, has no fast path.
    pub fn open(
        sizes: [MapSize; MAPS],
        write: impl FnOnce([RawFd; MAPS]) -> Programs,
    ) -> Result<FastPath<MAPS>, Unavailable> {
        if cfg!(target_endian = "big") {
            return Err(Unavailable::BigEndian);
        }
        let release = host::kernel_release().unwrap_or_default();
        if version(&release).is_some_and(|version| version < LINUX_MIN) {
            return Err(Unavailable::Kernel(release));
        }
        let mut maps = Vec::with_capacity(MAPS);
        let mut words = Vec::with_capacity(MAPS);
        for size in sizes {
            let map = bpf::create_array("towpath", size.element_octets, size.elements)
                .map_err(|error| judge(error, release.clone()))?;
            let octets = size.element_octets as usize * size.elements as usize;
            words.push(Arc::new(MapWords(Mapping::shared(&map, octets).map_err(Unavailable::Memory)?)));
            maps.push(map);
        }
        const ALL: &str = "one of each size";
        let maps: [OwnedFd; MAPS] = maps.try_into().expect(ALL);
        let programs = write(maps.each_ref().map(AsRawFd::as_raw_fd));
        let load =
            |name, kind, program: &[u64]| bpf::load(name, kind, program).map_err(|error| judge(error, release.clone()));
        let carry = load("towpath_carry", Kind::Ingress, &programs.carry)?;
        let filter = load("towpath_filter", Kind::SocketFilter, &programs.filter)?;
        Ok(FastPath { words: words.try_into().expect(ALL), carry, filter })
    }

    /// The memory of each map.
    pub fn words(&self) -> &[Arc<MapWords>; MAPS] {
        &self.words
    }

    /// The program for packet sockets: see [`PacketPort::set_filter`](crate::packet::PacketPort::set_filter).
    pub fn filter(&self) -> BorrowedFd<'_> {
        self.filter.as_fd()
    }

    /// What the program of an ingress does with a frame, of at most 4 KiB, that arrives on the loopback without a tag, its checksum complete; for tests. Of a super-packet, each segment has
    /// `segment_bytes` of payload; 0 for any other frame.
    ///
    /// # Errors
    /// The kernel does not run programs so, or refuses the frame: one shorter than its IPv4 header.
    pub fn try_carry(&self, frame: &[u8], segment_bytes: u16) -> io::Result<Trial> {
        trial::run(self.carry.as_fd(), frame, segment_bytes)
    }

    /// What the program for packet sockets returns for such a frame.
    ///
    /// # Errors
    /// As [`try_carry`](FastPath::try_carry).
    pub fn try_filter(&self, frame: &[u8], segment_bytes: u16) -> io::Result<i32> {
        // The kernel shows a filter the frame without its Ethernet header here: as many octets more make up for it.
        let padded = [frame, &[0; 14]].concat();
        Ok(trial::run(self.filter.as_fd(), &padded, segment_bytes)?.result)
    }

    /// Attaches the program to the ingress of an interface of the calling thread's namespace. It stays there while the interface goes down and up, and ends with it.
    ///
    /// # Errors
    /// There is no such interface, or the kernel has no tcx.
    pub fn attach(&self, ifindex: u32) -> io::Result<Attached> {
        let link = bpf::attach_ingress(&self.carry, ifindex);
        link.map(Attached)
            .map_err(|error| io::Error::new(error.kind(), format!("fast path of interface {ifindex}: {error}")))
    }
}

fn judge(error: io::Error, release: String) -> Unavailable {
    match error.kind() {
        _ if error.raw_os_error() == Some(libc::EPERM) => Unavailable::Privilege,
        io::ErrorKind::Unsupported => Unavailable::Kernel(release),
        io::ErrorKind::OutOfMemory => Unavailable::Memory(error),
        _ => Unavailable::Refused(error),
    }
}

/// The first two numbers of a release, as `6.18.4-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}
