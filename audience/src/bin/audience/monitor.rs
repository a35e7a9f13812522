//! Looks at the daemon by its file `.relay/status`: what two looks say of the time between, and advice.
//!
//! `status` prints looks, `top` shows them. A look consumes nothing.

pub(crate) mod advice;
pub(crate) mod amounts;
pub(crate) mod look;
pub(crate) mod rates;
pub(crate) mod users;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread;

use crate::error::{Failure, SILENT, means_gone};
use crate::mount;

use self::look::Look;

/// Fails if the daemon of a mount does not answer in time, as one that was stopped.
///
/// The thread that asks stays behind then, and ends with the process.
pub(crate) fn check_answer(mount: &Path) -> Result<(), Failure> {
    let path = mount.join(".relay/version");
    let (sender, answer) = channel();
    // Any answer will do. One that comes too late has no receiver.
    let ask = move || sender.send(fs::read(path).is_ok()).unwrap_or_default();
    let started = thread::Builder::new().name("asking".to_owned()).spawn(ask);
    started.map_err(|error| Failure::system("start a thread", error))?;
    answer.recv_timeout(SILENT).map(drop).map_err(|_| Failure::Silent(mount.to_owned()))
}

/// Looks at all channels of a mount.
pub(crate) fn look(mount: &Path) -> Result<Look, Failure> {
    let path: PathBuf = mount.join(".relay/status");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Look::parse(&text)),
        Err(source) if source.kind() == ErrorKind::NotFound && mount::is_mounted(mount)? => {
            Err(Failure::NoStatus(mount.to_owned()))
        }
        Err(source) if means_gone(&source) => Err(Failure::NotMounted(mount.to_owned())),
        Err(source) => Err(Failure::open(&path, source)),
    }
}
