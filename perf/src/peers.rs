//! The subjects of a measurement: Towpath and its peers, found on this machine, started and stopped.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use towpath_config::model::{Forwarding, Plane};
use towpath_sys::process::{Child, MemoryFile};
use towpath_sys::socket::Transport;

use crate::certificate::{Certificate, KeyKind};
use crate::cpu::process_tree;
use crate::lab::Host;
use crate::message::Framing;

/// Connections a subject has to be able to hold. Each takes two descriptors of the usual 20,000.
const CONNECTIONS_MAX: u32 = 8_200;

/// How long a subject may take to end once it is asked to.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// What is shown of a subject's log when it fails.
const LOG_BYTES_MAX: usize = 4096;

/// Connections to the server that nginx keeps, for the life of a turn.
const NGINX_KEEPALIVE: &str = "keepalive 1024; keepalive_timeout 1h; keepalive_requests 1000000000;";

/// Where Debian puts nginx's stream module.
const NGINX_STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// What balances load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// HAProxy, `mode tcp`.
    Haproxy,
    /// hitch, which ends TLS and does nothing else.
    Hitch,
    /// The kernel's address translation, set up by `nft`. It has no process: packets pass in the receive work of their host.
    Kernel,
    /// nginx, `stream`.
    Nginx,
    /// nginx, `http`: it ends TLS and passes requests on.
    NginxHttp,
    /// Whatever answers at an address across a real wire; not ours to start.
    Remote,
    /// Ourselves.
    Towpath,
}

impl Kind {
    /// Whether it relays datagrams.
    pub fn relays_datagrams(self) -> bool {
        match self {
            // haproxy#62: asked for since 2019; only its log forwarding and QUIC listen on UDP.
            Kind::Haproxy | Kind::Hitch | Kind::NginxHttp => false,
            Kind::Kernel | Kind::Nginx | Kind::Remote | Kind::Towpath => true,
        }
    }

    /// Whether it relays what is not TLS.
    pub fn relays_plain(self) -> bool {
        !matches!(self, Kind::Hitch | Kind::NginxHttp)
    }

    /// Whether it ends TLS, and speaks it to servers as well where that is asked for.
    pub fn ends_tls(self, reencrypts: bool) -> bool {
        match self {
            Kind::Haproxy | Kind::Nginx | Kind::NginxHttp | Kind::Remote | Kind::Towpath => true,
            Kind::Hitch => !reencrypts,
            Kind::Kernel => false,
        }
    }

    /// Whether it balances HTTP; `nginx` is nginx's `http` there.
    pub fn balances_http(self) -> bool {
        match self {
            Kind::Haproxy | Kind::Nginx | Kind::Remote | Kind::Towpath => true,
            Kind::Hitch | Kind::Kernel | Kind::NginxHttp => false,
        }
    }

    /// How messages have to stand in what it relays.
    pub fn framing(self) -> Framing {
        match self {
            Kind::NginxHttp => Framing::Http,
            Kind::Haproxy | Kind::Hitch | Kind::Kernel | Kind::Nginx | Kind::Remote | Kind::Towpath => Framing::Bare,
        }
    }
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

/// Source addresses and ports for connections to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Addresses of the balancer, used for nothing else.
    pub addresses: Vec<IpAddr>,
    /// Ports at each.
    pub ports: RangeInclusive<u16>,
}

impl Pool {
    /// Connections to one server that it has room for.
    pub fn capacity(&self) -> usize {
        self.addresses.len() * self.ports.len()
    }

    /// As in `20000-22999`.
    pub fn range(&self) -> String {
        format!("{}-{}", self.ports.start(), self.ports.end())
    }
}

/// Whose a connection to a server is that carries requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerConnections {
    /// As each program has it by default. nginx keeps none by default: it keeps them for anybody here.
    Default,
    /// One client's connection has it, and takes it along.
    Own,
    /// Anybody's, from the first request of a client on.
    Shared,
}

/// What and how a subject relays.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Where clients connect to.
    pub listen: SocketAddr,
    /// Where the origin is.
    pub server: SocketAddr,
    /// The CPU it runs on.
    pub cpu: usize,
    /// What it relays.
    pub transport: Transport,
    /// (Towpath) Which plane relays it. The packet plane's addresses are its own, not the kernel's.
    pub plane: Plane,
    /// Whose address the server sees: with half-NAT, the client's.
    pub forwarding: Forwarding,
    /// (Towpath's packet plane) Flows at the same time; its default without a number.
    pub flows: Option<usize>,
    /// Where connections to the server come from; the subject's choice without one.
    pub pool: Option<Pool>,
    /// (Towpath and the kernel) Whether clients go to the server itself, by way of the subject.
    pub is_routed: bool,
    /// What it ends TLS with, if it does.
    pub tls: Option<TlsSetting>,
    /// As a balancer of HTTP: whose its connections to the server are; `None`: it relays bytes.
    pub http: Option<ServerConnections>,
}

/// How a subject ends TLS, beside what it relays as it comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSetting {
    /// Where clients connect to, at the address of the other service.
    pub listen: SocketAddr,
    /// Key of its certificate.
    pub key: KeyKind,
    /// Whether TLS goes on towards the server.
    pub reencrypts: bool,
    /// (Towpath) CPUs for handshakes alone; none: they share the subject's.
    pub pool_cpus: Vec<usize>,
}

/// Where what a configuration names is found.
#[derive(Debug)]
pub struct Places {
    /// For the id of the process.
    pub pid: PathBuf,
    /// For the control socket.
    pub control: PathBuf,
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Both.
    pub bundle: PathBuf,
}

/// A subject at work. It is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    name: String,
    /// None for what runs in the kernel or elsewhere.
    child: Option<Child>,
    log: MemoryFile,
    /// Files that the program was told the paths of.
    _files: Vec<MemoryFile>,
    /// (Towpath) Its program, and where it tells its status.
    control: Option<(PathBuf, ControlPath)>,
}

/// A path for a control socket that nobody else has. What is there goes with it.
#[derive(Debug)]
struct ControlPath(PathBuf);

impl ControlPath {
    fn new() -> ControlPath {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        ControlPath(std::env::temp_dir().join(format!("towpath-perf-{}-{number}.sock", std::process::id())))
    }
}

impl Drop for ControlPath {
    fn drop(&mut self) {
        // A subject that ended in good order has removed it.
        let _ = std::fs::remove_file(&self.0);
    }
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
                    "`{name}` is no known subject: haproxy, hitch, kernel, nginx, nginx-http, towpath; haproxy and nginx with an optional buffer size, as in haproxy-256k"
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
            None | Some((_, "http")) => (name, None),
            Some((base, size)) => {
                let kib = size.strip_suffix('k').and_then(|digits| digits.parse::<u32>().ok());
                (base, Some(kib.filter(|kib| (1..=65_536).contains(kib)).ok_or_else(|| Missing::Unknown(name.into()))?))
            }
        };
        let kind = match base {
            "haproxy" => Kind::Haproxy,
            "hitch" if buffer_kib.is_none() => Kind::Hitch,
            "nginx" => Kind::Nginx,
            "nginx-http" => Kind::NginxHttp,
            "kernel" if buffer_kib.is_none() => Kind::Kernel,
            "towpath" if buffer_kib.is_none() => Kind::Towpath,
            _ => return Err(Missing::Unknown(name.to_owned())),
        };
        let missing = |remedy: &str| Missing::Program { name: name.to_owned(), remedy: remedy.to_owned() };
        let program = match kind {
            Kind::Haproxy => in_path("haproxy").ok_or_else(|| missing("install the Debian package haproxy"))?,
            Kind::Hitch => in_path("hitch").ok_or_else(|| missing("install the Debian package hitch"))?,
            Kind::Kernel => in_path("nft").ok_or_else(|| missing("install the Debian package nftables"))?,
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
            Kind::NginxHttp => in_path("nginx").ok_or_else(|| missing("install the Debian package nginx-core"))?,
            Kind::Remote => return Err(Missing::Unknown(name.to_owned())),
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

    /// Whatever answers at the far end of a wire.
    pub fn remote(target: SocketAddr) -> Subject {
        Subject { name: target.to_string(), kind: Kind::Remote, buffer_kib: None, program: PathBuf::new() }
    }

    /// Where it was found.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// What the program says about its version.
    pub fn version(&self) -> String {
        let flag = match self.kind {
            Kind::Haproxy | Kind::Nginx | Kind::NginxHttp => "-v",
            Kind::Hitch | Kind::Kernel | Kind::Towpath => "--version",
            Kind::Remote => return "unknown".into(),
        };
        let Ok(output) = Command::new(&self.program).arg(flag).output() else { return "unknown".into() };
        // nginx answers on stderr.
        let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
        String::from_utf8_lossy(&text).lines().next().unwrap_or("unknown").to_owned()
    }

    /// The configuration it is started with.
    pub fn configuration(&self, setting: &Setting, places: &Places) -> String {
        let template = match (self.kind, setting.http) {
            (Kind::Haproxy, None) => include_str!("../peers/haproxy.cfg"),
            (Kind::Haproxy, Some(_)) => include_str!("../peers/haproxy-http.cfg"),
            (Kind::Nginx, None) => include_str!("../peers/nginx.conf"),
            (Kind::Nginx, Some(_)) => include_str!("../peers/nginx-web.conf"),
            (Kind::NginxHttp, _) => include_str!("../peers/nginx-http.conf"),
            (Kind::Hitch, _) => include_str!("../peers/hitch.conf"),
            // Without a hook it translates and tracks nothing.
            (Kind::Kernel, _) if setting.is_routed => "table {{ip}} relay {\n}\n",
            (Kind::Kernel, _) => include_str!("../peers/kernel.nft"),
            (Kind::Remote, _) => return String::new(),
            (Kind::Towpath, None) => include_str!("../peers/towpath.toml"),
            (Kind::Towpath, Some(_)) => include_str!("../peers/towpath-http.toml"),
        };
        let buffers = match (self.kind, self.buffer_kib, setting.http) {
            (Kind::Haproxy, Some(kib), _) => format!("tune.bufsize {}", u64::from(kib) * 1024),
            (Kind::Haproxy, None, _) => "# tune.bufsize: its default".into(),
            (Kind::Nginx, Some(kib), None) => format!("proxy_buffer_size {kib}k;"),
            // As many as it has by default.
            (Kind::Nginx, Some(kib), Some(_)) => {
                format!("proxy_buffer_size {kib}k; proxy_buffers 8 {kib}k; proxy_busy_buffers_size {}k;", 2 * kib)
            }
            (Kind::Nginx, None, _) => "# proxy_buffer_size: its default".into(),
            _ => String::new(),
        };
        let (protocol, nginx_transport, backlog) = match setting.transport {
            Transport::Tcp => ("tcp", "", " backlog=4096"),
            Transport::Udp => ("udp", "udp", ""),
        };
        let pool = setting.pool.as_ref();
        let (nginx_sources, nginx_bind) = pool.map_or_else(Default::default, nginx_pool);
        let tls = setting.tls.as_ref();
        let values = [
            // First: what stands in it is filled in by those that follow.
            ("tls", tls.map_or_else(String::new, |_| self.tls_template(setting.http).to_owned())),
            ("tls_scheme", if tls.is_some() { "s".into() } else { String::new() }),
            ("tls_listen", tls.map_or_else(String::new, |tls| tls.listen.to_string())),
            ("tls_mode", if tls.is_some_and(|tls| tls.reencrypts) { "re-encrypt".into() } else { "terminate".into() }),
            ("tls_port", tls.map_or_else(String::new, |tls| tls.listen.port().to_string())),
            (
                "tls_server",
                if tls.is_some_and(|tls| tls.reencrypts) { self.tls_server().into() } else { String::new() },
            ),
            ("tls_threads", tls.map_or_else(String::new, |tls| tls_threads(tls, setting.cpu))),
            ("bundle", places.bundle.display().to_string()),
            ("certificate", places.certificate.display().to_string()),
            ("key", places.key.display().to_string()),
            ("backlog", backlog.to_owned()),
            ("bind", nginx_bind),
            ("buffers", buffers),
            ("control", places.control.display().to_string()),
            (
                "connections",
                match self.kind {
                    // nginx counts both sides of a relayed connection.
                    Kind::Nginx | Kind::NginxHttp => (CONNECTIONS_MAX * 2 + 1000).to_string(),
                    Kind::Haproxy | Kind::Hitch | Kind::Kernel | Kind::Remote | Kind::Towpath => {
                        CONNECTIONS_MAX.to_string()
                    }
                },
            ),
            ("cpu", setting.cpu.to_string()),
            ("cpu_mask", format!("1{}", "0".repeat(setting.cpu))),
            ("limits", setting.flows.map_or_else(String::new, |flows| format!("[limits]\nflows = {flows}\n\n"))),
            ("listen", setting.listen.to_string()),
            ("ip", family_word(setting).to_owned()),
            ("listen_ip", setting.listen.ip().to_string()),
            ("listen_port", setting.listen.port().to_string()),
            ("module", NGINX_STREAM_MODULE.to_owned()),
            ("pid_file", places.pid.display().to_string()),
            ("plane", towpath_plane(setting)),
            ("protocol", protocol.to_owned()),
            ("reuse", setting.http.map_or_else(String::new, |connections| self.reuse(connections).to_owned())),
            ("router", if setting.is_routed { "[router]\nenabled = true\n\n".into() } else { String::new() }),
            ("server", setting.server.to_string()),
            ("server_ip", setting.server.ip().to_string()),
            ("server_port", setting.server.port().to_string()),
            ("servers", haproxy_servers(setting)),
            ("source", pool.map_or_else(String::new, towpath_pool)),
            ("sources", nginx_sources),
            (
                "translation",
                match (setting.forwarding, pool) {
                    (Forwarding::HalfNat, _) => "accept".into(),
                    (_, None) => "masquerade".into(),
                    (_, Some(pool)) => kernel_pool(pool),
                },
            ),
            ("transport", nginx_transport.to_owned()),
            ("upstream_connection", if setting.http == Some(ServerConnections::Own) { "close" } else { "\"\"" }.into()),
            (
                "upstream_keepalive",
                match setting.http {
                    None | Some(ServerConnections::Own) => String::new(),
                    Some(ServerConnections::Default | ServerConnections::Shared) => NGINX_KEEPALIVE.to_owned(),
                },
            ),
        ];
        values.iter().fold(template.to_owned(), |text, (key, value)| text.replace(&format!("{{{{{key}}}}}"), value))
    }

    /// What is added to the configuration where TLS is ended.
    fn tls_template(&self, http: Option<ServerConnections>) -> &'static str {
        match (self.kind, http) {
            (Kind::Haproxy, None) => include_str!("../peers/haproxy-tls.cfg"),
            (Kind::Haproxy, Some(_)) => include_str!("../peers/haproxy-http-tls.cfg"),
            (Kind::Nginx, None) => include_str!("../peers/nginx-tls.conf"),
            (Kind::Nginx, Some(_)) => include_str!("../peers/nginx-web-tls.conf"),
            (Kind::Towpath, None) => include_str!("../peers/towpath-tls.toml"),
            (Kind::Towpath, Some(_)) => include_str!("../peers/towpath-http-tls.toml"),
            (Kind::Hitch | Kind::Kernel | Kind::NginxHttp | Kind::Remote, _) => "",
        }
    }

    /// Its word for whose connections to servers are.
    fn reuse(&self, connections: ServerConnections) -> &'static str {
        match (self.kind, connections) {
            (Kind::Haproxy, ServerConnections::Default) => "safe",
            (Kind::Haproxy | Kind::Towpath, ServerConnections::Own) | (Kind::Towpath, ServerConnections::Default) => {
                "never"
            }
            (Kind::Haproxy, ServerConnections::Shared) => "always",
            (Kind::Towpath, ServerConnections::Shared) => "safe",
            // nginx has none: see `upstream_keepalive`.
            (Kind::Hitch | Kind::Kernel | Kind::Nginx | Kind::NginxHttp | Kind::Remote, _) => "",
        }
    }

    /// What is added to that where TLS goes on towards the server, whoever that is.
    fn tls_server(&self) -> &'static str {
        match self.kind {
            Kind::Haproxy => " ssl verify none",
            Kind::Nginx => "proxy_ssl on;",
            Kind::Towpath => "verify_server = \"none\"\n",
            // Of the scheme of its origins.
            Kind::NginxHttp => "s",
            Kind::Hitch | Kind::Kernel | Kind::Remote => "",
        }
    }

    /// Starts it on a host. It may not listen yet: see [`Running::ensure_alive`] while waiting for that.
    pub fn start(&self, host: &Host, setting: &Setting) -> io::Result<Running> {
        let pid_file = MemoryFile::create(b"")?;
        let control = ControlPath::new();
        let (certificate, key) = match &setting.tls {
            Some(tls) => Certificate::of_run(tls.key).map(|made| (&*made.pem, &*made.key_pem))?,
            None => ("", ""),
        };
        let [bundle, certificate, key] = [format!("{certificate}{key}"), certificate.into(), key.into()]
            .map(|pem| MemoryFile::create(pem.as_bytes()));
        let (bundle, certificate, key) = (bundle?, certificate?, key?);
        let places = Places {
            pid: pid_file.path(),
            control: control.0.clone(),
            certificate: certificate.path(),
            key: key.path(),
            bundle: bundle.path(),
        };
        let file = MemoryFile::create(self.configuration(setting, &places).as_bytes())?;
        let log = MemoryFile::create(b"")?;
        let mut command = Command::new(&self.program);
        match self.kind {
            // -db: stay in the foreground.
            Kind::Haproxy => command.arg("-db").arg("-f").arg(file.path()),
            Kind::Hitch => command.arg("--config").arg(file.path()),
            Kind::Kernel => command.arg("-f").arg(file.path()),
            Kind::Nginx | Kind::NginxHttp => command.args(["-e", "stderr", "-c"]).arg(file.path()),
            Kind::Remote => {
                return Ok(Running { name: self.name.clone(), child: None, log, _files: Vec::new(), control: None });
            }
            Kind::Towpath => command.args(["run", "-c"]).arg(file.path()),
        };
        command.stdin(Stdio::null()).stdout(log.writer()?).stderr(log.writer()?);
        let control = (self.kind == Kind::Towpath).then(|| (self.program.clone(), control));
        let mut running = Running {
            name: self.name.clone(),
            child: None,
            log,
            _files: Vec::from([pid_file, file, bundle, certificate, key]),
            control,
        };
        if self.kind == Kind::Kernel {
            route_packets(host, "1")?;
            running.finish(host.spawn(command)?)?;
        } else {
            if let (Kind::Nginx, Some(pool)) = (self.kind, &setting.pool) {
                // It binds to an address and leaves the port to the kernel.
                host.set_sysctl("net.ipv4.ip_local_port_range", &pool.range().replace('-', " "))?;
            }
            running.child = Some(host.spawn_on(&[setting.cpu], command)?);
        }
        Ok(running)
    }

    /// Takes away what [`Subject::start`] has left in a host beside the process: the kernel's tables.
    fn clean(&self, host: &Host, running: &Running, family: &str) -> io::Result<()> {
        if self.kind == Kind::Kernel {
            let mut command = Command::new(&self.program);
            command.args(["delete", "table", family, "relay"]);
            command.stdin(Stdio::null()).stdout(running.log.writer()?).stderr(running.log.writer()?);
            running.finish(host.spawn(command)?)?;
            route_packets(host, "0")?;
        }
        Ok(())
    }

    /// Asks it to end and waits; one that does not is killed.
    pub fn stop(&self, host: &Host, setting: &Setting, mut running: Running) -> io::Result<()> {
        running.ensure_alive()?;
        if let Some(child) = &mut running.child {
            child.terminate()?;
            if child.wait_timeout(STOP_DEADLINE)?.is_none() {
                child.kill()?;
            }
        }
        self.clean(host, &running, family_word(setting))
    }
}

/// Has the kernel of a host pass packets on, or no longer.
pub fn route_packets(host: &Host, value: &str) -> io::Result<()> {
    ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"].into_iter().try_for_each(|key| host.set_sysctl(key, value))
}

/// As the configuration has it.
pub(crate) fn forwarding_word(forwarding: Forwarding) -> &'static str {
    match forwarding {
        Forwarding::Dsr => "dsr",
        Forwarding::FullNat => "full-nat",
        Forwarding::HalfNat => "half-nat",
    }
}

/// As nft names it.
fn family_word(setting: &Setting) -> &'static str {
    if setting.listen.is_ipv4() { "ip" } else { "ip6" }
}

/// One server per source address: HAProxy keeps a range of ports for each (configuration manual: "source").
fn haproxy_servers(setting: &Setting) -> String {
    let server = setting.server;
    match &setting.pool {
        None => format!("    server origin {server}"),
        Some(pool) => {
            let line = |(number, ip): (usize, &IpAddr)| {
                format!("    server origin-{} {server} source {ip}:{}", number + 1, pool.range())
            };
            pool.addresses.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
        }
    }
}

/// The map from a connection to a source address, and what takes it from there (ngx_stream_split_clients_module).
fn nginx_pool(pool: &Pool) -> (String, String) {
    let share = 100 / pool.addresses.len();
    let last = pool.addresses.len() - 1;
    let line = |(number, ip): (usize, &IpAddr)| {
        if number == last { format!("        * {ip};\n") } else { format!("        {share}% {ip};\n") }
    };
    let lines: String = pool.addresses.iter().enumerate().map(line).collect();
    (format!("split_clients $remote_port $source {{\n{lines}    }}"), "proxy_bind $source;".into())
}

/// The addresses of a pool follow one another.
fn kernel_pool(pool: &Pool) -> String {
    let (first, last) = (pool.addresses.first(), pool.addresses.last());
    first.zip(last).map_or_else(String::new, |(first, last)| format!("snat to {first}-{last}:{}", pool.range()))
}

/// As the configuration has it: where handshakes run; without CPUs for them as `"auto"` has it on a machine that has no more.
fn tls_threads(tls: &TlsSetting, shared: usize) -> String {
    if tls.pool_cpus.is_empty() { format!("[{shared}]") } else { format!("{:?}", tls.pool_cpus) }
}

fn towpath_plane(setting: &Setting) -> String {
    match setting.plane {
        Plane::Packet => format!("plane = \"packet\"\nforwarding = \"{}\"\n", forwarding_word(setting.forwarding)),
        Plane::Stream => String::new(),
    }
}

fn towpath_pool(pool: &Pool) -> String {
    let addresses: Vec<String> = pool.addresses.iter().map(|ip| format!("\"{ip}\"")).collect();
    format!("source = {{ pool = [{}], ports = \"{}\" }}\n", addresses.join(", "), pool.range())
}

impl Running {
    /// Its processes now.
    pub fn processes(&self) -> io::Result<Vec<u32>> {
        self.child.as_ref().map_or_else(|| Ok(Vec::new()), |child| process_tree(child.id()))
    }

    /// Fails, with what it said last, when it has ended.
    pub fn ensure_alive(&mut self) -> io::Result<()> {
        match self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
            None => Ok(()),
            Some(status) => Err(io::Error::other(format!(
                "{} has ended by itself ({status}); it said:\n{}",
                self.name,
                self.said()
            ))),
        }
    }

    /// As [`Running::ensure_alive`], when its end may be due within `delay`.
    pub fn ensure_alive_for(&mut self, delay: Duration) -> io::Result<()> {
        if let Some(child) = &mut self.child {
            child.wait_timeout(delay)?;
        }
        self.ensure_alive()
    }

    /// Whether it is a program that runs, not one that has set something up.
    pub fn has_process(&self) -> bool {
        self.child.is_some()
    }

    /// Waits for a program that sets something up.
    fn finish(&self, mut child: Child) -> io::Result<()> {
        match child.wait_timeout(STOP_DEADLINE)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(io::Error::other(format!("{}: {status}; it said:\n{}", self.name, self.said()))),
            None => Err(io::Error::other(format!("{}: not done after {STOP_DEADLINE:?}", self.name))),
        }
    }

    /// What it tells about itself now, where it does that.
    pub fn status(&self) -> Option<String> {
        let (program, ControlPath(socket)) = self.control.as_ref()?;
        let output = Command::new(program).arg("status").arg("--socket").arg(socket).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
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

    fn setting(transport: Transport, pool: Option<Pool>) -> Setting {
        let (listen, server) = ("10.88.1.100:80".parse().unwrap(), "10.88.2.11:7000".parse().unwrap());
        Setting {
            listen,
            server,
            cpu: 3,
            transport,
            plane: Plane::Stream,
            forwarding: Forwarding::FullNat,
            flows: None,
            pool,
            is_routed: false,
            tls: None,
            http: None,
        }
    }

    fn places() -> Places {
        let [pid, control, certificate, key, bundle] =
            ["/pid", "/control", "/certificate", "/key", "/bundle"].map(PathBuf::from);
        Places { pid, control, certificate, key, bundle }
    }

    fn pool(addresses: u8) -> Option<Pool> {
        let addresses = (1..=addresses).map(|n| IpAddr::from([10, 88, 2, 100 + n])).collect();
        Some(Pool { addresses, ports: 20_000..=22_999 })
    }

    #[test]
    fn every_placeholder_is_filled_in() {
        let tls = |reencrypts| {
            let listen = "10.88.1.100:8443".parse().unwrap();
            Some(TlsSetting { listen, key: KeyKind::P256, reencrypts, pool_cpus: Vec::new() })
        };
        for kind in [Kind::Haproxy, Kind::Hitch, Kind::Kernel, Kind::Nginx, Kind::NginxHttp, Kind::Towpath] {
            for (buffer_kib, transport, pool, tls) in [
                (None, Transport::Udp, None, None),
                (Some(256), Transport::Tcp, None, tls(false)),
                (None, Transport::Tcp, pool(2), tls(true)),
            ] {
                for http in [None, Some(ServerConnections::Own), Some(ServerConnections::Shared)] {
                    let setting = Setting { tls: tls.clone(), http, ..setting(transport, pool.clone()) };
                    let text = subject(kind, buffer_kib).configuration(&setting, &places());
                    let left: Vec<&str> =
                        text.lines().filter(|line| line.contains("{{") && !line.starts_with('#')).collect();
                    assert!(left.is_empty(), "{kind:?}: {left:?}");
                }
            }
        }
        let text = subject(Kind::Nginx, None).configuration(&setting(Transport::Tcp, None), &places());
        assert!(text.contains("worker_cpu_affinity 1000;"));
    }

    #[test]
    fn a_pool_is_the_same_for_all() {
        let setting = setting(Transport::Tcp, pool(2));
        assert_eq!(setting.pool.as_ref().unwrap().capacity(), 6000);
        let text = |kind| subject(kind, None).configuration(&setting, &places());
        let haproxy = text(Kind::Haproxy);
        assert!(haproxy.contains("server origin-1 10.88.2.11:7000 source 10.88.2.101:20000-22999\n"), "{haproxy}");
        assert!(haproxy.contains("server origin-2 10.88.2.11:7000 source 10.88.2.102:20000-22999\n"), "{haproxy}");
        let nginx = text(Kind::Nginx);
        assert!(nginx.contains("50% 10.88.2.101;") && nginx.contains("* 10.88.2.102;"), "{nginx}");
        let kernel = text(Kind::Kernel);
        assert!(kernel.contains(" snat to 10.88.2.101-10.88.2.102:20000-22999\n"), "{kernel}");
        let towpath = text(Kind::Towpath);
        assert!(
            towpath.contains("source = { pool = [\"10.88.2.101\", \"10.88.2.102\"], ports = \"20000-22999\" }"),
            "{towpath}"
        );
    }

    #[test]
    fn connections_to_servers_are_whose_the_case_says_at_all() {
        let text = |kind, connections| {
            let setting = Setting { http: Some(connections), ..setting(Transport::Tcp, None) };
            subject(kind, None).configuration(&setting, &places())
        };
        for (kind, default, own, shared) in [
            (Kind::Haproxy, "http-reuse safe\n", "http-reuse never\n", "http-reuse always\n"),
            (Kind::Nginx, "keepalive 1024;", "Connection close;", "keepalive 1024;"),
            (Kind::Towpath, "reuse = \"never\"", "reuse = \"never\"", "reuse = \"safe\""),
        ] {
            assert!(text(kind, ServerConnections::Default).contains(default), "{kind:?}");
            assert!(text(kind, ServerConnections::Own).contains(own), "{kind:?}");
            assert!(text(kind, ServerConnections::Shared).contains(shared), "{kind:?}");
        }
    }

    #[test]
    fn the_packet_plane_is_asked_for_by_name() {
        let mut setting = setting(Transport::Tcp, pool(1));
        let text = |setting: &Setting| subject(Kind::Towpath, None).configuration(setting, &places());
        assert!(!text(&setting).contains("plane ="));
        (setting.plane, setting.flows) = (Plane::Packet, Some(5000));
        let text = text(&setting);
        assert!(text.contains("plane = \"packet\"\nforwarding = \"full-nat\"\n"), "{text}");
        assert!(text.contains("[limits]\nflows = 5000\n"), "{text}");
    }

    #[test]
    fn a_name_says_program_and_buffer_size() {
        let nowhere = Path::new("/nonexistent");
        for wrong in [
            "squid",
            "haproxy-",
            "haproxy-256",
            "haproxy-0k",
            "hitch-64k",
            "towpath-256k",
            "kernel-64k",
            "nginx-fastk",
            "haproxy-http",
        ] {
            assert!(matches!(Subject::find(wrong, nowhere), Err(Missing::Unknown(_))), "{wrong}");
        }
        let Err(Missing::Program { remedy, .. }) = Subject::find("towpath", nowhere) else { panic!("found") };
        assert!(remedy.contains("--towpath"));
        assert_eq!(Subject::find("towpath", Path::new("/bin/true")).unwrap().kind, Kind::Towpath);
    }
}
