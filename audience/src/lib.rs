//! Reads whole finished sub-buffers of relay channels from mappings, without a copy.
//!
//! A program for which `read()` is enough needs no library: it reads the files of the mount.
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
//! Reading survives the daemon's death or restart: its producers continue to write. After [`ReadError::Gone`] the
//! reader calls [`Reader::reopen`] until another daemon answers.
//!
//! As with `read()`, each sub-buffer goes to one reader. [`Reader::release`] says if another reader was faster.

mod connection;
mod reader;

pub use connection::ReadError;
pub use reader::{BuffersId, Reader};
pub use relay::ring::mapped_reader::SubBuffer;
pub use relay::wire::socket::{ConnectError, Refused};
pub use relay::{Geometry, Mode};
