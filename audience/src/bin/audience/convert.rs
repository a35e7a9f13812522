//! `audience convert`: makes a file for another program of a recording of a timed channel.
//!
//! ```text
//! DIR or its pieces --> a packet of each CPU --> merge --> lines, JSON, or Perfetto's packets --> FILE
//! ```
//!
//! It reads the recording once, in bounded memory, and changes nothing in it. What is damaged is reported, and all else
//! is converted.

mod perfetto;
mod protobuf;
pub(crate) mod recording;
pub(crate) mod target;

use audience_common::signals::Stop;
use relay::clock::Timeline;
use relay::trace::merge::{Entry, Item};
use relay::trace::names::Names;
use relay::trace::text::{Format, Lines};

use self::perfetto::Perfetto;
use self::recording::Recording;
use self::target::{Leftover, Target};
use crate::error::Failure;
use crate::options::Convert;
use crate::output::say;

/// Bytes that are written at once.
const BLOCK: usize = 256 << 10;
/// How many items come between two looks for a signal.
const LOOK_AGAIN: u64 = 1024;

/// Converts the recording.
pub(crate) fn run(options: &Convert) -> Result<(), Failure> {
    let (stop, left) = Leftover::catch_signals()?;
    let mut recording = Recording::open(&options.dir)?;
    let target = Target::create(&options.output, &left)?;
    let (timeline, names) = (recording.timeline().clone(), recording.names().clone());
    let form = match options {
        Convert { perfetto: true, .. } => Form::Perfetto(Box::new(Perfetto::begin(timeline, &names))),
        Convert { json: true, .. } => Form::lines(Format::Json, timeline, names),
        _ => Form::lines(Format::ShortIso, timeline, names),
    };
    convert(&mut recording, form, target, &stop)?;
    if recording.is_damaged() { Err(Failure::PartlyConverted(options.dir.clone())) } else { Ok(()) }
}

fn convert(
    recording: &mut Recording,
    mut form: Form,
    mut target: Target,
    stop: &Stop,
) -> Result<(), Failure> {
    let mut n_items: u64 = 0;
    let (mut damaged_bytes, mut damaged_packets) = (0u64, 0u64);
    while let Some((entry, of)) = recording.next() {
        if let Some(names) = of.new_names {
            form.set_names(names);
        }
        if let Form::Perfetto(perfetto) = &mut form {
            of.packets.iter().for_each(|header| perfetto.packet(header));
        }
        of.failures.iter().for_each(say);
        if let Item::Damaged { bytes } = entry.item {
            (damaged_bytes, damaged_packets) = (damaged_bytes + bytes as u64, damaged_packets + 1);
        }
        form.entry(&entry, of.names);
        form.write(&mut target, BLOCK)?;
        n_items += 1;
        if n_items.is_multiple_of(LOOK_AGAIN)
            && let Some((signal, _)) = stop.caught()
        {
            return Err(Failure::Interrupted(signal));
        }
    }
    if damaged_packets > 0 {
        say(format_args!(
            "{damaged_bytes} bytes in {damaged_packets} packets are no records, and are left out"
        ));
        recording.set_damaged();
    }
    form.end();
    form.write(&mut target, 0)?;
    target.finish()
}

/// What is made of the records.
enum Form {
    Lines { lines: Box<Lines>, block: Vec<u8> },
    Perfetto(Box<Perfetto>),
}

impl Form {
    fn lines(format: Format, timeline: Timeline, names: Names) -> Form {
        Form::Lines {
            lines: Box::new(Lines::new(format, timeline, names)),
            block: Vec::with_capacity(2 * BLOCK),
        }
    }

    /// Takes other names for the records that follow.
    fn set_names(&mut self, new: &Names) {
        if let Form::Lines { lines, .. } = self {
            lines.change_names(|names| *names = new.clone());
        }
    }

    #[inline]
    fn entry(&mut self, entry: &Entry<'_>, names: &Names) {
        match self {
            Form::Lines { lines, block } => lines.line(entry, block),
            Form::Perfetto(perfetto) => perfetto.entry(entry, names),
        }
    }

    /// Writes what was made, if it is at least this long.
    fn write(&mut self, target: &mut Target, least: usize) -> Result<(), Failure> {
        let made = match self {
            Form::Lines { block, .. } => &block[..],
            Form::Perfetto(perfetto) => perfetto.packets().as_bytes(),
        };
        if made.len() < least {
            return Ok(());
        }
        target.write(made)?;
        match self {
            Form::Lines { block, .. } => block.clear(),
            Form::Perfetto(perfetto) => perfetto.packets().clear(),
        }
        Ok(())
    }

    fn end(&mut self) {
        if let Form::Perfetto(perfetto) = self {
            perfetto.end();
        }
    }
}
