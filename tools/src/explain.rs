//! `towpath explain`: what would become of a new connection, and why.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use towpath_engine::explain::{CandidateStatus, ExplanationStatus};
use towpath_engine::query;

use crate::answer::{failed, given, show};
use crate::cli::Exit;
use crate::daemon::Daemon;
use crate::paint::{Paint, Tint};
use crate::table::{Cell, Table};

/// It needs no work of the workers.
const LIMIT: Duration = Duration::from_secs(5);

pub(crate) const EXPLAIN_HELP: &str = "\
The daemon makes the decision that it would make for this client now, on copies: nothing is counted, remembered or sent.

Examples:
  towpath explain 192.0.2.7 web                            whom would it be given, and why
  towpath explain 192.0.2.7:51234 web --port 443           … and which worker would carry it
  towpath explain 192.0.2.7 web --name mail.example.org    by the name that it asks for by TLS
  towpath explain 192.0.2.7 web --host mail.example.org --path /owa --header 'Cookie: a=b'

Exit codes: 0 it would be served, or wait for that · 1 it would be refused or answered without a server, or it failed · 2 usage · 5 daemon not reachable · 7 no answer in time";

/// Arguments of `towpath explain`.
#[derive(Args, Debug)]
pub(crate) struct ExplainArguments {
    /// The client: ADDRESS, or ADDRESS:PORT
    client: String,
    /// The service
    service: String,
    /// The port of the service that it comes to [default: the first]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// The name that it asks for by TLS
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// HTTP mode: method of its request
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// HTTP mode: host of its request
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// HTTP mode: path of its request
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// HTTP mode: a header of its request
    #[arg(long, value_name = "NAME: VALUE")]
    header: Vec<String>,
    #[command(flatten)]
    daemon: Daemon,
}

/// Asks and prints.
pub(crate) fn explain(arguments: &ExplainArguments) -> Result<Exit> {
    let ExplainArguments { client, service, port, name, method, host, path, header, daemon } = arguments;
    let mut said = vec![("client", client.clone()), ("service", service.clone())];
    said.extend(given([
        ("port", port.map(|port| port.to_string())),
        ("name", name.clone()),
        ("method", method.clone()),
        ("host", host.clone()),
        ("path", path.clone()),
    ]));
    said.extend(header.iter().map(|header| ("header", header.clone())));
    let explanation: ExplanationStatus = match query(&daemon.endpoint()?, "/v1/explain", &said, LIMIT) {
        Ok(explanation) => explanation,
        Err(error) => return Ok(failed(&error)),
    };
    show(daemon, &explanation, &[], |paint| shown(&explanation, paint))?;
    Ok(if ["served", "queued"].contains(&explanation.outcome.as_str()) { Exit::Done } else { Exit::Failed })
}

fn shown(explanation: &ExplanationStatus, paint: Paint) -> String {
    let ExplanationStatus { service, group, client, port, summary, steps, servers, .. } = explanation;
    let mut text = paint.tint(Tint::Bold, &format!("{client} → {service} port {port}"));
    text += &format!(" {summary}\n");
    let mut table = Table::default();
    for step in steps {
        let word = Cell::word(&step.step);
        let word = if step.stops { word.tinted(Tint::Red) } else { word.tinted(Tint::Dim) };
        table.row([word, Cell::word(&step.says)]);
    }
    text += &table.render(2, paint);
    if servers.is_empty() {
        return text;
    }
    text += &format!("  servers of {group}:\n");
    let mut table = Table::new([
        Cell::word(""),
        Cell::word("server"),
        Cell::figure("open"),
        Cell::figure("weight"),
        Cell::figure("share"),
        Cell::word("new clients"),
    ]);
    for server in servers {
        table.row([
            Cell::word(if server.chosen { "→" } else { "" }),
            Cell::word(&server.name),
            Cell::figure(server.connections),
            Cell::figure(server.weight),
            Cell::figure(percent(server.share_permille)),
            Cell::word(candidacy(server)),
        ]);
    }
    text + &table.render(2, paint)
}

fn candidacy(server: &CandidateStatus) -> String {
    let mut says = Vec::new();
    if server.obstacles.is_empty() {
        says.push("a candidate".to_owned());
    }
    says.extend(server.obstacles.iter().cloned());
    if server.home {
        says.push("the client's own".to_owned());
    }
    if server.slow_start_permille < 1_000 {
        says.push(format!("slow start: {} of its share", percent(server.slow_start_permille)));
    }
    if server.below_minimum {
        says.push("below its min_connections".to_owned());
    }
    says.join(", ")
}

fn percent(permille: u64) -> String {
    match permille % 10 {
        0 => format!("{} %", permille / 10),
        tenths => format!("{}.{tenths} %", permille / 10),
    }
}

#[cfg(test)]
mod tests {
    use towpath_engine::explain::StepStatus;

    use super::*;

    #[test]
    fn the_chosen_one_and_what_keeps_others_are_shown() {
        let server = |name: &str, obstacle: Option<&str>, chosen| CandidateStatus {
            name: name.to_owned(),
            address: "192.0.2.31".parse().unwrap(),
            port: None,
            obstacles: obstacle.map(str::to_owned).into_iter().collect(),
            connections: 7,
            weight: 100,
            share_permille: if chosen { 333 } else { 0 },
            slow_start_permille: if chosen { 400 } else { 1_000 },
            below_minimum: false,
            home: !chosen,
            chosen,
        };
        let explanation = ExplanationStatus {
            generation: 1,
            service: "web".to_owned(),
            group: "front".to_owned(),
            client: "192.0.2.7".parse().unwrap(),
            port: 443,
            outcome: "served".to_owned(),
            server: Some("FE-2".to_owned()),
            why: Some("repinned".to_owned()),
            summary: "goes to FE-2: chosen".to_owned(),
            steps: vec![StepStatus { step: "limit".to_owned(), says: "1 of 2".to_owned(), stops: false }],
            servers: vec![server("FE-1", Some("it is in drain"), false), server("FE-2", None, true)],
        };
        let text = shown(&explanation, Paint::Plain);
        let expected = "192.0.2.7 → web port 443 goes to FE-2: chosen\n  \
                        limit  1 of 2\n  \
                        servers of front:\n     \
                        server  open  weight   share  new clients\n     \
                        FE-1       7     100     0 %  it is in drain, the client's own\n  \
                        →  FE-2       7     100  33.3 %  a candidate, slow start: 40 % of its share\n";
        assert_eq!(text, expected);
    }
}
