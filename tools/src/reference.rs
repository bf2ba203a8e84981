//! `towpath reference`: every key of the configuration, from the table that also checks it.

use std::io::{self, Write};

use anyhow::Result;

use crate::cli::Exit;

/// Prints the reference as Markdown.
pub(crate) fn reference() -> Result<Exit> {
    io::stdout().lock().write_all(towpath_config::reference().as_bytes())?;
    Ok(Exit::Done)
}
