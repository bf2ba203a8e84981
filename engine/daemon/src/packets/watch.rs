//! The watch over the network around the packet plane. It has a thread of its own: while somebody changes links the kernel's answers take
//! their time, and neither health checks nor the operator may wait for them.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self as std_mpsc, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use towpath_config::model::Model;
use towpath_core::WorkerId;
use towpath_core::plane::Keeper;
use towpath_sys::packet::Instruction;

use super::kernel::{Kernel, KernelError};
use super::neighbours::Neighbourhood;
use crate::shared::Shared;

/// Changes that come within this time of each other share one look: an answer to a question of ours is waited for.
const LOOK_COALESCE_MS: u64 = 2;
/// Time between two networks that differ by neighbours only: who floods a VLAN with new ones does not keep the workers busy.
const PUBLISH_MS: u64 = 20;
/// Time between two looks at what could not be opened again, and after an error.
const RETRY_MS: u64 = 1_000;
/// Orders that wait for their turn.
const ORDERS_MAX: usize = 8;
/// How long whoever gives one waits for it to be done: a transaction of nftables.
const FOLLOW_MS: u64 = 2_000;
/// How often the thread is asked to leave, with [`FOLLOW_MS`] each time.
const LEAVES_MAX: usize = 15;
/// Why an order is not taken.
const NO_TIME: &str = "the network's thread has no time for it";
/// Time between two confirmations of the neighbours that are sent to.
const CONFIRM_MS: u64 = 10_000;

/// The thread, as others hold it. When it is dropped the kernel speaks again.
pub(crate) struct NetworkWatch {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl NetworkWatch {
    /// Publishes the network as it is and starts the thread.
    pub(crate) fn start(shared: Arc<Shared>, kernel: Kernel) -> io::Result<(NetworkWatch, NetworkOrders)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Here, where an error still ends the start: in the thread it would only let the kernel speak while we serve.
        let (registered, neighbours) = {
            let _entered = runtime.enter();
            let mut registered = register(kernel)?;
            let hearing = registered.get_mut().take_hearing();
            let ours = registered.get_ref().ours();
            (registered, hearing.map(|hearing| Neighbourhood::new(hearing, ours)).transpose()?)
        };
        let mut turn = Turn {
            shared,
            kernel: registered,
            neighbours,
            look_at: None,
            publish_at: None,
            published_at: Instant::now(),
        };
        turn.publish();
        let (stop, stopped) = oneshot::channel();
        let (orders, inbox) = mpsc::channel(ORDERS_MAX);
        let thread = thread::Builder::new().name("network".to_owned()).spawn(move || {
            runtime.block_on(turn.run(stopped, inbox));
        })?;
        Ok((NetworkWatch { stop: Some(stop), thread: Some(thread) }, NetworkOrders(orders)))
    }
}

/// What the thread is told to do.
enum Order {
    /// Say where our addresses are.
    Announce,
    /// The silence of the kernel is this process's alone.
    Keep,
    /// Another process keeps it: the thread ends, and leaves all as it is.
    Leave { reply: SyncSender<()> },
    /// Give a copy of what says that this process keeps the kernel silent.
    Lock { reply: SyncSender<io::Result<OwnedFd>> },
    /// Silence the kernel for what is claimed.
    Silence { reply: SyncSender<Result<(), KernelError>> },
    /// Claim what this model claims.
    Follow { model: Box<Model>, program: Vec<Instruction>, reply: SyncSender<Result<(), KernelError>> },
}

/// How the thread is told to do something.
#[derive(Debug)]
pub(crate) struct NetworkOrders(mpsc::Sender<Order>);

impl NetworkOrders {
    /// Has the kernel leave to us what `model` claims, and interfaces that are opened anew steer by `program`; returns when it does.
    pub(crate) fn follow(&self, model: Model, program: Vec<Instruction>) -> Result<(), KernelError> {
        self.order(|reply| Order::Follow { model: Box::new(model), program, reply })
            .unwrap_or_else(|error| Err(KernelError::Silence(error)))
    }

    /// Silences the kernel for what is claimed, whatever another process has claimed; returns when it is.
    pub(crate) fn silence(&self) -> Result<(), KernelError> {
        self.order(|reply| Order::Silence { reply }).unwrap_or_else(|error| Err(KernelError::Silence(error)))
    }

    /// A copy of what says that this process keeps the kernel silent, for the one that takes over.
    pub(crate) fn lock(&self) -> io::Result<OwnedFd> {
        self.order(|reply| Order::Lock { reply })?
    }

    /// The silence of the kernel, which was another process's too, is ours alone.
    pub(crate) fn keep(&self) -> io::Result<()> {
        self.0.try_send(Order::Keep).map_err(|_| io::Error::other(NO_TIME))
    }

    /// Ends the thread and leaves everything as it is: it is another process's.
    pub(crate) fn leave(&self) {
        // The other one serves already: there is no way back from here, so this is asked until it is done.
        for _ in 0..LEAVES_MAX {
            match self.order(|reply| Order::Leave { reply }) {
                Ok(()) => return,
                Err(_) if self.0.is_closed() => return,
                Err(error) => tracing::warn!("the network is another process's: {error}"),
            }
        }
    }

    fn order<T>(&self, order: impl FnOnce(SyncSender<T>) -> Order) -> io::Result<T> {
        let (reply, answer) = std_mpsc::sync_channel(1);
        self.0.try_send(order(reply)).map_err(|_| io::Error::other(NO_TIME))?;
        let patience = Duration::from_millis(FOLLOW_MS);
        answer.recv_timeout(patience).map_err(|_| io::Error::other("the network's thread does not answer"))
    }

    /// Has the neighbours told where our addresses are.
    pub(crate) fn announce(&self) {
        // Where it has no time they are told with the next change.
        let _is_busy = self.0.try_send(Order::Announce);
    }
}

impl Drop for NetworkWatch {
    fn drop(&mut self) {
        // Its end is the word to stop.
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("the network's thread panicked");
        }
    }
}

/// What the thread keeps between its turns.
struct Turn {
    shared: Arc<Shared>,
    kernel: AsyncFd<Kernel>,
    /// Those that the kernel does not know, where there may be such.
    neighbours: Option<Neighbourhood>,
    look_at: Option<Instant>,
    /// When the network is to be published anew without another look at the kernel's.
    publish_at: Option<Instant>,
    /// When it was published last.
    published_at: Instant,
}

impl Turn {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>, mut orders: mpsc::Receiver<Order>) {
        let mut retry = tokio::time::interval(Duration::from_millis(RETRY_MS));
        let mut confirm = tokio::time::interval(Duration::from_millis(CONFIRM_MS));
        let shared = Arc::clone(&self.shared);
        loop {
            let (look_at, publish_at, ask_at) = (self.look_at, self.publish_at, self.next_question());
            tokio::select! {
                _ = &mut stopped => break,
                Some(order) = orders.recv() => {
                    if self.obey(order).is_break() {
                        break;
                    }
                }
                changed = changed(&mut self.kernel) => {
                    let wait_ms = changed.map_or_else(unread, |()| LOOK_COALESCE_MS);
                    let soon = Instant::now() + Duration::from_millis(wait_ms);
                    self.look_at.get_or_insert(soon);
                }
                () = sleep_until(look_at.unwrap_or_else(Instant::now)), if look_at.is_some() => self.look(),
                () = sleep_until(publish_at.unwrap_or_else(Instant::now)), if publish_at.is_some() => self.publish(),
                () = heard(&self.neighbours) => self.hear(),
                () = sleep_until(ask_at.unwrap_or_else(Instant::now)), if ask_at.is_some() => self.ask_neighbours(),
                () = shared.network().asked().notified() => self.ask(),
                _ = confirm.tick() => self.kernel.get_mut().confirm(),
                _ = retry.tick() => {
                    if self.kernel.get_ref().is_incomplete() {
                        self.look();
                    }
                }
            }
        }
    }

    /// Whether the thread goes on.
    fn obey(&mut self, order: Order) -> ControlFlow<()> {
        match order {
            Order::Announce => {
                self.shared.network().ask_for_announcement();
                self.publish();
            }
            Order::Follow { model, program, reply } => {
                let (model_before, program_before) = self.kernel.get_ref().followed();
                let followed = self.kernel.get_mut().follow(*model, program);
                if followed.is_ok()
                    && let Some(neighbours) = &mut self.neighbours
                {
                    neighbours.follow(self.kernel.get_ref().ours());
                }
                let is_taken = followed.is_ok();
                // Whoever waited too long has refused what it was for.
                if reply.send(followed).is_err()
                    && is_taken
                    && let Err(error) = self.kernel.get_mut().follow(model_before, program_before)
                {
                    tracing::error!("{error}");
                }
            }
            // Who waited too long for one of these asks again, or has given up.
            Order::Keep => self.kernel.get_mut().silence_kept().keep_alone(),
            Order::Leave { reply } => {
                self.kernel.get_mut().silence_kept().leave();
                let _gave_up = reply.send(());
                return ControlFlow::Break(());
            }
            Order::Lock { reply } => {
                let _gave_up = reply.send(self.kernel.get_mut().silence_kept().copy_lock());
            }
            Order::Silence { reply } => {
                let _gave_up = reply.send(self.kernel.get_mut().impose());
            }
        }
        ControlFlow::Continue(())
    }

    /// The network has changed: the workers get it as it is now.
    fn look(&mut self) {
        self.look_at = None;
        let update = match self.kernel.get_mut().look() {
            Ok(update) => update,
            Err(error) => {
                self.look_at = Some(Instant::now() + Duration::from_millis(unread(error)));
                return;
            }
        };
        let network = self.shared.network();
        if update.is_moved {
            network.ask_for_announcement();
            if let Some(neighbours) = &mut self.neighbours {
                neighbours.doubt_all(self.shared.now());
            }
        }
        for (port, opened) in update.reopened {
            for (opened, worker) in opened.into_iter().zip(0u8..) {
                network.reopen(WorkerId(worker), port, opened);
            }
        }
        self.publish();
    }

    /// The workers get the network as it was last looked at, with the neighbours of now.
    fn publish(&mut self) {
        (self.publish_at, self.published_at) = (None, Instant::now());
        let known = self.neighbours.iter().flat_map(Neighbourhood::known);
        self.shared.publish_network(Arc::new(self.kernel.get_ref().network(known)));
    }

    /// When a neighbour is to be asked that the kernel does not ask.
    fn next_question(&self) -> Option<Instant> {
        let due = self.neighbours.as_ref()?.next_due()?;
        Some(Instant::now() + Duration::from_millis(due.ms_since(self.shared.now())))
    }

    /// Neighbours have said something.
    fn hear(&mut self) {
        let (now, network) = (self.shared.now(), self.shared.network().current());
        let Some(neighbours) = &mut self.neighbours else { return };
        let is_news = neighbours.hear(now, &network, self.shared.snapshot().role);
        self.shared.network().note_neighbours(neighbours.known().count(), neighbours.counts());
        if is_news {
            self.publish_soon();
        }
    }

    fn ask_neighbours(&mut self) {
        let (now, network) = (self.shared.now(), self.shared.network().current());
        let Some(neighbours) = &mut self.neighbours else { return };
        let is_news = neighbours.ask(now, &network);
        self.shared.network().note_neighbours(neighbours.known().count(), neighbours.counts());
        if is_news {
            self.publish_soon();
        }
    }

    /// What comes within a moment is published together.
    fn publish_soon(&mut self) {
        let soon = Instant::now() + Duration::from_millis(LOOK_COALESCE_MS);
        self.publish_at.get_or_insert(soon.max(self.published_at + Duration::from_millis(PUBLISH_MS)));
    }

    /// Workers want next hops: the kernel finds out, and what it finds is a change of the network. Or a port of theirs is gone.
    fn ask(&mut self) {
        let gone = self.shared.network().take_gone();
        if !gone.is_empty() {
            self.kernel.get_mut().reopen_at_next_look(gone);
            let soon = Instant::now() + Duration::from_millis(LOOK_COALESCE_MS);
            self.look_at.get_or_insert(soon);
        }
        let (now, network) = (self.shared.now(), self.shared.network().current());
        for (port, via) in self.shared.network().take_wanted() {
            let is_kernels = network.port(port).is_none_or(|port| port.keeper == Keeper::Kernel);
            match &mut self.neighbours {
                Some(neighbours) if !is_kernels => neighbours.want(now, &network, port, via),
                _ => self.kernel.get_mut().ask(port, via),
            }
        }
        self.ask_neighbours();
    }
}

/// Returns once neighbours have said something.
async fn heard(neighbours: &Option<Neighbourhood>) {
    match neighbours {
        Some(neighbours) => neighbours.heard().await,
        None => std::future::pending().await,
    }
}

/// Returns once something has changed, or nobody knows whether it has.
async fn changed(kernel: &mut AsyncFd<Kernel>) -> io::Result<()> {
    loop {
        let Ok(mut ready) = kernel.readable_mut().await else { return std::future::pending().await };
        let changes = ready.get_inner_mut().changes();
        // Readiness comes with the next event only: nothing may be left when it is cleared.
        if !changes.as_ref().is_ok_and(|changes| changes.is_more_there) {
            ready.clear_ready();
        }
        match changes {
            Ok(changes) if changes.network || changes.neighbours => return Ok(()),
            // So that a flood of what changes nothing does not hold up the others.
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => return Err(error),
        }
    }
}

/// Tells an error; how long to wait until the next look.
fn unread(error: io::Error) -> u64 {
    tracing::warn!("the kernel's links, routes and neighbours could not be read: {error}");
    RETRY_MS
}

fn register(kernel: Kernel) -> io::Result<AsyncFd<Kernel>> {
    #[expect(
        deprecated,
        reason = "`register` is unsafe; the descriptor is the kernel's own and stays open as long as it"
    )]
    AsyncFd::new(kernel)
}
