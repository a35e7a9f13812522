//! What another process has written into the files of a timed channel: names, anchors, records.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::PathBuf;

use nix::sys::signal::Signal;
use relayfs_tests::peer::Peer;
use relayfs_tests::timed::{Found, anchors, attach, define, open, record, records, snapshot, texts, write};
use relayfs_tests::{Mount, eventually, exit_code, run, text, tool};

const CHANNEL: &str = "--channel=app:timed:subbuf-size=4K:n-subbufs=4:global";

fn file(mount: &Mount, suffix: &str) -> PathBuf {
    let dir = relay::layout::paths::state_dir(mount.point(), nix::unistd::geteuid().as_raw());
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.into_iter().find(|path| path.to_str().unwrap().ends_with(suffix)).unwrap()
}

fn read(mount: &Mount, file: &str) -> String {
    fs::read_to_string(mount.control("app", file)).unwrap()
}

/// Makes a channel with an event, a process and two records.
fn filled() -> Mount {
    let mount = Mount::new(&[CHANNEL]);
    let peer = Peer::hello(&mount);
    let channel = open(&peer, "app", "timed").channel;
    attach(&peer, channel);
    define(&peer, channel, "a", &[(1, "n")]).unwrap();
    write(&peer, channel, 0, &[record(0, 5, b"text"), record(256, 5, &[1; 8])]).unwrap();
    mount
}

fn kill(mount: &mut Mount) {
    assert_eq!(exit_code(mount.end(Signal::SIGKILL)), 128 + 9);
}

fn assert_used(mount: &Mount) {
    let peer = Peer::hello(mount);
    let channel = open(&peer, "app", "timed").channel;
    let id = define(&peer, channel, "new", &[]).unwrap();
    let before = snapshot(mount, "app", 0).len();
    assert_eq!(write(&peer, channel, 0, &[record(id.try_into().unwrap(), 5, b"")]).unwrap().written, 1);
    assert_eq!(snapshot(mount, "app", 0).len(), before + 1);
}

/// Damaged names never cost a record: what can be understood stays, and the channel is used on.
#[test]
fn damaged_names_cost_no_records() {
    let garbage = [&b"\xff\0};\n/* relay event 256: level 3; target"[..], &[b'x'; 100_000]].concat();
    for (suffix, bytes) in [
        (".events", Some(&b""[..])),
        (".events", Some(&b"/* relay event 256"[..])),
        (".events", Some(&garbage)),
        (".events", None),
        (".processes", Some(&b"1 2 3\n\0\xff"[..])),
        (".processes", Some(&garbage)),
        (".processes", None),
    ] {
        let mut mount = filled();
        let path = file(&mount, suffix);
        kill(&mut mount);
        match bytes {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        mount.restart(&[CHANNEL]);
        let found = texts(&snapshot(&mount, "app", 0));
        assert_eq!((found.len(), &found[0][..]), (2, "0 text"), "{suffix}");
        assert_used(&mount);
    }
}

/// A definition that was half written when the daemon died had no answer.
#[test]
fn cut_definition_is_repaired() {
    let mut mount = filled();
    let path = file(&mount, ".events");
    let whole = fs::read(&path).unwrap();
    kill(&mut mount);
    let half = String::from_utf8(whole.clone()).unwrap().replace("256", "257");
    fs::write(&path, [&whole, &half.as_bytes()[..half.len() / 2]].concat()).unwrap();
    mount.restart(&[CHANNEL]);
    assert_eq!(fs::read(&path).unwrap(), whole);
    let peer = Peer::hello(&mount);
    let channel = open(&peer, "app", "timed").channel;
    assert_eq!(define(&peer, channel, "other", &[]).unwrap(), 257);
}

/// A number that the file of processes has lost belongs to no other process: records of old threads would get its name.
#[test]
fn lost_number_of_a_process_is_not_given_again() {
    let mut mount = filled();
    let path = file(&mount, ".processes");
    kill(&mut mount);
    fs::write(&path, "").unwrap();
    // The largest number that is there is not believed: it would be the last one.
    poke(&mount, 16384 + 8 * 7, &[u64::from(u32::MAX) << 32 | 7]);
    mount.restart(&[CHANNEL]);
    let peer = Peer::hello(&mount);
    let channel = open(&peer, "app", "timed").channel;
    assert_eq!(attach(&peer, channel).process, 2);
    let trace = read(&mount, "trace");
    assert!(trace.lines().next().unwrap().contains(" tid 5: text"), "{trace}");
}

/// A file that another process could have made is not trusted: the channel is quarantined with all its files.
#[test]
fn foreign_names_are_quarantined_with_the_channel() {
    let mut mount = filled();
    let path = file(&mount, ".events");
    let elsewhere = mount.beside("elsewhere");
    fs::write(&elsewhere, "").unwrap();
    kill(&mut mount);
    fs::remove_file(&path).unwrap();
    symlink(&elsewhere, &path).unwrap();
    mount.restart(&[CHANNEL]);
    assert_eq!(read(&mount, "mode"), "no-overwrite timed\n", "another channel has the name");
    assert!(snapshot(&mount, "app", 0).is_empty());
    let aside = path.parent().unwrap().join("refused-0");
    let dirs = fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let aside = dirs.into_iter().find(|path| path.is_dir()).unwrap_or(aside);
    let mut names: Vec<_> = fs::read_dir(&aside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names.len(), 6, "control, data, events, levels, processes, state: {names:?}");
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "");
}

fn poke(mount: &Mount, at: u64, words: &[u64]) {
    let control = File::options().write(true).open(file(mount, ".control")).unwrap();
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    control.write_all_at(&bytes, at).unwrap();
}

/// Anchors from the future, of the last epoch, and without order: a new epoch begins, or they go.
#[test]
fn hostile_anchors_do_not_stop_the_clock() {
    for (version, count, anchor) in [
        (1, 1, [5, 5, 5, 5, 0]),
        (u64::MAX, u64::MAX, [u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX]),
        (0, 1, [u64::MAX - 1, u64::MAX - 1, 0, u64::MAX, 7]),
        (0, 128, [0, 0, 0, 0, 1 << 40]),
        (2, 0, [0; 5]),
    ] {
        let mut mount = filled();
        kill(&mut mount);
        poke(&mount, 4096, &[version, count]);
        poke(&mount, 4096 + 64, &anchor);
        mount.restart(&[CHANNEL]);
        let list = anchors(&read(&mount, "clock"));
        let last = list.last().unwrap();
        assert!(last[1] < 1 << 62 && last[3] > 1 << 60, "{list:?}");
        assert!(last[0] < 1 << 33, "{list:?}");
        // An epoch that begins has a record, which a thread of the daemon writes.
        let has_record = || snapshot(&mount, "app", 0).iter().any(|(_, id, ..)| *id == 6);
        eventually("the record of an epoch alone", || has_record() == (last[0] > 0));
        assert_used(&mount);
        assert!(read(&mount, "trace").lines().count() >= 3);
        relay::trace::metadata::Metadata::parse(&read(&mount, "metadata")).unwrap();
    }
}

/// Records that lie about their length, have stamps of the future, or ids of no event: what is whole shows.
#[test]
fn hostile_records_show_as_far_as_they_are_whole() {
    let len = 16 + 4;
    // A record without a cause says that something was hidden.
    for (at, bytes, n, n_damaged) in [
        (len + 14, &b"\xff\xff"[..], 1, 1),
        (len, &[0xff; 8][..], 2, 0),
        (len, &[0; 8][..], 2, 0),
        (len + 8, b"\x2a\x00"[..].into(), 2, 0),
        (len + 8, &b"\xff\xff"[..], 2, 0),
        (14, &b"\x00\x80"[..], 0, 1),
    ] {
        let whole = |found: Vec<Found>| {
            let (lost, whole): (Vec<_>, Vec<_>) = found.into_iter().partition(|(_, id, ..)| *id == 5);
            assert_eq!(texts(&lost), vec![format!("5 \\x01{}", "\\x00".repeat(8)); n_damaged]);
            whole.len()
        };
        let mount = filled();
        let data = File::options().write(true).open(file(&mount, ".data0")).unwrap();
        data.write_all_at(bytes, at).unwrap();
        let taken = fs::read(mount.control("app", "snapshot/cpu0")).unwrap();
        assert_eq!(whole(records(&taken)), n, "{at} {bytes:?}");
        read(&mount, "trace");
        let output = run(tool("babeltrace2", "babeltrace2").arg(mount.control("app", "snapshot")));
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout).lines().count(), n + n_damaged, "{}", text(&output.stderr));
        assert_eq!(whole(records(&fs::read(mount.control("app", "take/cpu0")).unwrap())), n);
        assert_eq!(fs::read(mount.path("app0")).unwrap(), b"", "the take has consumed all");
        // In the rest of a damaged sub-buffer no begin of a record can be found.
        mount.poke("app", "flush");
        assert_used(&mount);
    }
}

/// The table of threads is shared memory: a word that cannot be is no line.
#[test]
fn hostile_threads_are_left_out() {
    let mount = filled();
    poke(&mount, 16384, &[u64::MAX, 1 << 32 | 1, 3 << 32 | 2]);
    let text = read(&mount, "processes");
    let threads: Vec<&str> = text.lines().filter(|line| line.starts_with("thread ")).collect();
    assert_eq!(threads, ["thread 1 1", "thread 2 3", "thread 5 1"], "{text}");
}
