//! Where log lines go: to standard error, one compact line each.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::LevelFilter;

use crate::paint::Paint;

/// Installs the log for the whole process. Under systemd the journal adds time and unit, so the time is left out there.
pub(crate) fn install(level: LevelFilter) {
    let stderr = io::stderr();
    let builder = tracing_subscriber::fmt()
        .compact()
        .with_max_level(level)
        .with_target(false)
        .with_writer(io::stderr)
        .with_ansi(Paint::on(&stderr) == Paint::Colour)
        // A log that cannot be written must not end the process: eprintln! would panic.
        .log_internal_errors(false);
    if std::env::var_os("JOURNAL_STREAM").is_some() && !stderr.is_terminal() {
        builder.without_time().init();
    } else {
        builder.init();
    }
}
