//! Forwards a channel: takes finished sub-buffers of each CPU, one at a time, and gives each back when it is stored.
//!
//! A reader gives back all that it has taken of a CPU. So a sub-buffer is taken only when the one before is stored.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use audience::{Geometry, Mode};
use bytes::Bytes;
use relay::ChannelName;
use relay::trace::packet::{Losses, PacketMaker};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::cpu::{Cpu, Done, Outgoing, Taken};
use super::idle::Idle;
use super::lane::Lane;
use super::link::Link;
use super::packets::{Packet, Packets};
use super::source::{Closed, Files, Source};
use super::texts::Texts;
use super::window::Window;
use super::written::Proof;
use crate::error::Failure;
use crate::message::{Kind, Subject};
use crate::server::pause;

/// Longest time between two looks at a channel at rest.
const LOOK_AT_LEAST: Duration = Duration::from_secs(1);
/// Time between two looks for the next daemon, and between two tries to read the dictionary.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Time until the next look at a buffer that has just got something.
const LOOK_SOON: Duration = Duration::from_millis(1);
/// Time for which the buffers are closed. The daemon hears of closes a moment later.
const CLOSED: Duration = Duration::from_millis(200);

/// What all channels share.
pub(crate) struct Job {
    pub(crate) link: Rc<Link>,
    pub(crate) mount: PathBuf,
    pub(crate) host: String,
    pub(crate) flush_interval: Option<Duration>,
    /// Bounds the messages on the way, of all channels.
    pub(crate) window: Window,
    /// Becomes true when nothing more is to be taken.
    pub(crate) stop: watch::Receiver<bool>,
}

/// Forwards a channel until the job is stopped; with `until_gone`, until the channel has gone.
pub(crate) async fn forward(job: Rc<Job>, channel: ChannelName, until_gone: bool) -> Result<(), Failure> {
    let (mut stop, troubles) = (job.stop.clone(), &job.link.troubles);
    let files = Files::new(&job.mount, &channel);
    let (mut tries, mut packets, mut idle) = (1, None, Idle::new());
    while !*stop.borrow() {
        let rest = match Source::open(files.clone()) {
            Ok(source) => {
                troubles.clear(channel.as_str());
                tries = 1;
                match Forwarding::new(&job, &channel, source, &mut packets).run(&mut idle).await? {
                    Over::Stopped => break,
                    Over::Idle => CLOSED,
                    Over::Gone if until_gone => break,
                    Over::Gone => Duration::ZERO,
                }
            }
            Err(Closed::Gone(_)) if until_gone => break,
            Err(Closed::Gone(why) | Closed::Trouble(why)) => {
                troubles.set(channel.as_str(), &why);
                tries += 1;
                pause(tries)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
    troubles.forget(channel.as_str());
    Ok(())
}

/// Why the forwarding of a channel's buffers ended.
enum Over {
    /// The job was stopped.
    Stopped,
    /// Other buffers are in their place, or none.
    Gone,
    /// There was no data for a while.
    Idle,
}

struct Forwarding<'a> {
    job: &'a Rc<Job>,
    channel: &'a ChannelName,
    source: Source,
    geometry: Geometry,
    packets: &'a mut Option<Packets>,
    cpus: Vec<Cpu>,
    tasks: JoinSet<(usize, Lane, Result<Done, Failure>)>,
    /// Sends texts that the stream drops soon.
    renewal: JoinSet<Result<(), Failure>>,
    /// When that was begun last.
    renewed: Option<Instant>,
    /// Whether other buffers are in the place of these.
    is_replaced: bool,
    /// Whether the dictionary could not be read.
    lacks_dictionary: bool,
}

/// A packet's dictionary is not there yet.
struct NoDictionary;

impl<'a> Forwarding<'a> {
    fn new(
        job: &'a Rc<Job>,
        channel: &'a ChannelName,
        source: Source,
        packets: &'a mut Option<Packets>,
    ) -> Forwarding<'a> {
        let (geometry, instance) = (*source.reader.geometry(), source.instance);
        *packets = packets.take().filter(|packets| packets.are_of(instance));
        let cpu = |cpu| {
            let kind = Kind::Cpu(cpu as u32);
            let subject = Subject { host: job.host.clone(), channel: channel.clone(), kind };
            Cpu::new(Lane::new(&job.link, &subject, instance))
        };
        let cpus = (0..source.reader.n_bufs()).map(cpu).collect();
        let (tasks, renewal) = (JoinSet::new(), JoinSet::new());
        let (renewed, is_replaced, lacks_dictionary) = (None, false, false);
        Forwarding {
            job,
            channel,
            source,
            geometry,
            packets,
            cpus,
            tasks,
            renewal,
            renewed,
            is_replaced,
            lacks_dictionary,
        }
    }

    async fn run(mut self, idle: &mut Idle) -> Result<Over, Failure> {
        let mut stop = self.job.stop.clone();
        let (mut flushed, mut at_rest) = (Instant::now(), Instant::now());
        self.cpus.iter().filter_map(|cpu| cpu.lane.as_ref()).for_each(|lane| {
            self.job.link.troubles.forget(&lane.subject);
        });
        loop {
            let stopping = *stop.borrow();
            if !stopping {
                (0..self.cpus.len()).for_each(|cpu| self.begin(cpu));
                self.renew_texts();
            }
            let (is_busy, waits) = (!self.tasks.is_empty(), self.waits());
            if is_busy {
                at_rest = Instant::now();
                idle.note_data();
            } else if stopping {
                return Ok(Over::Stopped);
            } else if self.is_replaced && !waits {
                return Ok(Over::Gone);
            } else if !self.source.is_gone && !waits && idle.is_over(at_rest.elapsed()) {
                return Ok(Over::Idle);
            }
            // While messages are on the way, each acknowledgement is a look at all buffers.
            let can_arm = !is_busy && !waits && !self.source.is_gone;
            let is_there = can_arm && self.source.arm();
            let is_armed = can_arm && !is_there && !self.source.is_gone;
            let interval = self.job.flush_interval.unwrap_or(LOOK_AT_LEAST).min(LOOK_AT_LEAST);
            let tick = match (is_there, is_armed) {
                (true, _) => LOOK_SOON,
                (false, true) => interval,
                (false, false) => LOOK_AGAIN,
            };
            tokio::select! {
                Some(done) = self.tasks.join_next() => {
                    let (cpu, lane, done) = done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
                    self.done(cpu, lane, done?);
                }
                Some(renewed) = self.renewal.join_next() => {
                    renewed.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
                }
                guard = self.source.bell.readable(), if is_armed => {
                    if let Ok(mut guard) = guard {
                        guard.clear_ready();
                    }
                }
                () = tokio::time::sleep(tick) => {}
                _ = stop.wait_for(|stop| *stop), if !stopping => {}
            }
            if self.source.is_gone && self.tasks.is_empty() && !self.is_replaced {
                self.reopen();
            }
            if self.job.flush_interval.is_some_and(|interval| flushed.elapsed() >= interval) {
                flushed = Instant::now();
                self.flush();
            }
        }
    }

    /// Whether a sub-buffer is there that cannot be stored now.
    fn waits(&self) -> bool {
        // The dictionary of a channel that was replaced does not come any more.
        let is_lost = self.is_replaced && self.lacks_dictionary;
        !is_lost && self.cpus.iter().any(Cpu::is_refused)
    }

    /// Begins what can be begun of a CPU.
    fn begin(&mut self, cpu: usize) {
        let Some(state) = self.cpus.get_mut(cpu) else { return };
        if state.rests() {
            return;
        }
        let Some(mut lane) = state.lane.take() else { return };
        if state.taken.is_none() && !self.source.reader.has_finished(cpu) {
            state.note_nothing();
            state.lane = Some(lane);
            return;
        }
        let (len, window) = (self.geometry.subbuf_size(), &self.job.window);
        let Some(room) = state.room.take().or_else(|| window.try_enter(len)) else {
            let window = window.clone();
            self.tasks.spawn_local(async move { (cpu, lane, Ok(Done::Entered(window.enter(len).await))) });
            return;
        };
        let Some(taken) = self.take(cpu) else {
            self.put_back(cpu, lane);
            return;
        };
        let (is_known, tries) = self.cpus.get(cpu).map_or((true, 1), |state| (state.is_known, state.tries()));
        if !is_known {
            let timed = self.geometry.timed();
            let proof = if timed { Proof::Packet } else { Proof::Bytes(taken.bytes.clone()) };
            self.tasks.spawn_local(async move {
                let answer = lane.find(taken.number, &proof, tries).await;
                (cpu, lane, Ok(Done::Found(taken, room, answer)))
            });
            return;
        }
        match self.outgoing(cpu, taken, tries) {
            Ok(outgoing) => {
                self.tasks.spawn_local(async move {
                    let done = outgoing.store(&mut lane).await;
                    drop(room);
                    (cpu, lane, done)
                });
            }
            // It stays in the buffer, and the room is for others.
            Err(NoDictionary) => {
                self.put_back(cpu, lane);
                self.refused(cpu);
            }
        }
    }

    /// Puts the lane of a CPU back.
    fn put_back(&mut self, cpu: usize, lane: Lane) {
        if let Some(state) = self.cpus.get_mut(cpu) {
            state.lane = Some(lane);
        }
    }

    /// Leaves a sub-buffer that was taken in its buffer, for a later try.
    fn refused(&mut self, cpu: usize) {
        if let Some(state) = self.cpus.get_mut(cpu) {
            state.note_refused();
            self.source.take_again(cpu);
        }
    }

    /// Returns what is to be stored of a sub-buffer.
    fn outgoing(&mut self, cpu: usize, taken: Taken, tries: u32) -> Result<Outgoing, NoDictionary> {
        let (instance, geometry) = (self.source.instance, self.geometry);
        let Taken { number, position, losses, .. } = taken;
        let (body, packet) = if geometry.timed() {
            let (packet, texts) = self.packet(cpu, taken)?;
            (Bytes::from(packet.bytes), Some((texts, packet.timeline, packet.end)))
        } else {
            (taken.bytes, None)
        };
        Ok(Outgoing { instance, number, geometry, position, losses, body, packet, tries })
    }

    /// Copies the next sub-buffer of a CPU that is not stored yet. Gives back those that are.
    fn take(&mut self, cpu: usize) -> Option<Taken> {
        let state = self.cpus.get_mut(cpu)?;
        if let Some(taken) = state.taken.take() {
            return Some(taken);
        }
        while let Some(found) = self.source.reader.next_finished(cpu) {
            let (number, cut) = (found.number, found.cut());
            if state.stored.is_some_and(|stored| number <= stored) {
                self.source.release(cpu);
                continue;
            }
            let mut bytes = Vec::with_capacity(found.len());
            found.copy_to(&mut bytes);
            // What a writer overwrites meanwhile counts as overwritten.
            if self.geometry.mode() == Mode::NoOverwrite || found.is_whole() {
                let losses = Losses { lost: found.lost, too_big: found.too_big };
                let position = found.begin.wrapping_add(cut as u64);
                let (cut, bytes) = (cut.min(bytes.len()), bytes.into());
                return Some(Taken { number, position, losses, cut, bytes });
            }
        }
        // If there is one, another reader has read past what was taken here: that is settled first.
        self.source.release(cpu);
        None
    }

    /// Makes the packet of a sub-buffer.
    fn packet(&mut self, cpu: usize, taken: Taken) -> Result<(Packet, Rc<Texts>), NoDictionary> {
        let Some(state) = self.cpus.get_mut(cpu) else { return Err(NoDictionary) };
        if self.packets.is_none() {
            let (host, overwrites) = (self.job.host.as_str(), self.geometry.mode() == Mode::Overwrite);
            let (link, files) = (&self.job.link, self.source.files.clone());
            let begun = Packets::begin(link, files, (host, self.channel), self.source.instance, overwrites);
            match begun {
                Ok(begun) => *self.packets = Some(begun),
                Err(error) => {
                    let why = format!("channel '{}': its dictionary cannot be read: {error}", self.channel);
                    self.job.link.troubles.set(self.channel.as_str(), &why);
                    // The daemon may have gone.
                    self.source.arm();
                    self.lacks_dictionary = true;
                    return Err(NoDictionary);
                }
            }
            self.job.link.troubles.clear(self.channel.as_str());
        }
        let Some(packets) = self.packets.as_mut() else { return Err(NoDictionary) };
        self.lacks_dictionary = false;
        let records = taken.bytes.get(taken.cut..).unwrap_or_default();
        // An event that a living daemon does not know is no event. A dead one may have known it.
        if !packets.learn(records) && self.source.is_gone && !self.is_replaced {
            return Err(NoDictionary);
        }
        let maker = state.maker.get_or_insert_with(|| {
            let (end, losses) = state.before;
            let at_first = (taken.number == 0).then(Losses::default);
            PacketMaker::new(cpu as u32, end, losses.or(at_first))
        });
        if taken.cut > 0 {
            maker.note_cut();
        }
        Ok((packets.make(maker, taken.number, taken.losses, records), Rc::clone(&packets.texts)))
    }

    /// Takes the result of a CPU's task.
    fn done(&mut self, cpu: usize, lane: Lane, done: Done) {
        let Some(state) = self.cpus.get_mut(cpu) else { return };
        state.lane = Some(lane);
        match done {
            Done::Entered(room) => state.room = room,
            Done::Found(taken, _, Some(answer)) if answer.is_stored => {
                state.note_stored(taken.number, answer.end.unwrap_or(state.before));
                self.source.release(cpu);
            }
            Done::Found(taken, room, Some(answer)) => {
                state.is_known = true;
                state.before = answer.end.unwrap_or(state.before);
                (state.taken, state.room) = (Some(taken), Some(room));
            }
            Done::Stored(number, end) => {
                state.note_stored(number, end);
                self.source.release(cpu);
            }
            // It stays in the buffer, and the room is for others.
            Done::Found(_, _, None) | Done::Refused => self.refused(cpu),
        }
    }

    /// Sends texts again that the stream drops soon. Packets that are there need them.
    fn renew_texts(&mut self) {
        let is_early = self.renewed.is_some_and(|at| at.elapsed() < LOOK_AT_LEAST);
        let Some(packets) = self.packets.as_ref().filter(|_| !is_early && self.renewal.is_empty()) else {
            return;
        };
        if packets.texts.are_old() {
            self.renewed = Some(Instant::now());
            let texts = Rc::clone(&packets.texts);
            self.renewal.spawn_local(async move { texts.send(1).await.map(drop) });
        }
    }

    /// Looks for the next daemon of the buffers.
    fn reopen(&mut self) {
        self.is_replaced = !self.source.reopen();
        for (cpu, state) in self.cpus.iter_mut().enumerate() {
            // The last daemon may have ended before it was told what is stored.
            if state.taken.is_none() {
                self.source.release(cpu);
            }
            // The next one has the dictionary.
            if !self.source.is_gone {
                state.hurry();
            }
        }
    }

    /// Finishes sub-buffers whose data has waited, unless the daemon has done that by itself.
    fn flush(&self) {
        if self.source.is_gone {
            return;
        }
        let names = ["bytes", "read_bytes", "overwritten_bytes", "discarded_bytes"];
        let Ok(counters) = self.source.files.counters(self.source.instance, &names) else { return };
        let [bytes, gone @ ..] = counters.as_slice() else { return };
        let waits = |(cpu, bytes): (&usize, &u64)| {
            let gone = gone.iter().filter_map(|counter| counter.get(cpu));
            let unread = gone.fold(*bytes, |unread, gone| unread.wrapping_sub(*gone));
            let is_at_rest = self.cpus.get(*cpu).is_some_and(|state| state.lane.is_some());
            is_at_rest && unread > self.geometry.header() as u64 && !self.source.reader.has_finished(*cpu)
        };
        let counters: &BTreeMap<usize, u64> = bytes;
        if counters.iter().any(waits) {
            self.source.files.flush();
        }
    }
}
