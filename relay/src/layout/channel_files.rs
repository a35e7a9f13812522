//! The files in a state directory: what they are called, opening them, and mapping those that others may have changed.
//!
//! ```text
//! ID.control   header, then a block and records for each buffer     ID.data0 ID.data1 ...   the rings
//! ```
//!
//! Nothing is mapped beyond what the geometry takes, however long a file may have been made: mapping takes memory for all of it.

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

/// What the name of a control file ends with, behind the channel's number.
const CONTROL_SUFFIX: &str = ".control";
/// Name of the file in a state directory that a daemon at work holds locked.
pub const LOCK_FILE: &str = "lock";

/// Name of the control file of the channel with this number.
pub fn control_name(id: u32) -> String {
    format!("{id}{CONTROL_SUFFIX}")
}

/// Name of the data file of its buffer number `index`.
pub fn data_name(id: u32, index: usize) -> String {
    format!("{id}.data{index}")
}

/// The number in the name of a control file.
pub fn id_of_control(name: &str) -> Option<u32> {
    let number = name.strip_suffix(CONTROL_SUFFIX)?;
    number.parse().ok().filter(|id: &u32| id.to_string() == number)
}

/// Opens a regular file to read it, and nothing else that may have its name.
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
    /// The system says no.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It has no header.
    #[error("it has {0} bytes")]
    NoHeader(u64),
    /// It is shorter than its buffer.
    #[error("it has {len} bytes instead of {needed}")]
    Short {
        /// Its length.
        len: u64,
        /// That of the ring.
        needed: u64,
    },
    /// Its header is not that of such a channel, see [`ControlHeader::check`].
    #[error("{0}")]
    Header(&'static str),
    /// The control file has no place for this buffer.
    #[error("its part of the control file is missing")]
    NoBlock,
}

/// How a file is mapped: [`Mapping::new`], or another of these.
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

    /// The length that the file should have, in bytes, and the most that is mapped of it.
    pub fn file_len(&self) -> u64 {
        control_header(&self.geometry, self.n_bufs()).control_len()
    }

    /// Number of its buffers.
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

/// What a control file says of itself, for who was told nothing else of the channel. Not to be believed unchecked.
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
    fn control_files_are_known_by_their_names() {
        assert_eq!(id_of_control(&control_name(7)), Some(7));
        for name in
            ["7.data0", "07.control", "+7.control", ".control", "x.control", "4294967296.control", "7"]
        {
            assert_eq!(id_of_control(name), None, "{name}");
        }
    }
}
