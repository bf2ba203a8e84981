//! What the programs that Towpath starts may do: nothing of what the service manager has given Towpath itself.

use std::fs;
use std::process::{Command, Stdio};

use towpath_tests::{Topology, eventually, in_lab, ipv4, service, subject};

/// As systemd does it for a unit with AmbientCapabilities (capabilities(7)).
const GIVEN: [&str; 2] = ["--inh-caps=+net_raw,+net_bind_service", "--ambient-caps=+net_raw,+net_bind_service"];

/// What a process may hand on, by `/proc/PID/status`.
fn ambient(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapAmb:")).expect("a line of it");
    u64::from_str_radix(line.trim(), 16).expect("hexadecimal digits")
}

#[test]
fn commands_get_no_capability_of_the_daemon() {
    in_lab(commands_get_no_capability_of_the_daemon, Topology::TwoArm, 1, |lab| {
        let given = Command::new("setpriv").args(GIVEN).args(["cat", "/proc/self/status"]).output().expect("setpriv");
        assert_ne!(ambient(&String::from_utf8_lossy(&given.stdout)), 0, "nothing was given: {given:?}");

        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let script = format!("#!/bin/sh\ncat /proc/self/status > {0}.new && mv {0}.new {0}\n", path("seen").display());
        fs::write(path("check"), script).expect("written");
        fs::set_permissions(path("check"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
        let health = format!("health = {{ check = \"external\", command = [\"{}\"] }}", path("check").display());
        let config = format!(
            "[control]\nsocket = \"none\"\n[limits]\nconnections = 128\n{}",
            service("web", lab.vip(100), "443", &health, &ipv4(lab.servers()))
        );
        fs::write(path("towpath.toml"), config).expect("written");
        let program = subject!().command();
        let mut command = Command::new("setpriv");
        command.args(GIVEN).arg(program.get_program()).args(["run", "-c"]).arg(path("towpath.toml"));
        let log = fs::File::create(path("log")).expect("a file");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut daemon = lab.balancer().spawn(command).expect("it starts");
        let seen = eventually("the check has run", || {
            let said = || fs::read_to_string(path("log")).unwrap_or_default();
            assert!(daemon.try_wait().expect("our child").is_none(), "it has ended: {}", said());
            fs::read_to_string(path("seen")).ok()
        });
        assert_eq!(ambient(&seen), 0, "the command may do what the daemon may");
        let own = fs::read_to_string(format!("/proc/{}/status", daemon.id())).expect("it runs");
        assert_eq!(ambient(&own), 0, "nor does any other program that it starts");
        daemon.terminate().expect("it is told");
        assert!(daemon.wait_timeout(towpath_tests::PATIENCE).expect("our child").is_some(), "it does not end");
    });
}
