//! Programs that sleep in poll(2) or select(2) until there is data. They show a few bytes soon after the write, and
//! end as on a pipe. A sub-buffer is 256 KiB here, so none is ever full.

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use relayfs_tests::{Mount, Process, eventually, exit_code, interruptible, tool};

const MESSAGES: [&[u8]; 3] = [b"one\n", b"and another\n", b"the last\n"];

/// Reads `len` bytes as soon as the program has them.
#[track_caller]
fn take(source: &mut impl Read, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    source.read_exact(&mut got).expect("what was written");
    assert_eq!(got, expected);
}

/// Starts a program that shows the buffer of CPU 0. Checks that it shows each message soon, until a signal ends it.
#[track_caller]
fn shows_each_message(mount: &Mount, command: &mut Command, ends_with: &[i32]) {
    mount.send(0, &[b"before\n"]);
    let mut shower = Process::start(interruptible(command).stdout(Stdio::piped()).stderr(Stdio::null()));
    let mut shown = shower.child().stdout.take().expect("a pipe");
    take(&mut shown, b"before\n");
    for message in MESSAGES {
        mount.send(0, &[message]);
        take(&mut shown, message);
    }
    assert!(shower.is_running(), "{command:?} waits for more");
    shower.signal(Signal::SIGINT);
    let code = exit_code(shower.wait());
    assert!(ends_with.contains(&code), "{command:?}: {code}");
    assert_eq!(mount.read("cpu0"), b"");
}

#[test]
fn socat_shows_each_message() {
    let mount = Mount::new(&[]);
    let file = mount.path("cpu0");
    for address in ["OPEN", "GOPEN", "FILE"] {
        let mut socat = tool("socat", "socat");
        let from = format!("{address}:{},rdonly", file.display());
        shows_each_message(&mount, socat.args(["-u", &from, "STDOUT"]), &[130]);
    }
}

#[test]
fn pv_shows_each_message() {
    let mount = Mount::new(&[]);
    let mut pv = tool("pv", "pv");
    shows_each_message(&mount, pv.arg("-q").arg(mount.path("cpu0")), &[0, 32, 130]);
}

#[test]
fn select_loop_shows_each_message() {
    let mount = Mount::new(&[]);
    let script = "
import os, select, sys
cpu = os.open(sys.argv[1], os.O_RDONLY)
while True:
    select.select([cpu], [], [])
    data = os.read(cpu, 4096)
    if not data: break
    os.write(1, data)
";
    let mut python = tool("python3", "python3");
    shows_each_message(&mount, python.args(["-c", script]).arg(mount.path("cpu0")), &[130]);
}

/// nc copies its standard input to a socket.
#[test]
fn nc_sends_each_message() {
    let mount = Mount::new(&[]);
    let socket = mount.beside("listener");
    let listener = UnixListener::bind(&socket).unwrap();
    mount.send(0, &[b"before\n"]);
    let mut nc = tool("nc", "netcat-openbsd");
    let input = std::fs::File::open(mount.path("cpu0")).unwrap();
    let mut nc = Process::start(interruptible(nc.arg("-U").arg(&socket)).stdin(input));
    let mut sent = listener.accept().unwrap().0;
    take(&mut sent, b"before\n");
    for message in MESSAGES {
        mount.send(0, &[message]);
        take(&mut sent, message);
    }
    assert!(nc.is_running());
    nc.signal(Signal::SIGINT);
    assert_eq!(exit_code(nc.wait()), 130);
}

/// The daemon's end is the end for a poller, like the last writer's on a pipe.
#[test]
fn pollers_end_with_the_daemon() {
    let commands: [fn(&Path) -> Command; 2] = [
        |file| {
            let mut socat = tool("socat", "socat");
            socat.args(["-u", &format!("OPEN:{},rdonly", file.display()), "STDOUT"]);
            socat
        },
        |file| {
            let mut pv = tool("pv", "pv");
            pv.arg("-q").arg(file);
            pv
        },
    ];
    for command in commands {
        let mut mount = Mount::new(&[]);
        mount.send(0, &[b"before\n"]);
        let mut command = command(&mount.path("cpu0"));
        let mut poller = Process::start(command.stdout(Stdio::piped()).stderr(Stdio::null()));
        take(poller.child().stdout.as_mut().expect("a pipe"), b"before\n");
        mount.end(Signal::SIGTERM);
        eventually("the end of a poller", || !poller.is_running());
    }
}
