//! `take/cpuN`: a file with a copy of a buffer's unread data, consumed when it was read.
//!
//! The first open makes the copy. All programs that open the file meanwhile share the copy, and the last close frees
//! it. `delivered.rs` records which bytes programs get. When one open file has got all bytes, the daemon gives back the
//! range of the stream that the copy covers, once.
//!
//! From then on, or when all that have opened the file have closed it, the file's name means another inode with another
//! copy. Programs that still have the old file open see it unchanged.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use nix::sys::memfd::{MFdFlags, memfd_create};
use relay::memory::lent::Lent;
use relay::ring::reader::Taken;

use crate::channel::ChannelRef;
use crate::channel::delivered::{Delivered, Ended};
use crate::channel::open_copy::{CopyRef, CopyUse};
use crate::channel::timed::packets::Marks;
use crate::policy::quota::{Quota, Reservation, USED_UP};
use crate::process::killed::{is_killed, process_of};

/// Number of numbers for the copies of a buffer.
///
/// They begin at 0, are used again, and are a part of inode numbers.
pub(crate) const N_COPIES: u32 = 1 << 10;

/// A copy of a buffer's unread data, and which of its bytes programs have got.
pub(crate) struct Take {
    channel: ChannelRef,
    cpu: usize,
    /// The copy's number: a part of the inode number.
    copy: u32,
    file: File,
    len: u64,
    mtime: SystemTime,
    taken: Taken,
    delivered: Mutex<Delivered>,
    _memory: Reservation,
}

/// The open copies of a buffer.
#[derive(Default)]
pub(crate) struct TakeSlot {
    copies: Mutex<Copies>,
}

#[derive(Default)]
struct Copies {
    /// The copy that the file's name means now. It may not be made yet.
    current: (u32, CopyRef<Take>),
    /// Earlier copies that are still open. Programs can open them again by `/proc/PID/fd`.
    earlier: Vec<(u32, CopyRef<Take>)>,
    consumed: Option<Consumed>,
}

/// Size and time of the copy that was consumed last.
///
/// Some programs call stat(2) again on a file that they have just copied. They throw their copy away if size or time
/// have changed. So the process that consumed the file finds both under the file's name, until it opens that name
/// again.
#[derive(Clone, Copy)]
struct Consumed {
    /// A number that no copy has: the next open is of another copy.
    number: u32,
    by: u32,
    len: u64,
    mtime: SystemTime,
}

impl Take {
    /// Opens a buffer's copy number `copy`: shares the copy if it is open, or makes it.
    ///
    /// Runs on the copier's thread, which alone makes copies, one after another. Fails with an errno: ESTALE if the file's
    /// name means another copy by now, ENOMEM if there is no memory for the copy.
    pub(crate) fn open(
        memory: &Arc<Quota>,
        channel: &ChannelRef,
        cpu: usize,
        copy: u32,
        thread: u32,
    ) -> Result<CopyUse<Take>, i32> {
        let slot = channel.take_slot(cpu);
        let found = slot.lock().find(copy).ok_or(libc::ESTALE)?;
        if let Some(shared) = found.share(thread) {
            return Ok(shared);
        }
        if !slot.is_current(copy) {
            return Err(libc::ESTALE);
        }
        let (take, found) = CopyUse::new(Take::make(memory, channel, cpu, copy)?, thread);
        slot.lock().current.1 = found;
        Ok(take)
    }

    fn make(memory: &Arc<Quota>, channel: &ChannelRef, cpu: usize, copy: u32) -> Result<Take, i32> {
        let no_memory = |why: &dyn fmt::Display| {
            log::warn!("channel {}: no memory for take/cpu{cpu}: {why}", channel.name());
            libc::ENOMEM
        };
        let used_up = |_| no_memory(&USED_UP);
        let mtime = channel.size_and_mtime(cpu).1;
        let mut taken = channel.read_side(cpu).reader.take();
        let mut memory = memory.claim(0, taken.max()).map_err(used_up)?;
        let new_file = || {
            let file = memfd_create(c"relayfs-take", MFdFlags::MFD_CLOEXEC);
            file.map(File::from).map_err(|errno| errno as i32)
        };
        let file = new_file()?;
        let mut part = Vec::new();
        part.try_reserve_exact(taken.max().min(2 * channel.geometry().subbuf_size()))
            .map_err(|error| no_memory(&error))?;
        let mut marks = Marks::default();
        loop {
            part.clear();
            // The lock is released after each sub-buffer: the writer and the socket's thread may wait for it.
            let side = channel.read_side(cpu);
            let more = side.reader.take_part(&mut taken, &mut part);
            let from = taken.len() - part.len();
            if channel.timed().is_some() {
                marks.add(from, part.len(), side.reader.take_marks(&taken, part.len()));
            }
            drop(side);
            file.write_all_at(&part, from as u64).map_err(|error| no_memory(&error))?;
            if !more {
                break;
            }
        }
        if channel.is_broken() {
            return Err(libc::EIO);
        }
        let (file, len) = match channel.timed() {
            None => (file, taken.len() as u64),
            Some(timed) => {
                memory.grow(marks.packets_max()).map_err(used_up)?;
                let packets = new_file()?;
                let mut len = 0;
                let part = |range: Range<usize>| {
                    let mut bytes = vec![0; range.len()];
                    file.read_exact_at(&mut bytes, range.start as u64).map_err(|error| no_memory(&error))?;
                    Ok(bytes.into())
                };
                marks.packets(channel, timed, cpu, part, |packet| {
                    packets.write_all_at(packet, len).map_err(|error| no_memory(&error))?;
                    len += packet.len() as u64;
                    Ok::<(), i32>(())
                })?;
                (packets, len)
            }
        };
        file.set_len(len).map_err(errno_of)?;
        memory.shrink(len as usize);
        let delivered = Mutex::new(Delivered::new(len));
        Ok(Take { channel: channel.clone(), cpu, copy, file, len, mtime, taken, delivered, _memory: memory })
    }

    /// Returns the stream position of the copy's first byte.
    fn begin(&self) -> u64 {
        let [kept, from_ring] = self.taken.ranges();
        if kept.is_empty() { from_ring.start } else { kept.start }
    }

    /// Returns the file with the copy, for the kernel to map.
    pub(crate) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Returns the channel and the buffer of the copy.
    pub(crate) fn buffer(&self) -> (&ChannelRef, usize) {
        (&self.channel, self.cpu)
    }

    /// Serves read(2) of a process on open file number `file`.
    ///
    /// Passes bytes, or an errno, to `reply`, once.
    pub(crate) fn read(
        &self,
        file: u64,
        process: u64,
        at: u64,
        count: usize,
        reply: impl FnOnce(Result<Lent<'_>, i32>),
    ) {
        let count = self.len.saturating_sub(at).min(count as u64);
        let mut bytes = Vec::new();
        if bytes.try_reserve_exact(count as usize).is_err() {
            return reply(Err(libc::ENOMEM));
        }
        bytes.resize(count as usize, 0);
        if let Err(error) = self.file.read_exact_at(&mut bytes, at) {
            return reply(Err(errno_of(error)));
        }
        // Before the reply: as soon as the process has the reply, it can close the file.
        self.delivered().add(file, process, at..at + count);
        reply(Ok(Lent::from(&bytes[..])));
    }

    /// Handles a thread's close of a descriptor of open file number `file`, or its process's end.
    ///
    /// Returns whether a batch waits for room that this makes.
    pub(crate) fn flush(&self, file: u64, process: u64, thread: u32) -> bool {
        let mut delivered = self.delivered();
        if !delivered.has_read(file, process) {
            return false; // most processes that close have only inherited the descriptor
        }
        let ended = if is_killed(thread) { Ended::Killed } else { Ended::Closed };
        let all = delivered.close(file, process, ended);
        drop(delivered);
        all && self.consume(process_of(thread).unwrap_or(thread))
    }

    /// Called when all that opened the copy have closed it. Others may still have it open.
    pub(crate) fn renew_name(&self) {
        self.channel.take_slot(self.cpu).lock().renew(self.copy);
    }

    /// Handles the last close of open file number `file`.
    pub(crate) fn release(&self, file: u64) {
        self.delivered().forget(file);
    }

    /// Gives back the copy's range after process `by` has closed it.
    ///
    /// Returns whether a batch waits for the room.
    fn consume(&self, by: u32) -> bool {
        if self.channel.is_broken() {
            return false;
        }
        let mut side = self.channel.read_side(self.cpu);
        let before = side.reader.position();
        let freed = side.reader.consume_taken(&self.taken);
        if side.reader.position() != before {
            side.reader.note_losses();
        }
        let room = freed && std::mem::take(&mut side.parked);
        drop(side);
        let mut copies = self.channel.take_slot(self.cpu).lock();
        copies.renew(self.copy);
        copies.consumed =
            copies.unused().map(|number| Consumed { number, by, len: self.len, mtime: self.mtime });
        room
    }

    fn delivered(&self) -> MutexGuard<'_, Delivered> {
        self.delivered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TakeSlot {
    /// Returns the number of the copy that the file's name means now.
    ///
    /// `read_to` is the reader's position in the stream. If other readers have read a part of the open copy, no more
    /// programs share that copy.
    pub(crate) fn current(&self, read_to: u64) -> u32 {
        // Dropped without the lock: the copy may be the last holder of its channel.
        let open = self.lock().current.1.get();
        let mut copies = self.lock();
        if let Some(open) = open.as_ref().filter(|open| open.begin() < read_to) {
            copies.renew(open.copy);
        }
        copies.current.0
    }

    /// Returns what the name means for a thread of the process that consumed the last copy.
    pub(crate) fn consumed_by(&self, thread: u32) -> Option<u32> {
        let consumed = self.lock().consumed?;
        (process_of(thread) == Some(consumed.by)).then_some(consumed.number)
    }

    /// Returns size and time of an open copy, or of the one that was consumed last.
    pub(crate) fn stat(&self, copy: u32) -> Option<(u64, SystemTime)> {
        let copies = self.lock();
        if let Some(consumed) = copies.consumed.filter(|consumed| consumed.number == copy) {
            return Some((consumed.len, consumed.mtime));
        }
        let take = copies.get(copy).and_then(CopyRef::get);
        drop(copies);
        take.map(|take| (take.len, take.mtime))
    }

    /// Returns whether the file's name means copy number `copy`, which may not be made yet.
    pub(crate) fn is_current(&self, copy: u32) -> bool {
        self.lock().current.0 == copy
    }

    fn lock(&self) -> MutexGuard<'_, Copies> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Copies {
    /// Finds a copy that is open, or that the name means.
    fn get(&self, copy: u32) -> Option<&CopyRef<Take>> {
        let mut all = self.earlier.iter().chain([&self.current]);
        Some(&all.find(|(number, _)| *number == copy)?.1)
    }

    /// Finds a copy for an open.
    fn find(&mut self, copy: u32) -> Option<CopyRef<Take>> {
        if self.consumed.is_some_and(|consumed| consumed.number == copy) {
            self.consumed = None;
        }
        self.get(copy).cloned()
    }

    /// Lets the name mean another copy, if it still means copy number `copy`.
    ///
    /// If every number is in use, which takes as many open files, the name keeps its meaning.
    fn renew(&mut self, copy: u32) {
        self.earlier.retain(|(_, take)| take.is_open());
        if self.current.0 == copy
            && let Some(next) = self.unused()
        {
            self.earlier.push(std::mem::replace(&mut self.current, (next, CopyRef::default())));
        }
    }

    /// Returns an unused number, as far as possible from the numbers used last.
    fn unused(&self) -> Option<u32> {
        let consumed = self.consumed.map(|consumed| consumed.number);
        let used = |number: u32| {
            number == self.current.0
                || consumed == Some(number)
                || self.earlier.iter().any(|(earlier, _)| *earlier == number)
        };
        let last = self.current.0.max(consumed.unwrap_or(0));
        (1..N_COPIES).map(|n| (last + n) % N_COPIES).find(|number| !used(*number))
    }
}

fn errno_of(error: io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
