//! Asks the mount, in a thread: a daemon that stands still holds up neither the keys nor the screen.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::Happening;
use super::save::save;
use super::text::Text;
use crate::channel_files::Place;
use crate::error::Failure;
use crate::monitor::{self, look::ChannelLook, look::Look};
use crate::panic_point;

/// What the mount is asked for.
#[derive(Debug)]
pub(super) enum Ask {
    /// All channels, and the text of one.
    Look { text_of: Option<String> },
    /// Writes 1 into a control file of a channel.
    Write { channel: String, file: &'static str },
    /// Saves a snapshot of a channel into files of this directory.
    Save(Box<ChannelLook>),
}

/// What the mount has answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// The channels, or why there is no look; and the last lines of the text that was asked for.
    Look { look: Result<Look, String>, lines: Option<Vec<String>> },
    /// What became of an action.
    Done(String),
}

/// Starts the thread. Answers come in the order of the questions.
pub(super) fn start(mount: PathBuf, answers: Sender<Happening>) -> Result<Sender<Ask>, Failure> {
    let (sender, asks) = channel();
    let work = move || answer_all(&mount, &asks, &answers);
    let started = thread::Builder::new().name("asking".to_owned()).spawn(work);
    started.map_err(|error| Failure::system("start a thread", error))?;
    Ok(sender)
}

fn answer_all(mount: &Path, asks: &Receiver<Ask>, answers: &Sender<Happening>) {
    let mut text = Text::default();
    for ask in asks {
        panic_point!("asking");
        let answer = match ask {
            Ask::Look { text_of } => {
                let look = monitor::look(mount).map_err(|failure| failure.to_string());
                let channel = || look.as_ref().ok()?.channel(text_of.as_deref()?);
                let lines = channel().map(|channel| text.read(mount, channel).to_vec());
                Answer::Look { look, lines }
            }
            Ask::Write { channel, file } => Answer::Done(write_one(mount, &channel, file)),
            Ask::Save(channel) => Answer::Done(save(mount, &channel)),
        };
        // The program is ending if nothing takes it.
        if answers.send(Happening::Answer(answer)).is_err() {
            return;
        }
    }
}

fn write_one(mount: &Path, channel: &str, file: &str) -> String {
    let Ok(channel) = channel.parse() else { return format!("{channel}: not a channel") };
    let path = Place { mount: mount.to_owned(), channel }.control_path(file);
    match fs::write(&path, "1\n") {
        Ok(()) => format!("{file}: done"),
        Err(error) => format!("cannot write {}: {error}", path.display()),
    }
}
