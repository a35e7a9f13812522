//! What the next daemon, producers and readers do after a daemon has ended or was killed.
//!
//! A test belongs here if it needs two daemons on one mount point, or looks at what one has left.

mod adoption;
mod compat;
mod kept;
mod killed_at_steps;
mod pipeline;
mod post_mortem;
mod reconnecting;
mod recreated;
mod socket_producers;
mod survive_producers;
mod timed_adoption;
mod without_sequences;
