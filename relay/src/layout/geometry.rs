//! The shape of a channel's buffers: sub-buffer size and count, mode, header, one buffer or one a CPU.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::cli::size::{SizeError, format_size, parse_size};

/// Largest sub-buffer, in bytes.
pub const SUBBUF_SIZE_MAX: u64 = 64 << 20;
/// Most sub-buffers in a buffer.
pub const N_SUBBUFS_MAX: u64 = 1 << 16;
/// Most buffers of a channel: more CPUs than Linux can have.
pub const N_BUFS_MAX: usize = 1 << 16;
/// Longest message, in bytes; a sub-buffer may set a lower limit.
pub const MESSAGE_MAX: usize = 1 << 20;
/// `offset` and `slot` together may take this many bits of a buffer's state word; the rest counts laps.
pub const OFFSET_AND_SLOT_BITS_MAX: u32 = 34;

/// Sub-buffer size where none is given, in bytes.
pub const SUBBUF_SIZE_DEFAULT: u64 = 256 << 10;
/// Number of sub-buffers where none is given.
pub const N_SUBBUFS_DEFAULT: u64 = 4;

/// What happens when every sub-buffer is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// New messages are dropped, and counted, until a sub-buffer has been read (the default).
    NoOverwrite,
    /// The oldest sub-buffer is given up for the new message.
    Overwrite,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::NoOverwrite => "no-overwrite",
            Mode::Overwrite => "overwrite",
        })
    }
}

/// The checked geometry of a channel. Every value is within the limits of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    subbuf_size: u32,
    n_subbufs: u32,
    header: u32,
    mode: Mode,
    global: bool,
}

impl Geometry {
    /// Size of a sub-buffer in bytes.
    pub fn subbuf_size(&self) -> usize {
        self.subbuf_size as usize
    }

    /// Number of sub-buffers in each buffer.
    pub fn n_subbufs(&self) -> usize {
        self.n_subbufs as usize
    }

    /// Zeroed bytes reserved at the start of each sub-buffer; part of the stream that is read.
    pub fn header(&self) -> usize {
        self.header as usize
    }

    /// What happens when the buffer is full.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether the channel has one buffer for all CPUs instead of one for each.
    pub fn global(&self) -> bool {
        self.global
    }

    /// Whether a channel of this geometry can have so many buffers.
    pub fn can_have(&self, n_bufs: usize) -> bool {
        if self.global { n_bufs == 1 } else { (1..=N_BUFS_MAX).contains(&n_bufs) }
    }

    /// Longest message that a sub-buffer can take besides its header, in bytes.
    pub fn message_max(&self) -> usize {
        (self.subbuf_size() - self.header()).min(MESSAGE_MAX)
    }

    /// Size of one buffer's ring in bytes, `n_subbufs * subbuf_size`.
    pub fn buffer_size(&self) -> u64 {
        u64::from(self.subbuf_size) * u64::from(self.n_subbufs)
    }
}

/// As options write it, `subbuf-size=64K:n-subbufs=8`, with what is not the default after it.
impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "subbuf-size={}:n-subbufs={}", format_size(self.subbuf_size.into()), self.n_subbufs)?;
        if self.mode == Mode::Overwrite {
            f.write_str(":overwrite")?;
        }
        if self.global {
            f.write_str(":global")?;
        }
        if self.header != 0 {
            write!(f, ":header={}", self.header)?;
        }
        Ok(())
    }
}

/// Why a geometry is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GeometryError {
    /// The size of a sub-buffer is out of range.
    #[error("subbuf-size {0} is out of range: 1 to {SUBBUF_SIZE_MAX} bytes")]
    SubbufSize(u64),
    /// The number of sub-buffers is out of range.
    #[error("n-subbufs {0} is out of range: 1 to {N_SUBBUFS_MAX}")]
    NSubbufs(u64),
    /// Size and number are fine, but not together.
    #[error(
        "{n_subbufs} sub-buffers of {subbuf_size} bytes are too many for one buffer: use fewer or smaller ones"
    )]
    TooLarge {
        /// Size of a sub-buffer in bytes.
        subbuf_size: u64,
        /// Number of sub-buffers.
        n_subbufs: u64,
    },
    /// The header leaves no room for a message.
    #[error("header {header} leaves no room in a sub-buffer of {subbuf_size} bytes")]
    Header {
        /// Reserved bytes at the start of each sub-buffer.
        header: u64,
        /// Size of a sub-buffer in bytes.
        subbuf_size: u64,
    },
    /// A value is no size.
    #[error("{key}: {source}")]
    Size {
        /// The option's name.
        key: &'static str,
        /// What is wrong with its value.
        source: SizeError,
    },
    /// Not an option of a channel.
    #[error(
        "unknown channel option '{0}': known are subbuf-size=, n-subbufs=, header=, overwrite, no-overwrite, global"
    )]
    Unknown(String),
    /// An option was given twice.
    #[error("channel option '{0}' is given twice")]
    Twice(&'static str),
}

/// A geometry as far as somebody gave it: what is `None` comes from more general options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GeometrySpec {
    /// Size of a sub-buffer in bytes.
    pub subbuf_size: Option<u64>,
    /// Number of sub-buffers.
    pub n_subbufs: Option<u64>,
    /// Zeroed bytes reserved at the start of each sub-buffer.
    pub header: Option<u64>,
    /// What happens when the buffer is full.
    pub mode: Option<Mode>,
    /// One buffer for all CPUs.
    pub global: Option<bool>,
}

impl From<Geometry> for GeometrySpec {
    /// Everything is given.
    fn from(geometry: Geometry) -> GeometrySpec {
        GeometrySpec {
            subbuf_size: Some(geometry.subbuf_size() as u64),
            n_subbufs: Some(geometry.n_subbufs() as u64),
            header: Some(geometry.header() as u64),
            mode: Some(geometry.mode()),
            global: Some(geometry.global()),
        }
    }
}

impl GeometrySpec {
    /// This specification, with what it leaves out taken from `general`.
    pub fn or(self, general: &GeometrySpec) -> GeometrySpec {
        GeometrySpec {
            subbuf_size: self.subbuf_size.or(general.subbuf_size),
            n_subbufs: self.n_subbufs.or(general.n_subbufs),
            header: self.header.or(general.header),
            mode: self.mode.or(general.mode),
            global: self.global.or(general.global),
        }
    }

    /// The checked geometry, with the built-in defaults for what is left out.
    pub fn build(self) -> Result<Geometry, GeometryError> {
        let subbuf_size = self.subbuf_size.unwrap_or(SUBBUF_SIZE_DEFAULT);
        let n_subbufs = self.n_subbufs.unwrap_or(N_SUBBUFS_DEFAULT);
        let header = self.header.unwrap_or(0);
        if !(1..=SUBBUF_SIZE_MAX).contains(&subbuf_size) {
            return Err(GeometryError::SubbufSize(subbuf_size));
        }
        if !(1..=N_SUBBUFS_MAX).contains(&n_subbufs) {
            return Err(GeometryError::NSubbufs(n_subbufs));
        }
        if offset_bits(subbuf_size) + slot_bits(n_subbufs) > OFFSET_AND_SLOT_BITS_MAX {
            return Err(GeometryError::TooLarge { subbuf_size, n_subbufs });
        }
        if header >= subbuf_size {
            return Err(GeometryError::Header { header, subbuf_size });
        }
        Ok(Geometry {
            subbuf_size: subbuf_size as u32,
            n_subbufs: n_subbufs as u32,
            header: header as u32,
            mode: self.mode.unwrap_or(Mode::NoOverwrite),
            global: self.global.unwrap_or(false),
        })
    }
}

/// Reads `subbuf-size=64K:n-subbufs=8:overwrite:global:header=16`; any part may be missing, `_` is `-`.
impl FromStr for GeometrySpec {
    type Err = GeometryError;

    fn from_str(text: &str) -> Result<Self, GeometryError> {
        let mut spec = GeometrySpec::default();
        for part in text.split(':').filter(|part| !part.is_empty()) {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) => (key.replace('_', "-"), Some(value)),
                None => (part.replace('_', "-"), None),
            };
            match (key.as_str(), value) {
                ("subbuf-size", Some(value)) => set_size(&mut spec.subbuf_size, "subbuf-size", value)?,
                ("n-subbufs", Some(value)) => set_size(&mut spec.n_subbufs, "n-subbufs", value)?,
                ("header", Some(value)) => set_size(&mut spec.header, "header", value)?,
                ("overwrite", None) => set(&mut spec.mode, "overwrite", Mode::Overwrite)?,
                ("no-overwrite", None) => set(&mut spec.mode, "no-overwrite", Mode::NoOverwrite)?,
                ("global", None) => set(&mut spec.global, "global", true)?,
                _ => return Err(GeometryError::Unknown(part.to_owned())),
            }
        }
        Ok(spec)
    }
}

fn set<T>(field: &mut Option<T>, key: &'static str, value: T) -> Result<(), GeometryError> {
    if field.replace(value).is_some() { Err(GeometryError::Twice(key)) } else { Ok(()) }
}

fn set_size(field: &mut Option<u64>, key: &'static str, value: &str) -> Result<(), GeometryError> {
    set(field, key, parse_size(value).map_err(|source| GeometryError::Size { key, source })?)
}

/// Bits that hold every offset 0 to `subbuf_size + 1`, the last being the mark for *blocked*.
pub(crate) fn offset_bits(subbuf_size: u64) -> u32 {
    u64::BITS - (subbuf_size + 1).leading_zeros()
}

/// Bits that hold every slot 0 to `n_subbufs - 1`.
pub(crate) fn slot_bits(n_subbufs: u64) -> u32 {
    u64::BITS - (n_subbufs - 1).leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(text: &str) -> Result<Geometry, GeometryError> {
        text.parse::<GeometrySpec>()?.build()
    }

    #[test]
    fn parts_are_read_in_any_order_and_defaults_fill_in() {
        let geometry = build("overwrite:n_subbufs=8:header=16:global:subbuf-size=64K").unwrap();
        assert_eq!(geometry.subbuf_size(), 65536);
        assert_eq!(geometry.n_subbufs(), 8);
        assert_eq!(geometry.header(), 16);
        assert_eq!(geometry.mode(), Mode::Overwrite);
        assert!(geometry.global());
        assert_eq!(geometry.message_max(), 65520);
        assert_eq!(geometry.to_string(), "subbuf-size=64K:n-subbufs=8:overwrite:global:header=16");
        assert_eq!(build("").unwrap().to_string(), "subbuf-size=256K:n-subbufs=4");
    }

    #[test]
    fn more_general_options_fill_what_is_left_out() {
        let general = "overwrite:n-subbufs=2".parse::<GeometrySpec>().unwrap();
        let own = "no-overwrite:subbuf-size=1K".parse::<GeometrySpec>().unwrap();
        let geometry = own.or(&general).build().unwrap();
        assert_eq!(geometry.to_string(), "subbuf-size=1K:n-subbufs=2");
    }

    #[test]
    fn what_is_out_of_range_is_refused_by_name() {
        for text in ["subbuf-size=0", "n-subbufs=0", "subbuf-size=65M", "n-subbufs=65537"] {
            let message = build(text).unwrap_err().to_string();
            assert!(message.contains("out of range"), "{text}: {message}");
        }
        assert_eq!(
            build("subbuf-size=16:header=16"),
            Err(GeometryError::Header { header: 16, subbuf_size: 16 })
        );
        assert!(matches!(build("subbuf-size=64M:n-subbufs=4096"), Err(GeometryError::TooLarge { .. })));
        assert!(matches!(build("size=1"), Err(GeometryError::Unknown(_))));
        assert!(matches!(build("global=1"), Err(GeometryError::Unknown(_))));
        assert!(matches!(build("overwrite:no-overwrite"), Err(GeometryError::Twice(_))));
    }

    #[test]
    fn the_largest_geometries_fit_the_state_word() {
        for text in
            ["subbuf-size=64M:n-subbufs=128", "subbuf-size=64K:n-subbufs=65536", "subbuf-size=1:n-subbufs=1"]
        {
            assert!(build(text).is_ok(), "{text}");
        }
    }
}
