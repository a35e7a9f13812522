//! Events that programs define: their fields, limits and text.

mod block;
mod identifier;
mod table;
mod value;

use std::fmt;

pub use block::{ParsedEvents, parse};
pub use table::Definitions;
pub use value::{Value, ValueError, Values};

use crate::trace::level::Level;

/// The longest name of an event or a field, in bytes.
pub const NAME_MAX: usize = 200;
/// The longest target or file, in bytes.
pub const PLACE_MAX: usize = 255;
/// The most fields of an event.
pub const FIELDS_MAX: usize = 32;
/// Name of the field whose text stands in the place of the event's name.
const MESSAGE: &str = "message";

/// The type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FieldType {
    /// A number of 8 bytes, without sign.
    U64 = 1,
    /// A number of 8 bytes, with a sign.
    I64 = 2,
    /// A floating-point number of 8 bytes.
    F64 = 3,
    /// A byte, 0 or 1.
    Bool = 4,
    /// UTF-8 text behind its length of 2 bytes.
    Str = 5,
    /// Bytes behind their length of 2 bytes.
    Bytes = 6,
}

impl FieldType {
    /// All types.
    pub const ALL: [FieldType; 6] =
        [FieldType::U64, FieldType::I64, FieldType::F64, FieldType::Bool, FieldType::Str, FieldType::Bytes];

    /// Returns the type with this number in DEFINE.
    pub fn of_number(number: u8) -> Option<FieldType> {
        FieldType::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// Returns the type's name.
    pub fn name(self) -> &'static str {
        match self {
            FieldType::U64 => "u64",
            FieldType::I64 => "i64",
            FieldType::F64 => "f64",
            FieldType::Bool => "bool",
            FieldType::Str => "str",
            FieldType::Bytes => "bytes",
        }
    }
}

impl fmt::Display for FieldType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A field of an event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Field {
    /// Its name, as the program gave it.
    pub name: String,
    /// Its type.
    pub kind: FieldType,
}

impl Field {
    /// Returns a value that stands in the place of the event's name: the text of the field `message`.
    pub fn message<'a>(&self, value: &Value<'a>) -> Option<&'a [u8]> {
        match value {
            Value::Str(text) if self.name == MESSAGE => Some(*text),
            _ => None,
        }
    }
}

/// An event that a program has defined. Equal definitions have the same id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Definition {
    /// Its name, as the program gave it.
    pub name: String,
    /// Its level, if it has one.
    pub level: Option<Level>,
    /// Part of the program that writes it; may be empty.
    pub target: String,
    /// Source file; may be empty.
    pub file: String,
    /// Line in the source file; 0 for none.
    pub line: u32,
    /// The fields, in the payload's order.
    pub fields: Vec<Field>,
}

/// Why a definition is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// A name is empty.
    #[error("the {what} is empty")]
    Empty {
        /// What it names.
        what: &'static str,
    },
    /// A text is too long.
    #[error("the {what} has {len} bytes; the most are {max}")]
    TooLong {
        /// What it names.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The most bytes.
        max: usize,
    },
    /// A text contains NUL.
    #[error("the {what} contains a NUL byte")]
    Nul {
        /// What it names.
        what: &'static str,
    },
    /// There are too many fields.
    #[error("the event has {n} fields; the most are {FIELDS_MAX}")]
    TooManyFields {
        /// How many.
        n: usize,
    },
    /// Two fields have the same name.
    #[error("two fields have the name {name:?}")]
    Twice {
        /// The name.
        name: String,
    },
}

impl Definition {
    /// Checks the limits, which hold for what other processes send.
    pub fn check(&self) -> Result<(), DefinitionError> {
        let name = |what, text: &str| match text {
            "" => Err(DefinitionError::Empty { what }),
            text => check_text(what, text, NAME_MAX),
        };
        name("name of the event", &self.name)?;
        check_text("target", &self.target, PLACE_MAX)?;
        check_text("file", &self.file, PLACE_MAX)?;
        if self.fields.len() > FIELDS_MAX {
            return Err(DefinitionError::TooManyFields { n: self.fields.len() });
        }
        for (i, field) in self.fields.iter().enumerate() {
            name("name of a field", &field.name)?;
            if self.fields[..i].iter().any(|before| before.name == field.name) {
                return Err(DefinitionError::Twice { name: field.name.clone() });
            }
        }
        Ok(())
    }

    /// Appends the payload of these values to `out`. If they are refused, nothing is appended.
    pub fn encode(&self, values: &[Value<'_>], out: &mut Vec<u8>) -> Result<(), ValueError> {
        value::encode(&self.fields, values, out)
    }

    /// Returns whether a payload has exactly this event's fields.
    pub fn fits(&self, payload: &[u8]) -> bool {
        self.values(payload).is_some()
    }

    /// Returns the fields of a payload and their values; `None` if the payload does not fit.
    pub fn values<'a>(&'a self, payload: &'a [u8]) -> Option<Values<'a>> {
        Values::new(&self.fields, payload)
    }

    /// Returns the event as CTF text, a block of `ID.events`.
    pub fn block(&self, id: u16) -> String {
        block::write(self, id)
    }
}

fn check_text(what: &'static str, text: &str, max: usize) -> Result<(), DefinitionError> {
    match text.len() {
        len if len > max => Err(DefinitionError::TooLong { what, len, max }),
        _ if text.contains('\0') => Err(DefinitionError::Nul { what }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl Fn(&mut Definition)) -> String {
        let fields = vec![Field { name: "rows".to_owned(), kind: FieldType::U64 }];
        let mut definition = Definition { name: "connected".to_owned(), fields, ..Definition::default() };
        assert_eq!(definition.check(), Ok(()));
        change(&mut definition);
        definition.check().unwrap_err().to_string()
    }

    #[test]
    fn limits_are_checked() {
        assert_eq!(refused(|event| event.name.clear()), "the name of the event is empty");
        let wrong = refused(|event| event.name = "n".repeat(201));
        assert_eq!(wrong, "the name of the event has 201 bytes; the most are 200");
        let wrong = refused(|event| event.target = "t".repeat(256));
        assert_eq!(wrong, "the target has 256 bytes; the most are 255");
        assert_eq!(refused(|event| event.file.push('\0')), "the file contains a NUL byte");
        assert_eq!(refused(|event| event.fields[0].name.clear()), "the name of a field is empty");
        let wrong = refused(|event| event.fields.push(event.fields[0].clone()));
        assert_eq!(wrong, "two fields have the name \"rows\"");
        let many = |event: &mut Definition| {
            let field = |i| Field { name: format!("f{i}"), kind: FieldType::Bool };
            event.fields = (0..33).map(field).collect();
        };
        assert_eq!(refused(many), "the event has 33 fields; the most are 32");
    }

    #[test]
    fn types_have_numbers() {
        for (number, kind) in (1..).zip(FieldType::ALL) {
            assert_eq!((FieldType::of_number(number), kind as u8), (Some(kind), number));
        }
        assert_eq!((FieldType::of_number(0), FieldType::of_number(7)), (None, None));
    }
}
