//! What the records of a channel mean, by all that its messages have said so far.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use audience_common::print::Look;
use relay::clock::{Clock, Timeline};
use relay::trace::names::Names;
use relay::trace::text::{Format, Lines};

use super::calendar::Calendar;
use super::delivery::Timed;
use super::texts::{Dictionary, Processes};
use crate::message::Subject;

/// The most channels of a name that are kept: when one was created again, CPUs change over one after the other.
const INSTANCES_MAX: usize = 4;

/// What the records of a channel mean.
pub(super) struct Meaning {
    instance: u64,
    calendar: Calendar,
    lines: Lines,
    /// The newest texts.
    dictionary: Option<Arc<Dictionary>>,
    processes: Option<Arc<Processes>>,
}

impl Meaning {
    /// Returns the lines of the channel.
    pub(super) fn lines(&mut self) -> &mut Lines {
        &mut self.lines
    }

    /// Returns the channel's calendar.
    pub(super) fn calendar(&self) -> &Calendar {
        &self.calendar
    }

    /// Adds what came with a packet. Newer texts have all that older ones have.
    fn learn(&mut self, timeline: &Timeline, timed: &Timed) {
        let mut is_new = self.calendar.learn(timeline);
        let newest = self.dictionary.as_ref().map(|text| text.version);
        if let Some(text) = timed.dictionary.as_ref().filter(|text| Some(text.version) > newest) {
            self.dictionary = Some(Arc::clone(text));
            is_new |= self.calendar.learn(&text.metadata.timeline);
            self.lines.change_names(|names| names.set_definitions(text.definitions.clone()));
        }
        let newest = self.processes.as_ref().map(|text| text.version);
        if let Some(text) = timed.processes.as_ref().filter(|text| Some(text.version) > newest) {
            self.processes = Some(Arc::clone(text));
            self.lines.change_names(|names| {
                names.add_processes(&text.text);
            });
        }
        if is_new {
            self.lines.set_timeline(self.calendar.of_wall_times());
        }
    }
}

/// Returns lines for what stands before any packet.
pub(super) fn empty_lines(look: &Look) -> Lines {
    look.lines(Timeline::new(Clock::Monotonic, 0, &[]), Names::default())
}

/// A channel of a host.
pub(super) struct Origin {
    look: Look,
    /// What its lines begin with.
    pub(super) prefix: Vec<u8>,
    meanings: Vec<Rc<RefCell<Meaning>>>,
}

impl Origin {
    /// `has_channel`: lines show the channel, too.
    pub(super) fn new(look: &Look, subject: &Subject, has_channel: bool) -> Origin {
        let (host, channel) = (shown(&subject.host), shown(subject.channel.as_str()));
        let prefix = match look.format() {
            Format::Json => format!("{{\"host\":\"{host}\",\"channel\":\"{channel}\""),
            _ if has_channel => format!("{host} {channel} "),
            _ => format!("{host} "),
        };
        Origin { look: look.clone(), prefix: prefix.into_bytes(), meanings: Vec::new() }
    }

    /// Returns what a packet means.
    pub(super) fn meaning(
        &mut self,
        instance: u64,
        timeline: &Timeline,
        timed: &Timed,
    ) -> Rc<RefCell<Meaning>> {
        let found = self.meanings.iter().find(|meaning| meaning.borrow().instance == instance);
        let meaning = match found {
            Some(meaning) => Rc::clone(meaning),
            None => {
                let calendar = Calendar::new(timeline);
                let lines = self.look.lines(calendar.of_wall_times(), Names::default());
                let meaning = Meaning { instance, calendar, lines, dictionary: None, processes: None };
                let meaning = Rc::new(RefCell::new(meaning));
                if self.meanings.len() == INSTANCES_MAX {
                    self.meanings.remove(0);
                }
                self.meanings.push(Rc::clone(&meaning));
                meaning
            }
        };
        meaning.borrow_mut().learn(timeline, timed);
        meaning
    }
}

/// Returns a name so that no terminal obeys it, no reader of lines is misled, and JSON can have it.
pub(super) fn shown(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_ascii_graphic() && !['"', '\\', '%'].contains(&c) {
            text.push(c);
        } else {
            let mut bytes = [0; 4];
            text.extend(c.encode_utf8(&mut bytes).bytes().map(|byte| format!("%{byte:02X}")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_harmless() {
        assert_eq!(shown("web1.example.org"), "web1.example.org");
        assert_eq!(shown("a b\"\\%\x1b\u{202e}"), "a%20b%22%5C%25%1B%E2%80%AE");
    }
}
