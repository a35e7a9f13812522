//! Events that a program has defined: the meaning of `struct relay_event_class *`.
//!
//! The objects are never freed, so that the library can check a pointer to one of a closed channel. A program has few:
//! the same content is the same object, as long as the channel is open.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use relay::system::process_lock::ProcessLock;
use relay_producer::{Channel, Definition, Event, RequestError, Value};

use crate::error;
use crate::handle::Handle;

/// The object of `struct relay_event_class *`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct EventClass {
    /// The object's address. Other memory does not have it.
    pub(crate) me: AtomicUsize,
    pub(crate) handle: &'static Handle,
    /// Number of the channel's events: each open channel has another one.
    serial: usize,
    index: usize,
}

/// The events of an open channel.
#[derive(Debug)]
pub(crate) struct Events {
    serial: usize,
    list: ProcessLock<List>,
}

#[derive(Clone, Debug, Default)]
struct List {
    events: Vec<Event>,
    classes: HashMap<Definition, &'static EventClass>,
}

impl Default for Events {
    fn default() -> Events {
        static LAST: AtomicUsize = AtomicUsize::new(0);
        // Relaxed: the numbers must differ, no more.
        Events { serial: LAST.fetch_add(1, Ordering::Relaxed), list: ProcessLock::default() }
    }
}

impl Events {
    /// Defines an event of the handle's channel.
    pub(crate) fn define(
        &self,
        handle: &'static Handle,
        channel: &Channel,
        definition: Definition,
    ) -> Result<&'static EventClass, Errno> {
        // Asked each time: the daemon may be another one, and the event lost there.
        let event = channel.define(definition.clone()).map_err(|error| error::of_request(&error))?;
        Ok(self.class(handle, definition, event))
    }

    /// Defines like [`define`](Self::define), and waits not longer than this.
    pub(crate) fn define_within(
        &self,
        handle: &'static Handle,
        channel: &Channel,
        definition: Definition,
        limit: Duration,
    ) -> Result<&'static EventClass, RequestError> {
        let event = channel.define_within(definition.clone(), limit)?;
        Ok(self.class(handle, definition, event))
    }

    /// Returns the object of an event, a new one if there was none.
    fn class(&self, handle: &'static Handle, definition: Definition, event: Event) -> &'static EventClass {
        let mut list = self.list.write();
        if let Some(class) = list.classes.get(&definition) {
            return class;
        }
        let class =
            EventClass { me: AtomicUsize::new(0), handle, serial: self.serial, index: list.events.len() };
        let class: &'static EventClass = Box::leak(Box::new(class));
        // Relaxed: the program gets the pointer after this.
        class.me.store(std::ptr::from_ref(class).addr(), Ordering::Relaxed);
        list.events.push(event);
        list.classes.insert(definition, class);
        class
    }

    /// Writes a record of an event. EBADF: its channel has been closed.
    pub(crate) fn write(&self, class: &EventClass, values: &[Value<'_>]) -> Result<(), Errno> {
        let list = self.list.read();
        let event = list.events.get(class.index).filter(|_| class.serial == self.serial);
        event.ok_or(Errno::EBADF)?.write(values).map_err(error::of_write)
    }
}
