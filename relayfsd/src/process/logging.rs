//! Logs to standard error in the foreground, to a file or syslog in the background.
//!
//! A record is one line, with control characters escaped: it may have names that peers chose.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use env_logger::{Builder, Env, Target};
use log::{Level, Record};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use relay::cli::one_line::one_line;

use crate::config::options::Options;

/// Where syslogd and journald listen.
const SYSLOG_SOCKET: &str = "/dev/log";
/// The facility "daemon" of syslog(3), shifted into its place.
const SYSLOG_DAEMON: u8 = 3 << 3;

/// Permissions of a new log file: the usual ones of daemons' logs.
const FILE_MODE: u32 = 0o640;

/// The started log.
pub(crate) struct Log {
    file: Option<(PathBuf, LogFile)>,
}

/// Starts logging.
///
/// `RUST_LOG` selects the records; without it warnings and errors, with `-d` all.
/// Records of the log target `quiet` are logged only with `-d`, or if `RUST_LOG` selects them.
pub(crate) fn start(options: &Options, quiet: &str) -> io::Result<Log> {
    let filter = if options.debug { "debug".to_owned() } else { format!("warn,{quiet}=off") };
    let mut builder = Builder::from_env(Env::default().default_filter_or(filter));
    let mut file = None;
    if options.foreground {
        builder.target(Target::Pipe(Box::new(StandardError))).format(|out, record| match record.level() {
            Level::Error | Level::Warn | Level::Info => writeln!(out, "relayfsd: {}", text(record)),
            level => writeln!(out, "relayfsd: {level} {}: {}", record.target(), text(record)),
        });
    } else if let Some(path) = &options.log_file {
        let log_file = LogFile(Arc::new(Mutex::new(open(path)?)));
        file = Some((path.clone(), log_file.clone()));
        builder.target(Target::Pipe(Box::new(log_file))).format(|out, record| {
            let (time, id) = (out.timestamp(), std::process::id());
            writeln!(out, "{time} relayfsd[{id}] {} {}: {}", record.level(), record.target(), text(record))
        });
    } else {
        builder.target(Target::Pipe(Box::new(Syslog { socket: None }))).format(|out, record| {
            let priority = SYSLOG_DAEMON | severity(record.level());
            write!(out, "<{priority}>relayfsd[{}]: {}", std::process::id(), text(record))
        });
    }
    builder.try_init().map_err(io::Error::other)?;
    Ok(Log { file })
}

impl Log {
    /// Opens the log file again, after logrotate(8) has moved it away.
    pub(crate) fn reopen(&self) {
        let Some((path, file)) = &self.file else { return };
        match open(path) {
            Ok(new) => *file.0.lock().unwrap_or_else(PoisonError::into_inner) = new,
            Err(error) => log::error!("cannot reopen {}: {error}", path.display()),
        }
    }
}

/// Opens without waiting, now and later: a FIFO would wait for its reader, and then for room.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(FILE_MODE).custom_flags(libc::O_NONBLOCK);
    options.open(path).map_err(|error| match error.raw_os_error() {
        Some(libc::ENXIO) => io::Error::other("no process reads this FIFO; start its reader first"),
        _ => error,
    })
}

fn text(record: &Record) -> String {
    one_line(&record.args().to_string()).into_owned()
}

/// Returns syslog's number for a level.
fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Standard error. Where a line would wait, it is dropped: a pipe with a slow reader, or a stopped terminal, must not hold up the
/// daemon's threads.
struct StandardError;

impl Write for StandardError {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut stderr = io::stderr();
        let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        // A pipe that is ready has room for PIPE_BUF bytes.
        let is_ready = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
        if is_ready { stderr.write(&line[..line.len().min(libc::PIPE_BUF)]) } else { Ok(line.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Clone)]
struct LogFile(Arc<Mutex<File>>);

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends each line to the system's log, as the datagram that it expects, and never waits.
///
/// A log that does not listen, or is too slow, must not stop the daemon. The protocol is only a datagram with the
/// priority in front, so this needs no crate.
struct Syslog {
    socket: Option<UnixDatagram>,
}

impl Syslog {
    fn try_send(&mut self, line: &[u8]) -> io::Result<()> {
        let socket = match &self.socket {
            Some(socket) => socket,
            None => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(SYSLOG_SOCKET)?;
                socket.set_nonblocking(true)?;
                self.socket.insert(socket)
            }
        };
        socket.send(line).map(drop)
    }
}

impl Write for Syslog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.try_send(line) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                // The system's log was restarted and has a new socket, or there is no system's log.
                self.socket = None;
                let _ = self.try_send(line);
            }
            _ => {}
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_with_control_characters_is_one_line() {
        let line = |args: std::fmt::Arguments<'_>| text(&Record::builder().args(args).build());
        assert_eq!(line(format_args!("channel {}", "ä")), "channel ä");
        assert_eq!(line(format_args!("{}", "a\nb\x1b[0m")), "a\\nb\\u{1b}[0m");
    }

    #[test]
    fn missing_system_log_is_no_error() {
        assert_eq!(Syslog { socket: None }.write(b"<30>relayfsd: test").unwrap(), 18);
    }
}
