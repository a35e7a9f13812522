//! Counters of a buffer, of a channel, and of removed channels; and their text.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::channel::Channel;

/// Defines [`Counts`] from a list of counters: each with its name in the files, and how two values are added.
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
}

impl Counts {
    /// Writes a line for each counter: `prefix.name value`.
    pub(crate) fn write_to(&self, prefix: &str, text: &mut String) {
        for (name, value) in self.named() {
            writeln!(text, "{prefix}.{name} {value}").expect("writing to a string");
        }
    }
}

impl Channel {
    /// Returns the counters of one buffer.
    pub(crate) fn counts(&self, cpu: usize) -> Counts {
        let side = self.read_side(cpu);
        side.reader.note_high_water();
        let block = side.reader.buffer().block();
        // Relaxed: counters say nothing about other memory.
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let produced = side.reader.produced();
        // Before the size is read: so no more bytes count as overwritten than as written.
        let overwritten = side.reader.overwritten_unread();
        Counts {
            produced,
            consumed: produced.saturating_sub(side.reader.n_finished()),
            bytes: side.reader.size(),
            written: get(&block.written),
            dropped: get(&block.dropped).wrapping_add(get(&block.dropped_elsewhere)),
            too_big: get(&block.too_big),
            contended: get(&block.contended),
            read_bytes: get(&block.read_bytes),
            read_subbufs: get(&block.read_subbufs),
            overwritten_bytes: get(&block.overwritten_bytes).wrapping_add(overwritten.bytes),
            overwritten_subbufs: get(&block.overwritten_subbufs).wrapping_add(overwritten.subbufs),
            discarded_bytes: get(&block.discarded_bytes),
            discarded_subbufs: get(&block.discarded_subbufs),
            high_water: get(&block.high_water),
            corrected: side.reader.corrected(),
            old_dropped: get(&block.old_dropped),
            old_too_big: get(&block.old_too_big),
            old_contended: get(&block.old_contended),
            old_overwritten_bytes: get(&block.old_overwritten_bytes),
        }
    }

    /// Returns the sums over all buffers.
    pub(crate) fn total(&self) -> Counts {
        let mut total = Counts::default();
        (0..self.n_bufs()).for_each(|cpu| total.add(&self.counts(cpu)));
        total
    }

    /// Returns the text of the `stats` file. It calls buffers `cpuN`, whatever the channel's base filename is.
    pub(crate) fn stats(&self) -> String {
        let mut text = String::new();
        for cpu in 0..self.n_bufs() {
            self.counts(cpu).write_to(&format!("cpu{cpu}"), &mut text);
        }
        self.total().write_to("total", &mut text);
        text
    }
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
            assert_eq!(value, if name == "high_water" { 3 } else { 5 }, "{name}");
        }
        all.add(&Counts { bytes: u64::MAX, ..Counts::default() });
        assert_eq!(all.bytes, 4, "a sum with a number that a peer made up wraps");
    }
}
