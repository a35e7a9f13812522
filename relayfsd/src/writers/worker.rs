//! One writing thread: does jobs on its CPU, and keeps the batches that wait for room.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Select, SelectTimeoutError};
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::{Pid, gettid};
use relay::clock::realtime_tick;
use relay::ring::buffer::Buffer;
use relay::ring::writer::{AnyExecutor, Message, Outcome, RetriesExhausted, WriteResult, Writer};
use relay::system::cpus;
use relay::wire::frame::Messages;

use super::progress::Progress;
use crate::channel::{Channel, ChannelRef, Turn};
use crate::writers::{Batch, Job, Unavailable, UnavailableCause, Wait};

/// A job and its place in the order of its buffer.
pub(crate) struct Queued {
    pub(super) job: Job,
    pub(super) turn: Option<Turn>,
}

impl From<Job> for Queued {
    fn from(job: Job) -> Queued {
        Queued { turn: job.buffer().map(|(channel, cpu)| channel.queue(cpu)), job }
    }
}

/// Runs a writing thread until all senders of jobs are dropped.
///
/// Calls `room` after each producer's job. `home` gets the thread's id while it is pinned to its CPU.
pub(crate) fn run(
    cpu: Option<usize>,
    producers: &Receiver<Queued>,
    files: &Receiver<Queued>,
    home: &AtomicI32,
    room: impl Fn(),
) {
    let mut parked: VecDeque<Progress> = VecDeque::new();
    let mut pinned = Pinned { cpu, seen: 0 };
    loop {
        let deadline = parked.iter().filter_map(Progress::deadline).min();
        match next_job(producers, files, deadline) {
            Ok((Queued { job, turn }, from_producer)) => {
                match pinned.check() {
                    Ok(()) => {
                        // Relaxed: the socket thread, which reads it, asks the kernel where this thread may run.
                        home.store(gettid().as_raw(), Ordering::Relaxed);
                        work(job, turn, &mut parked, cpu);
                    }
                    Err(unavailable) => {
                        give_up(&mut parked);
                        // The buffer of an impossible CPU has nothing to flush, to reset or to close.
                        if cpu.is_some_and(|cpu| !cpus::is_possible(cpu)) {
                            job.pass_over(unavailable);
                        } else {
                            job.fail(unavailable);
                        }
                    }
                }
                if from_producer {
                    room();
                }
            }
            Err(RecvTimeoutError::Timeout) => match pinned.check() {
                Ok(()) => sweep(&mut parked),
                Err(_) => give_up(&mut parked),
            },
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Returns the next job, and whether it came from a producer.
///
/// Files' jobs are first: there are few.
fn next_job(
    producers: &Receiver<Queued>,
    files: &Receiver<Queued>,
    deadline: Option<Instant>,
) -> Result<(Queued, bool), RecvTimeoutError> {
    if let Ok(job) = files.try_recv() {
        return Ok((job, false));
    }
    let mut select = Select::new();
    let from_files = select.recv(files);
    select.recv(producers);
    let selected = match deadline {
        Some(deadline) => {
            select.select_deadline(deadline).map_err(|SelectTimeoutError| RecvTimeoutError::Timeout)?
        }
        None => select.select(),
    };
    let from_producer = selected.index() != from_files;
    let job = if from_producer { selected.recv(producers) } else { selected.recv(files) };
    Ok((job.map_err(|_| RecvTimeoutError::Disconnected)?, from_producer))
}

/// The CPU of a writing thread, and the kernel's tick in which the thread was last seen pinned to it.
struct Pinned {
    cpu: Option<usize>,
    seen: u64,
}

impl Pinned {
    /// Pins this thread to its CPU again, if the kernel has moved it off.
    ///
    /// When a CPU goes offline, the kernel lets its threads run anywhere, also after the CPU has come back. That the
    /// thread runs on its CPU at this moment proves nothing, so this asks for the thread's affinity, once a tick.
    fn check(&mut self) -> Result<(), Unavailable> {
        let Some(cpu) = self.cpu else { return Ok(()) };
        let now = realtime_tick();
        if self.seen == now && sched_getcpu() == Ok(cpu) {
            return Ok(());
        }
        let this_thread = Pid::from_raw(0);
        let mut set = CpuSet::new();
        set.set(cpu)
            .and_then(|()| match sched_getaffinity(this_thread) {
                Ok(now) if now == set => Ok(()),
                _ => sched_setaffinity(this_thread, &set),
            })
            .map_err(|errno| Unavailable { cpu, why: UnavailableCause::NotAllowed(errno) })?;
        self.seen = now;
        Ok(())
    }
}

fn work(job: Job, turn: Option<Turn>, parked: &mut VecDeque<Progress>, thread_cpu: Option<usize>) {
    if job.is_of_broken() {
        return job.refuse(UnavailableCause::Broken);
    }
    if job.buffer().is_some_and(|(channel, _)| !channel.may_be_written()) {
        return refuse_for_orphans(job, turn, parked, thread_cpu);
    }
    match job {
        Job::Write(batch) => {
            let mut progress = Progress::new(batch, turn, thread_cpu);
            // The sweep for the end of its wait may have come before this job. If it is still to come, it must not find
            // an older batch after this one was written.
            if progress.waits() && progress.is_over(Instant::now()) {
                sweep(parked);
                progress.end_wait();
            }
            // Behind batches that wait for the same buffer: otherwise a producer's messages would change their order.
            let behind = progress.waits()
                && parked.iter().any(|other| other.is_for(&progress.batch().channel, progress.batch().cpu));
            if behind || !progress.resume() {
                parked.push_back(progress);
            } else {
                progress.finish();
            }
        }
        Job::Message { channel, cpu, bytes, is_own, done } => {
            let buffer = channel.buffer(cpu);
            let writer = Writer::new(buffer, AnyExecutor::on(thread_cpu));
            let placed = settled(&channel, cpu, || writer.place(&bytes));
            match placed {
                // `written` counts the messages of clients.
                Ok(WriteResult::Written) if is_own => {}
                Ok(WriteResult::Written) => buffer.count_written(1),
                Ok(WriteResult::Full | WriteResult::Closed) => count_dropped(buffer, &bytes),
                Err(_) => buffer.count_contended(1),
                Ok(WriteResult::TooBig) => {}
            }
            answer(channel, done, placed);
        }
        Job::FlushUnread { channel, cpu, done } => {
            let flushed = flush_unread(&channel, cpu, thread_cpu);
            answer(channel, done, flushed);
        }
        Job::Flush { channel, cpu, done } => {
            let writer = Writer::new(channel.buffer(cpu), AnyExecutor::on(thread_cpu));
            let flushed = settled(&channel, cpu, || writer.flush()).map(drop);
            answer(channel, done, flushed);
        }
        Job::Close { channel, cpu, done } => {
            let closed = close(&channel, cpu, thread_cpu);
            answer(channel, done, closed.map_err(|RetriesExhausted| contended(cpu)));
        }
        // A reset would open the buffer for appends, which do not look whether it is closed.
        job @ Job::Reset { .. } if job.buffer().is_some_and(|(channel, _)| channel.is_ending()) => {
            job.refuse(UnavailableCause::Closed)
        }
        Job::Reset { channel, cpu, done } => {
            let writing = channel.lock_to_write(cpu);
            let reset = channel.read_side(cpu).reader.reset(AnyExecutor::on(thread_cpu));
            drop(writing);
            retry(parked, &channel, cpu);
            answer(channel, done, reset.map_err(|RetriesExhausted| contended(cpu)));
        }
        Job::GiveUp { channel, cpu } => {
            if let Err(RetriesExhausted) = close(&channel, cpu, thread_cpu) {
                log::debug!("channel {}: {}", channel.name(), contended(cpu));
            }
        }
        Job::Room { channel, cpu } => retry(parked, &channel, cpu),
        Job::Sweep => sweep(parked),
        Job::Barrier { .. } => {}
    }
}

/// Passes a job's result on, and lets go of the channel before.
///
/// A client that has the answer may remove the channel, which must have no holder then.
pub(crate) fn answer<R>(channel: ChannelRef, done: impl FnOnce(R), result: R) {
    drop(channel);
    done(result);
}

/// Refuses a job for a buffer that producers of an earlier daemon write.
///
/// A batch that may wait does so until those producers are gone.
fn refuse_for_orphans(
    job: Job,
    turn: Option<Turn>,
    parked: &mut VecDeque<Progress>,
    thread_cpu: Option<usize>,
) {
    match job {
        Job::Write(batch) if batch.wait != Wait::No => {
            let mut progress = Progress::new(batch, turn, thread_cpu);
            if progress.is_over(Instant::now()) {
                progress.end_wait();
            }
            if progress.resume() {
                progress.finish();
            } else {
                parked.push_back(progress);
            }
        }
        // Its end is announced.
        Job::Close { channel, done, .. } => answer(channel, done, Ok(())),
        job => job.refuse(UnavailableCause::Orphans),
    }
}

/// Closes a buffer while no reader looks whether it is closed: a reader that denies what a peer has stored could open it
/// for a moment, and a sub-buffer that a producer begins then would take messages.
fn close(channel: &Channel, cpu: usize, thread_cpu: Option<usize>) -> Result<(), RetriesExhausted> {
    let _writing = channel.lock_to_write(cpu);
    let _reading = channel.read_side(cpu);
    Writer::new(channel.buffer(cpu), AnyExecutor::on(thread_cpu)).close()
}

/// Finishes the current sub-buffer if it has the only unread data.
///
/// Holds the reader's lock meanwhile. Without the lock, a reader could read the sub-buffer to its end before it is
/// finished. Poll would then report it as readable, and the reader would find nothing, which means the end of the file.
fn flush_unread(channel: &ChannelRef, cpu: usize, thread_cpu: Option<usize>) -> Result<(), Unavailable> {
    let writing = channel.lock_to_write(cpu);
    let side = channel.read_side(cpu);
    if !side.reader.has_unread_unfinished() || channel.is_broken() {
        return Ok(());
    }
    let flushed = Writer::new(channel.buffer(cpu), AnyExecutor::on(thread_cpu)).flush();
    drop((side, writing));
    if has_switched(flushed) {
        channel.wake(cpu);
    }
    flushed.map(drop).map_err(|RetriesExhausted| contended(cpu))
}

fn contended(cpu: usize) -> Unavailable {
    Unavailable { cpu, why: UnavailableCause::Contended }
}

/// Writes to a buffer and wakes its pollers.
///
/// "Full" counts only with the reader's lock held. A reader has its bytes a moment before the room that it gave back
/// can be seen, and a message that it writes then must find that room.
fn settled(
    channel: &ChannelRef,
    cpu: usize,
    act: impl Fn() -> Result<Outcome, RetriesExhausted>,
) -> Result<WriteResult, Unavailable> {
    channel.note_activity();
    let writing = channel.lock_to_write(cpu);
    let mut outcome = act();
    let mut switched = has_switched(outcome);
    if outcome.is_ok_and(|outcome| outcome.placed == WriteResult::Full) {
        let _side = channel.read_side(cpu);
        outcome = act();
        switched |= has_switched(outcome);
    }
    drop(writing);
    // Also if the second try failed: the first may have finished a sub-buffer.
    if switched {
        channel.wake(cpu);
    }
    if channel.is_broken() {
        return Err(Unavailable { cpu, why: UnavailableCause::Broken });
    }
    outcome.map(|outcome| outcome.placed).map_err(|RetriesExhausted| contended(cpu))
}

/// Continues the waiting batches of one buffer in order, until one has to wait again.
fn retry(parked: &mut VecDeque<Progress>, channel: &ChannelRef, cpu: usize) {
    while let Some(first) = parked.iter().position(|progress| progress.is_for(channel, cpu)) {
        if !parked[first].resume() {
            break;
        }
        parked.remove(first).into_iter().for_each(Progress::finish);
    }
}

/// Ends the wait of batches whose time is over or whose producer is gone, and of all when the daemon ends.
fn sweep(parked: &mut VecDeque<Progress>) {
    let now = Instant::now();
    for mut progress in std::mem::take(parked) {
        if progress.is_over(now) {
            progress.end_wait();
            progress.resume();
            progress.finish();
        } else {
            parked.push_back(progress);
        }
    }
}

/// Drops all waiting batches: their CPU cannot be used, and no thread could write them later.
fn give_up(parked: &mut VecDeque<Progress>) {
    parked.drain(..).for_each(Progress::drop_rest);
}

/// Counts a message that found no room.
pub(super) fn count_dropped(buffer: &Buffer, message: &[u8]) {
    buffer.count_full_elsewhere(Message::of_wire(buffer.geometry(), message).len_in_ring());
}

pub(super) fn has_switched(placed: Result<Outcome, RetriesExhausted>) -> bool {
    placed.is_ok_and(|outcome| outcome.switched)
}

/// Counts the messages of a batch as dropped, and passes the cause to its `done`.
///
/// If some of its messages are written already, `done` gets the counts instead.
pub(crate) fn drop_batch(mut batch: Batch, why: Unavailable) {
    if batch.counts.total() > 0 {
        return Progress::new(batch, None, None).drop_rest();
    }
    let messages = if batch.single { 1 } else { Messages(&batch.bytes).flatten().count() as u64 };
    batch.channel.buffer(batch.cpu).count_dropped_elsewhere(batch.lost + messages);
    if let Some(done) = batch.done.take() {
        answer(batch.channel, done, Err(why));
    }
}

/// Hands back a batch of which nothing is written.
pub(crate) fn hand_back(batch: Batch) {
    let progress = Progress::new(batch, None, None);
    progress.note_handed_back();
    progress.finish();
}
