//! Measuring Towpath beside its peers: the lab it happens in, the load, the accounting, the reports.

pub mod lab;
