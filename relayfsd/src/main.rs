//! relayfsd: the kernel's relay channels for ordinary processes, mounted with FUSE.
//!
//! `main` prepares the process, reads the command line, goes into the background, and calls `daemon`.
//! Each module is a room; which room may use which is in the table of `tests/tests/tidy/rooms.rs`.

mod channel;
mod config;
mod daemon;
mod doctor;
mod fuse;
mod monitor;
mod mount;
mod policy;
mod process;
mod registry;
mod socket;
mod state;
mod tree;
mod writers;

use std::ffi::OsString;
use std::process::ExitCode;

use config::mount_helper::Helper;
use config::options::Request;
use nix::sys::stat::{Mode, umask};
use process::daemonize::{Side, Starter};
use process::host_limits::advice;

/// Exit status of wrong usage: for people, and for mount(8).
const USAGE: [u8; 2] = [2, 1];
/// Exit status of a failure: for people, and for mount(8).
const FAILURE: [u8; 2] = [1, 32];

/// Permission bits that the daemon never asks for at a creation.
///
/// Directories and socket need more for other users; the daemon adds that after their creation.
const UMASK: u32 = 0o027;

fn main() -> ExitCode {
    // Cannot fail: all the signals exist.
    let _ = process::signals::prepare();
    // Not the starting process's umask: the daemon creates each file with its final permissions.
    umask(Mode::from_bits_truncate(UMASK));
    let args: Vec<OsString> = std::env::args_os().collect();
    let called = config::mount_helper::read(&args);
    let by_mount = called.is_some();
    let [usage, failure] = [USAGE, FAILURE].map(|status| ExitCode::from(status[usize::from(by_mount)]));
    let helper = match called.unwrap_or(Ok(Helper { args, ..Helper::default() })) {
        Ok(helper) => helper,
        Err(message) => {
            process::daemonize::complain(&format!("{message}; see EXTERNAL HELPERS in mount(8)"));
            return usage;
        }
    };
    if let Err(message) = helper.enter_namespace() {
        process::daemonize::complain(&message);
        return failure;
    }
    let options = match Request::parse(helper.args, helper.sloppy) {
        Ok(Request::Serve(options)) => options,
        Ok(Request::Doctor(asked)) => return doctor::run(&asked),
        Err(error) if error.use_stderr() => {
            process::daemonize::complain(&relay::cli::usage_error::of_usage(&error.to_string()));
            return usage;
        }
        Err(help) => {
            return match relay_stdio::print(|| help.print()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(why) => {
                    process::daemonize::complain(&why);
                    failure
                }
            };
        }
    };
    if helper.fake {
        return ExitCode::SUCCESS;
    }
    if let Err(error) = relay::system::mountinfo::open() {
        process::daemonize::complain(&error.to_string());
        return failure;
    }
    let mut starter = if options.foreground {
        Starter::Foreground
    } else {
        match process::daemonize::into_background() {
            Ok(Side::Daemon(starter)) => starter,
            Ok(Side::Parent(Ok(()))) => return ExitCode::SUCCESS,
            Ok(Side::Parent(Err(reason))) => {
                process::daemonize::complain(&reason);
                return failure;
            }
            Err(error) => {
                process::daemonize::complain(&format!(
                    "cannot go into the background: {error}{}",
                    advice(&error)
                ));
                return failure;
            }
        }
    };
    if let Err(error) = relay::memory::mapping::outlive_truncation() {
        starter.failed(&format!("cannot handle SIGBUS: {error}"));
        return failure;
    }
    match daemon::run(&options, &mut starter) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            starter.failed(&format!("{error}{}", advice(&error)));
            failure
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use crate::config::cli::Cli;

    #[test]
    fn manual_is_current() {
        Cli::command().debug_assert();
        relayfs_manual::check(Cli::command(), 8);
    }
}
