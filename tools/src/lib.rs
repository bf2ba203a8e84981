//! The command line of Towpath: run, check, cert, doctor, status, server, demo, reference.

mod capture;
mod cert;
mod check;
pub mod cli;
mod demo;
mod doctor;
mod explain;
mod file;
mod logging;
mod paint;
mod persistence;
mod reference;
mod run;
mod server;
mod sessions;
mod status;
mod table;
