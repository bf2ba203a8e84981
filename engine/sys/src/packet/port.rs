//! One interface, one worker: a packet socket with a receive ring.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::offload::Offload;
use super::slots::{self, Extent, Geometry, Slots};
use super::socket;
use crate::socket::{read_int, set_flag, set_option, set_program, set_send_buffer, take_error};

/// Members of one fanout group before Linux 5.18.
const WORKERS_MAX: usize = 256;
/// What may be on its way out of one socket. Only what a device has not sent yet counts: some 100 super-packets.
const SEND_BUFFER_BYTES: u32 = 16 << 20;
/// A program that drops every frame: BPF_RET | BPF_K, 0.
const DROP_ALL: [Instruction; 1] = [(0x06, 0, 0, 0)];
/// A program that drops what the machine sends: BPF_LD | BPF_B | BPF_ABS at SKF_AD_OFF + SKF_AD_PKTTYPE; BPF_JMP | BPF_JEQ | BPF_K,
/// PACKET_OUTGOING; BPF_RET | BPF_K.
const DROP_SENT: [Instruction; 4] =
    [(0x30, 0, 0, 0xffff_f004), (0x15, 0, 1, 4), (0x06, 0, 0, 0), (0x06, 0, 0, u32::MAX)];
/// `PACKET_FANOUT_FLAG_*` and the kind stand in the upper half of a group's description, its number in the lower.
const FANOUT_KIND_SHIFT: u32 = 16;
const FANOUT_NUMBER: u32 = 0xffff;
/// Ethernet's and a multicast membership's.
const MAC_BYTES: u16 = 6;

/// One instruction of a classic BPF program: (code, jump if true, jump if false, operand).
pub type Instruction = (u16, u8, u8, u32);

/// What a receive ring is made of. It is allocated at once, in the kernel, and not swapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSettings {
    /// Frames it holds (> 0); rounded up to whole blocks of 1 MiB.
    pub slots: u32,
    /// The largest frame it holds whole, at most [`RingSettings::FRAME_BYTES_MAX`], which is needed wherever super-packets come:
    /// where segments are joined (GRO) and from the other end of a virtual device, whatever the MTU is.
    pub frame_bytes_max: u32,
}

impl RingSettings {
    /// A super-packet of IPv6 with its headers and a VLAN tag: 65,535 + 40 + 18.
    pub const FRAME_BYTES_MAX: u32 = 65_593;
    /// Fewer slots than these lose frames in a burst of two batches.
    pub const SLOTS_MIN: u32 = 64;
    /// More slots than these leave the processor's cache, and a burst of so many frames is an overload.
    pub const SLOTS_MAX: u32 = 1_024;

    /// As many slots for the largest frames as fit the given memory, between [`RingSettings::SLOTS_MIN`] and
    /// [`RingSettings::SLOTS_MAX`].
    pub fn within(bytes: u64) -> RingSettings {
        let largest = RingSettings { slots: RingSettings::SLOTS_MAX, frame_bytes_max: RingSettings::FRAME_BYTES_MAX };
        let slots = u64::from(RingSettings::SLOTS_MAX) * bytes / largest.ring_bytes();
        let slots = u32::try_from(slots).unwrap_or(u32::MAX).clamp(RingSettings::SLOTS_MIN, RingSettings::SLOTS_MAX);
        RingSettings { slots, ..largest }
    }

    /// Memory of one ring, in bytes: of one interface and one worker.
    pub fn ring_bytes(&self) -> u64 {
        self.geometry().bytes() as u64
    }

    /// How a ring is cut into slots.
    pub(super) fn geometry(&self) -> Geometry {
        Geometry::new(self.slots, self.frame_bytes_max.min(RingSettings::FRAME_BYTES_MAX))
    }
}

/// Whether a port works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// The interface is down; frames come again when it is up.
    Down,
    /// The interface is gone. When one of that name is there again, the port is to be opened anew, for all workers.
    Gone,
    /// Frames come and go.
    Up,
}

/// What a port has received since it was opened, and the one before in whose place it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxCounts {
    /// Frames handed out; super-packets count as one.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that the kernel had no free slot for or could not describe, as far as it was asked.
    pub dropped: u64,
    /// Frames passed over because they were for another station.
    pub foreign: u64,
    /// Frames passed over because they carry a VLAN tag.
    pub tagged: u64,
    /// Frames passed over because they were larger than a slot.
    pub truncated: u64,
    /// Frames passed over because they are to be cut in a way that is not known here.
    pub unknown: u64,
}

/// One interface for one worker.
#[derive(Debug)]
pub struct PacketPort {
    name: String,
    index: u32,
    // Declared before the socket, so unmapped before it is closed.
    slots: Slots,
    socket: OwnedFd,
    in_group: bool,
    counts: RxCounts,
}

/// A frame in a slot that is ours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) slot: u32,
    pub(super) frame: Extent,
    pub(super) offload: Offload,
}

/// Opens an interface of the calling thread's namespace for so many workers (1 to 256), in their order.
///
/// Of the frames that come in, each goes to the worker whose number `steering` returns (modulo their number; not asked when there
/// is one worker). What the machine itself sends is not seen. Where there are several workers the interface must be up, but may go
/// down and up later.
///
/// # Errors
/// `PermissionDenied` without CAP_NET_RAW, `NotFound`-like errors of the system without the interface, `OutOfMemory` where the
/// kernel cannot allocate the rings.
pub fn open(
    interface: &str,
    workers: usize,
    steering: &[Instruction],
    settings: &RingSettings,
) -> io::Result<Vec<PacketPort>> {
    open_group(interface, workers, steering, settings)
        .map_err(|error| io::Error::new(error.kind(), format!("packets of `{interface}`: {error}")))
}

fn open_group(
    interface: &str,
    workers: usize,
    steering: &[Instruction],
    settings: &RingSettings,
) -> io::Result<Vec<PacketPort>> {
    if !(1..=WORKERS_MAX).contains(&workers) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{workers} workers, not 1 to {WORKERS_MAX}")));
    }
    let index = socket::index_of(interface)?;
    let mut ports = Vec::with_capacity(workers);
    for _ in 0..workers {
        ports.push(PacketPort::open(interface, index, settings.geometry(), workers > 1)?);
    }
    // A member is numbered as it joins, and renumbered when another leaves. The kernel unlinks and links all of them in the order
    // in which they were opened when the interface goes down and up, so their numbers stay.
    if let [first, others @ ..] = ports.as_slice()
        && !others.is_empty()
    {
        if !socket::is_up(&first.socket, index)? {
            return Err(io::Error::new(io::ErrorKind::NetworkDown, "the interface is down; set it up first"));
        }
        join_fanout(&first.socket, libc::PACKET_FANOUT_FLAG_UNIQUEID, 0)?;
        let group = read_int(&first.socket, libc::SOL_PACKET, libc::PACKET_FANOUT)?;
        let number = group.cast_unsigned() & FANOUT_NUMBER;
        for other in others {
            join_fanout(&other.socket, 0, number)?;
        }
        first.steer(steering)?;
    }
    // Until all have joined, each frame would have come to each of them.
    for port in &ports {
        match port.in_group {
            true => set_program(&port.socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &DROP_SENT)?,
            false => set_flag(&port.socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER)?,
        }
    }
    Ok(ports)
}

/// Joins the fanout group of that number. A member's own PACKET_IGNORE_OUTGOING is not looked at (`fanout_add`,
/// net/packet/af_packet.c); the group's flag is from Linux 6.2 on, and before that only the members' filters keep away what the
/// machine sends.
fn join_fanout(socket: &OwnedFd, flag: u32, number: u32) -> io::Result<()> {
    let kind = libc::PACKET_FANOUT_CBPF | libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING | flag;
    let group = kind << FANOUT_KIND_SHIFT | number;
    set_option(socket, libc::SOL_PACKET, libc::PACKET_FANOUT, &group)
}

impl PacketPort {
    fn open(name: &str, index: u32, geometry: Geometry, in_group: bool) -> io::Result<PacketPort> {
        let fd = socket::open()?;
        set_program(&fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &DROP_ALL)?;
        set_option(&fd, libc::SOL_PACKET, libc::PACKET_VERSION, &slots::VERSION)?;
        set_flag(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR)?;
        set_flag(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING)?;
        let size = libc::c_int::try_from(SEND_BUFFER_BYTES).unwrap_or(libc::c_int::MAX);
        if set_option(&fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &size).is_err() {
            // Not root: as much as the machine gives; what is refused for it is counted.
            set_send_buffer(&fd, SEND_BUFFER_BYTES)?;
        }
        let slots = Slots::new(&fd, geometry)?;
        socket::bind(&fd, index)?;
        Ok(PacketPort { name: name.to_owned(), index, slots, socket: fd, in_group, counts: RxCounts::default() })
    }

    /// The interface's name when it was opened.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface's number.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Replaces the steering of all workers of this interface, live. Nothing happens where there is one worker.
    pub fn steer(&self, steering: &[Instruction]) -> io::Result<()> {
        if !self.in_group {
            return Ok(());
        }
        set_program(&self.socket, libc::SOL_PACKET, libc::PACKET_FANOUT_DATA, steering)
    }

    /// Has the interface take in frames for a group of stations, as neighbour discovery for our addresses needs
    /// (RFC 4861 §7.2.1); as long as the port is open.
    pub fn join(&self, group: [u8; 6]) -> io::Result<()> {
        let mut address = [0; 8];
        address[..group.len()].copy_from_slice(&group);
        let membership = libc::packet_mreq {
            mr_ifindex: libc::c_int::try_from(self.index).map_err(io::Error::other)?,
            mr_type: libc::PACKET_MR_MULTICAST as libc::c_ushort,
            mr_alen: MAC_BYTES,
            mr_address: address,
        };
        set_option(&self.socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)
    }

    /// Whether the port works; asks the kernel, and takes the error that a descriptor is ready with when the interface goes down.
    pub fn state(&self) -> PortState {
        // What it was is seen below.
        let _error = take_error(&self.socket);
        match socket::is_bound(&self.socket).and_then(|bound| Ok(bound && socket::is_up(&self.socket, self.index)?)) {
            Ok(true) => PortState::Up,
            Ok(false) if socket::is_bound(&self.socket).unwrap_or(false) => PortState::Down,
            // No interface of that number any more.
            _ => PortState::Gone,
        }
    }

    /// What the port has received; asks the kernel for its losses.
    pub fn counts(&mut self) -> RxCounts {
        // Reading resets the kernel's own count; a socket's statistics can always be read.
        self.counts.dropped += socket::take_losses(&self.socket).unwrap_or(0);
        self.counts
    }

    /// Counts on from what the port before has received.
    pub(super) fn go_on_from(&mut self, before: RxCounts) {
        self.counts = before;
    }

    /// The next frame, in a slot that is ours until it is released. At most `looks` frames are passed over on the way to it.
    pub(super) fn take(&mut self, looks: &mut usize) -> Option<Taken> {
        loop {
            let filled = self.slots.take()?;
            let (passed_over, offload) = if filled.is_foreign {
                (&mut self.counts.foreign, None)
            } else if filled.is_tagged {
                (&mut self.counts.tagged, None)
            } else if filled.is_cut {
                (&mut self.counts.truncated, None)
            } else {
                (&mut self.counts.unknown, Offload::read(&filled.offload))
            };
            if let Some(offload) = offload {
                self.counts.frames += 1;
                self.counts.bytes += filled.frame.len() as u64;
                return Some(Taken { slot: filled.slot, frame: filled.frame, offload });
            }
            *passed_over += 1;
            self.slots.release(filled.slot);
            *looks = looks.checked_sub(1)?;
        }
    }

    /// The ring.
    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }

    /// The ring, to write into slots that are ours or release them.
    pub(super) fn slots_mut(&mut self) -> &mut Slots {
        &mut self.slots
    }
}

impl AsFd for PacketPort {
    /// Readable while there are frames, and when the interface has gone down; for `Ring::await_ready_many`.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_takes_what_memory_there_is() {
        for mib in [0, 1, 16, 64, 100, 10_000] {
            let settings = RingSettings::within(mib << 20);
            assert!((RingSettings::SLOTS_MIN..=RingSettings::SLOTS_MAX).contains(&settings.slots));
            let least = RingSettings { slots: RingSettings::SLOTS_MIN, ..settings }.ring_bytes();
            // Rounding up to a block may cost one more.
            assert!(
                settings.ring_bytes() <= (mib << 20).max(least) + (1 << 20),
                "{mib} MiB: {}",
                settings.ring_bytes()
            );
        }
    }
}
