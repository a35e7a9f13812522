//! The classic reader: reads every file to its end, one after the other.
//!
//! With `--snapshot` it reads a copy of every file, which consumes nothing.
//!
//! If nothing is mounted, a daemon that the reader starts would take over the buffers of the last daemon, and the
//! reader would consume them. So the reader prints the left buffers instead, and mounts only if there are none.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use audience_common::signals::{self, Stop};
use relay::layout::channel_files::LOCK_FILE;

use relay::layout::channel_name::DEFAULT_CHANNEL;

use crate::channel_files::{CpuFile, wanted};
use crate::error::Failure;
use crate::losses::Tally;
use crate::mount::{OwnMount, check_unused, is_mounted};
use crate::options::Options;
use crate::output::{self, Output};
use crate::post_mortem;
use crate::timed::one_shot;
use crate::unread;

/// Longest wait for a daemon that is starting or ending.
const SETTLE_MAX: Duration = Duration::from_secs(5);
/// Time between two checks of that daemon.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What there is to read at a mount point.
enum There {
    Mounted,
    /// The state directory of the last daemon.
    LeftOver(PathBuf),
    Nothing,
}

/// Reads the channel, or what the last daemon left. If there is neither, mounts before and unmounts after.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let mount = &options.what.mount;
    match look_at(mount)? {
        // There is nothing to clean up, so a signal may end this process as it ends cat.
        There::Mounted => return read(options, None),
        There::LeftOver(dir) => return post_mortem::run_instead(&dir, &options.what, &options.show),
        There::Nothing => check_unused(mount)?,
    }
    let own = Arc::new(OwnMount::default());
    let shared = own.clone();
    // Before the mount: from then on no signal may leave the mount behind.
    let stop = signals::catch(Some(signals::END_MAX), move || {
        if let Err(failure) = shared.unmount() {
            output::say(failure);
        }
    })?;
    let result = own.mount(mount).and_then(|()| read(options, Some(&stop)));
    let unmounted = own.unmount();
    match (result, unmounted) {
        (Err(failure), Err(second)) => {
            output::say(second);
            Err(failure)
        }
        (result, unmounted) => result.and(unmounted),
    }
}

fn look_at(mount: &Path) -> Result<There, Failure> {
    let deadline = Instant::now() + SETTLE_MAX;
    loop {
        if is_mounted(mount)? {
            return Ok(There::Mounted);
        }
        let Some(dir) = post_mortem::find::of_mount(mount) else { return Ok(There::Nothing) };
        let is_at_work = relay::system::locks::lock_holder(&dir.join(LOCK_FILE)).is_some();
        // A daemon that ended in between may have removed its directory, the lock last.
        if Instant::now() >= deadline || !is_at_work && post_mortem::find::holds_channels(&dir) {
            return Ok(There::LeftOver(dir));
        }
        thread::sleep(LOOK_AGAIN);
    }
}

fn read(options: &Options, stop: Option<&Stop>) -> Result<(), Failure> {
    let mut output = Output::new()?;
    let place = options.what.place();
    let is_timed = place.is_timed();
    if !is_timed
        && let Some(option) = options.show.given()
        && place.control_path("mode").exists()
    {
        return Err(Failure::Raw { channel: place.channel, option });
    }
    let mut copy = || {
        if is_timed {
            one_shot::read(options, &mut output, stop)
        } else if options.snapshot {
            look(options, &mut output, stop)
        } else {
            consume(options, &mut output, stop)
        }
    };
    let copied = match copy() {
        // The channel was created between the two checks: nothing has been read yet.
        Err(Failure::NoChannel { channel, known, .. })
            if known.iter().any(|name| *name == channel.as_str()) =>
        {
            copy()
        }
        result => result,
    }?;
    // A caller that names a channel or a CPU needs no hint.
    let is_default = options.what.channel.as_str() == DEFAULT_CHANNEL && options.what.cpu.is_none();
    if copied == 0
        && is_default
        && let Some(hint) = unread::elsewhere(&options.what.place())
    {
        output::say(hint);
    }
    Ok(())
}

/// Reads all files to their ends, and then reports the losses.
///
/// All files are closed when this returns, since unmounting needs that. None is closed before: an empty channel that
/// has no open file may be removed, and its counters with it.
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

/// Reads the frozen copies, one after the other: each takes memory of the daemon while it is open.
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

/// Copies a file to its end. Returns the number of bytes.
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
