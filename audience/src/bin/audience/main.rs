//! `audience`: reads a relay channel's per-CPU files to standard output, and consumes them.
//!
//! It does what the classic audience.c does: mounts if needed, counts the CPUs, reads each `cpuN` to its end, and
//! unmounts what it mounted. With `--follow` it reads until it is interrupted. With `--snapshot` it consumes nothing.
//! With `--state` it reads the buffers that a dead daemon left.
//!
//! It opens, polls and reads files, as any program may. Only `audience record`, which writes a file for each CPU, maps
//! the buffers if the daemon shares them, by the library of this package.

mod amount;
mod channel_files;
mod convert;
mod drain;
mod error;
mod exec;
mod follow;
mod losses;
mod monitor;
mod mount;
mod options;
mod output;
mod panic_point;
mod post_mortem;
mod read_buffer;
mod record;
mod report;
mod status;
mod timed;
#[cfg(feature = "top")]
mod top;
mod unread;
mod wait_for_channel;
mod watch;

use std::process::ExitCode;

use audience_common::options::end_without_options;
use audience_common::signals;

use crate::error::Failure;
use crate::options::{Action, Options};

fn main() -> ExitCode {
    // If this fails, the limit ends the program, as it would end any program.
    let _ = relay::system::signals::report_size_limit();
    let options = match Options::read() {
        Ok(options) => options,
        Err(said) => return end_without_options(&said, output::say),
    };
    if let [program, args @ ..] = options.program.as_slice() {
        let error = exec::exec(program, args);
        output::say(&error);
        return ExitCode::from(error.status());
    }
    // Before anything is mounted or read.
    if options.action.is_none()
        && let Err(failure) = output::check()
    {
        output::say(failure);
        return ExitCode::FAILURE;
    }
    let result = match (&options.action, &options.trace, &options.state) {
        (Some(Action::Record(options)), ..) => record::run(options),
        (Some(Action::Convert(options)), ..) => convert::run(options),
        (Some(Action::Report(options)), ..) => report::run(options),
        (Some(Action::Watch(options)), ..) => watch::run(options),
        (Some(Action::Status(options)), ..) => status::run(options),
        #[cfg(feature = "top")]
        (Some(Action::Top(options)), ..) => top::run(options),
        (None, ..) if options.list => status::list(&options.what.mount),
        (None, Some(dir), _) => timed::one_shot::trace(dir, &options.what, &options.show),
        (None, None, Some(path)) => post_mortem::run(path.as_deref(), &options.what, &options.show),
        (None, None, None) if options.follow => follow::run(&options),
        (None, None, None) => drain::run(&options),
    };
    match result {
        // The reader of our output has what it wants, as in `audience | head`: no reason to complain.
        Ok(()) | Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(Failure::Interrupted(signal)) => signals::die_of(signal),
        Err(failure) => {
            output::say(&failure);
            ExitCode::FAILURE
        }
    }
}
