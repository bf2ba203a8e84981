//! Sockets: listeners, sockets bound to a leased port, and the options a relay sets on them.
//!
//! Every socket opened here is non-blocking and closed on exec.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::address::RawAddress;
use crate::errno::{Cause, check};

/// The most connections a listener asks the kernel to hold for it; the kernel caps it at `somaxconn`
/// (see [`crate::host::somaxconn`]).
pub const BACKLOG: u32 = 4096;

/// More than a receive queue holds (`net.ipv4.tcp_rmem` has 6 MiB at most, by default).
const DISCARDED_BYTES_MAX: usize = 64 << 20;

/// The beginning of `struct tcp_info` (include/uapi/linux/tcp.h), in words of eight bytes, …
const TCP_INFO_WORDS: usize = 16;
/// … of which `tcpi_bytes_acked` is this one.
const ACKNOWLEDGED_WORD: usize = 15;

/// `SO_DETACH_REUSEPORT_BPF` (include/uapi/asm-generic/socket.h), which libc lacks on some targets.
const SO_DETACH_REUSEPORT_BPF: libc::c_int = 68;

/// Address family of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6, and IPv6 only.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(ip: IpAddr) -> Family {
        match ip {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// The address that stands for all addresses of the family.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }

    fn domain(self) -> libc::c_int {
        match self {
            Family::V4 => libc::AF_INET,
            Family::V6 => libc::AF_INET6,
        }
    }
}

/// What travels over a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

/// How a listener is opened.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// Connections the kernel may hold before they are accepted (TCP).
    pub backlog: u32,
    /// Whether several sockets may listen on this address and port, one per worker (`SO_REUSEPORT`).
    pub reuse_port: ReusePort,
    /// Whether the address must be on this host when the listener is opened.
    pub binding: Binding,
    /// Whether the connections it brings hold their acknowledgements back (see [`hold_acknowledgements`]).
    pub hold_acknowledgements: bool,
    /// How many bytes may wait to leave on a connection it brings (see [`set_unsent_max`]); `None`: as the kernel has it.
    pub unsent_bytes_max: Option<u32>,
}

impl Default for ListenOptions {
    fn default() -> ListenOptions {
        ListenOptions {
            backlog: BACKLOG,
            reuse_port: ReusePort::Shared,
            binding: Binding::HostAddress,
            hold_acknowledgements: false,
            unsent_bytes_max: None,
        }
    }
}

/// Whether an address and port can be listened on by several sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReusePort {
    /// Only this socket: a second one is refused with `EADDRINUSE`.
    Exclusive,
    /// Every socket of this user that asks for it.
    Shared,
}

/// Whether a socket may be bound to an address that this host does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Any address, as needed while a VIP moves between machines (`IP_FREEBIND`).
    Free,
    /// An address of this host, otherwise `EADDRNOTAVAIL`.
    HostAddress,
}

/// State of a connection just after `connect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connecting {
    /// It is up already.
    Connected,
    /// It becomes writable when it is decided; then ask [`take_error`].
    InProgress,
}

/// Opens a listening socket (TCP) or a bound one (UDP). IPv6 sockets carry IPv6 only.
pub fn open_listener(address: SocketAddr, transport: Transport, options: &ListenOptions) -> io::Result<OwnedFd> {
    let family = Family::of(address.ip());
    let fd = match transport {
        Transport::Tcp => tcp_socket(family)?,
        Transport::Udp => udp_socket(family)?,
    };
    // On UDP, SO_REUSEADDR would let a stranger's later socket take our datagrams.
    if transport == Transport::Tcp {
        set_flag(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    }
    if options.reuse_port == ReusePort::Shared {
        set_flag(&fd, libc::SOL_SOCKET, libc::SO_REUSEPORT)?;
    }
    if options.binding == Binding::Free {
        set_freebind(&fd, family)?;
    }
    bind(&fd, address)?;
    if transport == Transport::Tcp {
        // What it accepts has the option, too (Linux clones the listener's socket): one call for all clients.
        set_nodelay(&fd)?;
        if options.hold_acknowledgements {
            hold_acknowledgements(&fd)?;
        }
        if let Some(bytes) = options.unsent_bytes_max {
            set_unsent_max(&fd, bytes)?;
        }
        let backlog = libc::c_int::try_from(options.backlog).unwrap_or(libc::c_int::MAX);
        // SAFETY: listen takes no pointer; `fd` is open for the length of the call.
        check(unsafe { libc::listen(fd.as_raw_fd(), backlog) })?;
    }
    Ok(fd)
}

/// An unbound TCP socket.
pub fn tcp_socket(family: Family) -> io::Result<OwnedFd> {
    open_socket(family, libc::SOCK_STREAM)
}

/// An unbound UDP socket.
pub fn udp_socket(family: Family) -> io::Result<OwnedFd> {
    open_socket(family, libc::SOCK_DGRAM)
}

fn open_socket(family: Family, kind: libc::c_int) -> io::Result<OwnedFd> {
    let kind = kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes no pointer.
    let raw = check(unsafe { libc::socket(family.domain(), kind, 0) })?;
    let fd = own(raw);
    if family == Family::V6 {
        set_flag(&fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)?;
    }
    Ok(fd)
}

/// What an echo socket is read by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EchoForm {
    /// Messages of ICMP as they are.
    Message,
    /// Packets of IPv4, the header included (raw(7)).
    Packet,
}

/// A socket for echo requests to this host, connected to it. Sent and received are messages of ICMP; the kernel sees to the checksum of ICMPv6.
///
/// One without privileges, whose identifier is the kernel's, where the group of the process is in `net.ipv4.ping_group_range` (icmp(7)); else a raw one,
/// which hears nothing but replies with `identifier`.
///
/// # Errors
/// `PermissionDenied` where the process has neither the group nor CAP_NET_RAW.
pub fn echo_socket(to: IpAddr, identifier: u16) -> io::Result<(OwnedFd, EchoForm)> {
    let family = Family::of(to);
    let protocol = match family {
        Family::V4 => libc::IPPROTO_ICMP,
        Family::V6 => libc::IPPROTO_ICMPV6,
    };
    let open = |kind: libc::c_int| {
        let kind = kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: socket takes no pointer.
        check(unsafe { libc::socket(family.domain(), kind, protocol) }).map(own)
    };
    let (fd, form) = match open(libc::SOCK_DGRAM) {
        Ok(fd) => (fd, EchoForm::Message),
        Err(_) => {
            let fd = open(libc::SOCK_RAW)?;
            let (program, form) = match family {
                Family::V4 => (replies_in_packets(identifier).to_vec(), EchoForm::Packet),
                Family::V6 => (replies_alone(identifier).to_vec(), EchoForm::Message),
            };
            set_program(&fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
            (fd, form)
        }
    };
    connect(&fd, SocketAddr::new(to, 0))?;
    Ok((fd, form))
}

/// Echo replies with this identifier, behind an IPv4 header of whatever length.
fn replies_in_packets(identifier: u16) -> [(u16, u8, u8, u32); 7] {
    [
        (0xb1, 0, 0, 0),
        (0x50, 0, 0, 0),
        (0x15, 0, 3, 0),
        (0x48, 0, 0, 4),
        (0x15, 0, 1, identifier.into()),
        (0x06, 0, 0, u32::MAX),
        (0x06, 0, 0, 0),
    ]
}

/// The same of ICMPv6, whose raw sockets see no IPv6 header.
fn replies_alone(identifier: u16) -> [(u16, u8, u8, u32); 6] {
    [
        (0x30, 0, 0, 0),
        (0x15, 0, 3, 129),
        (0x28, 0, 0, 4),
        (0x15, 0, 1, identifier.into()),
        (0x06, 0, 0, u32::MAX),
        (0x06, 0, 0, 0),
    ]
}

/// Lets a socket of datagrams hear every error about them, also those that may pass, like a host that does not answer ARP (ip(7), IP_RECVERR).
pub fn hear_errors(fd: &impl AsFd, family: Family) -> io::Result<()> {
    match family {
        Family::V4 => set_flag(fd, libc::IPPROTO_IP, libc::IP_RECVERR),
        Family::V6 => set_flag(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    }
}

/// Binds a socket to an address and port.
pub fn bind(fd: &impl AsFd, address: SocketAddr) -> io::Result<()> {
    let raw = RawAddress::from(address);
    // SAFETY: the pointer and length name a RawAddress that outlives the call.
    check(unsafe { libc::bind(fd.as_fd().as_raw_fd(), raw.as_ptr(), raw.len()) })?;
    Ok(())
}

/// Binds a TCP socket to a leased address and port, with `SO_REUSEADDR`: the same port may serve
/// connections to different servers at the same time, and a lease stays usable while an older
/// connection to another server is in TIME_WAIT.
pub fn bind_leased(fd: &impl AsFd, address: SocketAddr) -> io::Result<()> {
    set_flag(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    bind(fd, address)
}

/// Binds to an address and leaves the port to `connect` (`IP_BIND_ADDRESS_NO_PORT`).
pub fn bind_address_only(fd: &impl AsFd, ip: IpAddr) -> io::Result<()> {
    set_flag(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT)?;
    bind(fd, SocketAddr::new(ip, 0))
}

/// Starts to connect.
pub fn connect(fd: &impl AsFd, address: SocketAddr) -> io::Result<Connecting> {
    let raw = RawAddress::from(address);
    // SAFETY: the pointer and length name a RawAddress that outlives the call.
    match check(unsafe { libc::connect(fd.as_fd().as_raw_fd(), raw.as_ptr(), raw.len()) }) {
        Ok(_) => Ok(Connecting::Connected),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(Connecting::InProgress),
        Err(error) => Err(error),
    }
}

/// Accepts one connection, or `None` when none is waiting. A connection that its client has given
/// up meanwhile is passed over.
pub fn accept(fd: &impl AsFd) -> io::Result<Option<(OwnedFd, SocketAddr)>> {
    // A client that floods with aborted connections must not hold us here.
    const ABORTED_MAX: u32 = 64;
    for _ in 0..ABORTED_MAX {
        let accepted = RawAddress::written_by(|place, length| {
            let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            // SAFETY: written_by lends a place of `length` bytes for the length of the call.
            check(unsafe { libc::accept4(fd.as_fd().as_raw_fd(), place, length, flags) })
        });
        match accepted {
            Ok((accepted, address)) => return Ok(Some((own(accepted), standard(address)?))),
            Err(error) => match Cause::of(&error) {
                Cause::PeerReset => continue,
                Cause::NotYet => return Ok(None),
                _ => return Err(error),
            },
        }
    }
    Ok(None)
}

/// The address this socket is bound to.
pub fn local_address(fd: &impl AsFd) -> io::Result<SocketAddr> {
    let (_, address) = RawAddress::written_by(|place, length| {
        // SAFETY: written_by lends a place of `length` bytes for the length of the call.
        check(unsafe { libc::getsockname(fd.as_fd().as_raw_fd(), place, length) })
    })?;
    standard(address)
}

/// The address this socket is connected to.
pub fn peer_address(fd: &impl AsFd) -> io::Result<SocketAddr> {
    let (_, address) = RawAddress::written_by(|place, length| {
        // SAFETY: written_by lends a place of `length` bytes for the length of the call.
        check(unsafe { libc::getpeername(fd.as_fd().as_raw_fd(), place, length) })
    })?;
    standard(address)
}

/// The address the kernel would send from towards `destination`; `ENETUNREACH` when there is no route.
pub fn kernel_source_towards(destination: IpAddr) -> io::Result<IpAddr> {
    let fd = udp_socket(Family::of(destination))?;
    // Connecting a UDP socket sends nothing. Any port but 0 will do.
    connect(&fd, SocketAddr::new(destination, 9))?;
    Ok(local_address(&fd)?.ip())
}

/// Copies what waits in the receive queue of a stream, and leaves it there; never waits. 0 = the stream has ended, or `into` is empty.
pub fn peek(socket: &impl AsFd, into: &mut [u8]) -> io::Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: `into` is writable for as long as it says, and the descriptor is open while it is borrowed.
    let seen = unsafe { libc::recv(socket.as_fd().as_raw_fd(), into.as_mut_ptr().cast(), into.len(), flags) };
    usize::try_from(seen).map_err(|_| io::Error::last_os_error())
}

/// Drops what waits in the receive queue of a TCP connection: unread, it would make the close send a reset, which may take back what was sent
/// last (RFC 1122 §4.2.2.13).
pub fn discard_unread(socket: &impl AsFd) -> io::Result<()> {
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: with MSG_TRUNC, TCP drops the bytes and writes nothing through the pointer (tcp(7)).
    let dropped = unsafe { libc::recv(socket.as_fd().as_raw_fd(), std::ptr::null_mut(), DISCARDED_BYTES_MAX, flags) };
    usize::try_from(dropped).map(|_| ()).map_err(|_| io::Error::last_os_error())
}

/// Bytes that the peer of a TCP connection has acknowledged since its beginning (`tcpi_bytes_acked`, RFC 4898).
pub fn acknowledged_bytes(socket: &impl AsFd) -> io::Result<u64> {
    let mut info = [0u64; TCP_INFO_WORDS];
    let mut length = size_of_val(&info) as libc::socklen_t;
    let place = info.as_mut_ptr().cast();
    // SAFETY: the pointers name `info` and its length, both outlive the call, and the kernel writes at most `length`.
    check(unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, place, &mut length)
    })?;
    Ok(info[ACKNOWLEDGED_WORD])
}

/// How far the peer of a TCP connection has ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// Not at all.
    Open,
    /// It has finished its stream; what it sent before may lie unread.
    Finished,
    /// It has reset the connection, or the kernel has given it up.
    Gone,
}

/// What the kernel knows of the peer of an accepted TCP connection that we have not finished (`tcpi_state`, include/net/tcp_states.h). Reads nothing.
pub fn peer_state(socket: &impl AsFd) -> io::Result<PeerState> {
    const TCP_ESTABLISHED: u8 = 1;
    const TCP_SYN_RECV: u8 = 3;
    const TCP_CLOSE_WAIT: u8 = 8;
    let mut state = 0_u8;
    let mut length = size_of_val(&state) as libc::socklen_t;
    let place = std::ptr::from_mut(&mut state).cast();
    // SAFETY: the pointers name `state`, the first field of `struct tcp_info`, and its length; both outlive the call, and the kernel writes at most `length`.
    check(unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, place, &mut length)
    })?;
    Ok(match state {
        TCP_ESTABLISHED | TCP_SYN_RECV => PeerState::Open,
        TCP_CLOSE_WAIT => PeerState::Finished,
        _ => PeerState::Gone,
    })
}

/// Ends our direction; what is queued is still delivered, followed by a FIN.
pub fn shutdown_write(fd: &impl AsFd) -> io::Result<()> {
    // SAFETY: shutdown takes no pointer; `fd` is open for the length of the call.
    check(unsafe { libc::shutdown(fd.as_fd().as_raw_fd(), libc::SHUT_WR) })?;
    Ok(())
}

/// Makes the coming close send a reset and drop what is queued (`SO_LINGER` of 0 s).
pub fn set_linger_reset(fd: &impl AsFd) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, &linger)
}

/// Lets acknowledgements wait for bytes that carry them, up to the 40 ms of a delayed acknowledgement: without it, Linux sends one
/// for each segment of a young connection (`TCP_QUICKACK` off, tcp(7)). Set before a connect, it holds for that handshake, too.
pub fn hold_acknowledgements(socket: &impl AsFd) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_QUICKACK, &(0 as libc::c_int))
}

/// Sends what the kernel takes at once; bytes taken. With [`Behind::More`] they may wait for the next send or the end of the stream.
pub fn send_now(socket: &impl AsFd, bytes: &[u8], behind: Behind) -> io::Result<usize> {
    let flags = match behind {
        Behind::More => libc::MSG_MORE,
        Behind::Nothing => 0,
    };
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let raw = socket.as_fd().as_raw_fd();
    // SAFETY: address and length are those of a borrowed slice; the kernel only reads it.
    let sent = unsafe { libc::send(raw, bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// What follows on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    /// Further bytes, or the end of the stream.
    More,
    /// Nothing that is known of.
    Nothing,
}

/// Sends an acknowledgement that is held back and leaves the next ones to the kernel.
pub fn acknowledge_now(socket: &impl AsFd) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_QUICKACK, &(1 as libc::c_int))
}

/// Sends small segments at once (`TCP_NODELAY`).
pub fn set_nodelay(fd: &impl AsFd) -> io::Result<()> {
    set_flag(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY)
}

/// Can be read only from so many bytes on (`SO_RCVLOWAT`, socket(7)), or when it has ended, failed or its window is full; at most half of
/// what `net.ipv4.tcp_rmem` allows. Until then every segment is acknowledged as it comes (net/ipv4/tcp_input.c: `__tcp_ack_snd_check`).
pub fn set_readable_from(socket: &impl AsFd, bytes: u32) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, &bytes)
}

/// Takes bytes to send only while fewer than these wait to leave (`TCP_NOTSENT_LOWAT`, tcp(7)); what is on its way does not count.
pub fn set_unsent_max(socket: &impl AsFd, bytes: u32) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, &bytes)
}

/// Asks silent peers whether they live: first after `idle_s`, then every `interval_s`, `probes` times.
pub fn set_keepalive(fd: &impl AsFd, idle_s: u32, interval_s: u32, probes: u32) -> io::Result<()> {
    let capped = |value: u32| libc::c_int::try_from(value).unwrap_or(libc::c_int::MAX);
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, &capped(idle_s))?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, &capped(interval_s))?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, &capped(probes))?;
    set_flag(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE)
}

/// Gives a connection up when sent data stays unacknowledged for so long (`TCP_USER_TIMEOUT`).
pub fn set_user_timeout(fd: &impl AsFd, timeout_ms: u32) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, &timeout_ms)
}

/// Allows binding to an address this host does not have.
pub fn set_freebind(fd: &impl AsFd, family: Family) -> io::Result<()> {
    match family {
        Family::V4 => set_flag(fd, libc::IPPROTO_IP, libc::IP_FREEBIND),
        Family::V6 => set_flag(fd, libc::IPPROTO_IPV6, libc::IPV6_FREEBIND),
    }
}

/// Asks for a receive buffer of so many bytes of payload; the kernel caps it at `net.core.rmem_max`.
pub fn set_receive_buffer(fd: &impl AsFd, bytes: u32) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &value)
}

/// Asks for a send buffer of so many bytes of payload; the kernel caps it at `net.core.wmem_max`.
pub fn set_send_buffer(fd: &impl AsFd, bytes: u32) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, &value)
}

/// The receive buffer the kernel granted, with its own overhead (twice what was asked).
pub fn receive_buffer(fd: &impl AsFd) -> io::Result<usize> {
    let value = read_int(fd, libc::SOL_SOCKET, libc::SO_RCVBUF)?;
    Ok(usize::try_from(value).unwrap_or(0))
}

/// The send buffer the kernel granted, with its own overhead (twice what was asked).
pub fn send_buffer(fd: &impl AsFd) -> io::Result<usize> {
    let value = read_int(fd, libc::SOL_SOCKET, libc::SO_SNDBUF)?;
    Ok(usize::try_from(value).unwrap_or(0))
}

/// Takes the pending error of a socket: `None` after a successful connect.
pub fn take_error(fd: &impl AsFd) -> io::Result<Option<io::Error>> {
    match read_int(fd, libc::SOL_SOCKET, libc::SO_ERROR)? {
        0 => Ok(None),
        errno => Ok(Some(io::Error::from_raw_os_error(errno))),
    }
}

/// Lets a classic BPF program choose which socket of a `SO_REUSEPORT` group takes a new connection or
/// datagram: it returns the index of the socket in the order in which the sockets were bound (UDP) or
/// began to listen (TCP). Each instruction is (code, jump if true, jump if false, operand). Attaching to
/// one socket of the group serves them all and replaces an earlier program.
pub fn attach_reuseport_program(fd: &impl AsFd, program: &[(u16, u8, u8, u32)]) -> io::Result<()> {
    set_program(fd, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, program)
}

/// Has a listening TCP socket take no new clients, while those whose handshake is under way still come through: the program sees each segment from its TCP
/// header on (`net/ipv4/tcp_ipv4.c`, `tcp_filter`), and drops those with SYN and without ACK (RFC 9293 §3.1). Who knocks tries again a second later.
pub fn refuse_newcomers(listener: &impl AsFd) -> io::Result<()> {
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    const FLAGS_AT: u32 = 13;
    // BPF_LD | BPF_B | BPF_ABS, BPF_ALU | BPF_AND | BPF_K, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K.
    let program =
        [(0x30, 0, 0, FLAGS_AT), (0x54, 0, 0, SYN | ACK), (0x15, 0, 1, SYN), (0x06, 0, 0, 0), (0x06, 0, 0, u32::MAX)];
    set_program(listener, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Undoes [`refuse_newcomers`]; nothing to undo is no error.
pub fn admit_newcomers(listener: &impl AsFd) -> io::Result<()> {
    match set_flag(listener, libc::SOL_SOCKET, libc::SO_DETACH_FILTER) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// Takes the program of the group away: the kernel's own hash chooses again.
pub fn detach_reuseport_program(fd: &impl AsFd) -> io::Result<()> {
    set_flag(fd, libc::SOL_SOCKET, SO_DETACH_REUSEPORT_BPF)
}

fn standard(address: Option<RawAddress>) -> io::Result<SocketAddr> {
    match address {
        Some(raw) => Ok(raw.to_socket_addr()),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "socket address neither IPv4 nor IPv6")),
    }
}

pub(crate) fn own(raw: RawFd) -> OwnedFd {
    // SAFETY: every caller passes a descriptor that a system call has just returned to it and that nobody else holds.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

pub(crate) fn set_flag(fd: &impl AsFd, level: libc::c_int, name: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    set_option(fd, level, name, &on)
}

/// Sets an option whose value is a classic BPF program.
pub(crate) fn set_program(
    fd: &impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    program: &[(u16, u8, u8, u32)],
) -> io::Result<()> {
    let mut filter: Vec<libc::sock_filter> =
        program.iter().map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k }).collect();
    let length = libc::c_ushort::try_from(filter.len()).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("steering program of {} instructions; the kernel takes 4096", filter.len()),
        )
    })?;
    let fprog = libc::sock_fprog { len: length, filter: filter.as_mut_ptr() };
    set_option(fd, level, name, &fprog)
}

/// `T` is the type that the kernel expects for the option: this is what each caller has to get right.
pub(crate) fn set_option<T>(fd: &impl AsFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let pointer: *const T = value;
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer and length name `value`, which outlives the call; the kernel copies it.
    check(unsafe { libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, pointer.cast(), length) })?;
    Ok(())
}

pub(crate) fn read_int(fd: &impl AsFd, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    let place: *mut libc::c_int = &mut value;
    // SAFETY: the pointers name `value` and its length, both outlive the call, and the kernel writes at most `length`.
    check(unsafe { libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, place.cast(), &mut length) })?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::time::Duration;

    fn loopback() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    fn blocking(fd: OwnedFd) -> TcpStream {
        let stream = TcpStream::from(fd);
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    fn accept_one(listener: &OwnedFd) -> (OwnedFd, SocketAddr) {
        crate::host::await_readable(listener, Duration::from_secs(10)).unwrap();
        accept(listener).unwrap().expect("the listener was readable")
    }

    #[test]
    fn one_leased_port_serves_two_servers_at_once() {
        let servers = [(); 2].map(|()| open_listener(loopback(), Transport::Tcp, &ListenOptions::default()).unwrap());
        let mut lease = None;
        let mut open = Vec::new();
        for server in &servers {
            let fd = tcp_socket(Family::V4).unwrap();
            bind_leased(&fd, lease.unwrap_or(loopback())).unwrap();
            lease = Some(local_address(&fd).unwrap());
            connect(&fd, local_address(server).unwrap()).unwrap();
            let (accepted, from) = accept_one(server);
            assert_eq!(Some(from), lease);
            assert_eq!(peer_address(&accepted).unwrap(), lease.unwrap());
            assert!(take_error(&fd).unwrap().is_none());
            open.push((fd, accepted));
        }
    }

    #[test]
    fn accept_with_nobody_waiting_is_none() {
        let listener = open_listener(loopback(), Transport::Tcp, &ListenOptions::default()).unwrap();
        assert!(accept(&listener).unwrap().is_none());
    }

    #[test]
    fn lingering_zero_resets_and_shutdown_delivers_first() {
        let listener = open_listener(loopback(), Transport::Tcp, &ListenOptions::default()).unwrap();
        let mut client = TcpStream::connect(local_address(&listener).unwrap()).unwrap();
        let mut server = blocking(accept_one(&listener).0);
        set_nodelay(&server).unwrap();
        server.write_all(b"last words").unwrap();
        shutdown_write(&server).unwrap();
        let mut read = String::new();
        client.read_to_string(&mut read).unwrap();
        assert_eq!(read, "last words");
        set_linger_reset(&client).unwrap();
        drop(client);
        assert_eq!(server.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    /// What one end has sent is known at the other as soon as the host gets to it.
    fn eventually(mut is_so: impl FnMut() -> bool) {
        let due = std::time::Instant::now() + Duration::from_secs(10);
        while !is_so() {
            assert!(std::time::Instant::now() < due, "it does not become so");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_peer_that_ends_is_seen_though_its_bytes_lie_unread() {
        use std::io::Write;
        let listener = open_listener(loopback(), Transport::Tcp, &ListenOptions::default()).unwrap();
        let to = local_address(&listener).unwrap();
        let mut peer = TcpStream::connect(to).unwrap();
        let (accepted, _) = accept_one(&listener);
        assert_eq!(peer_state(&accepted).unwrap(), PeerState::Open);
        peer.write_all(b"unread").unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        eventually(|| peer_state(&accepted).unwrap() == PeerState::Finished);
        set_linger_reset(&peer).unwrap();
        drop(peer);
        eventually(|| peer_state(&accepted).unwrap() == PeerState::Gone);
    }

    #[test]
    fn what_a_peer_has_acknowledged_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let before = acknowledged_bytes(&client).unwrap();
        client.write_all(&[7; 3_000]).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(server.read_to_end(&mut Vec::new()).unwrap(), 3_000);
        let acknowledged = || acknowledged_bytes(&client).unwrap() - before;
        eventually(|| acknowledged() >= 3_000);
        // The end of the stream counts, too.
        assert!(acknowledged() <= 3_001);
    }

    #[test]
    fn what_lies_unread_does_not_take_back_the_last_words() {
        for discards in [true, false] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            client.write_all(&[7; 10_000]).unwrap();
            eventually(|| matches!(peek(&server, &mut [0; 10_000]), Ok(10_000)));
            server.write_all(b"last words").unwrap();
            shutdown_write(&server).unwrap();
            if discards {
                discard_unread(&server).unwrap();
                assert_eq!(peek(&server, &mut [0; 1]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            }
            drop(server);
            let mut heard = Vec::new();
            client.read_to_end(&mut heard).unwrap();
            assert_eq!(heard, b"last words");
            // A reset behind the end of the stream shows as the socket's error only.
            if discards {
                assert!(client.take_error().unwrap().is_none());
            } else {
                eventually(|| client.take_error().unwrap().is_some());
            }
        }
    }

    #[test]
    fn an_exclusive_listener_refuses_a_second_one() {
        let options = ListenOptions { reuse_port: ReusePort::Exclusive, ..ListenOptions::default() };
        let first = open_listener(loopback(), Transport::Tcp, &options).unwrap();
        let refused = open_listener(local_address(&first).unwrap(), Transport::Tcp, &options).unwrap_err();
        assert_eq!(Cause::of(&refused), Cause::AddressTaken);
    }

    #[test]
    fn a_foreign_address_needs_free_binding() {
        let foreign = "192.0.2.77:0".parse().unwrap();
        let refused = open_listener(foreign, Transport::Tcp, &ListenOptions::default()).unwrap_err();
        assert_eq!(Cause::of(&refused), Cause::AddressTaken);
        let options = ListenOptions { binding: Binding::Free, ..ListenOptions::default() };
        open_listener(foreign, Transport::Tcp, &options).unwrap();
    }

    #[test]
    fn the_attached_program_chooses_the_socket() {
        let first = open_listener(loopback(), Transport::Udp, &ListenOptions::default()).unwrap();
        let address = local_address(&first).unwrap();
        let second = open_listener(address, Transport::Udp, &ListenOptions::default()).unwrap();
        let sockets = [first, second].map(UdpSocket::from);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for chosen in [1, 0, 1] {
            // BPF_RET | BPF_K: return the operand.
            attach_reuseport_program(&sockets[0], &[(0x06, 0, 0, chosen)]).unwrap();
            sender.send_to(b"x", address).unwrap();
            let receiver = &sockets[chosen as usize];
            crate::host::await_readable(receiver, Duration::from_secs(10)).unwrap();
            assert_eq!(receiver.recv(&mut [0; 1]).unwrap(), 1);
        }
        detach_reuseport_program(&sockets[0]).unwrap();
    }

    #[test]
    fn a_listener_that_refuses_newcomers_keeps_those_who_are_there() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listener = open_listener(any, Transport::Tcp, &ListenOptions::default()).unwrap();
        let address = local_address(&listener).unwrap();
        let waits = TcpStream::connect(address).unwrap();
        refuse_newcomers(&listener).unwrap();
        let refused = TcpStream::connect_timeout(&address, Duration::from_millis(50));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let (taken, peer) = accept(&listener).unwrap().expect("who had come before");
        assert_eq!(peer, waits.local_addr().unwrap());
        let mut taken = TcpStream::from(taken);
        taken.write_all(b"x").unwrap();
        assert_eq!((&waits).read(&mut [0; 1]).unwrap(), 1);
        for _ in 0..2 {
            admit_newcomers(&listener).unwrap();
        }
        TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn the_kernels_source_towards_loopback_is_loopback() {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(kernel_source_towards(ip).unwrap(), ip);
    }
}
