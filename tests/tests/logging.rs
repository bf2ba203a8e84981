//! What the daemon tells about itself: to the journal, to syslog in each way, and how it gets there again.

use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;

use towpath_tests::{Origin, PATIENCE, TestLab, Topology, eventually, in_lab, ipv4, service, subject};

/// A service whose server is checked often.
fn checked(lab: &TestLab, vip: Ipv4Addr) -> String {
    let health = "health = { check = \"tcp\", interval = \"100ms\", fast_interval = \"100ms\", timeout = \"100ms\", rise = 1, fall = 1, flaps = 0 }";
    service("web", vip, "443", health, &ipv4(lab.servers()))
}

#[test]
fn the_journal_gets_the_level_in_front_of_each_line() {
    in_lab(the_journal_gets_the_level_in_front_of_each_line, Topology::TwoArm, 1, |lab| {
        let origin = Origin::tcp(lab.server(1), 443);
        let folder = tempfile::tempdir().expect("a temporary directory");
        let (config, log) = (folder.path().join("towpath.toml"), folder.path().join("log"));
        let text = format!("[control]\nsocket = \"none\"\n{}", checked(lab, lab.vip(100)));
        fs::write(&config, text).expect("a file");
        let stderr = File::create(&log).expect("a file");
        let metadata = stderr.metadata().expect("metadata");
        let mut command = subject!().command();
        command.arg("run").arg("--config").arg(&config).stdout(Stdio::null()).stderr(stderr);
        command.env("JOURNAL_STREAM", format!("{}:{}", metadata.dev(), metadata.ino()));
        let mut child = lab.balancer().spawn(command).expect("a process");
        let line = |what: &str| {
            eventually(what, || {
                let text = fs::read_to_string(&log).expect("the log");
                let line = text.split_inclusive('\n').find(|line| line.contains(what) && line.ends_with('\n'));
                line.map(|line| line.trim_end().to_owned())
            })
        };
        assert!(line("serving: ").starts_with("<6>serving: "));
        // On a machine under load its first check may have failed.
        line("→ up: ");
        drop(origin);
        let down = line("up → down");
        assert!(down.starts_with("<4>server server-1 ("), "{down}");
        assert!(down.contains("port 443: ") && down.contains(" (up for ") && down.ends_with(" s)"), "{down}");
        child.terminate().expect("our child");
        let status = child.wait_timeout(PATIENCE).expect("our child").expect("it ends");
        assert_eq!(status.code(), Some(0));
        assert!(line("stopped; every connection").starts_with("<6>"), "what is told last is written, too");
    });
}

#[test]
fn syslog_gets_changes_of_state_by_each_way() {
    in_lab(syslog_gets_changes_of_state_by_each_way, Topology::TwoArm, 1, |lab| {
        let (own, vip) = (lab.balancer().ipv4(), lab.vip(100));
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("log");
        let local = UnixDatagram::bind(&path).expect("a socket");
        let bind = || (UdpSocket::bind((own, 0)).expect("a socket"), TcpListener::bind((own, 0)).expect("a socket"));
        let (datagrams, stream) = lab.balancer().run(bind).expect("a thread");
        let port = |address: std::io::Result<SocketAddr>| address.expect("an address").port();
        let (udp, tcp) = (port(datagrams.local_addr()), port(stream.local_addr()));
        local.set_read_timeout(Some(PATIENCE)).expect("not zero");
        datagrams.set_read_timeout(Some(PATIENCE)).expect("not zero");
        let mut accepted: Option<TcpStream> = None;
        for way in ["local", "udp", "tcp"] {
            let origin = Origin::tcp(lab.server(1), 443);
            let syslog = match way {
                "local" => format!("syslog = \"{}\"", path.display()),
                "udp" => format!("syslog = \"{own}:{udp}\""),
                _ => format!("syslog = \"{own}:{tcp}\"\nsyslog_transport = \"tcp\""),
            };
            let relay =
                subject!().start(lab.balancer(), &format!("[log]\nto = \"syslog\"\n{syslog}\n{}", checked(lab, vip)));
            let mut next = || {
                let mut message = vec![0; 4096];
                let length = match way {
                    "local" => local.recv(&mut message).expect("a message"),
                    "udp" => datagrams.recv(&mut message).expect("a message"),
                    _ => {
                        let stream = accepted.get_or_insert_with(|| stream.accept().expect("a connection").0);
                        counted(stream, &mut message)
                    }
                };
                String::from_utf8(message[..length].to_vec()).expect("text")
            };
            let mut until = |what: &str| loop {
                let message = next();
                if message.contains(what) {
                    break message;
                }
            };
            let serving = until("serving: listeners: ");
            // On a machine under load its first check may have failed.
            relay.until_all_up();
            drop(origin);
            let down = until("up → down");
            match way {
                "local" => {
                    assert!(serving.starts_with("<30>") && serving.contains(" towpath["), "{serving}");
                    assert!(down.starts_with("<28>") && down.contains("]: server server-1 ("), "{down}");
                }
                _ => {
                    // Version, time, host, name, process, kind, no structured data.
                    let fields: Vec<&str> = down.splitn(8, ' ').collect();
                    assert_eq!(
                        (fields[0], fields[3], fields[5], fields[6]),
                        ("<28>1", "towpath", "log", "-"),
                        "{down}"
                    );
                    assert!(fields[1].ends_with('Z') && fields[1].len() == "2026-11-22T18:00:00.000Z".len(), "{down}");
                    assert!(fields[7].starts_with("server server-1 (") && serving.starts_with("<30>1 "), "{down}");
                }
            }
            assert!(!relay.log().contains("serving: "), "it went to syslog instead:\n{}", relay.log());
            relay.stop();
        }
    });
}

/// Reads one message with its length in front; says how long it is.
fn counted(stream: &mut TcpStream, message: &mut [u8]) -> usize {
    stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
    let mut length = 0;
    loop {
        let mut digit = [0];
        stream.read_exact(&mut digit).expect("a length");
        match digit[0] {
            b' ' => break,
            digit => length = length * 10 + usize::from(digit - b'0'),
        }
    }
    stream.read_exact(&mut message[..length]).expect("a message");
    length
}

#[test]
fn lines_go_to_standard_error_while_syslog_takes_none() {
    in_lab(lines_go_to_standard_error_while_syslog_takes_none, Topology::TwoArm, 1, |lab| {
        let own = lab.balancer().ipv4();
        // Somebody has had this port, and nobody else gets it meanwhile: it is below those that the kernel gives to its own connections.
        let at = SocketAddr::from((own, 6514));
        let origin = Origin::tcp(lab.server(1), 443);
        let config = format!(
            "[log]\nto = \"syslog\"\nsyslog = \"{at}\"\nsyslog_transport = \"tcp\"\n{}",
            checked(lab, lab.vip(100))
        );
        let relay = subject!().start(lab.balancer(), &config);
        let log =
            eventually("lines go to standard error", || Some(relay.log()).filter(|log| log.contains("serving: ")));
        let trouble = format!("WARN syslog {at}: ");
        assert_eq!(log.matches(&trouble).count(), 1, "it is said once:\n{log}");
        let listener = lab.balancer().run(|| TcpListener::bind(at)).expect("a thread").expect("a socket");
        // One line after the other tells whether syslog is there again: the server goes and comes.
        drop(origin);
        let mut stream = None;
        listener.set_nonblocking(true).expect("a socket");
        let mut origin = None;
        for turn in 0.. {
            relay.until("it has changed", |status| {
                let health = status.services[0].servers[0].health;
                health
                    == [towpath_engine::status::HealthStatus::Down, towpath_engine::status::HealthStatus::Up][turn % 2]
            });
            if let Ok((accepted, _)) = listener.accept() {
                stream = Some(accepted);
                break;
            }
            assert!(turn < 100, "syslog is not opened anew:\n{}", relay.log());
            origin = match origin {
                None => Some(Origin::tcp(lab.server(1), 443)),
                Some(_) => None,
            };
        }
        let mut stream = stream.expect("a connection");
        stream.set_nonblocking(false).expect("a socket");
        let mut message = vec![0; 4096];
        let length = counted(&mut stream, &mut message);
        let text = String::from_utf8_lossy(&message[..length]).into_owned();
        assert!(text.contains(" towpath ") && text.contains("server-1"), "{text}");
        eventually("that it is well again is said", || relay.log().contains(": lines go there again").then_some(()));
        relay.stop();
        drop(origin);
    });
}

#[test]
fn the_level_and_the_format_are_those_of_the_file() {
    in_lab(the_level_and_the_format_are_those_of_the_file, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let origin = Origin::tcp(lab.server(1), 443);
        let config = |keys: &str| format!("[log]\n{keys}\n{}", checked(lab, vip));
        let mut relay = subject!().start(lab.balancer(), &config("level = \"warn\""));
        relay.until_all_up();
        assert!(!relay.log().contains("serving: "), "{}", relay.log());
        relay.reload(&config("level = \"info\"")).expect("a good file");
        assert!(relay.log().contains(" INFO SIGHUP: "), "{}", relay.log());
        relay.stop();

        let relay = subject!().start(lab.balancer(), &config("format = \"json\""));
        relay.until_all_up();
        drop(origin);
        let down = eventually("the change is told", || {
            let log = relay.log();
            log.lines().find(|line| line.contains("up → down") && line.ends_with('}')).map(str::to_owned)
        });
        let object: serde_json::Value = serde_json::from_str(&down).expect("an object");
        assert_eq!(object["level"], "warn", "{down}");
        assert!(object["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{down}");
        assert!(object["message"].as_str().is_some_and(|text| text.starts_with("server server-1 (")), "{down}");
        relay.stop();
    });
}
