//! `audience`: reads every per-CPU file of a relay channel onto standard output, and thereby consumes it.
//!
//! What the classic audience.c does: mount if needed, count the CPUs, read each `cpuN` to its end, and
//! unmount what it mounted. With `--follow` it goes on reading until it is interrupted. It talks to no daemon
//! and knows no protocol: it opens, polls and reads files, as any program may.

mod channel;
mod failure;
mod follow;
mod losses;
mod mount;
mod once;
mod options;
mod output;
mod signals;
mod unmount;

use std::process::ExitCode;

use clap::Parser;

use crate::failure::Failure;
use crate::options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    let result = if options.follow { follow::run(&options) } else { once::run(&options) };
    match result {
        // Whoever read our output has what they want, as in `audience | head`: no reason to complain.
        Ok(()) | Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(Failure::Interrupted(signal)) => signals::die_of(signal),
        Err(failure) => {
            output::say(&failure);
            ExitCode::FAILURE
        }
    }
}
