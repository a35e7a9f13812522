//! The examples for C, C++ and Python, built and run, and the C ones under Valgrind.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use relayfs_tests::librelay::{Linked, prepare};
use relayfs_tests::{Mount, Process, eventually, run, run_with_input, stdout_of, text, tool, workspace};

const EXAMPLES: &str = "relay-producer/examples";

#[track_caller]
fn example(name: &str) -> Linked {
    Linked::compile(&format!("{EXAMPLES}/{name}"), &[])
}

/// Returns all data of a channel's buffers, one after the other.
fn all(mount: &Mount, channel: &str) -> String {
    let files = (0..).map(|cpu| format!("{channel}{cpu}")).take_while(|file| mount.path(file).exists());
    files.map(|file| text(&mount.read(&file))).collect()
}

#[track_caller]
fn logged(mount: &Mount, threads: usize, lines: usize) {
    let log = all(mount, "app/log");
    for thread in 0..threads {
        let prefix = format!("thread {thread} line ");
        let found =
            log.lines().filter_map(|line| line.strip_prefix(&prefix)?.trim_end().parse::<usize>().ok());
        let mut found: Vec<usize> = found.collect();
        found.sort();
        assert_eq!(found, (0..lines).collect::<Vec<_>>(), "of thread {thread}");
    }
}

#[test]
fn example_hello_prints_its_message() {
    let mount = Mount::new(&[]);
    let hello = example("hello.c");
    stdout_of(&mut hello.command(mount.point()));
    mount.poke("cpu", "flush");
    assert_eq!(all(&mount, "cpu"), "Hello world\n");
    let output = run(&mut hello.command(Path::new("/no/such/place")));
    assert_eq!(text(&output.stderr), "relay_open: No such device\n");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn example_logger_writes_its_lines() {
    for shared in ["group", "never"] {
        let mount = Mount::new(&[&format!("--shared={shared}")]);
        let logger = example("logger.c");
        let keep = mount.send_to("cpu", 0, &[b"x"]);
        assert_eq!(keep.written, 1);
        stdout_of(logger.command(mount.point()).args(["4", "500"]));
        logged(&mount, 4, 500);
    }
}

#[test]
fn example_cplusplus_writes_its_message() {
    let mount = Mount::new(&[]);
    stdout_of(&mut example("compile.cc").command(mount.point()));
    assert_eq!(all(&mount, "app/cplusplus"), "from C++\n");
}

#[test]
fn example_python_writes_its_messages() {
    let mount = Mount::new(&[]);
    let mut python = tool("python3", "python3");
    python.arg(workspace().join(EXAMPLES).join("hello.py")).arg("app/python");
    let output = run_with_input(prepare(&mut python, mount.point()), b"one\ntwo\n");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(all(&mount, "app/python"), "one\ntwo\n");
    let mut python = tool("python3", "python3");
    python.arg(workspace().join(EXAMPLES).join("hello.py"));
    let output = run(prepare(&mut python, Path::new("/no/such/place")));
    assert_eq!(text(&output.stderr), "hello.py: cpu: No such device\n");
}

/// On kernels that cannot map files of FUSE, the reader says so.
#[test]
fn example_mmap_reader_reads_the_map() {
    let mut mount = Mount::new(&["--channel=log:subbuf-size=100:n-subbufs=4:header=8"]);
    let reader = example("mmap-reader.c");
    let out = mount.beside("out");
    let read = |drain: bool| {
        let mut command = Command::new(reader.path());
        command.args(drain.then_some("-n")).arg(mount.point()).args(["log", "0"]);
        command.stdout(fs::File::options().append(true).create(true).open(&out).expect("a file"));
        command
    };
    let sent = mount.send_to("log", 0, &[&[b'a'; 90], &[b'b'; 80], &[b'c'; 70]]);
    assert_eq!(sent.written, 3);
    stdout_of(&mut read(true));
    let expected = ["a".repeat(90), "b".repeat(80)].concat();
    assert_eq!(fs::read_to_string(&out).expect("what it wrote"), expected);
    // While it waits, and after another reader has read a part of the finished data.
    let mut process = Process::start(&mut read(false));
    mount.poke("log", "flush");
    let expected = [expected, "c".repeat(70)].concat();
    eventually("the rest", || fs::read_to_string(&out).expect("what it wrote") == expected);
    assert!(mount.end(Signal::SIGTERM).success());
    assert!(process.wait().success());
}

#[test]
fn wrong_arguments_print_a_usage_line() {
    let (mapper, logger) = (example("mmap-reader.c"), example("logger.c"));
    let refuses = |command: &mut Command, args: &[&str]| {
        let output = run(command.args(args));
        let said = text(&output.stderr);
        assert!(said.starts_with("usage: ") && said.lines().count() == 1, "{args:?}: {said}");
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{args:?}");
    };
    for args in
        [&[][..], &["-n"], &["/mnt/relay", "cpu"], &["/mnt/relay", "cpu", "0", "1"], &["/", "cpu", "x"]]
    {
        refuses(&mut Command::new(mapper.path()), args);
    }
    for args in [&["many"][..], &["65"], &["1", "-1"], &["1", "1", "1"]] {
        refuses(prepare(&mut Command::new(logger.path()), Path::new("/no/such/place")), args);
    }
    for args in [&["cpu", "log"][..], &["--help"]] {
        let mut python = tool("python3", "python3");
        python.arg(workspace().join(EXAMPLES).join("hello.py"));
        refuses(prepare(&mut python, Path::new("/no/such/place")), args);
    }
}

/// Valgrind has no restartable sequences, so this tests the socket.
#[test]
fn valgrind_finds_no_error() {
    let mount = Mount::new(&[]);
    let check = |program: &Linked, args: &[&str]| {
        let mut valgrind = tool("valgrind", "valgrind");
        valgrind.args([
            "--quiet",
            "--error-exitcode=9",
            "--leak-check=full",
            "--errors-for-leak-kinds=definite",
        ]);
        let output = run(prepare(valgrind.arg(program.path()).args(args), mount.point()));
        assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    };
    check(&example("hello.c"), &["one", "two"]);
    mount.poke("cpu", "flush");
    assert_eq!(all(&mount, "cpu").len(), 8);
    check(&example("logger.c"), &["3", "50"]);
    logged(&mount, 3, 50);
}
