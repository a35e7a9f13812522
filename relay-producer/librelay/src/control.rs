//! Control through the mounted tree.
//! It belongs to the reader's side, and file permissions decide which users may use it.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;

use nix::errno::Errno;
use relay::system::descriptor::{self, away_from_stdio};

use crate::error::of_tree;

/// Tries to give sub-buffers back while another process does the same.
const CONSUME_TRIES: usize = 16;

/// The control files of a channel.
#[derive(Debug)]
pub(crate) struct Control(Option<PathBuf>);

impl Control {
    /// Returns the files of the channel `name` below `mount`, if that is a directory.
    pub(crate) fn new(mount: &std::path::Path, name: &str) -> Control {
        Control(mount.is_dir().then(|| mount.join(".relay/channels").join(name)))
    }

    fn path(&self, file: &str) -> Result<PathBuf, Errno> {
        Ok(self.0.as_ref().ok_or(Errno::ENOTSUP)?.join(file))
    }

    fn write(&self, file: &str, text: &str) -> Result<(), Errno> {
        // Neither created nor truncated: the file must be the daemon's.
        let opened = descriptor::open(OpenOptions::new().write(true), self.path(file)?);
        let written = opened.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
        written.map_err(|error| of_tree(&error))
    }

    /// Discards everything unread.
    pub(crate) fn reset(&self) -> Result<(), Errno> {
        self.write("reset", "1")
    }

    /// Gives back `count` sub-buffers of a CPU, or all finished ones if they are fewer.
    pub(crate) fn consume(&self, cpu: usize, count: usize) -> Result<(), Errno> {
        let file = format!("consumed/cpu{cpu}");
        let mut count = count as u64;
        for _ in 0..CONSUME_TRIES {
            match self.write(&file, &count.to_string()) {
                // More than are finished; perhaps another process has just given some back.
                Err(Errno::EINVAL) => count = count.min(self.finished(cpu)?),
                done => return done,
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Returns the number of finished sub-buffers of a CPU that are not given back.
    pub(crate) fn finished(&self, cpu: usize) -> Result<u64, Errno> {
        let path = self.path("stats")?;
        let stats = away_from_stdio(|| fs::read_to_string(path)).map_err(|error| of_tree(&error))?;
        // Missing or incomplete: read from a daemon that is ending.
        let value = |name: &str| {
            let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cpu{cpu}.{name} ")));
            line.and_then(|value| value.parse::<u64>().ok()).ok_or(Errno::ENODEV)
        };
        Ok(value("produced")?.saturating_sub(value("consumed")?))
    }
}
