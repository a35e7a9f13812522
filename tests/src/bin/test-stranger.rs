//! Tries what another user may not do, and prints the result of each attempt on a line.
//!
//! The tests run it as another user than the daemon's.
//!
//! * `test-stranger connect SOCKET COUNT`: connects COUNT times, and prints the answers, each with the number of its
//!   repetitions in a row. Keeps the connections until its standard input ends.
//! * `test-stranger create SOCKET COUNT GEOMETRY...`: creates channels on one connection, with subbuf_size and
//!   n_subbufs.
//! * `test-stranger open FILE COUNT`: opens a file COUNT times.
//! * `test-stranger watch SOCKET CHANNEL`: asks for a channel's files to read. Whatever the answer, asks to be notified
//!   of data and to give sub-buffers back.
//! * `test-stranger scribble SOCKET CHANNEL`: gets the files of a channel to read, and tries to write them.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write, stdin};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mprotect};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::MsgFlags;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown, ftruncate};
use relay::wire::frame::{Body, FRAME_MAX, Frame, FrameType, HEADER_DEFAULT, OPEN_CREATE, SHARE_READ};
use relay::wire::frame::{Consume, Open, OpenReply, Refusal, Share, Watch};
use relay::wire::socket::Socket;
use relayfs_tests::peer::{Peer, hello};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the soft limit");
    }
    match args[..] {
        ["connect", socket, count] => {
            repeat(count, |_| {
                let peer = Peer::connect_to(Path::new(socket));
                let answer = greet(&peer);
                (peer, answer)
            });
        }
        ["create", socket, count, subbuf_size, n_subbufs] => {
            let peer = Peer::connect_to(Path::new(socket));
            assert_eq!(greet(&peer), "served");
            let geometry = (subbuf_size.parse().expect("a size"), n_subbufs.parse().expect("a count"));
            repeat(count, |i| ((), create(&peer, i, geometry)));
        }
        ["open", path, count] => {
            repeat(count, |_| match File::open(path) {
                Ok(file) => (Some(file), "opened".to_owned()),
                Err(error) => (None, error.to_string()),
            });
        }
        ["watch", socket, channel] => watch(Path::new(socket), channel),
        ["scribble", socket, channel] => scribble(Path::new(socket), channel),
        _ => panic!("what to try? {args:?}"),
    }
}

/// Repeats an attempt, and prints equal answers in a row as one.
///
/// Keeps the results until standard input ends.
fn repeat<T>(count: &str, mut attempt: impl FnMut(usize) -> (T, String)) {
    let (mut kept, mut answers) = (Vec::new(), Vec::<(String, usize)>::new());
    for i in 0..count.parse().expect("a count") {
        let (got, answer) = attempt(i);
        kept.push(got);
        match answers.last_mut() {
            Some((last, times)) if *last == answer => *times += 1,
            _ => answers.push((answer, 1)),
        }
    }
    for (answer, times) in answers {
        println!("{times} {answer}");
    }
    println!();
    stdin().read_to_end(&mut Vec::new()).expect("the end of the input");
}

fn greet(peer: &Peer) -> String {
    // The send may fail: the daemon may refuse a peer, and close, before its first request.
    let _ = peer.try_send(&hello(1, 1), MsgFlags::empty());
    answer(peer)
}

fn answer(peer: &Peer) -> String {
    let Some(packet) = peer.receive() else { return "hung up".to_owned() };
    let frame = Frame::decode(&packet).expect("a frame");
    match frame.kind {
        FrameType::Error => {
            let refusal = Refusal::decode(frame.body).expect("an error");
            format!("{:?}: {}", Errno::from_raw(refusal.errno), refusal.text)
        }
        _ => "served".to_owned(),
    }
}

fn create(peer: &Peer, i: usize, (subbuf_size, n_subbufs): (u32, u32)) -> String {
    let name = format!("of-{}/n{i}-", Uid::current());
    let open =
        Open { subbuf_size, n_subbufs, header: HEADER_DEFAULT, mode: 0, scope: 2, name: name.as_bytes() };
    peer.send(&open.frame(OPEN_CREATE, 1));
    answer(peer).replace(&name, "NAME")
}

fn watch(path: &Path, channel: &str) {
    let peer = Peer::connect_to(path);
    greet(&peer);
    let channel = peer.open(channel, 0);
    for (what, request) in [
        ("share to read", Share { channel }.frame(SHARE_READ, 1)),
        ("watch", Watch { channel, cpu: 0 }.frame(0, 2)),
        ("consume", Consume { channel, cpu: 0, from: 0, count: 1 }.frame(0, 3)),
    ] {
        peer.send(&request);
        println!("{what}: {}", answer(&peer).replace("served", "shared"));
    }
}

fn scribble(path: &Path, channel: &str) {
    let socket = Socket::connect(path, Duration::from_secs(60)).expect("a connection");
    let ask = |frame: Vec<u8>| {
        socket.send(&frame).expect("a request");
        assert!(
            socket.wait(PollFlags::POLLIN, Some(Instant::now() + Duration::from_secs(60))),
            "an answer in time"
        );
        let mut packet = vec![0; FRAME_MAX];
        let (len, descriptors) = socket.receive_with_descriptors(&mut packet).expect("an answer");
        packet.truncate(len);
        (packet, descriptors)
    };
    ask(hello(1, 1));
    let (subbuf_size, n_subbufs, header) = (0, 0, HEADER_DEFAULT);
    let open = Open { subbuf_size, n_subbufs, header, mode: 0, scope: 0, name: channel.as_bytes() };
    let (packet, _) = ask(open.frame(0, 1));
    let channel =
        OpenReply::decode(Frame::decode(&packet).expect("a frame").body).expect("a channel").channel;
    let (packet, _) = ask(Share { channel }.frame(0, 2));
    let refused = Frame::decode(&packet).expect("a frame").kind == FrameType::Error;
    println!("share to write: {}", if refused { "refused" } else { "shared" });
    let (_, descriptors) = ask(Share { channel }.frame(SHARE_READ, 3));
    println!("share to read: {} descriptors", descriptors.len());
    for (what, descriptor) in ["control", "bell", "data"].into_iter().zip(descriptors) {
        if what != "bell" {
            attack(what, descriptor);
        }
    }
}

/// Prints the result of each way to change a file by its descriptor.
fn attack(what: &str, descriptor: OwnedFd) {
    let say = |attempt: &str, result: Result<(), Errno>| {
        println!("{what} {attempt}: {}", result.map_or_else(|errno| errno.to_string(), |()| "done".into()));
    };
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
    let by_proc = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    say("open again to write", OpenOptions::new().write(true).open(&by_proc).map(drop).map_err(errno));
    say("open again to read", File::open(&by_proc).map(drop).map_err(errno));
    say("truncate", ftruncate(&descriptor, 0));
    say("fchmod", fchmod(&descriptor, Mode::from_bits_truncate(0o666)));
    say("fchown", fchown(&descriptor, Some(Uid::current()), Some(Gid::current())));
    let len = NonZeroUsize::new(4096).expect("not zero");
    let map = |protection| {
        // SAFETY: only the calls below use the mapping, and they do not access its memory.
        unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, descriptor.as_fd(), 0) }
    };
    say("map to write", map(ProtFlags::PROT_READ | ProtFlags::PROT_WRITE).map(drop));
    let mapped = map(ProtFlags::PROT_READ).expect("a mapping to read");
    // SAFETY: as above.
    say("mprotect to write", unsafe { mprotect(mapped, 4096, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE) });
    say("write", File::from(descriptor).write_all(b"x").map_err(errno));
}
