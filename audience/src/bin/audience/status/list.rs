//! `audience --list`: the channels by name, with mode and geometry, for every user.

use std::fs;
use std::path::Path;

use crate::channel_files::{Place, known};
use crate::error::Failure;
use crate::monitor::{self, amounts::bytes};
use crate::mount;
use crate::output::{self, Output};

/// Prints a line for each channel.
pub(crate) fn list(mount: &Path) -> Result<(), Failure> {
    output::check()?;
    monitor::check_answer(mount)?;
    if !mount::is_mounted(mount)? {
        return Err(Failure::NotMounted(mount.to_owned()));
    }
    let names = known(mount);
    let width = names.iter().map(String::len).max().unwrap_or(0);
    let mut text = String::new();
    for name in names {
        let Ok(channel) = name.parse() else { continue };
        let place = Place { mount: mount.to_owned(), channel };
        let read = |file| fs::read_to_string(place.control_path(file)).ok();
        let number = |file| read(file)?.trim().parse::<u64>().ok();
        // A channel that has gone since is left out.
        let Some((mode, n_subbufs, size)) =
            read("mode").and_then(|mode| Some((mode, number("n_subbufs")?, number("subbuf_size")?)))
        else {
            continue;
        };
        text += &format!("{name:width$}  {n_subbufs} x {}, {}\n", bytes(size as f64), mode.trim());
    }
    Output::new()?.write(text.as_bytes())
}
