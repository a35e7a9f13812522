//! A moment as people write it: `-5min`, `today`, `10:30`, `2026-11-22 10:30`, `@1700000000.5`.

use std::str::FromStr;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan, Zoned};

/// Nanoseconds of a second.
const SECOND: i128 = 1_000_000_000;

/// A moment that may depend on the present and on a time zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// This far from now.
    Relative(SpanText),
    /// The beginning of a day, counted from today.
    Day(i64),
    /// A time of today.
    Today(Time),
    /// A date and a time of the local time zone.
    Local(DateTime),
    /// A moment, in nanoseconds since 1970.
    Moment(i128),
}

/// A span and its text: spans of equal length may differ in their units.
#[derive(Clone, Debug)]
pub struct SpanText {
    span: Span,
    text: String,
}

impl PartialEq for SpanText {
    fn eq(&self, other: &SpanText) -> bool {
        self.text == other.text
    }
}

impl Eq for SpanText {}

impl When {
    /// Returns the moment in nanoseconds since 1970. `None` if it lies outside of the calendar.
    pub fn resolve(&self, now: &Zoned) -> Option<i128> {
        let day = |date: Date| date.to_zoned(now.time_zone().clone()).ok();
        let zoned = match self {
            When::Moment(moment) => return Some(*moment),
            When::Relative(SpanText { span, .. }) => now.checked_add(*span).ok(),
            When::Day(days) => now.date().checked_add(days.days()).ok().and_then(day),
            When::Today(time) => now.date().to_datetime(*time).to_zoned(now.time_zone().clone()).ok(),
            When::Local(time) => time.to_zoned(now.time_zone().clone()).ok(),
        };
        zoned.map(|zoned| zoned.timestamp().as_nanosecond())
    }
}

/// Returns the present in the zone in which times are read and printed.
pub fn now(utc: bool) -> Zoned {
    let zone = if utc { TimeZone::UTC } else { TimeZone::system() };
    Timestamp::now().to_zoned(zone)
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<When, String> {
        let text = text.trim();
        let day = match text {
            "now" => return Ok(When::Relative(SpanText { span: Span::new(), text: text.to_owned() })),
            "today" => Some(0),
            "yesterday" => Some(-1),
            "tomorrow" => Some(1),
            _ => None,
        };
        if let Some(day) = day {
            return Ok(When::Day(day));
        }
        if let Some(number) = text.strip_prefix('@') {
            return epoch(number)
                .map(When::Moment)
                .ok_or_else(|| format!("'{number}' is no number of seconds"));
        }
        // With a zone or an offset first: without them the rest would be left over.
        if let Ok(zoned) = text.parse::<Zoned>() {
            return Ok(When::Moment(zoned.timestamp().as_nanosecond()));
        }
        if let Ok(moment) = text.parse::<Timestamp>() {
            return Ok(When::Moment(moment.as_nanosecond()));
        }
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            if let Ok(time) = text.parse::<DateTime>() {
                return Ok(When::Local(time));
            }
            if text.contains(':')
                && let Ok(time) = text.parse::<Time>()
            {
                return Ok(When::Today(time));
            }
        }
        match text.parse::<Span>() {
            Ok(span) => Ok(When::Relative(SpanText { span, text: text.to_owned() })),
            Err(_) => Err(
                "not a time; use -5min, today, yesterday, 10:30, 2026-11-22, \"2026-11-22 10:30\" or @EPOCH"
                    .to_owned(),
            ),
        }
    }
}

/// Parses seconds since 1970, with up to nine digits behind a point.
fn epoch(text: &str) -> Option<i128> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) || fraction.len() > 9 {
        return None;
    }
    let seconds = i128::from(whole.parse::<u64>().ok()?);
    Some(sign * (seconds * SECOND + format!("{fraction:0<9}").parse::<i128>().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resolves a text as if it were 2026-11-22 18:00 in a zone of one hour.
    fn at(text: &str) -> String {
        let now: Zoned = "2026-11-22T18:00:00+01:00[+01:00]".parse().unwrap();
        let moment = text.parse::<When>().unwrap().resolve(&now).unwrap();
        Timestamp::from_nanosecond(moment).unwrap().to_string()
    }

    #[test]
    fn times_are_relative_or_of_the_zone() {
        for (text, moment) in [
            ("now", "2026-11-22T17:00:00Z"),
            ("-5min", "2026-11-22T16:55:00Z"),
            ("5min ago", "2026-11-22T16:55:00Z"),
            ("-1h30m", "2026-11-22T15:30:00Z"),
            ("-2 days", "2026-11-20T17:00:00Z"),
            ("-250ms", "2026-11-22T16:59:59.75Z"),
            ("today", "2026-11-21T23:00:00Z"),
            ("yesterday", "2026-11-20T23:00:00Z"),
            ("10:30", "2026-11-22T09:30:00Z"),
            ("10:30:15.5", "2026-11-22T09:30:15.5Z"),
            ("2026-11-20", "2026-11-19T23:00:00Z"),
            ("2026-11-20 10:30", "2026-11-20T09:30:00Z"),
            ("2026-11-20T10:30:01", "2026-11-20T09:30:01Z"),
            ("2026-11-20T10:30:00Z", "2026-11-20T10:30:00Z"),
            ("2026-11-20T10:30:00+05:00", "2026-11-20T05:30:00Z"),
            ("@0", "1970-01-01T00:00:00Z"),
            ("@1700000000.5", "2023-11-14T22:13:20.5Z"),
            ("@-1.5", "1969-12-31T23:59:58.5Z"),
        ] {
            assert_eq!(at(text), moment, "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in [
            "",
            "5",
            "noon",
            "@",
            "@x",
            "@1.",
            "@1.0000000001",
            "25:00",
            "2026-13-01",
            "-5",
            "-5 parsecs",
            "10",
        ] {
            assert!(bad.parse::<When>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_outside_of_the_calendar_are_none() {
        let now = now(true);
        assert_eq!("-19000 years".parse::<When>().unwrap().resolve(&now), None);
    }
}
