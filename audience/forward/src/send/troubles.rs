//! What keeps the forwarder from forwarding, said once a change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::output::say;
use crate::server::{Change, Trouble};

/// Most subjects that are known to be refused, and most of these that are said.
const REFUSED_MAX: usize = 4096;
const REFUSED_TOLD: usize = 8;

/// The troubles of the moment.
#[derive(Debug)]
pub(crate) struct Troubles {
    /// Where the servers are, for messages.
    servers: String,
    inner: Mutex<Inner>,
    /// Whether there is a connection, and how many were lost.
    connection: watch::Sender<(bool, u64)>,
    start: watch::Sender<Start>,
}

/// How far the start is.
#[derive(Debug)]
enum Start {
    /// It is not known whether there can be a connection, and the stream.
    Open,
    /// There will be none, for this reason.
    Hopeless(String),
    /// There was one.
    Done,
}

#[derive(Debug, Default)]
struct Inner {
    /// Why there is no connection, as said since there was one.
    server: BTreeSet<String>,
    /// What the server has said to messages for a subject, since one was let through there.
    refused: BTreeMap<String, String>,
    /// By what is troubled: a subject or a channel.
    others: BTreeMap<String, String>,
}

impl Troubles {
    /// Begins without trouble and without a connection.
    pub(crate) fn new(servers: String) -> Troubles {
        let (connection, start) = (watch::Sender::new((false, 0)), watch::Sender::new(Start::Open));
        Troubles { servers, inner: Mutex::default(), connection, start }
    }

    /// Takes what becomes of the connection.
    pub(crate) fn change(&self, change: Change) {
        let servers = &self.servers;
        match change {
            Change::Made => {
                self.connection.send_modify(|(is_there, _)| *is_there = true);
                let mut inner = self.lock();
                inner.refused.clear();
                let was_missing = !std::mem::take(&mut inner.server).is_empty();
                drop(inner);
                if was_missing {
                    say(format_args!("connected to {servers}"));
                }
            }
            Change::Lost => {
                self.connection.send_modify(|(is_there, n_lost)| (*is_there, *n_lost) = (false, *n_lost + 1));
                self.server(format!("no connection to {servers}: lost; trying again"));
            }
            Change::Missing(trouble) => self.trouble(&format!("no connection to {servers}"), trouble),
            Change::Refused(trouble) => self.trouble(servers, trouble),
        }
    }

    /// Says a trouble of the connection, or ends the start.
    fn trouble(&self, what: &str, Trouble { why, advice, subject }: Trouble) {
        let is_started = matches!(*self.start.borrow(), Start::Done);
        if let Some(advice) = advice.filter(|_| !is_started) {
            self.start.send_replace(Start::Hopeless(format!("{what}: {why}; {advice}")));
            return;
        }
        let said = format!("{what}: {why}; trying again");
        match subject {
            Some(subject) => self.refused(subject, said),
            None => self.server(said),
        }
    }

    /// Notes that the server refuses messages for a subject. Says it of some subjects.
    fn refused(&self, subject: String, said: String) {
        let mut inner = self.lock();
        if inner.refused.contains_key(&subject) || inner.refused.len() >= REFUSED_MAX {
            return;
        }
        inner.refused.insert(subject, said.clone());
        let n_refused = inner.refused.len();
        drop(inner);
        if n_refused <= REFUSED_TOLD {
            say(said);
        } else if n_refused == REFUSED_TOLD + 1 {
            say(format_args!("{}: further subjects are refused", self.servers));
        }
    }

    /// Returns what the server has said to the last message for a subject, if it has refused that.
    pub(crate) fn refusal(&self, subject: &str) -> Option<String> {
        self.lock().refused.get(subject).cloned()
    }

    /// Notes that the server lets messages for a subject through.
    pub(crate) fn note_taken(&self, subject: &str) {
        self.lock().refused.remove(subject);
    }

    /// Notes that there was a connection, and the stream. From then on, whatever is missing is waited for.
    pub(crate) fn note_started(&self) {
        self.start.send_replace(Start::Done);
    }

    /// Waits until it is known that only the operator can make a connection possible. Returns why.
    pub(crate) async fn until_hopeless(&self) -> String {
        let mut start = self.start.subscribe();
        loop {
            if let Start::Hopeless(why) = &*start.borrow_and_update() {
                return why.clone();
            }
            // The sender is part of this value.
            let _ = start.changed().await;
        }
    }

    /// Returns whether there is a connection.
    pub(crate) fn is_connected(&self) -> bool {
        self.connection.borrow().0
    }

    /// Returns how many connections were lost.
    pub(crate) fn n_lost(&self) -> u64 {
        self.connection.borrow().1
    }

    /// Waits until there is a connection, or none.
    pub(crate) async fn until(&self, connected: bool) {
        // The sender is part of this value.
        let _ = self.connection.subscribe().wait_for(|(is_there, _)| *is_there == connected).await;
    }

    /// Waits until more connections are lost than these.
    pub(crate) async fn until_lost(&self, n_lost: u64) {
        let _ = self.connection.subscribe().wait_for(|(_, lost)| *lost > n_lost).await;
    }

    /// Notes that `what` has this trouble. Says it, unless the same trouble is known, of this or of others.
    pub(crate) fn set(&self, what: &str, trouble: &str) {
        let mut inner = self.lock();
        let is_known = inner.others.values().chain(inner.refused.values()).any(|known| known == trouble);
        inner.others.insert(what.to_owned(), trouble.to_owned());
        drop(inner);
        if !is_known {
            say(trouble);
        }
    }

    /// Notes that `what` has no trouble any more. Says it when the last with this trouble is rid of it.
    pub(crate) fn clear(&self, what: &str) {
        let mut inner = self.lock();
        inner.refused.remove(what);
        let Some(trouble) = inner.others.remove(what) else { return };
        let is_over = !inner.others.values().any(|other| *other == trouble);
        drop(inner);
        if is_over {
            say(format_args!("{what}: forwarded again"));
        }
    }

    /// Forgets the trouble of `what`, which has gone.
    pub(crate) fn forget(&self, what: &str) {
        let mut inner = self.lock();
        inner.others.remove(what);
        inner.refused.remove(what);
    }

    fn server(&self, trouble: String) {
        let mut inner = self.lock();
        if !inner.server.contains(&trouble) {
            say(&trouble);
            inner.server.insert(trouble);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(subject: &str) -> Change {
        let (why, subject) = (format!("no right to {subject}"), Some(subject.to_owned()));
        Change::Refused(Trouble { why, advice: Some("give it"), subject })
    }

    #[test]
    fn refused_subjects_are_known_until_a_message_is_taken() {
        let troubles = Troubles::new("server".to_owned());
        troubles.note_started();
        (0..REFUSED_MAX + 10).for_each(|n| troubles.change(refused(&n.to_string())));
        assert_eq!(troubles.lock().refused.len(), REFUSED_MAX);
        assert_eq!(troubles.refusal("7").as_deref(), Some("server: no right to 7; trying again"));
        troubles.clear("7");
        troubles.forget("8");
        troubles.note_taken("9");
        assert_eq!(["7", "8", "9"].map(|subject| troubles.refusal(subject)), [None, None, None]);
        troubles.change(refused("7"));
        assert!(troubles.refusal("7").is_some());
        // Another connection may have the rights.
        troubles.change(Change::Made);
        assert!(troubles.lock().refused.is_empty());
    }

    #[test]
    fn missing_right_ends_the_start_alone() {
        let troubles = Troubles::new("server".to_owned());
        troubles.change(refused("a"));
        assert!(
            matches!(&*troubles.start.borrow(), Start::Hopeless(why) if why == "server: no right to a; give it")
        );
    }
}
