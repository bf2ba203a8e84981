//! What the operator may say: one TOML file in, one checked [`Model`] or every error at once out.

pub mod model;

pub use model::Model;
