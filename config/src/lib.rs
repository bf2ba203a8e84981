//! What the operator may say: one TOML file in, one checked [`Model`] or every error at once out.

mod build;
mod decode;
mod diagnostic;
mod draft;
pub mod model;
mod parse;
pub mod pattern;
mod redact;
mod reference;
mod render;
mod rules;
pub mod schema;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use diagnostic::{DIAGNOSTICS_MAX, Diagnostic, Label, Location, NOT_AVAILABLE, Severity};
pub use model::Model;
pub use redact::{Redacted, without_secrets};
pub use reference::reference;
pub use render::render;

/// Largest file that is read, in bytes.
pub const FILE_BYTES_MAX: usize = 1024 * 1024;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Checked {
    /// The name given to [`check`].
    pub file_name: String,
    /// The model; there is one exactly when there are no errors. It tells only what is carried out today: see
    /// [`Checked::unavailable`] before using it.
    pub model: Option<Model>,
    /// Everything that is wrong, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
    /// The files that it names, in its order.
    #[serde(skip)]
    pub files: Vec<NamedFile>,
}

/// A file that the configuration names, and where it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// As written.
    pub path: PathBuf,
    /// The place of the value.
    pub location: Location,
}

impl Checked {
    /// What the file asks for and no code carries out yet. Unless this is empty the model is not the whole file, and must
    /// not be run.
    pub fn unavailable(&self) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.iter().filter(|diagnostic| diagnostic.code == NOT_AVAILABLE)
    }

    /// What keeps the file from having a meaning.
    pub fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error)
    }
}

/// Checks a file's text alone, without looking at the machine. `file_name` is only shown.
pub fn check(file_name: &str, text: &str) -> Checked {
    let file_name = file_name.to_owned();
    let mut report = diagnostic::Report::default();
    let lines = diagnostic::Lines::new(if text.len() <= FILE_BYTES_MAX { text } else { "" });
    if text.len() > FILE_BYTES_MAX {
        report
            .error(
                "file-too-large",
                &(0..0),
                format!("the file has {} bytes, at most {FILE_BYTES_MAX} are read", text.len()),
            )
            .hint("share servers by `[[group]]`, and write neighbouring ports as a range");
        return Checked { file_name, model: None, diagnostics: report.finish(&lines), files: Vec::new() };
    }
    let root = parse::parse(text, &mut report);
    let section = decode::decode(root.get_ref(), &schema::ROOT, &mut report);
    let draft = draft::Draft::new(&section, &mut report);
    rules::judge(&draft, &mut report);
    let model = if report.has_errors() { None } else { build::build(&draft) };
    let mut files = Vec::new();
    section.paths(&mut |path, span| {
        files.push(NamedFile { path: PathBuf::from(path), location: lines.locate(span) });
    });
    files.sort_by_key(|file| file.location.start);
    Checked { file_name, model, diagnostics: report.finish(&lines), files }
}

/// A time span in the words of the file, as "30m" or "250ms", in milliseconds.
pub fn duration_ms(text: &str) -> Option<u64> {
    decode::duration(text)
}

/// Reads a file for [`check`], never more than [`FILE_BYTES_MAX`] and a byte: a longer one is told by `check`.
///
/// A file that is not UTF-8 is `InvalidData`, with the line where it ends to be.
pub fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    String::from_utf8(bytes).or_else(|error| {
        let good = error.utf8_error().valid_up_to();
        let bytes = error.into_bytes();
        if bytes.len() > FILE_BYTES_MAX && good + 4 > bytes.len() {
            // The limit cut a character in two. The file is too long, whatever it says there.
            return Ok("#".repeat(bytes.len()));
        }
        let line = bytes[..good].iter().filter(|byte| **byte == b'\n').count() + 1;
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("line {line} is not UTF-8 text; save the file as UTF-8"),
        ))
    })
}
