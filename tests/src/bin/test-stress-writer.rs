//! Writes messages into a channel's buffers from threads under signals and migrations.
//!
//! Four threads write messages of all lengths directly.
//!
//! A signal interrupts each thread every 100 us. The thread itself and another thread move it from CPU to CPU all the
//! time. The process runs until it is asked to stop or is killed. The file PROGRESS has its counts.
//!
//! `test-stress-writer MOUNT CHANNEL PROGRESS NUMBER LEN_MIN LEN_MAX handler|plain`: with `handler`, the signal handler
//! writes a message too. Process NUMBER has the writers from 8 * NUMBER on.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::path::Path;
use std::process::abort;
use std::sync::{Barrier, OnceLock};
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{Pid, gettid};
use relay_producer::{Channel, Transport, TransportChoice, WriteError};
use relayfs_tests::known::Pattern;
use relayfs_tests::numbered::Random;
use relayfs_tests::progress::{Progress, STREAMS, THREADS, get, raise};
use relayfs_tests::ticks::ticks;

/// Time between two signals to a thread.
const TICK: Duration = Duration::from_micros(100);
/// Longest message of a signal handler, which builds it on its stack.
const HANDLER_LEN_MAX: usize = 2048;
/// Messages, on average, between two changes of a thread's CPUs by itself.
const MESSAGES_PER_MOVE: usize = 500;
/// Time between two changes of a thread's CPUs by another thread.
const MOVE_INTERVAL: Duration = Duration::from_micros(300);

/// The data that all threads and their signal handlers use.
struct Job {
    channel: Channel,
    pattern: Pattern,
    progress: Progress,
    number: u32,
    len_min: usize,
    len_max: usize,
    handler_writes: bool,
    /// The CPUs this process may use.
    cpus: Vec<usize>,
}

static JOB: OnceLock<Job> = OnceLock::new();

thread_local! {
    /// The number of this thread. No destructor, so that a signal handler can look at it at any time.
    static THREAD: Cell<usize> = const { Cell::new(THREADS) };
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, mount, channel, progress, number, len_min, len_max, handler] = &args[..] else {
        panic!("wrong arguments: {args:?}");
    };
    let parse = |text: &str| text.parse::<u32>().expect("a number");
    let channel = Channel::builder(mount, channel).transport(TransportChoice::Shared).open();
    let may_use = sched_getaffinity(Pid::from_raw(0)).expect("our own CPUs");
    let job = JOB.get_or_init(|| Job {
        channel: channel.expect("opening the channel"),
        pattern: Pattern::default(),
        progress: Progress::open(Path::new(progress)).expect("the file of our progress"),
        number: parse(number),
        len_min: parse(len_min) as usize,
        len_max: parse(len_max) as usize,
        handler_writes: handler == "handler",
        cpus: (0..CpuSet::count()).filter(|cpu| may_use.is_set(*cpu).unwrap_or(false)).collect(),
    });
    assert_eq!(job.channel.transport(), Transport::Shared);
    let action = SigAction::new(SigHandler::Handler(on_tick), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does only what a signal handler may do, see there.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("a handler");

    let threads: [OnceLock<Pid>; THREADS] = std::array::from_fn(|_| OnceLock::new());
    let started = Barrier::new(THREADS + 1);
    std::thread::scope(|scope| {
        for (thread, tid) in threads.iter().enumerate() {
            let started = &started;
            scope.spawn(move || {
                tid.get_or_init(gettid);
                started.wait();
                write(job, thread);
            });
        }
        started.wait();
        let mut random = Random::new(job.number.into());
        while !job.is_over() {
            std::thread::sleep(MOVE_INTERVAL);
            let tid = *threads[random.below(THREADS)].get().expect("set before the barrier");
            job.change_cpus(tid, &mut random);
        }
    });
    // The flush waits for messages that went to the daemon, and counts those that were lost. A daemon that shares no
    // buffers has received none of this process.
    if let Err(error) = job.channel.flush() {
        assert!(error.to_string().contains("relayfsd has no restartable sequences"), "{error}");
    }
}

fn write(job: &Job, thread: usize) {
    THREAD.set(thread);
    // Dropped at the end of this thread, so that no signal comes later.
    let _ticks = ticks(TICK);
    let (writer, stream) = job.stream(2 * thread);
    let mut random = Random::new(writer.into());
    let mut message = vec![0; job.len_max];
    let mut last_cpu = None;
    while !job.is_over() {
        let len = random_len(&mut random, job.len_min, job.len_max);
        let message = &mut message[..len];
        job.pattern.put(message, writer, get(&stream.numbered) as u32);
        stream.begin(len);
        let written = job.write(message);
        stream.end(len, written);
        if !written && random.below(2) == 0 {
            std::thread::yield_now(); // a reader needs a CPU too
        }
        if random.below(MESSAGES_PER_MOVE) == 0 {
            job.change_cpus(Pid::from_raw(0), &mut random);
        }
        let cpu = sched_getcpu().ok();
        raise(&stream.migrations, u64::from(cpu != last_cpu && last_cpu.is_some()));
        last_cpu = cpu;
    }
}

/// A random length from `min` to `max`, mostly short if short lengths are allowed.
fn random_len(random: &mut Random, min: usize, max: usize) -> usize {
    let most = match random.below(100) {
        _ if min > HANDLER_LEN_MAX => max,
        0..30 => 32,
        30..70 => 256,
        70..95 => 2048,
        _ => max,
    };
    min + random.below(most.clamp(min, max) - min + 1)
}

/// Counts the signal and perhaps writes a message. Takes no lock, allocates nothing, and keeps `errno`.
extern "C" fn on_tick(_: libc::c_int) {
    let errno = Errno::last_raw();
    let thread = THREAD.get();
    if let Some(job) = JOB.get().filter(|_| thread < THREADS) {
        raise(&job.stream(2 * thread).1.signals, 1);
        if job.handler_writes {
            write_in_handler(job, thread);
        }
    }
    Errno::set_raw(errno);
}

fn write_in_handler(job: &Job, thread: usize) {
    let (writer, stream) = job.stream(2 * thread + 1);
    raise(&stream.signals, 1);
    let mut random = Random::new(u64::from(writer) << 32 | get(&stream.attempts));
    let max = job.len_max.min(HANDLER_LEN_MAX);
    let len = random_len(&mut random, job.len_min.min(max), max);
    let mut message = [0; HANDLER_LEN_MAX];
    let message = &mut message[..len];
    job.pattern.put(message, writer, get(&stream.numbered) as u32);
    stream.begin(len);
    let written = job.write(message);
    stream.end(len, written);
}

impl Job {
    fn is_over(&self) -> bool {
        get(&self.progress.common().stop) != 0
    }

    /// A stream, and the number of its writer.
    fn stream(&self, index: usize) -> (u32, &relayfs_tests::progress::Stream) {
        (self.number * STREAMS as u32 + index as u32, self.progress.stream(index))
    }

    /// Writes a message; false if there was no room. Other errors abort, since a handler must not panic.
    fn write(&self, message: &[u8]) -> bool {
        match self.channel.write(message) {
            Ok(()) => true,
            Err(WriteError::Full) => false,
            Err(_) => abort(),
        }
    }

    /// Allows a thread one random CPU, or all.
    fn change_cpus(&self, tid: Pid, random: &mut Random) {
        let choice = random.below(self.cpus.len() + 1);
        let cpus = self.cpus.get(choice).map_or(&self.cpus[..], std::slice::from_ref);
        let mut set = CpuSet::new();
        cpus.iter().for_each(|cpu| set.set(*cpu).expect("one of those in a set"));
        // The thread may have ended, or the CPU may have gone.
        if sched_setaffinity(tid, &set).is_ok() {
            self.progress.common().moves.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
}
