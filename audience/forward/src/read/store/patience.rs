//! What to do while the stream is away: try again, or give reading up.

use std::error::Error;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, ErrorCode};

use super::Store;
use crate::output::say;
use crate::server;

/// Longest time without an answer, for a reader that does not follow: a server that starts again takes less.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Why a request has no answer.
pub(super) enum Failed {
    /// The connection was lost before the answer.
    Cut,
    /// The stream is not there.
    NoStream(String),
    /// Another reason.
    Because(String),
}

impl Failed {
    pub(super) fn of(error: &(impl Error + 'static)) -> Failed {
        let source = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
        let is_missing = source.is_some_and(|error| error.error_code() == ErrorCode::STREAM_NOT_FOUND);
        let why = error.to_string();
        if is_missing { Failed::NoStream(why) } else { Failed::Because(why) }
    }
}

impl Store {
    /// Waits for an answer, as long as there is the connection: nothing answers what was asked before its loss.
    pub(super) async fn unless_cut<T>(&self, asked: impl Future<Output = T>) -> Result<T, Failed> {
        let mut cuts = self.cuts.clone();
        cuts.mark_unchanged();
        tokio::select! {
            answer = asked => Ok(answer),
            Ok(()) = cuts.changed() => Err(Failed::Cut),
        }
    }

    pub(super) async fn ask<T, E>(&self, asked: impl Future<Output = Result<T, E>>) -> Result<T, Failed>
    where
        E: Error + 'static,
    {
        self.unless_cut(asked).await?.map_err(|error| Failed::of(&error))
    }

    /// Tries until it succeeds, or reading is given up; tells each change once.
    pub(super) async fn patiently<T, A: Future<Output = Result<T, Failed>>>(
        &self,
        attempt: impl Fn() -> A,
    ) -> T {
        let (mut attempts, began) = (1, Instant::now());
        loop {
            let failed = match attempt().await {
                Ok(value) => {
                    *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                    // Relaxed: the flag says nothing about other memory.
                    if self.is_away.swap(false, Ordering::Relaxed) {
                        say(format_args!("{}: reading stream '{}' again", self.server, self.name));
                    }
                    return value;
                }
                Err(failed) => failed,
            };
            // Often there is another connection or leader at once, and a busy server answers the next time.
            if attempts > 1 {
                self.tell(failed, began).await;
            }
            attempts += 1;
            tokio::time::sleep(server::pause(attempts)).await;
        }
    }

    /// Tells a failure of a question that was first asked at this time. Does not return if reading is given up for it.
    async fn tell(&self, failed: Failed, asked: Instant) {
        let (server, name) = (&self.server, &self.name);
        let (why, is_deleted) = match failed {
            Failed::Cut => ("the connection was lost".to_owned(), false),
            Failed::NoStream(why) => (why, true),
            Failed::Because(why) => (why, false),
        };
        let answered = *self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let is_silent = answered.max(asked).elapsed() >= SILENCE_MAX;
        if let Some(give_up) = self.give_up.as_ref().filter(|_| is_deleted || is_silent) {
            let since = if is_deleted { "" } else { "; no answer for 30s" };
            give_up.because(format!("{server}: cannot read stream '{name}' to its end: {why}{since}"));
            // The main thread ends the program.
            return std::future::pending().await;
        }
        // Relaxed: the flags say nothing about other memory.
        if !self.is_ending.load(Ordering::Relaxed) && !self.is_away.swap(true, Ordering::Relaxed) {
            say(format_args!("{server}: cannot read stream '{name}': {why}; trying again"));
        }
    }
}
