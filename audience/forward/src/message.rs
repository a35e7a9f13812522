//! Messages in a stream of NATS JetStream: subjects, headers, parts. `audience/forward/FORMAT.md` has the rules.
//!
//! ```text
//! token.rs      names of hosts and channels as tokens of a subject
//! subject.rs    relay.HOST.CHANNEL.cpuN and its like
//! headers.rs    what a message says about its body
//! ```
//!
//! What comes from a stream is hostile: whatever is wrong is an error, and nothing panics.
#![allow(dead_code, unused_imports)] // what a reader needs

mod headers;
mod subject;
mod token;

pub(crate) use headers::{ANCHORS_MAX, Headers, Meaning, Part, SubBuffer, WrongHeader};
pub(crate) use subject::{Kind, SUBJECT_MAX, Subject};
pub(crate) use token::{from_token, to_token};
