//! Many messages in few frames, several of them under way at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use relay::frame::{MESSAGE_PREFIX_LEN, WAIT_FOREVER, WRITE_REPLY, WriteReply};

use crate::connection::{Connection, Envelope};
use crate::error::RequestError;
use crate::frames::WriteFrame;
use crate::replies::Reply;
use crate::socket::{Deadline, SendError};

/// How long the daemon may take to answer, beyond what it was asked to wait.
pub(crate) const REPLY_LIMIT: Duration = Duration::from_secs(10);
/// Most frames under way. Few enough that their replies can never fill a socket, enough to keep both sides busy.
const WINDOW: usize = 8;

/// What to do when the channel's buffer is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Drop the message.
    #[default]
    No,
    /// Wait for a reader to make room, but not longer than this; then drop the message.
    AtMost(Duration),
    /// Wait for a reader to make room.
    Forever,
}

impl Wait {
    fn millis(self) -> u32 {
        match self {
            Wait::No => 0,
            Wait::AtMost(wait) => {
                u32::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX).min(WAIT_FOREVER - 1)
            }
            Wait::Forever => WAIT_FOREVER,
        }
    }

    /// When an answer to what is sent now is overdue.
    fn deadline(self) -> Deadline {
        let wait = match self {
            Wait::No => Duration::ZERO,
            Wait::AtMost(wait) => wait,
            Wait::Forever => return None,
        };
        Instant::now().checked_add(wait.saturating_add(REPLY_LIMIT))
    }
}

/// How a batch is to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchOptions {
    /// The CPU whose buffer is meant. Without it, each frame of messages goes to the buffer of the CPU on which the
    /// caller runs when it is sent.
    pub cpu: Option<usize>,
    /// What to do when the buffer is full.
    pub wait: Wait,
}

/// What became of the messages of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages now in the buffers.
    pub written: u64,
    /// Messages dropped because every sub-buffer was full.
    pub dropped: u64,
    /// Messages dropped because they are longer than any of this channel can be.
    pub too_big: u64,
}

/// A stream of messages whose fate is asked for.
///
/// [`push`](Self::push) gathers, and sends what fills a frame; [`send`](Self::send) sends the rest at once;
/// [`finish`](Self::finish) waits until the daemon has answered for everything. All three may wait: for answers to
/// earlier frames, and thereby for room in the buffer if the options say so. After an error the batch takes no more;
/// `finish` then collects what is still to be known. A batch that is dropped without it is still written, as far as it
/// was sent; nobody will know what became of it.
#[derive(Debug)]
pub struct Batch {
    connection: Arc<Connection>,
    options: BatchOptions,
    frame: WriteFrame,
    /// Ids of the frames that are not answered yet, oldest first.
    under_way: VecDeque<u32>,
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
            counts: Counts::default(),
        })
    }

    /// Adds a message. Too big ones are counted, nothing else.
    #[inline]
    pub fn push(&mut self, message: &[u8]) -> Result<(), RequestError> {
        let len = MESSAGE_PREFIX_LEN + message.len();
        if self.frame.len() + len > self.connection.room {
            return self.push_slowly(message);
        }
        self.frame.push(message);
        Ok(())
    }

    /// Adds a message that has no place in the frame at hand.
    #[cold]
    fn push_slowly(&mut self, message: &[u8]) -> Result<(), RequestError> {
        if message.len() > self.connection.message_max {
            self.count_too_big();
            return Ok(());
        }
        self.send()?;
        if MESSAGE_PREFIX_LEN + message.len() > self.connection.room {
            return self.send_long(message);
        }
        self.frame.push(message);
        Ok(())
    }

    /// Counts a message that is too big even to be shown to [`push`](Self::push).
    pub fn count_too_big(&mut self) {
        self.counts.too_big += 1;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_rounded_up_and_never_become_for_ever() {
        for (wait, millis) in [
            (Wait::No, 0),
            (Wait::AtMost(Duration::ZERO), 0),
            (Wait::AtMost(Duration::from_nanos(1)), 1),
            (Wait::AtMost(Duration::from_secs(2)), 2000),
            (Wait::AtMost(Duration::MAX), WAIT_FOREVER - 1),
            (Wait::Forever, WAIT_FOREVER),
        ] {
            assert_eq!(wait.millis(), millis, "{wait:?}");
        }
    }
}
