//! Looks which subjects have grown, and wakes their lanes.
//!
//! A consumer would be told at once. But it stays on the server for a while when this program is killed, and headers
//! that no client can parse end its connection again and again. Numbers of messages have neither fault.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::hub::Wakes;
use super::store::{Extent, Store};

/// Time between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Longest time until all lanes look themselves. A subject that loses as many messages as it gets seems not to grow.
const WAKE_ALL: Duration = Duration::from_secs(2);

/// What is watched, and who hears of it.
pub(super) struct Watch {
    pub(super) store: Arc<Store>,
    /// A filter of the subjects.
    pub(super) filter: String,
    pub(super) wakes: Wakes,
    /// Counts how often the stream was created again.
    pub(super) creations: Arc<AtomicU64>,
    /// Gets subjects that have appeared.
    pub(super) appear: mpsc::UnboundedSender<String>,
}

impl Watch {
    /// Looks until the main thread ends. It begins with what was there at the start.
    pub(super) async fn run(self, mut extent: Extent, subjects: Vec<(String, usize)>) {
        let mut counts: BTreeMap<String, usize> = subjects.into_iter().collect();
        let (mut woken, mut is_due) = (Instant::now(), false);
        while !self.appear.is_closed() {
            tokio::time::sleep(LOOK_AGAIN).await;
            let now = self.store.extent().await;
            let is_new = now.created != extent.created || now.last < extent.last;
            is_due |= now != extent;
            if is_new {
                self.creations.fetch_add(1, Ordering::Relaxed);
                counts.clear();
            }
            if now != extent {
                for (subject, count) in self.store.subjects(&self.filter).await {
                    match counts.insert(subject.clone(), count) {
                        Some(before) if before == count => {}
                        Some(_) => drop(self.wake(&subject)),
                        None if self.wake(&subject) => {}
                        None if self.appear.send(subject).is_err() => return,
                        None => {}
                    }
                }
            }
            if is_new || is_due && woken.elapsed() >= WAKE_ALL {
                let wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
                wakes.values().for_each(|wake| wake.notify_one());
                (woken, is_due) = (Instant::now(), false);
            }
            extent = now;
        }
    }

    /// Wakes the lane of a subject. Returns whether there is one.
    fn wake(&self, subject: &str) -> bool {
        let wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        wakes.get(subject).map(|wake| wake.notify_one()).is_some()
    }
}
