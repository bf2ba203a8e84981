//! One io_uring per worker, with its receive buffers: safe operations in, completions out.
//!
//! Memory that the kernel reads or writes belongs to the ring (buffers, socket addresses, message headers), so no caller
//! can free it under an operation. Descriptors are borrowed only until the operation is queued; closing one early makes the
//! operation fail with `EBADF`, nothing worse.

mod buffers;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};

pub use buffers::Buffers;
use buffers::Shape;

use crate::address::RawAddress;

/// Buffer group of [`Ring::stream_buffers`].
const STREAM_GROUP: u16 = 0;
/// Buffer group of [`Ring::datagram_buffers`].
const DATAGRAM_GROUP: u16 = 1;
/// Buffer group of [`RecordSettings`].
const RECORD_GROUP: u16 = 2;
/// Stream and datagram buffers lent at a time.
const LENT_MAX: u16 = 512;
/// Record buffers lent at a time: they are larger.
const RECORDS_LENT_MAX: u16 = 64;
/// Bytes in front of the payload of a received message: header and sender.
const DATAGRAM_HEADER_BYTES: u32 = 16 + size_of::<libc::sockaddr_storage>() as u32;
/// The largest UDP payload over IPv6 without jumbograms (RFC 8200 §4.5): 65,535 − 8.
const DATAGRAM_PAYLOAD_MAX: u32 = 65_527;

/// Waits before the first look (`IORING_RECVSEND_POLL_FIRST`, linux/io_uring.h, 5.19); the crate has no name for it.
const POLL_FIRST: u16 = 1;

/// The three highest bits of a token are ours: they say what a completion carries. Callers' tokens stay below.
const CARRIES_SHIFT: u32 = 61;
const CARRIES_NOTHING: u64 = 0;
const CARRIES_DESCRIPTOR: u64 = 1;
const CARRIES_STREAM_BUFFER: u64 = 2;
const CARRIES_DATAGRAM_BUFFER: u64 = 3;
const CARRIES_RECORD_BUFFER: u64 = 4;

/// What is allocated with a ring.
#[derive(Clone, Copy, Debug)]
pub struct RingSettings {
    /// Submission entries, a power of two; completions get four times as many.
    pub entries: u32,
    /// Receive buffers for TCP, 1 to 65,535.
    pub stream_buffers: u16,
    /// Bytes of one of them.
    pub stream_buffer_bytes: u32,
    /// Receive buffers for UDP, each for the largest datagram; 1 to 65,535.
    pub datagram_buffers: u16,
    /// What is needed for TLS; `None` = nothing.
    pub records: Option<RecordSettings>,
}

/// Buffers for connections with TLS: large ones to receive into, and as many to be composed and sent.
#[derive(Clone, Copy, Debug)]
pub struct RecordSettings {
    /// Buffers of each kind; those to receive into are numbered behind the stream buffers, 65,535 together at most.
    pub count: u16,
    /// Bytes of one that is received into; all but those in front are.
    pub receive_bytes: u32,
    /// Bytes in front of what is received.
    pub front_bytes: u32,
    /// Bytes of one to be sent.
    pub send_bytes: u32,
}

/// One completion.
#[derive(Debug)]
pub struct Completion {
    token: u64,
    result: i32,
    more: bool,
    /// What is received from has more, or its end (IORING_CQE_F_SOCK_NONEMPTY).
    waits: bool,
    buffer: Option<u16>,
    carries: u64,
}

impl Completion {
    /// The token given with the operation.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// What the system call would have returned: ≥ 0, or a negative errno.
    pub fn result(&self) -> i32 {
        self.result
    }

    /// More completions of the same operation will come.
    pub fn more(&self) -> bool {
        self.more
    }

    /// The buffer that was filled, held from now on, if the operation takes buffers.
    pub fn buffer(&self) -> Option<u16> {
        self.buffer
    }

    /// Whether more has come behind what was received, or the end of the stream: as of the receive, so what comes later is not in it.
    pub fn more_waits(&self) -> bool {
        self.waits
    }

    /// Whether this says that the stream has ended right behind what `earlier` brought.
    pub fn is_end_behind(&self, earlier: &Completion) -> bool {
        let same =
            self.token == earlier.token && self.carries == CARRIES_STREAM_BUFFER && earlier.carries == self.carries;
        same && self.result == 0 && self.buffer.is_none() && earlier.result > 0
    }

    /// What a receive of a stream brought.
    pub fn received(&self) -> Received {
        match self.result {
            bytes if bytes > 0 => Received::Bytes(bytes.unsigned_abs()),
            0 => Received::End,
            error if error == -libc::ECANCELED => Received::Cancelled,
            // io_uring_prep_recv_multishot(3): the buffer group was empty.
            error if error == -libc::ENOBUFS => Received::NoBuffers,
            _ => Received::Failed,
        }
    }

    /// Takes ownership of the descriptor that the completion of an accept carries; the errno if it failed.
    ///
    /// # Panics
    /// If the operation was no accept.
    pub fn into_descriptor(self) -> Result<OwnedFd, i32> {
        assert_eq!(self.carries, CARRIES_DESCRIPTOR, "only an accept brings a descriptor");
        if self.result < 0 {
            return Err(-self.result);
        }
        // SAFETY: a successful accept's result is a new descriptor that nobody else owns; a completion exists once.
        Ok(unsafe { OwnedFd::from_raw_fd(self.result) })
    }
}

/// What a receive of a stream brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes.
    Bytes(u32),
    /// It was cancelled.
    Cancelled,
    /// The peer has finished its stream.
    End,
    /// The connection has failed.
    Failed,
    /// No buffer was left.
    NoBuffers,
}

/// How a turn ends.
#[derive(Clone, Copy, Debug)]
pub enum Wait {
    /// Submit, collect what is there, return at once.
    Poll,
    /// Sleep until something completes or the time is up.
    Sleep(Duration),
}

/// Which events of a descriptor are waited for.
#[derive(Clone, Copy, Debug)]
pub enum Readiness {
    /// Bytes, an end or an error can be read.
    Readable,
    /// Bytes can be written, or an error can be read.
    Writable,
}

/// A received datagram inside a held buffer.
#[derive(Clone, Copy, Debug)]
pub struct Datagram {
    /// Who sent it.
    pub sender: SocketAddr,
    /// Where the payload starts in the buffer.
    pub start: u32,
    /// Bytes of payload.
    pub len: u32,
}

/// Part of a held stream or record buffer.
#[derive(Clone, Copy, Debug)]
pub struct BufferRange {
    /// The buffer.
    pub buffer: u16,
    /// Where the range starts.
    pub start: u32,
    /// Its length in bytes.
    pub len: u32,
}

/// An io_uring with one user, the thread that made it.
pub struct Ring {
    // Declared first, so dropped first: the kernel lets go of all memory below before it is freed.
    ring: IoUring,
    stream: Buffers,
    datagram: Buffers,
    records: Option<Buffers>,
    /// Never lent to the kernel for receives.
    outgoing: Option<Buffers>,
    message: Box<libc::msghdr>,
    /// Addresses of connects that are queued but not yet submitted; the kernel copies them at submission.
    addresses: Vec<RawAddress>,
    submitted: u64,
}

impl Ring {
    /// Sets the ring up for the calling thread, which alone may use it (IORING_SETUP_SINGLE_ISSUER, DEFER_TASKRUN; Linux 6.1).
    pub fn new(settings: RingSettings) -> io::Result<Ring> {
        let mut ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(settings.entries * 4)
            .build(settings.entries)?;
        let whole = |count, buffer_bytes| Shape { count, buffer_bytes, front_bytes: 0, lent_max: LENT_MAX };
        let stream = Buffers::new(whole(settings.stream_buffers, settings.stream_buffer_bytes))?;
        let datagram = Buffers::new(whole(settings.datagram_buffers, DATAGRAM_HEADER_BYTES + DATAGRAM_PAYLOAD_MAX))?;
        register(&mut ring, &stream, STREAM_GROUP)?;
        register(&mut ring, &datagram, DATAGRAM_GROUP)?;
        let (mut records, mut outgoing) = (None, None);
        if let Some(RecordSettings { count, receive_bytes, front_bytes, send_bytes }) = settings.records {
            let count = count.min(u16::MAX - settings.stream_buffers);
            let shape = Shape { count, buffer_bytes: receive_bytes, front_bytes, lent_max: RECORDS_LENT_MAX };
            let buffers = Buffers::new(shape)?;
            register(&mut ring, &buffers, RECORD_GROUP)?;
            records = Some(buffers);
            outgoing = Some(Buffers::new(whole(count, send_bytes))?);
        }
        Ok(Ring {
            ring,
            stream,
            datagram,
            records,
            outgoing,
            message: Box::new(message_template()),
            addresses: Vec::with_capacity(settings.entries as usize),
            submitted: 0,
        })
    }

    /// The buffers of TCP receives.
    pub fn stream_buffers(&mut self) -> &mut Buffers {
        &mut self.stream
    }

    /// The buffers of receives with TLS, numbered from 0 here; empty where none are reserved.
    pub fn records_free(&self) -> usize {
        self.records.as_ref().map_or(0, Buffers::free)
    }

    /// Record buffers in all.
    pub fn records_count(&self) -> usize {
        self.records.as_ref().map_or(0, |records| usize::from(records.count()))
    }

    /// Takes a spare record buffer to be filled by us.
    pub fn lease_record(&mut self) -> Option<u16> {
        Some(self.stream.count() + self.records.as_mut()?.lease()?)
    }

    /// The whole of a held record buffer.
    ///
    /// # Panics
    /// If it is no record buffer, or not held.
    pub fn record_mut(&mut self, buffer: u16) -> &mut [u8] {
        let id = buffer - self.stream.count();
        let records = self.records.as_mut().expect("a record buffer is reserved before it is held");
        records.bytes_mut(id, 0, records.buffer_bytes())
    }

    /// A range of a held stream or record buffer.
    ///
    /// # Panics
    /// If it is not held, or the range leaves its buffer.
    pub fn held(&self, range: BufferRange) -> &[u8] {
        let (buffers, id) = group_of(&self.stream, self.records.as_ref(), range.buffer);
        buffers.bytes(id, range.start, range.len)
    }

    /// A range of a held stream or record buffer, and the whole of a leased outgoing buffer.
    ///
    /// # Panics
    /// If one of them is not held, or the range leaves its buffer.
    pub fn source_and_outgoing(&mut self, range: BufferRange, outgoing: u16) -> (&[u8], &mut [u8]) {
        let (buffers, id) = group_of(&self.stream, self.records.as_ref(), range.buffer);
        let to = self.outgoing.as_mut().expect("a buffer is reserved before it is leased");
        (buffers.bytes(id, range.start, range.len), to.bytes_mut(outgoing, 0, to.buffer_bytes()))
    }

    /// Gives a held stream or record buffer back.
    ///
    /// # Panics
    /// If it is not held.
    pub fn recycle(&mut self, buffer: u16) {
        match (buffer.checked_sub(self.stream.count()), &mut self.records) {
            (Some(id), Some(records)) => records.recycle(id),
            _ => self.stream.recycle(buffer),
        }
    }

    /// The buffers of UDP receives.
    pub fn datagram_buffers(&mut self) -> &mut Buffers {
        &mut self.datagram
    }

    /// Reserves buffers for messages that are composed here: to be leased, written and sent. Once per ring.
    pub fn reserve_outgoing(&mut self, count: u16, buffer_bytes: u32) -> io::Result<()> {
        if self.outgoing.is_some() {
            // Sends may be under way from those there are.
            return Err(io::Error::other("outgoing buffers are reserved already"));
        }
        let shape = Shape { count, buffer_bytes, front_bytes: 0, lent_max: LENT_MAX };
        self.outgoing = Some(Buffers::new(shape)?);
        Ok(())
    }

    /// The buffers of [`Ring::reserve_outgoing`], if there are any.
    pub fn outgoing_buffers(&mut self) -> Option<&mut Buffers> {
        self.outgoing.as_mut()
    }

    /// Operations submitted since the start.
    pub fn submitted(&self) -> u64 {
        self.submitted
    }

    /// Accepts connections until it fails or is cancelled; each completion's result is a new descriptor.
    pub fn accept_many(&mut self, listener: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        self.push(opcode::AcceptMulti::new(fd(listener)).flags(flags).build(), token, CARRIES_DESCRIPTOR)
    }

    /// Connects a socket.
    pub fn connect(&mut self, socket: BorrowedFd<'_>, to: SocketAddr, token: u64) -> io::Result<()> {
        if self.addresses.len() == self.addresses.capacity() {
            self.flush()?;
            // Growing would move addresses that queued connects still point to.
            if !self.addresses.is_empty() {
                return Err(io::Error::other("the submission queue stays full"));
            }
        }
        self.addresses.push(RawAddress::from(to));
        let address = &self.addresses[self.addresses.len() - 1];
        let entry = opcode::Connect::new(fd(socket), address.as_ptr(), address.len()).build();
        self.push(entry, token, CARRIES_NOTHING)
    }

    /// Receives once into one stream buffer.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.receive_with(socket, 0, token)
    }

    /// As [`Ring::receive`], where nothing has come yet, most likely: looks only once something has, which spares a look in vain.
    pub fn receive_later(&mut self, socket: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.receive_with(socket, POLL_FIRST, token)
    }

    fn receive_with(&mut self, socket: BorrowedFd<'_>, ioprio: u16, token: u64) -> io::Result<()> {
        // A null pointer with buffer selection: the kernel takes the address from the group.
        let entry = opcode::Recv::new(fd(socket), std::ptr::null_mut(), self.stream.buffer_bytes())
            .buf_group(STREAM_GROUP)
            .ioprio(ioprio)
            .build()
            .flags(io_uring::squeue::Flags::BUFFER_SELECT);
        self.push(entry, token, CARRIES_STREAM_BUFFER)
    }

    /// Receives once into one record buffer, behind its front.
    ///
    /// # Panics
    /// If none are reserved.
    pub fn receive_records(&mut self, socket: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let records = self.records.as_ref().expect("record buffers are reserved where there is TLS");
        let bytes = records.buffer_bytes() - records.front_bytes();
        let entry = opcode::Recv::new(fd(socket), std::ptr::null_mut(), bytes)
            .buf_group(RECORD_GROUP)
            .build()
            .flags(io_uring::squeue::Flags::BUFFER_SELECT);
        self.push(entry, token, CARRIES_RECORD_BUFFER)
    }

    /// Receives into one stream buffer after the other until the stream ends, it fails, buffers run out or it is cancelled.
    ///
    /// Once data is there, the kernel fills up to 32 buffers in a row (`MULTISHOT_MAX_RETRY`, io_uring/net.c) before a cancel is
    /// heard: whoever does not trust its peers bounds how many such receives there are.
    pub fn receive_many(&mut self, socket: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.push(opcode::RecvMulti::new(fd(socket), STREAM_GROUP).build(), token, CARRIES_STREAM_BUFFER)
    }

    /// Sends the first bytes of a leased outgoing buffer, all of them unless the connection fails. The buffer must stay held until
    /// the completion.
    ///
    /// # Panics
    /// If no outgoing buffers are reserved.
    pub fn send_outgoing(&mut self, socket: BorrowedFd<'_>, buffer: u16, len: u32, token: u64) -> io::Result<()> {
        self.send_outgoing_with(socket, buffer, len, 0, token)
    }

    /// As [`Ring::send_outgoing`], for what the kernel may hold back until the next send, shutdown or close (`MSG_MORE`, send(2)).
    ///
    /// # Panics
    /// If no outgoing buffers are reserved.
    pub fn send_outgoing_before(
        &mut self,
        socket: BorrowedFd<'_>,
        buffer: u16,
        len: u32,
        token: u64,
    ) -> io::Result<()> {
        self.send_outgoing_with(socket, buffer, len, libc::MSG_MORE, token)
    }

    fn send_outgoing_with(
        &mut self,
        socket: BorrowedFd<'_>,
        buffer: u16,
        len: u32,
        more: i32,
        token: u64,
    ) -> io::Result<()> {
        let outgoing = self.outgoing.as_ref().expect("a buffer is reserved before it is leased");
        let address = outgoing.address(buffer, 0, len);
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL | more;
        self.push(opcode::Send::new(fd(socket), address, len).flags(flags).build(), token, CARRIES_NOTHING)
    }

    /// Sends bytes that never change nor go away, all of them unless the connection fails.
    pub fn send_static(&mut self, socket: BorrowedFd<'_>, bytes: &'static [u8], token: u64) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        self.push(opcode::Send::new(fd(socket), bytes.as_ptr(), length).flags(flags).build(), token, CARRIES_NOTHING)
    }

    /// Sends a range of a held stream or record buffer, all of it unless the connection fails. The buffer must stay held until the completion.
    /// With `more`, the kernel may hold the bytes back until the next send, shutdown or close (`MSG_MORE`, send(2)).
    pub fn send(&mut self, socket: BorrowedFd<'_>, range: BufferRange, more: bool, token: u64) -> io::Result<()> {
        let (buffers, id) = group_of(&self.stream, self.records.as_ref(), range.buffer);
        let address = buffers.address(id, range.start, range.len);
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL | if more { libc::MSG_MORE } else { 0 };
        self.push(opcode::Send::new(fd(socket), address, range.len).flags(flags).build(), token, CARRIES_NOTHING)
    }

    /// Receives datagrams with their senders into datagram buffers; read each with [`Ring::datagram`].
    pub fn receive_messages(&mut self, socket: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let message: *const libc::msghdr = &*self.message;
        self.push(
            opcode::RecvMsgMulti::new(fd(socket), message, DATAGRAM_GROUP).build(),
            token,
            CARRIES_DATAGRAM_BUFFER,
        )
    }

    /// Receives datagrams of a connected socket into datagram buffers, payload only.
    pub fn receive_datagrams(&mut self, socket: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.push(opcode::RecvMulti::new(fd(socket), DATAGRAM_GROUP).build(), token, CARRIES_DATAGRAM_BUFFER)
    }

    /// Reads what [`Ring::receive_messages`] put into a held buffer; `None` for a sender that is not IP or a cut message.
    pub fn datagram(&self, buffer: u16, result: i32) -> Option<Datagram> {
        let len = u32::try_from(result).ok()?;
        let bytes = self.datagram.bytes(buffer, 0, len);
        let out = io_uring::types::RecvMsgOut::parse(bytes, &self.message).ok()?;
        if out.is_payload_truncated() {
            return None;
        }
        let sender = RawAddress::from_bytes(out.name_data())?.to_socket_addr();
        let payload = u32::try_from(out.payload_data().len()).ok()?;
        Some(Datagram { sender, start: DATAGRAM_HEADER_BYTES, len: payload })
    }

    /// Completes once when `socket` is ready.
    pub fn await_ready(&mut self, socket: BorrowedFd<'_>, readiness: Readiness, token: u64) -> io::Result<()> {
        self.push(opcode::PollAdd::new(fd(socket), mask(readiness)).build(), token, CARRIES_NOTHING)
    }

    /// Completes each time `socket` becomes ready.
    pub fn await_ready_many(&mut self, socket: BorrowedFd<'_>, readiness: Readiness, token: u64) -> io::Result<()> {
        self.push(opcode::PollAdd::new(fd(socket), mask(readiness)).multi(true).build(), token, CARRIES_NOTHING)
    }

    /// Cancels the wait queued with `target`; it completes with `ECANCELED`, this operation under `token` only if it fails.
    pub fn cancel_wait(&mut self, target: u64, token: u64) -> io::Result<()> {
        self.cancel(target | CARRIES_NOTHING << CARRIES_SHIFT, token)
    }

    /// Cancels the receive of a stream queued with `target`; it completes with `ECANCELED`, this operation under `token` only if
    /// it fails.
    pub fn cancel_receive(&mut self, target: u64, token: u64) -> io::Result<()> {
        self.cancel(target | CARRIES_STREAM_BUFFER << CARRIES_SHIFT, token)
    }

    /// The same of a receive into a record buffer.
    pub fn cancel_receive_records(&mut self, target: u64, token: u64) -> io::Result<()> {
        self.cancel(target | CARRIES_RECORD_BUFFER << CARRIES_SHIFT, token)
    }

    /// Cancels every operation on `socket`; completes under `token` only if it fails.
    pub fn cancel_all(&mut self, socket: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let which = CancelBuilder::fd(fd(socket)).all();
        self.push(silent(opcode::AsyncCancel2::new(which).build()), token, CARRIES_NOTHING)
    }

    /// Closes a descriptor together with the next submission; completes under `token` only if it fails.
    pub fn close(&mut self, socket: OwnedFd, token: u64) -> io::Result<()> {
        self.push(silent(opcode::Close::new(Fd(socket.into_raw_fd())).build()), token, CARRIES_NOTHING)
    }

    /// Submits what is queued and waits as asked; an elapsed time or a signal is no error.
    pub fn enter(&mut self, wait: Wait) -> io::Result<()> {
        self.stream.replenish();
        self.datagram.replenish();
        if let Some(records) = &mut self.records {
            records.replenish();
        }
        match wait {
            Wait::Poll => self.flush(),
            Wait::Sleep(time) => {
                let time = Timespec::from(time);
                let args = SubmitArgs::new().timespec(&time);
                let result = self.ring.submitter().submit_with_args(1, &args);
                self.note_submitted(result)
            }
        }
    }

    /// Whether there are completions, or work that becomes some in the next [`Ring::enter`]. Asks memory, not the kernel.
    pub fn has_news(&mut self) -> bool {
        !self.ring.completion().is_empty() || self.ring.submission().taskrun()
    }

    /// Takes up to `max` completions, appended to `out`; buffers they carry are held from now on.
    pub fn take(&mut self, out: &mut Vec<Completion>, max: usize) {
        for entry in self.ring.completion().take(max) {
            let carries = entry.user_data() >> CARRIES_SHIFT;
            let mut buffer = cqueue::buffer_select(entry.flags());
            match (carries, buffer, &mut self.records) {
                (CARRIES_STREAM_BUFFER, Some(id), _) => self.stream.hold(id),
                (CARRIES_DATAGRAM_BUFFER, Some(id), _) => self.datagram.hold(id),
                (CARRIES_RECORD_BUFFER, Some(id), Some(records)) => {
                    records.hold(id);
                    buffer = Some(self.stream.count() + id);
                }
                _ => {}
            }
            out.push(Completion {
                token: entry.user_data() & !(u64::MAX << CARRIES_SHIFT),
                result: entry.result(),
                more: cqueue::more(entry.flags()),
                waits: cqueue::sock_nonempty(entry.flags()),
                buffer,
                carries,
            });
        }
    }

    fn cancel(&mut self, target: u64, token: u64) -> io::Result<()> {
        self.push(silent(opcode::AsyncCancel::new(target).build()), token, CARRIES_NOTHING)
    }

    /// Submits what is queued; part of it may stay queued.
    fn flush(&mut self) -> io::Result<()> {
        let result = self.ring.submit();
        self.note_submitted(result)
    }

    fn note_submitted(&mut self, result: io::Result<usize>) -> io::Result<()> {
        if self.ring.submission().is_empty() {
            self.addresses.clear();
        }
        match result {
            Ok(count) => self.submitted += count as u64,
            Err(error) if is_no_failure(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn push(&mut self, entry: Entry, token: u64, carries: u64) -> io::Result<()> {
        debug_assert_eq!(token >> CARRIES_SHIFT, 0, "token too large");
        let entry = entry.user_data(token | carries << CARRIES_SHIFT);
        // SAFETY: all memory the entry names (buffers, addresses, the message header) is owned by `self` and lives until the
        // ring is dropped, or is static; addresses are kept until they are submitted.
        if unsafe { self.ring.submission().push(&entry) }.is_ok() {
            return Ok(());
        }
        match self.ring.submit() {
            Ok(count) => self.submitted += count as u64,
            Err(error) if is_no_failure(&error) => {}
            Err(error) => return Err(error),
        }
        // SAFETY: as above.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| io::Error::other("the submission queue stays full"))
    }
}

fn register(ring: &mut IoUring, buffers: &Buffers, group: u16) -> io::Result<()> {
    let (address, entries) = buffers.registration();
    // SAFETY: the entries' mapping lives as long as the Ring, which drops the io_uring first.
    unsafe { ring.submitter().register_buf_ring_with_flags(address, entries, group, 0) }
}

/// The group that a buffer belongs to, and its number there.
fn group_of<'a>(stream: &'a Buffers, records: Option<&'a Buffers>, buffer: u16) -> (&'a Buffers, u16) {
    match (buffer.checked_sub(stream.count()), records) {
        (Some(id), Some(records)) => (records, id),
        _ => (stream, buffer),
    }
}

fn message_template() -> libc::msghdr {
    // SAFETY: all zeroes is a valid msghdr: null pointers with zero lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    message
}

/// Without a completion unless it fails: nobody waits for it.
fn silent(entry: Entry) -> Entry {
    entry.flags(io_uring::squeue::Flags::SKIP_SUCCESS)
}

fn mask(readiness: Readiness) -> u32 {
    let events = match readiness {
        Readiness::Readable => libc::POLLIN | libc::POLLRDHUP,
        Readiness::Writable => libc::POLLOUT,
    };
    events as u32
}

fn is_no_failure(error: &io::Error) -> bool {
    // ETIME: the wait's time is up. EBUSY: completions must be taken first.
    matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

fn fd(socket: BorrowedFd<'_>) -> Fd {
    Fd(socket.as_raw_fd())
}
