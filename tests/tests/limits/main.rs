//! A thousand of each, the longest messages, and a system without room, memory, descriptors or threads.
//!
//! A test belongs here if it reaches a limit of the system's, or a size that is the largest.

mod exhaustion;
mod long_messages;
mod many;
