//! `audience record` of a timed channel: the directory is a CTF trace, which babeltrace2 reads as `audience` does.

use std::fs;
use std::process::Stdio;
use std::thread;

use nix::libc;
use nix::sys::signal::Signal;
use relay_producer::{BatchOptions, Definition, Field, FieldType, Value, Wait};
use relayfs_tests::audience::{Recorder, names, record};
use relayfs_tests::clocks::Clocks;
use relayfs_tests::ctf::{agree, read, trace};
use relayfs_tests::direct::on_cpu;
use relayfs_tests::{Mount, eventually, exit_code, program, run, text, tool};

const CHANNEL: &str = "--channel=app/log:timed:subbuf-size=4K:n-subbufs=4";

/// Writes texts into a CPU's buffer. Returns how many were dropped.
fn send(mount: &Mount, cpu: usize, wait: Wait, texts: impl IntoIterator<Item = String>) -> u64 {
    let channel = mount.channel("app/log");
    let mut batch = channel.batch(BatchOptions { cpu: Some(cpu), wait }).expect("a batch");
    texts.into_iter().for_each(|text| batch.push_text(text.as_bytes()).expect("a text"));
    batch.finish().expect("writing").dropped
}

#[test]
fn babeltrace2_reads_what_audience_reads() {
    let mount = Mount::new(&[CHANNEL]);
    // More than the buffer of CPU 1 takes, so that some are lost before the recording begins.
    let dropped = send(&mount, 1, Wait::No, (0..1000).map(|n| format!("early {n}")));
    assert!(dropped > 0);
    let mut recorder = Recorder::start(mount.point(), &["-c", "app/log"]);
    eventually("a recording", || recorder.dir.join("cpu1").exists());
    thread::scope(|scope| {
        for cpu in 0..2 {
            let mount = &mount;
            scope.spawn(move || {
                let texts = (0..3000).map(|n| format!("{cpu} {n}"));
                assert_eq!(send(mount, cpu, Wait::Forever, texts), 0);
            });
        }
    });
    assert_eq!(recorder.end(Signal::SIGINT), 0, "{}", recorder.said());
    assert_eq!(agree(&recorder.dir), 7000 - dropped as usize);
    assert_eq!(read(&recorder.dir).discarded, dropped);
    assert!(recorder.said().contains(&format!("{dropped} messages dropped")), "{}", recorder.said());
    assert_eq!(mount.stats("app/log")["total.bytes"], mount.stats("app/log")["total.read_bytes"]);
    assert_eq!(names(&recorder.dir), [".lock", ".processes", "cpu0", "cpu1", "metadata"]);
}

#[test]
fn event_defined_meanwhile_is_in_the_metadata() {
    let mount = Mount::new(&[CHANNEL]);
    let mut recorder = Recorder::start(mount.point(), &["-c", "app/log"]);
    send(&mount, 0, Wait::No, ["begin".to_owned()]);
    mount.poke("app/log", "flush");
    eventually("a recording", || recorder.dir.join("cpu0").exists());
    let channel = mount.direct_channel("app/log");
    for name in ["first", "second"] {
        let fields = vec![Field { name: "n".to_owned(), kind: FieldType::U64 }];
        let event =
            channel.define(Definition { name: name.to_owned(), fields, ..Definition::default() }).unwrap();
        on_cpu(0, || event.write(&[Value::U64(7)])).unwrap();
        mount.poke("app/log", "flush");
        // babeltrace2 reads the metadata first: a packet that is written meanwhile may have events that it does not know.
        eventually("the recording is at rest", || mount.is_read("app/log"));
        let trace = read(&recorder.dir);
        assert!(trace.events.iter().any(|event| event.name == name && event.fields.contains("n = 7")));
    }
    assert_eq!(recorder.end(Signal::SIGTERM), 0, "{}", recorder.said());
    assert_eq!(trace(&recorder.dir, &["-o", "cat"]), ["begin", "first n=7", "second n=7"]);
}

/// A recording into which nothing has come is a trace without records.
#[test]
fn empty_recording_is_an_empty_trace() {
    for (args, pieces) in [(&[][..], false), (&["--rotate-interval=1h"], true), (&["--append"], true)] {
        let mount = Mount::new(&[CHANNEL]);
        let args = [&["-c", "app/log"], args].concat();
        let mut recorder = Recorder::start(mount.point(), &args);
        let of = if pieces { recorder.dir.join("000000") } else { recorder.dir.clone() };
        eventually("the metadata", || of.join("metadata").exists());
        assert_eq!(recorder.end(Signal::SIGINT), 0, "{}", recorder.said());
        assert_eq!(trace(&recorder.dir, &["-o", "cat"]), [""; 0]);
        assert_eq!(agree(&of), 0);
        if args.contains(&"--append") {
            // Another recorder, which gets something, begins the next piece.
            send(&mount, 0, Wait::No, ["first".to_owned()]);
            let mut recorder = Recorder::start(mount.point(), &args);
            eventually("a record", || recorder.dir.join("000001/cpu0").exists());
            assert_eq!(recorder.end(Signal::SIGINT), 0, "{}", recorder.said());
            assert_eq!(trace(&recorder.dir, &["-o", "cat"]), ["first"]);
            assert!(!recorder.dir.join("000002").exists());
        }
    }
}

/// The daemon has no memory for a copy: the recorder takes the records from the mapping, each once. Without the socket, by
/// which it would get the mapping, it tries again.
#[test]
fn recorder_without_memory_for_a_copy_records_all_the_same() {
    for is_shared in [true, false] {
        let channel = "--channel=app/log:timed:subbuf-size=256K:n-subbufs=4";
        let mut mount = Mount::new(&["--subbuf-size=4K", "--n-subbufs=2", channel, "--max-memory=2600K"]);
        let text_of = |n: usize| format!("{n:0500}");
        let fill = |mount: &Mount, numbers: std::ops::Range<usize>| {
            for n in numbers {
                assert_eq!(send(mount, n % 2, Wait::No, [text_of(n)]), 0);
            }
        };
        fill(&mount, 0..3000);
        let copy = fs::read(mount.control("app/log", "take/cpu0"));
        assert_eq!(
            copy.unwrap_err().raw_os_error(),
            Some(libc::ENOMEM),
            "the limit leaves no room for a copy"
        );
        if !is_shared {
            fs::remove_file(fs::read_link(mount.path(".relay/socket")).unwrap()).unwrap();
        }
        let mut recorder = Recorder::start(mount.point(), &["-c", "app/log", "--append", "--progress=0"]);
        if is_shared {
            eventually("all of it", || mount.is_read("app/log"));
            assert_eq!(agree(&recorder.dir.join("000000")), 3000);
            fill(&mount, 3000..3010);
        } else {
            eventually("it is tried again", || recorder.said().contains("Cannot allocate memory"));
            let said = recorder.said();
            assert!(said.ends_with("; raise relayfsd --max-memory; it is tried again\n"), "{said}");
            // What it cannot record stays in the buffers, for the daemon that has more memory.
            mount.end(Signal::SIGKILL);
            mount.restart(&["--max-memory=100M"]);
            eventually("all of it", || recorder.dir.join("000000/cpu1").exists());
            fill(&mount, 3000..3010);
        }
        eventually("the rest", || mount.is_read("app/log"));
        assert_eq!(recorder.end(Signal::SIGINT), 0, "{}", recorder.said());
        let mut found = trace(&recorder.dir, &["-o", "cat"]);
        found.sort_unstable();
        assert!(found == (0..3010).map(text_of).collect::<Vec<_>>(), "{} records", found.len());
    }
}

#[test]
fn each_piece_is_a_trace() {
    let mount = Mount::new(&[CHANNEL]);
    for keep in [None, Some("2")] {
        let dir = mount.beside(&format!("kept-{keep:?}"));
        let mut args = vec!["-c", "app/log", "--rotate-size", "8K"];
        args.extend(keep.iter().flat_map(|keep| ["--rotate-count", keep]));
        let mut recorder = Recorder::start_into(mount.point(), &dir, &args);
        for n in 0..80 {
            send(&mount, n % 2, Wait::Forever, (0..100).map(|m| format!("{n} {m}")));
        }
        assert_eq!(recorder.end(Signal::SIGINT), 0, "{}", recorder.said());
        let pieces: Vec<String> = names(&dir).into_iter().filter(|name| !name.starts_with('.')).collect();
        assert!(pieces.iter().all(|name| name.len() == 6), "{pieces:?}");
        let counts: Vec<usize> = pieces.iter().map(|piece| agree(&dir.join(piece))).collect();
        let all = trace(&dir, &["-o", "cat"]);
        assert_eq!(all.len(), counts.iter().sum::<usize>());
        match keep {
            None => {
                assert!(pieces.len() > 2, "{pieces:?}");
                assert_eq!(all.len(), 8000);
            }
            Some(_) => assert_eq!(pieces.len(), 2, "{pieces:?}"),
        }
    }
}

#[test]
fn torn_end_is_cut_by_the_next_recorder_which_refuses() {
    let mount = Mount::new(&[CHANNEL]);
    send(&mount, 0, Wait::No, ["kept".to_owned()]);
    let mut recorder = Recorder::start(mount.point(), &["-c", "app/log", "--duration", "1ms"]);
    assert_eq!(exit_code(recorder.process.wait()), 0, "{}", recorder.said());
    let path = recorder.dir.join("cpu0");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], &whole[..whole.len() - 1]].concat()).unwrap();
    let output = run(record(mount.point(), &recorder.dir, &["-c", "app/log"]).stdin(Stdio::null()));
    assert_eq!(exit_code(output.status), 1);
    assert!(text(&output.stderr).contains("holds a recording already"), "{}", text(&output.stderr));
    assert_eq!(fs::read(&path).unwrap(), whole);
    assert_eq!(agree(&recorder.dir), 1);
}

#[test]
fn damaged_recording_is_read_as_far_as_it_goes() {
    let mount = Mount::new(&[CHANNEL]);
    send(&mount, 0, Wait::No, ["zero".to_owned()]);
    send(&mount, 1, Wait::No, ["one".to_owned()]);
    let mut recorder = Recorder::start(mount.point(), &["-c", "app/log", "--duration", "1ms"]);
    assert_eq!(exit_code(recorder.process.wait()), 0, "{}", recorder.said());
    let path = recorder.dir.join("cpu0");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], b"no packet"].concat()).unwrap();
    let mut command = tool("env", "coreutils");
    let output = run(command.arg(program("audience")).arg("--trace").arg(&recorder.dir).args(["-o", "cat"]));
    assert_eq!((exit_code(output.status), text(&output.stdout)), (1, "zero\none\n".to_owned()));
    assert!(text(&output.stderr).contains("the magic number is missing"), "{}", text(&output.stderr));
}

/// By both clocks, in both modes, while programs write: the same records, and the same times to a millisecond.
#[test]
fn babeltrace2_finds_the_times_that_audience_finds() {
    for (source, mode) in [("tsc", ""), ("tsc", ":overwrite"), ("hpet", ""), ("hpet", ":overwrite")] {
        let clocks = Clocks::new(source);
        let channel = format!("--channel=app/log:timed:subbuf-size=64K:n-subbufs=16{mode}");
        let mount = Mount::prepared(&[&channel], |command| clocks.of(command));
        let mut recorder = Recorder::start(mount.point(), &["-c", "app/log"]);
        thread::scope(|scope| {
            for cpu in 0..2 {
                let mount = &mount;
                scope.spawn(move || {
                    for n in 0..40 {
                        let texts = (0..50).map(|m| format!("{cpu} {n} {m}"));
                        assert_eq!(send(mount, cpu, Wait::No, texts), 0);
                    }
                });
            }
        });
        eventually("a recording", || recorder.dir.join("cpu1").exists());
        assert_eq!(recorder.end(Signal::SIGINT), 0, "{}", recorder.said());
        assert_eq!(agree(&recorder.dir), 4000, "{source}{mode}");
        let micros = |line: &str| -> i64 {
            let time = line.trim_start_matches('[').split([' ', ']']).next().unwrap();
            let (seconds, fraction) = time.split_once('.').unwrap();
            seconds.parse::<i64>().unwrap() * 1_000_000 + fraction[..6].parse::<i64>().unwrap()
        };
        let ours = trace(&recorder.dir, &["-o", "short-unix"]);
        let theirs = run(tool("babeltrace2", "babeltrace2").arg("--clock-seconds").arg(&recorder.dir));
        let theirs = text(&theirs.stdout);
        assert_eq!(ours.len(), theirs.lines().count());
        for (ours, theirs) in ours.iter().zip(theirs.lines()) {
            assert!((micros(ours) - micros(theirs)).abs() < 1000, "{source}{mode}: {ours} {theirs}");
        }
    }
}
