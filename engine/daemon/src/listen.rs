//! Opens every listener before anything serves: one per service port and worker, so that each worker has its own accept queue.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use towpath_config::model::{Model, Plane, Protocol};
use towpath_core::ServiceId;
use towpath_core::steering::SteeringTable;
use towpath_core::steering::program::reuseport_program;
use towpath_sys::socket::{self, Binding, Family, ListenOptions, ReusePort, Transport};

use crate::shared::Doorway;

/// Bytes that may wait to leave on a leg, besides those on their way: more would only hide for how long a slow client or server makes
/// the other side wait, and take kernel memory (tcp_mem) from all others; a fast one is served from less.
pub(crate) const UNSENT_BYTES_MAX: u32 = 256 * 1024;

/// One listening (TCP) or bound (UDP) socket of one worker.
#[derive(Debug)]
pub struct Listener {
    /// The service that clients reach through it.
    pub service: ServiceId,
    /// The port that clients use.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The socket.
    pub socket: OwnedFd,
    /// The address that clients use.
    pub address: SocketAddr,
}

/// One socket that clients will use, before it is opened for each worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Number of the service.
    pub service: ServiceId,
    /// Its name, for the operator.
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The address that clients use.
    pub address: SocketAddr,
    /// Whether this host has that address, or may have it later.
    pub binding: Binding,
}

impl Opening {
    /// What tells its sockets from others, whoever's they are.
    pub fn doorway(&self) -> Doorway {
        (self.protocol, self.address)
    }
}

/// A listener that could not be opened: cause and next step.
#[derive(Debug)]
pub struct ListenError {
    /// What was to be opened.
    pub opening: Opening,
    /// What the kernel said.
    pub source: io::Error,
}

/// Every listener that could not be opened.
#[derive(Debug)]
pub struct ListenErrors(pub Vec<ListenError>);

/// The sockets of a model on the stream plane, in the order of the file; `id_of` knows the number of a service by its name.
pub fn openings(model: &Model, mut id_of: impl FnMut(&str) -> Option<ServiceId>) -> Vec<Opening> {
    let mut openings = Vec::new();
    // A VIP may be the other machine's at this time.
    let binding = if model.runtime.role.is_some() { Binding::Free } else { Binding::HostAddress };
    for service in model.services.iter().filter(|service| service.plane == Plane::Stream) {
        let Some(id) = id_of(&service.name) else { continue };
        openings.extend(service.sockets().map(|address| Opening {
            service: id,
            name: service.name.clone(),
            protocol: service.protocol,
            address,
            binding,
        }));
    }
    openings
}

/// Opens each of `openings` once for each of so many workers and lets `table` steer clients to them; the n-th list belongs to worker n.
///
/// Either every listener is open at the end or none is.
pub fn open_all(
    openings: &[Opening],
    workers: usize,
    table: &SteeringTable,
    seed: u32,
) -> Result<Vec<Vec<Listener>>, ListenErrors> {
    let program: Vec<(u16, u8, u8, u32)> =
        reuseport_program(table, seed).into_iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect();
    let mut per_worker: Vec<Vec<Listener>> = (0..workers).map(|_| Vec::with_capacity(openings.len())).collect();
    let mut errors = Vec::new();
    for opening in openings {
        match open_group(opening, workers, &program) {
            Err(source) => errors.push(ListenError { opening: opening.clone(), source }),
            Ok(group) => {
                for (list, socket) in per_worker.iter_mut().zip(group) {
                    list.push(Listener {
                        service: opening.service,
                        port: opening.address.port(),
                        protocol: opening.protocol,
                        socket,
                        address: opening.address,
                    });
                }
            }
        }
    }
    if errors.is_empty() { Ok(per_worker) } else { Err(ListenErrors(errors)) }
}

/// Sockets that another process has opened, and that clients come by already.
#[derive(Debug, Default)]
pub(crate) struct HandedSockets(BTreeMap<Doorway, BTreeMap<u16, OwnedFd>>);

impl HandedSockets {
    /// One of them, with its number among those of the same doorway.
    pub(crate) fn insert(&mut self, doorway: Doorway, place: u16, socket: OwnedFd) {
        self.0.entry(doorway).or_default().insert(place, socket);
    }

    /// Has the kernel give clients to the sockets by the table; until then it does by that of the process which has opened them. The n-th list is
    /// worker n's.
    pub(crate) fn steer(listeners: &[&[Listener]], table: &SteeringTable, seed: u32) -> io::Result<()> {
        let program: Vec<(u16, u8, u8, u32)> =
            reuseport_program(table, seed).into_iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect();
        let mut counts: BTreeMap<Doorway, usize> = BTreeMap::new();
        listeners.iter().copied().flatten().for_each(|listener| *counts.entry(listener.doorway()).or_default() += 1);
        let Some(first) = listeners.first() else { return Ok(()) };
        // One alone is no group, and there is nothing to choose.
        let mut groups =
            first.iter().filter(|listener| counts.get(&listener.doorway()).is_some_and(|count| *count > 1));
        groups.try_for_each(|listener| socket::attach_reuseport_program(&listener.socket, &program))
    }
}

impl Listener {
    /// What it is one of the sockets of.
    pub(crate) fn doorway(&self) -> Doorway {
        (self.protocol, self.address)
    }
}

/// As [`open_all`], with the sockets that `handed` has for these openings: they are taken as they are. What it has beside them is closed here.
///
/// Where the other process had more workers, those of the first ones get two sockets or more; where it had fewer, sockets are added behind its own. The
/// kernel numbers them in the order in which they were opened, and steers by these numbers.
pub(crate) fn open_or_take(
    openings: &[Opening],
    workers: usize,
    table: &SteeringTable,
    seed: u32,
    mut handed: HandedSockets,
) -> Result<Vec<Vec<Listener>>, ListenErrors> {
    let (there, fresh): (Vec<&Opening>, Vec<&Opening>) =
        openings.iter().partition(|opening| handed.0.contains_key(&opening.doorway()));
    let fresh: Vec<Opening> = fresh.into_iter().cloned().collect();
    let mut errors = Vec::new();
    let mut per_worker: Vec<Vec<Listener>> = match open_all(&fresh, workers, table, seed) {
        Ok(listeners) => listeners,
        Err(refused) => {
            errors = refused.0;
            (0..workers).map(|_| Vec::new()).collect()
        }
    };
    for opening in there {
        let mut sockets: Vec<OwnedFd> = handed.0.remove(&opening.doorway()).unwrap_or_default().into_values().collect();
        if let Err(source) = add_missing(opening, workers, &mut sockets) {
            errors.push(ListenError { opening: opening.clone(), source });
            continue;
        }
        for (place, socket) in sockets.into_iter().enumerate() {
            per_worker[place % workers].push(Listener {
                service: opening.service,
                port: opening.address.port(),
                protocol: opening.protocol,
                socket,
                address: opening.address,
            });
        }
    }
    if errors.is_empty() { Ok(per_worker) } else { Err(ListenErrors(errors)) }
}

/// Opens as many sockets as there are workers without one.
fn add_missing(opening: &Opening, workers: usize, sockets: &mut Vec<OwnedFd>) -> io::Result<()> {
    if sockets.len() == 1 && workers > 1 {
        // Opened to be alone, and so it stays.
        return Err(io::Error::other(
            "the running process has one worker, and its listeners are no groups; restart to use more",
        ));
    }
    let options = options(opening.binding, ReusePort::Shared);
    while sockets.len() < workers {
        sockets.push(socket::open_listener(opening.address, transport(opening.protocol), &options)?);
    }
    Ok(())
}

/// Whether each of `openings` could be opened just now; nothing is.
pub(crate) fn probe_all(openings: &[Opening]) -> Result<(), ListenErrors> {
    let refused = |opening: &Opening| {
        let source = refuse_shared(opening.address, transport(opening.protocol), opening.binding).err()?;
        Some(ListenError { opening: opening.clone(), source })
    };
    let errors: Vec<ListenError> = openings.iter().filter_map(refused).collect();
    if errors.is_empty() { Ok(()) } else { Err(ListenErrors(errors)) }
}

fn transport(protocol: Protocol) -> Transport {
    match protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
    }
}

/// One socket per worker, in worker order: the steering program answers with an index into this order.
fn open_group(opening: &Opening, workers: usize, program: &[(u16, u8, u8, u32)]) -> io::Result<Vec<OwnedFd>> {
    let transport = transport(opening.protocol);
    let options = |reuse_port| options(opening.binding, reuse_port);
    if workers == 1 {
        let options = options(ReusePort::Exclusive);
        return Ok(vec![socket::open_listener(opening.address, transport, &options)?]);
    }
    // SO_REUSEPORT would join the sockets of another process of this user and take a share of its clients.
    refuse_shared(opening.address, transport, opening.binding)?;
    let options = options(ReusePort::Shared);
    let group = (0..workers)
        .map(|_| socket::open_listener(opening.address, transport, &options))
        .collect::<io::Result<Vec<OwnedFd>>>()?;
    socket::attach_reuseport_program(&group[0], program)?;
    Ok(group)
}

fn options(binding: Binding, reuse_port: ReusePort) -> ListenOptions {
    ListenOptions {
        reuse_port,
        hold_acknowledgements: true,
        unsent_bytes_max: Some(UNSENT_BYTES_MAX),
        binding,
        ..ListenOptions::default()
    }
}

/// Fails with `EADDRINUSE` when another socket has this address and port, even one that would share it.
fn refuse_shared(address: SocketAddr, transport: Transport, binding: Binding) -> io::Result<()> {
    let family = Family::of(address.ip());
    let fd = match transport {
        Transport::Tcp => socket::tcp_socket(family)?,
        Transport::Udp => socket::udp_socket(family)?,
    };
    if binding == Binding::Free {
        socket::set_freebind(&fd, family)?;
    }
    match transport {
        // With SO_REUSEADDR, or connections in TIME_WAIT would count as somebody else's; a listener conflicts all the same.
        Transport::Tcp => socket::bind_leased(&fd, address),
        Transport::Udp => socket::bind(&fd, address),
    }
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Opening { name, protocol, address, .. } = &self.opening;
        let protocol = match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "service `{name}`: listen {protocol} {address}: ")?;
        match self.source.kind() {
            io::ErrorKind::AddrNotAvailable => f.write_str(&not_on_this_host(address.ip())),
            io::ErrorKind::AddrInUse => write!(
                f,
                "another process has this port; stop it (`ss -lnp 'sport = :{}'` names it), or give the service another port",
                address.port()
            ),
            io::ErrorKind::PermissionDenied => write!(
                f,
                "not permitted; ports below 1024 need CAP_NET_BIND_SERVICE (AmbientCapabilities= in the systemd unit, or start as root)"
            ),
            _ if self.source.raw_os_error() == Some(EMFILE) => {
                write!(
                    f,
                    "the process has no file descriptor left; raise LimitNOFILE= in the systemd unit, or `ulimit -n`"
                )
            }
            _ => write!(f, "{}", self.source),
        }
    }
}

const EMFILE: i32 = 24;

/// The words for a VIP that the stream plane cannot use, shared with preflight.
pub(crate) fn not_on_this_host(vip: IpAddr) -> String {
    let prefix = if vip.is_ipv4() { 32 } else { 128 };
    format!(
        "vip {vip} is not an address of this host; add it (`ip address add {vip}/{prefix} dev …`), or use plane = \"packet\""
    )
}

impl std::error::Error for ListenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl fmt::Display for ListenErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ListenErrors {}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn opening(address: SocketAddr, protocol: Protocol) -> Opening {
        Opening {
            service: ServiceId(0),
            name: "front-end".to_owned(),
            protocol,
            address,
            binding: Binding::HostAddress,
        }
    }

    #[test]
    fn every_worker_gets_every_listener_in_the_same_order() {
        let free: Vec<TcpListener> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let openings: Vec<Opening> = free.iter().map(|l| opening(l.local_addr().unwrap(), Protocol::Tcp)).collect();
        drop(free);
        let lists = open_all(&openings, 3, &SteeringTable::even(2), 7).unwrap();
        assert_eq!(lists.len(), 3);
        for list in &lists {
            let addresses: Vec<_> = list.iter().map(|l| l.address).collect();
            assert_eq!(addresses, openings.iter().map(|o| o.address).collect::<Vec<_>>());
        }
    }

    #[test]
    fn all_failures_are_named_not_only_the_first() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let foreign: SocketAddr = "192.0.2.1:443".parse().unwrap();
        let openings = [
            opening(tcp.local_addr().unwrap(), Protocol::Tcp),
            opening(udp.local_addr().unwrap(), Protocol::Udp),
            opening(foreign, Protocol::Tcp),
        ];
        for workers in [1, 2] {
            let errors = open_all(&openings, workers, &SteeringTable::even(workers), 7).unwrap_err();
            assert_eq!(errors.0.len(), 3, "{errors}");
            // One that may come later is listened on already.
            let later = Opening { binding: Binding::Free, ..opening(foreign, Protocol::Tcp) };
            assert_eq!(open_all(&[later], workers, &SteeringTable::even(workers), 7).unwrap().len(), workers);
            assert_eq!(probe_all(&openings).unwrap_err().to_string(), errors.to_string());
            let text = errors.to_string();
            assert!(text.contains("another process has this port"), "{text}");
            assert!(
                text.contains(
                    "service `front-end`: listen tcp 192.0.2.1:443: vip 192.0.2.1 is not an address of this host"
                ),
                "{text}"
            );
        }
    }

    #[test]
    fn sockets_of_another_process_are_taken_whatever_its_number_of_workers() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (there, more) = (opening(free, Protocol::Tcp), opening("127.0.0.1:0".parse().unwrap(), Protocol::Udp));
        for (before, now) in [(2, 2), (3, 2), (2, 4), (1, 1)] {
            let opened = open_all(std::slice::from_ref(&there), before, &SteeringTable::even(before), 7).unwrap();
            let mut handed = HandedSockets::default();
            // In whatever order they come; one that nobody wants is closed.
            for (place, listeners) in opened.iter().enumerate().rev() {
                let socket = listeners[0].socket.try_clone().unwrap();
                handed.insert(there.doorway(), place as u16, socket);
            }
            let unwanted = TcpListener::bind("127.0.0.1:0").unwrap();
            let closed = unwanted.local_addr().unwrap();
            handed.insert((Protocol::Tcp, closed), 0, unwanted.into());

            let openings = [there.clone(), more.clone()];
            let steering = SteeringTable::even(now);
            let taken = open_or_take(&openings, now, &steering, 7, handed).unwrap();
            assert_eq!(taken.len(), now);
            assert_eq!(taken.iter().flatten().filter(|one| one.address == free).count(), before.max(now));
            assert_eq!(taken.iter().flatten().filter(|one| one.protocol == Protocol::Udp).count(), now);
            let of_workers: Vec<&[Listener]> = taken.iter().map(Vec::as_slice).collect();
            HandedSockets::steer(&of_workers, &steering, 7).unwrap();
            assert!(TcpListener::bind(closed).is_ok());
            // Whoever had come is there, also once the process before has closed its own.
            let clients: Vec<TcpStream> = (0..32).map(|_| TcpStream::connect(free).unwrap()).collect();
            drop(opened);
            let accepted = || {
                let listeners = taken.iter().flatten().filter(|one| one.address == free);
                listeners.map(|one| std::iter::from_fn(|| socket::accept(&one.socket).unwrap()).count()).sum::<usize>()
            };
            assert_eq!(accepted(), clients.len(), "from {before} to {now} workers");
            // The first ones alone are chosen from now on.
            let firsts = taken.iter().filter(|listeners| !listeners.is_empty()).count();
            assert_eq!(firsts, now);
        }
        let alone = open_all(std::slice::from_ref(&there), 1, &SteeringTable::even(1), 7).unwrap();
        let mut handed = HandedSockets::default();
        handed.insert(there.doorway(), 0, alone[0][0].socket.try_clone().unwrap());
        let refused = open_or_take(std::slice::from_ref(&there), 2, &SteeringTable::even(2), 7, handed).unwrap_err();
        assert!(refused.to_string().contains("the running process has one worker"), "{refused}");
    }

    #[test]
    fn a_port_that_another_process_would_share_is_in_use() {
        let options = ListenOptions::default();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        for (transport, protocol) in [(Transport::Tcp, Protocol::Tcp), (Transport::Udp, Protocol::Udp)] {
            let other = socket::open_listener(any, transport, &options).unwrap();
            let address = socket::local_address(&other).unwrap();
            let errors = open_all(&[opening(address, protocol)], 2, &SteeringTable::even(2), 7).unwrap_err();
            assert_eq!(errors.0[0].source.kind(), io::ErrorKind::AddrInUse);
        }
    }
}
