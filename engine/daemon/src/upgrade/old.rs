//! The process that hands over.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use towpath_config::model::Protocol;
use towpath_core::steering::program::reuseport_program;
use towpath_sys::host::hand_on_all_capabilities;
use towpath_sys::process::Process;
use towpath_sys::socket::attach_reuseport_program;

use super::line::{Line, Silence};
use super::plane::{self, Frozen};
use super::words::{
    DESCRIPTORS_MAX, FromNew, FromOld, Going, Held, HeldDoor, HeldLease, Holdings, Manifest, Secret, together,
};
use super::{FORMAT, Successor, UpgradeBody, UpgradeError, Upgraded, persistence};
use crate::house::House;
use crate::packets::NetworkOrders;
use crate::questions::Question;
use crate::shared::{Doorway, Phase};
use crate::{state_file, supervisor};

/// Time until a new process has said who it is: it is read from a disk, perhaps for the first time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(30);
/// Time until it is ready: it reads every file that the configuration names, and waits for the first verdict on servers that are new.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// Time until its workers serve.
const RUNNING_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the workers to say what they hold.
const HOLDINGS_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the new process is told how many connections are left here, and looked after.
const TELL_EVERY: Duration = Duration::from_millis(250);

pub(crate) type Reply = oneshot::Sender<Result<Upgraded, UpgradeError>>;

/// Begins an upgrade on a thread of its own, which answers by `reply`.
pub(crate) fn begin(house: &Arc<House>, body: UpgradeBody, by: String, reply: Reply) {
    let house = Arc::clone(house);
    let refused = |reply: Reply, error: UpgradeError| {
        let _nobody_waits = reply.send(Err(error));
    };
    if house.upgrades.is_under_way.swap(true, Ordering::AcqRel) {
        return refused(reply, UpgradeError::Busy);
    }
    let working = Arc::clone(&house);
    let turn = move || match hand_over(&working, &body, &by) {
        Err(error) => {
            resume(&working);
            tracing::error!("no upgrade, this process goes on: {error}");
            refused(reply, error);
        }
        Ok((upgraded, line, successor)) => {
            let _nobody_waits = reply.send(Ok(upgraded));
            look_after(&working, &line, &successor);
        }
    };
    // The answer goes with the closure where there is no thread.
    if let Err(error) = thread::Builder::new().name("upgrade".to_owned()).spawn(turn) {
        tracing::error!("upgrade: its thread could not be made: {error}");
        resume(&house);
    }
}

/// As if nothing had been.
fn resume(house: &House) {
    plane::thaw(house);
    if house.upgrades.is_handing.swap(false, Ordering::AcqRel) {
        steer_back(house);
        house.shared.set_handing(false);
    }
    house.upgrades.is_under_way.store(false, Ordering::Release);
}

/// The new process may have had the kernel steer by its own table.
fn steer_back(house: &House) {
    if house.plan.workers.len() == 1 {
        return;
    }
    let table = Arc::clone(&house.shared.snapshot().steering);
    let program: Vec<(u16, u8, u8, u32)> = reuseport_program(&table, house.shared.steering_seed())
        .into_iter()
        .map(|i| (i.code, i.jt, i.jf, i.k))
        .collect();
    let Ok(holdings) = holdings(house, true) else {
        return tracing::error!("upgrade: a worker does not answer, so clients may be steered by another table");
    };
    let mut steered = BTreeSet::new();
    for (doorway, socket) in holdings.into_iter().flat_map(|holdings| holdings.doors) {
        if steered.insert(doorway)
            && let Err(error) = attach_reuseport_program(&socket, &program)
        {
            tracing::error!("upgrade: listener {}: clients may be steered by another table: {error}", doorway.1);
        }
    }
}

/// The new process, which ends with this unless it is let go.
struct Started {
    child: Child,
    is_let_go: bool,
}

impl Drop for Started {
    fn drop(&mut self) {
        if !self.is_let_go {
            // Both fail only for a process that has ended and been reaped.
            let _killed = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}

fn hand_over(house: &Arc<House>, body: &UpgradeBody, by: &str) -> Result<(Upgraded, Line, Process), UpgradeError> {
    if house.shared.phase() != Phase::Running {
        return Err(UpgradeError::Stopping);
    }
    if process::id() == 1 {
        return Err(UpgradeError::FirstProcess);
    }
    let successor = house.upgrades.successor.get();
    let program = body.program.clone().or_else(|| successor.map(|successor| successor.program.clone()));
    let (Some(program), Some(successor)) = (program, successor) else { return Err(UpgradeError::NoProgram) };
    let config = body.config.as_deref().or(house.config.as_deref()).ok_or(UpgradeError::NoProgram)?;
    tracing::info!("upgrade by {by}: starting {} with {}", program.display(), config.display());
    let (line, mut started) = start(&program, successor, config)?;
    let pid = started.child.id();
    let turn = || -> Result<String, Trouble> {
        let version = hear_hello(house, &line)?;
        let (manifest, held) = manifest(house)?;
        line.tell(&FromOld::Manifest(Box::new(manifest))).map_err(Trouble::told("was ready", "what there is"))?;
        line.give(&held.all()).map_err(Trouble::told("was ready", "the listeners"))?;
        drop(held);
        hear(house, &line, READY_TIMEOUT, "was ready", |word| matches!(word, FromNew::Ready).then_some(()))?;
        let (going, entries, frozen) = going(house)?;
        line.tell(&FromOld::Go(Box::new(going))).map_err(Trouble::told("served", "to go"))?;
        line.tell_bytes(&entries).map_err(Trouble::told("served", "who comes back where"))?;
        if let Some(frozen) = frozen {
            line.give(&frozen.descriptors()).map_err(Trouble::told("served", "the flows of the packet plane"))?;
        }
        // From here on it may serve somebody already: who is asked to end meanwhile hands over all the same.
        let is_serving = |word: FromNew| matches!(word, FromNew::Running).then_some(());
        hear_while(&line, RUNNING_TIMEOUT, "served", || house.shared.phase() != Phase::Ending, is_serving)?;
        Ok(version)
    };
    let version = match turn() {
        Ok(version) => version,
        Err(trouble) => return Err(conclude(trouble, &mut started, &program)),
    };
    let process = match Process::open(pid) {
        Ok(process) => process,
        Err(error) => return Err(conclude(Trouble::Ours(error.to_string()), &mut started, &program)),
    };
    started.is_let_go = true;
    drop(started);
    house.upgrades.hand();
    house.shared.hand();
    plane::leave(house);
    let connections = open(house);
    {
        let truth = house.truth();
        // The new one tells others from now on.
        truth.events().follow(None);
    }
    supervisor::tell(&format!("MAINPID={pid}"));
    if let Err(error) = line.tell(&FromOld::Yours) {
        tracing::warn!("upgrade: process {pid} was not told that all is its own: {error}");
    }
    let reason =
        format!("process {pid} ({version}) has taken over, by {by}; connections that finish here: {connections}");
    if !house.enter(Phase::Draining, &reason) {
        // Who was asked to end before it had handed over passes that on.
        let _ends = process.end(Duration::ZERO);
    }
    let drain_timeout_ms = house.truth().model().services.iter().map(|service| service.drain_timeout_ms).max();
    let upgraded = Upgraded {
        pid,
        version,
        before: process::id(),
        finishing: connections,
        drain_timeout_ms: drain_timeout_ms.unwrap_or(0),
    };
    Ok((upgraded, line, process))
}

/// What went wrong between the two.
enum Trouble {
    /// The new process did not come so far.
    Late { step: &'static str, silence: Silence },
    /// Here.
    Ours(String),
    /// The new process says why.
    Refused(Vec<String>),
}

impl Trouble {
    fn told(step: &'static str, what: &'static str) -> impl Fn(io::Error) -> Trouble {
        move |error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                Trouble::Late { step, silence: Silence::Ended }
            }
            _ => Trouble::Ours(format!("the new process could not be told {what}: {error}")),
        }
    }
}

fn conclude(trouble: Trouble, started: &mut Started, program: &Path) -> UpgradeError {
    let pid = started.child.id();
    let reasons = match trouble {
        Trouble::Late { silence: Silence::Abandoned, .. } => return UpgradeError::Stopping,
        Trouble::Late { step, silence: Silence::Ended } => {
            // It has closed its end, so that it ends just now.
            let status = ended(&mut started.child).map_or_else(String::new, |status| format!(" ({status})"));
            vec![format!(
                "{}: process {pid} has ended before it {step}{status}; what it said is in the log of this one",
                program.display()
            )]
        }
        Trouble::Late { step, silence } => {
            vec![format!("{}: process {pid} has not come so far that it {step}: {silence}", program.display())]
        }
        Trouble::Ours(reason) => vec![reason],
        Trouble::Refused(reasons) => reasons,
    };
    UpgradeError::Refused { reasons }
}

fn ended(child: &mut Child) -> Option<process::ExitStatus> {
    let process = Process::open(child.id()).ok()?;
    if !process.has_ended(Duration::from_secs(1)) {
        return None;
    }
    child.try_wait().ok().flatten()
}

/// Starts the program with one end of a line as its standard input, as this user and with what this process may do.
fn start(program: &Path, successor: &Successor, config: &Path) -> Result<(Line, Started), UpgradeError> {
    let not_started = |why: String| UpgradeError::NotStarted { program: program.to_path_buf(), why };
    let file = fs::metadata(program).map_err(|error| not_started(error.to_string()))?;
    if !file.is_file() {
        return Err(not_started("it is no file".to_owned()));
    }
    let (ours, theirs) = UnixStream::pair().map_err(|error| not_started(error.to_string()))?;
    let line = Line::new(ours).map_err(|error| not_started(error.to_string()))?;
    let mut command = Command::new(program);
    command.args(&successor.arguments).arg("--config").arg(config).arg("--take-over");
    command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    // On a thread that ends at once: it keeps its capabilities from nobody.
    let starting = thread::spawn(move || -> io::Result<Child> {
        hand_on_all_capabilities()?;
        command.spawn()
    });
    let child = starting.join().map_err(|_| not_started("its thread has panicked".to_owned()))?;
    let child = child.map_err(|error| not_started(error.to_string()))?;
    Ok((line, Started { child, is_let_go: false }))
}

fn hear_hello(house: &House, line: &Line) -> Result<String, Trouble> {
    let hello = hear(house, line, HELLO_TIMEOUT, "said who it is", |word| match word {
        FromNew::Hello { format, version } => Some((format, version)),
        _ => None,
    });
    let (format, version) = hello?;
    if format != FORMAT {
        return Err(Trouble::Refused(vec![format!(
            "version {version} hands over in form {format}, this one in form {FORMAT}; restart instead"
        )]));
    }
    Ok(version)
}

/// Waits for one word, for as long as this process is not asked to end.
fn hear<T>(
    house: &House,
    line: &Line,
    patience: Duration,
    step: &'static str,
    wanted: impl FnOnce(FromNew) -> Option<T>,
) -> Result<T, Trouble> {
    hear_while(line, patience, step, || house.shared.phase() == Phase::Running, wanted)
}

fn hear_while<T>(
    line: &Line,
    patience: Duration,
    step: &'static str,
    goes_on: impl Fn() -> bool,
    wanted: impl FnOnce(FromNew) -> Option<T>,
) -> Result<T, Trouble> {
    let word = line.hear(patience, &goes_on).map_err(|silence| Trouble::Late { step, silence })?;
    if !goes_on() {
        return Err(Trouble::Late { step, silence: Silence::Abandoned });
    }
    if let FromNew::Refused { reasons } = word {
        return Err(Trouble::Refused(reasons));
    }
    wanted(word).ok_or_else(|| Trouble::Ours("the new process has said another word than was its turn".to_owned()))
}

/// Descriptors for the new process, held until they are sent.
struct Copies<'h> {
    held: std::sync::MutexGuard<'h, Held>,
    doors: Vec<OwnedFd>,
    silence: Option<OwnedFd>,
}

impl Copies<'_> {
    fn all(&self) -> Vec<BorrowedFd<'_>> {
        self.held.descriptors().chain(self.doors.iter().chain(&self.silence).map(AsFd::as_fd)).collect()
    }
}

fn manifest(house: &House) -> Result<(Manifest, Copies<'_>), Trouble> {
    let (doors, sockets) = numbered(holdings(house, true)?, house.plan.workers.len());
    let words = state_file::text_of(house).map_err(Trouble::Ours)?;
    let silence = house.network.as_ref().map(NetworkOrders::lock).transpose();
    let silence = silence.map_err(|error| Trouble::Ours(format!("who keeps the kernel silent: {error}")))?;
    let held = house.upgrades.held.lock().unwrap_or_else(PoisonError::into_inner);
    let truth = house.truth();
    let manifest = Manifest {
        version: house.version.clone(),
        pid: process::id(),
        seed: house.shared.seed(),
        workers: house.plan.workers.len(),
        http_secret: Secret(truth.http_secret().octets()),
        words,
        verdicts: truth.verdicts(),
        socket: held.socket.as_ref().map(|(path, _)| path.clone()),
        listen: held.listen.as_ref().map(|(address, _)| *address),
        metrics: held.metrics.as_ref().map(|(address, _)| *address),
        doors,
        is_silent: silence.is_some(),
    };
    drop(truth);
    if manifest.descriptors() > DESCRIPTORS_MAX {
        return Err(Trouble::Ours(format!("more than {DESCRIPTORS_MAX} listeners; restart instead")));
    }
    Ok((manifest, Copies { held, doors: sockets, silence }))
}

/// The listeners with their numbers. Each worker has the one of its own number; where another process had more workers, it has those, too, that are so
/// many further on.
fn numbered(holdings: Vec<Holdings>, workers: usize) -> (Vec<HeldDoor>, Vec<OwnedFd>) {
    let mut numbered = Vec::new();
    for Holdings { worker, doors, .. } in holdings {
        let mut next: BTreeMap<Doorway, usize> = BTreeMap::new();
        for (doorway @ (protocol, address), socket) in doors {
            let place = next.entry(doorway).or_insert(worker.index());
            let held = HeldDoor { place: *place as u16, is_udp: protocol == Protocol::Udp, address };
            *place += workers;
            numbered.push((held, socket));
        }
    }
    numbered.into_iter().unzip()
}

/// From here on nothing is said to this process that the new one would not know.
fn going(house: &House) -> Result<(Going, Vec<u8>, Option<Frozen>), Trouble> {
    {
        // Under the lock that words are said under.
        let _truth = house.truth();
        house.upgrades.is_handing.store(true, Ordering::Release);
        house.shared.set_handing(true);
    }
    let words = state_file::text_of(house).map_err(Trouble::Ours)?;
    let leases: Vec<HeldLease> = holdings(house, false)?.into_iter().flat_map(|holdings| holdings.leases).collect();
    // Last of all: nothing is forwarded from here on until the new one serves.
    let entries = persistence::export(&house.shared);
    let mut frozen = plane::freeze(house).map_err(Trouble::Ours)?;
    let plane = frozen.as_mut().map(|frozen| mem::take(&mut frozen.manifest));
    Ok((Going { words, leases: together(leases), plane }, entries, frozen))
}

/// What every worker holds.
fn holdings(house: &House, with_doors: bool) -> Result<Vec<Holdings>, Trouble> {
    let (answers, answered) = mpsc::channel();
    let order = Arc::new(HoldingsOrder { with_doors, answers });
    let asked = house.shared.seats().inspect(|seat| seat.ask(Question::Holdings(Arc::clone(&order)))).count();
    drop(order);
    let until = Instant::now() + HOLDINGS_TIMEOUT;
    let one = |_| {
        let left = until.saturating_duration_since(Instant::now());
        let answer = answered.recv_timeout(left).map_err(|_| Trouble::Ours("a worker does not answer".to_owned()))?;
        answer.map_err(|error| Trouble::Ours(format!("a listener could not be copied: {error}")))
    };
    (0..asked).map(one).collect()
}

/// What a worker is asked for the next process.
pub(crate) struct HoldingsOrder {
    /// Copies of its listeners, too.
    pub(crate) with_doors: bool,
    answers: mpsc::Sender<io::Result<Holdings>>,
}

impl HoldingsOrder {
    /// Who has asked may have stopped waiting.
    pub(crate) fn answer(&self, holdings: io::Result<Holdings>) {
        let _nobody_waits = self.answers.send(holdings);
    }
}

fn open(house: &House) -> u64 {
    house.shared.seats().map(|seat| u64::from(seat.sessions())).sum()
}

/// Tells the new process what is left here, for as long as there is something; and ends at once if it ends: the supervisor learns of that, and starts
/// another one, only when nobody of us is left.
fn look_after(house: &House, line: &Line, successor: &Process) {
    loop {
        // Once it does not hear any more, there is nobody to be told.
        let _told = line.tell(&FromOld::Finishing { connections: open(house) });
        if successor.has_ended(TELL_EVERY) {
            house.enter(Phase::Ending, "the process that had taken over has ended");
            return;
        }
    }
}

/// The path that this process was started from, and how.
pub fn successor(arguments: Vec<std::ffi::OsString>) -> Option<Successor> {
    let program = std::env::current_exe().ok()?;
    // A path whose file was replaced since is told with this.
    let name = program.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map(PathBuf::from);
    Some(Successor { program: name.unwrap_or(program), arguments })
}
