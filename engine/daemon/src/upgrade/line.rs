//! The line between the two processes: words with their length before them, and descriptors.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use towpath_sys::handover::{receive_descriptors, send_descriptors};
use towpath_sys::host::await_readable;

/// Bytes of one word at most: what was said of some hundred thousand servers, or ten million persistence entries.
const WORD_BYTES_MAX: u32 = 512 * 1024 * 1024;
/// How long one read or write may take once the other side has begun.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// How often who waits looks whether it still has to.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// One end of it.
#[derive(Debug)]
pub(super) struct Line(UnixStream);

/// Why nothing was heard.
#[derive(Debug)]
pub(super) enum Silence {
    /// Who waits does not want to any more.
    Abandoned,
    /// The other process has closed its end, so has ended.
    Ended,
    /// What was heard makes no sense, or the line has failed.
    Failed(io::Error),
    /// Nothing in this time.
    Late(Duration),
}

impl Line {
    pub(super) fn new(stream: UnixStream) -> io::Result<Line> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(STEP_TIMEOUT))?;
        stream.set_write_timeout(Some(STEP_TIMEOUT))?;
        Ok(Line(stream))
    }

    /// Says one word.
    pub(super) fn tell(&self, word: &impl Serialize) -> io::Result<()> {
        self.tell_bytes(&serde_json::to_vec(word)?)
    }

    /// Says bytes that are no word.
    pub(super) fn tell_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).ok().filter(|&length| length <= WORD_BYTES_MAX);
        let length = length.ok_or_else(|| io::Error::other("more than can be handed over"))?;
        let mut stream = &self.0;
        stream.write_all(&length.to_be_bytes())?;
        stream.write_all(bytes)
    }

    /// Gives copies of descriptors.
    pub(super) fn give(&self, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        send_descriptors(&self.0, descriptors)
    }

    /// Takes so many.
    pub(super) fn take(&self, count: usize) -> io::Result<Vec<OwnedFd>> {
        receive_descriptors(&self.0, count)
    }

    /// Hears one word, for as long as `goes_on` and the time is not over.
    pub(super) fn hear<T: DeserializeOwned>(
        &self,
        patience: Duration,
        goes_on: impl FnMut() -> bool,
    ) -> Result<T, Silence> {
        let bytes = self.hear_bytes(patience, goes_on)?;
        serde_json::from_slice(&bytes).map_err(|error| Silence::Failed(error.into()))
    }

    /// Hears bytes that are no word, likewise.
    pub(super) fn hear_bytes(&self, patience: Duration, mut goes_on: impl FnMut() -> bool) -> Result<Vec<u8>, Silence> {
        let until = Instant::now() + patience;
        while let Err(error) = await_readable(&self.0, LOOK_EVERY) {
            match error.kind() {
                io::ErrorKind::TimedOut if !goes_on() => return Err(Silence::Abandoned),
                io::ErrorKind::TimedOut if Instant::now() >= until => return Err(Silence::Late(patience)),
                io::ErrorKind::TimedOut => {}
                _ => return Err(Silence::Failed(error)),
            }
        }
        let mut stream = &self.0;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length);
        if length > WORD_BYTES_MAX {
            return Err(Silence::Failed(io::Error::other(format!("a word of {length} bytes"))));
        }
        // As much as comes, not as much as was announced: nobody makes us take memory by a number.
        let mut bytes = Vec::new();
        stream.take(length.into()).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != u64::from(length) {
            return Err(Silence::Ended);
        }
        Ok(bytes)
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<io::Error> for Silence {
    fn from(error: io::Error) -> Silence {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Silence::Ended,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Silence::Late(STEP_TIMEOUT),
            _ => Silence::Failed(error),
        }
    }
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Silence::Abandoned => f.write_str("nobody waits for it any more"),
            Silence::Ended => f.write_str("it has ended"),
            Silence::Failed(error) => write!(f, "what it says makes no sense: {error}"),
            Silence::Late(patience) => write!(f, "it has said nothing for {} s", patience.as_secs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn lines() -> (Line, UnixStream) {
        let (one, other) = UnixStream::pair().unwrap();
        (Line::new(one).unwrap(), other)
    }

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn words_bytes_and_descriptors_arrive_as_they_were_said() {
        let (one, other) = lines();
        let other = Line::new(other).unwrap();
        let large = vec![7; 3_000_000];
        let told = large.clone();
        let telling = thread::spawn(move || {
            one.tell(&("hello", 1)).unwrap();
            one.give(&[one.as_fd()]).unwrap();
            one.tell_bytes(&told).unwrap();
        });
        assert_eq!(other.hear::<(String, u32)>(SOON, || true).unwrap(), ("hello".to_owned(), 1));
        assert_eq!(other.take(1).unwrap().len(), 1);
        assert_eq!(other.hear_bytes(SOON, || true).unwrap(), large);
        telling.join().unwrap();
        assert!(matches!(other.hear_bytes(SOON, || true), Err(Silence::Ended)));
    }

    #[test]
    fn who_lies_or_says_half_a_word_is_not_believed() {
        type IsRight = fn(&Silence) -> bool;
        let table: [(&[u8], IsRight); 5] = [
            (b"", |silence| matches!(silence, Silence::Ended)),
            (&[0, 0], |silence| matches!(silence, Silence::Ended)),
            (&[0, 0, 0, 9, b'1'], |silence| matches!(silence, Silence::Ended)),
            (&[0xff; 4], |silence| matches!(silence, Silence::Failed(_))),
            (&[0, 0, 0, 2, b'{', b'x'], |silence| matches!(silence, Silence::Failed(_))),
        ];
        for (said, is_right) in table {
            let (line, mut other) = lines();
            other.write_all(said).unwrap();
            drop(other);
            let silence = line.hear::<u32>(SOON, || true).unwrap_err();
            assert!(is_right(&silence), "{said:?}: {silence}");
        }
    }

    #[test]
    fn who_waits_may_stop_waiting() {
        let (line, _other) = lines();
        assert!(matches!(line.hear::<u32>(SOON, || false), Err(Silence::Abandoned)));
        assert!(matches!(line.hear::<u32>(Duration::ZERO, || true), Err(Silence::Late(_))));
    }
}
