//! A well-behaved producer and reader, which must not be disturbed while other processes misbehave.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use relay_producer::BatchOptions;

use crate::{Mount, eventually};

/// Messages that must arrive to prove that the service works.
const SOME: u64 = 20;

/// A thread that sends a message to CPU 0 and reads it, in a loop. Its panics come out in [`Honest::end`].
#[derive(Debug)]
pub struct Honest {
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Honest {
    /// Starts the thread, on a channel that nothing else uses. It reads each message whole before it sends the next.
    #[track_caller]
    pub fn on(mount: &Mount, channel: &str) -> Honest {
        let (producer, mut file) = (mount.channel(channel), open(mount, channel));
        let (done, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counter, stopped) = (Arc::clone(&done), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let options = BatchOptions { cpu: Some(0), ..BatchOptions::default() };
            for number in 0_u64.. {
                let counts = producer.write_batch(&[&number.to_le_bytes()[..]], options).expect("a message");
                assert_eq!((counts.written, counts.dropped), (1, 0), "message {number}");
                let mut message = [0; 8];
                file.read_exact(&mut message).expect("the message");
                assert_eq!(u64::from_le_bytes(message), number);
                counter.fetch_add(1, Ordering::Relaxed);
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        Honest { done, stop, thread: Some(thread) }
    }

    /// Checks that messages arrive now.
    #[track_caller]
    pub fn assert_going_on(&self) {
        let before = self.done.load(Ordering::Relaxed);
        eventually("honest messages", || {
            self.done.load(Ordering::Relaxed) >= before + SOME || self.has_ended()
        });
        assert!(!self.has_ended(), "the honest one was disturbed");
    }

    /// Ends the thread, and checks that nothing went wrong until now.
    #[track_caller]
    pub fn end(mut self) {
        self.assert_going_on();
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("it is joined once").join().expect("an undisturbed end");
    }

    fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Honest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn open(mount: &Mount, channel: &str) -> File {
    File::open(mount.path(&format!("{channel}0"))).expect("a buffer's file")
}
