//! The engine: workers, listeners, the controller with its health checks, and the control socket.
//!
//! [`Engine::start`] takes a checked model and returns when every worker serves it.

pub mod access;
pub mod admin;
mod command;
mod control;
mod controller;
pub mod doctor;
mod engine;
pub mod events;
mod house;
pub mod http_files;
pub mod listen;
mod notify;
pub mod packets;
mod page;
pub mod plan;
pub mod preflight;
mod probe;
pub mod reload;
pub mod server_check;
pub mod settings;
pub mod shared;
mod state_file;
pub mod status;
mod supervisor;
pub mod tls;
pub mod worker;

pub use control::{
    AccessError, Asker, CertificateRow, Certificates, ControlError, ControlListener, ControlSocket, Endpoint, Entrance,
    EventsPage, FetchError, Level, LimitRow, LimitRows, Problem, Remote, ServerPath, credential, fetch_members,
    fetch_status, get, order, post,
};
pub use engine::{Engine, Outcome, ReloadError, StartError, StartOptions, Stop};
pub use plan::{Plan, PlanErrors, PlanInput};
pub use preflight::{Finding, HostFacts, Severity, check_host, preflight};
pub use status::Status;
