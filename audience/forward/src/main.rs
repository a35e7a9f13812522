//! `relay-forward`: forwards sub-buffers of relay channels into a stream of NATS JetStream, and reads them.
//!
//! ```text
//! options.rs    the command line
//! message.rs    subjects and headers: what both directions agree on, see audience/forward/FORMAT.md
//! server.rs     the connection to the server
//! send.rs       --to
//! read.rs       --from
//! ```

mod error;
mod message;
mod options;
mod output;
mod read;
mod send;
mod server;

use std::fmt::Display;
use std::process::ExitCode;

use audience_common::error::Failure as Common;
use audience_common::options::end_without_options;
use audience_common::signals::die_of;

use crate::options::Options;
use crate::read::error::Failure;

fn main() -> ExitCode {
    let options = match Options::of_process() {
        Ok(options) => options,
        Err(said) => return end_without_options(&said, output::say),
    };
    // One of the two directions, by the group of the options.
    match &options.to {
        Some(servers) => send::run(servers, &options).map_or_else(failed, |()| ExitCode::SUCCESS),
        None => match read::run(&options) {
            // The reader of our output has what it wants, as in `relay-forward --from ... | head`.
            Ok(()) | Err(Failure::Common(Common::OutputClosed)) => ExitCode::SUCCESS,
            Err(Failure::Common(Common::Interrupted(signal))) => die_of(signal),
            Err(failure) => failed(failure),
        },
    }
}

fn failed(why: impl Display) -> ExitCode {
    output::say(why);
    ExitCode::FAILURE
}
