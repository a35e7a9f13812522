//! Messages in a stream of NATS JetStream: subjects, headers, parts. `audience/forward/FORMAT.md` has the rules.
//!
//! ```text
//! token.rs      names of hosts and channels as tokens of a subject
//! subject.rs    relay.HOST.CHANNEL.cpuN and its like
//! headers.rs    what a message says about its body
//! ```
//!
//! What comes from a stream is hostile: whatever is wrong is an error, and nothing panics.

mod headers;
mod subject;
mod token;

pub(crate) use headers::{ANCHORS_MAX, Headers, Meaning, Part, SubBuffer};
pub(crate) use subject::{Kind, Subject};
pub(crate) use token::to_token;
