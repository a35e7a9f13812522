//! The traces of a timed channel: one, or one for each time that the channel was created.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use audience_common::trace_dir::stream::{Course, StreamFile};
use audience_common::trace_dir::{self, Texts};
use relay::trace::event::Cause;
use relay::trace::metadata::Metadata;
use relay::trace::packet::{HEADER_LEN, Losses, PacketHeader, PacketMaker, SubBuffer, lost_of};
use relay::trace::record::Records;

use crate::output::say;
use crate::read::arrivals::Arrivals;
use crate::read::calendar::{Calendar, newest_stamp};
use crate::read::delivery::{Arrived, Timed};
use crate::read::error::Failure;

use crate::read::raw::place;
use crate::read::texts::{Dictionary, Processes};

/// The traces of a channel.
pub(super) struct Traces {
    dir: PathBuf,
    /// In the order of their first packets.
    traces: Vec<Trace>,
}

/// A trace.
struct Trace {
    instance: u64,
    calendar: Calendar,
    dictionary: Arc<Dictionary>,
    processes: Option<Arc<Processes>>,
    /// Whether anchors have come since the metadata were written.
    is_behind: bool,
    cpus: BTreeMap<u32, Cpu>,
}

/// The packets of a CPU.
struct Cpu {
    file: StreamFile,
    course: Course,
    /// Messages lost up to the last packet.
    discarded: Option<u64>,
    /// Stamp of the last packet's end.
    end: u64,
}

impl Traces {
    pub(super) fn new(dir: PathBuf) -> Traces {
        Traces { dir, traces: Vec::new() }
    }

    /// Appends a packet. Returns its length in the recording.
    pub(super) fn append(&mut self, lane: &Arrivals, arrived: Arrived) -> Result<u64, Failure> {
        let (Some(timed), Some(meaning)) = (arrived.timed, &arrived.of.meaning) else { return Ok(0) };
        let found = self.traces.iter().position(|trace| trace.instance == arrived.instance);
        let at = match found {
            Some(at) => at,
            None => {
                let Some(dictionary) = &timed.dictionary else {
                    // Without metadata no program can read the packet.
                    say(format_args!("{}: sub-buffer {} is left out", place(lane), arrived.number));
                    return Ok(0);
                };
                if self.traces.len() == 1 {
                    trace_dir::become_piece(&self.dir)?;
                }
                let trace = Trace {
                    instance: arrived.instance,
                    calendar: Calendar::new(&meaning.timeline),
                    dictionary: Arc::clone(dictionary),
                    processes: None,
                    is_behind: true,
                    cpus: BTreeMap::new(),
                };
                self.traces.push(trace);
                self.traces.len() - 1
            }
        };
        let dir =
            if self.traces.len() == 1 { self.dir.clone() } else { trace_dir::piece(&self.dir, at as u64) };
        let trace = &mut self.traces[at];
        let is_new = found.is_none();
        if is_new && at > 0 {
            trace.calendar.learn(&trace.dictionary.metadata.timeline);
            trace_dir::create(&dir, &trace.texts())?;
        }
        trace.is_behind |= trace.calendar.learn(&meaning.timeline);
        if trace.learn(&timed) || is_new {
            trace.write(&dir)?;
        }
        trace.append(&dir, lane.cpu, &timed, &arrived.bytes)
    }

    /// Writes the newest texts.
    pub(super) fn finish(&mut self) -> Result<(), Failure> {
        let is_one = self.traces.len() == 1;
        for (at, trace) in self.traces.iter_mut().enumerate().filter(|(_, trace)| trace.is_behind) {
            let dir = if is_one { self.dir.clone() } else { trace_dir::piece(&self.dir, at as u64) };
            trace.write(&dir)?;
        }
        Ok(())
    }
}

impl Trace {
    /// Takes newer texts. Returns whether there are some.
    fn learn(&mut self, timed: &Timed) -> bool {
        let mut is_new = false;
        let newest = self.dictionary.version;
        if let Some(newer) = timed.dictionary.as_ref().filter(|text| text.version > newest) {
            self.dictionary = Arc::clone(newer);
            is_new = true;
        }
        let newest = self.processes.as_ref().map(|text| text.version);
        if let Some(newer) = timed.processes.as_ref().filter(|text| Some(text.version) > newest) {
            self.processes = Some(Arc::clone(newer));
            is_new = true;
        }
        is_new
    }

    /// The texts, with all anchors that are known: the dictionary has those that there were when it was sent.
    fn texts(&self) -> Texts {
        let timeline = self.calendar.timeline().clone();
        let metadata = Metadata { timeline, ..self.dictionary.metadata.clone() };
        let processes = self.processes.as_ref().map(|processes| processes.text.clone());
        Texts { metadata: metadata.write(&self.dictionary.events), processes: processes.unwrap_or_default() }
    }

    fn write(&mut self, dir: &Path) -> Result<(), Failure> {
        self.calendar.learn(&self.dictionary.metadata.timeline);
        self.texts().write(dir)?;
        self.is_behind = false;
        Ok(())
    }

    fn append(&mut self, dir: &Path, cpu: u32, timed: &Timed, bytes: &[u8]) -> Result<u64, Failure> {
        let newest = newest_stamp(self.calendar.timeline());
        let state = match self.cpus.entry(cpu) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let file = StreamFile::create(dir, cpu as usize)?;
                entry.insert(Cpu { file, course: Course::default(), discarded: None, end: 0 })
            }
        };
        let Some((header, mut packet)) =
            mended(&timed.header, bytes, &self.dictionary, newest, &mut state.end)
        else {
            return Ok(0);
        };
        if header.records_len == 0 {
            state.course.pass_over(&header);
            return Ok(0);
        }
        let lost = match state.discarded.replace(header.discarded) {
            Some(before) => header.discarded.saturating_sub(before),
            None => reported(&packet[HEADER_LEN..]),
        };
        let before = state.file.len();
        state.file.append(&mut state.course, &header, lost, &mut packet)?;
        Ok(state.file.len() - before)
    }
}

/// Returns a packet as the daemon makes them: what would mislead readers of CTF is mended.
fn mended(
    header: &PacketHeader,
    bytes: &[u8],
    dictionary: &Dictionary,
    newest: u64,
    end: &mut u64,
) -> Option<(PacketHeader, Vec<u8>)> {
    let records = bytes.get(HEADER_LEN..)?.get(..usize::try_from(header.records_len).ok()?)?;
    // Losses are in the records already.
    let mut maker = PacketMaker::new(header.cpu, *end, None);
    let losses = Losses { lost: header.discarded, too_big: 0 };
    let subbuf = SubBuffer { number: header.number, losses, newest, cause: Cause::Full, records };
    let mut packet = Vec::with_capacity(bytes.len());
    maker.packet(&subbuf, &dictionary.definitions, &mut packet);
    *end = maker.end();
    let header = PacketHeader::decode(packet.first_chunk()?, 0).ok()?;
    Some((header, packet))
}

/// The losses that records at the start of a packet report.
fn reported(records: &[u8]) -> u64 {
    let reports = Records::new(records).map_while(|record| lost_of(&record.ok()?));
    let counted = reports.filter(|(_, cause)| cause.is_some());
    counted.fold(0, |sum: u64, (messages, _)| sum.saturating_add(messages))
}
