//! Definitions as CTF text: `ID.events`.

use std::fmt::Write;

use crate::trace::definition::identifier::{Identifiers, length_of};
use crate::trace::definition::{Definition, Definitions, Field, FieldType};
use crate::trace::level::Level;
use crate::trace::quoted::{quote, unquote};

/// Begin of a block's first line.
const HEAD: &str = "/* relay event ";
/// A block's last line.
const TAIL: &str = "};";
/// The type of a bool.
const BOOL: &str = "enum : u8 { false = 0, true = 1 }";

/// Returns a definition as the block of an id.
pub(super) fn write(definition: &Definition, id: u16) -> String {
    let mut text = format!("{HEAD}{id}: level {}", definition.level.map_or(0, Level::number));
    text.push_str("; target ");
    quote(&definition.target, &mut text);
    text.push_str("; file ");
    quote(&definition.file, &mut text);
    // Writing to a String does not fail.
    let _ = write!(text, "; line {} */\nevent {{\n\tname = ", definition.line);
    quote(&definition.name, &mut text);
    let _ = write!(text, ";\n\tid = {id};\n\tstream_id = 0;\n");
    if let Some(level) = definition.level {
        let _ = writeln!(text, "\tloglevel = {};", level.loglevel());
    }
    text.push_str("\tfields := struct {\n\t\tu16 _len;\n");
    let mut identifiers = Identifiers::new();
    for Field { name, kind } in &definition.fields {
        let has_length = matches!(kind, FieldType::Str | FieldType::Bytes);
        let identifier = identifiers.next(name, has_length);
        let length = length_of(&identifier);
        if has_length {
            let _ = writeln!(text, "\t\tu16 {length};");
        }
        let _ = match kind {
            FieldType::U64 => write!(text, "\t\tu64 {identifier}; /* "),
            FieldType::I64 => write!(text, "\t\ti64 {identifier}; /* "),
            FieldType::F64 => write!(text, "\t\tf64 {identifier}; /* "),
            FieldType::Bool => write!(text, "\t\t{BOOL} {identifier}; /* "),
            FieldType::Str => write!(text, "\t\tutf8 {identifier}[{length}]; /* "),
            FieldType::Bytes => write!(text, "\t\tbyte {identifier}[{length}]; /* "),
        };
        quote(name, &mut text);
        text.push_str(" */\n");
    }
    text.push_str("\t};\n};\n");
    text
}

/// What a text of definitions says.
#[derive(Clone, Debug, Default)]
pub struct ParsedEvents {
    /// The events that were understood.
    pub definitions: Definitions,
    /// Lines that begin something that was not understood, from 1 on.
    pub refused: Vec<usize>,
    /// Bytes up to the end of the last whole block. What follows was cut.
    pub whole: usize,
}

/// Reads the text of `ID.events`, which any process may have cut or changed.
///
/// A block counts if it is exactly as [`Definition::block`] writes it, and its id is not taken.
pub fn parse(text: &str) -> ParsedEvents {
    let mut parsed = ParsedEvents::default();
    let mut begun: Option<(usize, usize)> = None;
    let mut at = 0;
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let start = at;
        at += line.len();
        if line.starts_with(HEAD)
            && let Some((number, _)) = begun.replace((number, start))
        {
            parsed.refused.push(number);
        }
        let Some((first, from)) = begun else {
            if !line.trim().is_empty() {
                parsed.refused.push(number);
            }
            parsed.whole = at;
            continue;
        };
        if line.strip_suffix('\n') == Some(TAIL) {
            begun = None;
            parsed.whole = at;
            let block = block(&text[from..at]);
            if !block.is_some_and(|(id, definition)| parsed.definitions.insert(id, definition)) {
                parsed.refused.push(first);
            }
        }
    }
    parsed
}

/// Reads one block.
fn block(text: &str) -> Option<(u16, Definition)> {
    let mut definition = Definition::default();
    let mut lines = text.lines();
    let (id, rest) = lines.next()?.strip_prefix(HEAD)?.split_once(": level ")?;
    let (level, rest) = rest.split_once("; target ")?;
    let id: u16 = id.parse().ok()?;
    definition.level = Level::of_number(level.parse().ok()?);
    let mut rest = rest;
    definition.target = unquote(&mut rest)?;
    rest = rest.strip_prefix("; file ")?;
    definition.file = unquote(&mut rest)?;
    definition.line = rest.strip_prefix("; line ")?.strip_suffix(" */")?.parse().ok()?;
    for line in lines {
        if let Some(mut name) = line.strip_prefix("\tname = ") {
            definition.name = unquote(&mut name)?;
        } else if let Some((declared, mut name)) = line.split_once("; /* ") {
            let kind = match declared.trim_start().split(' ').next()? {
                "u64" => FieldType::U64,
                "i64" => FieldType::I64,
                "f64" => FieldType::F64,
                "enum" => FieldType::Bool,
                "utf8" => FieldType::Str,
                "byte" => FieldType::Bytes,
                _ => return None,
            };
            definition.fields.push(Field { name: unquote(&mut name)?, kind });
        }
    }
    definition.check().ok()?;
    // Whatever is wrong with the text: the right one looks different.
    (definition.block(id) == text).then_some((id, definition))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The example of the document.
    const EXAMPLE: &str = "\
/* relay event 256: level 3; target \"app::db\"; file \"src/db.rs\"; line 42 */
event {
	name = \"connected\";
	id = 256;
	stream_id = 0;
	loglevel = 6;
	fields := struct {
		u16 _len;
		u64 rows; /* \"rows\" */
		u16 _host_len;
		utf8 host[_host_len]; /* \"host\" */
	};
};
";

    fn example() -> Definition {
        let field = |name: &str, kind| Field { name: name.to_owned(), kind };
        Definition {
            name: "connected".to_owned(),
            level: Some(Level::Info),
            target: "app::db".to_owned(),
            file: "src/db.rs".to_owned(),
            line: 42,
            fields: vec![field("rows", FieldType::U64), field("host", FieldType::Str)],
        }
    }

    #[test]
    fn a_block_looks_as_the_document_says() {
        assert_eq!(example().block(256), EXAMPLE);
        let parsed = parse(EXAMPLE);
        assert_eq!(parsed.definitions.get(256), Some(&example()));
        assert_eq!((parsed.refused, parsed.whole), (vec![], EXAMPLE.len()));
    }

    #[test]
    fn what_is_cut_does_not_count() {
        for cut in 0..EXAMPLE.len() {
            let text = format!("{EXAMPLE}{}", &EXAMPLE[..cut].replace("256", "257"));
            let parsed = parse(&text);
            assert_eq!(parsed.definitions.len(), 1, "{cut}");
            let is_begun = cut >= HEAD.len();
            assert_eq!(parsed.whole == EXAMPLE.len(), cut == 0 || is_begun, "{cut}");
        }
    }

    #[test]
    fn strange_blocks_are_refused_and_the_others_count() {
        let foreign = "struct x;\n";
        let changed = EXAMPLE.replace("u64 rows;", "u32 rows;").replace("256", "300");
        let again = EXAMPLE.replace("connected", "other");
        let built_in = EXAMPLE.replace("256", "0");
        let headless = EXAMPLE.replace(TAIL, "").replace("256", "400");
        let last = EXAMPLE.replace("256", "258");
        let text = format!("{foreign}{EXAMPLE}{changed}{again}{built_in}{headless}{last}");
        let parsed = parse(&text);
        let ids: Vec<u16> = parsed.definitions.iter().map(|(id, _)| id).collect();
        assert_eq!(ids, [256, 258]);
        assert_eq!(parsed.refused, [1, 15, 28, 41, 54]);
        assert_eq!(parsed.whole, text.len());
    }

    #[test]
    fn hostile_names_stay_in_their_places() {
        let hostile = "a\"b\\c*/\n};\n/* relay event 999: */\t\u{7f}é\u{2028}*/*//";
        let mut definition = example();
        for text in [&mut definition.name, &mut definition.target, &mut definition.file] {
            *text = hostile.to_owned();
        }
        definition.fields[0].name = hostile.to_owned();
        let block = definition.block(256);
        assert_eq!(block.lines().count(), EXAMPLE.lines().count());
        assert_eq!(block.matches("*/").count(), 3, "{block}");
        let parsed = parse(&block);
        assert_eq!(parsed.definitions.get(256), Some(&definition));
        assert_eq!(parsed.definitions.len(), 1);
    }

    fn definition() -> impl Strategy<Value = Definition> {
        let text = || "[^\0]{0,20}|[\"\\\\*/\n\r\t}; a]{0,12}";
        let field = (text(), 1u8..7);
        let fields = proptest::collection::vec(field, 0..6);
        (text(), 0u8..6, text(), text(), any::<u32>(), fields).prop_map(
            |(name, level, target, file, line, fields)| {
                let field = |(i, (name, kind)): (usize, (String, u8))| Field {
                    name: format!("{name}{i}"),
                    kind: FieldType::of_number(kind).unwrap_or(FieldType::U64),
                };
                let fields = fields.into_iter().enumerate().map(field).collect();
                let level = Level::of_number(level);
                Definition { name: format!("n{name}"), level, target, file, line, fields }
            },
        )
    }

    proptest! {
        #[test]
        fn any_definition_is_read_back(definition in definition(), id in 256u16..) {
            prop_assume!(definition.check().is_ok());
            let parsed = parse(&definition.block(id));
            prop_assert_eq!(parsed.definitions.get(id), Some(&definition));
        }

        #[test]
        fn any_text_is_read(text: String, cut in 0..EXAMPLE.len()) {
            parse(&format!("{}{text}{EXAMPLE}", &EXAMPLE[..cut]));
            parse(&format!("{HEAD}{text}\n{EXAMPLE}"));
        }
    }
}
