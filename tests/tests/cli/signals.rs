//! What each signal does to a real daemon, as the table in `relayfsd/docs/SECURITY.md` says. Those that a peer, a limit or a terminal causes
//! end no daemon.

use std::fs;
use std::process::Stdio;

use nix::sys::signal::Signal;
use relayfs_tests::background::Place;
use relayfs_tests::{Mount, Process, eventually, exit_code, is_mounted, program, programs, run, text, tool};

/// Signals that have another purpose than to tell a program something: these end a program at once.
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
/// These end the daemon in order.
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
/// The kernel's, and two that the C library has for itself.
const OTHERS: [i32; 4] = [libc::SIGKILL, libc::SIGSTOP, 32, 33];

/// A mount whose daemon is started by these words. The test's own starter may ignore SIGHUP and SIGQUIT, which a daemon inherits.
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

/// The signals for which a process has a handler, a bit for each.
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
fn signals_that_ask_for_nothing_are_survived() {
    let mut mount = Mount::new(&[]);
    let ends = |signal: &i32| FATAL.contains(signal) || ENDING.contains(signal) || OTHERS.contains(signal);
    for signal in (1..=64).filter(|signal| !ends(signal)) {
        send(mount.daemon(), signal);
        // Some of them stop it where the terminal is not another's.
        send(mount.daemon(), libc::SIGCONT);
        serves(&mount, signal);
    }
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
}

#[test]
fn ending_signals_end_in_order() {
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

/// A core is what SIGQUIT and SIGABRT are for; and a daemon that lived on after a fault would serve wrong data.
#[test]
fn fatal_signals_end_at_once_also_when_a_process_sends_them() {
    for signal in FATAL {
        let mut mount = by(&["prlimit", "--core=0", "env", "--default-signal"]);
        send(mount.daemon(), signal);
        if signal == libc::SIGSEGV {
            // The first that is sent only takes the Rust runtime's handler away, which tells a stack overflow from other faults.
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

/// A daemon that may write small files only: a channel that needs larger ones is refused, with the limit's name. A log line for which
/// there is no room is dropped.
#[test]
fn limit_of_file_size_refuses_large_channels_and_ends_nothing() {
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

/// The commands, which print into files.
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
