//! A timed channel's files: its texts, `msg`, the merged `trace`, anchors.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;

use relay::trace::metadata::Metadata;
use relayfs_tests::direct::on_cpu;
use relayfs_tests::timed::{anchors, snapshot, texts};
use relayfs_tests::{Mount, eventually, stdout_of, tool};

const CHANNEL: &str = "--channel=app/log:timed:subbuf-size=4K:n-subbufs=4";

fn read(mount: &Mount, file: &str) -> String {
    fs::read_to_string(mount.control("app/log", file)).unwrap()
}

fn say(mount: &Mount, text: &str) {
    fs::write(mount.control("app/log", "msg"), text).unwrap();
}

#[test]
fn files_of_timed_channels_are_in_timed_channels_alone() {
    let mount = Mount::new(&[CHANNEL]);
    let list = |channel: &str, dir: &str| -> Vec<String> {
        let entries = fs::read_dir(mount.control(channel, dir)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let (raw, timed) = (list("cpu", ""), list("app/log", ""));
    let more: Vec<&String> = timed.iter().filter(|name| !raw.contains(name)).collect();
    assert_eq!(more, ["clock", "level", "metadata", "processes", "trace"]);
    assert!(raw.iter().all(|name| timed.contains(name)));
    assert!(list("app/log", "snapshot").contains(&"metadata".to_owned()));
    assert!(!list("cpu", "snapshot").contains(&"metadata".to_owned()));
    for name in ["clock", "metadata", "processes", "trace", "snapshot/metadata"] {
        assert!(!mount.control("cpu", name).exists(), "{name}");
        let status = fs::metadata(mount.control("app/log", name)).unwrap();
        assert_eq!(status.mode() & 0o7777, 0o400, "{name}");
    }
    let mode = fs::metadata(mount.control("app/log", "level")).unwrap().mode() & 0o7777;
    assert_eq!(mode, 0o600);
    assert_eq!(read(&mount, "mode"), "no-overwrite timed\n");
    assert_eq!(fs::read_to_string(mount.control("cpu", "mode")).unwrap(), "no-overwrite\n");
}

#[test]
fn write_to_msg_is_a_text_record_of_the_writing_thread() {
    let mount = Mount::new(&[CHANNEL]);
    let tid = on_cpu(1, || {
        for text in ["one\n", "two", "\n", "three\n\n", "\u{fffd}\0\u{1b}[0m"] {
            say(&mount, text);
        }
        nix::unistd::gettid().as_raw().cast_unsigned()
    });
    let found = snapshot(&mount, "app/log", 1);
    assert_eq!(texts(&found), ["0 one", "0 two", "0 ", "0 three\\n", "0 \\xef\\xbf\\xbd\\x00\\x1b[0m"]);
    assert!(found.iter().all(|(_, _, by, _)| *by == tid), "{found:?} {tid}");
    assert_eq!(mount.stats("app/log")["cpu1.written"], 5);
    let error = fs::write(mount.control("app/log", "msg"), [b'x'; 4096]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    assert_eq!(mount.stats("app/log")["total.too_big"], 1);
    say(&mount, &"x".repeat(4096 - 16));
}

#[test]
fn metadata_and_clock_say_what_stamps_mean() {
    let mount = Mount::new(&[CHANNEL]);
    let clock = read(&mount, "clock");
    let (kind, ticks) =
        clock.lines().next().unwrap().strip_prefix("clock ").unwrap().split_once(' ').unwrap();
    assert!(["tsc", "monotonic"].contains(&kind));
    let ticks: u64 = ticks.parse().unwrap();
    say(&mount, "now");
    let stamp = (0..2).flat_map(|cpu| snapshot(&mount, "app/log", cpu)).next().unwrap().0;
    let list = anchors(&read(&mount, "clock"));
    assert!(list.len() >= 2 && list.iter().all(|anchor| anchor[0] == 0), "{list:?}");
    assert!(list[0][1] <= stamp && stamp <= list.last().unwrap()[1]);
    let text = read(&mount, "metadata");
    let (metadata, events) = Metadata::parse(&text).unwrap();
    assert_eq!((metadata.channel.as_str(), events.definitions.len()), ("app/log", 0));
    assert_eq!(metadata.timeline.ticks_per_second(), ticks);
    assert_eq!(metadata.hostname, fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim_end());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let at = metadata.timeline.realtime(stamp);
    assert!(at <= now && now - at < 3_600_000_000_000, "{at} {now}");
    assert_eq!(read(&mount, "snapshot/metadata").lines().next(), Some("/* CTF 1.8 */"));
    let size = fs::metadata(mount.control("app/log", "metadata")).unwrap().len();
    assert!(size.abs_diff(text.len() as u64) < 1000, "{size} {}", text.len());
}

#[test]
fn trace_is_the_text_of_all_buffers_frozen_at_the_open() {
    let mount = Mount::new(&[CHANNEL]);
    for n in 0..40 {
        on_cpu(n % 2, || say(&mount, &format!("line {n}\n")));
    }
    let mut file = File::open(mount.control("app/log", "trace")).unwrap();
    say(&mount, "later");
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(file.metadata().unwrap().len(), text.len() as u64);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 40, "{text}");
    for (n, line) in lines.iter().enumerate() {
        assert!(line.ends_with(&format!("line {n}")) && line.contains(&format!(" cpu{} ", n % 2)), "{line}");
        assert!(line.as_bytes()[10] == b'T' && line.contains("Z "), "UTC: {line}");
    }
    assert!(lines.is_sorted());
    let mut again = String::new();
    file.seek(SeekFrom::Start(lines[0].len() as u64 + 1)).unwrap();
    file.read_to_string(&mut again).unwrap();
    assert_eq!(again, lines[1..].join("\n") + "\n");
    let path = mount.control("app/log", "trace");
    let tail = stdout_of(tool("tail", "coreutils").args(["-n", "2"]).arg(&path));
    assert_eq!(relayfs_tests::text(&tail), lines[38..].join("\n") + "\n");
    let found = stdout_of(tool("grep", "grep").args(["-c", "cpu1.*line 3"]).arg(&path));
    assert_eq!(found, b"6\n");
    // Another open shares the copy, until the last close.
    assert_eq!(fs::read_to_string(mount.control("app/log", "trace")).unwrap(), text);
    drop(file);
    eventually("a new copy", || read(&mount, "trace").lines().count() == 41);
    assert_eq!(mount.stats("app/log")["total.read_bytes"], 0, "looking consumes nothing");
}

/// The control file shows the anchors without a look that takes one.
fn n_anchors(mount: &Mount) -> u64 {
    let control = fs::read(mount.control("app/log", "control")).unwrap();
    u64::from_le_bytes(control[4096 + 8..][..8].try_into().unwrap())
}

#[test]
fn anchors_come_while_a_channel_is_used_and_not_at_rest() {
    let mut mount = Mount::new(&[CHANNEL]);
    assert_eq!(n_anchors(&mount), 1, "that of the creation");
    eventually("anchors each second", || {
        say(&mount, "x");
        fs::read(mount.path("app/log0")).unwrap();
        fs::read(mount.path("app/log1")).unwrap();
        n_anchors(&mount) >= 4
    });
    let n = n_anchors(&mount);
    eventually("an end of the timer", || {
        let before = sleeps_of_first_thread(&mut mount);
        let_seconds_pass();
        sleeps_of_first_thread(&mut mount) == before
    });
    assert!(n_anchors(&mount) <= n + 2, "the timer ends when nothing is used");
}

/// Returns how often the daemon's first thread, which has the timers, has slept.
fn sleeps_of_first_thread(mount: &mut Mount) -> u64 {
    let pid = mount.daemon().pid();
    let status = fs::read_to_string(format!("/proc/{pid}/task/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    line.trim().parse().unwrap()
}

/// Does work that takes two intervals of the timer.
fn let_seconds_pass() {
    let clock = Mount::new(&[CHANNEL]);
    let begin = n_anchors(&clock);
    eventually("two anchors", || {
        fs::write(clock.control("app/log", "msg"), "x").unwrap();
        fs::read(clock.path("app/log0")).unwrap();
        fs::read(clock.path("app/log1")).unwrap();
        n_anchors(&clock) >= begin + 3
    });
}
