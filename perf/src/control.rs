//! How fast the control socket answers: the same questions while the workers do nothing, and while every one of them has more to do than it can.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use towpath_sys::host;
use towpath_sys::process::{Child, MemoryFile};

use crate::cpu::wanted_time_ns;
use crate::lab::{Host, Lab, Topology};
use crate::load::{Pace, Plan, Security, Work, client, new_histogram};
use crate::message::Framing;

/// The port of the service that carries the load, by the thread that makes it; the services beside it follow.
const FIRST_PORT: u16 = 10_000;
/// Connections of each thread that makes load: while it has its turn with some, enough others wait for the workers.
const CONNECTIONS: usize = 512;
/// Time between two questions: nobody asks faster, and so the asking itself is no load.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How long it may take until the daemon serves, and until it has ended.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often it is looked whether something has happened.
const LOOK: Duration = Duration::from_millis(50);
/// Threads that make load for each CPU, so that they get more of its time than the worker there, which then always has some of their requests.
const THREADS_PER_CPU: usize = 2;
/// A worker that works, or waits for its CPU, for less than this share of the time could do more. Clients and origins have the same CPUs: while they
/// run, it waits.
const FULL_SHARE: f64 = 0.8;
/// Names of the threads that are workers begin so.
const WORKER: &str = "worker-";

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// `towpath status`, and what the page asks every other second.
    Status,
    /// What Prometheus asks.
    Metrics,
}

impl Question {
    /// All of them.
    pub const ALL: [Question; 2] = [Question::Status, Question::Metrics];

    fn path(self) -> &'static str {
        match self {
            Question::Status => "/v1/status",
            Question::Metrics => "/v1/metrics",
        }
    }
}

/// What the workers do meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// Nothing.
    None,
    /// Requests over connections that stay, as many as they can.
    Full,
}

/// How long answers took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answers {
    /// To what.
    pub question: Question,
    /// Beside what.
    pub load: Load,
    /// How many there were.
    pub count: u64,
    /// Bytes of the last one.
    pub bytes: usize,
    /// Half of them took no longer.
    pub p50_ms: f64,
    /// 99 of a hundred.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
    /// Of the time, the share that the worker with the least to do ran or waited for its CPU.
    pub busy_share: f64,
    /// Requests that clients had answered in a second.
    pub requests_per_second: f64,
}

impl Answers {
    /// Whether the slowest came in time, and the load was what it is called.
    pub fn meets(&self, goal_ms: f64) -> bool {
        self.max_ms <= goal_ms && self.is_loaded()
    }

    /// Whether every worker had as much to do as it could.
    pub fn is_loaded(&self) -> bool {
        self.load == Load::None || self.busy_share >= FULL_SHARE
    }
}

/// Measures for so long each, in a lab of its own, with so many services beside the one that carries the load; `towpath` is the program.
pub fn measure(towpath: &Path, services: u16, time: Duration) -> io::Result<Vec<Answers>> {
    let lab = Lab::build(Topology::TwoArm, 1)?;
    let threads = host::available_cpus()?.len() * THREADS_PER_CPU;
    let server = lab.server(1);
    let daemon = Daemon::start(lab.balancer(), towpath, threads as u16, services, server.ipv4())?;
    let mut answers = Vec::new();
    for load in [Load::None, Load::Full] {
        for question in Question::ALL {
            answers.push(match load {
                Load::None => daemon.ask(question, load, time)?,
                Load::Full => beside_load(&lab, &daemon, threads, question, time)?,
            });
        }
    }
    daemon.stop()?;
    Ok(answers)
}

/// Asks while clients have all workers do as much as they can.
fn beside_load(lab: &Lab, daemon: &Daemon, threads: usize, question: Question, time: Duration) -> io::Result<Answers> {
    let (client_host, server) = (lab.client(), lab.server(1));
    let vip = lab.balancer().ipv4();
    // Beside the counted time of the clients there is their start and their end.
    let warm_up = Duration::from_secs(1);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut clients = Vec::with_capacity(threads);
        for port in (FIRST_PORT..).take(threads) {
            let listener = server.run(|| TcpListener::bind((server.ipv4(), port)))??;
            let plan = Plan {
                target: SocketAddr::from((vip, port)),
                work: Work::KeepAlive { connections: CONNECTIONS, idle: 0, request_bytes: 128, answer_bytes: 128 },
                pace: Pace::Closed,
                security: Security::PLAIN,
                framing: Framing::Bare,
                warm_up,
                measure: time + warm_up,
                watch_cpus: Vec::new(),
                watch_processes: Vec::new(),
            };
            let is_over = &is_over;
            clients.push(scope.spawn(move || {
                let tally = client_host.run(|| client::run_beside_origin(&plan, vec![listener], Vec::new()));
                is_over.store(true, Ordering::Relaxed);
                tally
            }));
        }
        thread::sleep(warm_up);
        let answers = daemon.ask(question, Load::Full, time);
        let was_beside = !is_over.load(Ordering::Relaxed);
        let mut requests_per_second = 0.0;
        for client in clients {
            let tally = client.join().map_err(|_| io::Error::other("a thread of the clients has panicked"))???;
            requests_per_second += tally.rate();
        }
        if !was_beside {
            return Err(io::Error::other("the load had ended before the questions"));
        }
        Ok(Answers { requests_per_second, ..answers? })
    })
}

/// The program, with the files that it needs.
struct Daemon {
    child: Child,
    log: MemoryFile,
    socket: PathBuf,
    _config: MemoryFile,
}

impl Daemon {
    fn start(host: &Host, towpath: &Path, ports: u16, services: u16, server: Ipv4Addr) -> io::Result<Daemon> {
        let socket = std::env::temp_dir().join(format!("towpath-perf-control-{}.sock", std::process::id()));
        let log = MemoryFile::create(b"")?;
        let file = MemoryFile::create(config(&socket, host.ipv4(), server, ports, services).as_bytes())?;
        let mut command = Command::new(towpath);
        command.args(["run", "-c"]).arg(file.path());
        command.stdin(Stdio::null()).stdout(log.writer()?).stderr(log.writer()?);
        let mut daemon = Daemon { child: host.spawn(command)?, log, socket, _config: file };
        daemon.until_serving()?;
        Ok(daemon)
    }

    fn until_serving(&mut self) -> io::Result<()> {
        let start = Instant::now();
        while !self.said().contains("serving: ") {
            if let Some(status) = self.child.wait_timeout(LOOK)? {
                return Err(io::Error::other(format!("it has ended ({status}): {}", self.said())));
            }
            if start.elapsed() > DEADLINE {
                return Err(io::Error::other(format!("it does not serve: {}", self.said())));
            }
        }
        Ok(())
    }

    /// Asks for so long.
    fn ask(&self, question: Question, load: Load, time: Duration) -> io::Result<Answers> {
        let mut taken = new_histogram();
        let (start, before) = (Instant::now(), self.wanted_ns()?);
        let mut bytes = 0;
        while start.elapsed() < time {
            let asked = Instant::now();
            bytes = self.fetch(question)?.len();
            taken.saturating_record(u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX));
            thread::sleep(ASK_EVERY.saturating_sub(asked.elapsed()));
        }
        let (elapsed, after) = (start.elapsed(), self.wanted_ns()?);
        let busy = before.iter().zip(&after).map(|(before, after)| after.saturating_sub(*before)).min();
        let busy_share = busy.unwrap_or(0) as f64 / elapsed.as_nanos().max(1) as f64;
        Ok(summary(question, load, &taken, bytes, busy_share))
    }

    /// For how long each worker has had something to do. Its own count has nothing of the time in which others had its CPU, which here is most of it.
    fn wanted_ns(&self) -> io::Result<Vec<u64>> {
        let all = wanted_time_ns(self.child.id(), |name| name.starts_with(WORKER))?;
        if all.is_empty() { Err(io::Error::other("a daemon without workers")) } else { Ok(all) }
    }

    /// The body of the answer.
    fn fetch(&self, question: Question) -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        write!(stream, "GET {} HTTP/1.1\r\nHost: towpath\r\nConnection: close\r\n\r\n", question.path())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        match end {
            Some(end) if answer.starts_with(b"HTTP/1.1 200 ") => Ok(answer.split_off(end + 4)),
            _ => Err(io::Error::other(format!("no answer: {}", String::from_utf8_lossy(&answer)))),
        }
    }

    fn stop(mut self) -> io::Result<()> {
        self.child.terminate()?;
        if self.child.wait_timeout(DEADLINE)?.is_none() {
            self.child.kill()?;
        }
        Ok(())
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.log.read().unwrap_or_default()).into_owned()
    }
}

fn summary(question: Question, load: Load, taken: &Histogram<u64>, bytes: usize, busy_share: f64) -> Answers {
    let ms = |ns: u64| ns as f64 / 1e6;
    Answers {
        question,
        load,
        count: taken.len(),
        bytes,
        p50_ms: ms(taken.value_at_quantile(0.5)),
        p99_ms: ms(taken.value_at_quantile(0.99)),
        max_ms: ms(taken.max()),
        busy_share,
        requests_per_second: 0.0,
    }
}

/// One service with a port for each thread that makes load, and so many beside it, each with ten servers.
fn config(socket: &Path, vip: Ipv4Addr, server: Ipv4Addr, ports: u16, services: u16) -> String {
    let mut text = format!(
        "[control]\nsocket = \"{}\"\nstate_file = \"none\"\n\
         [[service]]\nname = \"load\"\nvip = \"{vip}\"\nports = \"{FIRST_PORT}-{}\"\nhealth = {{ check = \"none\" }}\n\
         [[service.server]]\nname = \"origin\"\naddress = \"{server}\"\n",
        socket.display(),
        FIRST_PORT + ports.max(1) - 1
    );
    for number in 0..services {
        // Writing into memory does not fail.
        let _ = write!(
            text,
            "[[service]]\nname = \"beside-{number}\"\nvip = \"{vip}\"\nports = {}\nhealth = {{ check = \"none\" }}\n",
            FIRST_PORT + ports + number
        );
        for last in 1..=10 {
            let _ = write!(text, "[[service.server]]\nname = \"server-{last}\"\naddress = \"192.0.2.{last}\"\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_one_that_is_taken() {
        let text =
            config(Path::new("/tmp/c.sock"), Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(198, 51, 100, 9), 2, 50);
        let checked = towpath_config::check("control.toml", &text);
        let model = checked.model.unwrap_or_else(|| panic!("{:?}", checked.diagnostics));
        assert_eq!(model.services.len(), 51);
    }

    #[test]
    fn a_goal_is_met_by_the_slowest_answer_beside_a_full_load() {
        let mut taken = new_histogram();
        for ms in [2, 3, 80] {
            taken.saturating_record(ms * 1_000_000);
        }
        let answers = |load, busy| summary(Question::Status, load, &taken, 1, busy);
        assert_eq!(answers(Load::Full, 0.97).p50_ms.round(), 3.0);
        assert!(answers(Load::Full, 0.97).meets(100.0));
        assert!(!answers(Load::Full, 0.97).meets(79.0));
        assert!(!answers(Load::Full, 0.4).meets(100.0), "workers that could do more show nothing");
        assert!(answers(Load::None, 0.0).meets(100.0));
    }
}
