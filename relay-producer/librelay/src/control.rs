//! What is done through the mounted tree, by whoever may: it is the reader's side, on which a producer has no say.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;

use nix::errno::Errno;
use relay::system::descriptor::{self, away_from_stdio};

use crate::error::of_tree;

/// Tries at giving sub-buffers back while somebody else does so too.
const CONSUME_TRIES: usize = 16;

/// The control files of a channel.
#[derive(Debug)]
pub(crate) struct Control(Option<PathBuf>);

impl Control {
    /// Those of the channel `name` below `mount`, if that is a directory.
    pub(crate) fn new(mount: &std::path::Path, name: &str) -> Control {
        Control(mount.is_dir().then(|| mount.join(".relay/channels").join(name)))
    }

    fn path(&self, file: &str) -> Result<PathBuf, Errno> {
        Ok(self.0.as_ref().ok_or(Errno::ENOTSUP)?.join(file))
    }

    fn write(&self, file: &str, text: &str) -> Result<(), Errno> {
        // Neither made nor cut: it must be the daemon's.
        let opened = descriptor::open(OpenOptions::new().write(true), self.path(file)?);
        let written = opened.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
        written.map_err(|error| of_tree(&error))
    }

    /// Forgets what is unread.
    pub(crate) fn reset(&self) -> Result<(), Errno> {
        self.write("reset", "1")
    }

    /// Gives back `count` sub-buffers of a CPU, or as many as are finished.
    pub(crate) fn consume(&self, cpu: usize, count: usize) -> Result<(), Errno> {
        let file = format!("consumed/cpu{cpu}");
        let mut count = count as u64;
        for _ in 0..CONSUME_TRIES {
            match self.write(&file, &count.to_string()) {
                // More than there are; perhaps fewer than there were a moment ago.
                Err(Errno::EINVAL) => count = count.min(self.finished(cpu)?),
                done => return done,
            }
        }
        Err(Errno::EAGAIN)
    }

    /// How many sub-buffers of a CPU are finished and not given back.
    pub(crate) fn finished(&self, cpu: usize) -> Result<u64, Errno> {
        let path = self.path("stats")?;
        let stats = away_from_stdio(|| fs::read_to_string(path)).map_err(|error| of_tree(&error))?;
        // Not there, or not all of it: read from a daemon that is ending.
        let value = |name: &str| {
            let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cpu{cpu}.{name} ")));
            line.and_then(|value| value.parse::<u64>().ok()).ok_or(Errno::ENODEV)
        };
        Ok(value("produced")?.saturating_sub(value("consumed")?))
    }
}
