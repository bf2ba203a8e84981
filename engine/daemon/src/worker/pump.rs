//! Bulk bytes from socket to socket through a pipe (splice(2)), so that they never pass through this process.
//!
//! A path holds a pipe only while bytes are in it; a source that runs dry gives its pipe back at once. So a few pipes serve many
//! sessions, and a worker never has more than it was allowed.

use std::io;
use std::os::fd::AsFd;

use crate::plan::PIPE_BYTES;
use towpath_core::session::PumpStop;
use towpath_sys::splice::{Drained, Filled, Pipe};

/// Bytes one path may move before the other sessions have their turn.
const TURN_BYTES: u64 = 1 << 20;

/// The pipes of one worker.
pub(super) struct Pipes {
    free: Vec<Pipe>,
    opened: u32,
    max: u32,
}

impl Pipes {
    pub(super) fn new(max: u32) -> Pipes {
        Pipes { free: Vec::new(), opened: 0, max }
    }

    fn lend(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.free.pop() {
            return Some(pipe);
        }
        if self.opened == self.max {
            return None;
        }
        let pipe = Pipe::open(PIPE_BYTES as usize).ok()?;
        self.opened += 1;
        Some(pipe)
    }

    /// Takes a pipe back; one that still holds bytes is closed, so that they reach nobody else.
    fn give_back(&mut self, lent: Lent) {
        if lent.inside == 0 {
            self.free.push(lent.pipe);
        } else {
            self.opened -= 1;
        }
    }
}

struct Lent {
    pipe: Pipe,
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

    /// Moves what can be moved from `source` to `sink` now; returns the bytes delivered and why it stopped.
    pub(super) fn run(&mut self, source: &impl AsFd, sink: &impl AsFd, pipes: &mut Pipes) -> (u64, PumpStop) {
        let Some(mut lent) = self.lent.take().or_else(|| pipes.lend().map(|pipe| Lent { pipe, inside: 0 })) else {
            return (0, PumpStop::NoPipe);
        };
        let (delivered, stop) = self.pass(&mut lent, source, sink);
        match stop {
            PumpStop::Budget | PumpStop::SinkFull => self.lent = Some(lent),
            _ => pipes.give_back(lent),
        }
        (delivered, stop)
    }

    /// Gives up whatever is in the pipe.
    pub(super) fn abandon(&mut self, pipes: &mut Pipes) {
        if let Some(lent) = self.lent.take() {
            pipes.give_back(lent);
        }
    }

    fn pass(&mut self, lent: &mut Lent, source: &impl AsFd, sink: &impl AsFd) -> (u64, PumpStop) {
        let mut delivered = 0;
        loop {
            let mut dry = self.source_end;
            let room = (lent.pipe.capacity() as u64).saturating_sub(lent.inside);
            if dry.is_none() && room > 0 {
                match lent.pipe.fill(source, room as usize) {
                    Ok(Filled::Bytes(bytes)) => lent.inside += bytes as u64,
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
            if delivered >= TURN_BYTES {
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

    #[test]
    fn an_empty_source_gives_its_pipe_back() {
        let (_client, source) = pair();
        let (_server, sink) = pair();
        let mut pipes = Pipes::new(1);
        let mut pump = Pump::default();
        assert_eq!(pump.run(&source, &sink, &mut pipes), (0, PumpStop::SourceEmpty));
        assert_eq!(Pump::default().run(&source, &sink, &mut pipes), (0, PumpStop::SourceEmpty));
        assert_eq!(pipes.opened, 1);
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
            let (bytes, stop) = pump.run(&source, &sink, &mut pipes);
            delivered += bytes;
            if stop == PumpStop::SinkFull {
                break;
            }
            std::thread::yield_now();
        }
        assert_eq!(Pump::default().run(&source, &sink, &mut pipes), (0, PumpStop::NoPipe));
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
            let (bytes, stop) = pump.run(&source, &sink, &mut pipes);
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
        assert_eq!(pipes.free.len(), 1);
    }
}
