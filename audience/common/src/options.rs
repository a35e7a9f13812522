//! Options that both programs have.

pub mod show;
pub mod when;

pub use show::Show;
