//! What the program under test can be besides Towpath: an origin or a crowd of clients, in a process of their own, because
//! descriptors are limited per process.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use towpath_engine::{Engine, StartOptions};
use towpath_perf::lab::Child;

use crate::origin::{self, runtime};
use crate::{Greeting, Host, PATIENCE, Program};

/// First argument of a role; nothing that the command line of Towpath knows.
const ORIGIN: &str = "--as-origin";
/// The same for clients.
const CROWD: &str = "--as-crowd";
/// The same for clients that come back whenever their connection ends.
const STORM: &str = "--as-storm";
/// The same for a Towpath whose workers panic once its second argument is there.
const PANICKING: &str = "--as-panicking";

/// The same for the first process of a PID namespace, whose end is the end of all: it starts a Towpath with the rest of the arguments, and stays.
const INIT: &str = "--as-init";

/// The same for a program that claims to take over, and ends as soon as it may.
const DESERTER: &str = "--as-deserter";

/// How often the file is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Whether workers are to panic.
static PANICS: AtomicBool = AtomicBool::new(false);

/// How many clients of a crowd connect at the same time.
const CONNECTING_MAX: usize = 256;

/// Plays the role that the arguments name; `None` if they name none.
pub fn play(arguments: &[String]) -> Option<ExitCode> {
    let played = match arguments {
        [role, name, addresses @ ..] if role == ORIGIN => play_origin(name, addresses),
        [role, config, trigger] if role == PANICKING => play_panicking(Path::new(config), PathBuf::from(trigger)),
        [role] if role == DESERTER => desert(),
        [role, arguments @ ..] if role == INIT => play_init(arguments),
        [role, to, from, clients] if role == CROWD => play_crowd(to, from, clients),
        [role, to, from, clients, returns] if role == STORM => play_storm(to, from, clients, returns),
        _ => return None,
    };
    Some(match played {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{arguments:?}: {error}");
            ExitCode::FAILURE
        }
    })
}

/// The first argument, and those after it, of a Towpath that panics in a worker as soon as the file `trigger` is there.
pub(crate) fn panicking<'a>(config: &'a Path, trigger: &'a Path) -> [&'a OsStr; 3] {
    [OsStr::new(PANICKING), config.as_os_str(), trigger.as_os_str()]
}

/// What comes before the arguments of a Towpath that is not to be the first process of its namespace.
pub(crate) fn under_init() -> &'static OsStr {
    OsStr::new(INIT)
}

fn play_init(arguments: &[String]) -> io::Result<()> {
    let mut child = Command::new(env::current_exe()?).args(arguments).stdin(Stdio::null()).spawn()?;
    child.wait()?;
    // Others may be there by now. Whoever has started this one kills it, and them with it.
    loop {
        thread::park();
    }
}

/// Says on standard input that it is ready to take over, and ends with 3 when it is told to go.
fn desert() -> io::Result<()> {
    let mut line = fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
    for word in ["{\"word\":\"hello\",\"format\":1,\"version\":\"9.9.9\"}", "{\"word\":\"ready\"}"] {
        line.write_all(&(word.len() as u32).to_be_bytes())?;
        line.write_all(word.as_bytes())?;
    }
    let (mut heard, mut part, go) = (Vec::<u8>::new(), [0; 4096], b"\"word\":\"go\"");
    while !heard.windows(go.len()).any(|part| part == go) {
        match line.read(&mut part)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => heard.extend(&part[..length]),
        }
    }
    std::process::exit(3)
}

fn play_panicking(config: &Path, trigger: PathBuf) -> io::Result<()> {
    let text = fs::read_to_string(config)?;
    let model = towpath_config::check("towpath.toml", &text).model.ok_or_else(|| io::Error::other("a bad file"))?;
    let on_breath = || assert!(!PANICS.load(Ordering::Relaxed), "as the test asked");
    let options = StartOptions { on_breath: Some(on_breath), ..StartOptions::default() };
    let engine = Engine::start(model, options).map_err(io::Error::other)?;
    thread::spawn(move || {
        while !trigger.exists() {
            thread::sleep(LOOK_EVERY);
        }
        PANICS.store(true, Ordering::Relaxed);
    });
    engine.wait();
    Ok(())
}

/// An origin in a process of its own; killed when dropped.
#[derive(Debug)]
pub struct OriginProcess {
    _child: Child,
}

/// Clients in a process of their own, each with an open connection; killed when dropped.
#[derive(Debug)]
pub struct Crowd {
    child: Child,
    output: BufReader<ChildStdout>,
    /// How many were greeted by an origin and hold their connection.
    pub served: usize,
    /// How many were refused: closed or reset before a greeting.
    pub refused: usize,
}

impl OriginProcess {
    /// Starts an origin on these addresses of the host, which behaves as [`crate::Origin::tcp`].
    ///
    /// # Panics
    ///
    /// When it does not start.
    #[track_caller]
    pub fn start(program: Program, host: &Host, addresses: &[SocketAddr]) -> OriginProcess {
        let mut command = program.command();
        command.args([ORIGIN, host.name()]).args(addresses.iter().map(ToString::to_string));
        let (child, mut output) = spawn(host, command);
        assert_eq!(heard(&mut output), "ready", "origin {addresses:?}");
        OriginProcess { _child: child }
    }
}

impl Crowd {
    /// Opens so many connections, and returns when each has been served or refused.
    ///
    /// # Panics
    ///
    /// When the process fails.
    #[track_caller]
    pub fn gather(program: Program, host: &Host, from: IpAddr, to: SocketAddr, clients: usize) -> Crowd {
        let mut command = program.command();
        command.args([CROWD, &to.to_string(), &from.to_string(), &clients.to_string()]).stdin(Stdio::piped());
        let (child, mut output) = spawn(host, command);
        let told = heard(&mut output);
        let (served, refused) = told.split_once(' ').expect("two counts");
        let count = |text: &str| text.parse().expect("a count");
        Crowd { child, output, served: count(served), refused: count(refused) }
    }

    /// Every client that was served asks once more and closes; how many got their answer.
    ///
    /// # Panics
    ///
    /// When the process fails.
    #[track_caller]
    pub fn part(mut self) -> usize {
        // Its end is the word to part.
        drop(self.child.process().stdin.take());
        heard(&mut self.output).parse().expect("a count")
    }
}

/// Clients in a process of their own that come back at once when their connection ends, and do so until they are served; killed when dropped.
#[derive(Debug)]
pub struct Storm {
    _child: Child,
    output: BufReader<ChildStdout>,
}

/// How clients came back.
#[derive(Clone, Copy, Debug)]
pub struct Returned {
    /// From the first end to the last one that was served again.
    pub took: Duration,
    /// Attempts that were refused or cut off on the way.
    pub refused: usize,
}

impl Storm {
    /// Opens so many connections and returns when all are served.
    ///
    /// # Panics
    ///
    /// When one is refused, or the process fails.
    #[track_caller]
    pub fn gather(program: Program, host: &Host, to: SocketAddr, clients: usize, returns: usize) -> Storm {
        let mut command = program.command();
        let from = IpAddr::from(host.ipv4());
        let arguments = [to.to_string(), from.to_string(), clients.to_string(), returns.to_string()];
        command.arg(STORM).args(arguments).stdin(Stdio::piped());
        let (child, mut output) = spawn(host, command);
        assert_eq!(heard(&mut output), format!("{clients} served"));
        Storm { _child: child, output }
    }

    /// Waits until as many as were announced have lost their connection and are served again.
    ///
    /// # Panics
    ///
    /// When they are not, or the process fails.
    #[track_caller]
    pub fn returned(&mut self) -> Returned {
        let told = heard(&mut self.output);
        let (took_ms, refused) = told.split_once(' ').expect("two counts");
        let took = Duration::from_millis(took_ms.parse().expect("milliseconds"));
        Returned { took, refused: refused.parse().expect("a count") }
    }
}

#[track_caller]
fn spawn(host: &Host, mut command: Command) -> (Child, BufReader<ChildStdout>) {
    command.stdout(Stdio::piped());
    let mut child = host.spawn(command).unwrap_or_else(|error| panic!("{error}"));
    let output = child.process().stdout.take().expect("stdout is a pipe");
    (child, BufReader::new(output))
}

#[track_caller]
fn heard(output: &mut impl BufRead) -> String {
    let mut line = String::new();
    output.read_line(&mut line).expect("a line of the helper process");
    line.trim_end().to_owned()
}

fn say(word: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{word}")?;
    output.flush()
}

fn play_origin(name: &str, addresses: &[String]) -> io::Result<()> {
    raise_descriptors()?;
    let addresses =
        addresses.iter().map(|text| text.parse()).collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
    origin::serve_for_ever(name, &addresses, || say("ready").expect("somebody waits for us"))
}

fn play_crowd(to: &str, from: &str, clients: &str) -> io::Result<()> {
    raise_descriptors()?;
    let to: SocketAddr = to.parse().map_err(io::Error::other)?;
    let from: IpAddr = from.parse().map_err(io::Error::other)?;
    let clients: usize = clients.parse().map_err(io::Error::other)?;
    runtime()?.block_on(async {
        let mut held = Vec::new();
        let mut refused = 0;
        let mut connecting = JoinSet::new();
        for started in 0..clients {
            connecting.spawn(greeted(from, to));
            while connecting.len() >= CONNECTING_MAX || (started + 1 == clients && !connecting.is_empty()) {
                match connecting.join_next().await {
                    Some(Ok(Ok(stream))) => held.push(stream),
                    Some(Ok(Err(error))) if is_refusal(&error) => refused += 1,
                    Some(Ok(Err(error))) => return Err(error),
                    Some(Err(panicked)) => return Err(io::Error::other(panicked)),
                    None => break,
                }
            }
        }
        say(&format!("{} {refused}", held.len()))?;
        io::stdin().lock().read_to_end(&mut Vec::new())?;
        let mut answered = 0;
        for mut stream in held {
            if asked(&mut stream).await.is_ok() {
                answered += 1;
            }
        }
        say(&answered.to_string())
    })
}

fn play_storm(to: &str, from: &str, clients: &str, returns: &str) -> io::Result<()> {
    raise_descriptors()?;
    let to: SocketAddr = to.parse().map_err(io::Error::other)?;
    let from: IpAddr = from.parse().map_err(io::Error::other)?;
    let clients: usize = clients.parse().map_err(io::Error::other)?;
    let returns: usize = returns.parse().map_err(io::Error::other)?;
    runtime()?.block_on(async {
        let mut held = Vec::with_capacity(clients);
        let mut connecting = JoinSet::new();
        for _ in 0..clients {
            while connecting.len() >= CONNECTING_MAX {
                held.extend(connecting.join_next().await.transpose().map_err(io::Error::other)?.transpose()?);
            }
            connecting.spawn(greeted(from, to));
        }
        while let Some(joined) = connecting.join_next().await {
            held.push(joined.map_err(io::Error::other)??);
        }
        say(&format!("{} served", held.len()))?;
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        for stream in held {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut stream = stream;
                loop {
                    // A server that greets says nothing more by itself: this is the end, of whatever kind.
                    let _whatever = stream.read(&mut [0; 64]).await;
                    let lost = Instant::now();
                    let mut refused = 0;
                    stream = loop {
                        match greeted(from, to).await {
                            Ok(stream) => break stream,
                            Err(_) => {
                                refused += 1;
                                tokio::time::sleep(LOOK_EVERY).await;
                            }
                        }
                    };
                    if tell.send((lost, Instant::now(), refused)).is_err() {
                        return;
                    }
                }
            });
        }
        let mut refused = 0;
        let mut first_lost: Option<Instant> = None;
        let mut last_back = Instant::now();
        for _ in 0..returns {
            let Some((lost, back, times)) = told.recv().await else { break };
            first_lost = Some(first_lost.map_or(lost, |first| first.min(lost)));
            last_back = last_back.max(back);
            refused += times;
        }
        let took = last_back.saturating_duration_since(first_lost.unwrap_or(last_back));
        say(&format!("{} {refused}", took.as_millis()))?;
        // Nobody writes there: its end is ours.
        io::stdin().lock().read_to_end(&mut Vec::new()).map(|_| ())
    })
}

async fn greeted(from: IpAddr, to: SocketAddr) -> io::Result<tokio::io::BufReader<TcpStream>> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.bind(SocketAddr::new(from, 0))?;
    let opened = async {
        let mut stream = tokio::io::BufReader::with_capacity(256, socket.connect(to).await?);
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 || Greeting::parse(&line).is_none() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(stream)
    };
    in_time(opened).await
}

async fn asked(stream: &mut tokio::io::BufReader<TcpStream>) -> io::Result<()> {
    use tokio::io::AsyncWriteExt;
    let question = *b"still there?";
    let answered = async {
        stream.get_mut().write_all(&question).await?;
        let mut answer = question.map(|_| 0);
        stream.read_exact(&mut answer).await?;
        if answer == question { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    };
    in_time(answered).await
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let limit: Duration = PATIENCE;
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

fn raise_descriptors() -> io::Result<()> {
    towpath_sys::host::raise_nofile_limit().map(|_| ())
}
