//! Levels of messages.

use std::fmt;
use std::str::FromStr;

/// How serious a message is, as in the crate `log`: a lower number is more serious.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// Something failed.
    Error = 1,
    /// Something is wrong, but the work continues.
    Warn = 2,
    /// News.
    Info = 3,
    /// For developers.
    Debug = 4,
    /// For developers, in detail.
    Trace = 5,
}

impl Level {
    /// All levels, the most serious first.
    pub const ALL: [Level; 5] = [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace];

    /// Returns the level with this number.
    pub fn of_number(number: u8) -> Option<Level> {
        Level::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// Returns the number in payloads and definitions.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Returns the name in capitals.
    pub fn name(self) -> &'static str {
        match self {
            Level::Error => "ERROR",
            Level::Warn => "WARN",
            Level::Info => "INFO",
            Level::Debug => "DEBUG",
            Level::Trace => "TRACE",
        }
    }

    /// Returns CTF's `loglevel`, which is LTTng-UST's and, up to 7, syslog's.
    pub fn loglevel(self) -> u8 {
        match self {
            Level::Error => 3,
            Level::Warn => 4,
            Level::Info => 6,
            Level::Debug => 7,
            Level::Trace => 14,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A text that names no level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no level; use error, warn, info, debug, trace, or 1 to 5")]
pub struct NotALevel;

impl FromStr for Level {
    type Err = NotALevel;

    fn from_str(text: &str) -> Result<Level, NotALevel> {
        let named = Level::ALL.into_iter().find(|level| text.eq_ignore_ascii_case(level.name()));
        let other = match text.to_ascii_lowercase().as_str() {
            "err" => Some(Level::Error),
            "warning" => Some(Level::Warn),
            number => number.parse().ok().and_then(Level::of_number),
        };
        named.or(other).ok_or(NotALevel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_read() {
        for level in Level::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
            assert_eq!(level.name().to_lowercase().parse(), Ok(level));
            assert_eq!(level.number().to_string().parse(), Ok(level));
            assert_eq!(Level::of_number(level.number()), Some(level));
        }
        assert_eq!("Warning".parse(), Ok(Level::Warn));
        for wrong in ["", "0", "6", "inf", "-1", "ERROR "] {
            assert_eq!(wrong.parse::<Level>(), Err(NotALevel), "{wrong:?}");
        }
        assert!(Level::Error < Level::Trace);
        assert_eq!(format!("{:5}|", Level::Warn), "WARN |");
    }
}
