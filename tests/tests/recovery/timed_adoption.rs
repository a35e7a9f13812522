//! Timed channels from one daemon to the next: records, events, processes and anchors stay.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use relay_producer::{Channel, Level};
use relayfs_tests::direct::{assert_direct, is_without_sequences};
use relayfs_tests::peer::Peer;
use relayfs_tests::timed::{anchors, attach, define, open, record, snapshot, texts, write};
use relayfs_tests::{Mount, eventually, exit_code};

const CHANNEL: &str = "--channel=app:timed:subbuf-size=4K:n-subbufs=4:global";

fn state_dir(mount: &Mount) -> PathBuf {
    relay::layout::paths::state_dir(mount.point(), nix::unistd::geteuid().as_raw())
}

fn file(mount: &Mount, suffix: &str) -> PathBuf {
    let entries = fs::read_dir(state_dir(mount)).unwrap().map(|entry| entry.unwrap().path());
    entries.into_iter().find(|path| path.extension().is_some_and(|found| found == suffix)).unwrap()
}

fn read(mount: &Mount, file: &str) -> String {
    fs::read_to_string(mount.control("app", file)).unwrap()
}

fn restart(mount: &mut Mount, signal: Signal, args: &[&str]) {
    let code = exit_code(mount.end(signal));
    assert_eq!(code, if signal == Signal::SIGKILL { 128 + 9 } else { 0 });
    mount.restart(args);
}

#[test]
fn next_daemon_keeps_events_processes_anchors_and_records() {
    for (signal, args) in [(Signal::SIGKILL, &[CHANNEL][..]), (Signal::SIGTERM, &[CHANNEL, "--keep"])] {
        let mut mount = Mount::new(args);
        let peer = Peer::hello(&mount);
        let channel = open(&peer, "app", "timed").channel;
        assert_eq!(attach(&peer, channel).process, 1);
        assert_eq!(define(&peer, channel, "a", &[(1, "n")]).unwrap(), 256);
        assert_eq!(define(&peer, channel, "b", &[]).unwrap(), 257);
        write(&peer, channel, 0, &[record(0, 5, b"before"), record(256, 5, &[1; 8])]).unwrap();
        let (before, first) = (snapshot(&mount, "app", 0), anchors(&read(&mount, "clock"))[0]);
        let clock = read(&mount, "clock").lines().next().unwrap().to_owned();
        let events = fs::read_to_string(file(&mount, "events")).unwrap();
        drop(peer);
        restart(&mut mount, signal, args);
        assert_eq!(read(&mount, "mode"), "no-overwrite timed\n");
        assert_eq!(read(&mount, "clock").lines().next().unwrap(), clock, "clock and frequency stay");
        let list = anchors(&read(&mount, "clock"));
        assert_eq!(list[0], first);
        assert!(list.len() >= 2 && list.iter().all(|anchor| anchor[0] == 0), "no epoch begins: {list:?}");
        assert!(list.is_sorted_by_key(|anchor| anchor[1]));
        assert_eq!(fs::read_to_string(file(&mount, "events")).unwrap(), events);
        assert!(read(&mount, "processes").contains("thread 5 1\n"), "{}", read(&mount, "processes"));

        let peer = Peer::hello(&mount);
        let channel = open(&peer, "app", "timed").channel;
        assert_eq!(attach(&peer, channel).process, 1, "the same process");
        assert_eq!(define(&peer, channel, "b", &[]).unwrap(), 257);
        assert_eq!(define(&peer, channel, "c", &[]).unwrap(), 258);
        write(&peer, channel, 0, &[record(258, 5, b""), record(0, 5, b"after")]).unwrap();
        let after = snapshot(&mount, "app", 0);
        assert_eq!(after[..2], before);
        assert_eq!(texts(&after[2..]), ["258 ", "0 after"]);
    }
}

#[test]
fn channel_of_a_dead_producer_keeps_its_names_until_it_is_read() {
    let mut mount = Mount::new(&[]);
    let peer = Peer::hello(&mount);
    let channel = open(&peer, "app", "timed:subbuf-size=4K:global").channel;
    define(&peer, channel, "a", &[]).unwrap();
    write(&peer, channel, 0, &[record(256, 5, b"")]).unwrap();
    let (events, processes) = (file(&mount, "events"), file(&mount, "processes"));
    drop(peer);
    restart(&mut mount, Signal::SIGKILL, &[]);
    assert!(events.exists() && processes.exists());
    let trace = read(&mount, "trace");
    assert!(trace.ends_with("INFO app::db: a\n"), "{trace}");
    mount.read("app0");
    eventually("the channel's end", || !mount.path("app0").exists());
    eventually("the end of its files", || !events.exists() && !processes.exists());
}

/// A raw channel has neither file, and the state file says what a channel is.
#[test]
fn state_file_says_timed() {
    let mount = Mount::new(&[CHANNEL, "--channel=percpu:timed"]);
    let state = fs::read_to_string(state_dir(&mount).join("state")).unwrap();
    assert!(state.contains(" no-overwrite global,timed 1 app\n"), "{state}");
    assert!(state.contains(" no-overwrite percpu,timed 2 percpu\n"), "{state}");
    let names = fs::read_dir(state_dir(&mount)).unwrap().map(|entry| entry.unwrap().file_name());
    let names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    assert_eq!(names.iter().filter(|name| name.ends_with(".events")).count(), 2, "{names:?}");
    assert_eq!(names.iter().filter(|name| name.ends_with(".processes")).count(), 2, "{names:?}");
}

/// The command line asks for another kind of channel: as for any other geometry, what is unread decides.
#[test]
fn channel_changes_its_kind_when_it_is_read() {
    let mut mount = Mount::new(&["--channel=app:global:subbuf-size=4K"]);
    mount.send_to("app", 0, &[b"bytes"]);
    restart(&mut mount, Signal::SIGKILL, &[CHANNEL]);
    assert_eq!(read(&mount, "mode"), "no-overwrite\n");
    assert_eq!(mount.read("app0"), b"bytes");
    restart(&mut mount, Signal::SIGKILL, &[CHANNEL]);
    assert_eq!(read(&mount, "mode"), "no-overwrite timed\n");
}

/// A producer of the dead daemon writes on directly. The next daemon does not hear its bell, and looks.
#[test]
fn anchors_come_while_an_orphaned_producer_writes() {
    const ARGS: &[&str] = &["--channel=app:timed:overwrite:subbuf-size=4K:n-subbufs=2"];
    let mut mount = Mount::new(ARGS);
    let channel = Channel::builder(mount.point(), "app").timed(true).open().unwrap();
    if !is_without_sequences() {
        assert_direct(&channel);
    }
    restart(&mut mount, Signal::SIGKILL, ARGS);
    let n_anchors = || {
        let control = fs::read(mount.control("app", "control")).unwrap();
        u64::from_le_bytes(control[4096 + 8..][..8].try_into().unwrap())
    };
    let begin = n_anchors();
    eventually("an anchor each second", || {
        // Without sequences the library looks for the next daemon, once a second.
        for _ in 0..1000 {
            let _ = channel.log(Level::Info, "app", "after the daemon's death");
        }
        n_anchors() >= begin + 3
    });
}
