//! A recording: its pieces, what they mean, and their records in one order.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use audience_common::trace_dir::{self, METADATA, PROCESSES, Texts};
use relay::clock::{Anchor, Timeline};
use relay::trace::definition::Definitions;
use relay::trace::merge::{Entry, Merge, Source};
use relay::trace::metadata::Metadata;
use relay::trace::names::Names;
use relay::trace::packet::{PacketHeader, PacketReader, ReadError};

use crate::error::Failure;
use crate::output::say;

/// Bytes that one read asks for.
const BLOCK: usize = 1 << 20;
/// Most anchors that are kept of all pieces: a timeline looks at no more.
const ANCHORS_MAX: usize = 1000;

/// A recording that is read.
pub(crate) struct Recording {
    timeline: Timeline,
    /// Names with the events of each dictionary; almost always there is one.
    names: Vec<Names>,
    merge: Merge<Stream>,
    notes: Rc<RefCell<Notes>>,
    /// The dictionary of the last record.
    current: usize,
    /// What the streams noted before the last item.
    packets: Vec<PacketHeader>,
    failures: Vec<Failure>,
    is_damaged: bool,
}

/// What belongs to an item.
pub(crate) struct Context<'a> {
    pub(crate) names: &'a Names,
    /// The names, if they are others than before.
    pub(crate) new_names: Option<&'a Names>,
    /// Packets that were begun since the item before.
    pub(crate) packets: &'a [PacketHeader],
    /// What cannot be read.
    pub(crate) failures: &'a [Failure],
}

/// What streams tell the reader of the merge.
#[derive(Debug, Default)]
struct Notes {
    packets: Vec<PacketHeader>,
    failures: Vec<Failure>,
    /// The dictionary of each CPU's present packet.
    dictionaries: HashMap<u32, usize>,
}

/// A CPU's stream file of a piece. It is opened when its turn comes: a recording may have many pieces.
struct Stream {
    cpu: u32,
    path: PathBuf,
    dictionary: usize,
    reader: Option<PacketReader<BufReader<File>>>,
    notes: Rc<RefCell<Notes>>,
}

impl Recording {
    /// Opens a recording. Reports what cannot be understood in its texts.
    pub(crate) fn open(dir: &Path) -> Result<Recording, Failure> {
        let pieces = pieces(dir)?;
        let meaning = Meaning::read(&pieces)?;
        let notes: Rc<RefCell<Notes>> = Rc::default();
        let mut merge = Merge::new();
        for (piece, dictionary) in pieces.iter().zip(&meaning.of_pieces) {
            for (cpu, path) in trace_dir::streams(piece)? {
                let (cpu, notes) = (u32::try_from(cpu).unwrap_or(u32::MAX), Rc::clone(&notes));
                merge.push(cpu, Stream { cpu, path, dictionary: *dictionary, reader: None, notes });
            }
        }
        let names = |definitions| {
            let mut names = Names::new(definitions, "");
            for text in &meaning.processes {
                names.add_processes(text);
            }
            names
        };
        Ok(Recording {
            timeline: meaning.timeline,
            names: meaning.dictionaries.into_iter().map(names).collect(),
            merge,
            notes,
            current: 0,
            packets: Vec::new(),
            failures: Vec::new(),
            is_damaged: meaning.is_damaged,
        })
    }

    pub(crate) fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Returns the names of the first records.
    pub(crate) fn names(&self) -> &Names {
        &self.names[0]
    }

    /// Returns the next item.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<(Entry<'_>, Context<'_>)> {
        let entry = self.merge.next()?;
        let notes = &mut *self.notes.borrow_mut();
        self.packets.clear();
        self.packets.append(&mut notes.packets);
        self.failures.clear();
        self.failures.append(&mut notes.failures);
        self.is_damaged |= !self.failures.is_empty();
        let before = self.current;
        if self.names.len() > 1 {
            self.current = notes.dictionaries.get(&entry.cpu).copied().unwrap_or(before);
        }
        let names = &self.names[self.current];
        let new_names = (self.current != before).then_some(names);
        Some((entry, Context { names, new_names, packets: &self.packets, failures: &self.failures }))
    }

    /// Notes that something of the recording could not be converted.
    pub(crate) fn set_damaged(&mut self) {
        self.is_damaged = true;
    }

    /// Returns whether something of the recording could not be converted.
    pub(crate) fn is_damaged(&self) -> bool {
        self.is_damaged
    }
}

impl Source for Stream {
    fn next_packet(&mut self, packet: &mut Vec<u8>) -> Result<Option<PacketHeader>, ReadError> {
        let read = match &mut self.reader {
            Some(reader) => reader.read(packet),
            None => match File::open(&self.path) {
                Ok(file) => {
                    let reader = PacketReader::new(BufReader::with_capacity(BLOCK, file));
                    self.reader.insert(reader).read(packet)
                }
                Err(error) => Err(ReadError::Io(error)),
            },
        };
        let notes = &mut *self.notes.borrow_mut();
        match &read {
            Ok(Some(header)) => {
                // The name of the file is more to be trusted than what lies in it.
                notes.packets.push(PacketHeader { cpu: self.cpu, ..*header });
                notes.dictionaries.insert(self.cpu, self.dictionary);
            }
            Ok(None) => {}
            Err(error) => notes.failures.push(failure(&self.path, error)),
        }
        read
    }
}

fn failure(path: &Path, error: &ReadError) -> Failure {
    match error {
        ReadError::Io(error) => Failure::read(path, std::io::Error::new(error.kind(), error.to_string())),
        ReadError::Packet(error) => Failure::Packets { path: path.to_owned(), error: *error },
    }
}

/// The directories of a recording's pieces, in order. A piece whose metadata is lost has packets all the same.
fn pieces(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    if dir.join(METADATA).exists() {
        return Ok(vec![dir.to_owned()]);
    }
    let found = trace_dir::pieces(dir)?;
    if found.is_empty() { Err(Failure::NoTrace(dir.to_owned())) } else { Ok(found) }
}

/// What the texts of all pieces say.
struct Meaning {
    timeline: Timeline,
    /// A later piece knows the events of an earlier one too, unless the channel was created again in between.
    dictionaries: Vec<Definitions>,
    /// The dictionary of each piece.
    of_pieces: Vec<usize>,
    processes: Vec<String>,
    is_damaged: bool,
}

impl Meaning {
    fn read(pieces: &[PathBuf]) -> Result<Meaning, Failure> {
        let mut last: Option<Metadata> = None;
        let (mut anchors, mut first_failure) = (Vec::new(), None);
        let (mut dictionaries, mut of_pieces) = (vec![Definitions::new()], Vec::new());
        let (mut processes, mut is_damaged): (Vec<String>, bool) = (Vec::new(), false);
        for piece in pieces {
            let path = piece.join(METADATA);
            let read = Texts::read(piece, PROCESSES).map_err(Failure::from).and_then(|texts| {
                if processes.last() != Some(&texts.processes) {
                    processes.push(texts.processes);
                }
                Metadata::parse(&texts.metadata)
                    .map_err(|error| Failure::Metadata { path: path.clone(), error })
            });
            match read {
                Ok((metadata, events)) => {
                    for line in &events.refused {
                        say(format_args!("{}: line {line} of the events is not understood", path.display()));
                        is_damaged = true;
                    }
                    add(&mut dictionaries, events.definitions);
                    anchors.extend(metadata.timeline.anchors().copied());
                    last = Some(metadata);
                }
                Err(failure) if pieces.len() == 1 => return Err(failure),
                Err(failure) => {
                    say(format_args!("{failure}; its records are read by the other pieces' metadata"));
                    (first_failure, is_damaged) = (Some(failure), true);
                }
            }
            of_pieces.push(dictionaries.len() - 1);
        }
        let Some(Metadata { timeline, .. }) = last else {
            return Err(first_failure.unwrap_or(Failure::NoTrace(PathBuf::new())));
        };
        let timeline = Timeline::new(timeline.clock(), timeline.ticks_per_second(), &thin(anchors));
        Ok(Meaning { timeline, dictionaries, of_pieces, processes, is_damaged })
    }
}

/// Adds events to the last dictionary, or begins another one if an id has another meaning.
fn add(dictionaries: &mut Vec<Definitions>, events: Definitions) {
    if let Some(last) = dictionaries.last_mut() {
        let contradicts = |(id, event)| last.get(id).is_some_and(|known| known != event);
        if !events.iter().any(contradicts) {
            for (id, event) in events.iter() {
                last.insert(id, event.clone());
            }
            return;
        }
    }
    dictionaries.push(events);
}

/// Leaves out anchors that say the same, and most of those that stand close together, but none that begins an epoch.
fn thin(mut anchors: Vec<Anchor>) -> Vec<Anchor> {
    anchors.sort_by_key(|anchor| (anchor.epoch, anchor.ticks));
    anchors.dedup();
    while anchors.len() > ANCHORS_MAX {
        let (len, mut number, mut epoch) = (anchors.len(), 0, None);
        anchors.retain(|anchor| {
            number += 1;
            let begins = epoch.replace(anchor.epoch) != Some(anchor.epoch);
            begins || number % 2 == 0 || number == len
        });
        if anchors.len() == len {
            break;
        }
    }
    anchors
}

#[cfg(test)]
mod tests {
    use relay::trace::definition::Definition;

    use super::*;

    #[test]
    fn an_id_with_another_meaning_begins_a_dictionary() {
        let events = |list: &[(u16, &str)]| {
            let mut events = Definitions::new();
            for (id, name) in list {
                assert!(events.insert(*id, Definition { name: (*name).to_owned(), ..Definition::default() }));
            }
            events
        };
        let mut dictionaries = vec![Definitions::new()];
        add(&mut dictionaries, events(&[(256, "a")]));
        add(&mut dictionaries, events(&[(256, "a"), (257, "b")]));
        add(&mut dictionaries, events(&[(257, "b")]));
        assert_eq!((dictionaries.len(), dictionaries[0].len()), (1, 2));
        add(&mut dictionaries, events(&[(256, "c")]));
        assert_eq!((dictionaries.len(), dictionaries[1].len()), (2, 1));
    }

    #[test]
    fn anchors_are_thinned_and_epochs_stay() {
        let anchor = |ticks, epoch| Anchor { ticks, epoch, ..Anchor::default() };
        let all: Vec<Anchor> = (0..5000).chain(0..5000).map(|ticks| anchor(ticks, ticks / 2501)).collect();
        let thinned = thin(all);
        assert!((ANCHORS_MAX / 2..=ANCHORS_MAX).contains(&thinned.len()), "{}", thinned.len());
        assert_eq!((thinned[0].ticks, thinned[thinned.len() - 1].ticks), (0, 4999));
        assert!(thinned.iter().any(|anchor| anchor.ticks == 2501));
        assert!(thinned.is_sorted_by_key(|anchor| anchor.ticks));
    }
}
