//! `audience record --all`, `--append` and `--dated`: which files there are, and that a recording continues.
//!
//! `recordings_continued` kills recorders and daemons.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use relay_producer::{Channel, Definition, Field, FieldType, Value};
use relayfs_tests::audience::{Recorder, names, record};
use relayfs_tests::ctf::{agree, read, trace};
use relayfs_tests::direct::on_cpu;
use relayfs_tests::{Mount, Process, eventually, exit_code, program, run, text, tool, workspace};

const TIMED: &str = "--channel=app/log:timed:subbuf-size=4K:n-subbufs=4";

/// Writes a text into a timed channel.
#[track_caller]
fn write(mount: &Mount, channel: &str, text: &str) {
    fs::write(mount.control(channel, "msg"), text).expect("writing a text");
}

/// The bytes of a CPU's files, in order.
fn bytes(dir: &Path, cpu: usize) -> String {
    let of_cpu = |name: &String| name.split('.').next() == Some(&format!("cpu{cpu}"));
    names(dir)
        .iter()
        .filter(|name| of_cpu(name))
        .map(|name| fs::read_to_string(dir.join(name)).unwrap())
        .collect()
}

/// Bytes of all files that are no bookkeeping.
fn size(dir: &Path) -> u64 {
    let of = |name: &String| {
        let path = dir.join(name);
        if path.is_dir() { size(&path) } else { fs::metadata(&path).expect("a file").len() }
    };
    names(dir).iter().filter(|name| ![".lock", ".recorder"].contains(&&name[..])).map(of).sum()
}

/// The names of the pieces in a directory.
fn pieces(dir: &Path) -> Vec<String> {
    names(dir).into_iter().filter(|name| name.starts_with('0')).collect()
}

fn texts(dir: &Path) -> Vec<String> {
    trace(dir, &["-o", "cat"])
}

#[track_caller]
fn end(recorder: &mut Recorder) {
    assert_eq!(recorder.end(Signal::SIGTERM), 0, "{}", recorder.said());
}

#[test]
fn all_channels_are_recorded_also_those_made_later() {
    let mut mount = Mount::new(&[TIMED, "--channel=other", "--keep"]);
    let dir = mount.beside("all");
    mount.send_to("other", 1, &[b"before "]);
    write(&mount, "app/log", "before");
    let mut recorder = Recorder::start_into(mount.point(), &dir, &["--all"]);
    eventually("what was there", || mount.is_read("other") && mount.is_read("app/log"));
    let later = Channel::builder(mount.point(), "made/later").create(true).open().expect("a channel");
    later.write_to(0, b"later").expect("writing");
    eventually("what came later", || mount.is_read("made/later"));
    drop(later);
    // The recorder is not what keeps it.
    eventually("the end of the channel", || !mount.control("made/later", "stats").exists());
    // Both continue with the next daemon.
    mount.end(Signal::SIGTERM);
    mount.restart(&[TIMED, "--channel=other", "--keep"]);
    mount.send_to("other", 1, &[b"after"]);
    write(&mount, "app/log", "after");
    eventually("what came with the next daemon", || mount.is_read("other") && mount.is_read("app/log"));
    end(&mut recorder);
    assert_eq!(bytes(&dir.join("other"), 1), "before after");
    assert_eq!(bytes(&dir.join("made/later"), 0), "later");
    assert_eq!(texts(&dir.join("app/log")), ["before", "after"]);
    for said in ["other: 12 bytes recorded, nothing lost", "made/later: 5 bytes recorded", "total: "] {
        assert!(recorder.said().contains(said), "{said}: {}", recorder.said());
    }
    // A directory that holds recordings is continued only if the caller says so.
    let output = run(&mut record(mount.point(), &dir, &["--all"]));
    assert_eq!(exit_code(output.status), 1);
    assert!(text(&output.stderr).contains("holds a recording already"), "{}", text(&output.stderr));
    let mut recorder = Recorder::start_into(mount.point(), &dir, &["--all", "--append"]);
    mount.send_to("other", 1, &[b" and again"]);
    write(&mount, "app/log", "again");
    eventually("what came later", || mount.is_read("other") && mount.is_read("app/log"));
    end(&mut recorder);
    assert_eq!(bytes(&dir.join("other"), 1), "before after and again");
    assert_eq!(texts(&dir.join("app/log")), ["before", "after", "again"]);
}

#[test]
fn appended_recording_grows() {
    let mount = Mount::new(&[TIMED]);
    let (raw, timed) = (mount.beside("raw"), mount.beside("timed"));
    for (n, more) in [&[][..], &["--append"], &["--append", "--rotate-size=1M"]].into_iter().enumerate() {
        mount.send(0, &[format!("{n} ").as_bytes()]);
        write(&mount, "app/log", &n.to_string());
        for (dir, channel) in [(&raw, "cpu"), (&timed, "app/log")] {
            let args = [&["-c", channel, "--duration=1ms"], more].concat();
            let output = run(&mut record(mount.point(), dir, &args));
            assert_eq!(exit_code(output.status), 0, "{}", text(&output.stderr));
        }
        assert_eq!(texts(&timed), (0..=n).map(|n| n.to_string()).collect::<Vec<_>>());
    }
    assert_eq!(bytes(&raw, 0), "0 1 2 ");
    assert_eq!(names(&raw), [".lock", ".recorder", "cpu0", "cpu0.000000", "cpu1", "cpu1.000000"]);
    assert_eq!(pieces(&timed), ["000000", "000001", "000002"]);
    assert_eq!(pieces(&timed).iter().map(|piece| agree(&timed.join(piece))).sum::<usize>(), 3);
    // Two recorders do not write the same files.
    let mut recorder = Recorder::start_into(mount.point(), &raw, &["--append"]);
    mount.send(0, &[b"3"]);
    eventually("the recorder at work", || mount.is_read("cpu"));
    let output = run(&mut record(mount.point(), &raw, &["--append"]));
    assert_eq!(exit_code(output.status), 1);
    assert!(text(&output.stderr).contains("another recorder writes there"), "{}", text(&output.stderr));
    end(&mut recorder);
    assert_eq!(bytes(&raw, 0), "0 1 2 3");
}

#[test]
fn each_start_has_a_dated_directory() {
    let mount = Mount::new(&[TIMED]);
    let dir = mount.beside("dated");
    for n in 0..2 {
        write(&mount, "app/log", &n.to_string());
        let args = ["-c", "app/log", "--dated", "--duration=1ms"];
        let output = run(&mut record(mount.point(), &dir, &args));
        assert_eq!(exit_code(output.status), 0, "{}", text(&output.stderr));
    }
    let found: Vec<String> = names(&dir).into_iter().filter(|name| name.starts_with('2')).collect();
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!([texts(&dir.join(&found[0])), texts(&dir.join(&found[1]))], [["0"], ["1"]]);
    // A trace each, without pieces.
    assert!(found.iter().all(|name| agree(&dir.join(name)) == 1));
    let mut all = Recorder::start_into(mount.point(), &dir, &["--all", "--dated"]);
    write(&mount, "app/log", "2");
    eventually("the third", || mount.is_read("app/log"));
    end(&mut all);
    let newest = names(&dir).into_iter().rfind(|name| name.starts_with('2')).unwrap();
    assert_eq!(texts(&dir.join(newest).join("app/log")), ["2"]);
}

#[test]
fn oldest_files_go_when_there_are_too_many_bytes() {
    let mount = Mount::new(&[TIMED, "--channel=raw:subbuf-size=4K:n-subbufs=4"]);
    let dir = mount.beside("limited");
    let args = ["--all", "--total-size=64K", "--rotate-size=8K"];
    let mut recorder = Recorder::start_into(mount.point(), &dir, &args);
    let line = "x".repeat(1000);
    for n in 0..200 {
        mount.send_to("raw", 0, &[format!("{n:03} {line}").as_bytes()]);
        write(&mount, "app/log", &format!("{n:03} {line}"));
        eventually("a message", || mount.is_read("raw") && mount.is_read("app/log"));
    }
    end(&mut recorder);
    let total = size(&dir);
    assert!((32 << 10..=64 << 10).contains(&total), "{total}");
    // The newest are there, without a gap.
    let numbers =
        |text: &str| -> Vec<u32> { text.split(&line).filter_map(|n| n.trim().parse().ok()).collect() };
    for found in [numbers(&bytes(&dir.join("raw"), 0)), numbers(&texts(&dir.join("app/log")).join("\n"))] {
        let first = found[0];
        assert!(first > 100, "{found:?}");
        assert_eq!(found, (first..200).collect::<Vec<_>>());
    }
}

#[test]
fn files_are_rotated_by_time() {
    let mount = Mount::new(&[TIMED]);
    for (channel, dir) in [("cpu", mount.beside("raw")), ("app/log", mount.beside("timed"))] {
        let args = ["-c", channel, "--rotate-interval=10ms", "--rotate-count=3"];
        let mut recorder = Recorder::start_into(mount.point(), &dir, &args);
        let numbered = || {
            let found = if dir.is_dir() { names(&dir) } else { Vec::new() };
            found.into_iter().filter(|name| name.contains("00000")).collect::<Vec<_>>()
        };
        let mut sent = 0;
        // The first has gone, and the last has a number.
        while !numbered().iter().any(|name| name.ends_with('4')) {
            match channel {
                "cpu" => drop(mount.send(0, &[format!("{sent}\n").as_bytes()])),
                _ => write(&mount, channel, &sent.to_string()),
            }
            sent += 1;
            mount.poke(channel, "flush");
            eventually("a message", || mount.is_read(channel));
        }
        end(&mut recorder);
        assert!(numbered().len() <= 2 * 3, "{:?}", numbered());
        let found = if channel == "cpu" { bytes(&dir, 0) } else { texts(&dir).join("\n") };
        let found: Vec<u32> = found.lines().map(|line| line.parse().expect("a number")).collect();
        assert_eq!(found, (found[0]..sent).collect::<Vec<_>>());
    }
}

/// The ids of its events mean other events then.
#[test]
fn channel_that_is_created_again_begins_another_piece() {
    let mut mount = Mount::new(&[TIMED]);
    let dir = mount.beside("again");
    let mut recorder = Recorder::start_into(mount.point(), &dir, &["-c", "app/log"]);
    for name in ["first", "second"] {
        let channel = mount.direct_channel("app/log");
        let fields = vec![Field { name: "n".to_owned(), kind: FieldType::U64 }];
        let definition = Definition { name: name.to_owned(), fields, ..Definition::default() };
        let event = channel.define(definition).expect("an event");
        on_cpu(0, || event.write(&[Value::U64(7)])).expect("writing");
        eventually("the event", || mount.is_read("app/log"));
        drop((event, channel));
        if name == "first" {
            mount.end(Signal::SIGTERM);
            mount.restart(&[TIMED]);
        }
    }
    end(&mut recorder);
    assert_eq!(pieces(&dir), ["000000", "000001"]);
    for (piece, name) in pieces(&dir).iter().zip(["first", "second"]) {
        let found: Vec<String> = read(&dir.join(piece)).events.into_iter().map(|event| event.name).collect();
        assert_eq!(found, [name]);
    }
    let mut convert = tool("env", "coreutils");
    let output = run(convert.arg(program("audience")).args(["convert", "--json", "-o", "-"]).arg(&dir));
    assert_eq!(exit_code(output.status), 0, "{}", text(&output.stderr));
    let found = text(&output.stdout);
    assert!(found.contains("first") && found.contains("second"), "{found}");
}

/// The unit's command, with the values that systemd would put in.
#[test]
fn command_of_the_unit_records_and_ends_at_sigterm() {
    let mount = Mount::new(&[TIMED]);
    let (dir, point) = (mount.beside("logs"), mount.point().to_str().expect("UTF-8").to_owned());
    let unit = fs::read_to_string(workspace().join("audience/audience-record@.service")).expect("the unit");
    let value =
        |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("{key}"));
    let options = value("Environment=\"OPTIONS=").trim_end_matches('"');
    let command = value("ExecStart=/usr/local/bin/audience ");
    let words = command
        .replace("%f", &point)
        .replace("${LOGS_DIRECTORY}", dir.to_str().expect("UTF-8"))
        .replace("$OPTIONS", options);
    assert!(!words.contains(['%', '$']), "{words}");
    for text in ["one", "two"] {
        write(&mount, "app/log", text);
        let mut command = Command::new(program("audience"));
        command.args(words.split_whitespace()).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut service = Process::start(&mut command);
        eventually("a record", || mount.is_read("app/log"));
        service.signal(Signal::SIGTERM);
        let status = service.wait();
        assert_eq!(exit_code(status), 0, "{}", service.stderr());
    }
    assert_eq!(texts(&dir.join("app/log")), ["one", "two"]);
}
