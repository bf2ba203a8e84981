//! Who stands between clients and the server, and how it shares its connections.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use towpath_sys::process::{Child, MemoryFile};

use crate::lab::Host;
use crate::peers::{self, Missing};

/// How long it may take until it listens, and until it has ended.
const DEADLINE: Duration = Duration::from_secs(20);
/// SIGHUP: reload.
const HANGUP: i32 = 1;

/// How clients share connections to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// HAProxy: first requests of clients, too, over connections that were used more than once.
    Aggressive,
    /// HAProxy: every request over any connection.
    Always,
    /// nginx: over any that it keeps.
    Keepalive,
    /// Not at all.
    Never,
    /// HAProxy, Towpath: as far as they take it to be safe.
    Safe,
}

impl fmt::Display for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Sharing::Aggressive => "aggressive",
            Sharing::Always => "always",
            Sharing::Keepalive => "keepalive",
            Sharing::Never => "never",
            Sharing::Safe => "safe",
        })
    }
}

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Haproxy,
    Nginx,
    Towpath,
}

/// A program and its way to share.
#[derive(Clone, Debug)]
pub struct Subject {
    kind: Kind,
    sharing: Sharing,
    program: PathBuf,
    version: String,
}

/// A subject at work. It is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: MemoryFile,
    reloads: bool,
    _files: Vec<MemoryFile>,
    /// Its control socket, if it has one.
    control: PathBuf,
}

impl Subject {
    /// Those that a name means: `haproxy`, `nginx` and `towpath` in the modes that share, or one mode, as in `haproxy-never`.
    pub fn find(name: &str, towpath: &Path) -> Result<Vec<Subject>, Missing> {
        use Sharing::{Aggressive, Always, Keepalive, Never, Safe};
        let (base, mode) = name.split_once('-').map_or((name, None), |(base, mode)| (base, Some(mode)));
        let (kind, program, all, usual): (_, _, &[Sharing], &[Sharing]) = match base {
            "haproxy" => (Kind::Haproxy, "haproxy", &[Aggressive, Always, Never, Safe], &[Safe, Always]),
            "nginx" => (Kind::Nginx, "nginx-http", &[Keepalive, Never], &[Keepalive]),
            "towpath" => (Kind::Towpath, "towpath", &[Never, Safe], &[Safe]),
            _ => return Err(Missing::Unknown(name.into())),
        };
        let found = peers::Subject::find(program, towpath)?;
        let wanted: Vec<Sharing> = match mode {
            None => usual.to_vec(),
            Some(mode) => all.iter().copied().filter(|sharing| sharing.to_string() == mode).collect(),
        };
        if wanted.is_empty() {
            return Err(Missing::Unknown(name.into()));
        }
        let of = |sharing| Subject { kind, sharing, program: found.program().to_owned(), version: found.version() };
        Ok(wanted.into_iter().map(of).collect())
    }

    /// As it is called in results.
    pub fn name(&self) -> String {
        let name = match self.kind {
            Kind::Haproxy => "haproxy",
            Kind::Nginx => "nginx",
            Kind::Towpath => "towpath",
        };
        format!("{name}-{}", self.sharing)
    }

    /// What the program says about its version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Starts it on a host, and waits until it listens.
    pub fn start(&self, host: &Host, listen: SocketAddr, server: SocketAddr) -> io::Result<Running> {
        let (pid_file, log) = (MemoryFile::create(b"")?, MemoryFile::create(b"")?);
        let control = std::env::temp_dir().join(format!("towpath-identity-{}.sock", std::process::id()));
        let sharing = match (self.kind, self.sharing) {
            (Kind::Nginx, Sharing::Keepalive) => "keepalive 64;".into(),
            (Kind::Nginx, _) => String::new(),
            (_, sharing) => sharing.to_string(),
        };
        let template = match self.kind {
            Kind::Haproxy => include_str!("../../peers/identity/haproxy.cfg"),
            Kind::Nginx => include_str!("../../peers/identity/nginx.conf"),
            Kind::Towpath => include_str!("../../peers/identity/towpath.toml"),
        };
        let values = [
            ("control", control.display().to_string()),
            ("listen_ip", listen.ip().to_string()),
            ("listen_port", listen.port().to_string()),
            ("listen", listen.to_string()),
            ("pid_file", pid_file.path().display().to_string()),
            ("server_ip", server.ip().to_string()),
            ("server_port", server.port().to_string()),
            ("server", server.to_string()),
            ("sharing", sharing),
        ];
        let fill = |text: String, (key, value): &(&str, String)| text.replace(&format!("{{{{{key}}}}}"), value);
        let file = MemoryFile::create(values.iter().fold(template.to_owned(), fill).as_bytes())?;
        let mut command = Command::new(&self.program);
        match self.kind {
            // -db: stay in the foreground.
            Kind::Haproxy => command.arg("-db").arg("-f").arg(file.path()),
            Kind::Nginx => command.args(["-e", "stderr", "-c"]).arg(file.path()),
            Kind::Towpath => command.args(["run", "-c"]).arg(file.path()),
        };
        command.stdin(Stdio::null()).stdout(log.writer()?).stderr(log.writer()?);
        let child = host.spawn(command)?;
        // HAProxy without its master starts anew only.
        let reloads = self.kind != Kind::Haproxy;
        let mut running = Running { child, log, reloads, _files: vec![pid_file, file], control };
        let start = Instant::now();
        while host.run(|| TcpStream::connect_timeout(&listen, DEADLINE))?.is_err() {
            if let Some(status) = running.child.wait_timeout(Duration::from_millis(20))? {
                return Err(io::Error::other(format!("{} has ended ({status}): {}", self.name(), running.said())));
            }
            if start.elapsed() > DEADLINE {
                return Err(io::Error::other(format!("{} does not listen: {}", self.name(), running.said())));
            }
        }
        Ok(running)
    }
}

impl Running {
    /// Has it read its configuration again, where it can without a new process.
    pub fn reload(&mut self) -> io::Result<()> {
        if self.reloads { self.child.signal(HANGUP) } else { Ok(()) }
    }

    /// Asks it to end, and waits for that; one that does not is killed.
    pub fn stop(mut self) -> io::Result<()> {
        self.child.terminate()?;
        if self.child.wait_timeout(DEADLINE)?.is_none() {
            self.child.kill()?;
        }
        Ok(())
    }

    /// What it has said.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.log.read().unwrap_or_default()).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that ended in good order has removed it.
        let _ = std::fs::remove_file(&self.control);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_the_modes_that_share_or_the_one_it_says() {
        let here = Path::new("/bin/true");
        let names = |name: &str| -> Vec<String> {
            Subject::find(name, here).unwrap_or_default().iter().map(Subject::name).collect()
        };
        assert_eq!(names("towpath"), ["towpath-safe"]);
        assert_eq!(names("towpath-never"), ["towpath-never"]);
        for wrong in ["towpath-always", "squid", "nginx-safe", "haproxy-"] {
            assert!(
                matches!(Subject::find(wrong, here), Err(Missing::Unknown(_) | Missing::Program { .. })),
                "{wrong}"
            );
        }
    }
}
