//! `--from`: reads what forwarders put into a stream, and prints it or records it.
//!
//! ```text
//!  stream of the server              a task for each subject                      the main thread
//!  relay.a.app.cpu0  --+-- store --> lane: join, check, add dictionary --\
//!  relay.a.app.cpu1  --+-- store --> lane                               --+--> hub --> merge --> lines
//!  relay.b.app.cpu0  --+-- store --> lane                               --/      \--> recordings, raw bytes
//!                      \-- watch: which subjects have something new (--follow)
//! ```
//!
//! A lane fetches a message at a time, and is a message or two ahead of the merge. So the memory is bounded, and the
//! order over all hosts, channels and CPUs is exact. What a message says is hostile: a lane checks it, says what it
//! refuses, and continues behind it. With -S and -n, `begin.rs` finds the place in the stream from which on lanes read.

mod arrivals;
mod begin;
mod body;
mod calendar;
mod connect;
mod content;
mod delivery;
pub(crate) mod error;
mod feed;
mod hub;
mod known;
mod lane;
mod meaning;
mod packet;
mod print;
mod raw;
mod record;
mod room;
mod selection;
mod stops;
mod store;
mod texts;
mod watch;

use audience_common::output;

use self::error::Failure;
use self::hub::Hub;
use crate::options::Options;

/// Reads as the options say, until all is read or, with `--follow`, until a signal or the end of the output.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    if options.read.record.is_none() {
        output::check()?;
    }
    let mut hub = Hub::open(options)?;
    let done = match &options.read.record {
        Some(dir) => record::run(&mut hub, dir),
        None => print::run(&mut hub, &options.read),
    };
    done?;
    if hub.follow {
        return Ok(());
    }
    if hub.is_created_again()? {
        return Err(Failure::CreatedAgain(options.stream.clone()));
    }
    match hub.n_refused() {
        0 => Ok(()),
        refused => Err(Failure::Refused(refused)),
    }
}
