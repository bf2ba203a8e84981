//! Health checks against the programs they are for: OpenLDAP, FreeRADIUS, dnsmasq, coturn, Postfix and nginx. Each is up, refuses, is silent, is slow,
//! answers wrongly and by half, and comes back; what it says is its own, spoilt on the way by a [`Between`] in front of it.
//!
//! And checks by datagrams where the kernel has no part in them: on VLANs, over a bridge, and for a VIP that is on a server's loopback.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use towpath_engine::status::HealthStatus;
use towpath_sys::process::Child;
use towpath_tests::pki::{Authority, NAME};
use towpath_tests::trunk::{TRUNK, Trunk, VLANS};
use towpath_tests::{
    Host, Subject, TestLab, Topology, eventually, in_lab, ipv4, ipv6, packet_service, service, subject,
};

/// Long enough for a loaded machine to answer at least sometimes, short enough to wait for it to pass.
const TIMEOUT: Duration = Duration::from_millis(500);
const RHYTHM: &str = "interval = \"100ms\", timeout = \"500ms\", rise = 1, fall = 1, flaps = 0";
const SECRET: &str = "xyzzy5461";
const PASSWORD: &str = "arctangent";
/// A query for the IPv4 addresses of www.example.org, and one of the addresses.
const QUERY: &str = "1234 0100 0001 0000 0000 0000 03777777 076578616d706c65 036f7267 00 0001 0001";
const ADDRESS: &str = "c0 00 02 07";

/// A program on a host of the lab, and the folder of its files; killed when dropped.
struct Daemon {
    child: Child,
    folder: TempDir,
}

impl Daemon {
    /// `prepare` writes its files into the folder and says how it is called.
    #[track_caller]
    fn start(host: &Host, program: &str, package: &str, prepare: impl FnOnce(&Path, &mut Command)) -> Daemon {
        let folder = tempfile::tempdir().expect("a temporary directory");
        // Some run as a user of their own.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("our folder");
        let said = fs::File::create(folder.path().join("said")).expect("a file");
        let places = ["/usr/sbin", "/usr/bin", "/usr/lib/postfix/sbin"].map(|place| format!("{place}/{program}"));
        let path = places.into_iter().find(|path| fs::exists(path).unwrap_or(false));
        let path = path.unwrap_or_else(|| panic!("{program} is not installed: apt-get install {package}"));
        let mut command = Command::new(path);
        command.stdin(Stdio::null()).stdout(said.try_clone().expect("a descriptor")).stderr(said);
        prepare(folder.path(), &mut command);
        Daemon { child: host.spawn(command).expect("a program"), folder }
    }

    fn kill(&mut self) {
        self.child.kill().expect("our child");
    }

    /// That it runs, with what it said if not.
    #[track_caller]
    fn assert_runs(&mut self) {
        let ended = self.child.try_wait().expect("it is our child");
        assert!(
            ended.is_none(),
            "{ended:?}: {}",
            fs::read_to_string(self.folder.path().join("said")).unwrap_or_default()
        );
    }
}

fn slapd(host: &Host, port: u16) -> Daemon {
    directory(host, &format!("ldap://0.0.0.0:{port}/"), "")
}

fn directory(host: &Host, url: &str, more: &str) -> Daemon {
    Daemon::start(host, "slapd", "slapd", |folder, command| {
        let place = folder.display();
        let config = format!(
            "include /etc/ldap/schema/core.schema\npidfile {place}/pid\nargsfile {place}/args\n{more}\ndatabase ldif\n\
             directory {place}\nsuffix \"dc=example,dc=org\"\nrootdn \"cn=check,dc=example,dc=org\"\nrootpw {PASSWORD}\n"
        );
        let file = folder.join("slapd.conf");
        fs::write(&file, config).expect("a file");
        command.args(["-d", "0", "-h", url, "-f"]).arg(file);
    })
}

fn freeradius(host: &Host, port: u16) -> Daemon {
    Daemon::start(host, "freeradius", "freeradius", |folder, command| {
        let place = folder.display();
        let accounting = port + 100;
        let config = format!(
            "prefix = /usr\nlogdir = {place}\nraddbdir = {place}\nrun_dir = {place}\nlibdir = /usr/lib/freeradius\n\
             pidfile = {place}/pid\nlog {{\n destination = stdout\n}}\n\
             security {{\n status_server = yes\n reject_delay = 0\n}}\n\
             client lab {{\n ipaddr = 0.0.0.0/0\n secret = {SECRET}\n require_message_authenticator = yes\n}}\n\
             modules {{\n pap {{\n }}\n files {{\n filename = {place}/users\n }}\n}}\n\
             server default {{\n listen {{\n type = auth\n ipaddr = *\n port = {port}\n }}\n\
             listen {{\n type = acct\n ipaddr = *\n port = {accounting}\n }}\n\
             authorize {{\n files\n pap\n }}\n authenticate {{\n pap\n }}\n preacct {{\n }}\n accounting {{\n }}\n}}\n"
        );
        fs::write(folder.join("radiusd.conf"), config).expect("a file");
        fs::write(folder.join("users"), format!("nemo Cleartext-Password := \"{PASSWORD}\"\n")).expect("a file");
        command.args(["-f", "-l", "stdout", "-d"]).arg(folder);
    })
}

fn dnsmasq(host: &Host, port: u16) -> Daemon {
    Daemon::start(host, "dnsmasq", "dnsmasq-base", |_, command| {
        command.args(["-k", "-C", "/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--pid-file="]);
        command.args(["--address=/www.example.org/192.0.2.7", "--mx-host=example.org,mail.example.org,10"]);
        command.args(["--host-record=mail.example.org,192.0.2.9", "--local=/example.org/"]);
        command.arg(format!("--port={port}"));
    })
}

fn turnserver(host: &Host, port: u16) -> Daemon {
    Daemon::start(host, "turnserver", "coturn", |folder, command| {
        command.args(["-n", "-S", "--no-tls", "--no-dtls", "--no-cli", "--no-auth", "-m", "1", "-l", "stdout"]);
        command.args(["-L", "0.0.0.0", "-p", &port.to_string(), "--pidfile"]).arg(folder.join("pid"));
        command.arg("--userdb").arg(folder.join("users"));
    })
}

/// As root only: Postfix changes to its own user. Nobody is there whom it could ask for names.
fn postfix(host: &Host, port: u16) -> Daemon {
    Daemon::start(host, "master", "postfix", |folder, command| {
        let place = folder.display();
        let config = format!(
            "compatibility_level = 3.6\nqueue_directory = {place}/queue\ndata_directory = {place}/data\n\
             command_directory = /usr/sbin\ndaemon_directory = /usr/lib/postfix/sbin\nmail_owner = postfix\n\
             inet_interfaces = all\ninet_protocols = ipv4\nmyhostname = mail.example.org\nmydestination =\nalias_maps =\n\
             maillog_file = {place}/log\nmaillog_file_prefixes = {place}\nlocal_recipient_maps =\n\
             smtpd_relay_restrictions = reject\nsmtpd_peername_lookup = no\n"
        );
        let services = format!(
            "{port} inet n - n - 5 smtpd\nanvil unix - - n - 1 anvil\nrewrite unix - - n - - trivial-rewrite\n\
             proxymap unix - - n - - proxymap\n"
        );
        for part in ["conf", "data", "queue"] {
            fs::create_dir(folder.join(part)).expect("a folder");
        }
        for part in ["pid", "private", "public", "maildrop", "incoming", "active", "deferred"] {
            fs::create_dir(folder.join("queue").join(part)).expect("a folder");
        }
        fs::write(folder.join("conf/main.cf"), config).expect("a file");
        fs::write(folder.join("conf/master.cf"), services).expect("a file");
        let mut owned = Command::new("chown");
        owned.arg("postfix").args(["data", "queue/private", "queue/public"].map(|part| folder.join(part)));
        assert!(owned.status().expect("chown").success(), "Postfix needs its own user: run the tests as root");
        command.args(["-d", "-c"]).arg(folder.join("conf"));
    })
}

/// nginx that says "fine", with TLS where there is a certificate.
fn nginx(host: &Host, port: u16, tls: Option<(&Path, &Path)>) -> Daemon {
    Daemon::start(host, "nginx", "nginx-light", |folder, command| {
        let place = folder.display();
        let bodies: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {place}/{what};\n"))
            .concat();
        let (ssl, files) = match tls {
            Some((chain, key)) => {
                (" ssl", format!("ssl_certificate {}; ssl_certificate_key {};", chain.display(), key.display()))
            }
            None => ("", String::new()),
        };
        let config = format!(
            "daemon off; master_process off; error_log {place}/error.log info; pid {place}/pid;\n\
             events {{ worker_connections 128; }}\nhttp {{ access_log off;\n{bodies}\
             server {{ listen {port}{ssl}; {files} location / {{ return 200 \"fine\\n\"; }} }} }}\n"
        );
        let file = folder.join("nginx.conf");
        fs::write(&file, config).expect("a file");
        command.args(["-e", "/dev/null", "-c"]).arg(file);
    })
}

/// What becomes of the first thing that a server says.
#[derive(Clone, Copy)]
enum Spoil {
    /// It arrives.
    Nothing,
    /// It is lost.
    All,
    /// It comes when nobody waits any more.
    Time,
    /// Its second half is lost.
    Half,
    /// The same, and the connection with it.
    End,
    /// It says something else.
    Words(fn(&mut Vec<u8>)),
}

impl Spoil {
    fn spoil(self, answer: &mut Vec<u8>) {
        match self {
            Spoil::Nothing => {}
            Spoil::All => answer.clear(),
            Spoil::Time => thread::sleep(TIMEOUT * 2),
            Spoil::Half | Spoil::End => answer.truncate(answer.len() / 2),
            Spoil::Words(change) => change(answer),
        }
    }
}

/// In front of a daemon that listens on the next port of the same host.
#[derive(Clone)]
struct Between {
    spoil: Arc<Mutex<Spoil>>,
}

impl Between {
    fn start(host: &Host, over: Over, port: u16) -> Between {
        let between = Between { spoil: Arc::new(Mutex::new(Spoil::All)) };
        let (own, behind) = (between.clone(), SocketAddr::from((Ipv4Addr::LOCALHOST, port + 1)));
        // Both end with the process.
        match over {
            Over::Tcp => {
                let listener = host.run(|| TcpListener::bind(("0.0.0.0", port))).expect("a thread").expect("free");
                let _runs = host.start(move || {
                    for client in listener.incoming().flatten() {
                        let own = own.clone();
                        thread::spawn(move || own.carry(client, behind));
                    }
                });
            }
            Over::Udp => {
                let socket = host.run(|| UdpSocket::bind(("0.0.0.0", port))).expect("a thread").expect("free");
                let _runs = host.start(move || {
                    let mut buffer = [0; 2_048];
                    while let Ok((length, client)) = socket.recv_from(&mut buffer) {
                        let (own, question) = (own.clone(), buffer[..length].to_vec());
                        let socket = socket.try_clone().expect("a descriptor");
                        thread::spawn(move || own.pass(&question, &socket, client, behind));
                    }
                });
            }
        }
        between
    }

    fn set(&self, spoil: Spoil) {
        *self.spoil.lock().unwrap_or_else(PoisonError::into_inner) = spoil;
    }

    fn now(&self) -> Spoil {
        *self.spoil.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn carry(&self, mut client: TcpStream, behind: SocketAddr) -> std::io::Result<()> {
        let mut server = TcpStream::connect(behind)?;
        let (mut asks, mut hears) = (client.try_clone()?, server.try_clone()?);
        thread::spawn(move || std::io::copy(&mut asks, &mut hears));
        let mut buffer = vec![0; 65_536];
        let length = server.read(&mut buffer)?;
        let spoil = self.now();
        let mut answer = buffer[..length].to_vec();
        spoil.spoil(&mut answer);
        client.write_all(&answer)?;
        match spoil {
            Spoil::Nothing | Spoil::Time | Spoil::Words(_) => std::io::copy(&mut server, &mut client).map(drop),
            Spoil::End => client.shutdown(Shutdown::Both),
            // Until the check has lost its patience.
            Spoil::All | Spoil::Half => {
                thread::sleep(TIMEOUT * 2);
                Ok(())
            }
        }
    }

    fn pass(&self, question: &[u8], socket: &UdpSocket, client: SocketAddr, behind: SocketAddr) -> std::io::Result<()> {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        server.connect(behind)?;
        server.set_read_timeout(Some(Duration::from_secs(5)))?;
        server.send(question)?;
        let mut buffer = [0; 2_048];
        let length = server.recv(&mut buffer)?;
        let spoil = self.now();
        let mut answer = buffer[..length].to_vec();
        spoil.spoil(&mut answer);
        if !answer.is_empty() {
            socket.send_to(&answer, client)?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Over {
    Tcp,
    Udp,
}

/// A service whose server-1 is checked so, at this port or at none.
fn checked(lab: &TestLab, check: &str, port: Option<u16>) -> String {
    let port = port.map(|port| format!(", ports = [{port}]")).unwrap_or_default();
    service(
        "web",
        lab.free_vip(100),
        "443",
        &format!("health = {{ {check}{port}, {RHYTHM} }}"),
        &ipv4(&lab.servers()[..1]),
    )
}

/// With this configuration, whose VIP the balancer gets.
#[track_caller]
fn start(lab: &TestLab, config: &str) -> Subject {
    lab.vip(100);
    subject!().start(lab.balancer(), config)
}

#[track_caller]
fn until_up(relay: &Subject, daemon: &mut Daemon) {
    eventually("up", || {
        daemon.assert_runs();
        (relay.server("web", "server-1").health == HealthStatus::Up).then_some(())
    });
}

#[track_caller]
fn until_down(relay: &Subject, reason: &str) {
    let mut last = String::new();
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually(&format!("down: {reason}"), || {
            let server = relay.server("web", "server-1");
            last = format!("{:?}: {}", server.health, server.reason);
            (server.health == HealthStatus::Down && server.reason.contains(reason)).then_some(())
        });
    }));
    assert!(found.is_ok(), "not down for \"{reason}\" but {last}");
}

/// What one kind of check says of one daemon.
struct Case {
    check: String,
    over: Over,
    port: u16,
    start: fn(&Host, u16) -> Daemon,
    silent: &'static str,
    wrong: (fn(&mut Vec<u8>), &'static str),
    half: &'static str,
    ended: &'static str,
}

fn all_of_it(lab: &TestLab, case: &Case) {
    let (host, port) = (lab.server(1), case.port);
    let mut daemon = (case.start)(host, port);
    let relay = start(lab, &checked(lab, &case.check, Some(port)));
    until_up(&relay, &mut daemon);
    daemon.kill();
    until_down(&relay, "connection refused");

    let mut daemon = (case.start)(host, port + 1);
    let between = Between::start(host, case.over, port);
    until_down(&relay, &format!("port {port}: {} within 500 ms", case.silent));
    between.set(Spoil::Nothing);
    until_up(&relay, &mut daemon);
    between.set(Spoil::Time);
    until_down(&relay, &format!("port {port}: {} within 500 ms", case.silent));
    between.set(Spoil::Words(case.wrong.0));
    until_down(&relay, case.wrong.1);
    between.set(Spoil::Half);
    until_down(&relay, case.half);
    if matches!(case.over, Over::Tcp) {
        between.set(Spoil::End);
        until_down(&relay, case.ended);
    }
    between.set(Spoil::Nothing);
    until_up(&relay, &mut daemon);
    relay.stop();
}

/// A file with a secret, for as long as the folder lives.
fn secret(folder: &TempDir, name: &str, secret: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, format!("{secret}\n")).expect("a file");
    path
}

#[test]
#[ignore = "needs the Debian package slapd"]
fn openldap_binds_a_user_and_shows_its_root_dse() {
    in_lab(openldap_binds_a_user_and_shows_its_root_dse, Topology::TwoArm, 1, |lab| {
        let folder = tempfile::tempdir().expect("a folder");
        let file = secret(&folder, "password", PASSWORD);
        let check = format!(
            "check = \"ldap\", user = \"cn=check,dc=example,dc=org\", secret_file = \"{}\", expect = \"namingContexts: dc=example,dc=org\"",
            file.display()
        );
        all_of_it(
            lab,
            &Case {
                check,
                over: Over::Tcp,
                port: 389,
                start: slapd,
                silent: "no answer to the bind",
                // The octet of the result.
                wrong: (|answer| answer[9] = 51, "refuses the bind: busy"),
                half: "no answer to the bind within 500 ms",
                ended: "closed the connection, answer to the bind missing",
            },
        );
    });
}

#[test]
#[ignore = "needs the Debian package slapd"]
fn openldap_refuses_a_wrong_password_and_the_file_is_read_for_each_check() {
    in_lab(openldap_refuses_a_wrong_password_and_the_file_is_read_for_each_check, Topology::TwoArm, 1, |lab| {
        let folder = tempfile::tempdir().expect("a folder");
        let file = secret(&folder, "password", "guess");
        let user = format!("user = \"cn=check,dc=example,dc=org\", secret_file = \"{}\"", file.display());
        let mut daemon = slapd(lab.server(1), 389);
        let check = |keys: &str| checked(lab, &format!("check = \"ldap\"{keys}"), Some(389));
        let mut relay = start(lab, &check(&format!(", {user}")));
        until_down(&relay, "port 389: refuses the bind: invalidCredentials");
        secret(&folder, "password", PASSWORD);
        until_up(&relay, &mut daemon);
        fs::remove_file(&file).expect("our file");
        until_down(&relay, &format!("port 389: health.secret_file: {}: ", file.display()));
        relay.reload(&check("")).expect("an anonymous bind");
        until_up(&relay, &mut daemon);
        relay.reload(&check(", expect = \"isSynchronized: TRUE\"")).expect("a reload");
        until_down(&relay, "port 389: \"isSynchronized: TRUE\" is not in the root DSE");
        relay.stop();
    });
}

#[test]
#[ignore = "needs the Debian package slapd"]
fn openldap_is_checked_over_tls_by_its_certificate() {
    in_lab(openldap_is_checked_over_tls_by_its_certificate, Topology::TwoArm, 1, |lab| {
        let (trusted, other) = (Authority::new("trusted"), Authority::new("other"));
        let issued = trusted.issue(&[NAME]);
        // slapd reads its files as root, but with nobody's privileges over folders of others.
        let folder = tempfile::tempdir().expect("a folder");
        let (chain, key) = (folder.path().join("chain"), folder.path().join("key"));
        fs::copy(&issued.chain, &chain).expect("a file");
        fs::copy(&issued.key, &key).expect("a file");
        let files = format!("TLSCertificateFile {}\nTLSCertificateKeyFile {}", chain.display(), key.display());
        let mut daemon = directory(lab.server(1), "ldaps://0.0.0.0:636/", &files);
        let check = |authority: &Authority| {
            let ca = authority.certificate();
            let tls = format!("transport = \"tls\", host = \"{NAME}\", verify = true, ca = \"{}\"", ca.display());
            checked(lab, &format!("check = \"ldap\", {tls}"), Some(636))
        };
        let mut relay = start(lab, &check(&trusted));
        until_up(&relay, &mut daemon);
        relay.reload(&check(&other)).expect("a reload");
        until_down(&relay, "port 636: TLS: the server's certificate is not trusted");
        relay.stop();
    });
}

#[test]
#[ignore = "needs the Debian package freeradius"]
fn freeradius_tells_its_status_to_who_knows_the_secret() {
    in_lab(freeradius_tells_its_status_to_who_knows_the_secret, Topology::TwoArm, 1, |lab| {
        let folder = tempfile::tempdir().expect("a folder");
        let file = secret(&folder, "secret", SECRET);
        all_of_it(
            lab,
            &Case {
                check: format!("check = \"radius\", secret_file = \"{}\"", file.display()),
                over: Over::Udp,
                port: 1812,
                start: freeradius,
                silent: "no answer",
                // Access-Reject, by somebody who does not know the secret.
                wrong: (|answer| answer[0] = 3, "no answer whose authenticator fits our secret within 500 ms"),
                // An Access-Accept without attributes is a header.
                half: "answers with less than the header of RADIUS",
                ended: "",
            },
        );
    });
}

#[test]
#[ignore = "needs the Debian package freeradius"]
fn freeradius_lets_a_user_in_or_not() {
    in_lab(freeradius_lets_a_user_in_or_not, Topology::TwoArm, 1, |lab| {
        let folder = tempfile::tempdir().expect("a folder");
        let (right, wrong) = (secret(&folder, "secret", SECRET), secret(&folder, "other", "plugh"));
        let (password, guess) = (secret(&folder, "password", PASSWORD), secret(&folder, "guess", "sesame"));
        let check_with = |secret: &Path, password: &Path, expect: &str, signed: &str| {
            let keys = format!(
                "check = \"radius\", secret_file = \"{}\", user = \"nemo\", password_file = \"{}\", expect = \"{expect}\", \
                 message_authenticator = \"{signed}\"",
                secret.display(),
                password.display()
            );
            checked(lab, &keys, Some(1812))
        };
        // That of Debian 12 signs no answer by itself.
        let check = |secret: &Path, password: &Path, expect: &str| check_with(secret, password, expect, "optional");
        let mut daemon = freeradius(lab.server(1), 1812);
        let mut relay = start(lab, &check(&right, &password, "accept"));
        until_up(&relay, &mut daemon);
        relay.reload(&check_with(&right, &password, "accept", "required")).expect("a reload");
        until_down(&relay, "port 1812: no answer with a Message-Authenticator");
        relay.reload(&check(&right, &password, "accept")).expect("a reload");
        until_up(&relay, &mut daemon);
        relay.reload(&check(&right, &guess, "accept")).expect("a reload");
        until_down(&relay, "port 1812: answers Access-Reject");
        for expect in ["reject", "any"] {
            relay.reload(&check(&right, &guess, expect)).expect("a reload");
            until_up(&relay, &mut daemon);
            relay.reload(&check(&wrong, &guess, expect)).expect("a reload");
            // Whoever does not know the secret gets no answer at all.
            until_down(&relay, "port 1812: no answer within 500 ms");
        }
        // Accounting answers a status as accounting does.
        let status = format!("check = \"radius\", secret_file = \"{}\"", right.display());
        relay.reload(&checked(lab, &status, Some(1912))).expect("a reload");
        until_up(&relay, &mut daemon);
        relay.stop();
    });
}

/// The server has failed instead.
fn servfail(answer: &mut [u8]) {
    answer[3] = answer[3] & 0xf0 | 2;
}

#[test]
#[ignore = "needs the Debian package dnsmasq-base"]
fn dnsmasq_answers_a_query_by_udp() {
    in_lab(dnsmasq_answers_a_query_by_udp, Topology::TwoArm, 1, |lab| {
        all_of_it(
            lab,
            &Case {
                check: "check = \"dns\", query = \"www.example.org\", expect = \"192.0.2.7\"".to_owned(),
                over: Over::Udp,
                port: 53,
                start: dnsmasq,
                silent: "no answer",
                wrong: (|answer| servfail(answer), "answers SERVFAIL, expected NOERROR"),
                half: "the answer ends amid a record",
                ended: "",
            },
        );
    });
}

#[test]
#[ignore = "needs the Debian package dnsmasq-base"]
fn dnsmasq_answers_a_query_by_tcp() {
    in_lab(dnsmasq_answers_a_query_by_tcp, Topology::TwoArm, 1, |lab| {
        all_of_it(
            lab,
            &Case {
                check: "check = \"dns\", query = \"example.org\", query_type = \"MX\", transport = \"tcp\", \
                        expect = \"10 mail.example.org\""
                    .to_owned(),
                over: Over::Tcp,
                port: 53,
                start: dnsmasq,
                silent: "no answer",
                wrong: (
                    |answer| {
                        // Behind the length.
                        if let Some(flags) = answer.get_mut(5) {
                            *flags = *flags & 0xf0 | 2;
                        }
                    },
                    "answers SERVFAIL, expected NOERROR",
                ),
                half: "no end of the answer within 500 ms",
                ended: "closed the connection, end of the answer missing",
            },
        );
    });
}

#[test]
#[ignore = "needs the Debian package dnsmasq-base"]
fn dnsmasq_is_judged_by_what_it_answers() {
    in_lab(dnsmasq_is_judged_by_what_it_answers, Topology::TwoArm, 1, |lab| {
        let mut daemon = dnsmasq(lab.server(1), 53);
        let check = |keys: &str| checked(lab, &format!("check = \"dns\", {keys}"), Some(53));
        let mut relay = start(lab, &check("query = \"www.example.org\", expect = \"192.0.2.70\""));
        until_down(&relay, "port 53: answers \"192.0.2.7\", expected \"192.0.2.70\"");
        // It forwards to nobody, so it refuses what it does not know.
        relay.reload(&check("query = \"other.example\", rcode = \"noerror,refused\"")).expect("a reload");
        until_up(&relay, &mut daemon);
        relay.reload(&check("query = \"other.example\"")).expect("a reload");
        until_down(&relay, "port 53: answers REFUSED, expected NOERROR");
        relay.reload(&check("query = \"mail.example.org\", query_type = \"AAAA\"")).expect("a reload");
        until_down(&relay, "port 53: has no AAAA record of \"mail.example.org\"");
        relay.stop();
    });
}

#[test]
#[ignore = "needs the Debian package dnsmasq-base"]
fn a_datagram_of_the_operators_is_answered() {
    in_lab(a_datagram_of_the_operators_is_answered, Topology::TwoArm, 1, |lab| {
        all_of_it(
            lab,
            &Case {
                check: format!("check = \"udp\", send_hex = \"{QUERY}\", expect_hex = \"{ADDRESS}\""),
                over: Over::Udp,
                port: 53,
                start: dnsmasq,
                silent: "no answer",
                wrong: (|answer| answer.reverse(), "answers \""),
                half: "answers \"",
                ended: "",
            },
        );
    });
}

#[test]
#[ignore = "needs the Debian package coturn"]
fn coturn_answers_a_binding_request_by_udp() {
    in_lab(coturn_answers_a_binding_request_by_udp, Topology::TwoArm, 1, |lab| {
        all_of_it(
            lab,
            &Case {
                check: "check = \"stun\"".to_owned(),
                over: Over::Udp,
                port: 3478,
                start: turnserver,
                silent: "no answer",
                wrong: (|answer| answer[1] = 0x11, "answers an error without a code"),
                half: "the answer is not as long as it says",
                ended: "",
            },
        );
    });
}

#[test]
#[ignore = "needs the Debian package coturn"]
fn coturn_answers_a_binding_request_by_tcp() {
    in_lab(coturn_answers_a_binding_request_by_tcp, Topology::TwoArm, 1, |lab| {
        all_of_it(
            lab,
            &Case {
                check: "check = \"stun\", transport = \"tcp\"".to_owned(),
                over: Over::Tcp,
                port: 3478,
                start: turnserver,
                silent: "no answer",
                wrong: (|answer| answer[1] = 0x11, "answers an error without a code"),
                half: "no end of the answer within 500 ms",
                ended: "closed the connection, end of the answer missing",
            },
        );
    });
}

#[test]
#[ignore = "needs the Debian package postfix"]
fn postfix_greets_and_answers() {
    in_lab(postfix_greets_and_answers, Topology::TwoArm, 1, |lab| {
        all_of_it(
            lab,
            &Case {
                check: "check = \"smtp\", expect = \"ESMTP Postfix\"".to_owned(),
                over: Over::Tcp,
                port: 2525,
                start: postfix,
                silent: "no greeting",
                wrong: (
                    |answer| answer.splice(..3, *b"421").for_each(drop),
                    "answers the connection with \"421 mail.example.org ESMTP Postfix\"",
                ),
                half: "no greeting within 500 ms",
                ended: "closed the connection before it greeted",
            },
        );
    });
}

#[test]
#[ignore = "needs the Debian package nginx-light"]
fn nginx_answers_a_request() {
    in_lab(nginx_answers_a_request, Topology::TwoArm, 1, |lab| {
        all_of_it(
            lab,
            &Case {
                check: "check = \"http\", expect = \"fine\"".to_owned(),
                over: Over::Tcp,
                port: 8080,
                start: |host, port| nginx(host, port, None),
                silent: "no response",
                wrong: (|answer| answer.splice(9..12, *b"503").for_each(drop), "status 503, expected 200-399"),
                half: "no response within 500 ms",
                ended: "closed the connection without a response",
            },
        );
    });
}

#[test]
#[ignore = "needs the Debian package nginx-light"]
fn nginx_answers_a_request_over_tls() {
    in_lab(nginx_answers_a_request_over_tls, Topology::TwoArm, 1, |lab| {
        let authority = Authority::new("trusted");
        let issued = authority.issue(&[NAME]);
        let (host, ca) = (lab.server(1), authority.certificate());
        let serve = |port| nginx(host, port, Some((&issued.chain, &issued.key)));
        let mut daemon = serve(8443);
        let check = format!(
            "check = \"https\", expect = \"fine\", host = \"{NAME}\", verify = true, ca = \"{}\"",
            ca.display()
        );
        let relay = start(lab, &checked(lab, &check, Some(8443)));
        until_up(&relay, &mut daemon);
        daemon.kill();
        until_down(&relay, "port 8443: connection refused");
        let mut daemon = serve(8444);
        let between = Between::start(host, Over::Tcp, 8443);
        for spoil in [Spoil::All, Spoil::Time, Spoil::Half] {
            between.set(spoil);
            until_down(&relay, "port 8443: no TLS handshake within 500 ms");
            between.set(Spoil::Nothing);
            until_up(&relay, &mut daemon);
        }
        between.set(Spoil::Words(|answer| answer[0] = b'H'));
        until_down(&relay, "port 8443: TLS: the server does not speak it");
        between.set(Spoil::End);
        until_down(&relay, "port 8443: closed the connection amid the TLS handshake");
        between.set(Spoil::Nothing);
        until_up(&relay, &mut daemon);
        relay.stop();
    });
}

/// Whether the host answers pings.
fn answer_pings(host: &Host, yes: bool) {
    for key in ["net.ipv4.icmp_echo_ignore_all", "net.ipv6.icmp.echo_ignore_all"] {
        host.set_sysctl(key, if yes { "0" } else { "1" }).unwrap_or_else(|error| panic!("{key}: {error}"));
    }
}

/// All servers of all services are in this state.
#[track_caller]
fn until_all(relay: &Subject, health: HealthStatus, reason: &str) {
    relay.until(&format!("all are {health:?} for \"{reason}\""), |status| {
        let mut servers = status.services.iter().flat_map(|service| &service.servers);
        servers.all(|server| server.health == health && server.reason.contains(reason))
    });
}

#[test]
fn a_ping_is_answered_by_either_family_with_and_without_privileges() {
    in_lab(a_ping_is_answered_by_either_family_with_and_without_privileges, Topology::TwoArm, 1, |lab| {
        let health = format!("health = {{ check = \"ping\", {RHYTHM} }}");
        let config = service("old", lab.vip(100), "443", &health, &ipv4(lab.servers()))
            + &service("new", lab.vip6(0x100), "443", &health, &ipv6(lab.servers()));
        // First a raw socket, as the kernel has it by default; then one that whoever is in the group may open.
        for group in ["1 0", "0 2147483647"] {
            lab.balancer().set_sysctl("net.ipv4.ping_group_range", group).expect("a sysctl");
            let relay = subject!().start(lab.balancer(), &config);
            relay.until_all_up();
            answer_pings(lab.server(1), false);
            until_all(&relay, HealthStatus::Down, "no answer within 500 ms");
            let reason = relay.server("old", "server-1").reason;
            assert!(reason.starts_with("no answer"), "a ping has no port: {reason}");
            answer_pings(lab.server(1), true);
            relay.until_all_up();
            relay.stop();
        }
    });
}

#[test]
fn silence_passes_if_the_operator_says_so_and_a_refusal_never() {
    in_lab(silence_passes_if_the_operator_says_so_and_a_refusal_never, Topology::TwoArm, 1, |lab| {
        let check = "check = \"udp\", send = \"hello\", no_answer = \"passes\"";
        let relay = start(lab, &checked(lab, check, Some(514)));
        until_down(&relay, "port 514: connection refused");
        // Hears and says nothing, like a collector of logs.
        let socket = lab.server(1).run(|| UdpSocket::bind(("0.0.0.0", 514))).expect("a thread").expect("a socket");
        relay.until_all_up();
        drop(socket);
        until_down(&relay, "port 514: connection refused");
        relay.stop();
    });
}

#[test]
fn a_host_that_is_not_there_does_not_pass_by_its_silence() {
    in_lab(a_host_that_is_not_there_does_not_pass_by_its_silence, Topology::TwoArm, 1, |lab| {
        // The kernel gives up on ARP after three seconds.
        let health = |check: &str| {
            format!("health = {{ {check}, interval = \"100ms\", timeout = \"30s\", rise = 1, fall = 1 }}")
        };
        let gone = [("gone", IpAddr::from(lab.free_snat(150)))];
        let udp = "check = \"udp\", ports = [514], no_answer = \"passes\"";
        let config = service("udp", lab.vip(100), "443", &health(udp), &gone)
            + &service("ping", lab.vip(101), "443", &health("check = \"ping\""), &gone);
        let relay = subject!().start(lab.balancer(), &config);
        until_all(&relay, HealthStatus::Down, "host unreachable");
        relay.stop();
    });
}

/// Clients on the first VLAN, servers on the second; Towpath is the router of both.
fn trunk(lab: &TestLab) -> String {
    let [clients, servers] = [lab.client(), lab.server(1)].map(|host| {
        let [a, b, c, _] = host.ipv4().octets();
        let mut v6 = host.ipv6().segments();
        v6[7] = 1;
        format!("addresses = [\"{a}.{b}.{c}.1/24\", \"{}/64\"]", std::net::Ipv6Addr::from(v6))
    });
    format!(
        "[limits]\nflows = 16384\n[[interface]]\nname = \"{TRUNK}\"\n[[interface.vlan]]\nid = {}\nname = \"clients\"\n{clients}\n\
         [[interface.vlan]]\nid = {}\nname = \"servers\"\n{servers}\n",
        VLANS[0], VLANS[1]
    )
}

const STATE: [&str; 3] = [
    "check = \"ping\"",
    "check = \"dns\", query = \"www.example.org\", ports = [53]",
    "check = \"udp\", send = \"hello\", no_answer = \"passes\", ports = [514]",
];

/// A service of each family for each check of [`STATE`], with these keys.
fn by_datagrams(lab: &TestLab, keys: &dyn Fn(bool) -> String, vips: [IpAddr; 2], rhythm: &str) -> String {
    let services = STATE.iter().enumerate().flat_map(|(number, check)| {
        let port = (443 + number).to_string();
        let health = format!("health = {{ {check}, {rhythm} }}");
        [
            packet_service(
                &format!("old-{number}"),
                vips[0],
                &port,
                &format!("{}\n{health}", keys(true)),
                &ipv4(lab.servers()),
            ),
            packet_service(
                &format!("new-{number}"),
                vips[1],
                &port,
                &format!("{}\n{health}", keys(false)),
                &ipv6(lab.servers()),
            ),
        ]
    });
    services.collect()
}

/// Those of one check, in both families.
#[track_caller]
fn until_check(relay: &Subject, number: usize, health: HealthStatus, reason: &str) {
    relay.until(&format!("check {number} is {health:?} for \"{reason}\""), |status| {
        let of = |name: &str| name.ends_with(&format!("-{number}"));
        let mut servers = status.services.iter().filter(|service| of(&service.name)).flat_map(|s| &s.servers);
        servers.all(|server| server.health == health && server.reason.contains(reason))
    });
}

/// Up, refused, silent and up again, by each check; what answers them goes on while it is held.
#[must_use]
fn come_and_go(lab: &TestLab, relay: &Subject) -> (UdpSocket, Daemon) {
    let listen = || lab.server(1).run(|| UdpSocket::bind(("::", 514))).expect("a thread").expect("a socket");
    let socket = listen();
    let mut daemon = dnsmasq(lab.server(1), 53);
    relay.until_all_up();
    daemon.assert_runs();
    daemon.kill();
    answer_pings(lab.server(1), false);
    drop(socket);
    until_check(relay, 0, HealthStatus::Down, "no answer within 500 ms");
    until_check(relay, 1, HealthStatus::Down, "port 53: connection refused");
    until_check(relay, 2, HealthStatus::Down, "port 514: connection refused");
    answer_pings(lab.server(1), true);
    let again = (listen(), dnsmasq(lab.server(1), 53));
    relay.until_all_up();
    again
}

#[test]
#[ignore = "needs the Debian package dnsmasq-base"]
fn datagrams_of_checks_reach_servers_on_a_vlan() {
    in_lab(datagrams_of_checks_reach_servers_on_a_vlan, Topology::TwoArm, 1, |lab| {
        let _wire = Trunk::lay(lab);
        let vips = [lab.free_vip(100).into(), lab.free_vip6(0x100).into()];
        let keys = |is_v4: bool| match is_v4 {
            true => format!("source = {{ pool = [\"{}\"] }}", lab.free_snat(101)),
            false => format!("source = {{ pool = [\"{}\"] }}", lab.free_snat6(0x101)),
        };
        let config = trunk(lab) + &by_datagrams(lab, &keys, vips, RHYTHM);
        let relay = subject!().start(lab.balancer(), &config);
        let _answers = come_and_go(lab, &relay);
        // The plane has left what answers them alone.
        let dropped: u64 =
            relay.status().workers.iter().filter_map(|worker| worker.drops.get("icmp_error_stray")).sum();
        assert_eq!(dropped, 0);
        relay.stop();
    });
}

/// A service, by number, whose server on the second VLAN passes such a check by its silence.
fn on_a_vlan(lab: &TestLab, name: &str, number: u8, check: &str, server: IpAddr) -> String {
    let keys = format!(
        "source = {{ pool = [\"{}\"] }}\nhealth = {{ {check}, no_answer = \"passes\", {RHYTHM} }}",
        lab.free_snat(101)
    );
    packet_service(name, lab.free_vip(100), &(443 + u16::from(number)).to_string(), &keys, &[("server-1", server)])
}

#[test]
fn a_refusal_is_told_to_the_check_that_was_refused() {
    in_lab(a_refusal_is_told_to_the_check_that_was_refused, Topology::TwoArm, 1, |lab| {
        let _wire = Trunk::lay(lab);
        let server = lab.server(1);
        // Each datagram to a closed port is refused, not one in a second (icmp(7)).
        server.set_sysctl("net.ipv4.icmp_ratelimit", "0").expect("a sysctl");
        let _hears = server.run(|| UdpSocket::bind(("0.0.0.0", 515))).expect("a thread").expect("a socket");
        let config = trunk(lab)
            + &on_a_vlan(lab, "closed", 0, "check = \"udp\", ports = [514]", server.ipv4().into())
            + &on_a_vlan(lab, "open", 1, "check = \"udp\", ports = [515]", server.ipv4().into());
        let relay = subject!().start(lab.balancer(), &config);
        // Its checks last for half a second each, in which others are refused several times.
        relay.until("one port is refused for as long as the other one is up", |status| {
            let of = |name: &str| status.services.iter().find(|service| service.name == name).map(|s| &s.servers[0]);
            let (Some(closed), Some(open)) = (of("closed"), of("open")) else { return false };
            let is_refused = closed.health == HealthStatus::Down && closed.reason.contains("connection refused");
            is_refused && closed.health_seconds >= 3 && open.health == HealthStatus::Up && open.health_seconds >= 3
        });
        relay.stop();
    });
}

#[test]
fn a_server_missing_on_a_vlan_does_not_pass_by_its_silence() {
    in_lab(a_server_missing_on_a_vlan_does_not_pass_by_its_silence, Topology::TwoArm, 1, |lab| {
        let _wire = Trunk::lay(lab);
        let gone = lab.free_snat(150).into();
        let config = trunk(lab) + &on_a_vlan(lab, "gone", 0, "check = \"udp\", ports = [514]", gone);
        let relay = subject!().start(lab.balancer(), &config);
        until_all(&relay, HealthStatus::Down, "host unreachable");
        relay.stop();
    });
}

#[test]
fn a_flood_of_other_answers_does_not_hold_a_check_beyond_its_time() {
    in_lab(a_flood_of_other_answers_does_not_hold_a_check_beyond_its_time, Topology::TwoArm, 1, |lab| {
        let _wire = Trunk::lay(lab);
        let server = lab.server(1);
        let socket = server.run(|| UdpSocket::bind(("0.0.0.0", 53))).expect("a thread").expect("a socket");
        // Ends with the process.
        let _runs = server.start(move || {
            let mut question = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut question) {
                // Of another number, for longer than the check has time.
                question[0] ^= 1;
                question[2] |= 0x80;
                for _ in 0..500_000 {
                    let _sent = socket.send_to(&question[..length], client);
                }
            }
        });
        let health = format!("health = {{ check = \"dns\", query = \"www.example.org\", ports = [53], {RHYTHM} }}");
        let keys = format!("source = {{ pool = [\"{}\"] }}\n{health}", lab.free_snat(101));
        let config =
            trunk(lab) + &packet_service("web", lab.free_vip(100), "443", &keys, &[("server-1", server.ipv4().into())]);
        let relay = subject!().start(lab.balancer(), &config);
        until_all(&relay, HealthStatus::Down, "no answer within 500 ms");
        relay.stop();
    });
}

/// Gives a server an address without answering for it.
fn have_silently(server: &Host, vip: Ipv4Addr) {
    for (key, value) in [("arp_ignore", "1"), ("arp_announce", "2")] {
        server.set_sysctl(&format!("net.ipv4.conf.all.{key}"), value).expect("a sysctl");
    }
    server.links().expect("netlink").add_address("lo", vip.into(), 32).expect("an address");
}

#[test]
#[ignore = "needs the Debian package dnsmasq-base"]
fn datagrams_of_checks_ask_for_the_vip_where_servers_answer_directly() {
    in_lab(datagrams_of_checks_ask_for_the_vip_where_servers_answer_directly, Topology::OneArm, 1, |lab| {
        let (vip, vip6) = (lab.free_vip(100), lab.free_vip6(0x100));
        have_silently(lab.server(1), vip);
        lab.server(1).links().expect("netlink").add_address("lo", vip6.into(), 128).expect("an address");
        lab.balancer().set_sysctl("net.ipv4.ip_local_port_range", "32768 60999").expect("a sysctl");
        let keys = |_| "forwarding = \"dsr\"".to_owned();
        let config =
            "[limits]\nflows = 16384\n".to_owned() + &by_datagrams(lab, &keys, [vip.into(), vip6.into()], RHYTHM);
        let relay = subject!().start(lab.balancer(), &config);
        let _answers = come_and_go(lab, &relay);
        lab.server(1).links().expect("netlink").remove_address("lo", vip.into(), 32).expect("an address");
        relay.until("the server lacks one of the VIPs", |status| {
            status.services.iter().all(|service| {
                let expected = match service.name.as_str() {
                    // Nobody says that the VIP is not there.
                    "old-0" | "old-1" => HealthStatus::Down,
                    _ => HealthStatus::Up,
                };
                service.servers[0].health == expected
            })
        });
        relay.stop();
    });
}
