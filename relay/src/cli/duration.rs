//! Durations as users write them: `2s`, `100ms`, `0.5`, `1h30m`, `7d`.

use std::time::Duration;

use thiserror::Error;

/// Units and their milliseconds.
const UNITS: [(&str, f64); 5] =
    [("ms", 1.0), ("s", 1000.0), ("m", 60_000.0), ("h", 3_600_000.0), ("d", 86_400_000.0)];

/// The error for a text that is not a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a duration: a number with ms, s, m, h or d, as in 500ms, 10s or 1h30m; without a unit: seconds")]
pub struct DurationError;

/// Parses a duration: a decimal number of seconds, or numbers that are each followed by `ms`, `s`, `m`, `h` or `d`.
///
/// Several are added up. A duration that is too long for [`Duration`] is an error.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    if !text.contains(|c: char| c.is_ascii_alphabetic()) {
        return part(text, 1000.0);
    }
    let (mut sum, mut rest) = (Duration::ZERO, text);
    while !rest.is_empty() {
        let (number, behind) = split(rest, |c| c.is_ascii_alphabetic())?;
        let (unit, behind) = split(behind, |c| !c.is_ascii_alphabetic())?;
        let (_, milliseconds) = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or(DurationError)?;
        sum = sum.checked_add(part(number, milliseconds)?).ok_or(DurationError)?;
        rest = behind;
    }
    Ok(sum)
}

/// Splits a text before the first character of a kind, or at its end. Fails if the first part is empty.
fn split(text: &str, is_behind: fn(char) -> bool) -> Result<(&str, &str), DurationError> {
    let (first, behind) = text.split_at(text.find(is_behind).unwrap_or(text.len()));
    if first.is_empty() { Err(DurationError) } else { Ok((first, behind)) }
}

/// Parses a number of some milliseconds each.
fn part(number: &str, milliseconds: f64) -> Result<Duration, DurationError> {
    let is_plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number = number.parse::<f64>().ok().filter(|_| is_plain).ok_or(DurationError)?;
    Duration::try_from_secs_f64(number * milliseconds / 1000.0).map_err(|_| DurationError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_is_parsed_and_other_text_refused() {
        const HOUR: u64 = 3_600_000;
        for (text, millis) in [
            ("5", 5000),
            ("0.5", 500),
            ("100ms", 100),
            ("2s", 2000),
            ("1m", 60_000),
            ("90m", HOUR * 3 / 2),
            ("1.5h", HOUR * 3 / 2),
            ("1h30m", HOUR * 3 / 2),
            ("1m30s500ms", 90_500),
            ("7d", 7 * 24 * HOUR),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        let long = "9".repeat(40);
        for text in [
            "",
            "s",
            "-1",
            "+1",
            "1H",
            "1w",
            "1e3",
            "1e3s",
            "inf",
            "nan",
            " 1",
            "1 s",
            ".",
            ".s",
            "1h30",
            "h30m",
            "1hm",
            "1m-2s",
            "1m 2s",
            "1µs",
            "1\u{661}s",
            "18446744073709551615s1s",
            &long,
            &format!("{long}d"),
        ] {
            assert_eq!(parse_duration(text), Err(DurationError), "{text}");
        }
    }
}
