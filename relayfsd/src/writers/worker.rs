//! One writing thread: does jobs on its CPU, and keeps the batches that wait for room.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Select, SelectTimeoutError};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use relay::ring::buffer::Buffer;
use relay::ring::writer::{AnyExecutor, Message, Outcome, RetriesExhausted, WriteResult, Writer};
use relay::system::cpus;
use relay::wire::frame::{Messages, WriteReply};

use crate::channel::ChannelRef;
use crate::writers::{Batch, Job, Unavailable, UnavailableCause, Wait};

/// Times that a writer yields its CPU and tries again when all tries of a message were interrupted.
const CONTENDED_TRIES_MAX: u32 = 64;

/// Runs a writing thread until all senders of jobs are dropped.
///
/// Calls `room` after each producer's job.
pub(crate) fn run(cpu: Option<usize>, producers: &Receiver<Job>, files: &Receiver<Job>, room: impl Fn()) {
    let mut parked: VecDeque<Progress> = VecDeque::new();
    loop {
        let deadline = parked.iter().filter_map(Progress::deadline).min();
        match next_job(producers, files, deadline) {
            Ok((job, from_producer)) => {
                match pin(cpu) {
                    Ok(()) => work(job, &mut parked, cpu),
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
            Err(RecvTimeoutError::Timeout) => match pin(cpu) {
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
    producers: &Receiver<Job>,
    files: &Receiver<Job>,
    deadline: Option<Instant>,
) -> Result<(Job, bool), RecvTimeoutError> {
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

/// Pins this thread to its CPU again, if the kernel has moved it off.
///
/// When a CPU goes offline, the kernel lets its threads run anywhere, also after the CPU has come back. That the thread
/// runs on its CPU at this moment proves nothing, so this asks for the thread's affinity.
fn pin(cpu: Option<usize>) -> Result<(), Unavailable> {
    let Some(cpu) = cpu else { return Ok(()) };
    let this_thread = Pid::from_raw(0);
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| match sched_getaffinity(this_thread) {
            Ok(now) if now == set => Ok(()),
            _ => sched_setaffinity(this_thread, &set),
        })
        .map_err(|errno| Unavailable { cpu, why: UnavailableCause::NotAllowed(errno) })
}

fn work(job: Job, parked: &mut VecDeque<Progress>, thread_cpu: Option<usize>) {
    if job.is_of_broken() {
        return job.refuse(UnavailableCause::Broken);
    }
    if job.buffer().is_some_and(|(channel, _)| !channel.may_be_written()) {
        return refuse_for_orphans(job, parked, thread_cpu);
    }
    match job {
        Job::Write(batch) => {
            let mut progress = Progress::new(batch, thread_cpu);
            // The sweep for the end of its wait may have come before this job. If it is still to come, it must not find
            // an older batch after this one was written.
            if progress.waits() && progress.is_over(Instant::now()) {
                sweep(parked);
                progress.end_wait();
            }
            // Behind batches that wait for the same buffer: otherwise a producer's messages would change their order.
            let behind = progress.waits()
                && parked.iter().any(|other| other.is_for(&progress.batch.channel, progress.batch.cpu));
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
            let closed = Writer::new(channel.buffer(cpu), AnyExecutor::on(thread_cpu)).close();
            answer(channel, done, closed.map_err(|RetriesExhausted| contended(cpu)));
        }
        Job::Reset { channel, cpu, done } => {
            let reset = channel.read_side(cpu).reader.reset(AnyExecutor::on(thread_cpu));
            retry(parked, &channel, cpu);
            answer(channel, done, reset.map_err(|RetriesExhausted| contended(cpu)));
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
fn refuse_for_orphans(job: Job, parked: &mut VecDeque<Progress>, thread_cpu: Option<usize>) {
    match job {
        Job::Write(batch) if batch.wait != Wait::No => {
            let mut progress = Progress::new(batch, thread_cpu);
            if progress.is_over(Instant::now()) {
                progress.end_wait();
            }
            if progress.resume() {
                progress.finish();
            } else {
                parked.push_back(progress);
            }
        }
        Job::Close { channel, cpu, done } => {
            channel.buffer(cpu).announce_end();
            answer(channel, done, Ok(()));
        }
        job => job.refuse(UnavailableCause::Orphans),
    }
}

/// Finishes the current sub-buffer if it has the only unread data.
///
/// Holds the reader's lock meanwhile. Without the lock, a reader could read the sub-buffer to its end before it is
/// finished. Poll would then report it as readable, and the reader would find nothing, which means the end of the file.
fn flush_unread(channel: &ChannelRef, cpu: usize, thread_cpu: Option<usize>) -> Result<(), Unavailable> {
    let side = channel.read_side(cpu);
    if !side.reader.has_unread_unfinished() || channel.is_broken() {
        return Ok(());
    }
    let flushed = Writer::new(channel.buffer(cpu), AnyExecutor::on(thread_cpu)).flush();
    drop(side);
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
    let mut outcome = act();
    let mut switched = has_switched(outcome);
    if outcome.is_ok_and(|outcome| outcome.placed == WriteResult::Full) {
        let _side = channel.read_side(cpu);
        outcome = act();
        switched |= has_switched(outcome);
    }
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
fn count_dropped(buffer: &Buffer, message: &[u8]) {
    buffer.count_dropped_elsewhere(1);
    buffer.note_dropped(Message::of_wire(buffer.geometry(), message).len_in_ring());
}

fn has_switched(placed: Result<Outcome, RetriesExhausted>) -> bool {
    placed.is_ok_and(|outcome| outcome.switched)
}

/// Counts the messages of a batch as dropped, and passes the cause to its `done`.
pub(crate) fn drop_batch(mut batch: Batch, why: Unavailable) {
    let messages = if batch.single { 1 } else { Messages(&batch.bytes).flatten().count() as u64 };
    batch.channel.buffer(batch.cpu).count_dropped_elsewhere(batch.lost + messages);
    if let Some(done) = batch.done.take() {
        answer(batch.channel, done, Err(why));
    }
}

/// Hands back a batch of which nothing is written.
pub(crate) fn hand_back(batch: Batch) {
    let progress = Progress::new(batch, None);
    progress.note_handed_back();
    progress.finish();
}

/// A batch, and how much of it is written.
struct Progress {
    batch: Batch,
    /// Offset of the next message, with its length before it.
    at: usize,
    counts: WriteReply,
    /// The CPU of the writing thread.
    thread_cpu: Option<usize>,
}

impl Progress {
    fn new(mut batch: Batch, thread_cpu: Option<usize>) -> Progress {
        batch.channel.buffer(batch.cpu).count_dropped_elsewhere(std::mem::take(&mut batch.lost));
        Progress { at: 0, counts: WriteReply::default(), batch, thread_cpu }
    }

    fn waits(&self) -> bool {
        matches!(self.batch.wait, Wait::Until(_) | Wait::Forever)
    }

    /// Lets the batch try once more, but not wait for room.
    fn end_wait(&mut self) {
        let is_returned = self.batch.hand_back && self.batch.wait_end.is_of_daemon();
        self.batch.wait = if is_returned { Wait::HandBack } else { Wait::No };
    }

    fn deadline(&self) -> Option<Instant> {
        if let Wait::Until(deadline) = self.batch.wait { Some(deadline) } else { None }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= now)
            || self.batch.wait_end.is_set()
            || self.batch.channel.is_broken()
    }

    fn is_for(&self, channel: &ChannelRef, cpu: usize) -> bool {
        self.batch.channel.id() == channel.id() && self.batch.cpu == cpu
    }

    /// Writes what has room. Returns false if the batch has to wait for room, otherwise the caller finishes it.
    fn resume(&mut self) -> bool {
        let is_writable = self.batch.channel.may_be_written();
        if self.batch.wait == Wait::HandBack && (!is_writable || self.is_behind_handed_back()) {
            self.note_handed_back();
            return true;
        }
        if !is_writable {
            if self.waits() {
                return false;
            }
            self.drop_messages();
            return true;
        }
        self.batch.channel.note_activity();
        let before = self.counts.written;
        let (switched, finished) = self.write_messages();
        if self.batch.channel.is_broken() {
            // Its files were truncated meanwhile: no reader gets what was written just now.
            self.counts.dropped += self.counts.written - before;
            self.counts.written = before;
        }
        self.batch.channel.buffer(self.batch.cpu).count_written(self.counts.written - before);
        if switched {
            self.batch.channel.wake(self.batch.cpu);
        }
        finished
    }

    /// Reports the result. Messages that it does not count are handed back.
    fn finish(mut self) {
        if let Some(done) = self.batch.done.take() {
            answer(self.batch.channel, done, Ok(self.counts));
        }
    }

    /// Returns whether an earlier batch of the connection was handed back.
    ///
    /// The producer would otherwise send that one again behind this one.
    fn is_behind_handed_back(&self) -> bool {
        // Relaxed: all batches for one buffer are written by one thread.
        self.batch.wait_end.handed_back.load(Ordering::Relaxed)
    }

    /// Notes that the remaining messages are not counted, and are the producer's again.
    fn note_handed_back(&self) {
        self.batch.wait_end.handed_back.store(true, Ordering::Relaxed); // as in `is_behind_handed_back`
    }

    /// Drops the batch.
    fn drop_rest(mut self) {
        self.drop_messages();
        self.finish();
    }

    /// Counts the remaining messages as dropped.
    fn drop_messages(&mut self) {
        let before = self.counts.dropped;
        while let Some((_, next)) = self.message() {
            self.counts.dropped += 1;
            self.at = next;
        }
        self.batch.channel.buffer(self.batch.cpu).count_dropped_elsewhere(self.counts.dropped - before);
    }

    fn write_messages(&mut self) -> (bool, bool) {
        let batch = &self.batch;
        let writer = Writer::new(batch.channel.buffer(batch.cpu), AnyExecutor::on(self.thread_cpu));
        let mut switched = false;
        while let Some((message, next)) = self.message() {
            let mut placed = writer.place(message);
            // A long message takes a good part of a time slice, and a busy CPU interrupts it each time.
            for _ in 0..CONTENDED_TRIES_MAX {
                if placed.is_ok() {
                    break;
                }
                std::thread::yield_now();
                placed = writer.place(message);
            }
            switched |= has_switched(placed);
            if placed.is_ok_and(|outcome| outcome.placed == WriteResult::Full) {
                // Once more with the reader's lock. Room that readers gave back before is seen now. Readers that give
                // back room later find `parked` set.
                let mut side = batch.channel.read_side(batch.cpu);
                placed = writer.place(message);
                switched |= has_switched(placed);
                if placed.is_ok_and(|outcome| outcome.placed == WriteResult::Full) && self.waits() {
                    side.parked = true;
                    return (switched, false);
                }
            }
            let not_taken =
                |outcome: Outcome| matches!(outcome.placed, WriteResult::Full | WriteResult::Closed);
            if batch.wait == Wait::HandBack && placed.is_ok_and(not_taken) {
                // The reply does not count the rest, and so hands it back.
                self.note_handed_back();
                return (switched, true);
            }
            let buffer = batch.channel.buffer(batch.cpu);
            match placed.map(|outcome| outcome.placed) {
                Ok(WriteResult::Written) => self.counts.written += 1,
                Ok(WriteResult::Full | WriteResult::Closed) => {
                    count_dropped(buffer, message);
                    self.counts.dropped += 1;
                }
                Ok(WriteResult::TooBig) => self.counts.too_big += 1,
                Err(RetriesExhausted) => {
                    buffer.count_contended(1);
                    self.counts.dropped += 1;
                }
            }
            self.at = next;
        }
        (switched, true)
    }

    /// Returns the next message and the offset behind it.
    ///
    /// The lengths were checked when the frame came.
    fn message(&self) -> Option<(&[u8], usize)> {
        let rest = self.batch.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
        if self.batch.single {
            return Some((rest, self.batch.bytes.len())); // longer than a frame, so never empty
        }
        let mut messages = Messages(rest);
        let message = messages.next()?.ok()?;
        Some((message, self.batch.bytes.len() - messages.0.len()))
    }
}
