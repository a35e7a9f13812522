//! `--state`: reads what a dead daemon left in its state directory: the black box.
//!
//! It asks no daemon, consumes nothing, and changes nothing.
//!
//! It prints the same as a snapshot: all unread data, or in overwrite mode all data that is still whole. Producers may
//! be writing meanwhile, as they do after their daemon has died. It trusts none of the files: it checks their content,
//! reports what is wrong, and reads the rest.

pub(crate) mod find;
mod list;

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use relay::Mode;
use relay::layout::channel_files::{
    Control, FileError, LOCK_FILE, control_name, data_name, header_of, id_of_control, open_regular,
};
use relay::layout::paths::shell_word;
use relay::layout::state_file::{ChannelEntry, STATE_FILE, StateFile};
use relay::memory::mapping::{Mapping, outlive_truncation};
use relay::ring::buffer::Buffer;
use relay::ring::reader::Reader;
use relay::system::locks::lock_holder;
use relay::trace::merge::Merge;

use crate::error::Failure;
use crate::losses::{Losses, Tally};
use crate::options::Show;
use crate::options::What;
use crate::output::{Output, say};
use crate::timed::left;
use crate::timed::meaning::Meaning;
use crate::timed::print::Printer;
use crate::timed::streams::Stream;

/// Most tries to copy a buffer before a daemon reads from it.
const TRIES_MAX: u32 = 16;

/// Prints what is left of a channel; without a path, lists what is left.
///
/// `path` is a state directory, or a mount point whose state directory is meant.
/// left.
pub(crate) fn run(path: Option<&Path>, what: &What, show: &Show) -> Result<(), Failure> {
    outlive_truncation().map_err(|error| Failure::system("handle a signal", error))?;
    let Some(path) = path else { return list::run() };
    if find::is_state_dir(path) {
        return print(path, what, show);
    }
    // If no directory is found, opening the path itself fails, with an error that says why.
    print(&find::of_mount_of_anybody(path).unwrap_or_else(|| path.to_owned()), what, show)
}

/// Prints what the last daemon of an unmounted mount point left of a channel.
///
/// `dir` is that daemon's state directory.
pub(crate) fn run_instead(dir: &Path, what: &What, show: &Show) -> Result<(), Failure> {
    let (mount, word) = (what.mount.display(), shell_word(&what.mount));
    say(format_args!(
        "nothing is mounted on {mount}: this is what its last daemon left in {}; nothing is consumed; to continue with it: \
         relayfsd {word}",
        dir.display()
    ));
    run(Some(dir), what, show)
}

fn print(dir: &Path, what: &What, show: &Show) -> Result<(), Failure> {
    let found = Found::in_dir(dir)?;
    if let Some(pid) = lock_holder(&dir.join(LOCK_FILE)) {
        say(format_args!(
            "relayfsd (process {pid}) is at work on {}: better ask it, by 'audience --snapshot' or by reading",
            dir.display()
        ));
    }
    let (id, entry) = found.pick(what)?;
    let mut complaints = found.complaint.iter().cloned().collect::<Vec<_>>();
    complaints.iter().for_each(say);
    let n_told = complaints.len();
    let channel = LeftChannel::open(dir, id, entry, &mut complaints).map_err(Failure::Left)?;
    complaints[n_told..].iter().for_each(say);
    let is_damaged = channel.print(what, show)? || complaints.len() > n_told;
    if is_damaged { Err(Failure::Damaged(dir.to_owned())) } else { Ok(()) }
}

/// The channels in a state directory.
struct Found<'d> {
    dir: &'d Path,
    /// The channels that the state file names.
    named: Vec<ChannelEntry>,
    /// Numbers of the channels that the state file does not name.
    nameless: Vec<u32>,
    /// What is wrong with the state file.
    complaint: Option<String>,
}

impl Found<'_> {
    fn in_dir(dir: &Path) -> Result<Found<'_>, Failure> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(dir).map_err(|source| Failure::StateDir { path: dir.to_owned(), source })? {
            let name = entry.map_err(|error| Failure::read(dir, error))?.file_name();
            ids.extend(name.to_str().and_then(id_of_control));
        }
        ids.sort_unstable();
        let (named, complaint) = match StateFile::read(dir) {
            Ok(Some(state)) => (state.channels, None),
            Ok(None) if ids.is_empty() => return Err(Failure::NoState(dir.to_owned())),
            Ok(None) => (Vec::new(), Some(format!("there is no file '{STATE_FILE}' in {}", dir.display()))),
            Err(why) => (Vec::new(), Some(format!("cannot read {why}"))),
        };
        ids.retain(|id| !named.iter().any(|channel| channel.id == *id));
        let complaint = complaint.map(|why| format!("{why}; channels go by their numbers"));
        Ok(Found { dir, named, nameless: ids, complaint })
    }

    /// Finds a channel: its number, and its entry in the state file. A channel without a name is found by its number.
    fn pick(&self, what: &What) -> Result<(u32, Option<&ChannelEntry>), Failure> {
        if let Some(entry) = self.named.iter().find(|entry| entry.name == what.channel) {
            return Ok((entry.id, Some(entry)));
        }
        let number = self.nameless.iter().find(|id| id.to_string() == what.channel.as_str());
        number.map(|id| (*id, None)).ok_or_else(|| {
            let names = self.named.iter().map(|channel| channel.name.to_string());
            let mut known: Vec<String> = names.collect();
            known.sort_unstable();
            known.extend(self.nameless.iter().map(u32::to_string));
            Failure::NoChannel { channel: what.channel.clone(), mount: self.dir.to_owned(), known }
        })
    }
}

/// A channel's control file.
struct LeftChannel<'d> {
    dir: &'d Path,
    id: u32,
    control: Control,
}

impl LeftChannel<'_> {
    /// Opens the control file. If its header contradicts the state file, adds a complaint and trusts the header.
    fn open<'d>(
        dir: &'d Path,
        id: u32,
        entry: Option<&ChannelEntry>,
        complaints: &mut Vec<String>,
    ) -> Result<LeftChannel<'d>, String> {
        let path = dir.join(control_name(id));
        let said = |error: &dyn std::fmt::Display| format!("cannot read {}: {error}", path.display());
        let file = open_regular(&path).map_err(|error| said(&error))?;
        let map = |(geometry, n_bufs)| Control::map(&file, Mapping::on_demand, geometry, n_bufs);
        let own = || {
            let shape = header_of(&file)?.shape();
            map(shape.ok_or(FileError::Header("its header makes no sense"))?)
        };
        let mut complain = |what: String| complaints.push(format!("{}: {what}", path.display()));
        let control = match entry.map(|entry| map((entry.geometry, entry.n_bufs))) {
            None => own().map_err(|error| said(&error))?,
            Some(Ok(control)) => control,
            Some(Err(why)) => {
                let control = own().map_err(|_| said(&why))?;
                complain(format!("{why}, by '{STATE_FILE}'; its own header is used instead"));
                control
            }
        };
        let (len, needed) = (file.metadata().map_err(|error| said(&error))?.len(), control.file_len());
        if len != needed {
            complain(format!("it has {len} bytes instead of {needed}; the others are left alone"));
        }
        Ok(LeftChannel { dir, id, control })
    }

    /// Prints the buffers one after the other, and then the losses. Returns whether damage was found and reported.
    fn print(&self, what: &What, show: &Show) -> Result<bool, Failure> {
        let n_bufs = self.control.n_bufs();
        let cpus = match what.cpu {
            Some(cpu) if cpu >= n_bufs => {
                let (channel, mount) = (what.channel.clone(), self.dir.to_owned());
                return Err(Failure::NoCpu { channel, mount, cpu, has: (0..n_bufs).collect() });
            }
            Some(cpu) => cpu..cpu + 1,
            None => 0..n_bufs,
        };
        let mut output = Output::new()?;
        let mut losses = BTreeMap::new();
        let mut timed: Option<(Meaning, Merge<Stream>)> = None;
        let mut is_damaged = false;
        let mut complain = |why: String| {
            say(why);
            is_damaged = true;
        };
        for cpu in cpus {
            let (path, buffer) = match self.buffer(cpu) {
                Ok(buffer) => buffer,
                Err(why) => {
                    complain(why);
                    continue;
                }
            };
            let (reader, unsound) = Reader::look(buffer);
            if let Some(unsound) = unsound {
                complain(format!("{}: {unsound}; its content may be wrong", path.display()));
            }
            if timed.is_none() {
                timed =
                    left::meaning(self.dir, self.id, reader.buffer()).map(|meaning| (meaning, Merge::new()));
            }
            if timed.is_none()
                && let Some(option) = show.given()
            {
                return Err(Failure::Raw { channel: what.channel.clone(), option });
            }
            let meaning = timed.as_ref().map(|(meaning, _)| meaning);
            match copy(reader, |reader| bytes_of(reader, cpu, meaning)) {
                Ok((reader, bytes)) => {
                    match &mut timed {
                        Some((_, merge)) => merge.push(cpu as u32, Stream::new(Cursor::new(bytes), None)),
                        None => output.write(&bytes)?,
                    }
                    losses.insert(cpu, Losses::of(&reader).since(&Losses::before(&reader)));
                }
                Err(why) => complain(format!("{}: {why}", path.display())),
            }
        }
        if let Some((meaning, mut merge)) = timed {
            let mut printer = Printer::new(show, meaning, &mut output)?;
            printer.print(&mut merge, None).and_then(|()| printer.finish()).map_err(Failure::without_loss)?;
            is_damaged |= printer.is_damaged();
        }
        Tally::of_all(losses).tell(None);
        Ok(is_damaged)
    }

    /// Maps a buffer, to look at only; returns the path of its ring too.
    fn buffer(&self, cpu: usize) -> Result<(PathBuf, Buffer), String> {
        let path = self.dir.join(data_name(self.id, cpu));
        let said = |error: &dyn std::fmt::Display| format!("cannot read {}: {error}", path.display());
        let file = open_regular(&path).map_err(|error| said(&error))?;
        let buffer = self.control.buffer(&file, cpu).map_err(|error| said(&error))?;
        Ok((path, buffer))
    }
}

/// The content of a buffer: packets, if the channel is timed.
fn bytes_of(reader: &Reader, cpu: usize, meaning: Option<&Meaning>) -> Result<Vec<u8>, &'static str> {
    let extent = reader.snapshot_extent();
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(extent.max()).map_err(|_| "there is not enough memory for a copy")?;
    match meaning {
        Some(meaning) => Ok(left::packets(reader, extent, cpu, bytes, meaning)),
        None => {
            reader.snapshot(extent, &mut bytes);
            Ok(bytes)
        }
    }
}

/// Copies the content of a buffer; returns also the reader at whose position the copy begins.
///
/// A running daemon may be reading at the same time, and producers may then overwrite what was read. In that case the
/// buffer is copied again.
fn copy(
    mut reader: Reader,
    bytes_of: impl Fn(&Reader) -> Result<Vec<u8>, &'static str>,
) -> Result<(Reader, Vec<u8>), &'static str> {
    let mut bytes = Vec::new();
    for _ in 0..TRIES_MAX {
        bytes = bytes_of(&reader)?;
        let (later, _) = Reader::look(reader.buffer().clone());
        let was_read = later.position() != reader.position();
        if !was_read || reader.buffer().geometry().mode() == Mode::Overwrite {
            break;
        }
        reader = later;
    }
    Ok((reader, bytes))
}
