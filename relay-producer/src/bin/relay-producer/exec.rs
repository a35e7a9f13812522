//! `--exec`: runs a program, passes its output on, and keeps each line.
//!
//! ```text
//! child     the program: how it starts, how its end becomes this command's
//! signals   what is forwarded to the program
//! pump      a stream of its output
//! recorder  where its lines are kept
//! ```

mod child;
mod pump;
mod recorder;
mod signals;

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::thread;

use nix::sys::eventfd::EventFd;
use nix::sys::signal::{Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use relay_producer::Stream;

use self::child::{Inherited, Running};
use self::pump::Pump;
use self::recorder::Recorder;
use crate::cli::Options;
use crate::say;

/// Exit status of a shell for a program that cannot be run.
const NOT_RUNNABLE: u8 = 126;
/// Exit status of a shell for a program that is missing.
const MISSING: u8 = 127;
/// What a shell adds to a signal's number.
const BY_SIGNAL: i32 = 128;

/// What has happened to the program.
enum Change {
    /// A terminal's user has stopped it.
    Stopped,
    /// It has ended.
    Ended(WaitStatus),
}

/// Runs the program, and returns its exit status. If a signal ends the program, that ends this process as well.
pub(crate) fn run(options: &Options, program: &OsStr, args: &[OsString]) -> ExitCode {
    let taken = signals::taken();
    let started = Inherited::replace(&taken).and_then(|inherited| {
        Ok((inherited, SignalFd::with_flags(&taken, SfdFlags::SFD_CLOEXEC)?, stop_event()?))
    });
    let (inherited, signals, stop) = match started {
        Ok(started) => started,
        Err(errno) => {
            say(&format!("cannot take signals: {errno}"));
            return ExitCode::from(NOT_RUNNABLE);
        }
    };
    let recorder = Recorder::new(options, program);
    let Running { child, stdout, stderr } = match child::start(program, args, inherited) {
        Ok(running) => running,
        Err(error) => {
            say(&format!("{}: cannot run it: {error}", program.display()));
            let is_missing = error.kind() == ErrorKind::NotFound;
            return ExitCode::from(if is_missing { MISSING } else { NOT_RUNNABLE });
        }
    };
    let recorder = recorder.of_process(child.id());
    let mut pumps = [Pump::new(Stream::Stdout, stdout), Pump::new(Stream::Stderr, stderr)];
    let program = Pid::from_raw(child.id().cast_signed());
    let status = loop {
        match pass_on(&mut pumps, &recorder, Some(&stop), || watch(program, &signals)) {
            Change::Ended(status) => break status,
            // The shell sees a stopped job only once this process has stopped as well.
            Change::Stopped => {
                let _ = raise(Signal::SIGSTOP);
            }
        }
    };
    if pumps.iter().any(Pump::is_open) {
        remain(&mut pumps, &recorder);
    }
    recorder.finish(exit_status(status));
    end_as(status)
}

fn stop_event() -> nix::Result<EventFd> {
    EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_CLOEXEC)
}

/// Passes the streams on, in a thread each, until `watch` returns and what has come by then is passed on.
/// Without `stop`, until the streams end.
fn pass_on<T>(
    pumps: &mut [Pump; 2],
    recorder: &Recorder<'_>,
    stop: Option<&EventFd>,
    watch: impl FnOnce() -> T,
) -> T {
    let watched = thread::scope(|scope| {
        for pump in pumps.iter_mut().filter(|pump| pump.is_open()) {
            let run = || pump.run(recorder, stop.map(AsFd::as_fd));
            if let Err(error) = thread::Builder::new().spawn_scoped(scope, run) {
                say(&format!("no thread to pass on the program's output: {error}"));
            }
        }
        let watched = watch();
        if let Some(stop) = stop {
            let _ = stop.write(1);
        }
        watched
    });
    // A program that continues after a stop has its output passed on again.
    if let Some(stop) = stop {
        let _ = stop.read();
    }
    watched
}

/// Waits for the program's end, or a stop by its terminal, and forwards signals meanwhile.
fn watch(program: Pid, signals: &SignalFd) -> Change {
    loop {
        match waitpid(program, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::Stopped(_, Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU)) => {
                return Change::Stopped;
            }
            Ok(status @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..))) => return Change::Ended(status),
            _ => {}
        }
        if let Ok(Some(info)) = signals.read_signal() {
            signals::forward(&info, program);
        }
    }
}

/// Makes a process that passes on what others still write to the program's streams.
/// The program has ended, and its caller need not wait for processes that it left running.
fn remain(pumps: &mut [Pump; 2], recorder: &Recorder<'_>) {
    match child::split() {
        Ok(true) => {
            pass_on(pumps, recorder, None, || ());
            std::process::exit(0);
        }
        Ok(false) => {}
        Err(errno) => {
            say(&format!("cannot pass on the output of processes that still run: {errno}"));
        }
    }
}

/// Returns a status as std has it, which reads what wait(2) gives.
fn exit_status(status: WaitStatus) -> ExitStatus {
    ExitStatus::from_raw(match status {
        WaitStatus::Exited(_, code) => code << 8,
        WaitStatus::Signaled(_, signal, _) => signal as i32,
        _ => 0,
    })
}

/// Ends this process as the program has ended.
fn end_as(status: WaitStatus) -> ExitCode {
    match status {
        WaitStatus::Exited(_, code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        WaitStatus::Signaled(_, signal, _) => {
            child::die_by(signal as i32);
            ExitCode::from(u8::try_from(BY_SIGNAL + signal as i32).unwrap_or(u8::MAX))
        }
        _ => ExitCode::FAILURE,
    }
}
