//! The program under test: started in the lab, watched over its control socket, reloaded, stopped.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use towpath_engine::admin::{OrderBody, Ordered};
use towpath_engine::status::{HealthStatus, ServerStatus, ServiceStatus};
use towpath_engine::{Endpoint, FetchError, ServerPath, Status, fetch_status, order};
use towpath_perf::lab::Child;

use crate::{Host, PATIENCE, eventually, roles};

/// How often a start looks whether the program has ended instead of getting ready.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The program as cargo has built it for this test run; see [`subject!`](crate::subject!).
#[derive(Clone, Copy, Debug)]
pub struct Program {
    path: &'static str,
}

/// The [`Program`]. A macro, because cargo tells its path to integration tests only.
#[macro_export]
macro_rules! subject {
    () => {
        $crate::Program::at(env!("CARGO_BIN_EXE_subject"))
    };
}

/// A running Towpath. Killed when dropped; its files go with it.
#[derive(Debug)]
pub struct Subject {
    child: Child,
    /// Where it tells how it is; like a supervisor's, open for as long as it lives.
    supervisor: UnixDatagram,
    program: Program,
    home: Arc<Home>,
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it wrote to standard error.
    pub text: String,
}

/// The directory of one run.
#[derive(Debug)]
struct Home {
    directory: TempDir,
}

impl Program {
    /// The program at `path`.
    pub fn at(path: &'static str) -> Program {
        Program { path }
    }

    /// A command that runs it.
    pub fn command(self) -> Command {
        let mut command = Command::new(self.path);
        command.stdin(Stdio::null());
        command
    }

    /// Starts it on a host with this configuration, to which a control socket is added; returns when it serves.
    ///
    /// # Panics
    ///
    /// When it ends or is not ready in time, with what it said.
    #[track_caller]
    pub fn start(self, host: &Host, config: &str) -> Subject {
        self.start_on(host, config, &[])
    }

    /// The same with a worker on each of these CPUs, more than one on some, where the configuration leaves it open; none = on those there are.
    ///
    /// # Panics
    ///
    /// Likewise.
    #[track_caller]
    pub fn start_on(self, host: &Host, config: &str, cpus: &[usize]) -> Subject {
        let home = Home::create(config);
        let mut arguments = home.arguments().to_vec();
        if !cpus.is_empty() {
            let cpus: Vec<String> = cpus.iter().map(ToString::to_string).collect();
            arguments.extend(["--worker-cpus".into(), cpus.join(",").into()]);
        }
        self.start_as(host, Arc::new(home), &arguments)
    }

    /// The same, but [`Subject::panic_a_worker`] lets its workers panic.
    ///
    /// # Panics
    ///
    /// As [`Program::start`].
    #[track_caller]
    pub fn start_to_panic(self, host: &Host, config: &str) -> Subject {
        let home = Home::create(config);
        let arguments = roles::panicking(&home.config(), &home.trigger()).map(OsStr::to_owned);
        self.start_as(host, Arc::new(home), &arguments)
    }

    /// As [`Program::start_on`], but another process is the first of its PID namespace: it may end while one lives that it has started.
    ///
    /// # Panics
    ///
    /// Likewise.
    #[track_caller]
    pub fn start_under_init(self, host: &Host, config: &str, cpus: &[usize]) -> Subject {
        let home = Home::create(config);
        let mut arguments = vec![roles::under_init().to_owned()];
        arguments.extend(home.arguments());
        if !cpus.is_empty() {
            let cpus: Vec<String> = cpus.iter().map(ToString::to_string).collect();
            arguments.extend(["--worker-cpus".into(), cpus.join(",").into()]);
        }
        self.start_as(host, Arc::new(home), &arguments)
    }

    #[track_caller]
    fn start_as(self, host: &Host, home: Arc<Home>, arguments: &[OsString]) -> Subject {
        let config = home.text();
        // One of a run before.
        let _is_there = fs::remove_file(home.notify());
        let ready = UnixDatagram::bind(home.notify()).expect("a socket to hear READY on");
        ready.set_read_timeout(Some(LOOK_EVERY)).expect("LOOK_EVERY is not zero");
        let mut child = self.run(host, &home, arguments);
        let deadline = Instant::now() + PATIENCE;
        let mut heard = [0; 256];
        loop {
            match ready.recv(&mut heard) {
                Ok(length) if heard[..length].starts_with(b"READY=1") => {
                    return Subject { child, supervisor: ready, program: self, home };
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(error) => panic!("waiting for READY: {error}"),
            }
            if let Some(status) = child.try_wait().expect("the program is our child") {
                panic!("towpath did not start ({status}):\n{}\nwith\n{config}", home.log());
            }
            assert!(Instant::now() < deadline, "towpath is not ready after {PATIENCE:?}:\n{}", home.log());
        }
    }

    /// Starts it on a host with a configuration that it must refuse, and returns how it did.
    ///
    /// # Panics
    ///
    /// When it does not end.
    #[track_caller]
    pub fn refuse(self, host: &Host, config: &str) -> Refusal {
        let home = Home::create(config);
        let arguments = home.arguments();
        let mut child = self.run(host, &home, &arguments);
        let Some(status) = child.wait_timeout(PATIENCE).expect("the program is our child") else {
            panic!("towpath runs, but should have refused:\n{}", home.log());
        };
        Refusal { code: status.code(), text: home.log() }
    }

    #[track_caller]
    fn run(self, host: &Host, home: &Home, arguments: &[OsString]) -> Child {
        let log = File::create(home.log_file()).expect("a file for the log");
        let mut command = self.command();
        command.args(arguments).env("NOTIFY_SOCKET", home.notify()).stdout(Stdio::null()).stderr(log);
        host.spawn(command).unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Subject {
    /// Where it is asked.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Socket(self.home.control())
    }

    /// Its state.
    ///
    /// # Panics
    ///
    /// When it does not tell.
    #[track_caller]
    pub fn status(&self) -> Status {
        fetch_status(&self.endpoint()).unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    /// Waits until its state is as wanted and every worker serves it, and returns that state.
    ///
    /// # Panics
    ///
    /// When it does not become so in time.
    #[track_caller]
    pub fn until(&self, what: &str, mut wanted: impl FnMut(&Status) -> bool) -> Status {
        eventually(what, || {
            let adopted = |status: &Status| status.workers.iter().all(|worker| worker.generation >= status.generation);
            Some(self.status()).filter(|status| adopted(status) && wanted(status))
        })
    }

    /// Waits until every server of every service is up.
    ///
    /// # Panics
    ///
    /// When one does not come up.
    #[track_caller]
    pub fn until_all_up(&self) {
        self.until("every server is up", |status| {
            status.services.iter().flat_map(|service| &service.servers).all(|server| server.health == HealthStatus::Up)
        });
    }

    /// One service.
    ///
    /// # Panics
    ///
    /// When there is none of that name.
    #[track_caller]
    pub fn service(&self, name: &str) -> ServiceStatus {
        let status = self.status();
        let service = status.services.into_iter().find(|service| service.name == name);
        service.unwrap_or_else(|| panic!("no service `{name}`"))
    }

    /// One server of a service.
    ///
    /// # Panics
    ///
    /// When there is none of that name.
    #[track_caller]
    pub fn server(&self, service: &str, name: &str) -> ServerStatus {
        let server = self.service(service).servers.into_iter().find(|server| server.name == name);
        server.unwrap_or_else(|| panic!("no server `{name}` in `{service}`"))
    }

    /// Writes a new configuration and sends SIGHUP; returns when it is in effect, with its generation, or has been refused, with
    /// what was said about it.
    ///
    /// # Panics
    ///
    /// When neither happens.
    #[track_caller]
    pub fn reload(&mut self, config: &str) -> Result<u64, String> {
        self.home.write(config);
        let before = self.log().len();
        self.hang_up();
        eventually("an answer to SIGHUP", || {
            let said = self.log().split_off(before);
            let line = said.split_inclusive('\n').find(|line| line.contains("SIGHUP: ") && line.ends_with('\n'))?;
            match line.trim_end().rsplit_once("is in effect, generation ") {
                Some((_, generation)) => Some(Ok(generation.parse().expect("a number of a generation"))),
                None => Some(Err(said)),
            }
        })
    }

    /// Sends SIGHUP and goes on.
    pub fn hang_up(&mut self) {
        self.child.signal(libc::SIGHUP).expect("the program is our child");
    }

    /// Writes a new configuration and tells it nothing.
    pub fn write(&self, config: &str) {
        self.home.write(config);
    }

    /// Lets it open only so many descriptors more than it has now.
    ///
    /// # Panics
    ///
    /// When it does not run.
    #[track_caller]
    pub fn limit_descriptors(&mut self, more: usize) {
        let open = fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("the program runs");
        let open: BTreeSet<u64> = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
        // The limit is one on their numbers.
        let free = (0..).filter(|number| !open.contains(number)).nth(more).expect("numbers do not end");
        self.child.limit_descriptors(free).expect("the program is our child");
    }

    /// Memory that it has resident now, without what it shares with others.
    ///
    /// # Panics
    ///
    /// When it does not run.
    #[track_caller]
    pub fn memory_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the program runs");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a line of proc(5)");
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
        kibibytes * 1024
    }

    /// Sends SIGTERM and goes on.
    pub fn terminate(&mut self) {
        self.child.terminate().expect("the program is our child");
    }

    /// Waits until it has ended; its exit code.
    ///
    /// # Panics
    ///
    /// When it does not end.
    #[track_caller]
    pub fn wait(&mut self) -> Option<i32> {
        let status = self.child.wait_timeout(PATIENCE).expect("the program is our child");
        status.unwrap_or_else(|| panic!("towpath does not end:\n{}", self.log())).code()
    }

    /// Lets a worker panic at its next breath, of one that was started for that.
    ///
    /// # Panics
    ///
    /// When the directory cannot be written.
    pub fn panic_a_worker(&self) {
        fs::write(self.home.trigger(), "").expect("the temporary directory can be written");
    }

    /// Waits until a signal has ended it, and returns its number.
    ///
    /// # Panics
    ///
    /// When it does not end, or otherwise.
    #[track_caller]
    pub fn wait_for_signal(&mut self) -> i32 {
        let status = self.child.wait_timeout(PATIENCE).expect("the program is our child");
        let status = status.unwrap_or_else(|| panic!("towpath does not end:\n{}", self.log()));
        status.signal().unwrap_or_else(|| panic!("{status}:\n{}", self.log()))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the program is our child").is_none()
    }

    /// Stops it at once: SIGTERM twice, and expects it to have ended well.
    ///
    /// # Panics
    ///
    /// When it does not end with exit code 0.
    #[track_caller]
    pub fn stop(mut self) {
        self.terminate();
        self.until_stopping();
        self.terminate();
        let code = self.wait();
        assert_eq!(code, Some(0), "{}", self.log());
    }

    /// Waits until it has taken a first SIGTERM: two that arrive at once are one to the kernel.
    #[track_caller]
    fn until_stopping(&mut self) {
        eventually("an answer to SIGTERM", || (self.log().contains(" stopping: ") || !self.is_running()).then_some(()));
    }

    /// Stops it as [`Subject::stop`], lets `meanwhile` happen, and starts it again with what it has left behind.
    ///
    /// # Panics
    ///
    /// When it does not end well or does not start.
    #[track_caller]
    pub fn restart(self, host: &Host, meanwhile: impl FnOnce()) -> Subject {
        let (program, home) = (self.program, Arc::clone(&self.home));
        self.stop();
        meanwhile();
        let arguments = home.arguments();
        program.start_as(host, home, &arguments)
    }

    /// Gives an order about `SERVICE/SERVER`, `*` for every one; returns when every worker follows it.
    ///
    /// # Panics
    ///
    /// When it is refused.
    #[track_caller]
    pub fn order(&self, servers: &str, verb: &str, body: &OrderBody) -> Ordered {
        self.try_order(servers, verb, body).unwrap_or_else(|error| panic!("{verb} {servers}: {error}\n{}", self.log()))
    }

    /// The same, or why it is refused.
    pub fn try_order(&self, servers: &str, verb: &str, body: &OrderBody) -> Result<Ordered, FetchError> {
        let part = |name: &str| (name != "*").then(|| name.to_owned());
        let (service, server) = servers.split_once('/').expect("a service and a server");
        order(&self.endpoint(), &ServerPath { service: part(service), server: part(server) }, verb, body)
    }

    /// Runs a command line of it (`server drain …`) against this one, with its socket added; returns when that has ended.
    ///
    /// # Panics
    ///
    /// When it cannot be run.
    #[track_caller]
    pub fn command(&self, arguments: &[&str]) -> Output {
        let mut command = self.program.command();
        command.args(arguments).arg("--socket").arg(self.home.control());
        command.output().expect("the program can be run")
    }

    /// Ids of the processes under [`Program::start_under_init`] that live, as they are seen from here, oldest first.
    ///
    /// # Panics
    ///
    /// When the kernel does not tell.
    #[track_caller]
    pub fn processes(&self) -> Vec<u32> {
        let mut found = Vec::new();
        let mut parents = vec![self.child.id()];
        while let Some(parent) = parents.pop() {
            // A process may end while it is looked at.
            let Ok(tasks) = fs::read_dir(format!("/proc/{parent}/task")) else { continue };
            for task in tasks.flatten() {
                let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                let children = children.split_ascii_whitespace().filter_map(|id| id.parse().ok());
                parents.extend(children.filter(|child| is_alive(*child)).inspect(|child| found.push(*child)));
            }
        }
        found.sort_unstable();
        found
    }

    /// What its supervisor has heard since the last time, oldest first.
    pub fn told_supervisor(&self) -> Vec<String> {
        let mut heard = [0; 256];
        std::iter::from_fn(|| self.supervisor.recv(&mut heard).ok().map(|length| heard[..length].to_vec()))
            .map(|words| String::from_utf8_lossy(&words).into_owned())
            .collect()
    }

    /// The file that keeps what was said at run time.
    pub fn state_file(&self) -> PathBuf {
        self.home.state_file()
    }

    /// What it has written to standard error so far.
    pub fn log(&self) -> String {
        self.home.log()
    }

    /// Its control socket.
    pub fn control(&self) -> PathBuf {
        self.home.control()
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("towpath said:\n{}", self.log());
        }
    }
}

/// Whether a process is there and no zombie.
fn is_alive(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map_or("Z", |(_, behind)| behind);
    !state.starts_with(['Z', 'X'])
}

impl Home {
    #[track_caller]
    fn create(config: &str) -> Home {
        let directory = tempfile::Builder::new().prefix("towpath-").tempdir().expect("a temporary directory");
        let home = Home { directory };
        home.write(config);
        home
    }

    #[track_caller]
    fn write(&self, config: &str) {
        let text = format!("[control]\nsocket = \"{}\"\n{config}", self.control().display());
        fs::write(self.config(), text).expect("the temporary directory can be written");
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("towpath.toml")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.config()).unwrap_or_default()
    }

    /// Those that serve by its file.
    fn arguments(&self) -> [OsString; 3] {
        ["run".into(), "--config".into(), self.config().into()]
    }

    /// What lets workers panic once it is there.
    fn trigger(&self) -> PathBuf {
        self.directory.path().join("panic")
    }

    fn control(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    /// Beside the socket, where that is not below /run.
    fn state_file(&self) -> PathBuf {
        self.directory.path().join("control.sock.state")
    }

    fn notify(&self) -> PathBuf {
        self.directory.path().join("notify.sock")
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }
}
