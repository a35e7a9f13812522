//! A daemon without a file system, which keeps all it receives and misbehaves on request.

// Each test program uses a part of this file.
#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod files;

use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, bind, listen,
    recv, sendmsg, shutdown, socket,
};
use relay::layout::geometry::MESSAGE_MAX;
use relay::wire::frame::{
    AttachReply, Body, FRAME_MAX, Flush, Frame, FrameType, Hello, HelloReply, Messages, OPEN_CREATE, Open,
    OpenReply, Refusal, Share, WRITE_MORE, WRITE_REPLY, Write, WriteReply, done,
};
use relay::{Geometry, GeometrySpec, Mode};
use relay_producer::{Channel, TransportChoice};
use tempfile::TempDir;

use files::Files;

/// Longest time that a test waits for a condition.
/// A longer wait means that something is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// CPUs of the pretended machine: at least as many as any machine that runs the tests.
pub const N_CPUS: u32 = 1024;
/// Number of the first process that attaches to a timed channel, in the daemon's PID namespace. Those of later ones follow.
const FIRST_PID: u32 = 1000;

/// Everything that arrived.
#[derive(Debug, Default)]
pub struct Store {
    /// Messages with the CPU of each, in order.
    pub messages: Vec<(u32, Vec<u8>)>,
    /// Sum of the losses that `WRITE`s reported.
    pub lost: u64,
    /// Long messages that were begun and not completed.
    pub given_up: usize,
    /// Number of messages that had arrived when each flush came.
    pub flushes: Vec<usize>,
    /// `wait_ms` of the `WRITE`s.
    pub waits: Vec<u32>,
    /// Names of channels opened, and whether creating them was allowed.
    pub opened: Vec<(String, bool)>,
    /// Number of processes that have attached to a timed channel.
    pub attached: u32,
    /// Withheld replies to `WRITE`s.
    pub held: Vec<(Arc<Peer>, u32, WriteReply)>,
}

/// Treatment of producers by a daemon.
#[derive(Clone, Debug)]
pub struct Manners {
    pub geometry: &'static str,
    /// The only channel that exists; others may be created.
    pub existing: &'static str,
    /// Messages longer than this are dropped, so that tests have dropped ones.
    pub dropped_over: usize,
    /// Batches of messages that start with this are answered when the test releases them.
    pub hold: Option<&'static [u8]>,
    /// The connection ends after this many frames of messages.
    pub frames_max: usize,
    /// The refusal of a request for the channel's files, if there are none.
    /// By default that of an older release.
    pub unshared: (i32, &'static str),
    /// The errno with which messages are refused, if they are.
    pub refused: Option<i32>,
}

impl Default for Manners {
    fn default() -> Self {
        Manners {
            geometry: "",
            existing: "cpu",
            dropped_over: usize::MAX,
            hold: None,
            frames_max: usize::MAX,
            unshared: (95, "unknown frame type 0x6"),
            refused: None,
        }
    }
}

pub struct Daemon {
    shared: Arc<Shared>,
    listener: Arc<UnixListener>,
    thread: Option<JoinHandle<()>>,
    pub socket: PathBuf,
}

struct Shared {
    store: Mutex<Store>,
    changed: Condvar,
    peers: Mutex<Vec<Arc<Peer>>>,
    accepted: AtomicUsize,
    /// The files of every channel, and whether messages over the socket go there.
    files: Mutex<Option<(Arc<Files>, bool)>>,
    /// Whether the daemon takes frames of messages from the sockets.
    open: Mutex<bool>,
    gate: Condvar,
    /// Whether the daemon has stopped answering.
    ended: AtomicBool,
}

/// The connection of one producer.
#[derive(Debug)]
pub struct Peer(OwnedFd);

impl Peer {
    /// Returns the next packet; `None` at the end.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut packet = vec![0; FRAME_MAX + 1];
        let len = recv(self.0.as_raw_fd(), &mut packet, MsgFlags::empty()).ok().filter(|len| *len > 0)?;
        packet.truncate(len);
        Some(packet)
    }

    pub fn send(&self, packet: &[u8]) {
        self.send_with(packet, &[]);
    }

    pub fn send_with(&self, packet: &[u8], descriptors: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let rights = if descriptors.is_empty() { &[][..] } else { &rights[..] };
        // A peer that has gone away does not want it.
        let packet = [IoSlice::new(packet)];
        let _ = sendmsg::<()>(self.0.as_raw_fd(), &packet, rights, MsgFlags::MSG_NOSIGNAL, None);
    }

    pub fn hang_up(&self) {
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }
}

pub fn geometry(spec: &str) -> Geometry {
    spec.parse::<GeometrySpec>().unwrap().build().unwrap()
}

pub fn hello_reply() -> HelloReply {
    let (frame_max, message_max) = (FRAME_MAX as u32, MESSAGE_MAX as u32);
    HelloReply { version: 1, frame_max, message_max, n_cpus: N_CPUS, features: 0 }
}

pub fn open_reply(geometry: &Geometry, created: bool) -> OpenReply {
    OpenReply::new(3, geometry, if geometry.global() { 1 } else { N_CPUS as usize }, created)
}

/// Opens the channel "cpu" without asking for its files: for daemons that follow a script.
pub fn open_by_socket(daemon: &Daemon) -> Channel {
    Channel::builder(&daemon.socket, "cpu").transport(TransportChoice::Socket).open().unwrap()
}

impl Daemon {
    /// Starts a well-behaved daemon.
    pub fn start(dir: &TempDir, manners: Manners) -> Daemon {
        Daemon::start_at(&dir.path().join("socket"), manners)
    }

    pub fn start_at(socket: &Path, manners: Manners) -> Daemon {
        Daemon::start_with(socket, move |shared, peer| Session::new(shared, peer, manners.clone()).serve())
    }

    /// Starts a daemon that runs `script` with each connection.
    pub fn start_script(dir: &TempDir, script: impl Fn(&Peer) + Send + Sync + 'static) -> Daemon {
        Daemon::start_script_at(&dir.path().join("socket"), script)
    }

    pub fn start_script_at(socket: &Path, script: impl Fn(&Peer) + Send + Sync + 'static) -> Daemon {
        Daemon::start_with(socket, move |_, peer| script(peer))
    }

    fn start_with(path: &Path, serve: impl Fn(&Arc<Shared>, &Arc<Peer>) + Send + Sync + 'static) -> Daemon {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        listen(&fd, Backlog::MAXCONN).unwrap();
        // accept(2) accepts any type of Unix socket.
        let listener = Arc::new(UnixListener::from(fd));
        let shared = Arc::new(Shared {
            store: Mutex::default(),
            changed: Condvar::new(),
            peers: Mutex::default(),
            accepted: AtomicUsize::new(0),
            files: Mutex::default(),
            open: Mutex::new(true),
            gate: Condvar::new(),
            ended: AtomicBool::new(false),
        });
        let thread = thread::spawn({
            let (shared, listener, serve) = (shared.clone(), listener.clone(), Arc::new(serve));
            move || {
                let mut threads = Vec::new();
                while let Ok((stream, _)) = listener.accept() {
                    let peer = Arc::new(Peer(stream.into()));
                    shared.accepted.fetch_add(1, Ordering::SeqCst);
                    shared.peers.lock().unwrap().push(peer.clone());
                    let (shared, serve) = (shared.clone(), serve.clone());
                    threads.push(thread::spawn(move || {
                        serve(&shared, &peer);
                        peer.hang_up();
                        shared.peers.lock().unwrap().retain(|other| !Arc::ptr_eq(other, &peer));
                    }));
                }
                threads.into_iter().for_each(|thread| thread.join().unwrap());
            }
        });
        Daemon { shared, listener, thread: Some(thread), socket: path.into() }
    }

    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.shared.store.lock().unwrap()
    }

    /// Waits until what arrived is as expected.
    pub fn wait_for(&self, what: &str, mut condition: impl FnMut(&Store) -> bool) {
        let store = self.store();
        let (store, timeout) =
            self.shared.changed.wait_timeout_while(store, PATIENCE, |store| !condition(store)).unwrap();
        assert!(!timeout.timed_out(), "{what}: {} messages, {} lost", store.messages.len(), store.lost);
    }

    /// Gives channels these files from now on, and writes messages there.
    pub fn share(&self, files: &Arc<Files>) {
        *self.shared.files.lock().unwrap() = Some((files.clone(), true));
    }

    /// Gives channels these files from now on, but does not write messages over the socket there.
    pub fn share_apart(&self, files: &Arc<Files>) {
        *self.shared.files.lock().unwrap() = Some((files.clone(), false));
    }

    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Sets whether the daemon takes frames of messages from the sockets.
    pub fn take_messages(&self, take: bool) {
        *self.shared.open.lock().unwrap() = take;
        self.shared.gate.notify_all();
    }

    /// Answers the withheld writes.
    pub fn release(&self) {
        for (peer, id, reply) in self.store().held.drain(..) {
            peer.send(&reply.frame(0, id));
        }
    }

    /// Ends all connections, but continues listening.
    pub fn hang_up(&self) {
        self.shared.peers.lock().unwrap().iter().for_each(|peer| peer.hang_up());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        let _ = fs::remove_file(&self.socket);
        self.shared.ended.store(true, Ordering::SeqCst);
        self.take_messages(true);
        self.store().held.clear();
        self.hang_up();
        if let Some(thread) = self.thread.take() {
            // A failed assertion of the daemon fails the test, which may be failing already.
            if thread.join().is_err() && !thread::panicking() {
                panic!("the daemon panicked");
            }
        }
    }
}

/// Serves a connection as a well-behaved daemon.
struct Session<'a> {
    shared: &'a Shared,
    peer: &'a Arc<Peer>,
    manners: Manners,
    /// An incomplete message: its frames' id, its CPU, its bytes.
    long: Option<(u32, u32, Vec<u8>)>,
    n_frames: usize,
}

impl<'a> Session<'a> {
    fn new(shared: &'a Shared, peer: &'a Arc<Peer>, manners: Manners) -> Self {
        Session { shared, peer, manners, long: None, n_frames: 0 }
    }

    fn serve(mut self) {
        while let Some(packet) = self.peer.receive() {
            let frame = Frame::decode(&packet).expect("a frame");
            assert!(!frame.reply);
            if frame.kind == FrameType::Write {
                let open = self.shared.open.lock().unwrap();
                drop(self.shared.gate.wait_while(open, |open| !*open).unwrap());
                if self.n_frames == self.manners.frames_max {
                    return;
                }
                self.n_frames += 1;
            }
            let mut store = self.shared.store.lock().unwrap();
            match frame.kind {
                FrameType::Hello => {
                    Hello::decode(frame.body).unwrap();
                    self.peer.send(&hello_reply().frame(0, frame.id));
                }
                FrameType::Open => self.open(&frame, &mut store),
                FrameType::Attach => {
                    let (process, pid) = (store.attached + 1, FIRST_PID + store.attached);
                    store.attached += 1;
                    self.peer.send(&AttachReply { process, clock: 1, pid, reserved: 0 }.frame(0, frame.id));
                }
                FrameType::Levels => {
                    self.peer.send(&Refusal { errno: 95, text: "no levels".into() }.frame(0, frame.id));
                }
                FrameType::Share => {
                    assert_eq!(Share::decode(frame.body).unwrap().channel, 3);
                    let (errno, text) = self.manners.unshared;
                    match self.files() {
                        Some((files, _)) => files.send(self.peer, frame.id),
                        None => self.peer.send(&Refusal { errno, text: text.into() }.frame(0, frame.id)),
                    }
                }
                FrameType::Write => store = self.write(&frame, store),
                FrameType::Flush => {
                    let flush = Flush::decode(frame.body).unwrap();
                    assert_eq!((flush.channel, flush.cpu), (3, u32::MAX));
                    let arrived = store.messages.len();
                    store.flushes.push(arrived);
                    self.peer.send(&done(FrameType::Flush, frame.id));
                }
                kind => panic!("unexpected {kind:?}"),
            }
            drop(store);
            self.shared.changed.notify_all();
        }
    }

    fn files(&self) -> Option<(Arc<Files>, bool)> {
        self.shared.files.lock().unwrap().clone()
    }

    fn open(&self, frame: &Frame<'_>, store: &mut Store) {
        let open = Open::decode(frame.body).unwrap();
        let name = String::from_utf8(open.name.to_vec()).unwrap();
        let create = frame.flags & OPEN_CREATE != 0;
        let exists = name == self.manners.existing;
        if !exists && !create {
            let text = format!("no channel '{name}' (existing: {})", self.manners.existing);
            self.peer.send(&Refusal { errno: 2, text }.frame(0, frame.id));
            return;
        }
        let given = |value: u32| (value != 0).then_some(u64::from(value));
        let mut spec = self.manners.geometry.parse::<GeometrySpec>().unwrap();
        if !exists {
            spec.subbuf_size = given(open.subbuf_size).or(spec.subbuf_size);
            spec.n_subbufs = given(open.n_subbufs).or(spec.n_subbufs);
            spec.header = (open.header != u32::MAX).then_some(open.header.into());
            spec.mode = Some(if open.mode == 2 { Mode::Overwrite } else { Mode::NoOverwrite });
            spec.global = Some(open.scope == 2);
        }
        let mut reply = open_reply(&spec.build().unwrap(), !exists);
        if let Some((files, _)) = self.files() {
            reply = OpenReply { n_bufs: files.data.len() as u32, ..reply };
        }
        self.peer.send(&reply.frame(0, frame.id));
        store.opened.push((name, create));
    }

    fn write<'s>(&mut self, frame: &Frame<'_>, mut store: MutexGuard<'s, Store>) -> MutexGuard<'s, Store>
    where
        'a: 's,
    {
        let write = Write::decode(frame.body).unwrap();
        assert_eq!(write.channel, 3);
        store.lost += u64::from(write.lost);
        if let Some((files, true)) = self.files() {
            files.buffers[write.cpu as usize].count_dropped_elsewhere(write.lost.into());
        }
        store.waits.push(write.wait_ms);
        let more = frame.flags & WRITE_MORE != 0;
        let goes_on = self.long.as_ref().is_some_and(|(id, ..)| *id == frame.id);
        let mut messages = Vec::new();
        if goes_on || more {
            let (id, cpu, mut bytes) = self.long.take().filter(|_| goes_on).unwrap_or_else(|| {
                store.given_up += usize::from(self.long.take().is_some());
                (frame.id, write.cpu, Vec::new())
            });
            bytes.extend_from_slice(write.messages);
            if more {
                self.long = Some((id, cpu, bytes));
                return store;
            }
            messages.push(bytes);
        } else {
            store.given_up += usize::from(self.long.take().is_some());
            messages.push(write.messages.to_vec());
        }
        let mut reply = WriteReply::default();
        let mut hold = false;
        for message in Messages(&messages[0]) {
            let message = message.expect("lengths that add up").to_vec();
            hold |= self.manners.hold.is_some_and(|start| message.starts_with(start));
            if let Some((files, true)) = self.files() {
                // Other threads may look at the store meanwhile.
                drop(store);
                self.shared.changed.notify_all();
                let ended = || self.shared.ended.load(Ordering::SeqCst);
                files.write(write.cpu as usize, &message, write.wait_ms != 0, ended, &mut reply);
                store = self.shared.store.lock().unwrap();
            } else if message.len() > geometry(self.manners.geometry).message_max() {
                reply.too_big += 1;
            } else if message.len() > self.manners.dropped_over {
                reply.dropped += 1;
            } else {
                reply.written += 1;
                store.messages.push((write.cpu, message));
            }
        }
        if frame.flags & WRITE_REPLY == 0 || self.shared.ended.load(Ordering::SeqCst) {
            return store;
        }
        if let Some(errno) = self.manners.refused {
            self.peer.send(&Refusal { errno, text: "refused".into() }.frame(0, frame.id));
        } else if hold {
            store.held.push((self.peer.clone(), frame.id, reply));
        } else {
            self.peer.send(&reply.frame(0, frame.id));
        }
        store
    }
}

/// Returns a listening socket that no process serves.
pub fn idle_socket(path: &Path, kind: SockType) -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::MAXCONN)?;
    Ok(fd)
}
