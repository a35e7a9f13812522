//! The classic reader: every file to its end, one after the other. With `--snapshot`, of every file a copy, which
//! consumes nothing.

use std::io::ErrorKind;
use std::sync::Arc;

use relay::name::DEFAULT_CHANNEL;

use crate::channel::{CpuFile, wanted};
use crate::failure::Failure;
use crate::losses::Tally;
use crate::mount::{OwnMount, is_mounted};
use crate::options::Options;
use crate::output::{self, Output};
use crate::signals::{self, Stop};
use crate::unread;

/// Reads what there is, mounting and unmounting if nothing is mounted.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    if is_mounted(&options.what.mount)? {
        // Nothing to clean up, so a signal may end us as it ends cat.
        return read(options, None);
    }
    let own = Arc::new(OwnMount::default());
    let shared = own.clone();
    // Before we mount: from then on no signal may leave the mount behind.
    let stop = signals::catch(Some(signals::END_MAX), move || {
        if let Err(failure) = shared.unmount() {
            output::say(failure);
        }
    })?;
    let result = own.mount(&options.what.mount).and_then(|()| read(options, Some(&stop)));
    let unmounted = own.unmount();
    match (result, unmounted) {
        (Err(failure), Err(second)) => {
            output::say(second);
            Err(failure)
        }
        (result, unmounted) => result.and(unmounted),
    }
}

fn read(options: &Options, stop: Option<&Stop>) -> Result<(), Failure> {
    let mut output = Output::new()?;
    let mut copy = || {
        if options.snapshot { look(options, &mut output, stop) } else { consume(options, &mut output, stop) }
    };
    let copied = match copy() {
        // Created between the two looks: nothing has been read yet.
        Err(Failure::NoChannel { channel, known, .. })
            if known.iter().any(|name| *name == channel.as_str()) =>
        {
            copy()
        }
        result => result,
    }?;
    // A caller that has named what to read knows what it wants.
    let is_default = options.what.channel.as_str() == DEFAULT_CHANNEL && options.what.cpu.is_none();
    if copied == 0
        && is_default
        && let Some(hint) = unread::elsewhere(&options.what.place())
    {
        output::say(hint);
    }
    Ok(())
}

/// All files are closed when this returns, as unmounting needs; and none before, since a channel that nobody
/// holds may go as soon as it is empty, and its counters with it.
fn consume(options: &Options, output: &mut Output, stop: Option<&Stop>) -> Result<u64, Failure> {
    let place = options.what.place();
    let mut files = place.open(options.what.cpu)?;
    let mut tally = Tally::default();
    tally.begin(&place.stats_path());
    let mut copied = 0;
    for file in &mut files {
        copied += copy(file, output, stop)?;
    }
    tally.add(&place.stats_path());
    tally.tell(options.what.cpu);
    Ok(copied)
}

/// The frozen copies, one after the other: each takes its share of the daemon's memory while it is open.
fn look(options: &Options, output: &mut Output, stop: Option<&Stop>) -> Result<u64, Failure> {
    let place = options.what.place();
    let (mut found, mut copied) = (false, 0);
    for cpu in wanted(options.what.cpu) {
        match CpuFile::open(cpu, place.control_path(&format!("snapshot/cpu{cpu}"))) {
            Ok(mut file) => copied += copy(&mut file, output, stop).map_err(Failure::without_loss)?,
            Err(Failure::Open { source, .. })
                if source.kind() == ErrorKind::NotFound && !place.cpu_path(cpu).exists() =>
            {
                continue;
            }
            Err(failure) => return Err(failure),
        }
        found = true;
    }
    if found { Ok(copied) } else { Err(place.nothing(options.what.cpu)?) }
}

/// Copies a file to its end. Returns how many bytes.
fn copy(file: &mut CpuFile, output: &mut Output, stop: Option<&Stop>) -> Result<u64, Failure> {
    let mut copied = 0;
    loop {
        if let Some((signal, _)) = stop.and_then(Stop::caught) {
            return Err(Failure::Interrupted(signal));
        }
        match output.copy_some(file)? {
            0 => return Ok(copied),
            got => copied += got as u64,
        }
    }
}
