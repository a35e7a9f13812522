//! What to do while the stream is away: try again, or give reading up.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, ErrorCode};

use super::Store;
use crate::output::say;
use crate::server::requests::Unanswered;
use crate::server::{self, NO_JETSTREAM};

/// Longest time without an answer, for a reader that does not follow: a server that starts again takes less.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Most different reasons that are told between two successes.
const TOLD_MAX: usize = 8;

/// Why a request has no answer.
pub(super) enum Failed {
    /// The connection was lost before the answer.
    Cut,
    /// No answer came in time.
    Silence,
    /// The stream is not there.
    NoStream(String),
    /// Another reason.
    Because(String),
}

impl Failed {
    pub(super) fn of(error: &impl Error) -> Failed {
        Failed::Because(error.to_string())
    }

    /// An error of the server.
    pub(super) fn of_server(error: &jetstream::Error) -> Failed {
        match error.error_code() {
            ErrorCode::STREAM_NOT_FOUND => Failed::NoStream(error.to_string()),
            _ => Failed::of(error),
        }
    }

    /// An answer that is none.
    pub(super) fn nonsense(error: &serde_json::Error) -> Failed {
        Failed::Because(format!("the server's answer makes no sense: {error}"))
    }
}

impl From<Unanswered> for Failed {
    fn from(why: Unanswered) -> Failed {
        match why {
            Unanswered::Away => Failed::Cut,
            Unanswered::Silence => Failed::Silence,
            Unanswered::NoResponders => Failed::Because(NO_JETSTREAM.to_owned()),
            Unanswered::TooLong => Failed::Because("the server takes no question of that length".to_owned()),
            Unanswered::Refused(why) | Unanswered::Other(why) => Failed::Because(why),
        }
    }
}

impl Display for Failed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Failed::Cut => "the connection was lost",
            Failed::Silence => "JetStream does not answer",
            Failed::NoStream(why) | Failed::Because(why) => why,
        })
    }
}

/// Reasons that were told since the last success.
#[derive(Debug, Default)]
pub(in crate::read) struct Told(BTreeSet<String>);

impl Told {
    /// Returns whether a reason is to tell: it is another one.
    pub(in crate::read) fn is_news(&mut self, why: &str) -> bool {
        self.0.len() < TOLD_MAX && self.0.insert(why.to_owned())
    }

    /// Forgets all, for a success. Returns whether that is to tell.
    pub(in crate::read) fn end(&mut self) -> bool {
        !std::mem::take(&mut self.0).is_empty()
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

    /// Tries until it succeeds, or reading is given up; tells each reason once.
    pub(super) async fn patiently<T, A: Future<Output = Result<T, Failed>>>(
        &self,
        attempt: impl Fn() -> A,
    ) -> T {
        let (mut attempts, began) = (1, Instant::now());
        loop {
            let failed = match attempt().await {
                Ok(value) => {
                    *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                    if self.told().end() {
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
        let (why, is_deleted) = (failed.to_string(), matches!(failed, Failed::NoStream(_)));
        let answered = *self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let is_silent = answered.max(asked).elapsed() >= SILENCE_MAX;
        if let Some(give_up) = self.give_up.as_ref().filter(|_| is_deleted || is_silent) {
            let since = if is_deleted { "" } else { "; no answer for 30s" };
            give_up.because(format!("{server}: cannot read stream '{name}' to its end: {why}{since}"));
            // The main thread ends the program.
            return std::future::pending().await;
        }
        // Relaxed: the flag says nothing about other memory.
        if !self.is_ending.load(Ordering::Relaxed) && self.told().is_news(&why) {
            say(format_args!("{server}: cannot read stream '{name}': {why}; trying again"));
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_told_once_between_two_successes() {
        let mut told = Told::default();
        assert!(!told.end() && told.is_news("a") && !told.is_news("a"));
        assert!(told.is_news("b") && !told.is_news("a"));
        assert!(told.end() && !told.end() && told.is_news("a"));
        assert!((0..100).filter(|n| told.is_news(&n.to_string())).count() < TOLD_MAX);
    }
}
