//! The daemon ends a buffer while one of its readers looks whether a peer has done so.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use relay::ring::buffer::Buffer;
use relay::ring::scheduler_model::{RseqExecutor, on_cpu};
use relay::ring::writer::Writer;

use super::{Mode, buffer, model};

/// A thread ends the buffer as the daemon does. Another one denies what only a peer can have stored, and denies nothing.
/// Defends that the look at `closed` comes before that at the note, and finds it.
fn ending(end: fn(&Buffer)) {
    model(move || {
        let buffer = buffer(Mode::NoOverwrite, 8, 1);
        let noted = Arc::new(AtomicBool::new(false));
        let (ended, note) = (buffer.clone(), noted.clone());
        let daemon = thread::spawn(move || {
            note.store(true, Ordering::Relaxed);
            end(&ended);
        });
        let looked = buffer.clone();
        let reader = thread::spawn(move || looked.deny_closed(|| noted.load(Ordering::Relaxed)));
        daemon.join().unwrap();
        assert!(!reader.join().unwrap(), "no peer has closed it");
        assert_eq!(buffer.block().closed.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn closed_buffer_is_not_opened_again() {
    ending(|buffer| on_cpu(|| Writer::new(buffer, RseqExecutor).close().unwrap()));
}

#[test]
fn announced_end_is_not_undone() {
    ending(Buffer::announce_end);
}
