//! Events that the program has defined.

use std::sync::Arc;
use std::time::{Duration, Instant};

use relay::trace::definition::{Definition, Value};

use crate::definitions::Defined;
use crate::direct::content::RecordOf;
use crate::error::{RequestError, WriteError};
use crate::options::REPLY_LIMIT;
use crate::record;
use crate::route::Route;
use crate::socket::handshake::OPEN_LIMIT;
use crate::socket::reconnect::no_connection;
use crate::socket::replies::Reply;

/// An event of a timed channel, made by [`Channel::define`](crate::Channel::define).
///
/// Many threads can use it at once, and it may outlive the channel's value.
#[derive(Clone, Debug)]
pub struct Event {
    route: Route,
    defined: Arc<Defined>,
}

impl Event {
    /// Defines an event, unless the daemon knows it from this channel.
    /// `limit` is the longest wait for an answer; without it, also for a connection.
    pub(crate) fn define(
        route: &Route,
        definition: Definition,
        limit: Option<Duration>,
    ) -> Result<Event, RequestError> {
        definition.check()?;
        let definitions = route.link.definitions();
        let defined = definitions.get(definition);
        let event = Event { route: route.clone(), defined };
        let result = event.request(limit);
        if result.is_err() {
            definitions.forget(&event.defined);
        }
        result.map(|()| event)
    }

    fn request(&self, limit: Option<Duration>) -> Result<(), RequestError> {
        // A caller that tries again once a second must get a connection in one try: a handshake has many answers.
        let wait = limit.unwrap_or(OPEN_LIMIT);
        let connection = self.route.link.connection_within(wait).map_err(no_connection)?;
        if !connection.geometry.timed() {
            return Err(RequestError::NotTimed);
        }
        // A handshake may have defined it.
        if self.defined.id_in(connection.instance()).is_some() {
            return Ok(());
        }
        let deadline = Some(Instant::now() + limit.unwrap_or(REPLY_LIMIT));
        let id = connection.expect();
        if let Err(error) = connection.send_define(&self.defined, id, deadline) {
            connection.forget(id);
            return Err(error.into());
        }
        match connection.reply(id, deadline)? {
            Reply::Defined(id) => {
                self.defined.settle(connection.instance(), id);
                Ok(())
            }
            Reply::Refused(refused) => Err(refused.into()),
            other => Err(RequestError::Garbled(format!("{other:?} for a definition"))),
        }
    }

    /// Writes a record of the event, with a value for each field in their order.
    /// It never waits; otherwise it is like [`Channel::write`](crate::Channel::write).
    ///
    /// An event with a level that is not [`enabled`](crate::Channel::enabled) is left out. Only values of more than 1 KiB
    /// take memory. Values that are not those of the fields are refused, and counted
    /// nowhere.
    #[inline]
    pub fn write(&self, values: &[Value<'_>]) -> Result<(), WriteError> {
        let fields = &self.defined.definition.fields;
        let fits = fields.len() == values.len()
            && fields.iter().zip(values).all(|(field, value)| field.kind == value.kind());
        if !fits {
            return Err(WriteError::Mismatch);
        }
        let Definition { level, target, .. } = &self.defined.definition;
        if level.is_some_and(|level| !self.route.levels.enabled(level, target.as_bytes())) {
            return Ok(());
        }
        let of = RecordOf { id: 0, defined: Some(&self.defined), about: None };
        let max = self.route.payload_max();
        let written = record::with_values(values, max, |payload| self.route.write_record(of, payload));
        written.unwrap_or_else(|len| self.route.refuse_too_big(len, max))
    }

    /// Writes a record whose payload is composed: a value for each field, behind each other.
    #[cfg(feature = "tracing")]
    #[inline(always)]
    pub(crate) fn write_payload(&self, payload: &[u8]) -> Result<(), WriteError> {
        let of = RecordOf { id: 0, defined: Some(&self.defined), about: None };
        self.route.write_record(of, payload)
    }

    /// Returns the event's definition.
    pub fn definition(&self) -> &Definition {
        &self.defined.definition
    }
}
