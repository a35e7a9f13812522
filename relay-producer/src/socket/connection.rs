//! One connection to the daemon with one open channel, used by many threads at once.
//!
//! A packet goes out whole, so frames need no turns. Only those of a long message must follow each other without
//! another one between them: `unfinished` keeps others out, its lock held for as long as the socket takes frames, never
//! while anybody waits. If the message cannot be completed in its time it is given up: the next frame, having another
//! id, makes the daemon discard the beginning.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use nix::poll::PollFlags;
use nix::sched::sched_getcpu;
use relay::Geometry;
use relay::layout::geometry::MESSAGE_MAX;
use relay::wire::frame::{
    ALL_CPUS, ANSWER_MAX, Body, FRAME_MAX, Flush, HEADER_LEN, WRITE_FIXED_LEN, WRITE_REPLY, Write,
};
use relay::wire::socket::{Deadline, SendError, Socket};

use crate::direct::buffers::DirectBuffers;
use crate::error::{NoSuchCpu, RequestError};
use crate::socket::handshake::{FIRST_FREE_ID, Opened};
use crate::socket::replies::{Replies, Reply};
use crate::socket::write_frame::{WriteFrame, pieces};

/// An open channel on a connected socket.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Arc<Socket>,
    pub(crate) path: PathBuf,
    pub(crate) geometry: Geometry,
    pub(crate) created: bool,
    /// Room for messages and their prefixes in a frame, in bytes.
    pub(crate) room: usize,
    /// Longest message the daemon takes from a socket, in bytes.
    pub(crate) message_max: usize,
    /// The channel's buffers, if this process has them; else why not.
    pub(crate) sharing: Result<Arc<DirectBuffers>, String>,
    /// The process that may use this connection; a child of it has inherited the descriptor, but not the replies.
    pid: u32,
    /// The channel's number.
    channel: u32,
    /// Messages lost on their way to each buffer that the daemon has not been told of yet.
    lost: Box<[AtomicU64]>,
    /// Whether anything was sent for each buffer that nobody has waited for.
    on_its_way: Box<[AtomicBool]>,
    /// Held by who waits for that.
    syncing: Mutex<()>,
    next_id: AtomicU32,
    gone: AtomicBool,
    /// Whether a long message has been begun and not completed.
    unfinished: RwLock<bool>,
    replies: Replies,
}

/// How a frame with messages is to be treated.
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
        let Opened { hello, reply, geometry } = opened;
        Connection {
            socket,
            path,
            geometry: *geometry,
            created: reply.created != 0,
            room: FRAME_MAX.min(hello.frame_max as usize) - HEADER_LEN - WRITE_FIXED_LEN,
            message_max: MESSAGE_MAX.min(hello.message_max as usize),
            sharing,
            pid: std::process::id(),
            channel: reply.channel,
            lost: (0..reply.n_bufs).map(|_| AtomicU64::new(0)).collect(),
            on_its_way: (0..reply.n_bufs).map(|_| AtomicBool::new(false)).collect(),
            syncing: Mutex::default(),
            next_id: AtomicU32::new(FIRST_FREE_ID),
            gone: AtomicBool::new(false),
            unfinished: RwLock::new(false),
            replies: Replies::default(),
        }
    }

    /// Number of the channel's buffers.
    pub(crate) fn n_bufs(&self) -> usize {
        self.lost.len()
    }

    /// The index of the buffer that `cpu`, or without it the CPU the caller runs on, writes to.
    pub(crate) fn buffer_of(&self, cpu: Option<usize>) -> Result<usize, NoSuchCpu> {
        if self.geometry.global() {
            return Ok(0);
        }
        // The call cannot fail on any system that can run this.
        let cpu = cpu.unwrap_or_else(|| sched_getcpu().unwrap_or(0));
        let n_bufs = self.n_bufs();
        if cpu < n_bufs { Ok(cpu) } else { Err(NoSuchCpu { cpu, n_bufs }) }
    }

    /// Whether this process made the connection.
    pub(crate) fn is_own(&self) -> bool {
        self.pid == std::process::id()
    }

    /// The channel's buffers, as long as they may be written.
    pub(crate) fn shared(&self) -> Option<&DirectBuffers> {
        self.sharing.as_deref().ok().filter(|shared| !shared.is_over())
    }

    /// Whether it is over, as far as anybody has noticed. Its buffers may be good all the same.
    pub(crate) fn is_gone(&self) -> bool {
        // Relaxed: nothing else is read on the strength of it, and a late answer only costs one more failing send.
        self.gone.load(Ordering::Relaxed)
            || self.sharing.as_ref().is_ok_and(|shared| shared.is_over() || shared.is_cut())
    }

    /// Whether the daemon can be asked something, as far as is known.
    pub(crate) fn works(&self) -> bool {
        self.is_own() && !self.is_gone()
    }

    /// From now on it is over for everybody.
    pub(crate) fn set_gone(&self) {
        // Relaxed: as in `is_gone`.
        self.gone.store(true, Ordering::Relaxed);
    }

    /// Looks whether the daemon has hung up, and remembers it.
    pub(crate) fn look(&self) {
        if self.socket.is_over() {
            self.set_gone();
        }
    }

    /// An id that no other frame of this connection has.
    pub(crate) fn new_id(&self) -> u32 {
        // Relaxed: the ids must differ, nothing more.
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts messages that did not get as far as the socket, to be told to the daemon with the next frame.
    pub(crate) fn add_lost(&self, cpu: usize, n_messages: u64) {
        if n_messages > 0 {
            // Relaxed: a counter of its own.
            self.lost[cpu].fetch_add(n_messages, Ordering::Relaxed);
        }
    }

    /// What is to be told now; what does not fit the frame's field stays for later.
    fn take_lost(&self, cpu: usize) -> u32 {
        // Relaxed, both: a counter of its own, and `swap` takes every message from it once.
        if self.lost[cpu].load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let lost = self.lost[cpu].swap(0, Ordering::Relaxed);
        let told = u32::try_from(lost).unwrap_or(u32::MAX);
        self.add_lost(cpu, lost - u64::from(told));
        told
    }

    /// Takes over what an earlier connection of the channel could not tell.
    pub(crate) fn inherit_losses(&self, earlier: &Connection) {
        for (cpu, lost) in earlier.lost.iter().enumerate() {
            // Relaxed: as in `take_lost`.
            self.add_lost(cpu.min(self.n_bufs() - 1), lost.swap(0, Ordering::Relaxed));
        }
    }

    /// Tells the daemon of losses on the way to `cpu`, as far as the socket takes it.
    fn tell_losses(&self, cpu: usize) -> Result<(), SendError> {
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

    /// Sends a frame of whole messages, at once or not at all.
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
        // Whoever has begun a long message found the socket full, and it is their turn.
        let sent = if *unfinished { Err(SendError::Full) } else { self.socket.send(packet) };
        drop(unfinished);
        self.note(sent)
    }

    /// Sends a message that is longer than a frame, waiting until `deadline` for room for all of it.
    pub(crate) fn send_long(
        &self,
        message: &[u8],
        envelope: Envelope,
        deadline: Deadline,
    ) -> Result<(), SendError> {
        // The pieces say nothing of losses: whether a message that is given up tells them is anybody's guess.
        self.tell_losses(envelope.cpu)?;
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

    /// Sends a flush of every buffer, after what was lost before it, waiting until `deadline` for room.
    pub(crate) fn send_flush(&self, id: u32, deadline: Deadline) -> Result<(), SendError> {
        for cpu in 0..self.n_bufs() {
            self.when_room(deadline, || self.tell_losses(cpu))?;
        }
        let packet = Flush { channel: self.channel, cpu: ALL_CPUS }.frame(0, id);
        self.when_room(deadline, || self.send_packet(&packet))
    }

    /// Remembers that something was sent for `cpu` whose answer nobody wants.
    pub(crate) fn add_on_its_way(&self, cpu: usize) {
        let on_its_way = &self.on_its_way[cpu];
        // Relaxed, all: who syncs from another thread than the one that wrote brings an order of its own. The load is for the
        // many messages in a row that have nothing to change.
        if !on_its_way.load(Ordering::Relaxed) {
            on_its_way.store(true, Ordering::Relaxed);
        }
    }

    /// Waits until the daemon has done with all that was on its way. Frames for one buffer take effect in the order in
    /// which they were sent, so the answer to one without messages answers for those before it.
    pub(crate) fn sync(&self, deadline: Deadline) -> Result<(), RequestError> {
        let _syncing = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let waited_for = self.on_its_way.iter().enumerate();
        // Relaxed: as in `add_on_its_way`.
        let asked: Vec<_> = waited_for
            .filter(|(_, on_its_way)| on_its_way.swap(false, Ordering::Relaxed))
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
                self.add_on_its_way(cpu);
            }
        }
        result
    }

    /// Tries `send` until there is room for it, or time is up.
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

    /// Remembers that nothing can be sent any more. Replies to what was sent earlier may still come.
    fn note(&self, sent: Result<(), SendError>) -> Result<(), SendError> {
        if sent == Err(SendError::Gone) {
            self.set_gone();
        }
        sent
    }

    /// Ends the connection; whoever waits for a reply wakes up.
    fn hang_up(&self) {
        self.set_gone();
        self.socket.shut_down();
    }

    /// An id whose reply will be kept until [`Self::reply`] or [`Self::forget`].
    pub(crate) fn expect(&self) -> u32 {
        let id = self.new_id();
        self.replies.expect(id);
        id
    }

    /// Nobody waits for this reply any more.
    pub(crate) fn forget(&self, id: u32) {
        self.replies.forget(id);
    }

    /// Waits for the reply to `id`.
    pub(crate) fn reply(&self, id: u32, deadline: Deadline) -> Result<Reply, RequestError> {
        self.replies.wait(id, deadline, || self.receive(deadline))
    }

    /// The next reply of all, and its id.
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

    /// The end, as this side wants it: the daemon is told of losses, and takes what was sent. A child closes its copies of the
    /// descriptors, nothing more: losses and replies are its parent's.
    pub(crate) fn close(&self) {
        if self.is_own() {
            for cpu in 0..self.n_bufs() {
                // Nothing can be done if the socket does not take it.
                let _ = self.tell_losses(cpu);
            }
            // Closed with replies unread, the daemon would see a reset instead of the end of what it has yet to take; and
            // shut down first, no more can come.
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
