//! Geometry of a channel: sub-buffer size and count, mode, header, per-CPU or global.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::cli::size::{SizeError, format_size, parse_size};

/// Largest sub-buffer, in bytes.
pub const SUBBUF_SIZE_MAX: u64 = 64 << 20;
/// Most sub-buffers in a buffer.
pub const N_SUBBUFS_MAX: u64 = 1 << 16;
/// Most buffers of a channel; Linux cannot have more CPUs.
pub const N_BUFS_MAX: usize = 1 << 16;
/// Longest message, in bytes; a smaller sub-buffer lowers the limit.
pub const MESSAGE_MAX: usize = 1 << 20;
/// Smallest sub-buffer of a timed channel, in bytes.
pub const TIMED_SUBBUF_SIZE_MIN: u64 = 64;
/// Bytes of a timed channel's record before its payload: the stamp and the head.
pub const RECORD_OVERHEAD: usize = 16;
/// Bytes of a record's head: id, thread and length, without the stamp.
pub const RECORD_HEAD_LEN: usize = 8;
/// Longest payload of a record, in bytes; a smaller sub-buffer lowers the limit.
pub const RECORD_PAYLOAD_MAX: usize = u16::MAX as usize;
/// Most bits that `offset` and `slot` take together in a state word; the rest count laps.
pub const OFFSET_AND_SLOT_BITS_MAX: u32 = 34;

/// Default sub-buffer size, in bytes.
pub const SUBBUF_SIZE_DEFAULT: u64 = 256 << 10;
/// Default number of sub-buffers.
pub const N_SUBBUFS_DEFAULT: u64 = 4;

/// What a writer does when every sub-buffer is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Drops and counts new messages until a sub-buffer has been read (the default).
    NoOverwrite,
    /// Gives up the oldest sub-buffer for the new message.
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

/// Geometry of a channel. Every value is within the limits of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    subbuf_size: u32,
    n_subbufs: u32,
    header: u32,
    mode: Mode,
    global: bool,
    timed: bool,
}

impl Geometry {
    /// Returns the size of a sub-buffer in bytes.
    pub fn subbuf_size(&self) -> usize {
        self.subbuf_size as usize
    }

    /// Returns the number of sub-buffers in each buffer.
    pub fn n_subbufs(&self) -> usize {
        self.n_subbufs as usize
    }

    /// Returns the number of zeroed bytes at the start of each sub-buffer.
    /// Readers get them as part of the stream.
    pub fn header(&self) -> usize {
        self.header as usize
    }

    /// Returns what a writer does when the buffer is full.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns whether the channel has one buffer for all CPUs instead of one for each.
    pub fn global(&self) -> bool {
        self.global
    }

    /// Returns whether the channel holds records with time stamps instead of bare messages.
    pub fn timed(&self) -> bool {
        self.timed
    }

    /// Returns whether a channel of this geometry can have `n_bufs` buffers.
    pub fn can_have(&self, n_bufs: usize) -> bool {
        if self.global { n_bufs == 1 } else { (1..=N_BUFS_MAX).contains(&n_bufs) }
    }

    /// Returns the length in bytes of the longest message that a WRITE can carry to the channel.
    /// For a timed channel that is the longest payload with its head before it.
    pub fn message_max(&self) -> usize {
        if self.timed { RECORD_HEAD_LEN + self.payload_max() } else { self.payload_max() }
    }

    /// Returns the length in bytes of the longest message that a program can write.
    /// For a timed channel that is a record's payload; the ring adds [`RECORD_OVERHEAD`] bytes.
    pub fn payload_max(&self) -> usize {
        if self.timed {
            (self.subbuf_size() - RECORD_OVERHEAD).min(RECORD_PAYLOAD_MAX)
        } else {
            (self.subbuf_size() - self.header()).min(MESSAGE_MAX)
        }
    }

    /// Returns the size of one buffer's ring in bytes: `n_subbufs * subbuf_size`.
    pub fn buffer_size(&self) -> u64 {
        u64::from(self.subbuf_size) * u64::from(self.n_subbufs)
    }
}

/// Writes the geometry as an option, `subbuf-size=64K:n-subbufs=8`.
/// Other values follow if they are not the defaults.
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
        if self.timed {
            f.write_str(":timed")?;
        }
        Ok(())
    }
}

/// The error for a geometry that is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GeometryError {
    /// The size of a sub-buffer is out of range.
    #[error("subbuf-size {0} is out of range: 1 to {SUBBUF_SIZE_MAX} bytes")]
    SubbufSize(u64),
    /// The number of sub-buffers is out of range.
    #[error("n-subbufs {0} is out of range: 1 to {N_SUBBUFS_MAX}")]
    NSubbufs(u64),
    /// Size and number are in range, but not their product.
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
    /// A timed channel has records alone in its sub-buffers.
    #[error("a timed channel has no header: say header=0 instead of {0}, or raw instead of timed")]
    TimedHeader(u64),
    /// The size of a sub-buffer is too small for records.
    #[error("subbuf-size {0} is too small for a timed channel: at least {TIMED_SUBBUF_SIZE_MIN} bytes")]
    TimedSubbufSize(u64),
    /// The value of an option is not a size.
    #[error("{key}: {source}")]
    Size {
        /// Name of the option.
        key: &'static str,
        /// Why the value is not a size.
        source: SizeError,
    },
    /// The option is not one of a channel's.
    #[error(
        "unknown channel option '{0}': known are subbuf-size=, n-subbufs=, header=, overwrite, no-overwrite, global, timed, raw"
    )]
    Unknown(String),
    /// An option was given twice.
    #[error("channel option '{0}' is given twice")]
    Twice(&'static str),
    /// One of two options says the opposite of the other.
    #[error("channel options '{0}' and '{1}' exclude each other")]
    Opposite(&'static str, &'static str),
}

/// The values of a geometry that were given. `None` values come from more general options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GeometrySpec {
    /// Size of a sub-buffer in bytes.
    pub subbuf_size: Option<u64>,
    /// Number of sub-buffers.
    pub n_subbufs: Option<u64>,
    /// Zeroed bytes reserved at the start of each sub-buffer.
    pub header: Option<u64>,
    /// What a writer does when the buffer is full.
    pub mode: Option<Mode>,
    /// One buffer for all CPUs.
    pub global: Option<bool>,
    /// Records with time stamps instead of bare messages.
    pub timed: Option<bool>,
}

impl From<Geometry> for GeometrySpec {
    /// Sets every value.
    fn from(geometry: Geometry) -> GeometrySpec {
        GeometrySpec {
            subbuf_size: Some(geometry.subbuf_size() as u64),
            n_subbufs: Some(geometry.n_subbufs() as u64),
            header: Some(geometry.header() as u64),
            mode: Some(geometry.mode()),
            global: Some(geometry.global()),
            timed: Some(geometry.timed()),
        }
    }
}

impl GeometrySpec {
    /// Returns this specification, with missing values taken from `general`.
    pub fn or(self, general: &GeometrySpec) -> GeometrySpec {
        GeometrySpec {
            subbuf_size: self.subbuf_size.or(general.subbuf_size),
            n_subbufs: self.n_subbufs.or(general.n_subbufs),
            header: self.header.or(general.header),
            mode: self.mode.or(general.mode),
            global: self.global.or(general.global),
            timed: self.timed.or(general.timed),
        }
    }

    /// Returns the checked geometry, with built-in defaults for missing values.
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
        let timed = self.timed.unwrap_or(false);
        if timed && header != 0 {
            return Err(GeometryError::TimedHeader(header));
        }
        if timed && subbuf_size < TIMED_SUBBUF_SIZE_MIN {
            return Err(GeometryError::TimedSubbufSize(subbuf_size));
        }
        Ok(Geometry {
            subbuf_size: subbuf_size as u32,
            n_subbufs: n_subbufs as u32,
            header: header as u32,
            mode: self.mode.unwrap_or(Mode::NoOverwrite),
            global: self.global.unwrap_or(false),
            timed,
        })
    }
}

/// Parses `subbuf-size=64K:n-subbufs=8:overwrite:global:header=16`, or `timed` or `raw` among them.
/// Any part may be missing. An `_` in an option's name counts as `-`.
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
                ("overwrite", None) => {
                    set_one_of(&mut spec.mode, Mode::Overwrite, ["overwrite", "no-overwrite"])?
                }
                ("no-overwrite", None) => {
                    set_one_of(&mut spec.mode, Mode::NoOverwrite, ["no-overwrite", "overwrite"])?
                }
                ("global", None) => set(&mut spec.global, "global", true)?,
                ("timed", None) => set_one_of(&mut spec.timed, true, ["timed", "raw"])?,
                ("raw", None) => set_one_of(&mut spec.timed, false, ["raw", "timed"])?,
                _ => return Err(GeometryError::Unknown(part.to_owned())),
            }
        }
        Ok(spec)
    }
}

fn set<T>(field: &mut Option<T>, key: &'static str, value: T) -> Result<(), GeometryError> {
    if field.replace(value).is_some() { Err(GeometryError::Twice(key)) } else { Ok(()) }
}

/// Sets a field that another option sets, too.
fn set_one_of<T: PartialEq>(
    field: &mut Option<T>,
    value: T,
    [key, opposite]: [&'static str; 2],
) -> Result<(), GeometryError> {
    match field {
        Some(before) if *before != value => Err(GeometryError::Opposite(opposite, key)),
        _ => set(field, key, value),
    }
}

fn set_size(field: &mut Option<u64>, key: &'static str, value: &str) -> Result<(), GeometryError> {
    set(field, key, parse_size(value).map_err(|source| GeometryError::Size { key, source })?)
}

/// Returns the bits that hold every offset 0 to `subbuf_size + 1`, the mark for *blocked*.
pub(crate) fn offset_bits(subbuf_size: u64) -> u32 {
    u64::BITS - (subbuf_size + 1).leading_zeros()
}

/// Returns the bits that hold every slot 0 to `n_subbufs - 1`.
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
    fn parts_in_any_order_are_read_and_defaults_fill_in() {
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
    fn missing_values_come_from_general_options() {
        let general = "overwrite:n-subbufs=2".parse::<GeometrySpec>().unwrap();
        let own = "no-overwrite:subbuf-size=1K".parse::<GeometrySpec>().unwrap();
        let geometry = own.or(&general).build().unwrap();
        assert_eq!(geometry.to_string(), "subbuf-size=1K:n-subbufs=2");
    }

    #[test]
    fn out_of_range_value_is_refused_by_name() {
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
        let opposite = build("overwrite:no-overwrite").unwrap_err();
        assert_eq!(opposite.to_string(), "channel options 'overwrite' and 'no-overwrite' exclude each other");
    }

    #[test]
    fn timed_channel_has_room_for_stamp_and_head_and_no_header() {
        let geometry = build("timed:subbuf-size=64:global").unwrap();
        assert!(geometry.timed() && !build("raw").unwrap().timed() && !build("").unwrap().timed());
        assert_eq!((geometry.payload_max(), geometry.message_max()), (48, 56));
        assert_eq!(geometry.to_string(), "subbuf-size=64:n-subbufs=4:global:timed");
        let large = build("timed:subbuf-size=1M").unwrap();
        assert_eq!((large.payload_max(), large.message_max()), (65535, 65543));
        assert_eq!(build("timed:subbuf-size=63"), Err(GeometryError::TimedSubbufSize(63)));
        assert_eq!(build("timed:header=1"), Err(GeometryError::TimedHeader(1)));
        assert!(build("timed:header=0").is_ok() && build("raw:header=1").is_ok());
        for opposite in ["timed:raw", "raw:timed"] {
            assert!(matches!(build(opposite), Err(GeometryError::Opposite(_, _))), "{opposite}");
        }
        for twice in ["timed:timed", "raw:raw", "overwrite:overwrite"] {
            assert!(matches!(build(twice), Err(GeometryError::Twice(_))), "{twice}");
        }
        assert!(matches!(build("timed=1"), Err(GeometryError::Unknown(_))));
        let general = "timed:n-subbufs=2".parse::<GeometrySpec>().unwrap();
        assert!(GeometrySpec::default().or(&general).build().unwrap().timed());
        assert!(!"raw".parse::<GeometrySpec>().unwrap().or(&general).build().unwrap().timed());
    }

    #[test]
    fn largest_geometries_fit_the_state_word() {
        for text in
            ["subbuf-size=64M:n-subbufs=128", "subbuf-size=64K:n-subbufs=65536", "subbuf-size=1:n-subbufs=1"]
        {
            assert!(build(text).is_ok(), "{text}");
        }
    }
}
