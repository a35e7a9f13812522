//! `relay-producer --exec`: the program's output is passed on as it is, each line is kept, and the end is the program's.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use relay::trace::event::{Event, Stream};
use relayfs_tests::ends::without_ends;
use relayfs_tests::records::{FoundRecord, merged, threads};
use relayfs_tests::stopped::stands_still;
use relayfs_tests::terminal::ON_TERMINAL;
use relayfs_tests::{Mount, Process, eventually, program, run, run_with_input, stdout_of, text, tool};

/// A mount with the timed channel `log`.
fn mount() -> Mount {
    Mount::new(&["--channel=log:timed:subbuf-size=1M:n-subbufs=8"])
}

fn exec(mount: &Mount, args: &[&str]) -> Command {
    let mut command = Command::new(program("relay-producer"));
    command.arg("-m").arg(mount.point()).args(["-c", "log", "--exec"]).args(args);
    command
}

/// The lines that were kept, with their streams and threads.
fn lines(mount: &Mount) -> Vec<(Stream, u32, Vec<u8>)> {
    mount.poke("log", "flush");
    let line = |kept: &FoundRecord| match Event::decode(kept.id, &kept.payload) {
        Event::Output { stream: Some(stream), text } => (stream, kept.tid, text.to_vec()),
        other => panic!("{other:?}"),
    };
    merged(mount, "log").iter().map(line).collect()
}

/// The lines of one stream.
fn lines_of(lines: &[(Stream, u32, Vec<u8>)], of: Stream) -> Vec<String> {
    lines.iter().filter(|(stream, ..)| *stream == of).map(|(_, _, line)| text(line)).collect()
}

#[test]
fn command_keeps_its_name_beside_that_of_the_program() {
    let mount = mount();
    let output = stdout_of(&mut exec(&mount, &["sh", "-c", "cat /proc/$PPID/comm"]));
    assert_eq!(text(&output), "relay-producer\n");
}

#[test]
fn next_daemon_knows_the_program_by_its_name() {
    let mut mount = Mount::new(&["--channel=log:timed", "--discard"]);
    let mut command = exec(&mount, &["sh", "-c", "echo $$; read x; echo second"]);
    let mut producer = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("relay-producer");
    let mut stdout = BufReader::new(producer.stdout.take().expect("a pipe"));
    let mut pid = String::new();
    stdout.read_line(&mut pid).expect("a line");
    // Nothing of the channel is left, and the next one has other files.
    mount.end(Signal::SIGTERM);
    mount.restart(&["--channel=log:timed"]);
    producer.stdin.take().expect("a pipe").write_all(b"\n").expect("room");
    assert!(producer.wait().expect("an end").success());
    assert_eq!(lines_of(&lines(&mount), Stream::Stdout), ["second"]);
    let threads = threads(&mount, "log");
    assert_eq!(threads[&pid.trim().parse().expect("a pid")].1, "sh");
}

#[test]
fn output_goes_on_and_each_line_is_kept_with_its_stream() {
    let mount = mount();
    let script = "echo $$; echo error >&2; printf 'no\\nnewline'; exit 7";
    let output = run(&mut exec(&mount, &["sh", "-c", script]));
    assert_eq!(output.status.code(), Some(7));
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    let pid: u32 = stdout.lines().next().expect("a line").parse().expect("a pid");
    assert_eq!((stdout, &stderr[..]), (format!("{pid}\nno\nnewline"), "error\n"));
    let lines = lines(&mount);
    assert_eq!(lines_of(&lines, Stream::Stdout), [&pid.to_string(), "no", "newline"]);
    assert_eq!(lines_of(&lines, Stream::Stderr), ["error"]);
    assert!(lines.iter().all(|(_, tid, _)| *tid == pid), "{lines:?}");
    if let Some((_, command)) = threads(&mount, "log").get(&pid) {
        assert_eq!(command, "sh");
    }
}

#[test]
fn traceback_of_python_is_kept() {
    let mount = mount();
    let args = ["-c", "print('begin'); raise ValueError('some reason')"];
    let alone = run(tool("python3", "python3").args(args));
    let output = run(&mut exec(&mount, &[&["python3"], &args[..]].concat()));
    assert_eq!(output, alone);
    let lines = lines(&mount);
    assert_eq!(lines_of(&lines, Stream::Stdout), ["begin"]);
    assert_eq!(lines_of(&lines, Stream::Stderr).last().map(String::as_str), Some("ValueError: some reason"));
}

#[test]
fn binary_data_passes_unchanged_and_long_lines_are_kept_in_pieces() {
    let mount = mount();
    let mut data: Vec<u8> = (0..300_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    data.extend(vec![b'x'; 200_000]);
    let output = run_with_input(&mut exec(&mount, &["cat"]), &data);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(output.stdout == data, "the same bytes");
    let lines = lines(&mount);
    let kept: Vec<u8> = lines.iter().flat_map(|(_, _, line)| line.clone()).collect();
    assert!(kept == data.into_iter().filter(|byte| *byte != b'\n').collect::<Vec<_>>(), "the same lines");
    assert!(lines.iter().any(|(_, _, line)| line.len() == 65_532), "pieces as long as a record takes");
}

#[test]
fn beginning_of_a_line_is_passed_on_at_once() {
    let mount = mount();
    let mut command = exec(&mount, &["sh", "-c", "printf 'name? '; read name; echo \"hello $name\""]);
    let mut process = Process::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut stdout = process.child().stdout.take().expect("piped");
    let mut question = [0; 6];
    stdout.read_exact(&mut question).expect("the question");
    assert_eq!(&question, b"name? ");
    process.child().stdin.take().expect("piped").write_all(b"you\n").expect("the program reads");
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("the answer");
    assert_eq!(rest, "hello you\n");
    assert!(process.wait().success());
    assert_eq!(lines_of(&lines(&mount), Stream::Stdout), ["name? hello you"]);
}

#[test]
fn program_that_closes_its_streams_runs_on() {
    let mount = mount();
    let place = mount.beside("done");
    let script = format!("echo first; exec >&- 2>&- <&-; : > '{}'; exit 3", place.display());
    let output = run(&mut exec(&mount, &["sh", "-c", &script]));
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(3), &b"first\n"[..]));
    assert!(place.exists());
    assert_eq!(lines_of(&lines(&mount), Stream::Stdout), ["first"]);
}

#[test]
fn reader_that_ends_early_ends_the_program() {
    let mount = mount();
    let mut process = Process::start(exec(&mount, &["yes"]).stdout(Stdio::piped()));
    let mut two = [0; 2];
    process.child().stdout.take().expect("piped").read_exact(&mut two).expect("a line");
    assert_eq!(process.wait().signal(), Some(Signal::SIGPIPE as i32));
}

#[test]
fn signal_that_ends_the_program_ends_the_command() {
    let mount = mount();
    for (name, signal) in [("KILL", Signal::SIGKILL), ("SEGV", Signal::SIGSEGV), ("TERM", Signal::SIGTERM)] {
        let output = run(&mut exec(&mount, &["sh", "-c", &format!("echo last; kill -{name} $$")]));
        assert_eq!(output.status.signal(), Some(signal as i32), "{name}");
        assert_eq!(text(&output.stdout), "last\n");
    }
    assert_eq!(lines_of(&lines(&mount), Stream::Stdout), ["last"; 3]);
}

/// The command reports the end itself, once, and the daemon nothing: whether or not the kernel tells the daemon.
#[test]
fn end_of_the_program_is_kept_once_on_every_kernel() {
    for without in [false, true] {
        let mount = Mount::prepared(&["--channel=log:timed:subbuf-size=1M:n-subbufs=8"], |command| {
            if without { without_ends(command) } else { command }
        });
        let scripts = [
            ("kill -KILL $$", "killed by signal 9 (SIGKILL)"),
            ("exit 3", "exited with status 3"),
            ("exit 137", "exited with status 137"),
            ("exit 0", ""),
        ];
        for (n, (script, _)) in scripts.iter().enumerate() {
            run(&mut exec(&mount, &["sh", "-c", &format!("echo {n}; {script}")]));
        }
        // Its own end, which the daemon notes if it can. Behind it there is nothing to come of the others.
        let mut command = exec(&mount, &["sh", "-c", "read line"]);
        let mut last = Process::start(command.stdin(Stdio::piped()));
        eventually("the last one to attach", || {
            let processes = fs::read_to_string(mount.control("log", "processes")).unwrap();
            processes.lines().filter(|line| line.contains('\t')).count() == scripts.len() + 1
        });
        last.signal(Signal::SIGKILL);
        last.wait();
        let trace = || fs::read_to_string(mount.control("log", "trace")).unwrap();
        if without {
            gone(&mount);
        } else {
            eventually("its end", || trace().trim_end().ends_with("killed by signal 9 (SIGKILL) --"));
        }
        let trace = trace();
        let mut lines = trace.lines();
        let mut next = || lines.next().unwrap_or_else(|| panic!("{trace}"));
        for (n, (_, end)) in scripts.iter().enumerate() {
            let (writer, said) = next().split_once(" sh[").unwrap().1.split_once("] ").unwrap();
            assert_eq!(said, format!("stdout: {n}"), "{trace}");
            if !end.is_empty() {
                assert!(next().ends_with(&format!(" -- sh[{writer}] {end} --")), "{n}: {trace}");
            }
        }
        assert_eq!(lines.count(), usize::from(!without), "{trace}");
    }
}

/// Waits until no process is connected any more, and what the daemon has to write of them is written.
fn gone(mount: &Mount) {
    eventually("the writers to go", || {
        let status = fs::read_to_string(mount.control("log", "status")).unwrap();
        !status.lines().any(|line| line.starts_with("writer "))
    });
}

/// Prints the names of signals that it gets, and ends with SIGTERM.
const HANDLER: &str = "
import os, signal, sys
# A signal that comes just before pause(2) would wait there for the next one.
wake, woken = os.pipe()
os.set_blocking(woken, False)
signal.set_wakeup_fd(woken)
def handle(number, frame):
    print(signal.Signals(number).name, flush=True)
    if number == signal.SIGTERM: sys.exit(5)
for name in ('HUP', 'INT', 'USR1', 'USR2', 'WINCH', 'TERM'):
    signal.signal(getattr(signal, 'SIG' + name), handle)
print('ready', flush=True)
while True: os.read(wake, 1)
";

#[test]
fn end_of_the_program_is_kept_behind_its_output() {
    let mount = mount();
    for n in 1..=20 {
        run(&mut exec(&mount, &["sh", "-c", &format!("echo {n}; exit 3")]));
        eventually("the end of the program", || {
            let trace = fs::read_to_string(mount.control("log", "trace")).unwrap();
            let ends = trace.lines().filter(|line| line.ends_with(" exited with status 3 --")).count();
            ends == n && trace.trim_end().ends_with(" exited with status 3 --")
        });
    }
}

#[test]
fn signals_to_the_command_are_forwarded_once() {
    let mount = mount();
    let command = exec(&mount, &["python3", "-c", HANDLER]);
    // The tests' starter may ignore some of them.
    let mut inner = tool("env", "coreutils");
    inner.arg("--default-signal").arg(command.get_program()).args(command.get_args());
    let mut process = Process::start(inner.stdout(Stdio::piped()));
    let mut stdout = BufReader::new(process.child().stdout.take().expect("piped"));
    let mut line = || {
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        line
    };
    assert_eq!(line(), "ready\n");
    let signals =
        [Signal::SIGHUP, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGWINCH, Signal::SIGTERM];
    for signal in signals {
        process.signal(signal);
        assert_eq!(line(), format!("{signal}\n"));
    }
    assert_eq!((line(), process.wait().code()), (String::new(), Some(5)));
}

/// Stops itself as at Ctrl-Z. Before, it prints a line, and behind it more than a pipe holds.
const STOPPER: &str = "
import os, signal
print('before', flush=True)
os.kill(os.getpid(), signal.SIGTSTP)
print('x' * 1000000, flush=True)
";

#[test]
fn program_that_is_stopped_stops_the_command() {
    let mount = mount();
    let mut command = exec(&mount, &["python3", "-c", STOPPER]);
    // A process group of a session that has others, as a shell makes them: such a group can be stopped.
    let mut process = Process::start(command.process_group(0).stdout(Stdio::piped()));
    stands_still(process.pid());
    kill(Pid::from_raw(-process.pid().as_raw()), Signal::SIGCONT).expect("signalling a group of ours");
    assert!(process.stdout() == [&b"before\n"[..], &[b'x'; 1_000_000], b"\n"].concat());
    assert!(process.wait().success());
    assert_eq!(
        lines_of(&lines(&mount), Stream::Stdout).concat(),
        "before".to_owned() + &"x".repeat(1_000_000)
    );
}

/// Runs the arguments on a terminal of their own, presses Ctrl-C when they print `ready`, and sends them SIGTERM when
/// they have got the signal. Prints what was on the terminal.
const TERMINAL: &str = "
pid, terminal = on_terminal(sys.argv[1:])
seen = b''
def until(what):
    global seen
    while what not in seen:
        try: more = os.read(terminal, 1000)
        except OSError: break
        if not more: break
        seen += more
until(b'ready\\r\\n')
os.write(terminal, b'\\x03')
until(b'SIGINT\\r\\n')
os.kill(pid, signal.SIGTERM)
until(b'no such text')
sys.stdout.write(seen.decode())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";

#[test]
fn signal_of_a_terminal_reaches_the_program_once() {
    let mount = mount();
    let mut command = tool("python3", "python3");
    let within = exec(&mount, &["python3", "-c", HANDLER]);
    let script = format!("{ON_TERMINAL}{TERMINAL}");
    command.args(["-c", &script]).arg(within.get_program()).args(within.get_args());
    let output = run(&mut command);
    assert_eq!(text(&output.stdout), "ready\r\nSIGINT\r\nSIGTERM\r\n");
    assert_eq!(output.status.code(), Some(5));
}

#[test]
fn program_finds_signals_and_descriptors_as_its_caller_left_them() {
    let mount = mount();
    let look = "grep -E 'SigBlk|SigIgn|SigPnd' /proc/self/status; ls -l /proc/self/fd | grep -c '[0-2] ->'";
    let callers = [("", ""), ("trap '' PIPE HUP CHLD XFSZ USR1; ", ""), ("exec <&-; ", "")];
    for (before, _) in callers {
        let alone = stdout_of(tool("sh", "dash").args(["-c", &format!("{before}sh -c \"{look}\"")]));
        let within = format!("{before}exec \"$0\" \"$@\" --exec sh -c \"{look}\"");
        let mut command = tool("sh", "dash");
        command.args(["-c", &within]).arg(program("relay-producer")).arg("-m").arg(mount.point());
        let within = stdout_of(command.args(["-c", "log"]));
        assert_eq!(text(&within), text(&alone), "after {before:?}");
    }
}

#[test]
fn program_that_cannot_run_is_reported_as_by_a_shell() {
    let mount = mount();
    let complaint = |output: Output, code| {
        assert_eq!((output.status.code(), output.stdout.len()), (Some(code), 0));
        let said = text(&output.stderr);
        assert!(said.starts_with("relay-producer: ") && said.lines().count() == 1, "{said}");
        said
    };
    let said = complaint(run(&mut exec(&mount, &["no-such-program"])), 127);
    assert!(said.contains("no-such-program: cannot run it: No such file"), "{said}");
    let file = mount.beside("plain");
    fs::write(&file, "text").expect("a file");
    let said = complaint(run(&mut exec(&mount, &[file.to_str().expect("a path of text")])), 126);
    assert!(said.contains("Permission denied"), "{said}");
}

#[test]
fn program_runs_without_a_daemon() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = Command::new(program("relay-producer"));
    command.arg("-m").arg(dir.path()).args(["--exec", "sh", "-c", "echo out; exit 4"]);
    let output = run(&mut command);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(4), &b"out\n"[..]));
    let said = text(&output.stderr);
    assert!(said.contains("the program runs without a record") && said.lines().count() == 1, "{said}");
}

#[test]
fn daemon_that_comes_later_gets_the_lines_from_then_on() {
    let mut mount = mount();
    mount.end(Signal::SIGTERM);
    let mut command = exec(&mount, &["sh", "-c", "while read line; do echo \"$line\"; done; exit 5"]);
    let mut process =
        Process::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut stdout = BufReader::new(process.child().stdout.take().expect("piped"));
    let mut stdin = process.child().stdin.take().expect("piped");
    let mut n_passed = 0;
    let mut pass = |text: &str| {
        stdin.write_all(text.as_bytes()).expect("the program reads");
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        assert_eq!(line, text, "passed on as it is");
        n_passed += 1;
    };
    pass("early\n");
    mount.restart(&["--channel=log:timed:subbuf-size=1M:n-subbufs=8"]);
    let trace = || fs::read_to_string(mount.control("log", "trace")).expect("the trace");
    eventually("a line that is kept", || {
        pass("later\n");
        trace().contains("later")
    });
    drop(stdin);
    assert_eq!(process.wait().code(), Some(5));
    eventually("the end of the program", || trace().trim_end().ends_with(" exited with status 5 --"));
    let found = trace();
    assert!(!found.contains("early") && found.lines().all(|line| line.contains(" sh[")), "{found}");
    let said = process.stderr();
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].contains("the program runs without a record until it is there"),
        "{said}"
    );
    let missed = n_passed - (found.lines().count() - 1);
    assert!(
        lines[1].ends_with(&format!(
            "lines are kept from now on; {missed} line{} came before",
            if missed == 1 { "" } else { "s" }
        )),
        "{said}"
    );
}

#[test]
fn program_runs_on_when_its_daemon_ends() {
    let mut mount = mount();
    let mut command = exec(&mount, &["sh", "-c", "echo one; read line; echo \"$line\"; exit 6"]);
    let mut process = Process::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut stdout = BufReader::new(process.child().stdout.take().expect("piped"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("a line");
    mount.end(Signal::SIGKILL);
    process.child().stdin.take().expect("piped").write_all(b"two\n").expect("the program reads");
    stdout.read_line(&mut line).expect("a line");
    assert_eq!((line.as_str(), process.wait().code()), ("one\ntwo\n", Some(6)));
}

/// The caller need not wait for processes that the program leaves running.
#[test]
fn output_of_processes_left_running_is_kept_too() {
    let mount = mount();
    let fifo = mount.beside("fifo");
    stdout_of(tool("mkfifo", "coreutils").arg(&fifo));
    let script = format!("(read line < '{}'; echo \"$line\"; echo end >&2) & echo first", fifo.display());
    let mut command = exec(&mount, &["sh", "-c", &script]);
    let mut process = Process::start(command.stdout(Stdio::piped()).stderr(Stdio::null()));
    let mut stdout = BufReader::new(process.child().stdout.take().expect("piped"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("a line");
    assert!(process.wait().success());
    fs::write(&fifo, "later\n").expect("a reader");
    stdout.read_to_string(&mut line).expect("the rest");
    assert_eq!(line, "first\nlater\n");
    let mut kept = Vec::new();
    eventually("the last lines", || {
        kept.extend(lines(&mount));
        lines_of(&kept, Stream::Stderr) == ["end"] && lines_of(&kept, Stream::Stdout) == ["first", "later"]
    });
}

/// A process that never pauses does not hold the program's caller either.
#[test]
fn process_left_writing_does_not_hold_the_caller() {
    let mount = mount();
    let script = "timeout 60 yes & until [ -s \"$0\" ]; do :; done; exit 4";
    let out = mount.beside("out");
    let mut command = exec(&mount, &["sh", "-c", script, out.to_str().expect("a path")]);
    let file = fs::File::create(&out).expect("a file");
    let mut process = Process::start(command.process_group(0).stdout(file));
    let status = process.wait();
    // Its output has no reader any more: that ends it.
    kill(Pid::from_raw(-process.pid().as_raw()), Signal::SIGTERM).expect("signalling a group of ours");
    assert_eq!(status.code(), Some(4));
}

#[test]
fn raw_channel_gets_lines_as_messages() {
    let mount = Mount::new(&[]);
    let mut command = Command::new(program("relay-producer"));
    command.arg("-m").arg(mount.point()).args([
        "-c",
        "raw",
        "--create=global",
        "--exec",
        "printf",
        "one\\ntwo",
    ]);
    assert_eq!(stdout_of(&mut command), b"one\ntwo");
    mount.poke("raw", "flush");
    assert_eq!(text(&mount.read("raw0")), "one\ntwo\n");
}
