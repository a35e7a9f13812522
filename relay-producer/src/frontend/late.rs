//! A channel whose daemon may come later than the program.

#[cfg(feature = "tracing")]
use std::cell::Cell;
use std::fmt::{self, Display};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use once_cell::race::OnceBox;
use relay::cli::one_line::one_line;
use relay::system::next_try::NextTry;
#[cfg(feature = "tracing")]
use relay::trace::definition::Definition;
use relay::trace::level::Level;
use relay::wire::socket::ConnectError;
use thiserror::Error;

use crate::builder::Builder;
use crate::channel::Channel;
use crate::error::OpenError;
#[cfg(feature = "tracing")]
use crate::error::RequestError;
#[cfg(feature = "tracing")]
use crate::event::Event;
use crate::levels::Levels;
use crate::socket::follow::Act;
use crate::socket::handshake::OPEN_LIMIT;

#[cfg(feature = "tracing")]
thread_local! {
    /// Whether this thread defines an event.
    static IS_DEFINING: Cell<bool> = const { Cell::new(false) };
}

/// Least time between two tries to find a daemon, or to define an event that was refused.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The same behind a daemon that did not answer, since each try waits.
const SILENT_INTERVAL: Duration = Duration::from_secs(10);
/// Longest wait for a daemon that has come later than the program.
const TRY_LIMIT: Duration = Duration::from_secs(1);
/// Longest wait for the answer to a definition.
#[cfg(feature = "tracing")]
const DEFINE_LIMIT: Duration = Duration::from_secs(1);
/// Target of the library's own messages.
const TARGET: &str = "relay_producer";

/// The error of starting a front end.
#[derive(Debug, Error)]
pub enum FrontendError {
    /// The channel cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The channel is raw.
    #[error("channel {name}: cannot take records: it is raw; name another one, or create it with 'timed'")]
    Raw {
        /// Its name.
        name: String,
    },
    /// The program has a logger already.
    #[error(
        "the program has a logger already, perhaps by `init` of tracing-subscriber: use only one, or write to the channel by \
         `Logger::new`"
    )]
    HasLogger,
}

/// A channel that is opened now, or by a later message.
pub(crate) struct Late {
    builder: Builder,
    channel: OnceBox<Channel>,
    levels: Arc<Levels>,
    /// Called when the levels have changed.
    follow: Option<Act>,
    /// When the next try to find a daemon is due.
    next_try: NextTry,
    /// When the next definition may be tried.
    #[cfg(feature = "tracing")]
    next_definition: NextTry,
    /// Whether a line has said that the daemon is there and refuses the channel.
    has_complained: AtomicBool,
    /// Messages that came before the daemon.
    missed: AtomicU64,
}

impl fmt::Debug for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Late")
            .field("builder", &self.builder)
            .field("channel", &self.channel)
            .finish_non_exhaustive()
    }
}

impl Late {
    /// Opens the channel, or says in a line on standard error that there is no daemon yet.
    /// `follow` is called on another thread when the levels have changed.
    pub(crate) fn new(builder: Builder, follow: Option<Act>) -> Result<Late, FrontendError> {
        let late = Late {
            levels: builder.own_levels(),
            follow,
            builder,
            channel: OnceBox::new(),
            next_try: NextTry::default(),
            #[cfg(feature = "tracing")]
            next_definition: NextTry::default(),
            has_complained: AtomicBool::new(false),
            missed: AtomicU64::new(0),
        };
        match late.open(OPEN_LIMIT) {
            Ok(channel) => late.set(channel),
            Err(FrontendError::Open(OpenError::Connect(error))) => {
                late.next_try.put_off(RETRY_INTERVAL);
                late.say("messages are lost until there is a daemon", &error);
            }
            Err(error) => return Err(error),
        }
        Ok(late)
    }

    fn open(&self, limit: Duration) -> Result<Channel, FrontendError> {
        let channel = self.builder.clone().open_with(Arc::clone(&self.levels), limit)?;
        if channel.is_timed() {
            Ok(channel)
        } else {
            Err(FrontendError::Raw { name: self.builder.name().to_owned() })
        }
    }

    fn set(&self, channel: Channel) {
        if let Some(follow) = &self.follow {
            channel.follow_levels(Arc::clone(follow));
        }
        // Only the thread that tries, or that makes the value, sets it.
        let _ = self.channel.set(Box::new(channel));
    }

    /// Returns which messages are written.
    #[cfg(any(feature = "log", feature = "tracing"))]
    #[inline(always)]
    pub(crate) fn levels(&self) -> &Arc<Levels> {
        &self.levels
    }

    /// Returns the channel, if there is a daemon. `None` counts a message as missed.
    #[inline(always)]
    pub(crate) fn channel(&self) -> Option<&Channel> {
        self.channel.get().or_else(|| self.look())
    }

    /// Looks for a daemon, if that is due and no other thread does it.
    #[cold]
    #[inline(never)]
    fn look(&self) -> Option<&Channel> {
        if self.next_try.begin(TRY_LIMIT + RETRY_INTERVAL) {
            match self.open(TRY_LIMIT) {
                Ok(channel) => return self.found(channel),
                Err(error) => self.failed(&error),
            }
        }
        self.missed.fetch_add(1, Ordering::Relaxed);
        None
    }

    fn found(&self, channel: Channel) -> Option<&Channel> {
        // Relaxed: a count. Messages that other threads miss at this moment are not in it.
        let missed = self.missed.swap(0, Ordering::Relaxed);
        if missed > 0 {
            let text = format!("{missed} messages came before the daemon, and are lost");
            let _ = channel.log(Level::Warn, TARGET, &text);
        }
        self.set(channel);
        self.channel.get()
    }

    /// Notes why a later try has failed. A daemon that is there, and refuses the channel, is worth another line.
    fn failed(&self, error: &FrontendError) {
        let is_silent = matches!(error, FrontendError::Open(OpenError::Connect(ConnectError::Silent { .. })));
        self.next_try.put_off(if is_silent { SILENT_INTERVAL } else { RETRY_INTERVAL });
        let is_away = matches!(error, FrontendError::Open(OpenError::Connect(_)));
        // Relaxed: of two threads one says it.
        if !is_away && !self.has_complained.swap(true, Ordering::Relaxed) {
            self.say("the daemon is there, and messages are lost all the same", error);
        }
    }

    /// Says something, and why, in a line on standard error.
    fn say(&self, what: &str, why: &dyn Display) {
        let line = format!("{}: {what}: {why}", self.builder.name());
        // A program without standard error runs all the same.
        let _ = writeln!(io::stderr(), "relay-producer: {}", one_line(&line));
    }

    /// Defines an event, unless a try has failed shortly before. Waits for the daemon's answer, not longer than 1 s.
    ///
    /// `None`: it is not defined now. Nor in a signal handler that has interrupted a definition of its thread, for which
    /// it would wait forever.
    #[cfg(feature = "tracing")]
    #[cold]
    pub(crate) fn define(&self, channel: &Channel, definition: Definition) -> Option<Event> {
        if !self.next_definition.is_due() || IS_DEFINING.try_with(|is| is.replace(true)).unwrap_or(true) {
            return None;
        }
        let defined = channel.define_within(definition, DEFINE_LIMIT);
        let _ = IS_DEFINING.try_with(|is_defining| is_defining.set(false));
        let pause = match defined {
            Ok(event) => return Some(event),
            Err(RequestError::NoReply) => SILENT_INTERVAL,
            Err(_) => RETRY_INTERVAL,
        };
        self.next_definition.put_off(pause);
        None
    }
}
