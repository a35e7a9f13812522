//! A place in the program that has events: their definitions, and how a record is composed.

use std::fmt::Write;

use ::tracing::field::FieldSet;
use ::tracing::{Event, Metadata};
use once_cell::race::OnceBox;
use relay::trace::definition::{Definition, FIELDS_MAX, Field, FieldType, NAME_MAX, PLACE_MAX};

use crate::channel::Channel;
use crate::error::WriteError;
use crate::event;
use crate::frontend::cut::{Cut, name};
use crate::frontend::late::Late;
use crate::tracing::fields::{Fill, Filled, Kinds, Learn, Pairs, TypesOf};
use crate::tracing::level_of;

/// Most definitions of a place, inside of spans and outside each. The last one has texts alone.
const VARIANTS: usize = 4;
/// Longest payload, in bytes.
const PAYLOAD_MAX: usize = 1024;
/// The room in which a payload is composed first, in bytes. Zeroing more would cost more than the rest.
const ROOM: usize = 256;
/// Name of the field with the number of the event's span.
const SPAN: &str = "span";

/// An event's definition for values of these types.
struct Variant {
    event: event::Event,
    types: TypesOf,
}

/// A place in the program.
pub(super) struct Site {
    metadata: &'static Metadata<'static>,
    /// Outside of spans, and inside.
    variants: [[OnceBox<Variant>; VARIANTS]; 2],
}

impl Site {
    pub(super) fn new(metadata: &'static Metadata<'static>) -> Site {
        Site { metadata, variants: Default::default() }
    }

    #[inline(always)]
    pub(super) fn metadata(&self) -> &'static Metadata<'static> {
        self.metadata
    }

    /// Writes an event in the span with this number; 0 is none.
    #[inline(always)]
    pub(super) fn write(&self, late: &Late, channel: &Channel, span: u64, event: &Event<'_>) {
        if let Some(variant) = self.variants[usize::from(span != 0)][0].get() {
            let mut room = [0; ROOM];
            let max = channel.payload_max().min(ROOM);
            let mut fill = Fill::new(&mut room[..max], span, &variant.types);
            event.record(&mut fill);
            // The library counts what has no room; an event has no caller that an error could go to.
            if let Filled::All(payload) = fill.finish()
                && variant.event.write_payload(payload) != Err(WriteError::NotDefined)
            {
                return;
            }
        }
        self.write_otherwise(late, channel, span, event);
    }

    /// Writes an event that is long, or not defined yet with these types, or whose values are in another order.
    #[cold]
    #[inline(never)]
    fn write_otherwise(&self, late: &Late, channel: &Channel, span: u64, event: &Event<'_>) {
        let mut kinds = None;
        for (n, slot) in self.variants[usize::from(span != 0)].iter().enumerate() {
            let variant = slot.get().or_else(|| {
                let learnt = *kinds.get_or_insert_with(|| Learn::kinds(self.metadata.fields(), event));
                let kinds = if n + 1 == VARIANTS { Kinds::texts() } else { learnt };
                self.define(late, channel, slot, span != 0, kinds)
            });
            let Some(variant) = variant else { break };
            let mut room = [0; PAYLOAD_MAX];
            let max = channel.payload_max().min(PAYLOAD_MAX);
            let mut fill = Fill::cutting(&mut room[..max], span, &variant.types);
            event.record(&mut fill);
            let mut filled = fill.finish();
            if matches!(filled, Filled::Disordered) {
                let mut fill = Fill::cutting(&mut room[..max], span, &variant.types);
                for index in 0..self.metadata.fields().len() {
                    fill.only(index);
                    event.record(&mut fill);
                }
                filled = fill.finish();
            }
            match filled {
                Filled::All(payload) => {
                    if variant.event.write_payload(payload) == Err(WriteError::NotDefined) {
                        break;
                    }
                    return;
                }
                Filled::OtherTypes => {}
                Filled::NoRoom | Filled::Disordered => break,
            }
        }
        self.write_text(channel, span, event);
    }

    /// Writes an event without a definition, as text.
    fn write_text(&self, channel: &Channel, span: u64, event: &Event<'_>) {
        let mut room = [0; PAYLOAD_MAX];
        let mut text = Cut::new(&mut room);
        event.record(&mut Pairs { text: &mut text, is_of_message: true });
        event.record(&mut Pairs { text: &mut text, is_of_message: false });
        if span != 0 {
            text.pair(SPAN, format_args!("{span}"));
        }
        let len = text.finish();
        let level = level_of(self.metadata.level());
        let _ = channel.log_bytes(level, self.metadata.target().as_bytes(), &room[..len]);
    }

    fn define<'a>(
        &self,
        late: &Late,
        channel: &Channel,
        slot: &'a OnceBox<Variant>,
        in_span: bool,
        kinds: Kinds,
    ) -> Option<&'a Variant> {
        let definition = self.definition(in_span, kinds)?;
        let types = TypesOf::new(in_span, kinds, self.metadata.fields().len());
        let event = late.define(channel, definition)?;
        // Another thread may have defined it meanwhile, which is the same event.
        let _ = slot.set(Box::new(Variant { event, types }));
        slot.get()
    }

    /// Returns the definition for values of these types; `None` if there are too many fields.
    fn definition(&self, in_span: bool, kinds: Kinds) -> Option<Definition> {
        let metadata = self.metadata;
        let mut fields: Vec<Field> = Vec::new();
        if in_span {
            fields.push(Field { name: SPAN.into(), kind: FieldType::U64 });
        }
        add_fields(&mut fields, metadata.fields(), kinds);
        (fields.len() <= FIELDS_MAX).then(|| {
            let place = |text: &str| if text.is_empty() { String::new() } else { name(text, PLACE_MAX) };
            let own_name = metadata.name();
            Definition {
                // The usual name is `event src/db.rs:42`.
                name: name(own_name.strip_prefix("event ").unwrap_or(own_name), NAME_MAX),
                level: Some(level_of(metadata.level())),
                target: place(metadata.target()),
                file: place(metadata.file().unwrap_or_default()),
                line: metadata.line().unwrap_or(0),
                fields,
            }
        })
    }
}

/// Adds the fields of a place, under names that differ.
fn add_fields(fields: &mut Vec<Field>, set: &FieldSet, kinds: Kinds) {
    for (index, field) in set.iter().enumerate() {
        let given = name(field.name(), NAME_MAX);
        let mut named = given.clone();
        let mut number = 2;
        while fields.iter().any(|other| other.name == named) {
            let mut suffix = String::new();
            // Writing to a String does not fail.
            let _ = write!(suffix, "_{number}");
            named = name(&given, NAME_MAX - suffix.len()) + &suffix;
            number += 1;
        }
        fields.push(Field { name: named, kind: kinds.of(index) });
    }
}
