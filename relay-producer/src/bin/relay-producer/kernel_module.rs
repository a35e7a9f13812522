//! `--load`: runs a module that was written for the kernel.
//!
//! `main` calls [`run::run`]. Only `loader.rs` touches the module's symbols.

pub(crate) mod loader;
pub(crate) mod run;
