//! Messages that are too long for a direct write go over the socket. Threads that get a signal every 100 us write
//! only such messages here, while their CPUs change. Each call returns, and its result is right. In one of the
//! processes the signal handlers write short messages directly, even if they have interrupted a holder of the
//! socket's locks.

use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use relayfs_tests::known::Pattern;
use relayfs_tests::progress::get;
use relayfs_tests::streams::{Numbers, Received};
use relayfs_tests::stress::{Done, StressWriter};
use relayfs_tests::{DEADLINE, Mount};

/// Number of writing processes.
const PROCESSES: u32 = 2;
/// How long they write.
const DURATION: Duration = Duration::from_secs(1);
/// Least messages that each has tried by then, on a busy machine too.
const ATTEMPTS_MIN: u64 = 20;
/// The shortest message that is not written directly, and the longest one.
const LENGTHS: (usize, usize) = ((64 << 10) + 1, 1 << 20);

#[test]
fn long_messages_under_signals_are_whole_or_refused() {
    let mount = Mount::with_sequences(&["--subbuf-size", "1M", "--n-subbufs", "4"]);
    let n_cpus = (0..).take_while(|cpu| mount.path(&format!("cpu{cpu}")).exists()).count();
    let (pattern, is_over) = (Pattern::default(), AtomicBool::new(false));
    let (done, received) = thread::scope(|scope| {
        let reader = scope.spawn(|| read(&mount, n_cpus, &is_over, &pattern));
        let end = End(&is_over);
        let done = write(&mount);
        drop(end);
        (done, reader.join().expect("reading"))
    });

    let mut attempts = 0;
    for (writer, stream) in done.iter().flat_map(Done::streams) {
        let mut read = Numbers::default();
        let of_writer = received.iter().filter_map(|received| received.writers.get(&writer));
        of_writer.for_each(|of_cpu| read.merge(of_cpu));
        // A message without an answer in time counts as written, and may be dropped.
        let written = get(&stream.numbered);
        assert!(read.end() <= written, "writer {writer}: {} read, {written} written", read.end());
        attempts += get(&stream.attempts);
    }
    let stats = mount.stats("cpu");
    let read: u64 = received.iter().map(|received| received.messages).sum();
    // Contended messages: the daemon's thread was on another CPU, because the CPU was taken offline.
    let lost = stats["total.dropped"] + stats["total.contended"];
    assert_eq!(attempts, read + lost, "read or counted as lost: {stats:?}");
    assert!(read > 0, "{stats:?}");
    println!("{attempts} messages tried, {read} read: {stats:?}");
}

/// Ends the reader when dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn write(mount: &Mount) -> Vec<Done> {
    let start = |number| StressWriter::start(mount, number, LENGTHS.0..=LENGTHS.1, number == 0);
    let mut writers: Vec<StressWriter> = (0..PROCESSES).map(start).collect();
    let begin = Instant::now();
    while begin.elapsed() < DURATION || writers.iter().any(|writer| writer.attempts() < ATTEMPTS_MIN) {
        writers.iter_mut().for_each(StressWriter::assert_running);
        assert!(begin.elapsed() < DURATION + DEADLINE, "a call does not return");
        thread::park_timeout(Duration::from_millis(5));
    }
    writers.iter().for_each(StressWriter::stop);
    writers.into_iter().map(StressWriter::finish).collect()
}

/// Reads the files of all CPUs until no process writes and nothing is left.
fn read<'a>(mount: &Mount, n_cpus: usize, is_over: &AtomicBool, pattern: &'a Pattern) -> Vec<Received<'a>> {
    let open = |cpu| File::open(mount.path(&format!("cpu{cpu}"))).expect("opening a buffer");
    let mut files: Vec<File> = (0..n_cpus).map(open).collect();
    // The later of two long messages may come first, if the daemon is slow.
    let mut received: Vec<Received> =
        (0..n_cpus).map(|_| Received::new(pattern, false).in_any_order_from(LENGTHS.0)).collect();
    let mut bytes = vec![0; 1 << 20];
    loop {
        // Before the read: data written before the flag was set is read.
        let is_last = is_over.load(Ordering::Acquire);
        let mut total = 0;
        for (file, received) in files.iter_mut().zip(&mut received) {
            let got = file.read(&mut bytes).expect("reading a buffer");
            received.take(&bytes[..got]);
            total += got;
        }
        if total == 0 && is_last {
            received.iter_mut().for_each(Received::finish);
            return received;
        }
    }
}
