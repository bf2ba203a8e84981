//! The pool of a process, and what workers hand to it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use towpath_config::model::Model;
use towpath_core::WorkerId;
use towpath_sys::host::run_when_idle;
use towpath_tls::{Connection, Fault, Hatch, PoolSettings, Step, TlsPool, Work};

use crate::plan::Plan;
use crate::shared::Shared;

/// Handshakes of one kind that wait for the sake of one worker, at most: what a fast core signs within a long deadline.
const DEPTH_MAX: usize = 8192;

/// The pool of a process.
pub(crate) type HandshakePool = TlsPool<Box<PooledHandshake>>;

/// The step of a handshake that signs: a whole ClientHello is there.
pub struct PooledHandshake {
    /// Whose it is, in the words of the worker.
    pub token: u64,
    /// The connection, which moves.
    pub connection: Connection,
    /// What the client has sent; what is not used stays.
    pub input: Vec<u8>,
    /// What is to be sent to it.
    pub output: Vec<u8>,
    /// What came of it; `None` before.
    pub result: Option<Result<Step, Fault>>,
}

impl Work for PooledHandshake {
    fn run(&mut self) {
        self.result = Some(self.connection.handshake(&mut self.input, &mut self.output));
    }
}

/// A pool, if one is planned, and the hatch of each worker.
pub(crate) type StartedPool = (Option<HandshakePool>, Vec<Hatch<Box<PooledHandshake>>>);

/// Starts the pool if one is planned, with a hatch for each worker.
pub(crate) fn start_pool(model: &Model, plan: &Plan, shared: &Arc<Shared>) -> io::Result<StartedPool> {
    let cpus = plan.handshake_threads.pool_cpus();
    if cpus.is_empty() {
        return Ok((None, Vec::new()));
    }
    let settings = PoolSettings {
        cpus: cpus.to_vec(),
        pin: if plan.pool_gives_way() { pin_behind_workers } else { pin },
        workers: plan.workers.len(),
        depth_max: DEPTH_MAX.min(model.limits.handshakes as usize),
        queue_deadline: Duration::from_millis(model.tls.queue_deadline_ms),
    };
    let shared = Arc::clone(shared);
    // A worker's number is that of its place in the plan.
    let wake = move |worker: usize| shared.seat(WorkerId(worker as u8)).wake();
    let (pool, hatches) = TlsPool::start(&settings, wake)?;
    Ok((Some(pool), hatches))
}

/// Where threads share CPUs with workers they are to be interrupted by them.
fn pin_behind_workers(cpu: usize) -> bool {
    if let Err(error) = run_when_idle() {
        tracing::warn!("tls.threads: the kernel does not let handshakes give way to workers on CPU {cpu}: {error}");
    }
    pin(cpu)
}

fn pin(cpu: usize) -> bool {
    let is_pinned = core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
    if !is_pinned {
        tracing::warn!(
            "tls.threads: the kernel does not let a thread run on CPU {cpu} alone; it runs where there is room"
        );
    }
    is_pinned
}
