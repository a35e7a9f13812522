//! librelay with bad arguments, without a daemon, and with closed channels: errno is set, and earlier messages are
//! not lost.

use nix::sys::signal::Signal;
use relayfs_tests::direct::is_without_sequences;
use relayfs_tests::librelay::{Caller, libraries};
use relayfs_tests::users::{NOBODY, by_user, copied_for_all};
use relayfs_tests::{Mount, eventually, text};

#[test]
fn null_is_an_error_everywhere() {
    let mount = Mount::new(&[]);
    let mut caller = Caller::start(mount.point());
    caller.expect(&[
        ("write - x", "EINVAL"),
        ("null - 0", "EINVAL"),
        ("reserve - x", "EINVAL"),
        ("commit -", "EINVAL"),
        ("flush -", "EINVAL"),
        ("reset -", "EINVAL"),
        ("close -", "EINVAL"),
        ("full - 0", "EINVAL"),
        ("consumed - 0 1", "EINVAL"),
        ("mkdir", "EINVAL"),
        ("rmdir-null", "EINVAL"),
        ("open 0 - 8192 2", "ENOTSUP"),
        ("open 0 log 8192 2", "0"),
        ("null 0 1", "EFAULT"),
        ("null 0 0", "0"),
        ("huge 0", "EMSGSIZE"),
        ("copy 0", "EINVAL"),
    ]);
    caller.end();
}

#[test]
fn impossible_sizes_and_names_are_refused() {
    let mount = Mount::new(&["--max-memory=64M"]);
    let mut caller = Caller::start(mount.point());
    let (long, longer) = ("n".repeat(200), "n".repeat(201));
    caller.expect(&[
        ("open 0 log 0 2", "EINVAL"),
        ("open 0 log 8192 0", "EINVAL"),
        ("open 0 log 18446744073709551615 18446744073709551615", "EINVAL"),
        ("open 0 log 4294967296 1", "EINVAL"),
        ("open 0 log 33554432 60", "ENOMEM"),
        ("open 0 a//b 8192 2", "EINVAL"),
        ("open 0 .relay 8192 2", "EINVAL"),
        ("open 0 ../up 8192 2", "EINVAL"),
        ("open 0 /root 8192 2", "EINVAL"),
        ("open 0 a/b/c/d/e 8192 2", "EINVAL"),
        ("open 0 \u{e4} 8192 2", "EINVAL"),
        ("open 0 \u{7f} 8192 2", "EINVAL"),
        ("open 0 log 8192 2 bad-dir", "EINVAL"),
        ("open 0 log 8192 2 dir=..", "EINVAL"),
        (&format!("open 0 {longer} 8192 2"), "ENAMETOOLONG"),
        (&format!("open 0 dir/{longer} 8192 2"), "ENAMETOOLONG"),
        (&format!("open 0 log 8192 2 dir={longer}"), "ENAMETOOLONG"),
        (&format!("open 0 {long} 8192 2"), "0"),
        ("write 0 fits", "0"),
        ("flush 0", "0"),
        // A name that a file of another channel has.
        ("open 1 cpu0 8192 2", "EEXIST"),
        ("write 1 x", "EINVAL"),
    ]);
    caller.end();
}

#[test]
fn closed_channel_is_recognized_and_others_unchanged() {
    let mount = Mount::new(&[]);
    let mut caller = Caller::start(mount.point());
    caller.expect(&[("go 0", "0"), ("open 0 other 8192 2", "0"), ("write 0 before.", "0")]);
    caller.expect(&[
        ("open 1 log 8192 2", "0"),
        ("write 1 kept", "0"),
        ("reserve 1 reserved", "0"),
        ("close 1", "0"),
        ("close 1", "EBADF"),
        ("write 1 x", "EBADF"),
        ("reserve 1 x", "EBADF"),
        ("commit 1", "EINVAL"),
        ("flush 1", "EBADF"),
        ("reset 1", "EBADF"),
        ("full 1 0", "EBADF"),
        ("consumed 1 0 1", "EBADF"),
        ("open 2 log 8192 2", "0"),
        ("close 1", "EBADF"),
        ("write 2 .again", "0"),
        ("write 0 after.", "0"),
    ]);
    // It is still known after many other channels.
    for _ in 0..100 {
        caller.expect(&[
            ("open 3 log 8192 2", "0"),
            ("close 3", "0"),
            ("close 1", "EBADF"),
            ("write 1 x", "EBADF"),
        ]);
    }
    caller.expect(&[("flush 0", "0"), ("flush 2", "0")]);
    assert_eq!(text(&mount.read("log0")), "keptreserved.again");
    assert_eq!(text(&mount.read("other0")), "before.after.");
    caller.end();
}

/// Handles and mappings do not accumulate.
#[test]
fn program_can_open_and_close_for_ever() {
    let mount = Mount::new(&[]);
    let mut caller = Caller::start(mount.point());
    for _ in 0..600 {
        caller.expect(&[("open 0 log 8192 2", "0"), ("write 0 x", "0"), ("close 0", "0")]);
    }
    eventually("that the daemon has noticed", || mount.stats("log")["total.bytes"] == 600);
    caller.end();
}

#[test]
fn closing_while_threads_write_is_safe() {
    for shared in ["group", "never"] {
        let mount = Mount::new(&[&format!("--shared={shared}")]);
        let mut caller = Caller::start(mount.point());
        for _ in 0..20 {
            caller.expect(&[("open 0 log 65536 4", "0"), ("race 0 4", "0"), ("write 0 x", "EBADF")]);
        }
        caller.end();
    }
}

/// A thread in a call while its channel is closed finds all memory in place, however many channels are closed after
/// it.
#[test]
fn call_that_runs_during_close_can_finish() {
    let mount = Mount::new(&[]);
    let mut caller = Caller::start(mount.point());
    if is_without_sequences() {
        caller.expect(&[("open 0 log 64 2 admit", "ENOTSUP")]);
        return;
    }
    caller.expect(&[
        ("go 0", "0"),
        ("open 0 log 64 2 admit", "0"),
        ("fill 0 x 60", "0"),
        ("hold 0 inside", "0"),
        ("close 0", "0"),
    ]);
    for _ in 0..300 {
        caller.expect(&[("open 1 other 8192 2 admit", "0"), ("write 1 x", "0"), ("close 1", "0")]);
    }
    let told = caller.tell("release");
    // No reader reads its messages after that. The call may return an error.
    assert!(["0", "EBADF"].contains(&told.as_str()), "{told}");
    caller.expect(&[
        ("write 0 x", "EBADF"),
        ("close 0", "EBADF"),
        ("open 1 other 64 2", "0"),
        ("write 1 x", "0"),
    ]);
    caller.end();
}

/// While a daemon dies or ends, calls set an errno that `relay.h` names.
#[test]
fn calls_during_end_of_daemon_return_documented_errors() {
    for (round, signal) in [Signal::SIGKILL, Signal::SIGTERM].into_iter().cycle().take(24).enumerate() {
        let shared = ["group", "never"][round / 2 % 2];
        let mut mount = Mount::new(&["--shared", shared]);
        let mut caller = Caller::start(mount.point());
        caller.expect(&[("go 0", "0"), ("open 0 log 64 2", "0")]);
        let asked = [
            ("open 1 log 64 2", &["0", "ENODEV", "ENOTCONN", "ECONNREFUSED"][..]),
            ("write 0 x", &["0", "ENOSPC", "ENODEV"]),
            ("flush 0", &["0", "ENODEV"]),
            ("full 0 0", &["0", "1", "ENODEV"]),
            ("reset 0", &["0", "ENODEV"]),
            ("consumed 0 0 1", &["0", "ENODEV"]),
        ];
        let mut ask = || {
            for (command, answers) in &asked {
                let told = caller.tell(command);
                assert!(answers.contains(&told.as_str()), "{shared}, {signal}: {command}: {told}");
                if *command == "open 1 log 64 2" && told == "0" {
                    caller.expect(&[("close 1", "0")]);
                }
            }
        };
        for _ in 0..round {
            ask();
        }
        mount.daemon().signal(signal);
        eventually("its end", || {
            ask();
            !mount.daemon().is_running()
        });
        ask();
        caller.end();
    }
}

#[test]
fn opening_without_daemon_returns_the_reason() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut caller = Caller::start(dir.path());
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("a file");
    caller.expect(&[
        ("open 0 log 8192 2", "ENODEV"),
        ("at 0 /no/such/place log 8192 2", "ENODEV"),
        (&format!("at 0 {} log 8192 2", file.display()), "ENODEV"),
        ("write 0 x", "EINVAL"),
    ]);
    caller.end();
}

#[test]
fn killed_daemon_is_a_socket_error_until_next_daemon() {
    for shared in ["group", "never"] {
        let args = ["--shared", shared];
        let mut mount = Mount::new(&args);
        let mut caller = Caller::start(mount.point());
        caller.expect(&[("go 0", "0"), ("open 0 log 64 2", "0"), ("write 0 kept", "0"), ("flush 0", "0")]);
        mount.daemon().signal(Signal::SIGKILL);
        mount.daemon().wait();
        // A direct writer does not need the daemon.
        if shared == "group" && !is_without_sequences() {
            caller.expect(&[("write 0 more", "0")]);
        } else {
            eventually("an error", || caller.tell("write 0 x") == "ENODEV");
        }
        caller.expect(&[
            ("flush 0", "ENODEV"),
            ("reset 0", "ENODEV"),
            ("consumed 0 0 1", "ENODEV"),
            ("open 1 log 64 2", "ENOTCONN"),
        ]);
        mount.restart(&args);
        eventually("the new daemon", || caller.tell("write 0 new") == "0");
        eventually("its answers", || caller.tell("flush 0") == "0");
        let found = text(&mount.read("log0"));
        assert!(found.starts_with("kept") && found.ends_with("new"), "{found}");
        caller.expect(&[("close 0", "0"), ("close 0", "EBADF")]);
        caller.end();
    }
}

#[test]
fn daemon_that_ends_takes_written_messages_then_calls_fail() {
    let mut mount = Mount::new(&["--discard"]);
    let mut caller = Caller::start(mount.point());
    caller.expect(&[("go 0", "0"), ("open 0 log 8192 2", "0"), ("write 0 kept", "0")]);
    let file = std::fs::File::open(mount.path("log0")).expect("a buffer");
    assert!(mount.end(Signal::SIGTERM).success());
    eventually("an error", || caller.tell("write 0 x") == "ENODEV");
    drop(file);
    // Over the socket, the library cannot know whether the daemon had all of it.
    let closed = if is_without_sequences() { "ENODEV" } else { "0" };
    caller.expect(&[("close 0", closed), ("open 0 log 8192 2", "ENODEV")]);
    caller.end();
}

#[test]
fn missing_permission_is_reported() {
    let mount = Mount::new(&["--socket-mode=0666"]);
    drop(Caller::start(mount.point())); // compiles it
    let dir = copied_for_all(&["api", "librelay.so.0"].map(|name| libraries().join(name)));
    let mut command = by_user(NOBODY, NOBODY, "/usr/bin/env");
    let library_path = format!("LD_LIBRARY_PATH={}", dir.path().display());
    command.arg(library_path).arg(dir.path().join("api"));
    let mut caller = Caller::run(command, mount.point());
    caller.expect(&[("open 0 log 8192 2", "0"), ("write 0 x", "0"), ("flush 0", "0")]);
    let told = ["reset 0", "consumed 0 0 1", "full 0 0"].map(|command| caller.tell(command));
    assert_eq!(told, ["EACCES", "EACCES", "EACCES"]);
    caller.end();
}
