//! Commands that read results.

mod compare;
mod report;

pub(crate) use compare::Compare;
pub(crate) use report::Report;
