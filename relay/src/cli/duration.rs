//! Durations as users write them: `2s`, `100ms`, `0.5`, `1m`.

use std::time::Duration;

use thiserror::Error;

/// The error for a text that is not a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a duration: a number, then nothing, ms, s or m")]
pub struct DurationError;

/// Parses a duration: a decimal number, then `ms`, `s` or `m`, or nothing for seconds.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let (number, unit) = match text.find(|c: char| c.is_ascii_alphabetic()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        _ => return Err(DurationError),
    };
    let plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number = number.parse::<f64>().ok().filter(|_| plain).ok_or(DurationError)?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| DurationError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_is_parsed_and_other_text_refused() {
        for (text, millis) in
            [("5", 5000), ("0.5", 500), ("100ms", 100), ("2s", 2000), ("1m", 60_000), ("0", 0)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "s",
            "-1",
            "+1",
            "1h",
            "1e3",
            "inf",
            "nan",
            " 1",
            "1 s",
            ".",
            "1m2s",
            "9".repeat(40).as_str(),
        ] {
            assert_eq!(parse_duration(text), Err(DurationError), "{text}");
        }
    }
}
