//! Copies of timed channels: packets, which babeltrace2 reads in place, and which a take consumes once.

use std::fs::{self, File};
use std::io::{Read, Write as _};

use relay::trace::event::Event;
use relay::trace::packet::Packets;
use relayfs_tests::direct::on_cpu;
use relayfs_tests::peer::Peer;
use relayfs_tests::timed::{define, open, record, records, snapshot, texts, write};
use relayfs_tests::{Mount, run, text, tool};

/// A per-CPU channel and a global one, with small sub-buffers.
fn small(more: &str) -> Mount {
    Mount::new(&[&format!("--channel=app/log:timed:subbuf-size=256:n-subbufs=4{more}")])
}

fn say(mount: &Mount, text: &str) {
    fs::write(mount.control("app/log", "msg"), text).unwrap();
}

fn babeltrace(mount: &Mount) -> Vec<String> {
    let output = run(tool("babeltrace2", "babeltrace2").arg(mount.control("app/log", "snapshot")));
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    text(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn babeltrace2_reads_a_snapshot_in_place() {
    let mount = Mount::new(&["--channel=app/log:timed:subbuf-size=4K:n-subbufs=4"]);
    let peer = Peer::hello(&mount);
    let channel = open(&peer, "app/log", "timed").channel;
    let id = define(&peer, channel, "connected", &[(5, "host name"), (1, "rows"), (4, "ok"), (3, "load")])
        .unwrap();
    let payload = [&b"\x01\0h"[..], &7u64.to_le_bytes(), &[1], &0.5f64.to_le_bytes()].concat();
    let mut expected = 0;
    for n in 0..200u32 {
        let text = record(0, 100 + n, format!("message {n}").as_bytes());
        let event = record(id.try_into().unwrap(), 100 + n, &payload);
        expected += write(&peer, channel, n % 2, &[text, event]).unwrap().written;
    }
    let lines = babeltrace(&mount);
    assert_eq!((lines.len() as u64, expected), (expected, 400));
    for (n, pair) in lines.chunks(2).enumerate() {
        let who = format!("{{ cpu_id = {} }}, {{ tid = {} }}", n % 2, 100 + n);
        assert!(
            pair[0].contains(&format!("text: {who}")) && pair[0].contains(&format!("\"message {n}\"")),
            "{pair:?}"
        );
        let fields = "host_name = \"h\", rows = 7, ok = ( \"true\" : container = 1 ), load = 0.5 }";
        assert!(pair[1].contains(&format!("connected: {who}")) && pair[1].ends_with(fields), "{pair:?}");
    }
    // Times may differ by some nanoseconds: there are new anchors.
    let events = |lines: Vec<String>| -> Vec<String> {
        lines
            .into_iter()
            .map(|line| line.split_once(") ").map_or_else(String::new, |(_, event)| event.to_owned()))
            .collect()
    };
    assert!(events(babeltrace(&mount)) == events(lines), "reading consumes nothing");
    assert_eq!(mount.stats("app/log")["total.read_bytes"], 0);
}

#[test]
fn snapshot_has_a_packet_for_each_sub_buffer_and_its_true_size() {
    for mode in ["", ":overwrite"] {
        let mount = small(mode);
        on_cpu(0, || {
            (0..20).for_each(|n| drop(fs::write(mount.control("app/log", "msg"), format!("{n:030}\n"))))
        });
        let path = mount.control("app/log", "snapshot/cpu0");
        let size = path.metadata().unwrap().len();
        let mut file = File::open(&path).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(file.metadata().unwrap().len(), bytes.len() as u64);
        let found: Vec<_> = Packets::new(&bytes).map(Result::unwrap).collect();
        // Five records of 46 bytes fit a sub-buffer: 20 messages fill the ring.
        assert_eq!(found.len(), 4, "{mode}");
        let numbers: Vec<u64> = found.iter().map(|packet| packet.header.number).collect();
        assert_eq!(numbers, [0, 1, 2, 3]);
        assert_eq!(size, bytes.len() as u64);
        assert_eq!(records(&bytes).len(), 20);
        say(&mount, "");
        assert_eq!(records(&bytes).len(), snapshot(&mount, "app/log", 0).len(), "an open copy is shared");
    }
}

#[test]
fn lost_messages_show_in_the_packets_behind_them() {
    let mount = small(":global");
    let peer = Peer::hello(&mount);
    let channel = open(&peer, "app/log", "timed").channel;
    let message = record(0, 1, &[b'x'; 30]);
    let all = write(&peer, channel, 0, &vec![message.clone(); 23]).unwrap();
    assert_eq!((all.written, all.dropped), (20, 3));
    assert_eq!(write(&peer, channel, 0, &[record(0, 1, &[b'x'; 250])]).unwrap().too_big, 1);
    let bytes = fs::read(mount.control("app/log", "take/cpu0")).unwrap();
    let last = Packets::new(&bytes).map(Result::unwrap).last().unwrap();
    assert_eq!(last.header.discarded, 4, "the last sub-buffer is not begun, and shows the losses");
    let lost: Vec<_> = records(&bytes).into_iter().filter(|(_, id, ..)| *id == 5).collect();
    let causes: Vec<Event<'_>> = lost.iter().map(|(_, id, _, payload)| Event::decode(*id, payload)).collect();
    let text = format!("{causes:?}");
    assert!(
        text.contains("messages: 3, cause: Some(Full)") && text.contains("messages: 1, cause: Some(TooBig)"),
        "{text}"
    );
    // What is new from here on is not reported a second time.
    assert_eq!(write(&peer, channel, 0, &[message]).unwrap().written, 1);
    let bytes = fs::read(mount.control("app/log", "take/cpu0")).unwrap();
    assert_eq!(records(&bytes).len(), 1);
}

#[test]
fn take_gives_each_record_once() {
    for mode in ["", ":overwrite"] {
        let mount = small(mode);
        let (mut got, mut n) = (Vec::new(), 0);
        for round in 0..30 {
            for _ in 0..round % 7 {
                on_cpu(0, || say(&mount, &n.to_string()));
                n += 1;
            }
            let path = mount.control("app/log", "take/cpu0");
            if round % 3 == 0 {
                // A reader that does not read to the end consumes nothing.
                let _ = File::open(&path).unwrap().read_exact(&mut [0; 70]);
            }
            got.extend(texts(&records(&fs::read(&path).unwrap())));
        }
        let expected: Vec<String> = (0..n).map(|n| format!("0 {n}")).collect();
        assert_eq!(got, expected, "{mode}");
        assert_eq!(fs::read(mount.path("app/log0")).unwrap(), b"");
    }
}

/// Another program read bytes: a copy begins with the next whole record.
#[test]
fn cursor_within_a_record_moves_to_the_next() {
    for mode in ["", ":overwrite"] {
        for (n_read, first) in
            [(1, 1), (15, 1), (17, 1), (18, 1), (40, 3), (18 * 10 - 1, 10), (18 * 14 - 5, 14)]
        {
            let mount = small(mode);
            on_cpu(0, || (0..16).for_each(|n| say(&mount, &format!("{n:02}"))));
            File::open(mount.path("app/log0")).unwrap().read_exact(&mut vec![0; n_read]).unwrap();
            // A record that is there in part only is one that this reader does not get.
            let cut = (n_read % 18 != 0).then(|| format!("5 \\x01{}", "\\x00".repeat(8)));
            let expected: Vec<String> =
                cut.into_iter().chain((first..16).map(|n| format!("0 {n:02}"))).collect();
            let taken = fs::read(mount.control("app/log", "take/cpu0")).unwrap();
            assert_eq!(texts(&records(&taken)), expected, "{mode} {n_read}");
            if mode.is_empty() {
                continue;
            }
            assert_eq!(
                snapshot(&mount, "app/log", 0).len(),
                16,
                "an overwriting buffer shows what was read, too"
            );
        }
        let mount = small(mode);
        on_cpu(0, || (0..16).for_each(|n| say(&mount, &format!("{n:02}"))));
        File::open(mount.path("app/log0")).unwrap().read_exact(&mut [0; 20]).unwrap();
        let n = if mode.is_empty() { 1 + 14 } else { 16 };
        assert_eq!(snapshot(&mount, "app/log", 0).len(), n);
    }
}

#[test]
fn raw_channels_have_no_packets() {
    let mount = Mount::new(&["--channel=app/log:timed"]);
    mount.send(0, &[b"bytes"]);
    for file in ["snapshot/cpu0", "take/cpu0"] {
        assert_eq!(fs::read(mount.control("cpu", file)).unwrap(), b"bytes");
    }
    let mut msg = File::options().write(true).open(mount.control("cpu", "msg")).unwrap();
    on_cpu(0, || msg.write_all(b"line\n").unwrap());
    assert_eq!(mount.read("cpu0"), b"line\n");
}
