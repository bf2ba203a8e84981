//! What a real server reads of what was let through: the same requests, or nothing more.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use towpath_core::random::SplitMix64;

use crate::fuzz::{change, request_streams};
use crate::target::{play, read_plainly};
use crate::{GET, LIMITS, text};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
/// Streams that are made of the corpus by changes; most of them are refused.
const CHANGED: usize = 30_000;

/// A server in a folder of its own; it says of each request what it has read as its first line.
struct Server {
    socket: Socket,
    /// What ends it: a command, or its process.
    end: End,
    folder: PathBuf,
}

enum Socket {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

enum End {
    Command(Command),
    Process(Child),
}

/// Where a program is; `None` where it is not installed.
fn program(name: &str) -> Option<PathBuf> {
    let paths = env::var_os("PATH").unwrap_or_default();
    let mut folders = env::split_paths(&paths).chain([PathBuf::from("/usr/sbin")]);
    folders.find_map(|folder| Some(folder.join(name)).filter(|program| program.exists()))
}

fn folder_for(name: &str) -> PathBuf {
    let folder = env::temp_dir().join(format!("towpath-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

impl Server {
    fn nginx(program: &Path) -> Server {
        let path = folder_for("nginx");
        let folder = path.display();
        let bodies: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {folder}/{what};\n"))
            .concat();
        let config = format!(
            "worker_processes 1; error_log {folder}/error.log; pid {folder}/pid;\n\
             events {{ worker_connections 64; }}\n\
             http {{ access_log off; keepalive_requests 1000000; ignore_invalid_headers off; client_max_body_size 0; large_client_header_buffers 8 64k;\n{bodies}\
             server {{ listen unix:{folder}/socket; add_header X-Line \"$request\" always; location / {{ return 200; }} }} }}\n"
        );
        fs::write(path.join("config"), config).expect("a file");
        let command = |arguments: &[&str]| {
            let mut command = Command::new(program);
            command.arg("-e").arg(path.join("error.log")).arg("-c").arg(path.join("config")).args(arguments);
            command
        };
        // It goes to the background once it listens.
        let started = command(&[]).status().expect("nginx can be run").success();
        assert!(started, "{}", fs::read_to_string(path.join("error.log")).unwrap_or_default());
        Server { socket: Socket::Unix(path.join("socket")), end: End::Command(command(&["-s", "stop"])), folder: path }
    }

    /// It takes only ports that are named: one that was free just now, and another where somebody was faster.
    fn apache(program: &Path) -> Server {
        let path = folder_for("apache");
        let folder = path.display();
        let modules: String = ["mpm_prefork", "authz_core", "alias", "headers"]
            .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
            .concat();
        for _ in 0..10 {
            let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
            let config = format!(
                "{modules}ServerName a.example\nListen {free}\nUser nobody\nGroup nogroup\nDefaultRuntimeDir {folder}\nPidFile {folder}/pid\n\
                 ErrorLog {folder}/error.log\nMaxKeepAliveRequests 0\nLimitRequestLine 65536\nLimitRequestFieldSize 65536\nLimitRequestFields 0\n\
                 Header always set X-Line \"expr=%{{THE_REQUEST}}\"\nRedirect 204 /\n"
            );
            fs::write(path.join("config"), config).expect("a file");
            // One process, which stays in front.
            let mut apache = Command::new(program);
            apache.arg("-X").arg("-d").arg(&path).arg("-f").arg(path.join("config"));
            let mut process = apache.stdin(Stdio::null()).spawn().expect("Apache can be run");
            while process.try_wait().expect("our own process").is_none() {
                if TcpStream::connect(free).is_ok() {
                    return Server { socket: Socket::Tcp(free), end: End::Process(process), folder: path };
                }
                thread::yield_now();
            }
        }
        panic!("{}", fs::read_to_string(path.join("error.log")).unwrap_or_default());
    }

    /// What it says of this stream: the requests that it has read, and whether it ended there, by refusing what came behind them.
    fn reads(&self, stream: &[u8]) -> (Vec<Vec<u8>>, bool) {
        let wait = Some(Duration::from_secs(20));
        let mut heard = Vec::new();
        match &self.socket {
            Socket::Unix(path) => {
                let mut socket = UnixStream::connect(path).expect("it listens");
                socket.set_read_timeout(wait).expect("a socket");
                socket.write_all(stream).expect("it takes it");
                socket.shutdown(Shutdown::Write).expect("a socket");
                socket.read_to_end(&mut heard).expect("it ends");
            }
            Socket::Tcp(address) => {
                let mut socket = TcpStream::connect(address).expect("it listens");
                socket.set_read_timeout(wait).expect("a socket");
                socket.write_all(stream).expect("it takes it");
                socket.shutdown(Shutdown::Write).expect("a socket");
                socket.read_to_end(&mut heard).expect("it ends");
            }
        }
        let (answers, rest) = read_plainly(&heard, true);
        assert!(rest.is_empty(), "{}", text(rest));
        let line = |head: &[u8]| {
            // What Apache answers itself has no such field: that, by 200.
            let known = head.starts_with(b"HTTP/1.1 200").then(|| b"OPTIONS * HTTP/1.1".to_vec());
            let behind = head.windows(10).position(|part| part == b"\r\nX-Line: ").map(|at| at + 10);
            behind.and_then(|at| head[at..].split(|byte| *byte == b'\r').next().map(<[u8]>::to_vec)).or(known)
        };
        // Apache has more words for it than 400, and where it has not asked for the body that `Expect` announces it just ends.
        let ends = |head: &[u8]| {
            head.starts_with(b"HTTP/1.1 4") || head.windows(19).any(|part| part == b"\r\nConnection: close")
        };
        let ended = answers.last().is_some_and(|answer| ends(&answer.head));
        (
            answers.iter().filter(|answer| answer.head[9] != b'1').filter_map(|answer| line(&answer.head)).collect(),
            ended,
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What is left of it, in the folder of temporary files, harms nobody.
        match &mut self.end {
            End::Command(command) => drop(command.status()),
            End::Process(process) => drop(process.kill().and_then(|()| process.wait())),
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
#[ignore = "needs the Debian package nginx-light"]
fn nginx_reads_the_requests_that_were_let_through_and_no_other() {
    compare("nginx", Server::nginx);
}

#[test]
#[ignore = "needs the Debian package apache2-bin"]
fn apache_reads_the_requests_that_were_let_through_and_no_other() {
    compare("apache2", Server::apache);
}

fn compare(name: &str, start: fn(&Path) -> Server) {
    let Some(program) = program(name) else {
        println!("{name} is not installed: nothing is compared");
        return;
    };
    let server = start(&program);
    // Those that are about our own limits are of no interest to it.
    let mut streams: Vec<_> = request_streams().into_iter().filter(|stream| stream.len() < 8_192).collect();
    let seeds = streams.clone();
    let mut random = SplitMix64::new(7);
    let any = |random: &mut SplitMix64| random.below(seeds.len() as u64) as usize;
    for _ in 0..CHANGED {
        let mut stream = seeds[any(&mut random)].clone();
        for _ in 0..=random.below(3) {
            let other = any(&mut random);
            change(&mut stream, &seeds[other], &mut random);
        }
        streams.push(stream);
    }
    let (mut same, mut refused) = (0, 0);
    let mut known = HashSet::new();
    for stream in streams {
        let played = play(&[&stream, GET].concat(), &[OK; 4], LIMITS, |left| left);
        for sent in played.to_servers {
            let (requests, rest) = read_plainly(&sent, false);
            if requests.is_empty() || !rest.is_empty() || !known.insert(sent.clone()) {
                continue;
            }
            let line = |head: &[u8]| head.split(|byte| *byte == b'\r').next().unwrap_or_default().to_vec();
            let lines: Vec<_> = requests.iter().map(|request| line(&request.head)).collect();
            let (read, has_ended) = server.reads(&sent);
            if read == lines {
                same += 1;
            } else {
                // It may be stricter (it wants methods in capitals), but then it ends.
                assert!(
                    has_ended && lines.starts_with(&read),
                    "{}: {:?}",
                    text(&sent),
                    read.iter().map(|line| text(line)).collect::<Vec<_>>()
                );
                refused += 1;
            }
        }
    }
    assert!(same > 500 && refused < same / 4, "{same} streams were read as we read them, {refused} refused");
}
