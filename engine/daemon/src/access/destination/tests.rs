use std::io::Read;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process;

use towpath_config::model::{Syslog, SyslogTransport};

use super::*;

/// Two seconds before 1 January 2027.
const UNIX_MS: u64 = 1_798_761_598_007;
const WAIT: Duration = Duration::from_millis(20);

fn lines(texts: &[&str]) -> Lines {
    let mut lines = Lines::with_room(64);
    for text in texts {
        lines.push(UNIX_MS, text.contains("bad"), |out| out.extend_from_slice(text.as_bytes()));
    }
    lines
}

/// Writes all of it; says how many lines were taken.
fn write_all(destination: &mut Destination, lines: &mut Lines) -> u64 {
    let mut written = 0;
    while !lines.is_empty() {
        match destination.write(lines, Duration::from_secs(10)) {
            Ok(more) => written += more,
            Err(Refused::Full) => panic!("it takes nothing"),
            Err(Refused::Failed(error) | Refused::Gone(error)) => panic!("{error}"),
        }
    }
    written
}

fn file(path: &Path) -> Destination {
    Destination::open(&LogTo::File(path.to_owned())).unwrap()
}

#[test]
fn lines_are_appended_to_a_file_that_others_may_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    assert_eq!(write_all(&mut file(&path), &mut lines(&["one", "two"])), 2);
    assert_eq!(write_all(&mut file(&path), &mut lines(&["three"])), 1);
    assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\nthree\n");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o007, 0);
}

#[test]
fn a_file_is_followed_by_its_name_and_no_line_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (path, old) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
    let mut destination = file(&path);
    write_all(&mut destination, &mut lines(&["one"]));
    fs::rename(&path, &old).unwrap();
    // It is not looked before its time; nothing is lost meanwhile.
    write_all(&mut destination, &mut lines(&["two"]));
    let Destination::File(log) = &mut destination else { panic!("a file") };
    log.looked_at = Instant::now() - NAME_LOOK;
    write_all(&mut destination, &mut lines(&["three"]));
    assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
    assert_eq!(fs::read_to_string(&old).unwrap(), "one\ntwo\n");
    // Where nothing can be opened under the name, the file goes on.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let Destination::File(log) = &mut destination else { panic!("a file") };
    log.looked_at = Instant::now() - NAME_LOOK;
    assert_eq!(write_all(&mut destination, &mut lines(&["four"])), 1);
}

#[test]
fn a_full_disk_loses_lines_and_never_joins_two() {
    let mut full = Destination::open(&LogTo::File("/dev/full".into())).unwrap();
    let mut lost = lines(&["one", "two"]);
    let Err(Refused::Failed(error)) = full.write(&mut lost, WAIT) else { panic!("no room was left") };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(lost.clear(), 2);
    // A part of a line was written when the room ended.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    fs::write(&path, "on").unwrap();
    let mut destination = file(&path);
    let Destination::File(log) = &mut destination else { panic!("a file") };
    log.is_torn = true;
    write_all(&mut destination, &mut lines(&["two"]));
    assert_eq!(fs::read_to_string(&path).unwrap(), "on\ntwo\n");
}

#[test]
fn a_pipe_that_is_full_is_waited_for_no_longer_than_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    let made = process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    let nobody = Destination::open(&LogTo::File(path.clone()));
    assert!(nobody.is_err_and(|error| host::is_without_reader(&error)));
    check(&Log { to: LogTo::File(path.clone()), ..log() }).unwrap();
    let mut reader = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut destination = file(&path);
    let line = "x".repeat(1000);
    let mut written = 0;
    loop {
        let mut more = lines(&[line.as_str(); 16]);
        match destination.write(&mut more, WAIT) {
            Ok(lines) => written += lines,
            Err(Refused::Full) => break,
            Err(Refused::Failed(error) | Refused::Gone(error)) => panic!("{error}"),
        }
    }
    assert!(written > 16, "a pipe takes some");
    // Whole lines only.
    let mut read = vec![0; written as usize * 1001];
    reader.read_exact(&mut read).unwrap();
    assert!(read.chunks(1001).all(|chunk| chunk.ends_with(b"x\n")));
}

fn log() -> Log {
    Log::default()
}

#[test]
fn a_place_that_cannot_be_written_to_is_told_before() {
    let to = LogTo::File("/nowhere/access.log".into());
    let told = check(&Log { to, ..log() }).unwrap_err();
    assert!(told.contains("/nowhere/access.log") && told.contains("directory"), "{told}");
}

#[test]
fn syslog_gets_a_message_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let local = UnixDatagram::bind(&path).unwrap();
    let mut destination = Destination::open(&LogTo::Syslog(Syslog::Local(path))).unwrap();
    assert_eq!(write_all(&mut destination, &mut lines(&["one", "bad"])), 2);
    let mut message = [0; 200];
    let pid = process::id();
    for (line, priority) in [("one", 134), ("bad", 131)] {
        let length = local.recv(&mut message).unwrap();
        let expected = format!("<{priority}>Dec 31 23:59:58 towpath[{pid}]: {line}");
        assert_eq!(std::str::from_utf8(&message[..length]).unwrap(), expected);
    }
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = LogTo::Syslog(Syslog::Server(server.local_addr().unwrap(), SyslogTransport::Udp));
    let mut destination = Destination::open(&to).unwrap();
    assert_eq!(write_all(&mut destination, &mut lines(&["one"])), 1);
    let length = server.recv(&mut message).unwrap();
    let text = std::str::from_utf8(&message[..length]).unwrap();
    let rest = text.strip_prefix("<134>1 2026-12-31T23:59:58.007Z ").unwrap();
    assert!(rest.ends_with(&format!(" towpath {pid} access - one")), "{text}");
}

#[test]
fn a_syslog_that_has_gone_is_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let local = UnixDatagram::bind(&path).unwrap();
    let mut destination = Destination::open(&LogTo::Syslog(Syslog::Local(path))).unwrap();
    drop(local);
    assert!(matches!(destination.write(&mut lines(&["one"]), WAIT), Err(Refused::Gone(_))));
}
