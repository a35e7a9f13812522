//! The values of an event: their types, and their bytes in a payload.

use std::fmt::{self, Debug, Write};

use ::tracing::Event;
use ::tracing::field::{Field, FieldSet, Visit};
use relay::trace::definition::{FIELDS_MAX, FieldType};

use crate::frontend::cut::Cut;

/// Name of the field with the event's message.
const MESSAGE: &str = "message";
/// Bytes that a long text leaves to each text behind it.
const RESERVED: usize = 64;

/// The types of a place's fields, by index. A value that was missing is a text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kinds([FieldType; FIELDS_MAX], bool);

impl Kinds {
    /// Returns texts alone, which any value fits.
    pub(super) fn texts() -> Kinds {
        Kinds([FieldType::Str; FIELDS_MAX], true)
    }

    pub(super) fn of(&self, index: usize) -> FieldType {
        self.0.get(index).copied().unwrap_or(FieldType::Str)
    }
}

/// Learns the types of values.
pub(super) struct Learn(Kinds);

impl Learn {
    /// Returns the types of an event's values.
    pub(super) fn kinds(fields: &FieldSet, event: &Event<'_>) -> Kinds {
        let mut learn = Learn(Kinds([FieldType::Str; FIELDS_MAX], false));
        if fields.len() <= FIELDS_MAX {
            event.record(&mut learn);
        }
        learn.0
    }

    fn note(&mut self, field: &Field, kind: FieldType) {
        if let Some(place) = self.0.0.get_mut(field.index()) {
            *place = kind;
        }
    }
}

impl Visit for Learn {
    fn record_f64(&mut self, field: &Field, _: f64) {
        self.note(field, FieldType::F64);
    }

    fn record_i64(&mut self, field: &Field, _: i64) {
        self.note(field, FieldType::I64);
    }

    fn record_u64(&mut self, field: &Field, _: u64) {
        self.note(field, FieldType::U64);
    }

    fn record_bool(&mut self, field: &Field, _: bool) {
        self.note(field, FieldType::Bool);
    }

    fn record_debug(&mut self, field: &Field, _: &dyn Debug) {
        self.note(field, FieldType::Str);
    }
}

/// The type of a field, and what lies behind it.
#[derive(Clone, Copy)]
struct TypeOf {
    kind: FieldType,
    /// The least bytes of the fields behind it.
    behind: u16,
    /// Texts behind it.
    texts_behind: u16,
}

/// The types of a definition's fields, as a payload needs them.
pub(super) struct TypesOf {
    in_span: bool,
    is_texts: bool,
    n: usize,
    fields: [TypeOf; FIELDS_MAX],
}

/// Returns the bytes of a value that is zero or empty.
fn least(kind: FieldType) -> usize {
    match kind {
        FieldType::U64 | FieldType::I64 | FieldType::F64 => 8,
        FieldType::Bool => 1,
        FieldType::Str | FieldType::Bytes => 2,
    }
}

impl TypesOf {
    /// `n` is at most [`FIELDS_MAX`].
    pub(super) fn new(in_span: bool, kinds: Kinds, n: usize) -> TypesOf {
        let mut fields = [TypeOf { kind: FieldType::Str, behind: 0, texts_behind: 0 }; FIELDS_MAX];
        let (mut behind, mut texts_behind) = (0, 0);
        for (index, field) in fields[..n].iter_mut().enumerate().rev() {
            let kind = kinds.of(index);
            *field = TypeOf { kind, behind, texts_behind };
            behind += least(kind) as u16;
            texts_behind += u16::from(kind == FieldType::Str);
        }
        TypesOf { in_span, is_texts: kinds.1, n, fields }
    }
}

/// Returns how many bytes of the room a text leaves to those behind it: a fair part, at most [`RESERVED`] for each.
fn reserved(room: usize, texts_behind: usize) -> usize {
    (RESERVED * texts_behind).min(room / (texts_behind + 1) * texts_behind)
}

/// What became of a payload.
pub(super) enum Filled<'a> {
    /// It has all values.
    All(&'a [u8]),
    /// A value has another type than its field.
    OtherTypes,
    /// The values are not in the order of the fields.
    Disordered,
    /// There is not enough room.
    NoRoom,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Fits,
    OtherTypes,
    Disordered,
    NoRoom,
}

/// Composes a payload: the values in the order of the fields; zero or nothing for those that are missing.
pub(super) struct Fill<'a> {
    room: &'a mut [u8],
    at: usize,
    /// Index of the next field.
    next: usize,
    types: &'a TypesOf,
    state: State,
    /// Whether texts without room are cut.
    is_cutting: bool,
    /// The only field to take; `usize::MAX` for all.
    only: usize,
}

impl<'a> Fill<'a> {
    /// Begins a payload that must have room as it is.
    #[inline(always)]
    pub(super) fn new(room: &'a mut [u8], span: u64, types: &'a TypesOf) -> Fill<'a> {
        let mut fill =
            Fill { room, at: 0, next: 0, types, state: State::Fits, is_cutting: false, only: usize::MAX };
        if types.in_span {
            fill.put(&span.to_le_bytes());
        }
        fill
    }

    /// Begins a payload whose texts are cut where the room ends.
    pub(super) fn cutting(room: &'a mut [u8], span: u64, types: &'a TypesOf) -> Fill<'a> {
        Fill { is_cutting: true, ..Fill::new(room, span, types) }
    }

    /// Takes only one field from now on.
    pub(super) fn only(&mut self, index: usize) {
        self.only = index;
    }

    /// Ends the payload.
    #[inline(always)]
    pub(super) fn finish(mut self) -> Filled<'a> {
        self.skip_to(self.types.n);
        match self.state {
            State::Fits => {
                let Fill { room, at, .. } = self;
                Filled::All(&room[..at])
            }
            State::OtherTypes => Filled::OtherTypes,
            State::Disordered => Filled::Disordered,
            State::NoRoom => Filled::NoRoom,
        }
    }

    #[inline(always)]
    fn put(&mut self, bytes: &[u8]) {
        match self.room.get_mut(self.at..self.at + bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                self.at += bytes.len();
            }
            None => self.state = State::NoRoom,
        }
    }

    /// Puts zero or nothing for the fields before `index`.
    #[inline(always)]
    fn skip_to(&mut self, index: usize) {
        while self.next < index && self.state == State::Fits {
            self.put(&[0; 8][..least(self.types.fields[self.next].kind)]);
            self.next += 1;
        }
    }

    /// Returns the type of a value's field; `None` if the value is not taken now.
    #[inline(always)]
    fn begin(&mut self, field: &Field) -> Option<TypeOf> {
        let index = field.index();
        if self.state != State::Fits || (self.only != usize::MAX && self.only != index) {
            return None;
        }
        if index < self.next || index >= self.types.n {
            self.state = State::Disordered;
            return None;
        }
        self.skip_to(index);
        self.next = index + 1;
        Some(self.types.fields[index])
    }

    /// Puts a number, or its text where the field is one.
    #[inline(always)]
    fn number(&mut self, field: &Field, fits: impl Fn(FieldType) -> bool, bytes: &[u8], text: &dyn Debug) {
        let Some(of) = self.begin(field) else { return };
        if fits(of.kind) {
            self.put(bytes);
        } else if self.types.is_texts {
            self.text(of, |cut| write!(cut, "{text:?}"));
        } else {
            self.state = State::OtherTypes;
        }
    }

    /// Puts a text, for which the fields behind it leave room.
    #[inline(always)]
    fn text(&mut self, of: TypeOf, write: impl FnOnce(&mut Cut<'_>) -> fmt::Result) {
        let (from, mut to) = (self.at + 2, self.room.len().saturating_sub(of.behind.into()));
        if self.is_cutting {
            to = to.saturating_sub(reserved(to.saturating_sub(from), of.texts_behind.into()));
        }
        let Some(room) = self.room.get_mut(from..to) else {
            self.state = State::NoRoom;
            return;
        };
        let mut cut = Cut::new(room);
        // An error says that the text is cut, or comes from the value; what it has written stays.
        let _ = write(&mut cut);
        if cut.is_cut() && !self.is_cutting {
            self.state = State::NoRoom;
            return;
        }
        let len = cut.finish();
        self.room[self.at..from].copy_from_slice(&(len as u16).to_le_bytes());
        self.at = from + len;
    }

    #[inline(always)]
    fn texts(&mut self, field: &Field, write: impl FnOnce(&mut Cut<'_>) -> fmt::Result) {
        match self.begin(field) {
            Some(of) if of.kind == FieldType::Str => self.text(of, write),
            Some(_) => self.state = State::OtherTypes,
            None => {}
        }
    }
}

impl Visit for Fill<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.number(field, |kind| kind == FieldType::F64, &value.to_le_bytes(), &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        let fits = |kind| kind == FieldType::I64 || kind == FieldType::U64 && value >= 0;
        self.number(field, fits, &value.to_le_bytes(), &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        let fits = |kind| kind == FieldType::U64 || kind == FieldType::I64 && i64::try_from(value).is_ok();
        self.number(field, fits, &value.to_le_bytes(), &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.number(field, |kind| kind == FieldType::Bool, &[value.into()], &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.texts(field, |cut| cut.push(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.texts(field, |cut| write!(cut, "{value:?}"));
    }
}

/// Writes values as text: the message, or else all others as `key=value`.
pub(super) struct Pairs<'a, 'r> {
    pub(super) text: &'a mut Cut<'r>,
    pub(super) is_of_message: bool,
}

impl Pairs<'_, '_> {
    fn push(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        match (field.name() == MESSAGE, self.is_of_message) {
            (true, true) => drop(self.text.write_fmt(value)),
            (false, false) => self.text.pair(field.name(), value),
            _ => {}
        }
    }
}

impl Visit for Pairs<'_, '_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.push(field, format_args!("{value:?}"));
    }
}
