//! All interfaces of one worker: a batch of frames in, each in place out again.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;
use std::slice;

use super::burst::{Burst, Sent};
use super::offload::{HEADER_BYTES, Offload, PartialChecksum};
use super::port::{PacketPort, Place, PortState, RingSettings, RxCounts, Taken};
use super::store::Extent;
use super::tag::Tag;
use crate::errno::check;

/// Frames of one batch.
pub const BATCH_MAX: usize = 32;

/// Fewer frames than these are sent by themselves: a burst of one costs more.
const BURST_MIN: usize = 2;
/// Frames that one call of sendmmsg(2) sends.
const QUEUE_MAX: usize = 64;
/// Room for frames that were made here, until they are sent: a few super-packets, or some thousand resets.
const MADE_BYTES: usize = 256 << 10;
/// Frames that one batch passes over at most, so that a flood of them does not hold up the rest of the worker.
const LOOKS_MAX: usize = 4096;

/// A frame that was received, where it was received.
#[derive(Debug)]
pub struct ReceivedFrame<'a> {
    /// From the Ethernet header on.
    pub bytes: &'a mut [u8],
    /// Room right in front of it: [`FRONT_BYTES`](super::FRONT_BYTES), or none once it [begins elsewhere](PacketPorts::cross).
    pub front: &'a mut [u8],
    /// The port it came in by: its place in the list given to [`PacketPorts::new`].
    pub port: u8,
    /// What is still to be done for it.
    pub offload: Offload,
    /// Its outermost VLAN tag, which is not in the bytes any more.
    pub tag: Option<Tag>,
}

/// What was to be sent over one port. Every frame is counted once; super-packets count as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxCounts {
    /// Frames that the kernel took.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those of the frames that left [many at a time](PacketPorts::use_burst).
    pub in_bursts: u64,
    /// Refused because the interface is down or gone (`ENETDOWN`, `ENXIO`, `ENODEV`).
    pub down: u64,
    /// Refused because its queue or the socket's buffer is full (`ENOBUFS`, `EAGAIN`, `ENOMEM`).
    pub full: u64,
    /// Refused because they are larger than the MTU and no super-packet (`EMSGSIZE`).
    pub too_large: u64,
    /// Refused for another reason.
    pub refused: u64,
}

/// The interfaces of one worker. Use: [`take`](PacketPorts::take), [`frames`](PacketPorts::frames), for each that goes on
/// [`send`](PacketPorts::send), then [`flush`](PacketPorts::flush).
#[derive(Debug)]
pub struct PacketPorts {
    ports: Vec<Port>,
    /// Frames that are ours.
    batch: Vec<Received>,
    /// Frames made here, each behind its offload header, and beginnings of others; at most `MADE_BYTES`.
    made: Vec<u8>,
    /// The port whose ring the next batch begins with.
    turn: usize,
    /// Sends small frames many at a time.
    burst: Option<Burst>,
    /// Port and length of each frame in it.
    in_burst: Vec<(usize, usize)>,
}

#[derive(Debug)]
struct Port {
    packets: PacketPort,
    /// At most `QUEUE_MAX`.
    queue: Vec<Outgoing>,
    counts: TxCounts,
}

#[derive(Clone, Copy, Debug)]
struct Received {
    port: u8,
    taken: Taken,
}

/// Where a frame that is to be sent lies, with its offload header in front.
#[derive(Clone, Copy, Debug)]
enum Outgoing {
    /// In `PacketPorts::made`.
    Made { start: usize, len: usize },
    /// Received by that port.
    Received { port: u8, place: Place, extent: Extent },
    /// The same, to leave with a tag: header, addresses and tag are in `PacketPorts::made`. Where it was received it stays as it is, since it may leave by
    /// other ports without, or with another.
    Tagged { start: usize, port: u8, place: Place, rest: Extent },
}

/// What is in front of the rest of a tagged frame.
const TAGGED_BYTES: usize = HEADER_BYTES + Tag::PLACE + Tag::BYTES;

impl PacketPorts {
    /// Ports are numbered as they are in the list.
    ///
    /// # Panics
    /// If there are more than 256.
    pub fn new(ports: Vec<PacketPort>) -> PacketPorts {
        assert!(ports.len() <= 256, "{} ports", ports.len());
        let ports = ports.into_iter().map(|packets| Port {
            packets,
            queue: Vec::with_capacity(QUEUE_MAX),
            counts: TxCounts::default(),
        });
        PacketPorts {
            ports: ports.collect(),
            batch: Vec::with_capacity(BATCH_MAX),
            made: Vec::with_capacity(MADE_BYTES),
            turn: 0,
            burst: None,
            in_burst: Vec::with_capacity(QUEUE_MAX),
        }
    }

    /// Has small frames leave by this from now on, where there are several. From then on all is to be called in the ports' namespace: the kernel looks for the
    /// interfaces of a burst where the calling thread is.
    pub fn use_burst(&mut self, burst: Burst) {
        self.burst = Some(burst);
    }

    /// Passes over frames that were received before this moment, in nanoseconds since 1970: another process has had them.
    pub fn take_from(&mut self, unix_ns: u64) {
        self.ports.iter_mut().for_each(|port| port.packets.take_from(unix_ns));
    }

    /// Whether frames wait for [`flush`](PacketPorts::flush).
    pub fn has_queued(&self) -> bool {
        self.ports.iter().any(|port| !port.queue.is_empty())
    }

    /// Takes up to `max` (at most [`BATCH_MAX`]) frames from the rings, the ports in turn; says how many. Flushes first if there
    /// still is an older batch. After 0 the rings were empty (or thousands of frames in a row had to be passed over): wait for
    /// [`PacketPorts::poll_fd`].
    pub fn take(&mut self, max: usize) -> usize {
        self.flush();
        let count = self.ports.len();
        let mut looks = LOOKS_MAX;
        for number in (self.turn..count).chain(0..self.turn) {
            while self.batch.len() < max.min(BATCH_MAX)
                && let Some(taken) = self.ports[number].packets.take(&mut looks)
            {
                // There are at most 256 ports.
                self.batch.push(Received { port: number as u8, taken });
            }
        }
        self.turn = if self.turn + 1 < count { self.turn + 1 } else { 0 };
        self.batch.len()
    }

    /// The frames of the batch, in order. No memory is allocated.
    pub fn frames(&mut self) -> impl ExactSizeIterator<Item = ReceivedFrame<'_>> {
        Frames { ports: &self.ports, batch: self.batch.iter() }
    }

    /// The packet of the n-th frame of the batch has become one of the other IP version: the frame begins so many bytes later, or earlier where
    /// negative, and what is left to be done for it is that of the other version. Once per frame.
    ///
    /// # Panics
    /// If there is no such frame, or it would begin before its room in front.
    pub fn cross(&mut self, frame: usize, begins: i16) {
        let taken = &mut self.batch[frame].taken;
        assert!(
            begins >= 0 || usize::from(begins.unsigned_abs()) <= taken.front_bytes,
            "the frame has outgrown its room"
        );
        taken.frame = taken.frame.begun(begins);
        taken.offload = taken.offload.crossed(begins);
        taken.front_bytes = 0;
    }

    /// Queues the n-th frame of the batch, as it is when it is flushed, to leave by `port`, with a VLAN tag or without. One frame may leave by
    /// several ports; where it leaves with a tag, its addresses are those of now.
    ///
    /// # Panics
    /// If there is no such frame or port.
    pub fn send(&mut self, frame: usize, port: u8, tag: Option<Tag>) {
        let Received { port: from, taken } = self.batch[frame];
        let Taken { place, offload, .. } = taken;
        let Some(tag) = tag else {
            let store = self.ports[usize::from(from)].packets.store_mut(place);
            let extent = store.put_header(taken.frame, |bytes| offload.header(bytes, 0));
            return self.queue(port, Outgoing::Received { port: from, place, extent });
        };
        self.make_room(TAGGED_BYTES);
        let start = self.made.len();
        let bytes = self.ports[usize::from(from)].packets.store_mut(place).bytes(taken.frame);
        let Some(addresses) = bytes.first_chunk::<{ Tag::PLACE }>() else {
            self.ports[usize::from(port)].counts.refused += 1;
            return;
        };
        self.made.extend_from_slice(&offload.header(bytes, Tag::BYTES as u16));
        self.made.extend_from_slice(addresses);
        self.made.extend_from_slice(&tag.bytes());
        self.queue(port, Outgoing::Tagged { start, port: from, place, rest: taken.frame.behind(Tag::PLACE) });
    }

    /// Queues a copy of a frame that was made here, to leave with a VLAN tag or without. One larger than [`RingSettings::FRAME_BYTES_MAX`] is
    /// refused, and so is one to be tagged that has no addresses.
    ///
    /// # Panics
    /// If there is no such port.
    pub fn send_bytes(&mut self, port: u8, bytes: &[u8], offload: Offload, tag: Option<Tag>) {
        let place = if tag.is_some() { Tag::PLACE } else { 0 };
        let (Some((addresses, rest)), true) =
            (bytes.split_at_checked(place), bytes.len() <= RingSettings::FRAME_BYTES_MAX as usize)
        else {
            self.ports[usize::from(port)].counts.refused += 1;
            return;
        };
        let tag = tag.map(Tag::bytes);
        let tag = tag.as_ref().map_or(&[][..], |tag| tag);
        let len = HEADER_BYTES + bytes.len() + tag.len();
        self.make_room(len);
        let start = self.made.len();
        // A tag has 4 bytes.
        self.made.extend_from_slice(&offload.header(bytes, tag.len() as u16));
        self.made.extend_from_slice(addresses);
        self.made.extend_from_slice(tag);
        self.made.extend_from_slice(rest);
        self.queue(port, Outgoing::Made { start, len });
    }

    /// Sends what is queued if there is no room for so many bytes more among those that are made here.
    fn make_room(&mut self, bytes: usize) {
        if self.made.len() + bytes > MADE_BYTES {
            self.transmit_all();
        }
    }

    /// Sends what is queued and gives back where the frames of the batch were kept. What cannot be sent is counted and gone.
    pub fn flush(&mut self) {
        self.transmit_all();
        for received in self.batch.drain(..) {
            self.ports[usize::from(received.port)].packets.release(received.taken.place);
        }
    }

    /// Number of ports.
    pub fn count(&self) -> usize {
        self.ports.len()
    }

    /// One port.
    ///
    /// # Panics
    /// If there is no such port.
    pub fn port(&self, port: u8) -> &PacketPort {
        &self.ports[usize::from(port)].packets
    }

    /// Puts another in a port's place and returns the old one, as when its interface was gone and is there again. Flushes first.
    /// Its counts go on.
    ///
    /// # Panics
    /// If there is no such port.
    pub fn replace(&mut self, port: u8, mut by: PacketPort) -> PacketPort {
        self.flush();
        by.go_on_from(self.rx_counts(port));
        mem::replace(&mut self.ports[usize::from(port)].packets, by)
    }

    /// Readable while the port has frames, and when its interface has gone down; for `Ring::await_ready_many`.
    ///
    /// # Panics
    /// If there is no such port.
    pub fn poll_fd(&self, port: u8) -> BorrowedFd<'_> {
        self.port(port).as_fd()
    }

    /// Whether the port works; asks the kernel. To be called when its descriptor is ready and no frame is there, and now and then.
    ///
    /// # Panics
    /// If there is no such port.
    pub fn state(&self, port: u8) -> PortState {
        self.port(port).state()
    }

    /// What the port has received; asks the kernel for its losses.
    ///
    /// # Panics
    /// If there is no such port.
    pub fn rx_counts(&mut self, port: u8) -> RxCounts {
        self.ports[usize::from(port)].packets.counts()
    }

    /// What was to be sent over the port.
    ///
    /// # Panics
    /// If there is no such port.
    pub fn tx_counts(&self, port: u8) -> TxCounts {
        self.ports[usize::from(port)].counts
    }

    fn queue(&mut self, port: u8, outgoing: Outgoing) {
        let number = usize::from(port);
        if self.ports[number].queue.len() == QUEUE_MAX {
            self.transmit(number);
        }
        self.ports[number].queue.push(outgoing);
    }

    fn transmit_all(&mut self) {
        self.transmit_burst();
        for number in 0..self.ports.len() {
            if !self.ports[number].queue.is_empty() {
                self.transmit(number);
            }
        }
        self.made.clear();
    }

    /// Sends the queues of small frames in one call, if these are enough for it. The others stay.
    fn transmit_burst(&mut self) {
        let waiting: usize = self.ports.iter().map(|port| port.queue.len()).sum();
        let Some(mut burst) = self.burst.take_if(|_| waiting >= BURST_MIN) else { return };
        let mut ether_type = None;
        let mut put = mem::take(&mut self.in_burst);
        put.clear();
        for (number, port) in self.ports.iter().enumerate() {
            let (before, mut same) = (burst.count(), ether_type);
            let index = port.packets.index();
            let is_put = port.queue.iter().all(|outgoing| {
                // SAFETY: the frame is in `made` or where it was received, which is ours, and neither changes while `self` is borrowed.
                let pieces = self.pieces(outgoing).map(|piece| unsafe { &*piece });
                let small = Small::of(pieces).filter(|small| burst.fits(small.len()));
                let Some(small) = small.filter(|small| *same.get_or_insert(small.ether_type) == small.ether_type)
                else {
                    return false;
                };
                burst.put(index, small.pieces, small.checksum);
                put.push((number, small.len()));
                true
            });
            if is_put {
                ether_type = same;
            } else {
                // A queue goes one way as a whole, so that its frames stay in their order.
                burst.truncate(before);
                put.truncate(before);
            }
        }
        let is_sent = if burst.count() < BURST_MIN {
            burst.truncate(0);
            false
        } else {
            match burst.send() {
                Ok(()) => true,
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::EAGAIN | libc::EINTR)) => false,
                // The kernel does not run it for us: nor will it later.
                Err(_) => return self.in_burst = put,
            }
        };
        if is_sent {
            for (place, &(number, len)) in put.iter().enumerate() {
                let Port { counts, queue, packets } = &mut self.ports[number];
                queue.clear();
                match burst.sent(place).failure(packets) {
                    None => {
                        counts.frames += 1;
                        counts.bytes += len as u64;
                        counts.in_bursts += 1;
                    }
                    Some(failure) => *failure.counter(counts) += 1,
                }
            }
        }
        self.burst = Some(burst);
        self.in_burst = put;
    }

    /// Where a frame that is to be sent lies, behind its offload header, in one or two pieces.
    fn pieces(&self, outgoing: &Outgoing) -> [*const [u8]; 2] {
        let received =
            |port: u8, place, extent| self.ports[usize::from(port)].packets.store(place).pointer(extent).cast_const();
        match *outgoing {
            Outgoing::Made { start, len } => [&raw const self.made[start..start + len], NO_PIECE],
            Outgoing::Received { port, place, extent } => [received(port, place, extent), NO_PIECE],
            Outgoing::Tagged { start, port, place, rest } => {
                [&raw const self.made[start..start + TAGGED_BYTES], received(port, place, rest)]
            }
        }
    }

    /// Sends the queue of one port.
    fn transmit(&mut self, number: usize) {
        let mut frames = [[NOTHING; 2]; QUEUE_MAX];
        let count = self.ports[number].queue.len();
        for (frame, outgoing) in frames.iter_mut().zip(&self.ports[number].queue) {
            *frame = self.pieces(outgoing).map(piece);
        }
        let port = &mut self.ports[number];
        port.queue.clear();
        // SAFETY: the frames are in `made` or where they were received, which is ours, and neither changes before this returns.
        unsafe { send_all(&port.packets, &mut frames[..count], &mut port.counts) };
    }
}

/// No bytes: what is sent is in one piece.
const NO_PIECE: *const [u8] = ptr::slice_from_raw_parts(ptr::dangling(), 0);
const NOTHING: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

/// A frame that is no super-packet, in two pieces.
struct Small<'a> {
    pieces: [&'a [u8]; 2],
    /// As it is read from the wire.
    ether_type: [u8; 2],
    checksum: Option<PartialChecksum>,
}

impl<'a> Small<'a> {
    /// What lies behind an offload header, if it is one.
    fn of([first, rest]: [&'a [u8]; 2]) -> Option<Small<'a>> {
        let (header, first) = first.split_first_chunk()?;
        let Offload { checksum, segments: None } = Offload::read(header)? else { return None };
        let ether_type = *first.get(Tag::PLACE..)?.first_chunk()?;
        let small = Small { pieces: [first, rest], ether_type, checksum };
        checksum.is_none_or(|checksum| checksum.lies_within(small.len())).then_some(small)
    }

    fn len(&self) -> usize {
        self.pieces[0].len() + self.pieces[1].len()
    }
}

/// Bytes to be sent, which are only read.
fn piece(bytes: *const [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.cast_mut().cast(), iov_len: bytes.len() }
}

/// Sends frames, at most `QUEUE_MAX`, each behind its offload header and in one or two pieces, and counts what became of each.
///
/// # Safety
/// Each iovec names readable memory that does not change meanwhile.
unsafe fn send_all(port: &PacketPort, frames: &mut [[libc::iovec; 2]], counts: &mut TxCounts) {
    let mut messages = [no_message(); QUEUE_MAX];
    for (message, frame) in messages.iter_mut().zip(frames.iter_mut()) {
        message.msg_hdr.msg_iovlen = if frame[1].iov_len == 0 { 1 } else { 2 };
        message.msg_hdr.msg_iov = frame.as_mut_ptr();
    }
    let socket = port.as_fd().as_raw_fd();
    let mut done = 0;
    let mut was_down = false;
    while done < frames.len() {
        let rest = &mut messages[done..frames.len()];
        let length = rest.len() as libc::c_uint;
        // SAFETY: `rest` holds `length` messages, each with one of `frames`, which names memory as this function's caller promises.
        match check(unsafe { libc::sendmmsg(socket, rest.as_mut_ptr(), length, libc::MSG_DONTWAIT) }) {
            Ok(sent) => {
                let sent = usize::try_from(sent).unwrap_or(0).clamp(1, rest.len());
                counts.frames += sent as u64;
                let bytes = |[first, rest]: &[libc::iovec; 2]| (first.iov_len + rest.iov_len - HEADER_BYTES) as u64;
                counts.bytes += frames[done..done + sent].iter().map(bytes).sum::<u64>();
                done += sent;
            }
            // The first of the rest failed.
            Err(error) => {
                let failure = Failure::of(&error);
                // It may be of a time when the interface was down: the first send afterwards gets that error, and takes it away
                // (`sock_alloc_send_pskb`, net/core/sock.c).
                if matches!(failure, Failure::Down) && !was_down {
                    was_down = true;
                    continue;
                }
                let failed = match failure {
                    // The others would fare no better.
                    Failure::BufferFull | Failure::Down => rest.len(),
                    Failure::QueueFull | Failure::Refused | Failure::TooLarge => 1,
                };
                *failure.counter(counts) += failed as u64;
                done += failed;
            }
        }
    }
}

/// Why a frame could not be sent.
#[derive(Clone, Copy)]
enum Failure {
    /// Too much of this socket is on its way.
    BufferFull,
    /// The interface is down or gone.
    Down,
    /// The interface's queue has dropped it.
    QueueFull,
    /// Another reason.
    Refused,
    /// Larger than the MTU.
    TooLarge,
}

impl Sent {
    /// Why a frame of a burst could not be sent over a port; `None`: it was.
    fn failure(self, port: &PacketPort) -> Option<Failure> {
        match self.0 {
            0 => None,
            // A queue has dropped it, or another for it (NET_XMIT_DROP and NET_XMIT_CN, linux/netdevice.h); that of an interface that is down drops all.
            1.. if port.is_up() => Some(Failure::QueueFull),
            1.. => Some(Failure::Down),
            // There is no such interface (`bpf_clone_redirect`, net/core/filter.c).
            error if error == -libc::EINVAL => Some(Failure::Down),
            error => Some(Failure::of(&io::Error::from_raw_os_error(-error))),
        }
    }
}

impl Failure {
    fn of(error: &io::Error) -> Failure {
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Failure::BufferFull,
            Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => Failure::Down,
            Some(libc::ENOBUFS | libc::ENOMEM) => Failure::QueueFull,
            Some(libc::EMSGSIZE) => Failure::TooLarge,
            _ => Failure::Refused,
        }
    }

    fn counter(self, counts: &mut TxCounts) -> &mut u64 {
        match self {
            Failure::BufferFull | Failure::QueueFull => &mut counts.full,
            Failure::Down => &mut counts.down,
            Failure::Refused => &mut counts.refused,
            Failure::TooLarge => &mut counts.too_large,
        }
    }
}

fn no_message() -> libc::mmsghdr {
    // SAFETY: all zeroes is a valid mmsghdr: null pointers with zero lengths.
    unsafe { mem::zeroed() }
}

/// Walks a batch once.
struct Frames<'a> {
    ports: &'a [Port],
    batch: slice::Iter<'a, Received>,
}

impl<'a> Iterator for Frames<'a> {
    type Item = ReceivedFrame<'a>;

    fn next(&mut self) -> Option<ReceivedFrame<'a>> {
        let Received { port, taken } = *self.batch.next()?;
        let store = self.ports[usize::from(port)].packets.store(taken.place);
        // SAFETY: its place is ours until `flush`, which needs the PacketPorts that this borrows mutably for 'a. A place stands in the
        // batch once and the batch is walked once, so no two of these overlap.
        let bytes = unsafe { &mut *store.pointer(taken.frame) };
        // SAFETY: as above, and it ends where the frame begins. What the kernel has written there was read when the frame was taken.
        let front = unsafe { &mut *store.pointer(taken.frame.front(taken.front_bytes)) };
        Some(ReceivedFrame { bytes, front, port, offload: taken.offload, tag: taken.tag })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.batch.size_hint()
    }
}

impl ExactSizeIterator for Frames<'_> {}
