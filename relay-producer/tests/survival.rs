//! The daemon is gone and its files are there: writing continues.
//!
//! Later calls find the next daemon with the same files.
//!
//! Without restartable sequences every message goes over the socket, and writing cannot continue.

mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::files::{Files, allowed_cpus, n_cpus, pin, pin_anywhere};
use common::{Daemon, Manners, PATIENCE, geometry};
use relay_producer::{BatchOptions, Channel, RequestError, Transport, Wait, WriteError};
use tempfile::{TempDir, tempdir};

struct Setup {
    dir: TempDir,
    socket: PathBuf,
    manners: Manners,
    files: Arc<Files>,
    daemon: Option<Daemon>,
    channel: Arc<Channel>,
}

impl Setup {
    /// `None`: this process cannot write directly.
    fn new(spec: &'static str) -> Option<Setup> {
        Setup::with(Manners { geometry: spec, ..Manners::default() })
    }

    fn with(manners: Manners) -> Option<Setup> {
        if !relay::ring::writer::AnyExecutor::can_share() {
            return None;
        }
        let dir = tempdir().unwrap();
        let socket = dir.path().join("socket");
        let files = Files::in_dir(dir.path(), geometry(manners.geometry));
        let daemon = Daemon::start_at(&socket, manners.clone());
        daemon.share(&files);
        let channel = Arc::new(Channel::open(&socket, "cpu").unwrap());
        assert_eq!(channel.transport(), Transport::Shared);
        Some(Setup { dir, socket, manners, files, daemon: Some(daemon), channel })
    }

    /// Ends the daemon, and leaves the files as they are.
    fn crash(&mut self) {
        self.daemon = None;
    }

    /// Starts the next daemon, which takes over the files.
    fn take_over(&mut self) {
        let daemon = Daemon::start_at(&self.socket, self.manners.clone());
        daemon.share(&self.files);
        self.daemon = Some(daemon);
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }
}

/// Waits for a condition.
#[track_caller]
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        thread::yield_now();
    }
}

/// Line number `number` of a thread, of 20 bytes.
fn line(thread: usize, number: usize) -> String {
    format!("{thread:>3} {number:>15}\n")
}

/// Returns the numbers of each thread's lines, in the order of all the buffers.
fn numbers(files: &Files, n_threads: usize) -> Vec<Vec<usize>> {
    let mut numbers = vec![Vec::new(); n_threads];
    for cpu in 0..n_cpus() {
        let text = String::from_utf8(files.read(cpu)).unwrap();
        for line in text.lines() {
            let words: Vec<usize> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
            numbers[words[0]].push(words[1]);
        }
    }
    numbers
}

#[test]
fn threads_without_a_daemon_write_all_lines_to_the_files() {
    for spec in ["subbuf-size=64K:n-subbufs=400", "subbuf-size=4K:n-subbufs=4:overwrite"] {
        let Some(mut setup) = Setup::new(spec) else { return };
        let (n_threads, ended) = (4, AtomicBool::new(false));
        let counts: Vec<_> = (0..n_threads).map(|_| AtomicUsize::new(0)).collect();
        let written = || counts.iter().map(|count| count.load(Ordering::SeqCst)).sum::<usize>();
        let channel = Arc::clone(&setup.channel);
        thread::scope(|scope| {
            for (thread, count) in counts.iter().enumerate() {
                let (channel, ended) = (&channel, &ended);
                scope.spawn(move || {
                    let cpus = allowed_cpus();
                    pin(cpus[thread % cpus.len()]);
                    // As many as there is room for.
                    while !ended.load(Ordering::SeqCst) && count.load(Ordering::SeqCst) < 200_000 {
                        let number = count.load(Ordering::SeqCst);
                        assert_eq!(channel.write(line(thread, number).as_bytes()), Ok(()), "{number}");
                        count.store(number + 1, Ordering::SeqCst);
                    }
                });
            }
            until("writing", || written() > 10_000);
            setup.crash();
            let before = written();
            until("writing without a daemon", || written() > before + 100_000);
            ended.store(true, Ordering::SeqCst);
        });
        for (got, count) in numbers(&setup.files, n_threads).iter().zip(&counts) {
            let end = count.load(Ordering::SeqCst);
            assert_eq!(*got, (end - got.len()..end).collect::<Vec<_>>(), "{spec}");
            assert!(spec.contains(":overwrite") || got.len() == end, "{} of {end}", got.len());
        }
        assert_eq!(setup.files.lost(), 0);
    }
}

/// Returns the addresses at which this process has mapped files of a directory.
fn mapped(dir: &TempDir) -> Vec<String> {
    let dir = dir.path().to_str().unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let places = maps.lines().filter(|line| line.contains(dir)).map(|line| line.split(' ').next().unwrap());
    places.map(str::to_owned).collect()
}

#[test]
fn reconnected_producer_keeps_its_buffers_and_rings() {
    let Some(mut setup) = Setup::new("subbuf-size=64:n-subbufs=16") else { return };
    let (cpu, mapped) = (pin_anywhere(), mapped(&setup.dir));
    for round in 1..4 {
        setup.crash();
        setup.files.buffers[cpu].arm();
        (0..2).for_each(|_| setup.channel.write(&[b'x'; 64]).unwrap());
        assert_eq!(setup.files.rings(), 0, "no daemon is there to hear it");
        assert!(matches!(setup.channel.flush(), Err(RequestError::Reopen(_) | RequestError::Disconnected)));
        setup.take_over();
        until("a connection", || setup.channel.flush().is_ok());
        assert_eq!(setup.files.rings(), 1, "what was switched meanwhile");
        assert!(setup.files.buffers[cpu].wake_wanted().is_none());
        assert_eq!(self::mapped(&setup.dir), mapped, "nothing is mapped again");
        assert_eq!(setup.channel.write(&[b'y'; 64]), Ok(()));
        setup.files.buffers[cpu].arm();
        assert_eq!(setup.channel.write(&[b'z'; 64]), Ok(()));
        assert_eq!(setup.files.rings(), 1, "as ever");
        assert_eq!(setup.files.read(cpu).len(), 4 * 64, "round {round}");
        assert_eq!(setup.daemon().accepted(), 1);
    }
}

#[test]
fn message_for_the_socket_is_written_directly_without_a_daemon() {
    let Some(mut setup) = Setup::new("subbuf-size=1M:n-subbufs=3") else { return };
    let cpu = pin_anywhere();
    let long = vec![b'x'; 200_000];
    for noticed in [false, true] {
        setup.crash();
        if noticed {
            assert_eq!(setup.channel.write_to(cpu + 1, b"lost"), Err(WriteError::Disconnected));
        }
        setup.channel.write(&long).unwrap();
        assert_eq!(setup.channel.write_to(cpu + 1, b"lost"), Err(WriteError::Disconnected));
        let counts = setup.channel.write_batch([&long[..], b"after"], BatchOptions::default()).unwrap();
        assert_eq!(counts.written, 2);
        assert!(setup.files.read(cpu) == [&long[..], &long, b"after"].concat());
        setup.take_over();
        until("a connection", || setup.channel.flush().is_ok());
    }
    setup.crash();
    let written = (0..100).take_while(|_| setup.channel.write(&long).is_ok()).count();
    assert_eq!(setup.channel.write(&long), Err(WriteError::Full));
    assert!((9..=15).contains(&written), "{written}");
}

#[test]
fn batch_without_a_daemon_drops_as_with_one() {
    let Some(mut setup) = Setup::new("subbuf-size=64:n-subbufs=2") else { return };
    let cpu = pin_anywhere();
    let mut batch = setup.channel.batch(BatchOptions::default()).unwrap();
    (0..3).for_each(|_| batch.push(&[b'x'; 32]).unwrap());
    setup.crash();
    (0..3).for_each(|_| batch.push(&[b'x'; 32]).unwrap());
    let counts = batch.finish().unwrap();
    assert_eq!((counts.written, counts.dropped), (4, 2));
    // A batch that begins without a daemon, and one that waits a little.
    let started = Instant::now();
    for wait in [Wait::No, Wait::AtMost(Duration::from_millis(50))] {
        let options = BatchOptions { wait, ..BatchOptions::default() };
        let counts = setup.channel.write_batch([[b'x'; 32]; 3], options).unwrap();
        assert_eq!((counts.written, counts.dropped), (0, 3));
    }
    assert!(started.elapsed() >= Duration::from_millis(50), "it waited");
    assert_eq!(setup.files.lost(), 2 + 3 + 3);
    assert_eq!(setup.files.read(cpu), [b'x'; 128]);
}

#[test]
fn batch_waiting_for_room_neither_loses_nor_repeats() {
    let Some(mut setup) = Setup::new("subbuf-size=200:n-subbufs=2") else { return };
    let n_messages = 20_000;
    let cpu = allowed_cpus()[0];
    let batch = thread::spawn({
        let channel = Arc::clone(&setup.channel);
        move || {
            pin(cpu);
            let options = BatchOptions { wait: Wait::Forever, ..BatchOptions::default() };
            channel.write_batch((0..n_messages).map(|number| line(0, number)), options)
        }
    });
    let (mut next, mut crashes) = (0, 0);
    while next < n_messages {
        until("messages", || {
            let got = numbers(&setup.files, 1).remove(0);
            let end = next + got.len();
            assert_eq!(got, (next..end).collect::<Vec<_>>());
            next = end;
            !got.is_empty()
        });
        if next > crashes * n_messages / 10 {
            crashes += 1;
            setup.crash();
            setup.take_over();
        }
    }
    assert!(crashes > 5, "{crashes}");
    let counts = batch.join().unwrap().unwrap();
    assert_eq!((counts.written, counts.dropped, counts.too_big), (n_messages as u64, 0, 0));
    assert_eq!(setup.files.lost(), 0);
}

#[test]
fn unanswered_messages_are_reported_at_the_end_of_a_batch() {
    let hold = Manners { geometry: "subbuf-size=64K", hold: Some(b"h"), ..Manners::default() };
    let Some(mut setup) = Setup::with(hold) else { return };
    let cpus = allowed_cpus();
    let [Some(&here), Some(&other)] = [cpus.first(), cpus.get(1)] else { return };
    pin(here);
    let options = BatchOptions { cpu: Some(other), wait: Wait::Forever };
    let mut batch = setup.channel.batch(options).unwrap();
    batch.push(b"answered").unwrap();
    batch.send().unwrap();
    (0..2).for_each(|_| batch.push(b"held").unwrap());
    batch.send().unwrap();
    setup.daemon().wait_for("the frames", |store| !store.held.is_empty());
    setup.crash();
    batch.push(b"later").unwrap();
    setup.take_over();
    batch.send().unwrap();
    let error = batch.finish().unwrap_err();
    assert!(matches!(error, RequestError::Unanswered { messages: 2 }), "{error}");
    assert_eq!(batch.counts().written, 2, "the first and the last");
    // The messages were not sent again.
    assert_eq!(setup.files.read(other), b"answeredheldheldlater");
    batch.push(b"and so on").unwrap();
    assert_eq!(batch.finish().unwrap().written, 3);
}

#[test]
fn removed_files_are_noticed_and_next_daemon_is_found() {
    for spec in ["subbuf-size=1000", "subbuf-size=1000:overwrite"] {
        let Some(mut setup) = Setup::new(spec) else { return };
        let cpu = pin_anywhere();
        setup.channel.write(b"before").unwrap();
        setup.crash();
        fs::remove_dir_all(setup.dir.path()).unwrap();
        let mut last = Ok(());
        until("the loss to be noticed", || {
            last = setup.channel.write(&[b'x'; 100]);
            last == Err(WriteError::Disconnected)
        });
        fs::create_dir(setup.dir.path()).unwrap();
        setup.files = Files::in_dir(setup.dir.path(), geometry(spec));
        setup.take_over();
        until("a write that finds the new daemon", || setup.channel.write(b"found").is_ok());
        setup.channel.flush().unwrap();
        assert_eq!(setup.files.read(cpu), b"found");
        assert_eq!(setup.channel.transport(), Transport::Shared);
    }
}

#[test]
fn closed_channel_ends_a_batch_waiting_for_a_daemon() {
    let Some(mut setup) = Setup::new("subbuf-size=64:n-subbufs=1") else { return };
    let cpu = pin_anywhere();
    setup.channel.write(&[b'x'; 64]).unwrap();
    let batch = thread::spawn({
        let channel = Arc::clone(&setup.channel);
        move || {
            pin(cpu);
            let options = BatchOptions { wait: Wait::Forever, ..BatchOptions::default() };
            channel.write_batch([[b'y'; 64]], options)
        }
    });
    setup.daemon().wait_for("its wait", |store| store.waits == [u32::MAX]);
    setup.files.close();
    setup.crash();
    let error = batch.join().unwrap().unwrap_err();
    assert!(matches!(error.cause, RequestError::Disconnected), "{error}");
    assert_eq!(error.counts.written, 0);
}
