//! `towpath certs`: the certificates that a running towpath shows, and how long they are good.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use towpath_engine::{CertificateRow, Certificates, get};

use crate::cli::Exit;
use crate::daemon::Daemon;
use crate::paint::{Paint, Tint};
use crate::server::print_json;
use crate::status::exit_of;
use crate::table::{Cell, Table};

pub(crate) const CERTS_HELP: &str = "\
It shows what is in force; `towpath cert list` shows what the files of a configuration hold.

Examples:
  towpath certs                         what ends first stands first
  towpath certs --json | jq '.certificates[] | select(.seconds_left < 2592000)'

Exit codes: 0 all are good · 1 failed · 2 usage · 4 one is expired, not valid yet, or ends soon · 5 daemon not reachable · 7 no answer in time";

const LIMIT: Duration = Duration::from_secs(5);
const DAY_S: i64 = 86_400;

/// Arguments of `towpath certs`.
#[derive(Args, Debug)]
pub(crate) struct CertsArguments {
    #[command(flatten)]
    daemon: Daemon,
}

/// Asks and prints.
pub(crate) fn certs(arguments: &CertsArguments) -> Result<Exit> {
    let CertsArguments { daemon } = arguments;
    let found: Certificates = match get(&daemon.endpoint()?, "/v1/certs", LIMIT) {
        Ok(found) => found,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(exit_of(&error));
        }
    };
    if daemon.json {
        print_json(&found)?;
    } else {
        let paint = Paint::on(&io::stdout());
        io::stdout().write_all(render(&found.certificates, paint).as_bytes())?;
    }
    Ok(if found.certificates.iter().all(|row| row.level == "valid") { Exit::Done } else { Exit::Warnings })
}

fn render(rows: &[CertificateRow], paint: Paint) -> String {
    if rows.is_empty() {
        return "no certificates: no service ends TLS, and control.listen has none\n".to_owned();
    }
    let mut table = Table::new([
        Cell::figure("DAYS LEFT"),
        Cell::word("STATE"),
        Cell::word("FOR"),
        Cell::word("NAMES"),
        Cell::word("KEY"),
        Cell::word("FILE"),
    ]);
    for row in rows {
        let tint = match row.level.as_str() {
            "valid" => Tint::Green,
            "expired" | "not valid yet" => Tint::Red,
            _ => Tint::Yellow,
        };
        let names = if row.names.is_empty() { row.kind.clone() } else { row.names.join(", ") };
        table.row([
            Cell::figure(row.seconds_left.div_euclid(DAY_S)),
            Cell::word(&row.level).tinted(tint),
            Cell::word(row.service.as_deref().unwrap_or("control.listen")),
            Cell::word(names),
            Cell::word(&row.key),
            Cell::word(&row.file),
        ]);
    }
    table.render(0, paint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_shown_with_its_days_and_whose_it_is() {
        let row = |service: Option<&str>, seconds_left, level: &str| CertificateRow {
            service: service.map(str::to_owned),
            kind: "certificate".to_owned(),
            names: vec!["mail.example.org".to_owned()],
            file: "/etc/towpath/mail.pem".to_owned(),
            key: "ECDSA P-256".to_owned(),
            sha256: String::new(),
            not_before_unix_seconds: 0,
            not_after_unix_seconds: 0,
            seconds_left,
            level: level.to_owned(),
        };
        let text = render(&[row(Some("owa"), -1, "expired"), row(None, 40 * DAY_S + 5, "valid")], Paint::Plain);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("-1  expired  owa") && lines[2].contains("40  valid    control.listen"), "{text}");
        assert!(render(&[], Paint::Plain).starts_with("no certificates"));
    }
}
