//! Timelines as text: the file `clock` of a channel.

use std::fmt;
use std::str::FromStr;

use crate::clock::{Anchor, Clock, Timeline};

/// Writes an anchor as `EPOCH TICKS MONOTONIC REALTIME BOOTTIME`.
impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Anchor { ticks, monotonic, realtime, boottime, epoch } = self;
        write!(f, "{epoch} {ticks} {monotonic} {realtime} {boottime}")
    }
}

/// A text that is no clock, no anchor or no timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no text of a clock")]
pub struct NotAClock;

impl FromStr for Anchor {
    type Err = NotAClock;

    fn from_str(text: &str) -> Result<Anchor, NotAClock> {
        let mut numbers = text.split(' ').map(|number| number.parse().map_err(|_| NotAClock));
        let mut next = || numbers.next().unwrap_or(Err(NotAClock));
        let (epoch, ticks, monotonic, realtime, boottime) = (next()?, next()?, next()?, next()?, next()?);
        match numbers.next() {
            None => Ok(Anchor { ticks, monotonic, realtime, boottime, epoch }),
            Some(_) => Err(NotAClock),
        }
    }
}

/// Writes `clock NAME TICKS_PER_SECOND`, then a line `anchor ...` for each anchor that counts.
impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "clock {} {}", self.clock().name(), self.ticks_per_second())?;
        self.anchors().try_for_each(|anchor| writeln!(f, "anchor {anchor}"))
    }
}

/// Reads what `Display` writes. Lines that are no anchors do not count.
impl FromStr for Timeline {
    type Err = NotAClock;

    fn from_str(text: &str) -> Result<Timeline, NotAClock> {
        let mut lines = text.lines();
        let words = lines.next().and_then(|line| line.strip_prefix("clock ")).ok_or(NotAClock)?;
        let (name, frequency) = words.split_once(' ').ok_or(NotAClock)?;
        let clock = Clock::of_name(name).ok_or(NotAClock)?;
        let frequency = frequency.parse().map_err(|_| NotAClock)?;
        let anchors: Vec<Anchor> =
            lines.filter_map(|line| line.strip_prefix("anchor ")?.parse().ok()).collect();
        Ok(Timeline::new(clock, frequency, &anchors))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::fmt::Write;

    use super::*;

    #[test]
    fn a_timeline_is_read_as_it_was_written() {
        let text =
            "clock tsc 2994373000\nanchor 0 10 20 30 40\nanchor 1 2994373010 1000000020 5 1000000040\n";
        let timeline: Timeline = text.parse().unwrap();
        assert_eq!(timeline.anchors().count(), 2);
        assert_eq!(timeline.to_string(), text);
        let torn: Timeline = text[..text.len() - 5].parse().unwrap();
        assert!(torn.anchors().count() >= 1);
        for wrong in ["", "clock", "clock tsc", "clock sundial 1", "anchor 1 2 3 4 5", "clock tsc x"] {
            assert_eq!(wrong.parse::<Timeline>().unwrap_err(), NotAClock, "{wrong:?}");
        }
        for wrong in ["", "1 2 3 4", "1 2 3 4 5 6", "1 2 3 4 -5", "1 2 3 4 18446744073709551616"] {
            assert_eq!(wrong.parse::<Anchor>(), Err(NotAClock), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(text: String, lines: Vec<[u64; 5]>) {
            let mut clock = String::from("clock tsc 3000000000\n");
            for line in lines {
                let _ = writeln!(clock, "anchor {} {} {} {} {}", line[0], line[1], line[2], line[3], line[4]);
            }
            clock.push_str(&text);
            let timeline: Timeline = clock.parse().unwrap();
            // What counted once counts again.
            prop_assert_eq!(timeline.to_string().parse::<Timeline>().unwrap().to_string(), timeline.to_string());
            let _ = text.parse::<Timeline>();
        }
    }
}
