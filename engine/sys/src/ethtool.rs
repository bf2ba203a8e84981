//! What network devices do instead of the CPU, over the ioctls of ethtool (linux/ethtool.h).

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::errno::check;
use crate::socket::own;

/// Commands that read or write a whole number.
const ETHTOOL_GRXCSUM: u32 = 0x14;
const ETHTOOL_SRXCSUM: u32 = 0x15;
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_GTSO: u32 = 0x1e;
const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_SGRO: u32 = 0x2c;
/// Of the flags, that of large receive offload.
const ETH_FLAG_LRO: u32 = 1 << 15;

/// Something that a device, or the kernel at its door, does with frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Large receive offload: segments are merged so that nobody can tell how they came.
    LargeReceive,
    /// Generic receive offload: segments are merged so that they can be cut again as they came.
    ReceiveMerge,
    /// Checksums of what comes in are verified by the device.
    ReceiveSums,
    /// TCP super-packets are cut by the device.
    Segmentation,
    /// Checksums of what leaves are completed by the device.
    SendSums,
}

impl Feature {
    /// The commands that read and write it, and its bit where they are about several.
    fn commands(self) -> (u32, u32, u32) {
        match self {
            Feature::LargeReceive => (ETHTOOL_GFLAGS, ETHTOOL_SFLAGS, ETH_FLAG_LRO),
            Feature::ReceiveMerge => (ETHTOOL_GGRO, ETHTOOL_SGRO, u32::MAX),
            Feature::ReceiveSums => (ETHTOOL_GRXCSUM, ETHTOOL_SRXCSUM, u32::MAX),
            Feature::Segmentation => (ETHTOOL_GTSO, ETHTOOL_STSO, u32::MAX),
            Feature::SendSums => (ETHTOOL_GTXCSUM, ETHTOOL_STXCSUM, u32::MAX),
        }
    }
}

/// Questions to the devices of one network namespace.
#[derive(Debug)]
pub struct Devices {
    control: OwnedFd,
}

impl Devices {
    /// Those of the calling thread's namespace.
    pub fn open() -> io::Result<Devices> {
        // SAFETY: socket takes no pointer.
        let control = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
        Ok(Devices { control: own(control) })
    }

    /// Whether the device of that name does it; one that cannot does not.
    pub fn does(&self, interface: &str, feature: Feature) -> io::Result<bool> {
        let (read, _, bits) = feature.commands();
        match command(&self.control, interface, read, 0) {
            Ok(value) => Ok(value & bits != 0),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
            Err(error) => Err(io::Error::new(error.kind(), format!("{feature:?} of `{interface}`: {error}"))),
        }
    }

    /// Has it do so, or no longer. `PermissionDenied` without CAP_NET_ADMIN.
    pub fn set(&self, interface: &str, feature: Feature, on: bool) -> io::Result<()> {
        let (read, write, bits) = feature.commands();
        let others = if bits == u32::MAX { 0 } else { command(&self.control, interface, read, 0)? & !bits };
        let own = match (on, bits) {
            (false, _) => 0,
            (true, u32::MAX) => 1,
            (true, bit) => bit,
        };
        command(&self.control, interface, write, others | own)
            .map(|_| ())
            .map_err(|error| io::Error::new(error.kind(), format!("{feature:?} of `{interface}` = {on}: {error}")))
    }
}

/// Carries out a command on a device with a whole number, and returns the number that is there then.
fn command(control: &impl AsFd, interface: &str, command: u32, data: u32) -> io::Result<u32> {
    /// `struct ethtool_value` (linux/ethtool.h).
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let name = interface.as_bytes();
    if name.len() >= libc::IFNAMSIZ || name.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no interface is called `{interface}`")));
    }
    let mut value = Value { command, data };
    // SAFETY: ifreq is plain integers and a pointer, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (place, &byte) in request.ifr_name.iter_mut().zip(name) {
        *place = byte as libc::c_char;
    }
    let place: *mut Value = &mut value;
    request.ifr_ifru.ifru_data = place.cast();
    // SAFETY: the kernel reads `request`, and reads and writes `value`, which it names; both outlive the call.
    check(unsafe { libc::ioctl(control.as_fd().as_raw_fd(), libc::SIOCETHTOOL as _, &mut request) })?;
    Ok(value.data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::Namespace;
    use crate::privilege::{self, Privilege};

    #[test]
    fn devices_say_what_they_do_and_do_what_they_are_told() {
        if privilege::ensure(devices_say_what_they_do_and_do_what_they_are_told).unwrap() == Privilege::Delegated {
            return;
        }
        let near = Namespace::create().unwrap();
        near.links().unwrap().create_veth("a", "b", &near).unwrap();
        let devices = near.run(Devices::open).unwrap().unwrap();
        assert!(devices.does("a", Feature::SendSums).unwrap());
        for feature in [Feature::Segmentation, Feature::ReceiveMerge] {
            for on in [false, true] {
                devices.set("a", feature, on).unwrap();
                assert_eq!(devices.does("a", feature).unwrap(), on, "{feature:?}");
            }
        }
        assert!(!devices.does("a", Feature::LargeReceive).unwrap());
        assert!(devices.does("nowhere", Feature::Segmentation).unwrap_err().to_string().contains("`nowhere`"));
        assert!(devices.does("a name that is too long", Feature::Segmentation).is_err());
    }
}
