//! relayfsd: the kernel's relay channels for ordinary processes, mounted with FUSE.

mod adopt;
mod assembly;
mod backing;
mod channel;
mod cli;
mod connection;
mod consumed;
mod counts;
mod creator;
mod daemonize;
mod dirs;
mod files;
mod flow;
mod fs;
mod fusermount;
mod kill_point;
mod lane;
mod limits;
mod listener;
mod logging;
mod mount;
mod mount_words;
mod mountinfo;
mod open_file;
mod options;
mod peer;
mod privileges;
mod reading;
mod registry;
mod requests;
mod server;
mod session;
mod shares;
mod sharing;
mod snapshot;
mod tree;
mod writers;

use std::process::ExitCode;

use daemonize::{Side, Starter};
use options::Options;

/// Exit status of wrong usage.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args_os()) {
        Ok(options) => options,
        Err(error) if error.use_stderr() => {
            daemonize::complain(&relay::complaint::of_usage(&error.to_string()));
            return ExitCode::from(USAGE);
        }
        Err(help) => help.exit(),
    };
    let mut starter = if options.foreground {
        Starter::Foreground
    } else {
        match daemonize::into_background() {
            Ok(Side::Daemon(starter)) => starter,
            Ok(Side::Parent(status)) => return status,
            Err(error) => {
                daemonize::complain(&format!("cannot go into the background: {error}"));
                return ExitCode::FAILURE;
            }
        }
    };
    if let Err(error) = relay::shm::outlive_truncation() {
        starter.failed(&format!("cannot handle SIGBUS: {error}"));
        return ExitCode::FAILURE;
    }
    match session::run(&options, &mut starter) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            starter.failed(&error.to_string());
            ExitCode::FAILURE
        }
    }
}
