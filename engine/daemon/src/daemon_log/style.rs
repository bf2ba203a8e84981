//! How a line of the daemon's own reads.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use serde::Serialize;
use towpath_config::model::OwnFormat;
use towpath_core::access::{Utc, utc};
use tracing::Level;

use crate::syslog::Severity;

/// Who reads standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// systemd's journal, which has time and unit, and takes the level from `<N>` in front of a line (sd-daemon(3)).
    Journal,
    /// A file, a pipe, or a terminal without colours.
    Plain,
    /// A terminal.
    Terminal,
}

impl Reader {
    /// Whether standard error is the journal itself: `$JOURNAL_STREAM` names it by device and number (systemd.exec(5)); a service may have sent it
    /// elsewhere.
    pub fn is_journal(journal_stream: Option<&str>) -> bool {
        let Some((device, inode)) = journal_stream.and_then(|stream| stream.split_once(':')) else { return false };
        let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned() else { return false };
        let Ok(metadata) = File::from(stderr).metadata() else { return false };
        device.parse() == Ok(metadata.dev()) && inode.parse() == Ok(metadata.ino())
    }
}

/// One line, perhaps with lines of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) level: Level,
    pub(super) unix_ms: u64,
    pub(super) text: String,
}

#[derive(Serialize)]
struct Object<'l> {
    time: String,
    level: &'static str,
    message: &'l str,
}

impl Line {
    /// Without what could be taken for another line or move a cursor: reasons may have words of servers in them.
    pub(super) fn new(level: Level, unix_ms: u64, text: &str) -> Line {
        let plain = |character: char| if character.is_control() && character != '\n' { ' ' } else { character };
        Line { level, unix_ms, text: text.trim_end().chars().map(plain).collect() }
    }

    /// Appends it as it is written to standard error.
    pub(super) fn put(&self, format: OwnFormat, reader: Reader, out: &mut Vec<u8>) {
        let prefix = match reader {
            Reader::Journal => format!("<{}>", severity(self.level) as u8),
            Reader::Plain | Reader::Terminal => String::new(),
        };
        // Writing into memory does not fail.
        let _ = match format {
            OwnFormat::Json => {
                let object = Object { time: self.time(), level: word(self.level), message: &self.text };
                // Three strings are always JSON.
                writeln!(out, "{prefix}{}", serde_json::to_string(&object).unwrap_or_default())
            }
            OwnFormat::Text => {
                let head = match reader {
                    Reader::Journal => prefix.clone(),
                    Reader::Plain => format!("{} {:>5} ", self.time(), self.level),
                    Reader::Terminal => format!("\x1b[2m{}\x1b[0m {} ", self.time(), coloured(self.level)),
                };
                self.text.split('\n').enumerate().try_for_each(|(at, text)| match at {
                    0 => writeln!(out, "{head}{text}"),
                    // The journal would take them for others, of another level.
                    _ => writeln!(out, "{prefix}  {text}"),
                })
            }
        };
    }

    /// RFC 3339, UTC.
    fn time(&self) -> String {
        let Utc { year, month, day, hour, minute, second, ms } = utc(self.unix_ms);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
    }
}

fn coloured(level: Level) -> String {
    let code = match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        _ => 34,
    };
    format!("\x1b[{code}m{level:>5}\x1b[0m")
}

fn word(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        _ => "trace",
    }
}

/// What syslog and the journal call it.
pub(super) fn severity(level: Level) -> Severity {
    match level {
        Level::ERROR => Severity::Error,
        Level::WARN => Severity::Warning,
        Level::INFO => Severity::Informational,
        _ => Severity::Debug,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(format: OwnFormat, reader: Reader, level: Level, text: &str) -> String {
        let mut out = Vec::new();
        // Two seconds before 1 January 2027.
        Line::new(level, 1_798_761_598_007, text).put(format, reader, &mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn each_reader_gets_what_it_needs() {
        let text = "reload refused: two reasons\nlisten: \u{1b}[2Jtaken\r\nport 5: \u{7}bell\n";
        assert_eq!(
            put(OwnFormat::Text, Reader::Journal, Level::WARN, text),
            "<4>reload refused: two reasons\n<4>  listen:  [2Jtaken \n<4>  port 5:  bell\n"
        );
        assert_eq!(
            put(OwnFormat::Text, Reader::Plain, Level::WARN, text),
            "2026-12-31T23:59:58.007Z  WARN reload refused: two reasons\n  listen:  [2Jtaken \n  port 5:  bell\n"
        );
        let terminal = put(OwnFormat::Text, Reader::Terminal, Level::ERROR, "no");
        assert_eq!(terminal, "\u{1b}[2m2026-12-31T23:59:58.007Z\u{1b}[0m \u{1b}[31mERROR\u{1b}[0m no\n");
    }

    #[test]
    fn programs_get_one_object_a_line() {
        let line = put(OwnFormat::Json, Reader::Journal, Level::INFO, "up → \"down\"\nwhy");
        let object: serde_json::Value = serde_json::from_str(line.strip_prefix("<6>").expect("a level")).expect("JSON");
        assert_eq!(
            object,
            serde_json::json!({"time": "2026-12-31T23:59:58.007Z", "level": "info", "message": "up → \"down\"\nwhy"})
        );
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn the_journal_is_known_by_device_and_number() {
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned().expect("a descriptor"));
        let metadata = stderr.metadata().expect("metadata");
        assert!(Reader::is_journal(Some(&format!("{}:{}", metadata.dev(), metadata.ino()))));
        for other in [None, Some(""), Some("8:1:2"), Some("x:y")] {
            assert!(!Reader::is_journal(other), "{other:?}");
        }
        assert!(!Reader::is_journal(Some(&format!("{}:{}", metadata.dev(), metadata.ino() + 1))));
    }
}
