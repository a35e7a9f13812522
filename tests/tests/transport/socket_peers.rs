//! Producers that die at the worst moment, say nothing, never read their replies, or come in crowds.

use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::process::{Command, Stdio};
use std::thread;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::MsgFlags;
use relay::wire::frame::{Body, Close, OPEN_CREATE, WAIT_FOREVER, WRITE_MORE, WRITE_REPLY};
use relay::wire::frame::{Write, WriteReply};
use relayfs_tests::limits::allow_open_files;
use relayfs_tests::peer::{Peer, assert_unharmed, messages, write};
use relayfs_tests::{Mount, Process, eventually, program};

/// "1,000 connections at once."
const CROWD: usize = 1000;

/// Descriptors that the daemon may open for a moment.
const FEW: usize = 4;

/// Number of descriptors that the daemon has open.
fn n_descriptors(mount: &mut Mount) -> usize {
    fs::read_dir(format!("/proc/{}/fd", mount.daemon().pid())).unwrap().count()
}

/// Number of sockets among them: one to listen, and one for each connection.
fn n_sockets(mount: &mut Mount) -> usize {
    let files = fs::read_dir(format!("/proc/{}/fd", mount.daemon().pid())).unwrap();
    // A descriptor may be closed before this thread reads its link.
    let names = files.filter_map(|file| fs::read_link(file.unwrap().path()).ok());
    names.filter(|name| name.to_string_lossy().starts_with("socket:")).count()
}

/// Starts `relay-producer ARGS` with a pipe for its lines, which it sends over the socket.
fn producer(mount: &Mount, args: &[&str]) -> Process {
    let mut command = Command::new(program("relay-producer"));
    command.arg("-m").arg(mount.point()).args(["--cpu", "0", "--transport=socket"]).args(args);
    Process::start(command.stdin(Stdio::piped()).stderr(Stdio::null()))
}

/// Only a thread on CPU n writes buffer n: writing threads can run on no other CPU.
#[test]
fn writing_threads_run_on_their_cpu_only() {
    for _ in 0..8 {
        let mut mount = Mount::new(&[]);
        mount.send(0, &[b"x"]);
        let tasks = fs::read_dir(format!("/proc/{}/task", mount.daemon().pid())).unwrap();
        // Other threads may end meanwhile.
        let mut statuses =
            tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok());
        let writer = statuses.find(|status| status.starts_with("Name:\twriter0\n")).unwrap();
        assert!(writer.contains("\nCpus_allowed_list:\t0\n"), "{writer}");
    }
}

/// A producer dies in a batch: a prefix of its messages is there, whole, in order and without a gap.
#[test]
fn producer_killed_in_batch_leaves_whole_messages() {
    let mut mount = Mount::new(&["--subbuf-size=1M", "--n-subbufs=32"]);
    let _first = Peer::hello(&mount); // when it is served, the daemon has opened what it needs
    let before = n_sockets(&mut mount);
    let mut process = producer(&mount, &[]);
    let mut pipe = process.child().stdin.take().unwrap();
    let feeder = thread::spawn(move || {
        // Until the pipe breaks.
        for i in 0.. {
            if writeln!(pipe, "line {i} of a producer that is about to die").is_err() {
                return i;
            }
        }
        unreachable!("a pipe that never breaks")
    });
    eventually("a good part of them", || mount.stats("cpu")["total.written"] > 10_000);
    process.signal(Signal::SIGKILL);
    process.wait();
    let fed = feeder.join().unwrap();

    // The daemon takes all that is in the socket, and then closes it.
    eventually("the end of what it sent", || n_sockets(&mut mount) == before);
    mount.channel("cpu").flush().unwrap(); // takes its turn behind it
    let written = mount.stats("cpu")["total.written"];
    let text = String::from_utf8(mount.read("cpu0")).unwrap();
    assert!(text.ends_with('\n'));
    for (i, line) in text.lines().enumerate() {
        assert_eq!(line, format!("line {i} of a producer that is about to die"));
    }
    assert_eq!(text.lines().count() as u64, written);
    assert!(written <= fed, "{written} of {fed}");
    assert_eq!(mount.stats("cpu")["total.dropped"], 0);
    assert_unharmed(mount);
}

/// A long message whose producer dies before its last frame never appears.
#[test]
fn producer_killed_in_long_message_leaves_nothing_of_it() {
    let mount = Mount::new(&["--subbuf-size=1M"]);
    let message = vec![b'x'; 300_000];
    let begun = [&(message.len() as u32).to_le_bytes()[..], &message[..60_000]].concat();
    for n_frames in 1..5 {
        let peer = Peer::hello(&mount);
        let channel = peer.open("cpu", 0);
        peer.send(&write(channel, &begun).frame(WRITE_MORE | WRITE_REPLY, 7));
        for _ in 1..n_frames {
            peer.send(&write(channel, &message[..60_000]).frame(WRITE_MORE | WRITE_REPLY, 7));
        }
    }
    let peer = Peer::hello(&mount);
    let channel = peer.open("cpu", 0);
    let whole: WriteReply = peer.ask(&write(channel, &messages(&[b"whole"])).frame(WRITE_REPLY, 1)).unwrap();
    assert_eq!(whole, WriteReply { written: 1, dropped: 0, too_big: 0 });
    assert_eq!(mount.read("cpu0"), b"whole");
    drop(peer);
    assert_unharmed(mount);
}

/// A producer dies while it waits for room. Its waiting messages are dropped and counted. The room is for others.
#[test]
fn producer_killed_while_waiting_takes_no_room() {
    let mount = Mount::new(&["--subbuf-size=16", "--n-subbufs=2"]);
    let mut process = producer(&mount, &["--wait"]);
    let mut pipe = process.child().stdin.take().unwrap();
    pipe.write_all(&b"12345678\n".repeat(10)).unwrap(); // one to a sub-buffer
    eventually("a full buffer", || mount.stats("cpu")["total.written"] == 2);
    process.signal(Signal::SIGKILL);
    process.wait();
    eventually("the end of the wait", || mount.stats("cpu")["total.dropped"] == 8);
    assert_eq!(mount.read("cpu0"), b"12345678\n".repeat(2));
    assert_unharmed(mount);
}

/// A producer that waits for room for ever, and all messages behind that one, delay nothing else: not other
/// producers, not other channels, not files, not the end.
#[test]
fn waiting_producer_delays_nothing_else() {
    let mount = Mount::new(&["--channel=full:subbuf-size=64:n-subbufs=1:global"]);
    let peer = Peer::hello(&mount);
    let channel = peer.open("full", 0);
    let message = messages(&[&[b'x'; 64]]);
    let frame = Write { wait_ms: WAIT_FOREVER, ..write(channel, &message) }.frame(0, 1);
    while peer.try_send(&frame, MsgFlags::MSG_DONTWAIT).is_ok() {}
    assert_eq!(mount.send(0, &[b"by"]).written, 1);
    let refused = mount.send_to("full", 0, &[b"no room"]);
    assert_eq!((refused.written, refused.dropped), (0, 1));
    assert_eq!(mount.read("cpu0"), b"by");
    let other = Peer::hello(&mount);
    other.open("new", OPEN_CREATE);
    other.assert_served();
    drop(other);
    File::open(mount.path("full0")).unwrap().read_exact(&mut [0; 64]).unwrap();
    eventually("the next one in", || mount.stats("full")["total.written"] >= 2);
    assert_unharmed(mount); // which also ends the daemon, with the producer still there
    drop(peer);
}

/// A thousand idle connections: with and without a HELLO, and with a channel. Each takes a descriptor, and gives it
/// back.
#[test]
fn idle_crowd_gives_its_descriptors_back() {
    allow_open_files(4 * CROWD as u64);
    let mut mount = Mount::new(&[]);
    let first = Peer::hello(&mount); // when it is served, the daemon has opened what it needs
    let before = n_descriptors(&mut mount);
    let mut crowd: Vec<Peer> = Vec::new();
    for i in 0..CROWD / 2 {
        let peer = Peer::hello(&mount);
        if i % 2 == 1 {
            peer.open("cpu", 0);
        }
        crowd.push(peer);
    }
    // Last, since the daemon waits for a HELLO some time only.
    crowd.extend((0..CROWD / 2).map(|_| Peer::connect(&mount)));
    // Not by the descriptors of before: the daemon had some more while it started.
    eventually("a crowd", || n_sockets(&mut mount) >= CROWD);
    assert_eq!(mount.send(0, &[b"through the crowd"]).written, 1);
    assert_eq!(mount.read("cpu0"), b"through the crowd");
    drop(crowd);
    eventually("its descriptors back", || n_descriptors(&mut mount) <= before + FEW);
    first.assert_served();
    assert_unharmed(mount);
}

/// A thousand connections that never read: the daemon drops a peer that does not receive its replies, and no other.
#[test]
fn crowd_that_never_reads_is_dropped() {
    allow_open_files(4 * CROWD as u64);
    let mut mount = Mount::new(&[]);
    let first = Peer::hello(&mount); // when it is served, the daemon has opened what it needs
    let before = n_descriptors(&mut mount);
    let request = Close { channel: 1000 }.frame(0, 1);
    let crowd: Vec<Peer> = (0..CROWD).map(|_| Peer::hello(&mount)).collect();
    for peer in &crowd {
        for _ in 0..20 {
            peer.send(&request);
        }
    }
    for peer in &crowd[..20] {
        // Until the daemon drops the peer.
        while peer.try_send(&request, MsgFlags::empty()).is_ok() {}
        assert_eq!(peer.try_send(&request, MsgFlags::empty()), Err(Errno::EPIPE));
    }
    assert_eq!(mount.send(0, &[b"through the crowd"]).written, 1);
    assert_eq!(mount.read("cpu0"), b"through the crowd");
    let last = crowd.last().unwrap();
    for _ in 0..20 {
        last.assert_refused(Errno::EBADF, "no channel 1000");
    }
    last.assert_served();
    drop(crowd);
    eventually("its descriptors back", || n_descriptors(&mut mount) <= before + FEW);
    first.assert_served();
    assert_unharmed(mount);
}

/// A crowd floods one buffer, and dies: each written message is one that was sent, whole.
#[test]
fn crowd_that_floods_and_dies_leaves_whole_messages() {
    allow_open_files(4 * CROWD as u64);
    let mount = Mount::new(&["--subbuf-size=64K", "--n-subbufs=4", "--overwrite"]);
    let payload = messages(&[&[b'm'; 63]; 100].map(|message| &message[..]));
    let crowd: Vec<Peer> = (0..200).map(|_| Peer::hello(&mount)).collect();
    let mut sent = 0;
    for peer in &crowd {
        let channel = peer.open("cpu", 0);
        for _ in 0..10 {
            let frame = write(channel, &payload).frame(0, 1);
            if peer.try_send(&frame, MsgFlags::MSG_DONTWAIT).is_err() {
                break;
            }
            sent += 100;
        }
    }
    drop(crowd);
    eventually("all that was sent", || mount.stats("cpu")["total.written"] == sent);
    assert_eq!(mount.stats("cpu")["total.bytes"], sent * 63);
    let left = mount.read("cpu0");
    assert!(left.len().is_multiple_of(63) && left.iter().all(|&b| b == b'm'), "{}", left.len());
    assert_unharmed(mount);
}

/// A peer beyond the limit of `--max-connections` or of open files gets an error. Other peers are not delayed.
#[test]
fn connection_beyond_limit_gets_error() {
    let mount = Mount::new(&["--max-connections=3"]);
    let mut peers: Vec<Peer> = (0..3).map(|_| Peer::hello(&mount)).collect();
    for _ in 0..5 {
        Peer::connect(&mount)
            .assert_dropped(Errno::EUSERS, "3 connections are open, the limit of --max-connections");
    }
    peers[0].assert_served();
    peers.pop();
    let mut newcomer = None;
    eventually("a place", || {
        let peer = Peer::connect(&mount);
        peer.send(&relayfs_tests::peer::hello(1, 1));
        let packet = peer.receive().expect("an answer");
        newcomer = (packet[4..6] == [1, 0x80]).then_some(peer);
        newcomer.is_some()
    });
    newcomer.unwrap().assert_served();
    drop(peers);
    eventually("places", || fs::metadata(mount.path(".relay/socket")).is_ok());
    drop(mount);
}
