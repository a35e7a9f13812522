//! The interval at which a program finishes sub-buffers that do not fill: `200ms`, or `never`.

use std::time::Duration;

use crate::cli::duration::parse_duration;

/// Shortest interval.
const MIN: Duration = Duration::from_millis(1);
const NEVER: &str = "never";

/// An interval; `None` is never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushInterval(pub Option<Duration>);

/// Parses a duration of at least a millisecond, or `never`.
///
/// # Errors
///
/// Says what is wrong with the text, and which texts are right.
pub fn parse_flush_interval(text: &str) -> Result<FlushInterval, String> {
    if text == NEVER {
        return Ok(FlushInterval(None));
    }
    let interval = parse_duration(text).map_err(|error| format!("{error}; or {NEVER}"))?;
    if interval < MIN {
        return Err(format!("at least {MIN:?}, or {NEVER}"));
    }
    Ok(FlushInterval(Some(interval)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_is_long_enough_or_never() {
        assert_eq!(parse_flush_interval("never"), Ok(FlushInterval(None)));
        assert_eq!(parse_flush_interval("250ms"), Ok(FlushInterval(Some(Duration::from_millis(250)))));
        for bad in ["", "0", "0s", "0.9ms", "x", "Never", "-1s"] {
            assert!(parse_flush_interval(bad).is_err(), "{bad}");
        }
    }
}
