//! The program under test, as its user starts it.

// Each test program uses a part of this.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The program with these arguments; what it says is kept from the test's own output.
pub(crate) fn towpath_perf(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_towpath-perf"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A folder for one run, gone with this.
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(crate) fn new(name: &str) -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("towpath-perf-test-{}-{number}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Folder { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Has a program run in it and keep its temporary files there.
    pub(crate) fn hold<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.current_dir(&self.path).env("TMPDIR", &self.path)
    }

    /// Names of what is in it.
    pub(crate) fn content(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.path).unwrap().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.path);
    }
}

/// A program in the place of Towpath, written in Python, that is called with the path of Towpath's configuration. Gone with this.
pub(crate) struct Impostor {
    folder: Folder,
}

impl Impostor {
    /// `body` is a relay's answer to a connection, or more; see the head.
    pub(crate) fn new(name: &str, body: &str) -> Impostor {
        let folder = Folder::new(name);
        let program = folder.path().join("towpath");
        fs::write(&program, format!("{HEAD}{body}")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        Impostor { folder }
    }

    pub(crate) fn path(&self) -> String {
        self.folder.path().join("towpath").display().to_string()
    }
}

/// Reads the configuration and listens. A process that starts a relay of another kind has to do no more than what differs.
const HEAD: &str = r#"#!/usr/bin/env python3
import os, re, select, signal, socket, struct, sys, threading, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
if "--version" in sys.argv:
    print("impostor")
    sys.exit(0)
text = open(sys.argv[-1]).read()
vip = re.search('vip = "(.*)"', text)[1]
port = int(re.search('ports = (.*)', text)[1])
server = (re.search('address = "(.*)"', text)[1], int(re.search('\nport = (.*)', text)[1]))
def listen():
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((vip, port))
    listener.listen(512)
    return listener
def pump(source, sink, change):
    passed = 0
    try:
        while data := source.recv(65536):
            sink.sendall(change(passed, data))
            passed += len(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
def relay(listener, change):
    while True:
        client, _ = listener.accept()
        try:
            origin = socket.create_connection(server)
        except OSError:
            # The run has failed meanwhile, and its origin is gone.
            client.close()
            continue
        for args in ((client, origin, lambda _, data: data), (origin, client, change)):
            threading.Thread(target=pump, args=args, daemon=True).start()
"#;

/// Waits for a fact.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not so after {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Processes now, each with the id of its parent and its command line.
pub(crate) fn processes() -> Vec<(u32, u32, String)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let (_, after) = stat.rsplit_once(')')?;
            let mut fields = after.split_whitespace();
            // A zombie runs no more; whoever adopted it has yet to notice.
            let alive = fields.next()? != "Z";
            let parent = fields.next()?.parse().ok()?;
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            alive.then(|| (pid, parent, String::from_utf8_lossy(&command).replace('\0', " ")))
        })
        .collect()
}

/// A process and all that descend from it.
pub(crate) fn tree(root: u32) -> Vec<u32> {
    let all = processes();
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(&parent) = tree.get(next) {
        tree.extend(all.iter().filter(|(_, of, _)| *of == parent).map(|(pid, _, _)| *pid));
        next += 1;
    }
    tree
}

/// Network namespaces that these processes are in or hold open.
pub(crate) fn namespaces_of(pids: &[u32]) -> BTreeSet<PathBuf> {
    let holders = pids.iter().flat_map(|pid| {
        let folder = Path::new("/proc").join(pid.to_string());
        let tasks = fs::read_dir(folder.join("task")).into_iter().flatten().flatten();
        let mut links: Vec<PathBuf> = tasks.map(|task| task.path().join("ns/net")).collect();
        links.extend(fs::read_dir(folder.join("fd")).into_iter().flatten().flatten().map(|fd| fd.path()));
        links
    });
    holders.filter_map(|link| fs::read_link(link).ok()).filter(|to| to.to_string_lossy().starts_with("net:[")).collect()
}

/// Those of all processes.
pub(crate) fn namespaces() -> BTreeSet<PathBuf> {
    namespaces_of(&processes().into_iter().map(|(pid, _, _)| pid).collect::<Vec<_>>())
}
