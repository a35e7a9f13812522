//! The thread of one CPU: copies its buffer into its file.
//!
//! ```text
//!   make room in the file --> take a block --> write it --> that was all? --no--> again
//!          ^                                                     | yes
//!          '----- a sub-buffer is finished, or a second is over -'
//! ```
//!
//! A thread that looked again at once would read few messages at a time while it is faster than the writers. So it
//! looks when a sub-buffer is finished, and otherwise once a second.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};

use super::recording::Recording;
use super::source::{Bytes, Source};
use crate::error::{Failure, means_gone};
use crate::wait_for_channel::{BROKEN, LOOK_AGAIN, poll_timeout};

/// Longest time between two looks at a buffer whose sub-buffer does not fill.
const LOOK_AT_LEAST: Duration = Duration::from_secs(1);
/// Most rounds in a row in which a source is ready and gives nothing, before a pause. Empty buffers that are flushed do
/// that, and files that are no buffers do it forever.
const FUTILE_MAX: u32 = 50;

/// Tells all threads to end.
#[derive(Debug)]
pub(crate) struct Halt {
    set: AtomicBool,
    /// Hangs up when the other end is closed.
    hung_up: PipeReader,
    line: Mutex<Option<PipeWriter>>,
}

impl Halt {
    pub(crate) fn new() -> Result<Halt, Failure> {
        let (hung_up, line) = io::pipe().map_err(|error| Failure::system("make a pipe", error))?;
        Ok(Halt { set: AtomicBool::new(false), hung_up, line: Mutex::new(Some(line)) })
    }

    /// Tells the threads to end, from now on.
    pub(crate) fn set(&self) {
        // Release, with the Acquire of `is_set`: the last reads find what was flushed before.
        self.set.store(true, Ordering::Release);
        self.line.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }
}

/// Records until `halt` is set, or the channel has gone, and then takes what is left.
///
/// That rest is limited to `capacity` bytes, up to the end of a message. Without a limit, writers that continue would
/// keep the thread forever.
pub(crate) fn record(
    source: &mut Source,
    recording: &mut Recording<'_>,
    halt: &Halt,
    capacity: u64,
) -> Result<(), Failure> {
    let mut gone = false;
    let mut futile = 0;
    let mut last = 0;
    let mut whole = true;
    loop {
        // Checked before the look, so that the last look sees everything written before.
        let ending = gone || halt.is_set();
        if ending && last >= capacity && (whole || last / 2 >= capacity) {
            return Ok(());
        }
        recording.make_room(source.consumes())?;
        let mut all = true;
        let mut append = |block: Bytes<'_>| {
            (whole, all) = (block.whole, block.all);
            last += if ending { block.bytes.len() as u64 } else { 0 };
            recording.append(&block)
        };
        let found = match source.next(&mut append) {
            Err(Failure::Read { source, .. }) if means_gone(&source) => return Ok(()),
            result => result?,
        };
        futile = if found { 0 } else { futile + 1 };
        if !found && ending {
            return Ok(());
        }
        whole |= !found;
        if all && !ending {
            gone = wait(source, halt, futile < FUTILE_MAX)?;
        }
    }
}

/// Waits for data, the end, or the next look. Returns whether the channel has gone.
fn wait(source: &Source, halt: &Halt, look: bool) -> Result<bool, Failure> {
    let mut fds = vec![PollFd::new(halt.hung_up.as_fd(), PollFlags::empty())];
    fds.extend(look.then(|| PollFd::new(source.as_fd(), PollFlags::POLLIN)));
    match poll(&mut fds, poll_timeout(if look { LOOK_AT_LEAST } else { LOOK_AGAIN })) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(Failure::system("poll", errno)),
    }
    Ok(fds[1..].iter().any(|fd| fd.revents().is_some_and(|events| events.intersects(BROKEN))))
}
