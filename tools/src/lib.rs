//! The command line of Towpath: run, check, cert, doctor, status, top, server, support-bundle, service, demo, reference.

mod cert;
mod check;
pub mod cli;
mod demo;
mod doctor;
mod file;
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
