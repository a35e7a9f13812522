//! `audience status`: channels with their rates, losses, writers and readers, as text or as JSON.
//!
//! Rates are those between two looks. `--watch` prints again at each interval, also when another daemon serves the mount,
//! or the daemon has stood still.

mod json;
mod list;
mod text;

use std::io::{IsTerminal, stdout};

use audience_common::signals::{self, Stop};
use nix::poll::{PollFd, PollFlags};

use crate::error::Failure;
use crate::monitor::look::{ChannelLook, Look};
use crate::monitor::rates::Rates;
use crate::monitor::users::Users;
use crate::monitor::{self, Asker, advice::advice};
use crate::options::Status;
use crate::output::{self, Output};
use crate::wait_for_channel::poll_timeout;

pub(crate) use self::list::list;

/// Goes to the first line of a terminal, and clears the screen. What has scrolled out of it is the user's, and stays.
const CLEAR: &str = "\x1b[H\x1b[J";

/// A channel with all that is said of it.
struct Shown<'a> {
    channel: &'a ChannelLook,
    rates: Vec<Rates>,
    advice: Vec<String>,
}

/// Prints the status, once or until a signal.
pub(crate) fn run(options: &Status) -> Result<(), Failure> {
    output::check()?;
    let stop = signals::catch(Some(signals::END_MAX), || {})?;
    let (mut output, mut users) = (Output::new()?, Users::default());
    let clears = options.watch && !options.json && stdout().is_terminal();
    let mut asker = Asker::default();
    let mut before = look(options, &mut asker)?;
    let mut is_missing = false;
    loop {
        rest(options, &stop)?;
        if stop.caught().is_some() {
            // A watch is ended so.
            return if options.watch { Ok(()) } else { Err(interrupted(&stop)) };
        }
        let now = match look(options, &mut asker) {
            Ok(now) => now,
            // The daemon may continue, the next one may come, or the channel.
            Err(failure @ (Failure::Silent(_) | Failure::NotMounted(_) | Failure::NoChannel { .. }))
                if options.watch =>
            {
                if !std::mem::replace(&mut is_missing, true) {
                    output::say(failure);
                }
                continue;
            }
            Err(failure) => return Err(failure),
        };
        is_missing = false;
        let shown: Vec<Shown<'_>> =
            wanted(options, &now).map(|channel| Shown::new(channel, &before, &now)).collect();
        let printed = if options.json {
            json::print(&options.mount, &now, &shown, &mut users)
        } else {
            text::print(&options.mount, &now, &shown, &mut users)
        };
        let before_it = match (clears, options.watch && !options.json) {
            (true, _) => CLEAR,
            (false, true) => "\n",
            _ => "",
        };
        output.write(format!("{before_it}{printed}").as_bytes())?;
        if !options.watch {
            return Ok(());
        }
        drop(shown);
        before = now;
    }
}

impl<'a> Shown<'a> {
    fn new(channel: &'a ChannelLook, before: &Look, now: &Look) -> Shown<'a> {
        let rates = Rates::between(before, now, channel);
        let advice = advice(channel, &rates, now.memory_max_bytes);
        Shown { channel, rates, advice }
    }
}

/// Looks, and checks that the named channels are there.
fn look(options: &Status, asker: &mut Asker) -> Result<Look, Failure> {
    asker.check_answer(&options.mount)?;
    let look = monitor::look(&options.mount)?;
    match options.channels().find(|name| look.channel(name.as_str()).is_none()) {
        None => Ok(look),
        Some(name) => Err(Failure::NoChannel {
            channel: name.clone(),
            known: look.channels.into_iter().map(|channel| channel.name).collect(),
            mount: options.mount.clone(),
        }),
    }
}

fn wanted<'a>(options: &'a Status, look: &'a Look) -> impl Iterator<Item = &'a ChannelLook> {
    let is_wanted = |channel: &&ChannelLook| {
        let mut names = options.channels().peekable();
        names.peek().is_none() || names.any(|name| name.as_str() == channel.name)
    };
    look.channels.iter().filter(is_wanted)
}

/// Waits for the interval, or for a signal.
fn rest(options: &Status, stop: &Stop) -> Result<(), Failure> {
    let mut fds = [PollFd::new(stop.as_fd(), PollFlags::empty())];
    match nix::poll::poll(&mut fds, poll_timeout(options.interval)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(errno) => Err(Failure::system("wait", errno)),
    }
}

fn interrupted(stop: &Stop) -> Failure {
    Failure::Interrupted(stop.caught().map_or(0, |(signal, _)| signal))
}
