//! What a subject has of a channel's sub-buffers when the forwarder starts, as it is seen from the end backwards.

use std::collections::BTreeMap;

use super::written::{End, Written};

/// Messages of no forwarder that are passed over.
const FOREIGN_MAX: usize = 1000;
/// Messages of other channels of the name that are passed over. They are in front of ours, unless two state directories
/// take turns.
const OTHERS_MAX: usize = 16;

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Sequences of the last parts of sub-buffers, by number.
    stored: BTreeMap<u64, u64>,
    /// How the last sub-buffer before them ends.
    before: Option<End>,
    foreign: usize,
    others: usize,
}

impl History {
    /// Adds the next message to the front. `first` is the first sub-buffer that the buffer has. Returns whether the
    /// messages before may say more.
    pub(crate) fn add(
        &mut self,
        sequence: u64,
        written: Option<&Written>,
        instance: u64,
        first: u64,
    ) -> bool {
        let Some(written) = written else {
            self.foreign += 1;
            return self.foreign < FOREIGN_MAX;
        };
        let headers = &written.headers;
        if headers.instance != instance {
            self.others += 1;
            return self.others < OTHERS_MAX;
        }
        if !headers.part.is_last() {
            return true;
        }
        if headers.number < first {
            self.before = Some(written.end());
            return false;
        }
        // An older message of the number is not the one that counts.
        self.stored.entry(headers.number).or_insert(sequence);
        true
    }

    /// Adds a message that came behind the others.
    pub(crate) fn add_behind(&mut self, sequence: u64, written: &Written) {
        if written.headers.part.is_last() {
            self.stored.insert(written.headers.number, sequence);
        }
    }

    /// Returns the sequence of the message that ends a sub-buffer, if there is one that says so.
    pub(crate) fn stored(&self, number: u64) -> Option<u64> {
        self.stored.get(&number).copied()
    }

    /// Returns how the last sub-buffer before the first ends.
    pub(crate) fn before(&self) -> Option<End> {
        self.before
    }

    /// Most messages that may be looked at together.
    pub(crate) const fn step_max() -> usize {
        2 * FOREIGN_MAX
    }
}

#[cfg(test)]
mod tests {
    use relay::GeometrySpec;

    use super::*;
    use crate::message::{Headers, Part, SubBuffer};

    fn written(instance: u64, number: u64, part: Part) -> Written {
        let geometry = "subbuf-size=4K".parse::<GeometrySpec>().unwrap().build().unwrap();
        let sub_buffer = SubBuffer { geometry, position: 0, lost: number, too_big: 0, meaning: None };
        Written::new(Headers { instance, number, part, sub_buffer: Some(sub_buffer) }, 0)
    }

    #[test]
    fn sub_buffers_are_found_behind_foreign_messages() {
        let mut history = History::default();
        let whole = |number| written(7, number, Part::WHOLE);
        assert!(history.add(20, None, 7, 5));
        assert!(history.add(19, Some(&written(8, 99, Part::WHOLE)), 7, 5));
        assert!(history.add(18, Some(&written(7, 7, Part::new(1, 2).unwrap())), 7, 5));
        assert!(history.add(17, Some(&whole(6)), 7, 5));
        assert!(history.add(16, Some(&whole(6)), 7, 5));
        assert!(history.add(15, Some(&whole(5)), 7, 5));
        assert!(!history.add(14, Some(&whole(4)), 7, 5), "before the first");
        assert_eq!([5, 6, 7, 99].map(|number| history.stored(number)), [Some(15), Some(17), None, None]);
        assert_eq!(history.before().unwrap().1.unwrap().lost, 4);
    }

    #[test]
    fn search_has_an_end() {
        let mut history = History::default();
        assert_eq!((1..).find(|n| !history.add(*n, None, 7, 0)), Some(FOREIGN_MAX as u64));
        let mut history = History::default();
        let other = written(8, 0, Part::WHOLE);
        assert_eq!((1..).find(|n| !history.add(*n, Some(&other), 7, 0)), Some(OTHERS_MAX as u64));
    }
}
