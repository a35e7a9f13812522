//! The kernel's relay interface for C, over the producer's library. `relay.h` says what each function does.
//!
//! ```text
//! c_api     the functions, as C sees them; hands over to
//! handle    what `struct rchan *` points to, and how a wrong one is known
//! open      what is to be opened, and how
//! callback  asking subbuf_start
//! reserve   messages that are filled in before they are written
//! control   what is done through the mounted tree
//! place     directories and files by name
//! error     errno
//! ```

mod c_api;
mod callback;
mod control;
mod error;
mod handle;
mod open;
mod place;
mod reserve;
