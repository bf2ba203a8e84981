//! The command line of Towpath: run, check, cert, doctor, status, server, events, limits, certs, credential, demo, reference.

mod capture;
mod cert;
mod certs;
mod check;
pub mod cli;
mod credential;
mod daemon;
mod demo;
mod doctor;
mod events;
mod explain;
mod file;
mod limits;
mod logging;
mod paint;
mod persistence;
mod reference;
mod reload;
mod run;
mod server;
mod sessions;
mod status;
mod table;
