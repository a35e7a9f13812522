//! The terminal, which is as before however the program ends.
//!
//! Whatever ends the program first takes the lock of drawing and never gives it back. So nothing is drawn behind the
//! restored screen.

use std::io::{Stdout, stdout};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{panic, process, thread};

use audience_common::signals::die_of;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::{Frame, Terminal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;

use crate::error::Failure;

/// Exit status after a panic, as Rust's runtime has it.
const PANICKED: i32 = 101;

/// Held while the terminal is drawn or restored.
static TERMINAL: Mutex<()> = Mutex::new(());

/// The screen of this program.
pub(super) struct Screen(Terminal<CrosstermBackend<Stdout>>);

impl Screen {
    /// Takes the terminal until the program ends. The calling thread is the one that draws.
    pub(super) fn take() -> Result<Screen, Failure> {
        catch_signals()?;
        catch_panics();
        Screen::begin()
    }

    fn begin() -> Result<Screen, Failure> {
        let failed = |error| Failure::system("prepare the terminal", error);
        enable_raw_mode().map_err(failed)?;
        let entered = execute!(stdout(), EnterAlternateScreen);
        entered.and_then(|()| Terminal::new(CrosstermBackend::new(stdout()))).map(Screen).map_err(|error| {
            restore();
            failed(error)
        })
    }

    /// Draws the screen again.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> Result<(), Failure> {
        let _drawing = lock();
        self.0.draw(draw).map(drop).map_err(|error| Failure::system("use the terminal", error))
    }

    /// Gives the terminal back to the shell until the user continues this program.
    pub(super) fn suspend(&mut self) -> Result<(), Failure> {
        {
            let _restoring = lock();
            restore();
        }
        // Returns when the process continues.
        let _ = signal_hook::low_level::emulate_default_handler(SIGTSTP);
        *self = Screen::begin()?;
        Ok(())
    }

    /// Gives the terminal back.
    pub(super) fn end(self) {
        let _restoring = lock();
        restore();
    }
}

fn lock() -> MutexGuard<'static, ()> {
    TERMINAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives the terminal back as it was. Failures can be told nowhere.
fn restore() {
    let _ = disable_raw_mode();
    let _ = execute!(stdout(), LeaveAlternateScreen, Show);
}

/// Restores the terminal before a signal ends the process.
fn catch_signals() -> Result<(), Failure> {
    let failed = |error| Failure::system("wait for signals", error);
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM]).map_err(failed)?;
    let wait = move || {
        if let Some(signal) = signals.forever().next() {
            let _restoring = lock();
            restore();
            die_of(signal);
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(failed)?;
    Ok(())
}

/// Restores the terminal before a panic of any thread is reported, and ends the process.
fn catch_panics() {
    let (drawing, report) = (thread::current().id(), panic::take_hook());
    panic::set_hook(Box::new(move |what| {
        // The thread that draws may hold the lock.
        let _restoring = (thread::current().id() != drawing).then(lock);
        restore();
        report(what);
        process::exit(PANICKED);
    }));
}
