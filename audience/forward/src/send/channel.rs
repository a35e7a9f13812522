//! Forwards a channel: takes finished sub-buffers of each CPU, and gives each back when it is stored.
//!
//! ```text
//! storing.rs   what is begun for a CPU, and what comes of it
//! taking.rs    sub-buffers out of the buffers
//! ```

mod storing;
mod taking;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use audience::Geometry;
use relay::ChannelName;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::cpu::{Cpu, Done};
use super::idle::Idle;
use super::lane::Lane;
use super::link::Link;
use super::packets::Packets;
use super::source::{Closed, FLUSHERS, Files, Source};
use super::spare::Spare;
use super::window::Window;
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
    /// Memory for them.
    pub(crate) spare: Spare,
    /// Whether the daemon has shared the buffers of a channel.
    pub(crate) was_opened: Cell<bool>,
    /// Becomes true at the end: nothing more is taken then.
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
                job.was_opened.set(true);
                tries = 1;
                match Forwarding::new(&job, &channel, source, &mut packets).run(&mut idle).await? {
                    Over::Stopped => break,
                    Over::Idle => CLOSED,
                    Over::Gone if until_gone => break,
                    Over::Gone => Duration::ZERO,
                }
            }
            Err(Closed::Gone(_)) if until_gone => break,
            // The rights to the channels of a daemon are all the same.
            Err(Closed::Forbidden(why)) if !job.was_opened.get() => return Err(Failure::Start(why)),
            Err(closed) => {
                troubles.set(channel.as_str(), &closed.to_string());
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
    /// Says that sub-buffers are stored.
    progress: Rc<Notify>,
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
        let progress = Rc::new(Notify::new());
        let cpu = |cpu| {
            let kind = Kind::Cpu(cpu as u32);
            let subject = Subject { host: job.host.clone(), channel: channel.clone(), kind };
            Cpu::new(Lane::new(&job.link, &subject, instance), &progress)
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
            progress,
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
            } else if self.can_close() && !waits && idle.is_over(at_rest.elapsed()) {
                self.job.spare.clear();
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
                () = self.progress.notified() => {}
                guard = self.source.bell.readable(), if is_armed => {
                    if let Ok(mut guard) = guard {
                        guard.clear_ready();
                    }
                }
                () = tokio::time::sleep(tick) => {}
                _ = stop.wait_for(|stop| *stop), if !stopping => {}
            }
            (0..self.cpus.len()).for_each(|cpu| self.give_back(cpu));
            if self.source.is_gone && self.tasks.is_empty() && !self.is_replaced {
                self.reopen();
            }
            if self.job.flush_interval.is_some_and(|interval| flushed.elapsed() >= interval) {
                flushed = Instant::now();
                self.flush();
            }
        }
    }

    /// Whether the buffers may be closed. A text that is cut short may be stored later: the next one would be taken
    /// for it.
    fn can_close(&self) -> bool {
        !self.source.is_gone && self.renewal.is_empty()
    }

    /// Whether a sub-buffer is there that cannot be stored now.
    fn waits(&self) -> bool {
        // The dictionary of a channel that was replaced does not come any more.
        let is_lost = self.is_replaced && self.lacks_dictionary;
        !is_lost && self.cpus.iter().any(Cpu::is_refused)
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
            if let Some(stored) = state.stored {
                self.source.release_until(cpu, stored);
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
        if !counters.iter().any(waits) {
            return;
        }
        let Err(error) = self.source.files.flush() else { return };
        if error.kind() == ErrorKind::PermissionDenied {
            // The same for all channels, and it stays: it is said once.
            let why = format!(
                "--flush-interval has no effect on {}: {error}; {FLUSHERS}",
                self.job.mount.display()
            );
            self.job.link.troubles.set("--flush-interval", &why);
        }
    }
}
