//! Spans: their numbers, their records, and those that a thread is in.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ::tracing::span::{Attributes, Id, Record};
use relay::trace::event::{Event, id};
use tracing_subscriber::registry::{LookupSpan, SpanRef};

use crate::channel::Channel;
use crate::frontend::cut::{Cut, name};
use crate::tracing::fields::Pairs;
use crate::tracing::level_of;

/// Longest text of a span's fields, in bytes.
const FIELDS_LEN: usize = 1024;
/// Longest name of a span, in bytes.
const NAME_LEN: usize = 255;

/// A span, as one layer knows it.
struct Known {
    /// Number of the layer.
    layer: u32,
    /// Number of the span in this process.
    number: u64,
    parent: u64,
    fields: String,
    /// Payload of its first record, and of those that follow.
    first: Vec<u8>,
    later: Vec<u8>,
    has_begun: AtomicBool,
}

impl Known {
    fn compose(&mut self, span_name: &str) {
        let span_name = name(span_name, NAME_LEN);
        let begin = |fields: &str| {
            let (span, parent, fields) = (self.number, self.parent, fields.as_bytes());
            let mut payload = Vec::new();
            // The lengths are bounded.
            let _ = Event::SpanBegin { span, parent, name: span_name.as_bytes(), fields }
                .encode_into(&mut payload);
            payload
        };
        (self.first, self.later) = (begin(&self.fields), begin(""));
    }

    /// Writes that a thread enters the span.
    fn begin(&self, channel: &Channel) {
        // Relaxed: two threads that enter it at once need no order; one of them has the fields.
        let is_first = !self.has_begun.swap(true, Ordering::Relaxed);
        let payload =
            if is_first && self.first.len() <= channel.payload_max() { &self.first } else { &self.later };
        let _ = channel.record(id::SPAN_BEGIN, payload);
    }
}

/// What the layers know of a span.
struct OfLayers(Vec<Known>);

impl OfLayers {
    fn of(&self, layer: u32) -> Option<&Known> {
        self.0.iter().find(|known| known.layer == layer)
    }
}

/// A span that a thread is in.
struct Entered {
    layer: u32,
    id: u64,
    number: u64,
    /// Whether its begin is written.
    has_begun: bool,
}

/// Spans of which a thread keeps the payload.
const KEPT: usize = 16;
/// Longest payload that it keeps, in bytes.
const KEPT_LEN: usize = 96;
/// Words of [`NEWEST`].
const NEWEST_LEN: usize = 4096;

/// A span that a thread has entered before, so that it need not be looked up again.
#[derive(Clone, Copy)]
struct Kept {
    layer: u32,
    len: u32,
    id: u64,
    /// 0 for none.
    number: u64,
    /// Payload of a later `span_begin`.
    payload: [u8; KEPT_LEN],
}

/// The number of the newest span, of all whose layer and id lead to the same word. The registry uses ids again: what a
/// thread has kept under an id is right if no newer span has the word.
static NEWEST: [AtomicU64; NEWEST_LEN] = [const { AtomicU64::new(0) }; NEWEST_LEN];

/// What a thread knows of its spans.
struct OfThread {
    entered: Vec<Entered>,
    kept: [Kept; KEPT],
}

thread_local! {
    static THREAD: RefCell<OfThread> = const {
        let none = Kept { layer: 0, len: 0, id: 0, number: 0, payload: [0; KEPT_LEN] };
        RefCell::new(OfThread { entered: Vec::new(), kept: [none; KEPT] })
    };
}

/// Calls `act` with what this thread knows. `None`: the thread ends, or is in a signal handler within these functions.
#[inline(always)]
fn with_thread<T>(act: impl FnOnce(&mut OfThread) -> T) -> Option<T> {
    THREAD.try_with(|thread| thread.try_borrow_mut().ok().map(|mut thread| act(&mut thread))).ok().flatten()
}

/// Returns a number that layer and id lead to.
#[inline(always)]
fn mix(layer: u32, id: u64) -> usize {
    ((id ^ u64::from(layer) << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
}

/// Returns the number of the span that this thread is in; 0 for none.
#[inline(always)]
pub(super) fn current(layer: u32) -> u64 {
    let number = THREAD.try_with(|thread| {
        let thread = thread.try_borrow().ok()?;
        thread.entered.iter().rev().find(|entered| entered.layer == layer).map(|entered| entered.number)
    });
    number.ok().flatten().unwrap_or(0)
}

/// Returns the number of a span.
pub(super) fn number_of<'a, R: LookupSpan<'a>>(span: &SpanRef<'a, R>, layer: u32) -> Option<u64> {
    span.extensions().get::<OfLayers>()?.of(layer).map(|known| known.number)
}

/// Gives a new span its number, and keeps its fields.
pub(super) fn note<'a, R: LookupSpan<'a>>(span: &SpanRef<'a, R>, layer: u32, attributes: &Attributes<'_>) {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let parent = span.parent().and_then(|parent| number_of(&parent, layer)).unwrap_or(0);
    let mut known = Known {
        layer,
        // Relaxed: the numbers must differ, no more.
        number: LAST.fetch_add(1, Ordering::Relaxed) + 1,
        parent,
        fields: text(|pairs| attributes.record(pairs)),
        first: Vec::new(),
        later: Vec::new(),
        has_begun: AtomicBool::new(false),
    };
    known.compose(span.name());
    // Relaxed: a thread that can enter the span has got it from this one.
    NEWEST[mix(layer, span.id().into_u64()) % NEWEST_LEN].store(known.number, Ordering::Relaxed);
    let mut extensions = span.extensions_mut();
    match extensions.get_mut::<OfLayers>() {
        Some(of_layers) => of_layers.0.push(known),
        None => extensions.insert(OfLayers(vec![known])),
    }
}

/// Returns values as text, cut where it is too long.
fn text(record: impl Fn(&mut Pairs<'_, '_>)) -> String {
    let mut room = [0; FIELDS_LEN];
    let mut text = Cut::new(&mut room);
    // A field may have the name of an event's message.
    record(&mut Pairs { text: &mut text, is_of_message: true });
    record(&mut Pairs { text: &mut text, is_of_message: false });
    let len = text.finish();
    String::from_utf8_lossy(&room[..len]).into_owned()
}

/// Adds values that came later. Those that come behind the first begin become a `log` record.
pub(super) fn add<'a, 'c, R: LookupSpan<'a>>(
    span: &SpanRef<'a, R>,
    layer: u32,
    values: &Record<'_>,
    channel: impl FnOnce() -> Option<&'c Channel>,
) {
    let added = text(|pairs| values.record(pairs));
    // `Empty`, and `None`, are no values.
    if added.is_empty() {
        return;
    }
    let number = {
        let mut extensions = span.extensions_mut();
        let known = extensions.get_mut::<OfLayers>();
        let known = known.and_then(|all| all.0.iter_mut().find(|known| known.layer == layer));
        let Some(known) = known else { return };
        if !*known.has_begun.get_mut() {
            let mut fields = [known.fields.as_str(), added.as_str()].join(" ");
            if fields.len() > FIELDS_LEN {
                fields = name(&fields, FIELDS_LEN);
            }
            known.fields = fields.trim_start().to_owned();
            known.compose(span.name());
            return;
        }
        known.number
    };
    if let Some(channel) = channel() {
        let metadata = span.metadata();
        let text = format!("span {number}: {added}");
        let _ = channel.log(level_of(metadata.level()), metadata.target(), &text);
    }
}

/// Writes that this thread enters a span, which `find` looks up.
#[inline(always)]
pub(super) fn enter<'a, R: LookupSpan<'a> + 'a>(
    id: &Id,
    layer: u32,
    channel: Option<&Channel>,
    find: impl FnOnce() -> Option<SpanRef<'a, R>>,
) {
    let id = id.into_u64();
    let mixed = mix(layer, id);
    let is_kept = with_thread(|thread| {
        let kept = &thread.kept[mixed % KEPT];
        let is_it = kept.id == id && kept.layer == layer && kept.number != 0;
        // Relaxed: see `note`.
        if !is_it || kept.number != NEWEST[mixed % NEWEST_LEN].load(Ordering::Relaxed) {
            return false;
        }
        let Some(channel) = channel else { return false };
        let _ = channel.record(id::SPAN_BEGIN, &kept.payload[..kept.len as usize]);
        thread.entered.push(Entered { layer, id, number: kept.number, has_begun: true });
        true
    });
    if is_kept != Some(true)
        && let Some(span) = find()
    {
        enter_first(&span, layer, channel);
    }
}

/// Writes that this thread enters a span that it does not know.
#[inline(never)]
fn enter_first<'a, R: LookupSpan<'a>>(span: &SpanRef<'a, R>, layer: u32, channel: Option<&Channel>) {
    let extensions = span.extensions();
    let Some(known) = extensions.get::<OfLayers>().and_then(|all| all.of(layer)) else { return };
    if let Some(channel) = channel {
        known.begin(channel);
    }
    let (id, number) = (span.id().into_u64(), known.number);
    // In a thread that ends, events have no span.
    with_thread(|thread| {
        thread.entered.push(Entered { layer, id, number, has_begun: channel.is_some() });
        let kept = &mut thread.kept[mix(layer, id) % KEPT];
        if let Some(room) = kept.payload.get_mut(..known.later.len())
            && channel.is_some()
        {
            room.copy_from_slice(&known.later);
            (kept.layer, kept.id, kept.number) = (layer, id, number);
            kept.len = known.later.len() as u32;
        }
    });
}

/// Takes a span off those that this thread is in, and writes that if its begin is written.
#[inline(always)]
pub(super) fn leave<'c>(id: &Id, layer: u32, channel: impl FnOnce() -> Option<&'c Channel>) {
    let id = id.into_u64();
    let left = with_thread(|thread| {
        let is_it = |entered: &Entered| entered.layer == layer && entered.id == id;
        if thread.entered.last().is_some_and(is_it) {
            return thread.entered.pop();
        }
        let at = thread.entered.iter().rposition(is_it)?;
        Some(thread.entered.remove(at))
    });
    if let Some(entered) = left.flatten().filter(|entered| entered.has_begun)
        && let Some(channel) = channel()
    {
        end(entered.number, channel);
    }
}

/// Writes that a thread leaves a span.
#[inline(always)]
fn end(number: u64, channel: &Channel) {
    let _ = channel.record(id::SPAN_END, &number.to_le_bytes());
}

/// Writes a span that no thread has entered, at its end.
pub(super) fn close<'a, 'c, R: LookupSpan<'a>>(
    span: &SpanRef<'a, R>,
    layer: u32,
    channel: impl FnOnce() -> Option<&'c Channel>,
) {
    let extensions = span.extensions();
    let Some(known) = extensions.get::<OfLayers>().and_then(|all| all.of(layer)) else { return };
    if !known.has_begun.load(Ordering::Relaxed)
        && let Some(channel) = channel()
    {
        known.begin(channel);
        end(known.number, channel);
    }
}
