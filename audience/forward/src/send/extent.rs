//! What a stream has, and what that means for texts that later packets need.

/// What a stream has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Sequence of the first message.
    pub(crate) first: u64,
    /// Sequence of the last message.
    pub(crate) last: u64,
    /// When the stream was created, in nanoseconds since 1970.
    pub(crate) created: i128,
}

impl Extent {
    /// Returns whether a message has gone, or goes soon if the stream drops its oldest: it is in the oldest quarter.
    pub(crate) fn is_old(&self, sequence: u64) -> bool {
        sequence < self.first.saturating_add(self.last.saturating_sub(self.first) / 4)
    }

    /// Returns whether the stream has grown enough since that it is time for another look.
    pub(crate) fn is_outgrown(&self, newest: u64) -> bool {
        newest.saturating_sub(self.last) > self.last.saturating_sub(self.first) / 8
    }

    /// Returns whether a later look shows another stream of the name, or one that has lost its newest messages.
    pub(crate) fn is_another(&self, later: &Extent) -> bool {
        later.created != self.created || later.last < self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_old_before_the_stream_drops_them() {
        let extent = |first, last| Extent { first, last, created: 0 };
        for (first, last, oldest_that_stays) in [(0, 0, 0), (1, 1, 1), (1, 2, 1), (1, 9, 3), (100, 200, 125)]
        {
            let extent = extent(first, last);
            assert!(!extent.is_old(oldest_that_stays), "{extent:?}");
            assert!(oldest_that_stays == 0 || extent.is_old(oldest_that_stays - 1), "{extent:?}");
        }
        // A purge leaves the sequences.
        assert!(extent(201, 200).is_old(200) && !extent(201, 200).is_old(201));
    }

    #[test]
    fn stream_is_looked_at_before_the_texts_are_old() {
        let before = Extent { first: 1000, last: 2000, created: 0 };
        assert!(!before.is_outgrown(2125) && before.is_outgrown(2126));
        // Full, it has dropped as many by then: less than the quarter that its texts are not in.
        let now = Extent { first: 1126, last: 2126, created: 0 };
        assert!(before.is_old(1249) && !before.is_old(1250) && now.first < 1250);
    }

    #[test]
    fn other_stream_is_recognised() {
        let before = Extent { first: 1, last: 10, created: 5 };
        assert!(!before.is_another(&Extent { first: 8, last: 10, created: 5 }), "purged or expired");
        assert!(before.is_another(&Extent { first: 1, last: 9, created: 5 }), "restored from an older state");
        assert!(before.is_another(&Extent { first: 1, last: 11, created: 6 }), "created again");
    }
}
