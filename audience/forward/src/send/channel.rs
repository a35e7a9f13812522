//! Forwards a channel: takes finished sub-buffers of each CPU, one at a time, and gives each back when it is stored.
//!
//! ```text
//! of a CPU:   asking --> ready --take, copy--> on the way --acknowledged--> given back, ready
//! ```
//!
//! A reader gives back all that it has taken of a CPU. So a sub-buffer is taken only when the one before is stored.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use audience::{Geometry, Mode};
use bytes::Bytes;
use relay::ChannelName;
use relay::clock::Timeline;
use relay::trace::packet::{Losses, PacketMaker};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::lane::{Lane, Last};
use super::link::Link;
use super::packets::Packets;
use super::source::{Closed, Files, Source};
use crate::error::Failure;
use crate::message::{Headers, Kind, Part, SubBuffer, Subject};
use crate::server::pause;

/// Longest time between two looks at a channel at rest.
const LOOK_AT_LEAST: Duration = Duration::from_secs(1);
/// Time between two looks for the next daemon, and between two tries to read the dictionary.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Shortest and longest time without data after which the buffers are closed: they may be all that keeps the channel.
const IDLE: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(60)];
/// Time for which the buffers are closed. The daemon hears of closes a moment later.
const CLOSED: Duration = Duration::from_millis(200);

/// What all channels share.
pub(crate) struct Job {
    pub(crate) link: Rc<Link>,
    pub(crate) mount: PathBuf,
    pub(crate) host: String,
    pub(crate) flush_interval: Option<Duration>,
    /// Bounds the messages on the way, of all channels.
    pub(crate) window: std::sync::Arc<Semaphore>,
    /// Becomes true when nothing more is to be taken.
    pub(crate) stop: watch::Receiver<bool>,
}

/// Forwards a channel until the job is stopped; with `until_gone`, until the channel has gone.
pub(crate) async fn forward(job: Rc<Job>, channel: ChannelName, until_gone: bool) -> Result<(), Failure> {
    let (mut stop, troubles) = (job.stop.clone(), &job.link.troubles);
    let files = Files::new(&job.mount, &channel);
    let (mut tries, mut packets, mut idle) = (1, None, IDLE[0]);
    while !*stop.borrow() {
        let rest = match Source::open(files.clone()) {
            Ok(source) => {
                troubles.clear(channel.as_str());
                tries = 1;
                match (Forwarding::new(&job, &channel, source, &mut packets)?.run(&mut idle).await)? {
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

/// A copied sub-buffer.
struct Taken {
    number: u64,
    position: u64,
    losses: Losses,
    /// Bytes at the start that are the rest of a record.
    cut: usize,
    bytes: Vec<u8>,
}

/// What became of a CPU's task.
enum Done {
    /// The last message of the subject is known.
    Asked(Last),
    /// There is room for one more message.
    Permitted(OwnedSemaphorePermit),
    /// The sub-buffer with this number is stored.
    Stored(u64),
}

/// A CPU's buffer.
struct Cpu {
    /// `None` while a task has it.
    lane: Option<Lane>,
    /// Whether the last message was asked for.
    is_known: bool,
    /// Number of the last sub-buffer that is stored.
    stored: Option<u64>,
    maker: Option<PacketMaker>,
    /// Stamp and losses with which the packets before end.
    before: (u64, Option<Losses>),
    /// A sub-buffer that was taken, and waits for the dictionary.
    held: Option<Taken>,
}

struct Forwarding<'a> {
    job: &'a Rc<Job>,
    channel: &'a ChannelName,
    source: Source,
    geometry: Geometry,
    packets: &'a mut Option<Packets>,
    cpus: Vec<Cpu>,
    tasks: JoinSet<(usize, Lane, Result<Done, Failure>)>,
    /// Whether other buffers are in the place of these.
    is_replaced: bool,
}

impl<'a> Forwarding<'a> {
    fn new(
        job: &'a Rc<Job>,
        channel: &'a ChannelName,
        source: Source,
        packets: &'a mut Option<Packets>,
    ) -> Result<Forwarding<'a>, Failure> {
        let (geometry, instance) = (*source.reader.geometry(), source.instance);
        *packets = packets.take().filter(|packets| packets.are_of(instance));
        let cpu = |cpu| {
            let kind = Kind::Cpu(cpu as u32);
            let subject = Subject { host: job.host.clone(), channel: channel.clone(), kind };
            let lane = Some(Lane::new(&job.link, &subject, instance));
            Cpu { lane, is_known: false, stored: None, maker: None, before: (0, None), held: None }
        };
        let cpus = (0..source.reader.n_bufs()).map(cpu).collect();
        let tasks = JoinSet::new();
        Ok(Forwarding { job, channel, source, geometry, packets, cpus, tasks, is_replaced: false })
    }

    async fn run(mut self, idle: &mut Duration) -> Result<Over, Failure> {
        let mut stop = self.job.stop.clone();
        let (mut flushed, mut at_rest) = (Instant::now(), Instant::now());
        self.cpus.iter().filter_map(|cpu| cpu.lane.as_ref()).for_each(|lane| {
            self.job.link.troubles.forget(&lane.subject);
        });
        loop {
            let stopping = *stop.borrow();
            if !stopping {
                self.begin_all().await?;
            }
            let is_busy = !self.tasks.is_empty();
            if is_busy {
                (at_rest, *idle) = (Instant::now(), IDLE[0].max(*idle).min(IDLE[1]));
            } else if stopping {
                return Ok(Over::Stopped);
            } else if self.is_replaced {
                return Ok(Over::Gone);
            } else if !self.source.is_gone && at_rest.elapsed() >= *idle && !self.has_held() {
                *idle = (*idle * 2).min(IDLE[1]);
                return Ok(Over::Idle);
            }
            // While messages are on the way, each acknowledgement is a look at all buffers.
            let is_armed = !is_busy && !self.source.is_gone && {
                if self.source.arm() && !self.has_held() {
                    continue;
                }
                !self.source.is_gone
            };
            let interval = self.job.flush_interval.unwrap_or(LOOK_AT_LEAST).min(LOOK_AT_LEAST);
            let tick = if is_armed { interval } else { LOOK_AGAIN };
            tokio::select! {
                Some(done) = self.tasks.join_next() => {
                    self.done(done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())))?;
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
                self.is_replaced = !self.source.reopen();
            }
            if self.job.flush_interval.is_some_and(|interval| flushed.elapsed() >= interval) {
                flushed = Instant::now();
                self.flush();
            }
        }
    }

    fn has_held(&self) -> bool {
        self.cpus.iter().any(|cpu| cpu.held.is_some())
    }

    /// Begins what can be begun of each CPU.
    async fn begin_all(&mut self) -> Result<(), Failure> {
        for cpu in 0..self.cpus.len() {
            let Some(state) = self.cpus.get_mut(cpu) else { continue };
            let is_there = state.held.is_some() || self.source.reader.has_finished(cpu);
            let Some(mut lane) = state.lane.take_if(|_| is_there) else { continue };
            if !state.is_known {
                self.tasks.spawn_local(async move {
                    let last = lane.last().await.map(Done::Asked);
                    (cpu, lane, last)
                });
            } else if let Ok(permit) = self.job.window.clone().try_acquire_owned() {
                self.send(cpu, lane, permit).await?;
            } else {
                let window = self.job.window.clone();
                self.tasks.spawn_local(async move {
                    let permit = window.acquire_owned().await;
                    let closed = |_| Failure::system("wait for room", std::io::Error::other("no window"));
                    (cpu, lane, permit.map(Done::Permitted).map_err(closed))
                });
            }
        }
        Ok(())
    }

    /// Takes the next sub-buffer of a CPU, and begins to store it.
    async fn send(
        &mut self,
        cpu: usize,
        mut lane: Lane,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), Failure> {
        let Some((headers, body)) = self.next(cpu).await? else {
            if let Some(state) = self.cpus.get_mut(cpu) {
                state.lane = Some(lane);
            }
            return Ok(());
        };
        self.tasks.spawn_local(async move {
            let stored = lane.put(&headers, &body).await.map(|_| Done::Stored(headers.number));
            drop(permit);
            (cpu, lane, stored)
        });
        Ok(())
    }

    /// Returns the next message of a CPU, if there is one. Sends texts that must be there before.
    async fn next(&mut self, cpu: usize) -> Result<Option<(Headers, Bytes)>, Failure> {
        let Some(taken) = self.take(cpu) else { return Ok(None) };
        let (number, position, losses) = (taken.number, taken.position, taken.losses);
        let (body, meaning) = if self.geometry.timed() {
            let Some((packet, timeline)) = self.packet(cpu, taken) else { return Ok(None) };
            let Some(packets) = self.packets else { return Ok(None) };
            let meaning = packets.send_texts(packet.len(), timeline).await?;
            (packet, Some(meaning))
        } else {
            (taken.bytes, None)
        };
        let sub_buffer = SubBuffer {
            geometry: self.geometry,
            position,
            lost: losses.lost,
            too_big: losses.too_big,
            meaning,
        };
        let headers = Headers {
            instance: self.source.instance,
            number,
            part: Part::WHOLE,
            sub_buffer: Some(sub_buffer),
        };
        Ok(Some((headers, Bytes::from(body))))
    }

    /// Copies the next sub-buffer of a CPU that is not stored yet. Gives back those that are.
    fn take(&mut self, cpu: usize) -> Option<Taken> {
        let state = self.cpus.get_mut(cpu)?;
        if let Some(held) = state.held.take() {
            return Some(held);
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
                return Some(Taken { number, position, losses, cut: cut.min(bytes.len()), bytes });
            }
        }
        None
    }

    /// Makes the packet of a sub-buffer. `None` if it has to wait for the dictionary, which has not come yet.
    fn packet(&mut self, cpu: usize, taken: Taken) -> Option<(Vec<u8>, Timeline)> {
        let state = self.cpus.get_mut(cpu)?;
        if self.packets.is_none() {
            let (host, overwrites) = (self.job.host.as_str(), self.geometry.mode() == Mode::Overwrite);
            let (link, files) = (&self.job.link, self.source.files.clone());
            let begun = Packets::begin(link, files, (host, self.channel), self.source.instance, overwrites);
            match begun {
                Ok(begun) => *self.packets = Some(begun),
                Err(error) => {
                    let why = format!("channel '{}': its dictionary cannot be read: {error}", self.channel);
                    self.job.link.troubles.set(self.channel.as_str(), &why);
                    state.held = Some(taken);
                    // The daemon may have gone.
                    self.source.arm();
                    return None;
                }
            }
            self.job.link.troubles.clear(self.channel.as_str());
        }
        let packets = self.packets.as_mut()?;
        let records = taken.bytes.get(taken.cut..).unwrap_or_default();
        // An event that a living daemon does not know is no event. A dead one may have known it.
        if !packets.learn(records) && self.source.is_gone && !self.is_replaced {
            state.held = Some(taken);
            return None;
        }
        let maker = state.maker.get_or_insert_with(|| {
            let (end, losses) = state.before;
            let at_first = (taken.number == 0).then(Losses::default);
            PacketMaker::new(cpu as u32, end, losses.or(at_first))
        });
        if taken.cut > 0 {
            maker.note_cut();
        }
        Some(packets.make(maker, taken.number, taken.losses, records))
    }

    /// Takes the result of a CPU's task.
    fn done(&mut self, (cpu, lane, done): (usize, Lane, Result<Done, Failure>)) -> Result<(), Failure> {
        let Some(state) = self.cpus.get_mut(cpu) else { return Ok(()) };
        match done? {
            Done::Asked(last) => {
                if let Some(headers) = last.of(self.source.instance) {
                    let stored = headers.part.is_last();
                    state.stored = if stored { Some(headers.number) } else { headers.number.checked_sub(1) };
                    let losses = headers.sub_buffer.as_ref().filter(|_| stored);
                    let losses = losses.map(|found| Losses { lost: found.lost, too_big: found.too_big });
                    state.before = (last.end().filter(|_| stored).unwrap_or(0), losses);
                    // The counters are younger than the message.
                    let produced = self.source.files.counters(&["produced"]).unwrap_or_default();
                    let produced = produced.first().and_then(|counters| counters.get(&cpu));
                    if produced.is_some_and(|produced| *produced <= headers.number) {
                        return Err(Failure::Another(lane.subject));
                    }
                }
                state.is_known = true;
            }
            Done::Permitted(permit) => drop(permit),
            Done::Stored(number) => {
                state.stored = Some(number);
                self.source.release(cpu);
            }
        }
        state.lane = Some(lane);
        Ok(())
    }

    /// Finishes sub-buffers whose data has waited, unless the daemon has done that by itself.
    fn flush(&self) {
        if self.source.is_gone {
            return;
        }
        let names = ["bytes", "read_bytes", "overwritten_bytes", "discarded_bytes"];
        let Ok(counters) = self.source.files.counters(&names) else { return };
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
