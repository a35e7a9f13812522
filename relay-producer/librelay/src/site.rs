//! Places in the program that log: what the macros of `relay.h` make for each of their calls.
//!
//! The first call defines an event for the place, with its level, file and line. Where that is not possible now, the text
//! becomes a `log` record, so that nothing is lost for the want of a definition.

use std::cell::Cell;
use std::time::Duration;

use nix::errno::Errno;
use relay::trace::definition::{NAME_MAX, PLACE_MAX};
use relay_producer::{Channel, Definition, Field, FieldType, Level, RequestError, Value};

use crate::error;
use crate::event::EventClass;
use crate::handle::Handle;
use crate::open::Open;

/// Longest wait for the answer to a definition.
const DEFINE_LIMIT: Duration = Duration::from_secs(1);
/// Least time between two tries to define an event that was refused.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The same behind a daemon that did not answer, since each try waits.
const SILENT_INTERVAL: Duration = Duration::from_secs(10);

thread_local! {
    /// Whether this thread defines an event.
    static IS_DEFINING: Cell<bool> = const { Cell::new(false) };
}

/// A place in the program, and what it says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site<'a> {
    pub(crate) level: Level,
    pub(crate) line: u32,
    pub(crate) file: &'a [u8],
    pub(crate) target: &'a [u8],
}

/// Writes a text as the event of a place. `known` is the event that an earlier call has kept, `keep` gets a new one.
pub(crate) fn write(
    handle: &'static Handle,
    site: &Site<'_>,
    known: Option<&'static EventClass>,
    keep: impl FnOnce(&'static EventClass),
    text: &[u8],
) -> Result<(), Errno> {
    handle.with(|open| {
        // A longer text is cut, which a value of an event is not.
        if text.len() + size_of::<u16>() <= open.channel.geometry().payload_max() {
            let known = known.filter(|class| std::ptr::eq(class.handle, handle));
            let written = known.map(|class| open.events.write(class, &[Value::Str(text)]));
            match written {
                None | Some(Err(Errno::EBADF | Errno::ENOENT)) => {}
                Some(written) => return written,
            }
            // The daemon need not know of a place that is left out. All other ways look by themselves.
            if !open.channel.enabled(site.level, site.target().as_bytes()) {
                return Ok(());
            }
            if let Some(class) = define(handle, open, site) {
                keep(class);
                match open.events.write(class, &[Value::Str(text)]) {
                    Err(Errno::ENOENT) => {}
                    written => return written,
                }
            }
        }
        log(handle, &open.channel, site, text)
    })
}

/// Writes a text with level and target, and without a definition.
fn log(handle: &Handle, channel: &Channel, site: &Site<'_>, text: &[u8]) -> Result<(), Errno> {
    let written = channel.log_bytes(site.level, site.target().as_bytes(), text);
    written.map_err(|error| handle.lost(text.len(), error))
}

/// Defines the event of a place, unless a try has failed shortly before.
///
/// A signal handler that has interrupted a definition of its thread defines nothing: it would wait forever for that.
fn define(handle: &'static Handle, open: &Open, site: &Site<'_>) -> Option<&'static EventClass> {
    if IS_DEFINING.try_with(|is_defining| is_defining.replace(true)).unwrap_or(true) {
        return None;
    }
    let found = define_alone(handle, open, site);
    let _ = IS_DEFINING.try_with(|is_defining| is_defining.set(false));
    found
}

fn define_alone(handle: &'static Handle, open: &Open, site: &Site<'_>) -> Option<&'static EventClass> {
    if !open.next_try.is_due() {
        return None;
    }
    match open.events.define_within(handle, &open.channel, site.definition(), DEFINE_LIMIT) {
        Ok(class) => Some(class),
        Err(RequestError::NotTimed) => None,
        Err(error) => {
            let is_silent = error::of_request(&error) == Errno::ETIMEDOUT;
            open.next_try.put_off(if is_silent { SILENT_INTERVAL } else { RETRY_INTERVAL });
            None
        }
    }
}

impl Site<'_> {
    /// Returns the file's name without directories, and the line.
    fn name(&self) -> String {
        let name = self.file.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        tail(&format!("{}:{}", plain(name), self.line), NAME_MAX).to_owned()
    }

    /// Returns the target, by default the place.
    pub(crate) fn target(&self) -> String {
        if self.target.is_empty() { self.name() } else { head(&plain(self.target), PLACE_MAX).to_owned() }
    }

    fn definition(&self) -> Definition {
        Definition {
            name: self.name(),
            level: Some(self.level),
            target: self.target(),
            file: tail(&plain(self.file), PLACE_MAX).to_owned(),
            line: self.line,
            fields: vec![Field { name: "message".into(), kind: FieldType::Str }],
        }
    }
}

/// Returns a text that a definition can have.
fn plain(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the last `max` bytes of a text, or less: it begins with a character.
fn tail(text: &str, max: usize) -> &str {
    let from = text.len().saturating_sub(max);
    let from = (from..=text.len()).find(|at| text.is_char_boundary(*at));
    &text[from.unwrap_or(text.len())..]
}

/// Returns the first `max` bytes of a text, or less: it ends with a character.
fn head(text: &str, max: usize) -> &str {
    let to = (0..=max.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..to.unwrap_or(0)]
}
