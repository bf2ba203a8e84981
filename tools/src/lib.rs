//! The command line of Towpath: run, check, cert, doctor, status, demo, reference.

mod cert;
mod check;
pub mod cli;
mod demo;
mod doctor;
mod file;
mod logging;
mod paint;
mod reference;
mod run;
mod status;
mod table;
