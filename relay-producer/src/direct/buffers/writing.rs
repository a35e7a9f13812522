//! Writing a message into the buffer of the caller's CPU.
//!
//! Almost every message takes the first, inlined path, for bare messages and for records alike. All that is rare is in
//! other functions.

use std::hint::black_box;
use std::sync::atomic::AtomicU64;

use relay::layout::abi::BufferBlock;
use relay::layout::geometry::MESSAGE_MAX;
use relay::ring::buffer::Buffer;
use relay::ring::subbuf_start::SubbufStart;
use relay::ring::writer::{Appended, Attempt, Executor, Outcome, WriteResult, Writer};
use relay::system::thread_id::ThisThread;
use relay::trace::record::RECORD_OVERHEAD;

use super::{CpuBuffer, CpuSubbufStart, DIRECT_MAX, Direct, DirectBuffers};
use crate::definitions::Defined;
use crate::direct::attachment::Introduced;
use crate::direct::content::{Content, Form, RecordOf, head};

/// Tries of one message before it goes over the socket.
const TRIES_MAX: u32 = 64;
/// Tries of a message that should go over the socket, while no daemon is at its other end.
/// For the longest messages they take about as long as a daemon may.
const INSISTENT_TRIES_MAX: u32 = 1024;

/// Whether a message may be written, and how.
enum Admitted<'a> {
    /// It may, in this form.
    As(Form<'a>),
    /// The same, and it is the first of a forked child.
    OfChild(Form<'a>),
    /// It may not.
    No(Direct),
}

impl DirectBuffers {
    /// Writes a message into the buffer of the caller's CPU.
    /// If `only` is given, the CPU must be that one. With `drop_if_full`, a message without room is counted as dropped.
    pub(crate) fn write(&self, only: Option<usize>, content: Content<'_>, drop_if_full: bool) -> Direct {
        match content {
            Content::Bytes(message) => self.write_bytes(only, message, drop_if_full),
            Content::Record(of, payload) => self.write_record(only, of, payload, drop_if_full),
        }
    }

    /// Writes bytes like [`Self::write`].
    #[inline(always)]
    pub(crate) fn write_bytes(&self, only: Option<usize>, message: &[u8], drop_if_full: bool) -> Direct {
        if message.len() > DIRECT_MAX {
            return self.bytes_here(only, message, drop_if_full);
        }
        let Some((cpu_buffer, here)) = self.here_by_c_library(only) else {
            return self.bytes_here(only, message, drop_if_full);
        };
        // A timed buffer takes no bare message: there seems to be no room for it.
        let writer = Writer::new(&cpu_buffer.buffer, here);
        let appended = if drop_if_full { writer.append_or_drop(message) } else { writer.append(message) };
        match appended {
            Appended::Done => Direct::Written,
            Appended::Dropped => full(),
            Appended::Elsewhere => self.bytes_elsewhere(only, message, drop_if_full),
            Appended::Interrupted => self.bytes_again(only, message, drop_if_full),
        }
    }

    /// Writes bytes if the C library has not registered the calling thread, or if they are long.
    #[inline(never)]
    fn bytes_here(&self, only: Option<usize>, message: &[u8], drop_if_full: bool) -> Direct {
        let place = if message.len() <= DIRECT_MAX { self.here(only) } else { None };
        let Some((cpu_buffer, here)) = place else { return self.bytes_again(only, message, drop_if_full) };
        let writer = Writer::new(&cpu_buffer.buffer, here);
        let appended = if drop_if_full { writer.append_or_drop(message) } else { writer.append(message) };
        match appended {
            Appended::Done => Direct::Written,
            Appended::Dropped => Direct::Full,
            Appended::Elsewhere => self.bytes_elsewhere(only, message, drop_if_full),
            Appended::Interrupted => self.bytes_again(only, message, drop_if_full),
        }
    }

    /// Continues without room behind the last message.
    #[inline(never)]
    fn bytes_elsewhere(&self, only: Option<usize>, message: &[u8], drop_if_full: bool) -> Direct {
        if drop_if_full && self.drop_here(only, self.space_of(message.len())) {
            return Direct::Full;
        }
        self.write_elsewhere(TRIES_MAX, Appended::Elsewhere, only, Content::Bytes(message), drop_if_full)
    }

    /// Continues after an interruption. A function without an argument for that: the usual way would have to set it.
    #[cold]
    #[inline(never)]
    fn bytes_again(&self, only: Option<usize>, message: &[u8], drop_if_full: bool) -> Direct {
        self.write_elsewhere(TRIES_MAX, Appended::Interrupted, only, Content::Bytes(message), drop_if_full)
    }

    /// Writes a record like [`Self::write`].
    #[inline(always)]
    pub(crate) fn write_record(
        &self,
        only: Option<usize>,
        of: RecordOf<'_>,
        payload: &[u8],
        drop_if_full: bool,
    ) -> Direct {
        let RecordOf { id, defined, about } = of;
        let Some((head, writer)) = self.admit_record_quickly(only, of, payload) else {
            return self.record_here(only, id, defined, about, payload, drop_if_full);
        };
        let appended = if drop_if_full {
            writer.append_record_quick::<true>(head, payload)
        } else {
            writer.append_record_quick::<false>(head, payload)
        };
        match appended {
            Appended::Done => Direct::Written,
            Appended::Dropped => full(),
            appended => self.record_elsewhere(appended, only, id, defined, about, payload, drop_if_full),
        }
    }

    /// Writes a record if the C library has not registered the calling thread, or if there is more to look at.
    /// Each part is an argument: none of them then has to be in memory before.
    #[cold]
    #[inline(never)]
    fn record_here(
        &self,
        only: Option<usize>,
        id: u16,
        defined: Option<&Defined>,
        about: Option<u32>,
        payload: &[u8],
        drop_if_full: bool,
    ) -> Direct {
        let of = RecordOf { id, defined, about };
        let appended = match self.admit_record(|| self.here(only), of, payload) {
            Some((head, cpu_buffer, here)) => {
                Writer::new(&cpu_buffer.buffer, here).append_record(head, payload)
            }
            None => Appended::Interrupted,
        };
        if appended == Appended::Done {
            return Direct::Written;
        }
        self.record_elsewhere(appended, only, id, defined, about, payload, drop_if_full)
    }

    /// Each part is an argument: none of them then has to be in memory before.
    #[cold]
    #[inline(never)]
    #[allow(clippy::too_many_arguments)]
    fn record_elsewhere(
        &self,
        appended: Appended,
        only: Option<usize>,
        id: u16,
        defined: Option<&Defined>,
        about: Option<u32>,
        payload: &[u8],
        drop_if_full: bool,
    ) -> Direct {
        let no_room = appended == Appended::Elsewhere;
        if no_room && drop_if_full && self.drop_here(only, RECORD_OVERHEAD + payload.len()) {
            return Direct::Full;
        }
        let content = Content::Record(RecordOf { id, defined, about }, payload);
        self.write_elsewhere(TRIES_MAX, appended, only, content, drop_if_full)
    }

    /// Returns what almost every record needs: its head, and the writing end of the buffer. `None`: there is more to look
    /// at.
    #[inline(always)]
    pub(super) fn admit_record_quickly(
        &self,
        only: Option<usize>,
        of: RecordOf<'_>,
        payload: &[u8],
    ) -> Option<(u64, Writer<'_, impl Executor + use<>>)> {
        if payload.len() > self.record_max() {
            return None;
        }
        let (cpu_buffer, here) = self.here_by_c_library(only)?;
        let tid = self.attachment.has_noted(of.about, cpu_buffer.buffer.threads_if_quick()?)?;
        let head = head(of.id_in(self.instance)?, tid, payload);
        Some((head, Writer::new(&cpu_buffer.buffer, here)))
    }

    /// Returns what a record needs, and notes its thread. `None`: there is more to look at.
    pub(super) fn admit_record<'a, R: Executor>(
        &self,
        place: impl FnOnce() -> Option<(&'a CpuBuffer, R)>,
        of: RecordOf<'_>,
        payload: &[u8],
    ) -> Option<(u64, &'a CpuBuffer, R)> {
        if payload.len() > self.record_max() {
            return None;
        }
        let this = ThisThread::known()?;
        let (cpu_buffer, here) = place()?;
        let tid = of.about.unwrap_or_else(|| self.attachment.number_in(this));
        if !self.attachment.knows(this.generation(), tid, &cpu_buffer.buffer) {
            return None;
        }
        Some((head(of.id_in(self.instance)?, tid, payload), cpu_buffer, here))
    }

    /// Writes like [`DirectBuffers::write`], but calls `subbuf_start` before a sub-buffer begins.
    #[inline(always)]
    pub(crate) fn write_if(&self, message: &[u8], subbuf_start: &mut CpuSubbufStart<'_>) -> Direct {
        if message.len() > DIRECT_MAX {
            return self.refuse(message);
        }
        let Some((cpu_buffer, here)) = self.here(None) else { return self.refuse(message) };
        match Writer::new(&cpu_buffer.buffer, here).append(message) {
            Appended::Done => Direct::Written,
            _ => self.write_elsewhere_if(message, subbuf_start),
        }
    }

    /// Returns why a message is not even tried, and counts one that is too big.
    #[cold]
    #[inline(never)]
    fn refuse(&self, message: &[u8]) -> Direct {
        self.write_elsewhere(0, Appended::Interrupted, None, Content::Bytes(message), true)
    }

    #[inline(never)]
    fn write_elsewhere_if(&self, message: &[u8], subbuf_start: &mut CpuSubbufStart<'_>) -> Direct {
        if self.is_over() {
            return Direct::Detached;
        }
        if self.is_timed() {
            return Direct::OtherKind;
        }
        for _ in 0..TRIES_MAX {
            let Some((cpu_buffer, here)) = self.here(None) else { return Direct::WrongCpu };
            let cpu = self.number(cpu_buffer);
            let callback: &mut SubbufStart<'_> = &mut |switching| subbuf_start(cpu, switching);
            let writer = Writer::new(&cpu_buffer.buffer, here);
            match writer.append(message) {
                Appended::Done => return Direct::Written,
                Appended::Interrupted => continue,
                Appended::Elsewhere | Appended::Dropped => {}
            }
            if let Attempt::Done(outcome) = writer.write_elsewhere_if(message, Some(callback)) {
                return self.settle(cpu_buffer, here, outcome, message.len(), true);
            }
        }
        Direct::NeedsSocket
    }

    /// Continues with a message that was not simply appended, perhaps on another CPU.
    #[inline(never)]
    fn write_elsewhere(
        &self,
        tries_max: u32,
        appended: Appended,
        only: Option<usize>,
        content: Content<'_>,
        drop_if_full: bool,
    ) -> Direct {
        if self.is_over() {
            return Direct::Detached;
        }
        match self.admit(only, content) {
            Admitted::As(form) => self.write_form(tries_max, appended, only, form, drop_if_full),
            Admitted::OfChild(form) => {
                match self.write_form(tries_max, Appended::Interrupted, only, form, drop_if_full) {
                    // The child should get its own connection, and with it another number.
                    Direct::Written => Direct::WrittenUnheard,
                    direct => direct,
                }
            }
            Admitted::No(direct) => direct,
        }
    }

    /// Decides about a message, and counts one that is too big for the channel.
    fn admit<'a>(&self, only: Option<usize>, content: Content<'a>) -> Admitted<'a> {
        let Some((cpu_buffer, here)) = self.here(only) else { return Admitted::No(Direct::WrongCpu) };
        let buffer = &cpu_buffer.buffer;
        let is_record = matches!(content, Content::Record(..));
        if is_record && !self.is_timed() {
            return Admitted::No(Direct::OtherKind);
        }
        let longest = if self.is_timed() { self.record_max() } else { buffer.geometry().subbuf_size() };
        if content.len() > longest.min(MESSAGE_MAX) {
            count_in(buffer, here, |block| &block.too_big);
            buffer.note_too_big(self.space_of(content.len()));
            return Admitted::No(Direct::TooBig);
        }
        if !self.is_timed() {
            let is_short = content.len() <= DIRECT_MAX;
            return if is_short {
                Admitted::As(Form::Bare(content.payload()))
            } else {
                Admitted::No(Direct::NeedsSocket)
            };
        }
        let this = ThisThread::find();
        let tid = content.about().unwrap_or_else(|| self.attachment.number_in(this));
        let Some(form) = content.stamped(self.instance, tid) else {
            count_dropped(buffer, here, 0); // not for lack of room
            return Admitted::No(Direct::NotDefined);
        };
        match self.attachment.introduce(this, tid, buffer) {
            Introduced::Known => Admitted::As(form),
            Introduced::Child => Admitted::OfChild(form),
            Introduced::Refused => Admitted::No(Direct::WrongCpu),
        }
    }

    /// Writes an admitted message.
    fn write_form(
        &self,
        tries_max: u32,
        appended: Appended,
        only: Option<usize>,
        form: Form<'_>,
        drop_if_full: bool,
    ) -> Direct {
        let mut append_first = appended == Appended::Interrupted;
        for _ in 0..tries_max {
            let Some((cpu_buffer, here)) = self.here(only) else { return Direct::WrongCpu };
            let writer = Writer::new(&cpu_buffer.buffer, here);
            let attempt = if append_first { form.try_write(&writer) } else { form.write_elsewhere(&writer) };
            match attempt {
                Attempt::Done(outcome) => {
                    return self.settle(cpu_buffer, here, outcome, form.len(), drop_if_full);
                }
                Attempt::Interrupted | Attempt::Located => append_first = true,
            }
        }
        Direct::NeedsSocket
    }

    /// Writes a message that is [`Direct::NeedsSocket`], when no daemon can write it.
    #[cold]
    pub(crate) fn insist(&self, only: Option<usize>, content: Content<'_>, drop_if_full: bool) -> Direct {
        match content {
            // It is long for a direct write, and tried all the same.
            Content::Bytes(message) if !self.is_timed() && message.len() <= MESSAGE_MAX => {
                if self.is_over() {
                    return Direct::Detached;
                }
                let form = Form::Bare(message);
                self.write_form(INSISTENT_TRIES_MAX, Appended::Interrupted, only, form, drop_if_full)
            }
            _ => {
                self.write_elsewhere(INSISTENT_TRIES_MAX, Appended::Interrupted, only, content, drop_if_full)
            }
        }
    }

    /// Returns the bytes that a message with a payload of `len` bytes takes in a sub-buffer.
    fn space_of(&self, len: usize) -> usize {
        len.saturating_add(if self.is_timed() { RECORD_OVERHEAD } else { 0 })
    }

    /// Completes a try that was not interrupted: wakes, counts, and returns the result.
    /// `len` is the length of the message's payload.
    #[inline(never)]
    fn settle<R: Executor>(
        &self,
        cpu_buffer: &CpuBuffer,
        here: R,
        outcome: Outcome,
        len: usize,
        drop_if_full: bool,
    ) -> Direct {
        match outcome.placed {
            WriteResult::Written => {
                // Only after a switch that ended a sub-buffer. A waiter waits for an ended one, and a ring without one
                // would use up its arming.
                if outcome.switched {
                    self.after_switch(&cpu_buffer.buffer);
                    if self.doorbell.is_cut() {
                        return Direct::WrittenUnheard;
                    }
                }
                Direct::Written
            }
            WriteResult::Full => {
                if drop_if_full {
                    count_dropped(&cpu_buffer.buffer, here, self.space_of(len));
                }
                if outcome.switched {
                    self.after_switch(&cpu_buffer.buffer);
                } else {
                    self.after_refusal(cpu_buffer);
                }
                Direct::Full
            }
            WriteResult::TooBig => {
                count_in(&cpu_buffer.buffer, here, |block| &block.too_big);
                cpu_buffer.buffer.note_too_big(self.space_of(len));
                if outcome.switched {
                    self.after_switch(&cpu_buffer.buffer);
                } else {
                    self.after_refusal(cpu_buffer);
                }
                Direct::TooBig
            }
            WriteResult::Closed => {
                self.end();
                Direct::Closed
            }
        }
    }

    /// Counts a message of `len` bytes, 0 if unknown, that is too big even for [`Self::write`].
    /// False: this thread does not write there.
    pub(crate) fn count_too_big(&self, only: Option<usize>, len: usize) -> bool {
        let place = self.here(only);
        if let Some((cpu_buffer, here)) = place {
            count_in(&cpu_buffer.buffer, here, |block| &block.too_big);
            cpu_buffer.buffer.note_too_big(self.space_of(len));
        }
        place.is_some()
    }

    /// Counts a message whose tries were all interrupted.
    #[cold]
    pub(crate) fn count_contended(&self, only: Option<usize>) {
        if let Some((cpu_buffer, _)) = self.here(only) {
            cpu_buffer.buffer.count_contended(1);
        }
    }

    /// Puts the caller into a timed channel's table of threads.
    pub(crate) fn note_thread(&self, tid: Option<u32>) {
        if let Some(cpu_buffer) = self.cpu_buffers.all().first() {
            self.attachment.note(tid.unwrap_or(ThisThread::find().id()), &cpu_buffer.buffer);
        }
    }
}

/// Returns [`Direct::Full`], in a way that keeps the compiler from setting it, for each message, before the sequence that
/// may drop it.
#[inline(always)]
fn full() -> Direct {
    black_box(());
    Direct::Full
}

/// Counts a message in a buffer: in the given counter if the thread is still on its CPU.
fn count_in<R: Executor>(buffer: &Buffer, here: R, counter: impl FnOnce(&BufferBlock) -> &AtomicU64) {
    if !Writer::new(buffer, here).count(1, counter) {
        buffer.count_dropped_elsewhere(1);
    }
}

/// Counts a dropped message that would have taken `len` bytes: on its CPU if the thread is still there.
fn count_dropped<R: Executor>(buffer: &Buffer, here: R, len: usize) {
    if !Writer::new(buffer, here).count_dropped(len) {
        buffer.count_full_elsewhere(len);
    }
}
