//! What a file may not mean: rules over the draft, one file per family.

mod applications;
pub(crate) mod health;
mod hidden_client;
mod layers;
mod loops;
mod names;
mod network;
mod outbound;
mod persistence;
mod process;
mod servers;
mod sockets;
mod sources;
pub(crate) mod tls;

use crate::diagnostic::Report;
use crate::draft::Draft;

/// Runs every rule. Each tells all it finds; none depends on another.
pub(crate) fn judge(draft: &Draft<'_>, report: &mut Report) {
    process::judge(draft, report);
    network::judge(draft, report);
    names::judge(draft, report);
    sockets::judge(draft, report);
    servers::judge(draft, report);
    loops::judge(draft, report);
    sources::judge(draft, report);
    outbound::judge(draft, report);
    layers::judge(draft, report);
    tls::judge(draft, report);
    persistence::judge(draft, report);
    health::judge(draft, report);
    hidden_client::judge(draft, report);
    applications::judge(draft, report);
}
