//! Directories of the tree, read in pieces while channels come and go: an entry that stays is listed once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use relay::wire::frame::OPEN_CREATE;
use relay_producer::Channel;
use relayfs_tests::c::Program;
use relayfs_tests::peer::Peer;
use relayfs_tests::{Mount, Process, eventually};

/// Lists a directory step by step. Calls `between` after each.
fn listed(program: &Program, dir: &Path, mut between: impl FnMut(usize)) -> Vec<String> {
    let mut command = program.command();
    let mut process = Process::start(command.arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut stdin = process.child().stdin.take().unwrap();
    let mut stdout = BufReader::new(process.child().stdout.take().unwrap());
    let mut names = Vec::new();
    for step in 0.. {
        stdin.write_all(b"\n").unwrap();
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let found: Vec<&str> = line.trim_end().split_terminator('/').collect();
        if found.is_empty() {
            break;
        }
        names.extend(found.into_iter().map(str::to_owned));
        between(step);
    }
    drop(stdin);
    assert!(process.wait().success());
    names
}

#[test]
fn entries_that_stay_are_listed_once_while_others_come_and_go() {
    let mount = Mount::new(&["--subbuf-size=64", "--n-subbufs=2"]);
    let program = Program::compile("lister");
    let open = |name: String| {
        let channel = Channel::builder(mount.point(), &name).create(true).open().unwrap();
        (name, channel)
    };
    // By name, some channels that go are before those that stay, and some between them.
    let mut passing: Vec<(String, Channel)> = (0..20).map(|i| open(format!("app/a{i}-"))).collect();
    let mut staying = Vec::new();
    for i in 0..20 {
        staying.push(open(format!("app/m{i}-")));
        staying.push(open(format!("app/d{i}/log")));
        passing.push(open(format!("app/m{i}x-")));
    }
    for (below, stays) in [
        (
            "app",
            BTreeMap::from_iter(
                (0..20).flat_map(|i| [(format!("m{i}-0"), 1), (format!("m{i}-1"), 1), (format!("d{i}"), 1)]),
            ),
        ),
        (
            ".relay/channels/app",
            BTreeMap::from_iter((0..20).flat_map(|i| [(format!("m{i}-"), 1), (format!("d{i}"), 1)])),
        ),
    ] {
        let names = listed(&program, &mount.path(below), |step| {
            let n_passing = passing.len();
            if n_passing > 0 {
                let (gone, channel) = passing.remove(step * 7 % n_passing);
                drop(channel);
                eventually(&format!("step {step}: the end of {gone}"), || {
                    !mount.path(&format!("{gone}0")).exists()
                });
            }
            // New ones come last: with one for each step there would be no end.
            if step < 40 {
                passing.push(open(format!("app/a{step}y{n_passing}-")));
                passing.push(open(format!("app/z{step}x{n_passing}/log")));
            }
        });
        let mut counts = BTreeMap::new();
        for name in names {
            *counts.entry(name).or_insert(0) += 1;
        }
        for (name, times) in &stays {
            assert_eq!(counts.get(name), Some(times), "{below}: {name} in {counts:?}");
        }
        assert_eq!((counts["."], counts[".."]), (1, 1));
        assert!(counts.values().all(|times| *times == 1), "{below}: {counts:?}");
    }
}

/// Each directory of the tree, in the smallest steps and in one go.
#[test]
fn small_steps_list_what_one_large_step_lists() {
    let mount = Mount::new(&["--channel=app/log", "--channel=app/web/log", "--channel=all:global"]);
    let program = Program::compile("lister");
    for below in [
        "",
        ".relay",
        ".relay/channels",
        ".relay/channels/app",
        ".relay/channels/app/log",
        ".relay/channels/app/log/map",
        ".relay/channels/all/snapshot",
        "app",
        "app/web",
    ] {
        let dir = mount.path(below);
        let mut names = listed(&program, &dir, |_| {});
        names.retain(|name| name != "." && name != "..");
        let n_names = names.len();
        let entries =
            fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let expected: BTreeSet<String> = entries.collect();
        assert_eq!(BTreeSet::from_iter(names), expected, "{below}");
        assert_eq!(n_names, expected.len(), "{below}: each once");
    }
}

#[test]
fn thousands_of_channels_are_listed_once_each() {
    let mount = Mount::new(&["--subbuf-size=64", "--n-subbufs=1", "--max-channels=4100"]);
    let peers: Vec<Peer> = (0..4)
        .map(|part| {
            let peer = Peer::hello(&mount);
            for i in 0..1024 {
                peer.open(&format!("c{part}.{i}x"), OPEN_CREATE);
            }
            peer
        })
        .collect();
    let names =
        || fs::read_dir(mount.point()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    let found = names();
    assert_eq!(found.len(), BTreeSet::from_iter(found.clone()).len());
    let n_bufs = mount.channel("cpu").n_bufs();
    assert_eq!(found.len(), 1 + n_bufs + 4096, "those of producers are global");
    drop(peers);
}
