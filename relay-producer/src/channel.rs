//! The API: a channel that is opened once and written to from anywhere in the process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use relay::Geometry;
use relay::ring::subbuf_start::{SubbufHeader, SubbufInfo};
use relay::wire::frame::{MESSAGE_PREFIX_LEN, WRITE_REPLY, WriteReply};
use relay::wire::socket::SendError;

use crate::batch::Batch;
use crate::builder::Builder;
use crate::direct::appender::Appender;
use crate::direct::buffers::{Direct, DirectBuffers};
use crate::error::{BatchError, OpenError, RequestError, WriteError};
use crate::options::{BatchOptions, Counts, REPLY_LIMIT};
use crate::socket::connection::{Connection, Envelope};
use crate::socket::handshake::OpenRequest;
use crate::socket::reconnect::{Link, no_connection};
use crate::socket::replies::Reply;
use crate::socket::write_frame::WriteFrame;
use crate::transport::Transport;

/// How long [`Channel::write`] may take for a message that is longer than the socket holds at once.
const LONG_MESSAGE_LIMIT: Duration = Duration::from_millis(100);

/// An open channel.
///
/// It can be used from many threads at once, through `&self`. [`write`](Self::write) never waits: not for the daemon,
/// not for a reader, not for other threads that do. [`write_batch`](Self::write_batch), [`batch`](Self::batch) and
/// [`flush`](Self::flush) wait for the daemon's answer.
///
/// **Transports.** Where the daemon lets this process have the channel's buffers ([`Transport::Shared`]), a message is
/// written straight into them, without a system call. Otherwise ([`Transport::Socket`]) it goes to the daemon as a packet.
/// Also with shared buffers some messages go that way: those of more than 64 KiB, those for another CPU than the one
/// the caller runs on, those of threads whose C library did not register them for restartable sequences, and one that
/// was interrupted 64 times. Sharing means trusting: a process that has the buffers can damage what others wrote, and by
/// truncating the files end those who write there, by SIGBUS: a handler for that is the program's to install, not ours.
///
/// **Order.** What one thread writes arrives in the order in which it was written, as far as it goes to one CPU's
/// buffer. With shared buffers there are exceptions: a message that [`write_to`](Self::write_to) sends to another CPU
/// may be overtaken by what the thread writes after moving there, and one of more than 64 KiB by all later ones if the
/// daemon has not written it after 0.1 s. A [`flush`](Self::flush) in between keeps them apart. What is in a batch keeps
/// its order always.
///
/// **When the daemon crashes**, writing into shared buffers goes on: no error, no pause. The next daemon takes them over and
/// reads on; this process connects to it at a call that needs it, as flush does. Meanwhile, messages that would go by the socket
/// are written directly if the caller is on their CPU; others are `Disconnected`. If the files are removed instead, so that
/// nobody will ever read them, that is noticed when a sub-buffer is finished or messages are refused, and the channel is as
/// one that was closed.
///
/// **When the daemon is told to end**, it closes the channel: calls fail with `Disconnected` until there is a new daemon. Each
/// looks for one, but at most one a second. [`write`](Self::write) does not wait for the new daemon's answers either, so it goes on
/// failing until they are there. By the socket it is the same after a crash, and what was in the socket is lost.
///
/// **After fork**, the child's first call makes a connection of its own, and waits for that. With shared buffers the
/// child writes at once, and gets its connection when it finishes a sub-buffer or first needs the daemon. As with any
/// lock, no other thread may be inside a call while a process forks, if the child is to use the channel. A child of vfork
/// must not write; one in a PID namespace of its own that has its parent's number there must open a channel of its own.
///
/// **Descriptors** of this library are 3 or above, and close-on-exec. The program may close them, as daemons close all they
/// have. Before the library writes to a descriptor or closes it, it checks that the descriptor is still its own; another one
/// with that number is left alone. Shared buffers can still be written, and a call that needs the daemon connects again, as
/// after a crash. One race remains: another thread closes a descriptor and opens another one between the check and the
/// write, or the close. So no thread should be inside a call while another one closes descriptors of the library.
///
/// **In signal handlers**, [`write`](Self::write) may be called if the transport is shared and the message has at most
/// 64 KiB: it takes no locks and no memory then, also when the daemon crashes, unless it is itself interrupted 64 times in a
/// row. That ends when the channel is closed or its files are removed: `write` looks for another daemon then. And in a forked
/// child it begins when that has its own connection, as it has after a [`flush`](Self::flush).
#[derive(Debug)]
pub struct Channel {
    /// The first buffers, where most channels ever write.
    first: Arc<DirectBuffers>,
    link: Arc<Link>,
    created: bool,
}

impl Channel {
    /// Opens an existing channel of the daemon behind `mount`, which is a mount point or a socket.
    pub fn open(mount: impl AsRef<Path>, name: &str) -> Result<Channel, OpenError> {
        Channel::builder(mount, name).open()
    }

    /// Prepares to open, and perhaps to create, a channel of the daemon behind `mount`, which is a mount point or a
    /// socket.
    pub fn builder(mount: impl AsRef<Path>, name: &str) -> Builder {
        Builder::new(mount.as_ref(), name)
    }

    pub(crate) fn new(mount: PathBuf, request: OpenRequest, connection: Connection) -> Channel {
        let created = connection.created;
        let link = Link::new(mount, request, connection);
        Channel { first: Arc::clone(link.buffers().first()), link: Arc::new(link), created }
    }

    /// Writes a message into the buffer of the CPU on which the caller runs.
    ///
    /// `Err` means that the message is lost. With shared buffers, `Ok` means that it is in the buffer. By the socket, `Ok`
    /// means that the daemon will get it, even if this process ends now; whether there is room in the buffer is not
    /// known yet. Every loss is counted, but for those while the daemon was away: by the socket, what is too big is
    /// counted as such if it can be sent at all, and everything else among the dropped.
    ///
    /// A message of more than 64 KiB may take up to 0.1 s if the daemon does not keep up.
    #[inline]
    pub fn write(&self, message: &[u8]) -> Result<(), WriteError> {
        self.write_somewhere(None, message)
    }

    /// Writes a message into the buffer of a given CPU; otherwise as [`write`](Self::write). In a global channel there
    /// is only one buffer, and `cpu` means nothing.
    ///
    /// Also with shared buffers, a message for another CPU than the caller's goes by the socket.
    pub fn write_to(&self, cpu: usize, message: &[u8]) -> Result<(), WriteError> {
        self.write_somewhere(Some(cpu), message)
    }

    /// The way of almost every message, by itself.
    pub fn appender(&self) -> Appender {
        Appender::new(&self.first)
    }

    /// Writes a message as [`write`](Self::write) does, but asks `gate` before a sub-buffer is begun for it, telling the CPU and how
    /// things stand. If it refuses, the message is dropped as if all were full; the current sub-buffer is finished all the
    /// same. It may be asked again for one message, and it must not write to the channel. What goes by the socket
    /// is written without asking.
    #[inline]
    pub fn write_if(
        &self,
        message: &[u8],
        gate: &mut dyn FnMut(usize, SubbufInfo) -> Option<SubbufHeader>,
    ) -> Result<(), WriteError> {
        let shared = self.link.buffers().first();
        match shared.write_if(message, gate) {
            Direct::Written => Ok(()),
            Direct::Detached => {
                if self.link.buffers().later().is_none() {
                    // It may bring some; if not, the socket it is, or nothing.
                    let _ = self.link.connection(false);
                }
                match self.link.buffers().later() {
                    Some(later) => {
                        self.written_otherwise(later, later.write_if(message, gate), None, message)
                    }
                    None => self.write_by_socket(None, message, Direct::Detached),
                }
            }
            direct => self.written_otherwise(shared, direct, None, message),
        }
    }

    /// Whether all sub-buffers of a CPU are full; `None` where the buffers are not shared.
    pub fn is_full(&self, cpu: usize) -> Option<bool> {
        let buffers = self.link.buffers();
        buffers.first().is_full(cpu).or_else(|| buffers.later()?.is_full(cpu))
    }

    #[inline(always)]
    fn write_somewhere(&self, cpu: Option<usize>, message: &[u8]) -> Result<(), WriteError> {
        match self.first.write(cpu, message, true) {
            Direct::Written => Ok(()),
            Direct::Full => Err(WriteError::Full),
            direct => self.written_otherwise(&self.first, direct, cpu, message),
        }
    }

    /// What follows from a direct write that did not simply succeed.
    #[inline(never)]
    fn written_otherwise(
        &self,
        shared: &DirectBuffers,
        direct: Direct,
        cpu: Option<usize>,
        message: &[u8],
    ) -> Result<(), WriteError> {
        match direct {
            Direct::Written => Ok(()),
            Direct::WrittenUnheard => {
                // A child gets a connection of its own; without one, the next call tries. Who only has lost the daemon does
                // not look for one here: the next daemon looks after the buffers of those.
                if !shared.is_own() {
                    let _ = self.link.connection(false);
                }
                Ok(())
            }
            Direct::Full => Err(WriteError::Full),
            Direct::TooBig => Err(WriteError::TooBig { len: message.len(), max: shared.message_max() }),
            Direct::Closed => Err(WriteError::Disconnected),
            Direct::WrongCpu | Direct::TooLongOrInterrupted => self.write_by_socket(cpu, message, direct),
            Direct::Detached => match self.link.buffers().later() {
                Some(later) => self.written_otherwise(later, later.write(cpu, message, true), cpu, message),
                None => self.write_by_socket(cpu, message, direct),
            },
        }
    }

    /// Sends a message to the daemon. `why` it was not written directly.
    #[cold]
    fn write_by_socket(&self, cpu: Option<usize>, message: &[u8], mut why: Direct) -> Result<(), WriteError> {
        let Ok(connection) = self.link.connection(false) else {
            return self.write_without_daemon(cpu, message, why);
        };
        if let (Direct::Detached, Some(shared)) = (why, connection.shared()) {
            // The connection is new. Later messages will go directly, so this one has to, lest they arrive before it.
            why = shared.write(cpu, message, true);
            if !matches!(why, Direct::WrongCpu | Direct::TooLongOrInterrupted | Direct::Detached) {
                return self.written_otherwise(shared, why, cpu, message);
            }
        }
        let cpu_given = cpu;
        let cpu = connection.buffer_of(cpu)?;
        let (len, max) = (message.len(), connection.geometry.message_max());
        let too_big = WriteError::TooBig { len, max };
        if len > connection.message_max {
            connection.add_lost(cpu, 1);
            return Err(too_big);
        }
        // As above: this message is the exception, so it is to be in before the next one.
        let answered = why == Direct::TooLongOrInterrupted;
        let (flags, id) =
            if answered { (WRITE_REPLY, connection.expect()) } else { (0, connection.new_id()) };
        let envelope = Envelope { cpu, flags, id, wait_ms: 0 };
        let is_long = MESSAGE_PREFIX_LEN + len > connection.room;
        let deadline = (is_long || answered).then(|| Instant::now() + LONG_MESSAGE_LIMIT);
        let sent = if is_long {
            connection.send_long(message, envelope, deadline)
        } else {
            let mut frame = WriteFrame::new(MESSAGE_PREFIX_LEN + len);
            frame.push(message);
            connection.send(&mut frame, envelope)
        };
        if answered && sent.is_err() {
            connection.forget(id);
        }
        match sent {
            Ok(()) if answered => match connection.reply(id, deadline) {
                Ok(Reply::Written(WriteReply { written: 1.., .. })) => Ok(()),
                Ok(Reply::Written(WriteReply { too_big: 1.., .. })) => Err(too_big),
                Ok(Reply::Written(_)) => Err(WriteError::Full),
                Ok(Reply::Refused(refused)) => Err(WriteError::Refused { errno: refused.errno }),
                // It is on its way, and may be overtaken.
                Err(RequestError::NoReply) => Ok(()),
                Ok(Reply::Done) | Err(_) => Err(WriteError::Disconnected),
            },
            Ok(()) => {
                connection.add_on_its_way(cpu);
                // Sent all the same, so that the buffer's rules decide what becomes of it and the right counter counts it.
                if len > max { Err(too_big) } else { Ok(()) }
            }
            Err(SendError::Full) => {
                connection.add_lost(cpu, 1);
                Err(WriteError::Full)
            }
            Err(SendError::Gone) => self.write_without_daemon(cpu_given, message, why),
        }
    }

    /// What becomes of a message that could not be sent. `why` it was not written directly.
    #[cold]
    fn write_without_daemon(
        &self,
        cpu: Option<usize>,
        message: &[u8],
        why: Direct,
    ) -> Result<(), WriteError> {
        let latest = self.link.latest();
        let Some(shared) = latest.shared().filter(|_| why == Direct::TooLongOrInterrupted) else {
            return Err(WriteError::Disconnected);
        };
        match shared.insist(cpu, message, true) {
            Direct::Written | Direct::WrittenUnheard => Ok(()),
            Direct::Full => Err(WriteError::Full),
            Direct::TooBig => Err(WriteError::TooBig { len: message.len(), max: shared.message_max() }),
            Direct::TooLongOrInterrupted => {
                shared.count_contended(cpu);
                Err(WriteError::Disconnected)
            }
            Direct::Closed | Direct::Detached | Direct::WrongCpu => Err(WriteError::Disconnected),
        }
    }

    /// Writes many messages, and waits until the daemon has said what became of them.
    pub fn write_batch<I>(&self, messages: I, options: BatchOptions) -> Result<Counts, BatchError>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        let unwritten = |cause| BatchError { counts: Counts::default(), cause };
        let mut batch = self.batch(options).map_err(unwritten)?;
        let pushed = messages.into_iter().try_for_each(|message| batch.push(message.as_ref()));
        let finished = batch.finish();
        pushed.and(finished).map_err(|cause| BatchError { counts: batch.counts(), cause })
    }

    /// Begins a batch whose messages come bit by bit.
    pub fn batch(&self, options: BatchOptions) -> Result<Batch, RequestError> {
        // With buffers to write to there is no hurry.
        let may_wait = self.link.latest().shared().is_none();
        let connection = match self.link.connection(may_wait) {
            Ok(connection) => connection,
            Err(reason) => {
                let latest = self.link.latest();
                if latest.shared().is_none() {
                    return Err(no_connection(reason));
                }
                latest
            }
        };
        Batch::new(Arc::clone(&self.link), connection, options)
    }

    /// Finishes the current sub-buffer of every CPU, after everything written before through this `Channel`.
    pub fn flush(&self) -> Result<(), RequestError> {
        self.link.latest().look();
        let connection = self.link.connection(true).map_err(no_connection)?;
        let deadline = Some(Instant::now() + REPLY_LIMIT);
        let id = connection.expect();
        if let Err(error) = connection.send_flush(id, deadline) {
            connection.forget(id);
            return Err(error.into());
        }
        match connection.reply(id, deadline)? {
            Reply::Done => Ok(()),
            Reply::Refused(refused) => Err(refused.into()),
            Reply::Written(_) => Err(RequestError::Garbled("counts for a flush".into())),
        }
    }

    /// Waits until everything written before through this `Channel` is in the buffers, or counted as lost. What is written directly
    /// is there at once; this is for what goes by the socket. An error: the daemon is gone, or does not answer within 10 s,
    /// and what was on its way may be lost.
    pub fn sync(&self) -> Result<(), RequestError> {
        let connection = self.link.latest();
        if connection.is_own() { connection.sync(Some(Instant::now() + REPLY_LIMIT)) } else { Ok(()) }
    }

    /// Ends the connection as dropping the channel does, but while other threads may still be using it: their calls fail with
    /// `Disconnected` from now on, and what they are writing at this moment may be lost.
    pub fn close(&self) {
        self.link.close();
    }

    /// The channel's geometry, as the daemon told it last.
    pub fn geometry(&self) -> Geometry {
        self.link.latest().geometry
    }

    /// Number of the channel's buffers: the number of CPUs, or 1.
    pub fn n_bufs(&self) -> usize {
        self.link.latest().n_bufs()
    }

    /// Whether opening it created the channel.
    pub fn created(&self) -> bool {
        self.created
    }

    /// How messages get into the buffers. With shared ones, some still go by the socket: see [`Channel`].
    pub fn transport(&self) -> Transport {
        if self.link.latest().sharing.is_ok() { Transport::Shared } else { Transport::Socket }
    }

    /// Why the transport is the socket, if it is.
    pub fn why_socket(&self) -> Option<String> {
        self.link.latest().sharing.as_ref().err().cloned()
    }
}
