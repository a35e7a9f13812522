//! Programs without standard input, output or error, in each combination, and with unusable streams. Libraries do not
//! use the closed numbers, and commands report a missing stream before they read anything.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;
use relayfs_tests::background::Place;
use relayfs_tests::classic::Classic;
use relayfs_tests::direct::with_sequences;
use relayfs_tests::disk::Disk;
use relayfs_tests::librelay::{Linked, libraries};
use relayfs_tests::{Mount, Process, eventually, exit_code, program, run, run_with_input, text};

/// Which streams are closed: bit N stands for descriptor N.
const MASKS: std::ops::RangeInclusive<u8> = 0..=7;
const STDIN: u8 = 1;
const STDOUT: u8 = 2;
const STDERR: u8 = 4;

/// Returns a command that runs another one without the streams of a mask.
fn without(mask: u8, command: &Command) -> Command {
    let redirection = [(STDIN, "<&-"), (STDOUT, ">&-"), (STDERR, "2>&-")]
        .map(|(bit, text)| if mask & bit != 0 { text } else { "" });
    redirected(&redirection.join(" "), command)
}

/// Returns a command that runs another one with redirections of the shell.
fn redirected(redirections: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("exec \"$@\" {redirections}")).arg("sh");
    shell.arg(command.get_program()).args(command.get_args()).env_remove("RELAYFS");
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

fn audience(mount: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program("audience"));
    command.arg("-m").arg(mount).args(args);
    command
}

fn producer(mount: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program("relay-producer"));
    command.arg("-m").arg(mount).args(args);
    command
}

/// Checks the exit status, and the message if standard error was open.
#[track_caller]
fn expect(mask: u8, output: &Output, code: i32, said: &str) {
    let stderr = text(&output.stderr);
    assert_eq!(exit_code(output.status), code, "without {mask}: {stderr}");
    let expected = if mask & STDERR != 0 { "" } else { said };
    assert!(
        stderr.contains(expected) && stderr.is_empty() == expected.is_empty(),
        "without {mask}: {stderr}"
    );
}

const NO_OUTPUT: &str = "audience: standard output is closed: nothing was read";

#[test]
fn audience_without_output_reads_nothing() {
    let mount = Mount::new(&[]);
    for mask in MASKS {
        for args in [&[][..], &["--snapshot"], &["-f"], &["-f", "--interval=0.1"]] {
            let follows = args.first() == Some(&"-f");
            if mask & STDOUT == 0 && follows {
                continue;
            }
            mount.send(0, &[b"precious\n"]);
            let output = run(&mut without(mask, &audience(mount.point(), args)));
            if mask & STDOUT != 0 {
                expect(mask, &output, 1, NO_OUTPUT);
            } else {
                expect(mask, &output, 0, "");
                assert_eq!(text(&output.stdout), "precious\n", "without {mask}");
            }
            let left = if mask & STDOUT != 0 || args == ["--snapshot"] { "precious\n" } else { "" };
            assert_eq!(text(&mount.read("cpu0")), left, "without {mask}: {args:?}");
        }
    }
}

/// If nothing is mounted, it mounts nothing.
#[test]
fn audience_without_output_mounts_nothing() {
    let place = Place::new();
    let output = run(&mut without(STDOUT, &audience(place.point(), &[])));
    expect(STDOUT, &output, 1, NO_OUTPUT);
    assert_eq!(text(&output.stderr).lines().count(), 1);
}

/// Left data is not printed, which is an error.
#[test]
fn state_without_output_is_an_error() {
    let mut mount = Mount::new(&["--keep"]);
    mount.send(0, &[b"left\n"]);
    let state = fs::canonicalize(mount.control("cpu", "control")).expect("a control file");
    assert!(state.exists());
    let dir = Path::new("/dev/shm").join(format!("relayfs-{}", nix::unistd::geteuid())).join(
        mount.point().strip_prefix("/").expect("an absolute path").to_str().expect("text").replace('/', "-"),
    );
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
    let mut command = Command::new(program("audience"));
    command.arg("--state").arg(&dir);
    for mask in MASKS {
        let output = run(&mut without(mask, &command));
        let code = i32::from(mask & STDOUT != 0);
        assert_eq!(exit_code(output.status), code, "without {mask}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), if code == 0 { "left\n" } else { "" });
    }
}

/// A recording is in files, and needs no stream.
#[test]
fn record_needs_no_standard_streams() {
    let mount = Mount::new(&[]);
    for mask in MASKS {
        mount.send(0, &[b"recorded\n"]);
        let dir = mount.beside(&format!("recording-{mask}"));
        let mut command = Command::new(program("audience"));
        command.args(["record", "--duration=10ms", "--progress=0", "-m"]).arg(mount.point());
        let output = run(&mut without(mask, command.arg("-o").arg(&dir)));
        assert_eq!(exit_code(output.status), 0, "without {mask}: {}", text(&output.stderr));
        assert_eq!(text(&fs::read(dir.join("cpu0")).expect("a recording")), "recorded\n", "without {mask}");
    }
}

#[test]
fn producer_without_input_says_so() {
    let mount = Mount::new(&["--channel=all:global"]);
    for mask in MASKS {
        let arguments = producer(mount.point(), &["-c", "all", "message"]);
        expect(mask, &run(&mut without(mask, &arguments)), 0, "");
        assert_eq!(text(&mount.read("all0")), "message\n", "without {mask}");
        let output = run_with_input(&mut without(mask, &producer(mount.point(), &["-c", "all"])), b"line\n");
        if mask & STDIN != 0 {
            expect(mask, &output, 1, "relay-producer: standard input is closed: no messages to read");
        } else {
            expect(mask, &output, 0, "");
        }
        assert_eq!(
            text(&mount.read("all0")),
            if mask & STDIN != 0 { "" } else { "line\n" },
            "without {mask}"
        );
    }
    let output = run(&mut redirected("0>/dev/null", &producer(mount.point(), &[])));
    expect(0, &output, 1, "relay-producer: standard input is not open for reading: no messages to read");
    // An immediate end of input is no error.
    let output = run(&mut redirected("0<>/dev/null", &producer(mount.point(), &[])));
    expect(0, &output, 0, "");
}

/// A daemon is often started without streams: it opens /dev/null for them.
#[test]
fn daemon_starts_without_standard_streams() {
    for mask in MASKS {
        for foreground in [false, true] {
            let place = Place::new();
            let daemon = if foreground {
                let mut command = without(mask, &place.command(&["-f"]));
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                let mut process = Process::start(&mut command);
                eventually("the mount", || {
                    assert!(process.is_running(), "without {mask}");
                    place.path(".relay/version").exists()
                });
                Err(process)
            } else {
                Ok(place.start_by(&mut without(mask, &place.command(&[]))))
            };
            let pid = daemon.as_ref().map_or_else(|process| process.pid(), |daemon| daemon.pid());
            for fd in 0..=2 {
                let target = fs::read_link(format!("/proc/{pid}/fd/{fd}")).expect("a standard stream");
                assert_eq!(target, Path::new("/dev/null"), "without {mask}, foreground {foreground}: {fd}");
            }
            expect(0, &run(&mut producer(place.point(), &["--cpu=0", "message"])), 0, "");
            assert_eq!(text(&fs::read(place.path("cpu0")).expect("a buffer")), "message\n");
            if let Err(process) = daemon {
                process.signal(Signal::SIGTERM);
                eventually("the end", || !relayfs_tests::is_mounted(place.point()));
            }
        }
    }
}

#[test]
fn help_and_version_without_output_are_errors() {
    for name in ["relayfsd", "relay-producer", "audience"] {
        for option in ["--help", "--version", "-V", "-h"] {
            let mut command = Command::new(program(name));
            command.arg(option);
            for mask in MASKS {
                let output = run(&mut without(mask, &command));
                if mask & STDOUT != 0 {
                    expect(mask, &output, 1, &format!("{name}: standard output is closed\n"));
                } else {
                    expect(mask, &output, 0, "");
                    assert!(text(&output.stdout).contains(name), "{name} {option} without {mask}");
                }
            }
            let output = run(&mut redirected("1</dev/null", &command));
            expect(0, &output, 1, &format!("{name}: standard output is not open for writing\n"));
            let output = run(&mut redirected(">/dev/full", &command));
            expect(0, &output, 1, &format!("{name}: cannot write to standard output: No space left"));
        }
    }
}

/// An unusable output is reported before anything is read. Output to /dev/null is accepted, however it is open.
#[test]
fn output_that_takes_nothing_is_found_before_anything_is_read() {
    let mount = Mount::new(&[]);
    mount.send(0, &[b"precious\n"]);
    for args in [&[][..], &["--snapshot"], &["-f"]] {
        for (redirection, said) in [
            ("1</dev/null", "audience: standard output is not open for writing: nothing was read"),
            (">/dev/full", "audience: cannot write to standard output: No space left on device"),
        ] {
            let output = run(&mut redirected(redirection, &audience(mount.point(), args)));
            expect(0, &output, 1, said);
        }
    }
    assert_eq!(mount.stats("cpu")["total.read_bytes"], 0);
    for redirection in [">/dev/null", "1<>/dev/null"] {
        mount.send(0, &[b"unwanted\n"]);
        expect(0, &run(&mut redirected(redirection, &audience(mount.point(), &[]))), 0, "");
        assert_eq!(text(&mount.read("cpu0")), "", "{redirection}");
    }
}

/// The disk becomes full during the output: the number of lost bytes is reported, and the rest is still in the
/// buffer.
#[test]
fn full_disk_under_the_output_says_what_was_lost() {
    let mount = Mount::new(&["--subbuf-size=1M", "--n-subbufs=8"]);
    let disk = Disk::new(mount.beside("disk"), "64K");
    let message = vec![b'm'; 100_000];
    for _ in 0..40 {
        mount.send(0, &[&message]);
    }
    let all = 4_000_000;
    // A snapshot loses nothing.
    for (args, is_copy) in [(&["--snapshot"][..], true), (&[], false)] {
        let out = disk.path().join("out");
        let mut command = audience(mount.point(), args);
        command.stdout(File::create(&out).expect("a file on a small disk"));
        let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).output().expect("audience");
        assert_eq!(exit_code(output.status), 1);
        let (said, written) = (text(&output.stderr), fs::metadata(&out).expect("its output").len());
        let left = mount.read("cpu0").len() as u64 * u64::from(!is_copy);
        let lost = if is_copy { 0 } else { all - left - written };
        assert!(is_copy || lost > 0);
        let told = match lost {
            0 => "No space left on device (os error 28)\n".to_owned(),
            lost => format!("; {lost} bytes that were read are lost, the rest is still in the buffers\n"),
        };
        assert!(said.starts_with("audience: cannot write to standard output: No space left"), "{said}");
        assert!(said.ends_with(&told), "{said}: {all} written, {written} printed, {left} left");
        if is_copy {
            for _ in 0..40 {
                mount.send(0, &[&message]);
            }
        }
    }
}

/// The C library, with and without shared buffers.
#[test]
fn c_library_leaves_the_numbers_of_closed_streams_alone() {
    let mount = Mount::with_sequences(&["--channel=one:global"]);
    let linked = Linked::compile("tests/c/streams.c", &[]);
    for (mask, channel) in MASKS.flat_map(|mask| [(mask, "cpu"), (mask, "one")]) {
        let mut command = linked.command(mount.point());
        with_sequences(&mut command).arg("write").arg(mask.to_string()).arg(mount.point()).arg(channel);
        let output = run(&mut command);
        assert!(output.status.success(), "{channel}: {}", text(&output.stderr));
        let printed: String = text(&mount.read(&format!("{channel}0"))) + &text(&mount.read("cpu1"));
        assert_eq!(printed.matches("printed").count(), 0, "without {mask}, {channel}");
    }
}

/// Not for a moment either: another thread prints all the time.
#[test]
fn output_of_other_threads_is_in_no_channel() {
    let mount = Mount::with_sequences(&["--channel=app/log:subbuf-size=4K"]);
    let linked = Linked::compile("tests/c/streams.c", &[]);
    for mask in [STDIN, STDOUT, 7] {
        let mut command = linked.command(mount.point());
        with_sequences(&mut command).arg("print").arg(mask.to_string()).arg(mount.point()).arg("app/log");
        let output = run(&mut command);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let control = fs::read(mount.control("app/log", "control")).expect("a control file");
        assert_eq!(text(&control[..8]), "relayctl", "without {mask}");
    }
}

/// The Rust libraries. (A Rust program starts with /dev/null for closed streams.)
#[test]
fn rust_libraries_leave_the_numbers_of_closed_streams_alone() {
    let mount = Mount::with_sequences(&["--channel=one:global"]);
    for (mask, channel) in MASKS.flat_map(|mask| [(mask, "cpu"), (mask, "one")]) {
        let mut command = Command::new(program("test-streams"));
        with_sequences(&mut command).arg(mask.to_string()).arg(mount.point()).arg(channel);
        let output = run(&mut command);
        assert!(output.status.success(), "without {mask}, {channel}: {}", text(&output.stderr));
        mount.poke(channel, "reset");
    }
}

/// The preloaded library: it runs a daemon, with that daemon's messages in a file.
#[test]
fn preloaded_library_leaves_the_numbers_of_closed_streams_alone() {
    let classic = Classic::readers();
    let linked = Linked::compile("tests/c/streams.c", &[]);
    for mask in MASKS {
        let script = format!(
            "export LD_LIBRARY_PATH={}\n\
             export RELAYFSD=$2/relayfsd\n\
             LD_PRELOAD=$2/librelayfs_preload.so {} mount {mask} /mnt/relay; echo \"$?, $(mounted)\"",
            libraries().display(),
            linked.path().display(),
        );
        let printed = classic.run(&script);
        assert!(printed.ends_with("0, not mounted\n"), "without {mask}: {printed}");
    }
}
