//! The layer that programs get: the writer, behind a filter by levels.
//!
//! The filter is one of this layer alone, so that the program's other layers get what they got without it.
#![allow(unsafe_code)]

use std::any::TypeId;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use ::tracing::dispatcher::WeakDispatch;
use ::tracing::level_filters::LevelFilter;
use ::tracing::span::{Attributes, Id, Record};
use ::tracing::subscriber::Interest;
use ::tracing::{Dispatch, Event, Metadata, Subscriber};
use relay::trace::level::Level;
use tracing_subscriber::filter::Filtered;
use tracing_subscriber::layer::{Context, Filter};
use tracing_subscriber::registry::LookupSpan;

use crate::levels::Levels;
use crate::tracing::{Writer, level_of};

/// A layer whose events and spans become records of a timed channel; made by [`layer`](super::layer).
pub struct Layer<S>(Filtered<Writer, Wanted, S>, Registered);

/// The dispatcher that uses a layer.
pub(super) type Registered = Arc<Mutex<Option<WeakDispatch>>>;

impl<S> Layer<S> {
    pub(super) fn new(writer: Writer, levels: Arc<Levels>, registered: Registered) -> Layer<S> {
        Layer(Filtered::new(writer, Wanted(levels)), registered)
    }
}

/// The filter of a layer: what the levels let pass.
struct Wanted(Arc<Levels>);

impl<S> fmt::Debug for Layer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layer").field("late", &self.0.inner().late).finish_non_exhaustive()
    }
}

impl Wanted {
    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        self.0.enabled(level_of(metadata.level()), metadata.target().as_bytes())
    }
}

impl<S> Filter<S> for Wanted {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.wants(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match Level::of_number(self.0.highest()) {
            None => LevelFilter::OFF,
            Some(Level::Error) => LevelFilter::ERROR,
            Some(Level::Warn) => LevelFilter::WARN,
            Some(Level::Info) => LevelFilter::INFO,
            Some(Level::Debug) => LevelFilter::DEBUG,
            Some(Level::Trace) => LevelFilter::TRACE,
        })
    }
}

/// Passes all calls on to the filtered layer, except two that are frequent.
impl<S: Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Layer<S> {
    fn on_register_dispatch(&self, subscriber: &Dispatch) {
        *self.1.lock().unwrap_or_else(PoisonError::into_inner) = Some(subscriber.downgrade());
        self.0.on_register_dispatch(subscriber);
    }

    fn on_layer(&mut self, subscriber: &mut S) {
        self.0.on_layer(subscriber);
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        self.0.register_callsite(metadata)
    }

    fn enabled(&self, metadata: &Metadata<'_>, context: Context<'_, S>) -> bool {
        self.0.enabled(metadata, context)
    }

    fn event_enabled(&self, event: &Event<'_>, context: Context<'_, S>) -> bool {
        self.0.event_enabled(event, context)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        tracing_subscriber::Layer::<S>::max_level_hint(&self.0)
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        self.0.on_event(event, context);
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.0.on_new_span(attributes, id, context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        self.0.on_record(id, values, context);
    }

    // The filter would look the span up for each enter and exit. Spans that it has left out are unknown to the writer.
    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        self.0.inner().enter(id, &context);
    }

    fn on_exit(&self, id: &Id, _: Context<'_, S>) {
        self.0.inner().exit(id);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        self.0.on_close(id, context);
    }

    fn on_id_change(&self, old: &Id, new: &Id, context: Context<'_, S>) {
        self.0.on_id_change(old, new, context);
    }

    // SAFETY: as the trait's, whose condition holds for the filtered layer.
    unsafe fn downcast_raw(&self, id: TypeId) -> Option<*const ()> {
        // The registry finds by this that the layer has a filter.
        // SAFETY: the pointer is into `self`, and of the type with this id.
        unsafe { tracing_subscriber::Layer::<S>::downcast_raw(&self.0, id) }
    }
}
