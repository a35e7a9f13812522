//! The stream file of a CPU: whole packets, with numbers and losses that begin with the file.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use relay::trace::packet::{HEADER_LEN, PacketHeader};
use relay::trace::record::first;

use super::{MODE, stream_path};
use crate::error::Failure;

/// How a CPU's packets continue from one file, or one daemon, to the next.
#[derive(Clone, Copy, Debug, Default)]
pub struct Course {
    /// Header of the last packet, as it came.
    last: Option<PacketHeader>,
    /// What is added to a sub-buffer's number.
    shift: u64,
}

/// The stream file of a CPU.
#[derive(Debug)]
pub struct StreamFile {
    path: PathBuf,
    file: File,
    len: u64,
    /// Messages lost so far, since the file's beginning.
    discarded: u64,
}

impl Course {
    /// Returns the header that a packet has in the recording.
    ///
    /// A sub-buffer may come in several packets, and a channel that was created again counts from zero: the numbers
    /// increase all the same, and only overwritten sub-buffers leave gaps.
    fn next(&mut self, header: &PacketHeader) -> PacketHeader {
        let end = self.end();
        if let Some(last) = self.last.filter(|last| header.number <= last.number) {
            self.shift = self.shift.wrapping_add(last.number - header.number + 1);
        }
        let begin = header.begin.max(end);
        let end = header.end.max(begin);
        self.last = Some(PacketHeader { end, ..*header });
        PacketHeader { begin, end, number: header.number.wrapping_add(self.shift), padding: 0, ..*header }
    }

    /// Passes over a packet without records, which is no gap: some CTF readers end a stream at such a packet.
    pub fn pass_over(&mut self, header: &PacketHeader) {
        if self.last.is_none_or(|last| header.number > last.number) {
            // It has a number less than the next.
            self.shift = self.shift.wrapping_sub(u64::from(self.last.is_some()));
            let end = self.end();
            self.last = Some(PacketHeader { end, ..*header });
        }
    }

    /// Returns the numbers that [`Course::from_words`] takes.
    pub fn words(&self) -> [u64; 4] {
        [u64::from(self.last.is_some()), self.number(), self.end(), self.shift]
    }

    /// Continues where another recorder ended.
    pub fn from_words([is_some, number, end, shift]: [u64; 4]) -> Course {
        let last = PacketHeader { cpu: 0, begin: end, end, records_len: 0, padding: 0, number, discarded: 0 };
        Course { last: (is_some == 1).then_some(last), shift }
    }

    /// Returns the stamp at which the last packet ends.
    pub fn end(&self) -> u64 {
        self.last.map_or(0, |last| last.end)
    }

    /// Returns the number of the sub-buffer of the last packet.
    pub fn number(&self) -> u64 {
        self.last.map_or(0, |last| last.number)
    }
}

/// Raises the stamps of records that are before a packet's begin: another channel's clock may be behind.
fn raise(records: &mut [u8], begin: u64) {
    let mut at = 0;
    while let Some(record) = first(&records[at..]) {
        let (stamp, len) = (record.stamp, record.encoded_len());
        if stamp >= begin {
            break;
        }
        records[at..at + 8].copy_from_slice(&begin.to_le_bytes());
        at += len;
    }
}

/// Fails if `more` bytes exceed the limit of a file's size, where a write would raise a signal.
pub fn check_limit(path: &Path, len: u64, more: u64) -> Result<(), Failure> {
    let limit = getrlimit(Resource::RLIMIT_FSIZE).map_or(u64::MAX, |(soft, _)| soft);
    if more <= limit.saturating_sub(len) { Ok(()) } else { Err(Failure::record(path, Errno::EFBIG)) }
}

impl StreamFile {
    /// Creates the file, which must not exist.
    pub fn create(dir: &Path, cpu: usize) -> Result<StreamFile, Failure> {
        let path = stream_path(dir, cpu);
        let opened = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&path);
        let file = opened.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => Failure::Recorded(dir.to_owned()),
            _ => Failure::record(&path, error),
        })?;
        Ok(StreamFile { path, file, len: 0, discarded: 0 })
    }

    /// Returns the file's length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns whether the file has no packet yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a packet by one write; `packet` is its header and its records, and is changed.
    ///
    /// `lost` messages were lost since the packet before. If it fails, the file ends with that packet.
    pub fn append(
        &mut self,
        course: &mut Course,
        header: &PacketHeader,
        lost: u64,
        packet: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        self.append_noted(course, header, lost, packet, |_, _| Ok::<(), Failure>(()))
    }

    /// Appends a packet, after `note` has noted the course and the file's length that there will be.
    pub fn append_noted<E: From<Failure>>(
        &mut self,
        course: &mut Course,
        header: &PacketHeader,
        lost: u64,
        packet: &mut Vec<u8>,
        note: impl FnOnce(&Course, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let before = *course;
        let is_behind = header.begin < course.end();
        let mut header = course.next(header);
        header.discarded = self.discarded.saturating_add(lost);
        // Without the padding, if there is any.
        packet.truncate(HEADER_LEN + header.records_len as usize);
        if is_behind {
            raise(&mut packet[HEADER_LEN..], header.begin);
        }
        packet[..HEADER_LEN].copy_from_slice(&header.encode());
        // CTF readers count the losses between two packets. So the first losses have an empty packet in front.
        if self.is_empty() && lost > 0 {
            let (end, number) = (header.begin, header.number.saturating_sub(1));
            let first = PacketHeader { end, number, records_len: 0, discarded: 0, ..header };
            packet.splice(0..0, first.encode());
        }
        note(course, self.len + packet.len() as u64)
            .and_then(|()| Ok(self.write(packet)?))
            .inspect_err(|_| *course = before)?;
        self.discarded = header.discarded;
        Ok(())
    }

    fn write(&mut self, packet: &[u8]) -> Result<(), Failure> {
        check_limit(&self.path, self.len, packet.len() as u64)?;
        match self.file.write_all(packet) {
            Ok(()) => {
                self.len += packet.len() as u64;
                Ok(())
            }
            Err(error) => {
                // A part of the packet may be there.
                let _ = self.file.set_len(self.len);
                Err(Failure::record(&self.path, error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use relay::trace::packet::Packets;
    use relay::trace::record::{Record, Records};

    use super::*;

    fn packet(number: u64, begin: u64, padding: u64) -> (PacketHeader, Vec<u8>) {
        let mut bytes = vec![0; HEADER_LEN];
        for stamp in [begin, begin + 5] {
            Record { stamp, id: 0, tid: 1, payload: b"x" }.encode_into(&mut bytes);
        }
        let records_len = (bytes.len() - HEADER_LEN) as u64;
        bytes.extend(vec![7; padding as usize]);
        let header =
            PacketHeader { cpu: 1, begin, end: begin + 5, records_len, padding, number, discarded: 99 };
        (header, bytes)
    }

    #[test]
    fn numbers_and_losses_begin_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut course = Course::default();
        let mut file = StreamFile::create(dir.path(), 1).unwrap();
        // The second has the rest of the same sub-buffer, two are overwritten, the last is another channel's.
        for (number, lost, begin, padding) in [(4, 2, 100, 0), (4, 0, 106, 9), (7, 1, 120, 0), (0, 1, 123, 0)]
        {
            let (header, mut bytes) = packet(number, begin, padding);
            file.append(&mut course, &header, lost, &mut bytes).unwrap();
        }
        let bytes = fs::read(dir.path().join("cpu1")).unwrap();
        assert_eq!(bytes.len() as u64, file.len());
        let packets: Vec<_> = Packets::new(&bytes).map(Result::unwrap).collect();
        let of = |part: fn(&PacketHeader) -> u64| {
            packets.iter().map(|packet| part(&packet.header)).collect::<Vec<_>>()
        };
        assert_eq!(of(|header| header.records_len), [0, 34, 34, 34, 34]);
        assert_eq!(of(|header| header.discarded), [0, 2, 2, 3, 4]);
        assert_eq!(of(|header| header.number), [3, 4, 5, 8, 9]);
        assert_eq!(of(|header| header.begin), [100, 100, 106, 120, 125]);
        assert_eq!(of(|header| header.end), [100, 105, 111, 125, 128]);
        let stamps = Records::new(packets[4].records).map(|record| record.unwrap().stamp);
        assert!(stamps.eq([125, 128]));
        assert!(matches!(StreamFile::create(dir.path(), 1), Err(Failure::Recorded(_))));
        assert_eq!(course.end(), 128);
    }

    #[test]
    fn packet_without_records_is_no_gap() {
        let dir = tempfile::tempdir().unwrap();
        let mut course = Course::default();
        let mut file = StreamFile::create(dir.path(), 0).unwrap();
        for (number, is_empty) in
            [(3, true), (4, false), (5, true), (6, false), (6, true), (7, false), (9, false)]
        {
            let (header, mut bytes) = packet(number, 10 * number, 0);
            if is_empty {
                course.pass_over(&PacketHeader { records_len: 0, ..header });
            } else {
                file.append(&mut course, &header, 0, &mut bytes).unwrap();
            }
        }
        let bytes = fs::read(dir.path().join("cpu0")).unwrap();
        let found: Vec<_> = Packets::new(&bytes).map(|packet| packet.unwrap().header.number).collect();
        assert!(found.iter().zip(&found[1..]).map(|(a, b)| b - a).eq([1, 1, 2]), "{found:?}");
    }

    #[test]
    fn next_file_continues_and_counts_from_zero() {
        let dir = tempfile::tempdir().unwrap();
        let mut course = Course::default();
        for (n, lost) in [(0, 5), (1, 0), (2, 2)] {
            let dir = dir.path().join(n.to_string());
            fs::create_dir(&dir).unwrap();
            let mut file = StreamFile::create(&dir, 0).unwrap();
            let (header, mut bytes) = packet(n, 10 * n, 0);
            file.append(&mut course, &header, lost, &mut bytes).unwrap();
            let bytes = fs::read(dir.join("cpu0")).unwrap();
            let found: Vec<_> = Packets::new(&bytes).map(|packet| packet.unwrap().header.discarded).collect();
            assert_eq!(found, [&[0, 5][..], &[0], &[0, 2]][n as usize]);
        }
    }
}
