//! What a timed channel has besides its buffers: clock, anchors, events of programs, processes.
//!
//! `keeper.rs` takes anchors, and finds out when a clock epoch begins. `events.rs` and `processes.rs` keep what programs
//! and the kernel say, in files beside the channel's others (`journal.rs`). `levels.rs` has what programs write.
//! `packets.rs` makes CTF packets of copies.
//! `relayfsd/docs/TIMED.md` says when the daemon takes anchors.

pub(crate) mod events;
pub(crate) mod metadata;
pub(crate) mod packets;
pub(crate) mod processes;
pub(crate) mod trace_text;

mod journal;
mod keeper;
mod levels;

use std::fmt::Write as _;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use relay::clock::{Anchor, Clock, Timeline};
use relay::layout::abi::{Anchors, ThreadTable};
use relay::ring::buffer::Buffer;
use relay::trace::definition::{Definition, Definitions};
use relay::trace::directives::{Directives, DirectivesError};
use relay::trace::event::{Event, Reason, id};
use relay::trace::record::Head;

use self::events::{DefineError, Events};
use self::keeper::Keeper;
use self::levels::Levels;
use self::processes::{AttachError, Processes};
use crate::channel::files::{Files, FindError};
use crate::channel::{Channel, TimerRequest};
use crate::policy::quota::Quota;
use crate::process::identity::Identity;

/// The timed part of a channel.
pub(crate) struct Timed {
    clock: Clock,
    ticks_per_second: u64,
    /// The first buffer: all of them have the tables of the channel.
    buffer: Buffer,
    keeper: Mutex<Keeper>,
    events: RwLock<Events>,
    processes: Mutex<Processes>,
    levels: Levels,
    /// Whether a process has written or read since the last anchor of the schedule.
    busy: AtomicBool,
    /// Sum of the writers' positions at the last look.
    written: AtomicU64,
    request: OnceLock<Arc<TimerRequest>>,
}

/// A record as a message of a timed channel: its head and its payload.
pub(crate) type RecordBytes = Vec<u8>;

/// Makes a record as a message of a timed channel.
pub(crate) fn record(id: u16, tid: u32, payload: &[u8]) -> RecordBytes {
    // A payload that is longer than its length can say does not fit any channel, and counts as too big.
    let len = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    let head = Head { id, tid, len }.to_word();
    [&head.to_le_bytes(), payload].concat()
}

/// Makes a record of the daemon's own.
pub(crate) fn record_of(event: &Event<'_>, tid: u32) -> Option<RecordBytes> {
    let mut payload = Vec::new();
    event.encode_into(&mut payload).ok()?;
    Some(record(event.id()?, tid, &payload))
}

impl Timed {
    /// Makes the timed part of a new channel: its files, and the first anchor.
    pub(super) fn create(files: &Files, buffer: &Buffer) -> io::Result<Option<Timed>> {
        let Some([events, processes, levels]) = files.names() else { return Ok(None) };
        let (events, processes) = (Events::create(events)?, Processes::create(processes)?);
        let timed = Timed::new(buffer, events, processes, Levels::create(levels)?, Anchors::default());
        if let Some(timed) = &timed {
            timed.take_anchor();
        }
        Ok(timed)
    }

    /// Takes over the timed part of a channel that an earlier daemon left.
    pub(super) fn adopt(files: &Files, buffer: &Buffer) -> Result<Option<Timed>, FindError> {
        let Some([events, processes, levels]) = files.names() else { return Ok(None) };
        if let Some(clock) = buffer.clock().filter(|clock| !clock.is_readable()) {
            let name = clock.name();
            return Err(FindError::Unsound(format!("its clock is {name}, which this process may not read")));
        }
        let (events, mut processes) = (Events::find(events)?, Processes::find(processes)?);
        let table = || buffer.threads().into_iter();
        let threads = table().flat_map(ThreadTable::threads).chain(table().flat_map(ThreadTable::older));
        processes.skip(threads.map(|(_, process)| process));
        let mut anchors = buffer.anchors().map(Anchors::resume).unwrap_or_default();
        // A peer may have written the anchors. Epochs must have room for further ones.
        if anchors.as_slice().last().is_some_and(|last| last.epoch > u64::from(u32::MAX)) {
            anchors = Anchors::default();
        }
        Ok(Timed::new(buffer, events, processes, Levels::find(levels)?, anchors))
    }

    /// Makes the timed part for a buffer that has a clock.
    fn new(
        buffer: &Buffer,
        events: Events,
        processes: Processes,
        levels: Levels,
        anchors: Anchors,
    ) -> Option<Timed> {
        let (clock, ticks_per_second) = (buffer.clock()?, buffer.ticks_per_second()?);
        Some(Timed {
            clock,
            ticks_per_second,
            buffer: buffer.clone(),
            keeper: Mutex::new(Keeper::new(clock, ticks_per_second, anchors)),
            events: RwLock::new(events),
            processes: Mutex::new(processes),
            levels,
            busy: AtomicBool::new(false),
            written: AtomicU64::new(0),
            request: OnceLock::new(),
        })
    }

    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    pub(crate) fn ticks_per_second(&self) -> u64 {
        self.ticks_per_second
    }

    /// Returns a stamp that no record so far exceeds; see [`Clock::newest_stamp`].
    pub(crate) fn newest_stamp(&self) -> u64 {
        self.clock.newest_stamp(self.keeper().anchors())
    }

    /// Takes an anchor now. If a clock epoch begins with it, returns why, and a record that says so.
    pub(crate) fn take_anchor(&self) -> Option<(Reason, RecordBytes)> {
        let begun = self.keeper().take(self.buffer.anchors()?);
        let (Anchor { epoch, monotonic, realtime, .. }, reason) = begun?;
        let record = record_of(&Event::Clock { epoch, monotonic, realtime, reason: Some(reason) }, 0)?;
        Some((reason, record))
    }

    /// Returns the number of the clock epoch.
    pub(crate) fn epoch(&self) -> u64 {
        self.keeper().anchors().last().map_or(0, |last| last.epoch)
    }

    /// Returns the anchors so far.
    pub(crate) fn anchors(&self) -> Vec<Anchor> {
        self.keeper().anchors().to_vec()
    }

    /// Returns what the stamps so far mean.
    pub(crate) fn timeline(&self) -> Timeline {
        Timeline::new(self.clock, self.ticks_per_second, &self.anchors())
    }

    /// Returns the text of `clock`.
    pub(crate) fn clock_text(&self) -> String {
        let mut text = format!("clock {} {}\n", self.clock.name(), self.ticks_per_second);
        for anchor in self.anchors() {
            writeln!(text, "anchor {anchor}").expect("writing to a string");
        }
        text
    }

    /// Returns the text of `processes`.
    pub(crate) fn processes_text(&self) -> String {
        let mut text = self.processes().text();
        let table = || self.buffer.threads().into_iter();
        let older = table().flat_map(ThreadTable::older);
        for (tid, process) in table().flat_map(ThreadTable::threads).chain(older) {
            writeln!(text, "thread {tid} {process}").expect("writing to a string");
        }
        text
    }

    /// Returns the text of `level`.
    pub(crate) fn level_text(&self) -> String {
        self.levels.text()
    }

    /// Sets which messages programs write, by a text that a process has written into `level`.
    pub(crate) fn set_level(&self, text: &[u8]) -> Result<Directives, DirectivesError> {
        self.levels.set(text)
    }

    /// Adds what a timed channel counts to the text of `stats`.
    pub(crate) fn write_stats(&self, text: &mut String) {
        let epoch = self.epoch();
        for (name, value) in [
            ("events", self.events().definitions().len() as u64),
            ("processes", self.processes().last().into()),
            ("epoch", epoch),
        ] {
            writeln!(text, "timed.{name} {value}").expect("writing to a string");
        }
    }

    /// Returns the number of a process that attaches.
    pub(crate) fn attach(&self, identity: Identity) -> Result<u32, AttachError> {
        self.processes().attach(identity)
    }

    /// Notes that a connection of a process is gone.
    pub(crate) fn detach(&self, process: u32) {
        self.processes().detach(process);
    }

    /// Notes that a process has ended. Returns whether that is news.
    pub(crate) fn note_end(&self, process: u32) -> bool {
        self.processes().end(process)
    }

    /// Notes the process of a thread whose records the daemon writes.
    pub(crate) fn note_thread(&self, tid: u32, process: u32) {
        if let Some(threads) = self.buffer.threads() {
            threads.note(tid, process);
        }
    }

    /// Returns the id of a user's event. `memory` is the quota for what the events take.
    pub(crate) fn define(
        &self,
        definition: Definition,
        uid: u32,
        memory: &Arc<Quota>,
    ) -> Result<u16, DefineError> {
        self.events.write().unwrap_or_else(PoisonError::into_inner).define(definition, uid, memory)
    }

    /// Returns whether records may have this id.
    pub(crate) fn knows(&self, event: u16) -> bool {
        event < id::BUILTINS || self.events().definitions().get(event).is_some()
    }

    /// Returns the events of programs so far.
    pub(crate) fn definitions(&self) -> Arc<Definitions> {
        Arc::clone(self.events().definitions())
    }

    /// Passes the events of programs to `look`, as CTF text.
    pub(crate) fn with_events<T>(&self, look: impl FnOnce(&str) -> T) -> T {
        look(self.events().text())
    }

    /// Sets where a thread asks for anchors.
    pub(crate) fn set_request(&self, request: Arc<TimerRequest>) {
        // Set once, when the channel is created.
        let _ = self.request.set(request);
    }

    /// Notes that a process writes or reads: anchors are wanted.
    pub(crate) fn note_activity(&self) {
        // Relaxed: the common case. The swap below orders what follows.
        if !self.busy.load(Ordering::Relaxed)
            && !self.busy.swap(true, Ordering::SeqCst)
            && let Some(request) = self.request.get()
        {
            request.ask();
        }
    }

    /// Returns whether a process has written or read since the last look of the schedule.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::SeqCst)
    }

    fn keeper(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn processes(&self) -> MutexGuard<'_, Processes> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn events(&self) -> RwLockReadGuard<'_, Events> {
        self.events.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Channel {
    /// Returns the timed part of a timed channel.
    pub(crate) fn timed(&self) -> Option<&Timed> {
        self.timed.as_ref()
    }

    /// Takes the directives from producers: the channel goes, and its file with it.
    pub(crate) fn retire_levels(&self) {
        if let Some(timed) = &self.timed {
            timed.levels.retire();
        }
    }

    /// Sets the levels that another channel has, whose place this one takes.
    pub(crate) fn take_levels(&self, before: &Channel) {
        if let (Some(timed), Some(before)) = (&self.timed, &before.timed) {
            // What the file says can be written back.
            let _ = timed.set_level(before.level_text().as_bytes());
        }
    }

    /// Notes that a process writes or reads the channel, for its anchors.
    pub(crate) fn note_activity(&self) {
        if let Some(timed) = &self.timed {
            timed.note_activity();
        }
    }

    /// Asks direct writers to ring at their next switch, so that the daemon hears of them.
    pub(crate) fn listen_for_activity(&self) {
        if self.timed.is_some() {
            (0..self.n_bufs()).for_each(|cpu| self.buffer(cpu).arm());
        }
    }

    /// Returns whether an anchor of the schedule is due: a process has written or read since the last look.
    ///
    /// A direct writer rings at its next switch. Writes without a switch show as moved positions.
    pub(crate) fn anchor_is_due(&self) -> bool {
        let Some(timed) = &self.timed else { return false };
        if !timed.busy.swap(false, Ordering::SeqCst) {
            return false;
        }
        self.listen_for_activity();
        let written = self.written();
        // Relaxed, here and below: the first thread alone looks at it.
        if timed.written.swap(written, Ordering::Relaxed) != written {
            timed.busy.store(true, Ordering::SeqCst);
        }
        true
    }

    /// Notes that a producer of an earlier daemon has written, whose bell this daemon does not hear.
    pub(crate) fn note_orphans_activity(&self) {
        if let Some(timed) = &self.timed
            && timed.written.load(Ordering::Relaxed) != self.written()
        {
            timed.note_activity();
        }
    }

    /// Returns the sum of the writers' positions, which differs if one has moved.
    fn written(&self) -> u64 {
        // Relaxed: a position that moves later is found by the next look.
        let position = |cpu| self.buffer(cpu).block().state.load(Ordering::Relaxed);
        (0..self.n_bufs()).fold(0, |sum: u64, cpu| sum.wrapping_add(position(cpu)))
    }
}
