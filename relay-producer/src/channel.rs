//! The API: a channel, opened once and written to by any thread of the process.

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

/// Longest time of a [`Channel::write`] of a message that exceeds the socket's queue.
const LONG_MESSAGE_LIMIT: Duration = Duration::from_millis(100);

/// An open channel.
///
/// Many threads can use it at once, through `&self`. [`write`](Self::write) never waits: not for the daemon, not for a
/// reader, not for threads that wait. [`write_batch`](Self::write_batch), [`batch`](Self::batch) and
/// [`flush`](Self::flush) wait for the daemon's answer.
///
/// **Transports.** If the daemon gives this process the channel's buffers ([`Transport::Shared`]), a message is written
/// straight into them, without a system call. Otherwise ([`Transport::Socket`]) the daemon gets it as a packet. With
/// shared buffers some messages still go over the socket:
/// * those of more than 64 KiB
/// * those for another CPU than the caller's
/// * those of threads that the C library did not register for restartable sequences
/// * those whose sequence was interrupted 64 times
///
/// Sharing requires trust. A process with the buffers can corrupt messages of others. By truncating the files it can
/// end, by SIGBUS, the processes that write there. The program may install a handler for SIGBUS; this library does not.
///
/// **Order.** The messages of one thread for one CPU's buffer arrive in the order in which they were written. Shared
/// buffers have two exceptions. A message that [`write_to`](Self::write_to) sends to another CPU can be overtaken by
/// messages that the thread writes after moving there. A message of more than 64 KiB can be overtaken if the daemon has
/// not written it after 0.1 s. A [`flush`](Self::flush) in between prevents both. A batch always keeps its order.
///
/// **When the daemon crashes**, writes into shared buffers continue: no error, no pause. The next daemon takes over the
/// files and continues reading. This process connects to it in a call that needs the daemon, such as flush. Until then,
/// a message for the socket is written directly if the caller is on its CPU; otherwise the call fails with
/// `Disconnected`. If the files are removed, no daemon will ever read them. The library notices when a sub-buffer is
/// finished or messages are refused, and treats the channel as closed.
///
/// **When the daemon ends in order**, it closes the channel. Calls fail with `Disconnected` until there is a new
/// daemon. Each call looks for one, but at most one call a second. [`write`](Self::write) does not wait for the new
/// daemon's answers, so it fails until they have arrived. Over the socket a crash has the same effect, and the packets
/// in the socket are lost.
///
/// **After fork**, the child's first call makes a new connection and waits for it. With shared buffers the child writes
/// at once. It gets its connection when it finishes a sub-buffer or first needs the daemon. As with any lock, no other
/// thread may be inside a call during a fork after which the child uses the channel. A child of vfork must not write. A
/// child in a new PID namespace where it has its parent's number must open the channel itself.
///
/// **Descriptors** of this library are 3 or above, and close-on-exec. The program may close them, as daemons close all
/// they have. Before the library writes to a descriptor or closes it, it checks that the descriptor is still its own.
/// It leaves another descriptor with that number alone. Shared buffers can still be written, and a call that needs the
/// daemon connects again, as after a crash. One race remains: another thread closes a descriptor and opens another one
/// between the check and the write, or the close. So no thread should be inside a call while another one closes
/// descriptors of the library.
///
/// **In signal handlers**, [`write`](Self::write) may be called if the transport is shared and the message has at most
/// 64 KiB. Then it takes no lock and no memory, even after a crash of the daemon, unless the handler itself is
/// interrupted 64 times in a row. It is no longer safe once the channel is closed or its files are removed: `write`
/// then looks for another daemon. In a forked child it is safe only once the child has a connection, as after a
/// [`flush`](Self::flush).
#[derive(Debug)]
pub struct Channel {
    /// The first buffers; most channels never have others.
    first: Arc<DirectBuffers>,
    link: Arc<Link>,
    created: bool,
}

impl Channel {
    /// Opens an existing channel of the daemon behind `mount`: a mount point or a socket.
    pub fn open(mount: impl AsRef<Path>, name: &str) -> Result<Channel, OpenError> {
        Channel::builder(mount, name).open()
    }

    /// Returns a builder that opens, and may create, a channel of the daemon behind `mount`.
    /// `mount` is a mount point or a socket.
    pub fn builder(mount: impl AsRef<Path>, name: &str) -> Builder {
        Builder::new(mount.as_ref(), name)
    }

    pub(crate) fn new(mount: PathBuf, request: OpenRequest, connection: Connection) -> Channel {
        let created = connection.created;
        let link = Link::new(mount, request, connection);
        Channel { first: Arc::clone(link.buffers().first()), link: Arc::new(link), created }
    }

    /// Writes a message into the buffer of the CPU that the caller runs on.
    ///
    /// `Err` means that the message is lost. With shared buffers, `Ok` means that it is in the buffer. Over the socket,
    /// `Ok` means that the daemon will get it, even if this process ends now; the buffer may still have no room. Every
    /// loss is counted, except while the daemon is away. Over the socket, a message that is too big counts as such if
    /// it can be sent at all. All other losses count as dropped.
    ///
    /// A message of more than 64 KiB may take up to 0.1 s if the daemon does not keep up.
    #[inline]
    pub fn write(&self, message: &[u8]) -> Result<(), WriteError> {
        self.write_somewhere(None, message)
    }

    /// Writes a message into the buffer of a given CPU; otherwise like [`write`](Self::write).
    /// A global channel has only one buffer, and ignores `cpu`.
    ///
    /// A message for another CPU than the caller's goes over the socket, even with shared buffers.
    pub fn write_to(&self, cpu: usize, message: &[u8]) -> Result<(), WriteError> {
        self.write_somewhere(Some(cpu), message)
    }

    /// Returns an [`Appender`] to the first buffers: the path that almost every message takes.
    pub fn appender(&self) -> Appender {
        Appender::new(&self.first)
    }

    /// Writes like [`write`](Self::write), but calls `subbuf_start` before a sub-buffer begins.
    /// The callback gets the CPU and the switch. If it refuses, the message is dropped as if all sub-buffers were full,
    /// and the current one is finished all the same. It may be called several times for one message, and must not write
    /// to the channel. For a message that goes over the socket it is not called.
    #[inline]
    pub fn write_if(
        &self,
        message: &[u8],
        subbuf_start: &mut dyn FnMut(usize, SubbufInfo) -> Option<SubbufHeader>,
    ) -> Result<(), WriteError> {
        let shared = self.link.buffers().first();
        match shared.write_if(message, subbuf_start) {
            Direct::Written => Ok(()),
            Direct::Detached => {
                if self.link.buffers().later().is_none() {
                    // A new connection may bring buffers; without them the socket remains, or nothing.
                    let _ = self.link.connection(false);
                }
                match self.link.buffers().later() {
                    Some(later) => {
                        self.written_otherwise(later, later.write_if(message, subbuf_start), None, message)
                    }
                    None => self.write_by_socket(None, message, Direct::Detached),
                }
            }
            direct => self.written_otherwise(shared, direct, None, message),
        }
    }

    /// Returns whether all sub-buffers of a CPU are full; `None` if the buffers are not shared.
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

    /// Handles a direct write that did not simply succeed.
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
                // A child gets a new connection; if that fails, the next call tries again. A process that has only lost
                // the daemon does not look for one here: the next daemon watches the buffers of such processes.
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

    /// Sends a message to the daemon. `why` is the reason for which it was not written directly.
    #[cold]
    fn write_by_socket(&self, cpu: Option<usize>, message: &[u8], mut why: Direct) -> Result<(), WriteError> {
        let Ok(connection) = self.link.connection(false) else {
            return self.write_without_daemon(cpu, message, why);
        };
        if let (Direct::Detached, Some(shared)) = (why, connection.shared()) {
            // The connection is new. Later messages will go directly, so this one must too, or they would arrive before
            // it.
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
        // As above: only this message goes over the socket, and must arrive before the next one.
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
                // The message is on its way, and may be overtaken.
                Err(RequestError::NoReply) => Ok(()),
                Ok(Reply::Done) | Err(_) => Err(WriteError::Disconnected),
            },
            Ok(()) => {
                connection.add_unsynced(cpu);
                // Sent all the same, so that the buffer's rules apply and the right counter counts it.
                if len > max { Err(too_big) } else { Ok(()) }
            }
            Err(SendError::Full) => {
                connection.add_lost(cpu, 1);
                Err(WriteError::Full)
            }
            Err(SendError::Gone) => self.write_without_daemon(cpu_given, message, why),
        }
    }

    /// Handles a message that could not be sent.
    /// `why` is the reason for which it was not written directly.
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

    /// Writes many messages, and waits for the daemon's answers about them.
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

    /// Begins a batch whose messages come one by one.
    pub fn batch(&self, options: BatchOptions) -> Result<Batch, RequestError> {
        // With buffers to write to, the batch can begin without waiting.
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

    /// Finishes the current sub-buffer of every CPU.
    /// It comes after all earlier messages through this `Channel`.
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

    /// Waits until all earlier messages of this `Channel` are in the buffers or counted as lost.
    /// Directly written messages are there at once; this call is for those sent over the socket. An error means that
    /// the daemon has gone, or does not answer within 10 s. Messages on their way may then be lost.
    pub fn sync(&self) -> Result<(), RequestError> {
        let connection = self.link.latest();
        if connection.is_own() { connection.sync(Some(Instant::now() + REPLY_LIMIT)) } else { Ok(()) }
    }

    /// Ends the connection like dropping the channel, while other threads may still use it.
    /// Their later calls fail with `Disconnected`, and a message that they are writing at this moment may be lost.
    pub fn close(&self) {
        self.link.close();
    }

    /// Returns the channel's geometry in the daemon's latest answer.
    pub fn geometry(&self) -> Geometry {
        self.link.latest().geometry
    }

    /// Returns the number of the channel's buffers: the number of CPUs, or 1.
    pub fn n_bufs(&self) -> usize {
        self.link.latest().n_bufs()
    }

    /// Returns whether opening it created the channel.
    pub fn created(&self) -> bool {
        self.created
    }

    /// Returns the transport of messages.
    /// With shared buffers some still go over the socket: see [`Channel`].
    pub fn transport(&self) -> Transport {
        if self.link.latest().sharing.is_ok() { Transport::Shared } else { Transport::Socket }
    }

    /// Returns why the transport is the socket, if it is.
    pub fn why_socket(&self) -> Option<String> {
        self.link.latest().sharing.as_ref().err().cloned()
    }
}
