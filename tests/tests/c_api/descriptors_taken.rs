//! Programs that close descriptors they never opened, as daemons do, and reuse the library's numbers: the library
//! writes nothing to their files, and closes none.

use std::fs::{self, File};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use relayfs_tests::librelay::Caller;
use relayfs_tests::{DEADLINE, Mount, eventually, text};

const WAYS: [&str; 3] = ["close", "range", "dup2"];

/// Returns a directory for the program's files.
fn own(mount: &Mount) -> String {
    let dir = mount.beside("own");
    fs::create_dir_all(&dir).expect("a directory");
    dir.display().to_string()
}

/// Direct writes still succeed, while a reader sleeps in poll that the bell would wake.
#[test]
fn program_that_closes_all_descriptors_writes_directly() {
    let mount = Mount::with_sequences(&["--channel=app/log:subbuf-size=4K:n-subbufs=8"]);
    for (way, what) in WAYS.into_iter().flat_map(|way| [(way, "files"), (way, "sockets")]) {
        let mut caller = Caller::direct(&mount);
        caller.expect(&[("open 0 app/log 4096 8", "0"), ("write 0 before.", "0")]);
        let file = File::open(mount.path("app/log0")).expect("a buffer's file");
        let poller = std::thread::spawn(move || {
            let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&file), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::try_from(DEADLINE).expect("a short time"))
        });
        caller.expect(&[
            (&format!("take-over {way} {what} {}", own(&mount)), "0"),
            ("fill 0 a 3000", "0"),
            ("fill 0 b 3000", "0"),
            ("fill 0 c 3000", "0"),
            ("touched", "0"),
            // Connects again.
            ("flush 0", "0"),
            ("fill 0 d 3000", "0"),
            ("touched", "0"),
            ("close 0", "0"),
            ("touched", "0"),
        ]);
        assert_eq!(poller.join().expect("a thread"), Ok(1), "{way} {what}: who polls hears of it");
        let letters: String = text(&mount.read("app/log0"));
        let parts = ["a", "b", "c", "d"].map(|letter| letter.repeat(3000));
        assert!(letters == format!("before.{}", parts.concat()), "{way} {what}: {} bytes", letters.len());
        caller.end();
    }
}

/// Over the socket, a failed send is an error, and the next call that may wait connects again.
#[test]
fn program_that_closes_all_descriptors_gets_nothing_in_its_files() {
    let mount = Mount::new(&["--channel=app/log:global"]);
    for (way, what) in WAYS.into_iter().flat_map(|way| [(way, "files"), (way, "sockets")]) {
        let mut caller = Caller::start(mount.point());
        caller.expect(&[
            ("open 0 app/log 4096 8", "0"),
            ("write 0 before.", "0"),
            (&format!("take-over {way} {what} {}", own(&mount)), "0"),
            ("write 0 lost", "ENODEV"),
            ("touched", "0"),
            ("flush 0", "0"),
            ("write 0 after.", "0"),
            ("fill 0 x 0", "0"),
            ("flush 0", "0"),
            ("close 0", "0"),
            ("touched", "0"),
        ]);
        caller.end();
        assert_eq!(text(&mount.read("app/log0")), "before.after.", "{way} {what}");
    }
}

/// A channel without holders goes when it is read. Messages behind that are refused, and the next call that may wait creates
/// the channel again.
#[test]
fn gone_channel_refuses_messages_of_program_without_descriptors() {
    let mount = Mount::with_sequences(&[]);
    let mut caller = Caller::direct(&mount);
    caller.expect(&[
        ("open 0 app/own 4096 8", "0"),
        ("write 0 before.", "0"),
        (&format!("take-over close files {}", own(&mount)), "0"),
    ]);
    assert_eq!(text(&mount.read("app/own0")), "before.");
    eventually("the channel goes", || !mount.path("app/own0").exists());
    // The daemon closes the buffer on its CPU, a moment later.
    eventually("messages are refused", || caller.tell("write 0 lost") == "ENODEV");
    caller.expect(&[("flush 0", "0"), ("write 0 after.", "0"), ("touched", "0")]);
    assert_eq!(text(&mount.read("app/own0")), "after.");
    caller.expect(&[("close 0", "0"), ("touched", "0")]);
    caller.end();
}

/// Closed at once: unsent messages are lost, and nothing else is closed.
#[test]
fn closing_a_channel_without_descriptors_closes_nothing() {
    let mount = Mount::new(&["--channel=one:global"]);
    for channel in ["one", "cpu"] {
        let mut caller = Caller::start(mount.point());
        caller.expect(&[
            (&format!("open 0 {channel} 4096 8"), "0"),
            (&format!("take-over close files {}", own(&mount)), "0"),
            ("close 0", "0"),
            ("touched", "0"),
        ]);
        caller.end();
    }
}

/// fork, setsid, close of all descriptors: what most daemons do.
#[test]
fn child_that_closes_all_descriptors_writes_everything() {
    let mount = Mount::with_sequences(&["--channel=app/log:subbuf-size=1000:n-subbufs=64"]);
    for way in WAYS {
        let mut caller = Caller::direct(&mount);
        let daemon = format!("become-daemon 0 {way} {} 100", own(&mount));
        caller.expect(&[
            ("open 0 app/log 4096 8", "0"),
            ("write 0 parent.", "0"),
            (&daemon, "0"),
            ("write 0 parent.", "0"),
            ("flush 0", "0"),
        ]);
        caller.end();
        let expected = format!("parent.{}parent.", "d".repeat(10_000));
        assert!(text(&mount.read("app/log0")) == expected, "{way}");
    }
}

/// Another thread is in a call meanwhile.
#[test]
fn descriptors_closed_under_a_call_are_left_alone() {
    let mount = Mount::with_sequences(&[]);
    for way in WAYS {
        let mut caller = Caller::direct(&mount);
        caller.expect(&[
            ("open 0 app/log 100 8 admit", "0"),
            ("fill 0 a 70", "0"),
            (&format!("hold 0 {}", "b".repeat(70)), "0"),
            (&format!("take-over {way} files {}", own(&mount)), "0"),
            ("release", "0"),
            ("touched", "0"),
            ("close 0", "0"),
            ("touched", "0"),
        ]);
        caller.end();
        assert_eq!(text(&mount.read("app/log0")), format!("{}{}", "a".repeat(70), "b".repeat(70)), "{way}");
    }
}
