//! Frames of timed channels: OPEN's mode, ATTACH, DEFINE, and records in WRITE.

use std::fs;

use nix::errno::Errno;
use relay::wire::frame::{
    Attach, Body, Close, Define, DefineField, OPEN_CREATE, Open, OpenReply, WriteReply,
};
use relayfs_tests::Mount;
use relayfs_tests::peer::{Peer, assert_unharmed};
use relayfs_tests::timed::{attach, define, open, record, snapshot, texts, write, write_long};

fn refused<T: std::fmt::Debug>(result: Result<T, relay::wire::frame::Refusal>, errno: Errno, part: &str) {
    let refusal = result.unwrap_err();
    assert_eq!(Errno::from_raw(refusal.errno), errno, "{}", refusal.text);
    assert!(refusal.text.contains(part), "{}", refusal.text);
}

fn failed(channel: u32, cpu: u32, records: &[Vec<u8>], peer: &Peer, part: &str) {
    refused(write(peer, channel, cpu, records), Errno::EINVAL, part);
}

#[test]
fn open_makes_timed_and_raw_channels_and_the_reply_says_which() {
    let mount = Mount::new(&["-ochannel=set/timed:timed", "--channel=set/raw:raw"]);
    let peer = Peer::hello(&mount);
    let is_timed = |name: &str, options: &str| open(&peer, name, options).shape().unwrap().0.timed();
    assert!(is_timed("a", "timed") && !is_timed("b", "raw") && !is_timed("c", ""));
    // An existing channel stays as it is.
    assert!(is_timed("a", "raw") && is_timed("a", "") && !is_timed("b", "timed"));
    assert!(is_timed("set/timed", "") && !is_timed("set/raw", "timed"));
    assert_eq!(fs::read_to_string(mount.control("a", "mode")).unwrap(), "no-overwrite timed\n");
    let wrong = open_frame("d", 0x30);
    refused(peer.ask::<OpenReply>(&wrong), Errno::EPROTO, "malformed");
    let peer = Peer::hello(&mount);
    let header = Open { header: 8, ..open_of("e", 0x10) }.frame(OPEN_CREATE, 9);
    refused(peer.ask::<OpenReply>(&header), Errno::EINVAL, "a timed channel has no header");
    let small = Open { subbuf_size: 63, ..open_of("f", 0x10) }.frame(OPEN_CREATE, 10);
    refused(peer.ask::<OpenReply>(&small), Errno::EINVAL, "too small for a timed channel");
    assert_unharmed(mount);
}

fn open_of(name: &str, mode: u8) -> Open<'_> {
    Open { subbuf_size: 4096, n_subbufs: 2, header: u32::MAX, mode, scope: 2, name: name.as_bytes() }
}

fn open_frame(name: &str, mode: u8) -> Vec<u8> {
    open_of(name, mode).frame(OPEN_CREATE, 8)
}

#[test]
fn whole_records_of_known_events_are_taken_and_a_frame_with_another_is_refused_whole() {
    let mount = Mount::new(&[]);
    let peer = Peer::hello(&mount);
    let channel = open(&peer, "app", "timed:subbuf-size=4K:global").channel;
    let good = record(0, 7, b"good");
    assert_eq!(
        write(&peer, channel, 0, &[good.clone(), record(1, 7, b"\0\xff"), record(0, 7, b"")])
            .unwrap()
            .written,
        3
    );
    let mut longer = good.clone();
    longer.push(b'x');
    for (bad, why) in [
        (
            good[..good.len() - 1].to_vec(),
            "message 1 of the frame is no record: its head says 4 bytes, and 3 follow",
        ),
        (longer, "its head says 4 bytes, and 5 follow"),
        (b"a line".to_vec(), "it has 6 bytes, and its head 8; the channel is timed: update the producer"),
        (record(9, 7, b""), "event 9 is not defined: define it first"),
        (record(256, 7, b""), "event 256 is not defined"),
        (record(u16::MAX, 7, b""), "event 65535 is not defined"),
    ] {
        failed(channel, 0, &[good.clone(), bad], &peer, why);
    }
    assert_eq!(texts(&snapshot(&mount, "app", 0)), ["0 good", "1 \\x00\\xff", "0 "]);
    assert_eq!(mount.stats("app")["total.dropped"], 0);
    drop(peer);
    assert_unharmed(mount);
}

#[test]
fn longest_record_is_taken_and_a_longer_one_is_too_big() {
    let mount = Mount::new(&[]);
    let peer = Peer::hello(&mount);
    let channel = open(&peer, "app", "timed:subbuf-size=128K:global").channel;
    let longest = record(0, 7, &vec![b'x'; 65_535]);
    assert_eq!(write_long(&peer, channel, &longest).unwrap().written, 1);
    let mut longer = longest.clone();
    longer.push(b'y');
    assert_eq!(
        write_long(&peer, channel, &longer).unwrap(),
        WriteReply { too_big: 1, ..WriteReply::default() }
    );
    let mut lie = longest.clone();
    lie[6] = 0;
    refused(write_long(&peer, channel, &lie), Errno::EINVAL, "its head says 65280 bytes, and 65535 follow");
    let mut unknown = longest.clone();
    unknown[1] = 1;
    refused(write_long(&peer, channel, &unknown), Errno::EINVAL, "event 256 is not defined");
    let found = snapshot(&mount, "app", 0);
    assert_eq!((found.len(), found[0].3.len()), (1, 65_535));
    // A smaller sub-buffer takes less.
    let small = open(&peer, "small", "timed:subbuf-size=64:global").channel;
    assert_eq!(write(&peer, small, 0, &[record(0, 1, &[b'x'; 48])]).unwrap().written, 1);
    assert_eq!(write(&peer, small, 0, &[record(0, 1, &[b'x'; 49])]).unwrap().too_big, 1);
    assert_eq!(mount.stats("small")["total.too_big"], 1);
}

#[test]
fn stamps_of_a_buffer_never_decrease() {
    let mount = Mount::new(&[]);
    let peers: Vec<Peer> = (0..4).map(|_| Peer::hello(&mount)).collect();
    let channels: Vec<u32> = peers
        .iter()
        .map(|peer| open(peer, "app", "timed:subbuf-size=64K:n-subbufs=8:global").channel)
        .collect();
    for n in 0..50u32 {
        for (peer, channel) in peers.iter().zip(&channels) {
            write(peer, *channel, 0, &vec![record(0, n, b"x"); 20]).unwrap();
        }
        fs::write(mount.control("app", "msg"), "m").unwrap();
    }
    assert_eq!(snapshot(&mount, "app", 0).len(), 50 * (4 * 20 + 1));
}

#[test]
fn events_get_ids_and_the_same_content_the_same_id() {
    let mount = Mount::new(&[]);
    let (peer, other) = (Peer::hello(&mount), Peer::hello(&mount));
    let channel = open(&peer, "app", "timed:subbuf-size=4K:global").channel;
    let id =
        |peer: &Peer, channel, name: &str, kind| define(peer, channel, name, &[(kind, "field")]).unwrap();
    assert_eq!(id(&peer, channel, "a", 1), 256);
    assert_eq!(id(&peer, channel, "b", 1), 257);
    assert_eq!(id(&peer, channel, "a", 2), 258, "another type is another event");
    let second = open(&other, "app", "").channel;
    assert_eq!(id(&other, second, "b", 1), 257, "whichever process defines it");
    assert_eq!(write(&other, second, 0, &[record(258, 1, &7i64.to_le_bytes())]).unwrap().written, 1);
    let metadata = fs::read_to_string(mount.control("app", "metadata")).unwrap();
    let (_, parsed) = relay::trace::metadata::Metadata::parse(&metadata).unwrap();
    assert_eq!((parsed.definitions.len(), parsed.refused.len()), (3, 0));
    let trace = fs::read_to_string(mount.control("app", "trace")).unwrap();
    assert!(trace.ends_with("INFO app::db: a field=7\n"), "{trace}");
    // Another channel has its own events.
    let apart = open(&peer, "apart", "timed:global").channel;
    failed(apart, 0, &[record(256, 1, &[0; 8])], &peer, "event 256 is not defined");
    assert_eq!(id(&peer, apart, "c", 1), 256);
}

#[test]
fn definitions_that_make_no_sense_are_refused_with_their_reason() {
    let mount = Mount::new(&["--channel=app:timed"]);
    let peer = Peer::hello(&mount);
    let channel = open(&peer, "app", "timed").channel;
    let base =
        || Define { channel, level: 3, line: 1, name: b"n", target: b"t", file: b"f", fields: Vec::new() };
    let field = |kind, name| DefineField { kind, name };
    let long = vec![b'n'; 256];
    for (define, part) in [
        (Define { name: b"", ..base() }, "the name of the event is empty"),
        (Define { name: &long[..201], ..base() }, "has 201 bytes; the most are 200"),
        (Define { target: &long, ..base() }, "the target has 256 bytes"),
        (Define { file: b"a\0b", ..base() }, "the file contains a NUL byte"),
        (Define { name: b"\xff", ..base() }, "the definition's name is not UTF-8"),
        (Define { level: 6, ..base() }, "level is none of 0 to 5"),
        (Define { fields: vec![field(7, b"f")], ..base() }, "type that is none of 1 to 6"),
        (Define { fields: vec![field(1, b"f"), field(2, b"f")], ..base() }, "two fields have the name"),
        (Define { fields: vec![field(1, b"\xfe")], ..base() }, "field has a name that is not UTF-8"),
    ] {
        let refusal = peer.ask::<relay::wire::frame::DefineReply>(&define.frame(0, 1));
        refused(refusal, Errno::EINVAL, part);
    }
    let unknown = Define { channel: 77, ..base() }.frame(0, 1);
    refused(peer.ask::<relay::wire::frame::DefineReply>(&unknown), Errno::EBADF, "no channel 77");
    assert_eq!(define(&peer, channel, "good", &[]).unwrap(), 256);
}

/// A program that defines without end meets a limit, and the daemon serves the others.
#[test]
fn hundred_thousand_definitions_are_refused_at_the_limit() {
    let mount = Mount::new(&[]);
    let peer = Peer::hello(&mount);
    let channel = open(&peer, "app", "timed").channel;
    let mut n_refused = 0;
    for n in 0..100_000u32 {
        match define(&peer, channel, &format!("event {n}"), &[]) {
            Ok(id) => assert_eq!(id, 256 + n),
            Err(refusal) => {
                assert_eq!(Errno::from_raw(refusal.errno), Errno::ENOSPC);
                assert!(refusal.text.contains("channel 'app': uid "), "{}", refusal.text);
                assert!(refusal.text.ends_with("the most of a user: define each once"), "{}", refusal.text);
                n_refused += 1;
            }
        }
    }
    assert!((100_000 - 4096..100_000 - 1000).contains(&n_refused), "{n_refused}");
    assert_eq!(define(&peer, channel, "event 0", &[]).unwrap(), 256, "what is defined stays");
    drop(peer);
    assert_unharmed(mount);
}

#[test]
fn raw_channels_refuse_frames_of_timed_ones() {
    let mount = Mount::new(&[]);
    let peer = Peer::hello(&mount);
    let channel = peer.open("cpu", 0);
    let attach =
        peer.ask::<relay::wire::frame::AttachReply>(&Attach { channel, executable: b"" }.frame(0, 1));
    refused(attach, Errno::EINVAL, "channel 'cpu': it is a raw channel");
    refused(define(&peer, channel, "x", &[]), Errno::EINVAL, "channel 'cpu': it is a raw channel");
    drop(peer);
    assert_unharmed(mount);
}

#[test]
fn attached_processes_have_numbers_and_their_threads_are_listed() {
    let mount = Mount::new(&[]);
    let (peer, second) = (Peer::hello(&mount), Peer::hello(&mount));
    let channel = open(&peer, "app", "timed:subbuf-size=4K:global").channel;
    let reply = attach(&peer, channel);
    assert_eq!((reply.process, attach(&peer, channel).process), (1, 1));
    assert_eq!((reply.pid, reply.reserved), (std::process::id(), 0));
    let clock = fs::read_to_string(mount.control("app", "clock")).unwrap();
    assert!(clock.starts_with(if reply.clock == 2 { "clock tsc " } else { "clock monotonic " }), "{clock}");
    let again = open(&second, "app", "").channel;
    assert_eq!(attach(&second, again).process, 1, "the same process");
    write(&peer, channel, 0, &[record(0, 4242, b"x")]).unwrap();
    let text = fs::read_to_string(mount.control("app", "processes")).unwrap();
    let (process, threads) = text.split_once('\n').unwrap();
    let (pid, uid) = (std::process::id(), nix::unistd::getuid());
    let start = fs::read_to_string("/proc/self/stat").unwrap();
    let start = start.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().to_owned();
    let comm = fs::read_to_string("/proc/self/comm").unwrap();
    // A daemon that may not look at the executable knows what the program says, or was called with.
    let (about, executable) = process.split_once('\t').unwrap();
    assert_eq!(about, format!("1 {pid} {start} {uid} {}", comm.trim_end()));
    let exe = fs::read_link("/proc/self/exe").unwrap();
    assert!(
        executable == exe.to_str().unwrap() || executable == std::env::args().next().unwrap(),
        "{executable}"
    );
    assert_eq!(threads, "thread 4242 1\n");
    let stats = mount.stats("app");
    let counts = ["events", "processes", "epoch"].map(|name| stats[&format!("timed.{name}")]);
    assert_eq!(counts, [0, 1, 0]);
    peer.send(&Close { channel }.frame(0, 5));
    peer.receive().unwrap();
    refused(write(&peer, channel, 0, &[record(0, 1, b"x")]), Errno::EBADF, "no channel");
}
