//! How records are written.

use std::fmt;
use std::str::FromStr;

/// How records are written, one a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Time as `2026-11-22T18:00:00.123456Z`.
    #[default]
    ShortIso,
    /// Time as `[12345.123456]`, since the boot, without the time that the machine slept.
    ShortMonotonic,
    /// Time as `1795370400.123456`, since 1970.
    ShortUnix,
    /// The message alone.
    Cat,
    /// A JSON object.
    Json,
}

impl Format {
    /// All formats.
    pub const ALL: [Format; 5] =
        [Format::ShortIso, Format::ShortMonotonic, Format::ShortUnix, Format::Cat, Format::Json];

    /// Returns the format's name.
    pub fn name(self) -> &'static str {
        match self {
            Format::ShortIso => "short-iso",
            Format::ShortMonotonic => "short-monotonic",
            Format::ShortUnix => "short-unix",
            Format::Cat => "cat",
            Format::Json => "json",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A text that names no format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no format; use short-iso, short-monotonic, short-unix, cat or json")]
pub struct NotAFormat;

impl FromStr for Format {
    type Err = NotAFormat;

    fn from_str(text: &str) -> Result<Format, NotAFormat> {
        Format::ALL.into_iter().find(|format| format.name() == text).ok_or(NotAFormat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
            assert!(NotAFormat.to_string().contains(format.name()));
        }
        assert_eq!("short".parse::<Format>(), Err(NotAFormat));
    }
}
