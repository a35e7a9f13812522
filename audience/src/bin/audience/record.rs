//! `audience record`: copies channels into files.
//!
//! ```text
//! raw.rs      a raw channel: a thread for each CPU
//! timed.rs    a timed channel: a CTF trace
//! all.rs      --all: a recorder for each channel, also for those that are made later
//! ends.rs     where a recording ends, for --append and --dated
//! store.rs    which files are being written, and how much room all files take
//! ```

mod all;
mod cpu_thread;
mod ends;
mod job;
pub(crate) mod limits;
mod progress;
mod raw;
mod recording;
mod source;
mod store;
mod timed;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use audience_common::trace_dir::mend;
use nix::fcntl::Flock;

use crate::channel_files::Place;
use crate::error::Failure;
use crate::mount::is_mounted;
use crate::options::Record;
use crate::wait_for_channel::{LOOK_AGAIN, Mounts, wait_for};
use job::Job;
use limits::Limits;
use progress::Progress;
use recording::prepare;
use store::Store;

/// Records until a signal, the time limit, or an error.
pub(crate) fn run(options: &Record) -> Result<(), Failure> {
    // Only for its errors: a path that is no directory will not become a mount point.
    is_mounted(&options.what.mount)?;
    let output = Output::prepare(options)?;
    let limits = Limits::begin(options.duration)?;
    let store = Store::new(options.output.clone(), options.total_size);
    if options.total_size.is_some() {
        // Before files are removed whose lengths say where a recording ended.
        output.before.iter().try_for_each(|dir| job::settle_all(dir, store::DEPTH_MAX))?;
    }
    store.keep_limit()?;
    let result = record(options, &output, &limits, &store);
    result.and(store.finish())
}

fn record(options: &Record, output: &Output, limits: &Limits, store: &Store) -> Result<(), Failure> {
    if options.all {
        return all::run(options, output, limits, store);
    }
    let place = options.what.place();
    let mut progress = Progress::new(options.progress);
    let rest = |mounts: &Mounts| {
        limits.rest(LOOK_AGAIN, Some(mounts))?;
        Ok(limits.is_over())
    };
    let Some(found) = wait_for(&place, options.what.cpu, |message| progress.say(message), rest)? else {
        return Ok(());
    };
    let job = Job::begin(options, place, output, Path::new(""), limits, store)?;
    if found.is_timed {
        timed::run(&job, progress, found.at_once)
    } else {
        raw::run(&job, progress, found.at_once)
    }
}

/// Where this recorder writes.
pub(crate) struct Output {
    /// The directory.
    pub(crate) dir: PathBuf,
    /// Where an earlier recorder wrote what this one continues, the newest first.
    pub(crate) before: Vec<PathBuf>,
    /// Held while the recorder runs, if it has directories below this one.
    _lock: Option<Flock<fs::File>>,
}

impl Output {
    /// Creates the directory if it is missing. Refuses one that holds a recording, unless this recorder continues it.
    fn prepare(options: &Record) -> Result<Output, Failure> {
        let root = &options.output;
        if !options.continues() {
            prepare(root)?;
            return Ok(Output { dir: root.clone(), before: Vec::new(), _lock: None });
        }
        create(root)?;
        // A single recording has its own lock in the same place.
        let has_more = options.all || options.dated;
        let lock = || mend::lock(root)?.ok_or_else(|| Failure::RecorderAtWork(root.clone()));
        let lock = has_more.then(lock).transpose()?;
        if options.dated {
            let mut before = store::dated_dirs(root);
            before.reverse();
            let dir = root.join(store::next_date(root));
            create(&dir)?;
            return Ok(Output { dir, before, _lock: lock });
        }
        if !options.append && !store::is_empty(root) {
            return Err(Failure::Recorded(root.clone()));
        }
        Ok(Output { dir: root.clone(), before: vec![root.clone()], _lock: lock })
    }
}

/// Creates a directory and those above it, for their owner alone.
fn create(dir: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(Failure::record(dir, error)),
        _ => Ok(()),
    }
}

/// Finishes every unfinished sub-buffer, so that all its content can be recorded.
///
/// Errors are ignored: without the right, or without the channel, the recording takes what it can read unflushed.
fn flush(place: &Place) {
    let _ = fs::write(place.control_path("flush"), "1");
}
