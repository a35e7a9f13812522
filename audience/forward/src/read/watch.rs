//! Looks which subjects have grown, and wakes their lanes.
//!
//! A consumer would be told at once. But it stays on the server for a while when this program is killed, and headers
//! that no client can parse end its connection again and again. Numbers of messages have neither fault.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::hub;
use super::known::Known;
use super::selection::Selection;
use super::store::{Extent, Store, Subjects};

/// Time between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Longest time until all lanes look themselves. A subject that loses as many messages as it gets seems not to grow.
const WAKE_ALL: Duration = Duration::from_secs(2);

/// What is watched, and what hears of it.
pub(super) struct Watch {
    pub(super) store: Arc<Store>,
    pub(super) known: Arc<Known>,
    pub(super) selection: Selection,
    /// Gets subjects that have appeared.
    pub(super) appear: mpsc::UnboundedSender<String>,
}

impl Watch {
    /// Looks until the main thread ends. It begins with what was there at the start.
    pub(super) async fn run(self, mut extent: Extent, subjects: Subjects) {
        let mut counts: BTreeMap<String, u64> = subjects.all.into_iter().collect();
        let (mut woken, mut is_due) = (Instant::now(), false);
        while !self.appear.is_closed() {
            tokio::time::sleep(LOOK_AGAIN).await;
            let now = self.known.look(&self.store).await;
            let has_changed = (now.last, now.created) != (extent.last, extent.created);
            is_due |= has_changed;
            if now.created != extent.created {
                counts.clear();
            }
            if has_changed {
                let found = hub::find(&self.store, &self.selection).await;
                for (subject, count) in &found.all {
                    let is_same = counts.get(subject) == Some(count);
                    let is_new = !counts.contains_key(subject);
                    if !is_same
                        && !self.known.wake(subject)
                        && is_new
                        && self.appear.send(subject.clone()).is_err()
                    {
                        return;
                    }
                }
                counts = found.all.into_iter().collect();
            }
            if is_due && woken.elapsed() >= WAKE_ALL {
                self.known.wake_all();
                (woken, is_due) = (Instant::now(), false);
            }
            extent = now;
        }
    }
}
