//! Measuring Towpath beside its peers: the lab it happens in, the load, the accounting, the reports.

pub mod certificate;
pub mod control;
pub mod cpu;
pub mod crowd;
pub mod health;
pub mod identity;
pub mod lab;
pub mod load;
pub mod machine;
pub mod message;
pub mod peers;
pub mod report;
pub mod segment;
pub mod suite;
pub mod web;
