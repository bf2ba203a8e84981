//! What a real server reads of what was let through: the same requests, or nothing more.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

use towpath_core::random::SplitMix64;

use crate::fuzz::{change, request_streams};
use crate::target::{play, read_plainly};
use crate::{GET, LIMITS, text};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
/// Streams that are made of the corpus by changes; most of them are refused.
const CHANGED: usize = 30_000;

/// nginx on a socket in a folder of its own; it says of each request what it has read as its first line.
struct Nginx {
    program: PathBuf,
    folder: PathBuf,
}

impl Nginx {
    /// `None` where it is not installed.
    fn start() -> Option<Nginx> {
        let paths = env::var_os("PATH").unwrap_or_default();
        let mut folders = env::split_paths(&paths).chain([PathBuf::from("/usr/sbin")]);
        let program = folders.find_map(|folder| Some(folder.join("nginx")).filter(|program| program.exists()))?;
        let nginx = Nginx { program, folder: env::temp_dir().join(format!("towpath-nginx-{}", std::process::id())) };
        fs::create_dir_all(&nginx.folder).expect("a folder");
        let folder = nginx.folder.display();
        let bodies: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {folder}/{what};\n"))
            .concat();
        let config = format!(
            "worker_processes 1; error_log {folder}/error.log; pid {folder}/pid;\n\
             events {{ worker_connections 64; }}\n\
             http {{ access_log off; keepalive_requests 1000000; ignore_invalid_headers off; client_max_body_size 0; large_client_header_buffers 8 64k;\n{bodies}\
             server {{ listen unix:{folder}/socket; add_header X-Line \"$request\" always; location / {{ return 200; }} }} }}\n"
        );
        fs::write(nginx.folder.join("config"), config).expect("a file");
        // It goes to the background once it listens.
        assert!(nginx.run(&[]), "{}", fs::read_to_string(nginx.folder.join("error.log")).unwrap_or_default());
        Some(nginx)
    }

    fn run(&self, arguments: &[&str]) -> bool {
        let config = self.folder.join("config");
        let log = self.folder.join("error.log");
        let command = Command::new(&self.program).arg("-e").arg(log).arg("-c").arg(config).args(arguments).status();
        command.expect("nginx can be run").success()
    }

    /// What it says of this stream: the requests that it has read, and whether it refused what came behind them.
    fn reads(&self, stream: &[u8]) -> (Vec<Vec<u8>>, bool) {
        let mut socket = UnixStream::connect(self.folder.join("socket")).expect("nginx listens");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        socket.write_all(stream).expect("nginx takes it");
        socket.shutdown(Shutdown::Write).expect("a socket");
        let mut heard = Vec::new();
        socket.read_to_end(&mut heard).expect("nginx ends");
        let (answers, rest) = read_plainly(&heard, true);
        assert!(rest.is_empty(), "{}", text(rest));
        let line = |head: &[u8]| {
            let behind = head.windows(10).position(|part| part == b"\r\nX-Line: ").map(|at| at + 10)?;
            head[behind..].split(|byte| *byte == b'\r').next().map(<[u8]>::to_vec)
        };
        let refused = answers.last().is_some_and(|answer| answer.head.starts_with(b"HTTP/1.1 400"));
        (
            answers.iter().filter(|answer| answer.head[9] != b'1').filter_map(|answer| line(&answer.head)).collect(),
            refused,
        )
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.run(&["-s", "stop"]);
        // What is left in the folder of temporary files harms nobody.
        let _ = fs::remove_dir_all(Path::new(&self.folder));
    }
}

#[test]
fn nginx_reads_the_requests_that_were_let_through_and_no_other() {
    let Some(nginx) = Nginx::start() else {
        println!("nginx is not installed: nothing is compared");
        return;
    };
    // Those that are about our own limits are of no interest to nginx.
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
            let (read, is_refused) = nginx.reads(&sent);
            if read == lines {
                same += 1;
            } else {
                // It may be stricter (it wants methods in capitals), but then it ends.
                assert!(
                    is_refused && lines.starts_with(&read),
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
