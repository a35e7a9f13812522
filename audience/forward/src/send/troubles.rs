//! What keeps the forwarder from forwarding, said once a change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_nats::{ClientError, Event};
use tokio::sync::watch;

use crate::output::say;

/// The troubles of the moment.
#[derive(Debug)]
pub(crate) struct Troubles {
    /// Where the servers are, for messages.
    servers: String,
    inner: Mutex<Inner>,
    /// Whether there is a connection.
    connected: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Why there is no connection, as said since there was one.
    server: BTreeSet<String>,
    /// By what is troubled: a subject or a channel.
    others: BTreeMap<String, String>,
}

impl Troubles {
    /// Begins without trouble and without a connection.
    pub(crate) fn new(servers: String) -> Troubles {
        Troubles { servers, inner: Mutex::default(), connected: watch::Sender::new(false) }
    }

    /// Takes a word of the client's about its connection.
    pub(crate) fn event(&self, event: &Event) {
        let servers = &self.servers;
        match event {
            Event::Connected => {
                self.connected.send_replace(true);
                if !std::mem::take(&mut self.lock().server).is_empty() {
                    say(format_args!("connected to {servers}"));
                }
            }
            Event::Disconnected => {
                self.connected.send_replace(false);
                self.server(format!("no connection to {servers}: lost; trying again"));
            }
            Event::ClientError(ClientError::Other(why)) => {
                self.server(format!("no connection to {servers}: {why}; trying again"));
            }
            Event::ServerError(error) => self.server(format!("{servers}: {error}; trying again")),
            _ => {}
        }
    }

    /// Returns whether there is a connection.
    pub(crate) fn is_connected(&self) -> bool {
        *self.connected.borrow()
    }

    /// Waits until there is a connection, or none.
    pub(crate) async fn until(&self, connected: bool) {
        // The sender is part of this value.
        let _ = self.connected.subscribe().wait_for(|now| *now == connected).await;
    }

    /// Notes that `what` has this trouble. Says it, unless the same trouble is known, of this or of others.
    pub(crate) fn set(&self, what: &str, trouble: &str) {
        let mut inner = self.lock();
        let is_known = inner.others.values().any(|known| known == trouble);
        inner.others.insert(what.to_owned(), trouble.to_owned());
        drop(inner);
        if !is_known {
            say(trouble);
        }
    }

    /// Notes that `what` has no trouble any more. Says it when the last with this trouble is rid of it.
    pub(crate) fn clear(&self, what: &str) {
        let mut inner = self.lock();
        let Some(trouble) = inner.others.remove(what) else { return };
        let is_over = !inner.others.values().any(|other| *other == trouble);
        drop(inner);
        if is_over {
            say(format_args!("{what}: forwarded again"));
        }
    }

    /// Forgets the trouble of `what`, which has gone.
    pub(crate) fn forget(&self, what: &str) {
        self.lock().others.remove(what);
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
