//! The commands that ask a running towpath by its API, with the real program: by the socket, by URL and token, and what they say when nobody answers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

/// A folder, and perhaps a running daemon.
struct Lab {
    folder: TempDir,
    daemon: Option<Child>,
    port: u16,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Lab {
    fn new() -> Lab {
        Lab { folder: tempfile::tempdir().unwrap(), daemon: None, port: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_towpath"));
        command.current_dir(self.folder.path());
        command
    }

    fn towpath(&self, arguments: &str) -> Output {
        self.command().args(arguments.split_whitespace()).output().unwrap()
    }

    /// What a command prints that ends well.
    fn prints(&self, arguments: &str) -> String {
        let done = self.towpath(arguments);
        assert_eq!(done.status.code(), Some(0), "{arguments}: {}", text(&done.stderr));
        text(&done.stdout)
    }

    /// Starts a daemon with a listener for who has the token.
    fn start(&mut self, hash: &str) {
        for _ in 0..20 {
            let (port, service) = (free_port(), free_port());
            let config = format!(
                "[control]\nsocket = \"control.sock\"\nlisten = \"127.0.0.1:{port}\"\n\
                 [[control.user]]\nname = \"ci\"\nrole = \"operator\"\n{hash}\n\
                 [[service]]\nname = \"web\"\nvip = \"127.0.0.1\"\nports = [{service}]\nmax_connections = 5\n\
                 [[service.server]]\nname = \"one\"\naddress = \"127.0.0.1\"\nport = 9\n"
            );
            fs::write(self.path("towpath.toml"), config).unwrap();
            let mut command = self.command();
            command.args(["run", "-c", "towpath.toml"]).stderr(Stdio::piped()).stdout(Stdio::null());
            let mut daemon = command.spawn().unwrap();
            let mut log = BufReader::new(daemon.stderr.take().unwrap());
            let (mut line, mut told) = (String::new(), String::new());
            while log.read_line(&mut line).unwrap() > 0 && !line.contains("serving:") {
                told.push_str(&std::mem::take(&mut line));
            }
            if line.contains("serving:") {
                // Read on, so that it is never stuck with what it says.
                std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
                (self.daemon, self.port) = (Some(daemon), port);
                return;
            }
            daemon.wait().unwrap();
            assert!(told.contains("in use") || told.contains("listens there"), "{told}");
        }
        panic!("no port is free");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _killed = daemon.kill();
            let _ended = daemon.wait();
        }
    }
}

#[test]
fn credentials_are_made_for_the_file_and_kept_from_others() {
    let lab = Lab::new();
    let hash = lab.prints("credential token --out ci.token");
    assert!(hash.starts_with("token_hash = \"sha256:") && hash.lines().count() == 1, "{hash}");
    assert_eq!(fs::metadata(lab.path("ci.token")).unwrap().permissions().mode() & 0o777, 0o600);
    let token = fs::read_to_string(lab.path("ci.token")).unwrap();
    assert!(token.starts_with("towpath_") && token.len() > 64, "{token}");
    assert_eq!(lab.towpath("credential token --out ci.token").status.code(), Some(1), "it is not overwritten");
    assert_eq!(fs::read_to_string(lab.path("ci.token")).unwrap(), token);
    let with_input = |input: &str| {
        let mut command = lab.command();
        command.args(["credential", "password"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let made = text(&with_input("correct horse\nmore").stdout);
    let hash = made.trim().strip_prefix("password_hash = \"").unwrap().trim_end_matches('"').to_owned();
    assert!(towpath_config::model::PasswordHash::read(&hash).is_some(), "{made}");
    let short = with_input("short\n");
    assert_eq!((short.status.code(), text(&short.stdout)), (Some(1), String::new()));
}

#[test]
fn every_command_asks_by_socket_or_by_url() {
    let mut lab = Lab::new();
    let hash = lab.prints("credential token --out ci.token");
    lab.start(&hash);
    let url = format!("--url http://127.0.0.1:{} --token-file ci.token", lab.port);
    for at in ["--socket control.sock", &url] {
        assert!(lab.prints(&format!("status {at}")).contains("web"), "{at}");
        assert!(lab.prints(&format!("server drain web/one --reason trial {at}")).contains("drain"), "{at}");
        assert!(lab.prints(&format!("server ready web/one {at}")).contains("ready"), "{at}");
        let events = lab.prints(&format!("events {at}"));
        assert!(events.contains("trial") && events.lines().all(|line| line.contains("Z  ")), "{events}");
        let limits = lab.prints(&format!("limits --all {at}"));
        assert!(limits.contains("connections") && limits.contains("service connections of web"), "{limits}");
        assert!(lab.prints(&format!("certs {at}")).starts_with("no certificates"));
        let json: serde_json::Value =
            serde_json::from_str(&lab.prints(&format!("events --kind admin --limit 1 --json {at}"))).unwrap();
        assert_eq!(json["events"].as_array().unwrap().len(), 1, "{json}");
    }
    let events = lab.prints("events --socket control.sock");
    assert!(events.contains("by ci (127.0.0.1, token)"), "{events}");
    let refused = |arguments: &str| {
        let done = lab.towpath(arguments);
        (done.status.code(), text(&done.stderr))
    };
    let (code, told) = refused(&format!("status --url http://127.0.0.1:{}", lab.port));
    assert!(code == Some(1) && told.contains("who is asking?"), "{told}");
    let (code, told) = refused("status --url http://lb.example.org:9443 --token-file ci.token");
    assert!(code == Some(1) && told.contains("write https://"), "{told}");
    let (code, told) = refused("status --token-file ci.token");
    assert!(code == Some(2) && told.contains("--url"), "{told}");
    let (code, told) = refused(&format!("status {url} --socket control.sock"));
    assert!(code == Some(2) && told.contains("cannot be used with"), "{told}");
    let (code, told) = refused(&format!("limits --url http://127.0.0.1:{}", free_port()));
    assert!(code == Some(5) && told.contains("control.listen"), "{told}");
}

#[test]
fn who_follows_hears_what_happens() {
    let mut lab = Lab::new();
    let hash = lab.prints("credential token --out ci.token");
    lab.start(&hash);
    let mut command = lab.command();
    command.args(["events", "--follow", "--json", "--kind", "admin", "--socket", "control.sock"]);
    let mut follower = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap());
    let mut next = || {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        serde_json::from_str::<serde_json::Value>(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    };
    for (verb, reason) in [("drain", "first"), ("ready", "second"), ("halt", "third")] {
        lab.prints(&format!("server {verb} web/one --reason {reason} --socket control.sock"));
        let event = next();
        assert!(event["reason"].as_str().unwrap().contains(reason), "{event}");
    }
    follower.kill().unwrap();
    follower.wait().unwrap();
}
