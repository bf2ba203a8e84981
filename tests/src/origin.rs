//! Origins: servers that say who they are and whom they see, then echo.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener as StdListener, UdpSocket as StdUdp};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::{Greeting, Host};

/// The largest datagram.
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// Connections that may wait to be accepted; Linux allows as many where nobody has set net.core.somaxconn otherwise.
const BACKLOG: i32 = 4_096;

/// A server on one port of a host, on all its addresses, IPv4 and IPv6. Stops when dropped.
///
/// Over TCP it sends one [`Greeting`] line at once and then echoes; over UDP it answers each datagram with a greeting line and
/// the datagram.
#[derive(Debug)]
pub struct Origin {
    orders: watch::Sender<Order>,
    accepted: Arc<Mutex<Vec<Accepted>>>,
    thread: Option<JoinHandle<()>>,
}

/// A connection that an origin took, or a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Whence it came.
    pub peer: SocketAddr,
    /// The address of ours that it came to.
    pub local: SocketAddr,
}

/// What an origin is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// Serve.
    Serve,
    /// Take connections, but neither read nor answer.
    Hold,
    /// Close the listener, reset the connections.
    Stop,
}

impl Origin {
    /// Serves TCP under the host's name.
    ///
    /// # Panics
    ///
    /// When the port cannot be opened.
    #[track_caller]
    pub fn tcp(host: &Host, port: u16) -> Origin {
        let listener = host.run(|| listen((Ipv6Addr::UNSPECIFIED, port).into())).and_then(|bound| bound);
        let listener = listener.unwrap_or_else(|error| panic!("origin {} port {port}: {error}", host.name()));
        Origin::start(host.name(), Door::Tcp(listener))
    }

    /// Serves UDP under the host's name.
    ///
    /// # Panics
    ///
    /// When the port cannot be opened.
    #[track_caller]
    pub fn udp(host: &Host, port: u16) -> Origin {
        Origin::udp_at(host, (Ipv6Addr::UNSPECIFIED, port).into())
    }

    /// The same at one address, from which the answers leave: a host with several answers from the first one otherwise.
    ///
    /// # Panics
    ///
    /// Likewise.
    #[track_caller]
    pub fn udp_at(host: &Host, at: SocketAddr) -> Origin {
        let socket = host.run(|| StdUdp::bind(at)).and_then(|bound| bound);
        let socket = socket.unwrap_or_else(|error| panic!("origin {} at {at}: {error}", host.name()));
        Origin::start(host.name(), Door::Udp(socket))
    }

    fn start(name: &str, door: Door) -> Origin {
        let (orders, obeyed) = watch::channel(Order::Serve);
        let accepted = Arc::new(Mutex::new(Vec::new()));
        let (name, ledger) = (name.to_owned(), Arc::clone(&accepted));
        let thread = thread::Builder::new()
            .name(format!("origin {name}"))
            .spawn(move || {
                let ended = runtime().and_then(|runtime| {
                    runtime.block_on(async {
                        match door {
                            Door::Tcp(listener) => serve_tcp(&name, listener, obeyed, &ledger).await,
                            Door::Udp(socket) => serve_udp(&name, socket, obeyed, &ledger).await,
                        }
                    })
                });
                if let Err(error) = ended {
                    panic!("origin {name}: {error}");
                }
            })
            .expect("a thread for an origin");
        Origin { orders, accepted, thread: Some(thread) }
    }

    /// Stops the service: the listener is closed and its connections are reset. Returns when that has happened.
    pub fn stop(self) {}

    /// Takes connections but neither reads nor answers, until [`Origin::release`].
    pub fn hold(&self) {
        self.orders.send_replace(Order::Hold);
    }

    /// Goes on after [`Origin::hold`].
    pub fn release(&self) {
        self.orders.send_replace(Order::Serve);
    }

    /// Everything it has taken so far, health checks included.
    pub fn accepted(&self) -> Vec<Accepted> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.orders.send_replace(Order::Stop);
        let ended = self.thread.take().map(JoinHandle::join);
        if matches!(ended, Some(Err(_))) && !thread::panicking() {
            panic!("an origin has panicked");
        }
    }
}

/// Serves TCP on these addresses until the process ends: the whole of an origin in a process of its own.
pub(crate) fn serve_for_ever(name: &str, addresses: &[SocketAddr], ready: impl FnOnce()) -> io::Result<()> {
    let (_orders, obeyed) = watch::channel(Order::Serve);
    let listeners = addresses.iter().map(|&address| listen(address)).collect::<io::Result<Vec<_>>>()?;
    ready();
    runtime()?.block_on(async {
        let nobody = Mutex::new(Vec::new());
        let mut doors = Vec::new();
        for listener in listeners {
            doors.push(serve_tcp(name, listener, obeyed.clone(), &nobody));
        }
        for door in doors {
            door.await?;
        }
        Ok(())
    })
}

/// Opens a port with a long queue: when one overflows, SYN cookies leave a peer with a connection that we know nothing of, and
/// a peer that waits for our greeting then waits for ever.
fn listen(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

enum Door {
    Tcp(StdListener),
    Udp(StdUdp),
}

pub(crate) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

async fn serve_tcp(
    name: &str,
    listener: StdListener,
    mut orders: watch::Receiver<Order>,
    ledger: &Mutex<Vec<Accepted>>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            stopped = orders.wait_for(|order| *order == Order::Stop) => { let _sender_gone = stopped.is_err(); break }
            accepted = listener.accept() => accepted,
            Some(_ended) = connections.join_next() => continue,
        };
        // The client may have gone already; out of descriptors shows in the test.
        let Ok((stream, peer)) = accepted else { continue };
        let Ok(local) = stream.local_addr() else { continue };
        let (peer, local) = (canonical(peer), canonical(local));
        ledger.lock().unwrap_or_else(PoisonError::into_inner).push(Accepted { peer, local });
        let greeting = Greeting { name: name.to_owned(), peer, local };
        connections.spawn(converse(stream, greeting, orders.clone()));
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// One connection, to its end. What fails is the client's matter.
async fn converse(mut stream: TcpStream, greeting: Greeting, orders: watch::Receiver<Order>) {
    let mut to_stop = orders.clone();
    let reset = tokio::select! {
        // An error means that nobody is left to give orders.
        stopped = to_stop.wait_for(|order| *order == Order::Stop) => stopped.is_ok(),
        _ended = greet_and_echo(&mut stream, greeting, orders) => false,
    };
    if reset {
        let _gone: io::Result<()> = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }
}

async fn greet_and_echo(
    stream: &mut TcpStream,
    greeting: Greeting,
    mut orders: watch::Receiver<Order>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(greeting.line().as_bytes()).await?;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        orders.wait_for(|order| *order == Order::Serve).await.map_err(io::Error::other)?;
        let length = tokio::select! {
            _changed = orders.changed() => continue,
            length = stream.read(&mut buffer) => length?,
        };
        if length == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..length]).await?;
    }
}

async fn serve_udp(
    name: &str,
    socket: StdUdp,
    mut orders: watch::Receiver<Order>,
    ledger: &Mutex<Vec<Accepted>>,
) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    let local = canonical(socket.local_addr()?);
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let received = tokio::select! {
            stopped = orders.wait_for(|order| *order == Order::Stop) => { let _sender_gone = stopped.is_err(); return Ok(()) }
            received = socket.recv_from(&mut buffer) => received,
        };
        // An ICMP error of an earlier answer.
        let Ok((length, from)) = received else { continue };
        let peer = canonical(from);
        ledger.lock().unwrap_or_else(PoisonError::into_inner).push(Accepted { peer, local });
        if *orders.borrow() == Order::Hold {
            continue;
        }
        let mut answer = Greeting { name: name.to_owned(), peer, local }.line().into_bytes();
        answer.extend_from_slice(&buffer[..length]);
        // A datagram at the limit has no room for the greeting.
        let answer = if answer.len() > DATAGRAM_BYTES_MAX - 28 { &buffer[..length] } else { &answer[..] };
        let _refused = socket.send_to(answer, from).await;
    }
}

/// An IPv4 client of an IPv6 socket, as IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
