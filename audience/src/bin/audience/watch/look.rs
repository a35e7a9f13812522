//! Looks at copies of a channel's buffers, `snapshot/cpuN`, for records that are new.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use relay::trace::packet::{HEADER_LEN, PacketHeader};
use relay::trace::record::{Record, Records};

use crate::channel_files::{CpuFile, Place};
use crate::error::Failure;
use crate::output::say;
use crate::timed::seen::Seen;

/// After a change, buffers are copied again after this time, twice this time, and so on.
///
/// All open files of `snapshot/cpuN` share one copy. So while another program has it open, looks find an older copy.
const AGAIN_FIRST: Duration = Duration::from_millis(200);
/// The longest of these times.
const AGAIN_LAST: Duration = Duration::from_secs(60);

/// A copy of a buffer: packets.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) cpu: usize,
    pub(super) path: PathBuf,
    file: File,
    len: u64,
    /// Bytes written before the copy; `None` if that is not known.
    written: Option<u64>,
}

/// What is kept of a CPU from one look to the next.
#[derive(Debug, Default)]
struct Cpu {
    seen: Seen,
    /// Bytes written before the last look; `None` if that is not known.
    written: Option<u64>,
    /// When the last look was, and how long after it another one is due.
    again: Option<(Instant, Duration)>,
}

impl Cpu {
    /// Whether there may be records that no look has found.
    fn may_have_news(&self, written: Option<u64>) -> bool {
        let is_due = self.again.is_some_and(|(looked, pause)| looked.elapsed() >= pause);
        written.is_none() || self.written != written || is_due
    }

    /// Notes a look at a copy before which this much was written.
    fn looked(&mut self, written: Option<u64>) {
        let pause = match self.again {
            Some((_, pause)) if self.written == written => {
                Some(2 * pause).filter(|pause| *pause <= AGAIN_LAST)
            }
            _ => Some(AGAIN_FIRST),
        };
        self.written = written;
        self.again = pause.map(|pause| (Instant::now(), pause));
    }
}

/// Looks.
#[derive(Debug)]
pub(super) struct Looker {
    place: Place,
    cpus: BTreeMap<usize, Cpu>,
    /// Whether a look has failed and the next ones have not succeeded.
    told: bool,
    /// Kept for its memory.
    packet: Vec<u8>,
}

impl Copy {
    fn open(place: &Place, cpu: usize, written: Option<u64>) -> Result<Copy, Failure> {
        let path = place.control_path(&format!("snapshot/cpu{cpu}"));
        let file = File::open(&path).map_err(|error| Failure::open(&path, error))?;
        let len = file.metadata().map_err(|error| Failure::read(&path, error))?.len();
        Ok(Copy { cpu, path, file, len, written })
    }

    /// Returns the header of the packet at a place; `None` at the end, or if there is no packet.
    pub(super) fn header(&self, at: u64) -> Result<Option<PacketHeader>, Failure> {
        let mut bytes = [0; HEADER_LEN];
        if at >= self.len {
            return Ok(None);
        }
        if self.len - at >= HEADER_LEN as u64 {
            self.read(&mut bytes, at)?;
        }
        match PacketHeader::decode(&bytes, at) {
            Ok(header) if header.packet_len() <= self.len - at => Ok(Some(header)),
            Ok(_) => Ok(None),
            Err(error) => {
                say(Failure::Packets { path: self.path.clone(), error });
                Ok(None)
            }
        }
    }

    /// Reads a packet, whose header was found at the place, without what follows its records.
    pub(super) fn packet(&self, header: &PacketHeader, at: u64, packet: &mut Vec<u8>) -> Result<(), Failure> {
        packet.clear();
        // The check of the header shows that this fits into the copy.
        packet.resize(HEADER_LEN + header.records_len as usize, 0);
        self.read(packet, at)
    }

    fn read(&self, bytes: &mut [u8], at: u64) -> Result<(), Failure> {
        self.file.read_exact_at(bytes, at).map_err(|error| Failure::read(&self.path, error))
    }
}

impl Looker {
    pub(super) fn new(place: Place) -> Looker {
        Looker { place, cpus: BTreeMap::new(), told: false, packet: Vec::new() }
    }

    /// Begins with a channel, or with one that has come back: the next look copies all buffers.
    pub(super) fn begin(&mut self) {
        self.cpus.values_mut().for_each(|cpu| cpu.written = None);
    }

    /// Notes what is in the buffers as seen.
    pub(super) fn skip(&mut self, files: &[CpuFile]) -> Result<(), Failure> {
        let copies = self.look(files)?;
        self.news(&copies, |_| Ok(()))
    }

    /// Copies the buffers that have grown since the last look.
    pub(super) fn look(&mut self, files: &[CpuFile]) -> Result<Vec<Copy>, Failure> {
        let path = self.place.stats_path();
        // Before the copies: what is written in between is found by the next look.
        let stats = fs::read_to_string(&path).map_err(|error| Failure::open(&path, error))?;
        let written = written_by_cpu(&stats);
        let mut copies = Vec::new();
        for file in files {
            let written = written.get(&file.cpu).copied();
            if self.cpus.get(&file.cpu).is_none_or(|cpu| cpu.may_have_news(written)) {
                copies.push(Copy::open(&self.place, file.cpu, written)?);
            }
        }
        self.told = false;
        Ok(copies)
    }

    /// Adds copies of the buffers that have not changed.
    pub(super) fn complete(&self, files: &[CpuFile], mut copies: Vec<Copy>) -> Result<Vec<Copy>, Failure> {
        for file in files {
            if copies.iter().all(|copy| copy.cpu != file.cpu) {
                copies.push(Copy::open(&self.place, file.cpu, None)?);
            }
        }
        Ok(copies)
    }

    /// Passes the new records of the copies on, and notes them as seen.
    pub(super) fn news(
        &mut self,
        copies: &[Copy],
        mut take: impl FnMut(&Record<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for copy in copies {
            let cpu = self.cpus.entry(copy.cpu).or_default();
            // Each copy has what the one before had.
            cpu.seen.may_come_again(false);
            let mut at = 0;
            while let Some(header) = copy.header(at)? {
                if !cpu.seen.has(&header) {
                    copy.packet(&header, at, &mut self.packet)?;
                    if let Some(header) = cpu.seen.cut(header, &mut self.packet) {
                        let records = &self.packet[HEADER_LEN..];
                        Records::new(records).map_while(Result::ok).try_for_each(|record| take(&record))?;
                        cpu.seen.note(&header, records);
                    }
                }
                at += header.packet_len();
            }
            cpu.looked(copy.written);
        }
        Ok(())
    }

    /// Reports a failure, until a look succeeds only once.
    pub(super) fn tell_once(&mut self, failure: &Failure) {
        if !std::mem::replace(&mut self.told, true) {
            say(failure);
        }
    }
}

/// The bytes written into each buffer so far, by lines such as `cpu1.bytes 4`.
fn written_by_cpu(stats: &str) -> HashMap<usize, u64> {
    let parse = |line: &str| {
        let (cpu, bytes) = line.strip_prefix("cpu")?.split_once(".bytes ")?;
        Some((cpu.parse().ok()?, bytes.parse().ok()?))
    };
    stats.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_apart_by_cpu() {
        let found =
            written_by_cpu("total.bytes 9\ncpu0.bytes 7\ncpu0.read_bytes 1\ncpu12.bytes 8\ncpux.bytes 1\n");
        assert_eq!(found, HashMap::from([(0, 7), (12, 8)]));
    }

    #[test]
    fn looks_are_repeated_until_a_copy_must_be_new() {
        let mut cpu = Cpu::default();
        assert!(cpu.may_have_news(Some(0)) && cpu.may_have_news(None));
        cpu.looked(Some(5));
        assert!(cpu.may_have_news(Some(6)) && !cpu.may_have_news(Some(5)));
        let mut pauses = Vec::new();
        while let Some((looked, pause)) = cpu.again {
            pauses.push(pause);
            cpu.again = Some((looked.checked_sub(pause).unwrap(), pause));
            assert!(cpu.may_have_news(Some(5)));
            cpu.looked(Some(5));
        }
        assert!(!cpu.may_have_news(Some(5)));
        assert_eq!((pauses[0], pauses.len()), (AGAIN_FIRST, 9));
    }
}
