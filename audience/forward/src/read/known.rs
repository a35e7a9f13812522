//! What is known about the stream: how far it has come, and whether it is still the one that lanes have read.
//!
//! A stream that was deleted and created again counts from 1. A lane that has fetched a message of a high sequence
//! cannot see which of the two the message is of. So it waits for a look at the stream that began later, unless a look
//! has covered the message before.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use super::store::{Extent, Place, Store};

/// Looks after which the one before the last has begun behind a fetch, whatever was under way then.
const LOOKS: usize = 2;

/// The stream as it was at the last look, and the lanes that hear of its changes.
pub(super) struct Known {
    state: Mutex<State>,
    /// How many looks there were.
    looks: watch::Sender<u64>,
    /// Looks are one after the other: the answers to two at a time could come in either order.
    looking: tokio::sync::Mutex<()>,
}

struct State {
    extent: Extent,
    /// How often the stream was created again.
    creation: u64,
    /// By subject.
    lanes: BTreeMap<String, Listener>,
}

/// A lane.
struct Listener {
    wake: Arc<Notify>,
    /// Sequence with which it has to begin again.
    restart: Option<u64>,
}

/// What a lane has to know before it fetches a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// How often the stream was created again.
    pub(super) creation: u64,
    /// Sequence with which the lane begins again.
    pub(super) restart: Option<u64>,
}

impl State {
    /// Whether a message is known to be of this creation, or not to be; `None`: it may be of a later one.
    fn is_of(&self, place: Place, creation: u64) -> Option<bool> {
        let is_covered = place.sequence <= self.extent.last && place.time <= self.extent.last_time;
        if self.creation != creation { Some(false) } else { is_covered.then_some(true) }
    }

    /// Takes the result of a look.
    fn learn(&mut self, now: Extent) {
        let before = std::mem::replace(&mut self.extent, now);
        let restart = if now.created != before.created {
            self.creation += 1;
            1
        } else if now.last < before.last {
            // A server that lost its newest messages gives their sequences again. One that has just become the leader
            // may not have them yet: they come twice then, and lanes drop them by their numbers.
            now.last + 1
        } else {
            return;
        };
        for lane in self.lanes.values_mut() {
            lane.restart = Some(lane.restart.map_or(restart, |earlier| earlier.min(restart)));
            lane.wake.notify_one();
        }
    }
}

impl Known {
    pub(super) fn new(extent: Extent) -> Known {
        let state = Mutex::new(State { extent, creation: 0, lanes: BTreeMap::new() });
        Known { state, looks: watch::Sender::new(0), looking: tokio::sync::Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to tell a lane about its subject, in the place of the one before.
    pub(super) fn listen(&self, subject: &str) -> Arc<Notify> {
        let wake = Arc::new(Notify::new());
        let listener = Listener { wake: Arc::clone(&wake), restart: None };
        self.state().lanes.insert(subject.to_owned(), listener);
        wake
    }

    /// Returns whether a subject has, or had, a lane.
    pub(super) fn is_heard(&self, subject: &str) -> bool {
        self.state().lanes.contains_key(subject)
    }

    /// Wakes the lane of a subject. Returns whether there is one.
    pub(super) fn wake(&self, subject: &str) -> bool {
        self.state().lanes.get(subject).map(|lane| lane.wake.notify_one()).is_some()
    }

    /// Wakes all lanes.
    pub(super) fn wake_all(&self) {
        self.state().lanes.values().for_each(|lane| lane.wake.notify_one());
    }

    /// Returns what has changed for a lane since the last call.
    pub(super) fn turn(&self, subject: &str) -> Turn {
        let mut state = self.state();
        let restart = state.lanes.get_mut(subject).and_then(|lane| lane.restart.take());
        Turn { creation: state.creation, restart }
    }

    /// Returns how often the stream was created again.
    pub(super) fn creation(&self) -> u64 {
        self.state().creation
    }

    /// Looks how far the stream has come.
    pub(super) async fn look(&self, store: &Store) -> Extent {
        let _turn = self.looking.lock().await;
        let extent = store.extent().await;
        if extent.created != self.state().extent.created {
            // Before lanes hear of it.
            store.note_creation(extent.created);
        }
        self.state().learn(extent);
        self.looks.send_modify(|looks| *looks = looks.wrapping_add(1));
        extent
    }

    /// Returns whether a message that was fetched just now is of a creation. Waits until that is known.
    ///
    /// `is_watched`: another task looks all the time.
    pub(super) async fn confirms(
        &self,
        store: &Store,
        place: Place,
        creation: u64,
        is_watched: bool,
    ) -> bool {
        let mut looks = self.looks.subscribe();
        for _ in 0..LOOKS {
            let is_of = self.state().is_of(place, creation);
            if let Some(is_of) = is_of {
                return is_of;
            }
            if is_watched {
                // The sender is ours, so it does not go.
                let _ = looks.changed().await;
            } else {
                self.look(store).await;
            }
        }
        self.creation() == creation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(last: u64, last_time: i128, created: i128) -> Extent {
        Extent { first: 1, last, last_time, created }
    }

    fn known() -> (Known, Arc<Notify>) {
        let known = Known::new(extent(10, 1000, 1));
        let wake = known.listen("a");
        (known, wake)
    }

    fn is_of(known: &Known, sequence: u64, time: i128, creation: u64) -> Option<bool> {
        known.state().is_of(Place { sequence, time }, creation)
    }

    #[test]
    fn messages_behind_the_last_look_may_be_another_streams() {
        let (known, _) = known();
        assert_eq!(is_of(&known, 10, 1000, 0), Some(true));
        assert_eq!(is_of(&known, 11, 1001, 0), None);
        // The sequence is an old one, and the message is new.
        assert_eq!(is_of(&known, 5, 2000, 0), None);
        known.state().learn(extent(20, 3000, 1));
        assert_eq!(is_of(&known, 11, 1001, 0), Some(true));
        known.state().learn(extent(30, 5000, 2));
        assert_eq!(is_of(&known, 11, 4000, 0), Some(false));
        assert_eq!(is_of(&known, 11, 4000, 1), Some(true));
    }

    #[test]
    fn lanes_begin_again_with_what_may_be_new() {
        let (known, _) = known();
        let turn = |creation, restart| Turn { creation, restart };
        assert_eq!(known.turn("a"), turn(0, None));
        // Some messages are gone, and more are before the lane hears of it.
        known.state().learn(extent(7, 900, 1));
        known.state().learn(extent(20, 1900, 1));
        known.state().learn(extent(9, 1800, 1));
        assert_eq!(known.turn("a"), turn(0, Some(8)));
        assert_eq!(known.turn("a"), turn(0, None));
        known.state().learn(extent(100, 3000, 2));
        assert_eq!(known.turn("a"), turn(1, Some(1)));
        assert_eq!(known.turn("b"), turn(1, None));
    }
}
