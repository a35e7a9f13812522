//! Times of lines.

use std::fmt;

use crate::clock::{Segment, Timeline};
use crate::trace::text::digits::{pair, push};
use crate::trace::text::format::Format;

/// Seconds of a day.
const DAY: i64 = 86_400;

/// A time zone.
pub trait Zone: fmt::Debug + Send {
    /// Returns how many seconds the zone is east of UTC at this time, in seconds since 1970.
    fn offset(&self, seconds: i64) -> i32;

    /// Returns whether times end in `Z` instead of `+00:00`.
    fn is_utc(&self) -> bool {
        false
    }
}

/// Coordinated universal time.
#[derive(Clone, Copy, Debug)]
pub struct Utc;

impl Zone for Utc {
    fn offset(&self, _: i64) -> i32 {
        0
    }

    fn is_utc(&self) -> bool {
        true
    }
}

/// Appends what stands before the digits behind the point, in a line of this second.
pub(super) fn before(format: Format, zone: &dyn Zone, second: u64, out: &mut Vec<u8>) {
    match format {
        Format::ShortMonotonic => {
            let start = out.len();
            push(second, out);
            let padding = 5usize.saturating_sub(out.len() - start);
            out.splice(start..start, std::iter::once(b'[').chain(std::iter::repeat_n(b' ', padding)));
            out.push(b'.');
        }
        Format::ShortUnix => {
            push(second, out);
            out.push(b'.');
        }
        // Nanoseconds since 1970.
        Format::Json | Format::Cat => push(second, out),
        Format::ShortIso => iso(zone, second, out),
    }
}

/// Appends what stands behind those digits.
pub(super) fn behind(format: Format, zone: &dyn Zone, second: u64, out: &mut Vec<u8>) {
    match format {
        Format::ShortMonotonic => out.push(b']'),
        Format::ShortIso if zone.is_utc() => out.push(b'Z'),
        Format::ShortIso => {
            let offset = zone.offset(second.cast_signed());
            let minutes = offset.unsigned_abs() / 60;
            out.push(if offset < 0 { b'-' } else { b'+' });
            out.extend_from_slice(&pair(minutes / 60));
            out.push(b':');
            out.extend_from_slice(&pair(minutes % 60));
        }
        Format::ShortUnix | Format::Cat | Format::Json => {}
    }
}

fn iso(zone: &dyn Zone, second: u64, out: &mut Vec<u8>) {
    // The second fits: it was made of nanoseconds.
    let second = second.cast_signed();
    let local = second.saturating_add(zone.offset(second).into());
    let (year, month, day) = civil(local.div_euclid(DAY));
    let clock = local.rem_euclid(DAY) as u32;
    let year = year.clamp(0, 9999) as u32;
    let parts = [
        (pair(year / 100), ""),
        (pair(year), "-"),
        (pair(month), "-"),
        (pair(day), "T"),
        (pair(clock / 3600), ":"),
        (pair(clock / 60 % 60), ":"),
        (pair(clock % 60), "."),
    ];
    for (digits, sign) in parts {
        out.extend_from_slice(&digits);
        out.extend_from_slice(sign.as_bytes());
    }
}

/// Returns year, month and day of a day since 1970, in the Gregorian calendar.
fn civil(day: i64) -> (i64, u32, u32) {
    // Years begin in March, so that a leap day is a year's last; eras have 400 years.
    let day = day + 719_468;
    let era = day.div_euclid(146_097);
    let of_era = day.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month as u32, day as u32)
}

/// A timeline that remembers where the last stamp lay.
#[derive(Debug)]
pub(super) struct Cached {
    timeline: Timeline,
    segment: Segment,
}

impl Cached {
    pub(super) fn new(timeline: Timeline) -> Cached {
        let segment = *timeline.segment(0);
        Cached { timeline, segment }
    }

    pub(super) fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    #[inline]
    fn look(&mut self, stamp: u64) -> &Segment {
        if !self.segment.contains(stamp) {
            self.segment = *self.timeline.segment(stamp);
        }
        &self.segment
    }

    #[inline]
    pub(super) fn realtime(&mut self, stamp: u64) -> u64 {
        self.look(stamp).realtime(stamp)
    }

    #[inline]
    pub(super) fn monotonic(&mut self, stamp: u64) -> u64 {
        self.look(stamp).monotonic(stamp)
    }

    #[inline]
    pub(super) fn boottime(&mut self, stamp: u64) -> u64 {
        self.look(stamp).boottime(stamp)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::trace::text::digits::six;

    #[derive(Debug)]
    struct Fixed(i32);

    impl Zone for Fixed {
        fn offset(&self, _: i64) -> i32 {
            self.0
        }
    }

    fn time(format: Format, zone: impl Zone, nanos: u64) -> String {
        let (second, micros) = (nanos / 1_000_000_000, (nanos % 1_000_000_000 / 1000) as u32);
        let mut out = Vec::new();
        before(format, &zone, second, &mut out);
        out.extend_from_slice(&six(micros));
        behind(format, &zone, second, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn times_look_as_the_formats_say() {
        let nanos = 1_795_370_400_123_456_789;
        assert_eq!(time(Format::ShortIso, Utc, nanos), "2026-11-22T18:00:00.123456Z");
        assert_eq!(time(Format::ShortIso, Fixed(0), nanos), "2026-11-22T18:00:00.123456+00:00");
        assert_eq!(time(Format::ShortIso, Fixed(3600 * 6 + 1800), nanos), "2026-11-23T00:30:00.123456+06:30");
        assert_eq!(time(Format::ShortIso, Fixed(-5400), nanos), "2026-11-22T16:30:00.123456-01:30");
        assert_eq!(time(Format::ShortUnix, Utc, nanos), "1795370400.123456");
        assert_eq!(time(Format::ShortMonotonic, Utc, 5_000_001_999), "[    5.000001]");
        assert_eq!(time(Format::ShortMonotonic, Utc, 12_345_000_001_999), "[12345.000001]");
        assert_eq!(time(Format::ShortMonotonic, Utc, 1_234_567_000_001_999), "[1234567.000001]");
        assert_eq!(time(Format::ShortIso, Utc, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(time(Format::ShortIso, Fixed(-1), 0), "1969-12-31T23:59:59.000000-00:00");
        assert_eq!(time(Format::ShortIso, Utc, u64::MAX), "2554-07-21T23:34:33.709551Z");
        assert_eq!(time(Format::ShortIso, Utc, 1_709_164_800_000_000_000), "2024-02-29T00:00:00.000000Z");
    }

    #[test]
    fn days_count_as_in_the_calendar() {
        let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let mut day = 0;
        for year in 1970..2600 {
            for month in 1..=12 {
                let days = match month {
                    2 => 28 + u32::from(is_leap(year)),
                    4 | 6 | 9 | 11 => 30,
                    _ => 31,
                };
                for of_month in 1..=days {
                    assert_eq!(civil(day), (year, month, of_month));
                    day += 1;
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_time_in_any_zone_is_written(nanos: u64, offset: i32) {
            time(Format::ShortIso, Fixed(offset), nanos);
        }
    }
}
