//! Bad input, other users, and peers that mean harm: each is refused, and all others are served.
//!
//! A test belongs here if its subject is what a user, a peer or a damaged file may not do.

mod access;
mod bad_input;
mod corrected;
mod hostile_sockets;
mod lengthened;
mod strangers;
mod surroundings;
mod timed_damage;
mod truncated;
