//! Saves a snapshot of a channel into files of this directory.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Zoned;

use crate::channel_files::Place;
use crate::monitor::amounts::bytes;
use crate::monitor::look::ChannelLook;

/// Saves the text of a timed channel, or each buffer of a raw one. Returns what became of it.
pub(super) fn save(mount: &Path, channel: &ChannelLook) -> String {
    let Ok(name) = channel.name.parse() else { return format!("{}: not a channel", channel.name) };
    let place = Place { mount: mount.to_owned(), channel: name };
    let stem = format!("{}.{}", channel.name.replace('/', "-"), Zoned::now().strftime("%Y%m%dT%H%M%S"));
    let files: Vec<(PathBuf, PathBuf)> = if channel.is_timed {
        vec![(place.control_path("trace"), format!("{stem}.txt").into())]
    } else {
        let of = |cpu| {
            (place.control_path("snapshot").join(format!("cpu{cpu}")), format!("{stem}.cpu{cpu}").into())
        };
        (0..channel.buffers.len()).map(of).collect()
    };
    let mut total = 0;
    for (from, to) in &files {
        match copy(from, to) {
            Ok(n) => total += n,
            Err(error) => return format!("cannot save {}: {error}", to.display()),
        }
    }
    let names = if files.len() == 1 { files[0].1.display().to_string() } else { format!("{stem}.cpu*") };
    format!("saved {} in {names}", bytes(total as f64))
}

/// Copies a file to a new one, which only its owner may read. Leaves nothing if it fails.
fn copy(from: &Path, to: &Path) -> io::Result<u64> {
    let mut from = File::open(from)?;
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    io::copy(&mut from, &mut new).inspect_err(|_| {
        let _ = fs::remove_file(to);
    })
}
