//! One interface, one worker: a packet socket with a receive ring.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::FRONT_BYTES;
use super::copies::Copies;
use super::offload::Offload;
use super::slots::{self, Filled, Geometry, Slots};
use super::socket;
use super::store::{Extent, Store};
use super::tag::{Tag, Vlans};
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
/// Super-packets need so much to flow at all.
const QUEUED_BYTES_MIN: u32 = 2 << 20;
/// Ethernet's header and one tag.
const ETHERNET_BYTES: u32 = 18;
/// The largest frame that a slot is made for, on interfaces whose MTU is larger still.
const JUMBO_BYTES: u32 = 9_216;
/// Queued frames that are thrown away at most when one was not what its slot says.
const CLEARED_MAX: usize = 4096;
/// Why buffers are there.
const HAS_COPIES: &str = "only a port with buffers hands out frames in them";

/// One instruction of a classic BPF program: (code, jump if true, jump if false, operand).
pub type Instruction = (u16, u8, u8, u32);

/// What frames of one interface wait in for one worker. The ring is allocated at once, in the kernel, and not swapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSettings {
    /// Frames it holds (> 0); rounded up to whole blocks of 1 MiB.
    pub slots: u32,
    /// The largest frame that fits a slot, at most [`RingSettings::FRAME_BYTES_MAX`].
    pub frame_bytes_max: u32,
    /// Larger frames are queued beside the ring, up to [`RingSettings::FRAME_BYTES_MAX`] each: what the kernel may keep of them, in
    /// bytes and with what it needs to keep them. They come wherever segments are joined (GRO) and from the other end of a virtual
    /// device, whatever the MTU is. With 0 they are lost.
    pub queued_bytes_max: u32,
}

impl RingSettings {
    /// A super-packet of IPv6 with its headers and a VLAN tag: 65,535 + 40 + 18.
    pub const FRAME_BYTES_MAX: u32 = 65_593;
    /// Fewer slots than these lose frames in a burst of two batches.
    pub const SLOTS_MIN: u32 = 64;
    /// A burst of more frames is an overload.
    pub const SLOTS_MAX: u32 = 2_048;
    /// Some hundred super-packets: what a few connections have on their way at once.
    pub const QUEUED_BYTES_MAX: u32 = 16 << 20;

    /// For an interface of this MTU (in bytes), with as many slots as fit half of the given memory, between
    /// [`RingSettings::SLOTS_MIN`] and [`RingSettings::SLOTS_MAX`], and the rest for super-packets.
    pub fn within(bytes: u64, mtu_bytes: u32) -> RingSettings {
        let frame_bytes_max = slots::filled_by(mtu_bytes.saturating_add(ETHERNET_BYTES).min(JUMBO_BYTES));
        let ring = Geometry::new(RingSettings::SLOTS_MAX, frame_bytes_max).bytes() as u64;
        let slots = u64::from(RingSettings::SLOTS_MAX) * (bytes / 2) / ring;
        let slots = u32::try_from(slots).unwrap_or(u32::MAX).clamp(RingSettings::SLOTS_MIN, RingSettings::SLOTS_MAX);
        let ring = Geometry::new(slots, frame_bytes_max).bytes() as u64;
        let queued = u32::try_from(bytes.saturating_sub(ring + Copies::BYTES as u64)).unwrap_or(u32::MAX);
        let queued_bytes_max = queued.clamp(QUEUED_BYTES_MIN, RingSettings::QUEUED_BYTES_MAX);
        RingSettings { slots, frame_bytes_max, queued_bytes_max }
    }

    /// Memory for one interface and one worker, in bytes: the ring and buffers, and what the kernel may keep besides.
    pub fn bytes(&self) -> u64 {
        let queue = if self.queued_bytes_max > 0 { u64::from(self.queued_bytes_max) + Copies::BYTES as u64 } else { 0 };
        self.ring_bytes() + queue
    }

    /// Memory of the ring alone.
    fn ring_bytes(&self) -> u64 {
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
    /// Frames that the kernel had no room for or could not describe, as far as it was asked.
    pub dropped: u64,
    /// Frames passed over because they were for another station.
    pub foreign: u64,
    /// Frames passed over because of their VLAN tag: nobody asked for that VLAN.
    pub tagged: u64,
    /// Frames passed over because they were larger than a slot, where such ones are not queued.
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
    copies: Option<Copies>,
    socket: OwnedFd,
    in_group: bool,
    vlans: Vlans,
    /// For other stations too, and with whatever tag.
    takes_all: bool,
    /// Frames received before, in nanoseconds since 1970, were another process's.
    from_unix_ns: u64,
    counts: RxCounts,
}

/// Where a frame that is ours is kept.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// A buffer for frames that do not fit a slot.
    Buffer(u32),
    /// A slot of the ring.
    Slot(u32),
}

/// A frame that is ours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) place: Place,
    pub(super) frame: Extent,
    pub(super) offload: Offload,
    /// The tag that was taken off.
    pub(super) tag: Option<Tag>,
    /// Bytes right in front of it that it may grow into.
    pub(super) front_bytes: usize,
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
        ports.push(PacketPort::open(interface, index, settings, workers > 1)?);
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
        port.set_filter(None)?;
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
    fn open(name: &str, index: u32, settings: &RingSettings, in_group: bool) -> io::Result<PacketPort> {
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
        let slots = Slots::new(&fd, settings.geometry())?;
        let queued = settings.queued_bytes_max;
        let copies = if queued > 0 { Some(Copies::new(&fd, queued)?) } else { None };
        socket::bind(&fd, index)?;
        let counts = RxCounts::default();
        let vlans = Vlans::new(&[]);
        Ok(PacketPort {
            name: name.to_owned(),
            index,
            slots,
            copies,
            socket: fd,
            in_group,
            vlans,
            takes_all: false,
            from_unix_ns: 0,
            counts,
        })
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

    /// Passes over frames that were received before this moment, in nanoseconds since 1970: another process has had them.
    pub fn take_from(&mut self, unix_ns: u64) {
        self.from_unix_ns = unix_ns;
    }

    /// Takes no frame until [`set_filter`](PacketPort::set_filter) says which.
    pub fn deafen(&self) -> io::Result<()> {
        set_program(&self.socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &DROP_ALL)
    }

    /// Asks `filter`, a program of [`FastPath`](crate::fast_path::FastPath), which frames come here, live; of those that the machine sends it lets none pass. `None`: all that come in.
    pub fn set_filter(&self, filter: Option<BorrowedFd<'_>>) -> io::Result<()> {
        match (filter, self.in_group) {
            (Some(filter), _) => set_option(&self.socket, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, &filter.as_raw_fd()),
            (None, true) => set_program(&self.socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &DROP_SENT),
            (None, false) => match set_flag(&self.socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER) {
                // It has none.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                detached => detached,
            },
        }
    }

    /// Has the interface take in frames for a group of stations, as neighbour discovery for our addresses needs
    /// (RFC 4861 §7.2.1); as long as the port is open.
    pub fn join(&self, group: [u8; 6]) -> io::Result<()> {
        let mut address = [0; 8];
        address[..group.len()].copy_from_slice(&group);
        self.add_membership(libc::PACKET_MR_MULTICAST, address)
    }

    /// Hands out frames of these VLANs too (1 to 4,095), with their tags, besides those without.
    pub fn take_vlans(&mut self, vlans: &[u16]) {
        self.vlans = Vlans::new(vlans);
    }

    /// Hands out all frames, for whichever station and with whichever tag, as far as the interface [takes them in](PacketPort::hear_all).
    pub fn take_all(&mut self) {
        self.takes_all = true;
    }

    /// Has the interface take in every frame, for whichever station or VLAN: some cards keep back the tags that the kernel has no interface for. As long
    /// as the port is open.
    pub fn hear_all(&self) -> io::Result<()> {
        self.add_membership(libc::PACKET_MR_PROMISC, [0; 8])
    }

    fn add_membership(&self, kind: libc::c_int, address: [u8; 8]) -> io::Result<()> {
        let membership = libc::packet_mreq {
            mr_ifindex: libc::c_int::try_from(self.index).map_err(io::Error::other)?,
            mr_type: kind as libc::c_ushort,
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

    /// Whether the interface is there and up; asks the kernel.
    pub(super) fn is_up(&self) -> bool {
        socket::is_up(&self.socket, self.index).unwrap_or(false)
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

    /// The next frame, which is ours until it is released. At most `looks` frames are passed over on the way to it. None of those that do
    /// not fit a slot comes while all buffers are ours.
    pub(super) fn take(&mut self, looks: &mut usize) -> Option<Taken> {
        loop {
            if self.copies.as_ref().is_some_and(|copies| !copies.has_room()) && self.slots.is_next_queued() {
                return None;
            }
            let Some(filled) = self.slots.take() else {
                // What was another process's has been passed over; a clock that is set back later is nothing to us.
                self.from_unix_ns = 0;
                return None;
            };
            let taken = if filled.is_queued { self.take_queued(&filled) } else { self.judge(&filled) };
            match taken {
                Ok(taken) if filled.received_unix_ns < self.from_unix_ns => {
                    self.release(taken.place);
                    *looks = looks.checked_sub(1)?;
                }
                Ok(taken) => {
                    self.counts.frames += 1;
                    self.counts.bytes += taken.frame.len() as u64;
                    return Some(taken);
                }
                Err(passed_over) => {
                    *passed_over(&mut self.counts) += 1;
                    self.slots.release(filled.slot);
                    *looks = looks.checked_sub(1)?;
                }
            }
        }
    }

    /// A frame in its slot, or which counter it is passed over under.
    fn judge(&self, filled: &Filled) -> Result<Taken, PassedOver> {
        if filled.is_foreign && !self.takes_all {
            return Err(|counts| &mut counts.foreign);
        }
        if !self.takes_all && filled.tag.is_some_and(|tag| !self.vlans.hold(tag)) {
            return Err(|counts| &mut counts.tagged);
        }
        if filled.is_cut {
            // Where frames are queued, the queue had no room for it.
            return Err(if self.copies.is_some() {
                |counts| &mut counts.dropped
            } else {
                |counts| &mut counts.truncated
            });
        }
        let Some(offload) = Offload::read(&filled.offload) else { return Err(|counts| &mut counts.unknown) };
        let place = Place::Slot(filled.slot);
        Ok(Taken { place, frame: filled.frame, offload, tag: filled.tag, front_bytes: FRONT_BYTES })
    }

    /// A frame whose beginning is in a slot: its slot is given back, and the whole comes out of the queue, whatever becomes of it.
    fn take_queued(&mut self, filled: &Filled) -> Result<Taken, PassedOver> {
        let Some(copies) = &mut self.copies else { return Err(|counts| &mut counts.truncated) };
        let Some(copied) = copies.receive(&self.socket) else { return Err(|counts| &mut counts.dropped) };
        if copied.frame.len() != filled.whole_bytes {
            // Queue and slots do not tell of the same frames: start again with what comes from here on.
            copies.release(copied.buffer);
            copies.clear(&self.socket, CLEARED_MAX);
            return Err(|counts| &mut counts.dropped);
        }
        let whole = Filled { is_cut: false, offload: copied.offload, ..*filled };
        match self.judge(&whole) {
            Ok(taken) => {
                self.slots.release(filled.slot);
                Ok(Taken { place: Place::Buffer(copied.buffer), frame: copied.frame, ..taken })
            }
            Err(passed_over) => {
                self.copies_mut().release(copied.buffer);
                Err(passed_over)
            }
        }
    }

    fn copies_mut(&mut self) -> &mut Copies {
        self.copies.as_mut().expect(HAS_COPIES)
    }

    /// Gives back where a frame was kept.
    pub(super) fn release(&mut self, place: Place) {
        match place {
            Place::Buffer(buffer) => self.copies_mut().release(buffer),
            Place::Slot(slot) => self.slots.release(slot),
        }
    }

    /// The memory that a frame is kept in.
    pub(super) fn store(&self, place: Place) -> &Store {
        match place {
            Place::Buffer(_) => self.copies.as_ref().expect(HAS_COPIES).store(),
            Place::Slot(_) => self.slots.store(),
        }
    }

    /// The memory that a frame is kept in, to write a header in front of it.
    pub(super) fn store_mut(&mut self, place: Place) -> &mut Store {
        match place {
            Place::Buffer(_) => self.copies_mut().store_mut(),
            Place::Slot(_) => self.slots.store_mut(),
        }
    }
}

/// The counter of frames that are passed over for one reason.
type PassedOver = fn(&mut RxCounts) -> &mut u64;

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
        for (mib, mtu) in [(0, 1500), (1, 1500), (4, 9000), (16, 1500), (32, 1500), (64, 9000), (10_000, 65_535)] {
            let settings = RingSettings::within(mib << 20, mtu);
            assert!(
                (RingSettings::SLOTS_MIN..=RingSettings::SLOTS_MAX).contains(&settings.slots),
                "{mib}: {settings:?}"
            );
            assert!(settings.frame_bytes_max >= (mtu + ETHERNET_BYTES).min(JUMBO_BYTES), "{mib}: {settings:?}");
            let least = RingSettings { slots: RingSettings::SLOTS_MIN, queued_bytes_max: QUEUED_BYTES_MIN, ..settings };
            // Rounding up to a block may cost one more.
            let (bytes, least) = (settings.bytes(), least.bytes());
            assert!(bytes <= (mib << 20).max(least) + (1 << 20), "{mib} MiB: {bytes}");
        }
        let usual = RingSettings::within(32 << 20, 1500);
        assert_eq!((usual.slots, usual.frame_bytes_max), (RingSettings::SLOTS_MAX, 1888));
    }
}
