//! `audience status`, `audience --list`, and the files `status` behind them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use relay_producer::Channel;
use relayfs_tests::audience::audience;
use relayfs_tests::stopped::Stopped;
use relayfs_tests::{Mount, Process, complaint, eventually, exit_code, program, run, stdout_of, text, tool};

/// What a filter of Python finds in the JSON of the status.
#[track_caller]
fn json(mount: &Mount, args: &[&str], expression: &str) -> String {
    let args = [&["status", "--json", "--interval", "20ms"], args].concat();
    let line = stdout_of(Command::new(program("audience")).args(args).arg("-m").arg(mount.point()));
    assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1, "one line");
    let mut python = tool("python3", "python3");
    python.args(["-c", &format!("import sys, json; s = json.loads(sys.argv[1]); print({expression})")]);
    text(&stdout_of(python.arg(text(&line)))).trim().to_owned()
}

fn status(mount: &Mount, args: &[&str]) -> String {
    let args = [&["status", "--interval", "20ms"], args].concat();
    text(&stdout_of(Command::new(program("audience")).args(args).arg("-m").arg(mount.point())))
}

#[test]
fn processes_are_shown_with_user_and_way() {
    let mount = Mount::new(&["--channel", "app/log:timed"]);
    assert_eq!(
        json(&mount, &["app/log"], "s['channels'][0]['writers'], s['channels'][0]['readers']"),
        "[] []"
    );
    let mut producer = Process::start(
        Command::new(program("relay-producer"))
            .args(["-c", "app/log", "-m"])
            .arg(mount.point())
            .stdin(Stdio::piped()),
    );
    let pid = producer.pid();
    let by_socket = mount.channel("app/log");
    let mut reader = File::open(mount.path("app/log1")).unwrap();
    reader.read_to_end(&mut Vec::new()).unwrap();
    let writers =
        "sorted((w['command'], w['pid'], w['user'], w['way']) for w in s['channels'][0]['writers'])";
    eventually("the producer to connect", || json(&mount, &["app/log"], writers).contains("relay-producer"));
    let found = json(&mount, &["app/log"], writers);
    assert!(found.contains(&format!("('relay-producer', {pid}, 'root', ")), "{found}");
    let own = std::process::id();
    assert!(found.contains(&format!(", {own}, 'root', 'socket')")), "{found}");
    let readers = "[(r['pid'], r['way'], r['cpu']) for r in s['channels'][0]['readers']]";
    assert_eq!(json(&mount, &["app/log"], readers), format!("[({own}, 'read', 1)]"));
    let said = status(&mount, &["app/log"]);
    assert!(
        said.contains(&format!("relay-producer[{pid}] root ")) && said.contains(" root read cpu1"),
        "{said}"
    );
    drop((by_socket, reader));
    drop(producer.child().stdin.take());
    producer.wait();
    let both = "s['channels'][0]['writers'] + s['channels'][0]['readers']";
    eventually("all to go", || json(&mount, &["app/log"], both) == "[]");
}

/// A file that outlives its opener in another process: the opener is not taken for a process of the same number.
#[test]
fn opener_that_has_gone_is_not_named() {
    let mount = Mount::new(&[]);
    let mut shell = tool("sh", "dash");
    shell.args(["-c", "exec 3<cpu0 4<&0; (echo; read line <&4) & wait $!"]).current_dir(mount.point());
    let mut child = Process::start(shell.stdin(Stdio::piped()).stdout(Stdio::piped()));
    // The shell is killed, and its child keeps the file.
    child.child().stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let readers = "[(r['command'] is None, r['way']) for r in s['channels'][0]['readers']]";
    assert_eq!(json(&mount, &["cpu"], readers), "[(False, 'read')]");
    let mut line = child.child().stdin.take().unwrap();
    child.signal(Signal::SIGKILL);
    child.wait();
    eventually("the shell to be missed", || json(&mount, &["cpu"], readers) == "[(True, 'read')]");
    line.write_all(b"end\n").unwrap();
    eventually("its child to end", || json(&mount, &["cpu"], readers) == "[]");
}

#[test]
fn losses_are_shown_by_cause_with_their_time() {
    let mount = Mount::new(&["--subbuf-size=64", "--n-subbufs=2"]);
    assert_eq!(mount.send(1, &[&[b'a'; 60], &[b'b'; 60], &[b'c'; 40], &[b'd'; 65]]).too_big, 1);
    let stats = mount.stats("cpu");
    assert_eq!(
        (stats["cpu1.dropped"], stats["cpu1.dropped_bytes"], stats["cpu1.longest_dropped"]),
        (1, 40, 40)
    );
    assert_eq!((stats["cpu1.too_big"], stats["cpu1.longest_too_big"], stats["cpu1.full"]), (1, 65, 1));
    assert!(stats["cpu1.last_dropped"] > 0 && stats["cpu1.last_too_big"] > 0);
    assert_eq!((stats["cpu0.last_dropped"], stats["cpu1.last_contended"]), (0, 0));
    let said = status(&mount, &[]);
    for part in [
        "lost on cpu1: 1 message dropped, the buffer was full, last ",
        "lost on cpu1: 1 message too big, last ",
        "advice: cpu1 was full 1 time since it was created (last ",
        "no process reads it: audience record -c cpu -o DIR",
        "advice: a message of 65 bytes is longer than a sub-buffer: --subbuf-size 128 would take it",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("lost on cpu0"), "{said}");
    let when = "s['channels'][0]['buffers'][1]['last_dropped'] >= s['channels'][0]['created']";
    assert_eq!(json(&mount, &["cpu"], when), "True");
}

/// What advice says is tried: with that many sub-buffers the same burst loses nothing.
#[test]
fn advised_room_would_have_held_what_was_dropped() {
    // Lengths that leave different ends of sub-buffers unused.
    let lengths = [900, 30, 700, 512, 1, 333, 1000, 77];
    let burst = |mount: &Mount| {
        let messages: Vec<Vec<u8>> = lengths.iter().cycle().take(64).map(|len| vec![b'x'; *len]).collect();
        let messages: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
        mount.send(0, &messages).dropped
    };
    let mount = Mount::new(&["--subbuf-size=1K", "--n-subbufs=4"]);
    mount.send(0, &[b"read"]);
    mount.read("cpu0");
    assert!(burst(&mount) > 10);
    let advice = json(&mount, &["cpu"], "s['channels'][0]['advice'][0]");
    let advised = advice.split("--n-subbufs ").nth(1).and_then(|rest| rest.split(' ').next());
    let advised = advised.unwrap_or_else(|| panic!("{advice}"));
    assert!(advice.contains("would have held it"), "{advice}");
    let roomy = Mount::new(&["--subbuf-size=1K", &format!("--n-subbufs={advised}")]);
    assert_eq!(burst(&roomy), 0, "{advice}");
}

/// Direct writers count nothing, and still each message counts, also those that are overwritten unread.
#[test]
fn messages_of_timed_channels_are_counted_exactly() {
    let mount = Mount::new(&[
        "--channel=keep:timed:subbuf-size=4K:n-subbufs=64",
        "--channel=box:timed:overwrite:subbuf-size=256:n-subbufs=2",
    ]);
    for name in ["keep", "box"] {
        let channel: Channel = mount.direct_channel(name);
        for n in 0..1000 {
            channel.text(&format!("message {n}")).unwrap();
        }
        assert_eq!(mount.stats(name)["total.messages"], 1000, "{name}");
        mount.poke(name, "flush");
        assert_eq!(mount.stats(name)["total.messages"], 1000, "{name} after a flush");
        mount.poke(name, "reset");
        channel.text("one more").unwrap();
        assert_eq!(mount.stats(name)["total.messages"], 1001, "{name} after a reset");
        assert_eq!(json(&mount, &[name], "sum(b['messages'] for b in s['channels'][0]['buffers'])"), "1001");
    }
    let raw = mount.stats("cpu");
    assert!(!raw.contains_key("total.messages"), "a raw channel does not know");
    assert_eq!(json(&mount, &["cpu"], "s['channels'][0]['buffers'][0]['messages']"), "None");
    assert!(mount.stats("box")["total.last_overwritten"] > 0);
}

#[test]
fn oldest_unread_record_has_its_time() {
    let mount = Mount::new(&["--channel=app/log:timed"]);
    let oldest = "[b['oldest_unread'] for b in s['channels'][0]['buffers'] if b['oldest_unread']]";
    assert_eq!(json(&mount, &["app/log"], oldest), "[]");
    fs::write(mount.control("app/log", "msg"), "first").unwrap();
    let first = json(&mount, &["app/log"], oldest);
    assert!(first.starts_with("['20") && first.ends_with("Z']"), "{first}");
    fs::write(mount.control("app/log", "msg"), "second").unwrap();
    let unread = json(&mount, &["app/log"], oldest);
    assert!(unread.contains(first.trim_matches(['[', ']'])), "{first}, {unread}");
    for cpu in 0..relay::system::cpus::count() {
        mount.read(&format!("app/log{cpu}"));
    }
    assert_eq!(json(&mount, &["app/log"], oldest), "[]");
}

#[test]
fn watch_prints_until_interrupted() {
    let mount = Mount::new(&[]);
    let out = mount.beside("out");
    let mut command = tool("env", "coreutils");
    command.arg("--default-signal=INT").arg(program("audience"));
    command.args(["status", "--json", "--watch", "--interval", "10ms", "-m"]).arg(mount.point());
    let mut watch = Process::start(command.stdout(File::create(&out).unwrap()));
    eventually("three lines", || fs::read_to_string(&out).unwrap().lines().count() >= 3);
    watch.signal(Signal::SIGINT);
    assert_eq!(exit_code(watch.wait()), 0);
}

/// The daemon is restarted under it, and its channel comes later.
#[test]
fn watch_outlives_the_daemon() {
    let mut mount = Mount::new(&["--channel=app/log"]);
    let (out, err) = (mount.beside("out"), mount.beside("err"));
    let mut command = Command::new(program("audience"));
    command.args(["status", "app/log", "--json", "--watch", "--interval", "10ms", "-m"]).arg(mount.point());
    command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
    let mut watch = Process::start(&mut command);
    let lines = || fs::read_to_string(&out).unwrap().lines().count();
    let said = || fs::read_to_string(&err).unwrap();
    eventually("a line", || lines() >= 1);
    mount.end(Signal::SIGTERM);
    eventually("that the daemon has gone", || said().contains("no relayfs is mounted there"));
    mount.restart(&["--channel=app/log"]);
    let before = lines();
    eventually("lines of the next daemon", || lines() > before);
    assert_eq!(said().lines().count(), 1, "{}", said());
    watch.signal(Signal::SIGTERM);
    assert_eq!(exit_code(watch.wait()), 0);
}

/// The daemon stands still for longer than it may take to answer.
#[test]
fn watch_outlives_a_pause_of_the_daemon() {
    let mut mount = Mount::new(&[]);
    let (out, err) = (mount.beside("out"), mount.beside("err"));
    let mut command = Command::new(program("audience"));
    command.args(["status", "--json", "--watch", "--interval", "10ms", "-m"]).arg(mount.point());
    command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
    let mut watch = Process::start(&mut command);
    let lines = || fs::read_to_string(&out).unwrap().lines().count();
    let said = || fs::read_to_string(&err).unwrap();
    eventually("a line", || lines() >= 1);
    let stopped = Stopped::new(mount.daemon().pid());
    eventually("the silence", || said().contains("does not answer within"));
    let before = lines();
    drop(stopped);
    eventually("more lines", || lines() > before);
    assert_eq!(said().lines().count(), 1, "{}", said());
    watch.signal(Signal::SIGTERM);
    assert_eq!(exit_code(watch.wait()), 0);
}

#[test]
fn list_has_each_channel_with_its_geometry() {
    let mount = Mount::new(&["--channel=app/log:timed:overwrite:subbuf-size=64K:n-subbufs=8"]);
    let list = text(&stdout_of(&mut audience(mount.point(), &["--list"])));
    assert_eq!(list, "app/log  8 x 64K, overwrite timed\ncpu      4 x 256K, no-overwrite\n");
}

/// Programs that only look say so, instead of waiting for ever.
#[test]
fn stopped_daemon_is_an_error() {
    let mut mount = Mount::new(&[]);
    let _stopped = Stopped::new(mount.daemon().pid());
    let page = mount.beside("page.html");
    let commands: [&[&str]; 3] =
        [&["status"], &["--list"], &["report", "--snapshot", "-o", page.to_str().unwrap()]];
    for args in commands {
        let output = run(Command::new(program("audience")).args(args).arg("-m").arg(mount.point()));
        assert_eq!(exit_code(output.status), 1);
        let said = complaint("audience", &output);
        assert!(said.contains(": its relayfsd does not answer within ") && said.contains("doctor"), "{said}");
    }
}

#[test]
fn channels_are_named_by_option_or_word() {
    let mount = Mount::new(&["--channel", "a", "--channel", "b", "--channel", "c"]);
    let names = "[c['name'] for c in s['channels']]";
    assert_eq!(json(&mount, &[], names), "['a', 'b', 'c', 'cpu']");
    for args in [&["-c", "a", "-c", "c"][..], &["a", "c"], &["-c", "c", "a"], &["--channel=a", "c", "a"]] {
        assert_eq!(json(&mount, args, names), "['a', 'c']", "{args:?}");
    }
}

#[test]
fn errors_say_what_to_do() {
    let mut mount = Mount::new(&[]);
    let fails = |args: &[&str], point: &Path| {
        complaint("audience", &run(Command::new(program("audience")).args(args).arg("-m").arg(point)))
    };
    for args in [&["status", "app"][..], &["status", "-c", "app"]] {
        let said = fails(args, mount.point());
        assert!(said.starts_with("no channel 'app' in ") && said.ends_with(" (existing: cpu)"), "{said}");
    }
    let dir = mount.beside("empty");
    fs::create_dir(&dir).unwrap();
    for args in [&["status"][..], &["--list"], &["status", "--json"]] {
        let said = fails(args, &dir);
        assert!(said.contains("no relayfs is mounted there; start relayfsd"), "{said}");
    }
    // A daemon that died leaves a mount behind that answers nothing.
    mount.end(Signal::SIGKILL);
    for args in [&["status"][..], &["--list"], &["status", "--json"]] {
        let said = fails(args, mount.point());
        assert!(said.contains("no relayfs is mounted there; start relayfsd"), "{said}");
    }
}
