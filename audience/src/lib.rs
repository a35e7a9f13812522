//! Reads relay channels in mappings of their buffers: whole finished sub-buffers, where they lie, without a copy. (Who is
//! content with `read()` needs no library: the files of the mount are files.)
//!
//! ```no_run
//! use audience::Reader;
//!
//! let mut reader = Reader::open("/mnt/relay", "app/log")?;
//! loop {
//!     for cpu in 0..reader.n_bufs() {
//!         while let Some(sub_buffer) = reader.next_finished(cpu) {
//!             println!("CPU {cpu}: sub-buffer {}, {} bytes", sub_buffer.number, sub_buffer.len());
//!         }
//!         reader.release(cpu)?;
//!     }
//!     reader.wait(None)?;
//! }
//! # Ok::<(), audience::ReadError>(())
//! ```
//!
//! A daemon that dies, or is restarted, is no end: its producers go on, and so does whoever calls [`Reader::reopen`] after
//! [`ReadError::Gone`] until there is another one.
//!
//! As with `read()`, what one reader has given back, no other gets: [`Reader::release`] tells if somebody else was faster.

mod connection;
mod reader;

pub use connection::ReadError;
pub use reader::{BuffersId, Reader};
pub use relay::ring::mapped_reader::SubBuffer;
pub use relay::wire::socket::{ConnectError, Refused};
pub use relay::{Geometry, Mode};
