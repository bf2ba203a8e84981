//! Reads a configuration file as text, and says what to do when that is not possible.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use towpath_config::FILE_BYTES_MAX;

/// A file and what it says.
pub(crate) struct ConfigFile {
    /// As the operator wrote it.
    pub(crate) name: String,
    pub(crate) text: String,
}

impl ConfigFile {
    pub(crate) fn read(path: &Path) -> Result<ConfigFile> {
        let name = path.display().to_string();
        let bytes = read_bytes(path).with_context(|| format!("cannot read {name}"))?;
        if bytes.len() > FILE_BYTES_MAX {
            // Cut, perhaps inside a character; `check` says that it is too long.
            return Ok(ConfigFile { name, text: String::from_utf8_lossy(&bytes).into_owned() });
        }
        match String::from_utf8(bytes) {
            Ok(text) => Ok(ConfigFile { name, text }),
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let line = 1 + error.as_bytes()[..valid].iter().filter(|&&byte| byte == b'\n').count();
                bail!("{name}: line {line} (byte {valid}) is not UTF-8; save the file as UTF-8, as TOML requires")
            }
        }
    }
}

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => bail!("{error}; {}", next_step(error.kind())),
    };
    if file.metadata()?.is_dir() {
        bail!("it is a directory; name the TOML file inside it");
    }
    let mut bytes = Vec::new();
    // One byte more than is allowed shows that there are too many, even where a file has no end.
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn next_step(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "check the path, or start from config/examples/quickstart.toml",
        ErrorKind::PermissionDenied => "run as a user who may read it, or change its mode",
        _ => "check the path",
    }
}
