//! Appending to the buffer of the caller's CPU, and nothing else: for [`Appender`](crate::Appender) and librelay.

use relay::ring::writer::{Appended, Writer};

use super::{DIRECT_MAX, DirectBuffers, Quick};
use crate::direct::content::RecordOf;

impl DirectBuffers {
    /// Appends a message behind the last one. False: nothing was done.
    #[inline(always)]
    pub(crate) fn append(&self, message: &[u8]) -> bool {
        message.len() <= DIRECT_MAX && (self.append_quick(message) || self.append_otherwise(message))
    }

    /// Appends a message of at most [`DIRECT_MAX`] bytes, or drops and counts it, if the C library has registered the
    /// calling thread for restartable sequences and nothing else has to be looked at. It calls no function.
    #[inline(always)]
    pub fn write_quick(&self, message: &[u8]) -> Quick {
        let Some((cpu_buffer, here)) = self.here_by_c_library(None) else { return Quick::Undone };
        match Writer::new(&cpu_buffer.buffer, here).append_or_drop(message) {
            Appended::Done => Quick::Written,
            Appended::Dropped => Quick::Dropped,
            Appended::Interrupted | Appended::Elsewhere => Quick::Undone,
        }
    }

    /// Appends a message of at most [`DIRECT_MAX`] bytes if the C library has registered the calling thread.
    #[inline(always)]
    pub(crate) fn append_quick(&self, message: &[u8]) -> bool {
        self.here_by_c_library(None).is_some_and(|(cpu_buffer, here)| {
            Writer::new(&cpu_buffer.buffer, here).append(message) == Appended::Done
        })
    }

    /// Appends a message of at most [`DIRECT_MAX`] bytes if the C library has not registered the calling thread.
    #[inline(never)]
    pub(crate) fn append_otherwise(&self, message: &[u8]) -> bool {
        self.here_by_c_library(None).is_none()
            && self.here(None).is_some_and(|(cpu_buffer, here)| {
                Writer::new(&cpu_buffer.buffer, here).append(message) == Appended::Done
            })
    }

    /// Appends a record of a built-in event behind the last one. False: nothing was done.
    #[inline(always)]
    pub(crate) fn append_record(&self, id: u16, payload: &[u8]) -> bool {
        match self.admit_record_quickly(None, RecordOf::built_in(id), payload) {
            Some((head, writer)) => writer.append_record_quick::<false>(head, payload) == Appended::Done,
            None => self.append_record_here(id, payload),
        }
    }

    /// Appends a record if the C library has not registered the calling thread.
    #[cold]
    #[inline(never)]
    fn append_record_here(&self, id: u16, payload: &[u8]) -> bool {
        self.admit_record(|| self.here(None), RecordOf::built_in(id), payload).is_some_and(
            |(head, cpu_buffer, here)| {
                Writer::new(&cpu_buffer.buffer, here).append_record(head, payload) == Appended::Done
            },
        )
    }

    /// Drops a message that was not appended, if there is no room. Returns whether it did.
    pub(crate) fn drop_if_full(&self, message: &[u8]) -> bool {
        if self.is_timed() || message.len() > DIRECT_MAX {
            return false;
        }
        self.drop_here(None, message.len())
    }
}
