//! Whether any replica is asked for messages, or the stream's leader alone.

use std::time::{Duration, Instant};

use tokio::sync::watch;

/// Time after which replicas are asked again: one that starts again takes less.
const ASK_AGAIN: Duration = Duration::from_secs(300);

/// Whether direct questions are of use. All lanes share it.
#[derive(Debug, Default)]
pub(in crate::read) struct DirectAnswers {
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When they were found to be of no use; `None`: they are asked.
    useless_since: Option<Instant>,
    /// When the leader answered after a silent direct question.
    silent_at: Option<Instant>,
    /// Whether it was said that they are of no use.
    is_told: bool,
}

impl DirectAnswers {
    /// Returns whether a direct question is asked at this time.
    pub(super) fn is_asked(&self, now: Instant) -> bool {
        let since = self.state.borrow().useless_since;
        let Some(since) = since else { return true };
        let is_due = now.saturating_duration_since(since) >= ASK_AGAIN;
        if is_due {
            self.ask_again();
        }
        is_due
    }

    /// Asks replicas again: another connection may have the right, and lead to another server.
    pub(in crate::read) fn ask_again(&self) {
        self.state.send_modify(|state| state.useless_since = None);
    }

    /// Takes over that a question of the time `asked` has got no direct answer, but one of the leader `now`. Returns
    /// whether it is to say that there are no direct answers.
    ///
    /// A server that stalls answers neither. So only a second question counts, which was asked behind that answer.
    pub(super) fn note_silence(&self, asked: Instant, now: Instant) -> bool {
        let mut is_second = false;
        self.state.send_if_modified(|state| {
            let first = state.silent_at.filter(|first| now.saturating_duration_since(*first) < ASK_AGAIN);
            is_second = first.is_some_and(|first| asked >= first);
            state.silent_at = first.or(Some(now));
            false
        });
        is_second && self.note_useless(now)
    }

    /// Takes over that direct questions are of no use. Returns whether that is to say.
    pub(in crate::read) fn note_useless(&self, now: Instant) -> bool {
        let mut is_known = true;
        self.state.send_modify(|state| {
            state.useless_since = Some(now);
            state.silent_at = None;
            is_known = std::mem::replace(&mut state.is_told, true);
        });
        !is_known
    }

    /// Takes over that there was an answer. Returns whether that is to say.
    pub(super) fn note_answer(&self) -> bool {
        if !self.state.borrow().is_told {
            return false;
        }
        // Where questions are of no use, it is a late answer.
        self.state
            .send_if_modified(|state| state.useless_since.is_none() && std::mem::take(&mut state.is_told))
    }

    /// Waits until direct questions are of no use.
    pub(super) async fn until_useless(&self) {
        // The sender is part of this value.
        let _ = self.state.subscribe().wait_for(|state| state.useless_since.is_some()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_asked_again_and_each_change_is_said_once() {
        let (direct, now) = (DirectAnswers::default(), Instant::now());
        assert!(direct.is_asked(now) && !direct.note_answer());
        assert!(direct.note_useless(now) && !direct.note_useless(now));
        assert!(!direct.is_asked(now) && !direct.note_answer());
        let later = now + ASK_AGAIN;
        assert!(!direct.is_asked(later - Duration::from_nanos(1)) && direct.is_asked(later));
        assert!(direct.is_asked(now), "all ask again");
        // They are still of no use.
        assert!(!direct.note_useless(later) && !direct.is_asked(later));
        direct.ask_again();
        assert!(direct.is_asked(later) && direct.note_answer() && !direct.note_answer());
        assert!(direct.note_useless(later));
    }

    #[test]
    fn server_that_stalls_once_is_asked_directly_again() {
        let (direct, start) = (DirectAnswers::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        // All lanes ask at the same time, and the leader answers all of them a moment later.
        assert!((6..9).all(|now| !direct.note_silence(at(0), at(now))) && direct.is_asked(at(9)));
        // Much later, another one.
        let later = 6 + ASK_AGAIN.as_secs();
        assert!(!direct.note_silence(at(later), at(later + 6)) && direct.is_asked(at(later + 6)));
        assert!(direct.note_silence(at(later + 6), at(later + 12)) && !direct.is_asked(at(later + 12)));
    }
}
