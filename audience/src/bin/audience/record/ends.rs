//! Where a recording ends, for the recorder that continues it: the file `.recorder`.
//!
//! ```text
//! slot 2 * cpu, 2 * cpu + 1      each 256 bytes: magic, sequence number, 20 words, checksum
//! ```
//!
//! A slot is written before the bytes that it describes, by one pwrite(2) within a page. A recorder that is killed in
//! between leaves a slot that the length of the recording contradicts. Then the other slot, which is older, holds.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use audience_common::trace_dir::MODE;

use crate::error::Failure;

/// Name of the file.
pub(crate) const NAME: &str = ".recorder";
/// First word of a slot.
const MAGIC: u64 = u64::from_le_bytes(*b"relayend");
/// Words of a slot that mean something to the recorder.
const N_WORDS: usize = 20;
/// Distance from one slot to the next, in bytes.
const STRIDE: usize = 256;
/// Most CPUs whose ends are kept.
const CPUS_MAX: usize = 1 << 14;

/// What a slot says.
pub(crate) type Words = [u64; N_WORDS];

/// The slots of each CPU, the newest first.
pub(crate) type Slots = BTreeMap<usize, Vec<Words>>;

/// The file.
#[derive(Debug)]
pub(crate) struct Ends(Arc<File>);

/// The slots of a CPU.
#[derive(Debug)]
pub(crate) struct Slot {
    file: Arc<File>,
    cpu: usize,
    sequence: u64,
}

/// Reads the slots that a recorder has left in a directory. `None` if there is no such file.
pub(crate) fn load(dir: &Path) -> Result<Option<Slots>, Failure> {
    let path = dir.join(NAME);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::open(&path, error)),
    };
    let mut found: BTreeMap<usize, Vec<(u64, Words)>> = BTreeMap::new();
    for (number, slot) in bytes.chunks(STRIDE).take(2 * CPUS_MAX).enumerate() {
        found.entry(number / 2).or_default().extend(decode(slot));
    }
    let newest_first = |(cpu, mut slots): (usize, Vec<(u64, Words)>)| {
        slots.sort_unstable_by_key(|(sequence, _)| Reverse(*sequence));
        (cpu, slots.into_iter().map(|(_, words)| words).collect())
    };
    Ok(Some(
        found.into_iter().map(newest_first).filter(|(_, slots): &(_, Vec<_>)| !slots.is_empty()).collect(),
    ))
}

impl Ends {
    /// Creates the file with what is known of each CPU, in place of the one that is there.
    pub(crate) fn create(dir: &Path, known: &BTreeMap<usize, Words>) -> Result<Ends, Failure> {
        let (path, new) = (dir.join(NAME), dir.join(format!("{NAME}.new")));
        let create = || -> io::Result<Ends> {
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&new)?;
            for (cpu, words) in known.iter().filter(|(cpu, _)| **cpu < CPUS_MAX) {
                file.write_all_at(&encode(0, words), place(*cpu, 0))?;
            }
            fs::rename(&new, &path)?;
            Ok(Ends(Arc::new(file)))
        };
        create().map_err(|error| Failure::record(&path, error))
    }

    /// Returns the slots of a CPU. `None` if there are too many CPUs.
    pub(crate) fn slot(&self, cpu: usize) -> Option<Slot> {
        (cpu < CPUS_MAX).then(|| Slot { file: Arc::clone(&self.0), cpu, sequence: 0 })
    }
}

impl Slot {
    /// Writes what will hold when the recording has the next bytes.
    pub(crate) fn put(&mut self, words: &Words) -> Result<(), Failure> {
        self.sequence += 1;
        let written = self.file.write_all_at(&encode(self.sequence, words), place(self.cpu, self.sequence));
        written.map_err(|error| Failure::record(Path::new(NAME), error))
    }
}

/// Where a slot lies in the file.
fn place(cpu: usize, sequence: u64) -> u64 {
    ((2 * cpu + (sequence % 2) as usize) * STRIDE) as u64
}

fn encode(sequence: u64, words: &Words) -> [u8; STRIDE] {
    let mut bytes = [0; STRIDE];
    let all = [MAGIC, sequence].into_iter().chain(*words).chain([checksum(sequence, words)]);
    for (place, word) in bytes.chunks_exact_mut(8).zip(all) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Returns a slot's sequence number and words. `None` if it is empty or damaged.
fn decode(bytes: &[u8]) -> Option<(u64, Words)> {
    let mut words = bytes.chunks_exact(8).map_while(|word| Some(u64::from_le_bytes(word.try_into().ok()?)));
    let (magic, sequence) = (words.next()?, words.next()?);
    let mut found = [0; N_WORDS];
    for word in &mut found {
        *word = words.next()?;
    }
    (magic == MAGIC && words.next()? == checksum(sequence, &found)).then_some((sequence, found))
}

/// FNV-1a of the words: a machine that crashed may have left half a slot.
fn checksum(sequence: u64, words: &Words) -> u64 {
    let all = [sequence].into_iter().chain(*words);
    all.fold(0xcbf2_9ce4_8422_2325, |hash: u64, word| (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(first: u64) -> Words {
        let mut words = [7; N_WORDS];
        words[0] = first;
        words
    }

    #[test]
    fn newest_slot_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        let ends = Ends::create(dir.path(), &BTreeMap::from([(0, words(1)), (5, words(2))])).unwrap();
        assert_eq!(
            load(dir.path()).unwrap().unwrap(),
            Slots::from([(0, vec![words(1)]), (5, vec![words(2)])])
        );
        let mut slot = ends.slot(5).unwrap();
        for n in 3..6 {
            slot.put(&words(n)).unwrap();
            let older = if n == 3 { 2 } else { n - 1 };
            assert_eq!(load(dir.path()).unwrap().unwrap()[&5], [words(n), words(older)]);
        }
        assert!(ends.slot(CPUS_MAX).is_none());
        Ends::create(dir.path(), &BTreeMap::new()).unwrap();
        assert_eq!(load(dir.path()).unwrap().unwrap(), Slots::new());
    }

    #[test]
    fn damaged_slots_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let ends = Ends::create(dir.path(), &BTreeMap::from([(0, words(1))])).unwrap();
        ends.slot(0).unwrap().put(&words(2)).unwrap();
        let path = dir.path().join(NAME);
        let whole = fs::read(&path).unwrap();
        for at in (STRIDE..STRIDE + 8 * (N_WORDS + 3)).step_by(5) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert_eq!(load(dir.path()).unwrap().unwrap()[&0], [words(1)], "byte {at}");
        }
        fs::write(&path, &whole[..STRIDE + 50]).unwrap();
        assert_eq!(load(dir.path()).unwrap().unwrap()[&0], [words(1)]);
        fs::write(&path, [3; 5000]).unwrap();
        assert_eq!(load(dir.path()).unwrap().unwrap(), Slots::new());
    }
}
