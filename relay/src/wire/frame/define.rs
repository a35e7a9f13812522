//! DEFINE: an event of a timed channel.

use super::fields::{Fields, Number};
use super::{Body, FrameError, FrameType};

/// Defines an event: its name, where it stands in the program, and its fields.
/// Nothing in it is checked but its form: the daemon decides which names, types and numbers are possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Define<'a> {
    /// The channel's number.
    pub channel: u32,
    /// Level, 1 to 5; 0 for none.
    pub level: u8,
    /// Line in the file; 0 for none.
    pub line: u32,
    /// Name of the event.
    pub name: &'a [u8],
    /// Module or subject that the event belongs to.
    pub target: &'a [u8],
    /// Source file.
    pub file: &'a [u8],
    /// The fields, in the order of the payload.
    pub fields: Vec<DefineField<'a>>,
}

/// A field of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefineField<'a> {
    /// Number of its type.
    pub kind: u8,
    /// Its name.
    pub name: &'a [u8],
}

impl<'a> Body<'a> for Define<'a> {
    const KIND: FrameType = FrameType::Define;
    const REPLY: bool = false;

    /// Appends the body. A text longer than its length can say is cut, and so is the list of fields.
    fn encode(&self, out: &mut Vec<u8>) {
        let n_fields = u16::try_from(self.fields.len()).unwrap_or(u16::MAX);
        self.channel.put(out);
        self.level.put(out);
        0u8.put(out);
        n_fields.put(out);
        self.line.put(out);
        [self.name, self.target, self.file].into_iter().for_each(|text| put_text(text, out));
        for field in &self.fields[..n_fields.into()] {
            field.kind.put(out);
            0u8.put(out);
            put_text(field.name, out);
        }
    }

    fn decode(body: &'a [u8]) -> Result<Self, FrameError> {
        Fields::all(body, "define", |f| {
            let (channel, level, _zero): (_, _, u8) = (f.number()?, f.number()?, f.number()?);
            let (n_fields, line): (u16, _) = (f.number()?, f.number()?);
            let (name, target, file) = (text(f)?, text(f)?, text(f)?);
            // No room is reserved: the frame may have fewer fields than it says.
            let mut fields = Vec::new();
            for _ in 0..n_fields {
                let (kind, _zero): (_, u8) = (f.number()?, f.number()?);
                fields.push(DefineField { kind, name: text(f)? });
            }
            Some(Define { channel, level, line, name, target, file, fields })
        })
    }
}

fn put_text(text: &[u8], out: &mut Vec<u8>) {
    let len = u16::try_from(text.len()).unwrap_or(u16::MAX);
    len.put(out);
    out.extend_from_slice(&text[..len.into()]);
}

fn text<'a>(fields: &mut Fields<'a>) -> Option<&'a [u8]> {
    let len: u16 = fields.number()?;
    fields.bytes(len.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes on the wire, as `relay/docs/PROTOCOL.md` draws them.
    const BODY: &[u8] = b"\x07\0\0\0\x03\0\x02\0\x2a\0\0\0\
        \x02\0hi\x01\0t\0\0\
        \x01\0\x01\0a\x05\0\x02\0bc";

    fn definition() -> Define<'static> {
        let fields = [(1, &b"a"[..]), (5, b"bc")].map(|(kind, name)| DefineField { kind, name });
        Define { channel: 7, level: 3, line: 42, name: b"hi", target: b"t", file: b"", fields: fields.into() }
    }

    #[test]
    fn definition_has_the_documented_bytes() {
        let mut out = Vec::new();
        definition().encode(&mut out);
        assert_eq!(out, BODY);
        assert_eq!(Define::decode(BODY), Ok(definition()));
    }

    #[test]
    fn length_that_leads_out_of_the_frame_is_refused() {
        let malformed = Err(FrameError::Malformed("define"));
        for end in 0..BODY.len() {
            assert_eq!(Define::decode(&BODY[..end]), malformed, "cut at {end}");
        }
        assert_eq!(Define::decode(&[BODY, b"x"].concat()), malformed);
        // Number of fields, and each length of a text.
        for at in [6, 12, 16, 19, 23, 28] {
            for value in [u16::MAX, 0x100, BODY.len() as u16] {
                let mut body = BODY.to_vec();
                body[at..at + 2].copy_from_slice(&value.to_le_bytes());
                assert_eq!(Define::decode(&body), malformed, "{value} at {at}");
            }
        }
    }

    #[test]
    fn text_that_is_too_long_is_cut() {
        let name = vec![b'n'; 70_000];
        let mut out = Vec::new();
        Define { name: &name, ..definition() }.encode(&mut out);
        assert_eq!(Define::decode(&out).unwrap().name.len(), 65_535);
    }
}
