//! The hook that keeps a program's panics.

use std::backtrace::Backtrace;
use std::panic::{self, PanicHookInfo};
use std::thread;

use relay::trace::level::Level;

use crate::builder::Builder;
use crate::frontend::late::{FrontendError, Late};

/// Target of the records.
const TARGET: &str = "panic";

/// Writes each panic of the program into a timed channel, with its backtrace, and then calls the hook before this one.
///
/// `channel` is a name, of the relayfs that `$RELAYFS` names, else of /mnt/relay; or a builder. The record is of level
/// ERROR and target `panic`. What is longer than a record is cut.
pub fn panic_hook(channel: impl Into<Builder>) -> Result<(), FrontendError> {
    let late = Late::new(channel.into(), None)?;
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if let Some(channel) = late.channel() {
            // A panic has no caller that an error could go to.
            let _ = channel.log(Level::Error, TARGET, &description(info));
        }
        before(info);
    }));
    Ok(())
}

fn description(info: &PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let thread = thread.name().unwrap_or("<unnamed>");
    let place = info.location().map(|location| format!(" at {location}")).unwrap_or_default();
    let backtrace = Backtrace::force_capture();
    let message = info.payload_as_str().unwrap_or("a value that is no text");
    format!("thread '{thread}' panicked{place}: {message}\n{backtrace}")
}
