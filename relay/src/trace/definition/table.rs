//! The events of a channel by id.

use std::collections::HashMap;
use std::sync::Arc;

use crate::trace::definition::Definition;
use crate::trace::event::{Event, id};

/// The events that programs have defined in a channel, by id and by content.
#[derive(Clone, Debug, Default)]
pub struct Definitions {
    /// By id, from [`id::DEFINED`] on.
    list: Vec<Option<Arc<Definition>>>,
    ids: HashMap<Arc<Definition>, u16>,
}

impl Definitions {
    /// Returns an empty table.
    pub fn new() -> Definitions {
        Definitions::default()
    }

    /// Returns the event with this id.
    #[inline]
    pub fn get(&self, id: u16) -> Option<&Definition> {
        self.list.get(usize::from(id.checked_sub(id::DEFINED)?))?.as_deref()
    }

    /// Returns the id of the event with this content.
    pub fn id_of(&self, definition: &Definition) -> Option<u16> {
        self.ids.get(definition).copied()
    }

    /// Adds an event. Returns false, and changes nothing, if the id is built in or has another event.
    pub fn insert(&mut self, id: u16, definition: Definition) -> bool {
        let Some(place) = id.checked_sub(id::DEFINED).map(usize::from) else { return false };
        if self.list.len() <= place {
            self.list.resize(place + 1, None);
        }
        match &self.list[place] {
            Some(there) => **there == definition,
            None => {
                let definition = Arc::new(definition);
                self.list[place] = Some(Arc::clone(&definition));
                self.ids.entry(definition).or_insert(id);
                true
            }
        }
    }

    /// Returns the lowest id behind all events; `None` if there is none left.
    pub fn next_id(&self) -> Option<u16> {
        u16::try_from(self.list.len()).ok()?.checked_add(id::DEFINED)
    }

    /// Returns the number of events.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Returns whether there is no event.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Iterates over the events by id.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &Definition)> {
        let ids = id::DEFINED..=u16::MAX;
        ids.zip(&self.list).filter_map(|(id, definition)| Some((id, definition.as_deref()?)))
    }

    /// Returns whether a record with this id may have this payload.
    #[inline]
    pub fn fits(&self, id: u16, payload: &[u8]) -> bool {
        match id {
            id::TEXT | id::RAW => true,
            ..id::BUILTINS => !matches!(Event::decode(id, payload), Event::Damaged(_)),
            id => self.get(id).is_some_and(|definition| definition.fits(payload)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Definition {
        Definition { name: name.to_owned(), ..Definition::default() }
    }

    #[test]
    fn an_id_keeps_its_event() {
        let mut table = Definitions::new();
        assert_eq!(table.next_id(), Some(256));
        assert!(table.insert(257, named("a")));
        assert!(table.insert(257, named("a")));
        assert!(!table.insert(257, named("b")));
        assert!(!table.insert(255, named("b")));
        assert_eq!((table.len(), table.next_id()), (1, Some(258)));
        assert_eq!((table.id_of(&named("a")), table.id_of(&named("b"))), (Some(257), None));
        assert!(table.get(256).is_none() && table.get(0).is_none());
        assert!(table.insert(u16::MAX, named("last")));
        assert_eq!(table.next_id(), None);
        let ids: Vec<u16> = table.iter().map(|(id, _)| id).collect();
        assert_eq!(ids, [257, u16::MAX]);
    }

    #[test]
    fn record_without_a_definition_does_not_fit() {
        let mut table = Definitions::new();
        table.insert(256, named("a"));
        assert!(table.fits(id::TEXT, b"x") && table.fits(id::RAW, b""));
        assert!(table.fits(id::SPAN_END, &[0; 8]) && !table.fits(id::SPAN_END, &[0; 7]));
        assert!(!table.fits(9, b"") && !table.fits(255, b"") && !table.fits(257, b""));
        assert!(table.fits(256, b"") && !table.fits(256, b"x"));
    }
}
