//! Many bytes over a connection: made from a seed as they are sent, hashed at both ends, with pauses of either end.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use xxhash_rust::xxh3::Xxh3Default;

/// Bytes made at a time.
const PIECE_BYTES: usize = 256 * 1024;
/// Odd, so that the pieces of a reader never fall in step with anybody's buffers.
const READ_BYTES: usize = 192 * 1024 + 1;
/// Bytes between two pauses, at most.
const PAUSE_EVERY_MAX: u64 = 16 << 20;
/// The longest pause.
const PAUSE_MAX_US: u64 = 3_000;

/// How one end behaves: everything follows from the seed.
#[derive(Clone, Debug)]
pub struct Bulk {
    random: Random,
    pauses: bool,
}

/// What went through: as many bytes, and in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// How many.
    pub bytes: u64,
    /// XXH3 over all of them.
    pub hash: u64,
}

impl Bulk {
    /// An end that pauses now and then.
    pub fn pausing(seed: u64) -> Bulk {
        Bulk { random: Random(seed), pauses: true }
    }

    /// An end that is as fast as it can be.
    pub fn steady(seed: u64) -> Bulk {
        Bulk { random: Random(seed), pauses: false }
    }

    /// Sends so many bytes, none of which repeat.
    pub fn send(&self, to: &mut impl Write, bytes: u64) -> io::Result<Sum> {
        let (sent, ended) = self.send_until(to, bytes);
        ended.map(|()| sent)
    }

    /// The same; tells in any case what was taken. A piece that fails half-way counts as not taken.
    pub fn send_until(&self, to: &mut impl Write, bytes: u64) -> (Sum, io::Result<()>) {
        let mut content = self.random.clone();
        let mut pace = Pace::new(self);
        let mut hash = Xxh3Default::new();
        let mut piece = vec![0; PIECE_BYTES];
        let mut sent = 0;
        while sent < bytes {
            for word in piece.chunks_exact_mut(8) {
                word.copy_from_slice(&content.next().to_le_bytes());
            }
            let length = (bytes - sent).min(PIECE_BYTES as u64);
            let piece = &piece[..length as usize];
            if let Err(error) = to.write_all(piece) {
                return (Sum { bytes: sent, hash: hash.digest() }, Err(error));
            }
            hash.update(piece);
            sent += length;
            pace.after(length);
        }
        (Sum { bytes: sent, hash: hash.digest() }, Ok(()))
    }

    /// Reads to the end of the stream.
    pub fn receive(&self, from: &mut impl Read) -> io::Result<Sum> {
        let mut pace = Pace::new(self);
        let mut hash = Xxh3Default::new();
        let mut buffer = vec![0; READ_BYTES];
        let mut bytes = 0;
        loop {
            let length = from.read(&mut buffer)?;
            if length == 0 {
                return Ok(Sum { bytes, hash: hash.digest() });
            }
            hash.update(&buffer[..length]);
            bytes += length as u64;
            pace.after(length as u64);
        }
    }
}

/// Sends so many bytes each way at once, with a FIN behind them; what arrives is what was sent.
///
/// # Panics
/// When it is not, or a stream ends before.
pub fn exchange(client: &TcpStream, server: &TcpStream, bytes: u64) {
    let send = |mut to: &TcpStream, seed| {
        let sent = Bulk::steady(seed).send(&mut to, bytes).expect("everything is taken");
        to.shutdown(Shutdown::Write).expect("our FIN");
        sent
    };
    let receive = |mut from: &TcpStream| Bulk::steady(0).receive(&mut from).expect("a stream that ends with FIN");
    thread::scope(|scope| {
        let there = scope.spawn(|| send(client, 1));
        let back = scope.spawn(|| send(server, 2));
        let at_server = scope.spawn(|| receive(server));
        assert_eq!(receive(client), back.join().expect("the server's sender"));
        assert_eq!(at_server.join().expect("the server's receiver"), there.join().expect("the client's sender"));
    });
}

/// When to pause next.
struct Pace {
    random: Option<Random>,
    left: u64,
}

impl Pace {
    fn new(bulk: &Bulk) -> Pace {
        // Apart from the content's numbers, which come from the same seed.
        let random = bulk.pauses.then_some(Random(!bulk.random.0));
        Pace { random, left: 0 }
    }

    fn after(&mut self, bytes: u64) {
        let Some(random) = &mut self.random else { return };
        if let Some(left) = self.left.checked_sub(bytes) {
            self.left = left;
            return;
        }
        self.left = random.next() % PAUSE_EVERY_MAX;
        thread::sleep(Duration::from_micros(random.next() % PAUSE_MAX_US));
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
