//! Who may have how much: quotas for each user, and which peers get the buffers' files.
//!
//! Every room that gives something away asks here first.
//! This room may not know any other room of the daemon.

pub(crate) mod fair_queue;
pub(crate) mod quota;
pub(crate) mod share_policy;
