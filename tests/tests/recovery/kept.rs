//! A clean end: unread data stays for the next daemon, read channels go, live producers continue to write. `--keep`
//! and `--discard` change that.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use relay_producer::{Channel, WriteError};
use relayfs_tests::audience::audience;
use relayfs_tests::direct::{is_without_sequences, on_cpu};
use relayfs_tests::{Mount, eventually, exit_code, program, run, stdout_of, text};

const ARGS: &[&str] = &["--subbuf-size=4096", "--n-subbufs=4", "--channel=app/log", "--channel=all:global"];

fn state_dir(mount: &Mount) -> PathBuf {
    relay::layout::paths::state_dir(mount.point(), nix::unistd::geteuid().as_raw())
}

/// Ends the daemon, and returns its standard error.
#[track_caller]
fn end(mount: &mut Mount, how: &str) -> String {
    match how {
        "SIGTERM" => mount.daemon().signal(Signal::SIGTERM),
        "SIGINT" => mount.daemon().signal(Signal::SIGINT),
        "umount -l" => mount.detach(),
        _ => mount.unmount(),
    }
    assert_eq!(exit_code(mount.daemon().wait()), 0, "{how}");
    mount.daemon().stderr()
}

/// Returns the line about unread data that stays.
fn line(mount: &Mount, what: &str) -> String {
    let (dir, point) = (state_dir(mount).display().to_string(), mount.point().display());
    format!(
        "relayfsd: unread data stays in {dir}: {what}; to read it: audience --state {dir}; to continue with it: relayfsd {point}; \
         to remove it: rm -r {dir}\n"
    )
}

/// Waits until no process has files of a channel from the daemon.
///
/// A process that another test just starts has those of this process for a moment.
#[track_caller]
fn no_producer_is_left(mount: &Mount) {
    eventually("the end of the last producer", || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let entries = fs::read_dir(state_dir(mount)).unwrap().map(|entry| entry.unwrap());
        let mut controls =
            entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "control"));
        // The daemon marks what it gives to producers by a lock.
        !controls
            .any(|entry| entry.metadata().is_ok_and(|found| locks.contains(&format!(":{} ", found.ino()))))
    });
}

/// Numbers of the files in the state directory, one for each channel.
fn n_channels(mount: &Mount) -> usize {
    let entries = fs::read_dir(state_dir(mount)).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "control")).count()
}

#[test]
fn unread_data_stays_at_every_clean_end() {
    for how in ["SIGTERM", "SIGINT", "umount", "umount -l"] {
        let mut mount = Mount::new(ARGS);
        mount.send(0, &[b"unread\n"]);
        mount.send_to("all", 0, &[b"read\n", b"and unread\n"]);
        mount.send_to("app/log", 0, &[b"read to its end\n"]);
        let mut first = [0; 5];
        File::open(mount.path("all0")).unwrap().read_exact(&mut first).unwrap();
        assert_eq!(text(&mount.read("app/log0")), "read to its end\n");
        assert_eq!(end(&mut mount, how), line(&mount, "all 11 bytes, cpu 7 bytes"), "{how}");
        assert_eq!(n_channels(&mount), 2, "{how}");
        let seen = Command::new(program("audience")).arg("--state").arg(state_dir(&mount)).output().unwrap();
        assert_eq!((text(&seen.stdout), text(&seen.stderr)), ("unread\n".into(), String::new()), "{how}");

        mount.restart(ARGS);
        assert_eq!(text(&mount.read("cpu0")), "unread\n", "{how}");
        assert_eq!(text(&mount.read("all0")), "and unread\n", "{how}");
        assert_eq!(text(&mount.read("app/log0")), "", "{how}");
        assert_eq!(mount.stats("app/log")["total.bytes"], 0, "{how}: its counts went with it");
        assert_eq!(end(&mut mount, how), "", "{how}: nothing to say");
        assert!(!state_dir(&mount).exists(), "{how}");
    }
}

/// Channels of producers, and those that the command line does not name any more, go when they have been read.
#[test]
fn kept_channels_go_when_they_are_read() {
    let mut mount = Mount::new(ARGS);
    drop(Channel::builder(mount.point(), "made").create(true).open().unwrap());
    mount.send_to("app/log", 0, &[b"one\n"]);
    let made = Channel::builder(mount.point(), "made").create(true).open().unwrap();
    made.write_to(0, b"two\n").unwrap();
    made.sync().unwrap();
    drop(made);
    end(&mut mount, "umount");
    mount.restart(&[]);
    assert_eq!(text(&mount.read("app/log0")) + &text(&mount.read("made0")), "one\ntwo\n");
    eventually("their end", || !mount.path("app").exists() && !mount.path("made0").exists());
    assert_eq!(end(&mut mount, "umount"), "");
    assert!(!state_dir(&mount).exists());
}

/// A header alone is not unread data.
#[test]
fn headers_alone_do_not_stay() {
    let mut mount = Mount::new(&["--header=8", "--subbuf-size=4096"]);
    mount.send(0, &[b"read\n"]);
    mount.poke("cpu", "flush");
    mount.read("cpu0");
    mount.read("cpu1");
    assert_eq!(end(&mut mount, "SIGTERM"), "");
    assert!(!state_dir(&mount).exists());
}

/// A flight recorder counts as unread, whatever snapshots were taken.
#[test]
fn flight_recorder_stays_at_clean_end() {
    let mut mount = Mount::new(&["--overwrite", "--subbuf-size=4096", "--n-subbufs=2"]);
    for n in 0..9 {
        mount.send(0, &[&[b'0' + n; 4000]]);
    }
    let shown = stdout_of(&mut audience(mount.point(), &["--snapshot"]));
    end(&mut mount, "umount");
    mount.restart(&["--overwrite", "--subbuf-size=4096", "--n-subbufs=2"]);
    assert!(stdout_of(&mut audience(mount.point(), &["--snapshot"])) == shown);
    assert!(mount.read("cpu0") == shown);
}

/// A live producer writes over the end and the next start without an error or a loss, though all was read, to a
/// channel of the command line and to one that it has created.
#[test]
fn live_producers_write_across_clean_end() {
    let is_direct = !is_without_sequences();
    for (name, how) in
        ["cpu", "made"].into_iter().flat_map(|name| ["SIGTERM", "umount", "umount -l"].map(|how| (name, how)))
    {
        let mut mount = Mount::with_sequences(ARGS);
        let channel = Channel::builder(mount.point(), name).create(true).open().unwrap();
        let file = format!("{name}0");
        let mut expected = String::new();
        let mut write = |text: &str| {
            if is_direct {
                on_cpu(0, || channel.write(text.as_bytes())).unwrap();
                expected += text;
            }
        };
        write("before ");
        mount.read(&file);
        let said = end(&mut mount, how);
        let left = format!("{name} 0 bytes (a producer writes on)");
        let told = if is_direct { line(&mount, &left) } else { String::new() };
        assert_eq!(said, told, "{name}, {how}");
        write("meanwhile ");
        mount.restart_with_sequences(ARGS);
        write("afterwards");
        if is_direct || name == "cpu" {
            let expected = expected.replace("before ", "");
            assert_eq!(text(&mount.read(&file)), expected, "{name}, {how}");
            assert_eq!(mount.stats(name)["total.dropped"], 0, "{name}, {how}");
        }
        drop(channel);
        no_producer_is_left(&mount);
        assert_eq!(end(&mut mount, how), "", "{name}, {how}: it is gone");
        assert!(!state_dir(&mount).exists(), "{name}, {how}");
    }
}

/// Data read after `umount -l` does not come back. Unread data stays then.
#[test]
fn data_read_after_umount_l_does_not_come_back() {
    for all in [false, true] {
        let mut mount = Mount::new(ARGS);
        mount.send(0, &[b"one two\n"]);
        let mut file = File::open(mount.path("cpu0")).unwrap();
        mount.detach();
        eventually("the end of the socket", || !mount.path(".relay").exists());
        let mut bytes = vec![0; if all { 8 } else { 4 }];
        file.read_exact(&mut bytes).unwrap();
        drop(file);
        assert_eq!(exit_code(mount.daemon().wait()), 0);
        assert_eq!(state_dir(&mount).exists(), !all);
        mount.restart(ARGS);
        assert_eq!(text(&mount.read("cpu0")), if all { "" } else { "two\n" });
    }
}

/// `--keep`: each channel stays, with its counts. Only unread data is reported.
#[test]
fn keep_keeps_every_channel() {
    let args = [ARGS, &["--keep"]].concat();
    let mut mount = Mount::new(&args);
    mount.send(0, &[b"read\n"]);
    mount.read("cpu0");
    assert_eq!(end(&mut mount, "umount"), "");
    assert_eq!(n_channels(&mount), 3);
    mount.restart(&args);
    assert_eq!(mount.stats("cpu")["total.read_bytes"], 5);
    mount.send(0, &[b"unread\n"]);
    assert_eq!(end(&mut mount, "SIGTERM"), line(&mount, "cpu 7 bytes"));
    mount.restart(ARGS);
    assert_eq!(text(&mount.read("cpu0")), "unread\n");
}

/// `--discard`: nothing stays, and a line says so. It is a mount option too, and the last of the two options counts.
#[test]
fn discard_removes_all() {
    for args in
        [&["--discard"][..], &["-o", "discard"], &["--keep", "--discard"], &["-o", "keep", "--discard"]]
    {
        let mut mount = Mount::new(&[ARGS, args].concat());
        mount.send(0, &[b"unread\n"]);
        mount.send_to("all", 0, &[b"too\n"]);
        let said = end(&mut mount, "umount");
        assert_eq!(said, "relayfsd: --discard removed unread data: all 4 bytes, cpu 7 bytes\n", "{args:?}");
        assert!(!state_dir(&mount).exists(), "{args:?}");
    }
    let mut mount = Mount::with_sequences(&[ARGS, &["--discard"]].concat());
    let channel = Channel::open(mount.point(), "cpu").unwrap();
    on_cpu(0, || channel.write(b"unread\n")).unwrap();
    channel.sync().unwrap();
    end(&mut mount, "SIGTERM");
    eventually("the end of the buffers", || {
        matches!(on_cpu(0, || channel.write(&[b'x'; 3000])), Err(WriteError::Disconnected))
    });
}

/// `audience --state` lists what is left by mount point, even if the mount point is gone. It finds the directory of a
/// mount point.
#[test]
fn state_lists_what_is_left() {
    let mut mount = Mount::new(ARGS);
    mount.send(0, &[b"unread\n"]);
    let state = |args: &[&std::path::Path]| {
        let output = run(Command::new(program("audience")).arg("--state").args(args));
        assert_eq!(exit_code(output.status), 0, "{}", text(&output.stderr));
        text(&output.stdout)
    };
    // Other tests leave state directories at the same time.
    let block = |mount: &Mount| {
        let (listed, point) = (state(&[]), format!("{}: ", mount.point().display()));
        let from = listed.find(&point).unwrap_or_else(|| panic!("{point} in {listed}"));
        let lines = listed[from..].lines();
        let own: Vec<&str> = lines
            .enumerate()
            .take_while(|(n, line)| *n == 0 || line.starts_with(' '))
            .map(|(_, line)| line)
            .collect();
        own.join("\n").replace(&point, "").replace(state_dir(mount).to_str().unwrap(), "DIR")
    };
    let pid = mount.daemon().pid();
    let channels = "  in DIR\n  all: 0 bytes unread\n  app/log: 0 bytes unread\n  cpu: 7 bytes unread";
    assert_eq!(block(&mount), format!("relayfsd (process {pid}) is at work\n{channels}"));
    mount.end(Signal::SIGKILL);
    assert_eq!(block(&mount), format!("relayfsd was killed or crashed\n{channels}"));
    assert_eq!(state(&[mount.point()]), "unread\n");
    nix::mount::umount2(mount.point(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    mount.restart(ARGS);
    end(&mut mount, "umount");
    assert_eq!(block(&mount), "relayfsd has ended\n  in DIR\n  cpu: 7 bytes unread");
    fs::remove_dir(mount.point()).unwrap();
    assert_eq!(block(&mount), "relayfsd has ended; the directory is gone\n  in DIR\n  cpu: 7 bytes unread");
    assert_eq!(state(&[mount.point()]), "unread\n");

    // Quarantines are listed too, also those of earlier versions.
    let dir = state_dir(&mount);
    for quarantine in ["quarantine-1", "refused-2"].map(|name| dir.join(name)) {
        fs::create_dir(&quarantine).unwrap();
        for file in ["1.control", "1.data0", "state"] {
            fs::copy(dir.join(file), quarantine.join(file)).unwrap();
        }
        let listed = state(&[]);
        let expected = format!("  in {}\n  cpu: 7 bytes unread\n", quarantine.display());
        assert!(listed.contains(&expected), "{expected} in {listed}");
        fs::remove_dir_all(&quarantine).unwrap();
    }
}
