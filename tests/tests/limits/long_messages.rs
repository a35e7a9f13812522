//! Messages that are too long to be written directly go by the socket. Threads that get a signal every 100 us write
//! nothing else here, while their CPUs change: every call returns, and what it says is so. In one of the processes the
//! signal handlers write short messages, directly, whatever of the socket's locks they have interrupted.

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

/// Processes that write.
const PROCESSES: u32 = 2;
/// How long they do.
const DURATION: Duration = Duration::from_secs(1);
/// What each of them has tried by then, also on a machine that has much else to do.
const ATTEMPTS_MIN: u64 = 20;
/// The shortest message that is not written directly, and the longest there is.
const LENGTHS: (usize, usize) = ((64 << 10) + 1, 1 << 20);

#[test]
fn long_messages_under_signals_are_written_whole_or_refused_and_every_call_returns() {
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
        // One that was not answered in time counts as written, and may be dropped after all.
        let written = get(&stream.numbered);
        assert!(read.end() <= written, "writer {writer}: {} read, {written} written", read.end());
        attempts += get(&stream.attempts);
    }
    let stats = mount.stats("cpu");
    let read: u64 = received.iter().map(|received| received.messages).sum();
    // Contended are those for which the daemon's thread was not where it should be: somebody took the CPU offline.
    let lost = stats["total.dropped"] + stats["total.contended"];
    assert_eq!(attempts, read + lost, "read or counted as lost: {stats:?}");
    assert!(read > 0, "{stats:?}");
    println!("{attempts} messages tried, {read} read: {stats:?}");
}

/// Ends the reader when it goes.
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

/// Reads the files of all CPUs until nobody writes any more and nothing is left.
fn read<'a>(mount: &Mount, n_cpus: usize, is_over: &AtomicBool, pattern: &'a Pattern) -> Vec<Received<'a>> {
    let open = |cpu| File::open(mount.path(&format!("cpu{cpu}"))).expect("opening a buffer");
    let mut files: Vec<File> = (0..n_cpus).map(open).collect();
    // The later of two long ones may come first, if the daemon takes its time.
    let mut received: Vec<Received> =
        (0..n_cpus).map(|_| Received::new(pattern, false).in_any_order_from(LENGTHS.0)).collect();
    let mut bytes = vec![0; 1 << 20];
    loop {
        // Before the read: what was written before it was set, is read.
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
