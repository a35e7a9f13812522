//! `audience record` of a timed channel: the directory is a CTF trace, or has one for each piece.
//!
//! ```text
//!   wait for the channel --> of each CPU: finished sub-buffers, or a copy of what is unread: metadata, packets;
//!                            consume it --> poll, a second at most
//! ```
//!
//! One thread records all CPUs, since pieces must have all of them. A copy is consumed when its packets are written. So
//! a full disk or a killed recorder costs nothing. Finished sub-buffers are taken from the mapping (`mapped.rs`), also where
//! the daemon has no memory for a copy; without a mapping, another round tries again.

mod copy;
mod cpu;
mod mapped;
mod piece;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use audience_common::trace_dir::{self, Texts};
use nix::poll::{PollFd, PollFlags};
use relay::clock::Timeline;
use relay::trace::definition::Definitions;
use relay::trace::metadata::Metadata;
use relay::trace::packet::PacketHeader;

use self::cpu::Cpu;
pub(crate) use self::cpu::{mend, settle};
use self::mapped::Mapped;
use self::piece::Piece;
use super::ends::Ends;
use super::flush;
use super::job::{CLOSED, Idle, Job};
use super::progress::{Progress, Recorded, of_cpus};
use crate::channel_files::{CpuFile, Identity};
use crate::error::Failure;
use crate::losses::{self, Counters, Tally};
use crate::output::say;
use crate::timed::accounts::restate;
use crate::timed::meaning::texts_of_channel;
use crate::unread;
use crate::wait_for_channel::{BROKEN, LOOK_AGAIN, Mounts, if_there, missing};

/// Longest time between two looks at buffers whose sub-buffers do not fill, and between two reads of the counters.
const LOOK_AT_LEAST: Duration = Duration::from_secs(1);
/// Most rounds in a row in which a file is ready and gives nothing, before a pause.
const FUTILE_MAX: u32 = 50;

/// Records until a signal, the time limit, or an error.
///
/// `at_once`: the channel was there when the recorder started.
pub(crate) fn run(job: &Job<'_>, progress: Progress, at_once: bool) -> Result<(), Failure> {
    // Held while the recorder runs: what it is writing is not torn.
    let _lock = match job.lock {
        Some(_) => None,
        None => Some(
            trace_dir::mend::lock(&job.output)?.ok_or_else(|| Failure::RecorderAtWork(job.output.clone()))?,
        ),
    };
    let ends = job.ends()?;
    let has_pieces = job.options.rotates() || job.options.append || job.options.all;
    let number = trace_dir::piece_numbers(&job.output)?.last().map_or(0, |last| last + 1);
    let mut recorder = Recorder {
        job,
        ends,
        tally: Tally::default(),
        progress,
        texts: Texts::default(),
        timeline: None,
        definitions: Definitions::new(),
        counters: Counters::new(),
        read: BTreeMap::new(),
        cpus: BTreeMap::new(),
        mapped: BTreeMap::new(),
        piece: None,
        number: has_pieces.then_some(number),
        idle: Idle::new(),
        lacks_memory: false,
        packet: Vec::new(),
    };
    let result = recorder.run(at_once);
    let finished = recorder.cpus.values_mut().try_for_each(Cpu::finish);
    if let Some(piece) = recorder.piece.take() {
        job.store.moved(&piece.dir);
    }
    if !recorder.cpus.is_empty() {
        let recorded = recorder.recorded();
        job.end(&mut recorder.progress, recorded);
    }
    result.and(finished)
}

struct Recorder<'a> {
    job: &'a Job<'a>,
    /// Where the recording ends, for the next recorder.
    ends: Option<Ends>,
    tally: Tally,
    progress: Progress,
    /// The channel's texts, as last read.
    texts: Texts,
    /// The clock of what is recorded.
    timeline: Option<Timeline>,
    /// The events in the metadata.
    definitions: Definitions,
    /// The channel's losses, as last read.
    counters: Counters,
    /// The bytes that readers have had of each CPU, as last read.
    read: BTreeMap<usize, u64>,
    cpus: BTreeMap<usize, Cpu>,
    /// The mappings of the files that are recorded, where one was wanted; `None` if the daemon shares none.
    mapped: BTreeMap<usize, Option<Mapped>>,
    /// The trace that is being written.
    piece: Option<Piece>,
    /// The piece's number, if there are pieces.
    number: Option<u64>,
    idle: Idle,
    /// Whether the daemon's lack of memory was reported.
    lacks_memory: bool,
    packet: Vec<u8>,
}

/// Why the recording of a channel's files ended.
#[derive(PartialEq, Eq)]
enum Over {
    /// The recording is over, and has all that there was.
    Stopped,
    /// The channel, or the whole mount, has gone.
    Gone,
    /// There is nothing to record.
    Idle,
}

impl Recorder<'_> {
    fn run(&mut self, mut first: bool) -> Result<(), Failure> {
        let mut waiting_told = false;
        let mounts = Mounts::watch()?;
        loop {
            let mut rest = LOOK_AGAIN;
            let opened = if_there(self.job.place.open_of_kind(self.job.options.what.cpu))?;
            if let Some((files, is_timed)) = opened {
                if !is_timed {
                    return Err(Failure::KindChanged(self.job.place.channel.clone()));
                }
                waiting_told = false;
                let begun = match self.begin(&files, first) {
                    Err(failure) if failure.is_out_of_memory() => {
                        self.tell_lack(&failure);
                        None
                    }
                    begun => if_there(begun)?,
                };
                if begun.is_some() {
                    let over = self.record(&files);
                    self.mapped.clear();
                    // Before the files are closed: they may be all that keeps the channel.
                    self.tally.add(&self.job.place.stats_path());
                    match over? {
                        Over::Stopped => return Ok(()),
                        Over::Idle => rest = CLOSED,
                        Over::Gone => {}
                    }
                }
            } else if self.job.until_gone {
                return Ok(());
            } else if !std::mem::replace(&mut waiting_told, true) {
                self.progress.say(missing(&self.job.place));
            }
            first = false;
            if self.job.limits.is_over() {
                return Ok(());
            }
            self.job.limits.rest(rest, Some(&mounts))?;
        }
    }

    /// Reads the channel's texts, and its losses so far.
    fn begin(&mut self, files: &[CpuFile], first: bool) -> Result<(), Failure> {
        if first {
            self.tally.begin(&self.job.place.stats_path());
        }
        let stats = self.job.place.stats_path();
        let (before, now) = (losses::before(&stats), losses::now(&stats));
        self.note_stats();
        let mut is_another = false;
        for file in files {
            let of = |counters: &Counters| counters.get(&file.cpu).copied().unwrap_or_default();
            let (before, now) = (of(&before), of(&now));
            let slot = || self.ends.as_ref()?.slot(file.cpu);
            let cpu = match self.cpus.entry(file.cpu) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    let known = self.job.known.get(&file.cpu).and_then(|known| Cpu::known(known, slot()));
                    entry.insert(match known {
                        Some(cpu) => cpu,
                        None => Cpu::new(file.inode(), &before, slot())?,
                    })
                }
            };
            is_another |= cpu.is_another(file.inode(), &before);
            cpu.live.accounts.go_on(&before, &now);
            cpu.may_come_again(self.read.get(&file.cpu).copied().unwrap_or(0));
        }
        // Its events may have the ids of other events.
        if is_another {
            self.next_piece()?;
        }
        self.read_texts()?;
        match &self.piece {
            Some(piece) if piece.streams.is_empty() => Ok(self.texts.write(&piece.dir)?),
            // A recording without a record is a trace, too.
            None if self.number.unwrap_or(0) == 0 => {
                self.piece = Some(Piece::begin(self.job, self.number, &self.texts)?);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Says once that the daemon lacks memory.
    fn tell_lack(&mut self, failure: &Failure) {
        if !std::mem::replace(&mut self.lacks_memory, true) {
            say(format_args!("{failure}; it is tried again"));
        }
    }

    /// Reads the channel's counters. Returns the unread bytes of each CPU.
    fn note_stats(&mut self) -> BTreeMap<usize, u64> {
        let stats = fs::read_to_string(self.job.place.stats_path()).unwrap_or_default();
        (self.counters, self.read) = (losses::of_text(&stats), unread::read_by_cpu(&stats));
        unread::by_cpu(&stats)
    }

    /// Records these files until the recording is over or the channel has gone.
    fn record(&mut self, files: &[CpuFile]) -> Result<Over, Failure> {
        let first = files.first().map(CpuFile::identity);
        let (mut counted, mut looked) = (Instant::now(), Instant::now());
        let (mut ready, mut gone, mut futile) = (false, false, 0);
        loop {
            // Checked before the round, so that the last round takes everything written before.
            let stopping = self.job.limits.is_over();
            if stopping {
                flush(&self.job.place);
            }
            let (mut got, mut lack) = (0, None);
            // Copies of what is empty would keep the daemon busy.
            let unread = self.note_stats();
            for file in files.iter().filter(|file| unread.get(&file.cpu).is_some_and(|bytes| *bytes > 0)) {
                let copied = match self.copy(file.cpu, ready) {
                    // All that there is, also what was written while sub-buffers were taken.
                    Ok(bytes) if stopping => self.copy_unread(file.cpu).map(|more| bytes + more),
                    copied => copied,
                };
                match copied {
                    Ok(bytes) => got += bytes,
                    Err(failure) if failure.means_gone() => gone = true,
                    Err(failure) if failure.is_out_of_memory() => {
                        self.tell_lack(&failure);
                        lack = Some(failure);
                    }
                    Err(failure) => return Err(failure),
                }
            }
            if stopping {
                self.end()?;
                // What is not recorded is still in the buffers.
                return lack.map_or(Ok(Over::Stopped), Err);
            }
            if gone {
                return Ok(Over::Gone);
            }
            if got > 0 {
                self.idle.end();
            } else if self.job.until_gone && self.idle.is_over() {
                return Ok(Over::Idle);
            }
            self.rotate()?;
            let due = self.progress.due_in().is_some_and(|time| time.is_zero());
            if due || counted.elapsed() >= LOOK_AT_LEAST {
                self.tally.add(&self.job.place.stats_path());
                self.refresh_processes()?;
                self.job.show(|| self.recorded());
                self.job.store.keep_limit()?;
                self.job.check_directory()?;
                counted = Instant::now();
            }
            if due {
                let recorded = self.recorded();
                self.progress.report(recorded);
            }
            futile = if ready && got == 0 { futile + 1 } else { 0 };
            (ready, gone) = self.poll(if futile < FUTILE_MAX { files } else { &[] })?;
            if looked.elapsed() >= LOOK_AGAIN {
                gone |= first.as_ref().is_some_and(Identity::was_replaced);
                looked = Instant::now();
            }
        }
    }

    /// Waits for a finished sub-buffer, the end, or the next look. Returns whether a file is ready, and whether one has
    /// gone.
    fn poll(&self, files: &[CpuFile]) -> Result<(bool, bool), Failure> {
        let due = self.progress.due_in().unwrap_or(LOOK_AT_LEAST).min(LOOK_AT_LEAST);
        let time = if files.is_empty() { due.min(LOOK_AGAIN) } else { due };
        let mut fds: Vec<PollFd<'_>> =
            files.iter().map(|file| PollFd::new(file.file.as_fd(), PollFlags::POLLIN)).collect();
        self.job.limits.poll(&mut fds, time)?;
        let has = |flags| fds.iter().any(|fd| fd.revents().is_some_and(|events| events.intersects(flags)));
        Ok((has(PollFlags::POLLIN), has(BROKEN)))
    }

    fn read_texts(&mut self) -> Result<(), Failure> {
        let mut texts = texts_of_channel(&self.job.place)?;
        if texts.processes.is_empty() {
            // It could not be read.
            texts.processes.clone_from(&self.texts.processes);
        }
        let path = self.job.place.control_path(trace_dir::METADATA);
        let parsed = Metadata::parse(&texts.metadata);
        let (metadata, events) = parsed.map_err(|error| Failure::Metadata { path, error })?;
        let now = metadata.timeline.clock();
        if let Some(before) = self.timeline.as_ref().map(Timeline::clock).filter(|before| *before != now) {
            let channel = self.job.place.channel.clone();
            return Err(Failure::ClockChanged { channel, before: before.name(), now: now.name() });
        }
        (self.timeline, self.definitions, self.texts) = (Some(metadata.timeline), events.definitions, texts);
        Ok(())
    }

    /// Keeps up with processes that came since.
    fn refresh_processes(&mut self) -> Result<(), Failure> {
        let Some(piece) = &self.piece else { return Ok(()) };
        let now = fs::read_to_string(self.job.place.control_path("processes")).unwrap_or_default();
        if !now.is_empty() && now != self.texts.processes {
            self.texts.processes = now;
            self.texts.write(&piece.dir)?;
        }
        Ok(())
    }

    /// Begins another piece if this one is long or old enough.
    fn rotate(&mut self) -> Result<(), Failure> {
        let (Some(rotation), Some(piece)) = (self.job.rotation(), &self.piece) else { return Ok(()) };
        let is_long =
            rotation.size.is_some_and(|size| piece.streams.values().any(|stream| stream.len() >= size));
        let is_old = rotation.age.is_some_and(|age| piece.since.is_some_and(|since| since.elapsed() >= age));
        if is_long || is_old { self.next_piece() } else { Ok(()) }
    }

    /// Completes a piece, unless it is empty. A recording without pieces gets them.
    fn next_piece(&mut self) -> Result<(), Failure> {
        let Some(piece) = self.piece.take_if(|piece| !piece.streams.is_empty()) else { return Ok(()) };
        self.texts.write(&piece.dir)?;
        match &mut self.number {
            Some(number) => {
                *number += 1;
                self.job.store.end(&piece.dir)
            }
            none => {
                trace_dir::become_piece(&piece.dir)?;
                *none = Some(1);
                self.job.store.moved(&piece.dir);
                Ok(())
            }
        }
    }

    /// Records the losses behind the last packets, and the newest texts.
    fn end(&mut self) -> Result<(), Failure> {
        for (cpu, now) in losses::now(&self.job.place.stats_path()) {
            let Some(state) = self.cpus.get_mut(&cpu) else { continue };
            let lost = state.live.accounts.rest(&now);
            if lost.is_empty() {
                continue;
            }
            let (stamp, number) = (state.course.end(), state.course.number());
            let header = PacketHeader {
                cpu: cpu as u32,
                begin: stamp,
                end: stamp,
                records_len: 0,
                padding: 0,
                number,
                discarded: 0,
            };
            let mut packet = header.encode().to_vec();
            let header = restate(header, &mut packet, &lost);
            self.append_whole(cpu, &header, &lost, &mut packet)?;
        }
        if if_there(self.read_texts())?.is_some()
            && let Some(piece) = &self.piece
        {
            self.texts.write(&piece.dir)?;
        }
        Ok(())
    }

    fn recorded(&self) -> Vec<Recorded> {
        of_cpus(self.cpus.iter().map(|(cpu, state)| (*cpu, state.recorded)), &self.tally)
    }
}
