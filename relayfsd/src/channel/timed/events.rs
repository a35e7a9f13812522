//! The events that programs have defined in a timed channel, kept in `ID.events`.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use relay::cli::size::format_size;
use relay::trace::definition::{Definition, DefinitionError, Definitions, parse};
use thiserror::Error;

use super::journal::{JOURNAL_MAX, Journal};
use crate::channel::files::FindError;
use crate::policy::quota::{Quota, Reservation};

/// Most definitions of a user in a channel.
const DEFINED_MAX: usize = 4096;
/// Most text of a user's definitions in a channel, in bytes.
const TEXT_MAX: usize = 1 << 20;

/// How often the text of a definition is in memory: in the file, as text, and parsed.
const COST: usize = 3;

/// Why an event is not defined.
#[derive(Debug, Error)]
pub(crate) enum DefineError {
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    #[error(
        "uid {uid} has defined {DEFINED_MAX} events in this channel, the most of a user: define each once"
    )]
    TooMany { uid: u32 },
    #[error(
        "uid {uid} has defined events of {max} of text in this channel, the most of a user: define each once",
        max = format_size(TEXT_MAX as u64)
    )]
    TooMuchText { uid: u32 },
    #[error("there is no memory for another event of uid {uid}: raise --max-memory of relayfsd")]
    Memory { uid: u32 },
    #[error("the channel has no ids left for events: recreate it")]
    NoIds,
    #[error("the channel's file of events cannot be written: {0}")]
    Io(#[from] io::Error),
}

impl DefineError {
    pub(crate) fn errno(&self) -> i32 {
        match self {
            DefineError::Definition(_) => libc::EINVAL,
            DefineError::Memory { .. } => libc::ENOMEM,
            DefineError::TooMany { .. } | DefineError::TooMuchText { .. } | DefineError::NoIds => {
                libc::ENOSPC
            }
            DefineError::Io(error) => error.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

/// The events of a channel.
pub(super) struct Events {
    /// Shared with those that make copies, which takes long.
    definitions: Arc<Definitions>,
    text: String,
    journal: Journal,
    /// What each user has defined. What is of an earlier daemon counts for none.
    by_user: HashMap<u32, Defined>,
}

/// What a user has defined: number of events, bytes of text, and the memory for them.
struct Defined {
    n: usize,
    len: usize,
    memory: Reservation,
}

impl Events {
    /// Creates the empty file.
    pub(super) fn create(path: &Path) -> io::Result<Events> {
        let journal = Journal::create(path)?;
        Ok(Events { definitions: Arc::default(), text: String::new(), journal, by_user: HashMap::new() })
    }

    /// Reads the file that an earlier daemon left.
    ///
    /// A cut definition at its end had no answer, so it goes. Other text that is no definition is left out too.
    pub(super) fn find(path: &Path) -> Result<Events, FindError> {
        let (mut journal, bytes) = Journal::find(path)?;
        let found = String::from_utf8_lossy(&bytes);
        let parsed = parse(&found);
        let text: String = parsed.definitions.iter().map(|(id, event)| event.block(id)).collect();
        if !parsed.refused.is_empty() {
            log::warn!(
                "{}: {} places are no definitions, and are left out, the first in line {}",
                path.display(),
                parsed.refused.len(),
                parsed.refused[0]
            );
        }
        if text.as_bytes() != bytes {
            journal.replace(text.as_bytes()).map_err(|source| FindError::of(path, source))?;
        }
        Ok(Events { definitions: Arc::new(parsed.definitions), text, journal, by_user: HashMap::new() })
    }

    /// Returns the id of a user's event. The same content has the same id.
    ///
    /// `memory` is the quota for what the events take.
    pub(super) fn define(
        &mut self,
        definition: Definition,
        uid: u32,
        memory: &Arc<Quota>,
    ) -> Result<u16, DefineError> {
        definition.check()?;
        if let Some(id) = self.definitions.id_of(&definition) {
            return Ok(id);
        }
        let begin = || Defined { n: 0, len: 0, memory: memory.begin(uid) };
        let own = self.by_user.entry(uid).or_insert_with(begin);
        if own.n >= DEFINED_MAX {
            return Err(DefineError::TooMany { uid });
        }
        let id = self.definitions.next_id().ok_or(DefineError::NoIds)?;
        let block = definition.block(id);
        if own.len + block.len() > TEXT_MAX {
            return Err(DefineError::TooMuchText { uid });
        }
        if self.journal.len() + block.len() as u64 > JOURNAL_MAX {
            return Err(DefineError::NoIds);
        }
        own.memory.grow(COST * block.len()).map_err(|_| DefineError::Memory { uid })?;
        if let Err(error) = self.journal.append(block.as_bytes()) {
            own.memory.shrink(own.memory.len() - COST * block.len());
            return Err(error.into());
        }
        (own.n, own.len) = (own.n + 1, own.len + block.len());
        self.text.push_str(&block);
        Arc::make_mut(&mut self.definitions).insert(id, definition);
        Ok(id)
    }

    pub(super) fn definitions(&self) -> &Arc<Definitions> {
        &self.definitions
    }

    /// Returns the contents of the file.
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn memory() -> Arc<Quota> {
        Quota::new(64 << 20)
    }

    fn event(name: &str) -> Definition {
        Definition { name: name.to_owned(), ..Definition::default() }
    }

    #[test]
    fn events_get_ids_and_are_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.events");
        let mut events = Events::create(&path).unwrap();
        assert_eq!(events.define(event("a"), 1, &memory()).unwrap(), 256);
        assert_eq!(events.define(event("b"), 2, &memory()).unwrap(), 257);
        assert_eq!(events.define(event("a"), 2, &memory()).unwrap(), 256, "the same content");
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, events.text());
        let mut found = Events::find(&path).unwrap();
        assert_eq!(found.text(), text);
        assert_eq!(found.define(event("b"), 1, &memory()).unwrap(), 257);
        assert_eq!(found.define(event("c"), 1, &memory()).unwrap(), 258);
        assert!(matches!(found.define(event(""), 1, &memory()), Err(DefineError::Definition(_))));
    }

    #[test]
    fn cut_or_foreign_text_is_left_out_and_the_rest_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.events");
        let mut events = Events::create(&path).unwrap();
        events.define(event("a"), 1, &memory()).unwrap();
        let one = events.text().to_owned();
        events.define(event("b"), 1, &memory()).unwrap();
        let both = events.text().to_owned();
        for cut in one.len()..both.len() {
            fs::write(&path, &both[..cut]).unwrap();
            let mut found = Events::find(&path).unwrap();
            assert_eq!(found.text(), one, "cut at {cut}");
            assert_eq!(found.define(event("c"), 1, &memory()).unwrap(), 257);
            assert_eq!(fs::read_to_string(&path).unwrap(), found.text());
        }
        fs::write(&path, [b"\xff\xfe};\n", both.as_bytes(), b"struct x;\n"].concat()).unwrap();
        assert_eq!(Events::find(&path).unwrap().text(), both);
        fs::remove_file(&path).unwrap();
        assert_eq!(Events::find(&path).unwrap().text(), "");
    }

    #[test]
    fn events_are_within_the_memory_of_all_channels() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = Events::create(&dir.path().join("1.events")).unwrap();
        let memory = Quota::new(1000);
        assert_eq!(events.define(event("a"), 0, &memory).unwrap(), 256);
        let used = memory.used();
        assert!(used > 0);
        let long = Definition { target: "t".repeat(255), ..event("b") };
        assert!(matches!(events.define(long, 0, &memory), Err(DefineError::Memory { uid: 0 })));
        assert_eq!((memory.used(), events.definitions().len()), (used, 1));
        drop(events);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn user_has_a_limit_and_others_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = Events::create(&dir.path().join("1.events")).unwrap();
        for n in 0..DEFINED_MAX {
            events.define(event(&format!("e{n}")), 1, &memory()).unwrap();
        }
        assert!(matches!(events.define(event("more"), 1, &memory()), Err(DefineError::TooMany { uid: 1 })));
        assert_eq!(events.define(event("e0"), 1, &memory()).unwrap(), 256, "it is defined");
        assert!(events.define(event("more"), 2, &memory()).is_ok());
        let long = |n: usize| Definition { file: "f".repeat(255), target: format!("{n:0255}"), ..event("x") };
        let mut n = 0;
        let error = loop {
            match events.define(long(n), 3, &memory()) {
                Ok(_) => n += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, DefineError::TooMuchText { uid: 3 }), "{error}");
        assert!((1000..DEFINED_MAX).contains(&n), "{n}");
    }
}
