//! What a message consists of, before and after its way into a buffer is known.

use relay::ring::writer::{Attempt, Executor, Writer};
use relay::trace::event::id::RAW;
use relay::trace::record::{Head, PAYLOAD_MAX};

use crate::definitions::Defined;

/// A message of the program, where it has to wait or to be looked at again.
/// The path that almost every message takes has its parts alone, which stay in registers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content<'a> {
    /// Bytes. On a timed channel they become a record of the event `raw`.
    Bytes(&'a [u8]),
    /// A record, for timed channels alone.
    Record(RecordOf<'a>, &'a [u8]),
}

/// What a record is of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordOf<'a> {
    /// Id of a built-in event.
    pub(crate) id: u16,
    /// The event of the program instead.
    pub(crate) defined: Option<&'a Defined>,
    /// The thread that the record is about, if that is not the caller.
    pub(crate) about: Option<u32>,
}

impl<'a> RecordOf<'a> {
    /// A built-in event of the caller.
    pub(crate) const fn built_in(id: u16) -> RecordOf<'a> {
        RecordOf { id, defined: None, about: None }
    }

    /// Returns the event's id in an instance of the channel; `None` if it is not defined there.
    #[inline(always)]
    pub(crate) fn id_in(&self, instance: u32) -> Option<u16> {
        match self.defined {
            None => Some(self.id),
            Some(defined) => defined.id_in(instance),
        }
    }
}

impl<'a> Content<'a> {
    /// Returns a record of a built-in event.
    pub(crate) fn record(id: u16, payload: &'a [u8]) -> Content<'a> {
        Content::Record(RecordOf::built_in(id), payload)
    }

    /// Returns the bytes that the program gave.
    pub(crate) fn payload(self) -> &'a [u8] {
        match self {
            Content::Bytes(bytes) | Content::Record(_, bytes) => bytes,
        }
    }

    /// Returns the thread that a record is about, if that is not the caller.
    pub(crate) fn about(self) -> Option<u32> {
        if let Content::Record(of, _) = self { of.about } else { None }
    }

    /// Returns the length of [`Self::payload`].
    pub(crate) fn len(self) -> usize {
        self.payload().len()
    }

    /// Returns what a timed channel's `instance` gets; `None` if the event is not defined there.
    /// `tid` is the caller's thread.
    pub(crate) fn stamped(self, instance: u32, tid: u32) -> Option<Form<'a>> {
        let of = match self {
            Content::Bytes(_) => RecordOf::built_in(RAW),
            Content::Record(of, _) => of,
        };
        let payload = self.payload();
        // A payload that is too long for any record has the longest length in its head.
        let said = &payload[..payload.len().min(PAYLOAD_MAX)];
        Some(Form::Stamped { head: head(of.id_in(instance)?, of.about.unwrap_or(tid), said), payload })
    }
}

/// Returns the head of a record whose payload is not too long.
#[inline(always)]
pub(crate) fn head(id: u16, tid: u32, payload: &[u8]) -> u64 {
    debug_assert!(payload.len() <= PAYLOAD_MAX, "checked before");
    Head { id, tid, len: payload.len() as u16 }.to_word()
}

/// A message as a buffer takes it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form<'a> {
    /// The bytes alone.
    Bare(&'a [u8]),
    /// A record; the ring adds the stamp.
    Stamped { head: u64, payload: &'a [u8] },
}

impl Form<'_> {
    /// Returns the length of the payload.
    pub(crate) fn len(self) -> usize {
        match self {
            Form::Bare(payload) | Form::Stamped { payload, .. } => payload.len(),
        }
    }

    pub(crate) fn try_write<R: Executor>(self, writer: &Writer<'_, R>) -> Attempt {
        match self {
            Form::Bare(message) => writer.try_write(message),
            Form::Stamped { head, payload } => writer.try_write_record(head, payload),
        }
    }

    pub(crate) fn write_elsewhere<R: Executor>(self, writer: &Writer<'_, R>) -> Attempt {
        match self {
            Form::Bare(message) => writer.write_elsewhere(message),
            Form::Stamped { head, payload } => writer.write_record_elsewhere(head, payload),
        }
    }
}
