//! Descriptors on their way to another process (unix(7), `SCM_RIGHTS`).
//!
//! They go in batches, each beside one byte: a reader that asks for bytes only never meets them, and none is lost between two reads.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::errno::check_length;

/// Descriptors of one message: the kernel takes 253 (`SCM_MAX_FD`, include/net/scm.h).
const BATCH_MAX: usize = 250;
/// Words of a buffer for the control message of one batch: its header, and room for its alignment.
const CONTROL_WORDS: usize = (BATCH_MAX * size_of::<RawFd>() + size_of::<libc::cmsghdr>()).div_ceil(8) + 2;

/// Sends copies of `descriptors`, in this order.
pub fn send_descriptors(socket: &impl AsFd, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    descriptors.chunks(BATCH_MAX).try_for_each(|batch| send_batch(socket, batch))
}

fn send_batch(socket: &impl AsFd, batch: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = batch.iter().map(AsRawFd::as_raw_fd).collect();
    let payload = u32::try_from(size_of_val(raw.as_slice())).map_err(io::Error::other)?;
    let mut byte = 0_u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = [0_u64; CONTROL_WORDS];
    // SAFETY: an all-zero msghdr is a valid one: null pointers and lengths of 0.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: CMSG_SPACE computes with its argument.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(payload) } as _;
    // SAFETY: `message` names `control`, which is larger than one header.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if header.is_null() {
        return Err(io::Error::other("no room for descriptors"));
    }
    // SAFETY: CMSG_LEN computes with its argument.
    let length = unsafe { libc::CMSG_LEN(payload) };
    let filled = libc::cmsghdr { cmsg_len: length as _, cmsg_level: libc::SOL_SOCKET, cmsg_type: libc::SCM_RIGHTS };
    // SAFETY: `header` lies at the beginning of `control`, whose words are aligned as a header has to be.
    unsafe { header.write(filled) };
    // SAFETY: the data of a message begins behind its header.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: the data, `payload` bytes, lies in `control`: BATCH_MAX descriptors fit.
    unsafe { std::ptr::copy_nonoverlapping(raw.as_ptr().cast::<u8>(), data, payload as usize) };
    loop {
        // SAFETY: `message` names a byte and a control buffer that outlive the call.
        let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        match check_length(sent) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Receives so many descriptors, closed on exec. Anything else than exactly these is an error, and closes what came.
pub fn receive_descriptors(socket: &impl AsFd, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut descriptors = Vec::new();
    while descriptors.len() < count {
        let before = descriptors.len();
        receive_batch(socket, &mut descriptors)?;
        if descriptors.len() == before {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message without its descriptors"));
        }
    }
    match descriptors.len() == count {
        true => Ok(descriptors),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "more descriptors than were announced")),
    }
}

fn receive_batch(socket: &impl AsFd, descriptors: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut byte = 0_u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = [0_u64; CONTROL_WORDS];
    // SAFETY: an all-zero msghdr is a valid one: null pointers and lengths of 0.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let received = loop {
        // SAFETY: the kernel writes one byte into `byte` and at most `msg_controllen` bytes into `control`; both outlive the call.
        let received = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match check_length(received) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => break received?,
        }
    };
    // SAFETY: recvmsg has set msg_controllen to what it has written into `control`.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: the kernel has written a whole header there; `control` is aligned for it.
        let libc::cmsghdr { cmsg_len, cmsg_level, cmsg_type, .. } = unsafe { header.read() };
        if (cmsg_level, cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: CMSG_LEN computes with its argument.
            let empty = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = cmsg_len.saturating_sub(empty) / size_of::<RawFd>();
            // SAFETY: the data of a header that the kernel has written begins behind it.
            let data = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            for place in 0..count {
                // SAFETY: the kernel has written `count` descriptors there.
                let written = unsafe { data.add(place) };
                // SAFETY: `written` is one of them, in no certain alignment.
                let raw = unsafe { written.read_unaligned() };
                // SAFETY: recvmsg has just installed this descriptor, and nobody else holds it.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
        // SAFETY: `header` is one of this message.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    if received == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        // This process may not have so many (RLIMIT_NOFILE).
        return Err(io::Error::other("not all descriptors could be taken; raise LimitNOFILE= in the systemd unit"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    #[test]
    fn descriptors_arrive_in_their_order_between_bytes() {
        let (mut one, mut other) = UnixStream::pair().unwrap();
        // More than one batch holds.
        let pipes: Vec<(io::PipeReader, io::PipeWriter)> = (0..300).map(|_| io::pipe().unwrap()).collect();
        let giving = thread::spawn(move || {
            one.write_all(b"before").unwrap();
            let readers: Vec<BorrowedFd<'_>> = pipes.iter().map(|(reader, _)| reader.as_fd()).collect();
            send_descriptors(&one, &readers).unwrap();
            one.write_all(b"behind").unwrap();
            for (place, (_, mut writer)) in pipes.into_iter().enumerate() {
                writer.write_all(&(place as u32).to_le_bytes()).unwrap();
            }
        });
        let mut words = [0; 6];
        other.read_exact(&mut words).unwrap();
        assert_eq!(&words, b"before");
        let received = receive_descriptors(&other, 300).unwrap();
        other.read_exact(&mut words).unwrap();
        assert_eq!(&words, b"behind");
        giving.join().unwrap();
        for (place, descriptor) in received.into_iter().enumerate() {
            let mut said = Vec::new();
            std::fs::File::from(descriptor).read_to_end(&mut said).unwrap();
            assert_eq!(said, (place as u32).to_le_bytes());
        }
    }

    #[test]
    fn who_gives_less_or_more_than_announced_is_not_believed() {
        let (one, other) = UnixStream::pair().unwrap();
        send_descriptors(&one, &[one.as_fd(), one.as_fd()]).unwrap();
        assert_eq!(receive_descriptors(&other, 1).unwrap_err().kind(), io::ErrorKind::InvalidData);
        (&one).write_all(b"x").unwrap();
        assert_eq!(receive_descriptors(&other, 1).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(one);
        assert_eq!(receive_descriptors(&other, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
