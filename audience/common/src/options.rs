//! Options that both programs have.

pub mod show;
pub mod when;

use std::process::ExitCode;

use relay::cli::usage_error::of_usage;
pub use show::Show;

/// Exit status for wrong usage.
const USAGE: u8 = 2;

/// Prints the help that was asked for, or says what is wrong with the options. Returns the exit status.
///
/// `said` is what the parser of options gave instead of options, and `say` prints one line on standard error.
pub fn end_without_options(said: &clap::Error, say: impl FnOnce(String)) -> ExitCode {
    if said.use_stderr() {
        say(of_usage(&said.to_string()));
        return ExitCode::from(USAGE);
    }
    match relay_stdio::print(|| said.print()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(why.to_string());
            ExitCode::FAILURE
        }
    }
}
