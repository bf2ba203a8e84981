//! `towpath doctor`: what works on this machine and network for a configuration, what is wrong, and the command that mends it.

use std::io::{self, Write};

use anyhow::{Context, Result};
use serde::Serialize;
use towpath_config::{Diagnostic, Severity};
use towpath_engine::doctor::{Daemon, Examination, Place, Probing, Reading, State, Subject, examine};

use crate::cli::{DoctorArguments, Exit};
use crate::file::ConfigFile;
use crate::paint::{Paint, Tint};
use crate::table::{Cell, Table, counted, span};

/// Columns that text has where nobody says how wide the terminal is.
const FOUND_COLUMNS: usize = 100;

/// What `--json` prints; doctor.schema.json describes it.
#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    file: &'a str,
    /// What is wrong with the file itself: with errors nothing is examined.
    diagnostics: &'a [Diagnostic],
    daemon: Option<&'a Daemon>,
    worst: State,
    errors: usize,
    warnings: usize,
    hints: usize,
    readings: &'a [Reading],
}

/// Examines and prints.
pub(crate) fn doctor(arguments: &DoctorArguments) -> Result<Exit> {
    let file = ConfigFile::read(&arguments.config)?;
    let checked = towpath_config::check(&file.name, &file.text);
    let probing = if arguments.no_probes { Probing::Off } else { Probing::On };
    let examination = match &checked.model {
        Some(model) => examine(model, probing).context("cannot find out what this machine offers")?,
        None => Examination { daemon: None, readings: Vec::new() },
    };
    let has_errors = checked.model.is_none();
    let exit = match examination.worst() {
        _ if has_errors => Exit::ConfigErrors,
        State::Error => Exit::ConfigErrors,
        State::Warning => Exit::Warnings,
        State::Fine | State::Hint | State::Unknown => Exit::Done,
    };

    let stdout = io::stdout();
    let paint = Paint::on(&stdout);
    let mut out = stdout.lock();
    if arguments.json {
        let of_file = checked.diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).count();
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            file: &file.name,
            diagnostics: &checked.diagnostics,
            daemon: examination.daemon.as_ref(),
            worst: if has_errors { State::Error } else { examination.worst() },
            errors: of_file + examination.count(State::Error),
            warnings: examination.count(State::Warning),
            hints: examination.count(State::Hint),
            readings: &examination.readings,
        };
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
        return Ok(exit);
    }
    if has_errors {
        let colour = paint == Paint::Colour;
        write!(out, "{}", towpath_config::render(&checked.diagnostics, &file.name, &file.text, colour))?;
        writeln!(out, "{}: nothing is examined before the file has no errors", file.name)?;
        return Ok(exit);
    }
    write!(out, "{}", render(&file.name, &examination, paint))?;
    let unavailable = checked.unavailable().count();
    if unavailable > 0 {
        writeln!(
            out,
            "{unavailable} lines of the file are not available yet; `towpath check {}` shows them",
            file.name
        )?;
    }
    Ok(exit)
}

/// The whole page.
pub(crate) fn render(file: &str, examination: &Examination, paint: Paint) -> String {
    let daemon = match &examination.daemon {
        Some(daemon) => {
            format!(
                "towpath {} {} for {}",
                daemon.version,
                daemon.phase,
                span(daemon.uptime_seconds.saturating_mul(1000))
            )
        }
        None => "no daemon answers".to_owned(),
    };
    let mut text = format!("{file} · {daemon}\n");
    let longest = |of: fn(&Reading) -> usize| examination.readings.iter().map(of).max().unwrap_or(0);
    // The same in every block.
    let widths = (longest(|reading| reading.state.word().len()), longest(|reading| reading.check.name().len()));
    for of_one in examination.readings.chunk_by(|one, next| one.subject == next.subject) {
        let heading = match &of_one[0].subject {
            Subject::Machine => "machine".to_owned(),
            Subject::Interface(name) => format!("interface {name}"),
            Subject::Service(name) => format!("service {name}"),
        };
        text.push_str(&format!("\n{}\n", paint.tint(Tint::Bold, &heading)));
        let mut table = Table::default();
        for reading in of_one {
            rows(&mut table, reading, widths);
        }
        text.push_str(&table.render(2, paint));
    }
    let tinted = |state: State, noun: &str| {
        let number = examination.count(state);
        let words = counted(number, noun);
        if number > 0 { paint.tint(tint(state), &words) } else { words }
    };
    text.push_str(&format!(
        "\n{}, {}, {}\n",
        tinted(State::Error, "error"),
        tinted(State::Warning, "warning"),
        tinted(State::Hint, "hint")
    ));
    text
}

/// The rows of one reading: state, check, what was found, wrapped; and below it what to run.
fn rows(table: &mut Table, reading: &Reading, (state, check): (usize, usize)) {
    let mut lines = wrapped(&reading.found, FOUND_COLUMNS).into_iter();
    let name = format!("{:check$}", reading.check);
    table.row([lamp(reading.state, state), Cell::word(name), Cell::word(lines.next().unwrap_or_default())]);
    for line in lines {
        table.row([Cell::default(), Cell::default(), Cell::word(line)]);
    }
    if let Some(run) = &reading.run {
        let at = match run.at {
            Place::Here => "run",
            Place::There => "run there",
        };
        table.row([Cell::default(), Cell::default(), Cell::word(format!("{at}: {}", run.command)).tinted(Tint::Bold)]);
    }
}

/// The state as word, shape and colour, which all say the same.
fn lamp(state: State, width: usize) -> Cell {
    let shape = match state {
        State::Fine => "●",
        State::Unknown => "?",
        State::Hint => "◔",
        State::Warning => "◐",
        State::Error => "○",
    };
    Cell::word(format!("{shape} {:width$}", state.word())).tinted(tint(state))
}

fn tint(state: State) -> Tint {
    match state {
        State::Fine => Tint::Green,
        State::Unknown | State::Hint => Tint::Dim,
        State::Warning => Tint::Yellow,
        State::Error => Tint::Red,
    }
}

/// Lines of so many characters at most, broken at spaces; a longer word stays whole.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use towpath_engine::preflight::Check;

    use super::*;

    fn examination() -> Examination {
        let service = Subject::Service("web".to_owned());
        let readings = vec![
            Reading::new(Subject::Machine, Check::Kernel, State::Fine, "6.18"),
            Reading::new(
                Subject::Interface("eth0".to_owned()),
                Check::Link,
                State::Warning,
                "`eth0` is down; set it up (`ip link set eth0 up`)",
            ),
            Reading::new(service.clone(), Check::ReturnPath, State::Error, "lost ".repeat(30).trim_end()),
            Reading::new(service, Check::Mtu, State::Fine, "all"),
        ];
        Examination { daemon: None, readings }
    }

    #[test]
    fn the_page_has_a_block_for_each_subject_and_says_what_to_run() {
        let page = render("my.toml", &examination(), Paint::Plain);
        let expected = format!(
            "my.toml · no daemon answers\n\
             \nmachine\n  ● fine     kernel       6.18\n\
             \ninterface eth0\n  ◐ warning  link         `eth0` is down; set it up (`ip link set eth0 up`)\n                          run: ip link set eth0 up\n\
             \nservice web\n  ○ error    return-path  {}\n                          {}\n  ● fine     mtu          all\n\
             \n1 error, 1 warning, 0 hints\n",
            ["lost"; 20].join(" "),
            ["lost"; 10].join(" ")
        );
        assert_eq!(page, expected);
    }

    #[test]
    fn the_schema_lists_every_word_that_there_is() {
        let schema: serde_json::Value = serde_json::from_str(include_str!("doctor.schema.json")).expect("JSON");
        let words = |pointer: &str| -> BTreeSet<String> {
            let list =
                schema.pointer(pointer).unwrap_or_else(|| panic!("nothing at {pointer}")).as_array().expect("a list");
            list.iter().map(|word| word.as_str().expect("a word").to_owned()).collect()
        };
        let checks: BTreeSet<String> = Check::ALL.iter().map(|check| check.name().to_owned()).collect();
        assert_eq!(words("/$defs/check/enum"), checks);
        let states: BTreeSet<String> = State::ALL.iter().map(|state| state.word().to_owned()).collect();
        assert_eq!(words("/$defs/state/enum"), states);
        for state in State::ALL {
            assert_eq!(serde_json::to_value(state).expect("a word"), state.word());
        }
        // Every field that is printed is described, and the other way round.
        let report = Report {
            version: "",
            file: "",
            diagnostics: &[],
            daemon: None,
            worst: State::Fine,
            errors: 0,
            warnings: 0,
            hints: 0,
            readings: &examination().readings,
        };
        let printed = serde_json::to_value(&report).expect("JSON");
        let keys = |value: &serde_json::Value| -> BTreeSet<String> {
            value.as_object().expect("an object").keys().cloned().collect()
        };
        assert_eq!(keys(&printed), words("/required"));
        assert_eq!(keys(&schema["properties"]), words("/required"));
        for reading in printed["readings"].as_array().expect("a list") {
            assert_eq!(keys(reading), words("/$defs/reading/required"));
            assert!(
                words("/$defs/subject/properties/kind/enum")
                    .contains(reading["subject"]["kind"].as_str().expect("a word"))
            );
        }
        let run = &printed["readings"][1]["run"];
        assert_eq!(keys(run), words("/$defs/run/required"));
        assert!(words("/$defs/run/properties/at/enum").contains(run["at"].as_str().expect("a word")));
    }
}
