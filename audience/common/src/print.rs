//! Prints what a merge yields, as lines on standard output.

use std::collections::VecDeque;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use relay::clock::Timeline;
use relay::trace::merge::{Entry, Item};
use relay::trace::names::Names;
use relay::trace::text::{Format, Lines, Utc, Zone};

use crate::error::Failure;
use crate::filter::Filter;
use crate::options::Show;
use crate::output::Output;

/// Bytes that are written at once.
const BLOCK: usize = 256 << 10;

/// How lines look.
#[derive(Clone, Debug)]
pub struct Look {
    format: Format,
    is_utc: bool,
    is_coloured: bool,
}

impl Look {
    /// Takes what the options say.
    pub fn new(show: &Show) -> Look {
        let format = show.output.unwrap_or_default();
        Look { format, is_utc: show.utc, is_coloured: show.is_colored() }
    }

    /// Returns the lines of a channel.
    pub fn lines(&self, timeline: Timeline, names: Names) -> Lines {
        let zone: Box<dyn Zone> =
            if self.is_utc { Box::new(Utc) } else { Box::new(Local(TimeZone::system())) };
        Lines::new(self.format, timeline, names).with_zone(zone).with_colour(self.is_coloured)
    }

    /// Returns the format of the lines.
    pub fn format(&self) -> Format {
        self.format
    }
}

/// Prints lines.
#[derive(Debug)]
pub struct Printer<'o> {
    output: &'o mut Output,
    /// Prints a line on standard error.
    say: fn(&str),
    filter: Filter,
    format: Format,
    /// What is not written yet.
    block: Vec<u8>,
    last: Option<Last>,
    /// Records that came, printed or not.
    n_records: u64,
    /// Stamp of the youngest item that came.
    newest: u64,
    /// Whether something that is no packet was found.
    is_damaged: bool,
}

/// The last lines, for `-n`.
#[derive(Debug)]
struct Last {
    /// How many records are kept.
    most: usize,
    lines: VecDeque<Line>,
    n_records: usize,
}

/// A line.
#[derive(Debug)]
struct Line {
    what: What,
    text: Vec<u8>,
}

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// A record, with its stamp.
    Record(u64),
    /// Something between records.
    Notice,
    /// The same, for standard error.
    Aside,
}

impl Line {
    fn is_record(&self) -> bool {
        matches!(self.what, What::Record(_))
    }
}

impl Last {
    fn new(most: usize) -> Last {
        Last { most, lines: VecDeque::new(), n_records: 0 }
    }

    /// Returns the oldest stamp of the records; `None` if they are fewer than asked for.
    fn oldest(&self) -> Option<u64> {
        let stamps = self.lines.iter().filter_map(|line| match line.what {
            What::Record(stamp) => Some(stamp),
            What::Notice | What::Aside => None,
        });
        (self.n_records == self.most).then(|| stamps.min().unwrap_or(u64::MAX))
    }

    /// Keeps a line, and gives up the oldest ones.
    fn push(&mut self, what: What, text: &[u8]) {
        let is_record = matches!(what, What::Record(_));
        if self.most == 0 || self.n_records == 0 && !is_record {
            return; // losses before the first record that is kept are another matter
        }
        self.n_records += usize::from(is_record);
        let mut memory = Vec::new();
        while self.n_records > self.most || self.lines.front().is_some_and(|line| !line.is_record()) {
            let Some(line) = self.lines.pop_front() else { break };
            self.n_records -= usize::from(line.is_record());
            memory = line.text;
        }
        memory.clear();
        memory.extend_from_slice(text);
        self.lines.push_back(Line { what, text: memory });
    }
}

impl<'o> Printer<'o> {
    /// Prints as the options say. `say` prints a line on standard error.
    pub fn new(show: &Show, output: &'o mut Output, say: fn(&str)) -> Result<Printer<'o>, Failure> {
        Ok(Printer {
            output,
            say,
            filter: Filter::new(show)?,
            format: show.output.unwrap_or_default(),
            block: Vec::with_capacity(BLOCK + (BLOCK >> 2)),
            last: show.lines.map(Last::new),
            n_records: 0,
            newest: 0,
            is_damaged: false,
        })
    }

    /// Returns the last moment that is asked for, in nanoseconds since 1970.
    pub fn until(&self) -> u64 {
        self.filter.until()
    }

    /// Prints an item as one of these lines.
    ///
    /// `origin` stands in front of a line. In JSON it is the begin of the object, `{"host":"a"`.
    #[inline]
    pub fn entry(&mut self, entry: &Entry<'_>, lines: &mut Lines, origin: &[u8]) -> Result<(), Failure> {
        self.newest = self.newest.max(entry.stamp);
        let (is_record, passes) = match &entry.item {
            Item::Record(record) => {
                self.n_records += 1;
                (true, self.filter.has(record, lines))
            }
            Item::Failed(_) | Item::Damaged { .. } => {
                self.is_damaged = true;
                (false, true)
            }
            Item::Notice(_) => (false, true),
            Item::Lost { .. } | Item::Gap { .. } => (false, self.filter.has_losses()),
        };
        if !passes || !self.filter.has_time(entry.stamp, lines.timeline()) {
            return Ok(());
        }
        let begin = self.block.len();
        if !origin.is_empty() && (self.format != Format::Cat || !is_record) {
            self.block.extend_from_slice(origin);
        }
        let at = self.block.len();
        lines.line(entry, &mut self.block);
        if self.format == Format::Json && at > begin {
            // The object has begun.
            self.block[at] = b',';
        }
        let what = match (is_record, self.format) {
            (true, _) => What::Record(entry.stamp),
            (false, Format::Cat) => {
                // The format has texts alone, so other lines go to standard error.
                let notice = String::from_utf8_lossy(&self.block[at..]);
                let notice = notice.trim_end().trim_matches('-').trim().to_owned();
                self.block.truncate(at);
                self.block.extend_from_slice(notice.as_bytes());
                What::Aside
            }
            (false, _) => What::Notice,
        };
        if let Some(last) = &mut self.last {
            last.push(what, &self.block[begin..]);
            self.block.truncate(begin);
            return Ok(());
        }
        if what == What::Aside {
            (self.say)(&String::from_utf8_lossy(&self.block[begin..]));
            self.block.truncate(begin);
            return Ok(());
        }
        if self.block.len() >= BLOCK { self.flush() } else { Ok(()) }
    }

    /// Writes out what was printed so far.
    pub fn flush(&mut self) -> Result<(), Failure> {
        let written = self.output.write(&self.block);
        self.block.clear();
        written
    }

    /// Writes out the last lines, if they are what is asked for, and prints all lines from now on.
    pub fn print_all(&mut self) -> Result<(), Failure> {
        let finished = self.finish();
        self.last = None;
        finished
    }

    /// Writes out the last lines, if they are what is asked for.
    pub fn finish(&mut self) -> Result<(), Failure> {
        let last = self.last.as_mut().map(|last| {
            last.n_records = 0;
            std::mem::take(&mut last.lines)
        });
        for Line { what, text } in last.into_iter().flatten() {
            if what == What::Aside {
                (self.say)(&String::from_utf8_lossy(&text));
                continue;
            }
            self.block.extend_from_slice(&text);
            if self.block.len() >= BLOCK {
                self.flush()?;
            }
        }
        self.flush()
    }

    /// Returns the stamp of the oldest of the last records that are asked for; `None` if there are not as many.
    pub fn oldest_of_last(&self) -> Option<u64> {
        self.last.as_ref().and_then(Last::oldest)
    }

    /// Forgets the last records: others come in their place.
    pub fn forget_last(&mut self) {
        if let Some(last) = &mut self.last {
            last.lines.clear();
            last.n_records = 0;
        }
    }

    /// Returns how many records came, printed or not.
    pub fn n_records(&self) -> u64 {
        self.n_records
    }

    /// Returns the stamp of the youngest item that came.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// Returns whether something that is no packet was found.
    pub fn is_damaged(&self) -> bool {
        self.is_damaged
    }
}

/// The time zone of this machine, or of TZ.
#[derive(Debug)]
struct Local(TimeZone);

impl Zone for Local {
    fn offset(&self, seconds: i64) -> i32 {
        Timestamp::from_second(seconds).map_or(0, |time| self.0.to_offset(time).seconds())
    }

    fn is_utc(&self) -> bool {
        self.0 == TimeZone::UTC || matches!(self.0.iana_name(), Some("UTC" | "Etc/UTC" | "Etc/Unknown"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_records_are_kept_with_what_is_between_them() {
        let kept = |most, lines: &[(bool, &str)]| {
            let mut last = Last::new(most);
            let what = |is_record| if is_record { What::Record(0) } else { What::Notice };
            lines.iter().for_each(|(is_record, text)| last.push(what(*is_record), text.as_bytes()));
            let lines = last.lines.iter().map(|line| String::from_utf8(line.text.clone()).unwrap());
            lines.collect::<Vec<_>>()
        };
        let lines = [(false, "lost"), (true, "a"), (false, "gap"), (true, "b"), (true, "c"), (false, "end")];
        assert_eq!(kept(2, &lines), ["b", "c", "end"]);
        assert_eq!(kept(3, &lines), ["a", "gap", "b", "c", "end"]);
        assert_eq!(kept(9, &lines), ["a", "gap", "b", "c", "end"]);
        assert!(kept(0, &lines).is_empty());
    }
    #[test]
    fn oldest_of_the_last_records_is_known() {
        let mut last = Last::new(2);
        assert_eq!(last.oldest(), None);
        for (stamp, oldest) in [(5, None), (7, Some(5)), (6, Some(6)), (9, Some(6)), (8, Some(8))] {
            last.push(What::Record(stamp), b"x");
            last.push(What::Notice, b"y");
            assert_eq!(last.oldest(), oldest, "{stamp}");
        }
        assert_eq!(Last::new(0).oldest(), Some(u64::MAX));
    }
}
