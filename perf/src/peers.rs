//! The subjects of a measurement: Towpath and its peers, found on this machine, started and stopped.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use towpath_sys::process::{Child, MemoryFile};

use crate::cpu::process_tree;
use crate::lab::Host;

/// Connections a subject has to be able to hold. Each takes two descriptors of the usual 20,000.
const CONNECTIONS_MAX: u32 = 8_000;

/// How long a subject may take to end once it is asked to.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// What is shown of a subject's log when it fails.
const LOG_BYTES_MAX: usize = 4096;

/// Where Debian puts nginx's stream module.
const NGINX_STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// A program that balances load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// HAProxy, `mode tcp`.
    Haproxy,
    /// nginx, `stream`.
    Nginx,
    /// Ourselves.
    Towpath,
}

/// A program found on this machine, and how it is tuned.
#[derive(Clone, Debug)]
pub struct Subject {
    /// As asked for: `haproxy`, `haproxy-256k`.
    pub name: String,
    /// Which program.
    pub kind: Kind,
    /// Size of its relay buffers, where it is not the program's default.
    pub buffer_kib: Option<u32>,
    program: PathBuf,
}

/// Where a subject relays from and to.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Where clients connect to.
    pub listen: SocketAddr,
    /// Where the origin is.
    pub server: SocketAddr,
    /// The CPU it runs on.
    pub cpu: usize,
}

/// A subject at work. It is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    log: MemoryFile,
    /// Files that the program was told the paths of.
    _files: Vec<MemoryFile>,
}

/// Why a subject cannot be measured.
#[derive(Debug)]
pub enum Missing {
    /// No such program on this machine.
    Program {
        /// What was asked for.
        name: String,
        /// What to do.
        remedy: String,
    },
    /// Nothing is known by that name.
    Unknown(String),
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Missing::Program { name, remedy } => write!(f, "{name} is not on this machine: {remedy}"),
            Missing::Unknown(name) => {
                write!(
                    f,
                    "`{name}` is no known subject: haproxy, nginx, towpath, each with an optional buffer size as in haproxy-256k"
                )
            }
        }
    }
}

impl std::error::Error for Missing {}

impl Subject {
    /// Finds the program behind a name; `towpath` is where Towpath is expected.
    pub fn find(name: &str, towpath: &Path) -> Result<Subject, Missing> {
        let (base, buffer_kib) = match name.rsplit_once('-') {
            None => (name, None),
            Some((base, size)) => {
                let kib = size.strip_suffix('k').and_then(|digits| digits.parse::<u32>().ok());
                (base, Some(kib.filter(|kib| (1..=65_536).contains(kib)).ok_or_else(|| Missing::Unknown(name.into()))?))
            }
        };
        let kind = match base {
            "haproxy" => Kind::Haproxy,
            "nginx" => Kind::Nginx,
            "towpath" if buffer_kib.is_none() => Kind::Towpath,
            _ => return Err(Missing::Unknown(name.to_owned())),
        };
        let missing = |remedy: &str| Missing::Program { name: name.to_owned(), remedy: remedy.to_owned() };
        let program = match kind {
            Kind::Haproxy => in_path("haproxy").ok_or_else(|| missing("install the Debian package haproxy"))?,
            Kind::Nginx => {
                let program = in_path("nginx")
                    .ok_or_else(|| missing("install the Debian packages nginx-core and libnginx-mod-stream"))?;
                if !Path::new(NGINX_STREAM_MODULE).exists() {
                    return Err(missing(
                        "its stream module is missing; install the Debian package libnginx-mod-stream",
                    ));
                }
                program
            }
            Kind::Towpath if is_program(towpath) => towpath.to_owned(),
            Kind::Towpath => {
                let remedy = format!(
                    "no program {}; build it with `cargo build --release`, or name it with --towpath",
                    towpath.display()
                );
                return Err(missing(&remedy));
            }
        };
        Ok(Subject { name: name.to_owned(), kind, buffer_kib, program })
    }

    /// What the program says about its version.
    pub fn version(&self) -> String {
        let flag = match self.kind {
            Kind::Haproxy | Kind::Nginx => "-v",
            Kind::Towpath => "--version",
        };
        let Ok(output) = Command::new(&self.program).arg(flag).output() else { return "unknown".into() };
        // nginx answers on stderr.
        let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
        String::from_utf8_lossy(&text).lines().next().unwrap_or("unknown").to_owned()
    }

    /// The configuration it is started with.
    pub fn configuration(&self, setting: &Setting, pid_file: &Path) -> String {
        let (template, buffers) = match (self.kind, self.buffer_kib) {
            (Kind::Haproxy, Some(kib)) => {
                (include_str!("../peers/haproxy.cfg"), format!("tune.bufsize {}", u64::from(kib) * 1024))
            }
            (Kind::Haproxy, None) => (include_str!("../peers/haproxy.cfg"), "# tune.bufsize: its default".into()),
            (Kind::Nginx, Some(kib)) => (include_str!("../peers/nginx.conf"), format!("proxy_buffer_size {kib}k;")),
            (Kind::Nginx, None) => (include_str!("../peers/nginx.conf"), "# proxy_buffer_size: its default".into()),
            (Kind::Towpath, _) => (include_str!("../peers/towpath.toml"), String::new()),
        };
        let values = [
            ("buffers", buffers),
            (
                "connections",
                match self.kind {
                    // nginx counts both sides of a relayed connection.
                    Kind::Nginx => (CONNECTIONS_MAX * 2 + 1000).to_string(),
                    Kind::Haproxy | Kind::Towpath => CONNECTIONS_MAX.to_string(),
                },
            ),
            ("cpu", setting.cpu.to_string()),
            ("cpu_mask", format!("1{}", "0".repeat(setting.cpu))),
            ("listen", setting.listen.to_string()),
            ("listen_ip", setting.listen.ip().to_string()),
            ("listen_port", setting.listen.port().to_string()),
            ("module", NGINX_STREAM_MODULE.to_owned()),
            ("pid_file", pid_file.display().to_string()),
            ("server", setting.server.to_string()),
            ("server_ip", setting.server.ip().to_string()),
            ("server_port", setting.server.port().to_string()),
        ];
        values.iter().fold(template.to_owned(), |text, (key, value)| text.replace(&format!("{{{{{key}}}}}"), value))
    }

    /// Starts it on a host. It may not listen yet: see [`Running::ensure_alive`] while waiting for that.
    pub fn start(&self, host: &Host, setting: &Setting) -> io::Result<Running> {
        let pid_file = MemoryFile::create(b"")?;
        let file = MemoryFile::create(self.configuration(setting, &pid_file.path()).as_bytes())?;
        let log = MemoryFile::create(b"")?;
        let mut command = Command::new(&self.program);
        match self.kind {
            // -db: stay in the foreground.
            Kind::Haproxy => command.arg("-db").arg("-f").arg(file.path()),
            Kind::Nginx => command.args(["-e", "stderr", "-c"]).arg(file.path()),
            Kind::Towpath => command.args(["run", "-c"]).arg(file.path()),
        };
        command.stdin(Stdio::null()).stdout(log.writer()?).stderr(log.writer()?);
        let child = host.spawn_on(&[setting.cpu], command)?;
        Ok(Running { name: self.name.clone(), child, log, _files: vec![pid_file, file] })
    }
}

impl Running {
    /// Its processes now.
    pub fn processes(&self) -> io::Result<Vec<u32>> {
        process_tree(self.child.id())
    }

    /// Fails, with what it said last, when it has ended.
    pub fn ensure_alive(&mut self) -> io::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(io::Error::other(format!(
                "{} has ended by itself ({status}); it said:\n{}",
                self.name,
                self.said()
            ))),
        }
    }

    /// Asks it to end and waits; one that does not is killed.
    pub fn stop(mut self) -> io::Result<()> {
        self.ensure_alive()?;
        self.child.terminate()?;
        if self.child.wait_timeout(STOP_DEADLINE)?.is_none() {
            self.child.kill()?;
        }
        Ok(())
    }

    /// The end of what it has said.
    pub fn said(&self) -> String {
        let bytes = self.log.read().unwrap_or_default();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_BYTES_MAX)..]).into_owned()
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps daemons where a user's PATH may not look.
    let extra = ["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(extra).map(|folder| folder.join(program)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(kind: Kind, buffer_kib: Option<u32>) -> Subject {
        Subject { name: "subject".into(), kind, buffer_kib, program: "/bin/true".into() }
    }

    #[test]
    fn every_placeholder_is_filled_in() {
        let setting =
            Setting { listen: "10.88.1.100:80".parse().unwrap(), server: "10.88.2.11:7000".parse().unwrap(), cpu: 3 };
        for kind in [Kind::Haproxy, Kind::Nginx, Kind::Towpath] {
            for buffer_kib in [None, Some(256)] {
                let text = subject(kind, buffer_kib).configuration(&setting, Path::new("/pid"));
                let left: Vec<&str> =
                    text.lines().filter(|line| line.contains("{{") && !line.starts_with('#')).collect();
                assert!(left.is_empty(), "{kind:?}: {left:?}");
            }
        }
        assert!(
            subject(Kind::Nginx, None).configuration(&setting, Path::new("/pid")).contains("worker_cpu_affinity 1000;")
        );
    }

    #[test]
    fn a_name_says_program_and_buffer_size() {
        let nowhere = Path::new("/nonexistent");
        for wrong in ["squid", "haproxy-", "haproxy-256", "haproxy-0k", "towpath-256k", "nginx-fastk"] {
            assert!(matches!(Subject::find(wrong, nowhere), Err(Missing::Unknown(_))), "{wrong}");
        }
        let Err(Missing::Program { remedy, .. }) = Subject::find("towpath", nowhere) else { panic!("found") };
        assert!(remedy.contains("--towpath"));
        assert_eq!(Subject::find("towpath", Path::new("/bin/true")).unwrap().kind, Kind::Towpath);
    }
}
