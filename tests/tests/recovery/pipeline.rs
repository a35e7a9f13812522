//! `service | relay-producer`: the service outlives daemons. No line is lost at a clean end and the next start, and
//! the service never gets a SIGPIPE.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::process::{ChildStdin, Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use relayfs_tests::audience::audience;
use relayfs_tests::direct::pin_thread;
use relayfs_tests::stopped::Stopped;
use relayfs_tests::{Mount, Process, direct, eventually, exit_code, interruptible, program, stdout_of, text};

const ARGS: &[&str] = &["--subbuf-size=4096", "--n-subbufs=4"];

/// A `relay-producer` at the end of a pipe.
struct Pipeline {
    process: Process,
    input: Option<ChildStdin>,
    said: std::path::PathBuf,
}

impl Pipeline {
    fn start(mount: &Mount, args: &[&str]) -> Pipeline {
        let said = mount.beside("said");
        let mut command = Command::new(program("relay-producer"));
        command.arg("-m").arg(mount.point());
        if !args.contains(&"--exec") {
            command.arg("--cpu=0");
        }
        command.args(args);
        let mut command = interruptible(&command);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(File::create(&said).expect("a file"));
        let mut process = Process::start(direct::with_sequences(&mut command));
        let input = process.child().stdin.take();
        Pipeline { process, input, said }
    }

    /// Writes a line as the service. It must not fail.
    #[track_caller]
    fn line(&mut self, line: &str) {
        self.input.as_mut().expect("a pipe").write_all(line.as_bytes()).expect("relay-producer reads on");
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.said).expect("what it said")
    }

    /// Ends the service.
    #[track_caller]
    fn end(mut self) -> (i32, String) {
        self.input = None;
        (exit_code(self.process.wait()), self.said())
    }
}

/// Reads until the expected data has come.
#[track_caller]
fn has_read(mount: &Mount, expected: &str) {
    has_come(expected, || text(&mount.read("cpu0")));
}

/// Collects until the expected data has come.
#[track_caller]
fn has_come(expected: &str, mut read: impl FnMut() -> String) {
    let mut got = String::new();
    eventually(&format!("{expected:?}"), || {
        got += &read();
        assert!(expected.starts_with(&got), "{got:?} instead of {expected:?}");
        got == expected
    });
}

/// Returns the lines that it prints when it waits for a daemon, and when it has one again.
fn words(mount: &Mount) -> [String; 2] {
    let point = mount.point().display();
    [
        format!("relay-producer: the relayfsd of {point} has gone away: waiting for the next one\n"),
        format!("relay-producer: a relayfsd of {point} is there again: writing on\n"),
    ]
}

#[test]
fn service_outlives_clean_ends() {
    // Directly while the buffers stay, through the daemon, and to new buffers.
    for (daemon, producer) in [
        (&[][..], &[][..]),
        (&[], &["--transport=socket"]),
        (&["--discard"], &[]),
        (&["--shared=never"], &[]),
    ] {
        let args = [ARGS, daemon].concat();
        let mut mount = Mount::with_sequences(&args);
        let mut pipeline = Pipeline::start(&mount, producer);
        for round in 0..3 {
            pipeline.line(&format!("round {round}, before\n"));
            has_read(&mount, &format!("round {round}, before\n"));
            assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
            pipeline.line(&format!("round {round}, meanwhile\n"));
            pipeline.line(&format!("round {round}, and more\n"));
            mount.restart_with_sequences(&args);
            has_read(&mount, &format!("round {round}, meanwhile\nround {round}, and more\n"));
        }
        let (code, said) = pipeline.end();
        assert_eq!(code, 0, "{daemon:?} {producer:?}: {said}");
        let [waiting, again] = words(&mount);
        let rounds = said.matches(&waiting).count();
        assert!(said == format!("{waiting}{again}").repeat(rounds), "{daemon:?} {producer:?}: {said}");
    }
}

/// The daemon dies, and its buffers with it, as in a container that goes. Nothing tells the producer, which has room left.
#[test]
fn next_daemon_without_the_buffers_gets_the_next_line() {
    // The CPU where the command writes the first line. The buffer is that of CPU 0, so from CPU 1 it sends the line.
    for (producer, cpu) in [(&[][..], 0), (&[], 1), (&["--exec", "cat"], 0)] {
        let mut mount = Mount::with_sequences(ARGS);
        let mut pipeline = Pipeline::start(&mount, producer);
        let pid = Pid::from_raw(pipeline.process.child().id().cast_signed());
        pin_thread(pid, cpu);
        // A line of a program is written on the CPU where its pipe is read.
        let read = |mount: &Mount| text(&stdout_of(&mut audience(mount.point(), &[])));
        pipeline.line("before\n");
        has_come("before\n", || read(&mount));
        let state = relay::layout::paths::state_dir(mount.point(), nix::unistd::geteuid().as_raw());
        mount.end(Signal::SIGKILL);
        fs::remove_dir_all(state).expect("the state directory");
        mount.restart_with_sequences(ARGS);
        pin_thread(pid, 0);
        pipeline.line("after\n");
        has_come("after\n", || read(&mount));
        let (code, said) = pipeline.end();
        assert_eq!((code, said.as_str()), (0, ""), "{producer:?}");
    }
}

/// The same, and the program writes no further line: its end, and what it left of a line, are for the next daemon.
#[test]
fn next_daemon_without_the_buffers_gets_the_end_of_a_program() {
    let args = [ARGS, &["--channel=box:timed"]].concat();
    let mut mount = Mount::with_sequences(&args);
    let program = "printf 'before\\npart'; read line; kill -KILL $$";
    let mut pipeline = Pipeline::start(&mount, &["-c", "box", "--exec", "sh", "-c", program]);
    let read = |mount: &Mount| text(&stdout_of(&mut audience(mount.point(), &["-c", "box"])));
    eventually("a line", || read(&mount).contains("stdout: before\n"));
    let state = relay::layout::paths::state_dir(mount.point(), nix::unistd::geteuid().as_raw());
    mount.end(Signal::SIGKILL);
    fs::remove_dir_all(state).expect("the state directory");
    mount.restart_with_sequences(&args);
    pipeline.line("go\n");
    let mut got = String::new();
    eventually("the end", || {
        got += &read(&mount);
        got.contains("killed by signal 9 (SIGKILL)")
    });
    assert!(got.contains("stdout: part\n"), "{got}");
    assert_eq!(pipeline.end().0, 128 + 9);
}

/// The next daemon takes the connection and does not answer. A program that prints much does not wait for it each time.
#[test]
fn daemon_that_stands_still_does_not_hold_up_a_program() {
    let mut mount = Mount::with_sequences(ARGS);
    // A wait at each read of the program's pipe would take minutes.
    let program = "read line; echo $line; read line; yes \"$(printf %01000d 0)\" | head -c 128M";
    let mut pipeline = Pipeline::start(&mount, &["--exec", "sh", "-c", program]);
    pipeline.line("before\n");
    has_come("before\n", || text(&stdout_of(&mut audience(mount.point(), &[]))));
    mount.end(Signal::SIGKILL);
    mount.restart_with_sequences(ARGS);
    let stopped = Stopped::new(mount.daemon().pid());
    pipeline.line("go\n");
    eventually("the end of the program", || !pipeline.process.is_running());
    drop(stopped);
    let (code, said) = pipeline.end();
    assert_eq!(code, 0, "{said}");
}

/// Daemons end while lines wait for room inside them: no line is lost, or written twice, or out of order.
#[test]
fn lines_that_wait_for_room_outlive_clean_ends() {
    for (daemon, producer) in [(&[][..], &["--wait"][..]), (&[], &["--wait", "--transport=socket"])] {
        let args = [ARGS, daemon].concat();
        let mut mount = Mount::new(&args);
        let mut pipeline = Pipeline::start(&mount, producer);
        let mut input = pipeline.input.take().expect("a pipe");
        let lines: String = (0..60_000).map(|number| format!("{number}\n")).collect();
        let service = {
            let lines = lines.clone();
            std::thread::spawn(move || input.write_all(lines.as_bytes()))
        };
        let (mut got, mut ends) = (String::new(), 0);
        while got.len() < lines.len() {
            eventually("more lines", || {
                // A part at a time: a read to the end might take all that is written meanwhile.
                let mut part = [0; 4096];
                let n = File::open(mount.path("cpu0")).expect("a buffer").read(&mut part).expect("reading");
                got += &text(&part[..n]);
                n > 0
            });
            assert!(lines.starts_with(&got), "{producer:?}: wrong at byte {}", got.len());
            if got.len() > (ends + 1) * lines.len() / 8 {
                ends += 1;
                assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
                mount.restart(&args);
            }
        }
        service.join().expect("the service").expect("no line was refused");
        let (code, said) = pipeline.end();
        assert_eq!((code, ends), (0, 7), "{producer:?}: {said}");
        assert_eq!(mount.stats("cpu")["total.dropped"], 0);
    }
}

/// It waits with a full pipe behind it, and so does the service. No line is lost.
#[test]
fn service_waits_while_no_daemon_is_there() {
    let args = [ARGS, &["--shared=never"]].concat();
    let mut mount = Mount::new(&args);
    let mut pipeline = Pipeline::start(&mount, &["--wait"]);
    pipeline.line("before\n");
    has_read(&mount, "before\n");
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
    pipeline.line("first\n");
    let [waiting, again] = words(&mount);
    eventually("a word about waiting", || pipeline.said() == waiting);
    let line = format!("{}\n", "x".repeat(999));
    let mut input = pipeline.input.take().expect("a pipe");
    let service = {
        let line = line.clone();
        std::thread::spawn(move || {
            // Several full pipes.
            (0..500).try_for_each(|_| input.write_all(line.as_bytes())).map(|()| input)
        })
    };
    mount.restart(&args);
    has_read(&mount, &format!("first\n{}", line.repeat(500)));
    pipeline.input = Some(service.join().expect("the service").expect("no line was refused"));
    let (code, said) = pipeline.end();
    assert_eq!((code, said), (0, format!("{waiting}{again}")));
}

/// It waits for the next daemon after a crash, too.
#[test]
fn service_outlives_a_crash() {
    let args = [ARGS, &["--shared=never"]].concat();
    let mut mount = Mount::new(&args);
    let mut pipeline = Pipeline::start(&mount, &[]);
    pipeline.line("before\n");
    has_read(&mount, "before\n");
    assert_eq!(exit_code(mount.end(Signal::SIGKILL)), 128 + 9);
    pipeline.line("meanwhile\n");
    eventually("a word about waiting", || pipeline.said() == words(&mount)[0]);
    mount.restart(&args);
    has_read(&mount, "meanwhile\n");
    assert_eq!(pipeline.end().0, 0);
}

/// Signals end it while it waits.
#[test]
fn signals_end_a_producer_that_waits() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut mount = Mount::new(&[ARGS, &["--shared=never"]].concat());
        let mut pipeline = Pipeline::start(&mount, &[]);
        pipeline.line("before\n");
        has_read(&mount, "before\n");
        assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
        pipeline.line("never written\n");
        eventually("a word about waiting", || pipeline.said() == words(&mount)[0]);
        pipeline.process.signal(signal);
        assert_eq!(exit_code(pipeline.process.wait()), 128 + signal as i32);
    }
}

/// A file can be read again: the command waits for no daemon. Nor does it at its start.
#[test]
fn input_from_file_and_start_wait_for_no_daemon() {
    let mut mount = Mount::new(&[ARGS, &["--shared=never"]].concat());
    let file = mount.beside("lines");
    fs::write(&file, "a line\n".repeat(100_000)).unwrap();
    let said = mount.beside("said");
    let mut command = Command::new(program("relay-producer"));
    command.arg("-m").arg(mount.point()).args(["--cpu=0", "--wait"]);
    command.stdin(File::open(&file).unwrap()).stderr(File::create(&said).unwrap());
    let mut producer = Process::start(&mut command);
    eventually("a full buffer", || mount.stats("cpu")["cpu0.produced"] >= 4);
    assert_eq!(exit_code(mount.end(Signal::SIGKILL)), 128 + 9);
    assert_eq!(exit_code(producer.wait()), 1);
    let text = fs::read_to_string(&said).unwrap();
    assert!(text.lines().count() == 1 && text.contains("the daemon has gone away"), "{text}");

    let mut command = Command::new(program("relay-producer"));
    let output = relayfs_tests::run_with_input(command.arg("-m").arg(mount.point()), b"line\n");
    assert_eq!(exit_code(output.status), 1);
    assert!(relayfs_tests::text(&output.stderr).contains("has died and left its mount behind: umount it"));
}
