//! Which records are printed.

use regex::bytes::Regex;
use relay::clock::Timeline;
use relay::trace::level::Level;
use relay::trace::record::Record;
use relay::trace::text::Lines;

use crate::error::Failure;
use crate::options::Show;
use crate::options::when::{self, When};

/// The options that leave records out.
#[derive(Debug)]
pub struct Filter {
    /// CLOCK_REALTIME in nanoseconds; both are included.
    since: u64,
    until: u64,
    has_times: bool,
    grep: Option<Regex>,
    level: Option<Level>,
    target: Option<String>,
    pid: Option<u32>,
    /// Whether an option other than a time is given.
    looks_into_records: bool,
    /// Kept for its memory.
    message: Vec<u8>,
}

impl Filter {
    /// Makes the filter of the options, at the present time.
    pub fn new(show: &Show) -> Result<Filter, Failure> {
        let now = when::now(show.utc);
        let moment = |option, when: &Option<When>, default| match when {
            None => Ok::<u64, Failure>(default),
            Some(when) => {
                let nanos = when.resolve(&now).ok_or(Failure::OutsideOfCalendar(option))?;
                Ok(u64::try_from(nanos.max(0)).unwrap_or(u64::MAX))
            }
        };
        let (grep, level) = (show.grep.clone(), show.level);
        let (target, pid) = (show.target.clone(), show.pid);
        Ok(Filter {
            since: moment("--since", &show.since, 0)?,
            until: moment("--until", &show.until, u64::MAX)?,
            has_times: show.since.is_some() || show.until.is_some(),
            looks_into_records: grep.is_some() || level.is_some() || target.is_some() || pid.is_some(),
            grep,
            level,
            target,
            pid,
            message: Vec::new(),
        })
    }

    /// Whether something of this stamp is in the time that is asked for.
    pub fn has_time(&self, stamp: u64, timeline: &Timeline) -> bool {
        !self.has_times || (self.since..=self.until).contains(&timeline.realtime(stamp))
    }

    /// The first moment that is asked for, in nanoseconds since 1970.
    pub fn since(&self) -> u64 {
        self.since
    }

    /// The last moment that is asked for, in nanoseconds since 1970.
    pub fn until(&self) -> u64 {
        self.until
    }

    /// Whether losses are of interest: not for a reader of certain records.
    pub fn has_losses(&self) -> bool {
        !self.looks_into_records
    }

    /// Whether a record passes, its time apart.
    #[inline]
    pub fn has(&mut self, record: &Record<'_>, lines: &Lines) -> bool {
        !self.looks_into_records || self.looks_right(record, lines)
    }

    fn looks_right(&mut self, record: &Record<'_>, lines: &Lines) -> bool {
        let names = lines.names();
        if let Some(most) = self.level
            && names.level(record).is_none_or(|level| level > most)
        {
            return false;
        }
        if let Some(prefix) = &self.target
            && !names.target(record).is_some_and(|target| target.starts_with(prefix.as_bytes()))
        {
            return false;
        }
        // A thread has the number of its process if it is the first. A program of `relay-producer --exec` is no process of
        // the channel, and the thread of its records.
        if let Some(pid) = self.pid
            && record.tid != pid
            && names
                .process(record.tid, lines.timeline().boottime(record.stamp))
                .is_none_or(|process| process.pid != pid)
        {
            return false;
        }
        let Some(grep) = &self.grep else { return true };
        self.message.clear();
        lines.message(record, &mut self.message);
        grep.is_match(&self.message)
    }
}
