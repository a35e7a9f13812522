//! `audience` on timed channels: one order over all CPUs, formats, filters, losses, and what is consumed.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;
use relay_producer::{BatchOptions, Definition, Field, FieldType, Level, Value};
use relayfs_tests::audience::{Follower, audience};
use relayfs_tests::direct::on_cpu;
use relayfs_tests::{Mount, Process, complaint, eventually, exit_code, program, run, text, tool, workspace};

const CHANNEL: &str = "--channel=app/log:timed:subbuf-size=4K:n-subbufs=4";

/// Writes a text into a CPU's buffer.
#[track_caller]
fn say(mount: &Mount, cpu: usize, text: &str) {
    let channel = mount.channel("app/log");
    let mut batch =
        channel.batch(BatchOptions { cpu: Some(cpu), ..BatchOptions::default() }).expect("a batch");
    batch.push_text(text.as_bytes()).expect("a text");
    assert_eq!(batch.finish().expect("writing").written, 1, "{text}");
}

/// Writes texts into both CPUs' buffers in turn.
fn say_in_turn(mount: &Mount, texts: &[&str]) {
    texts.iter().enumerate().for_each(|(n, text)| say(mount, n % 2, text));
}

/// Runs `audience -c app/log ARGS`.
fn read(mount: &Mount, args: &[&str]) -> Output {
    run(audience(mount.point(), &[&["-c", "app/log"], args].concat()).stdin(Stdio::null()))
}

/// What `audience -c app/log -o cat ARGS` prints, if it succeeds and complains about nothing.
#[track_caller]
fn texts(mount: &Mount, args: &[&str]) -> String {
    let output = read(mount, &[&["-o", "cat"], args].concat());
    assert_eq!((exit_code(output.status), text(&output.stderr)), (0, String::new()));
    text(&output.stdout)
}

#[test]
fn records_of_all_cpus_come_in_one_order_and_once() {
    let mount = Mount::new(&[CHANNEL]);
    let numbers: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    say_in_turn(&mount, &numbers.iter().map(String::as_str).collect::<Vec<_>>());
    let output = read(&mount, &[]);
    assert_eq!(text(&output.stderr), "");
    let stdout = text(&output.stdout);
    let lines: Vec<&str> = stdout.lines().collect();
    let found: Vec<&str> = lines.iter().map(|line| line.rsplit(": ").next().unwrap()).collect();
    assert_eq!(found, numbers);
    for (n, line) in lines.iter().enumerate() {
        let words: Vec<&str> = line.split(' ').collect();
        assert!(words[0].len() >= "2026-11-22T18:00:00.123456Z".len() && words[0].contains('T'), "{line}");
        assert_eq!(words[1], format!("cpu{}", n % 2));
        assert!(words[2].contains(&format!("[{}]", std::process::id())), "{line}");
    }
    assert_eq!(texts(&mount, &[]), "", "it is consumed");
}

#[test]
fn snapshot_and_state_show_the_same_and_consume_nothing() {
    let mut mount = Mount::new(&[CHANNEL]);
    say_in_turn(&mount, &["one", "two", "three", "four"]);
    let lines = text(&read(&mount, &["--snapshot"]).stdout);
    assert_eq!(lines.lines().count(), 4);
    assert_eq!(text(&read(&mount, &["--snapshot"]).stdout), lines);
    assert_eq!(
        fs::read_to_string(mount.control("app/log", "trace")).unwrap(),
        lines.replace("+00:00 ", "Z ")
    );
    mount.end(Signal::SIGKILL);
    let state = || {
        let mut command = tool("env", "coreutils");
        command.arg(program("audience")).arg("--state").arg(mount.point()).args(["-c", "app/log"]);
        text(&run(&mut command).stdout)
    };
    assert_eq!((state(), state()), (lines.clone(), lines));
}

/// What names events and processes is damaged, cut or gone: the records are shown all the same.
#[test]
fn left_records_are_shown_without_their_names() {
    let mut mount = Mount::new(&[]);
    let dir = mount.beside("state");
    mount.end(Signal::SIGTERM);
    mount.restart(&[CHANNEL, "--state-dir", dir.to_str().unwrap()]);
    let channel = mount.channel("app/log");
    let definition = Definition { name: "begun".to_owned(), ..Definition::default() };
    let event = channel.define(definition).unwrap();
    event.write(&[]).unwrap();
    channel.text("text").unwrap();
    channel.sync().unwrap();
    mount.end(Signal::SIGKILL);
    let state = || {
        let mut command = tool("env", "coreutils");
        command.arg(program("audience")).arg("--state").arg(&dir).args(["-c", "app/log", "-o", "cat"]);
        let output = run(&mut command);
        assert_eq!(exit_code(output.status), 0, "{output:?}");
        text(&output.stdout)
    };
    assert_eq!(state(), "begun\ntext\n");
    let files: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    let of = |end: &str| {
        let found = files.iter().filter(|path| path.to_str().unwrap().ends_with(end));
        found.cloned().collect::<Vec<_>>()
    };
    let names = [of(".events"), of(".processes")].concat();
    assert_eq!(names.len(), 2, "{files:?}");
    for path in &names {
        let whole = fs::read(path).unwrap();
        fs::write(path, [&whole[..whole.len() - 3], b"\xff\0garbage \x1b[0m\n/* relay event 256"].concat())
            .unwrap();
    }
    let shown = state();
    assert!(shown.ends_with("text\n") && shown.lines().count() == 2 && !shown.contains('\u{1b}'), "{shown}");
    names.iter().for_each(|path| fs::remove_file(path).unwrap());
    assert_eq!(state().lines().count(), 2);
}

#[test]
fn options_that_leave_records_out_consume_nothing() {
    let mount = Mount::new(&[CHANNEL]);
    let channel = mount.channel("app/log");
    channel.log(Level::Error, "app::db", "it failed").unwrap();
    channel.log(Level::Info, "app::web", "it began").unwrap();
    channel.text("no level").unwrap();
    channel.sync().unwrap();
    let (pid, tid) = (std::process::id().to_string(), nix::unistd::gettid().to_string());
    let all = "it failed\nit began\nno level\n";
    for (args, expected) in [
        (&["-n", "1"][..], "no level\n"),
        (&["--lines=2"], "it began\nno level\n"),
        (&["-g", "it .*d$"], "it failed\n"),
        (&["-p", "warn"], "it failed\n"),
        (&["--level", "3"], "it failed\nit began\n"),
        (&["--target", "app::w"], "it began\n"),
        (&["--pid", &pid], all),
        (&["--pid", &tid], all),
        (&["--pid", "1"], ""),
        (&["-S", "-5min"], all),
        (&["-S", "now"], ""),
        (&["-U", "yesterday"], ""),
        (&["--since=@0", "--until=2999-01-01", "--utc"], all),
        (&["-g", "it", "-n", "1"], "it began\n"),
        (&[], all),
        (&[], ""),
    ] {
        assert_eq!(texts(&mount, args), expected, "{args:?}");
    }
}

#[test]
fn output_that_goes_away_costs_nothing() {
    let mount = Mount::new(&[CHANNEL]);
    say_in_turn(&mount, &["one", "two"]);
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let mut command = audience(mount.point(), &["-c", "app/log"]);
    let status = command.stdin(Stdio::null()).stdout(writer).status().unwrap();
    assert_eq!(exit_code(status), 0);
    assert_eq!(texts(&mount, &[]), "one\ntwo\n");
}

#[test]
fn raw_channels_refuse_what_only_timed_ones_can() {
    let mount = Mount::new(&[]);
    mount.send(0, &[b"raw\n"]);
    for args in [&["-p", "info"][..], &["-o", "json"], &["--utc"], &["-n", "1"], &["-f", "--window", "1s"]] {
        let output = run(audience(mount.point(), args).stdin(Stdio::null()));
        let option = args.iter().find(|arg| **arg != "-f").unwrap();
        assert_eq!(exit_code(output.status), 1, "{option}");
        let said = text(&output.stderr);
        assert!(said.starts_with("audience: channel 'cpu' is raw: --"), "{said}");
        assert!(said.ends_with(" needs a timed channel; relayfsd --channel cpu:timed makes one\n"), "{said}");
    }
    let output = run(audience(mount.point(), &[]).stdin(Stdio::null()));
    assert_eq!(text(&output.stdout), "raw\n");
}

#[test]
fn wrong_times_and_patterns_are_wrong_usage() {
    for args in [&["-S", "noon"][..], &["-g", "("], &["-p", "loud"], &["-o", "xml"]] {
        let output = run(tool("env", "coreutils").arg(program("audience")).args(args));
        assert_eq!(exit_code(output.status), 2, "{args:?}");
        complaint("audience", &output);
    }
}

/// A value that is wrong says what would be right.
#[test]
fn wrong_numbers_are_wrong_usage_and_the_complaint_says_what_is_right() {
    for (name, args, right) in [
        ("audience", &["-n", "x"][..], "invalid value 'x' for '--lines <N>': a number from 0 up; try --help"),
        (
            "audience",
            &["--pid", "abc"],
            "invalid value 'abc' for '--pid <PID>': a number from 0 up; try --help",
        ),
        ("audience", &["--pid=99999999999"], "the number is too large"),
        ("audience", &["--cpu=-1"], "a number from 0 up"),
        ("audience", &["record", "-o", "d", "--rotate-size=1M", "--rotate-count=0"], "a number from 1 up"),
        ("audience", &["watch", "-o", "d", "--on=exit", "--keep=few"], "a number from 1 up"),
        ("relay-producer", &["--cpu", "x"], "a number from 0 up"),
    ] {
        let output = run(tool("env", "coreutils").arg(program(name)).args(args));
        assert_eq!(exit_code(output.status), 2, "{args:?}");
        let said = complaint(name, &output);
        assert!(said.contains(right), "{args:?}: {said}");
    }
}

#[test]
fn losses_stand_where_they_happened_with_their_cause() {
    let mount = Mount::new(&["--channel=app/log:timed:global:subbuf-size=4K:n-subbufs=2"]);
    say(&mount, 0, "first");
    let channel = mount.channel("app/log");
    let send = |texts: &[&str]| {
        let mut batch = channel.batch(BatchOptions::default()).unwrap();
        texts.iter().for_each(|text| batch.push_text(text.as_bytes()).unwrap());
        batch.finish().unwrap()
    };
    let (long, too_long) = ("x".repeat(3000), "y".repeat(5000));
    mount.poke("app/log", "flush");
    assert_eq!(send(&[&too_long]).too_big, 1);
    assert_eq!(send(&[&long]).written, 1);
    assert_eq!(send(&[&long, &long, &long]).dropped, 3);
    let output = read(&mount, &[]);
    let stdout = text(&output.stdout);
    let lines: Vec<&str> = stdout.lines().map(|line| line.rsplit(": ").next().unwrap()).collect();
    let expected = [
        "first",
        "-- 1 message lost on cpu0 (too big) --",
        &long,
        "-- 3 messages lost on cpu0 (buffer full) --",
    ];
    assert_eq!(lines, expected);
    let said = text(&output.stderr);
    assert!(said.contains("cpu0: 3 messages dropped") && said.contains("cpu0: 1 message too big"), "{said}");
    say(&mount, 0, "later");
    assert_eq!(texts(&mount, &[]), "later\n", "each loss is reported once");
}

/// Another program has read the begin of a record: every reader says so, and the buffer's own losses are other ones.
#[test]
fn record_that_another_program_has_cut_is_reported() {
    let mount = Mount::new(&["--channel=app/log:timed:global"]);
    let expected = "-- 1 message lost on cpu0 --\nsecond\n";
    let fill = || {
        ["first", "second"].iter().for_each(|text| say(&mount, 0, text));
        File::open(mount.path("app/log0")).unwrap().read_exact(&mut [0; 10]).unwrap();
    };
    let messages = |lines: &str| -> String {
        lines.lines().map(|line| line.rsplit(": ").next().unwrap().to_owned() + "\n").collect()
    };
    fill();
    assert_eq!(messages(&fs::read_to_string(mount.control("app/log", "trace")).unwrap()), expected);
    assert_eq!(messages(&text(&read(&mount, &["--snapshot"]).stdout)), expected);
    let output = read(&mount, &[]);
    assert_eq!(messages(&text(&output.stdout)), expected);
    assert!(!text(&output.stderr).contains("lost"), "{}", text(&output.stderr));
    fill();
    let dir = mount.beside("recorded");
    run(Command::new(program("audience"))
        .args(["record", "-m"])
        .arg(mount.point())
        .args(["-c", "app/log", "--duration=1ms", "-o"])
        .arg(&dir));
    let trace = run(Command::new(program("audience")).arg("--trace").arg(&dir));
    assert_eq!(messages(&text(&trace.stdout)), expected);
}

#[test]
fn every_format_shows_typed_events_and_hostile_text() {
    let mount = Mount::new(&[CHANNEL]);
    let channel = mount.direct_channel("app/log");
    let definition = Definition {
        name: "connected".to_owned(),
        level: Some(Level::Info),
        target: "app::db".to_owned(),
        fields: vec![
            Field { name: "host".to_owned(), kind: FieldType::Str },
            Field { name: "rows".to_owned(), kind: FieldType::U64 },
        ],
        ..Definition::default()
    };
    let event = channel.define(definition).unwrap();
    on_cpu(1, || event.write(&[Value::from("a"), Value::U64(3)])).unwrap();
    say(&mount, 0, "nul \0 and \u{1b}[31m");
    let look = |args: &[&str]| text(&read(&mount, &[&["--snapshot"], args].concat()).stdout);
    let cat = look(&["-o", "cat"]);
    assert_eq!(cat.lines().last(), Some("nul \\x00 and \\x1b[31m"));
    let first = look(&["--utc"]).lines().next().unwrap().to_owned();
    assert!(first.contains("Z cpu1 ") && first.ends_with("INFO app::db: connected host=a rows=3"), "{first}");
    let unix = look(&["-o", "short-unix"]);
    let seconds: f64 = unix.split(' ').next().unwrap().parse().unwrap();
    assert!(seconds > 1.7e9, "{unix}");
    assert!(look(&["-o", "short-monotonic"]).starts_with('['));
    assert!(!look(&[]).contains('\u{1b}'), "no color in a file");
    channel.log(Level::Error, "t", "red").unwrap();
    assert!(look(&["--color", "always"]).contains("\u{1b}["));
    let script = "import json, sys\nfor line in sys.stdin:\n  it = json.loads(line)\n  print(it['time'].isdigit(), it['cpu'])\n";
    let mut python = tool("python3", "python3");
    let parsed = relayfs_tests::run_with_input(python.args(["-c", script]), look(&["-o", "json"]).as_bytes());
    assert_eq!(
        text(&parsed.stdout).lines().filter(|line| line.starts_with("True ")).count(),
        3,
        "{parsed:?}"
    );
}

#[test]
fn following_prints_each_record_once_across_daemons() {
    let mut mount = Mount::new(&[CHANNEL]);
    say_in_turn(&mount, &["one", "two"]);
    let follower = Follower::start(mount.point(), &["-c", "app/log", "-o", "cat", "--window", "50ms"]);
    follower.has_read("one\ntwo\n");
    // An idle CPU holds nothing up.
    say(&mount, 0, "three");
    say(&mount, 0, "four");
    follower.has_read("one\ntwo\nthree\nfour\n");
    mount.end(Signal::SIGKILL);
    eventually("audience to notice", || follower.said().contains("waiting for it"));
    mount.restart(&[CHANNEL]);
    say_in_turn(&mount, &["five", "six"]);
    follower.has_read("one\ntwo\nthree\nfour\nfive\nsix\n");
    follower.end();
    assert_eq!(texts(&mount, &[]), "");
}

/// A producer that writes on while no daemon is there: its records come, once, from the next daemon.
#[test]
fn following_continues_with_the_buffers_of_a_dead_daemon() {
    let mut mount = Mount::with_sequences(&[CHANNEL]);
    let channel = mount.direct_channel("app/log");
    let say = |cpu: usize, text: &str| on_cpu(cpu, || channel.text(text)).expect("writing");
    say(0, "one");
    say(1, "two");
    let follower = Follower::start(mount.point(), &["-c", "app/log", "-o", "cat", "--window", "50ms"]);
    follower.has_read("one\ntwo\n");
    mount.end(Signal::SIGKILL);
    say(0, "three");
    say(1, "four");
    say(0, "five");
    eventually("audience to notice", || follower.said().contains("waiting for it"));
    mount.restart_with_sequences(&[]);
    follower.has_read("one\ntwo\nthree\nfour\nfive\n");
    say(1, "six");
    follower.has_read("one\ntwo\nthree\nfour\nfive\nsix\n");
    follower.end();
    assert_eq!(texts(&mount, &[]), "");
}

#[test]
fn following_in_one_order_under_load_loses_nothing() {
    let mount = Mount::new(&["--channel=app/log:timed:subbuf-size=64K:n-subbufs=16"]);
    let follower = Follower::start(mount.point(), &["-c", "app/log"]);
    let threads: Vec<_> = (0..2)
        .map(|cpu| {
            let channel = mount.channel("app/log");
            std::thread::spawn(move || {
                for n in 0..5000 {
                    let options = BatchOptions { cpu: Some(cpu), wait: relay_producer::Wait::Forever };
                    let mut batch = channel.batch(options).unwrap();
                    batch.push_text(format!("{cpu} {n}").as_bytes()).unwrap();
                    assert_eq!(batch.finish().unwrap().written, 1);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    eventually("all of it", || text(&follower.read()).lines().count() == 10_000);
    let printed = text(&follower.read());
    let times: Vec<&str> = printed.lines().map(|line| line.split(' ').next().unwrap()).collect();
    let late = printed.lines().filter(|line| line.split(' ').nth(2) == Some("late")).count();
    assert!(late > 0 || times.is_sorted(), "sorted, but for what is marked");
    for cpu in 0..2 {
        let of_cpu =
            printed.lines().filter_map(|line| line.rsplit(": ").next()?.strip_prefix(&format!("{cpu} ")));
        let numbers: Vec<usize> = of_cpu.map(|n| n.parse().unwrap()).collect();
        assert_eq!(numbers, (0..5000).collect::<Vec<_>>(), "cpu{cpu}");
    }
    follower.end();
}

/// As `tail -n N -f`: the last of what was there, and then all that comes.
#[test]
fn following_begins_with_the_last_records() {
    let mount = Mount::new(&[CHANNEL]);
    let follow = |args: &[&str]| {
        Follower::start(mount.point(), &[&["-c", "app/log", "-o", "cat", "--window", "50ms"], args].concat())
    };
    say_in_turn(&mount, &["one", "two", "three", "four", "five"]);
    let follower = follow(&["-n", "2"]);
    follower.has_read("four\nfive\n");
    say_in_turn(&mount, &["six", "seven", "eight"]);
    follower.has_read("four\nfive\nsix\nseven\neight\n");
    follower.end();
    assert_eq!(texts(&mount, &[]), "", "following consumes all, also what it leaves out");
    say(&mount, 0, "old");
    let follower = follow(&["-n", "0"]);
    // It has begun when the old record is consumed.
    eventually("the follower", || {
        mount.stats("app/log")["cpu0.read_bytes"] == mount.stats("app/log")["cpu0.bytes"]
    });
    say(&mount, 1, "new");
    follower.has_read("new\n");
    follower.end();
}

/// In a channel that comes later, nothing is old.
#[test]
fn following_prints_all_of_a_channel_that_comes_later() {
    let mount = Mount::new(&[]);
    let follower = Follower::start(mount.point(), &["-c", "app/log", "-o", "cat", "-n", "1"]);
    eventually("audience to wait", || follower.said().contains("waiting for it"));
    let options = relay_producer::Channel::builder(mount.point(), "app/log").create(true).timed(true);
    let channel = options.open().unwrap();
    ["one", "two", "three"].iter().for_each(|text| channel.text(text).unwrap());
    follower.has_read("one\ntwo\nthree\n");
    follower.end();
}

/// A writer that was stopped between its look at the clock and the end of its record, for longer than the window.
#[test]
fn record_that_appears_behind_the_window_is_late() {
    for (format, mark) in [("short-iso", " cpu1 late "), ("json", "\"cpu\":1,\"late\":true,")] {
        let mut mount = Mount::new(&[]);
        let dir = mount.beside("state");
        mount.end(Signal::SIGTERM);
        mount.restart(&[CHANNEL, "--state-dir", dir.to_str().unwrap()]);
        let follower = Follower::start(mount.point(), &["-c", "app/log", "-o", format, "--window", "1ms"]);
        say(&mount, 0, "in time");
        eventually("a line", || text(&follower.read()).contains("in time"));
        follower.pause();
        say(&mount, 1, "slow");
        // Its stamp is from before the other record: that writer has looked at the clock first.
        let ring = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
        let ring = ring.into_iter().find(|path| path.to_str().unwrap().ends_with("2.data1")).unwrap();
        let mut stamp = [0; 8];
        let ring = File::options().read(true).write(true).open(ring).unwrap();
        ring.read_exact_at(&mut stamp, 0).unwrap();
        let earlier = u64::from_le_bytes(stamp) - 1_000_000_000_000;
        ring.write_all_at(&earlier.to_le_bytes(), 0).unwrap();
        follower.resume();
        eventually("a late line", || text(&follower.read()).contains("slow"));
        say(&mount, 1, "in time again");
        eventually("another line", || text(&follower.read()).contains("in time again"));
        let printed = text(&follower.read());
        let late: Vec<&str> = printed.lines().filter(|line| line.contains("late")).collect();
        assert!(late.len() == 1 && late[0].contains("slow") && late[0].contains(mark), "{printed}");
        follower.end();
    }
}

/// The buffer counts no message that damage hides: what it loses later is shown all the same.
#[test]
fn damage_hides_no_later_loss() {
    let mut mount = Mount::new(&[]);
    let dir = mount.beside("state");
    mount.end(Signal::SIGTERM);
    let channel = "--channel=app/log:timed:global:subbuf-size=4K:n-subbufs=2";
    mount.restart(&[channel, "--state-dir", dir.to_str().unwrap()]);
    let follower = Follower::start(mount.point(), &["-c", "app/log", "-o", "short-unix"]);
    let messages = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.rsplit(": ").next().unwrap().to_owned()).collect()
    };
    say(&mount, 0, "first");
    eventually("a line", || text(&follower.read()).contains("first"));
    follower.pause();
    say(&mount, 0, "whole");
    let at = (16 + "first".len() + 16 + "whole".len()) as u64;
    say(&mount, 0, "damaged");
    let ring = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let ring = ring.into_iter().find(|path| path.to_str().unwrap().ends_with("2.data0")).unwrap();
    File::options().write(true).open(ring).unwrap().write_all_at(b"\xff\xff", at + 14).unwrap();
    mount.poke("app/log", "flush");
    follower.resume();
    let damage = "-- 1 message lost on cpu0 --";
    eventually("the damage", || text(&follower.read()).contains(damage));
    follower.pause();
    let long = "x".repeat(3000);
    let channel = mount.channel("app/log");
    let mut batch = channel.batch(BatchOptions::default()).unwrap();
    (0..3).for_each(|_| batch.push_text(long.as_bytes()).unwrap());
    assert_eq!(batch.finish().unwrap().dropped, 1);
    follower.resume();
    let full = "-- 1 message lost on cpu0 (buffer full) --";
    eventually("the loss", || text(&follower.read()).contains(full));
    let printed = messages(&text(&follower.read()));
    assert_eq!(printed, ["first", "whole", damage, &long, &long, full]);
    let said = follower.end();
    assert!(said.contains("cpu0: 1 message dropped"), "{said}");
}

/// The daemon has no memory for a copy: the reader says so, and gets the records in another way.
#[test]
fn reader_without_memory_for_a_copy_reads_all_the_same() {
    let channel = "--channel=app/log:timed:subbuf-size=256K:n-subbufs=4";
    let mount = Mount::new(&["--subbuf-size=4K", "--n-subbufs=2", channel, "--max-memory=2600K"]);
    let text_of = |n: usize| format!("{n:0500}");
    let fill = |numbers: std::ops::Range<usize>| {
        let channel = mount.channel("app/log");
        for n in numbers {
            let mut batch =
                channel.batch(BatchOptions { cpu: Some(n % 2), ..BatchOptions::default() }).unwrap();
            batch.push_text(text_of(n).as_bytes()).unwrap();
            assert_eq!(batch.finish().unwrap().written, 1);
        }
    };
    let expected = |numbers: std::ops::Range<usize>| numbers.map(|n| text_of(n) + "\n").collect::<String>();
    fill(0..3000);
    let copy = fs::read(mount.control("app/log", "take/cpu0"));
    assert_eq!(copy.unwrap_err().raw_os_error(), Some(libc::ENOMEM), "the limit leaves no room for a copy");
    // Nothing may be consumed here, so it fails, with advice.
    let output = read(&mount, &["-n", "1"]);
    assert_eq!(exit_code(output.status), 1);
    assert!(text(&output.stderr).contains("; raise relayfsd --max-memory"), "{}", text(&output.stderr));
    let output = read(&mount, &["-o", "cat"]);
    assert!(text(&output.stdout) == expected(0..3000), "{} bytes", output.stdout.len());
    let said = text(&output.stderr);
    assert!(said.starts_with("audience: no memory for a copy of ") && said.lines().count() == 1, "{said}");
    fill(0..3000);
    let follower = Follower::start(mount.point(), &["-c", "app/log", "-o", "cat", "--window", "50ms"]);
    eventually("all of it", || text(&follower.read()) == expected(0..3000));
    fill(3000..3010);
    eventually("the rest", || text(&follower.read()) == expected(0..3010));
    let said = follower.end();
    assert!(said.contains("no memory for a copy of ") && said.lines().count() == 1, "{said}");
}

/// Two processes that have the same number, each in its PID namespace: each has its number in the daemon's.
#[test]
fn processes_of_two_pid_namespaces_are_told_apart() {
    let mount = Mount::new(&[CHANNEL]);
    let start = || {
        let mut command = tool("unshare", "util-linux");
        command.args(["--pid", "--fork", "--kill-child"]).arg(program("relay-producer"));
        command.arg("-m").arg(mount.point()).args(["-c", "app/log"]);
        Process::start(command.stdin(Stdio::piped()))
    };
    let write = |process: &mut Process, line: &str| {
        process.child().stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
        let trace = mount.control("app/log", "trace");
        eventually("the record", || fs::read_to_string(&trace).unwrap().contains(line.trim_end()));
    };
    let (mut first, mut second) = (start(), start());
    write(&mut first, "one\n");
    write(&mut second, "two\n");
    write(&mut first, "three\n");
    let lines = fs::read_to_string(mount.control("app/log", "trace")).unwrap();
    let of = |text: &str| {
        let line = lines.lines().find(|line| line.ends_with(&format!("]: {text}"))).expect(&lines);
        line.split_once(" relay-producer[").expect(&lines).1.split_once(']').expect(&lines).0.to_owned()
    };
    assert_eq!(of("one"), of("three"), "{lines}");
    assert_ne!(of("one"), of("two"), "{lines}");
    assert!([of("one"), of("two")].iter().all(|pid| pid != "1"), "{lines}");
    for process in [&mut first, &mut second] {
        drop(process.child().stdin.take());
        assert!(process.wait().success());
    }
}

/// `docs/timed.md` shows the example's real output. Times, numbers and CPUs differ from run to run.
#[test]
fn last_words_of_the_example_are_as_documented() {
    let document = fs::read_to_string(workspace().join("docs/timed.md")).unwrap();
    let block = document.split("```").find(|block| block.contains("--example timed")).expect("the example");
    let without_numbers = |text: &str| -> String {
        text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect::<String>()
    };
    let plain = |line: &str| {
        // A pid and its CPU; the signal's number is the same everywhere.
        let (head, tail) = line.split_once(']').expect("a process");
        let (before, pid) = head.rsplit_once('[').expect("a pid");
        assert!(pid.parse::<u32>().is_ok(), "{line}");
        format!("{}[]{tail}", without_numbers(before).replace("+00:00 ", "Z "))
    };
    let shown: Vec<String> = block.lines().filter(|line| line.contains(" cpu")).map(plain).collect();
    assert_eq!(shown.len(), 3, "{block}");
    let mount = Mount::new(&[]);
    let mut example = Command::new(program("examples/timed"));
    let died = run(example.arg(mount.point()));
    assert_eq!(exit_code(died.status), 128 + Signal::SIGABRT as i32);
    let found = || {
        let mut command = audience(mount.point(), &["-c", "app/crash", "-n", "3"]);
        text(&run(command.env("TZ", "UTC").stdin(Stdio::null())).stdout)
    };
    eventually("the end of the example", || {
        found().contains("timed[") && found().contains("killed by signal")
    });
    assert_eq!(found().lines().map(plain).collect::<Vec<_>>(), shown);
}
