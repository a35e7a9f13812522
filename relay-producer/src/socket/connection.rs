//! A connection to the daemon with one open channel, used by many threads at once.
//!
//! A packet goes out whole, so single frames need no order. Only the frames of a long message must follow each other
//! without another one in between. `unfinished` keeps other frames out: its lock is held while the socket takes frames,
//! but never while a thread waits. A message that cannot be completed in time is given up. The next frame has another
//! id, so the daemon discards the beginning.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use nix::poll::PollFlags;
use nix::sched::sched_getcpu;
use relay::Geometry;
use relay::layout::geometry::MESSAGE_MAX;
use relay::system::thread_id::ThisThread;
use relay::wire::frame::{
    ALL_CPUS, ANSWER_MAX, Body, Close, FRAME_MAX, Flush, HEADER_LEN, WRITE_FIXED_LEN, WRITE_REPLY, Write,
};
use relay::wire::socket::{Deadline, SendError, Socket};

use crate::definitions::{Defined, new_instance};
use crate::direct::buffers::DirectBuffers;
use crate::direct::content::{Content, Form};
use crate::error::{NoSuchCpu, RequestError};
use crate::first_thread::FirstThread;
use crate::socket::handshake::{FIRST_FREE_ID, Opened};
use crate::socket::replies::{Replies, Reply};
use crate::socket::write_frame::{WireMessage, WriteFrame, pieces};

/// An open channel on a connected socket.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Arc<Socket>,
    pub(crate) path: PathBuf,
    pub(crate) geometry: Geometry,
    pub(crate) created: bool,
    /// Room in a frame for messages and their prefixes, in bytes.
    pub(crate) room: usize,
    /// Longest message that the daemon takes from a socket, in bytes.
    pub(crate) message_max: usize,
    /// The channel's buffers, or the reason for which this process does not have them.
    pub(crate) sharing: Result<Arc<DirectBuffers>, String>,
    /// The first thread of the process that may use this connection. A child has inherited the descriptor, but not the
    /// replies.
    first_thread: FirstThread,
    /// The channel's number.
    channel: u32,
    /// Number by which ids of defined events are found.
    instance: u32,
    /// Messages lost on their way to each buffer, and not yet reported to the daemon.
    lost: Box<[AtomicU64]>,
    /// Whether frames were sent for each buffer whose effect no sync has waited for.
    unsynced: Box<[AtomicBool]>,
    /// Held by the thread that syncs.
    syncing: Mutex<()>,
    next_id: AtomicU32,
    gone: AtomicBool,
    /// Whether a long message is begun and not completed.
    unfinished: RwLock<bool>,
    replies: Replies,
}

/// The reason for which a message is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsendable {
    /// The channel is raw, and the message a record.
    OtherKind,
    /// The daemon has given the record's event no id.
    NotDefined,
    /// It is longer than the daemon takes from a socket.
    TooBig,
}

/// Destination and treatment of a frame with messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Envelope {
    pub(crate) cpu: usize,
    pub(crate) flags: u16,
    pub(crate) id: u32,
    pub(crate) wait_ms: u32,
}

impl Connection {
    pub(crate) fn new(
        socket: Arc<Socket>,
        path: PathBuf,
        opened: &Opened,
        sharing: Result<Arc<DirectBuffers>, String>,
    ) -> Connection {
        let Opened { hello, reply, geometry, ids, .. } = opened;
        let instance = sharing.as_ref().map_or_else(|_| new_instance(), |shared| shared.instance());
        for (defined, id) in ids {
            defined.settle(instance, *id);
        }
        Connection {
            socket,
            path,
            geometry: *geometry,
            created: reply.created != 0,
            room: FRAME_MAX.min(hello.frame_max as usize) - HEADER_LEN - WRITE_FIXED_LEN,
            message_max: MESSAGE_MAX.min(hello.message_max as usize),
            sharing,
            first_thread: FirstThread::new(opened.pid),
            channel: reply.channel,
            instance,
            lost: (0..reply.n_bufs).map(|_| AtomicU64::new(0)).collect(),
            unsynced: (0..reply.n_bufs).map(|_| AtomicBool::new(false)).collect(),
            syncing: Mutex::default(),
            next_id: AtomicU32::new(FIRST_FREE_ID),
            gone: AtomicBool::new(false),
            unfinished: RwLock::new(false),
            replies: Replies::default(),
        }
    }

    /// Returns the number of the channel's buffers.
    pub(crate) fn n_bufs(&self) -> usize {
        self.lost.len()
    }

    /// Returns the index of the buffer for `cpu`, by default the CPU that the caller runs on.
    pub(crate) fn buffer_of(&self, cpu: Option<usize>) -> Result<usize, NoSuchCpu> {
        if self.geometry.global() {
            return Ok(0);
        }
        // sched_getcpu cannot fail on a system that can run this code.
        let cpu = cpu.unwrap_or_else(|| sched_getcpu().unwrap_or(0));
        let n_bufs = self.n_bufs();
        if cpu < n_bufs { Ok(cpu) } else { Err(NoSuchCpu { cpu, n_bufs }) }
    }

    /// Returns the number by which ids of defined events are found.
    pub(crate) fn instance(&self) -> u32 {
        self.instance
    }

    /// Returns a message as a frame carries it.
    pub(crate) fn message<'a>(&self, content: Content<'a>) -> Result<WireMessage<'a>, Unsendable> {
        let message = match content {
            Content::Bytes(payload) if !self.geometry.timed() => WireMessage { head: None, payload },
            Content::Record(..) if !self.geometry.timed() => return Err(Unsendable::OtherKind),
            _ => match content.stamped(self.instance, self.first_thread.number_in(ThisThread::find())) {
                Some(Form::Stamped { head, payload }) => WireMessage { head: Some(head), payload },
                _ => return Err(Unsendable::NotDefined),
            },
        };
        if message.len() > self.message_max { Err(Unsendable::TooBig) } else { Ok(message) }
    }

    /// Returns the number of this process in the daemon's PID namespace, as far as is known.
    pub(crate) fn pid_there(&self) -> u32 {
        // A forked child has its parent's connection until it has its own.
        self.number_about(std::process::id())
    }

    /// Returns the number that records about another process have, which is in this process's PID namespace.
    pub(crate) fn number_about(&self, process: u32) -> u32 {
        self.first_thread.number_about(process)
    }

    /// Returns whether this process made the connection.
    pub(crate) fn is_own(&self) -> bool {
        self.first_thread.is_of(ThisThread::find())
    }

    /// Returns the channel's buffers while they may be written.
    pub(crate) fn shared(&self) -> Option<&DirectBuffers> {
        self.sharing.as_deref().ok().filter(|shared| !shared.is_over())
    }

    /// Returns whether the connection was found ended. Its buffers may be good all the same.
    pub(crate) fn is_gone(&self) -> bool {
        // Relaxed: no other load depends on it, and a late answer only costs one more failing send.
        self.gone.load(Ordering::Relaxed)
            || self.sharing.as_ref().is_ok_and(|shared| shared.is_over() || shared.is_cut())
    }

    /// Returns whether the daemon can take requests, as far as is known.
    pub(crate) fn works(&self) -> bool {
        self.is_own() && !self.is_gone()
    }

    /// Marks the connection as ended for all threads.
    pub(crate) fn set_gone(&self) {
        // Relaxed: as in `is_gone`.
        self.gone.store(true, Ordering::Relaxed);
    }

    /// Checks whether the daemon has hung up, and marks the connection then.
    pub(crate) fn look(&self) {
        if self.socket.is_over() {
            self.set_gone();
        }
    }

    /// Returns an id that no other frame of this connection has.
    pub(crate) fn new_id(&self) -> u32 {
        // Relaxed: the ids must differ, no more.
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts messages that did not reach the socket. The next frame reports them to the daemon.
    pub(crate) fn add_lost(&self, cpu: usize, n_messages: u64) {
        if n_messages > 0 {
            // Relaxed: an independent counter.
            self.lost[cpu].fetch_add(n_messages, Ordering::Relaxed);
        }
    }

    /// Takes the losses to report now. Losses that exceed the frame's field stay for later.
    fn take_lost(&self, cpu: usize) -> u32 {
        // Relaxed, both: an independent counter, and `swap` takes every message from it once.
        if self.lost[cpu].load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let lost = self.lost[cpu].swap(0, Ordering::Relaxed);
        let reported = u32::try_from(lost).unwrap_or(u32::MAX);
        self.add_lost(cpu, lost - u64::from(reported));
        reported
    }

    /// Takes over the unreported losses of an earlier connection of the channel.
    pub(crate) fn inherit_losses(&self, earlier: &Connection) {
        for (cpu, lost) in earlier.lost.iter().enumerate() {
            // Relaxed: as in `take_lost`.
            self.add_lost(cpu.min(self.n_bufs() - 1), lost.swap(0, Ordering::Relaxed));
        }
    }

    /// Reports losses on the way to `cpu`, as far as the socket has room.
    fn report_losses(&self, cpu: usize) -> Result<(), SendError> {
        // Relaxed: as in `take_lost`.
        if self.lost[cpu].load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let envelope = Envelope { cpu, flags: 0, id: self.new_id(), wait_ms: 0 };
        self.send(&mut WriteFrame::new(0), envelope)
    }

    fn write_to(&self, envelope: Envelope, lost: u32) -> Write<'static> {
        // Lossless: `cpu` is below `n_bufs`, which came as a u32.
        let cpu = envelope.cpu as u32;
        Write { channel: self.channel, cpu, wait_ms: envelope.wait_ms, lost, messages: &[] }
    }

    /// Sends a frame of whole messages at once, or not at all.
    pub(crate) fn send(&self, frame: &mut WriteFrame, envelope: Envelope) -> Result<(), SendError> {
        let lost = self.take_lost(envelope.cpu);
        let sent = self.send_packet(frame.seal(envelope.flags, envelope.id, &self.write_to(envelope, lost)));
        if sent.is_err() {
            self.add_lost(envelope.cpu, lost.into());
        }
        sent
    }

    fn send_packet(&self, packet: &[u8]) -> Result<(), SendError> {
        let unfinished = self.unfinished.read().unwrap_or_else(PoisonError::into_inner);
        // A thread that has begun a long message found the socket full, and comes first.
        let sent = if *unfinished { Err(SendError::Full) } else { self.socket.send(packet) };
        drop(unfinished);
        self.note(sent)
    }

    /// Sends a message that is longer than a frame.
    /// Waits until `deadline` for room for all of it.
    pub(crate) fn send_long(
        &self,
        message: WireMessage<'_>,
        envelope: Envelope,
        deadline: Deadline,
    ) -> Result<(), SendError> {
        // The pieces carry no losses: the daemon may or may not see those of a message that is given up.
        self.report_losses(envelope.cpu)?;
        let lock = || self.unfinished.write().unwrap_or_else(PoisonError::into_inner);
        let mut unfinished = lock();
        if *unfinished {
            return Err(SendError::Full);
        }
        *unfinished = true;
        for piece in pieces(message, self.room, envelope.flags, envelope.id, self.write_to(envelope, 0)) {
            let mut sent = self.socket.send(&piece);
            while sent == Err(SendError::Full) {
                drop(unfinished);
                let in_time = self.socket.wait(PollFlags::POLLOUT, deadline);
                unfinished = lock();
                if !in_time {
                    break;
                }
                sent = self.socket.send(&piece);
            }
            if sent.is_err() {
                *unfinished = false;
                drop(unfinished);
                return self.note(sent);
            }
        }
        *unfinished = false;
        Ok(())
    }

    /// Sends a flush of every buffer, after reports of earlier losses.
    /// Waits until `deadline` for room.
    pub(crate) fn send_flush(&self, id: u32, deadline: Deadline) -> Result<(), SendError> {
        for cpu in 0..self.n_bufs() {
            self.when_room(deadline, || self.report_losses(cpu))?;
        }
        let packet = Flush { channel: self.channel, cpu: ALL_CPUS }.frame(0, id);
        self.when_room(deadline, || self.send_packet(&packet))
    }

    /// Sends that the channel is given back, after reports of losses, as far as the socket has room.
    ///
    /// The daemon takes it before it looks whether the process has ended. Then it reports no end of the process.
    pub(crate) fn send_close(&self) {
        for cpu in 0..self.n_bufs() {
            let _ = self.report_losses(cpu);
        }
        let _ = self.send_packet(&Close { channel: self.channel }.frame(0, self.new_id()));
    }

    /// Sends the definition of an event. Waits until `deadline` for room.
    pub(crate) fn send_define(
        &self,
        defined: &Defined,
        id: u32,
        deadline: Deadline,
    ) -> Result<(), SendError> {
        let packet = defined.request(self.channel).frame(0, id);
        self.when_room(deadline, || self.send_packet(&packet))
    }

    /// Notes that a frame was sent for `cpu` without a request for an answer.
    pub(crate) fn add_unsynced(&self, cpu: usize) {
        let unsynced = &self.unsynced[cpu];
        // Relaxed, all: a thread that syncs after another thread's write needs an order with it anyway. The load is for
        // long runs of messages, which have nothing to change.
        if !unsynced.load(Ordering::Relaxed) {
            unsynced.store(true, Ordering::Relaxed);
        }
    }

    /// Waits until the daemon has handled every frame that was on its way.
    /// Frames for one buffer take effect in the order in which they were sent. So the answer to an empty frame answers
    /// for those before it.
    pub(crate) fn sync(&self, deadline: Deadline) -> Result<(), RequestError> {
        let _syncing = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let waited_for = self.unsynced.iter().enumerate();
        // Relaxed: as in `add_unsynced`.
        let asked: Vec<_> = waited_for
            .filter(|(_, unsynced)| unsynced.swap(false, Ordering::Relaxed))
            .map(|(cpu, _)| (self.expect(), cpu))
            .collect();
        let result = asked.iter().try_for_each(|&(id, cpu)| {
            let envelope = Envelope { cpu, flags: WRITE_REPLY, id, wait_ms: 0 };
            self.when_room(deadline, || self.send(&mut WriteFrame::new(0), envelope))?;
            Ok(())
        });
        let result =
            result.and_then(|()| asked.iter().try_for_each(|&(id, _)| self.reply(id, deadline).map(drop)));
        for &(id, cpu) in &asked {
            self.forget(id);
            if result.is_err() {
                self.add_unsynced(cpu);
            }
        }
        result
    }

    /// Repeats `send` until the socket has room for it, or the deadline has passed.
    pub(crate) fn when_room(
        &self,
        deadline: Deadline,
        mut send: impl FnMut() -> Result<(), SendError>,
    ) -> Result<(), SendError> {
        loop {
            let sent = send();
            let overdue = deadline.is_some_and(|at| at <= Instant::now());
            if sent != Err(SendError::Full) || overdue || !self.socket.wait(PollFlags::POLLOUT, deadline) {
                return sent;
            }
        }
    }

    /// Notes that the socket takes no more. Replies to earlier frames may still come.
    fn note(&self, sent: Result<(), SendError>) -> Result<(), SendError> {
        if sent == Err(SendError::Gone) {
            self.set_gone();
        }
        sent
    }

    /// Ends the connection, and wakes the threads that wait for replies.
    fn hang_up(&self) {
        self.set_gone();
        self.socket.shut_down();
    }

    /// Returns an id whose reply is kept until [`Self::reply`] or [`Self::forget`].
    pub(crate) fn expect(&self) -> u32 {
        let id = self.new_id();
        self.replies.expect(id);
        id
    }

    /// Drops the slot of a reply that is no longer awaited.
    pub(crate) fn forget(&self, id: u32) {
        self.replies.forget(id);
    }

    /// Waits for the reply to `id`.
    pub(crate) fn reply(&self, id: u32, deadline: Deadline) -> Result<Reply, RequestError> {
        self.replies.wait(id, deadline, || self.receive(deadline))
    }

    /// Returns the next reply to any thread, and its id.
    fn receive(&self, deadline: Deadline) -> Result<(u32, Reply), RequestError> {
        let mut packet = [0; ANSWER_MAX];
        let len = loop {
            match self.socket.receive(&mut packet) {
                Some(len) => break len,
                None if self.socket.wait(PollFlags::POLLIN, deadline) => {}
                None => return Err(RequestError::NoReply),
            }
        };
        if len == 0 {
            self.hang_up();
            return Err(RequestError::Disconnected);
        }
        let packet = packet.get(..len).ok_or_else(|| format!("a packet of {len} bytes"));
        packet.and_then(Reply::decode).map_err(|why| {
            self.hang_up();
            RequestError::Garbled(why)
        })
    }

    /// Ends the connection: reports losses, and lets the daemon take what was sent.
    /// A child only closes its copies of the descriptors: losses and replies are its parent's.
    pub(crate) fn close(&self) {
        if self.is_own() {
            for cpu in 0..self.n_bufs() {
                // If the socket has no room, the losses stay unreported.
                let _ = self.report_losses(cpu);
            }
            // After a close with unread replies, the daemon would see a reset, not the end of the frames that it has
            // yet to take. The shutdown comes first, so that no more replies can arrive.
            self.socket.shut_down();
            while self.socket.receive(&mut [0; HEADER_LEN]).is_some_and(|len| len > 0) {}
        }
        self.set_gone();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}
