//! Prints what the merge of a channel yields, as lines on standard output.

use audience_common::print;
use audience_common::signals::Stop;
use relay::trace::merge::{Entry, Item, Merge, Source};
use relay::trace::text::Lines;

use super::accounts::Lost;
use super::meaning::Meaning;
use crate::error::Failure;
use crate::options::Show;
use crate::output::{Output, say};

/// Prints the lines of a channel.
pub(crate) struct Printer<'o> {
    printer: print::Printer<'o>,
    lines: Lines,
}

impl<'o> Printer<'o> {
    /// Prints as the options say.
    pub(crate) fn new(show: &Show, meaning: Meaning, output: &'o mut Output) -> Result<Printer<'o>, Failure> {
        let printer = print::Printer::new(show, output.plain(), |notice| say(notice))?;
        let names = meaning.names();
        let lines = print::Look::new(show).lines(meaning.timeline, names);
        Ok(Printer { printer, lines })
    }

    /// Prints all that the merge yields. Writes it out at the end.
    pub(crate) fn print(
        &mut self,
        merge: &mut Merge<impl Source>,
        stop: Option<&Stop>,
    ) -> Result<(), Failure> {
        while let Some(entry) = merge.next() {
            self.entry(&entry)?;
            // A signal is looked for where it costs nothing.
            if self.n_records().is_multiple_of(1024)
                && let Some((signal, _)) = stop.and_then(Stop::caught)
            {
                return Err(Failure::Interrupted(signal));
            }
        }
        self.flush()
    }

    /// Prints an item.
    #[inline]
    pub(crate) fn entry(&mut self, entry: &Entry<'_>) -> Result<(), Failure> {
        Ok(self.printer.entry(entry, &mut self.lines, b"")?)
    }

    /// Prints what a CPU has lost, behind all that came.
    pub(crate) fn losses(&mut self, cpu: usize, lost: Vec<Lost>) -> Result<(), Failure> {
        lost.into_iter().try_for_each(|(messages, cause)| {
            let item = Item::Lost { messages, cause };
            self.entry(&Entry { cpu: cpu as u32, stamp: self.printer.newest(), late: false, item })
        })
    }

    /// Writes out what was printed so far.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.printer.flush()?)
    }

    /// Writes out the last lines, if they are what is asked for, and prints all lines from now on.
    pub(crate) fn print_all(&mut self) -> Result<(), Failure> {
        Ok(self.printer.print_all()?)
    }

    /// Writes out the last lines, if they are what is asked for.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        Ok(self.printer.finish()?)
    }

    /// Takes a newer meaning. What only the older one says is kept.
    pub(crate) fn take_meaning(&mut self, meaning: Meaning) {
        self.lines.change_names(|names| meaning.add_processes(names));
        self.lines.change_names(|names| names.set_definitions(meaning.definitions));
        self.lines.set_timeline(meaning.timeline);
    }

    /// The lines' clock and names.
    pub(crate) fn lines(&mut self) -> &mut Lines {
        &mut self.lines
    }

    /// Returns how many records came, printed or not.
    pub(crate) fn n_records(&self) -> u64 {
        self.printer.n_records()
    }

    /// Whether something that is no packet was found.
    pub(crate) fn is_damaged(&self) -> bool {
        self.printer.is_damaged()
    }
}
