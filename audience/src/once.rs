//! The classic reader: every file to its end, one after the other.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use crate::channel::Place;
use crate::failure::Failure;
use crate::losses::Tally;
use crate::mount::{OwnMount, is_mounted};
use crate::options::Options;
use crate::output::{self, Output};
use crate::signals::{self, Stop};

/// Reads what there is, mounting and unmounting if nothing is mounted.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    if is_mounted(&options.mount)? {
        // Nothing to clean up, so a signal may end us as it ends cat.
        return read(options, None);
    }
    let own = Arc::new(OwnMount::default());
    let shared = own.clone();
    // Before we mount: from then on no signal may leave the mount behind.
    let stop = signals::catch(move || {
        if let Err(failure) = shared.unmount() {
            output::say(failure);
        }
    })?;
    let result = own.mount(&options.mount).and_then(|()| read(options, Some(&stop)));
    let unmounted = own.unmount();
    match (result, unmounted) {
        (Err(failure), Err(second)) => {
            output::say(second);
            Err(failure)
        }
        (result, unmounted) => result.and(unmounted),
    }
}

/// All files are closed when this returns, as unmounting needs; and none before, since a channel that nobody
/// holds may go as soon as it is empty, and its counters with it.
fn read(options: &Options, stop: Option<&Stop>) -> Result<(), Failure> {
    let place = Place { mount: options.mount.clone(), channel: options.channel.clone() };
    let mut output = Output::new()?;
    let mut files = place.open(options.cpu)?;
    for file in &mut files {
        let block_size = file.file.metadata().map_err(|error| Failure::read(&file.path, error))?.blksize();
        loop {
            if let Some((signal, _)) = stop.and_then(Stop::caught) {
                return Err(Failure::Interrupted(signal));
            }
            if output.copy_some(file, block_size)? == 0 {
                break;
            }
        }
    }
    let mut tally = Tally::default();
    tally.add(&place.stats_path());
    tally.tell(options.cpu);
    Ok(())
}
