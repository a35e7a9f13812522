//! `audience top`: channels live on a terminal, with their rates of the last minute.
//!
//! ```text
//!   list of channels --Enter--> one channel: its CPUs, losses, processes, advice
//!          ^------------Esc-----'   f: its text   F: flush   R, y: reset   w: a snapshot to files
//!
//!   keys, a thread -------> main thread: state, drawing --asks--> the mount, a thread
//!                                 ^-------------------------answers----'
//! ```
//!
//! It looks once a second, and consumes nothing.

mod asking;
mod draw;
mod history;
mod keys;
mod save;
mod state;
mod terminal;
mod text;

use std::io::{self, IsTerminal, stdin, stdout};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event};

use self::asking::{Answer, Ask};
use self::keys::Next;
use self::state::State;
use self::terminal::Screen;
use crate::error::Failure;
use crate::monitor;
use crate::options::Top;
use crate::panic_point;

/// What the main thread waits for.
#[derive(Debug)]
enum Happening {
    /// A key, or another size of the terminal.
    Input(io::Result<Event>),
    Answer(Answer),
}

/// Runs until the user ends it.
pub(crate) fn run(options: &Top) -> Result<(), Failure> {
    if !stdin().is_terminal() || !stdout().is_terminal() {
        return Err(Failure::NoTerminal);
    }
    // Before the terminal changes, so that an error is an ordinary line.
    monitor::check_answer(&options.mount)?;
    let first = monitor::look(&options.mount)?;
    let (sender, happenings) = mpsc::channel();
    let asks = asking::start(options.mount.clone(), sender.clone())?;
    let mut state = State::new(options.mount.clone(), first);
    let mut screen = Screen::take()?;
    let result =
        read_keys(sender).and_then(|()| show(&mut screen, &mut state, options.interval, &happenings, &asks));
    screen.end();
    result
}

/// Passes keys on, in a thread.
fn read_keys(keys: Sender<Happening>) -> Result<(), Failure> {
    let work = move || {
        loop {
            let read = event::read();
            panic_point!("keys");
            let is_over = read.is_err();
            if keys.send(Happening::Input(read)).is_err() || is_over {
                return;
            }
        }
    };
    let started = thread::Builder::new().name("keys".to_owned()).spawn(work);
    started.map(drop).map_err(|error| Failure::system("start a thread", error))
}

fn show(
    screen: &mut Screen,
    state: &mut State,
    interval: Duration,
    happenings: &mpsc::Receiver<Happening>,
    asks: &Sender<Ask>,
) -> Result<(), Failure> {
    let mut due = Instant::now() + interval;
    loop {
        screen.draw(|frame| {
            panic_point!("drawing");
            draw::draw(frame, state);
        })?;
        let next = match happenings.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Err(RecvTimeoutError::Timeout) => {
                due = Instant::now() + interval;
                state.next_look().map_or(Next::Stay, Next::Ask)
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Ok(Happening::Answer(answer)) => {
                state.take(answer);
                Next::Stay
            }
            Ok(Happening::Input(Ok(Event::Key(key)))) => keys::press(state, key),
            // Another size, for example.
            Ok(Happening::Input(Ok(_))) => Next::Stay,
            Ok(Happening::Input(Err(error))) => return Err(Failure::system("read the terminal", error)),
        };
        match next {
            Next::Stay => {}
            // The thread that answers lives as long as this one.
            Next::Ask(ask) => drop(asks.send(ask)),
            Next::Quit => return Ok(()),
            Next::Suspend => {
                screen.suspend()?;
                due = Instant::now();
            }
        }
    }
}
