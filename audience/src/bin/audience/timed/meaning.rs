//! What the records of a channel mean: its clock, and names for numbers.

use std::path::{Path, PathBuf};

use audience_common::trace_dir::{METADATA, PROCESSES, Texts};
use relay::clock::Timeline;
use relay::trace::definition::Definitions;
use relay::trace::metadata::Metadata;
use relay::trace::names::Names;

use crate::channel_files::Place;
use crate::error::Failure;

/// What records mean.
#[derive(Clone, Debug)]
pub(crate) struct Meaning {
    pub(crate) timeline: Timeline,
    pub(crate) definitions: Definitions,
    /// Texts of the file `processes`, the oldest first.
    pub(crate) processes: Vec<String>,
}

impl Meaning {
    /// Reads what the daemon says about a channel.
    pub(crate) fn of_channel(place: &Place) -> Result<Meaning, Failure> {
        Meaning::of_texts(&place.control_path(""), texts_of_channel(place)?)
    }

    /// Reads what the traces of a recording say, in order. The last one knows all events.
    pub(crate) fn of_traces(traces: &[PathBuf]) -> Result<Meaning, Failure> {
        let (mut anchors, mut processes) = (Vec::new(), Vec::new());
        let mut last = None;
        for trace in traces {
            let meaning = Meaning::of_texts(trace, Texts::read(trace, PROCESSES)?)?;
            anchors.extend(meaning.timeline.anchors().copied());
            processes.extend(meaning.processes.iter().cloned());
            last = Some(meaning);
        }
        let Some(Meaning { timeline, definitions, .. }) = last else {
            return Err(Failure::NoTrace(PathBuf::new()));
        };
        let timeline = Timeline::new(timeline.clock(), timeline.ticks_per_second(), &anchors);
        Ok(Meaning { timeline, definitions, processes })
    }

    /// Returns names for the numbers in records.
    pub(crate) fn names(&self) -> Names {
        let mut names = Names::new(self.definitions.clone(), "");
        self.add_processes(&mut names);
        names
    }

    /// Adds the processes to names.
    pub(crate) fn add_processes(&self, names: &mut Names) {
        for text in &self.processes {
            names.add_processes(text);
        }
    }

    fn of_texts(dir: &Path, texts: Texts) -> Result<Meaning, Failure> {
        let (metadata, events) = Metadata::parse(&texts.metadata)
            .map_err(|error| Failure::Metadata { path: dir.join(METADATA), error })?;
        Ok(Meaning {
            timeline: metadata.timeline,
            definitions: events.definitions,
            processes: vec![texts.processes],
        })
    }
}

/// Reads the texts that belong to a channel's packets.
pub(crate) fn texts_of_channel(place: &Place) -> Result<Texts, Failure> {
    Ok(Texts::read(&place.control_path(""), "processes")?)
}
