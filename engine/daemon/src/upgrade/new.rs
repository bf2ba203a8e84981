//! The process that takes over.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use towpath_core::Now;
use towpath_core::http::HttpSecret;
use towpath_core::snat::SnatLease;
use towpath_sys::silence::Silence;
use towpath_sys::socket;

use super::line::{self, Line};
use super::plane::{self, Inheritance};
use super::words::{DESCRIPTORS_MAX, FromNew, FromOld, Going, HeldDoor, Manifest, Verdict};
use super::{FORMAT, Predecessor, persistence};
use crate::admin::unix_ms;
use crate::events::{Event, EventKind, Tone};
use crate::house::House;
use crate::listen::HandedSockets;
use crate::state_file::{self, Found};

/// Time until the old process has said what there is.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Time until it says go, or that all is ours.
const GO_TIMEOUT: Duration = Duration::from_secs(30);
/// It says every quarter of a second how many connections are left: one that is silent for so long hangs.
const FINISHING_TIMEOUT: Duration = Duration::from_secs(60);

/// The running process, as the one hears it that takes over.
#[derive(Debug)]
pub struct Takeover {
    line: Line,
    manifest: Manifest,
    sockets: Mutex<Sockets>,
}

/// What has come by the line and is not taken yet.
#[derive(Debug, Default)]
struct Sockets {
    socket: Option<UnixListener>,
    listen: Option<TcpListener>,
    metrics: Option<TcpListener>,
    doors: HandedSockets,
    /// What says who keeps the kernel silent.
    silence: Option<OwnedFd>,
}

impl Takeover {
    /// Says hello to the process at the other end of standard input, and hears what there is.
    pub fn greet(version: &str) -> Result<Takeover, String> {
        let stream =
            io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from).map_err(|error| error.to_string())?;
        if stream.peer_addr().is_err() {
            return Err(
                "--take-over is for `towpath upgrade`: standard input is no line to a running daemon".to_owned()
            );
        }
        let line = Line::new(stream).map_err(|error| error.to_string())?;
        Takeover::greet_by(line, version)
    }

    fn greet_by(line: Line, version: &str) -> Result<Takeover, String> {
        let hello = FromNew::Hello { format: FORMAT, version: version.to_owned() };
        line.tell(&hello).map_err(|error| format!("the running process could not be greeted: {error}"))?;
        let manifest = match line.hear(MANIFEST_TIMEOUT, || true) {
            Ok(FromOld::Manifest(manifest)) => *manifest,
            Ok(_) => return Err("the running process has said another word than was its turn".to_owned()),
            Err(silence) => return Err(format!("the running process does not say what there is: {silence}")),
        };
        let taken = take(&line, &manifest);
        match taken {
            Ok(sockets) => Ok(Takeover { line, manifest, sockets: Mutex::new(sockets) }),
            Err(reason) => {
                let _nobody_hears = line.tell(&FromNew::Refused { reasons: vec![reason.clone()] });
                Err(reason)
            }
        }
    }

    /// Tells the running process why it has to go on.
    pub fn refuse(&self, reasons: Vec<String>) {
        if let Err(error) = self.line.tell(&FromNew::Refused { reasons }) {
            tracing::warn!("the running process could not be told: {error}");
        }
    }

    pub(crate) fn seed(&self) -> u64 {
        self.manifest.seed
    }

    pub(crate) fn http_secret(&self) -> HttpSecret {
        HttpSecret::new(self.manifest.http_secret.0)
    }

    /// What was said at run time, up to the moment at which it was told.
    pub(crate) fn words(&self) -> Found {
        state_file::found(&self.manifest.words, Now(0))
    }

    pub(crate) fn verdicts(&self) -> &BTreeMap<String, Verdict> {
        &self.manifest.verdicts
    }

    /// The listeners of the stream plane, once.
    pub(crate) fn doors(&self) -> HandedSockets {
        std::mem::take(&mut self.sockets().doors)
    }

    /// The control socket, if it is at this path; once.
    pub(crate) fn socket(&self, path: &Path) -> Option<UnixListener> {
        if self.manifest.socket.as_deref() == Some(path) { self.sockets().socket.take() } else { None }
    }

    /// The listener of `control.listen`, if it is at this address; once.
    pub(crate) fn listen(&self, address: SocketAddr) -> Option<TcpListener> {
        if self.manifest.listen == Some(address) { self.sockets().listen.take() } else { None }
    }

    /// The listener for metrics likewise.
    pub(crate) fn metrics(&self, address: SocketAddr) -> Option<TcpListener> {
        if self.manifest.metrics == Some(address) { self.sockets().metrics.take() } else { None }
    }

    /// What says that the kernel is kept silent by the process that has it, if it was; once.
    pub(crate) fn silence(&self) -> Option<OwnedFd> {
        self.sockets().silence.take()
    }

    fn sockets(&self) -> std::sync::MutexGuard<'_, Sockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of a control socket that nobody listens at any more.
    fn left_socket(&self) -> Option<PathBuf> {
        self.sockets().socket.as_ref().and(self.manifest.socket.clone())
    }

    /// Says that everything is ready, waits for the word to go, and takes what comes with it. Leases are held until the old process has gone.
    pub(crate) fn go(&self, house: &House) -> Result<(Vec<SnatLease>, Option<Arc<Inheritance>>), String> {
        let gone = |silence: line::Silence| format!("the running process does not let go: {silence}");
        self.line.tell(&FromNew::Ready).map_err(|error| error.to_string())?;
        let Going { words, leases, plane } = match self.line.hear(GO_TIMEOUT, || true).map_err(gone)? {
            FromOld::Go(going) => *going,
            _ => return Err("the running process has said another word than was its turn".to_owned()),
        };
        let entries = self.line.hear_bytes(GO_TIMEOUT, || true).map_err(gone)?;
        let files = match &plane {
            Some(manifest) if !plane::may_take(manifest) => {
                return Err("more files of flows than can be taken over".to_owned());
            }
            Some(manifest) => {
                self.line.take(manifest.files).map_err(|error| format!("the flows could not be taken: {error}"))?
            }
            None => Vec::new(),
        };
        house.take_words(state_file::found(&words, house.shared.now()))?;
        let imported = persistence::import(&entries, &house.shared)
            .map_err(|reason| format!("who comes back where cannot be read: {reason}"))?;
        let reserved = house.truth().reserve(&leases);
        let snapshot = house.shared.snapshot();
        let inheritance = plane
            .filter(|_| house.network.is_some())
            .map(|manifest| {
                Inheritance::new(&manifest, files, house.plan.workers.len(), &house.truth(), &snapshot).map(Arc::new)
            })
            .transpose()?;
        tracing::info!(
            "taken over from process {}: persistence entries: {}, of services or servers that are gone: {}, source ports held there: {}",
            self.manifest.pid,
            imported.entries,
            imported.dropped,
            reserved.len()
        );
        Ok((reserved, inheritance))
    }

    /// Says that this process serves, and waits until all is its own.
    pub(crate) fn run(&self) -> Result<(), String> {
        self.line.tell(&FromNew::Running).map_err(|error| format!("the running process could not be told: {error}"))?;
        match self.line.hear(GO_TIMEOUT, || true) {
            Ok(FromOld::Yours) => {}
            Ok(_) => tracing::warn!("the process before has said another word than was its turn"),
            // It serves nobody new by then, whatever has become of it.
            Err(line::Silence::Ended) => {
                tracing::warn!("the process before has ended instead of letting its connections finish")
            }
            // It has heard that this one serves, so there is no way back: its end would leave nobody.
            Err(silence) => tracing::error!("the process before does not let go: {silence}"),
        }
        // The process before had a packet plane, and this one has none.
        if let Some(lock) = self.silence()
            && let Err(error) = Silence::inherit(lock).and_then(Silence::lift)
        {
            tracing::warn!("the rules that kept the kernel silent could not be removed: {error}");
        }
        if let Some(path) = self.left_socket()
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::warn!(
                "{}: the control socket of the process before could not be removed: {error}",
                path.display()
            );
        }
        Ok(())
    }
}

/// Follows the old process to its end, on a thread of its own: then what it held is free.
pub(crate) fn follow(takeover: Arc<Takeover>, house: Arc<House>, reserved: Vec<SnatLease>) -> io::Result<()> {
    let Manifest { pid, version, .. } = &takeover.manifest;
    let (pid, version) = (*pid, version.clone());
    let predecessor = Predecessor { pid, version, at_unix_ms: unix_ms(), finishing: 0.into(), is_gone: false.into() };
    let _is_first = house.upgrades.predecessor.set(predecessor);
    let event = Event::now(EventKind::Phase, "", "running", format!("taken over from process {pid}"));
    house.truth().record(Tone::Info, event);
    thread::Builder::new().name("predecessor".to_owned()).spawn(move || {
        let Some(predecessor) = house.upgrades.predecessor.get() else { return };
        let why = loop {
            match takeover.line.hear(FINISHING_TIMEOUT, || true) {
                Ok(FromOld::Finishing { connections }) => predecessor.finishing.store(connections, Ordering::Relaxed),
                Ok(_) => {}
                Err(silence) => break silence,
            }
        };
        predecessor.is_gone.store(true, Ordering::Release);
        let mut truth = house.truth();
        truth.release(reserved);
        let (tone, reason) = match why {
            line::Silence::Ended => (Tone::Info, "its connections have ended, or their time".to_owned()),
            other => (Tone::Warn, format!("what becomes of it is not known: {other}")),
        };
        let event = Event::now(EventKind::Phase, "draining", "ended", reason);
        truth.record(tone, event.subject(format!("process {pid}, from which this one has taken over")));
    })?;
    Ok(())
}

fn take(line: &Line, manifest: &Manifest) -> Result<Sockets, String> {
    let count = manifest.descriptors();
    if count > DESCRIPTORS_MAX {
        return Err(format!("{count} descriptors are more than can be taken over"));
    }
    let mut descriptors =
        line.take(count).map_err(|error| format!("the listeners could not be taken: {error}"))?.into_iter();
    // The line has given exactly as many.
    let mut next = || descriptors.next().ok_or_else(|| "a listener is missing".to_owned());
    let socket = manifest.socket.as_ref().map(|_| next()).transpose()?.map(UnixListener::from);
    let mut named = |address: &Option<SocketAddr>| -> Result<Option<TcpListener>, String> {
        let Some(address) = address else { return Ok(None) };
        let listener = next()?;
        is_at(&listener, *address)?;
        Ok(Some(TcpListener::from(listener)))
    };
    let listen = named(&manifest.listen)?;
    let metrics = named(&manifest.metrics)?;
    let mut doors = HandedSockets::default();
    for door @ HeldDoor { place, address, .. } in &manifest.doors {
        let socket: OwnedFd = next()?;
        is_at(&socket, *address)?;
        doors.insert((door.protocol(), *address), *place, socket);
    }
    let silence = manifest.is_silent.then(&mut next).transpose()?;
    Ok(Sockets { socket, listen, metrics, doors, silence })
}

/// A descriptor is what it is said to be.
fn is_at(socket: &OwnedFd, address: SocketAddr) -> Result<(), String> {
    match socket::local_address(socket) {
        Ok(local) if local == address => Ok(()),
        Ok(local) => Err(format!("a listener that is said to be at {address} is at {local}")),
        Err(error) => Err(format!("a listener that is said to be at {address} is none: {error}")),
    }
}
