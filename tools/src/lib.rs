//! The command line of Towpath: run, check, cert, doctor, status, server, demo, reference.

mod cert;
mod check;
pub mod cli;
mod demo;
mod doctor;
mod file;
mod logging;
mod paint;
mod reference;
mod reload;
mod run;
mod server;
mod status;
mod table;
