//! What is counted of a buffer, a channel, and of those that are gone; as text.

use std::fmt::Write as _;

/// The numbers of one buffer, or of all of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) produced: u64,
    pub(crate) consumed: u64,
    pub(crate) bytes: u64,
    pub(crate) written: u64,
    pub(crate) dropped: u64,
    pub(crate) too_big: u64,
    pub(crate) contended: u64,
    pub(crate) read_bytes: u64,
    pub(crate) read_subbufs: u64,
    pub(crate) overwritten_bytes: u64,
    pub(crate) overwritten_subbufs: u64,
    pub(crate) discarded_bytes: u64,
    pub(crate) discarded_subbufs: u64,
    pub(crate) high_water: u64,
    pub(crate) corrected: u64,
}

impl Counts {
    /// Names and values, in the order of the file. Names are never removed or given another meaning.
    pub(crate) fn named(&self) -> [(&'static str, u64); 15] {
        [
            ("produced", self.produced),
            ("consumed", self.consumed),
            ("bytes", self.bytes),
            ("written", self.written),
            ("dropped", self.dropped),
            ("too_big", self.too_big),
            ("contended", self.contended),
            ("read_bytes", self.read_bytes),
            ("read_subbufs", self.read_subbufs),
            ("overwritten_bytes", self.overwritten_bytes),
            ("overwritten_subbufs", self.overwritten_subbufs),
            ("discarded_bytes", self.discarded_bytes),
            ("discarded_subbufs", self.discarded_subbufs),
            ("high_water", self.high_water),
            ("corrected", self.corrected),
        ]
    }

    /// Sets the number of a name, if there is one of that name.
    pub(crate) fn set(&mut self, name: &str, value: u64) {
        let number = match name {
            "produced" => &mut self.produced,
            "consumed" => &mut self.consumed,
            "bytes" => &mut self.bytes,
            "written" => &mut self.written,
            "dropped" => &mut self.dropped,
            "too_big" => &mut self.too_big,
            "contended" => &mut self.contended,
            "read_bytes" => &mut self.read_bytes,
            "read_subbufs" => &mut self.read_subbufs,
            "overwritten_bytes" => &mut self.overwritten_bytes,
            "overwritten_subbufs" => &mut self.overwritten_subbufs,
            "discarded_bytes" => &mut self.discarded_bytes,
            "discarded_subbufs" => &mut self.discarded_subbufs,
            "high_water" => &mut self.high_water,
            "corrected" => &mut self.corrected,
            _ => return,
        };
        *number = value;
    }

    /// Adds another's numbers, which peers have a hand in; of high-water marks the highest counts.
    pub(crate) fn add(&mut self, other: &Counts) {
        self.produced = self.produced.wrapping_add(other.produced);
        self.consumed = self.consumed.wrapping_add(other.consumed);
        self.bytes = self.bytes.wrapping_add(other.bytes);
        self.written = self.written.wrapping_add(other.written);
        self.dropped = self.dropped.wrapping_add(other.dropped);
        self.too_big = self.too_big.wrapping_add(other.too_big);
        self.contended = self.contended.wrapping_add(other.contended);
        self.read_bytes = self.read_bytes.wrapping_add(other.read_bytes);
        self.read_subbufs = self.read_subbufs.wrapping_add(other.read_subbufs);
        self.overwritten_bytes = self.overwritten_bytes.wrapping_add(other.overwritten_bytes);
        self.overwritten_subbufs = self.overwritten_subbufs.wrapping_add(other.overwritten_subbufs);
        self.discarded_bytes = self.discarded_bytes.wrapping_add(other.discarded_bytes);
        self.discarded_subbufs = self.discarded_subbufs.wrapping_add(other.discarded_subbufs);
        self.high_water = self.high_water.max(other.high_water);
        self.corrected = self.corrected.wrapping_add(other.corrected);
    }

    /// One line a number: `prefix.name value`.
    pub(crate) fn write_to(&self, prefix: &str, text: &mut String) {
        for (name, value) in self.named() {
            writeln!(text, "{prefix}.{name} {value}").expect("writing to a string");
        }
    }
}
