//! The threads that write for others: one for each CPU, pinned to it, and one for global channels.
//!
//! Only a thread on CPU n writes to buffer n; whoever has something to write, flush or reset hands it to that thread.
//! A thread starts when it is first needed and then sleeps until there is work.
//!
//! Producers' jobs come through a bounded queue: when it is full, the socket is not read, and so the producer is told
//! by its own full socket. Jobs of the mounted files come through a queue of their own, bounded by the number of file
//! operations that can be under way; they are never refused, since a file operation must not wait for the socket.
//!
//! `daemon` makes them; `registry`, `tree` and `socket` hand them jobs.
//! This room may not know any of these: a job has the channel with it.

pub(crate) mod worker;

use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, unbounded};
use relay::ring::writer::WriteResult;
use relay::wire::frame::WriteReply;
use thiserror::Error;

use crate::channel::ChannelRef;

/// Producers' jobs that may wait for one writer; each is a frame, or one message at most.
const QUEUE_LEN: usize = 64;

/// How long a batch waits for room in a full buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Not at all: what does not fit is dropped.
    No,
    /// Until then; what has not found room by then is dropped.
    Until(Instant),
    /// As long as its producer lives.
    Forever,
}

/// Told what became of a producer's messages.
pub(crate) type BatchDone = Box<dyn FnOnce(Result<WriteReply, Unavailable>) + Send>;
/// Told whether something was done on a buffer.
pub(crate) type Done = Box<dyn FnOnce(Result<(), Unavailable>) + Send>;
/// Called when a queue that was found full has room again.
type OnRoom = Arc<OnceLock<Box<dyn Fn() + Send + Sync>>>;

/// Messages for one buffer.
pub(crate) struct Batch {
    pub(crate) channel: ChannelRef,
    /// Which buffer; less than the channel's `n_bufs`.
    pub(crate) cpu: usize,
    /// A received frame, or one assembled message.
    pub(crate) bytes: Vec<u8>,
    /// Whether that is one message, or messages with their lengths before them.
    pub(crate) single: bool,
    /// Messages the producer had to drop by itself.
    pub(crate) lost: u64,
    pub(crate) wait: Wait,
    /// Set when the producer is gone: nobody waits any more.
    pub(crate) cancelled: Arc<AtomicBool>,
    /// Told what became of the messages, on the writer's thread.
    pub(crate) done: Option<BatchDone>,
}

/// Something to do on the thread of a buffer's CPU. What is `done` is told there too.
pub(crate) enum Job {
    /// A producer's messages.
    Write(Batch),
    /// One message from the `msg` file.
    Message {
        channel: ChannelRef,
        cpu: usize,
        bytes: Vec<u8>,
        done: Box<dyn FnOnce(Result<WriteResult, Unavailable>) + Send>,
    },
    /// Finish the current sub-buffer.
    Flush { channel: ChannelRef, cpu: usize, done: Done },
    /// The same, if there is still something unread in it, and in no other, when its turn comes.
    FlushUnread { channel: ChannelRef, cpu: usize, done: Done },
    /// End the buffer for producers that write it by themselves.
    Close { channel: ChannelRef, cpu: usize, done: Done },
    /// Forget everything unread.
    Reset { channel: ChannelRef, cpu: usize, done: Done },
    /// A reader made room, for which a batch has been waiting; or the buffer may be written from now on.
    Room { channel: ChannelRef, cpu: usize },
    /// A producer is gone that may have a batch waiting.
    Sweep,
    /// Somebody wants to know that what was handed over before is done; the sender is just dropped.
    Barrier { _done: Sender<Infallible> },
}

impl Job {
    /// The buffer it is for.
    pub(crate) fn buffer(&self) -> Option<(&ChannelRef, usize)> {
        match self {
            Job::Write(Batch { channel, cpu, .. })
            | Job::Message { channel, cpu, .. }
            | Job::Flush { channel, cpu, .. }
            | Job::FlushUnread { channel, cpu, .. }
            | Job::Close { channel, cpu, .. }
            | Job::Reset { channel, cpu, .. }
            | Job::Room { channel, cpu } => Some((channel, *cpu)),
            Job::Sweep | Job::Barrier { .. } => None,
        }
    }

    /// Whether it would use a buffer that somebody has damaged.
    pub(crate) fn is_of_broken(&self) -> bool {
        self.buffer().is_some_and(|(channel, _)| channel.is_broken())
    }

    /// Tells whoever waits for it that the daemon is ending; a producer's messages are dropped, and counted.
    pub(crate) fn abandon(self) {
        self.refuse(UnavailableCause::Ending);
    }

    /// The same for any cause.
    pub(crate) fn refuse(self, why: UnavailableCause) {
        if let Some((_, cpu)) = self.buffer() {
            self.fail(Unavailable { cpu, why });
        }
    }

    /// The same for a CPU that there cannot be: whatever needs no message is done.
    pub(crate) fn pass_over(self, why: Unavailable) {
        match self {
            Job::Flush { done, .. }
            | Job::FlushUnread { done, .. }
            | Job::Close { done, .. }
            | Job::Reset { done, .. } => done(Ok(())),
            job => job.fail(why),
        }
    }

    /// Tells whoever waits for it that the CPU is not to be had; a producer's messages are dropped, and counted.
    pub(crate) fn fail(self, why: Unavailable) {
        match self {
            Job::Write(batch) => worker::drop_batch(batch, why),
            Job::Message { channel, cpu, done, .. } => {
                channel.buffer(cpu).count_dropped_elsewhere(1);
                done(Err(why));
            }
            Job::Flush { done, .. }
            | Job::FlushUnread { done, .. }
            | Job::Close { done, .. }
            | Job::Reset { done, .. } => done(Err(why)),
            Job::Room { .. } | Job::Sweep | Job::Barrier { .. } => {}
        }
    }
}

/// The CPU of a buffer cannot be used.
#[derive(Clone, Debug, Error)]
#[error("CPU {cpu} {why}")]
pub(crate) struct Unavailable {
    pub(crate) cpu: usize,
    pub(crate) why: UnavailableCause,
}

/// Why a CPU cannot be used.
#[derive(Clone, Debug)]
pub(crate) enum UnavailableCause {
    /// The kernel would not let a thread of ours run there.
    NotAllowed(nix::errno::Errno),
    /// The daemon is ending.
    Ending,
    /// No thread could be started.
    NoThread(Arc<std::io::Error>),
    /// The thread was interrupted each time it tried.
    Contended,
    /// The channel's files are damaged.
    Broken,
    /// Producers of an earlier daemon write the buffer, and this one has no restartable sequences.
    Heirs,
}

impl fmt::Display for UnavailableCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnavailableCause::NotAllowed(errno) => {
                write!(f, "is offline or not allowed to the daemon ({})", errno.desc())
            }
            UnavailableCause::Ending => f.write_str("is not served any more: the daemon is ending"),
            UnavailableCause::Contended => f.write_str("is too busy for the daemon to write there"),
            UnavailableCause::Broken => f.write_str("is not to be written to: the channel is broken"),
            UnavailableCause::Heirs => f.write_str(
                "is written directly by producers of an earlier relayfsd, and this one cannot write beside them: it has no \
                 restartable sequences (rseq); end those producers, or start relayfsd where it has (glibc 2.35 or later, without \
                 GLIBC_TUNABLES=glibc.pthread.rseq=0)",
            ),
            UnavailableCause::NoThread(error) => write!(f, "has no thread of the daemon's: {error}"),
        }
    }
}

impl Unavailable {
    pub(crate) fn errno(&self) -> i32 {
        match self.why {
            UnavailableCause::Broken => libc::EIO,
            UnavailableCause::Heirs => libc::EBUSY,
            _ => libc::ENXIO,
        }
    }
}

/// A writer's queue is full; the job comes back.
pub(crate) struct Busy(pub(crate) Job);

/// All writing threads.
pub(crate) struct Writers {
    /// One a CPU, and the last for global channels.
    lanes: Vec<WorkerQueue>,
    on_room: OnRoom,
}

/// The sending end of one thread.
struct WorkerQueue {
    cpu: Option<usize>,
    producers: Sender<Job>,
    files: Sender<Job>,
    /// Set when the producers' queue was found full; the thread clears it and rings.
    full: Arc<AtomicBool>,
    /// The receiving ends, until the thread takes them.
    idle: Mutex<Option<(Receiver<Job>, Receiver<Job>)>>,
}

impl Writers {
    /// Threads for this many CPUs; none of them runs yet.
    pub(crate) fn new(n_cpus: usize) -> Writers {
        let lane = |cpu| {
            let (producers, producers_end) = bounded(QUEUE_LEN);
            let (files, files_end) = unbounded();
            let idle = Mutex::new(Some((producers_end, files_end)));
            WorkerQueue { cpu, producers, files, full: Arc::default(), idle }
        };
        let lanes = (0..n_cpus).map(Some).chain([None]).map(lane).collect();
        Writers { lanes, on_room: Arc::default() }
    }

    /// Sets what is called, on a writer's thread, when a queue that was found full has room again.
    pub(crate) fn set_on_room(&self, ring: Box<dyn Fn() + Send + Sync>) {
        // Set once, by the one server there is.
        let _ = self.on_room.set(ring);
    }

    /// Hands a producer's job to the writer of its buffer. Never waits: if the queue is full, the job comes back, and
    /// `on_room` is called when it makes sense to try again.
    pub(crate) fn submit(&self, job: Job) -> Result<(), Busy> {
        let Some((lane, job)) = self.started_lane(job) else { return Ok(()) };
        match lane.producers.try_send(job) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(job)) => {
                // SeqCst, as is the thread's swap: the flag is set before the second look at the queue. If that is
                // full too, the thread has jobs to take yet, and looks at the flag after each: it cannot miss it.
                lane.full.store(true, Ordering::SeqCst);
                lane.producers.try_send(job).map_err(|error| Busy(error.into_inner()))
            }
            Err(TrySendError::Disconnected(job)) => Err(Busy(job)),
        }
    }

    /// Hands a job of a mounted file to the writer of its buffer. Never waits and never refuses.
    pub(crate) fn submit_now(&self, job: Job) {
        if let Some((lane, job)) = self.started_lane(job) {
            // The thread keeps its receiving ends for ever.
            let _ = lane.files.send(job);
        }
    }

    /// Tells a buffer's writer that a reader made room, for which a batch has been waiting.
    pub(crate) fn make_room(&self, channel: &ChannelRef, cpu: usize) {
        self.submit_now(Job::Room { channel: channel.clone(), cpu });
    }

    /// Lets every running writer look for batches whose producers are gone.
    pub(crate) fn sweep(&self) {
        for lane in self.running() {
            let _ = lane.files.send(Job::Sweep);
        }
    }

    /// Waits, `limit` at most, until all jobs are done that producers handed over before, or wait for room.
    pub(crate) fn settle(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let (sender, receiver) = bounded(0);
        for lane in self.running() {
            let _ = lane.producers.send_deadline(Job::Barrier { _done: sender.clone() }, deadline);
        }
        drop(sender);
        // Nothing is ever sent: it ends when the last of them has been dropped.
        let _ = receiver.recv_deadline(deadline);
    }

    fn running(&self) -> impl Iterator<Item = &WorkerQueue> {
        self.lanes.iter().filter(|lane| lane.idle.lock().unwrap_or_else(PoisonError::into_inner).is_none())
    }

    /// The job's lane, its thread running. Without one the job is told why, and `None` comes back.
    fn started_lane(&self, job: Job) -> Option<(&WorkerQueue, Job)> {
        let (channel, cpu) = job.buffer()?;
        let lane = if channel.geometry().global() { self.lanes.last()? } else { self.lanes.get(cpu)? };
        match lane.start(&self.on_room) {
            Ok(()) => Some((lane, job)),
            Err(error) => {
                job.fail(Unavailable { cpu, why: UnavailableCause::NoThread(Arc::new(error)) });
                None
            }
        }
    }
}

impl WorkerQueue {
    fn start(&self, on_room: &OnRoom) -> std::io::Result<()> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((producers, files)) = idle.as_ref() else { return Ok(()) };
        let (producers, files) = (producers.clone(), files.clone());
        let (cpu, full, on_room) = (self.cpu, self.full.clone(), on_room.clone());
        let name = cpu.map_or("writer".to_owned(), |cpu| format!("writer{cpu}"));
        std::thread::Builder::new().name(name).spawn(move || {
            let room = || {
                if full.swap(false, Ordering::SeqCst)
                    && let Some(ring) = on_room.get()
                {
                    ring();
                }
            };
            worker::run(cpu, &producers, &files, room);
        })?;
        *idle = None;
        Ok(())
    }
}

/// Flushes every buffer of a channel and then tells which could not be.
pub(crate) fn flush_all(
    writers: &Writers,
    channel: &ChannelRef,
    done: impl FnOnce(Vec<Unavailable>) + Send + 'static,
) {
    on_all(writers, channel, done, |channel, cpu, done| Job::Flush { channel, cpu, done });
}

/// Resets every buffer of a channel and then tells which could not be.
pub(crate) fn reset_all(
    writers: &Writers,
    channel: &ChannelRef,
    done: impl FnOnce(Vec<Unavailable>) + Send + 'static,
) {
    on_all(writers, channel, done, |channel, cpu, done| Job::Reset { channel, cpu, done });
}

/// Ends every buffer of a channel for producers that write by themselves, and waits for that, `limit` at most.
pub(crate) fn close_all(writers: &Writers, channel: &ChannelRef, limit: Duration) {
    channel.set_ending();
    let (sender, receiver) = bounded(1);
    let done = move |_| sender.send(()).unwrap_or_default(); // nobody waits any more
    on_all(writers, channel, done, |channel, cpu, done| Job::Close { channel, cpu, done });
    // A CPU that is not to be had is one where nobody writes, or it finds the channel closed at its next switch.
    let _ = receiver.recv_timeout(limit);
}

fn on_all(
    writers: &Writers,
    channel: &ChannelRef,
    done: impl FnOnce(Vec<Unavailable>) + Send + 'static,
    job: impl Fn(ChannelRef, usize, Done) -> Job,
) {
    let gather = Gather::new(done);
    for cpu in 0..channel.n_bufs() {
        writers.submit_now(job(channel.clone(), cpu, gather.part()));
    }
}

/// Waits, without a thread, for several jobs: calls back when the last of its parts is done.
pub(crate) struct Gather(Arc<Gathered>);

struct Gathered {
    failed: Mutex<Vec<Unavailable>>,
    done: Mutex<Option<AllDone>>,
}

/// Told which of several jobs could not be done.
type AllDone = Box<dyn FnOnce(Vec<Unavailable>) + Send>;

impl Gather {
    /// `done` is called when the returned value and all its parts are gone, with the failures among them.
    pub(crate) fn new(done: impl FnOnce(Vec<Unavailable>) + Send + 'static) -> Gather {
        Gather(Arc::new(Gathered { failed: Mutex::default(), done: Mutex::new(Some(Box::new(done))) }))
    }

    /// What one of the jobs calls.
    pub(crate) fn part(&self) -> Done {
        let gathered = self.0.clone();
        Box::new(move |result| {
            if let Err(unavailable) = result {
                gathered.failed.lock().unwrap_or_else(PoisonError::into_inner).push(unavailable);
            }
        })
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        let failed = std::mem::take(self.failed.get_mut().unwrap_or_else(PoisonError::into_inner));
        if let Some(done) = self.done.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            done(failed);
        }
    }
}
