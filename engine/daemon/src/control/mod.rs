//! How the daemon is asked: HTTP/1.1 and JSON over a Unix socket, and over `control.listen` for its users; and the client that the command line uses.
//!
//! What can be asked, and which role it takes, is the table in `route`. Everything that changes anything is a POST, a line in the log, and an event
//! with who, what, before and after. Who comes by the network is judged in `guard`.

mod answer;
mod caller;
mod capture;
mod certs;
mod check;
mod client;
pub mod credential;
mod desk;
mod events;
mod explain;
mod files;
mod guard;
mod limits;
mod listener;
mod peer;
mod persistence;
mod query;
mod reload;
mod role;
mod route;
mod server;
mod session;
mod sessions;
mod upgrade;

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, sleep_until};
use towpath_config::model::ControlGroup;
use towpath_sys::Cause;

use crate::house::House;
use crate::plan::CONTROL_CLIENTS_MAX;
use peer::{Peer, group_named};
use route::{Deadline, Door};

pub use answer::Problem;
pub use certs::{CertificateRow, Certificates};
pub use client::{
    Asker, Endpoint, FetchError, Remote, ServerPath, fetch_file, fetch_members, fetch_plan, fetch_role, fetch_status,
    get, order, order_reload, order_upgrade, post, query, take_role,
};
pub use events::EventsPage;
pub use guard::AccessError;
pub use limits::{Level, LimitRow, LimitRows};
pub use listener::ControlListener;

pub(crate) use desk::Desks;
pub(crate) use guard::{Access, Guard, exposed, faults};

/// A client must have sent its request by then.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// A client must have taken its answer by then, unless the route takes longer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes that a request may have before it is refused.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// Owner and group may talk to us.
const SOCKET_MODE: u32 = 0o660;

/// Where the daemon is asked, bound and not yet served.
#[derive(Debug, Default)]
pub struct Entrance {
    /// `control.socket`
    pub socket: Option<ControlSocket>,
    /// `control.listen`
    pub listener: Option<ControlListener>,
}

/// The socket, bound and not yet served; its file goes with it.
#[derive(Debug)]
pub struct ControlSocket {
    listener: StdUnixListener,
    file: SocketFile,
}

/// Why the control socket could not be opened: cause and next step.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Another daemon answers there.
    #[error("control socket {}: another daemon answers there; stop it, or set another control.socket", .0.display())]
    InUse(PathBuf),
    /// The files of users and certificates.
    #[error("{0}")]
    Access(#[from] AccessError),
    /// The address cannot be listened on.
    #[error("control.listen {address}: {source}; {}", listener::next_step(source))]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The group that the file names is not there.
    #[error(
        "control.group: this machine has no group \"{0}\"; make it (`groupadd --system {0}`), name another, or \"none\""
    )]
    NoGroup(String),
    /// There is a file that is no socket.
    #[error("control socket {}: there is a file that is not a socket; remove it, or set another control.socket", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("control socket {}: {source}; make its directory writable for this user (RuntimeDirectory= in the systemd unit), set another control.socket, or \"none\"", path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The file of a bound socket; removed with it, unless somebody has put another one there.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// Whom it is to be given to once it is ours.
    group: Option<u32>,
    /// It is another process's once this is set.
    is_handed: Arc<AtomicBool>,
}

impl ControlSocket {
    /// Binds `path`, for the users of `group`, too. A socket file that a dead daemon left behind is replaced, a live daemon's is not.
    pub fn bind(path: &Path, group: &ControlGroup) -> Result<ControlSocket, ControlError> {
        let system = |source| ControlError::System { path: path.to_owned(), source };
        clear_the_way(path)?;
        if let Some(directory) = path.parent()
            && !directory.exists()
            && !directory.as_os_str().is_empty()
        {
            // /run is empty after a boot.
            fs::create_dir(directory).map_err(system)?;
        }
        let gid = match group {
            ControlGroup::IfThere(name) => group_named(name),
            ControlGroup::Named(name) => Some(group_named(name).ok_or_else(|| ControlError::NoGroup(name.clone()))?),
            ControlGroup::OfProcess => None,
        };
        let listener = StdUnixListener::bind(path).map_err(system)?;
        if let Some(gid) = gid
            && let Err(error) = chown(path, None, Some(gid))
        {
            match group {
                // Nobody has asked for it: who is not root and not of the group cannot give it away.
                ControlGroup::IfThere(name) => {
                    tracing::warn!("control socket {}: it cannot be given to group {name}: {error}", path.display())
                }
                ControlGroup::Named(_) | ControlGroup::OfProcess => {
                    // The file is nobody else's yet.
                    let _removed = fs::remove_file(path);
                    return Err(system(error));
                }
            }
        }
        // Until here only the owner may connect, as the umask stands; nobody is let in by accident.
        fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(system)?;
        listener.set_nonblocking(true).map_err(system)?;
        let metadata = fs::symlink_metadata(path).map_err(system)?;
        let (device, inode) = (metadata.dev(), metadata.ino());
        let file = SocketFile { path: path.to_owned(), device, inode, group: None, is_handed: Arc::default() };
        Ok(ControlSocket { listener, file })
    }

    /// The socket at `path` that another process has bound and that is ours from now on.
    pub fn adopt(path: &Path, group: &ControlGroup, listener: StdUnixListener) -> Result<ControlSocket, ControlError> {
        let system = |source| ControlError::System { path: path.to_owned(), source };
        let group = match group {
            ControlGroup::IfThere(name) => group_named(name),
            ControlGroup::Named(name) => Some(group_named(name).ok_or_else(|| ControlError::NoGroup(name.clone()))?),
            ControlGroup::OfProcess => None,
        };
        listener.set_nonblocking(true).map_err(system)?;
        let file = SocketFile { path: path.to_owned(), device: 0, inode: 0, group, is_handed: Arc::default() };
        Ok(ControlSocket { listener, file })
    }

    /// A copy, for the process that takes over.
    pub(crate) fn copy(&self) -> io::Result<(PathBuf, StdUnixListener)> {
        Ok((self.file.path.clone(), self.listener.try_clone()?))
    }

    /// Where it is bound.
    pub fn path(&self) -> &Path {
        &self.file.path
    }
}

/// Removes what a dead daemon left behind; refuses for anything else that is there.
fn clear_the_way(path: &Path) -> Result<(), ControlError> {
    let system = |source| ControlError::System { path: path.to_owned(), source };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ControlError::NotASocket(path.to_owned()));
    }
    match StdUnixStream::connect(path) {
        Ok(_) => Err(ControlError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(system),
        // Its queue is full: somebody lives there.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(ControlError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(system(error)),
    }
}

impl SocketFile {
    /// Ours is whatever is there now: of a process that fails before it has taken over, the file stays.
    fn own(&mut self, is_handed: Arc<AtomicBool>) {
        self.is_handed = is_handed;
        if let Some(group) = self.group.take()
            && let Err(error) = chown(&self.path, None, Some(group))
        {
            tracing::warn!("control socket {}: it cannot be given to its group: {error}", self.path.display());
        }
        if let Ok(metadata) = fs::symlink_metadata(&self.path) {
            (self.device, self.inode) = (metadata.dev(), metadata.ino());
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = !self.is_handed.load(Ordering::Acquire);
        let ours = is_ours
            && fs::symlink_metadata(&self.path)
                .is_ok_and(|metadata| metadata.dev() == self.device && metadata.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("control socket {} could not be removed: {error}", self.path.display());
        }
    }
}

/// Answers for as long as the desks are open.
pub(crate) fn serve(entrance: Entrance, desks: &Desks, house: &Arc<House>) {
    let Entrance { socket, listener } = entrance;
    if let Some(socket) = socket {
        desks.operators().spawn(serve_socket(socket, Arc::clone(house)));
    }
    if let Some(listener) = listener {
        desks.visitors().spawn(listener.serve(Arc::clone(house)));
    }
}

async fn serve_socket(socket: ControlSocket, house: Arc<House>) {
    let ControlSocket { listener, mut file } = socket;
    file.own(house.upgrades.handed_flag());
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!("control socket {}: {error}", file.path.display());
            return;
        }
    };
    let path: Arc<Path> = file.path.as_path().into();
    let places = Arc::new(Semaphore::new(CONTROL_CLIENTS_MAX));
    let mut spare = spare_descriptor();
    loop {
        // Whoever comes when all places are taken waits in the socket's own queue.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            biased;
            () = house.upgrades.handed() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            // The operator may want to know just that.
            Err(error) if Cause::of(&error) == Cause::OutOfDescriptors && spare.take().is_some() => {}
            Err(error) => {
                tracing::warn!("control socket {}: {error}", file.path.display());
                sleep(ACCEPT_PAUSE).await;
                spare = spare.or_else(spare_descriptor);
            }
            Ok((stream, _)) => {
                let peer = match Peer::of(&stream) {
                    Ok(peer) => peer,
                    Err(error) => {
                        tracing::debug!("control socket: who is there cannot be told: {error}");
                        continue;
                    }
                };
                let door = Door::Socket { peer, path: Arc::clone(&path) };
                let house = Arc::clone(&house);
                if spare.is_none() {
                    // One at a time, so that the descriptor comes back to us.
                    converse(stream, house, door).await;
                    spare = spare_descriptor();
                    continue;
                }
                tokio::spawn(async move {
                    converse(stream, house, door).await;
                    drop(place);
                });
            }
        }
    }
}

/// Let go when no descriptor is left, for the client that asks then.
fn spare_descriptor() -> Option<fs::File> {
    fs::File::open("/dev/null").ok()
}

/// Answers what one client asks: once by the socket, as long as it goes on by the network.
async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, house: Arc<House>, door: Door) {
    let stays = matches!(door, Door::Network(_));
    let asked = Arc::clone(&house);
    let _conversing = asked.upgrades.converse();
    let door = Arc::new(door);
    let (deadline, mut moved) = Deadline::new(CONNECTION_TIMEOUT);
    let deadline = Arc::new(deadline);
    let service = service_fn(move |request| {
        let (house, door, deadline) = (Arc::clone(&house), Arc::clone(&door), Arc::clone(&deadline));
        async move {
            let answer = route::answer(request, &house, &door, &deadline).await;
            // The client has its time to take it, and for its next request.
            deadline.put_off(CONNECTION_TIMEOUT);
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(REQUEST_BYTES_MAX)
        .keep_alive(stays)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut is_last = false;
    loop {
        let until = *moved.borrow_and_update();
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!("control: {error}");
                }
                return;
            }
            Ok(()) = moved.changed() => {}
            // A page that goes on asking is to ask the process that serves.
            () = asked.upgrades.handed(), if !is_last => {
                is_last = true;
                connection.as_mut().graceful_shutdown();
            }
            () = sleep_until(until) => return tracing::debug!("control: a client was too slow"),
        }
    }
}
