//! A thousand of each at once: connections, channels, pollers. All are served.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use relay::wire::frame::{Body, OPEN_CREATE, WRITE_REPLY, WriteReply};
use relayfs_tests::limits::allow_open_files;
use relayfs_tests::peer::{Peer, messages, write};
use relayfs_tests::{DEADLINE, Mount};

const MANY: usize = 1000;

/// Each connection has a channel and a poller for it. Then a message goes through each.
#[test]
fn thousand_connections_channels_and_pollers_are_served() {
    allow_open_files(4 * MANY as u64);
    let mount = Mount::new(&[]);
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let mut all: Vec<(Peer, u32, File)> = (0..MANY)
        .map(|i| {
            let peer = Peer::hello(&mount);
            let channel = peer.open(&format!("many/n{i}-"), OPEN_CREATE);
            let file = File::open(mount.path(&format!("many/n{i}-0"))).unwrap();
            epoll.add(&file, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, i as u64)).unwrap();
            (peer, channel, file)
        })
        .collect();
    assert_eq!(std::fs::read_dir(mount.path("many")).unwrap().count(), MANY);
    let mut events = [EpollEvent::empty(); MANY];
    assert_eq!(epoll.wait(&mut events, EpollTimeout::ZERO), Ok(0), "nothing is written yet");

    for (i, (peer, channel, _)) in all.iter().enumerate() {
        // Two sub-buffers of 4096 bytes: the second message finishes the first one's.
        let (number, rest) = ((i as u64).to_le_bytes(), [0; 4000]);
        let both = messages(&[&number, &rest, &rest]);
        let reply: WriteReply = peer.ask(&write(*channel, &both).frame(WRITE_REPLY, 1)).unwrap();
        assert_eq!((reply.written, reply.dropped), (3, 0));
    }
    let mut woken = BTreeSet::new();
    while woken.len() < MANY {
        let n = epoll.wait(&mut events, EpollTimeout::try_from(DEADLINE).unwrap()).unwrap();
        assert!(n > 0, "{} of {MANY} woken", woken.len());
        woken.extend(events[..n].iter().map(EpollEvent::data));
    }
    for (i, (_, _, file)) in all.iter_mut().enumerate() {
        let mut number = [0; 8];
        file.read_exact(&mut number).unwrap();
        assert_eq!(u64::from_le_bytes(number), i as u64);
    }
}
