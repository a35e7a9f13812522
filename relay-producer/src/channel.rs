//! The API: a channel, opened once and written to by any thread of the process.

mod io_write;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use relay::Geometry;
use relay::ring::subbuf_start::{SubbufHeader, SubbufInfo};
use relay::trace::definition::Definition;
use relay::trace::event::{Event as Builtin, Stream, What, id};
use relay::trace::level::Level;

use crate::batch::Batch;
use crate::builder::Builder;
use crate::direct::appender::Appender;
use crate::direct::content::RecordOf;
use crate::error::{BatchError, OpenError, RequestError, WriteError};
use crate::event::Event;
use crate::options::{BatchOptions, Counts, REPLY_LIMIT};
use crate::record;
use crate::route::Route;
use crate::socket::connection::Connection;
use crate::socket::follow::Act;
use crate::socket::handshake::{OPEN_LIMIT, OpenRequest};
use crate::socket::reconnect::{Link, no_connection};
use crate::socket::replies::Reply;
use crate::transport::Transport;

/// Longest name of a command in bytes, as the kernel keeps it.
const COMMAND_MAX: usize = 15;

/// An open channel.
///
/// Many threads can use it at once, through `&self`. [`write`](Self::write) never waits for a reader, nor for threads
/// that wait. It waits for the daemon only where it says so, 0.1 s at most. [`write_batch`](Self::write_batch),
/// [`batch`](Self::batch) and [`flush`](Self::flush) wait for the daemon's answer.
///
/// **Transports.** If the daemon gives this process the channel's buffers ([`Transport::Shared`]), a message is written
/// straight into them, without a system call. Otherwise ([`Transport::Socket`]) the daemon gets it as a packet. With
/// shared buffers some messages still go over the socket:
/// * those of more than 64 KiB
/// * those for another CPU than the caller's
/// * those of threads that cannot run restartable sequences
/// * those whose sequence was interrupted 64 times
///
/// Sharing requires trust. A process with the buffers can corrupt messages of others. By truncating the files it can
/// end, by SIGBUS, the processes that write there. The program may install a handler for SIGBUS; this library does not.
///
/// **Order.** The messages of one thread for one CPU's buffer arrive in the order in which they were written. Shared
/// buffers have two exceptions. A message that [`write_to`](Self::write_to) sends to another CPU can be overtaken by
/// messages that the thread writes after moving there. A message of more than 64 KiB, or one whose sequence was
/// interrupted 64 times, can be overtaken if the daemon has not answered for it after 0.1 s. A [`flush`](Self::flush) in
/// between prevents both. A batch always keeps its order.
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
/// at once. It gets its connection when it finishes a sub-buffer or first needs the daemon. Other threads may be inside
/// a call during the fork: the child has other locks than they hold. A child of vfork must not write.
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
    route: Route,
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
        Channel { route: Route::new(Link::new(mount, request, connection)), created }
    }

    /// Writes a message into the buffer of the CPU that the caller runs on.
    ///
    /// `Err` means that the message is lost. With shared buffers, `Ok` means that it is in the buffer. Over the socket,
    /// `Ok` means that the daemon will get it, even if this process ends now; the buffer may still have no room. Every
    /// loss is counted, except while the daemon is away. Over the socket, a message that is too big counts as such if
    /// it can be sent at all. All other losses count as dropped.
    ///
    /// Two kinds of messages wait for the daemon, 0.1 s at most:
    /// * One that is longer than a frame of the socket, which is almost 64 KiB, waits for room in the socket. Without
    ///   room in time it is `Full`.
    /// * With shared buffers, one that goes over the socket for its length, or since its sequence was interrupted 64
    ///   times, waits for the daemon's answer. The answer makes `Ok` mean that it is in the buffer. Without an answer in
    ///   time, `Ok` means what it means over the socket. If the daemon goes away meanwhile, the message is
    ///   `Disconnected`, and may be in the buffer all the same.
    ///
    /// In a timed channel the message is a `raw` record, of at most 64 KiB.
    #[inline]
    pub fn write(&self, message: &[u8]) -> Result<(), WriteError> {
        self.route.write(None, message)
    }

    /// Writes a message into the buffer of a given CPU; otherwise like [`write`](Self::write).
    /// A global channel has only one buffer, and ignores `cpu`.
    ///
    /// A message for another CPU than the caller's goes over the socket, even with shared buffers.
    pub fn write_to(&self, cpu: usize, message: &[u8]) -> Result<(), WriteError> {
        self.route.write(Some(cpu), message)
    }

    /// Writes a text into a timed channel, as a `text` record; otherwise like [`write`](Self::write).
    ///
    /// A text that is longer than a record is cut, and ends with `…`. A newline at its end belongs to it.
    #[inline]
    pub fn text(&self, text: &str) -> Result<(), WriteError> {
        self.text_bytes(text.as_bytes())
    }

    /// Writes like [`text`](Self::text). Other bytes than UTF-8 are written as they are.
    #[inline]
    pub fn text_bytes(&self, text: &[u8]) -> Result<(), WriteError> {
        if text.len() > self.route.first.record_max() {
            return self.long_text(text);
        }
        self.route.write_record(RecordOf::built_in(id::TEXT), text)
    }

    #[cold]
    fn long_text(&self, text: &[u8]) -> Result<(), WriteError> {
        let text = record::cut(text, self.route.payload_max());
        self.route.write_record(RecordOf::built_in(id::TEXT), &text)
    }

    /// Writes a message with level and target into a timed channel; otherwise like [`write`](Self::write).
    ///
    /// `target` says which part of the program writes, such as `app::db`. It has at most 255 bytes. A text that is
    /// longer than a record is cut, and ends with `…`. Only a message of more than 1 KiB takes memory.
    ///
    /// A message that is not [`enabled`](Self::enabled) is left out, which is no error.
    #[inline]
    pub fn log(&self, level: Level, target: &str, text: &str) -> Result<(), WriteError> {
        self.log_bytes(level, target.as_bytes(), text.as_bytes())
    }

    /// Writes like [`log`](Self::log). Other bytes than UTF-8 are written as they are.
    #[inline]
    pub fn log_bytes(&self, level: Level, target: &[u8], text: &[u8]) -> Result<(), WriteError> {
        if !self.route.levels.enabled(level, target) {
            return Ok(());
        }
        self.log_enabled(level, target, text)
    }

    /// Returns whether messages with this level and target are written.
    ///
    /// The channel's file `level` and [`Builder::levels`] say so: `echo app::db=debug >
    /// /mnt/relay/.relay/channels/app/log/level` counts at once, in all processes. It costs two loads and a branch, unless
    /// targets have different levels. A daemon of an older release has no such file.
    #[inline]
    pub fn enabled(&self, level: Level, target: &[u8]) -> bool {
        self.route.levels.enabled(level, target)
    }

    /// Calls `act` on another thread now, and whenever the levels have changed.
    pub(crate) fn follow_levels(&self, act: Act) {
        self.route.link.follow_levels(act);
    }

    /// Writes a message that is enabled.
    #[inline(always)]
    pub(crate) fn log_enabled(&self, level: Level, target: &[u8], text: &[u8]) -> Result<(), WriteError> {
        record::with_log(level, target, text, self.route.payload_max(), |payload| {
            self.route.write_record(RecordOf::built_in(id::LOG), payload)
        })
    }

    /// Writes a line of another process's output into a timed channel, as an `output` record.
    /// `tid` is that process's, which the record belongs to, unless the daemon is in another PID namespace: there it belongs
    /// to the caller. The line has no newline. One that is longer than a record
    /// is too big.
    pub fn output(&self, stream: Stream, tid: u32, line: &[u8]) -> Result<(), WriteError> {
        let mut payload = Vec::new();
        let output = Builtin::Output { stream: Some(stream), text: line };
        if output.encode_into(&mut payload).is_err() {
            return self.route.write_record(RecordOf::built_in(id::OUTPUT), line);
        }
        let about = Some(self.route.link.latest().number_about(tid));
        let of = RecordOf { about, ..RecordOf::built_in(id::OUTPUT) };
        self.route.write_record(of, &payload)
    }

    /// Writes how the process has ended whose lines [`output`](Self::output) has written, as a `process` record, and
    /// closes the channel.
    ///
    /// `command` is the name of the process's command. A regular end, which is an exit with status 0, leaves no record.
    /// The daemon then writes no record of the caller's own end. `Err` means that the record is lost, and the channel is
    /// still open.
    pub fn output_ended(&self, tid: u32, command: &[u8], status: ExitStatus) -> Result<(), WriteError> {
        if !status.success() {
            let (what, status) = match status.signal() {
                Some(signal) => (What::Signal, signal),
                None => (What::Exit, status.code().unwrap_or_default()),
            };
            let connection = self.route.link.latest();
            let pid = connection.pid_there();
            // As long as the name that the kernel keeps of a command.
            let command = &command[..command.len().min(COMMAND_MAX)];
            let end = Builtin::Process { pid, what: Some(what), status: status.cast_unsigned(), command };
            let mut payload = Vec::new();
            // It is not too long.
            let _ = end.encode_into(&mut payload);
            let of =
                RecordOf { about: Some(connection.number_about(tid)), ..RecordOf::built_in(id::PROCESS) };
            self.route.write_record(of, &payload)?;
        }
        self.route.link.give_back();
        Ok(())
    }

    /// Defines an event of a timed channel, whose records have typed fields. Waits for the daemon's answer.
    ///
    /// The same content is the same event, in all programs. After a loss of the connection the library defines it
    /// again.
    pub fn define(&self, definition: Definition) -> Result<Event, RequestError> {
        Event::define(&self.route, definition, None)
    }

    /// Defines like [`define`](Self::define), and waits about as long as this at most, and as long again for a new daemon.
    /// Without a daemon it does not wait.
    pub fn define_within(&self, definition: Definition, limit: Duration) -> Result<Event, RequestError> {
        Event::define(&self.route, definition, Some(limit))
    }

    /// Writes a record of a built-in event, whose payload is composed.
    #[cfg(any(feature = "log", feature = "tracing"))]
    #[inline(always)]
    pub(crate) fn record(&self, id: u16, payload: &[u8]) -> Result<(), WriteError> {
        self.route.write_record(RecordOf::built_in(id), payload)
    }

    /// Returns the longest payload of a record, in bytes.
    #[cfg(any(feature = "log", feature = "tracing"))]
    #[inline(always)]
    pub(crate) fn payload_max(&self) -> usize {
        self.route.payload_max()
    }

    /// Returns an [`Appender`] to the first buffers: the path that almost every message takes.
    pub fn appender(&self) -> Appender {
        Appender::new(&self.route.first, &self.route.levels)
    }

    /// Writes like [`write`](Self::write), but calls `subbuf_start` before a sub-buffer begins.
    /// The callback gets the CPU and the switch. If it refuses, the message is dropped as if all sub-buffers were full,
    /// and the current one is finished all the same. It may be called several times for one message, and must not write
    /// to the channel. For a message that goes over the socket it is not called. A timed channel has no such callback.
    #[inline]
    pub fn write_if(
        &self,
        message: &[u8],
        subbuf_start: &mut dyn FnMut(usize, SubbufInfo) -> Option<SubbufHeader>,
    ) -> Result<(), WriteError> {
        self.route.write_if(message, subbuf_start)
    }

    /// Returns whether all sub-buffers of a CPU are full; `None` if the buffers are not shared.
    pub fn is_full(&self, cpu: usize) -> Option<bool> {
        let buffers = self.route.link.buffers();
        buffers.first().is_full(cpu).or_else(|| buffers.later()?.is_full(cpu))
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
        let wait = if self.route.link.latest().shared().is_none() { OPEN_LIMIT } else { Duration::ZERO };
        let connection = match self.route.link.connection_within(wait) {
            Ok(connection) => connection,
            Err(reason) => {
                let latest = self.route.link.latest();
                if latest.shared().is_none() {
                    return Err(no_connection(reason));
                }
                latest
            }
        };
        Batch::new(Arc::clone(&self.route.link), connection, options)
    }

    /// Finishes the current sub-buffer of every CPU.
    /// It comes after all earlier messages through this `Channel`.
    pub fn flush(&self) -> Result<(), RequestError> {
        self.route.link.latest().look();
        let connection = self.route.link.connection_within(OPEN_LIMIT).map_err(no_connection)?;
        let deadline = Some(Instant::now() + REPLY_LIMIT);
        let id = connection.expect();
        if let Err(error) = connection.send_flush(id, deadline) {
            connection.forget(id);
            return Err(error.into());
        }
        match connection.reply(id, deadline)? {
            Reply::Done => Ok(()),
            Reply::Refused(refused) => Err(refused.into()),
            other => Err(RequestError::Garbled(format!("{other:?} for a flush"))),
        }
    }

    /// Waits until all earlier messages of this `Channel` are in the buffers or counted as lost.
    /// Directly written messages are there at once; this call is for those sent over the socket. An error means that
    /// the daemon has gone, or does not answer within 10 s. Messages on their way may then be lost. Once another call has
    /// found the next daemon, there is no error any more for what was on its way to the last one.
    pub fn sync(&self) -> Result<(), RequestError> {
        let connection = self.route.link.latest();
        if connection.is_own() { connection.sync(Some(Instant::now() + REPLY_LIMIT)) } else { Ok(()) }
    }

    /// Looks whether the daemon is there, and tries to reach the next one if not. Returns whether one is there.
    ///
    /// Messages written directly need no daemon, so writing finds its end when a sub-buffer is full. Until then,
    /// messages are for the next daemon that takes over the buffers. If there can be none, since its state directory has
    /// gone, they are lost. If that was unmounted, as with a container, and not removed, writing never finds out. A program
    /// that writes rarely, or whose daemon has such buffers, calls this before it writes. It is one system call while a
    /// daemon is there, and a try to connect, once a second, while there is none. A daemon that does not answer holds the
    /// caller up for a second, once in five.
    pub fn look_for_daemon(&self) -> bool {
        self.route.link.look_for_daemon()
    }

    /// Ends the connection like dropping the channel, while other threads may still use it.
    /// Their later calls fail with `Disconnected`, and a message that they are writing at this moment may be lost.
    pub fn close(&self) {
        self.route.link.close();
    }

    /// Returns whether the channel is timed, by the daemon's latest answer.
    pub fn is_timed(&self) -> bool {
        self.geometry().timed()
    }

    /// Returns the channel's geometry in the daemon's latest answer.
    pub fn geometry(&self) -> Geometry {
        self.route.link.latest().geometry
    }

    /// Returns the number of the channel's buffers: the number of CPUs, or 1.
    pub fn n_bufs(&self) -> usize {
        self.route.link.latest().n_bufs()
    }

    /// Returns whether opening it created the channel.
    pub fn created(&self) -> bool {
        self.created
    }

    /// Returns the transport of messages.
    /// With shared buffers some still go over the socket: see [`Channel`].
    pub fn transport(&self) -> Transport {
        if self.route.link.latest().sharing.is_ok() { Transport::Shared } else { Transport::Socket }
    }

    /// Returns why the transport is the socket, if it is.
    pub fn why_socket(&self) -> Option<String> {
        self.route.link.latest().sharing.as_ref().err().cloned()
    }
}
