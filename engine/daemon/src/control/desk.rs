//! The threads that questions are answered on, apart from the controller's: no health check and no reload waits for whoever asks, however often or slowly.
//!
//! One answers the control socket, one everybody who comes by the network (`control.listen`, `metrics.listen`): what strangers have us do, handshakes first
//! of all, does not hold up the operator on this machine either. The truth stays the house's: whoever changes it here takes its lock, publishes under it,
//! and wakes the controller.

use std::io;
use std::thread::{self, JoinHandle};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Both of them.
#[derive(Debug)]
pub(crate) struct Desks {
    operators: Desk,
    visitors: Desk,
}

/// One thread that answers for as long as this is there.
#[derive(Debug)]
struct Desk {
    handle: Handle,
    end: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Desks {
    /// Starts both; nobody is answered yet.
    pub(crate) fn open() -> io::Result<Desks> {
        Ok(Desks { operators: Desk::open("control")?, visitors: Desk::open("visitors")? })
    }

    /// Where the control socket is answered.
    pub(super) fn operators(&self) -> &Handle {
        &self.operators.handle
    }

    /// Where those are answered who come by the network.
    pub(crate) fn visitors(&self) -> &Handle {
        &self.visitors.handle
    }

    /// Ends both; whatever was served there is closed afterwards.
    pub(crate) fn close(self) {
        self.operators.close();
        self.visitors.close();
    }
}

impl Desk {
    fn open(name: &str) -> io::Result<Desk> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Also when who holds the other end is gone without a word.
            let _over: Result<(), _> = runtime.block_on(ended);
            // A file system that somebody still waits for is no reason to stay.
            runtime.shutdown_background();
        })?;
        Ok(Desk { handle, end, thread })
    }

    fn close(self) {
        let _gone_already = self.end.send(());
        if self.thread.join().is_err() {
            tracing::warn!("a thread that answers questions panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    /// A deadline for what must happen.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn one_desk_answers_while_the_other_is_held_up() {
        let desks = Desks::open().unwrap();
        let (let_go, held) = channel::<()>();
        desks.visitors().spawn(async move {
            // Not a wait that gives way, but work that does not.
            let _over = held.recv();
        });
        let (say, said) = channel();
        desks.operators().spawn(async move { say.send(thread::current().name().map(str::to_owned)) });
        assert_eq!(said.recv_timeout(PATIENCE).unwrap().as_deref(), Some("control"));
        drop(let_go);
        desks.close();
    }

    #[test]
    fn what_is_served_is_let_go_of_when_the_desks_close() {
        let desks = Desks::open().unwrap();
        let held = Arc::new(());
        for desk in [desks.operators(), desks.visitors()] {
            let held = Arc::clone(&held);
            desk.spawn(async move {
                std::future::pending::<()>().await;
                drop(held);
            });
        }
        desks.close();
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
