//! What peers and people can make the programs read, done with any bytes whatever. Each target is a function that panics, or
//! touches memory that is not its own, if something is wrong; `libfuzzer` beside this looks for such bytes, and
//! `tests/corpus.rs` goes through those that are known.

// The daemon is a program, not a library: what of it reads foreign text is taken as it is.
#[allow(dead_code, reason = "not all of it is used")]
#[path = "../../../relayfsd/src/config"]
mod config {
    pub(crate) mod cli;
    pub(crate) mod mount_options;
    pub(crate) mod options;
}
#[allow(dead_code, reason = "as above")]
#[path = "../../../relayfsd/src/policy"]
mod policy {
    pub(crate) mod quota;
    pub(crate) mod share_policy;
}
#[allow(dead_code, reason = "as above")]
#[path = "../../../relayfsd/src/socket/reassembly.rs"]
mod reassembly;

mod arena;
mod command_line;
mod frames;
mod input;
mod names;
mod reader;
mod scene;
mod writer;

pub use command_line::options;
pub use frames::frames;
pub use names::names;
pub use reader::reader;
pub use writer::writer;

/// A fuzz target.
pub type Target = fn(&[u8]);

/// All of them, by the names that their corpora have.
pub const TARGETS: [(&str, Target); 5] =
    [("frames", frames), ("reader", reader), ("writer", writer), ("options", options), ("names", names)];
