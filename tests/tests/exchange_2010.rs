//! An installation of Exchange 2010 brought up whole: `config/examples/exchange-2010.toml` as it stands, with Client Access servers that know nothing of
//! each other's logons, and the affinity that each protocol must have (requirements.md 3.4).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tempfile::TempDir;
use towpath_tests::pki::{Authority, NAME};
use towpath_tests::web::{Reply, WebOrigin, field};
use towpath_tests::{Origin, PATIENCE, Places, Site, Subject, eventually, in_site, subject, visit_from};

const EXAMPLE: &str = include_str!("../../config/examples/exchange-2010.toml");

/// Documentation addresses (RFC 5737), as in the example. Two clients sit at `desk`.
const NETWORKS: [(&str, Places<'_>); 1] = [(
    "lan",
    &[
        ("unit", "192.0.2.1/24"),
        ("unit", "192.0.2.10/24"),
        ("unit", "192.0.2.11/24"),
        ("CAS-1", "192.0.2.21/24"),
        ("CAS-2", "192.0.2.22/24"),
        ("desk", "192.0.2.100/24"),
        ("desk", "192.0.2.101/24"),
    ],
)];

const VIP: &str = "192.0.2.10";
const DESKS: [&str; 2] = ["192.0.2.100", "192.0.2.101"];
const SERVERS: [&str; 2] = ["CAS-1", "CAS-2"];
/// Requests of a client, each on a connection of its own.
const VISITS: usize = 6;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A Client Access server: its pages, and who has logged on to it.
struct ClientAccess {
    name: &'static str,
    logons: Mutex<BTreeSet<String>>,
    count: AtomicUsize,
    /// Its ActiveSync answers with 500.
    sync_broken: AtomicBool,
}

impl ClientAccess {
    /// OWA, ECP and EWS know a client by the cookie of its logon, and only the server that gave it; the others want credentials with each request.
    fn answers(&self, head: &str) -> Reply {
        let path = head.split(' ').nth(1).unwrap_or_default().to_ascii_lowercase();
        let reply = |status, fields: String| Reply { status, fields, body: format!("{} {path}\n", self.name) };
        let basic = field(head, "authorization").is_some();
        let wants_logon = || reply("401 Unauthorized", "WWW-Authenticate: Basic realm=\"mail\"\r\n".to_owned());
        let logon = field(head, "cookie").and_then(|cookies| {
            cookies.split(';').find_map(|pair| pair.trim().strip_prefix("sessionid=").map(str::to_owned))
        });
        let mut logons = self.logons.lock().unwrap_or_else(PoisonError::into_inner);
        match path.as_str() {
            "/owa/auth/logon.aspx" => reply("200 OK", String::new()),
            "/owa/auth.owa" => {
                let logon = format!("{}-{}", self.name, self.count.fetch_add(1, Ordering::Relaxed));
                logons.insert(logon.clone());
                reply("200 OK", format!("Set-Cookie: sessionid={logon}; path=/\r\n"))
            }
            path if ["/owa", "/ecp", "/ews"].iter().any(|start| path.starts_with(start)) => match logon {
                Some(logon) if logons.contains(&logon) => reply("200 OK", String::new()),
                // As OWA says that it does not know the logon.
                _ => reply("440 Login Timeout", String::new()),
            },
            path if path.starts_with("/microsoft-server-activesync") && self.sync_broken.load(Ordering::Relaxed) => {
                reply("500 Internal Server Error", String::new())
            }
            _ if !basic => wants_logon(),
            _ => reply("200 OK", String::new()),
        }
    }
}

/// The site with its servers serving and the unit running the example.
struct Installation<'s> {
    site: &'s Site,
    authority: Authority,
    unit: Subject,
    servers: Vec<(Arc<ClientAccess>, WebOrigin)>,
    _origins: Vec<Origin>,
    _etc: TempDir,
}

impl Installation<'_> {
    fn new(site: &Site) -> Installation<'_> {
        let authority = Authority::new("domain");
        let certificate = authority.issue(&[NAME]);
        let (mut servers, mut origins) = (Vec::new(), Vec::new());
        for name in SERVERS {
            let server = Arc::new(ClientAccess {
                name,
                logons: Mutex::default(),
                count: AtomicUsize::default(),
                sync_broken: AtomicBool::default(),
            });
            let manners = Arc::clone(&server);
            let origin = WebOrigin::start_like(site.host(name), 80, Ok, move |head| Some(manners.answers(head)));
            servers.push((server, origin));
            origins.extend([110, 135, 143, 993, 995, 59532, 59533].map(|port| Origin::tcp(site.host(name), port)));
        }
        let etc = tempfile::tempdir().expect("a temporary directory");
        for (file, from) in [("mail.pem", &certificate.chain), ("mail.key", &certificate.key)] {
            fs::copy(from, etc.path().join(file)).expect("a file");
        }
        let secret = etc.path().join("cookies");
        fs::write(&secret, [9; 32]).expect("a file");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("our file");
        assert!(EXAMPLE.contains("/etc/towpath/mail.pem"));
        // The checks come more often, so that nobody has to wait for them.
        let config =
            EXAMPLE.replace("status = \"401\" }", "status = \"401\", interval = \"200ms\", timeout = \"200ms\" }");
        assert!(config != EXAMPLE);
        let config = config.replace("/etc/towpath/", &format!("{}/", etc.path().display()));
        let unit = subject!().start(site.host("unit"), &config);
        unit.until_all_up();
        Installation { site, authority, unit, servers, _origins: origins, _etc: etc }
    }

    fn client(&self, desk: usize) -> Client<'_> {
        Client { installation: self, from: DESKS[desk], cookies: BTreeMap::new(), fields: Vec::new() }
    }
}

/// A program of a user: what it says with each request, and the cookies that it keeps.
#[derive(Clone)]
struct Client<'i> {
    installation: &'i Installation<'i>,
    from: &'static str,
    cookies: BTreeMap<String, String>,
    fields: Vec<String>,
}

impl Client<'_> {
    fn says(mut self, field: &str) -> Self {
        self.fields.push(field.to_owned());
        self
    }

    /// With the credentials of this user.
    fn logs_on(self, user: usize) -> Self {
        self.says(&format!("Authorization: Basic user-{user}"))
    }

    /// Asks once: which server has answered, and the status.
    fn asks(&mut self, path: &str) -> (String, u16) {
        let output = tempfile::NamedTempFile::new().expect("a temporary file");
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--include", "--max-time", "15", "--interface", self.from]);
        command.arg("--cacert").arg(self.installation.authority.certificate());
        command.args(["--resolve", &format!("{NAME}:443:{VIP}")]);
        for field in &self.fields {
            command.args(["--header", field]);
        }
        if !self.cookies.is_empty() {
            let pairs: Vec<String> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            command.args(["--cookie", &pairs.join("; ")]);
        }
        command.arg(format!("https://{NAME}{path}"));
        command.stdout(output.reopen().expect("a file")).stderr(Stdio::null());
        let mut child = self.installation.site.host("desk").spawn(command).expect("curl is installed");
        child.wait_timeout(PATIENCE).expect("our child").expect("it ends");
        let said = fs::read_to_string(output.path()).expect("text");
        let (head, body) = said.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{path}: {said}"));
        for line in head.lines() {
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("set-cookie")
                && let Some((name, value)) = value.trim().split(';').next().unwrap_or_default().split_once('=')
            {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
        (body.split(' ').next().unwrap_or_default().to_owned(), status)
    }

    /// Asks for these one after the other, over and over: which servers have answered.
    fn visits(&mut self, paths: &[&str]) -> BTreeSet<String> {
        (0..VISITS)
            .map(|visit| self.asks(paths[visit % paths.len()]))
            .map(|(server, status)| {
                assert_eq!(status, 200, "{paths:?}");
                server
            })
            .collect()
    }
}

#[test]
#[ignore = "needs the Debian package curl"]
fn each_protocol_of_the_exchange_2010_example_has_its_affinity() {
    in_site(each_protocol_of_the_exchange_2010_example_has_its_affinity, &NETWORKS, |site| {
        let installation = Installation::new(site);
        let both: BTreeSet<String> = SERVERS.map(str::to_owned).into();

        // Must: OWA, ECP and EWS share one logon, of which the other server knows nothing.
        let browsers = [0, 1].map(|desk| {
            let mut browser = installation.client(desk);
            let (home, _) = browser.asks("/owa/auth.owa");
            (desk, browser, home)
        });
        let homes: BTreeSet<String> = browsers.iter().map(|(_, _, home)| home.clone()).collect();
        assert_eq!(homes, both, "two clients are balanced");
        for (desk, mut browser, home) in browsers {
            let seen = browser.visits(&["/owa/", "/ecp/default.aspx", "/ews/exchange.asmx"]);
            assert_eq!(seen, [home.clone()].into(), "OWA, ECP and EWS");
            // From elsewhere, with its cookies: it is the cookie that counts.
            let moved = &mut Client { from: DESKS[1 - desk], ..browser };
            assert_eq!(moved.visits(&["/owa/", "/ews/exchange.asmx"]), [home].into());
        }

        // Recommended: Outlook Anywhere and ActiveSync by what they say of themselves, PowerShell by its address.
        for (what, path, agent) in [
            ("Outlook Anywhere", "/rpc/rpcproxy.dll", "MSRPC"),
            ("ActiveSync", "/Microsoft-Server-ActiveSync?Cmd=Sync", "Phone/1.0"),
        ] {
            // All behind one address.
            let mut homes = BTreeSet::new();
            for user in 0..4 {
                let mut client = installation.client(0).logs_on(user).says(&format!("User-Agent: {agent}"));
                let seen = client.visits(&[path]);
                assert_eq!(seen.len(), 1, "{what} of user {user}: {seen:?}");
                homes.extend(seen);
            }
            assert_eq!(homes, both, "{what} behind one address is balanced");
        }
        assert_eq!(installation.client(0).logs_on(9).visits(&["/PowerShell/session"]).len(), 1);

        // No: offline address book and Autodiscover.
        for path in ["/OAB/oab.xml", "/Autodiscover/Autodiscover.xml"] {
            assert_eq!(installation.client(0).logs_on(1).visits(&[path]), both, "{path}");
        }

        // Must, and recommended: RPC Client Access and the address book, with the port mapper, by address; no: POP3, IMAP4.
        let visit = |desk: usize, port: u16| {
            visit_from(site.host("desk"), ip(DESKS[desk]), SocketAddr::new(ip(VIP), port)).name
        };
        for desk in [0, 1] {
            let seen: BTreeSet<String> = (0..VISITS).map(|at| visit(desk, [135, 59532, 59533][at % 3])).collect();
            assert_eq!(seen.len(), 1, "RPC of {}: {seen:?}", DESKS[desk]);
        }
        for port in [110, 143, 993, 995] {
            let seen: BTreeSet<String> = (0..VISITS).map(|_| visit(0, port)).collect();
            assert_eq!(seen, both, "port {port}");
        }
        installation.unit.stop();
    });
}

/// A virtual directory that is ill is left by its clients, and nobody else.
#[test]
#[ignore = "needs the Debian package curl"]
fn a_virtual_directory_of_the_exchange_2010_example_fails_by_itself() {
    in_site(a_virtual_directory_of_the_exchange_2010_example_fails_by_itself, &NETWORKS, |site| {
        let installation = Installation::new(site);
        let mut phones: Vec<Client<'_>> = (0..4).map(|user| installation.client(0).logs_on(user)).collect();
        let sync = ["/Microsoft-Server-ActiveSync?Cmd=Ping"];
        let mut browser = installation.client(0);
        let (home, _) = browser.asks("/owa/auth.owa");
        let (ill, well) = if home == "CAS-1" { (0, "CAS-2") } else { (1, "CAS-1") };
        phones.iter_mut().for_each(|phone| drop(phone.visits(&sync)));
        installation.servers[ill].0.sync_broken.store(true, Ordering::Relaxed);
        for phone in &mut phones {
            eventually("the check has noticed", || (phone.asks(sync[0]).0 == well).then_some(()));
            assert_eq!(phone.visits(&sync), [well.to_owned()].into());
        }
        // Its logons at the same server are as they were.
        assert_eq!(browser.visits(&["/owa/", "/ecp/"]), [home].into());
        installation.unit.stop();
    });
}

/// Who was at a server that has gone has to log on again, at the other.
#[test]
#[ignore = "needs the Debian package curl"]
fn the_exchange_2010_example_lives_with_one_server() {
    in_site(the_exchange_2010_example_lives_with_one_server, &NETWORKS, |site| {
        let installation = Installation::new(site);
        let mut browser = installation.client(0);
        let (home, _) = browser.asks("/owa/auth.owa");
        let (gone, other) = if home == "CAS-1" { (0, "CAS-2") } else { (1, "CAS-1") };
        installation.servers[gone].1.stop();
        let (served, status) = browser.asks("/owa/");
        assert_eq!((served.as_str(), status), (other, 440));
        assert_eq!(browser.asks("/owa/auth.owa").0, other);
        assert_eq!(browser.visits(&["/owa/", "/ecp/", "/ews/exchange.asmx"]), [other.to_owned()].into());
        installation.unit.stop();
    });
}
