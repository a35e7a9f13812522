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
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::thread;

use crate::error::{Failure, SILENT, means_gone};
use crate::mount;

use self::look::Look;

/// Fails if the daemon of a mount does not answer in time, as one that was stopped.
///
/// The thread that asks stays behind then, and ends with the process.
pub(crate) fn check_answer(mount: &Path) -> Result<(), Failure> {
    Asker::default().check_answer(mount)
}

/// Asks the daemon of a mount for any answer, again and again. At most one thread waits for an answer.
#[derive(Default)]
pub(crate) struct Asker {
    /// Hangs up when the question that was not answered in time is answered.
    late: Option<Receiver<()>>,
}

impl Asker {
    /// Like [`check_answer`], but returns at once while an earlier question is not answered.
    pub(crate) fn check_answer(&mut self, mount: &Path) -> Result<(), Failure> {
        let silent = || Failure::Silent(mount.to_owned());
        if self.late.as_ref().is_some_and(|late| late.try_recv() == Err(TryRecvError::Empty)) {
            return Err(silent());
        }
        let path = mount.join(".relay/version");
        let (sender, answer) = channel();
        let ask = move || {
            // Any answer will do.
            let _ = fs::read(path);
            drop(sender);
        };
        let started = thread::Builder::new().name("asking".to_owned()).spawn(ask);
        started.map_err(|error| Failure::system("start a thread", error))?;
        let is_late = answer.recv_timeout(SILENT) == Err(RecvTimeoutError::Timeout);
        self.late = is_late.then_some(answer);
        if is_late { Err(silent()) } else { Ok(()) }
    }
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
