//! What the recorder of a timed channel keeps of a CPU, from one piece, daemon or recorder to the next.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use audience_common::trace_dir::stream::{Course, StreamFile};
use audience_common::trace_dir::{self, METADATA, mend as trace_mend};
use nix::fcntl::Flock;
use relay::trace::packet::PacketHeader;

use crate::error::Failure;
use crate::losses::Losses;
use crate::record::ends::{Slot, Words};
use crate::timed::accounts::Accounts;
use crate::timed::seen::Seen;
use crate::timed::streams::Live;

/// First word of a slot of a timed channel.
const TIMED: u64 = 1;
/// The same, where the length of the stream file has been looked at.
const TIMED_SETTLED: u64 = 0x101;
/// In the place of a piece's number, for a recording without pieces.
const NO_PIECE: u64 = u64::MAX;

/// What is kept of a CPU.
#[derive(Debug)]
pub(super) struct Cpu {
    pub(super) course: Course,
    pub(super) live: Live,
    /// Bytes recorded.
    pub(super) recorded: u64,
    /// Bytes that readers of the buffer had had before the copy with the last packet.
    pub(super) read: u64,
    /// Inode number of the buffer's file: another stream has another.
    stream: u64,
    /// Where the last packet is: number of its piece, and where it ends there. `None` if another recorder wrote it.
    end: Option<(u64, u64)>,
    slot: Option<Slot>,
}

impl Cpu {
    pub(super) fn new(stream: u64, before: &Losses, slot: Option<Slot>) -> Result<Cpu, Failure> {
        let (course, live) = (Course::default(), Live::new(before));
        let mut cpu = Cpu { course, live, recorded: 0, read: 0, stream, end: None, slot };
        cpu.finish()?;
        Ok(cpu)
    }

    /// Notes that all packets are written, whatever becomes of their files.
    pub(super) fn finish(&mut self) -> Result<(), Failure> {
        let words = self.words(&self.course, None);
        self.slot.as_mut().map_or(Ok(()), |slot| slot.put(&words))
    }

    /// Continues where another recorder ended.
    pub(super) fn known(known: &Words, slot: Option<Slot>) -> Option<Cpu> {
        let [kind, stream, _, _, read, c0, c1, c2, c3, s0, s1, s2, s3, a0, a1, a2, ..] = *known;
        let seen = Seen::from_words([s0, s1, s2, s3]);
        let mut live = Live::default();
        (live.accounts, live.seen) = (Accounts::from_words([a0, a1, a2]), seen);
        let course = Course::from_words([c0, c1, c2, c3]);
        let cpu = Cpu { course, live, recorded: 0, read, stream, end: None, slot };
        (kind == TIMED_SETTLED).then_some(cpu)
    }

    /// Takes the buffer of another stream. Returns whether it is another.
    pub(super) fn is_another(&mut self, stream: u64, before: &Losses) -> bool {
        let is_another = self.stream != stream;
        if is_another {
            (self.stream, self.live) = (stream, Live::new(before));
        }
        is_another
    }

    /// Says that the next copy may have what the last one had. `read`: the bytes that readers have had by now.
    pub(super) fn may_come_again(&mut self, read: u64) {
        self.live.seen.may_come_again(read > self.read);
    }

    /// Passes over a packet without records.
    pub(super) fn pass_over(&mut self, header: &PacketHeader) -> Result<(), Failure> {
        self.course.pass_over(header);
        let words = self.words(&self.course, self.end);
        self.slot.as_mut().map_or(Ok(()), |slot| slot.put(&words))
    }

    /// Appends a packet to a stream file, of this piece, after noting where the file will end.
    pub(super) fn append(
        &mut self,
        stream: &mut StreamFile,
        piece: Option<u64>,
        header: &PacketHeader,
        lost: u64,
        packet: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let (len, mut course, mut slot) = (stream.len(), self.course, self.slot.take());
        let piece = piece.unwrap_or(NO_PIECE);
        let appended =
            stream.append_noted(&mut course, header, lost, packet, |course, len| match &mut slot {
                Some(slot) => slot.put(&self.words(course, Some((piece, len)))),
                None => Ok(()),
            });
        (self.course, self.slot) = (course, slot);
        self.recorded += stream.len() - len;
        if appended.is_ok() {
            self.end = Some((piece, stream.len()));
        }
        appended
    }

    fn words(&self, course: &Course, end: Option<(u64, u64)>) -> Words {
        let mut words = Words::default();
        let (piece, len) = end.unwrap_or_default();
        words[..5].copy_from_slice(&[
            end.map_or(TIMED_SETTLED, |_| TIMED),
            self.stream,
            piece,
            len,
            self.read,
        ]);
        words[5..9].copy_from_slice(&course.words());
        words[9..13].copy_from_slice(&self.live.seen.words());
        words[13..16].copy_from_slice(&self.live.accounts.words());
        words
    }
}

/// Returns what the next recorder knows of a CPU, by the slots that a recorder left, the newest first.
///
/// The recorder created the file, then wrote the slot, then the packet. So a slot holds if the file has its length. A
/// file that is gone was removed since.
pub(crate) fn settle(dir: &Path, cpu: usize, slots: &[Words]) -> Option<Words> {
    let holds = |words: &&Words| {
        let [kind, _, piece, len, ..] = **words;
        if kind != TIMED {
            return kind == TIMED_SETTLED;
        }
        match fs::metadata(path_of(dir, piece, cpu)) {
            Ok(found) => found.len() == len,
            Err(error) => error.kind() == ErrorKind::NotFound,
        }
    };
    let mut words = *slots.iter().find(holds)?;
    words[0] = TIMED_SETTLED;
    Some(words)
}

fn path_of(dir: &Path, piece: u64, cpu: usize) -> PathBuf {
    match piece {
        NO_PIECE if dir.join(METADATA).exists() => trace_dir::stream_path(dir, cpu),
        // It has become a piece.
        NO_PIECE => trace_dir::stream_path(&trace_dir::piece(dir, 0), cpu),
        number => trace_dir::stream_path(&trace_dir::piece(dir, number), cpu),
    }
}

/// Cuts torn packets of a recording that is continued. A recording without pieces gets them.
pub(crate) fn mend(dir: &Path, lock: &Flock<fs::File>) -> Result<(), Failure> {
    if dir.join(METADATA).exists() {
        trace_dir::become_piece(dir)?;
    }
    trace_mend::mend_locked(dir, lock)?;
    Ok(())
}
