//! The packets of each CPU, wherever they come from, for the merge.
//!
//! ```text
//! take/cpuN           what is unread; consumed when the reader says so
//! snapshot/cpuN       what is in the buffer; consumes nothing
//! DIR/cpuN            a recording, or its pieces one after the other
//! memory              what a dead daemon left, made into packets
//! ```

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use audience_common::trace_dir;
use relay::trace::merge::{Merge, Source};
use relay::trace::packet::{HEADER_LEN, PacketHeader, PacketReader, ReadError};

use super::accounts::{Accounts, Lost, restate, total};
use super::seen::Seen;
use super::take::Take;
use super::unread::Unread;
use crate::channel_files::{Place, wanted};
use crate::error::{Failure, means_gone};
use crate::losses::{Counters, Losses};

/// Bytes that one read asks for.
const BLOCK: usize = 1 << 20;
/// How long a copy is tried for that the daemon has no memory for, and the time between two tries.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);

/// One CPU's packets, from one origin.
pub(crate) struct Stream {
    reader: PacketReader<BufReader<Box<dyn Read>>>,
    /// For what is read from a live channel.
    live: Option<SharedLive>,
}

/// What a reader of a live channel keeps of a CPU from one copy to the next.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) accounts: Accounts,
    pub(crate) seen: Seen,
    /// The channel's counters, as last read.
    pub(crate) counters: Losses,
    /// Losses that were passed on with packets.
    passed: u64,
}

/// Shared by the streams of a CPU.
pub(crate) type SharedLive = Rc<RefCell<Live>>;

impl Live {
    /// Begins with losses that are reported already.
    pub(crate) fn new(before: &Losses) -> Live {
        Live { accounts: Accounts::new(before), ..Live::default() }
    }

    /// Makes a packet say only what was not said before. Returns its header and its losses; `None` if nothing is left.
    pub(crate) fn pass(
        &mut self,
        header: PacketHeader,
        packet: &mut Vec<u8>,
    ) -> Option<(PacketHeader, Vec<Lost>)> {
        let header = self.seen.cut(header, packet)?;
        let end = HEADER_LEN.saturating_add(header.records_len as usize).min(packet.len());
        packet.truncate(end);
        let lost = self.accounts.packet(&header, &packet[HEADER_LEN..], &self.counters);
        let header = PacketHeader { padding: 0, ..restate(header, packet, &lost) };
        self.seen.note(&header, &packet[HEADER_LEN..]);
        Some((header, lost))
    }
}

impl Stream {
    /// Returns the packets that a reader gives.
    pub(crate) fn new(reader: impl Read + 'static, live: Option<SharedLive>) -> Stream {
        let reader = BufReader::with_capacity(BLOCK, Box::new(reader) as Box<dyn Read>);
        Stream { reader: PacketReader::new(reader), live }
    }
}

impl Source for Stream {
    fn next_packet(&mut self, packet: &mut Vec<u8>) -> Result<Option<PacketHeader>, ReadError> {
        loop {
            let Some(header) = self.reader.read(packet)? else { return Ok(None) };
            let Some(live) = &self.live else { return Ok(Some(header)) };
            let live = &mut *live.borrow_mut();
            if let Some((header, lost)) = live.pass(header, packet) {
                // The merge compares these.
                live.passed = live.passed.saturating_add(total(&lost));
                return Ok(Some(PacketHeader { discarded: live.passed, ..header }));
            }
        }
    }
}

/// Opens a file for each CPU that has one.
pub(crate) fn each<T>(
    place: &Place,
    only: Option<usize>,
    open: impl Fn(usize) -> Result<T, Failure>,
) -> Result<Vec<(usize, T)>, Failure> {
    let mut found = Vec::new();
    for cpu in wanted(only) {
        match open(cpu) {
            Ok(opened) => found.push((cpu, opened)),
            Err(Failure::Open { source, .. }) if means_gone(&source) && !place.cpu_path(cpu).exists() => {}
            Err(failure) => return Err(failure),
        }
    }
    if found.is_empty() { Err(place.nothing(only)?) } else { Ok(found) }
}

/// Opens what is unread of each CPU, with its losses so far. Where nothing may be consumed, these are copies.
pub(crate) fn unread(
    place: &Place,
    only: Option<usize>,
    losses: &Counters,
    may_consume: bool,
) -> Result<Vec<(usize, Unread)>, Failure> {
    each(place, only, |cpu| {
        if may_consume {
            return Unread::take(place, cpu, &losses.get(&cpu).copied().unwrap_or_default());
        }
        let path = place.control_path(&format!("take/cpu{cpu}"));
        patiently(|| Take::open(&path)).map(Unread::Copy)
    })
}

/// Opens a copy. While there is no memory for it, tries again for a moment: other programs' copies may go.
fn patiently<T>(open: impl Fn() -> Result<T, Failure>) -> Result<T, Failure> {
    let begun = Instant::now();
    loop {
        match open() {
            Err(failure) if failure.is_out_of_memory() && begun.elapsed() < PATIENCE => thread::sleep(PAUSE),
            opened => return opened,
        }
    }
}

/// Opens the copies of what is in the buffers.
pub(crate) fn snapshots(place: &Place, only: Option<usize>) -> Result<Merge<Stream>, Failure> {
    let opened = each(place, only, |cpu| {
        let path = place.control_path(&format!("snapshot/cpu{cpu}"));
        patiently(|| File::open(&path).map_err(|error| Failure::open(&path, error)))
    })?;
    let mut merge = Merge::new();
    opened.into_iter().for_each(|(cpu, file)| merge.push(cpu as u32, Stream::new(file, None)));
    Ok(merge)
}

/// Opens the traces of a recording, in order.
pub(crate) fn traces(traces: &[PathBuf], only: Option<usize>) -> Result<Merge<Stream>, Failure> {
    let mut merge = Merge::new();
    each_trace(traces, only)?.into_iter().for_each(|(cpu, stream)| merge.push(cpu as u32, stream));
    Ok(merge)
}

/// The streams of the traces of a recording, in order.
pub(crate) fn each_trace(traces: &[PathBuf], only: Option<usize>) -> Result<Vec<(usize, Stream)>, Failure> {
    let mut found = Vec::new();
    for trace in traces {
        let streams =
            trace_dir::streams(trace)?.into_iter().filter(|(cpu, _)| only.is_none_or(|only| only == *cpu));
        found.extend(streams.map(|(cpu, path)| (cpu, Stream::new(LazyFile::new(&path), None))));
    }
    Ok(found)
}

/// A file that is opened when its first byte is wanted: a recording may have more pieces than descriptors.
#[derive(Debug)]
struct LazyFile {
    path: PathBuf,
    file: Option<File>,
}

impl LazyFile {
    fn new(path: &Path) -> LazyFile {
        LazyFile { path: path.to_owned(), file: None }
    }
}

impl Read for LazyFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display()));
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::open(&self.path).map_err(named)?),
        };
        file.read(buf)
    }
}
