//! Where handshakes are signed.

use serde::Serialize;
use towpath_config::model::{HandshakeThreads, Model, Poll, Resumption, VirtualService};

use super::{PlanError, Share, share};
use crate::tls::CACHED_SESSIONS_MAX;

/// A session of a client in the cache: its keys, its place, and what the client has shown, if it had to.
const CACHED_SESSION_BYTES: u64 = 768;

/// Who makes the signatures of handshakes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HandshakesPlan {
    /// Threads of their own, each on its CPU; where workers have one of those, all run only while its CPU has nothing else to do.
    Pool {
        /// The CPU of each thread; a CPU may have several.
        cpus: Vec<usize>,
    },
    /// No service ends TLS.
    Unneeded,
    /// The workers, other traffic first.
    Workers,
}

impl HandshakesPlan {
    pub(super) fn new(model: &Model, workers: &[usize], usable: &[usize]) -> Result<HandshakesPlan, PlanError> {
        if model.services.iter().all(|service| service.ended_tls().is_none()) {
            return Ok(HandshakesPlan::Unneeded);
        }
        let spare: Vec<usize> = usable.iter().copied().filter(|cpu| !workers.contains(cpu)).collect();
        let cpus = match &model.tls.threads {
            HandshakeThreads::Auto if spare.is_empty() && model.runtime.poll != Poll::Busy => workers.to_vec(),
            HandshakeThreads::Auto => spare,
            // With fewer CPUs of their own than threads they share those; with none, they share with the workers, as was asked for.
            HandshakeThreads::Count(threads) => {
                let cpus = if spare.is_empty() { usable } else { &spare };
                cpus.iter().copied().cycle().take(usize::from(*threads)).collect()
            }
            HandshakeThreads::Cpus(cpus) => {
                let missing: Vec<usize> = cpus.iter().copied().filter(|cpu| !usable.contains(cpu)).collect();
                if !missing.is_empty() {
                    return Err(PlanError::NoSuchTlsCpu { missing, usable: usable.to_vec() });
                }
                cpus.clone()
            }
        };
        Ok(if cpus.is_empty() { HandshakesPlan::Workers } else { HandshakesPlan::Pool { cpus } })
    }

    /// The CPU of each thread of the pool.
    pub fn pool_cpus(&self) -> &[usize] {
        match self {
            HandshakesPlan::Pool { cpus } => cpus,
            HandshakesPlan::Unneeded | HandshakesPlan::Workers => &[],
        }
    }

    /// Whether a thread of the pool has the CPU of a worker.
    pub fn shares_cpus(&self, workers: impl IntoIterator<Item = usize>) -> bool {
        workers.into_iter().any(|cpu| self.pool_cpus().contains(&cpu))
    }
}

/// Sessions that services keep, where any does.
pub(super) fn session_memory(model: &Model) -> Option<Share> {
    let caches =
        |service: &&VirtualService| service.ended_tls().is_some_and(|ended| ended.resumption == Resumption::Cache);
    match model.services.iter().filter(caches).count() as u64 {
        0 => None,
        services => Some(share("TLS sessions", services * CACHED_SESSIONS_MAX as u64 * CACHED_SESSION_BYTES)),
    }
}
