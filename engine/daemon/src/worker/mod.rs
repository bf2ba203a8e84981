//! One pinned worker: its ring, its listeners, its sessions.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use towpath_core::WorkerId;

use crate::listen::Listener;
use crate::settings::WorkerSettings;
use crate::shared::Shared;

/// Starts the thread of one worker; it reports on `ready` once it serves.
pub fn spawn(
    _shared: Arc<Shared>,
    _id: WorkerId,
    _cpu: usize,
    _listeners: Vec<Listener>,
    _settings: WorkerSettings,
    _ready: Sender<io::Result<()>>,
) -> io::Result<JoinHandle<()>> {
    Err(io::Error::other("worker not built"))
}
