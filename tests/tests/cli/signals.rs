//! The effect of each signal on a daemon, as the table in `relayfsd/docs/SECURITY.md` has it. Signals that a peer, a
//! limit or a terminal causes do not end it.

use std::fs;
use std::process::Stdio;

use nix::sys::signal::Signal;
use relayfs_tests::background::Place;
use relayfs_tests::stopped::Stopped;
use relayfs_tests::{Mount, Process, eventually, exit_code, is_mounted, program, programs, run, text, tool};

/// Signals for faults: they end a program at once.
const FATAL: [i32; 8] = [
    libc::SIGQUIT,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGSYS,
];
/// Signals that end the daemon cleanly.
const ENDING: [i32; 8] = [
    libc::SIGHUP, // in the foreground
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGXCPU,
    libc::SIGPWR,
];
/// Signals of the kernel, and two of the C library.
const OTHERS: [i32; 4] = [libc::SIGKILL, libc::SIGSTOP, 32, 33];

/// Starts a daemon by a command. The tests' own starter may ignore SIGHUP and SIGQUIT, which a daemon inherits.
fn by(words: &[&str]) -> Mount {
    Mount::prepared(&[], |relayfsd| {
        let mut command = tool(words[0], "coreutils, util-linux");
        command.args(&words[1..]).arg(relayfsd.get_program()).args(relayfsd.get_args());
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        *relayfsd = command;
        relayfsd
    })
}

fn send(process: &Process, signal: i32) {
    let kill = format!("kill -{signal} {}", process.pid());
    assert!(run(tool("sh", "dash").args(["-c", &kill])).status.success(), "{kill}");
}

/// Returns the signals for which a process has a handler, a bit for each.
fn caught(process: &Process) -> u64 {
    let status =
        fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("a process that is there");
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("its handlers");
    u64::from_str_radix(mask.trim(), 16).expect("a mask")
}

fn serves(mount: &Mount, what: i32) {
    let message = format!("after signal {what}");
    assert_eq!(mount.send(0, &[message.as_bytes()]).written, 1);
    assert_eq!(text(&mount.read("cpu0")), message);
}

#[test]
fn other_signals_do_not_end_daemon() {
    let mut mount = Mount::new(&[]);
    let ends = |signal: &i32| FATAL.contains(signal) || ENDING.contains(signal) || OTHERS.contains(signal);
    for signal in (1..=64).filter(|signal| !ends(signal)) {
        send(mount.daemon(), signal);
        // Some of them stop it if it has a terminal.
        send(mount.daemon(), libc::SIGCONT);
        serves(&mount, signal);
    }
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
}

#[test]
fn ending_signals_end_daemon_cleanly() {
    for signal in ENDING {
        let mut mount = by(&["env", "--default-signal"]);
        send(mount.daemon(), signal);
        assert_eq!(exit_code(mount.daemon().wait()), 0, "{signal}");
        assert!(!is_mounted(mount.point()), "{signal}");
        let said = mount.daemon().stderr();
        let has_reason = [libc::SIGALRM, libc::SIGVTALRM, libc::SIGPROF, libc::SIGXCPU].contains(&signal);
        assert_eq!(said.contains("ending: "), has_reason, "{signal}: {said}");
    }
}

/// SIGQUIT and SIGABRT are there for a core. After a fault, a running daemon would serve wrong data.
#[test]
fn fatal_signals_end_at_once_also_when_a_process_sends_them() {
    for signal in FATAL {
        let mut mount = by(&["prlimit", "--core=0", "env", "--default-signal"]);
        send(mount.daemon(), signal);
        if signal == libc::SIGSEGV {
            // The first one removes the Rust runtime's handler, which tells a stack overflow from other faults.
            eventually("the default action", || caught(mount.daemon()) >> (signal - 1) & 1 == 0);
            send(mount.daemon(), signal);
        }
        assert_eq!(exit_code(mount.daemon().wait()), 128 + signal);
    }
}

/// nohup(1) asks a program not to end with its terminal.
#[test]
fn daemon_under_nohup_stays_when_the_terminal_goes() {
    let mut mount = by(&["env", "--ignore-signal=HUP"]);
    send(mount.daemon(), libc::SIGHUP);
    serves(&mount, libc::SIGHUP);
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
}

/// A daemon that may write only small files refuses larger channels, and the error names the limit. It drops a log
/// line without room.
#[test]
fn limit_of_file_size_refuses_large_channels_only() {
    let place = Place::new();
    let log = place.beside("log");
    fs::File::create(&log).unwrap().set_len(4 << 20).unwrap();
    let mut limited = tool("prlimit", "util-linux");
    limited.arg("--fsize=2097152").arg(program("relayfsd")).args(["--subbuf-size=64K", "--log-file"]);
    let mut daemon = place.start_by(limited.arg(&log).arg(place.point()).env("RUST_LOG", "debug"));
    let create = |spec: &str| {
        let mut command = relayfs_tests::tool("env", "coreutils");
        command.arg(program("relay-producer")).arg("-m").arg(place.point());
        run(command.args(["-c", "other", spec, "message"]))
    };
    for _ in 0..3 {
        let refused = create("--create=subbuf-size=4M");
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains("File too large") && said.contains("2M (ulimit -f"), "{said}");
    }
    let made = create("--create=subbuf-size=64K");
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert_eq!(fs::metadata(&log).unwrap().len(), 4 << 20, "lines beyond the limit");
    let read = run(tool("sh", "dash").args(["-c", "cat \"$0\"/other*"]).arg(place.point()));
    assert_eq!(text(&read.stdout).trim_end(), "message");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), 0);
    place.assert_clean();
}

/// The main thread waits for an answer then, and the kernel runs no handler in it. The commands may have been started with
/// the signal blocked.
#[test]
fn signals_end_the_commands_of_a_daemon_that_stands_still() {
    let mut mount = Mount::new(&[]);
    let dir = mount.beside("recorded");
    let (follow, record) = (&["--follow"][..], &["record", "--output", dir.to_str().unwrap()][..]);
    // A recorder ends by force at the second signal.
    for (args, takes_two) in [(follow, false), (record, true)] {
        for inherited in ["--default-signal=TERM", "--block-signal=TERM"] {
            let mut command = tool("env", "coreutils");
            command.arg(inherited).arg(program("audience")).args(args);
            command.arg("-m").arg(mount.point()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut process = Process::start(&mut command);
            let main = format!("/proc/{}", process.pid());
            let sleeps_in = |part: &str| {
                fs::read_to_string(format!("{main}/wchan")).expect("where it sleeps").contains(part)
            };
            mount.send(0, &[b"a message"]);
            eventually("a command that waits for messages", || sleeps_in("poll"));
            let stopped = Stopped::between_requests(mount.daemon().pid(), process.pid());
            eventually("a command that waits for the daemon", || sleeps_in("request_wait_answer"));
            process.signal(Signal::SIGTERM);
            if takes_two {
                // A second one that comes before the program has seen the first is the same one.
                eventually("the end by a second signal", || {
                    process.signal(Signal::SIGTERM);
                    !process.is_running()
                });
            }
            assert_eq!(exit_code(process.wait()), 128 + libc::SIGTERM, "{inherited} {args:?}");
            drop(stopped);
            let _ = fs::remove_dir_all(&dir);
        }
    }
}

/// The commands, with files as standard output.
#[test]
fn commands_report_a_full_output_file() {
    let mount = Mount::new(&["--subbuf-size=1M"]);
    for command in ["audience --follow", "audience"] {
        mount.send(0, &[&[b'a'; 100_000][..]; 3]);
        let limited = format!(
            "exec {}/{command} -m {} >{}",
            programs().display(),
            mount.point().display(),
            mount.beside("out").display()
        );
        let mut shell = tool("prlimit", "util-linux");
        let output = run(shell.args(["--fsize=65536", "sh", "-c", &limited]));
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command}: {said}");
        assert!(said.contains("File too large"), "{command}: {said}");
    }
    let dir = mount.beside("recorded");
    mount.send(0, &[&[b'a'; 100_000][..]; 3]);
    let mut recorder = tool("prlimit", "util-linux");
    recorder.arg("--fsize=65536").arg(program("audience")).args(["record", "-m"]).arg(mount.point());
    let output = run(recorder.arg("--output").arg(&dir));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("File too large"), "{said}");
    eventually("nothing lost", || mount.read("cpu0").len() == 300_000);
}
