//! `towpath server check`: the checks of a server, run now by the daemon, since only that has the ways to all servers; step by step, with times.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use towpath_engine::post;
use towpath_engine::server_check::{CheckRun, Checked, PortRun, ServerChecked};

use super::{Addressed, print_json};
use crate::cli::Exit;
use crate::paint::{Paint, Tint};
use crate::status::{exit_of, health_word};
use crate::table::{Cell, Table};

/// How long an answer is waited for: a check may take five minutes, and an agent's behind it as long.
const LIMIT: Duration = Duration::from_secs(620);

pub(crate) const CHECK_HELP: &str = "\
The daemon runs the check of the configuration in force, from where it checks all the time, and says what each step took and what the server said.
The verdict stays with the checks that run by themselves.

Examples:
  towpath server check web/FE-1
  towpath server check 'web/*'                            every server of the service
  towpath server check web/FE-1 --json | jq '.servers[].checks[].ports[].steps'

Exit codes: 0 every check passed · 1 one has failed · 2 usage · 5 daemon not reachable · 7 no answer in time";

/// Arguments of `towpath server check`.
#[derive(Args, Debug)]
pub(crate) struct CheckServerArguments {
    #[command(flatten)]
    addressed: Addressed,
}

/// The route takes no keys.
#[derive(Serialize)]
struct Nothing {}

/// Asks and prints.
pub(super) fn check(arguments: &CheckServerArguments) -> Result<Exit> {
    let Addressed { servers, daemon } = &arguments.addressed;
    let at = daemon.endpoint()?;
    let mut checked = Checked { servers: Vec::new() };
    for selector in servers {
        match post::<Checked>(&at, &selector.path().uri("check"), &Nothing {}, LIMIT) {
            Ok(more) => checked.servers.extend(more.servers),
            Err(error) => {
                eprintln!("error: {selector}: {error}");
                return Ok(exit_of(&error));
            }
        }
    }
    if daemon.json {
        print_json(&checked)?;
    } else {
        let stdout = io::stdout();
        let text: Vec<String> = checked.servers.iter().map(|server| render(server, Paint::on(&stdout))).collect();
        stdout.lock().write_all(text.join("\n").as_bytes())?;
    }
    Ok(if checked.servers.iter().all(|server| server.passed) { Exit::Done } else { Exit::Failed })
}

fn render(server: &ServerChecked, paint: Paint) -> String {
    let health = match health_word(server.health) {
        "up" => paint.tint(Tint::Green, "● up"),
        "down" => paint.tint(Tint::Red, "○ down"),
        other => paint.tint(Tint::Yellow, &format!("◐ {other}")),
    };
    let title = paint.tint(Tint::Bold, &format!("{}/{}", server.service, server.server));
    let mut text = format!("{title}  {}  {health}  {}  {}\n", server.address, server.admin, server.reason);
    if server.checks.is_empty() {
        text.push_str("  no health check configured\n");
    }
    for check in &server.checks {
        text.push_str(&heading(check, paint));
        for port in &check.ports {
            text.push_str(&steps(port, paint));
        }
    }
    text
}

fn heading(check: &CheckRun, paint: Paint) -> String {
    let word = match check.passed {
        true => paint.tint(Tint::Green, "● passed"),
        false => paint.tint(Tint::Red, "○ failed"),
    };
    let reason = if check.reason.is_empty() { String::new() } else { format!(": {}", check.reason) };
    format!("  {}  {word} in {}{reason}\n", paint.tint(Tint::Bold, &check.check), milliseconds(check.took_us))
}

fn steps(port: &PortRun, paint: Paint) -> String {
    // A ping has no port.
    let asked = if port.socket.port() == 0 { port.socket.ip().to_string() } else { port.socket.to_string() };
    let mut table = Table::new([Cell::word(asked), Cell::figure("at"), Cell::figure("took"), Cell::word("")]);
    for step in &port.steps {
        let name = format!("{} {}", if step.passed { "●" } else { "○" }, step.step);
        table.row([
            Cell::word(name).tinted(if step.passed { Tint::Green } else { Tint::Red }),
            Cell::figure(milliseconds(step.at_us)),
            Cell::figure(milliseconds(step.took_us)),
            Cell::word(&step.detail),
        ]);
    }
    table.render(4, paint)
}

/// To three digits behind the point: what takes less than a microsecond is not seen.
fn milliseconds(us: u64) -> String {
    format!("{}.{:03} ms", us / 1000, us % 1000)
}

#[cfg(test)]
mod tests {
    use towpath_engine::server_check::Step;
    use towpath_engine::status::HealthStatus;

    use super::*;

    #[test]
    fn every_step_has_a_line_with_its_time_and_what_was_said() {
        let step = |step: &str, at_us, took_us, passed, detail: &str| Step {
            step: step.to_owned(),
            at_us,
            took_us,
            passed,
            detail: detail.to_owned(),
        };
        let port = |port, passed, steps| PortRun { socket: ([192, 0, 2, 31], port).into(), passed, took_us: 9, steps };
        let server = ServerChecked {
            service: "front-end".to_owned(),
            server: "FE-1".to_owned(),
            address: [192, 0, 2, 31].into(),
            admin: "ready".to_owned(),
            health: HealthStatus::Up,
            reason: "check passed".to_owned(),
            passed: false,
            checks: vec![
                CheckRun {
                    check: "sip".to_owned(),
                    passed: false,
                    reason: "port 5061: status 503 Busy, expected 200-399".to_owned(),
                    took_us: 1_234_567,
                    ports: vec![port(
                        5061,
                        false,
                        vec![
                            step("connect", 0, 412, true, "from 192.0.2.1:40000"),
                            step("response", 415, 1_234_000, false, "status 503 Busy, expected 200-399"),
                        ],
                    )],
                },
                CheckRun {
                    check: "agent".to_owned(),
                    passed: true,
                    reason: "up 50%".to_owned(),
                    took_us: 700,
                    ports: vec![port(9999, true, vec![step("answer", 3, 600, true, "up 50%")])],
                },
            ],
        };
        assert_eq!(
            render(&server, Paint::Plain),
            "front-end/FE-1  192.0.2.31  ● up  ready  check passed\n\
             \x20 sip  ○ failed in 1234.567 ms: port 5061: status 503 Busy, expected 200-399\n\
             \x20   192.0.2.31:5061        at         took\n\
             \x20   ● connect        0.000 ms     0.412 ms  from 192.0.2.1:40000\n\
             \x20   ○ response       0.415 ms  1234.000 ms  status 503 Busy, expected 200-399\n\
             \x20 agent  ● passed in 0.700 ms: up 50%\n\
             \x20   192.0.2.31:9999        at      took\n\
             \x20   ● answer         0.003 ms  0.600 ms  up 50%\n"
        );
        let unchecked = ServerChecked { checks: Vec::new(), passed: true, ..server };
        assert!(render(&unchecked, Paint::Plain).ends_with("  no health check configured\n"));
    }
}
