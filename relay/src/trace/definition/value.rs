//! Values of fields, and the payloads that they make.

use crate::trace::definition::{Field, FieldType};
use crate::trace::event::Payload;
use crate::trace::record::PAYLOAD_MAX;

/// The value of a field. A text is bytes: what another process wrote need not be UTF-8.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// A number without sign.
    U64(u64),
    /// A number with a sign.
    I64(i64),
    /// A floating-point number.
    F64(f64),
    /// True or false.
    Bool(bool),
    /// A text.
    Str(&'a [u8]),
    /// Bytes.
    Bytes(&'a [u8]),
}

impl Value<'_> {
    /// Returns the type of a field that takes the value.
    pub fn kind(&self) -> FieldType {
        match self {
            Value::U64(_) => FieldType::U64,
            Value::I64(_) => FieldType::I64,
            Value::F64(_) => FieldType::F64,
            Value::Bool(_) => FieldType::Bool,
            Value::Str(_) => FieldType::Str,
            Value::Bytes(_) => FieldType::Bytes,
        }
    }

    /// Returns the value's length in a payload, in bytes.
    #[inline(always)]
    pub fn encoded_len(&self) -> usize {
        match self {
            Value::U64(_) | Value::I64(_) | Value::F64(_) => 8,
            Value::Bool(_) => 1,
            Value::Str(bytes) | Value::Bytes(bytes) => 2 + bytes.len(),
        }
    }
}

macro_rules! from {
    ($($from:ty => $variant:ident $convert:expr;)*) => {
        $(impl<'a> From<$from> for Value<'a> {
            fn from(value: $from) -> Value<'a> {
                Value::$variant($convert(value))
            }
        })*
    };
}

from! {
    u64 => U64 u64::from;
    u32 => U64 u64::from;
    i64 => I64 i64::from;
    i32 => I64 i64::from;
    f64 => F64 f64::from;
    bool => Bool bool::from;
    &'a str => Str str::as_bytes;
    &'a [u8] => Bytes std::convert::identity;
}

/// Why values are no payload of an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// There are too many values, or too few.
    #[error("the event has {fields} fields; {values} values were given")]
    Count {
        /// Fields of the event.
        fields: usize,
        /// Values given.
        values: usize,
    },
    /// A value has another type than its field.
    #[error("the field {field:?} is of type {kind}; the value is of type {given}")]
    Type {
        /// Name of the field.
        field: String,
        /// The field's type.
        kind: FieldType,
        /// The value's type.
        given: FieldType,
    },
    /// The values are longer than a record can be.
    #[error("the values make {len} bytes; a record takes {PAYLOAD_MAX}")]
    TooLong {
        /// Their length in a payload, in bytes.
        len: usize,
    },
}

/// Appends the payload of these values to `out`. If they are refused, nothing is appended.
pub(super) fn encode(fields: &[Field], values: &[Value<'_>], out: &mut Vec<u8>) -> Result<(), ValueError> {
    if values.len() != fields.len() {
        return Err(ValueError::Count { fields: fields.len(), values: values.len() });
    }
    let mut wrong = fields.iter().zip(values).filter(|(field, value)| field.kind != value.kind());
    if let Some((field, value)) = wrong.next() {
        let (kind, given) = (field.kind, value.kind());
        return Err(ValueError::Type { field: field.name.clone(), kind, given });
    }
    let len = values.iter().map(Value::encoded_len).sum();
    if len > PAYLOAD_MAX {
        return Err(ValueError::TooLong { len });
    }
    for value in values {
        match *value {
            Value::U64(number) => out.extend_from_slice(&number.to_le_bytes()),
            Value::I64(number) => out.extend_from_slice(&number.to_le_bytes()),
            Value::F64(number) => out.extend_from_slice(&number.to_le_bytes()),
            Value::Bool(is) => out.push(u8::from(is)),
            Value::Str(bytes) | Value::Bytes(bytes) => {
                // The check above shows that the length fits.
                out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
                out.extend_from_slice(bytes);
            }
        }
    }
    Ok(())
}

fn value<'a>(kind: FieldType, payload: &mut Payload<'a>) -> Option<Value<'a>> {
    Some(match kind {
        FieldType::U64 => Value::U64(payload.u64()?),
        FieldType::I64 => Value::I64(payload.u64()?.cast_signed()),
        FieldType::F64 => Value::F64(f64::from_bits(payload.u64()?)),
        FieldType::Bool => Value::Bool(payload.u8()? != 0),
        FieldType::Str => Value::Str(payload.sized()?),
        FieldType::Bytes => Value::Bytes(payload.sized()?),
    })
}

/// Iterates over the fields of a payload and their values.
#[derive(Clone, Debug)]
pub struct Values<'a> {
    fields: std::slice::Iter<'a, Field>,
    payload: &'a [u8],
}

impl<'a> Values<'a> {
    /// Returns the values of a payload; `None` if it has not exactly these fields.
    pub(super) fn new(fields: &'a [Field], payload: &'a [u8]) -> Option<Values<'a>> {
        let mut rest = Payload(payload);
        let is_whole = fields.iter().all(|field| value(field.kind, &mut rest).is_some());
        (is_whole && rest.0.is_empty()).then_some(Values { fields: fields.iter(), payload })
    }
}

impl<'a> Iterator for Values<'a> {
    type Item = (&'a Field, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let field = self.fields.next()?;
        let mut rest = Payload(self.payload);
        let value = value(field.kind, &mut rest)?;
        self.payload = rest.0;
        Some((field, value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(kinds: &[FieldType]) -> Vec<Field> {
        kinds.iter().enumerate().map(|(i, kind)| Field { name: format!("f{i}"), kind: *kind }).collect()
    }

    #[test]
    fn every_type_is_decoded_as_it_was() {
        let fields = fields(&FieldType::ALL);
        let values = [
            Value::from(1u64),
            Value::from(-2i64),
            Value::from(2.5),
            Value::from(true),
            Value::from("text"),
            Value::from(&b"\0\xff"[..]),
        ];
        let mut payload = Vec::new();
        encode(&fields, &values, &mut payload).unwrap();
        assert_eq!(payload.len(), 8 + 8 + 8 + 1 + 2 + 4 + 2 + 2);
        assert_eq!(payload[25..31], *b"\x04\0text");
        let decoded: Vec<_> = Values::new(&fields, &payload).unwrap().map(|(_, value)| value).collect();
        assert_eq!(decoded, values);
        for len in 0..payload.len() {
            assert!(Values::new(&fields, &payload[..len]).is_none(), "{len}");
        }
        payload.push(0);
        assert!(Values::new(&fields, &payload).is_none());
    }

    #[test]
    fn wrong_values_are_refused_whole() {
        let fields = fields(&[FieldType::U64, FieldType::Str]);
        let mut out = Vec::new();
        let mut refused = |values: &[Value<'_>]| encode(&fields, values, &mut out).unwrap_err().to_string();
        assert_eq!(refused(&[]), "the event has 2 fields; 0 values were given");
        let wrong = refused(&[Value::U64(1), Value::Bytes(b"x")]);
        assert_eq!(wrong, "the field \"f1\" is of type str; the value is of type bytes");
        let long = vec![b'x'; PAYLOAD_MAX - 9];
        let wrong = refused(&[Value::U64(1), Value::Str(&long)]);
        assert_eq!(wrong, "the values make 65536 bytes; a record takes 65535");
        assert!(out.is_empty());
        assert_eq!(encode(&fields, &[Value::U64(1), Value::Str(&long[1..])], &mut out), Ok(()));
        assert_eq!(out.len(), PAYLOAD_MAX);
    }

    proptest! {
        #[test]
        fn any_payload_fits_or_does_not(kinds in proptest::collection::vec(1u8..7, 0..6), payload: Vec<u8>) {
            let kinds: Vec<_> = kinds.into_iter().filter_map(FieldType::of_number).collect();
            let fields = fields(&kinds);
            if let Some(values) = Values::new(&fields, &payload) {
                let values: Vec<_> = values.map(|(_, value)| value).collect();
                let mut again = Vec::new();
                encode(&fields, &values, &mut again).unwrap();
                prop_assert_eq!(again.len(), payload.len());
            }
        }
    }
}
