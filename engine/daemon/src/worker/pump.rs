//! Bulk bytes from socket to socket through a pipe (splice(2)), so that they never pass through this process.
//!
//! A path holds a pipe only while bytes are in it; a source that runs dry gives its pipe back at once. So a few pipes serve many
//! sessions, and a worker never has more than it was allowed.

use std::io;
use std::os::fd::AsFd;

use crate::plan::{LARGE_PIPE_BYTES, LARGE_PIPES_PER_WORKER, PIPE_BYTES};
use towpath_core::session::PumpStop;
use towpath_sys::splice::{Drained, Filled, Pipe};

/// Bytes one path may move before the other sessions have their turn.
const TURN_BYTES: u64 = 1 << 20;

/// The pipes of one worker: large ones as long as there are any, so that a few streams wake us rarely, then small ones.
pub(super) struct Pipes {
    shelves: [Shelf; 2],
}

/// Pipes of one size.
struct Shelf {
    bytes: u64,
    free: Vec<Pipe>,
    opened: u32,
    max: u32,
}

impl Pipes {
    pub(super) fn new(max: u32) -> Pipes {
        let shelf = |bytes, max| Shelf { bytes, free: Vec::new(), opened: 0, max };
        let large = max.min(LARGE_PIPES_PER_WORKER);
        Pipes { shelves: [shelf(LARGE_PIPE_BYTES, large), shelf(PIPE_BYTES, max - large)] }
    }

    fn lend(&mut self) -> Option<Lent> {
        let mut shelves = self.shelves.iter_mut().enumerate();
        shelves.find_map(|(shelf, pipes)| Some(Lent { pipe: pipes.take()?, shelf, inside: 0 }))
    }

    /// Takes a pipe back; one that still holds bytes is closed, so that they reach nobody else.
    fn give_back(&mut self, lent: Lent) {
        let shelf = &mut self.shelves[lent.shelf];
        if lent.inside == 0 {
            shelf.free.push(lent.pipe);
        } else {
            shelf.opened -= 1;
        }
    }
}

impl Shelf {
    fn take(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.free.pop() {
            return Some(pipe);
        }
        if self.opened == self.max {
            return None;
        }
        let pipe = Pipe::open(self.bytes as usize).ok()?;
        self.opened += 1;
        Some(pipe)
    }
}

struct Lent {
    pipe: Pipe,
    /// In [`Pipes::shelves`].
    shelf: usize,
    inside: u64,
}

/// The pump of one path.
#[derive(Default)]
pub(super) struct Pump {
    lent: Option<Lent>,
    source_end: Option<PumpStop>,
    used: bool,
}

impl Pump {
    /// Whether it runs for the first time now.
    pub(super) fn first_use(&mut self) -> bool {
        !std::mem::replace(&mut self.used, true)
    }

    /// Moves what can be moved from `source` to `sink` now, at most `max` bytes; returns the bytes delivered and why it stopped.
    pub(super) fn run(&mut self, source: &impl AsFd, sink: &impl AsFd, pipes: &mut Pipes, max: u64) -> (u64, PumpStop) {
        let Some(mut lent) = self.lent.take().or_else(|| pipes.lend()) else {
            return (0, PumpStop::NoPipe);
        };
        let (delivered, stop) = self.pass(&mut lent, source, sink, max);
        match stop {
            PumpStop::Budget if delivered == max => pipes.give_back(lent),
            PumpStop::Budget | PumpStop::SinkFull => self.lent = Some(lent),
            _ => pipes.give_back(lent),
        }
        (delivered, stop)
    }

    /// Gives up whatever is in the pipe; other legs may follow.
    pub(super) fn abandon(&mut self, pipes: &mut Pipes) {
        (self.source_end, self.used) = (None, false);
        if let Some(lent) = self.lent.take() {
            pipes.give_back(lent);
        }
    }

    fn pass(&mut self, lent: &mut Lent, source: &impl AsFd, sink: &impl AsFd, max: u64) -> (u64, PumpStop) {
        let mut delivered = 0;
        loop {
            let mut dry = self.source_end;
            let room = (lent.pipe.capacity() as u64).saturating_sub(lent.inside).min(max - delivered - lent.inside);
            if dry.is_none() && room > 0 {
                match lent.pipe.fill(source, room as usize) {
                    Ok(Filled::Bytes(bytes)) => {
                        lent.inside += bytes as u64;
                        // Less than there was room for: the source is dry, most likely. Waiting for it costs no more than asking.
                        if (bytes as u64) < room {
                            dry = Some(PumpStop::SourceEmpty);
                        }
                    }
                    Ok(Filled::End) => self.source_end = Some(PumpStop::Fin),
                    Ok(Filled::NotYet) => dry = Some(PumpStop::SourceEmpty),
                    Err(_) => self.source_end = Some(PumpStop::SourceFailed),
                }
                dry = dry.or(self.source_end);
            }
            match drain(lent, sink, &mut delivered) {
                Err(_) => return (delivered, PumpStop::SinkFailed),
                Ok(()) if lent.inside > 0 => return (delivered, PumpStop::SinkFull),
                Ok(()) => {}
            }
            if let Some(stop) = dry {
                return (delivered, stop);
            }
            if delivered >= TURN_BYTES.min(max) {
                return (delivered, PumpStop::Budget);
            }
        }
    }
}

/// Delivers what is in the pipe until it is empty or the sink is full.
fn drain(lent: &mut Lent, sink: &impl AsFd, delivered: &mut u64) -> io::Result<()> {
    while lent.inside > 0 {
        match lent.pipe.drain(sink, lent.inside as usize)? {
            Drained::Bytes(bytes) => {
                lent.inside = lent.inside.saturating_sub(bytes as u64);
                *delivered += bytes as u64;
            }
            Drained::NotYet => return Ok(()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback listener");
        let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        let (far, _) = listener.accept().expect("accept");
        far.set_nonblocking(true).expect("non-blocking");
        (near, far)
    }

    fn opened(pipes: &Pipes) -> [u32; 2] {
        pipes.shelves.each_ref().map(|shelf| shelf.opened)
    }

    #[test]
    fn large_pipes_are_lent_first_and_none_beyond_the_limit() {
        let mut pipes = Pipes::new(LARGE_PIPES_PER_WORKER + 2);
        let mut lent: Vec<Lent> = std::iter::from_fn(|| pipes.lend()).collect();
        assert_eq!(opened(&pipes), [LARGE_PIPES_PER_WORKER, 2]);
        lent[0].inside = 1;
        lent.drain(..2).for_each(|lent| pipes.give_back(lent));
        // The one with bytes in it was closed, so another may be opened in its place.
        assert_eq!(opened(&pipes), [LARGE_PIPES_PER_WORKER - 1, 2]);
        assert_eq!(std::iter::from_fn(|| pipes.lend()).map(|lent| lent.shelf).collect::<Vec<_>>(), [0, 0]);
    }

    #[test]
    fn an_empty_source_gives_its_pipe_back() {
        let (_client, source) = pair();
        let (_server, sink) = pair();
        let mut pipes = Pipes::new(1);
        let mut pump = Pump::default();
        assert_eq!(pump.run(&source, &sink, &mut pipes, u64::MAX), (0, PumpStop::SourceEmpty));
        assert_eq!(Pump::default().run(&source, &sink, &mut pipes, u64::MAX), (0, PumpStop::SourceEmpty));
        assert_eq!(opened(&pipes), [1, 0]);
    }

    #[test]
    fn a_full_sink_keeps_the_pipe_and_the_rest_follows_later_then_the_end() {
        let (mut client, source) = pair();
        let (mut server, sink) = pair();
        let writer = std::thread::spawn(move || {
            client.write_all(&vec![7; 24 << 20]).expect("write");
            client.shutdown(Shutdown::Write).expect("shutdown");
        });
        let mut pipes = Pipes::new(1);
        let mut pump = Pump::default();
        let mut delivered = 0;
        loop {
            let (bytes, stop) = pump.run(&source, &sink, &mut pipes, u64::MAX);
            delivered += bytes;
            if stop == PumpStop::SinkFull {
                break;
            }
            std::thread::yield_now();
        }
        assert_eq!(Pump::default().run(&source, &sink, &mut pipes, u64::MAX), (0, PumpStop::NoPipe));
        let reader = std::thread::spawn(move || {
            let mut total = 0;
            let mut buffer = vec![0; 1 << 20];
            loop {
                match server.read(&mut buffer).expect("read") {
                    0 => return total,
                    bytes => total += bytes,
                }
            }
        });
        loop {
            let (bytes, stop) = pump.run(&source, &sink, &mut pipes, u64::MAX);
            delivered += bytes;
            if stop == PumpStop::Fin {
                break;
            }
            std::thread::yield_now();
        }
        assert_eq!(delivered, 24 << 20);
        drop(sink);
        writer.join().expect("writer");
        assert_eq!(reader.join().expect("reader"), 24 << 20);
        assert_eq!(pipes.shelves[0].free.len(), 1);
    }
}
