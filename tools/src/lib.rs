//! The command line of Towpath: run, check, cert, doctor, status, top, server, support-bundle, service, events, limits, certs, credential, demo, reference.

mod cert;
mod certs;
mod check;
pub mod cli;
mod credential;
mod daemon;
mod demo;
mod doctor;
mod events;
mod file;
mod limits;
mod logging;
mod manual;
mod paint;
mod reference;
mod run;
mod server;
mod service;
mod status;
mod support;
mod table;
mod top;
