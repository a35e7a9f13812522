//! Which records of a buffer a reader has had, for a daemon that gives some of them again.
//!
//! A daemon that dies may not have noted what it gave last. The next daemon then gives it again. Sub-buffers have
//! numbers, and stamps do not decrease in a buffer, so a reader knows these records.

use relay::trace::event::id;
use relay::trace::packet::{HEADER_LEN, PacketHeader};
use relay::trace::record::Records;

/// The last record that a reader has had of a buffer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    last: Option<Last>,
    /// Whether the next packets may have come before.
    again: bool,
    /// Whether the copy that had the last record is consumed. Then a record of the same stamp is another one.
    was_consumed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    /// Number of its sub-buffer.
    number: u64,
    stamp: u64,
    /// How many records of the sub-buffer have this stamp.
    equal: usize,
}

impl Seen {
    /// Says that another daemon, or another channel, gives the next packets.
    ///
    /// `was_consumed`: the buffer's counters say that the copy with the last record is consumed.
    pub(crate) fn may_come_again(&mut self, was_consumed: bool) {
        (self.again, self.was_consumed) = (true, was_consumed);
    }

    /// Returns the numbers that [`Seen::from_words`] takes.
    pub(crate) fn words(&self) -> [u64; 4] {
        self.last.map_or([0; 4], |last| [1, last.number, last.stamp, last.equal as u64])
    }

    /// Continues with what another reader has had.
    pub(crate) fn from_words([is_some, number, stamp, equal]: [u64; 4]) -> Seen {
        let last = (is_some == 1).then(|| Last { number, stamp, equal: usize::try_from(equal).unwrap_or(0) });
        Seen { last, ..Seen::default() }
    }

    /// Notes a packet that the reader has had.
    pub(crate) fn note(&mut self, header: &PacketHeader, records: &[u8]) {
        let mut last = self.last.filter(|last| last.number == header.number);
        for record in messages(records) {
            match &mut last {
                Some(last) if last.stamp == record.1 => last.equal += 1,
                _ => last = Some(Last { number: header.number, stamp: record.1, equal: 1 }),
            }
        }
        self.last = last.or(self.last);
    }

    /// Whether the reader has had all of a packet, by its header.
    pub(crate) fn has(&self, header: &PacketHeader) -> bool {
        self.last.is_some_and(|last| header.number < last.number && header.end <= last.stamp)
    }

    /// Removes the records that the reader has had. `None` if nothing is left of the packet.
    pub(crate) fn cut(&mut self, header: PacketHeader, packet: &mut Vec<u8>) -> Option<PacketHeader> {
        let Some(last) = self.last.filter(|_| self.again) else { return Some(header) };
        let records = &packet[HEADER_LEN..];
        if self.has(&header) {
            return None;
        }
        let is_rest = self.was_consumed && header.begin == last.stamp;
        if header.number != last.number || header.begin > last.stamp || is_rest {
            // Something new, and so is all that follows.
            self.again = false;
            return Some(header);
        }
        let mut equal = 0;
        let mut rest = 0;
        let mut begin = None;
        for (end, stamp) in messages(records) {
            equal += usize::from(stamp == last.stamp);
            if stamp > last.stamp || equal > last.equal {
                begin = Some(stamp);
                break;
            }
            rest = end;
        }
        packet.drain(HEADER_LEN..HEADER_LEN + rest);
        self.again = begin.is_none();
        let begin = begin?;
        let header = PacketHeader { begin, records_len: header.records_len - rest as u64, ..header };
        packet[..HEADER_LEN].copy_from_slice(&header.encode());
        Some(header)
    }
}

/// The ends of the records that programs wrote, and their stamps. Reports of losses are made for each packet.
fn messages(records: &[u8]) -> impl Iterator<Item = (usize, u64)> {
    let mut records = Records::new(records);
    std::iter::from_fn(move || {
        loop {
            let record = records.next()?.ok()?;
            if record.id != id::LOST {
                return Some((records.at(), record.stamp));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use relay::trace::record::Record;

    use super::*;

    fn packet(number: u64, stamps: &[u64]) -> (PacketHeader, Vec<u8>) {
        let mut bytes = vec![0; HEADER_LEN];
        for stamp in stamps {
            Record { stamp: *stamp, id: 0, tid: 1, payload: b"x" }.encode_into(&mut bytes);
        }
        let records_len = (bytes.len() - HEADER_LEN) as u64;
        let (begin, end) = (stamps[0], *stamps.last().unwrap());
        let header = PacketHeader { cpu: 0, begin, end, records_len, padding: 0, number, discarded: 0 };
        bytes[..HEADER_LEN].copy_from_slice(&header.encode());
        (header, bytes)
    }

    /// What is left of a packet, by its stamps.
    fn left(seen: &mut Seen, number: u64, stamps: &[u64]) -> Vec<u64> {
        let (header, mut bytes) = packet(number, stamps);
        match seen.cut(header, &mut bytes) {
            None => Vec::new(),
            Some(header) => {
                seen.note(&header, &bytes[HEADER_LEN..]);
                let found: Vec<u64> = messages(&bytes[HEADER_LEN..]).map(|(_, stamp)| stamp).collect();
                assert_eq!((header.begin, header.records_len), (found[0], bytes.len() as u64 - 64));
                found
            }
        }
    }

    #[test]
    fn records_that_come_again_are_cut() {
        let mut seen = Seen::default();
        assert_eq!(left(&mut seen, 3, &[1, 2]), [1, 2]);
        assert_eq!(left(&mut seen, 4, &[3, 5, 5]), [3, 5, 5]);
        // The rest of the same sub-buffer: no daemon has died.
        assert_eq!(left(&mut seen, 4, &[5, 6]), [5, 6]);
        seen.may_come_again(false);
        assert!(left(&mut seen, 3, &[1, 2]).is_empty());
        assert_eq!(left(&mut seen, 4, &[3, 5, 5, 5, 6, 6, 7]), [6, 7]);
        assert_eq!(left(&mut seen, 5, &[7, 8]), [7, 8]);
    }

    #[test]
    fn packet_that_came_whole_leaves_nothing() {
        let mut seen = Seen::default();
        left(&mut seen, 4, &[3, 5, 5]);
        seen.may_come_again(false);
        assert!(left(&mut seen, 4, &[3, 5, 5]).is_empty());
        assert_eq!(left(&mut seen, 5, &[5, 6]), [5, 6]);
    }

    #[test]
    fn equal_stamps_behind_a_consumed_copy_are_new() {
        let mut seen = Seen::default();
        left(&mut seen, 4, &[3, 5, 5]);
        let mut next = Seen::from_words(seen.words());
        next.may_come_again(true);
        assert_eq!(left(&mut next, 4, &[5, 5, 6]), [5, 5, 6]);
        // The counters may have moved for another reader: what is older has come all the same.
        let mut next = Seen::from_words(seen.words());
        next.may_come_again(true);
        assert_eq!(left(&mut next, 4, &[3, 5, 5, 6]), [6]);
        let mut none = Seen::from_words(Seen::default().words());
        none.may_come_again(true);
        assert_eq!(left(&mut none, 0, &[0, 1]), [0, 1]);
    }

    #[test]
    fn another_channel_begins_with_new_records() {
        let mut seen = Seen::default();
        left(&mut seen, 4, &[3, 5, 5]);
        seen.may_come_again(false);
        assert_eq!(left(&mut seen, 0, &[6, 7]), [6, 7]);
        assert_eq!(left(&mut seen, 1, &[8]), [8]);
    }
}
