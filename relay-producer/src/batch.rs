//! Many messages, and what became of each: written directly as long as there is room, else in frames, several of them
//! under way at once.
//!
//! A batch writes directly only while nothing of it is on its way through the socket, and sends no frame before it has
//! found no room or is not on the right CPU. So its messages keep their order, and a producer that waits for its reader
//! pays for one answer each time the buffer is full.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use relay::client::{Deadline, SendError};
use relay::frame::{MESSAGE_PREFIX_LEN, WRITE_REPLY, WriteReply};

use crate::connection::{Connection, Envelope};
use crate::error::RequestError;
use crate::frames::WriteFrame;
use crate::options::{BatchOptions, Counts, Wait};
use crate::replies::Reply;
use crate::shared::Direct;

/// Most frames under way. Few enough that their replies can never fill a socket, enough to keep both sides busy.
const WINDOW: usize = 8;

/// A stream of messages whose fate is asked for.
///
/// [`push`](Self::push) writes into shared buffers, or gathers, and sends what fills a frame; [`send`](Self::send) sends
/// the rest at once; [`finish`](Self::finish) waits until the daemon has answered for everything. All three may wait:
/// for answers to earlier frames, and thereby for room in the buffer if the options say so. After an error the batch
/// takes no more; `finish` then collects what is still to be known. A batch that is dropped without it is still written,
/// as far as it was sent; nobody will know what became of it.
#[derive(Debug)]
pub struct Batch {
    connection: Arc<Connection>,
    options: BatchOptions,
    frame: WriteFrame,
    /// Ids of the frames that are not answered yet, oldest first.
    under_way: VecDeque<u32>,
    /// Messages are written directly. Then nothing has been gathered, and nothing is under way.
    direct: bool,
    counts: Counts,
}

impl Batch {
    pub(crate) fn new(connection: Arc<Connection>, options: BatchOptions) -> Result<Batch, RequestError> {
        connection.buffer_of(options.cpu)?;
        let frame = WriteFrame::new(connection.room);
        Ok(Batch {
            connection,
            options,
            frame,
            under_way: VecDeque::with_capacity(WINDOW),
            direct: false,
            counts: Counts::default(),
        })
    }

    /// Adds a message. Too big ones are counted, nothing else.
    #[inline]
    pub fn push(&mut self, message: &[u8]) -> Result<(), RequestError> {
        if !self.direct {
            return self.gather(message);
        }
        match self.write(message) {
            Direct::Written => {
                self.counts.written += 1;
                Ok(())
            }
            direct => self.written_otherwise(direct, message),
        }
    }

    #[inline(always)]
    fn write(&self, message: &[u8]) -> Direct {
        let drop_if_full = self.options.wait == Wait::No;
        match &self.connection.sharing {
            Ok(shared) => shared.write(self.options.cpu, message, drop_if_full),
            Err(_) => Direct::NotHere,
        }
    }

    /// What follows from a direct write that did not simply succeed.
    #[inline(never)]
    fn written_otherwise(&mut self, direct: Direct, message: &[u8]) -> Result<(), RequestError> {
        match direct {
            Direct::Written | Direct::WrittenByChild => self.counts.written += 1,
            Direct::TooBig => self.counts.too_big += 1,
            Direct::Full if self.options.wait == Wait::No => self.counts.dropped += 1,
            Direct::Full | Direct::NotHere | Direct::NotThis => {
                self.direct = false;
                return self.add_to_frame(message);
            }
            Direct::Closed | Direct::Over => return Err(RequestError::Disconnected),
        }
        Ok(())
    }

    /// Adds a message to the frame, unless messages can be written directly again.
    #[inline]
    fn gather(&mut self, message: &[u8]) -> Result<(), RequestError> {
        let len = MESSAGE_PREFIX_LEN + message.len();
        if self.frame.n_messages() == 0 || self.frame.len() + len > self.connection.room {
            return self.gather_slowly(message);
        }
        self.frame.push(message);
        Ok(())
    }

    #[cold]
    fn gather_slowly(&mut self, message: &[u8]) -> Result<(), RequestError> {
        if self.frame.n_messages() > 0 {
            self.send()?;
        }
        if self.becomes_direct()? {
            let direct = self.write(message);
            return self.written_otherwise(direct, message);
        }
        self.add_to_frame(message)
    }

    /// Goes back to direct writing if this thread can, waiting for everything that is under way.
    fn becomes_direct(&mut self) -> Result<bool, RequestError> {
        if self.connection.is_gone() {
            return Err(RequestError::Disconnected);
        }
        if !self.connection.shared().is_some_and(|shared| shared.is_here(self.options.cpu)) {
            return Ok(false);
        }
        self.collect_all()?;
        self.direct = true;
        Ok(true)
    }

    /// Adds a message to the frame, sending that first if it has no room.
    fn add_to_frame(&mut self, message: &[u8]) -> Result<(), RequestError> {
        if message.len() > self.connection.message_max {
            self.count_too_big();
            return Ok(());
        }
        if self.frame.len() + MESSAGE_PREFIX_LEN + message.len() > self.connection.room {
            self.send()?;
        }
        if MESSAGE_PREFIX_LEN + message.len() > self.connection.room {
            return self.send_long(message);
        }
        self.frame.push(message);
        Ok(())
    }

    /// Counts a message that is too big even to be shown to [`push`](Self::push).
    pub fn count_too_big(&mut self) {
        self.counts.too_big += 1;
        if self.connection.shared().is_some_and(|shared| shared.count_too_big(self.options.cpu)) {
            return;
        }
        // The protocol has no other word for a message that the daemon never saw.
        if let Ok(cpu) = self.connection.buffer_of(self.options.cpu) {
            self.connection.add_lost(cpu, 1);
        }
    }

    /// Sends what has been gathered.
    pub fn send(&mut self) -> Result<(), RequestError> {
        if self.frame.n_messages() == 0 {
            return Ok(());
        }
        let sent = self.send_frame();
        self.frame.clear();
        sent
    }

    fn send_frame(&mut self) -> Result<(), RequestError> {
        if self.under_way.len() >= WINDOW {
            self.collect(self.options.wait.deadline())?;
        }
        let id = self.connection.expect();
        let sent = self.deliver(id);
        self.sent(id, sent)
    }

    fn deliver(&mut self, id: u32) -> Result<(), RequestError> {
        let envelope = self.envelope(id)?;
        while !self.under_way.is_empty() {
            match self.connection.send(&mut self.frame, envelope) {
                // The answer to an earlier frame says that the socket was emptied at least that far.
                Err(SendError::Full) => self.collect(self.options.wait.deadline())?,
                sent => return Ok(sent?),
            }
        }
        let (connection, frame) = (&self.connection, &mut self.frame);
        Ok(connection.when_room(self.options.wait.deadline(), || connection.send(frame, envelope))?)
    }

    fn send_long(&mut self, message: &[u8]) -> Result<(), RequestError> {
        // Nobody here takes replies while its frames go out.
        self.collect_all()?;
        let deadline = self.options.wait.deadline();
        let id = self.connection.expect();
        let sent = self.envelope(id).and_then(|envelope| {
            let send = || self.connection.send_long(message, envelope, deadline);
            Ok(self.connection.when_room(deadline, send)?)
        });
        self.sent(id, sent)
    }

    /// Enters a frame that was sent into the list, and makes the connection forget one that was not.
    fn sent(&mut self, id: u32, sent: Result<(), RequestError>) -> Result<(), RequestError> {
        match sent {
            Ok(()) => self.under_way.push_back(id),
            Err(_) => self.connection.forget(id),
        }
        sent
    }

    fn envelope(&self, id: u32) -> Result<Envelope, RequestError> {
        let cpu = self.connection.buffer_of(self.options.cpu)?;
        Ok(Envelope { cpu, flags: WRITE_REPLY, id, wait_ms: self.options.wait.millis() })
    }

    /// Waits for the answer to the oldest frame.
    fn collect(&mut self, deadline: Deadline) -> Result<(), RequestError> {
        let Some(id) = self.under_way.pop_front() else { return Ok(()) };
        match self.connection.reply(id, deadline)? {
            Reply::Written(WriteReply { written, dropped, too_big }) => {
                // A daemon's numbers: wrong ones must not end this process.
                let Counts { written: w, dropped: d, too_big: t } = self.counts;
                self.counts = Counts {
                    written: w.saturating_add(written),
                    dropped: d.saturating_add(dropped),
                    too_big: t.saturating_add(too_big),
                };
                Ok(())
            }
            Reply::Refused(refusal) => Err(refusal.into()),
            Reply::Done => Err(RequestError::Garbled("no counts for a write".into())),
        }
    }

    /// Waits for all answers; the first error is the one that is told.
    fn collect_all(&mut self) -> Result<(), RequestError> {
        let mut result = Ok(());
        while !self.under_way.is_empty() {
            // A daemon that let one deadline pass does not get another one.
            let overdue = matches!(result, Err(RequestError::NoReply));
            let deadline = if overdue { Some(Instant::now()) } else { self.options.wait.deadline() };
            result = result.and(self.collect(deadline));
        }
        result
    }

    /// Sends what has been gathered and waits for the answers to everything.
    pub fn finish(&mut self) -> Result<Counts, RequestError> {
        let sent = self.send();
        sent.and(self.collect_all()).map(|()| self.counts)
    }

    /// What is known so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        for &id in &self.under_way {
            self.connection.forget(id);
        }
    }
}
