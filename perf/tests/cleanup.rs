//! However the program ends, nothing of it stays: no process, no namespace, no file.

#![allow(clippy::unwrap_used)]

mod program;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Command};

use program::{Folder, Impostor, eventually, namespaces, namespaces_of, processes, towpath_perf, tree};
use towpath_perf::lab::{Privilege, ensure_privilege};

/// A relay that carries what it is given.
const RELAY: &str = "relay(listen(), lambda _, data: data)\n";

/// What a run holds at one moment.
struct Traces {
    processes: Vec<u32>,
    namespaces: BTreeSet<PathBuf>,
}

impl Traces {
    /// Of the program, beside the network that it was started in.
    fn of(program: u32) -> Traces {
        let processes = tree(program);
        let own = namespaces_of(&[std::process::id()]);
        let namespaces = namespaces_of(&processes).difference(&own).cloned().collect();
        Traces { processes, namespaces }
    }

    /// Until nothing of it is left.
    fn await_gone(&self) {
        eventually("its processes are gone", || processes().iter().all(|(pid, _, _)| !self.processes.contains(pid)));
        eventually("its namespaces are gone", || namespaces().is_disjoint(&self.namespaces));
    }
}

/// Starts a run, waits until it has got as far as `reached`, kills it with `signal`, and sees to it that nothing stays.
#[track_caller]
fn killed_at(mut command: Command, signal: &str, reached: impl Fn(&Traces) -> bool) {
    let folder = Folder::new("run");
    let mut run = folder.hold(&mut command).spawn().unwrap();
    let mut traces = Traces::of(run.id());
    eventually("the run has got so far", || {
        traces = Traces::of(run.id());
        assert!(run.try_wait().unwrap().is_none(), "it has ended by itself: {:?}", run.said());
        reached(&traces)
    });
    let status = Command::new("kill").args([format!("-{signal}"), run.id().to_string()]).status().unwrap();
    assert!(status.success());
    let status = run.wait().unwrap();
    assert!(!status.success(), "{status}");
    if signal != "KILL" {
        assert_eq!(status.code(), Some(130), "{signal}");
    }
    traces.await_gone();
    // Also what it has started between the look and the signal.
    let mark = folder.path().display().to_string();
    eventually("no process of the run is left", || {
        let left = |pid: &u32| std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        processes().iter().all(|(pid, _, _)| !String::from_utf8_lossy(&left(pid)).contains(&mark))
    });
    assert_eq!(folder.content(), [""; 0]);
}

/// What a run that should go on has said.
trait Said {
    fn said(&mut self) -> String;
}

impl Said for Child {
    fn said(&mut self) -> String {
        let mut text = String::new();
        if let Some(errors) = &mut self.stderr {
            let _said = std::io::Read::read_to_string(errors, &mut text);
        }
        text
    }
}

fn long_run(towpath: &str, against: &str, case: &str) -> Command {
    towpath_perf(&["relay", "--towpath", towpath, "--against", against, "--case", case, "--seconds", "30"])
}

#[test]
#[ignore = "needs the Debian package python3"]
fn a_killed_run_leaves_nothing_behind() {
    if ensure_privilege(a_killed_run_leaves_nothing_behind).unwrap() == Privilege::Delegated {
        return;
    }
    let impostor = Impostor::new("killed", RELAY);
    for signal in ["INT", "TERM", "KILL"] {
        // As soon as there is a host; when the subject has started; in the midst of the load.
        killed_at(long_run(&impostor.path(), "", "bulk-1"), signal, |traces| !traces.namespaces.is_empty());
        killed_at(long_run(&impostor.path(), "", "bulk-1"), signal, |traces| traces.processes.len() > 1);
        killed_at(long_run(&impostor.path(), "", "bulk-1"), signal, |traces| {
            // The relay has a thread per direction once the client is there.
            let threads = |pid: &u32| std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
            traces.processes.iter().skip(1).any(|pid| threads(pid) > 2)
        });
        // With an origin that is a process of its own.
        killed_at(long_run(&impostor.path(), "", "mostly-idle-8000"), signal, |traces| traces.processes.len() > 2);
    }
}

#[test]
#[ignore = "needs the Debian package python3"]
fn a_subject_that_has_children_leaves_none_behind() {
    if ensure_privilege(a_subject_that_has_children_leaves_none_behind).unwrap() == Privilege::Delegated {
        return;
    }
    // nginx has a worker; so has this one, which besides ignores being asked to end.
    let impostor = Impostor::new(
        "family",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nif os.fork() == 0:\n    os.setsid()\n    os.fork()\nrelay(listen(), lambda _, data: data) if os.getpid() == 1 else time.sleep(1000)\n",
    );
    for signal in ["TERM", "KILL"] {
        killed_at(long_run(&impostor.path(), "", "bulk-1"), signal, |traces| traces.processes.len() > 3);
    }
}

#[test]
fn a_lab_ends_with_the_signal_or_when_it_is_removed() {
    if ensure_privilege(a_lab_ends_with_the_signal_or_when_it_is_removed).unwrap() == Privilege::Delegated {
        return;
    }
    killed_at(lab_by_hand(), "KILL", |traces| traces.namespaces.len() >= 3);

    let output = towpath_perf(&["lab", "--keep", "--topology", "one-arm", "--servers", "3"]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let name = said.split_whitespace().last().unwrap();
    let pid: u32 = name.strip_prefix("lab-").unwrap().parse().unwrap();
    let hosts: Vec<&str> = said.lines().filter(|line| !line.is_empty() && !line.starts_with([' ', 'I'])).collect();
    assert_eq!(hosts, ["client", "balancer", "server-1", "server-2", "server-3"]);
    let enter: Vec<&str> =
        said.lines().filter_map(|line| line.split_once("nsenter --net=")?.1.strip_suffix(" bash")).collect();
    assert_eq!(enter.len(), hosts.len());
    // Each is a network of its own that can be entered.
    let entered: BTreeSet<PathBuf> = enter.iter().map(|file| std::fs::read_link(file).unwrap()).collect();
    assert_eq!(entered.len(), hosts.len());
    let traces = Traces::of(pid);
    assert!(entered.is_subset(&traces.namespaces));

    let wrong = towpath_perf(&["lab", "--remove", &format!("lab-{}", std::process::id())]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("is no lab that was kept"));
    let removed = towpath_perf(&["lab", "--remove", name]).output().unwrap();
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    traces.await_gone();
}

fn lab_by_hand() -> Command {
    towpath_perf(&["lab", "--servers", "1"])
}

#[test]
fn a_run_that_fails_leaves_nothing_behind() {
    if ensure_privilege(a_run_that_fails_leaves_nothing_behind).unwrap() == Privilege::Delegated {
        return;
    }
    let impostor = Impostor::new("failing", "time.sleep(0.2)\nsys.exit(1)\n");
    let folder = Folder::new("failing-run");
    let mut run = folder.hold(&mut long_run(&impostor.path(), "", "bulk-1")).spawn().unwrap();
    let before = tree(run.id());
    assert_eq!(run.wait().unwrap().code(), Some(1));
    assert!(run.said().contains("has ended by itself"));
    Traces { processes: before, namespaces: BTreeSet::new() }.await_gone();
    eventually("no impostor runs", || processes().iter().all(|(_, _, command)| !command.contains(&impostor.path())));
    assert_eq!(folder.content(), [""; 0]);
}
