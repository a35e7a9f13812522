//! Files in a state directory: naming, opening and mapping them.
//!
//! ```text
//! ID.control   header, then a block and records for each buffer     ID.data0 ID.data1 ...   the rings
//! ID.events    of a timed channel: the events of programs           ID.processes            their processes
//! ID.levels    of a timed channel: which messages programs write
//! ```
//!
//! No mapping is longer than the geometry needs, even if the file is: every mapped page takes memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;
use thiserror::Error;

use crate::layout::abi::{ControlHeader, control_header, data_len};
use crate::layout::geometry::Geometry;
use crate::memory::mapping::Mapping;
use crate::ring::buffer::Buffer;

/// Suffix of a control file's name, behind the channel's number.
const CONTROL_SUFFIX: &str = ".control";
/// Name of the lock file in a state directory. A running daemon holds it locked.
pub const LOCK_FILE: &str = "lock";

/// Returns the name of the control file of the channel with this number.
pub fn control_name(id: u32) -> String {
    format!("{id}{CONTROL_SUFFIX}")
}

/// Returns the name of the data file of a channel's buffer number `index`.
pub fn data_name(id: u32, index: usize) -> String {
    format!("{id}.data{index}")
}

/// Returns the name of the file with the events that programs defined in a timed channel.
pub fn events_name(id: u32) -> String {
    format!("{id}.events")
}

/// Returns the name of the file with the processes of a timed channel.
pub fn processes_name(id: u32) -> String {
    format!("{id}.processes")
}

/// Returns the name of the file with the levels of a timed channel.
pub fn levels_name(id: u32) -> String {
    format!("{id}.levels")
}

/// Returns the channel's number from the name of a control file.
pub fn id_of_control(name: &str) -> Option<u32> {
    let number = name.strip_suffix(CONTROL_SUFFIX)?;
    number.parse().ok().filter(|id: &u32| id.to_string() == number)
}

/// Opens a file for reading, and refuses whatever is not a regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"))
    }
}

/// Why a channel's file cannot be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file is shorter than a header.
    #[error("it has {0} bytes")]
    NoHeader(u64),
    /// The file is shorter than its buffer.
    #[error("it has {len} bytes instead of {needed}")]
    Short {
        /// Length of the file in bytes.
        len: u64,
        /// Length that the ring needs, in bytes.
        needed: u64,
    },
    /// The header does not fit the channel, see [`ControlHeader::check`].
    #[error("{0}")]
    Header(&'static str),
    /// The control file has no room for this buffer's block and records.
    #[error("its part of the control file is missing")]
    NoBlock,
}

/// The function that maps a file: one of the constructors of [`Mapping`].
pub type Map = fn(&File, u64) -> io::Result<Mapping>;

/// A mapped control file with the header of its channel.
#[derive(Debug)]
pub struct Control {
    mapping: Arc<Mapping>,
    header: ControlHeader,
    geometry: Geometry,
    map: Map,
}

impl Control {
    /// Maps the control file of a channel of this geometry with `n_bufs` buffers.
    pub fn map(file: &File, map: Map, geometry: Geometry, n_bufs: usize) -> Result<Control, FileError> {
        let len = len_with_header(file)?.min(control_header(&geometry, n_bufs).control_len());
        let mapping = map(file, len)?;
        let header = mapping.header().ok_or(FileError::NoHeader(len))?;
        header.check(&geometry, n_bufs, len).map_err(FileError::Header)?;
        Ok(Control { mapping: Arc::new(mapping), header, geometry, map })
    }

    /// Returns the length that the control file should have, in bytes.
    /// No more than that is mapped.
    pub fn file_len(&self) -> u64 {
        control_header(&self.geometry, self.n_bufs()).control_len()
    }

    /// Returns the number of buffers.
    pub fn n_bufs(&self) -> usize {
        self.header.n_bufs as usize
    }

    /// Maps the data file of buffer number `index`.
    pub fn buffer(&self, file: &File, index: usize) -> Result<Buffer, FileError> {
        let (len, needed) = (file.metadata()?.len(), data_len(&self.geometry));
        if len < needed {
            return Err(FileError::Short { len, needed });
        }
        let data = Arc::new((self.map)(file, needed)?);
        Buffer::new(Arc::clone(&self.mapping), data, self.geometry, &self.header, index)
            .ok_or(FileError::NoBlock)
    }
}

/// Reads the header of a control file when nothing else is known of the channel.
/// The header is not checked: the caller must not trust it.
pub fn header_of(file: &File) -> Result<ControlHeader, FileError> {
    let len = len_with_header(file)?;
    Mapping::on_demand(file, size_of::<ControlHeader>() as u64)?.header().ok_or(FileError::NoHeader(len))
}

fn len_with_header(file: &File) -> Result<u64, FileError> {
    let len = file.metadata()?.len();
    if len < size_of::<ControlHeader>() as u64 { Err(FileError::NoHeader(len)) } else { Ok(len) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_file_name_gives_the_channel_number() {
        assert_eq!(id_of_control(&control_name(7)), Some(7));
        for name in
            ["7.data0", "07.control", "+7.control", ".control", "x.control", "4294967296.control", "7"]
        {
            assert_eq!(id_of_control(name), None, "{name}");
        }
    }
}
