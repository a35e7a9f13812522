//! Which records meet a condition.

use relay::trace::event::{Event, STATUS_UNKNOWN, What, id};
use relay::trace::record::Record;
use relay::trace::text::{Format, Lines};

use crate::options::Condition;
use crate::timed::meaning::Meaning;

/// A record that meets a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hit {
    pub(super) stamp: u64,
    /// The condition in a word, for the name of the trace.
    pub(super) reason: String,
}

/// The conditions, and what it takes to check them.
pub(super) struct Triggers {
    conditions: Vec<Condition>,
    /// What records mean.
    lines: Option<Lines>,
    /// Kept for its memory.
    message: Vec<u8>,
}

impl Triggers {
    pub(super) fn new(conditions: &[Condition]) -> Triggers {
        Triggers { conditions: conditions.to_vec(), lines: None, message: Vec::new() }
    }

    /// Takes what the channel now says about its records.
    pub(super) fn take_meaning(&mut self, meaning: Meaning) {
        let names = meaning.names();
        self.lines = Some(Lines::new(Format::Cat, meaning.timeline, names));
    }

    /// Whether the record has an event that is younger than the meaning.
    pub(super) fn lacks(&self, record: &Record<'_>) -> bool {
        let known = |lines: &Lines| lines.names().definition(record.id).is_some();
        record.id >= id::DEFINED && !self.lines.as_ref().is_some_and(known)
    }

    /// Checks a record.
    pub(super) fn hit(&mut self, record: &Record<'_>) -> Option<Hit> {
        let Triggers { conditions, lines, message } = self;
        let lines = lines.as_ref()?;
        let reason = conditions.iter().find_map(|condition| match condition {
            Condition::Level(least) => {
                let level = lines.names().level(record).filter(|level| level <= least)?;
                Some(level.name().to_ascii_lowercase())
            }
            Condition::Match(regex) => {
                message.clear();
                lines.message(record, message);
                regex.is_match(message).then(|| "match".to_owned())
            }
            Condition::Exit => has_failed(record).then(|| "exit".to_owned()),
        })?;
        Some(Hit { stamp: record.stamp, reason })
    }
}

/// Whether the record says that a process ended by a signal, or with another status than 0.
///
/// An end without a known status may be regular.
fn has_failed(record: &Record<'_>) -> bool {
    match Event::decode(record.id, record.payload) {
        Event::Process { what: Some(What::Signal), .. } => true,
        Event::Process { what: Some(What::Exit), status, .. } => ![0, STATUS_UNKNOWN].contains(&status),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use relay::clock::{Clock, Timeline};
    use relay::trace::definition::{Definition, Definitions};
    use relay::trace::level::Level;

    use super::*;

    fn meaning(definitions: Definitions) -> Meaning {
        Meaning { timeline: Timeline::new(Clock::Monotonic, 0, &[]), definitions, processes: Vec::new() }
    }

    fn hit(conditions: &[&str], event: &Event<'_>) -> Option<String> {
        let conditions: Vec<Condition> = conditions.iter().map(|text| text.parse().unwrap()).collect();
        let mut triggers = Triggers::new(&conditions);
        triggers.take_meaning(meaning(Definitions::new()));
        let mut payload = Vec::new();
        event.encode_into(&mut payload).unwrap();
        let record = Record { stamp: 7, id: event.id().unwrap(), tid: 1, payload: &payload };
        triggers.hit(&record).map(|hit| hit.reason)
    }

    #[test]
    fn any_of_the_conditions_hits() {
        let log = |level, text| Event::Log { level: Some(level), target: b"db", text };
        let error = log(Level::Error, b"gone");
        assert_eq!(hit(&["level>=warn"], &error).as_deref(), Some("error"));
        assert_eq!(hit(&["level>=warn"], &log(Level::Warn, b"")).as_deref(), Some("warn"));
        assert_eq!(hit(&["level>=warn"], &log(Level::Info, b"")), None);
        assert_eq!(hit(&["exit", "match=^go"], &error).as_deref(), Some("match"));
        assert_eq!(hit(&["match=^go"], &Event::Text(b"gone")).as_deref(), Some("match"));
        assert_eq!(hit(&["exit", "match=^one"], &error), None);
    }

    #[test]
    fn only_a_failed_process_is_an_exit() {
        let end = |what, status| Event::Process { pid: 1, what: Some(what), status, command: b"app" };
        assert_eq!(hit(&["exit"], &end(What::Signal, 11)).as_deref(), Some("exit"));
        assert_eq!(hit(&["exit"], &end(What::Exit, 3)).as_deref(), Some("exit"));
        assert_eq!(hit(&["exit"], &end(What::Exit, 0)), None);
        assert_eq!(hit(&["exit"], &end(What::Exit, STATUS_UNKNOWN)), None, "it may be regular");
        assert_eq!(hit(&["exit"], &end(What::Begin, 1)), None);
    }

    #[test]
    fn events_of_programs_have_levels() {
        let mut triggers = Triggers::new(&[Condition::Level(Level::Error)]);
        let record = Record { stamp: 7, id: 256, tid: 1, payload: b"" };
        assert!(triggers.lacks(&record) && triggers.hit(&record).is_none());
        let mut definitions = Definitions::new();
        let level = Some(Level::Error);
        definitions.insert(256, Definition { name: "failed".to_owned(), level, ..Definition::default() });
        triggers.take_meaning(meaning(definitions));
        assert!(!triggers.lacks(&record));
        assert_eq!(triggers.hit(&record), Some(Hit { stamp: 7, reason: "error".to_owned() }));
    }
}
