//! The engine: workers, listeners, the controller with its health checks, and the control socket.
//!
//! [`Engine::start`] takes a checked model and returns when every worker serves it.

pub mod access;
pub mod admin;
mod audit;
pub mod capture;
mod command;
pub mod config_file;
mod control;
mod controller;
pub mod daemon_log;
pub mod doctor;
mod engine;
pub mod events;
pub mod explain;
mod house;
pub mod http_files;
mod leaving;
pub mod listen;
pub mod metrics;
mod notify;
pub mod packets;
mod page;
pub mod persistence;
pub mod plan;
pub mod preflight;
mod probe;
mod process;
mod query;
pub mod questions;
pub mod reload;
pub mod role;
pub mod server_check;
pub mod sessions;
pub mod settings;
pub mod shared;
mod state_file;
pub mod status;
mod supervisor;
mod syslog;
pub mod tls;
pub mod upgrade;
pub mod worker;

pub use control::{
    AccessError, Asker, CertificateRow, Certificates, ControlError, ControlListener, ControlSocket, Endpoint, Entrance,
    EventsPage, FetchError, Level, LimitRow, LimitRows, Problem, Remote, ServerPath, credential, fetch_file,
    fetch_members, fetch_plan, fetch_role, fetch_status, get, order, order_reload, order_upgrade, post, query,
    take_role,
};
pub use controller::Reloaded;
pub use engine::{Engine, Outcome, ReloadError, StartError, StartOptions, Stop};
pub use plan::{Plan, PlanErrors, PlanInput};
pub use preflight::{Finding, HostFacts, Severity, check_host, preflight};
pub use status::Status;
