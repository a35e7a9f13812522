//! The program closes the library's descriptors, and its own files get their numbers.
//!
//! The library must not write to those files, read from them or close them. Direct writes still work, and a call that
//! needs the daemon connects again. This is the only test of its process, so that no other thread takes the numbers.

mod common;

use std::fs::{self, File};
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use common::files::{Files, pin_anywhere};
use common::{Daemon, Manners, PATIENCE, geometry, open_by_socket};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, getpeername, recv, sendmsg, socketpair,
};
use nix::sys::stat::fstat;
use nix::unistd::close;
use relay_producer::{Channel, WriteError};
use rustix::io::fcntl_dupfd_cloexec;
use tempfile::{TempDir, tempdir};

const SPEC: &str = "subbuf-size=1000:n-subbufs=64";
/// A quarter of a sub-buffer.
const MESSAGE: [u8; 250] = [b'm'; 250];
/// Sub-buffers that are filled each time.
const SUBBUFS: usize = 4;

/// The descriptor numbers of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Numbers {
    socket: RawFd,
    control: Option<RawFd>,
    bell: Option<RawFd>,
}

fn link(fd: RawFd) -> Option<std::path::PathBuf> {
    fs::read_link(format!("/proc/self/fd/{fd}")).ok()
}

/// Returns all descriptors of this process.
fn numbers() -> Vec<RawFd> {
    let entries = fs::read_dir("/proc/self/fd").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Shows that a descriptor is an eventfd.
fn id_of_eventfd(fd: RawFd) -> Option<String> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    info.lines().find(|line| line.starts_with("eventfd-id:")).map(str::to_owned)
}

/// Returns the descriptors of the only channel that this process has open at the daemon.
#[track_caller]
fn numbers_of(daemon: &Daemon, files: Option<&Files>) -> Numbers {
    let all = numbers();
    let other = |theirs: RawFd, is_same: &dyn Fn(RawFd) -> bool| {
        all.iter().copied().find(|fd| *fd != theirs && is_same(*fd))
    };
    let leads_there =
        |fd| getpeername::<UnixAddr>(fd).is_ok_and(|peer| peer.path() == Some(daemon.socket.as_path()));
    let (control, bell) =
        files.map(|files| (files.control.as_raw_fd(), files.bell.as_fd().as_raw_fd())).unzip();
    Numbers {
        socket: other(-1, &leads_there).expect("a socket"),
        control: control.map(|theirs| other(theirs, &|fd| link(fd) == link(theirs)).expect("a control file")),
        bell: bell
            .map(|theirs| other(theirs, &|fd| id_of_eventfd(fd) == id_of_eventfd(theirs)).expect("a bell")),
    }
}

/// The program's files under the numbers of a channel.
struct Own {
    _dir: TempDir,
    /// The other end of its socket.
    peer: OwnedFd,
    files: Vec<(OwnedFd, (u64, u64))>,
}

const SECRET: &[u8] = b"the program's own";

impl Own {
    /// Closes the library's descriptors, and opens files under their numbers.
    /// The bell's becomes a file, or an eventfd.
    #[track_caller]
    fn take(numbers: Numbers, as_eventfd: bool) -> Own {
        let dir = tempdir().unwrap();
        let (ours, peer) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let sent = sendmsg::<()>(peer.as_raw_fd(), &[IoSlice::new(SECRET)], &[], MsgFlags::empty(), None);
        assert_eq!(sent, Ok(SECRET.len()));
        let file = |name: &str| -> OwnedFd { create(&dir.path().join(name)).into() };
        let eventfd = || OwnedFd::from(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
        let bell = if as_eventfd { eventfd() } else { file("bell") };
        let taken = [(Some(numbers.socket), ours), (numbers.control, file("control")), (numbers.bell, bell)];
        let mut files = Vec::new();
        for (number, own) in taken {
            let Some(number) = number else { continue };
            close(number).unwrap();
            let own = fcntl_dupfd_cloexec(&own, number).unwrap();
            assert_eq!(own.as_raw_fd(), number, "a number that is free");
            let found = fstat(&own).unwrap();
            files.push((own, (found.st_dev, found.st_ino)));
        }
        Own { _dir: dir, peer, files }
    }

    /// Checks that no byte was written or read, and all files are open.
    #[track_caller]
    fn is_untouched(&self) {
        let mut packet = [0; 100];
        let sent = recv(self.peer.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT);
        assert_eq!(sent, Err(Errno::EAGAIN), "sent over the program's socket");
        for (own, id) in &self.files {
            let found = fstat(own).map(|found| (found.st_dev, found.st_ino));
            assert_eq!(found, Ok(*id), "descriptor {} was closed", own.as_raw_fd());
            let is_eventfd = link(own.as_raw_fd()).unwrap().to_string_lossy().contains("eventfd");
            let len = if is_eventfd { count_of(own) } else { fstat(own).unwrap().st_size as u64 };
            assert_eq!(len, 0, "written to descriptor {}", own.as_raw_fd());
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
        let there = recv(self.files[0].0.as_raw_fd(), &mut packet, flags);
        assert_eq!(there, Ok(SECRET.len()), "what was in the program's socket is gone");
    }
}

fn create(path: &Path) -> File {
    File::options().read(true).write(true).create_new(true).open(path).unwrap()
}

fn count_of(eventfd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    let read = File::from(eventfd.try_clone().unwrap()).read_exact(&mut count);
    read.map_or(0, |()| u64::from_ne_bytes(count))
}

/// Writes whole sub-buffers while a reader waits for each, and reads them.
#[track_caller]
fn write_subbufs(channel: &Channel, files: &Files, cpu: usize) {
    for _ in 0..SUBBUFS * 1000 / MESSAGE.len() {
        files.buffers[cpu].arm();
        assert_eq!(channel.write(&MESSAGE), Ok(()));
    }
    assert_eq!(files.read(cpu).len(), SUBBUFS * 1000);
}

#[test]
fn files_with_the_numbers_of_lost_descriptors_are_left_alone() {
    let cpu = pin_anywhere();
    for as_eventfd in [false, true] {
        writes_directly(cpu, as_eventfd);
    }
    two_channels(cpu);
    sends();
    waits_for_an_answer();
}

fn sharing_daemon() -> (TempDir, Daemon, Arc<Files>) {
    let dir = tempdir().unwrap();
    let daemon = Daemon::start(&dir, Manners { geometry: SPEC, ..Manners::default() });
    let files = Files::new(geometry(SPEC));
    daemon.share(&files);
    (dir, daemon, files)
}

/// Shared buffers need no descriptor.
fn writes_directly(cpu: usize, as_eventfd: bool) {
    if !relay::ring::writer::AnyExecutor::can_share() {
        return;
    }
    let (_dir, daemon, files) = sharing_daemon();
    let channel = Channel::open(&daemon.socket, "cpu").unwrap();
    write_subbufs(&channel, &files, cpu);
    assert!(files.rings() > 0);
    let own = Own::take(numbers_of(&daemon, Some(&files)), as_eventfd);
    write_subbufs(&channel, &files, cpu);
    assert_eq!(files.rings(), 0, "nothing is left to ring with");
    own.is_untouched();

    assert!(channel.flush().is_ok(), "a call that may wait connects again");
    assert_eq!(daemon.accepted(), 2);
    own.is_untouched();
    write_subbufs(&channel, &files, cpu);
    assert!(files.rings() > 0, "and has a bell again");
    drop(channel);
    own.is_untouched();
    assert_eq!(daemon.store().messages.len(), 0, "nothing went by the socket");
}

/// Both channels have the same control file, and bells look alike.
/// The second channel gets the numbers of the first one.
fn two_channels(cpu: usize) {
    if !relay::ring::writer::AnyExecutor::can_share() {
        return;
    }
    let (_dir, daemon, files) = sharing_daemon();
    let first = Channel::open(&daemon.socket, "cpu").unwrap();
    let lost = numbers_of(&daemon, Some(&files));
    for number in [Some(lost.socket), lost.control, lost.bell].into_iter().flatten() {
        close(number).unwrap();
    }
    let started = Instant::now();
    // The daemon is in this process, and closes its end of the first connection at any time.
    let second = loop {
        let second = Channel::open(&daemon.socket, "cpu").unwrap();
        let numbers = numbers_of(&daemon, Some(&files));
        if (numbers.control, numbers.bell) == (lost.control, lost.bell) {
            break second;
        }
        assert!(started.elapsed() < PATIENCE, "{lost:?} are not given again: {numbers:?}");
    };
    let accepted = daemon.accepted();
    drop(first);
    files.rings();
    write_subbufs(&second, &files, cpu);
    assert!(files.rings() > 0, "the bell of the second channel was closed with the first one");
    second.flush().unwrap();
    assert_eq!(daemon.accepted(), accepted, "it has the connection that it had");
}

/// Over the socket, a message that cannot be sent is an error. The next call connects again.
fn sends() {
    for lost in [&b"short"[..], &[b'l'; 100_000]] {
        let dir = tempdir().unwrap();
        let daemon =
            Daemon::start(&dir, Manners { geometry: "subbuf-size=256K:n-subbufs=2", ..Manners::default() });
        let channel = open_by_socket(&daemon);
        channel.write(b"before").unwrap();
        channel.flush().unwrap();
        let own = Own::take(numbers_of(&daemon, None), false);
        assert_eq!(channel.write(lost), Err(WriteError::Disconnected));
        own.is_untouched();
        channel.flush().unwrap();
        channel.write(b"after").unwrap();
        channel.flush().unwrap();
        let store = daemon.store();
        let arrived: Vec<&[u8]> = store.messages.iter().map(|(_, message)| message.as_slice()).collect();
        assert_eq!(arrived, [&b"before"[..], b"after"]);
        drop(store);
        drop(channel);
        own.is_untouched();
    }
}

/// The descriptor is closed while a thread waits for the daemon with it.
fn waits_for_an_answer() {
    let dir = tempdir().unwrap();
    let daemon = Daemon::start(&dir, Manners { geometry: SPEC, hold: Some(b"held"), ..Manners::default() });
    let channel = open_by_socket(&daemon);
    let numbers = numbers_of(&daemon, None);
    let own = std::thread::scope(|scope| {
        let batch = scope.spawn(|| channel.write_batch([b"held"], relay_producer::BatchOptions::default()));
        daemon.wait_for("a batch that is not answered", |store| store.held.len() == 1);
        let own = Own::take(numbers, false);
        daemon.release();
        // The thread has lost its connection, or has had its answer before: no more can come.
        daemon.hang_up();
        let _ = batch.join().unwrap();
        own
    });
    own.is_untouched();
    channel.flush().unwrap();
    own.is_untouched();
}
