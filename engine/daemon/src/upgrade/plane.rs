//! The packet plane's part of an upgrade: its flows, and the silence of the kernel.
//!
//! The old process freezes its workers' planes, which then neither read nor send; each writes its flows ([`towpath_core::plane::FLOW_RECORD`]) into a
//! file in memory. The new one hears frames from the moment on at which it says that it is ready, and keeps those that came after the old one began to
//! freeze: its workers take the flows that steering gives them, and go on with these frames. So a frame may be lost or, for the blink of an eye, be sent
//! twice, as on any network; connections live on.
//!
//! The rules that keep the kernel silent stay where they are. Who has them is told by a socket that only one process can have, and which is handed over.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use towpath_core::plane::{FLOW_RECORD, FlowRecord, Renamed, Survey};
use towpath_core::snapshot::Snapshot;
use towpath_core::snat::{Leased, MapName};
use towpath_core::{RealServerId, ServiceId};
use towpath_sys::process::MemoryFile;

use crate::house::{House, Truth};
use crate::questions::Question;

/// Time for every worker to write its flows down: some hundred nanoseconds each.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);
/// Files that are announced at most: one of each worker.
const FILES_MAX: usize = 1 << 10;
/// Records read from a file at once.
const READ_AT_ONCE: usize = 512;

/// What a flow is counted for, as it is called in every process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PlaceName {
    /// A service, and the group behind its routes.
    Service { name: String, group: String },
    /// What an outbound NAT leases for.
    Lane { nat: String, leased: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct HeldMap {
    number: u32,
    address: IpAddr,
    destination: SocketAddr,
    leased: String,
}

/// What the records say in the ids of the process that wrote them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PlaneManifest {
    places: Vec<(u16, PlaceName)>,
    servers: Vec<(u16, (IpAddr, Option<u16>))>,
    maps: Vec<HeldMap>,
    /// When the old process began to freeze, in nanoseconds since 1970: what came before, it has forwarded.
    began_unix_ns: u64,
    /// Files with flows, which come as descriptors.
    pub(super) files: usize,
}

/// Planes that are frozen, with what they have written down.
pub(super) struct Frozen {
    pub(super) manifest: PlaneManifest,
    files: Vec<File>,
}

impl Frozen {
    /// In the order of the manifest.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.files.iter().map(AsFd::as_fd).collect()
    }
}

/// What a worker's packet plane is to do.
pub(crate) struct PlaneOrder {
    pub(crate) wish: PlaneWish,
    answers: Sender<io::Result<()>>,
}

pub(crate) enum PlaneWish {
    /// To stop, and to write its flows into the file of its number.
    Freeze(Vec<Mutex<File>>),
    /// To end: another process has its flows.
    Leave,
    /// To go on.
    Thaw,
}

impl PlaneOrder {
    /// Who has asked may have stopped waiting.
    pub(crate) fn answer(&self, answer: io::Result<()>) {
        let _nobody_waits = self.answers.send(answer);
    }

    /// Writes flows of this worker down.
    pub(crate) fn write(&self, worker: usize, records: &[u8]) -> io::Result<()> {
        let PlaneWish::Freeze(files) = &self.wish else { return Ok(()) };
        let file = files.get(worker).ok_or_else(|| io::Error::other("a worker without a file"))?;
        file.lock().unwrap_or_else(PoisonError::into_inner).write_all(records)
    }
}

/// Asks every worker, and waits until each has done it.
fn order(house: &House, wish: PlaneWish) -> Result<(), String> {
    let (answers, answered) = mpsc::channel();
    let order = Arc::new(PlaneOrder { wish, answers });
    let asked = house.shared.seats().inspect(|seat| seat.ask(Question::Plane(Arc::clone(&order)))).count();
    drop(order);
    let until = Instant::now() + FREEZE_TIMEOUT;
    (0..asked).try_for_each(|_| {
        let left = until.saturating_duration_since(Instant::now());
        let answer =
            answered.recv_timeout(left).map_err(|_| "a worker does not answer for its packet plane".to_owned())?;
        answer.map_err(|error| format!("flows could not be written down: {error}"))
    })
}

/// Stops the packet planes of all workers and has their flows written down. `None`: there is none.
pub(super) fn freeze(house: &House) -> Result<Option<Frozen>, String> {
    if house.network.is_none() {
        return Ok(None);
    }
    let failed = |error: io::Error| format!("no memory for what flows are written into: {error}");
    let memory =
        house.shared.seats().map(|_| MemoryFile::create(&[])).collect::<io::Result<Vec<_>>>().map_err(failed)?;
    let handles = || memory.iter().map(MemoryFile::writer).collect::<io::Result<Vec<File>>>().map_err(failed);
    let files = handles()?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    order(house, PlaneWish::Freeze(handles()?.into_iter().map(Mutex::new).collect()))?;
    let snapshot = house.shared.snapshot();
    let maps = house.truth().each_map(|number, name| HeldMap {
        number,
        address: name.address,
        destination: name.destination,
        leased: name.leased.label().to_owned(),
    });
    let manifest = PlaneManifest {
        places: places(&snapshot).map(|(id, name)| (id.0, name)).collect(),
        servers: snapshot
            .real_servers
            .iter()
            .flatten()
            .map(|server| (server.id.0, (server.address, server.port)))
            .collect(),
        maps,
        began_unix_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
        files: files.len(),
    };
    Ok(Some(Frozen { manifest, files }))
}

/// Nobody takes over: everything goes on.
pub(super) fn thaw(house: &House) {
    let Some(network) = &house.network else { return };
    if let Err(reason) = order(house, PlaneWish::Thaw) {
        tracing::error!("{reason}");
    }
    // The other process may have claimed what its own configuration claims.
    if let Err(error) = network.silence() {
        tracing::error!("{error}");
    }
}

/// Another process has the flows, the addresses and the silence of the kernel.
pub(super) fn leave(house: &House) {
    let Some(network) = &house.network else { return };
    network.leave();
    if let Err(reason) = order(house, PlaneWish::Leave) {
        tracing::error!("{reason}");
    }
}

fn places(snapshot: &Snapshot) -> impl Iterator<Item = (ServiceId, PlaceName)> + '_ {
    let services = snapshot
        .each_service()
        .map(|service| (service.id, PlaceName::Service { name: service.name.clone(), group: service.group.clone() }));
    let lanes = snapshot.outbound.each().flat_map(|nat| {
        let name = |leased: Leased| PlaceName::Lane { nat: nat.name.clone(), leased: leased.label().to_owned() };
        nat.lanes().iter().map(move |lane| (lane.id, name(lane.pool.leased())))
    });
    services.chain(lanes)
}

/// The flows of the process before, for every worker to take its own.
#[derive(Debug)]
pub(crate) struct Inheritance {
    files: Vec<File>,
    places: HashMap<u16, ServiceId>,
    servers: HashMap<u16, RealServerId>,
    maps: HashMap<u32, u32>,
    began_unix_ns: u64,
    taken: AtomicU64,
    lost: AtomicU64,
    /// Workers that have not taken their flows yet.
    awaited: Mutex<usize>,
    arrived: Condvar,
}

impl Renamed for Inheritance {
    fn service(&self, there: ServiceId) -> Option<ServiceId> {
        self.places.get(&there.0).copied()
    }

    fn server(&self, there: RealServerId) -> Option<RealServerId> {
        self.servers.get(&there.0).copied()
    }

    fn map(&self, there: u32) -> Option<u32> {
        self.maps.get(&there).copied()
    }
}

impl Inheritance {
    /// Finds out what each id is called here.
    pub(super) fn new(
        manifest: &PlaneManifest,
        files: Vec<OwnedFd>,
        workers: usize,
        truth: &Truth,
        snapshot: &Snapshot,
    ) -> Result<Inheritance, String> {
        let files: Vec<File> = files.into_iter().map(File::from).collect();
        let records = |file: &File| file.metadata().is_ok_and(|metadata| metadata.len() % FLOW_RECORD as u64 == 0);
        if files.len() != manifest.files || !files.iter().all(records) {
            return Err("the flows of the packet plane are no whole records".to_owned());
        }
        let named: Vec<(ServiceId, PlaceName)> = places(snapshot).collect();
        let place = |name: &PlaceName| named.iter().find(|(_, other)| other == name).map(|(id, _)| *id);
        let server = |name: &(IpAddr, Option<u16>)| {
            let mut servers = snapshot.real_servers.iter().flatten();
            servers.find(|server| (server.address, server.port) == *name).map(|server| server.id)
        };
        let map = |held: &HeldMap| {
            let leased = Leased::ALL.into_iter().find(|leased| leased.label() == held.leased)?;
            let name = MapName { address: held.address, destination: held.destination, leased };
            Some((held.number, truth.map_of(&name)?))
        };
        Ok(Inheritance {
            places: manifest.places.iter().filter_map(|(id, name)| Some((*id, place(name)?))).collect(),
            servers: manifest.servers.iter().filter_map(|(id, name)| Some((*id, server(name)?))).collect(),
            maps: manifest.maps.iter().filter_map(map).collect(),
            began_unix_ns: manifest.began_unix_ns,
            files,
            taken: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            awaited: Mutex::new(workers),
            arrived: Condvar::new(),
        })
    }

    /// Frames from before, in nanoseconds since 1970, were forwarded there.
    pub(crate) fn began_unix_ns(&self) -> u64 {
        self.began_unix_ns
    }

    /// Shows every record of the process before.
    pub(crate) fn each(&self, mut take: impl FnMut(&FlowRecord) -> Result<(), String>) -> io::Result<()> {
        let mut octets = vec![0; FLOW_RECORD * READ_AT_ONCE];
        for file in &self.files {
            let (mut at, end) = (0, file.metadata()?.len());
            while at < end {
                let part = usize::try_from(end - at).map_or(octets.len(), |left| left.min(octets.len()));
                file.read_exact_at(&mut octets[..part], at)?;
                at += part as u64;
                let (records, _) = octets[..part].as_chunks::<FLOW_RECORD>();
                records.iter().try_for_each(&mut take).map_err(io::Error::other)?;
            }
        }
        Ok(())
    }

    /// Counts what a worker has taken, and what nobody can.
    pub(crate) fn count(&self, taken: u64, lost: u64) {
        self.taken.fetch_add(taken, Ordering::Relaxed);
        self.lost.fetch_add(lost, Ordering::Relaxed);
    }

    /// A worker has taken its flows, or cannot; waits for the others: who served before would lease ports that their flows have.
    pub(crate) fn await_others(&self) {
        let mut awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        *awaited = awaited.saturating_sub(1);
        self.arrived.notify_all();
        // One that could not even begin ends the start; nobody waits for it for ever.
        let _waited = self
            .arrived
            .wait_timeout_while(awaited, FREEZE_TIMEOUT, |awaited| *awaited > 0)
            .unwrap_or_else(PoisonError::into_inner);
    }

    /// Flows that live on here, and those that do not: their service, server or source port is not there any more, or there was no room.
    pub(crate) fn counted(&self) -> (u64, u64) {
        (self.taken.load(Ordering::Relaxed), self.lost.load(Ordering::Relaxed))
    }
}

/// Whether so many files may be announced.
pub(super) fn may_take(manifest: &PlaneManifest) -> bool {
    manifest.files <= FILES_MAX
}

/// Where a worker is with writing its flows down.
pub(crate) struct Writing {
    pub(crate) order: Arc<PlaneOrder>,
    pub(crate) at: Survey,
}
