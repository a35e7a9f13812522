//! Delivery of replies to the threads that wait for them.
//!
//! A thread that waits for a reply registers its id before the request goes out. One of the waiting threads receives
//! for all; when a packet has come, or its time is up, another one takes over. A reply that no thread waits for is
//! dropped.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use relay::trace::event::id::DEFINED;
use relay::wire::frame::{Body, DefineReply, Frame, FrameType, WriteReply};
use relay::wire::socket::{Deadline, Refused, refusal};

use crate::error::RequestError;

/// An answer to a request.
#[derive(Debug)]
pub(crate) enum Reply {
    Written(WriteReply),
    Done,
    /// The id of a defined event.
    Defined(u16),
    Refused(Refused),
}

impl Reply {
    /// Returns the id and contents of a reply, or the reason for which the packet is not one.
    pub(crate) fn decode(packet: &[u8]) -> Result<(u32, Reply), String> {
        let frame = Frame::decode(packet).map_err(|(_, error)| error.to_string())?;
        let reply = match (frame.kind, frame.reply) {
            (FrameType::Write, true) => {
                Reply::Written(WriteReply::decode(frame.body).map_err(|error| error.to_string())?)
            }
            (FrameType::Flush | FrameType::Close, true) => Reply::Done,
            (FrameType::Define, true) => {
                let reply = DefineReply::decode(frame.body).map_err(|error| error.to_string())?;
                Reply::Defined(id_of(reply).ok_or_else(|| format!("{reply:?}"))?)
            }
            (FrameType::Error, _) => Reply::Refused(refusal(frame.body)?),
            (kind, _) => return Err(format!("an unexpected {kind:?} frame")),
        };
        Ok((frame.id, reply))
    }

    /// Returns the results in a reply to a write.
    pub(crate) fn counts(self) -> Result<WriteReply, RequestError> {
        match self {
            Reply::Written(counts) => Ok(counts),
            Reply::Refused(refusal) => Err(refusal.into()),
            Reply::Done | Reply::Defined(_) => Err(RequestError::Garbled("no counts for a write".into())),
        }
    }
}

/// Returns the id in an answer, if a defined event can have it.
pub(crate) fn id_of(reply: DefineReply) -> Option<u16> {
    u16::try_from(reply.id).ok().filter(|id| *id >= DEFINED)
}

/// The replies of one connection.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    inbox: Mutex<Inbox>,
    /// Notified when a reply has come, and when a thread stops receiving.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inbox {
    /// A slot for every awaited reply, by id.
    slots: BTreeMap<u32, Option<Reply>>,
    /// Whether a waiting thread is receiving.
    receiving: bool,
}

impl Replies {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the reply to `id` once it comes.
    pub(crate) fn expect(&self, id: u32) {
        self.inbox().slots.insert(id, None);
    }

    /// Drops the slot of a reply that is no longer awaited.
    pub(crate) fn forget(&self, id: u32) {
        self.inbox().slots.remove(&id);
    }

    /// Waits for an expected reply.
    /// `receive` returns the next reply to any thread, by the same deadline.
    pub(crate) fn wait(
        &self,
        id: u32,
        deadline: Deadline,
        receive: impl Fn() -> Result<(u32, Reply), RequestError>,
    ) -> Result<Reply, RequestError> {
        let mut inbox = self.inbox();
        let outcome = loop {
            if let Some(reply) = inbox.slots.get_mut(&id).and_then(Option::take) {
                break Ok(reply);
            }
            if inbox.receiving {
                inbox = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                    None => self.changed.wait(inbox).unwrap_or_else(PoisonError::into_inner),
                    Some(left) if left.is_zero() => break Err(RequestError::NoReply),
                    Some(left) => {
                        self.changed.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0
                    }
                };
                continue;
            }
            inbox.receiving = true;
            drop(inbox);
            let received = receive();
            inbox = self.inbox();
            inbox.receiving = false;
            self.changed.notify_all();
            match received {
                Ok((id, reply)) => {
                    if let Some(slot) = inbox.slots.get_mut(&id) {
                        *slot = Some(reply);
                    }
                }
                Err(error) => break Err(error),
            }
        };
        inbox.slots.remove(&id);
        outcome
    }
}
