//! A normal client beside whatever else happens: it must notice nothing.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Connection, Host, eventually};

/// Asks again and again, over one connection that stays and over new ones, from its start until [`Neighbour::part`].
#[derive(Debug)]
pub struct Neighbour {
    parting: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<io::Result<io::Result<Duration>>>,
}

impl Neighbour {
    /// Starts on a host and returns once it has been served the first time.
    ///
    /// # Panics
    ///
    /// When there is no thread for it, or it is not served.
    #[track_caller]
    pub fn start(host: &Host, to: impl Into<SocketAddr>) -> Neighbour {
        let to = to.into();
        let mut stays = Connection::open(host, to).expect("the neighbour's connection");
        stays.greeting().expect("a greeting for the neighbour");
        let parting = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let (told, counted) = (Arc::clone(&parting), Arc::clone(&rounds));
        let thread = host
            .start(move || {
                let mut longest = Duration::ZERO;
                while !told.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    round(&mut stays, to)?;
                    longest = longest.max(began.elapsed());
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                stays.close()?;
                Ok(longest)
            })
            .expect("a thread for the neighbour");
        Neighbour { parting, rounds, thread }
    }

    /// Waits until it has been served so many more times.
    ///
    /// # Panics
    ///
    /// When it is not.
    #[track_caller]
    pub fn is_served(&self, times: u64) {
        let until = self.rounds.load(Ordering::Relaxed) + times;
        eventually("the neighbour is served", || {
            // Its error is told when it parts.
            (self.rounds.load(Ordering::Relaxed) >= until || self.thread.is_finished()).then_some(())
        });
    }

    /// Ends it.
    ///
    /// # Panics
    ///
    /// When it saw an error, or one of its rounds took longer than `patience`.
    #[track_caller]
    pub fn part(self, patience: Duration) {
        self.parting.store(true, Ordering::Relaxed);
        let longest = self.thread.join().expect("the neighbour does not panic").expect("its host is there");
        let longest = longest.expect("the neighbour sees no error");
        assert!(longest <= patience, "the neighbour once had to wait {longest:?}");
    }
}

fn round(stays: &mut Connection, to: SocketAddr) -> io::Result<()> {
    stays.echo(&[7; 3_000])?;
    let mut passes = Connection::open_here(to)?;
    passes.greeting()?;
    passes.echo(b"passing by")?;
    passes.close().map(drop)
}
