//! The events that a program has defined, and the ids that daemons have given them.
//!
//! An id belongs to one *instance* of the channel: to its buffers, or, where there are none, to a connection. The next
//! daemon may have made the channel again, and given other ids. So a writer asks for the id in the instance it writes
//! to, and gets none that belongs to another one. The handshake defines all events again before it hands out a
//! connection.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use relay::system::process_lock::ProcessLock;
use relay::trace::definition::Definition;
use relay::wire::frame::{Define, DefineField};

/// Returns the number of a new instance; no other instance of this process has it.
pub(crate) fn new_instance() -> u32 {
    static LAST: AtomicU32 = AtomicU32::new(0);
    // Relaxed: the numbers must differ, no more. After 2^32 connections they repeat, long after the ids' use.
    LAST.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
}

/// A defined event.
#[derive(Debug)]
pub(crate) struct Defined {
    pub(crate) definition: Definition,
    /// `instance << 32 | id` of the latest instance that knows the event; 0 if none does.
    latest: AtomicU64,
    /// The same of the instance before, where threads may still be writing.
    before: AtomicU64,
}

impl Defined {
    fn new(definition: Definition) -> Defined {
        Defined { definition, latest: AtomicU64::new(0), before: AtomicU64::new(0) }
    }

    /// Returns the event's id in an instance.
    #[inline(always)]
    pub(crate) fn id_in(&self, instance: u32) -> Option<u16> {
        // Relaxed, here and below: the word is complete in itself.
        let latest = self.latest.load(Ordering::Relaxed);
        if (latest >> 32) as u32 == instance { Some(latest as u16) } else { self.id_before(instance) }
    }

    #[cold]
    fn id_before(&self, instance: u32) -> Option<u16> {
        let before = self.before.load(Ordering::Relaxed);
        ((before >> 32) as u32 == instance).then_some(before as u16)
    }

    /// Notes the id that the daemon has given in an instance.
    pub(crate) fn settle(&self, instance: u32, id: u16) {
        let latest = self.latest.load(Ordering::Relaxed);
        if (latest >> 32) as u32 != instance {
            self.before.store(latest, Ordering::Relaxed);
        }
        self.latest.store(u64::from(instance) << 32 | u64::from(id), Ordering::Relaxed);
    }

    /// Returns the body of the request that defines the event.
    pub(crate) fn request(&self, channel: u32) -> Define<'_> {
        let Definition { name, level, target, file, line, fields } = &self.definition;
        Define {
            channel,
            level: level.map_or(0, |level| level.number()),
            line: *line,
            name: name.as_bytes(),
            target: target.as_bytes(),
            file: file.as_bytes(),
            fields: fields
                .iter()
                .map(|field| DefineField { kind: field.kind as u8, name: field.name.as_bytes() })
                .collect(),
        }
    }
}

/// All events that a channel's program has defined, each content once.
#[derive(Debug, Default)]
pub(crate) struct Definitions(ProcessLock<HashMap<Definition, Arc<Defined>>>);

impl Definitions {
    /// Returns the event with this content, a new one if there was none.
    pub(crate) fn get(&self, definition: Definition) -> Arc<Defined> {
        let new = |definition: &Definition| Arc::new(Defined::new(definition.clone()));
        Arc::clone(self.0.write().entry(definition).or_insert_with_key(new))
    }

    /// Forgets an event that no daemon has accepted.
    pub(crate) fn forget(&self, defined: &Defined) {
        let mut all = self.0.write();
        if defined.latest.load(Ordering::Relaxed) == 0 {
            all.remove(&defined.definition);
        }
    }

    /// Returns all events.
    pub(crate) fn all(&self) -> Vec<Arc<Defined>> {
        self.0.read().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(name: &str) -> Definition {
        let (target, file) = (String::new(), String::new());
        Definition { name: name.into(), level: None, target, file, line: 0, fields: Vec::new() }
    }

    #[test]
    fn same_content_is_the_same_event() {
        let definitions = Definitions::default();
        let one = definitions.get(definition("one"));
        assert!(Arc::ptr_eq(&one, &definitions.get(definition("one"))));
        assert!(!Arc::ptr_eq(&one, &definitions.get(definition("two"))));
        assert_eq!(definitions.all().len(), 2);
        one.settle(new_instance(), 256);
        definitions.forget(&one);
        assert_eq!(definitions.all().len(), 2, "a daemon knows it");
        definitions.forget(&definitions.get(definition("two")));
        assert_eq!(definitions.all().len(), 1);
    }

    #[test]
    fn id_is_that_of_its_instance() {
        let defined = Defined::new(definition("one"));
        let [first, second, third] = [(); 3].map(|()| new_instance());
        assert_eq!(defined.id_in(first), None);
        defined.settle(first, 256);
        defined.settle(second, 300);
        assert_eq!(
            [first, second, third].map(|instance| defined.id_in(instance)),
            [Some(256), Some(300), None]
        );
        // The same buffers, whose dictionary was lost.
        defined.settle(second, 301);
        assert_eq!([first, second].map(|instance| defined.id_in(instance)), [Some(256), Some(301)]);
        defined.settle(third, 256);
        assert_eq!(
            [first, second, third].map(|instance| defined.id_in(instance)),
            [None, Some(301), Some(256)]
        );
    }
}
