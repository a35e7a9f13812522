//! `--state` without a path: lists what daemons have left, also for mount points that are gone.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use relay::cli::one_line::one_line;
use relay::layout::channel_files::LOCK_FILE;
use relay::layout::state_file::StateFile;
use relay::ring::reader::Reader;
use relay::system::locks::lock_holder;

use super::{Found, LeftChannel, find};
use crate::error::Failure;
use crate::output::{Output, say};

/// Prints each state directory with its mount point and its channels.
pub(super) fn run() -> Result<(), Failure> {
    let mut text = String::new();
    for dir in find::all() {
        describe(&dir, &mut text);
        find::quarantines_in(&dir).iter().for_each(|quarantine| describe(quarantine, &mut text));
    }
    if text.is_empty() {
        say(
            "no relayfsd has left anything that you can read; for a relayfsd with --state-dir DIR use --state DIR",
        );
    }
    Output::new()?.write(text.as_bytes())
}

fn describe(dir: &Path, text: &mut String) {
    if !find::holds_channels(dir) {
        return;
    }
    let point = find::point_of(dir);
    let name = point
        .as_ref()
        .map_or("an unknown mount point".to_owned(), |point| point.path().display().to_string());
    // The path of a dead mount exists, though stat(2) fails on it.
    let is_gone =
        point.is_some_and(|point| fs::symlink_metadata(point.path()).is_err_and(|error| is_missing(&error)));
    let gone = if is_gone { "; the directory is gone" } else { "" };
    let daemon = match lock_holder(&dir.join(LOCK_FILE)) {
        Some(pid) => format!("relayfsd (process {pid}) is at work"),
        None if StateFile::read(dir).is_ok_and(|state| state.is_some_and(|state| state.ended)) => {
            "relayfsd has ended".into()
        }
        None => "relayfsd was killed or crashed".into(),
    };
    line(text, format_args!("{name}: {daemon}{gone}"));
    line(text, format_args!("  in {}", dir.display()));
    match Found::in_dir(dir) {
        Ok(found) => describe_channels(&found, text),
        Err(failure) => line(text, format_args!("  {failure}")),
    }
}

fn is_missing(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

fn describe_channels(found: &Found, text: &mut String) {
    let named = found.named.iter().map(|entry| (entry.name.to_string(), entry.id, Some(entry)));
    let nameless = found.nameless.iter().map(|id| (id.to_string(), *id, None));
    for (name, id, entry) in named.chain(nameless) {
        let mut complaints = Vec::new();
        let unread = LeftChannel::open(found.dir, id, entry, &mut complaints)
            .map(|channel| channel.unread(&mut complaints));
        match unread {
            Ok(unread) => line(text, format_args!("  {name}: {unread} bytes unread")),
            Err(why) => complaints.push(why),
        }
        complaints.iter().for_each(|why| line(text, format_args!("  {name}: {why}")));
    }
}

fn line(text: &mut String, line: std::fmt::Arguments) {
    // Paths may have any characters.
    writeln!(text, "{}", one_line(&line.to_string())).expect("writing to a string");
}

impl LeftChannel<'_> {
    /// Unread bytes in all buffers that can be mapped.
    fn unread(&self, complaints: &mut Vec<String>) -> u64 {
        let unread = (0..self.control.n_bufs()).map(|cpu| match self.buffer(cpu) {
            Ok((path, buffer)) => {
                let (reader, unsound) = Reader::look(buffer);
                complaints.extend(unsound.map(|unsound| format!("{}: {unsound}", path.display())));
                reader.unread_data()
            }
            Err(why) => {
                complaints.push(why);
                0
            }
        });
        unread.fold(0, u64::saturating_add)
    }
}
