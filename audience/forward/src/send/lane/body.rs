//! Bodies for a subject, and where they come from.

use bytes::Bytes;

use crate::error::Failure;
use crate::message::Headers;
use crate::send::written::{Plan, Proof, Written};

/// A body for a subject.
pub(crate) struct Body {
    pub(super) headers: Headers,
    pub(super) bytes: Bytes,
    /// What proves that another process has stored it.
    pub(super) proof: Proof,
    /// The stream's generation in which the headers are right; `None`: in all.
    pub(super) generation: Option<u64>,
    /// How it is split, and the longest message for which that is right, in bytes.
    pub(super) plan: Option<(Plan, usize)>,
    /// Number of its parts that are stored or on the way.
    pub(super) sent: u32,
    /// Sequence of its first message; 0: not known.
    pub(super) first: u64,
}

/// Where bodies come from.
pub(crate) trait Bodies {
    /// Returns the next body, if there is one.
    fn next(&mut self) -> Option<Body>;

    /// Waits for a body. A call that was cancelled can be made again.
    async fn more(&self);

    /// Makes the headers of the first body right that is not stored. Returns false if the server does not take what is
    /// needed for that.
    async fn renew(&mut self, body: &mut Body, tries: u32) -> Result<bool, Failure>;

    /// Takes note that the first body is stored, and of the sequence of its first message.
    fn stored(&mut self, first: u64);
}

/// One body.
pub(super) struct One {
    pub(super) body: Option<Body>,
    /// Sequence of its first message, if it is stored.
    pub(super) first: u64,
}

impl Bodies for One {
    fn next(&mut self) -> Option<Body> {
        self.body.take()
    }

    async fn more(&self) {
        std::future::pending().await
    }

    async fn renew(&mut self, _: &mut Body, _: u32) -> Result<bool, Failure> {
        Ok(true)
    }

    fn stored(&mut self, first: u64) {
        self.first = first;
    }
}

impl Body {
    /// Makes a body. `generation`: that of the stream in which the headers are right; `None`: in all.
    pub(crate) fn new(headers: Headers, bytes: Bytes, proof: Proof, generation: Option<u64>) -> Body {
        Body { headers, bytes, proof, generation, plan: None, sent: 0, first: 0 }
    }

    /// Takes other headers, which are right in this generation of the stream.
    pub(crate) fn renew(&mut self, headers: Headers, generation: u64) {
        (self.headers, self.generation) = (headers, Some(generation));
        (self.plan, self.sent, self.first) = (None, 0, 0);
    }

    /// Returns how many of its parts are stored, if this is the last message of the subject.
    pub(super) fn n_stored(&self, last: Option<&Written>) -> u32 {
        self.plan.as_ref().map_or(0, |(plan, _)| plan.stored(last))
    }

    /// Takes note of where a part is, counted from 1, unless its first message is known.
    ///
    /// The parts in front of it are next to each other, unless each was acknowledged.
    pub(super) fn note_first(&mut self, sequence: u64, part: u32) {
        if self.first == 0 {
            self.first = sequence.saturating_sub(u64::from(part.saturating_sub(1)));
        }
    }

    /// Returns whether there are parts that are neither stored nor on the way.
    pub(super) fn has_more(&self) -> bool {
        self.plan.as_ref().is_none_or(|(plan, _)| plan.part(self.sent.saturating_add(1)).is_some())
    }
}
