//! Threads that write for other processes: one pinned to each CPU, one for global channels.
//!
//! Beside direct producers only a thread on CPU n writes to buffer n. Other threads hand that thread jobs. It starts with
//! the first one. While no producer has a channel's files, the socket's thread writes frames by itself (`here.rs`).
//!
//! Producers' jobs come through a bounded queue. When that is full, the daemon does not read the socket, and the
//! producer sees its own socket full. Jobs of the mounted files come through another queue, bounded by the number of
//! file operations in flight. They are never refused, since a file operation must not wait for the socket.
//!
//! `daemon` creates the writers; `registry`, `tree` and `socket` hand them jobs. This room knows none of these four.

pub(crate) mod here;
pub(crate) mod worker;

mod closing;
mod progress;

use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, unbounded};
use nix::sched::sched_getcpu;
use relay::ring::writer::WriteResult;
use relay::wire::frame::WriteReply;
use thiserror::Error;

pub(crate) use self::closing::close_all;
use crate::channel::timed::{RecordBytes, Timed};
use crate::channel::{Channel, ChannelRef};
use crate::writers::here::Home;
use crate::writers::worker::Queued;

/// Most producers' jobs that wait for one writer. A job is a frame, or one message.
const QUEUE_LEN: usize = 64;

/// How long a batch waits for room in a full buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Not at all: messages that do not fit are dropped.
    No,
    /// Until this time: messages that found no room by then are dropped.
    Until(Instant),
    /// As long as its producer lives.
    Forever,
    /// No more: messages that do not fit are handed back.
    HandBack,
}

/// Tells the batches of one connection that their wait is over.
#[derive(Default)]
pub(crate) struct WaitEnd {
    /// 0, [`Self::GONE`] or [`Self::ENDING`].
    cause: AtomicU8,
    /// Whether a batch was handed back. Later ones must not be written before it.
    handed_back: AtomicBool,
}

impl WaitEnd {
    const GONE: u8 = 1;
    const ENDING: u8 = 2;

    /// Ends the wait because the producer is gone. Returns whether the batches did wait.
    pub(crate) fn producer_is_gone(&self) -> bool {
        self.set(WaitEnd::GONE)
    }

    /// Ends the wait because the daemon ends. Returns whether the batches did wait.
    pub(crate) fn daemon_ends(&self) -> bool {
        self.set(WaitEnd::ENDING)
    }

    fn set(&self, cause: u8) -> bool {
        // Relaxed: a writer that sees the cause needs to see nothing else, and the queue of the sweep orders the rest.
        self.cause.compare_exchange(0, cause, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    pub(crate) fn is_set(&self) -> bool {
        self.cause.load(Ordering::Relaxed) != 0 // as in `set`
    }

    fn is_of_daemon(&self) -> bool {
        self.cause.load(Ordering::Relaxed) == WaitEnd::ENDING // as in `set`
    }
}

/// Called with the result of writing a producer's messages.
pub(crate) type BatchDone = Box<dyn FnOnce(Result<WriteReply, Unavailable>) + Send>;
/// Called with the result of a job on a buffer.
pub(crate) type Done = Box<dyn FnOnce(Result<(), Unavailable>) + Send>;
/// Called when a queue that was full has room again.
type OnRoom = Arc<OnceLock<Box<dyn Fn() + Send + Sync>>>;

/// Messages for one buffer.
pub(crate) struct Batch {
    pub(crate) channel: ChannelRef,
    /// The buffer's number; less than the channel's `n_bufs`.
    pub(crate) cpu: usize,
    /// A received frame, or one reassembled message.
    pub(crate) bytes: Vec<u8>,
    /// Whether `bytes` is one message. Otherwise each message has its length before it.
    pub(crate) single: bool,
    /// Messages that the producer had to drop by itself.
    pub(crate) lost: u64,
    /// The results for earlier messages of the same frame.
    pub(crate) counts: WriteReply,
    pub(crate) wait: Wait,
    /// Whether the producer takes messages back that still wait when the daemon ends.
    pub(crate) hand_back: bool,
    /// Set when the batch must not wait any more.
    pub(crate) wait_end: Arc<WaitEnd>,
    /// Called with the result, on the writer's thread.
    pub(crate) done: Option<BatchDone>,
}

/// A job for the thread of a buffer's CPU. It calls `done` on that thread.
pub(crate) enum Job {
    /// A producer's messages.
    Write(Batch),
    /// One message from the `msg` file, or a record of the daemon's own, which no client wrote.
    Message {
        channel: ChannelRef,
        cpu: usize,
        bytes: Vec<u8>,
        is_own: bool,
        done: Box<dyn FnOnce(Result<WriteResult, Unavailable>) + Send>,
    },
    /// Finish the current sub-buffer.
    Flush { channel: ChannelRef, cpu: usize, done: Done },
    /// Finish the current sub-buffer, if it has the only unread data when the job's turn comes.
    FlushUnread { channel: ChannelRef, cpu: usize, done: Done },
    /// Close the buffer for direct producers.
    Close { channel: ChannelRef, cpu: usize, done: Done },
    /// Close the buffer of a broken channel, or of one that is gone.
    GiveUp { channel: Arc<Channel>, cpu: usize },
    /// Discard all unread data.
    Reset { channel: ChannelRef, cpu: usize, done: Done },
    /// Room for a waiting batch: a reader made some, or the buffer may be written from now on.
    Room { channel: ChannelRef, cpu: usize },
    /// A producer is gone that may have a batch waiting.
    Sweep,
    /// Marks that all jobs before it are done: the thread drops the sender.
    Barrier { _done: Sender<Infallible> },
}

impl Job {
    /// Returns the job's channel and buffer.
    pub(crate) fn buffer(&self) -> Option<(&ChannelRef, usize)> {
        match self {
            Job::Write(Batch { channel, cpu, .. })
            | Job::Message { channel, cpu, .. }
            | Job::Flush { channel, cpu, .. }
            | Job::FlushUnread { channel, cpu, .. }
            | Job::Close { channel, cpu, .. }
            | Job::Reset { channel, cpu, .. }
            | Job::Room { channel, cpu } => Some((channel, *cpu)),
            Job::GiveUp { .. } | Job::Sweep | Job::Barrier { .. } => None,
        }
    }

    /// Returns whether the job's channel is broken.
    pub(crate) fn is_of_broken(&self) -> bool {
        self.buffer().is_some_and(|(channel, _)| channel.is_broken())
    }

    /// Ends the job unserved because the daemon is ending.
    ///
    /// A producer's messages are handed back, or dropped and counted.
    pub(crate) fn abandon(self) {
        match self {
            Job::Write(batch) if batch.hand_back => worker::hand_back(batch),
            job => job.refuse(UnavailableCause::Ending),
        }
    }

    /// Fails the job for any cause, as [`Self::abandon`] does.
    pub(crate) fn refuse(self, why: UnavailableCause) {
        if let Some((_, cpu)) = self.buffer() {
            self.fail(Unavailable { cpu, why });
        }
    }

    /// Ends a job for an impossible CPU: jobs that write no message succeed, the others fail.
    pub(crate) fn pass_over(self, why: Unavailable) {
        match self {
            Job::Flush { channel, done, .. }
            | Job::FlushUnread { channel, done, .. }
            | Job::Close { channel, done, .. }
            | Job::Reset { channel, done, .. } => worker::answer(channel, done, Ok(())),
            job => job.fail(why),
        }
    }

    /// Fails the job: its CPU cannot be used. A producer's messages are dropped, and counted.
    pub(crate) fn fail(self, why: Unavailable) {
        match self {
            Job::Write(batch) => worker::drop_batch(batch, why),
            Job::Message { channel, cpu, done, .. } => {
                channel.buffer(cpu).count_dropped_elsewhere(1);
                worker::answer(channel, done, Err(why));
            }
            Job::Flush { channel, done, .. }
            | Job::FlushUnread { channel, done, .. }
            | Job::Close { channel, done, .. }
            | Job::Reset { channel, done, .. } => worker::answer(channel, done, Err(why)),
            Job::Room { .. } | Job::GiveUp { .. } | Job::Sweep | Job::Barrier { .. } => {}
        }
    }
}

/// The error that a buffer's CPU cannot be used.
#[derive(Clone, Debug, Error)]
#[error("CPU {cpu} {why}")]
pub(crate) struct Unavailable {
    pub(crate) cpu: usize,
    pub(crate) why: UnavailableCause,
}

/// Why a CPU cannot be used.
#[derive(Clone, Debug)]
pub(crate) enum UnavailableCause {
    /// The kernel does not let a thread of the daemon run there.
    NotAllowed(nix::errno::Errno),
    /// The daemon is ending.
    Ending,
    /// No thread could be started.
    NoThread(Arc<std::io::Error>),
    /// The thread was interrupted each time it tried.
    Contended,
    /// The channel's files are damaged.
    Broken,
    /// The channel has ended.
    Closed,
    /// Orphaned producers write the buffer, and this daemon has no restartable sequences.
    Orphans,
}

impl fmt::Display for UnavailableCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnavailableCause::NotAllowed(errno) => {
                write!(f, "is offline or not allowed to the daemon ({})", errno.desc())
            }
            UnavailableCause::Ending => f.write_str("is not served any more: the daemon is ending"),
            UnavailableCause::Contended => f.write_str("is too busy for the daemon to write there"),
            UnavailableCause::Broken => f.write_str("cannot be written to: the channel is broken"),
            UnavailableCause::Closed => f.write_str("cannot be reset: the channel has ended"),
            UnavailableCause::Orphans => f.write_str(
                "is written directly by producers of an earlier relayfsd, and this one cannot write beside them: it has no \
                 restartable sequences (rseq); end those producers, or start relayfsd where it has (x86-64 or \
                 aarch64, Linux 4.19 or later, rseq(2) allowed)",
            ),
            UnavailableCause::NoThread(error) => write!(f, "has no thread of the daemon's: {error}"),
        }
    }
}

impl Unavailable {
    pub(crate) fn errno(&self) -> i32 {
        match self.why {
            UnavailableCause::Broken => libc::EIO,
            UnavailableCause::Orphans => libc::EBUSY,
            _ => libc::ENXIO,
        }
    }
}

/// The error that a writer's queue is full. It returns the job.
pub(crate) struct Busy(pub(crate) Box<Job>);

/// All writing threads.
pub(crate) struct Writers {
    /// One for each CPU; the last is for global channels.
    queues: Vec<WorkerQueue>,
    on_room: OnRoom,
}

/// The sending end of one thread.
struct WorkerQueue {
    cpu: Option<usize>,
    producers: Sender<Queued>,
    files: Sender<Queued>,
    /// Set when the producers' queue was full. The thread clears the flag and calls `on_room`.
    full: Arc<AtomicBool>,
    /// The receiving ends, until the thread takes them.
    idle: Mutex<Option<(Receiver<Queued>, Receiver<Queued>)>>,
    home: Home,
}

impl Writers {
    /// Creates the queues of threads for `n_cpus` CPUs. No thread runs yet.
    pub(crate) fn new(n_cpus: usize) -> Writers {
        let queue = |cpu| {
            let (producers, producers_end) = bounded(QUEUE_LEN);
            let (files, files_end) = unbounded();
            let idle = Mutex::new(Some((producers_end, files_end)));
            WorkerQueue { cpu, producers, files, full: Arc::default(), idle, home: Home::default() }
        };
        let queues = (0..n_cpus).map(Some).chain([None]).map(queue).collect();
        Writers { queues, on_room: Arc::default() }
    }

    /// Sets the callback for a full queue that has room again. Writers' threads call it.
    pub(crate) fn set_on_room(&self, ring: Box<dyn Fn() + Send + Sync>) {
        // Set once, by the only server.
        let _ = self.on_room.set(ring);
    }

    /// Hands a producer's job to the writer of its buffer. Never waits.
    ///
    /// If the queue is full, the caller gets the job back, and `on_room` is called when the queue has room.
    pub(crate) fn submit(&self, job: Job) -> Result<(), Busy> {
        let Some((queue, job)) = self.started_queue(job) else { return Ok(()) };
        match queue.producers.try_send(job.into()) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(queued)) => {
                // SeqCst, as is the thread's swap: the flag is set before the second try. If the queue is full then
                // too, the thread still has jobs to take. It checks the flag after each job, so it cannot miss the
                // flag.
                queue.full.store(true, Ordering::SeqCst);
                queue.producers.try_send(queued).map_err(|error| Busy(Box::new(error.into_inner().job)))
            }
            Err(TrySendError::Disconnected(queued)) => Err(Busy(Box::new(queued.job))),
        }
    }

    /// Hands a job of a mounted file to the writer of its buffer. Never waits and never refuses.
    pub(crate) fn submit_now(&self, job: Job) {
        if let Some((queue, job)) = self.started_queue(job) {
            // Cannot fail: the thread keeps its receiving ends for ever.
            let _ = queue.files.send(job.into());
        }
    }

    /// Tells a buffer's writer that a reader made room for a waiting batch.
    pub(crate) fn make_room(&self, channel: &ChannelRef, cpu: usize) {
        self.submit_now(Job::Room { channel: channel.clone(), cpu });
    }

    /// Takes an anchor of a timed channel. A clock epoch that begins with it gets a record.
    pub(crate) fn take_anchor(&self, channel: &ChannelRef) {
        if let Some((reason, record)) = channel.timed().and_then(Timed::take_anchor) {
            log::info!("channel {}: a clock epoch begins: {reason}", channel.name());
            self.record(channel, record);
        }
    }

    /// Writes a record of the daemon's own to a timed channel, into the buffer of the caller's CPU.
    pub(crate) fn record(&self, channel: &ChannelRef, record: RecordBytes) {
        let cpu = sched_getcpu().ok().filter(|cpu| *cpu < channel.n_bufs()).unwrap_or(0);
        let name = channel.name().clone();
        let done = Box::new(move |placed: Result<WriteResult, Unavailable>| match placed {
            Ok(WriteResult::Written) => {}
            Ok(_) => log::debug!("channel {name}: no room for a record of the daemon"),
            Err(unavailable) => log::debug!("channel {name}: a record of the daemon: {unavailable}"),
        });
        self.submit_now(Job::Message { channel: channel.clone(), cpu, bytes: record, is_own: true, done });
    }

    /// Has every running writer look for batches whose producers are gone.
    pub(crate) fn sweep(&self) {
        for queue in self.running() {
            let _ = queue.files.send(Job::Sweep.into());
        }
    }

    /// Waits, at most `limit`, until all earlier jobs are done or wait for room.
    pub(crate) fn settle(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let (sender, receiver) = bounded(0);
        for queue in self.running() {
            // Both queues: a sweep before this call must be done too, and a thread takes from either.
            let _ = queue.files.send(Job::Barrier { _done: sender.clone() }.into());
            let _ = queue.producers.send_deadline(Job::Barrier { _done: sender.clone() }.into(), deadline);
        }
        drop(sender);
        // Nothing is ever sent: this ends when the last sender has been dropped.
        let _ = receiver.recv_deadline(deadline);
    }

    fn queue_of(&self, channel: &ChannelRef, cpu: usize) -> Option<&WorkerQueue> {
        if channel.geometry().global() { self.queues.last() } else { self.queues.get(cpu) }
    }

    fn running(&self) -> impl Iterator<Item = &WorkerQueue> {
        self.queues.iter().filter(|queue| queue.idle.lock().unwrap_or_else(PoisonError::into_inner).is_none())
    }

    /// Returns the job's queue, with its thread started.
    ///
    /// Otherwise fails the job and returns `None`.
    fn started_queue(&self, job: Job) -> Option<(&WorkerQueue, Job)> {
        let (channel, cpu) = job.buffer()?;
        let queue = self.queue_of(channel, cpu)?;
        match queue.start(&self.on_room) {
            Ok(()) => Some((queue, job)),
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
        let thread = self.home.thread();
        let name = cpu.map_or("writer".to_owned(), |cpu| format!("writer{cpu}"));
        std::thread::Builder::new().name(name).spawn(move || {
            let room = || {
                if full.swap(false, Ordering::SeqCst)
                    && let Some(ring) = on_room.get()
                {
                    ring();
                }
            };
            worker::run(cpu, &producers, &files, &thread, room);
        })?;
        *idle = None;
        Ok(())
    }
}

/// Flushes every buffer of a channel, and passes the failures to `done`.
pub(crate) fn flush_all(
    writers: &Writers,
    channel: &ChannelRef,
    done: impl FnOnce(Vec<Unavailable>) + Send + 'static,
) {
    on_all(writers, channel, done, |channel, cpu, done| Job::Flush { channel, cpu, done });
}

/// Resets every buffer of a channel, and passes the failures to `done`.
pub(crate) fn reset_all(
    writers: &Writers,
    channel: &ChannelRef,
    done: impl FnOnce(Vec<Unavailable>) + Send + 'static,
) {
    on_all(writers, channel, done, |channel, cpu, done| Job::Reset { channel, cpu, done });
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

/// Collects the results of several jobs, and calls back when the last of them is done.
pub(crate) struct Gather(Arc<Gathered>);

struct Gathered {
    failed: Mutex<Vec<Unavailable>>,
    done: Mutex<Option<AllDone>>,
}

/// Called with the failures of several jobs.
type AllDone = Box<dyn FnOnce(Vec<Unavailable>) + Send>;

impl Gather {
    /// Creates a collection.
    ///
    /// `done` gets the failures when the returned value and all its parts are dropped.
    pub(crate) fn new(done: impl FnOnce(Vec<Unavailable>) + Send + 'static) -> Gather {
        Gather(Arc::new(Gathered { failed: Mutex::default(), done: Mutex::new(Some(Box::new(done))) }))
    }

    /// Returns the callback for one of the jobs.
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
