//! Where the recording of a raw channel's CPU ends in the buffer's stream.
//!
//! A slot says which stream position lies where in which file. What follows in the file follows in the stream. So the
//! file's length tells the next recorder the position behind the last byte, wherever this recorder was killed.
//!
//! Bytes that are still in the buffer have a slot of their own with their number. If the file has some of them and not
//! all, the next recorder cuts it: they come again, or a reset has discarded them, and the rest of a message never comes.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use super::path_of;
use crate::error::Failure;
use crate::record::ends::{Slot, Words};

/// First word of a slot of a raw channel.
const RAW: u64 = 2;
/// The same, where the file's length has been looked at.
const RAW_SETTLED: u64 = 0x102;
/// In the place of a number, for a file that has none.
const NO_NUMBER: u64 = u64::MAX;

/// Returns what the next recorder knows of a CPU, by the slots that a recorder left.
pub(crate) fn settle(dir: &Path, cpu: usize, slots: &[Words]) -> Option<Words> {
    let mut words = *slots.first()?;
    let [kind, _, number, offset, position, block, ..] = words;
    if kind == RAW {
        let path = path_of(dir, cpu, (number != NO_NUMBER).then_some(number));
        let len = fs::metadata(&path).map_or(offset, |found| found.len()).saturating_sub(offset);
        let is_part = (1..block).contains(&len);
        let len = if is_part && cut(&path, offset).is_ok() { 0 } else { len };
        words[0] = RAW_SETTLED;
        words[4] = position.saturating_add(len);
    }
    (words[0] == RAW_SETTLED).then_some(words)
}

fn cut(path: &Path, len: u64) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.set_len(len)
}

/// Where a recording ends in a buffer's stream.
#[derive(Debug)]
pub(crate) struct End {
    slot: Slot,
    /// Inode number of the buffer's file: another stream has another.
    stream: u64,
    /// Stream position behind the last recorded byte.
    position: Option<u64>,
    /// Whether a slot has the current file.
    is_noted: bool,
}

impl End {
    /// Begins with what is known of the CPU.
    pub(crate) fn new(slot: Slot, known: Option<&Words>) -> End {
        let known = known.filter(|words| words[0] == RAW_SETTLED);
        End {
            slot,
            stream: known.map_or(0, |words| words[1]),
            position: known.map(|words| words[4]),
            is_noted: false,
        }
    }

    /// Notes which stream the next bytes are of. Returns the position behind its last recorded byte.
    pub(crate) fn of_stream(&mut self, inode: u64) -> Option<u64> {
        if self.stream != inode {
            (self.stream, self.position, self.is_noted) = (inode, None, false);
        }
        self.position
    }

    /// Notes that the next bytes go into another file, and that the one before is complete.
    pub(super) fn next_file(&mut self, number: u64) -> Result<(), Failure> {
        self.is_noted = false;
        self.position.map_or(Ok(()), |position| self.note(Some(number), 0, position, 0))
    }

    /// Notes that all bytes are written, whatever becomes of the file.
    pub(super) fn finish(&mut self) -> Result<(), Failure> {
        self.is_noted = false;
        let Some(position) = self.position else { return Ok(()) };
        let mut words = Words::default();
        words[..5].copy_from_slice(&[RAW_SETTLED, self.stream, NO_NUMBER, 0, position]);
        self.slot.put(&words)
    }

    /// Counts bytes that were written behind what was noted.
    pub(super) fn grow(&mut self, len: u64) {
        self.position = self.position.map(|position| position.saturating_add(len));
    }

    /// Notes where bytes go, unless they follow what was noted. `block`: how many they are, if the buffer still has them.
    pub(super) fn note(
        &mut self,
        number: Option<u64>,
        offset: u64,
        position: u64,
        block: u64,
    ) -> Result<(), Failure> {
        if block > 0 || !self.is_noted || self.position != Some(position) {
            let mut words = Words::default();
            let number = number.unwrap_or(NO_NUMBER);
            words[..6].copy_from_slice(&[RAW, self.stream, number, offset, position, block]);
            self.slot.put(&words)?;
            (self.is_noted, self.position) = (true, Some(position));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::record::ends::{Ends, load};

    fn settled(dir: &Path) -> Option<Words> {
        settle(dir, 1, &load(dir).unwrap().unwrap()[&1])
    }

    #[test]
    fn length_of_the_file_tells_the_position() {
        let dir = tempfile::tempdir().unwrap();
        let ends = Ends::create(dir.path(), &BTreeMap::new()).unwrap();
        let mut end = End::new(ends.slot(1).unwrap(), None);
        assert_eq!(end.of_stream(70), None);
        // 20 bytes of another recording are there.
        for (number, name) in [(None, "cpu1"), (Some(3), "cpu1.000003")] {
            end.finish().unwrap();
            end.note(number, 20, 500, 0).unwrap();
            for (len, position) in [(20, 500), (27, 507)] {
                fs::write(dir.path().join(name), vec![0; len]).unwrap();
                let words = settled(dir.path()).unwrap();
                let mut next = End::new(ends.slot(0).unwrap(), Some(&words));
                assert_eq!(next.of_stream(70), Some(position));
                assert_eq!(next.of_stream(71), None, "another stream");
            }
        }
        // What follows needs no other slot.
        end.grow(7);
        end.note(Some(3), 27, 507, 0).unwrap();
        assert_eq!(settled(dir.path()).unwrap()[4], 507);
        // Another reader has read 100 bytes.
        end.note(Some(3), 27, 607, 0).unwrap();
        assert_eq!(settled(dir.path()).unwrap()[4], 607);
        // Another file begins.
        end.next_file(4).unwrap();
        fs::remove_file(dir.path().join("cpu1.000003")).unwrap();
        assert_eq!(settled(dir.path()).unwrap()[4], 607);
        fs::write(dir.path().join("cpu1.000004"), "12345").unwrap();
        assert_eq!(settled(dir.path()).unwrap()[4], 612);
        // What was settled holds whatever becomes of the file.
        let words = settled(dir.path()).unwrap();
        Ends::create(dir.path(), &BTreeMap::from([(1, words)])).unwrap();
        fs::remove_file(dir.path().join("cpu1.000004")).unwrap();
        assert_eq!(settled(dir.path()), Some(words));
    }

    /// The rest of the block may never come.
    #[test]
    fn part_of_a_block_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let ends = Ends::create(dir.path(), &BTreeMap::new()).unwrap();
        let mut end = End::new(ends.slot(1).unwrap(), None);
        end.of_stream(70);
        end.note(None, 20, 500, 10).unwrap();
        for (len, kept, position) in [(20, 20, 500), (27, 20, 500), (30, 30, 510)] {
            fs::write(dir.path().join("cpu1"), vec![0; len]).unwrap();
            assert_eq!(settled(dir.path()).unwrap()[4], position);
            assert_eq!(fs::metadata(dir.path().join("cpu1")).unwrap().len(), kept);
        }
        // What follows has its own.
        end.grow(10);
        end.note(None, 30, 510, 10).unwrap();
        fs::write(dir.path().join("cpu1"), [0; 31]).unwrap();
        assert_eq!(settled(dir.path()).unwrap()[4], 510);
    }
}
