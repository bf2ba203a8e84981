//! Programs of the operator's, run for a bounded time: no shell, an environment that says what it is to say and no more, bounded output, and an end
//! that takes whatever they have started.

use std::fs;
use std::io::{self, PipeReader, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe::Receiver;
use tokio::time::timeout;
use towpath_config::model::{CheckKind, CommandLine, Model};
use towpath_sys::process::{Group, MemoryFile};

use crate::http_files::FileFault;

/// Bytes of its output that are kept; what comes behind is read and forgotten, so that nobody hangs who says much.
const OUTPUT_BYTES_MAX: usize = 4_096;
/// How long one that was killed may take to be gone; whoever hangs in the kernel is left to itself.
const DEATH_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes that a program may be handed on its standard input.
const INPUT_BYTES_MAX: usize = 1 << 20;
/// Whom the kernel shows for users that a namespace does not have (`/proc/sys/kernel/overflowuid`, by default).
const OVERFLOW_UID: u32 = 65_534;
/// Where programs find others.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// By itself, with this status and the beginning of what it said on both outputs.
    Exited { status: i32, output: String },
    /// It took too long and was killed, with what it had said.
    Late { output: String },
    /// By a signal.
    Signalled { signal: i32, output: String },
}

/// Runs a program and waits until it ends, no longer than `limit`; then it is killed, and in either case all that is left of its process group.
/// Dropping what waits kills it, too. `place` is given back when it is gone, which may be later for one that hangs in the kernel.
pub(crate) async fn run(
    place: impl Send + Sync + 'static,
    line: &CommandLine,
    environment: &[(&str, String)],
    input: &[u8],
    limit: Duration,
) -> io::Result<Outcome> {
    let (output, writer) = io::pipe()?;
    let mut command = Command::new(&line.program);
    command.args(&line.arguments).env_clear().env("PATH", PATH).current_dir("/");
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.stdin(standard_input(input)?).stdout(writer.try_clone()?).stderr(writer);
    let group = Group::spawn(&mut command, place)?;
    // Our copies of the end that it writes to.
    drop(command);
    #[expect(
        deprecated,
        reason = "`register` is unsafe; the descriptor is the group's own and stays open as long as it"
    )]
    let mut group = AsyncFd::new(group)?;
    let mut output = Output::of(output)?;
    let in_time = timeout(limit, async {
        // Its output may be held open by what it has started: its own end is what counts.
        tokio::select! {
            ended = group.readable() => ended.map(drop),
            never = output.read_on() => never,
        }
    })
    .await;
    if in_time.is_err() {
        group.get_ref().kill()?;
        let _gone = timeout(DEATH_TIMEOUT, group.readable()).await;
    }
    let status = group.get_mut().try_end()?;
    output.read_rest();
    let output = output.text();
    match (in_time, status) {
        (Ok(Err(error)), _) => Err(error),
        (Err(_), _) | (Ok(Ok(())), None) => Ok(Outcome::Late { output }),
        (Ok(Ok(())), Some(status)) => Ok(match (status.code(), status.signal()) {
            (Some(status), _) => Outcome::Exited { status, output },
            (None, signal) => Outcome::Signalled { signal: signal.unwrap_or_default(), output },
        }),
    }
}

/// What the program reads: a file of its own, for a pipe would have to be written while it runs.
fn standard_input(input: &[u8]) -> io::Result<Stdio> {
    if input.is_empty() {
        return Ok(Stdio::null());
    }
    if input.len() > INPUT_BYTES_MAX {
        return Err(io::Error::other(format!("more than {INPUT_BYTES_MAX} bytes of input")));
    }
    // Not opened anew by its path, which in a PID namespace need not lead to us.
    let mut file = MemoryFile::create(input)?.writer()?;
    file.rewind()?;
    Ok(file.into())
}

/// What a program says.
struct Output {
    pipe: Receiver,
    kept: Vec<u8>,
}

impl Output {
    fn of(pipe: PipeReader) -> io::Result<Output> {
        Ok(Output { pipe: Receiver::from_owned_fd(OwnedFd::from(pipe))?, kept: Vec::new() })
    }

    /// Reads for as long as somebody waits.
    async fn read_on(&mut self) -> io::Result<()> {
        let mut buffer = [0; 1024];
        loop {
            match self.pipe.read(&mut buffer).await? {
                // It has closed its outputs and works on.
                0 => std::future::pending().await,
                length => self.keep(&buffer[..length]),
            }
        }
    }

    /// Takes what lies in the pipe: everybody who could write is dead, or has left the group.
    fn read_rest(&mut self) {
        let mut buffer = [0; 1024];
        while self.kept.len() < OUTPUT_BYTES_MAX {
            match self.pipe.try_read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(length) => self.keep(&buffer[..length]),
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = OUTPUT_BYTES_MAX - self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.kept).into_owned()
    }
}

/// The first line that is not empty, without what a terminal would act on.
pub(crate) fn first_line(output: &str) -> String {
    let line = output.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.chars().filter(|character| !character.is_control()).collect()
}

/// What is wrong with the programs that health checks run.
pub(crate) fn faults(model: &Model) -> Vec<FileFault> {
    let mut faults: Vec<FileFault> = Vec::new();
    for service in &model.services {
        for group in model.groups_of(service) {
            let Some(CheckKind::External(line)) = group.health.as_ref().map(|health| &health.check) else { continue };
            if faults.iter().any(|known| known.file == line.program) {
                continue;
            }
            if let Err(problem) = judge(&line.program) {
                faults.push(FileFault {
                    service: Some(service.name.clone()),
                    file: line.program.clone(),
                    message: format!("health.command: {}: {problem}", line.program.display()),
                });
            }
        }
    }
    faults
}

/// Whether this program can be run, and nobody else than its owner and root decide what it is: it runs with our rights.
pub(crate) fn judge(program: &Path) -> Result<(), String> {
    let told = |error: io::Error| {
        let text = error.to_string();
        format!("{}; check the path", text.split(" (os error").next().unwrap_or_default().to_lowercase())
    };
    let real = fs::canonicalize(program).map_err(told)?;
    let file = fs::metadata(&real).map_err(told)?;
    if !file.is_file() || file.permissions().mode() & 0o111 == 0 {
        return Err("it is no program; make it executable (`chmod 755`)".to_owned());
    }
    let us = fs::metadata("/proc/self").map_or(0, |own| own.uid());
    // In a user namespace, whoever is not of it: nobody in it is (user_namespaces(7), "Unmapped user and group IDs").
    let is_initial = fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.trim_end().ends_with("4294967295"));
    let owners = [0, us, if is_initial { us } else { OVERFLOW_UID }];
    // Directories count as well: who may rename there puts another program in its place, unless the sticky bit forbids it. Where it is a link, those of
    // the link and of what it leads to.
    let links = program.ancestors().skip(1);
    for path in real.ancestors().chain(links) {
        let Ok(entry) = fs::metadata(path) else { continue };
        let mode = entry.permissions().mode();
        let is_kept = entry.is_dir() && mode & 0o1000 != 0;
        let others = mode & 0o002 != 0 || (mode & 0o020 != 0 && entry.gid() != 0);
        if (others && !is_kept) || !owners.contains(&entry.uid()) {
            return Err(format!(
                "others than root can change {}, and it would run with our rights; `chown root: {0}` and `chmod go-w {0}`",
                path.display()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn shell(script: &str) -> CommandLine {
        CommandLine { program: "/bin/sh".into(), arguments: vec!["-c".to_owned(), script.to_owned()] }
    }

    fn outcome(
        line: &CommandLine,
        environment: &[(&str, String)],
        input: &[u8],
        limit: Duration,
    ) -> io::Result<Outcome> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run((), line, environment, input, limit))
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_program_hears_what_it_is_told_and_nothing_else() {
        let told = [("TOWPATH_PORT", "443".to_owned())];
        let script = "read line; echo \"$line $TOWPATH_PORT ${HOME-none} $(pwd)\"; echo 2 >&2; exit 3";
        let ended = outcome(&shell(script), &told, b"hello\n", LONG).unwrap();
        assert_eq!(ended, Outcome::Exited { status: 3, output: "hello 443 none /\n2\n".to_owned() });
        let ended = outcome(&shell("cat; kill -SEGV $$"), &[], b"", LONG).unwrap();
        assert_eq!(ended, Outcome::Signalled { signal: 11, output: String::new() });
        let missing = CommandLine { program: "/no/such/program".into(), arguments: Vec::new() };
        assert_eq!(outcome(&missing, &[], b"", LONG).unwrap_err().kind(), io::ErrorKind::NotFound);
        // No shell splits or expands what it is told.
        let literal = CommandLine { program: "/bin/echo".into(), arguments: vec!["$HOME  *".to_owned()] };
        assert_eq!(
            outcome(&literal, &[], b"", LONG).unwrap(),
            Outcome::Exited { status: 0, output: "$HOME  *\n".into() }
        );
    }

    #[test]
    fn what_is_late_is_killed_with_all_that_it_has_started() {
        let script = "sleep 1000 & echo $!; wait";
        let began = Instant::now();
        let Outcome::Late { output } = outcome(&shell(script), &[], b"", Duration::from_millis(300)).unwrap() else {
            panic!("it sleeps")
        };
        assert!(began.elapsed() < LONG);
        assert_gone(output.trim());
    }

    #[test]
    fn what_it_leaves_behind_ends_with_it_and_nobody_waits_for_that() {
        let began = Instant::now();
        let ended = outcome(&shell("sleep 1000 & echo $!"), &[], b"", LONG).unwrap();
        assert!(began.elapsed() < LONG, "its output is still open in what it left behind");
        let Outcome::Exited { status: 0, output } = ended else { panic!("{ended:?}") };
        assert_gone(output.trim());
    }

    /// It may be a zombie for a moment: who has to reap it is not us.
    #[track_caller]
    fn assert_gone(pid: &str) {
        let deadline = Instant::now() + LONG;
        loop {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
            if matches!(state, None | Some('Z' | 'X')) {
                return;
            }
            assert!(Instant::now() < deadline, "process {pid} lives: {stat}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn much_output_is_read_and_forgotten() {
        let ended = outcome(&shell("head -c 1000000 /dev/zero | tr '\\0' x; exit 1"), &[], b"", LONG).unwrap();
        let Outcome::Exited { status: 1, output } = ended else { panic!("{ended:?}") };
        assert_eq!(output.len(), OUTPUT_BYTES_MAX);
        assert!(outcome(&shell("true"), &[], &vec![0; INPUT_BYTES_MAX + 1], LONG).is_err());
        assert_eq!(
            outcome(&shell("true"), &[], &vec![0; INPUT_BYTES_MAX], LONG).unwrap(),
            Outcome::Exited { status: 0, output: String::new() }
        );
    }

    #[test]
    fn the_first_line_is_one_for_a_log() {
        assert_eq!(first_line("\n \n  disk full \x1b[31m\nmore"), "disk full [31m");
        assert_eq!(first_line(""), "");
    }

    #[test]
    fn a_program_that_others_can_change_is_not_run() {
        let directory = tempfile::tempdir_in("/var/lib").or_else(|_| tempfile::tempdir()).unwrap();
        let program = directory.path().join("check");
        let told = |wanted: &str| {
            let told = judge(&program).unwrap_err();
            assert!(told.contains(wanted), "{told}");
        };
        told("no such file or directory; check the path");
        fs::write(&program, "#!/bin/sh\n").unwrap();
        let mode = |mode| fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
        mode(0o644);
        told("it is no program");
        mode(0o757);
        told("others than root can change");
        mode(0o755);
        assert_eq!(judge(&program), Ok(()));
        // Who may change where a link leads, may change the program.
        let open = tempfile::tempdir().unwrap();
        fs::set_permissions(open.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let real = open.path().join("real");
        fs::rename(&program, &real).unwrap();
        std::os::unix::fs::symlink(&real, &program).unwrap();
        told("others than root can change");
        fs::set_permissions(open.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(judge(&program), Ok(()));
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        told("others than root can change");
    }
}
