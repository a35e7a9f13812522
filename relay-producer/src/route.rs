//! The way of one message: into the buffers, or else to the daemon.

use std::sync::Arc;
use std::time::{Duration, Instant};

use relay::ring::subbuf_start::{SubbufHeader, SubbufInfo};
use relay::wire::frame::{MESSAGE_PREFIX_LEN, WRITE_REPLY, WriteReply};
use relay::wire::socket::SendError;

use crate::definitions::Defined;
use crate::direct::buffers::{Direct, DirectBuffers};
use crate::direct::content::{Content, RecordOf};
use crate::error::{RequestError, WriteError};
use crate::levels::Levels;
use crate::socket::connection::{Envelope, Unsendable};
use crate::socket::reconnect::Link;
use crate::socket::replies::Reply;
use crate::socket::write_frame::WriteFrame;

/// Longest time of a write of a message that exceeds the socket's queue.
const LONG_MESSAGE_LIMIT: Duration = Duration::from_millis(100);

/// A channel's buffers and its link to the daemon.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// The first buffers; most channels never have others.
    pub(crate) first: Arc<DirectBuffers>,
    pub(crate) link: Arc<Link>,
    pub(crate) levels: Arc<Levels>,
}

impl Route {
    pub(crate) fn new(link: Link) -> Route {
        Route {
            first: Arc::clone(link.buffers().first()),
            levels: Arc::clone(link.levels()),
            link: Arc::new(link),
        }
    }

    /// Returns the length of the longest message, in bytes.
    #[inline(always)]
    pub(crate) fn payload_max(&self) -> usize {
        match self.first.record_max() {
            0 => self.latest_payload_max(),
            max => max,
        }
    }

    #[cold]
    #[inline(never)]
    fn latest_payload_max(&self) -> usize {
        self.link.latest().geometry.payload_max()
    }

    /// Counts a message that is too big even to be composed.
    #[cold]
    pub(crate) fn refuse_too_big(&self, len: usize, max: usize) -> Result<(), WriteError> {
        let connection = self.link.latest();
        if !connection.shared().is_some_and(|shared| shared.count_too_big(None, len))
            && let Ok(cpu) = connection.buffer_of(None)
        {
            connection.add_lost(cpu, 1);
        }
        Err(WriteError::TooBig { len, max })
    }

    /// Writes like [`Self::write`], and calls `subbuf_start` before a sub-buffer begins.
    #[inline]
    pub(crate) fn write_if(
        &self,
        message: &[u8],
        subbuf_start: &mut dyn FnMut(usize, SubbufInfo) -> Option<SubbufHeader>,
    ) -> Result<(), WriteError> {
        let (shared, content) = (self.link.buffers().first(), Content::Bytes(message));
        match shared.write_if(message, subbuf_start) {
            Direct::Written => Ok(()),
            Direct::Detached => {
                if self.link.buffers().later().is_none() {
                    // A new connection may bring buffers; without them the socket remains, or nothing.
                    let _ = self.link.connection_now();
                }
                match self.link.buffers().later() {
                    Some(later) => {
                        self.written_otherwise(later, later.write_if(message, subbuf_start), None, content)
                    }
                    None => self.write_by_socket(None, content, Direct::Detached),
                }
            }
            direct => self.written_otherwise(shared, direct, None, content),
        }
    }

    /// Writes bytes into the buffer of a given CPU, by default that of the caller's.
    #[inline(always)]
    pub(crate) fn write(&self, cpu: Option<usize>, message: &[u8]) -> Result<(), WriteError> {
        match self.first.write_bytes(cpu, message, true) {
            Direct::Written => Ok(()),
            Direct::Full => Err(WriteError::Full),
            direct => self.bytes_otherwise(direct, cpu, message),
        }
    }

    #[inline(never)]
    fn bytes_otherwise(&self, direct: Direct, cpu: Option<usize>, message: &[u8]) -> Result<(), WriteError> {
        self.written_otherwise(&self.first, direct, cpu, Content::Bytes(message))
    }

    /// Writes a record into the buffer of the caller's CPU.
    #[inline(always)]
    pub(crate) fn write_record(&self, of: RecordOf<'_>, payload: &[u8]) -> Result<(), WriteError> {
        match self.first.write_record(None, of, payload, true) {
            Direct::Written => Ok(()),
            Direct::Full => Err(WriteError::Full),
            direct => self.record_otherwise(direct, of.id, of.defined, of.about, payload),
        }
    }

    /// Each part is an argument: none of them then has to be in memory before.
    #[cold]
    #[inline(never)]
    fn record_otherwise(
        &self,
        direct: Direct,
        id: u16,
        defined: Option<&Defined>,
        about: Option<u32>,
        payload: &[u8],
    ) -> Result<(), WriteError> {
        let content = Content::Record(RecordOf { id, defined, about }, payload);
        self.written_otherwise(&self.first, direct, None, content)
    }

    /// Handles a direct write that did not simply succeed.
    #[inline(never)]
    fn written_otherwise(
        &self,
        shared: &DirectBuffers,
        direct: Direct,
        cpu: Option<usize>,
        content: Content<'_>,
    ) -> Result<(), WriteError> {
        match direct {
            Direct::Written => Ok(()),
            Direct::WrittenUnheard => {
                // A child gets a new connection; if that fails, the next call tries again. A process that has only lost
                // the daemon does not look for one here: the next daemon watches the buffers of such processes.
                if !shared.is_own() {
                    let _ = self.link.connection_now();
                    // The child's records so far, of this thread, also get its number.
                    shared.note_thread(content.about());
                }
                Ok(())
            }
            Direct::Full => Err(WriteError::Full),
            Direct::TooBig => Err(WriteError::TooBig { len: content.len(), max: shared.message_max() }),
            Direct::Closed => Err(WriteError::Disconnected),
            Direct::OtherKind => Err(WriteError::OtherKind),
            Direct::NotDefined => Err(WriteError::NotDefined),
            Direct::WrongCpu | Direct::NeedsSocket => self.write_by_socket(cpu, content, direct),
            Direct::Detached => match self.link.buffers().later() {
                Some(later) => self.written_otherwise(later, later.write(cpu, content, true), cpu, content),
                None => self.write_by_socket(cpu, content, direct),
            },
        }
    }

    /// Sends a message to the daemon. `why` is the reason for which it was not written directly.
    #[cold]
    fn write_by_socket(
        &self,
        cpu: Option<usize>,
        content: Content<'_>,
        mut why: Direct,
    ) -> Result<(), WriteError> {
        let Ok(connection) = self.link.connection_now() else {
            return self.write_without_daemon(cpu, content, why);
        };
        if let (Direct::Detached, Some(shared)) = (why, connection.shared()) {
            // The connection is new. Later messages will go directly, so this one must too, or they would arrive before
            // it.
            why = shared.write(cpu, content, true);
            if !matches!(why, Direct::WrongCpu | Direct::NeedsSocket | Direct::Detached) {
                return self.written_otherwise(shared, why, cpu, content);
            }
        }
        let cpu_given = cpu;
        let cpu = connection.buffer_of(cpu)?;
        let (len, max) = (content.len(), connection.geometry.payload_max());
        let too_big = WriteError::TooBig { len, max };
        let message = match connection.message(content) {
            Ok(message) => message,
            Err(Unsendable::OtherKind) => return Err(WriteError::OtherKind),
            // A connection that a newer one has replaced knows none of its ids.
            Err(Unsendable::NotDefined) if connection.is_gone() => return Err(WriteError::Disconnected),
            Err(Unsendable::NotDefined) => {
                connection.add_lost(cpu, 1);
                return Err(WriteError::NotDefined);
            }
            Err(Unsendable::TooBig) => {
                connection.add_lost(cpu, 1);
                return Err(too_big);
            }
        };
        // As above: only this message goes over the socket, and must arrive before the next one.
        let answered = why == Direct::NeedsSocket;
        let (flags, id) =
            if answered { (WRITE_REPLY, connection.expect()) } else { (0, connection.new_id()) };
        let envelope = Envelope { cpu, flags, id, wait_ms: 0 };
        let is_long = MESSAGE_PREFIX_LEN + message.len() > connection.room;
        let deadline = (is_long || answered).then(|| Instant::now() + LONG_MESSAGE_LIMIT);
        let sent = if is_long {
            connection.send_long(message, envelope, deadline)
        } else {
            let mut frame = WriteFrame::new(MESSAGE_PREFIX_LEN + message.len());
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
                Ok(Reply::Done | Reply::Defined(_)) | Err(_) => Err(WriteError::Disconnected),
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
            Err(SendError::Gone) => self.write_without_daemon(cpu_given, content, why),
        }
    }

    /// Handles a message that could not be sent.
    /// `why` is the reason for which it was not written directly.
    #[cold]
    fn write_without_daemon(
        &self,
        cpu: Option<usize>,
        content: Content<'_>,
        why: Direct,
    ) -> Result<(), WriteError> {
        let latest = self.link.latest();
        let Some(shared) = latest.shared().filter(|_| why == Direct::NeedsSocket) else {
            return Err(WriteError::Disconnected);
        };
        match shared.insist(cpu, content, true) {
            Direct::Written | Direct::WrittenUnheard => Ok(()),
            Direct::Full => Err(WriteError::Full),
            Direct::TooBig => Err(WriteError::TooBig { len: content.len(), max: shared.message_max() }),
            Direct::NeedsSocket => {
                shared.count_contended(cpu);
                Err(WriteError::Disconnected)
            }
            Direct::OtherKind => Err(WriteError::OtherKind),
            Direct::NotDefined => Err(WriteError::NotDefined),
            Direct::Closed | Direct::Detached | Direct::WrongCpu => Err(WriteError::Disconnected),
        }
    }
}
