//! The command `relay-producer`: writes arguments or standard input into a channel.

mod cli;
mod exec;
mod input;
mod kernel_module;
mod pieces;
mod wait_mount;

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat};
use relay::cli::one_line::one_line;
use relay::cli::usage_error::of_usage;
use relay::layout::geometry::MESSAGE_MAX;
use relay_producer::{
    Batch, BatchOptions, Channel, Counts, DaemonEvent, Level, OpenError, RequestError, Wait,
};
use thiserror::Error;

use cli::Options;
use input::{Cut, Sink, feed};
use pieces::pieces;

const USAGE: u8 = 2;
const DROPPED: u8 = 3;
/// Bytes of a `log` record besides its target and text.
const LOG_FIXED: usize = 4;

/// The reason for which the command stopped early.
#[derive(Debug, Error)]
enum Failure {
    #[error("{error}{}", open_advice(.error))]
    Open {
        #[from]
        error: OpenError,
    },
    #[error("--chunk={size}: a message of this channel may have {max} bytes")]
    Chunk { size: usize, max: usize },
    #[error("{0}: no messages to read; name a MESSAGE, or redirect it, for instance from /dev/null")]
    NoInput(#[from] relay_stdio::StreamError),
    #[error("cannot read standard input: {0}")]
    Input(#[from] io::Error),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("{cause}; {written} messages had been written")]
    Midway { cause: Box<Failure>, written: u64 },
}

/// Returns the option of this command that helps with a channel that cannot be opened.
fn open_advice(error: &OpenError) -> &'static str {
    match error {
        OpenError::Refused(refused) if refused.errno == Errno::ENOENT as i32 => "; use --create to create it",
        _ => "",
    }
}

fn main() -> ExitCode {
    // If this fails, the limit ends the program by SIGXFSZ.
    let _ = relay::system::signals::report_size_limit();
    let options = match Options::read() {
        Ok(options) => options,
        Err(error) if error.use_stderr() => {
            say(&of_usage(&error.to_string()));
            return ExitCode::from(USAGE);
        }
        Err(help) => {
            return match relay_stdio::print(|| help.print()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(why) => {
                    say(&why);
                    ExitCode::FAILURE
                }
            };
        }
    };
    if let Some(limit) = options.wait_mount
        && let Err(error) = wait_mount::wait(&options.mount(), limit)
    {
        say(&error.to_string());
        return ExitCode::FAILURE;
    }
    if let Some(file) = &options.load {
        let result = kernel_module::run::run(file, &options.mount(), options.duration, options.verbose);
        return match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                say(&error.to_string());
                ExitCode::FAILURE
            }
        };
    }
    if let Some((program, args)) = options.exec.split_first() {
        return exec::run(&options, program, args);
    }
    match run(&options) {
        Ok((Counts { dropped: 0, too_big: 0, .. }, _)) => ExitCode::SUCCESS,
        Ok((counts, max)) => {
            say(&losses(counts, options.wait.unwrap_or_default(), max));
            ExitCode::from(DROPPED)
        }
        Err(failure) => {
            say(&failure.to_string());
            let usage =
                matches!(failure, Failure::Open { error: OpenError::Name(_) | OpenError::Geometry(_) });
            if usage { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// Writes the messages.
/// Returns their counts, and the length of the channel's longest message in bytes.
fn run(options: &Options) -> Result<(Counts, usize), Failure> {
    if options.messages.is_empty() {
        relay_stdio::input()?;
    }
    let channel = open(options, OsStr::new(""))?;
    let geometry = channel.geometry();
    if options.level.is_some() && !geometry.timed() {
        return Err(RequestError::NotTimed.into());
    }
    let max = geometry.payload_max();
    if let Some(size) = options.chunk.filter(|size| *size > max) {
        return Err(Failure::Chunk { size, max });
    }
    let batch = channel.batch(BatchOptions { cpu: options.cpu, wait: options.wait.unwrap_or_default() })?;
    let kind = match options.level {
        Some(level) => Kind::Log(level, options.target.clone().unwrap_or_default()),
        // Chunks are parts of a stream of bytes, not lines.
        None if geometry.timed() && options.chunk.is_none() => Kind::Text,
        None => Kind::Bytes,
    };
    let end = if options.null { 0 } else { b'\n' };
    let mut producer = Producer { batch, kind, end, message_max: max, continues: false, rested: false };
    let tried = if options.messages.is_empty() {
        if is_stream(&io::stdin())? {
            producer.outlive_daemons(options.mount());
        }
        producer.send_input(options)
    } else {
        producer.send_arguments(options)
    };
    let finished = producer.batch.finish();
    let outcome = tried.and(finished.map_err(Failure::from)).and_then(|counts| {
        if options.flush {
            channel.flush()?;
        }
        Ok(counts)
    });
    let written = producer.batch.counts().written;
    outcome.map(|counts| (counts, max)).map_err(|cause| Failure::Midway { cause: Box::new(cause), written })
}

/// Opens the channel, and says so if that is wanted.
fn open(options: &Options, program: &OsStr) -> Result<Channel, Failure> {
    let geometry = options.geometry();
    let channel = Channel::builder(options.mount(), options.channel.as_str())
        .create(geometry.is_some())
        .geometry(geometry.unwrap_or_default())
        .transport(options.transport.into())
        .program(program)
        .open()?;
    if options.verbose {
        let (geometry, n_bufs) = (channel.geometry(), channel.n_bufs());
        let created = if channel.created() { "created" } else { "existing" };
        let buffers = if n_bufs == 1 { "buffer" } else { "buffers" };
        let why = channel.why_socket().map_or(String::new(), |why| format!(" ({why})"));
        say(&format!(
            "{created} channel {}: {geometry}, {n_bufs} {buffers}; transport: {}{why}",
            options.channel,
            channel.transport()
        ));
    }
    if options.asks_for_timed() && !channel.is_timed() {
        say(&format!(
            "channel {} exists, and is raw: --create does not change it; messages are written without time stamps",
            options.channel
        ));
    }
    Ok(channel)
}

/// What becomes of a message.
enum Kind {
    /// The bytes as they are.
    Bytes,
    /// A record of text, without the end of the line.
    Text,
    /// The same with level and target.
    Log(Level, String),
}

/// A batch, and the limit that is reported for messages that are too long.
struct Producer {
    batch: Batch,
    kind: Kind,
    /// The byte that ends a line of input.
    end: u8,
    /// Longest message of the channel, in bytes.
    message_max: usize,
    /// Whether a part of the present line has been written.
    continues: bool,
    /// Whether there was no further input for a while.
    rested: bool,
}

/// Returns whether input is a pipe, a socket or a terminal, where it comes as it is written.
/// The program that writes it would get a SIGPIPE if this one ended with its daemon.
fn is_stream(input: &impl AsFd) -> io::Result<bool> {
    let kind = SFlag::from_bits_truncate(fstat(input)?.st_mode) & SFlag::S_IFMT;
    Ok([SFlag::S_IFIFO, SFlag::S_IFSOCK, SFlag::S_IFCHR].contains(&kind))
}

impl Producer {
    /// Makes the batch wait for the next daemon without limit, and report that.
    fn outlive_daemons(&mut self, mount: PathBuf) {
        let mount = mount.display().to_string();
        self.batch.outlive_daemons(move |event| match event {
            DaemonEvent::Awaited => {
                say(&format!("the relayfsd of {mount} has gone away: waiting for the next one"))
            }
            DaemonEvent::Found => say(&format!("a relayfsd of {mount} is there again: writing on")),
        });
    }

    fn send_arguments(&mut self, options: &Options) -> Result<(), Failure> {
        for message in &options.messages {
            let mut message = message.as_bytes().to_vec();
            if matches!(self.kind, Kind::Bytes) && !options.no_newline {
                message.push(b'\n');
            }
            self.push(&message)?;
        }
        Ok(())
    }

    /// Writes a message without the end of its line, in pieces if it is longer than a record.
    fn push(&mut self, message: &[u8]) -> Result<(), RequestError> {
        let Producer { batch, kind, message_max, .. } = self;
        match kind {
            Kind::Bytes => batch.push(message),
            Kind::Text => pieces(message, *message_max).try_for_each(|piece| batch.push_text(piece)),
            Kind::Log(level, target) => {
                let max = message_max.saturating_sub(LOG_FIXED + target.len());
                pieces(message, max).try_for_each(|piece| batch.push_log(*level, target, piece))
            }
        }
    }

    fn send_input(&mut self, options: &Options) -> Result<(), Failure> {
        let cut = match options.chunk {
            Some(size) => Cut::Every(size),
            None => Cut::After(self.end),
        };
        feed(io::stdin().lock(), cut, MESSAGE_MAX, self)
    }

    /// Looks for the daemon if there was no input for a while.
    fn look_after_rest(&mut self) -> Result<(), RequestError> {
        if std::mem::take(&mut self.rested) { self.batch.look_for_daemon() } else { Ok(()) }
    }

    #[cold]
    fn tell_skipped(&self, number: u64) {
        say(&format!(
            "line {number} skipped: longer than a message of this channel may be, {} bytes",
            self.message_max
        ));
    }
}

impl Sink for Producer {
    type Error = Failure;

    fn message(&mut self, number: u64, message: &[u8]) -> Result<(), Failure> {
        self.look_after_rest()?;
        if matches!(self.kind, Kind::Bytes) {
            if message.len() > self.message_max {
                // Pushed all the same: the daemon counts it if it gets there.
                self.tell_skipped(number);
            }
            return Ok(self.batch.push(message)?);
        }
        let line = message.strip_suffix(&[self.end]).unwrap_or(message);
        // Nothing may be left of a line whose parts have been written.
        let is_over = std::mem::take(&mut self.continues) && line.is_empty();
        if is_over { Ok(()) } else { Ok(self.push(line)?) }
    }

    fn part(&mut self, part: &[u8]) -> Result<bool, Failure> {
        if matches!(self.kind, Kind::Bytes) {
            return Ok(false);
        }
        self.look_after_rest()?;
        self.continues = true;
        self.push(part)?;
        Ok(true)
    }

    fn skipped(&mut self, number: u64) -> Result<(), Failure> {
        self.tell_skipped(number);
        self.batch.count_too_big();
        Ok(())
    }

    fn pause(&mut self) -> Result<(), Failure> {
        self.rested = true;
        Ok(self.batch.send()?)
    }
}

/// Describes the dropped messages, causes and remedies.
/// `max` is the channel's longest message, in bytes.
fn losses(Counts { written, dropped, too_big }: Counts, wait: Wait, max: usize) -> String {
    let mut causes = Vec::new();
    if dropped > 0 {
        let (cause, wait) = match wait {
            Wait::No => ("found the buffer full", ", or use --wait"),
            Wait::AtMost(time) if time.is_zero() => ("found the buffer full", ", or use a longer --wait"),
            Wait::AtMost(_) => ("found no room in time", ", or use a longer --wait"),
            Wait::Forever => ("found no room", ""),
        };
        causes.push(format!("{dropped} {cause} (read it more often, give it more sub-buffers{wait})"));
    }
    if too_big > 0 {
        causes.push(format!("{too_big} longer than a message of this channel may be, {max} bytes"));
    }
    let total = written.saturating_add(dropped).saturating_add(too_big);
    format!("{} of {total} messages dropped: {}", total.saturating_sub(written), causes.join(", "))
}

/// Writes one line to standard error. A failure to write it is ignored.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "relay-producer: {}", one_line(line));
}
