//! The daemon ends a buffer while one of its readers looks whether a peer has done so.

use std::cell::Cell;
use std::sync::Mutex;

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
        let reader = thread::spawn(move || {
            looked.deny_closed(|| {
                let is_noted = noted.load(Ordering::Relaxed);
                assert!(is_noted, "the buffer is open for no moment");
                is_noted
            })
        });
        daemon.join().unwrap();
        assert!(!reader.join().unwrap(), "no peer has closed it");
        assert_eq!(buffer.block().closed.load(Ordering::Relaxed), 1);
    });
}

/// As above, after a peer has stored that the buffer is closed. An end between the reader's look and its store stays.
/// Defends that the store finds the note, and that the reader looks at it again.
fn ending_after_peer(end: fn(&Buffer)) {
    model(move || {
        let buffer = buffer(Mode::NoOverwrite, 8, 1);
        buffer.block().closed.store(1, Ordering::Relaxed);
        let noted = Arc::new(AtomicBool::new(false));
        // Says what has run before in this execution, and orders nothing for the model. The last value would not do: to loom,
        // a store that came behind an exchange may also be the one before it.
        let is_ended = Arc::new(Mutex::new(false));
        let (ended, note, over) = (buffer.clone(), noted.clone(), is_ended.clone());
        let daemon = thread::spawn(move || {
            note.store(true, Ordering::Relaxed);
            end(&ended);
            *over.lock().unwrap() = true;
        });
        let looked = buffer.clone();
        let reader = thread::spawn(move || {
            let was_ended = Cell::new(None);
            let is_denied = looked.deny_closed(|| {
                let is_noted = noted.load(Ordering::Relaxed);
                was_ended.set(was_ended.get().or_else(|| Some(*is_ended.lock().unwrap())));
                is_noted
            });
            assert!(!is_denied || was_ended.get() == Some(false), "it has undone the end");
            is_denied
        });
        daemon.join().unwrap();
        // If it is denied, the end has come behind that.
        if !reader.join().unwrap() {
            assert_eq!(buffer.block().closed.load(Ordering::Relaxed), 1);
        }
    });
}

fn close(buffer: &Buffer) {
    on_cpu(|| Writer::new(buffer, RseqExecutor).close().unwrap());
}

#[test]
fn closed_buffer_is_not_opened_again() {
    ending(close);
}

#[test]
fn announced_end_is_not_undone() {
    ending(Buffer::announce_end);
}

#[test]
fn end_after_the_look_at_what_a_peer_has_stored_stays() {
    ending_after_peer(close);
    ending_after_peer(Buffer::announce_end);
}
