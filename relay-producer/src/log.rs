//! A logger for the crate `log`, which writes into a timed channel.
//!
//! ```no_run
//! relay_producer::log::init("app/log")?;
//! log::info!(target: "app::db", rows = 3; "connected");
//! # Ok::<(), relay_producer::FrontendError>(())
//! ```
//!
//! Each message becomes a `log` record with its level and its target. Key-value pairs stand behind the text, as
//! `key=value`. Where the buffers are shared, a payload of up to 256 bytes takes no memory. A message never waits for
//! the daemon. Without a daemon the program runs, messages are lost, and at most one a second looks for a daemon.
//!
//! **Levels.** Directives in the channel's file `level` change what is written while the program runs. They raise the
//! crate's [`max_level`](::log::max_level) as far as a target needs it, and lower it where all targets allow. When there
//! are none any more, it is again what it was before. A disabled message costs what it costs by `log` alone.

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use ::log::kv::{self, Key, VisitSource};
use ::log::{LevelFilter, Log, Metadata, Record};
use relay::trace::directives::Limit;
use relay::trace::event::id;
use relay::trace::level::Level;
use relay::trace::record::PAYLOAD_MAX;

use crate::builder::Builder;
use crate::channel::Channel;
use crate::frontend::cut::Cut;
use crate::frontend::late::{FrontendError, Late};
use crate::levels::Levels;
use crate::socket::follow::Act;

/// Longest payload that is composed on the stack, in bytes.
const ON_STACK_MAX: usize = 256;

/// Makes a timed channel the logger of the program, for messages up to INFO.
///
/// `channel` is a name, of the relayfs that `$RELAYFS` names, else of /mnt/relay; or a builder.
/// [`set_max_level`](::log::set_max_level) changes the level, and so do [`Builder::levels`] and the channel's directives.
pub fn init(channel: impl Into<Builder>) -> Result<(), FrontendError> {
    let builder = channel.into();
    let own = builder.own_levels();
    let level = if own.has_own() { filter_of(own.highest()) } else { LevelFilter::Info };
    // What the program has set, while the channel has directives. The thread that follows them begins once it is known
    // whether this is the program's logger.
    let begun: Arc<Mutex<Option<Max>>> = Arc::default();
    let for_thread = Arc::clone(&begun);
    let follow: Act = Arc::new(move |levels| {
        if let Some(max) = for_thread.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            max.follow(levels);
        }
    });
    let late = Late::new(builder, Some(follow))?;
    let levels = Arc::clone(late.levels());
    ::log::set_boxed_logger(Box::new(Logger { late })).map_err(|_| FrontendError::HasLogger)?;
    ::log::set_max_level(level);
    begun.lock().unwrap_or_else(PoisonError::into_inner).insert(Max::default()).follow(&levels);
    Ok(())
}

/// What the crate's highest level is when the channel has no directives.
#[derive(Default)]
struct Max {
    without: Option<LevelFilter>,
}

impl Max {
    /// Sets the crate's highest level to what the levels need.
    fn follow(&mut self, levels: &Levels) {
        if levels.has_directives() {
            let without = *self.without.get_or_insert_with(::log::max_level);
            if !levels.has_own() {
                levels.set_rest(without as u8);
            }
            ::log::set_max_level(filter_of(levels.highest()));
        } else if let Some(without) = self.without.take() {
            levels.set_rest(Level::Trace.number());
            ::log::set_max_level(without);
        }
    }
}

/// Returns the crate's filter for a limit of levels.
fn filter_of(limit: Limit) -> LevelFilter {
    LevelFilter::iter().nth(limit.into()).unwrap_or(LevelFilter::Trace)
}

/// A logger whose messages become records of a timed channel.
#[derive(Debug)]
pub struct Logger {
    late: Late,
}

impl Logger {
    /// Opens the channel, or says in a line on standard error that there is no daemon yet.
    /// `channel` is as for [`init`].
    pub fn new(channel: impl Into<Builder>) -> Result<Logger, FrontendError> {
        Ok(Logger { late: Late::new(channel.into(), None)? })
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.late.levels().enabled(level_of(metadata.level()), metadata.target().as_bytes())
    }

    fn log(&self, record: &Record<'_>) {
        let level = level_of(record.level());
        if !self.late.levels().enabled(level, record.target().as_bytes()) {
            return;
        }
        let Some(channel) = self.late.channel() else { return };
        if let Some(text) = record.args().as_str()
            && record.key_values().count() == 0
        {
            // The library counts what has no room; a logger has no caller that an error could go to.
            let _ = channel.log_enabled(level, record.target().as_bytes(), text.as_bytes());
            return;
        }
        let mut room = [0; ON_STACK_MAX];
        if !compose(channel, level, record, &mut room) {
            compose_long(channel, level, record);
        }
    }

    fn flush(&self) {}
}

fn level_of(level: ::log::Level) -> Level {
    match level {
        ::log::Level::Error => Level::Error,
        ::log::Level::Warn => Level::Warn,
        ::log::Level::Info => Level::Info,
        ::log::Level::Debug => Level::Debug,
        ::log::Level::Trace => Level::Trace,
    }
}

/// Composes a payload and writes it; returns whether it had room.
#[inline(always)]
fn compose(channel: &Channel, level: Level, record: &Record<'_>, room: &mut [u8]) -> bool {
    let target = record.target().as_bytes();
    let text_at = 4 + target.len();
    let Ok(target_len) = u8::try_from(target.len()) else { return false };
    if text_at > room.len() {
        return false;
    }
    let mut text = Cut::new(&mut room[text_at..]);
    message(record, &mut text);
    if text.is_cut() {
        return false;
    }
    let len = text.finish();
    if text_at + len > channel.payload_max() {
        return false;
    }
    room[..2].copy_from_slice(&[level.number(), target_len]);
    room[2..text_at - 2].copy_from_slice(target);
    room[text_at - 2..text_at].copy_from_slice(&(len as u16).to_le_bytes());
    let _ = channel.record(id::LOG, &room[..text_at + len]);
    true
}

#[cold]
fn compose_long(channel: &Channel, level: Level, record: &Record<'_>) {
    let mut room = vec![0; PAYLOAD_MAX];
    let mut text = Cut::new(&mut room);
    message(record, &mut text);
    let len = text.finish();
    let _ = channel.log_enabled(level, record.target().as_bytes(), &room[..len]);
}

/// Writes the text of a message, and its pairs.
#[inline(always)]
fn message(record: &Record<'_>, text: &mut Cut<'_>) {
    // An error says that the text is cut, or comes from a value; what was written before stays.
    let _ = match record.args().as_str() {
        Some(constant) => text.push(constant),
        None => text.write_fmt(*record.args()),
    };
    let _ = record.key_values().visit(&mut Pairs(text));
}

/// Writes pairs as ` key=value`.
struct Pairs<'a, 'r>(&'a mut Cut<'r>);

impl<'kvs> VisitSource<'kvs> for Pairs<'_, '_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        self.0.pair(key.as_str(), format_args!("{value}"));
        if self.0.is_cut() { Err(fmt::Error.into()) } else { Ok(()) }
    }
}
