//! The program while it runs: serving, status, reload, drain, and the demo.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// Within this time every fact must have come true.
const DEADLINE: Duration = Duration::from_secs(30);

/// A directory of its own, taken away at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("towpath-run-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Answers every connection with its name, then keeps it until the client closes.
fn server(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let _ = stream.write_all(name.as_bytes());
                let _ = stream.read(&mut [0; 1]);
            });
        }
    });
    address
}

/// A running towpath whose lines of one stream can be waited for. Killed at the end, however the test ends.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(arguments: &[&str], stream: fn(&mut Child) -> Lines) -> Running {
        let mut command = Command::new(env!("CARGO_BIN_EXE_towpath"));
        let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let reader = stream(&mut child);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let read: Box<dyn Read> = match reader {
                Lines::Out(out) => Box::new(out),
                Lines::Err(err) => Box::new(err),
            };
            for line in BufReader::new(read).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Running { child, lines }
    }

    /// The next line that contains `text`.
    fn line_with(&self, text: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        let mut seen = String::new();
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if line.contains(text) {
                return line;
            }
            seen.push_str(&line);
            seen.push('\n');
        }
        panic!("no line with {text:?} in\n{seen}");
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the process does not end");
            thread::yield_now();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

enum Lines {
    Out(ChildStdout),
    Err(ChildStderr),
}

fn out(child: &mut Child) -> Lines {
    Lines::Out(child.stdout.take().unwrap())
}

fn err(child: &mut Child) -> Lines {
    Lines::Err(child.stderr.take().unwrap())
}

fn towpath(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_towpath")).args(arguments).output().unwrap()
}

/// A daemon in front of two servers.
struct Daemon {
    scratch: Scratch,
    running: Running,
    relay: SocketAddr,
    servers: [SocketAddr; 2],
}

impl Daemon {
    /// Another program may take the port between finding and using it, so it is tried more than once.
    fn start() -> Daemon {
        let scratch = Scratch::new();
        let servers = [server("one"), server("two")];
        for _ in 0..5 {
            let relay = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
            write_config(&scratch.0, relay, servers, "ready");
            let config = scratch.0.join("towpath.toml");
            let running = Running::start(&["run", "-c", config.to_str().unwrap()], err);
            let deadline = Instant::now() + DEADLINE;
            while Instant::now() < deadline {
                match running.lines.recv_timeout(Duration::from_secs(10)) {
                    Ok(line) if line.contains("serving") => return Daemon { scratch, running, relay, servers },
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
        }
        panic!("the daemon does not start");
    }

    fn configure(&self, admin_of_two: &str) {
        write_config(&self.scratch.0, self.relay, self.servers, admin_of_two);
    }

    fn socket(&self) -> PathBuf {
        self.scratch.0.join("control.sock")
    }

    fn status(&self) -> serde_json::Value {
        let output = towpath(&["status", "--json", "--socket", self.socket().to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// A client that is being served, and by whom.
    fn client(&self) -> (TcpStream, String) {
        let mut stream = TcpStream::connect(self.relay).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut name = [0; 3];
        stream.read_exact(&mut name).unwrap();
        (stream, String::from_utf8(name.to_vec()).unwrap())
    }
}

fn write_config(directory: &Path, relay: SocketAddr, servers: [SocketAddr; 2], admin_of_two: &str) {
    let text = format!(
        r#"
[control]
socket = "{}"

[[service]]
name = "web"
vip = "127.0.0.1"
ports = [{}]
balance = "round-robin"
drain_timeout = "5m"

[[service.server]]
name = "one"
address = "127.0.0.1"
port = {}

[[service.server]]
name = "two"
address = "127.0.0.1"
port = {}
admin = "{admin_of_two}"
"#,
        directory.join("control.sock").display(),
        relay.port(),
        servers[0].port(),
        servers[1].port()
    );
    fs::write(directory.join("towpath.toml"), text).unwrap();
}

#[test]
fn status_shows_what_a_running_towpath_does() {
    let daemon = Daemon::start();
    let (_one, _two) = (daemon.client(), daemon.client());
    let status = daemon.status();
    assert_eq!(status["services"][0]["name"], "web");
    assert_eq!(status["services"][0]["connections"], 2);
    let output = towpath(&["status", "--socket", daemon.socket().to_str().unwrap()]);
    let page = String::from_utf8(output.stdout).unwrap();
    for text in ["web  ● up", "one", "two", "2 open", "workers", "limits"] {
        assert!(page.contains(text), "{text:?} is missing in\n{page}");
    }
}

#[test]
fn status_is_shown_again_and_again_until_somebody_ends_it() {
    let daemon = Daemon::start();
    let socket = daemon.socket();
    let mut watching = Running::start(&["status", "--watch", "1", "--json", "--socket", socket.to_str().unwrap()], out);
    let pages: Vec<serde_json::Value> =
        (0..2).map(|_| serde_json::from_str(&watching.line_with("uptime_seconds")).unwrap()).collect();
    assert_eq!(pages[1]["services"][0]["name"], "web");
    // As Ctrl-C does, but that one is ignored where a shell has started the tests in its background.
    watching.signal("TERM");
    assert!(!watching.wait().success());
}

#[test]
fn top_draws_on_a_terminal_and_leaves_it_as_it_was() {
    let daemon = Daemon::start();
    let _client = daemon.client();
    // script(1) gives it a terminal of its own; one that nobody has is of no size.
    let top =
        format!("stty rows 24 cols 100; {} top --socket {}", env!("CARGO_BIN_EXE_towpath"), daemon.socket().display());
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &top, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR");
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut keys, mut picture) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut terminal = Running { child, lines: mpsc::channel().1 };
    let mut drawn = String::new();
    let deadline = Instant::now() + DEADLINE;
    let mut until = |text: &str| {
        let mut buffer = [0; 4096];
        // It draws every second, so that no read waits for ever.
        while !drawn.contains(text) {
            assert!(Instant::now() < deadline, "{text:?} is missing in\n{drawn:?}");
            let read = picture.read(&mut buffer).unwrap();
            assert!(read > 0, "{text:?} is missing in\n{drawn:?}");
            drawn.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    };
    until("\x1b[?1049h");
    until("conn/s");
    keys.write_all(b"2").unwrap();
    // Only what has changed is drawn: the second row is new as a whole.
    until("web/two");
    keys.write_all(b"q").unwrap();
    until("\x1b[?1049l");
    assert!(terminal.wait().success());
}

#[test]
fn top_says_what_to_use_where_there_is_no_terminal() {
    let output = towpath(&["top"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("status --watch"), "{output:?}");
}

#[test]
fn sighup_takes_over_admin_states_and_keeps_everything_on_an_error() {
    let daemon = Daemon::start();
    daemon.configure("drain");
    daemon.running.signal("HUP");
    daemon.running.line_with("is in effect");
    for _ in 0..4 {
        assert_eq!(daemon.client().1, "one", "a draining server takes no new clients");
    }
    let before = daemon.status()["generation"].clone();
    daemon.configure("asleep");
    daemon.running.signal("HUP");
    let place = daemon.running.line_with("towpath.toml:");
    assert!(place.contains("towpath.toml:21:"), "{place}");
    daemon.running.line_with("nothing is changed");
    assert_eq!(daemon.status()["generation"], before);
    assert_eq!(daemon.client().1, "one");
}

#[test]
fn sigterm_lets_connections_finish_and_a_second_one_cuts_them() {
    let mut daemon = Daemon::start();
    let (mut kept, _) = daemon.client();
    let (finishes, _) = daemon.client();
    daemon.running.signal("TERM");
    let line = daemon.running.line_with("may finish");
    assert!(line.contains("2 connections may finish for up to 5 min 0 s (drain_timeout of web)"), "{line}");
    drop(finishes);
    let deadline = Instant::now() + DEADLINE;
    while daemon.status()["services"][0]["connections"] != 1 {
        assert!(Instant::now() < deadline, "the closed connection is still counted");
    }
    assert!(daemon.running.child.try_wait().unwrap().is_none(), "one connection is still open");
    daemon.running.signal("TERM");
    daemon.running.line_with("closing 1 connection at once");
    daemon.running.line_with("1 connection was cut");
    assert_eq!(daemon.running.wait().code(), Some(0));
    // Cut means closed or reset, and not left hanging.
    assert!(matches!(kept.read(&mut [0; 1]), Ok(0) | Err(_)));
    let output = towpath(&["status", "--socket", daemon.socket().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(5), "nobody answers any more");
}

#[test]
fn sigint_without_connections_ends_at_once_with_0() {
    let mut daemon = Daemon::start();
    daemon.running.signal("INT");
    daemon.running.line_with("no connection is open");
    assert_eq!(daemon.running.wait().code(), Some(0));
    assert!(!daemon.socket().exists(), "the control socket is taken away");
}

#[test]
fn demo_loses_nothing_but_what_was_in_flight_on_the_stopped_origin() {
    let output = towpath(&["demo", "--seconds", "2", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!((&report["passed"], &report["failed"]), (&true.into(), &0.into()), "{report:#}");
    let of_origins: u64 =
        report["origins"].as_array().unwrap().iter().map(|origin| origin["requests"].as_u64().unwrap()).sum();
    assert_eq!(report["requests"].as_u64().unwrap(), of_origins);
}

#[test]
fn demo_keep_serves_until_ctrl_c() {
    let mut demo = Running::start(&["demo", "--seconds", "2", "--keep"], out);
    let line = demo.line_with("curl http://");
    let address = line.trim().strip_prefix("curl http://").unwrap().to_owned();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("hello from "), "{answer}");
    demo.signal("INT");
    assert_eq!(demo.wait().code(), Some(0));
}
