//! The kernel's relay interface for C, on top of the producer's library.
//! `relay.h` describes each function.
//!
//! ```text
//! c_api     the functions as C calls them; they use:
//! handle    the object of `struct rchan *`, and the check of wrong pointers
//! open      requests to open a channel
//! callback  calls of subbuf_start
//! reserve   messages that are filled in before they are written
//! timed     functions of timed channels, as C calls them
//! event     events that the program has defined
//! site      places in the program that log
//! control   control through the mounted tree
//! place     directories and files by name
//! error     errno
//! ```

mod c_api;
mod callback;
mod control;
mod error;
mod event;
mod handle;
mod open;
mod place;
mod reserve;
mod site;
mod timed;
mod write;
