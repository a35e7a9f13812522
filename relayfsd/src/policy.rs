//! Limits for users: quotas of resources, turns of long jobs, and access to shared files.
//!
//! `registry`, `socket`, `tree` and `channel` ask this room before they give a resource to a user. `config` uses its
//! type of `--shared`. This room may not know any other room of the daemon: it gets users, numbers and credentials.

pub(crate) mod fair_queue;
pub(crate) mod quota;
pub(crate) mod share_policy;
