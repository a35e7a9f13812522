//! Reads a timed channel once: what is unread, a snapshot, or a recording.
//!
//! What is unread is consumed when it is written to standard output, all of it. So a reader of the output that goes away
//! costs nothing. Options that leave records out would consume what is not shown. With them the reader only looks.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use audience_common::signals::Stop;
use audience_common::trace_dir;
use relay::trace::merge::Merge;

use super::meaning::Meaning;
use super::print::Printer;
use super::streams::{self, Live, SharedLive, Stream};
use crate::error::Failure;
use crate::losses::{self, Tally};
use crate::options::{Options, Show, What};
use crate::output::Output;

/// Reads the channel. Returns the number of records.
pub(crate) fn read(options: &Options, output: &mut Output, stop: Option<&Stop>) -> Result<u64, Failure> {
    if options.snapshot { look(options, output, stop) } else { consume(options, output, stop) }
}

/// Prints what is in the buffers.
fn look(options: &Options, output: &mut Output, stop: Option<&Stop>) -> Result<u64, Failure> {
    let place = options.what.place();
    let mut merge = streams::snapshots(&place, options.what.cpu)?;
    // Behind the copies, so that it has the events of all their records.
    let mut printer = Printer::new(&options.show, Meaning::of_channel(&place)?, output)?;
    printer.print(&mut merge, stop).and_then(|()| printer.finish()).map_err(Failure::without_loss)?;
    Ok(printer.n_records())
}

/// Prints what is unread, and consumes it.
fn consume(options: &Options, output: &mut Output, stop: Option<&Stop>) -> Result<u64, Failure> {
    let (place, only) = (options.what.place(), options.what.cpu);
    let stats = place.stats_path();
    let mut tally = Tally::default();
    tally.begin(&stats);
    let before = losses::before(&stats);
    let may_consume = options.show.leaves_out().is_none();
    let mut takes = streams::unread(&place, only, &losses::now(&stats), may_consume)?;
    let counters = losses::now(&stats);
    let mut merge: Merge<Stream> = Merge::new();
    let mut lives: BTreeMap<usize, SharedLive> = BTreeMap::new();
    let consumed: Vec<usize> = takes.iter().filter(|(_, take)| take.len() > 0).map(|(cpu, _)| *cpu).collect();
    for (cpu, take) in &mut takes {
        let of = |counters: &losses::Counters| counters.get(cpu).copied().unwrap_or_default();
        let mut live = Live::new(&of(&before));
        live.counters = of(&counters);
        let live = Rc::new(live.into());
        merge.push(*cpu as u32, Stream::new(take.look()?, Some(Rc::clone(&live))));
        lives.insert(*cpu, live);
    }
    let mut printer = Printer::new(&options.show, Meaning::of_channel(&place)?, output)?;
    // Before anything is consumed: a failure to write it costs nothing.
    printer.print(&mut merge, stop).map_err(Failure::without_loss)?;
    drop(merge);
    let mut rest = counters;
    if may_consume {
        takes.into_iter().try_for_each(|(_, take)| take.consume())?;
        rest = losses::now(&stats);
        // The next reader begins with what the daemon noted when these were consumed.
        let noted = losses::before(&stats);
        rest.extend(noted.into_iter().filter(|(cpu, _)| consumed.contains(cpu)));
    }
    for (cpu, live) in lives {
        let Some(now) = rest.get(&cpu) else { continue };
        printer.losses(cpu, live.borrow_mut().accounts.rest(now))?;
    }
    printer.finish().map_err(Failure::without_loss)?;
    tally.add(&stats);
    tally.tell(only);
    Ok(printer.n_records())
}

/// Prints a recording.
pub(crate) fn trace(dir: &Path, what: &What, show: &Show) -> Result<(), Failure> {
    let traces = trace_dir::traces(dir)?;
    if traces.is_empty() {
        return Err(Failure::NoTrace(dir.to_owned()));
    }
    let mut merge = streams::traces(&traces, what.cpu)?;
    let mut output = Output::new()?;
    let mut printer = Printer::new(show, Meaning::of_traces(&traces)?, &mut output)?;
    printer.print(&mut merge, None).and_then(|()| printer.finish()).map_err(Failure::without_loss)?;
    if printer.is_damaged() { Err(Failure::Damaged(dir.to_owned())) } else { Ok(()) }
}
