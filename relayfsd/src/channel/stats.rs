//! Counters of a buffer, of a channel, and of removed channels; and their text.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crate::channel::Channel;

/// Defines [`Counts`] from a list of counters: each one's name in files, and how to add two.
macro_rules! counts {
    ($($name:ident: $together:ident,)*) => {
        /// The counters of one buffer, or the sums of several.
        #[derive(Clone, Copy, Debug, Default)]
        pub(crate) struct Counts {
            $(pub(crate) $name: u64,)*
        }

        impl Counts {
            /// Returns the counters' names and values.
            pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }

            /// Returns those that only count up, without the numbers of a moment, a length or a reading.
            pub(crate) fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($name), stringify!($together), self.$name)),*].into_iter().filter_map(
                    |(name, together, value)| {
                        let counts = together == "wrapping_add" && !name.starts_with("old_");
                        counts.then_some((name, value))
                    },
                )
            }

            /// Sets the counter of a name, if there is one.
            pub(crate) fn set(&mut self, name: &str, value: u64) {
                match name {
                    $(stringify!($name) => self.$name = value,)*
                    _ => {}
                }
            }

            /// Adds the counters of another.
            pub(crate) fn add(&mut self, other: &Counts) {
                $(self.$name = self.$name.$together(other.$name);)*
            }
        }
    };
}

// In the order of the file. Names are never removed or given another meaning. Peers can write the counters, so sums
// wrap.
counts! {
    produced: wrapping_add,
    consumed: wrapping_add,
    bytes: wrapping_add,
    written: wrapping_add,
    dropped: wrapping_add,
    too_big: wrapping_add,
    contended: wrapping_add,
    read_bytes: wrapping_add,
    read_subbufs: wrapping_add,
    overwritten_bytes: wrapping_add,
    overwritten_subbufs: wrapping_add,
    discarded_bytes: wrapping_add,
    discarded_subbufs: wrapping_add,
    high_water: max,
    corrected: wrapping_add,
    old_dropped: wrapping_add,
    old_too_big: wrapping_add,
    old_contended: wrapping_add,
    old_overwritten_bytes: wrapping_add,
    messages: wrapping_add,
    full: wrapping_add,
    dropped_bytes: wrapping_add,
    longest_dropped: max,
    longest_too_big: max,
    last_dropped: max,
    last_too_big: max,
    last_contended: max,
    last_overwritten: max,
}

impl Counts {
    /// Writes a line for each counter: `prefix.name value`.
    pub(crate) fn write_to(&self, prefix: &str, text: &mut String) {
        self.write_of(prefix, true, text);
    }

    /// Writes the lines of a channel. A raw channel does not know where messages end, and so counts none.
    pub(crate) fn write_of(&self, prefix: &str, timed: bool, text: &mut String) {
        for (name, value) in self.named().filter(|(name, _)| timed || *name != "messages") {
            writeln!(text, "{prefix}.{name} {value}").expect("writing to a string");
        }
    }
}

impl Channel {
    /// Returns the counters of one buffer.
    pub(crate) fn counts(&self, cpu: usize) -> Counts {
        let mut side = self.read_side(cpu);
        let messages = side.reader.messages().unwrap_or(0);
        side.reader.note_high_water();
        let block = side.reader.buffer().block();
        let now = now();
        // A peer can write any time. What happened did not happen later than now.
        let time = |word: &AtomicU64| word.load(Ordering::Relaxed).min(now);
        // Relaxed: counters say nothing about other memory.
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let dropped = get(&block.dropped).wrapping_add(get(&block.dropped_elsewhere));
        let (dropped_before, seen) = side.dropped_seen;
        if dropped != dropped_before {
            // In a burst, a writer does not note each time. What was not there at the last look came after it.
            block.last_dropped.fetch_max(seen, Ordering::Relaxed);
        }
        let produced = side.reader.produced();
        // Before the size is read: so no more bytes count as overwritten than as written.
        let overwritten = side.reader.overwritten_unread();
        let given_up = get(&block.overwritten_bytes).wrapping_add(overwritten.bytes);
        let counts = Counts {
            produced,
            consumed: produced.saturating_sub(side.reader.n_finished()),
            bytes: side.reader.size(),
            written: get(&block.written),
            dropped,
            too_big: get(&block.too_big),
            contended: get(&block.contended),
            read_bytes: get(&block.read_bytes),
            read_subbufs: get(&block.read_subbufs),
            overwritten_bytes: given_up,
            overwritten_subbufs: get(&block.overwritten_subbufs).wrapping_add(overwritten.subbufs),
            discarded_bytes: get(&block.discarded_bytes),
            discarded_subbufs: get(&block.discarded_subbufs),
            high_water: get(&block.high_water),
            corrected: side.reader.corrected(),
            old_dropped: get(&block.old_dropped),
            old_too_big: get(&block.old_too_big),
            old_contended: get(&block.old_contended),
            old_overwritten_bytes: get(&block.old_overwritten_bytes),
            messages,
            full: get(&block.full),
            dropped_bytes: get(&block.dropped_bytes).wrapping_add(get(&block.dropped_bytes_elsewhere)),
            longest_dropped: get(&block.longest_dropped),
            longest_too_big: get(&block.longest_too_big),
            last_dropped: time(&block.last_dropped),
            last_too_big: time(&block.last_too_big),
            last_contended: time(&block.last_contended),
            // A sub-buffer that was read before it was finished is given back late, and then nothing of it is lost.
            last_overwritten: if given_up == 0 { 0 } else { time(&block.last_overwritten) },
        };
        side.dropped_seen = (dropped, now);
        counts
    }

    /// Returns the counters of each buffer.
    pub(crate) fn all_counts(&self) -> Vec<Counts> {
        (0..self.n_bufs()).map(|cpu| self.counts(cpu)).collect()
    }

    /// Returns the sums over all buffers.
    pub(crate) fn total(&self) -> Counts {
        let mut total = Counts::default();
        (0..self.n_bufs()).for_each(|cpu| total.add(&self.counts(cpu)));
        total
    }

    /// Returns the text of the `stats` file.
    ///
    /// It calls buffers `cpuN`, whatever the channel's base filename is.
    pub(crate) fn stats(&self) -> String {
        let (mut text, timed) = (String::new(), self.geometry().timed());
        for cpu in 0..self.n_bufs() {
            self.counts(cpu).write_of(&format!("cpu{cpu}"), timed, &mut text);
        }
        self.total().write_of("total", timed, &mut text);
        if let Some(timed) = self.timed() {
            timed.write_stats(&mut text);
        }
        text
    }
}

/// Returns the present in nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    nanoseconds(SystemTime::now())
}

/// Returns a time in nanoseconds since 1970.
pub(crate) fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_set_and_added_by_name() {
        let (mut all, mut more) = (Counts::default(), Counts::default());
        for (name, _) in all.named() {
            all.set(name, 2);
            more.set(name, 3);
        }
        all.set("of another release", 7);
        all.add(&more);
        for (name, value) in all.named() {
            let is_greatest = ["high_water", "last_", "longest_"].iter().any(|begin| name.starts_with(begin));
            assert_eq!(value, if is_greatest { 3 } else { 5 }, "{name}");
            let counts = all.counters().any(|(counter, _)| counter == name);
            assert_eq!(counts, !is_greatest && !name.starts_with("old_"), "{name}");
        }
        all.add(&Counts { bytes: u64::MAX, ..Counts::default() });
        assert_eq!(all.bytes, 4, "a sum with a number that a peer made up wraps");
    }
}
