//! Where lines go: a file, a standard stream, or syslog.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use towpath_config::model::{Log, LogTo};
use towpath_sys::host;

pub(super) use crate::syslog::Refused;
use crate::syslog::{Message, Sender, Severity, Source, refused};

/// A pipe that takes anything takes so much at once, whole (`PIPE_BUF`, pipe(7)).
const PIPE_BYTES: usize = 4096;
/// How often it is looked whether the file has still its name.
const NAME_LOOK: Duration = Duration::from_millis(200);

/// Lines that are to be written, in one piece of memory.
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// So many of them are written.
    written: usize,
    lines: VecDeque<Line>,
}

struct Line {
    /// Where it ends in the bytes, its line feed included.
    end: usize,
    unix_ms: u64,
    is_error: bool,
}

impl Lines {
    pub(super) fn with_room(bytes: usize) -> Lines {
        Lines { bytes: Vec::with_capacity(bytes), written: 0, lines: VecDeque::new() }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Adds a line that `put` writes.
    pub(super) fn push(&mut self, unix_ms: u64, is_error: bool, put: impl FnOnce(&mut Vec<u8>)) {
        put(&mut self.bytes);
        self.bytes.push(b'\n');
        self.lines.push_back(Line { end: self.bytes.len(), unix_ms, is_error });
    }

    /// Drops what is left; says how many lines that were.
    pub(super) fn clear(&mut self) -> u64 {
        let left = self.lines.len() as u64;
        self.bytes.clear();
        self.lines.clear();
        self.written = 0;
        left
    }

    /// Gives up the first line; says how many that were.
    pub(super) fn skip(&mut self) -> u64 {
        let left = self.lines.front().map_or(0, |line| line.end - self.written);
        self.advance(left)
    }

    /// So many bytes more are written; says how many lines are whole by that.
    fn advance(&mut self, bytes: usize) -> u64 {
        self.written += bytes;
        let before = self.lines.len();
        while self.lines.front().is_some_and(|line| line.end <= self.written) {
            self.lines.pop_front();
        }
        (before - self.lines.len()) as u64
    }

    /// What is left, up to the last line end within `max` bytes, or so many bytes of a longer line.
    fn head(&self, max: usize) -> &[u8] {
        let left = &self.bytes[self.written..];
        let within = &left[..left.len().min(max)];
        match within.iter().rposition(|byte| *byte == b'\n') {
            Some(at) => &within[..=at],
            None => within,
        }
    }

    /// Whether a part of a line is written.
    fn is_amid(&self) -> bool {
        self.written > 0 && self.bytes.get(self.written - 1) != Some(&b'\n')
    }
}

/// Where lines go, open.
pub(super) enum Destination {
    File(LogFile),
    Stream(File),
    Syslog(Sender),
}

/// A file by its name.
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    /// Device and number: what has the name now may be another one.
    identity: (u64, u64),
    is_pipe: bool,
    looked_at: Instant,
    /// It ends amid a line.
    is_torn: bool,
}

impl LogFile {
    fn open(path: &Path) -> io::Result<LogFile> {
        let file = host::open_to_append(path)?;
        let metadata = file.metadata()?;
        Ok(LogFile {
            path: path.to_owned(),
            file,
            identity: (metadata.dev(), metadata.ino()),
            is_pipe: !metadata.file_type().is_file() && !metadata.file_type().is_block_device(),
            looked_at: Instant::now(),
            is_torn: false,
        })
    }

    /// Follows the name: what has it now is written to, from the next line on. Where nothing can be opened, the old file goes on.
    fn follow(&mut self) {
        if self.looked_at.elapsed() < NAME_LOOK {
            return;
        }
        self.looked_at = Instant::now();
        let has_name = fs::metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.identity);
        if !has_name && let Ok(newer) = LogFile::open(&self.path) {
            *self = newer;
        }
    }
}

impl Destination {
    pub(super) fn open(to: &LogTo) -> io::Result<Destination> {
        Ok(match to {
            LogTo::File(path) => Destination::File(LogFile::open(path)?),
            LogTo::Stderr => Destination::Stream(copy(io::stderr().as_fd())?),
            LogTo::Stdout => Destination::Stream(copy(io::stdout().as_fd())?),
            LogTo::Syslog(syslog) => Destination::Syslog(Sender::open(syslog, Source::Access)?),
        })
    }

    /// Whether each line is a message of its own.
    pub(super) fn is_of_messages(&self) -> bool {
        matches!(self, Destination::Syslog(_))
    }

    /// Has it take some of the lines, waiting for it no longer than `wait`; says how many are whole by that.
    pub(super) fn write(&mut self, lines: &mut Lines, wait: Duration) -> Result<u64, Refused> {
        match self {
            Destination::File(file) => {
                // A line is written to one file.
                if !lines.is_amid() {
                    file.follow();
                }
                if file.is_torn {
                    // What came before has cost the end of a line, not the beginning of the next.
                    ready(&file.file, wait)?;
                    (&file.file).write_all(b"\n").map_err(refused)?;
                    file.is_torn = false;
                }
                let taken = append(&file.file, lines, wait, if file.is_pipe { PIPE_BYTES } else { usize::MAX });
                file.is_torn =
                    taken.as_ref().is_err_and(|refused| !matches!(refused, Refused::Full)) && lines.is_amid();
                taken
            }
            Destination::Stream(stream) => append(stream, lines, wait, PIPE_BYTES),
            Destination::Syslog(sender) => {
                let Some(line) = lines.lines.front() else { return Ok(0) };
                let severity = if line.is_error { Severity::Error } else { Severity::Informational };
                // Without its end.
                let text = &lines.bytes[lines.written..line.end - 1];
                let bytes = line.end - lines.written;
                sender.send(&Message { severity, unix_ms: line.unix_ms, text }, wait)?;
                Ok(lines.advance(bytes))
            }
        }
    }

    /// What was not taken is not tried again; says whether other lines can be.
    pub(super) fn give_up(&mut self) -> bool {
        match self {
            Destination::File(_) | Destination::Stream(_) => true,
            Destination::Syslog(sender) => sender.give_up(),
        }
    }
}

/// Tells of a destination that cannot be opened, before anything serves. One that only nobody listens at may come to be.
pub fn check(log: &Log) -> Result<(), String> {
    let LogTo::File(path) = &log.to else { return Ok(()) };
    match host::open_to_append(path) {
        Err(error) if !host::is_without_reader(&error) => Err(format!(
            "log.connections_to = \"{}\": {error}; name a file in a directory that is there and may be written to",
            path.display()
        )),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The same open file, by a descriptor of our own.
fn copy(stream: BorrowedFd<'_>) -> io::Result<File> {
    Ok(File::from(stream.try_clone_to_owned()?))
}

fn ready(file: &File, wait: Duration) -> Result<(), Refused> {
    host::await_writable(file, wait).map_err(refused)
}

fn append(mut file: &File, lines: &mut Lines, wait: Duration, at_once: usize) -> Result<u64, Refused> {
    ready(file, wait)?;
    match file.write(lines.head(at_once)) {
        Ok(0) => Err(Refused::Failed(io::ErrorKind::WriteZero.into())),
        Ok(bytes) => Ok(lines.advance(bytes)),
        Err(error) => Err(refused(error)),
    }
}

#[cfg(test)]
mod tests;
