//! A layer for the crate `tracing`, which writes into a timed channel.
//!
//! ```no_run
//! use tracing_subscriber::prelude::*;
//!
//! let layer = relay_producer::tracing::layer("app/log")?;
//! tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer))?;
//! tracing::info!(host = "a", rows = 3, "connected");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! With the feature `tracing-log`, which `tracing-subscriber` has by default, `init()` in the place of `set_global_default`
//! also makes the messages of the crate `log` events. Then there is no place for [`log::init`](crate::log::init), which is
//! faster, and keeps their targets.
//!
//! **Events.** Each place in the program is an event that the layer defines at its first use, with name, level, target,
//! file, line, and a field for each value. Numbers, bools and texts keep their types; values that are formatted become
//! texts. An event within a span has the span's number as its first field. A place whose values change their types gets
//! up to four definitions; the last one has texts alone. A payload has at most 1 KiB: what is longer is cut, and
//! ends with `…`. An event takes no memory where the buffers are shared, unless one of its values does.
//!
//! **Spans.** A thread that enters a span writes `span_begin`, and `span_end` when it leaves. So slices of a thread
//! nest, and a future that several threads poll is a slice for each poll. Name and parent are in each `span_begin`, the
//! fields in the first one. A span that no thread enters gets both at its end. A value that comes later than the first
//! `span_begin` becomes a `log` record.
//!
//! **Signal handlers** may have events at places of which a record was written before, outside of spans or inside as
//! now: these take neither a lock nor memory, as [`Channel::write`](crate::Channel::write). The first event of a place, and
//! a new span, are not for them.
//!
//! **Levels.** Directives in the channel's file `level` change what the layer gets while the program runs, and so does
//! [`Builder::levels`](crate::Builder::levels). Other layers get what they got before. A filter that the program puts
//! on this layer stays: the layer gets what both let pass. An event that no layer wants costs what it costs by `tracing`
//! alone.
//!
//! **Waiting.** Only the first event of a place waits for the daemon, at most 1 s. If the daemon refuses the definition,
//! or does not answer, events of the place become `log` records with the fields as text. Without a daemon the
//! program runs, events are lost, and at most one a second looks for a daemon.

mod fields;
mod layer;
mod site;
mod sites;
mod spans;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};

use ::tracing::dispatcher::{WeakDispatch, with_default};
use ::tracing::span::{Attributes, Id, Record};
use ::tracing::{Event, Subscriber};
use relay::trace::level::Level;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

pub use self::layer::Layer;
use self::layer::Registered;
use self::sites::Sites;

use crate::builder::Builder;
use crate::frontend::late::{FrontendError, Late};
use crate::socket::follow::Act;

/// Returns a layer that writes into a timed channel.
///
/// `channel` is a name, of the relayfs that `$RELAYFS` names, else of /mnt/relay; or a builder. If there is no daemon
/// yet, a line on standard error says so.
pub fn layer<S>(channel: impl Into<Builder>) -> Result<Layer<S>, FrontendError> {
    static LAST: AtomicU32 = AtomicU32::new(0);
    let dispatch: Registered = Arc::default();
    let registered = Arc::clone(&dispatch);
    let follow: Act = Arc::new(move |_| {
        // A layer that is not in use yet is asked when it is.
        let used = registered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .and_then(WeakDispatch::upgrade);
        if let Some(used) = used {
            // A lone dispatcher is looked for on the calling thread.
            with_default(&used, ::tracing::callsite::rebuild_interest_cache);
        }
    });
    let late = Late::new(channel.into(), Some(follow))?;
    let levels = Arc::clone(late.levels());
    // Relaxed: the numbers must differ, no more.
    let writer = Writer { number: LAST.fetch_add(1, Ordering::Relaxed), late, sites: Sites::default() };
    Ok(Layer::new(writer, levels, dispatch))
}

/// Writes what the filter lets pass.
struct Writer {
    /// Number among the layers of the process, which may have the same spans.
    number: u32,
    late: Late,
    sites: Sites,
}

impl Writer {
    fn enter<S: Subscriber + for<'a> LookupSpan<'a>>(&self, id: &Id, context: &Context<'_, S>) {
        let channel = self.late.channel();
        spans::enter(id, self.number, channel, || context.span(id));
    }

    fn exit(&self, id: &Id) {
        spans::leave(id, self.number, || self.late.channel());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Writer {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let Some(channel) = self.late.channel() else { return };
        let span = if event.is_contextual() {
            spans::current(self.number)
        } else {
            event.parent().and_then(|id| spans::number_of(&context.span(id)?, self.number)).unwrap_or(0)
        };
        self.sites.of(event.metadata()).write(&self.late, channel, span, event);
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            spans::note(&span, self.number, attributes);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            spans::add(&span, self.number, values, || self.late.channel());
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        if let Some(span) = context.span(&id) {
            spans::close(&span, self.number, || self.late.channel());
        }
    }
}

fn level_of(level: &::tracing::Level) -> Level {
    match *level {
        ::tracing::Level::ERROR => Level::Error,
        ::tracing::Level::WARN => Level::Warn,
        ::tracing::Level::INFO => Level::Info,
        ::tracing::Level::DEBUG => Level::Debug,
        ::tracing::Level::TRACE => Level::Trace,
    }
}
